"""Figures for papers, notebooks and the report: pure functions from tensors and tables to matplotlib figures.

Here are those of fields, codes and atoms; those of one concept (:mod:`.portrait`), of numbers (:mod:`.curves`), of tables
(:mod:`.findings`) and of errors of rollouts (:mod:`.rollouts`) are offered under the same roof. Figures belong to no pyplot
state; show one in a notebook or call ``figure.savefig("name.pdf")``, where all but the pixels of maps stays vectors. Grids of
one dimension are drawn as lines, of two as maps (first axis downwards), of three as the middle slice of the first axis. On a
sphere maps are of the globe, in an equal-area projection (:mod:`.mollweide`).
Positive quantities get viridis, signed ones RdBu_r centred at zero, lines and concepts the Okabe-Ito colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..codes import ConceptCodes
from ..layers.basis import SpectralBasis
from ..metrics import pearson
from ..models.base import SAE
from .curves import energy_figure, history_figure, spectra_figure, usage_figure
from .drawing import (
    GREY,
    INK,
    PALETTE,
    ColorScale,
    aspect_of,
    color_bar,
    draw_contours,
    draw_field,
    draw_image,
    plane,
    set_title,
    slice_note,
    subplots,
)
from .findings import conservation_figure, dose_response_figure, fve_figure, probes_figure, probes_map_figure, stability_figure
from .portrait import concept_figure
from .rollouts import rollout_figure
from .summaries import code_of, dominant_concepts, has_pointwise_part, leading_components

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "atoms_figure",
    "code_maps_figure",
    "concept_figure",
    "conservation_figure",
    "dominance_figure",
    "dose_response_figure",
    "energy_figure",
    "field_image",
    "fields_figure",
    "fve_figure",
    "history_figure",
    "probes_figure",
    "probes_map_figure",
    "reconstruction_figure",
    "resolution_figure",
    "rollout_figure",
    "spectra_figure",
    "stability_figure",
    "usage_figure",
]


def field_image(
    values: Tensor,
    scale: ColorScale,
    basis: SpectralBasis | None = None,
    background: Tensor | None = None,
    size: float = 1.6,
) -> Figure:
    """A field ``(*grid)`` alone, without frame or text, to stand in a page that has its own captions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size, size * aspect_of(plane(values).shape, basis)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    draw_field(axes, values, scale, basis, background)
    return figure


def fields_figure(
    fields: Mapping[str, Tensor], *, basis: SpectralBasis | None = None, shared: Sequence[Sequence[str]] = ()
) -> Figure:
    """Fields side by side: input, activation, prediction and the like.

    Parameters
    ----------
    fields : mapping of str to Tensor
        Title -> ``(*grid)`` or ``(channels, *grid)``; of several channels the norm over channels is drawn,
        and the title says so. Write units into the titles.
    basis : SpectralBasis, optional
        A model's ``basis``, which knows the domain. By default a box of two dimensions.
    shared : sequence of sequences of str
        Titles that share one colour scale, because they are compared.
    """
    if not fields:
        raise ValueError("no fields to draw: pass at least one {title: tensor}")
    n_dim = 2 if basis is None else basis.n_dim
    shown = {title: _one_channel(title, values, n_dim) for title, values in fields.items()}
    unknown = {title for group in shared for title in group} - set(fields)
    if unknown:
        raise ValueError(f"shared names {sorted(unknown)}, but the fields are {sorted(fields)}")
    aspect = max(aspect_of(values.shape, basis) for values, _ in shown.values())
    figure, axes = subplots(1, len(fields), 2.9, 2.5, aspect)
    for ax, (title, (values, note)) in zip(axes.flat, shown.items(), strict=True):
        group = next((g for g in shared if title in g), (title,))
        scale = ColorScale.of(*(shown[name][0] for name in group))
        image = draw_field(ax, values, scale, basis)
        set_title(ax, title, note + slice_note(n_dim))
        color_bar(figure, image, ax, "")
    return figure


def _one_channel(title: str, values: Tensor, n_dim: int) -> tuple[Tensor, str]:
    if values.ndim not in (n_dim, n_dim + 1):
        raise ValueError(f"{title!r} has {values.ndim} axes: pass (*grid) or (channels, *grid) of a {n_dim}-d grid")
    if values.ndim == n_dim:
        return values, ""
    return (values[0], "") if len(values) == 1 else (values.norm(dim=0), "\n(norm over channels)")


