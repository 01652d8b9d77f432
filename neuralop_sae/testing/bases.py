"""The contract of a spectral basis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..layers.basis import SpectralBasis
from .accuracy import TOLERANCE, assert_equal, relative_error, require, through_json


def check_basis(
    basis: SpectralBasis | Callable[[], SpectralBasis], shapes: Sequence[Sequence[int]] | None = None, *, seed: int = 0
) -> None:
    """The contract of a spectral basis.

    Its config makes it again. On every grid: dtypes and shapes, quadrature that sums to one, adjoint relation, closed form
    of the Gram operator, energy = mean square of the synthesis, zeros for modes that the grid does not hold, resampling of
    constants, gradients, also after a call in inference mode. On the grids that resolve all modes also: coefficients equal
    to those of the continuum (hence on any two grids), round trip on the span, resampling exact.

    Parameters
    ----------
    basis : SpectralBasis or callable
        The basis, or what makes one.
    shapes : sequence of grids, optional
        By default three that a basis of Fourier type resolves; at least two must resolve all modes.
    seed : int
        Of the random fields.

    Raises
    ------
    AssertionError
        Naming the property that failed, the grid and the error.

    Examples
    --------
    >>> from neuralop_sae.layers import FourierBasis
    >>> check_basis(FourierBasis((4, 5)), shapes=[(9, 8), (6, 7), (3, 4)])
    """
    basis = basis if isinstance(basis, SpectralBasis) else basis()
    _check_config(basis)
    sizes = basis.mode_shape
    grids = [tuple(g) for g in shapes] if shapes else [tuple(2 * s + extra for s in sizes) for extra in (1, 2, 5)]
    generator = torch.Generator().manual_seed(seed)
    for dtype in TOLERANCE:
        coefficients = _random_coefficients(basis, dtype, generator)
        for grid in grids:
            _check_on_grid(basis, grid, coefficients, torch.randn(2, *grid, dtype=dtype, generator=generator))
        _check_across_grids(basis, grids, coefficients)
    _check_inference_mode(basis, tuple(size + 11 for size in grids[0]))
    _check_basis_gradients(basis, min(grids, key=lambda grid: torch.Size(grid).numel()), generator)


def _check_config(basis: SpectralBasis) -> None:
    kept = "keep every constructor argument as an attribute of its name, and set n_dim and mode_shape"
    try:
        config, sizes, n_dim = basis.config(), basis.mode_shape, basis.n_dim
    except AttributeError as error:
        raise AssertionError(f"attributes of the basis: {error}; {kept}") from error
    require(len(sizes) == n_dim, "mode_shape", f"{sizes} does not have n_dim={n_dim} axes")
    again = type(basis)(**through_json("basis config", config))
    require(again.mode_shape == sizes and again.config() == config, "basis config", "does not make the basis again")


def _random_coefficients(basis: SpectralBasis, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    pair = torch.randn(2, *basis.mode_shape, 2, dtype=dtype, generator=generator)
    return torch.view_as_complex(pair)


def _check_on_grid(basis: SpectralBasis, grid: tuple[int, ...], c: Tensor, f: Tensor) -> None:
    """What holds on any grid, for random coefficients and a random field that is not in the span."""
    on = f"on the grid {grid}"
    field, analysed, weights = basis.synthesis(c, grid), basis.analysis(f), basis.weights(grid, like=f)
    for what, tensor, like in (
        ("synthesis", field, f),
        ("analysis", analysed, c),
        ("weights", weights, c[0].real),
        ("quadrature", basis.quadrature(grid, like=f).expand(grid), f[0]),
    ):
        require(tensor.dtype == like.dtype, f"{what} {on}", f"dtype {tensor.dtype} instead of {like.dtype}")
        shapes = tuple(tensor.shape), tuple(like.shape)
        require(shapes[0] == shapes[1], f"{what} {on}", f"shape {shapes[0]} instead of {shapes[1]}")
    total = basis.quadrature(grid, like=f).expand(grid).sum()
    assert_equal(f"quadrature sums to one {on}", total, torch.ones_like(total))
    require((weights >= 0).all(), f"weights {on}", "some are negative")
    inner = basis.mean_square(f + field) - basis.mean_square(f) - basis.mean_square(field)
    spectral = 2 * (weights * (analysed.conj() * c).real).flatten(1).sum(1)
    scale = float((basis.mean_square(f) * basis.mean_square(field)).sqrt().norm())
    assert_equal(f"adjoint of analysis and synthesis {on}", inner, spectral, scale=scale)
    assert_equal(f"gram = analysis(synthesis) {on}", basis.gram(c, grid), basis.analysis(field), scale=float(c.norm()) / 10)
    assert_equal(f"energy = mean square of synthesis {on}", basis.energy(c, grid), basis.mean_square(field))
    require(not analysed[:, weights == 0].any(), f"modes that are not held are zero {on}")
    require(torch.equal(basis.resample(f, grid), f), f"resample to the same grid is the identity {on}")
    for what, out in (
        ("analysis", basis.analysis(f.new_zeros(0, *grid, requires_grad=True))),
        ("synthesis", basis.synthesis(c.new_zeros(0, *basis.mode_shape, requires_grad=True), grid)),
    ):
        require(len(out) == 0, f"{what} of an empty batch {on}", f"shape {tuple(out.shape)} instead of an empty batch")
        require(out.requires_grad, f"{what} of an empty batch {on}", "is cut off from autograd's graph")
    larger = tuple(size + 3 for size in grid)
    constant = torch.full_like(f, 1.5)
    assert_equal(f"resample keeps constants {on}", basis.resample(constant, larger), f.new_full((2, *larger), 1.5))


def _check_across_grids(basis: SpectralBasis, grids: Sequence[tuple[int, ...]], c: Tensor) -> None:
    """What holds on the grids that resolve all modes, for coefficients that the Gram operator keeps."""
    resolving = [g for g in grids if relative_error(basis.gram(c, g), basis.gram(c)) < 1e-6 and _same_weights(basis, g)]
    require(len(resolving) > 1, "shapes", f"two grids that resolve all modes are needed, got {resolving} of {list(grids)}")
    for _ in range(60):  # the powers of a Gram operator converge to the projection on what it keeps
        c = basis.gram(c)
    fields = {grid: basis.synthesis(c, grid) for grid in resolving}
    for grid, field in fields.items():
        assert_equal(f"coefficients are those of the continuum, grid {grid}", basis.analysis(field), c)
        assert_equal(f"round trip on the span, grid {grid}", basis.synthesis(basis.analysis(field), grid), field)
        assert_equal(f"Parseval on the continuum, grid {grid}", basis.energy(c), basis.mean_square(field))
        for other, expected in fields.items():
            assert_equal(f"resample {grid} -> {other}", basis.resample(field, other), expected)


def _same_weights(basis: SpectralBasis, grid: tuple[int, ...]) -> bool:
    like = torch.zeros(())
    return torch.equal(basis.weights(grid, like=like), basis.weights(like=like))


def _check_inference_mode(basis: SpectralBasis, grid: tuple[int, ...]) -> None:
    """Constants that are made and kept in a caller's inference mode break later backward passes. The grid is a new one."""
    fresh, field = type(basis)(**basis.config()), torch.ones(grid)
    with torch.inference_mode():
        fresh.synthesis(fresh.analysis(field), grid)
    try:
        fresh.mean_square(fresh.synthesis(fresh.analysis(field.requires_grad_()), grid)).backward()
    except RuntimeError as error:
        raise AssertionError(f"a backward pass after a call in inference mode, on the grid {grid}: {error}") from error


def _check_basis_gradients(basis: SpectralBasis, grid: tuple[int, ...], generator: torch.Generator) -> None:
    field = torch.randn(*grid, dtype=torch.float64, generator=generator, requires_grad=True)
    coefficients = _random_coefficients(basis, torch.float64, generator)[0].requires_grad_()
    for what, function, argument in (
        ("analysis", basis.analysis, field),
        ("synthesis", lambda c: basis.synthesis(c, grid), coefficients),
        ("energy", lambda c: basis.energy(c, grid), coefficients),
    ):
        try:
            torch.autograd.gradcheck(function, (argument,), fast_mode=True)
        except RuntimeError as error:
            raise AssertionError(f"gradient of {what} on the grid {grid}: {error}") from error
