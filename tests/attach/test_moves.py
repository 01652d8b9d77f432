"""Moves against shifted fields, harmonics evaluated by scipy, and atoms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.attach.edits import compose
from neuralop_sae.attach.moves import inject, rotate, translate
from neuralop_sae.codes import ConceptCodes
from neuralop_sae.layers.basis import SpectralBasis

P = 4


def codes_of(values: Tensor, basis: SpectralBasis, concept: int = 2) -> ConceptCodes:
    """One concept, one sample per map."""
    n = len(values)
    return ConceptCodes(torch.arange(n), torch.full((n,), concept), values, n, P, basis)


def random_map(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", [(8,), (8, 9), (4, 6, 5)])
def test_whole_steps_are_a_roll(grid: tuple[int, ...]) -> None:
    basis, values = ns.FourierBasis((3,) * len(grid)), random_map(2, *grid)
    steps = (3, -1, 2)[: len(grid)]
    moved = translate(2, [step / size for step, size in zip(steps, grid, strict=True)])(codes_of(values, basis))
    torch.testing.assert_close(moved.values, values.roll(steps, tuple(range(1, len(grid) + 1))))


def test_there_and_back_for_any_shift() -> None:
    basis, there, back = ns.FourierBasis((3, 3)), translate(None, (0.123, -0.77)), translate(None, (-0.123, 0.77))
    odd = codes_of(random_map(2, 7, 9), basis)
    torch.testing.assert_close(compose(there, back)(odd).values, odd.values)
    even = codes_of(basis.resample(odd.values, (12, 16)), basis)  # without the Nyquist frequency
    torch.testing.assert_close(compose(there, back)(even).values, even.values)
    with_nyquist = codes_of(random_map(2, 8, 8), basis)
    assert (compose(there, back)(with_nyquist).values - with_nyquist.values).abs().max() > 0.01


def test_a_wave_moves_by_a_fraction_of_a_step() -> None:
    s = torch.arange(8, dtype=torch.float64) / 8
    codes = codes_of((2 * torch.pi * 3 * s).cos()[None], ns.FourierBasis(3))
    moved = translate(2, [0.03])(codes).values[0]
    torch.testing.assert_close(moved, (2 * torch.pi * 3 * (s - 0.03)).cos())


def test_codes_of_shifted_activations_are_shifted_codes() -> None:
    torch.manual_seed(0)
    sae = ns.SAEFNO(3, P, (5, 5), concept_rule=ns.TopK(2)).double().eval()
    x = torch.randn(2, 3, 12, 10, dtype=torch.float64)
    shifted = sae.encode(x.roll((4, -3), (2, 3)))
    moved = translate(None, (4 / 12, -3 / 10))(sae.encode(x))
    torch.testing.assert_close(moved.to_dense(), shifted.to_dense())
    torch.testing.assert_close(sae.decode(moved), sae.decode(sae.encode(x)).roll((4, -3), (2, 3)))


def test_translate_needs_a_periodic_box_of_as_many_axes() -> None:
    with pytest.raises(ValueError, match="use rotate on the sphere"):
        translate(2, (0.1, 0.2))(codes_of(random_map(1, 9, 16), ns.SphericalBasis((5, 10))))
    with pytest.raises(ValueError, match="one fraction per axis"):
        translate(2, (0.1,))(codes_of(random_map(1, 8, 8), ns.FourierBasis((3, 3))))
    for shift in (0.1, [], [float("nan"), 0.0]):
        with pytest.raises(ValueError, match="shift is a list of finite numbers"):
            translate(2, shift)  # type: ignore[arg-type]


def points(basis: ns.SphericalBasis, nlat: int, nlon: int) -> Tensor:
    """Unit vectors of the grid, ``(nlat, nlon, 3)``."""
    south, east = basis.colatitudes(nlat)[:, None], basis.longitudes(nlon)[None]
    parts = (south.sin() * east.cos(), south.sin() * east.sin(), south.cos().expand(nlat, nlon))
    return torch.stack(parts, -1)


@pytest.mark.parametrize("grid", ["equiangular", "legendre-gauss"])
@pytest.mark.parametrize(("angle", "axis"), [(40.0, (0, 0, 1)), (40.0, (0, 0, -2)), (90.0, (1, 0, 0)), (-77.0, (1, -2, 0.5))])
def test_rotations_against_harmonics_at_the_rotated_points(grid: str, angle: float, axis: tuple[float, ...]) -> None:
    basis = ns.SphericalBasis((4, 8), grid)
    c = torch.view_as_complex(random_map(2, 4, 4, 2)).tril()
    c[..., 0] = c[..., 0].real.to(c.dtype)
    turn = Rotation.from_rotvec(
        math.radians(angle) * torch.tensor(axis).double().numpy() / torch.tensor(axis).double().norm().numpy()
    )
    x, y, z = turn.inv().apply(points(basis, 9, 16).reshape(-1, 3).numpy()).T.reshape(3, 9, 16)
    expected = torch.zeros(2, 9, 16, dtype=torch.float64)
    for degree in range(4):
        for order in range(degree + 1):
            colatitude, longitude = (
                torch.tensor(z).clamp(-1, 1).acos().numpy(),
                torch.atan2(torch.tensor(y), torch.tensor(x)).numpy(),
            )
            harmonic = torch.as_tensor(sph_harm_y(degree, order, colatitude, longitude)) * math.sqrt(4 * math.pi)
            expected += (1 if order == 0 else 2) * (c[:, degree, order, None, None] * harmonic).real
    codes = codes_of(basis.synthesis(c, (9, 16)), basis)
    torch.testing.assert_close(rotate(2, angle, axis)(codes).values, expected)


def test_rotation_in_longitude_is_a_roll_of_any_code() -> None:
    values = random_map(2, 9, 16)  # beyond the degrees that the grid holds
    moved = rotate(2, 360 * 3 / 16)(codes_of(values, ns.SphericalBasis((4, 8))))
    torch.testing.assert_close(moved.values, values.roll(3, 2))


def test_codes_of_rotated_activations_are_rotated_codes() -> None:
    """With isotropic kernels and the identity for activation, which keeps codes band-limited."""
    torch.manual_seed(0)
    sae = ns.SAESFNO(3, P, (4, 8), concept_rule=ns.TopK(2), domain_rule=ns.Identity(), isotropic=True).double().eval()
    c = torch.view_as_complex(random_map(1, 3, 4, 4, 2)).tril()
    c[..., 0] = c[..., 0].real.to(c.dtype)
    x = sae.basis.synthesis(c, (9, 16))
    turn = rotate(None, 50.0, (1, 2, 3))
    x_turned = turn(codes_of(x[0], sae.basis)).values[None]
    torch.testing.assert_close(turn(sae.encode(x)).to_dense(), sae.encode(x_turned).to_dense())


def test_rotate_needs_a_sphere_and_an_axis() -> None:
    with pytest.raises(ValueError, match="use translate on a box"):
        rotate(2, 10.0)(codes_of(random_map(1, 8, 8), ns.FourierBasis((3, 3))))
    for axis in ((0, 0, 0), (1, 0)):
        with pytest.raises(ValueError, match="axis is a direction"):
            rotate(2, 10.0, axis)


def test_an_impulse_writes_the_atom_at_the_place() -> None:
    torch.manual_seed(0)
    sae = ns.SAEFNO(3, P, (5, 5), concept_rule=ns.TopK(1)).double().eval()
    codes = sae.encode(torch.randn(2, 3, 12, 10, dtype=torch.float64))
    off = next(c for c in range(P) if c not in codes.concept)
    written = sae.decode(inject(off, (0.25, 0.7), amplitude=3.0)(codes)) - sae.decode(codes)
    atom = sae.atoms([off], (12, 10))[0]  # in the middle, at the point (6, 5)
    torch.testing.assert_close(written, (3 * sae.scale * atom).roll((-3, 2), (1, 2)).expand(2, -1, -1, -1))


def test_an_impulse_on_the_sphere_is_where_it_was_asked_for() -> None:
    basis = ns.SphericalBasis((8, 16))
    codes = codes_of(torch.zeros(1, 17, 32, dtype=torch.float64), basis)
    for latitude, longitude in ((45.0, 90.0), (-22.5, 281.25), (90.0, 0.0)):
        value = inject(2, (latitude, longitude), amplitude=2.0)(codes).values[0]
        south, east = math.radians(90 - latitude), math.radians(longitude)
        place = torch.tensor([math.sin(south) * math.cos(east), math.sin(south) * math.sin(east), math.cos(south)])
        cosine = points(basis, 17, 32) @ place.double()
        assert cosine.flatten()[value.argmax()] == pytest.approx(1.0)
        # zonal about the place: sum of (2 l + 1) P_l, of norm 2
        legendre = sum((2 * l + 1) * torch.special.legendre_polynomial_p(cosine, l) for l in range(8))  # noqa: E741
        torch.testing.assert_close(value, 2 * legendre / 8, atol=1e-6, rtol=1e-6)


def test_bumps_are_positive_and_gaussian_near_the_place() -> None:
    s = torch.arange(64, dtype=torch.float64) / 64
    flat = inject(2, (0.3, 0.9), amplitude=2.0, width=0.02)(codes_of(torch.zeros(1, 64, 64).double(), ns.FourierBasis((3, 3))))
    distance = [(s - c + 0.5).remainder(1) - 0.5 for c in (0.3, 0.9)]
    square = distance[0][:, None] ** 2 + distance[1] ** 2
    near = square < 0.04**2
    torch.testing.assert_close(flat.values[0][near], 2 * (-square / (2 * 0.02**2)).exp()[near], rtol=0.02, atol=0)
    assert flat.values.min() >= 0
    basis = ns.SphericalBasis((4, 8))
    globe = inject(2, (45.0, 90.0), width=10.0)(codes_of(torch.zeros(1, 33, 64, dtype=torch.float64), basis)).values[0]
    assert globe.max() == pytest.approx(1.0)
    assert divmod(int(globe.argmax()), 64) == (8, 16)
    area = float((globe * basis.quadrature((33, 64), like=globe)).sum())  # of a von Mises-Fisher density
    kappa = 1 / math.radians(10.0) ** 2
    assert area == pytest.approx((1 - math.exp(-2 * kappa)) / (2 * kappa), rel=1e-6)


def test_bumps_add_to_what_is_there_and_move_with_a_gradient() -> None:
    codes = codes_of(random_map(2, 8, 8), ns.FourierBasis((3, 3)))
    before, after = codes.of(2), inject([2, 3], (0.5, 0.5), width=0.1)(codes)
    torch.testing.assert_close(after.of(2) - before, after.of(3))
    at, shift = (torch.tensor([0.4, 0.2], dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a: inject(2, a, width=0.1)(codes).values, at)
    assert torch.autograd.gradcheck(lambda a: translate(2, a)(codes_of(random_map(1, 7, 7), codes.basis)).values, shift)


def test_places_that_are_not_there() -> None:
    codes = codes_of(random_map(1, 8, 8), ns.FourierBasis((3, 3)))
    with pytest.raises(ValueError, match="has 1 coordinates; a place in .* has 2"):
        inject(2, (0.5,))(codes)
    with pytest.raises(ValueError, match="width must be positive"):
        inject(2, (0.5, 0.5), width=0.0)
