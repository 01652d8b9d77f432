import math

import numpy as np
import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.analysis.calculus import Globe, PeriodicBox, WalledBox, calculus_of

GLOBES = [("equiangular", (25, 48)), ("legendre-gauss", (20, 41)), ("lobatto", (20, 40))]


def coordinates(lengths, grid):
    axes = [torch.arange(n, dtype=torch.float64) * length / n for length, n in zip(lengths, grid, strict=True)]
    return torch.meshgrid(*axes, indexing="ij")


def angles(globe, grid):
    """Latitude and longitude of the points of a grid."""
    up = globe.places(grid)
    return up[2].clamp(-1, 1).asin(), torch.atan2(up[1], up[0])


@pytest.mark.parametrize("grid", [(16, 20), (15, 21), (16, 21)])
def test_gradient_on_a_box_with_sides(grid):
    lengths = (2.0, 0.5)
    x, y = coordinates(lengths, grid)
    a, b = 2 * math.pi * 3 / lengths[0], 2 * math.pi * 2 / lengths[1]
    slope = PeriodicBox(lengths).gradient(torch.sin(a * x) * torch.cos(b * y) + 5)
    torch.testing.assert_close(slope[0], a * torch.cos(a * x) * torch.cos(b * y), rtol=0, atol=1e-11)
    torch.testing.assert_close(slope[1], -b * torch.sin(a * x) * torch.sin(b * y), rtol=0, atol=1e-11)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_nyquist_frequency_has_no_slope(axis):
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    field = sign.view(-1, 1).expand(8, 8) if axis == 0 else sign.expand(8, 8)
    assert PeriodicBox([1.0, 1.0]).gradient(field).abs().max() < 1e-12


def test_differentiation_is_antisymmetric_on_noise():
    """Integration by parts holds on any field, also one with energy at the Nyquist frequencies."""
    f, g = torch.randn(2, 8, 10, dtype=torch.float64)
    box = PeriodicBox([1.0, 3.0])
    torch.testing.assert_close((box.gradient(f) * g).sum((1, 2)), -(f * box.gradient(g)).sum((1, 2)))


def test_differences_at_walls_are_of_second_order():
    def error(n: int) -> float:
        x, y = coordinates((1.0, 2.0), (n, n))
        slope = WalledBox((1.0, 2.0)).gradient(torch.exp(x) * torch.sin(y))
        exact = torch.stack([torch.exp(x) * torch.sin(y), torch.exp(x) * torch.cos(y)])
        return float((slope - exact).abs().max())

    assert 3.7 < error(32) / error(64) < 4.3
    x = torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(WalledBox([1.0], endpoint=True).gradient(x.square())[0], 2 * x)


@pytest.mark.parametrize(("kind", "grid"), GLOBES)
def test_gradient_on_the_sphere(kind, grid):
    globe = Globe(kind, radius=2.0)
    lat, lon = angles(globe, grid)
    slope = globe.gradient(lat.cos().square() * torch.cos(2 * lon) + lat.sin())
    torch.testing.assert_close(slope[0], -lat.cos() * torch.sin(2 * lon), rtol=0, atol=1e-11)
    north = (-2 * lat.cos() * lat.sin() * torch.cos(2 * lon) + lat.cos()) / 2
    torch.testing.assert_close(slope[1], north, rtol=0, atol=1e-11)


