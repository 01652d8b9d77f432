"""How one field is drawn: colour scales, maps, lines, contours, and grids of axes in one style."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..layers.basis import SpectralBasis
from . import mollweide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2937"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
GREY = "#9aa0a6"


@dataclass(frozen=True)
class ColorScale:
    """A colour map with its limits, to be shared by the maps that are compared."""

    cmap: str
    low: float
    high: float

    @classmethod
    def of(cls, *fields: Tensor) -> ColorScale:
        """The scale that holds all finite values of `fields`: diverging and centred at zero if both signs matter."""
        finite = [values for field in fields if len(values := _finite(field))]
        if not finite:
            return cls("viridis", 0.0, 1.0)
        low, high = min(float(values.min()) for values in finite), max(float(values.max()) for values in finite)
        # GELU dips to -0.17: a few small negative values must not cost a positive field half of its colours.
        if min(-low, high) > 0.1 * max(-low, high):
            return cls("RdBu_r", -max(-low, high), max(-low, high))
        if 0 <= low <= 0.5 * high:
            low = 0.0
        return cls("viridis", low, high if high > low else low + 1.0)

    @property
    def contour_color(self) -> str:
        """Of lines over a map with these colours."""
        return "white" if self.cmap == "viridis" else "black"

    def css_gradient(self, n_stops: int = 9) -> str:
        """The colour map as a CSS gradient, from low to high."""
        import matplotlib
        from matplotlib.colors import to_hex

        colors = [to_hex(matplotlib.colormaps[self.cmap](i / (n_stops - 1))) for i in range(n_stops)]
        return f"linear-gradient(to right, {', '.join(colors)})"


def plane(values: Tensor) -> Tensor:
    """What of a field ``(*grid)`` is drawn: in three dimensions the middle slice of the first axis, else
    itself.

    Raises
    ------
    ValueError
        For more than three dimensions.
    """
    if values.ndim > 3:
        raise ValueError(f"figures draw grids of 1 to 3 dimensions, got {tuple(values.shape)}; take a slice first")
    values = values.detach().cpu()
    if values.ndim == 0:
        return values.view(1, 1)
    return values[len(values) // 2] if values.ndim == 3 else values


def _finite(values: Tensor) -> Tensor:
    return values[values.isfinite()]


def draw_field(
    axes: Axes, values: Tensor, scale: ColorScale, basis: SpectralBasis | None = None, background: Tensor | None = None
) -> Any:
    """Draw a field ``(*grid)``, with contours of a second one; returns the image, None for a line. A basis on the sphere makes
    it a map of the globe."""
    shown = plane(values).double()
    if shown.ndim == 1:
        _draw_line(axes, shown, scale, background)
        return None
    image = draw_image(axes, shown, basis, cmap=scale.cmap, vmin=scale.low, vmax=scale.high)
    if background is not None:
        draw_contours(axes, background, scale.contour_color, basis)
    return image


def draw_image(axes: Axes, values: Tensor, basis: SpectralBasis | None, **style: Any) -> Any:
    """Draw values ``(rows, columns)``, one colour per cell of the grid."""
    axes.set(xticks=[], yticks=[])
    pixels = pixels_of(values, basis).numpy()
    if colatitudes_of(basis, values.shape) is None:
        ratio = values.shape[0] / values.shape[1] if len(values) > 1 else 0.3
        return axes.imshow(pixels, extent=(0, 1, 1, 0), aspect=ratio, interpolation="none", **style)
    image = axes.imshow(pixels, extent=mollweide.EXTENT, interpolation="none", **style)
    mollweide.draw_graticule(axes, GREY)
    axes.spines[:].set_visible(False)
    return image


def pixels_of(values: Tensor, basis: SpectralBasis | None) -> Tensor:
    """The image that shows values ``(rows, columns)``: a map of the globe on the sphere, the values themselves elsewhere."""
    colatitudes = colatitudes_of(basis, values.shape)
    return values if colatitudes is None else mollweide.pixels(values, colatitudes)


def draw_contours(axes: Axes, field: Tensor, color: str, basis: SpectralBasis | None = None) -> None:
    """Contours of a field ``(*grid)`` of two or three dimensions over a map that :func:`draw_field` drew."""
    shown = plane(field).double()
    levels = contour_levels(shown, area_of(basis, shown))
    if not levels:
        return
    x, y, values = contour_grid(shown, basis)
    limits = axes.axis()
    axes.contour(x.numpy(), y.numpy(), values.numpy(), levels=levels, colors=color, linewidths=0.7, alpha=0.75)
    axes.axis(limits)


def contour_grid(shown: Tensor, basis: SpectralBasis | None) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and value at the points ``(rows, columns)`` through which contours are drawn, in the coordinates of the map."""
    colatitudes = colatitudes_of(basis, shown.shape)
    if colatitudes is not None:
        return mollweide.contour_grid(shown, colatitudes)
    y, x = (torch.arange(n).add(0.5) / n for n in shown.shape)
    return x, y, shown


