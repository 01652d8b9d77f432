"""Spherical harmonics: the contract, Parseval, quadrature, resolutions, refusals."""

import math

import pytest
import torch

from neuralop_sae.layers import SphericalBasis
from neuralop_sae.layers.basis import SpectralBasis
from neuralop_sae.testing import check_basis

GRIDS = {
    "equiangular": [(9, 9), (10, 12), (17, 16)],
    "legendre-gauss": [(5, 9), (6, 12), (17, 16)],
    "lobatto": [(6, 9), (7, 12), (17, 16)],
}
BOUND = {torch.float32: 1e-6, torch.float64: 1e-12}


def real_coefficients(dtype: torch.dtype, degrees: int = 5) -> torch.Tensor:
    """Random coefficients of real fields: real at order zero, none above the degree."""
    generator = torch.Generator().manual_seed(0)
    c = torch.view_as_complex(torch.randn(4, degrees, degrees, 2, dtype=dtype, generator=generator)).tril()
    c[..., 0] = c[..., 0].real.to(c.dtype)
    return c


@pytest.mark.parametrize("grid", GRIDS)
def test_contract(grid: str) -> None:
    check_basis(SphericalBasis((5, 10), grid), shapes=GRIDS[grid])


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("grid", GRIDS)
def test_round_trip_and_parseval_on_every_grid(grid: str, dtype: torch.dtype) -> None:
    basis, c = SphericalBasis((5, 10), grid), real_coefficients(dtype)
    fields = [basis.synthesis(c, shape) for shape in GRIDS[grid]]
    for field in fields:
        analysed = basis.analysis(field)
        assert (analysed - c).abs().max() <= BOUND[dtype] * c.abs().max()
        square = (basis.weights(like=c.real) * analysed.abs().square()).sum((-2, -1))
        assert ((square - basis.mean_square(field)).abs() <= BOUND[dtype] * square).all()
        again = basis.synthesis(analysed, field.shape[-2:])
        assert (again - field).abs().max() <= BOUND[dtype] * field.abs().max()


@pytest.mark.parametrize("grid", GRIDS)
def test_conventions_by_closed_forms(grid: str) -> None:
    """The mean is f_00; z = cos(theta) has mean square 1/3 and lies in (1, 0); x and y in (1, 1) with the Condon-Shortley
    phase; the area of a cap is what quadrature says of a band-limited function on it."""
    basis, shape = SphericalBasis((4, 8), grid), (11, 16)
    theta, phi = basis.colatitudes(11)[:, None], basis.longitudes(16)
    ones = torch.ones(shape, dtype=torch.float64)
    x, y, z = theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos() * ones
    expected = torch.zeros(4, 4, dtype=torch.complex128)
    for field, place, value in (
        (ones, (0, 0), 1.0),
        (z, (1, 0), 1 / math.sqrt(3)),
        (x, (1, 1), -1 / math.sqrt(6)),
        (y, (1, 1), 1j / math.sqrt(6)),
    ):
        expected.zero_()[place] = value
        assert (basis.analysis(field) - expected).abs().max() < 1e-13
        assert abs(float(basis.mean_square(field)) - (1.0 if field is ones else 1 / 3)) < 1e-13


def test_pairing_is_what_trying_every_mode_finds() -> None:
    basis, like = SphericalBasis((4, 8)), torch.zeros((), dtype=torch.float64)
    closed, tried = basis.pairing(like=like), SpectralBasis.pairing(SphericalBasis((4, 8)), like=like)
    assert (closed.own - tried.own).abs().max() < 1e-12
    assert (closed.mirrored - tried.mirrored).abs().max() < 1e-12


def test_impulse_is_in_the_middle_of_the_map() -> None:
    basis = SphericalBasis((6, 12))
    field = basis.synthesis(basis.impulse(like=torch.zeros(())), (17, 32))
    assert divmod(int(field.argmax()), 32) == (8, 16)
    assert abs(float(basis.mean_square(field)) - 1) < 1e-5


def test_nested_grids_share_points() -> None:
    basis, c = SphericalBasis((5, 10)), real_coefficients(torch.float64)
    fine, coarse = basis.synthesis(c, (33, 64)), basis.synthesis(c, (17, 32))
    assert basis.shared_points((33, 64), (17, 32)) is not None
    assert (basis.restrict(fine, (17, 32)) - coarse).abs().max() < 1e-12
    assert basis.shared_points((32, 64), (16, 32)) is None
    resampled = basis.restrict(basis.synthesis(c, (32, 64)), (16, 32))
    assert (resampled - basis.synthesis(c, (16, 32))).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((5, 10), "equiangular-trapezoidal"), "its quadrature is not exact; known: equiangular"),
        (((5, 10), "healpix"), "unknown grid 'healpix'; known"),
        (((8, 8),), r"use n_modes=\(8, 16\)"),
        (((8,),), "degrees L, M"),
        (((0, 4),), "degrees L, M"),
    ],
)
def test_refusals(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SphericalBasis(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("grid", "shape"), [("equiangular", (14, 32)), ("legendre-gauss", (7, 32)), ("lobatto", (8, 32))])
def test_a_grid_too_coarse_is_refused_and_the_next_one_taken(grid: str, shape: tuple[int, int]) -> None:
    basis = SphericalBasis((8, 16), grid)
    with pytest.raises(ValueError, match=r"holds 7 degrees, n_modes has 8: use n_modes=\(7, 14\)"):
        basis.analysis(torch.zeros(shape))
    assert basis.analysis(torch.zeros(shape[0] + 1, 32)).shape == (8, 8)
    with pytest.raises(ValueError, match="holds 7 degrees"):
        basis.analysis(torch.zeros(17, 14))


def test_inference_mode_does_not_poison_later_backward_passes() -> None:
    basis = SphericalBasis((4, 8))
    with torch.inference_mode():
        basis.synthesis(basis.analysis(torch.randn(9, 16)), (9, 16))
    field = torch.randn(9, 16, requires_grad=True)
    basis.synthesis(basis.analysis(field), (9, 16)).square().sum().backward()
    assert field.grad is not None
