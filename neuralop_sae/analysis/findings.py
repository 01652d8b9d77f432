"""Figures of what was found out: physics that concepts follow, effects of edits, what rollouts keep, what sparsity costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from .drawing import GREY, INK, PALETTE, color_bar, set_title, subplots
from .evidence import LEVEL, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Dark on the white around it on every page: what is drawn in INK takes the colour of the page's text.
_CROSS = "#111111"


def probes_figure(probes: pd.DataFrame, concepts: Sequence[int] | None = None, n: int = 20) -> Figure:
    """Correlations with their intervals, closest first: filled where the q-value is up to 0.05, open elsewhere.

    Parameters
    ----------
    probes : pandas.DataFrame
        What :func:`~neuralop_sae.probe` returns.
    concepts : sequence of int, optional
        Which to show; by default all.
    n : int
        How many correlations, the closest of these.
    """
    own = probes if concepts is None else probes[probes.concept.isin([int(c) for c in concepts])]
    own = own[own.correlation.notna()].sort_values("correlation", key=abs, ascending=False, kind="stable").head(n)
    if own.empty:
        raise ValueError("no correlation to draw: the table has none for these concepts, or all are NaN")
    figure, axes = subplots(1, 1)
    ax = axes[0, 0]
    height = np.arange(len(own))[::-1]
    finding = (own.q_value <= LEVEL).to_numpy()
    ax.axvline(0.0, color=GREY, linewidth=0.8)
    ax.hlines(height, own.low, own.high, color=PALETTE[0], linewidth=1.4)
    for chosen, face in ((finding, PALETTE[0]), (~finding, "white")):
        ax.plot(own.correlation[chosen], height[chosen], "o", color=PALETTE[0], markerfacecolor=face, markersize=5)
    names = [f"{row['concept']}: {name_of(row)}" for row in own.to_dict("records")]
    ax.set(xlim=(-1.02, 1.02), xlabel="correlation of code and quantity, with its interval", ylabel="concept: quantity")
    ax.set_ylim(-0.6, len(own) - 0.4)
    figure.set_size_inches(_name_rows(ax, height, names) + 4.0, max(0.24 * len(own) + 0.9, 1.7))
    return figure


def probes_map_figure(probes: pd.DataFrame, concepts: Sequence[int]) -> Figure:
    """Correlations of concepts (columns) with quantities (rows), each at its closest lag; crosses where the q-value is above
    0.05, and no colour where there is no answer.

    Parameters
    ----------
    probes : pandas.DataFrame
        What :func:`~neuralop_sae.probe` returns.
    concepts : sequence of int
        Columns, in this order.
    """
    closest = probes.sort_values("correlation", key=abs, ascending=False, kind="stable", na_position="last")
    closest = closest.drop_duplicates(["concept", "quantity", "kind"])
    named = closest.assign(name=[name_of({**row, "lag": 0}) for row in closest.to_dict("records")])
    rows = list(dict.fromkeys(name_of({**row, "lag": 0}) for row in probes.to_dict("records")))
    r, q = (
        named.pivot(index="name", columns="concept", values=column).reindex(index=rows, columns=list(concepts)).to_numpy(float)
        for column in ("correlation", "q_value")
    )
    figure, axes = subplots(1, 1)
    ax = axes[0, 0]
    image = ax.imshow(r, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    y, x = np.nonzero(q > LEVEL)
    for color, width in (("white", 2.0), (_CROSS, 0.8)):
        ax.plot(x, y, "x", color=color, markersize=4, markeredgewidth=width)
    ax.set_xticks(range(len(concepts)), [str(c) for c in concepts], rotation=90)
    ax.set_xlabel("concept")
    color_bar(figure, image, ax, "correlation")
    width = _name_rows(ax, range(len(rows)), rows) + 0.28 * len(concepts) + 1.5
    figure.set_size_inches(width, max(0.28 * len(rows) + 1.1, 1.8))
    return figure


def dose_response_figure(effects: pd.DataFrame, *, neutral: float = 1.0, units: Mapping[str, str] | None = None) -> Figure:
    """Effects on an operator's output against the dose of an edit, with their intervals: a panel for each outcome, a line for
    each concept.

    Parameters
    ----------
    effects : pandas.DataFrame
        The ``effects`` of a :class:`~neuralop_sae.CausalTest`, of up to seven concepts.
    neutral : float
        The dose at which the edit changes nothing; drawn as the point (neutral, 0).
    units : mapping of str to str, optional
        From outcome to unit.
    """
    concepts, outcomes = (list(dict.fromkeys(effects[column])) for column in ("concept", "outcome"))
    _check_lines(concepts, "concepts")
    n_columns = 2 if len(outcomes) in (2, 4) else min(3, len(outcomes))
    figure, axes = subplots(-(-len(outcomes) // n_columns), n_columns, 3.0, 2.5)
    for ax in axes.flat[len(outcomes) :]:
        ax.set_visible(False)
    for ax, outcome in zip(axes.flat, outcomes, strict=False):
        ax.axhline(0.0, color=GREY, linewidth=0.8)
        ax.axvline(neutral, color=GREY, linewidth=0.8, linestyle="--")
        for concept, color in zip(concepts, PALETTE, strict=False):
            own = effects[(effects.concept == concept) & (effects.outcome == outcome)][["dose", "effect", "low", "high"]]
            own = pd.concat([own, pd.DataFrame([[neutral, 0.0, 0.0, 0.0]], columns=own.columns)]).sort_values("dose")
            ax.fill_between(own.dose, own.low, own.high, color=color, alpha=0.2, linewidth=0)
            ax.plot(own.dose, own.effect, color=color, marker="o", markersize=3.5, label=f"concept {concept}")
        unit = (units or {}).get(outcome)
        ax.set(xlabel="dose", ylabel="effect" + (f" ({unit})" if unit else ""))
        ax.title.set_parse_math(False)
        set_title(ax, outcome)
    _legend_below(figure, axes[0, 0])
    return figure


def conservation_figure(
    drifts: pd.DataFrame, *, step: float = 1.0, unit: str = "steps", units: Mapping[str, str] | None = None
) -> Figure:
    """Drift of what a rollout should keep, with its interval: a panel for each quantity, a line for each rollout.

    Parameters
    ----------
    drifts : pandas.DataFrame
        What :func:`~neuralop_sae.conservation` returns, of up to seven rollouts.
    step, unit : float, str
        How long a step is, and in what unit.
    units : mapping of str to str, optional
        From quantity to unit.
    """
    rollouts, quantities = (list(dict.fromkeys(drifts[column])) for column in ("rollout", "quantity"))
    _check_lines(rollouts, "rollouts")
    figure, axes = subplots(1, len(quantities), 3.2, 2.6)
    for ax, quantity in zip(axes.flat, quantities, strict=True):
        ax.axhline(0.0, color=GREY, linewidth=0.8)
        for rollout, color in zip(rollouts, PALETTE, strict=False):
            own = drifts[(drifts.rollout == rollout) & (drifts.quantity == quantity)]
            ax.fill_between(own.step * step, own.low, own.high, color=color, alpha=0.2, linewidth=0)
            ax.plot(own.step * step, own.drift, color=color, marker=".", label=rollout)
        named = (units or {}).get(quantity)
        ax.set(xlabel=f"time of the rollout ({unit})", ylabel="drift" + (f" ({named})" if named else ""))
        ax.title.set_parse_math(False)
        set_title(ax, quantity)
    _legend_below(figure, axes[0, 0])
    return figure


def fve_figure(fve: Mapping[int, float], *, own: int | None = None, counted: str = "k") -> Figure:
    """Variance explained against the number of concepts that may be on.

    Parameters
    ----------
    fve : mapping of int to float
        From k to FVE, as :func:`~neuralop_sae.fve_by_k` returns it.
    own : int, optional
        The k that the model was trained at: a dashed line, and a ring where the curve has it.
    counted : str
        What k counts.
    """
    from matplotlib.ticker import NullLocator

    ks = sorted(fve)
    # Names of ticks that would touch are left out.
    apart = math.log2(ks[-1] / ks[0]) / 8 if len(ks) > 8 else 0.0
    named = [ks[0]]
    for k in ks[1:]:
        if math.log2(k / named[-1]) >= apart:
            named.append(k)
    figure, axes = subplots(1, 1, 3.9, 2.5)
    ax = axes[0, 0]
    ax.plot(ks, [fve[k] for k in ks], color=PALETTE[0], marker="o", markersize=4)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) if k in named else "" for k in ks])
    ax.axhline(0.0, color=GREY, linewidth=0.8)
    if own is not None:
        ax.axvline(own, color=PALETTE[5], linestyle="--", linewidth=1.0)
        place = ax.get_xaxis_transform()
        ax.text(own, 1.02, f"trained at k = {own}", transform=place, ha="center", fontsize=8, color=INK)
        if own in fve:
            ax.plot(own, fve[own], "o", markersize=11, markerfacecolor="none", color=PALETTE[5])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel=f"k, {counted}" if counted != "k" else "k", ylabel="variance explained (FVE)")
    ax.set_ylim(1.05 * min(0.0, *fve.values()), 1.02)
    return figure


def stability_figure(stability: Tensor, chance: Tensor | None = None) -> Figure:
    """How many concepts another run finds again how well.

    Parameters
    ----------
    stability : Tensor
        Matched cosines ``(n,)``, as :func:`~neuralop_sae.stability` returns them.
    chance : Tensor, optional
        ``(n,)``: what chance gives for each, as :func:`~neuralop_sae.analysis.relations.stability_by_chance` returns it.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = subplots(1, 1, 3.9, 2.3)
    ax, lowest = axes[0, 0], min(0.0, float(stability.min()))
    ax.hist(stability.numpy(), bins=25, range=(lowest, 1.0), color=PALETTE[0], label="another run")
    if chance is not None:
        ax.hist(chance.numpy(), bins=25, range=(lowest, 1.0), histtype="step", color=PALETTE[5], label="chance")
        ax.legend(fontsize=8, frameon=False, labelcolor=INK)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="cosine with the matched concept", ylabel="concepts", xlim=(lowest, 1.0))
    return figure


def _name_rows(ax: Axes, at: Any, names: Sequence[str]) -> float:
    """Name the rows of a table as plain text; returns the width of the longest name in inches."""
    ax.set_yticks(at, names)
    labels = ax.get_yticklabels()
    for label in labels:
        label.set_parse_math(False)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return max((label.get_window_extent().width for label in labels), default=0.0) / figure.dpi


def _check_lines(names: Sequence[Any], what: str) -> None:
    if not 1 <= len(names) <= len(PALETTE):
        raise ValueError(f"lines are told apart for 1 to {len(PALETTE)} {what}, got {len(names)}: choose some of the rows")


def _legend_below(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False, labelcolor=INK)
