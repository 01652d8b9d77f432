"""Kernels cut out of fields: against fields of closed form, moved fields, and quadrature in one dimension."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.models.starts import WINDOW, around, kernels_from, strong_points


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_points_are_drawn_in_proportion_to_strength() -> None:
    strength = torch.zeros(3, 4, 5)
    strength[0, 1, 2], strength[2, 3, 4] = 1.0, 3.0
    drawn = torch.stack(strong_points(strength, 4000, random()), 1)
    first = (drawn == torch.tensor([0, 1, 2])).all(1)
    assert (first | (drawn == torch.tensor([2, 3, 4])).all(1)).all()
    assert abs(float(first.float().mean()) - 0.25) < 0.03


@pytest.mark.parametrize("sizes", [(3, 4), (8, 7), (11, 2)])
def test_patches_are_around_their_points(sizes: tuple[int, int]) -> None:
    """Also those that are wider than the field, which wrap around it."""
    field = torch.randn(4, 3, 8, 7)
    points = strong_points(torch.ones(4, 8, 7), 6, random())
    patches = around(field, points, sizes)
    for patch, sample, row, column in zip(patches, *points, strict=True):
        tiled = field[sample].roll((-int(row) + sizes[0] // 2, -int(column) + sizes[1] // 2), (1, 2)).tile(1, 2, 2)
        assert torch.equal(patch, tiled[:, : sizes[0], : sizes[1]])


def nearest(found: Tensor, candidates: Tensor) -> Tensor:
    """Relative distance of each kernel ``(n, ...)`` to the nearest of the candidates ``(q, ...)``."""
    distances = torch.stack([(each - candidates).abs().flatten(1).norm(dim=1).amin() for each in found])
    return distances / found.abs().flatten(1).norm(dim=1)


@pytest.mark.parametrize("grid", [(15,), (9, 7), (5, 3, 7)])
def test_a_kernel_on_the_box_is_the_field_around_a_point_in_a_window(grid: tuple[int, ...]) -> None:
    """Seen on the grid, with all its modes, it is one of the fields that were moved and multiplied by hand."""
    field, basis = torch.randn(2, 3, *grid, dtype=torch.float64), ns.FourierBasis(grid)
    kernels: Any = kernels_from(field, 10, basis, random())
    offsets = [torch.arange(size, dtype=torch.float64) / size for size in grid]
    squares = [(each - each.round()).square() for each in offsets]
    window = sum(each.view(-1, *(1,) * (len(grid) - 1 - axis)) for axis, each in enumerate(squares))
    window = (-window / (2 * WINDOW**2)).exp()
    axes = tuple(range(2, 2 + len(grid)))
    moves = torch.cartesian_prod(*map(torch.arange, grid)).view(-1, len(grid))
    moved = torch.cat([field.roll(tuple(-each), axes) * window for each in moves])
    assert float(nearest(basis.synthesis(kernels, grid), moved).max()) < 1e-12


def test_a_kernel_is_the_same_function_whatever_the_modes_and_the_grid() -> None:
    """Of a constant field it is the window itself, whose coefficients are known."""
    for grid, modes in (((64, 48), (9, 9)), ((33, 40), (7, 11))):
        basis = ns.FourierBasis(modes)
        kernels: Any = kernels_from(torch.ones(1, 1, *grid, dtype=torch.float64), 1, basis, random())
        expected = 2 * math.pi * WINDOW**2 * (-2 * (math.pi * WINDOW * basis.wavenumbers()) ** 2).exp()
        torch.testing.assert_close(kernels[0, 0], expected + 0j, rtol=0, atol=3e-4 * float(expected.max()))  # cut at 4 widths


def directions(basis: Any, grid: tuple[int, int]) -> Tensor:
    """Unit vectors to the points, ``(points, 3)``."""
    colatitude, longitude = basis.colatitudes(grid[0])[:, None], basis.longitudes(grid[1])
    parts = colatitude.sin() * longitude.cos(), colatitude.sin() * longitude.sin(), colatitude.cos()
    return torch.stack(torch.broadcast_tensors(*parts), -1).flatten(0, 1)


@pytest.mark.parametrize("name", ["equiangular", "legendre-gauss"])
def test_a_kernel_on_the_sphere_is_the_zonal_mean_about_a_point_in_a_window(name: str) -> None:
    """By sums over the grid with Legendre polynomials of the angle."""
    grid, basis = (9, 16), ns.SphericalBasis((4, 8), name)
    field = torch.randn(2, 3, *grid, dtype=torch.float64)
    kernels: Any = kernels_from(field, 10, basis, random())
    assert kernels.shape == (10, 3, 4)
    vectors = directions(basis, grid)
    cosine = vectors @ vectors.T
    window = ((cosine - 1) / (2 * math.pi * WINDOW) ** 2).exp()
    shares = basis.quadrature(grid, like=field).expand(grid).flatten()
    polynomials = torch.from_numpy(np.stack([eval_legendre(degree, cosine.numpy()) for degree in range(4)]))
    means = torch.einsum("nms,lps,ps,s->npml", field.flatten(2), polynomials, window, shares)
    assert float(nearest(kernels, means.flatten(0, 1)).max()) < 1e-6


def test_points_near_a_pole_are_drawn_by_area_and_cut_alike() -> None:
    """Of a constant field the kernel is the same wherever its point is, and known from an integral over the angle."""
    grid, basis = (33, 64), ns.SphericalBasis((8, 16))
    kernels: Any = kernels_from(torch.ones(1, 1, *grid, dtype=torch.float64), 50, basis, random())
    nodes, weights = np.polynomial.legendre.leggauss(64)
    window = np.exp((nodes - 1) / (2 * math.pi * WINDOW) ** 2)
    expected = torch.tensor([(weights * window * eval_legendre(degree, nodes)).sum() / 2 for degree in range(8)])
    torch.testing.assert_close(kernels[:, 0], expected.expand(50, 8), rtol=0, atol=1e-6)


def test_other_bases_are_left_alone() -> None:
    assert kernels_from(torch.randn(1, 1, 8), 2, Mock(spec=ns.SpectralBasis), random()) is None