def code_maps_figure(
    codes: ConceptCodes,
    concepts: Sequence[int],
    samples: Sequence[int],
    background: Tensor | None = None,
    *,
    numbers: Sequence[int] | None = None,
) -> Figure:
    """Where concepts are expressed: one row per concept, one column per sample, one colour scale per row.

    Parameters
    ----------
    codes : ConceptCodes
        The codes.
    concepts, samples : sequence of int
        What to show.
    background : Tensor, optional
        ``(n_samples, *grid)`` or ``(n_samples, channels, *grid)`` on any grid: contours of its first channel.
    numbers : sequence of int, optional
        What the samples shown are called, where the codes are of samples chosen from a set: their numbers in it.
    """
    n_dim = len(codes.grid)
    figure, axes = subplots(len(concepts), len(samples), 1.75, 1.7, aspect_of(codes.grid, codes.basis))
    for row, concept in zip(axes, concepts, strict=True):
        maps = [code_of(codes, concept, sample) for sample in samples]
        scale = ColorScale.of(*(m if m is not None else torch.zeros(codes.grid) for m in maps))
        for ax, sample, name, values in zip(row, samples, numbers or samples, maps, strict=True):
            over = None if background is None else _first_channel(background[sample], n_dim)
            image = draw_field(ax, values if values is not None else torch.zeros(codes.grid), scale, codes.basis, over)
            if values is None:
                color = INK if n_dim == 1 else scale.contour_color
                ax.text(0.5, 0.5, "off", color=color, ha="center", va="center", transform=ax.transAxes)
            if ax in axes[0]:
                set_title(ax, f"sample {name}")
        row[0].set_ylabel(f"concept {concept}")
        color_bar(figure, image, list(row), "code")
    if n_dim == 3:
        figure.suptitle("codes" + slice_note(n_dim), fontsize=9, color=INK)
    return figure


