"""Codes of frozen models on the same functions at two and four times the resolution of training."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, over_seeds, spread, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from smooth import tuned
from synthetic_bed import NAMES, POINTS, WAVENUMBERS, Bed, trained

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots

FACTORS = (2, 4)
OURS = {"smooth": "truncated", "rough": "full"}  # 33 modes cannot hold rough concepts
CNNS = ("cnn", "wide cnn")
Values = dict[str, list[float]]


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Correlation of codes between grids."""
    started = time.perf_counter()
    seeds = 1 if quick else seeds
    beds = {kind: Bed(kind, 0, *((100, 10, 20) if quick else ())) for kind in WAVENUMBERS}
    rates = {kind: {name: tuned(bed, name, seeds) for name in (OURS[kind], *CNNS)} for kind, bed in beds.items()}
    values = {kind: over_seeds(partial(measure, bed, rates[kind]), seeds) for kind, bed in beds.items()}
    settings = {"seeds": seeds, "steps": beds["smooth"].steps, "fields": beds["smooth"].n_train, "rates": rates}
    rows, figure = [row(kind, values[kind]) for kind in values], draw(values, beds, rates)
    write(__file__, output, rows=rows, values=values, figure=figure, settings=settings, started=started)


def series(kind: str) -> dict[str, str]:
    """Names of the models on one kind of concepts; convolutions also with taps in physical units."""
    return {name: NAMES[name] for name in (OURS[kind], *CNNS)} | {
        f"{name}, physical": f"{NAMES[name]} in physical units" for name in CNNS
    }


def frozen(bed: Bed, name: str, rates: dict[str, float]) -> ns.SAE:
    """A trained model; with physical taps it is the one of fixed taps, told what its taps are samples of."""
    kind, _, physical = name.partition(", ")
    sae = trained(bed, kind, rates[kind])
    if not physical:
        return sae
    other = ns.SAECNN(**{**sae.config(), "taps": "physical", "reference_grid": [POINTS]})
    other.load_state_dict(sae.state_dict())
    return other.eval()


def measure(like: Bed, rates: dict[str, float], seed: int) -> dict[str, float]:
    """Consistency of codes by model and factor."""
    bed = replace(like, seed=seed)
    coarse = bed.test()
    fine = {factor: coarse.on((POINTS * factor,)).x for factor in FACTORS}
    values = {}
    for name in series(bed.kind):
        sae = frozen(bed, name, rates)
        for factor, x in fine.items():
            values[key(name, factor)] = ns.code_consistency(sae, coarse.x, x)["code_consistency"]
    return values


def key(name: str, factor: int) -> str:
    """Of a figure."""
    return f"{name}, {factor}x"


def row(kind: str, values: Values) -> Row:
    """The row on one kind of concepts."""
    ours = OURS[kind]
    found = {name: [r for factor in FACTORS for r in values[key(name, factor)]] for name in (ours, *CNNS)}
    criteria = [Criterion("SAEFNO: r at least 0.99 at 2x and 4x, every seed", min(found[ours]) >= 0.99)]
    for name in CNNS:
        criteria.append(Criterion(f"{NAMES[name]}: r at most 0.3 at 2x and 4x, every seed", max(found[name]) <= 0.3))
    remark = (
        "For the SAEFNO this is so by construction: a linear encoder reads the modes, which do not depend on the grid, and"
        " the rule acts at each point. On a finer grid fixed taps are a narrower kernel: one that oscillates matches nothing"
        " there, a smooth bump still answers where the wider one did. Taps in physical units, interpolated, are the remedy for"
        " a CNN whose kernels the grid of training resolves well. Learning rates are those with the highest mean matched"
        " cosine."
    )
    low, high = WAVENUMBERS[kind]
    return Row(
        f"Codes of SAEFNO do not depend on the resolution, {kind} concepts",
        f"Gabors of {low:g} to {high:g} cycles per unit length; Pearson r of codes between the grid of training and grids of 2"
        " and 4 times its points, the same functions",
        text(kind, values, ours),
        "; ".join(text(kind, values, name) for name in series(kind) if name != ours),
        criteria,
        remark,
    )


def text(kind: str, values: Values, name: str) -> str:
    """A model's name and r for each factor."""
    return f"{series(kind)[name]}: " + ", ".join(f"{factor}x {spread(values[key(name, factor)])}" for factor in FACTORS)


def draw(values: dict[str, Values], beds: dict[str, Bed], rates: dict[str, dict[str, float]]) -> Figure:
    """r against the factor, and the codes of one field on two grids; a row of panels for each kind of concepts."""
    figure, axes = subplots(len(beds), 3, 3.6, 2.6)
    for (scores, *codes), (kind, bed) in zip(axes, beds.items(), strict=True):
        names = series(kind)
        for factor, marker, color in zip(FACTORS, "os", PALETTE[:2], strict=True):
            for place, name in enumerate(names):
                runs = values[kind][key(name, factor)]
                label = None if place else f"{factor} times the points"
                scores.plot(runs, [place] * len(runs), marker, color=color, markersize=5, alpha=0.7, label=label)
        scores.set_yticks(range(len(names)), [label.replace(" in physical", "\nin physical") for label in names.values()])
        scores.set(xlabel="r of codes", xlim=(-0.05, 1.05), ylim=(len(names) - 0.5, -0.5), title=f"{kind} concepts")
        for ax, name in zip(codes, (OURS[kind], "cnn"), strict=True):
            draw_codes(ax, frozen(bed, name, rates[kind]), bed)
            ax.set(title=names[name], xlabel="position", ylabel="code")
    axes[0][0].legend(frameon=False, fontsize=7, loc="lower left")
    axes[0][1].legend(frameon=False, fontsize=7)
    return figure


def draw_codes(ax: Axes, sae: ns.SAE, bed: Bed) -> None:
    """The concept with most code, of the field that has it, on the grid of training and on the finest."""
    data, found = bed.test(), None
    for factor, style, color in ((1, "o", PALETTE[0]), (FACTORS[-1], "-", PALETTE[5])):
        with torch.no_grad():
            codes = sae.encode(data.on((POINTS * factor,)).x).to_dense()
        if found is None:
            found = torch.unravel_index(codes.mean(-1).argmax(), codes.shape[:2])
        code = codes[found]
        position = torch.arange(len(code)) / len(code)
        ax.plot(position, code, style, color=color, markersize=2.5, linewidth=1, label=f"{len(code)} points")


if __name__ == "__main__":
    typer.run(main)