def test_laplacian_on_boxes():
    x, y = coordinates((2.0, 0.5), (16, 20))
    a, b = 2 * math.pi * 3 / 2.0, 2 * math.pi * 2 / 0.5
    wave = torch.sin(a * x) * torch.cos(b * y)
    torch.testing.assert_close(PeriodicBox((2.0, 0.5)).laplacian(wave + 5), -(a**2 + b**2) * wave, rtol=0, atol=1e-9)
    parabola = 3 * x.square() - x * y + 0.5 * y.square()
    stacked = WalledBox((2.0, 0.5)).laplacian(torch.stack([parabola, 2 * parabola]))
    torch.testing.assert_close(stacked, torch.stack([torch.full_like(x, 7.0), torch.full_like(x, 14.0)]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("kind", "grid"), GLOBES)
def test_laplacian_of_a_spherical_harmonic(kind, grid):
    globe = Globe(kind, radius=2.0)
    latitude, longitude = angles(globe, grid)
    harmonic = latitude.cos() ** 3 * latitude.sin() * (3 * longitude).cos()  # degree 4, order 3
    found = globe.laplacian(harmonic)
    torch.testing.assert_close(found, -4 * 5 / 2.0**2 * harmonic, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("kind", "grid"), GLOBES)
def test_solid_body_rotation_has_no_strain(kind, grid):
    """About a tilted axis, so that the flow crosses the poles: the covariant derivative is a rotation at each point."""
    globe, spin = Globe(kind, radius=3.0), torch.tensor([0.3, -0.4, 0.5], dtype=torch.float64)
    up, frame = globe.places(grid), globe._frame(grid)
    flow = 3.0 * torch.linalg.cross(spin.view(3, 1, 1).expand_as(up), up, dim=0)
    slope = globe.jacobian(torch.einsum("iaxy,axy->ixy", frame, flow))
    vorticity = 2 * torch.einsum("a,axy->xy", spin, up)
    torch.testing.assert_close(slope[1, 0] - slope[0, 1], vorticity, rtol=0, atol=1e-11)
    assert (slope + slope.transpose(0, 1)).abs().max() < 1e-11


@pytest.mark.parametrize(("kind", "grid"), GLOBES)
def test_velocity_of_a_rossby_haurwitz_wave(kind, grid):
    a, omega, k, r = 2.0, 0.7, 0.3, 4
    globe = Globe(kind, radius=a)
    lat, lon = angles(globe, grid)
    cos, sin = lat.cos(), lat.sin()
    u = a * omega * cos + a * k * cos ** (r - 1) * (r * sin**2 - cos**2) * torch.cos(r * lon)
    v = -a * k * r * cos ** (r - 1) * sin * torch.sin(r * lon)
    vorticity = 2 * omega * sin - k * sin * cos**r * (r**2 + 3 * r + 2) * torch.cos(r * lon)
    velocity = globe.velocity(vorticity)
    torch.testing.assert_close(velocity, torch.stack([u, v]), rtol=0, atol=1e-11)
    slope = globe.jacobian(velocity)
    torch.testing.assert_close(slope[1, 0] - slope[0, 1], vorticity, rtol=0, atol=1e-11)
    assert (slope[0, 0] + slope[1, 1]).abs().max() < 1e-11


@pytest.mark.parametrize("calculus", [PeriodicBox([1.0, 2.0]), WalledBox([1.0, 2.0]), Globe()])
def test_distances_against_all_pairs(calculus):
    grid = (9, 12)
    marked = torch.rand(grid) < 0.08
    marked[4, 5] = True
    if isinstance(calculus, Globe):
        points = calculus.places(grid).flatten(1).T
        away = (points @ points.T).clamp(-1, 1).acos()
    else:
        points = torch.stack(coordinates((1.0, 2.0), grid), -1).flatten(0, 1)
        apart = (points[:, None] - points).abs()
        sides = torch.tensor([1.0, 2.0], dtype=torch.float64)
        apart = torch.minimum(apart, sides - apart) if isinstance(calculus, PeriodicBox) else apart
        away = apart.norm(dim=-1)
    expected = away[:, marked.flatten()].amin(1).reshape(grid)
    np.testing.assert_allclose(calculus.distance(marked), expected, atol=1e-6)


def test_centre_and_spread_of_a_bump():
    box = PeriodicBox([1.0, 4.0])
    x, y = coordinates((1.0, 4.0), (32, 32))
    near = lambda s, at, length: (s - at + length / 2).remainder(length) - length / 2
    density = torch.exp(-near(x, 0.95, 1.0).square() / (2 * 0.04**2) - near(y, 0.5, 4.0).square() / (2 * 0.2**2))
    mean = (box.places((32, 32)) * density).flatten(1).sum(1) / density.sum()
    centre, spread = box.centre(mean)
    torch.testing.assert_close(centre, torch.tensor([0.95, 0.5], dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(spread) == pytest.approx(math.hypot(0.04, 0.2), rel=1e-3)


def test_centre_at_walls_and_on_the_sphere():
    walled = WalledBox([2.0])
    x = torch.arange(40, dtype=torch.float64) / 20
    density = torch.exp(-(x - 0.8).square() / (2 * 0.1**2))
    centre, spread = walled.centre((walled.places((40,)) * density).sum(1) / density.sum())
    assert float(centre) == pytest.approx(0.8, abs=1e-6)
    assert float(spread) == pytest.approx(0.1, rel=1e-3)
    globe, grid, kappa = Globe(radius=2.0), (65, 128), 50.0
    middle = torch.tensor([0.5, -0.5, 0.5**0.5], dtype=torch.float64)
    area = ns.SphericalBasis((1, 2)).quadrature(grid, like=middle)
    density = area * torch.exp(kappa * (torch.einsum("a,axy->xy", middle, globe.places(grid)) - 1))
    centre, spread = globe.centre((globe.places(grid) * density).flatten(1).sum(1) / density.sum())
    torch.testing.assert_close(centre, torch.tensor([45.0, 315.0], dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(spread) == pytest.approx(2 * (2 / kappa) ** 0.5, rel=1e-3)  # a von Mises-Fisher density: R = coth k - 1/k


def test_the_domain_of_a_basis_and_what_is_refused():
    assert isinstance(calculus_of(ns.SphericalBasis((3, 6), "lobatto")), Globe)
    assert calculus_of(ns.FourierBasis((3, 3))).lengths == (1.0, 1.0)
    with pytest.raises(ValueError, match="positive numbers"):
        PeriodicBox([1.0, 0.0])
    with pytest.raises(ValueError, match="at least 3 points"):
        PeriodicBox([1.0, 1.0]).gradient(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="pass the fields u and v"):
        WalledBox([1.0, 1.0]).velocity(torch.zeros(8, 8))
    with pytest.raises(ValueError, match="2 dimensions"):
        PeriodicBox([1.0]).velocity(torch.zeros(8))
