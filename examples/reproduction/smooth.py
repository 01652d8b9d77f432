"""Recovery of known concepts, smooth and rough, with truncated and with full modes, started from fields or at random."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, over_seeds, spread, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from synthetic_bed import FINE, MODELS, NAMES, RANDOM, WAVENUMBERS, Bed, fine_atoms, trained

from neuralop_sae.analysis.drawing import GREY, PALETTE, subplots

COMPARED = ("truncated", "full", "cnn", f"truncated{RANDOM}", f"full{RANDOM}")
RATES = (1e-2, 1e-1)
SHOWN = 0  # the concept that is drawn
Values = dict[str, dict[str, list[float]]]


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Matched cosine, and matched cosine minus chance."""
    started = time.perf_counter()
    seeds = 1 if quick else seeds
    beds = {kind: Bed(kind, 0, *((100, 10, 20) if quick else ())) for kind in WAVENUMBERS}
    rates = {kind: {name: tuned(bed, name, seeds) for name in COMPARED} for kind, bed in beds.items()}
    values = {kind: over_seeds(partial(measure, bed, rates[kind]), seeds) for kind, bed in beds.items()}
    settings = {"seeds": seeds, "steps": beds["smooth"].steps, "fields": beds["smooth"].n_train, "rates": rates}
    figure = draw(values, beds, rates)
    write(__file__, output, rows=table(values), values=values, figure=figure, settings=settings, started=started)


def tuned(bed: Bed, name: str, seeds: int) -> float:
    """The learning rate with the highest matched cosine, the mean over the seeds: one seed ranks rates by luck."""
    beds = [replace(bed, seed=seed) for seed in range(seeds)]
    return max(RATES, key=lambda rate: mean([each.match(trained(each, name, rate)).matched_cosine for each in beds]))


def measure(like: Bed, rates: dict[str, float], seed: int) -> dict[str, float]:
    """Matched cosines of trained models, and of untrained ones."""
    bed, values = replace(like, seed=seed), {}
    for name in COMPARED:
        sae = trained(bed, name, rates[name])
        matching = bed.match(sae)
        values |= {name: matching.matched_cosine, f"{name}, chance": bed.chance(name)}
        values[f"{name}, beyond"] = beyond(fine_atoms(sae)[matching.learned])
    return values


