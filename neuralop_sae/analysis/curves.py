"""Figures of numbers: spectra of atoms and of fields, use of the dictionary, training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..layers.basis import SpectralBasis
from ..metrics import energy_quantile_count
from ..models.base import SAE
from .conservation import shell_energy
from .drawing import GREY, INK, PALETTE, color_bar, set_title, subplots
from .summaries import AtomSpectra, atom_spectra

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


def spectra_figure(sae: SAE, concepts: Sequence[int] | Tensor, shape: Sequence[int] | None = None) -> Figure:
    """Energy spectra of atoms over shells of equal wavenumber, on a sphere of equal degree, on a log scale.

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
    spectra = atom_spectra(sae, concepts, shape)
    indices = [int(c) for c in concepts]
    if len(indices) > len(PALETTE):
        return _spectra_map(spectra, sae.basis.wavenumber_label, indices)
    figure, axes = subplots(1, 1, 3.0 if len(indices) == 1 else 3.9, 2.1)
    _draw_spectra(axes[0, 0], spectra, sae.basis.wavenumber_label, indices)
    if len(indices) > 1:
        figure.legend(loc="outside right upper", fontsize=7, frameon=False, labelcolor=INK)
    return figure


def draw_spectrum(ax: Axes, sae: SAE, concept: int) -> None:
    """Draw the spectrum of one concept, as :func:`spectra_figure` does."""
    _draw_spectra(ax, atom_spectra(sae, [concept]), sae.basis.wavenumber_label, [concept])


def _draw_spectra(ax: Axes, spectra: AtomSpectra, label: str, indices: Sequence[int]) -> None:
    gain = spectra.gain()
    ax.axhline(1.0, color=GREY, linestyle="--", linewidth=1.2)
    for concept, values, color in zip(indices, gain, PALETTE, strict=False):
        ax.plot(spectra.wavenumbers.numpy(), values.numpy(), color=color, marker="o", markersize=3, label=f"concept {concept}")
    spectrum_limits(ax, gain)
    ax.set(xlabel=label, ylabel="energy / impulse")


