"""Are learned concepts as local as the true ones, and what makes them so? One dictionary under several kinds of sparsity."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from statistics import fmean

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, over_seeds, spread, write
from matplotlib.figure import Figure
from representation import through_window
from synthetic_bed import FINE, POINTS, Bed, fine_atoms, fit, model
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import GREY, PALETTE, subplots
from neuralop_sae.metrics import energy_area, participation

CHANNELS = 4
RATES = (1e-2, 3e-2)
PENALTY = 0.15
MODES = "full"  # kernels are free: as many modes as the fields have
NAMES = {
    "none": "no sparsity",
    "rectify": "positive codes",
    "local": "one concept per point",
    "penalty": "positive codes, penalty",
}
RULES = {"none": "Identity", "rectify": "Rectify", "local": "LocalTopK", "penalty": "Rectify"}
LOCALITY = {"area": energy_area, "participation": participation}
MEASURES = ("kernel area", "kernel participation", "code area", "code participation")
SHOWN = 0  # the concept that is drawn
Values = dict[str, list[float]]


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Locality of kernels and codes, with matched cosine and FVE."""
    started = time.perf_counter()
    seeds = 1 if quick else seeds
    like = Bed("smooth", 0, *((100, 10, 20) if quick else (1000, 400, 200)), channels=CHANNELS, snr_db=10.0)
    rates = {name: tuned(like, name, seeds) for name in NAMES}
    values = over_seeds(lambda seed: measure(replace(like, seed=seed), rates), seeds)
    settings = {"seeds": seeds, "steps": like.steps, "fields": like.n_train, "rates": rates, "penalty": PENALTY}
    figure = draw(values, like, rates)
    write(__file__, output, rows=table(values), values=values, figure=figure, settings=settings, started=started)


@cache
def trained(bed: Bed, name: str, rate: float) -> ns.SAE:
    """A dictionary under one kind of sparsity."""
    rule = ns.LocalTopK(1) if name == "local" else RULES[name]
    sae = model(MODES, bed.seed, CHANNELS, rule)
    penalty = PENALTY if name == "penalty" else 0.0
    return fit(sae, bed.train, rate=rate, steps=bed.steps, seed=bed.seed, penalty=penalty)


def tuned(like: Bed, name: str, seeds: int) -> float:
    """The learning rate with the highest mean matched cosine."""
    beds = [replace(like, seed=seed) for seed in range(seeds)]
    found = {rate: fmean(bed.match(trained(bed, name, rate)).matched_cosine for bed in beds) for rate in RATES}
    print(name, {rate: round(cosine, 3) for rate, cosine in found.items()}, flush=True)
    return max(found, key=found.__getitem__)


@torch.no_grad()
def measure(bed: Bed, rates: dict[str, float]) -> dict[str, float]:
    """Locality of the known concepts and their codes, and of the learned ones that are assigned to them."""
    test = bed.test()
    found = {"true": (bed.concepts.atoms(FINE), bumps(test.codes(1 / POINTS)))}
    values = {}
    for name in NAMES:
        sae = trained(bed, name, rates[name])
        matching = bed.match(sae)
        found[name] = (fine_atoms(sae)[matching.learned], bumps(sae.encode(test.x).to_dense()[:, matching.learned]))
        fresh = [bed.match(model(MODES, 100 + draw, CHANNELS)).matched_cosine for draw in range(5)]
        values |= {f"{name}, cosine": matching.matched_cosine, f"{name}, above chance": matching.matched_cosine - fmean(fresh)}
        values[f"{name}, fve"] = ns.evaluate(sae, test.x, batch_size=50)["fve"]
    for name, (atoms, codes) in found.items():
        kernels, energy = atoms.square().sum(1), codes.square().flatten(0, 1)
        values |= {f"{name}, kernel {what}": float(of(kernels).mean()) for what, of in LOCALITY.items()}
        shares = energy.sum(1) / energy.sum()  # a code that is all but zero does not count
        values |= {f"{name}, code {what}": float(of(energy).nan_to_num() @ shares.double()) for what, of in LOCALITY.items()}
    return values


def bumps(codes: Tensor) -> Tensor:
    """Sizes of codes ``(n, q, 128)`` through the window, so that impulses have an area too."""
    return through_window(codes.abs())