def beyond(atoms: torch.Tensor) -> float:
    """Mean share of the energy of atoms ``(n, 1, points)`` that 33 modes cannot hold."""
    energy = torch.fft.rfft(atoms[:, 0]).abs().square()
    return float((energy[:, MODELS["truncated"] // 2 + 1 :].sum(1) / energy.sum(1)).mean())


def table(values: Values) -> list[Row]:
    """A row for smooth concepts, one for rough ones, one for recovery itself."""
    best = max(values["smooth"]["truncated"])
    recovery = Row(
        "SAEFNO finds known concepts",
        "five smooth Gabors in noise of the same power, ten learned concepts",
        text(values["smooth"], "truncated"),
        f"{text(values['smooth'], 'cnn')}; {text(values['smooth'], 'full')}",
        [Criterion("matched cosine at least 0.85 in the best of the seeds", best >= 0.85)],
        "Learning rates are those with the highest mean matched cosine, for every model alike. All start from parts of the"
        " fields; the 33 taps of the SAECNN hold 97 % or more of each concept's energy.",
    )
    return [
        recovery,
        *(compared(values["smooth"], "smooth", f"truncated{start}", f"full{start}") for start in ("", RANDOM)),
        *(compared(values["rough"], "rough", f"full{start}", f"truncated{start}") for start in ("", RANDOM)),
    ]


def compared(values: dict[str, list[float]], kind: str, better: str, worse: str) -> Row:
    """One kind of concepts: which number of modes should win, and by how much."""
    raw = mean(values[better]) - mean(values[worse])
    net = mean(above_chance(values, better)) - mean(above_chance(values, worse))
    low, high = WAVENUMBERS[kind]
    remark = (
        f"The difference is {raw:+.3f}, and {net:+.3f} after chance is subtracted. Chance is the matched cosine of models"
        " that were not trained: atoms of fewer modes are smoother, and more like any smooth concept."
    )
    if kind == "smooth":
        share = spread(values[f"{worse}, beyond"])
        remark += f" Of what kernels of 127 modes hold after training, {share} of the energy lies beyond 33 modes."
        if not better.endswith(RANDOM):
            remark += (
                " Parts of fields, from which they start, are nearly as smooth as the concepts: the start does what"
                " truncation does from a random one."
            )
    else:
        remark += " 33 modes end at 16 cycles per unit length, where these concepts begin: they cannot hold most of them."
    return Row(
        f"{NAMES[better].split(', ')[1]} find {kind} concepts better than {NAMES[worse].split(', ', 1)[1]}",
        f"five Gabors of {low:g} to {high:g} cycles per unit length, noise of the same power",
        text(values, better),
        f"{text(values, worse)}; {text(values, 'cnn')}",
        [Criterion(f"mean matched cosine higher by 0.15 or more, {kind} concepts", raw >= 0.15)],
        remark,
    )


def text(values: dict[str, list[float]], name: str) -> str:
    """A model's name, matched cosine and the same minus chance."""
    return f"{NAMES[name]}: {spread(values[name])}, minus chance {spread(above_chance(values, name))}"


def above_chance(values: dict[str, list[float]], name: str) -> list[float]:
    """Matched cosines minus those of untrained models."""
    return [a - b for a, b in zip(values[name], values[f"{name}, chance"], strict=True)]


def mean(values: list[float]) -> float:
    """Of a list."""
    return sum(values) / len(values)


def draw(values: Values, beds: dict[str, Bed], rates: dict[str, dict[str, float]]) -> Figure:
    """Matched cosines of all seeds with chance, and one concept of seed 0 as it is found."""
    figure, axes = subplots(2, 2, 4.2, 2.8)
    for (scores, atoms), (kind, bed) in zip(axes, beds.items(), strict=True):
        for place, (name, color) in enumerate(zip(COMPARED, PALETTE, strict=False)):
            found, chance = values[kind][name], mean(values[kind][f"{name}, chance"])
            scores.plot([place] * len(found), found, "o", color=color, markersize=5)
            scores.hlines(
                chance, place - 0.25, place + 0.25, color=GREY, linewidth=2, label="untrained" if not place else None
            )
            draw_atom(atoms, bed, name, rates[kind][name], color)
        scores.set_xticks(range(len(COMPARED)), [NAMES[name].replace(", ", "\n") for name in COMPARED], fontsize=6)
        scores.set(ylabel="matched cosine", ylim=(0, 1.03), xlim=(-0.5, len(COMPARED) - 0.5), title=f"{kind} concepts")
        true = bed.concepts.atoms(FINE)[SHOWN, 0]
        atoms.plot(points(), true / true.norm(), color="black", linewidth=2.5, alpha=0.35, label="known")
        atoms.set(xlabel="position", yticks=[], xlim=(0.25, 1.05), title="one concept, as known and as found")
        atoms.legend(frameon=False, fontsize=6, loc="upper right")
    axes[0][0].legend(frameon=False, fontsize=7, loc="lower right")
    return figure


def draw_atom(ax: Axes, bed: Bed, name: str, rate: float, color: str) -> None:
    """The learned atom that is assigned to one known concept, moved onto it."""
    sae = trained(bed, name, rate)
    matching = bed.match(sae)
    atom = fine_atoms(sae)[matching.learned[SHOWN], 0]
    atom = atom.roll(round(float(matching.shift[SHOWN, 0]) * FINE[0]))
    ax.plot(
        points(), atom / atom.norm(), color=color, linewidth=1, label=f"{NAMES[name]}: {float(matching.cosine[SHOWN]):.2f}"
    )


def points() -> torch.Tensor:
    """Of the fine grid."""
    return torch.arange(FINE[0]) / FINE[0]


if __name__ == "__main__":
    typer.run(main)
