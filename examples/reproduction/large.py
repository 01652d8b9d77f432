"""Which concepts of a dictionary stay alive: rules compared on three operators at 512 concepts, on held-out samples."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, spread, write
from fidelity import Bed
from matplotlib.figure import Figure

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots
from neuralop_sae.quickstart import Darcy, NavierStokes, Problem, ShallowWater

RULES: dict[str, dict[str, Any]] = {
    "all, soft competition": {"concept_rule": ns.All(), "domain_rule": ns.SoftLocalTopK(4)},
    "all, hard competition": {"concept_rule": ns.All(), "domain_rule": ns.LocalTopK(4)},
    "32 per sample, soft": {"concept_rule": ns.TopK(32), "domain_rule": ns.SoftLocalTopK(4)},
    "32 per sample, hard": {"concept_rule": ns.TopK(32), "domain_rule": ns.LocalTopK(4)},
    "32 per sample, no competition": {"concept_rule": ns.TopK(32), "domain_rule": ns.Rectify()},
    "pointwise": {},
}
ALIVE, COLLAPSING = "all, hard competition", "32 per sample, soft"
RATE = {"pointwise": 3e-3}


def beds(quick: bool) -> list[Problem]:
    """Three operators, small."""
    sizes: dict[str, Any] = {"hidden_channels": 24}
    flow = sizes | {"n_train": 8, "n_test": 4}
    if quick:
        sizes, flow = ({"hidden_channels": 8, "n_layers": 2, "operator_epochs": 1, "n_test": n} for n in (8, 1))
        flow |= {"n_train": 2, "generator": {"spin_up": 1.0}}
    darcy = Darcy(n_train=40 if quick else 240, resolutions=(24, 48), **({"n_test": 60} | sizes))
    return [darcy, NavierStokes(**flow), ShallowWater(**flow)]


def coarse(x: torch.Tensor, problem: Problem) -> torch.Tensor:
    """Activations on every other point of a fine box, which holds the modes of the dictionary still; a step costs less."""
    return x if problem.operator_name == "SFNO" or x.shape[-1] < 48 else x[..., ::2, ::2].contiguous()


def dictionary(problem: Problem, channels: int, rule: str, p: int) -> ns.SAE:
    """An untrained dictionary under a rule."""
    sphere = problem.operator_name == "SFNO"
    if rule == "pointwise":
        return ns.SAEPointwise(channels, p, k=4, grid="equiangular" if sphere else None)
    kind, modes = (ns.SAESFNO, (12, 24)) if sphere else (ns.SAEFNO, (9, 9))
    return kind(channels, p, modes, **RULES[rule])


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Dead fraction and FVE of each rule on each bed."""
    started = time.perf_counter()
    p, steps, seeds = (40, 5, 1) if quick else (512, 160, seeds)
    values: dict[str, dict[str, list[dict[str, float]]]] = {rule: {} for rule in RULES}
    for problem in beds(quick):
        bed = Bed.of(problem, output / "data")
        train, test = (coarse(bed.activations[part], problem) for part in ("train", "test"))
        for rule in RULES:
            values[rule][problem.key] = [one(problem, train, test, rule, p, steps, seed) for seed in range(seeds)]
            print(problem.key, rule, values[rule][problem.key], flush=True)
    settings = {"n_concepts": p, "steps": steps, "seeds": seeds, "rates": RATE, "rate": 6e-3}
    write(__file__, output, rows=[table(values)], values=values, figure=draw(values), settings=settings, started=started)


def one(
    problem: Problem, train: torch.Tensor, test: torch.Tensor, rule: str, p: int, steps: int, seed: int
) -> dict[str, float]:
    """One dictionary, trained and measured."""
    torch.manual_seed(seed)
    sae = dictionary(problem, train.shape[1], rule, p)
    n_epochs = max(1, round(steps * 8 / len(train)))
    config = ns.TrainingConfig(n_epochs=n_epochs, batch_size=8, learning_rate=RATE.get(rule, 6e-3), seed=seed)
    ns.train(sae, train, config, progress=False)
    found = ns.evaluate(sae, test)
    return {name: found[name] for name in ("fve", "dead_fraction", "l0", "l0_local", "usage_entropy")}


def table(values: dict[str, dict[str, list[dict[str, float]]]]) -> Row:
    """The row: the rule that keeps concepts alive, against those that do not."""

    def of(rule: str, what: str) -> list[float]:
        return [run[what] for runs in values[rule].values() for run in runs]

    def text(rule: str) -> str:
        return f"{rule}: dead {spread(of(rule, 'dead_fraction'))}, FVE {spread(of(rule, 'fve'))}"

    means = {rule: {bed: statistics.fmean(run["fve"] for run in runs) for bed, runs in values[rule].items()} for rule in RULES}
    higher = all(means[ALIVE][bed] >= means[COLLAPSING][bed] for bed in means[ALIVE])
    criteria = [
        Criterion("dead fraction at most 5 % in every run", max(of(ALIVE, "dead_fraction")) <= 0.05),
        Criterion("FVE on every bed not lower than with collapse (32 per sample, soft), means over seeds", higher),
    ]
    return Row(
        "competition at each point keeps a dictionary alive",
        f"{len(values[ALIVE])} operators, held-out samples, 4 concepts per point",
        text(ALIVE),
        "; ".join(text(rule) for rule in RULES if rule != ALIVE),
        criteria,
        "One learning rate for all spectral dictionaries and one for the pointwise; neither was tuned for each rule.",
    )


def draw(values: dict[str, dict[str, list[dict[str, float]]]]) -> Figure:
    """Dead fraction against FVE, a panel for each bed."""
    keys = list(next(iter(values.values())))
    figure, axes = subplots(1, len(keys), 3.2, 2.8)
    for ax, key in zip(axes[0], keys, strict=True):
        for color, (rule, runs) in zip(PALETTE, values.items(), strict=False):
            ax.plot([r["dead_fraction"] for r in runs[key]], [r["fve"] for r in runs[key]], "o", color=color, label=rule)
        ax.set(title=key, xlabel="dead fraction", ylabel="FVE", xlim=(-0.05, 1.05))
    axes[0][0].legend(frameon=False, fontsize=6)
    return figure


if __name__ == "__main__":
    typer.run(main)