def table(values: Values) -> list[Row]:
    """As local as the truth; not identifiable without."""

    def ratios(name: str, what: str) -> list[float]:
        return [a / b for a, b in zip(values[f"{name}, {what}"], values[f"true, {what}"], strict=True)]

    def local(name: str) -> str:
        parts = (f"{what} {spread(values[f'{name}, {what}'])}" for what in MEASURES)
        return f"{NAMES.get(name, 'true')}: {', '.join(parts)}"

    def found(name: str) -> str:
        cosine, net, fve = (spread(values[f"{name}, {what}"]) for what in ("cosine", "above chance", "fve"))
        return f"{NAMES[name]}: matched cosine {cosine}, above chance {net}, FVE {fve}"

    def near(what: str, factor: float) -> bool:
        return 1 / factor <= fmean(ratios("penalty", what)) <= factor

    as_local = [
        Criterion("penalty: kernel area within a factor of 1.25 of the true one, mean over seeds", near("kernel area", 1.25)),
        Criterion("penalty: code area within a factor of 1.5 of the true one, mean over seeds", near("code area", 1.5)),
        Criterion(
            "without sparsity and with positive codes alone: code area above twice the true one, every seed",
            min(ratios("none", "code area") + ratios("rectify", "code area")) > 2,
        ),
    ]
    above = {name: values[f"{name}, above chance"] for name in NAMES}
    held = min(a - b for a, b in zip(values["none, fve"], values["penalty, fve"], strict=True))
    identified = [
        Criterion("without sparsity: FVE not lower than with the penalty, every seed", held >= 0),
        Criterion("without sparsity: matched cosine at most 0.1 above chance, every seed", max(above["none"]) <= 0.1),
        Criterion("positive codes alone: matched cosine at most 0.1 above chance, every seed", max(above["rectify"]) <= 0.1),
        Criterion("with the penalty: matched cosine at least 0.3 above chance, every seed", min(above["penalty"]) >= 0.3),
        Criterion("one concept per point: at least 0.3 above chance, every seed", min(above["local"]) >= 0.3),
    ]
    return [
        Row(
            "Learned concepts are as local as the true ones",
            "least share of the box with 90 % of the energy, and participation; codes through a window of 0.03",
            local("penalty"),
            "; ".join(local(name) for name in ("true", "local", "rectify", "none")),
            as_local,
            "Of the learned concepts that are assigned to the five known ones; codes count by their energy.",
        ),
        Row(
            "Domain sparsity is what makes concepts identifiable",
            "SAEFNO of 127 modes, five Gabors of four channels at 10 dB, ten learned concepts",
            "; ".join(found(name) for name in ("penalty", "local")),
            "; ".join(found(name) for name in ("none", "rectify")),
            identified,
            "(d * g, z / g) reconstructs what (d, z) does for any invertible filter g: only what is asked of codes tells them"
            " apart, and that they are positive is a little. Each kind of sparsity has the learning rate with the highest"
            " matched cosine.",
        ),
    ]


def draw(values: Values, like: Bed, rates: dict[str, float]) -> Figure:
    """Kernel and code areas beside the truth, FVE against matched cosine, and one concept as it is found."""
    figure, axes = subplots(1, 3, 3.8, 2.9)
    areas, scores, atoms = axes[0]
    for place, what in enumerate(("kernel area", "code area")):
        for at, (name, color) in enumerate(zip(NAMES, PALETTE, strict=False)):
            runs = values[f"{name}, {what}"]
            label = None if place else NAMES[name]
            areas.plot([place + 0.15 * at - 0.22] * len(runs), runs, "o", color=color, markersize=4, label=label)
        truth, label = fmean(values[f"true, {what}"]), None if place else "true"
        areas.hlines(truth, place - 0.3, place + 0.3, color=GREY, linewidth=2, label=label, zorder=0)
    areas.set_xticks([0, 1], ["kernels", "codes"])
    areas.set(ylabel="share of the box with 90 % of the energy", ylim=(0, 1.03), xlim=(-0.5, 1.5))
    areas.legend(frameon=False, fontsize=6)
    chance = fmean(values["none, cosine"]) - fmean(values["none, above chance"])
    scores.axvline(chance, color=GREY, linewidth=2, label="untrained")
    true = like.concepts.atoms(FINE)[SHOWN]
    channel, position = int(true.square().sum(1).argmax()), torch.arange(FINE[0]) / FINE[0]
    atoms.plot(position, true[channel] / true.norm(), color="black", linewidth=2.5, alpha=0.35, label="true")
    for name, color in zip(NAMES, PALETTE, strict=False):
        scores.plot(values[f"{name}, cosine"], values[f"{name}, fve"], "o", color=color, markersize=4)
        sae = trained(like, name, rates[name])
        matching = like.match(sae)
        atom = fine_atoms(sae)[matching.learned[SHOWN], channel].roll(round(float(matching.shift[SHOWN, 0]) * FINE[0]))
        norm = fine_atoms(sae)[matching.learned[SHOWN]].norm()
        atoms.plot(position, atom / norm, color=color, linewidth=0.8)
    scores.set(xlabel="matched cosine", ylabel="FVE", xlim=(0, 1.03))
    scores.legend(frameon=False, fontsize=6)
    atoms.set(xlabel="position", ylabel="kernel / its norm", yticks=[], title="one channel of a concept")
    atoms.legend(frameon=False, fontsize=6)
    return figure


if __name__ == "__main__":
    typer.run(main)
