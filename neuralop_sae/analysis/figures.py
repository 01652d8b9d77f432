"""Figures of fields, codes, atoms and training: pure functions from tensors to matplotlib figures.

Figures belong to no pyplot state; show one in a notebook or call ``figure.savefig``. Grids of one dimension
are drawn as lines, of two as maps (first axis downwards), of three as the middle slice of the first axis.
Positive quantities get viridis, signed ones RdBu_r centred at zero, lines and concepts the Okabe-Ito colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..codes import ConceptCodes
from ..metrics import energy_quantile_count, pearson
from ..models.base import SAE
from .drawing import (
    GREY,
    INK,
    PALETTE,
    ColorScale,
    color_bar,
    draw_contours,
    draw_field,
    plane,
    slice_note,
    subplots,
)
from .summaries import (
    atom_spectra,
    code_of,
    dominant_concepts,
    has_pointwise_part,
    leading_components,
    on_grid_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HISTORY_LABELS = {
    "loss": "loss",
    "fve": "variance explained (FVE)",
    "l0": "concepts on per sample (L0)",
    "l0_local": "concepts per point (local L0)",
    "dead_fraction": "fraction of dead concepts",
}
_CLOCKS = ("step", "epoch", "seconds", "time", "learning_rate", "lr")


def field_image(values: Tensor, scale: ColorScale, background: Tensor | None = None, size: float = 1.6) -> Figure:
    """A field ``(*grid)`` alone, without frame or text, to stand in a page that has its own captions."""
    from matplotlib.figure import Figure

    shape = plane(values).shape
    ratio = shape[0] / shape[1] if len(shape) == 2 else 0.6
    figure = Figure(figsize=(size, size * min(max(ratio, 0.25), 4.0)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    draw_field(axes, values, scale, background)
    return figure


def fields_figure(fields: Mapping[str, Tensor], *, n_dim: int = 2, shared: Sequence[Sequence[str]] = ()) -> Figure:
    """Fields side by side: input, activation, prediction and the like.

    Parameters
    ----------
    fields : mapping of str to Tensor
        Title -> ``(*grid)`` or ``(channels, *grid)``; of several channels the norm over channels is drawn,
        and the title says so. Write units into the titles.
    n_dim : int
        Dimensions of the grid.
    shared : sequence of sequences of str
        Titles that share one colour scale, because they are compared.
    """
    if not fields:
        raise ValueError("no fields to draw: pass at least one {title: tensor}")
    shown = {title: _one_channel(title, values, n_dim) for title, values in fields.items()}
    unknown = {title for group in shared for title in group} - set(fields)
    if unknown:
        raise ValueError(f"shared names {sorted(unknown)}, but the fields are {sorted(fields)}")
    figure, axes = subplots(1, len(fields), 2.9, 2.5)
    for ax, (title, (values, note)) in zip(axes.flat, shown.items(), strict=True):
        group = next((g for g in shared if title in g), (title,))
        scale = ColorScale.of(*(shown[name][0] for name in group))
        image = draw_field(ax, values, scale)
        ax.set_title(title + note + slice_note(n_dim))
        color_bar(figure, image, ax, "")
    return figure


def _one_channel(title: str, values: Tensor, n_dim: int) -> tuple[Tensor, str]:
    if values.ndim not in (n_dim, n_dim + 1):
        raise ValueError(f"{title!r} has {values.ndim} axes: pass (*grid) or (channels, *grid) of a {n_dim}-d grid")
    if values.ndim == n_dim:
        return values, ""
    return (values[0], "") if len(values) == 1 else (values.norm(dim=0), "\n(norm over channels)")


def code_maps_figure(
    codes: ConceptCodes, concepts: Sequence[int], samples: Sequence[int], background: Tensor | None = None
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
    """
    n_dim = len(codes.grid)
    figure, axes = subplots(len(concepts), len(samples), 1.75, 1.7)
    for row, concept in zip(axes, concepts, strict=True):
        maps = [code_of(codes, concept, sample) for sample in samples]
        scale = ColorScale.of(*(m if m is not None else torch.zeros(codes.grid) for m in maps))
        for ax, sample, values in zip(row, samples, maps, strict=True):
            over = None if background is None else _first_channel(background[sample], n_dim)
            image = draw_field(ax, values if values is not None else torch.zeros(codes.grid), scale, over)
            if values is None:
                ax.text(0.5, 0.5, "off", color="white", ha="center", va="center", transform=ax.transAxes)
            if ax in axes[0]:
                ax.set_title(f"sample {sample}")
        row[0].set_ylabel(f"concept {concept}")
        color_bar(figure, image, list(row), "code")
    if n_dim == 3:
        figure.suptitle("codes" + slice_note(n_dim), fontsize=9, color=INK)
    return figure


