"""How objects show themselves in a notebook: small tables and curves as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

__all__ = ["curve", "facts", "frame", "shown", "table"]

_CELL = "padding:1px 8px;text-align:left"


def shown(value: object) -> str:
    """A value as a person reads it, as plain text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if isinstance(value, Mapping) and "name" in value:  # the config of a rule
            arguments = ", ".join(f"{name}={shown(each)}" for name, each in value.items() if name != "name")
            return f"{value['name']}({arguments})"
        return " x ".join(map(shown, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def facts(title: str, rows: Mapping[str, object]) -> str:
    """A table of names and values."""
    lines = (
        f'<tr><th scope="row" style="{_CELL};font-weight:normal;opacity:.75">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(shown(value))}</td></tr>'
        for name, value in rows.items()
    )
    return _table(title, lines)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a row of headings."""
    headings = "".join(f'<th scope="col" style="{_CELL}">{escape(name)}</th>' for name in columns)
    lines = ("<tr>" + "".join(f'<td style="{_CELL}">{escape(shown(value))}</td>' for value in row) + "</tr>" for row in rows)
    return _table(title, [f"<tr>{headings}</tr>", *lines])


def frame(title: str, data: pandas.DataFrame, n: int = 8) -> str:
    """The first n rows of a data frame; the title says of how many."""
    part = "" if len(data) <= n else f": the first {n} of {len(data)} rows"
    return table(f"{title}{part}", [str(name) for name in data.columns], data.head(n).itertuples(index=False))


def curve(name: str, x: Sequence[float], y: Sequence[float], width: int = 240, height: int = 60) -> str:
    """A line through points ``(x, y)``, with the range of y; nothing where there are fewer than two finite points."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if isfinite(a) and isfinite(b)]
    if len(points) < 2:
        return ""
    left, right = min(a for a, _ in points), max(a for a, _ in points)
    low, high = min(b for _, b in points), max(b for _, b in points)
    across, up = (right - left) or 1.0, (high - low) or 1.0
    line = " ".join(f"{(a - left) / across * width:.1f},{height - (b - low) / up * height:.1f}" for a, b in points)
    label = escape(f"{name}: {low:.4g} to {high:.4g}")
    return (
        f'<figure style="margin:4px 8px"><svg role="img" aria-label="{label}" viewBox="-2 -2 {width + 4} {height + 4}" '
        f'width="{width}" height="{height}"><polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        f"</svg><figcaption>{label}</figcaption></figure>"
    )


def _table(title: str, lines: Iterable[str]) -> str:
    caption = f'<caption style="text-align:left;padding:2px 8px;font-weight:bold;white-space:nowrap">{escape(title)}</caption>'
    return f"<table>{caption}<tbody>{''.join(lines)}</tbody></table>"
