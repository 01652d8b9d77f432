"""Pictures for a page of many: fields as images of few bytes, contours drawn once for all the images they lie on."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..layers.basis import SpectralBasis
from . import mollweide
from .drawing import ColorScale, area_of, colatitudes_of, contour_grid, contour_levels, plane

_COLORS = 255  # the last of 256 is transparent
_LARGEST, _SMALLEST = 192, 24  # pixels along the longer side


def side_within(n_pictures: int, budget: int) -> int:
    """Pixels along the longer side of each of n pictures that take no more than `budget` bytes together, one per pixel."""
    return max(min(int(math.sqrt(budget / max(n_pictures, 1))), _LARGEST), _SMALLEST)


def png(values: Tensor, scale: ColorScale, basis: SpectralBasis | None, side: int) -> str:
    """A field ``(*grid)`` of two or three dimensions as a data URI: one pixel per point, or the mean over several where the
    grid is finer than `side`; on a sphere a map of the globe. What is off the globe or not finite is transparent."""
    import matplotlib
    from PIL import Image

    shown = plane(values).double()
    colatitudes = colatitudes_of(basis, shown.shape)
    if colatitudes is not None:
        shown = mollweide.pixels(shown, colatitudes, side // 2)
    elif max(shown.shape) > side:
        rows, columns = (max(1, n * side // max(shown.shape)) for n in shown.shape)
        shown = torch.nn.functional.adaptive_avg_pool2d(shown[None], (rows, columns))[0]
    share = (shown - scale.low) / (scale.high - scale.low)
    index = (share * (_COLORS - 1)).round().clamp(0, _COLORS - 1).where(shown.isfinite(), _COLORS).to(torch.uint8)
    image = Image.fromarray(index.numpy(), mode="L")
    palette = matplotlib.colormaps[scale.cmap].resampled(_COLORS)(range(_COLORS), bytes=True)[:, :3]
    image.putpalette(palette.tobytes() + bytes(3))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, transparency=_COLORS)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def contour_paths(
    fields: Sequence[Tensor], basis: SpectralBasis | None, budget: int, units: int = 512
) -> tuple[list[str], int]:
    """Contours of fields ``(*grid)`` as SVG paths in a square of `units`, to be stretched over the map of each.

    Points are rounded to whole units, and these made larger until all paths take no more than `budget` bytes; the units found
    are returned too.
    """
    lines = [_contours(field, basis) for field in fields]
    while True:
        paths = ["".join(_path(line, units) for line in each) for each in lines]
        if sum(map(len, paths)) <= budget or units <= 32:
            return paths, units
        units //= 2


def graticule() -> str:
    """The outline of the globe, meridians every 60 degrees and parallels every 30, as an SVG path 200 wide and 100 high."""
    from matplotlib.projections.geo import MollweideAxes

    meridians = [f"M{100 - r} 50a{r} 50 0 1 0 {2 * r} 0a{r} 50 0 1 0 {-2 * r} 0" for r in (33.3, 66.7, 100)]
    rim = [[math.pi, math.radians(latitude)] for latitude in range(-60, 90, 30)]
    left, _, _, top = mollweide.EXTENT
    ends = MollweideAxes.MollweideTransform(1).transform(rim) / [-left, top]
    parallels = [f"M{100 - 100 * x:.1f} {50 - 50 * y:.1f}h{200 * x:.1f}" for x, y in ends]
    return "".join([*meridians, "M100 0v100", *parallels])


def _contours(field: Tensor, basis: SpectralBasis | None) -> list[Tensor]:
    """Lines ``(n, 2)`` of x and y from 0 to 1, y downwards."""
    from contourpy import contour_generator

    shown = plane(field).double()
    x, y, values = contour_grid(shown, basis)
    generator = contour_generator(x.numpy(), y.numpy(), values.numpy())
    found = [line for level in contour_levels(shown, area_of(basis, shown)) for line in generator.lines(level)]
    if basis is None or colatitudes_of(basis, shown.shape) is None:
        return [torch.as_tensor(line) for line in found]
    left, right, bottom, top = mollweide.EXTENT
    corner, size = torch.tensor([left, top]).double(), torch.tensor([right - left, bottom - top]).double()
    return [(torch.as_tensor(line) - corner) / size for line in found]


def _path(line: Tensor, units: int) -> str:
    points = (line * units).round().long()
    steps = points.diff(dim=0)
    steps = steps[steps.any(1)]
    if not len(steps):
        return ""
    start = "M{} {}l".format(*points[0].tolist())
    return start + " ".join(f"{x} {y}" for x, y in steps.tolist()).replace(" -", "-")
