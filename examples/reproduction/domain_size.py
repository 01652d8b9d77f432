"""Frozen models on boxes of two and four times the length of training, with the same spacing."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, over_seeds, spread, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from synthetic_bed import POINTS, Bed, trained
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots

RATE = 1e-2
LENGTHS = (2, 4)
WAYS = ("physical", "index")


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """FVE and codes, with modes indexed by wavenumber and by number."""
    started = time.perf_counter()
    seeds = 1 if quick else seeds
    bed = Bed("smooth", 0, *((100, 10, 20) if quick else ()))
    values = over_seeds(lambda seed: measure(replace(bed, seed=seed)), seeds)
    settings = {"seeds": seeds, "steps": bed.steps, "fields": bed.n_train, "rate": RATE}
    write(__file__, output, rows=table(values), values=values, figure=draw(values, bed), settings=settings, started=started)


def measure(bed: Bed) -> dict[str, float]:
    """FVE on fresh fields, and r of codes on the doubled box with those on the box of training."""
    sae = trained(bed, "truncated", RATE)
    values = {"fve 1": ns.evaluate(sae, bed.test().x)["fve"]}
    for way in WAYS:
        for length in LENGTHS:
            values[f"fve {way} {length}"] = ns.evaluate(sae.on_domain(length, way), bed.test(length).x)["fve"]
        doubled = sae.on_domain(2, way)
        values[f"r repeated {way}"] = repeated(sae, doubled, bed.test().x)
        values[f"r fresh {way}"] = fresh(sae, doubled, bed.test(2).x)
    return values


def repeated(sae: ns.SAE, doubled: ns.SAE, x: Tensor) -> float:
    """r of codes of a field with those of the same field twice in a row, which is a field on the doubled box."""
    return correlation(codes(sae, x).repeat(1, 1, 2), codes(doubled, x.repeat(1, 1, 2)))


def fresh(sae: ns.SAE, doubled: ns.SAE, x: Tensor) -> float:
    """r of codes of a field on the doubled box with those of its first half taken as a field by itself, which then has other
    neighbours: over the middle half of it, a quarter of the box of training away from the cuts."""
    middle = slice(POINTS // 4, 3 * POINTS // 4)
    return correlation(codes(sae, x[..., :POINTS])[..., middle], codes(doubled, x)[..., middle])


@torch.no_grad()
def codes(sae: ns.SAE, x: Tensor) -> Tensor:
    """Dense codes ``(n, p, points)``."""
    return sae.encode(x).to_dense()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson r over all samples, concepts and points."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def table(values: dict[str, list[float]]) -> list[Row]:
    """One row for the error, one for codes."""

    def lost(way: str) -> list[float]:
        return [
            before - after
            for length in LENGTHS
            for before, after in zip(values["fve 1"], values[f"fve {way} {length}"], strict=True)
        ]

    def fves(way: str) -> str:
        return f"{way}: " + ", ".join(f"{length}x {spread(values[f'fve {way} {length}'])}" for length in LENGTHS)

    def rs(way: str) -> str:
        return f"{way}: repeated {spread(values[f'r repeated {way}'], 4)}, fresh {spread(values[f'r fresh {way}'], 4)}"

    error = Row(
        "Modes indexed by physical wavenumber keep the error on a larger domain",
        "FVE on boxes of 2 and 4 times the length, same spacing, fresh fields",
        f"1x {spread(values['fve 1'])}; {fves('physical')}",
        fves("index"),
        [
            Criterion(
                "physical: FVE at most 0.03 below that of the box of training at 2x and 4x, every seed",
                max(lost("physical")) <= 0.03,
            ),
            Criterion("index: FVE at least 0.1 below at 2x and 4x, every seed", min(lost("index")) >= 0.1),
        ],
        "Half of the variance is noise, so that 0.5 is the most there is to explain.",
    )
    code = Row(
        "Codes keep their meaning on a doubled domain",
        "Pearson r of codes on the doubled box with those on the box of training",
        rs("physical"),
        rs("index"),
        [
            Criterion(
                "physical: r at least 0.99 for a field that is repeated, every seed",
                min(values["r repeated physical"]) >= 0.99,
            ),
            Criterion(
                "physical: r at least 0.99 in the middle of half a fresh field, every seed",
                min(values["r fresh physical"]) >= 0.99,
            ),
        ],
        "A repeated field tests the indexing alone. Half of a fresh one by itself has other neighbours beyond the cuts:"
        " r then also tells how far learned encoders reach.",
    )
    return [error, code]


def draw(values: dict[str, list[float]], bed: Bed) -> Figure:
    """FVE against length, and codes of one field on both boxes."""
    figure, axes = subplots(1, 2, 4.2, 3.0)
    lengths = (1, *LENGTHS)
    for way, color in zip(WAYS, PALETTE, strict=False):
        runs = [values["fve 1"], *(values[f"fve {way} {length}"] for length in LENGTHS)]
        means = [sum(run) / len(run) for run in runs]
        spans = [[abs(f(run) - m) for run, m in zip(runs, means, strict=True)] for f in (min, max)]
        axes[0][0].errorbar(lengths, means, spans, label=way, color=color, marker="o", markersize=4, capsize=3)
    axes[0][0].set(xlabel="length of the box, over that of training", ylabel="FVE", xticks=lengths)
    axes[0][0].set_ylim(bottom=min(0.0, axes[0][0].get_ylim()[0]))
    axes[0][0].legend(frameon=False, title="modes indexed by", fontsize=8, title_fontsize=8)
    draw_codes(axes[0][1], bed)
    return figure


def draw_codes(ax: Axes, bed: Bed) -> None:
    """The concept with most code in the first half of a doubled box, of the field that has it; and of that half alone."""
    sae, x = trained(bed, "truncated", RATE), bed.test(2).x
    alone = codes(sae, x[..., :POINTS])
    field, concept = torch.unravel_index(alone.mean(-1).argmax(), alone.shape[:2])
    for way, color in zip(WAYS, PALETTE, strict=False):
        code = codes(sae.on_domain(2, way), x)[field, concept]
        ax.plot(torch.arange(len(code)) / POINTS, code, color=color, linewidth=1, label=way)
    ax.plot(
        torch.arange(POINTS) / POINTS, alone[field, concept], "o", color="black", markersize=2, label="first half by itself"
    )
    ax.set(xlabel="position, in lengths of training", ylabel="code")
    ax.legend(frameon=False, fontsize=7)


if __name__ == "__main__":
    typer.run(main)