def atoms_figure(sae: SAE, concepts: Sequence[int] | Tensor, shape: Sequence[int]) -> Figure:
    """What each concept writes for a unit impulse at the centre of the grid.

    Drawn is the leading component of the atom over channels, relative to its own extreme value; the title says
    how much of the atom's energy it holds. Where concepts have a pointwise part, which copies the impulse
    and hides the rest, a second row shows the atom without it.
    """
    indices = [int(c) for c in concepts]
    parts: dict[str, dict[str, bool]] = {"atom": {}}
    if has_pointwise_part(sae):
        parts["without the\npointwise part"] = {"pointwise": False}
    n_columns = min(6, len(indices))
    n_rows = -(-len(indices) // n_columns)
    figure, axes = subplots(n_rows * len(parts), n_columns, 1.7, 2.0, aspect_of(shape, sae.basis))
    for ax in axes.flat:
        ax.set_visible(False)
    for number, (label, part) in enumerate(parts.items()):
        maps, shares = leading_components(sae, concepts, shape, **part)
        rows = axes[number :: len(parts)]
        for ax in rows[:, 0]:
            ax.set_ylabel(label)
        for ax, concept, values, share in zip(rows.flat, indices, maps, shares, strict=False):
            ax.set_visible(True)
            relative = values / values.abs().max().clamp_min(1e-12)
            image = draw_field(ax, relative, ColorScale("RdBu_r", -1.0, 1.0), sae.basis)
            set_title(ax, f"concept {concept}", f"\n{100 * share:.0f} % of its energy")
    color_bar(figure, image, axes, "relative to its\nextreme value" + slice_note(len(shape)))
    return figure


def reconstruction_figure(
    x: Tensor, reconstruction: Tensor, sample: int = 0, n_channels: int = 3, *, basis: SpectralBasis | None = None
) -> Figure:
    """Original, reconstruction and difference in the channels that vary most in a sample.

    Parameters
    ----------
    x, reconstruction : Tensor
        ``(B, channels, *grid)`` in the same units.
    sample : int
        Which sample.
    n_channels : int
        How many channels, one row each. Original and reconstruction share a scale; that of the difference is
        centred at zero and as wide, so that equal differences of colour mean equal differences of value.
    basis : SpectralBasis, optional
        A model's ``basis``, which knows the domain. By default a box.
    """
    if x.shape != reconstruction.shape:
        raise ValueError(f"x is {tuple(x.shape)}, its reconstruction {tuple(reconstruction.shape)}: pass equal shapes")
    original, rebuilt = x[sample].detach().cpu(), reconstruction[sample].detach().cpu()
    channels = original.flatten(1).var(1).argsort(descending=True)[:n_channels].tolist()
    figure, axes = subplots(len(channels), 3, 2.2, 2.0, aspect_of(x.shape[2:], basis))
    for row, channel in zip(axes, channels, strict=True):
        scale = ColorScale.of(original[channel], rebuilt[channel])
        half = (scale.high - scale.low) / 2
        image = draw_field(row[0], original[channel], scale, basis)
        draw_field(row[1], rebuilt[channel], scale, basis)
        error = draw_field(row[2], rebuilt[channel] - original[channel], ColorScale("RdBu_r", -half, half), basis)
        row[0].set_ylabel(f"channel {channel}")
        color_bar(figure, image, list(row[:2]), "")
        color_bar(figure, error, row[2], "")
    for ax, title in zip(axes[0], ("original", "reconstruction", "reconstruction \u2212 original"), strict=True):
        set_title(ax, title, slice_note(original.ndim - 1))
    return figure


def resolution_figure(codes_low: ConceptCodes, codes_high: ConceptCodes, concepts: Sequence[int], sample: int = 0) -> Figure:
    """The same concepts' codes of one sample on two grids, and value against value where the grids meet.

    Grids that nest are compared at their common points, others after resampling the finer code. r is
    Pearson's over the points drawn, each counting by the quadrature.
    """
    basis, n_dim = codes_low.basis, len(codes_low.grid)
    figure, axes = subplots(len(concepts), 3, 2.2, 2.3, aspect_of(codes_low.grid, basis))
    for row, concept in zip(axes, concepts, strict=True):
        pair = [code_of(codes, concept, sample) for codes in (codes_low, codes_high)]
        low, high = (
            torch.zeros(codes.grid) if code is None else code
            for code, codes in zip(pair, (codes_low, codes_high), strict=True)
        )
        scale, common = ColorScale.of(low, high), basis.restrict(high, codes_low.grid)
        image = draw_field(row[0], low, scale, basis)
        draw_field(row[1], high, scale, basis)
        color_bar(figure, image, list(row[:2]), "code")
        row[0].set_ylabel(f"concept {concept}")
        row[2].plot([scale.low, scale.high], [scale.low, scale.high], color=GREY, linewidth=0.8)
        row[2].plot(low.flatten().numpy(), common.flatten().numpy(), ".", markersize=2.5, color=PALETTE[0], rasterized=True)
        on = not any(code is None for code in pair)
        r = pearson(low, common, basis.quadrature(codes_low.grid, like=low))
        set_title(row[2], f"r = {r:.3f}" if on else "off")
        row[2].set(ylabel="fine grid")
    for ax, codes in zip(axes[0], (codes_low, codes_high), strict=False):
        set_title(ax, " \u00d7 ".join(map(str, codes.grid)), slice_note(n_dim))
    axes[-1, 2].set_xlabel("coarse grid")
    return figure


def dominance_figure(
    codes: ConceptCodes,
    sae: SAE,
    concepts: Sequence[int],
    samples: Sequence[int],
    background: Tensor | None = None,
    *,
    numbers: Sequence[int] | None = None,
) -> Figure:
    """Which concept writes most at each point: seven in colours, all others in grey, none in white.

    Strength is the code's absolute value times the norm of the concept's kernel. `background` and `numbers` as in
    :func:`code_maps_figure`.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    named = [int(c) for c in concepts][: len(PALETTE)]
    n_dim, basis = len(codes.grid), codes.basis
    colors = ListedColormap(["white", *PALETTE[: len(named)], GREY])
    figure, axes = subplots(1, len(samples), 2.1, 2.3, aspect_of(codes.grid, basis))
    for ax, sample, name in zip(axes[0], samples, numbers or samples, strict=True):
        classes = plane(dominant_concepts(codes, sae, named, sample)).double()
        draw_image(ax, torch.atleast_2d(classes), basis, cmap=colors, vmin=-1.5, vmax=len(named) + 0.5)
        if background is not None and n_dim > 1:
            draw_contours(ax, _first_channel(background[sample], n_dim), "black", basis)
        set_title(ax, f"sample {name}", slice_note(n_dim))
    entries = [(color, f"concept {c}") for color, c in zip(PALETTE, named, strict=False)]
    handles = [Patch(facecolor=color, label=label) for color, label in [*entries, (GREY, "any other")]]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False, labelcolor=INK)
    return figure


def _first_channel(field: Tensor, n_dim: int) -> Tensor:
    return field.reshape(-1, *field.shape[-n_dim:])[0]
