"""Does a learned lifting make a dictionary recover sooner? Vectors of known concepts, learning rates tuned alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from itertools import islice

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, spread, write
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import GREY, PALETTE, subplots
from neuralop_sae.analysis.matching import match_atoms
from neuralop_sae.training.losses import auxiliary_loss
from neuralop_sae.training.revival import DeadConcepts

CHANNELS, CONCEPTS, ON, LIFTED = 40, 60, 3, 80
BEDS = {"isotropic": 1.0, "ill-conditioned": 0.1}  # the smallest scale of a channel, the largest being 1
NAMES = {"plain": "no lifting", "learned": "learned lifting", "fixed": "fixed orthonormal lifting"}
RATES = (3e-3, 1e-2, 3e-2)
TARGET = 0.9
BATCH, EVERY = 256, 10

Runs = dict[str, dict[str, dict[float, list[list[float]]]]]
"""Matched cosine every 10 steps, by bed, kind and rate, for each seed."""


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Steps to a matched cosine of 0.9, at each learning rate."""
    started = time.perf_counter()
    steps = 40 if quick else 800
    seeds = 1 if quick else seeds
    runs: Runs = {}
    for bed in BEDS:
        for kind in NAMES:
            runs.setdefault(bed, {})[kind] = {rate: [curve(bed, kind, rate, s, steps) for s in range(seeds)] for rate in RATES}
            print(bed, kind, {rate: reached(each, steps) for rate, each in runs[bed][kind].items()}, flush=True)
    sizes = {"channels": CHANNELS, "n_concepts": CONCEPTS, "on": ON, "lifted": LIFTED, "batch": BATCH}
    settings = {**sizes, "steps": steps, "every": EVERY, "seeds": seeds, "rates": RATES}
    rows = [row(bed, runs[bed], steps) for bed in BEDS]
    write(__file__, output, rows=rows, values=runs, figure=draw(runs), settings=settings, started=started)


def concepts(bed: str, random: torch.Generator) -> Tensor:
    """Known unit vectors ``(CONCEPTS, CHANNELS)``, whose channels may be of very different scales."""
    scales = BEDS[bed] ** torch.linspace(0, 1, CHANNELS)
    return normalize(torch.randn(CONCEPTS, CHANNELS, generator=random) * scales, dim=1)


def batches(true: Tensor, random: torch.Generator) -> Iterator[Tensor]:
    """Fields of one point, ``(BATCH, CHANNELS, 1)``, always new: each the sum of 3 concepts with amplitudes in [0.5, 1.5]."""
    while True:
        on = torch.rand(BATCH, CONCEPTS, generator=random).topk(ON).indices
        codes = torch.zeros(BATCH, CONCEPTS).scatter(1, on, 0.5 + torch.rand(BATCH, ON, generator=random))
        yield (codes @ true)[..., None]


def model(kind: str) -> ns.SAE:
    """An untrained dictionary, in the channels as they are or lifted."""
    plain = ns.SAEPointwise(CHANNELS, CONCEPTS, k=ON, n_dim=1)
    if kind == "plain":
        return plain
    lifted = ns.Lifted(plain, channels=LIFTED)
    lifted.lifting.requires_grad_(kind == "learned")
    return lifted


def curve(bed: str, kind: str, rate: float, seed: int, steps: int) -> list[float]:
    """Matched cosine every 10 steps of Adam at a constant rate, with the auxiliary loss of training."""
    random = torch.Generator().manual_seed(1000 + seed)
    true = concepts(bed, random)
    torch.manual_seed(seed)
    sae = model(kind).train()
    optimizer = torch.optim.Adam([p for p in sae.parameters() if p.requires_grad], rate)
    dead = DeadConcepts(CONCEPTS, dead_after=10 * BATCH)
    found = [recovery(sae, true)]
    for step, x in enumerate(islice(batches(true, random), steps), 1):
        out = sae(x, dead=dead.known)
        error = x - out.reconstruction
        loss = error.square().mean() / x.var()
        if out.dead_reconstruction is not None:
            loss = loss + auxiliary_loss(error, out.dead_reconstruction, sae.basis) / 32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dead.update(out.codes)
        if step % EVERY == 0:
            dead.refresh()
            found.append(recovery(sae, true))
    return found


