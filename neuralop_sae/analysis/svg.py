"""Figures as SVG in a page: text in the page's colour, unique ids, axes that many lines share."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape
from torch import Tensor

from .curves import spectrum_limits
from .drawing import GREY, INK, PALETTE, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _svg(figure: Figure, *, transparent: bool = True) -> str:
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same figure is the same text.
    settings: dict[Any, Any] = {"svg.hashsalt": "neuralop_sae", "svg.fonttype": "none", "savefig.dpi": 110}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=transparent, metadata={"Date": None, "Creator": None})
    # Hundredths of a point are enough for lines.
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), buffer.getvalue())
    return re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)


def inline_svg(figure: Figure, alt: str, prefix: str) -> Markup:
    """A figure as an SVG element whose text takes the colour of the page around it.

    Parameters
    ----------
    figure : Figure
        The figure, in the ink of this package.
    alt : str
        What it shows, for those who cannot see it.
    prefix : str
        Put before all ids, which must be unique in the page.
    """
    text = _svg(figure).replace(INK, "currentColor")
    # Matplotlib names every group, and equal images alike; only what is referred to needs its id.
    needed = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in needed else "", text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", text)
    width = re.search(r'<svg[^>]*?width="([\d.]+)pt"', text)
    assert width is not None
    text = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", text, count=1)
    size = f'style="--natural:{float(width[1]) * 4 / 3:.0f}px"'
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}" {size}', 1))


def data_uri(figure: Figure) -> str:
    """A figure as a data URI for an ``img``."""
    encoded = base64.b64encode(_svg(figure).encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"


def spectrum_axes(wavenumbers: Tensor, gains: Tensor, label: str, concepts: Sequence[int]) -> tuple[Markup, dict[int, Markup]]:
    """Axes for the spectra ``(n, s)`` of n concepts as a symbol of the page, and for each concept a picture that uses it."""
    figure, axes = subplots(1, 1, 3.0, 2.1)
    ax = axes[0, 0]
    ax.axhline(1.0, color=GREY, linestyle="--", linewidth=1.2)
    margin = 0.04 * float(wavenumbers[-1] - wavenumbers[0]) or 0.5
    ax.set_xlim(float(wavenumbers[0]) - margin, float(wavenumbers[-1]) + margin)
    spectrum_limits(ax, gains)
    ax.set(xlabel=label, ylabel="energy / impulse")
    drawn = inline_svg(figure, "", "spectrum")
    view, inner = re.search(r'viewBox="([^"]+)"', drawn), re.search(r"<svg[^>]*>(.*)</svg>", drawn, re.DOTALL)
    assert view is not None
    assert inner is not None
    points, (_, height), floor = 72 / figure.dpi, figure.get_size_inches() * 72, ax.get_ylim()[0]
    lines = {}
    for concept, gain in zip(concepts, gains, strict=True):
        at = ax.transData.transform(list(zip(wavenumbers.tolist(), gain.clamp_min(floor).tolist(), strict=True))) * points
        places = [(f"{x:.1f}", f"{height - y:.1f}") for x, y in at]
        dots = "".join(f"M{x} {y}h0" for x, y in places)
        line = "M" + "L".join(f"{x} {y}" for x, y in places)
        lines[concept] = Markup(
            f'<svg class="spectrum" role="img" aria-label="Energy spectrum of the atom of concept {concept}" '
            f'viewBox="{view[1]}"><use href="#spectrum-axes"/>'
            f'<path fill="none" stroke="{PALETTE[0]}" stroke-width="1.3" d="{line}"/>'
            f'<path stroke="{PALETTE[0]}" stroke-width="4" style="stroke-linecap:round" d="{dots}"/></svg>'
        )
    return Markup(f'<symbol id="spectrum-axes" viewBox="{view[1]}">{inner[1]}</symbol>'), lines
