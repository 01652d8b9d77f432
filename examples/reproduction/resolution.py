"""Codes of frozen models on the same functions at two and four times the resolution of training."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, over_seeds, spread, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from synthetic_bed import NAMES, POINTS, Bed, trained

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots

RATES = {"truncated": 1e-2, "cnn": 1e-1, "wide cnn": 1e-1}  # of 0.01, 0.03, 0.1, 0.3 the highest matched cosine at seed 0
FACTORS = (2, 4)
SERIES = {
    "truncated": NAMES["truncated"],
    "cnn": NAMES["cnn"],
    "wide cnn": NAMES["wide cnn"],
    "cnn, physical": f"{NAMES['cnn']} in physical units",
    "wide cnn, physical": f"{NAMES['wide cnn']} in physical units",
}
DRAWN = ("truncated", "cnn")


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Correlation of codes between grids."""
    started = time.perf_counter()
    seeds = 1 if quick else seeds
    bed = Bed("smooth", 0, *((100, 10, 20) if quick else ()))
    values = over_seeds(lambda seed: measure(replace(bed, seed=seed)), seeds)
    settings = {"seeds": seeds, "steps": bed.steps, "fields": bed.n_train, "rates": RATES}
    write(__file__, output, rows=table(values), values=values, figure=draw(values, bed), settings=settings, started=started)


def frozen(bed: Bed, name: str) -> ns.SAE:
    """A trained model; with physical taps it is the one of fixed taps, told what its taps are samples of."""
    kind, _, physical = name.partition(", ")
    sae = trained(bed, kind, RATES[kind])
    if not physical:
        return sae
    other = ns.SAECNN(**{**sae.config(), "taps": "physical", "reference_grid": [POINTS]})
    other.load_state_dict(sae.state_dict())
    return other.eval()


def measure(bed: Bed) -> dict[str, float]:
    """Consistency of codes by model and factor."""
    coarse = bed.test()
    fine = {factor: coarse.on((POINTS * factor,)).x for factor in FACTORS}
    values = {}
    for name in SERIES:
        sae = frozen(bed, name)
        for factor, x in fine.items():
            values[key(name, factor)] = ns.code_consistency(sae, coarse.x, x)["code_consistency"]
    return values


def key(name: str, factor: int) -> str:
    """Of a figure."""
    return f"{name}, {factor}x"


def table(values: dict[str, list[float]]) -> list[Row]:
    """One row."""
    ours = [r for factor in FACTORS for r in values[key("truncated", factor)]]
    fixed = {name: [r for factor in FACTORS for r in values[key(name, factor)]] for name in ("cnn", "wide cnn")}
    criteria = [Criterion("SAEFNO: r at least 0.99 at 2x and 4x, every seed", min(ours) >= 0.99)]
    for name, found in fixed.items():
        criteria.append(Criterion(f"{NAMES[name]}: r at most 0.3 at 2x and 4x, every seed", max(found) <= 0.3))
    remark = (
        "For the SAEFNO this is so by construction: a linear encoder reads the modes, which do not depend on the grid, and"
        " the rule acts at each point. Taps in physical units, interpolated, are the remedy for a CNN whose kernels are"
        " smooth. Learning rates: those with the highest matched cosine at seed 0."
    )
    return [
        Row(
            "Codes of SAEFNO do not depend on the resolution",
            "Pearson r of codes between the grid of training and grids of 2 and 4 times its points, the same functions",
            text(values, "truncated"),
            "; ".join(text(values, name) for name in SERIES if name != "truncated"),
            criteria,
            remark,
        )
    ]


def text(values: dict[str, list[float]], name: str) -> str:
    """A model's name and r for each factor."""
    return f"{SERIES[name]}: " + ", ".join(f"{factor}x {spread(values[key(name, factor)])}" for factor in FACTORS)


def draw(values: dict[str, list[float]], bed: Bed) -> Figure:
    """r against the factor, and the codes of one field on two grids."""
    figure, axes = subplots(1, 3, 3.6, 2.8)
    for factor, marker, color in zip(FACTORS, "os", PALETTE[:2], strict=True):
        for place, name in enumerate(SERIES):
            runs = values[key(name, factor)]
            label = None if place else f"{factor} times the points"
            axes[0][0].plot(runs, [place] * len(runs), marker, color=color, markersize=5, alpha=0.7, label=label)
    axes[0][0].set_yticks(range(len(SERIES)), [label.replace(" in physical", "\nin physical") for label in SERIES.values()])
    axes[0][0].set(xlabel="r of codes", xlim=(-0.05, 1.05), ylim=(len(SERIES) - 0.5, -0.5))
    axes[0][0].legend(frameon=False, fontsize=7, loc="lower left")
    for ax, name in zip(axes[0][1:], DRAWN, strict=True):
        draw_codes(ax, frozen(bed, name), bed)
        ax.set(title=NAMES[name], xlabel="position", ylabel="code")
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
