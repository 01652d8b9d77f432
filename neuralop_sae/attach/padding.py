"""The margins that neuralop's `DomainPadding` puts around a field, on the grid of a site."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import Any

from torch import nn

from .layouts import axes_of
from .rules import original_module
from .sites import Site


def unpadded_slices(model: nn.Module, site: Site, shape: Sequence[int]) -> tuple[slice, ...]:
    """Slices that cut neuralop's domain padding from an activation.

    ``DomainPadding.unpad`` knows only the grid of the last block, for input grids that it has padded before
    (KeyError for all others), so the margins are computed here from the padding fractions and the grid
    itself.

    Parameters
    ----------
    model : nn.Module
        The model that the site belongs to.
    site : Site
        The site.
    shape : sequence of int
        Shape of the activation, ``(B, channels, *grid)``; axes that the site's layout names, such as a time axis, stay
        whole.

    Returns
    -------
    tuple of slice
        One per axis; they keep everything at a site that is not padded.

    Raises
    ------
    ValueError
        If no margin, or more than one, belongs to the grid.
    """
    if not site.padded:
        return (slice(None),) * len(shape)
    axes = axes_of(site.layout)
    before = axes.index("...") if "..." in axes else len(axes)
    grid = tuple(shape[before:])
    padding = original_module(model).get_submodule(site.owner).domain_padding
    assert isinstance(padding, nn.Module)
    # A number becomes a list at the first forward pass (upstream DomainPadding.pad).
    fractions: Any = padding.domain_padding
    if isinstance(fractions, (int, float)):
        fractions = [fractions] * len(grid)
    scale = site.scale or (1.0,) * len(grid)
    if not len(fractions) == len(scale) == len(grid):
        raise ValueError(f"site {str(site)!r}: grid {grid} does not have the {len(fractions)} axes of domain_padding")
    margins = [_margin(n, float(p), s) for n, p, s in zip(grid, fractions, scale, strict=True)]
    if any(margin is None for margin in margins):
        raise ValueError(
            f"site {str(site)!r}: grid {grid} does not fix the margins of domain_padding={list(fractions)} "
            f"at resolution scale {scale}: rounding left no unpadded grid or several; use padded=True"
        )
    inside = (slice(margin, n - margin) for margin, n in zip(margins, grid, strict=True) if margin is not None)
    return (*(slice(None),) * before, *inside)


@lru_cache(maxsize=1024)
def _margin(n: int, fraction: float, scale: float) -> int | None:
    """Padding at each end of an axis of n points, as DomainPadding rounds it; None if n does not fix it."""
    largest = ceil((n + 1) / scale)
    margins = {
        round(scale * round(fraction * points))
        for points in range(1, largest + 1)
        if round(scale * (points + 2 * round(fraction * points))) == n
    }
    return margins.pop() if len(margins) == 1 else None