def recovery(sae: ns.SAE, true: Tensor) -> float:
    """Matched cosine with the known concepts."""
    return round(match_atoms(sae.atoms(range(CONCEPTS), (1,)), true[..., None], sae.basis).matched_cosine, 4)


def first(curve: list[float], steps: int) -> int:
    """The first step at which the target is met, or the last of all."""
    return next((EVERY * i for i, cosine in enumerate(curve) if cosine >= TARGET), steps)


def reached(curves: list[list[float]], steps: int) -> list[int]:
    """Steps to the target, for each seed."""
    return [first(each, steps) for each in curves]


def row(bed: str, runs: dict[str, dict[float, list[list[float]]]], steps: int) -> Row:
    """How much sooner, at equal rates and with the best rate of each."""
    seeds = {kind: {rate: reached(curves, steps) for rate, curves in runs[kind].items()} for kind in NAMES}
    needed = {kind: {rate: statistics.fmean(each) for rate, each in seeds[kind].items()} for kind in NAMES}
    faster = {rate: needed["plain"][rate] / needed["learned"][rate] for rate in RATES}
    tuned = min(needed["plain"].values()) / min(needed["learned"].values())
    at_equal = ", ".join(f"{ratio:.2f} at {rate:g}" for rate, ratio in faster.items())
    criteria = [
        Criterion(
            "at equal learning rate: at most half the steps to matched cosine 0.9, at each rate", min(faster.values()) >= 2
        ),
        Criterion("each at its best learning rate: 1.2 times sooner", tuned >= 1.2),
    ]

    def text(kind: str) -> str:
        found = (f"{spread(each, 0)} at rate {rate:g}" for rate, each in seeds[kind].items())
        return f"steps to 0.9: {', '.join(found)}"

    missed = ", ".join(
        f"{NAMES[kind]} at {rate:g} in {count} of {len(runs[kind][rate])}"
        for kind in NAMES
        for rate in RATES
        if (count := sum(max(each) < TARGET for each in runs[kind][rate]))
    )
    remark = (
        f"Sooner by a factor of {at_equal}; {tuned:.2f} when both are tuned. The lifting as it starts, never learned, as a "
        f"control: {text('fixed')}. Not reached in {steps} steps, and counted as {steps}: {missed or 'never'}."
    )
    measured = f"vectors of {CHANNELS} numbers, {ON} of {CONCEPTS} concepts on, lifted to {LIFTED}, Adam"
    claim = f"lifting speeds up recovery, {bed} concepts"
    return Row(claim, measured, text("learned"), text("plain"), criteria, remark)


def draw(runs: Runs) -> Figure:
    """Matched cosine against steps, mean and range over seeds, for each bed and rate."""
    figure, axes = subplots(len(BEDS), len(RATES), 3.0, 2.8)
    for line, bed in zip(axes, BEDS, strict=True):
        for ax, rate in zip(line, RATES, strict=True):
            ax.axhline(TARGET, color=GREY, linewidth=0.8)
            for kind, color in zip(NAMES, PALETTE, strict=False):
                seeds = torch.tensor(runs[bed][kind][rate])
                at = [EVERY * i for i in range(seeds.shape[1])]
                ax.plot(at, seeds.mean(0), color=color, label=NAMES[kind])
                ax.fill_between(at, seeds.amin(0), seeds.amax(0), color=color, alpha=0.2, linewidth=0)
            ax.set(ylim=(0.2, 1.02))
            ax.set_title(f"{bed}, rate {rate:g}", fontsize=9)
        line[0].set(ylabel="matched cosine")
    for ax in axes[-1]:
        ax.set(xlabel="steps")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


if __name__ == "__main__":
    typer.run(main)
