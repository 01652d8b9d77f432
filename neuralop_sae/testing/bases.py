"""The contract of a spectral basis."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..layers.basis import SpectralBasis
from .accuracy import TOLERANCE, assert_equal, relative_error, require


def check_basis(
    basis: SpectralBasis | Callable[[], SpectralBasis], shapes: Sequence[Sequence[int]] | None = None, *, seed: int = 0
) -> None:
    """The contract of a spectral basis.

    On every grid: adjoint relation, closed form of the Gram operator, energy = mean square of the synthesis,
    quadrature that sums to one, zeros for modes that the grid does not hold, resampling of constants, gradients. On the
    grids that resolve all modes also: coefficients equal to those of the continuum (hence on any two grids), round
    trip on the span, resampling exact.

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
    sizes = basis.mode_shape
    grids = [tuple(g) for g in shapes] if shapes else [tuple(2 * s + extra for s in sizes) for extra in (1, 2, 5)]
    generator = torch.Generator().manual_seed(seed)
    for dtype in TOLERANCE:
        coefficients = _random_coefficients(basis, dtype, generator)
        for grid in grids:
            _check_on_grid(basis, grid, coefficients, torch.randn(2, *grid, dtype=dtype, generator=generator))
        _check_across_grids(basis, grids, coefficients)
    again = type(basis)(**json.loads(json.dumps(basis.config())))
    require(again.mode_shape == sizes and again.config() == basis.config(), "basis config", "does not make the basis again")
    _check_basis_gradients(basis, min(grids, key=lambda grid: torch.Size(grid).numel()), generator)


def _random_coefficients(basis: SpectralBasis, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    pair = torch.randn(2, *basis.mode_shape, 2, dtype=dtype, generator=generator)
    return torch.view_as_complex(pair)


def _check_on_grid(basis: SpectralBasis, grid: tuple[int, ...], c: Tensor, f: Tensor) -> None:
    """What holds on any grid, for random coefficients and a random field that is not in the span."""
    on = f"on the grid {grid}"
    field, analysed, weights = basis.synthesis(c, grid), basis.analysis(f), basis.weights(grid, like=f)
    inner = basis.mean_square(f + field) - basis.mean_square(f) - basis.mean_square(field)
    spectral = 2 * (weights * (analysed.conj() * c).real).flatten(1).sum(1)
    scale = float((basis.mean_square(f) * basis.mean_square(field)).sqrt().norm())
    assert_equal(f"adjoint of analysis and synthesis {on}", inner, spectral, scale=scale)
    assert_equal(f"gram = analysis(synthesis) {on}", basis.gram(c, grid), basis.analysis(field), scale=float(c.norm()) / 10)
    assert_equal(f"energy = mean square of synthesis {on}", basis.energy(c, grid), basis.mean_square(field))
    total = basis.quadrature(grid, like=f).expand(grid).sum()
    assert_equal(f"quadrature sums to one {on}", total, torch.ones_like(total))
    require(weights.shape == basis.mode_shape and (weights >= 0).all(), f"weights {on}", "shape or sign")
    require(not analysed[:, weights == 0].any(), f"modes that are not held are zero {on}")
    require(torch.equal(basis.resample(f, grid), f), f"resample to the same grid is the identity {on}")
    for what, out in (
        ("analysis", basis.analysis(f.new_zeros(0, *grid, requires_grad=True))),
        ("synthesis", basis.synthesis(c.new_zeros(0, *basis.mode_shape, requires_grad=True), grid)),
    ):
        require(len(out) == 0 and out.requires_grad, f"{what} of an empty batch {on}", "is empty and in autograd's graph")
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
