"""Maps of the globe in Mollweide's projection: equal areas of the picture are equal areas of the sphere.

North is up. The first meridian is the rim, so that longitudes run from 0 at the left to 360 degrees at the right, as the
columns of a grid do, and 180 degrees is in the middle, where atoms have their impulse.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_X, _Y = 2 * math.sqrt(2), math.sqrt(2)
#: Left, right, bottom and top of a map.
EXTENT = (-_X, _X, -_Y, _Y)


def pixels(field: Tensor, colatitudes: Tensor, n_rows: int = 160) -> Tensor:
    """A field ``(nlat, nlon)`` as an image ``(n_rows, 2 * n_rows)``, first row in the north: at each pixel the value at the
    nearest latitude and longitude of the grid, NaN off the globe."""
    from matplotlib.projections.geo import MollweideAxes

    y = _Y * (1 - (2 * torch.arange(n_rows) + 1).double() / n_rows)
    x = _X * ((2 * torch.arange(2 * n_rows) + 1).double() / (2 * n_rows) - 1)
    places = torch.cartesian_prod(y, x).flip(1).numpy()
    longitude, latitude = torch.from_numpy(MollweideAxes.InvertedMollweideTransform(1).transform(places)).T
    between = (colatitudes[1:] + colatitudes[:-1]) / 2
    row = torch.searchsorted(between, (torch.pi / 2 - latitude).contiguous())
    n_columns = field.shape[1]
    column = ((longitude / torch.pi + 1) / 2 * n_columns).round().long() % n_columns
    image = field[row, column].double().where(longitude.abs() <= torch.pi, torch.nan)
    return image.reshape(n_rows, 2 * n_rows)


def contour_grid(field: Tensor, colatitudes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and value at the points of a field ``(nlat, nlon)`` and where it closes, ``(nlat + 2, nlon + 1)`` each: at the
    poles stands the mean of the finite values of the nearest row, at the right rim the first meridian again."""
    north, south = (row[row.isfinite()].mean().expand(1, field.shape[1]) for row in (field[0], field[-1]))
    values = torch.cat([north, field, south])
    values = torch.cat([values, values[:, :1]], 1)
    latitude = torch.pi / 2 - torch.nn.functional.pad(colatitudes, (1, 0))
    latitude = torch.nn.functional.pad(latitude, (0, 1), value=-torch.pi / 2)
    longitude = torch.linspace(-torch.pi, torch.pi, values.shape[1], dtype=torch.float64)
    x, y = _project(torch.cartesian_prod(latitude, longitude).flip(1)).T
    return x.reshape(values.shape), y.reshape(values.shape), values


def draw_graticule(axes: Axes, color: str) -> None:
    """The outline of the globe, meridians every 60 degrees and parallels every 30."""
    from matplotlib.patches import Ellipse

    for part in (1 / 3, 2 / 3, 1):  # two meridians are an ellipse
        width = 0.8 if part == 1 else 0.3
        axes.add_patch(Ellipse((0, 0), 2 * part * _X, 2 * _Y, fill=False, edgecolor=color, linewidth=width))
    latitude = torch.arange(-60, 90, 30, dtype=torch.float64).deg2rad()
    half, y = _project(torch.stack([torch.full_like(latitude, torch.pi), latitude], 1)).T
    axes.hlines(y, -half, half, colors=color, linewidth=0.3)
    axes.vlines(0, -_Y, _Y, colors=color, linewidth=0.3)
    axes.set(xlim=(-1.01 * _X, 1.01 * _X), ylim=(-1.02 * _Y, 1.02 * _Y))


def _project(places: Tensor) -> Tensor:
    """x and y ``(n, 2)`` of longitudes, from -pi at the left, and latitudes ``(n, 2)``, in radians."""
    from matplotlib.projections.geo import MollweideAxes

    return torch.from_numpy(MollweideAxes.MollweideTransform(1).transform(places.numpy()))
