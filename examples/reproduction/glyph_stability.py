"""Are concepts the same from seed to seed and at another sparsity, and are all of them used? On images of characters."""

from __future__ import annotations

import time
from itertools import combinations, pairwise
from typing import Any

import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, spread, write
from glyphs import COMPARED, LEVELS, MATCHINGS, NAMES, Bed, nonzeros, started, trained, tuned
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from stability import Dictionary

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots
from neuralop_sae.analysis.matching import chance_cosine, match_atoms

USE = ("fve", "usage_entropy", "dead_fraction", "c90", "nonzeros")
PAIRS = {
    "seeds": "two seeds",
    "levels": "two levels,\ntwo seeds",
    "same start": "two levels,\none seed",
    "start": "two seeds\nbefore training",
}
KINDS = {**NAMES, "mlp still": "SAE-MLP, atoms not shifted"}


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Matched cosines of pairs of dictionaries, and how evenly each is used."""
    began = time.perf_counter()
    bed, seeds = (Bed(40, 10, 1), 2) if quick else (Bed(), seeds)
    values: dict[str, Any] = {}
    rates = {}
    for kind in NAMES:
        for matching in MATCHINGS:
            of = f"{kind}/{matching}"
            rates[of] = tuned(bed, kind, matching)
            values |= measure(bed, kind, matching, rates[of], seeds)
            print(of, {pairs: round(values[of][pairs][0]["excess"], 3) for pairs in PAIRS}, values[of]["use"], flush=True)
    settings = {
        "bed": {"n_train": bed.n_train, "n_test": bed.n_test, "n_epochs": bed.n_epochs},
        "levels": LEVELS,
        "seeds": seeds,
        "rates": rates,
    }
    rows = [
        *(stable(values, matching, pairs) for pairs in ("seeds", "levels") for matching in MATCHINGS),
        *(used(values, matching) for matching in MATCHINGS),
    ]
    write(__file__, output, rows=rows, values=values, figure=draw(values), settings=settings, started=began)


def measure(bed: Bed, kind: str, matching: str, rate: float, seeds: int) -> dict[str, Any]:
    """Pairs of dictionaries of one kind, and the use of those at the sparsity that is compared; for SAE-MLP, whose concepts do
    not move, pairs are also compared where they stand."""
    levels, at = LEVELS[matching], COMPARED[matching]
    found = {
        (k, seed): Dictionary.of(trained(bed, kind, matching, k, rate, seed), bed.test)
        for k in levels
        for seed in range(seeds)
    }
    start = [Dictionary.of(started(bed, kind, matching, at, seed), bed.test) for seed in range(seeds)]
    pairs = {
        "seeds": [(found[at, a], found[at, b]) for a, b in combinations(range(seeds), 2)],
        "levels": [(found[a, i], found[b, (i + 1) % seeds]) for a, b in pairwise(levels) for i in range(seeds)],
        "same start": [(found[a, seed], found[b, seed]) for a, b in pairwise(levels) for seed in range(seeds)],
        "start": list(combinations(start, 2)),
    }
    use = [used_by(found[at, seed].sae, bed) for seed in range(seeds)]
    ways = {f"{kind}/{matching}": True} | ({f"mlp still/{matching}": False} if kind == "mlp" else {})
    return {
        of: {name: [alike(a, b, translate) for a, b in some] for name, some in pairs.items()} | {"use": use}
        for of, translate in ways.items()
    }


def alike(a: Dictionary, b: Dictionary, translate: bool) -> dict[str, float]:
    """Matched cosine of living concepts, its chance level and what it exceeds that by. The mean is over the dictionary with
    fewer of them."""
    few, many = sorted((a, b), key=lambda each: len(each.atoms))
    cosine = match_atoms(many.atoms, few.atoms, few.sae.basis, translate=translate).matched_cosine
    n_atoms = len(many.atoms)
    chance = chance_cosine(many.sae, few.atoms, n_atoms=n_atoms, n_draws=3, seed=1000, translate=translate).mean
    return {"cosine": cosine, "chance": chance, "excess": cosine - chance, "living": len(few.atoms)}


def used_by(sae: ns.SAE, bed: Bed) -> dict[str, float]:
    """How evenly concepts are on over the images, with what that buys."""
    found = ns.evaluate(sae, bed.test) | {"nonzeros": nonzeros(sae, bed.test)}
    return {name: found[name] for name in USE}


def column(values: dict[str, Any], kind: str, matching: str, part: str, name: str) -> list[float]:
    """One number over pairs or seeds."""
    return [row[name] for row in values[f"{kind}/{matching}"][part]]


def stable(values: dict[str, Any], matching: str, pairs: str) -> Row:
    """A row on stability: from seed to seed, or from level to level."""

    def text(kind: str) -> str:
        shown = {name: spread(column(values, kind, matching, pairs, name)) for name in ("excess", "cosine", "chance")}
        return f"{KINDS[kind]}: {shown['excess']} above chance (cosine {shown['cosine']}, chance {shown['chance']})"

    def criterion(other: str) -> Criterion:
        ours, theirs = (column(values, kind, matching, pairs, "excess") for kind in ("fno", other))
        said = f"matched cosine above chance, living concepts: higher than that of {KINDS[other]} in each pair"
        return Criterion(said, all(a > b for a, b in zip(ours, theirs, strict=True)))

    begin = "; ".join(f"{KINDS[kind]} {spread(column(values, kind, matching, 'start', 'excess'))}" for kind in KINDS)
    living = "; ".join(f"{NAMES[kind]} {spread(column(values, kind, matching, pairs, 'living'), 0)}" for kind in NAMES)
    one_start = "; ".join(f"{KINDS[kind]} {spread(column(values, kind, matching, 'same start', 'excess'))}" for kind in KINDS)
    remark = (
        f"Two seeds before training, above chance: {begin}; all start from the images. "
        f"Living concepts that are compared: {living}. Chance is a dictionary as it is made, of as many concepts."
    )
    if pairs == "levels":
        remark += f" Levels are of different seeds here; two of one seed start alike, and come to {one_start}."
    where = "from seed to seed" if pairs == "seeds" else f"between {LEVELS[matching]}"
    claim = f"images of characters: concepts as operators are more stable {where}, {MATCHINGS[matching]}"
    count = len(values[f"fno/{matching}"][pairs])
    others = [kind for kind in KINDS if kind != "fno"]
    measured = f"{count} pairs of dictionaries"
    return Row(claim, measured, text("fno"), "; ".join(map(text, others)), [criterion(kind) for kind in others], remark)


def used(values: dict[str, Any], matching: str) -> Row:
    """A row on use: entropy, dead, C90, always with FVE."""

    def text(kind: str) -> str:
        of = {name: spread(column(values, kind, matching, "use", name)) for name in USE}
        return (
            f"{NAMES[kind]}: entropy {of['usage_entropy']}, dead {of['dead_fraction']}, C90 {of['c90']}, FVE {of['fve']}, "
            f"{of['nonzeros']} nonzeros per image"
        )

    def least_gain(name: str, other: str) -> float:
        return min(column(values, "fno", matching, "use", name)) - max(column(values, other, matching, "use", name))

    others = ("cnn", "mlp")
    criteria = [
        Criterion(f"{said} that of {NAMES[other]}, for every pair of seeds", least_gain(name, other) > 0)
        for other in others
        for name, said in (("usage_entropy", "evenness of use (entropy) above"), ("fve", "FVE above"))
    ]
    claim = f"images of characters: concepts as operators are used more evenly, {MATCHINGS[matching]}"
    remark = "SAE-MLP has 128 concepts, the others 32; entropy is over its largest, the logarithm of their number."
    measured = f"{COMPARED[matching]} per image, held out"
    return Row(claim, measured, text("fno"), "; ".join(map(text, others)), criteria, remark)


def draw(values: dict[str, Any]) -> Figure:
    """Matched cosines of pairs beside chance, and FVE against evenness of use; a row of panels for each matching."""
    figure, axes = subplots(len(MATCHINGS), 2, 4.2, 2.9)
    for (stability, use), (matching, title) in zip(axes, MATCHINGS.items(), strict=True):
        for i, (kind, color) in enumerate(zip(KINDS, PALETTE, strict=False)):
            for at, pairs in enumerate(PAIRS):
                ours, chance = (column(values, kind, matching, pairs, name) for name in ("cosine", "chance"))
                place = [at + 0.2 * i - 0.3] * len(ours)
                stability.plot(place, ours, "o", color=color, markersize=4, label=KINDS[kind] if not at else None)
                stability.plot(place, chance, "_", color=color, markersize=11)
            if kind in NAMES:
                shown = [column(values, kind, matching, "use", name) for name in ("usage_entropy", "fve")]
                use.plot(*shown, "o", color=color, markersize=5)
        stability.set(ylabel="matched cosine", ylim=(-0.02, 1.02), xlim=(-0.5, len(PAIRS) - 0.5), title=title)
        stability.set_xticks(range(len(PAIRS)), PAIRS.values())
        use.set(xlabel="evenness of use (entropy)", ylabel="FVE", title=title, xlim=(0, 1.02))
    models, names = axes[0][0].get_legend_handles_labels()
    chance = Line2D([], [], color="black", marker="_", markersize=11, linestyle="")
    handles, labels = [*models, chance], [*names, "chance, in the colour of the model"]
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=7)
    figure.suptitle("Images of characters: stability and use of concepts")
    return figure


if __name__ == "__main__":
    typer.run(main)