def spectrum_limits(ax: Axes, gain: Tensor) -> None:
    """A log axis of energies relative to an impulse: at least a factor of two either way, at most four decades."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = float(gain[gain > 0].min()) if (gain > 0).any() else 1.0, max(float(gain.max()), 1.0)
    ax.set_ylim(max(min(low / 1.3, 0.5), high * 1e-4), max(high * 1.3, 2.0))
    ax.yaxis.set_major_locator(LogLocator(base=2, numticks=7))
    ax.yaxis.set_major_formatter("{x:.2g}")
    ax.yaxis.set_minor_locator(NullLocator())


def _spectra_map(spectra: AtomSpectra, label: str, indices: list[int]) -> Figure:
    from matplotlib.colors import LogNorm

    gain = spectra.gain()
    figure, axes = subplots(1, 1, 0.28 * len(indices) + 1.0, 2.6)
    ax = axes[0, 0]
    # At least a factor of two either way, so that spectra flat to a few per cent look flat.
    span = min(max(float(gain[gain > 0].log().abs().max().exp()) if (gain > 0).any() else 2.0, 2.0), 1e3)
    norm = LogNorm(1 / span, span)
    image = ax.imshow(gain.T.clamp(1 / span, span).numpy(), norm=norm, cmap="RdBu_r", aspect="auto", origin="lower")
    ax.set(xlabel="concept, strongest first", ylabel=label.replace(" (", "\n("))
    ax.set_xticks(range(len(indices)), [str(c) for c in indices], rotation=90)
    ax.set_yticks(range(len(spectra.wavenumbers)), [str(int(k)) for k in spectra.wavenumbers])
    bar = color_bar(figure, image, ax, "energy relative to an impulse")
    bar.set_ticks([1 / span, 1.0, span], labels=[f"{tick:.2g}" for tick in (1 / span, 1.0, span)])
    bar.minorticks_off()
    return figure


def energy_figure(fields: Mapping[str, Tensor], basis: SpectralBasis) -> Figure:
    """How the energy of fields is spread over wavenumbers, on a sphere over degrees: shares of each one's own, the mean of the
    field left out.

    Parameters
    ----------
    fields : mapping of str to Tensor
        Up to seven, name -> ``(..., *grid)``: codes, atoms, states, changes, on any grid; energies are summed over the axes
        before the grid.
    basis : SpectralBasis
        Of the domain, such as a model's.

    Raises
    ------
    ValueError
        If there are none or too many fields, or one is constant.
    """
    from matplotlib.ticker import MaxNLocator

    if not 1 <= len(fields) <= len(PALETTE):
        raise ValueError(f"lines are told apart for 1 to {len(PALETTE)} fields, got {len(fields)}: choose some of them")
    figure, axes = subplots(1, 1, 4.6, 2.6)
    ax = axes[0, 0]
    for (name, field), color in zip(fields.items(), PALETTE, strict=False):
        energy = shell_energy(field.detach().cpu().double(), basis)
        waves = energy.reshape(-1, energy.shape[-1]).sum(0)[1:]
        if waves.sum() <= 1e-20 * energy.sum():
            raise ValueError(f"field {name!r} is constant: it has no energy but that of its mean")
        ax.plot(range(1, len(waves) + 1), (waves / waves.sum()).numpy(), color=color, marker="o", markersize=3, label=name)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel=basis.wavenumber_label, ylabel="share of the energy", ylim=(0, None))
    set_title(ax, "energy, mean left out")
    figure.legend(loc="outside right upper", fontsize=7, frameon=False, labelcolor=INK)
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
    from matplotlib.ticker import MaxNLocator

    figure, axes = subplots(1, 2, 2.9, 2.5)
    often, spread = axes[0]
    n, dead = len(frequency), int((frequency == 0).sum())
    edges = np.arange(n + 1) + 0.5
    ordered = frequency.sort(descending=True).values
    often.stairs(ordered.numpy(), edges, fill=True, color=PALETTE[0], alpha=0.85, linewidth=0)
    often.set(xlabel="concept, most frequent first", ylabel="fraction of samples it is on in")
    if dead:
        often.axvspan(edges[n - dead], edges[n], facecolor=(GREY, 0.25), hatch="///", edgecolor=GREY, linewidth=0)
        often.set_xlabel(f"{often.get_xlabel()}\n(hatched: {dead} dead)")
    cumulative = [0.0, *share.double().sort(descending=True).values.cumsum(0).tolist()]
    spread.plot(range(n + 1), cumulative, color=PALETTE[0], linewidth=1.8)
    if cumulative[-1] > 0:
        c90 = energy_quantile_count(share)
        spread.plot([c90, c90, 0], [0, 0.9, 0.9], color=PALETTE[5], linestyle="--", linewidth=1)
        said, side = "1 concept\ncarries 90 %" if c90 == 1 else f"{c90} concepts\ncarry 90 %", 1 if c90 <= n / 2 else -1
        spread.annotate(
            said,
            (c90, 0.13),
            (6 * side, 0),
            textcoords="offset points",
            va="center",
            ha="left" if side > 0 else "right",
            fontsize=8,
            color=INK,
        )
    spread.set(xlabel="number of concepts, strongest first", ylabel="cumulative share of energy")
    for ax in axes[0]:
        ax.set_ylim(0, 1.02)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
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
        ax.set_xlabel(clock or "logged row")
        # A key is plain text: a dollar sign in it must not start a formula.
        ax.title.set_parse_math(False)
        set_title(ax, _HISTORY_LABELS.get(key, key))
        if key == "fve":
            # A few steps far below zero are cut, but not the whole curve.
            ax.set_ylim(max(min(values), -0.1) if max(values) > -0.1 else 1.05 * min(values), 1.02)
        elif "loss" in key and max(values) > min(values) > 0:
            ax.set_yscale("log")
        elif max(values) - min(values) <= 1e-3 * abs(max(values)):
            # Constant but for round-off, which would fill the axis.
            ax.set_ylim(*sorted((0.0, 1.5 * max(values) or 1.0)))
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
