"""The contract of a pair of concept layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..layers.basis import SpectralBasis
from ..layers.concepts import ConceptDecoder, ConceptEncoder, Spectrum
from ..layers.selection import Selection
from .accuracy import assert_equal, require


def check_concept_layer(
    encoder: ConceptEncoder, decoder: ConceptDecoder, shapes: Sequence[Sequence[int]] | None = None, *, seed: int = 0
) -> None:
    """The contract of a pair of concept layers, against their ``dense_forward``.

    The weight is (in, out, *kernel_shape), the bias (out, 1, ...), where the package's own concept layers read them.
    Energies are the mean and mean square of the dense pre-codes, ``gather`` gives rows of them, ``contract`` writes what the
    dense decoder writes for the scattered codes, kernel norms are the norms of the atoms, on every grid.

    Parameters
    ----------
    encoder, decoder
        The layers, of one dictionary.
    shapes : sequence of grids, optional
        By default an odd and an even one. All must resolve the modes.
    seed : int
        Of the random fields.

    Raises
    ------
    AssertionError
        Naming the property that failed, the grid and the error.

    Examples
    --------
    >>> from neuralop_sae.layers import ConceptDecoder, ConceptEncoder
    >>> check_concept_layer(ConceptEncoder(3, 8, (5, 4)), ConceptDecoder(3, 8, (5, 4)))
    """
    generator = torch.Generator().manual_seed(seed)
    require(encoder.n_concepts == decoder.n_concepts, "n_concepts", f"{encoder.n_concepts} and {decoder.n_concepts}")
    sizes = encoder.basis.mode_shape
    if isinstance(encoder, ConceptEncoder):
        _check_convolution(encoder, encoder.in_channels, encoder.n_concepts)
    if isinstance(decoder, ConceptDecoder):
        _check_convolution(decoder, decoder.n_concepts, decoder.out_channels)
    for grid in shapes or [tuple(2 * size + extra for size in sizes) for extra in (1, 2)]:
        _check_encoder(encoder, tuple(grid), generator)
        _check_decoder(decoder, tuple(grid), generator)


def _check_convolution(layer: ConceptEncoder | ConceptDecoder, n_in: int, n_out: int) -> None:
    """The weight and the bias, from which kernels are read."""
    for name, shape in (
        ("weight", (n_in, n_out, *layer.convolution.kernel_shape)),
        ("bias", (n_out, *(1,) * layer.basis.n_dim)),
    ):
        tensor = getattr(layer.conv, name, None)
        found = None if tensor is None else tuple(tensor.shape)
        require(found == shape, f"{name} of {type(layer.conv).__name__}", f"shape {found} instead of {shape}")


def _random_selection(n_samples: int, n_concepts: int, generator: torch.Generator) -> Selection:
    """Varying numbers of concepts per sample; none at all in the last."""
    mask = torch.rand(n_samples, n_concepts, generator=generator) < 0.4
    mask[-1] = False
    return Selection.from_mask(mask)


def _check_encoder(encoder: ConceptEncoder, grid: tuple[int, ...], generator: torch.Generator) -> None:
    dtype = next(encoder.parameters()).dtype.to_real()
    field = torch.randn(3, encoder.in_channels, *grid, dtype=dtype, generator=generator) + 0.3
    spectrum, dense = Spectrum.of(field, encoder.basis), encoder.dense_forward(field).detach()
    energies, on = encoder.energies(spectrum), f"on the grid {grid}"
    assert_equal(f"energies = mean square of the dense pre-codes {on}", energies.mean_square, encoder.basis.mean_square(dense))
    mean = (dense * encoder.basis.quadrature(grid, like=dense)).flatten(2).sum(-1)
    assert_equal(f"energies: mean of the dense pre-codes {on}", energies.mean, mean, scale=float(dense.norm()) / 10)
    selection = _random_selection(len(field), encoder.n_concepts, generator)
    rows = dense[selection.sample, selection.concept]
    assert_equal(f"gather = rows of dense_forward {on}", encoder.gather(spectrum, selection), rows)
    nothing = Selection.from_mask(torch.zeros(3, encoder.n_concepts, dtype=torch.bool))
    require(encoder.gather(spectrum, nothing).shape == (0, *grid), f"gather of an empty selection {on}", "has rows")


def _check_decoder(decoder: ConceptDecoder, grid: tuple[int, ...], generator: torch.Generator) -> None:
    dtype, on = next(decoder.parameters()).dtype.to_real(), f"on the grid {grid}"
    selection = _random_selection(3, decoder.n_concepts, generator)
    codes = torch.randn(len(selection), *grid, dtype=dtype, generator=generator)
    scattered = codes.new_zeros(3, decoder.n_concepts, *grid)
    scattered[selection.sample, selection.concept] = codes
    dense = decoder.dense_forward(scattered).detach()
    assert_equal(f"forward = dense_forward of the scattered codes {on}", decoder(codes, selection), dense)
    bias = decoder.dense_forward(torch.zeros_like(scattered))
    assert_equal(f"contract = forward without the bias {on}", decoder.contract(codes, selection), dense - bias)
    _check_norms(decoder, grid, on)


def _check_norms(decoder: ConceptDecoder, grid: tuple[int, ...], on: str) -> None:
    basis, everything = decoder.basis, torch.arange(decoder.n_concepts)
    atoms = decoder.atoms(everything, grid)
    require(atoms.shape == (decoder.n_concepts, decoder.out_channels, *grid), f"atoms {on}", f"shape {tuple(atoms.shape)}")
    norms = basis.mean_square(atoms).sum(1).sqrt()
    if basis.equivariant:
        assert_equal(f"kernel norms = norms of the atoms {on}", decoder.kernel_norms(), norms)
        return
    codes = _orthonormal_codes(basis, grid, like=atoms)
    everywhere = Selection(
        torch.arange(len(codes) * len(everything)),
        everything.repeat(len(codes)),
        len(codes) * len(everything),
        len(everything),
    )
    written = decoder.contract(codes.repeat_interleave(len(everything), 0), everywhere)
    squares = basis.mean_square(written).sum(1).view(len(codes), -1)
    assert_equal(f"kernel norms = root mean square gain {on}", decoder.kernel_norms(), squares.mean(0).sqrt())


def _orthonormal_codes(basis: SpectralBasis, grid: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Real and imaginary part of every mode as codes of norm one, ``(n, *grid)``."""
    size = math.prod(basis.mode_shape)
    unit = torch.eye(size, dtype=like.dtype.to_complex())
    codes = basis.synthesis(torch.cat([unit, 1j * unit]).reshape(-1, *basis.mode_shape), grid)
    norms = basis.mean_square(codes).sqrt()
    held = norms > 1e-3
    return codes[held] / norms[held].view(-1, *(1,) * basis.n_dim)
