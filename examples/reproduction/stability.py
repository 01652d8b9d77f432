"""Are concepts the same from seed to seed and at another sparsity, and are all of them used? On activations of an FNO."""

from __future__ import annotations

import time
from itertools import combinations, pairwise
from typing import Any

import typer
from beds import darcy, opened
from common import RESULTS, STANDING_STILL, Criterion, Output, Quick, Row, Seeds, spread, write
from fidelity import COMPARED, NAMES, RATES, SPARSITIES, quality, trained
from matplotlib.figure import Figure
from pairs import Dictionary, alike

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots

KINDS = ("concepts", "pointwise")
PAIRS = {"seeds": "two seeds", "levels": "two sparsity levels", "start": "two seeds before training"}
USE = ("fve", "usage_entropy", "dead_fraction", "c90", "l0_local")


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Matched cosines of pairs of dictionaries, and how evenly each is used."""
    started = time.perf_counter()
    problem = darcy(quick)
    p, steps, seeds = (16, 10, 2) if quick else (problem.n_concepts, 200, seeds)
    folder = output / "data"
    bed = opened(problem, folder)
    x = bed.every_other("test")
    rates = {kind: max(RATES[kind], key=lambda rate: quality(problem, folder, kind, p, rate, steps)) for kind in KINDS}
    values: dict[str, Any] = {}
    for kind in KINDS:
        found = {
            (k, seed): Dictionary.of(trained(bed, kind, k, p, rates[kind], seed, steps), x)
            for k in SPARSITIES
            for seed in range(seeds)
        }
        start = [Dictionary.of(trained(bed, kind, COMPARED, p, STANDING_STILL, seed, 1), x) for seed in range(seeds)]
        values[kind] = {
            "seeds": [alike(found[COMPARED, a], found[COMPARED, b]) for a, b in combinations(range(seeds), 2)],
            "levels": [alike(found[a, seed], found[b, seed]) for a, b in pairwise(SPARSITIES) for seed in range(seeds)],
            "start": [alike(a, b) for a, b in combinations(start, 2)],
            "use": [{name: ns.evaluate(found[COMPARED, seed].sae, x)[name] for name in USE} for seed in range(seeds)],
        }
        print(kind, {name: round(values[kind][name][0]["excess"], 3) for name in PAIRS}, flush=True)
    settings = {"problem": problem.model_dump(mode="json"), "steps": steps, "seeds": seeds, "rates": rates, "n_concepts": p}
    rows = [*stable(values), used(values)]
    write(__file__, output, rows=rows, values=values, figure=draw(values), settings=settings, started=started)


def column(values: dict[str, Any], kind: str, part: str, name: str) -> list[float]:
    """One number over pairs or seeds."""
    return [row[name] for row in values[kind][part]]


def stable(values: dict[str, Any]) -> list[Row]:
    """The rows on stability: from seed to seed, from level to level."""

    def text(kind: str, pairs: str) -> str:
        shown = {name: spread(column(values, kind, pairs, name)) for name in ("excess", "cosine", "chance")}
        return f"{shown['excess']} above chance (cosine {shown['cosine']}, chance {shown['chance']})"

    def codes(kind: str, pairs: str) -> str:
        means = (spread(column(values, kind, pairs, name)) for name in ("code", "code_chance"))
        return f"{NAMES[kind]} {' with chance at '.join(means)}"

    rows = []
    for pairs, claim in (("seeds", "from seed to seed"), ("levels", f"between {SPARSITIES} concepts per point")):
        ours, theirs = (column(values, kind, pairs, "excess") for kind in KINDS)
        text_of_criterion = "matched cosine above chance, living concepts: higher than the pointwise dictionary's in each pair"
        criterion = Criterion(text_of_criterion, all(a > b for a, b in zip(ours, theirs, strict=True)))
        begin = " and ".join(f"{spread(column(values, kind, 'start', 'excess'))} ({NAMES[kind]})" for kind in KINDS)
        share = " and ".join(f"{spread(column(values, kind, pairs, 'share'))} ({NAMES[kind]})" for kind in KINDS)
        remark = (
            f"As a share of what chance leaves, {share}. Two seeds before training, which starts from points of the data, "
            f"above chance: {begin}. By their codes instead of their atoms, matched cosine: "
            f"{'; '.join(codes(kind, pairs) for kind in KINDS)}. Chance for atoms is a dictionary as it is made, for codes "
            f"those of another field.{' Two levels of one seed start from the same dictionary.' * (pairs == 'levels')}"
        )
        claim = f"concepts as operators are more stable {claim} than a pointwise dictionary's"
        measured = f"{len(ours)} pairs of dictionaries, FNO on Darcy flow"
        rows.append(Row(claim, measured, text("concepts", pairs), text("pointwise", pairs), [criterion], remark))
    return rows


def used(values: dict[str, Any]) -> Row:
    """The row on use: entropy, dead, C90, always with FVE."""

    def text(kind: str) -> str:
        of = {name: spread(column(values, kind, "use", name)) for name in USE}
        return (
            f"entropy {of['usage_entropy']}, dead {of['dead_fraction']}, C90 {of['c90']}, FVE {of['fve']}, "
            f"{of['l0_local']} concepts per point"
        )

    def least_gain(name: str) -> float:
        ours, theirs = (column(values, kind, "use", name) for kind in KINDS)
        return min(ours) - max(theirs)

    criteria = [
        Criterion("evenness of use (entropy) higher, for every pair of seeds", least_gain("usage_entropy") > 0),
        Criterion("FVE at least as high, for every pair of seeds", least_gain("fve") >= 0),
    ]
    claim = "concepts as operators are used more evenly over the data"
    return Row(claim, f"{COMPARED} concepts per point, held out", text("concepts"), text("pointwise"), criteria)


def draw(values: dict[str, Any]) -> Figure:
    """Matched cosines of pairs beside chance, and FVE against evenness of use."""
    figure, (axes,) = subplots(1, 2, 4.0, 3.2)
    for i, (kind, color) in enumerate(zip(KINDS, PALETTE, strict=False)):
        for at, pairs in enumerate(PAIRS):
            ours, chance = (column(values, kind, pairs, name) for name in ("cosine", "chance"))
            place = [at + 0.3 * i - 0.15] * len(ours)
            axes[0].plot(place, ours, "o", color=color, markersize=4, label=NAMES[kind] if not at else None)
            axes[0].plot(place, chance, "_", color=color, markersize=14, label=f"{NAMES[kind]}: chance" if not at else None)
        use = [column(values, kind, "use", name) for name in ("usage_entropy", "fve")]
        axes[1].plot(*use, "o", color=color, markersize=4, label=NAMES[kind])
    names = [name.replace(" before", "\nbefore") for name in PAIRS.values()]
    axes[0].set(ylabel="matched cosine", ylim=(0, 1.02), xlim=(-0.5, len(PAIRS) - 0.5))
    axes[0].set_xticks(range(len(PAIRS)), names)
    axes[1].set(xlabel="evenness of use (entropy)", ylabel="FVE")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    figure.suptitle("FNO on Darcy flow: stability and use of concepts")
    return figure


if __name__ == "__main__":
    typer.run(main)