def atoms_figure(sae: SAE, concepts: Sequence[int] | Tensor, shape: Sequence[int]) -> Figure:
    """What each concept writes for a unit impulse at the centre of the grid.

    Drawn is the leading component of the atom over channels, relative to its own extreme value; the title has
    the share of the atom's energy that it holds. Where concepts have a pointwise part, which copies the impulse
    and hides the rest, a second row shows the atom without it.
    """
    indices = [int(c) for c in concepts]
    parts: dict[str, dict[str, bool]] = {"atom": {}}
    if has_pointwise_part(sae):
        parts["without the\npointwise part"] = {"pointwise": False}
    n_columns = min(6, len(indices))
    n_rows = -(-len(indices) // n_columns)
    figure, axes = subplots(n_rows * len(parts), n_columns, 1.7, 1.8)
    for ax in axes.flat:
        ax.set_visible(False)
    for number, (label, part) in enumerate(parts.items()):
        maps, shares = leading_components(sae, concepts, shape, **part)
        rows = axes[number :: len(parts)]
        rows[0, 0].set_ylabel(label)
        for ax, concept, values, share in zip(rows.flat, indices, maps, shares, strict=False):
            ax.set_visible(True)
            image = draw_field(ax, values / values.abs().max().clamp_min(1e-12), ColorScale("RdBu_r", -1.0, 1.0))
            ax.set_title(f"{concept}  ({share:.0%})")
    color_bar(figure, image, axes, "relative to the atom's extreme value" + slice_note(len(shape)))
    return figure


def spectra_figure(sae: SAE, concepts: Sequence[int] | Tensor, shape: Sequence[int] | None = None) -> Figure:
    """Energy spectra of atoms over shells of equal wavenumber, on a log scale.

    The energy in a shell is drawn relative to that of a unit impulse of the same norm: 1 everywhere is a
    concept that only copies its code from point to point, a slope is one that smooths or sharpens it. (Plain
    energies follow the number of modes in each shell, which hides the concept.) Up to seven concepts are
    lines, more are a map.

    Parameters
    ----------
    sae : SAE
        The model.
    concepts : sequence of int
        Which concepts.
    shape : sequence of int, optional
        As in :func:`neuralop_sae.analysis.summaries.atom_spectra`.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    spectra = atom_spectra(sae, concepts, shape)
    gain = spectra.gain()
    indices = [int(c) for c in concepts]
    if len(indices) > len(PALETTE):
        return _spectra_map(gain, spectra.wavenumbers, indices)
    figure, axes = subplots(1, 1, 3.0, 2.1)
    ax = axes[0, 0]
    ax.axhline(1.0, color=GREY, linestyle="--", linewidth=1.2)
    for concept, values, color in zip(indices, gain, PALETTE, strict=False):
        ax.semilogy(
            spectra.wavenumbers.numpy(), values.numpy(), color=color, marker="o", markersize=3, label=f"concept {concept}"
        )
    low, high = float(gain[gain > 0].min()) if (gain > 0).any() else 1.0, max(float(gain.max()), 1.0)
    ax.set_ylim(max(min(low / 1.3, 0.5), high * 1e-4), max(high * 1.3, 2.0))
    ax.yaxis.set_major_locator(LogLocator(base=2, numticks=7))
    ax.yaxis.set_major_formatter("{x:.2g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="wavenumber (cycles per domain)", ylabel="energy / impulse")
    if len(indices) > 1:
        ax.legend(fontsize=7, frameon=False, labelcolor=INK)
    return figure


def _spectra_map(gain: Tensor, wavenumbers: Tensor, indices: list[int]) -> Figure:
    from matplotlib.colors import LogNorm

    figure, axes = subplots(1, 1, 0.28 * len(indices) + 1.0, 2.6)
    ax = axes[0, 0]
    # At least a factor of two either way, so that spectra flat to a few per cent look flat.
    span = min(max(float(gain[gain > 0].log().abs().max().exp()) if (gain > 0).any() else 2.0, 2.0), 1e3)
    norm = LogNorm(1 / span, span)
    image = ax.imshow(gain.T.clamp(1 / span, span).numpy(), norm=norm, cmap="RdBu_r", aspect="auto", origin="lower")
    ax.set(xlabel="concept, strongest first", ylabel="wavenumber\n(cycles per domain)")
    ax.set_xticks(range(len(indices)), [str(c) for c in indices], rotation=90)
    ax.set_yticks(range(len(wavenumbers)), [str(int(k)) for k in wavenumbers])
    bar = color_bar(figure, image, ax, "energy relative to an impulse")
    bar.set_ticks([1 / span, 1.0, span], labels=[f"{tick:.2g}" for tick in (1 / span, 1.0, span)])
    bar.minorticks_off()
    return figure


def reconstruction_figure(x: Tensor, reconstruction: Tensor, sample: int = 0, n_channels: int = 3) -> Figure:
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
    """
    if x.shape != reconstruction.shape:
        raise ValueError(f"x is {tuple(x.shape)}, its reconstruction {tuple(reconstruction.shape)}: pass equal shapes")
    original, rebuilt = x[sample].detach().cpu(), reconstruction[sample].detach().cpu()
    channels = original.flatten(1).var(1).argsort(descending=True)[:n_channels].tolist()
    figure, axes = subplots(len(channels), 3, 2.2, 2.0)
    for row, channel in zip(axes, channels, strict=True):
        scale = ColorScale.of(original[channel], rebuilt[channel])
        half = (scale.high - scale.low) / 2
        image = draw_field(row[0], original[channel], scale)
        draw_field(row[1], rebuilt[channel], scale)
        error = draw_field(row[2], rebuilt[channel] - original[channel], ColorScale("RdBu_r", -half, half))
        row[0].set_ylabel(f"channel {channel}")
        color_bar(figure, image, list(row[:2]), "")
        color_bar(figure, error, row[2], "")
    for ax, title in zip(axes[0], ("original", "reconstruction", "reconstruction \u2212 original"), strict=True):
        ax.set_title(title + slice_note(original.ndim - 1))
    return figure


def usage_figure(frequency: Tensor, share: Tensor) -> Figure:
    """How often concepts are on, and how energy is spread over them.

    Parameters
    ----------
    frequency : Tensor
        ``(n_concepts,)``: fraction of samples in which each is on; zero marks a dead concept.
    share : Tensor
        ``(n_concepts,)``: share of the decoded energy.
    """
    figure, axes = subplots(1, 2, 3.6, 2.5)
    rank = range(1, len(frequency) + 1)
    ordered, dead = frequency.sort(descending=True).values, int((frequency == 0).sum())
    axes[0, 0].fill_between(rank, ordered.numpy(), step="mid", color=PALETTE[0], alpha=0.85, linewidth=0)
    axes[0, 0].set(xlabel="concept, most frequent first", ylabel="fraction of samples it is on in", ylim=(0, 1.02))
    if dead:
        alive = len(frequency) - dead
        axes[0, 0].axvspan(alive + 0.5, len(frequency) + 0.5, facecolor=GREY, alpha=0.25, hatch="///", edgecolor=GREY)
        axes[0, 0].text(alive + 0.5 + dead / 2, 0.5, f"{dead} dead", ha="center", rotation=90, fontsize=9, color=INK)
    cumulative = share.double().sort(descending=True).values.cumsum(0)
    axes[0, 1].plot(rank, cumulative.numpy(), color=PALETTE[0], linewidth=1.8)
    if cumulative[-1] > 0:
        c90 = energy_quantile_count(share)
        axes[0, 1].plot([c90, c90, 1], [0, 0.9, 0.9], color=PALETTE[5], linestyle="--", linewidth=1)
        axes[0, 1].annotate(
            f"{c90} concepts\ncarry 90 %",
            (c90, 0.45),
            (6, 0),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    axes[0, 1].set(xlabel="number of concepts, strongest first", ylabel="cumulative share of energy", ylim=(0, 1.02))
    return figure


def history_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Training curves: one panel per quantity that the rows hold.

    Parameters
    ----------
    history : sequence of mappings
        One row per logged step, such as ``{"step": 10, "loss": 0.3, "fve": 0.7}``. Rows may lack keys;
        anything that is not a number is left out.
    """
    numbers = {
        key: [(i, float(row[key])) for i, row in enumerate(history) if _is_number(row.get(key))]
        for key in dict.fromkeys(key for row in history for key in row)
    }
    clock = next((key for key in ("step", "epoch") if len(numbers.get(key, [])) == len(history)), None)
    keys = [key for key in _HISTORY_LABELS if numbers.get(key)]
    keys += [key for key, points in numbers.items() if points and key not in keys and key not in _CLOCKS][: 8 - len(keys)]
    if not keys:
        raise ValueError(f"history holds no numbers to draw: rows need keys such as 'loss', got {sorted(numbers)}")
    n_columns = min(4, len(keys))
    figure, axes = subplots(-(-len(keys) // n_columns), n_columns, 2.6, 2.1)
    for ax in axes.flat[len(keys) :]:
        ax.set_visible(False)
    for ax, key in zip(axes.flat, keys, strict=False):
        rows, values = zip(*numbers[key], strict=True)
        at = [numbers[clock][i][1] for i in rows] if clock else rows
        ax.plot(at, values, color=PALETTE[0], linewidth=1.5, marker="o" if len(values) < 3 else None)
        ax.set(title=_HISTORY_LABELS.get(key, key), xlabel=clock or "logged row")
        # A key is plain text: a dollar sign in it must not start a formula.
        ax.title.set_parse_math(False)
        if "loss" in key and min(values) > 0:
            ax.set_yscale("log")
        if key == "fve":
            ax.set_ylim(max(min(values), -0.1), 1.02)
        elif max(values) - min(values) < 1e-3 * abs(max(values)):
            # Constant but for round-off, which would fill the axis.
            ax.set_ylim(0, 1.5 * max(values)) if max(values) > 0 else ax.set_ylim(-1, 1)
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def resolution_figure(codes_low: ConceptCodes, codes_high: ConceptCodes, concepts: Sequence[int], sample: int = 0) -> Figure:
    """The same concepts' codes of one sample on two grids, and value against value where the grids meet.

    Grids that nest are compared at their common points, others after resampling the finer code. r is
    Pearson's.
    """
    figure, axes = subplots(len(concepts), 3, 2.2, 2.0)
    n_dim = len(codes_low.grid)
    for row, concept in zip(axes, concepts, strict=True):
        pair = [code_of(codes, concept, sample) for codes in (codes_low, codes_high)]
        low, high = (
            torch.zeros(codes.grid) if code is None else code
            for code, codes in zip(pair, (codes_low, codes_high), strict=True)
        )
        scale, common = ColorScale.of(low, high), on_grid_of(high, codes_low)
        image = draw_field(row[0], low, scale)
        draw_field(row[1], high, scale)
        color_bar(figure, image, list(row[:2]), "code")
        row[0].set_ylabel(f"concept {concept}")
        row[2].plot([scale.low, scale.high], [scale.low, scale.high], color=GREY, linewidth=0.8)
        row[2].plot(low.flatten().numpy(), common.flatten().numpy(), ".", markersize=2.5, color=PALETTE[0], rasterized=True)
        row[2].set_title(f"r = {pearson(low, common):.3f}")
        row[2].set(ylabel="fine grid")
    for ax, codes in zip(axes[0], (codes_low, codes_high), strict=False):
        ax.set_title(" \u00d7 ".join(map(str, codes.grid)) + slice_note(n_dim))
    axes[-1, 2].set_xlabel("coarse grid")
    return figure


def dominance_figure(
    codes: ConceptCodes,
    sae: SAE,
    concepts: Sequence[int],
    samples: Sequence[int],
    background: Tensor | None = None,
) -> Figure:
    """Which concept writes most at each point: seven in colours, all others in grey, none in white.

    Strength is the code's absolute value times the norm of the concept's kernel. `background` as in
    :func:`code_maps_figure`.
    """
    from matplotlib.patches import Patch

    named = [int(c) for c in concepts][: len(PALETTE)]
    n_dim = len(codes.grid)
    figure, axes = subplots(1, len(samples), 2.1, 2.3)
    for ax, sample in zip(axes[0], samples, strict=True):
        classes = plane(dominant_concepts(codes, sae, named, sample))
        _draw_classes(ax, classes if classes.ndim == 2 else classes[None], len(named))
        if background is not None and n_dim > 1:
            draw_contours(ax, _first_channel(background[sample], n_dim), "black")
        ax.set_title(f"sample {sample}" + slice_note(n_dim))
    entries = [(color, f"concept {c}") for color, c in zip(PALETTE, named, strict=False)]
    handles = [Patch(facecolor=color, label=label) for color, label in [*entries, (GREY, "any other")]]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False, labelcolor=INK)
    return figure


def _draw_classes(axes: Axes, classes: Tensor, n_named: int) -> None:
    from matplotlib.colors import to_rgb

    # White comes last, so that class -1 (nothing is expressed) picks it.
    colors = torch.tensor([to_rgb(c) for c in (*PALETTE[:n_named], GREY, "white")])
    aspect = 0.3 if len(classes) == 1 else classes.shape[0] / classes.shape[1]
    axes.imshow(colors[classes].numpy(), extent=(0, 1, 1, 0), aspect=aspect, interpolation="none")
    axes.set(xticks=[], yticks=[])


def _first_channel(field: Tensor, n_dim: int) -> Tensor:
    return field.reshape(-1, *field.shape[-n_dim:])[0]
