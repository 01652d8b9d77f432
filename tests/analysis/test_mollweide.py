"""Maps of the globe against closed forms and matplotlib's own projection: which way up, whose area, where it closes."""

from __future__ import annotations

import math

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.projections.geo import MollweideAxes
from torch import Tensor

from neuralop_sae.analysis import mollweide
from neuralop_sae.layers import SphericalBasis

GRIDS = ("equiangular", "legendre-gauss", "lobatto")
X, Y = 2 * math.sqrt(2), math.sqrt(2)


def map_of(field: Tensor, grid: str, n_rows: int = 160) -> Tensor:
    basis = SphericalBasis((2, 4), grid)
    return mollweide.pixels(field, basis.colatitudes(field.shape[0]), n_rows)


@pytest.mark.parametrize("grid", GRIDS)
def test_north_is_up_and_east_is_right(grid: str) -> None:
    """The field Y_10 ~ cos(theta), and the real and imaginary parts of Y_11, whose largest values are at known places."""
    basis = SphericalBasis((2, 4), grid)
    coefficients = torch.zeros(3, 2, 2, dtype=torch.complex128)
    coefficients[0, 1, 0], coefficients[1, 1, 1], coefficients[2, 1, 1] = 1.0, -1.0, 1j
    z, x, y = (mollweide.pixels(field, basis.colatitudes(32)) for field in basis.synthesis(coefficients, (32, 64)))
    rows, columns = z.shape
    middle = z[:, columns // 2]
    assert (middle.diff() <= 0).all()
    assert middle[0] > 0 > middle[-1]
    equator = rows // 2
    assert int(y[equator].nan_to_num().argmax()) == pytest.approx(columns / 4, abs=columns / 64)  # 90 degrees east
    assert int(y[equator].nan_to_num().argmin()) == pytest.approx(3 * columns / 4, abs=columns / 64)
    assert int(x[equator].nan_to_num().argmin()) == pytest.approx(columns / 2, abs=columns / 64)
    assert x[equator, 0] == x[equator, -1] == pytest.approx(float(x.nan_to_num().max()))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_node_is_where_matplotlib_projects_it(grid: str) -> None:
    basis, shape = SphericalBasis((2, 4), grid), (15, 24)
    field = torch.arange(360.0, dtype=torch.float64).reshape(shape)
    n_rows = 400
    image = map_of(field, grid, n_rows)
    latitude = (torch.pi / 2 - basis.colatitudes(15)).clamp(-1.55, 1.55)  # the poles belong to all longitudes
    longitude = basis.longitudes(24) - torch.pi + 1e-3  # just inside the rim
    places = torch.cartesian_prod(latitude, longitude).flip(1).numpy()
    x, y = torch.as_tensor(MollweideAxes.MollweideTransform(1).transform(places)).T
    row, column = ((1 - y / Y) / 2 * n_rows).long(), ((x / X + 1) * n_rows).long()
    inner = slice(1, -1)  # cells at the poles are narrower than pixels
    found = image[row, column].reshape(shape)[inner]
    assert torch.equal(found[found.isfinite()], field[inner][found.isfinite()])
    assert found.isfinite().double().mean() > 0.9


@pytest.mark.parametrize("grid", GRIDS)
def test_equal_areas(grid: str) -> None:
    """The share of the map that a row of cells gets is its share of the sphere; columns share alike; the globe is the
    whole ellipse."""
    colatitudes = SphericalBasis((2, 4), grid).colatitudes(9)
    between = (colatitudes[1:] + colatitudes[:-1]) / 2
    heights = torch.nn.functional.pad(between.cos(), (1, 0), value=1.0)
    expected = -torch.nn.functional.pad(heights, (0, 1), value=-1.0).diff() / 2
    row_of_pixels = 4 / math.pi / 400
    image = map_of(torch.arange(9.0)[:, None].expand(9, 16), grid, 400)
    inside = image.isfinite()
    assert float(inside.double().mean()) == pytest.approx(math.pi / 4, abs=1e-3)
    share = torch.bincount(image[inside].long(), minlength=9) / inside.sum()
    torch.testing.assert_close(share.double(), expected, rtol=0, atol=row_of_pixels)
    image = map_of(torch.arange(16.0).expand(9, 16), grid, 400)
    share = torch.bincount(image[inside].long(), minlength=16) / inside.sum()
    torch.testing.assert_close(share, torch.full_like(share, 1 / 16), rtol=0, atol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
def test_no_gap_at_the_rim_and_the_poles(grid: str) -> None:
    """The first column is on both sides of the date line, the first and last rows reach the poles, every pixel of the ellipse
    has a value."""
    image = map_of(torch.arange(16.0).expand(9, 16), grid, 200)
    y, x = torch.meshgrid((torch.arange(200) + 0.5) / 100 - 1, (torch.arange(400) + 0.5) / 200 - 1, indexing="ij")
    assert torch.equal(image.isfinite(), x.square() + y.square() <= 1)
    for row in image:
        drawn = row[row.isfinite()]
        assert drawn[0] == drawn[-1] == 0.0
    image = map_of(torch.arange(9.0)[:, None].expand(9, 16), grid, 200)
    assert (image[0].nanmean(), image[-1].nanmean()) == (0.0, 8.0)


@pytest.mark.parametrize("grid", GRIDS)
def test_contours_run_from_rim_to_rim(grid: str) -> None:
    """Contours of sin(theta) cos(phi) around its maximum on the first meridian, which the rim cuts in halves."""
    basis = SphericalBasis((2, 4), grid)
    theta, phi = basis.colatitudes(33)[:, None], basis.longitudes(64)
    x, y, values = mollweide.contour_grid(theta.sin() * phi.cos(), basis.colatitudes(33))
    assert torch.equal(values[:, 0], values[:, -1])
    equator = 33 // 2 + 1
    torch.testing.assert_close(x[equator, :-1], X * (phi / math.pi - 1))
    assert (y.diff(dim=0) <= 0).all()
    torch.testing.assert_close(x[:, -1], -x[:, 0])
    torch.testing.assert_close((x[:, 0] / X).square() + (y[:, 0] / Y).square(), torch.ones(35, dtype=torch.float64))
    torch.testing.assert_close(y[[0, -1]], torch.tensor([[Y], [-Y]], dtype=torch.float64).expand(2, 65))
    contour = Figure().subplots().contour(x.numpy(), y.numpy(), values.numpy(), levels=[0.5])
    lines = [line for line in contour.allsegs[0] if len(line)]
    assert len(lines) == 2
    for line in lines:
        for end in (line[0], line[-1]):
            assert (end[0] / X) ** 2 + (end[1] / Y) ** 2 == pytest.approx(1.0, abs=0.01)
            assert abs(end[1] / Y) == pytest.approx(abs(height(math.pi / 3)), abs=0.01)  # theta = 30 degrees


def height(latitude: float) -> float:
    """y over its largest value, by bisection of 2 t + sin 2 t = pi sin(latitude)."""
    low, high = -math.pi / 2, math.pi / 2
    for _ in range(60):
        t = (low + high) / 2
        low, high = (t, high) if 2 * t + math.sin(2 * t) < math.pi * math.sin(latitude) else (low, t)
    return math.sin(low)


def test_parallels_of_the_graticule_are_at_their_heights() -> None:
    axes = Figure().subplots()
    mollweide.draw_graticule(axes, "black")
    drawn = [float(line.vertices[0, 1]) for line in axes.collections[0].get_paths()]
    assert drawn == pytest.approx([Y * height(math.radians(degrees)) for degrees in (-60, -30, 0, 30, 60)], abs=1e-3)


def test_at_a_pole_stands_the_mean_of_the_finite_values_nearest_to_it() -> None:
    colatitudes = SphericalBasis((4, 8)).colatitudes(3)
    field = torch.tensor([[1.0, torch.nan, 3.0], [0.0, 0.0, 0.0], [torch.nan, torch.nan, torch.nan]])
    *_, values = mollweide.contour_grid(field, colatitudes)
    assert values[0].tolist() == [2.0] * 4
    assert values[-1].isnan().all()