def area_of(basis: SpectralBasis | None, shown: Tensor) -> Tensor | None:
    """Share of the sphere's area of each point of a map; None on other domains, where points count alike."""
    if basis is None or colatitudes_of(basis, shown.shape) is None:
        return None
    return basis.quadrature(shown.shape, like=shown).expand(shown.shape)


def aspect_of(shape: Sequence[int], basis: SpectralBasis | None = None) -> float:
    """Height over width of a field's picture."""
    if len(shape) == 1:
        return 0.6
    if colatitudes_of(basis, shape) is not None:
        return 0.5
    return min(max(shape[-2] / shape[-1], 0.25), 4.0)


def colatitudes_of(basis: SpectralBasis | None, shape: Sequence[int]) -> Tensor | None:
    """Of the rows of a grid on the sphere; None on other domains."""
    return None if basis is None or len(shape) != 2 else basis.colatitudes(shape[0])


def _draw_line(axes: Axes, shown: Tensor, scale: ColorScale, background: Tensor | None) -> None:
    at = [i / len(shown) for i in range(len(shown))]
    if background is not None and len(finite := _finite(over := plane(background).double())):
        spread = (finite.max() - finite.min()).clamp_min(1e-12)
        over = scale.low + (over - finite.min()) / spread * (scale.high - scale.low)
        axes.plot([i / len(over) for i in range(len(over))], over.numpy(), color=GREY, linewidth=0.8)
    axes.plot(at, shown.numpy(), color=PALETTE[0], linewidth=1.3)
    margin = 0.05 * (scale.high - scale.low)
    axes.set(xlim=(0, 1), ylim=(scale.low - margin, scale.high + margin), xticks=[0, 0.5, 1])
    place = axes.get_subplotspec()
    if place is not None and place.is_last_row():
        axes.set_xlabel("position / length")


def contour_levels(field: Tensor, area: Tensor | None = None) -> list[float]:
    """Contour levels: between the values of a piecewise constant field, else the quartiles of its values over the domain, to
    which each point adds its `area` (by default all the same). Values that are not finite do not count."""
    flat = _finite(field.double())
    values = flat.unique()  # type: ignore[no-untyped-call]
    if len(values) <= 4:
        return [float(level) for level in (values[1:] + values[:-1]) / 2]
    weights = torch.ones_like(flat) if area is None else area.to(flat)[field.isfinite()]
    order = flat.argsort()
    # Each value stands in the middle of its own share of the area.
    share = weights[order].cumsum(0) - weights[order] / 2
    quartiles = np.interp([0.25, 0.5, 0.75], (share / weights.sum()).numpy(), flat[order].numpy())
    return sorted({float(level) for level in quartiles})


def subplots(n_rows: int, n_columns: int, width: float = 2.0, height: float = 2.0, aspect: float = 1.0) -> tuple[Figure, Any]:
    """A figure with ``(n_rows, n_columns)`` axes, in the style of this package.

    Each has `width` by `height` inches for a square picture and its text. Where the picture's height is only `aspect` of its
    width, axes are up to half as wide again and lower.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from .notebook_figure import NotebookFigure

    wide = width * min(max(0.75 / aspect, 1.0), 1.5)
    size = (n_columns * wide + 0.8, n_rows * (wide * min(aspect, 1.0) + height - width) + 0.3)
    figure = NotebookFigure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08), facecolor="white")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax in axes.flat:
        ax.tick_params(which="both", colors=INK, labelsize=8)
        ax.title.set_color(INK)
        for label in (ax.xaxis.label, ax.yaxis.label):
            label.set(fontsize=9, color=INK)
        for side, spine in ax.spines.items():
            spine.set(color=INK, linewidth=0.6, visible=side in ("left", "bottom"))
    return figure, axes


def color_bar(figure: Figure, image: Any, axes: Any, label: str) -> Any:
    """A colour bar for an image beside one or several axes; lines, which have no image, get the label at the first y axis."""
    if image is None:
        first = np.atleast_1d(axes).flat[0]
        first.set_ylabel("\n".join(filter(None, (first.get_ylabel(), label))))
        return None
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label(label, fontsize=8, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=7)
    bar.outline.set_visible(False)
    return bar


def slice_note(ndim: int) -> str:
    """What a title must say about fields of `ndim` dimensions, on a line of its own."""
    return "\nmiddle slice of the first axis" if ndim == 3 else ""


def set_title(axes: Axes, title: str, note: str = "") -> None:
    """Set a title, in lines that fit into the column of the figure in which `axes` stand, with a note as it is."""
    figure, place = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None
    assert place is not None
    axes.set_title(title, fontsize=9)
    # Ticks or a colour bar stand on one side only, and titles above the middle of the axes.
    room = (figure.get_figwidth() / place.get_gridspec().ncols - 0.75) * figure.dpi
    lines, width = title.splitlines(), axes.title.get_window_extent().width
    if width > room:
        letters = int(max(map(len, lines)) * room / width)
        lines = [textwrap.fill(line, letters, break_on_hyphens=False) for line in lines]
    axes.title.set_text("\n".join(lines) + note)
