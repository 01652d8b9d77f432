"""Which concepts of a large dictionary stay alive, and are they the same from seed to seed? Rules at 512 concepts on held-out
samples of one operator: what large_darcy.py, large_navier_stokes.py and large_shallow_water.py share."""

from __future__ import annotations

import statistics
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from beds import opened
from common import Criterion, Row, on_all_cores, spread, write
from matplotlib.figure import Figure
from pairs import Dictionary, alike

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots
from neuralop_sae.quickstart import Problem

RULES: dict[str, dict[str, Any]] = {
    "all, half soft": {"concept_rule": ns.All(), "domain_rule": ns.SoftLocalTopK(4, softness=0.5)},
    "all, soft": {"concept_rule": ns.All(), "domain_rule": ns.SoftLocalTopK(4)},
    "all, hard": {"concept_rule": ns.All(), "domain_rule": ns.LocalTopK(4)},
    "32 per sample, soft": {"concept_rule": ns.TopK(32), "domain_rule": ns.SoftLocalTopK(4)},
    "pointwise": {},
}
Rows = list[dict[str, float]]  # for each seed or pair of seeds
Values = dict[str, Rows]  # by rule
DEFAULT, COLLAPSING = "all, half soft", "32 per sample, soft"
STABLE = (DEFAULT, "pointwise")
RATE, POINTWISE_RATES = 6e-3, (3e-3, 1e-2, 3e-2)  # 0.1 is worse on all three operators


def run(problem: Problem, script: str, *, seeds: int, quick: bool, output: Path) -> None:
    """Measure, draw, write."""
    started = time.perf_counter()
    p, steps, seeds = (40, 5, 2) if quick else (512, 160, seeds)
    folder = output / "data"
    opened(problem, folder)
    found = dict(zip(RULES, on_all_cores(measure, [(problem, folder, rule, p, steps, seeds) for rule in RULES]), strict=True))
    rates, use, pairs = ({rule: each[part] for rule, each in found.items()} for part in range(3))
    settings = {"problem": problem.model_dump(mode="json"), "n_concepts": p, "steps": steps, "seeds": seeds, "rates": rates}
    name = f"{problem.operator_name} on {problem.title}"
    rows, values = [living(name, use), stable(name, pairs)], {"use": use, "pairs": pairs}
    write(script, output, rows=rows, values=values, figure=draw(name, use), settings=settings, started=started)


def measure(problem: Problem, folder: Path, rule: str, p: int, steps: int, seeds: int) -> tuple[float, Rows, Rows]:
    """Learning rate of a rule, numbers of its dictionaries for each seed, and of pairs of them."""
    train, tune, test = map(opened(problem, folder).every_other, ("train", "tune", "test"))

    def quality(rate: float) -> float:
        return ns.evaluate(trained(problem, train, rule, p, steps, 0, rate), tune)["fve"]

    rate = max(POINTWISE_RATES, key=quality) if rule == "pointwise" else RATE
    saes = [trained(problem, train, rule, p, steps, seed, rate) for seed in range(seeds)]
    use = [measured(sae, test) for sae in saes]
    print(rule, [{name: round(value, 4) for name, value in row.items()} for row in use], flush=True)
    dictionaries = [Dictionary.of(sae, test) for sae in saes] if rule in STABLE else []
    return rate, use, [alike(a, b) for a, b in combinations(dictionaries, 2)]


def trained(problem: Problem, train: torch.Tensor, rule: str, p: int, steps: int, seed: int, rate: float) -> ns.SAE:
    """One dictionary, on every other point of the grid, which holds its modes still."""
    torch.manual_seed(seed)
    sphere, channels = problem.operator_name == "SFNO", train.shape[1]
    if rule == "pointwise":
        sae: ns.SAE = ns.SAEPointwise(channels, p, k=4, grid="equiangular" if sphere else None)
    else:
        kind, modes = (ns.SAESFNO, (8, 16)) if sphere else (ns.SAEFNO, (9, 9))
        sae = kind(channels, p, modes, **RULES[rule])
    n_epochs = max(1, round(steps * 8 / len(train)))
    config = ns.TrainingConfig(n_epochs=n_epochs, batch_size=8, learning_rate=rate, seed=seed)
    ns.train(sae, train, config, progress=False)
    return sae


def measured(sae: ns.SAE, test: torch.Tensor) -> dict[str, float]:
    """Its numbers on held-out samples."""
    found = ns.evaluate(sae, test)
    return {name: found[name] for name in ("fve", "dead_fraction", "l0", "l0_local", "usage_entropy", "c90")}


def living(name: str, use: Values) -> Row:
    """The row: the default keeps concepts alive, and what others do."""

    def of(rule: str, what: str) -> list[float]:
        return [row[what] for row in use[rule]]

    def text(rule: str) -> str:
        return f"{rule}: dead {spread(of(rule, 'dead_fraction'))}, FVE {spread(of(rule, 'fve'))}"

    criteria = [
        Criterion("dead fraction at most 5 %, every seed", max(of(DEFAULT, "dead_fraction")) <= 0.05),
        Criterion(
            "FVE not lower than with collapse (32 per sample, soft), mean over seeds",
            statistics.fmean(of(DEFAULT, "fve")) >= statistics.fmean(of(COLLAPSING, "fve")),
        ),
    ]
    carrying = "; ".join(f"{rule} {spread(of(rule, 'c90'), 0)}" for rule in RULES)
    return Row(
        f"{name}: the default rules keep a large dictionary alive",
        "512 concepts, 4 per point, held out",
        text(DEFAULT),
        "; ".join(text(rule) for rule in RULES if rule != DEFAULT),
        criteria,
        f"Concepts that carry 90 % of the energy: {carrying}. One learning rate for all spectral dictionaries, the better of "
        "three for the pointwise.",
    )


def stable(name: str, pairs: Values) -> Row:
    """The row on seeds: living concepts of two seeds, above chance."""

    def of(rule: str, what: str) -> list[float]:
        return [pair[what] for pair in pairs[rule]]

    def text(rule: str) -> str:
        return f"{spread(of(rule, 'excess'))} above chance (cosine {spread(of(rule, 'cosine'))})"

    criterion = Criterion(
        "matched cosine above chance, living concepts: higher than the pointwise dictionary's in each pair of seeds",
        all(a > b for a, b in zip(of(DEFAULT, "excess"), of("pointwise", "excess"), strict=True)),
    )
    share, codes = (" and ".join(f"{spread(of(rule, what))} ({rule})" for rule in STABLE) for what in ("share", "code"))
    return Row(
        f"{name}: a large dictionary of concepts as operators is more stable from seed to seed than a pointwise one",
        "512 concepts, 4 per point, pairs of seeds, held out",
        text(DEFAULT),
        text("pointwise"),
        [criterion],
        f"As a share of what chance leaves: {share}. Matched cosine of codes instead of atoms: {codes}.",
    )


def draw(name: str, use: Values) -> Figure:
    """Dead fraction against FVE."""
    figure, ((ax,),) = subplots(1, 1, 4.6, 3.2)
    for color, (rule, rows) in zip(PALETTE, use.items(), strict=False):
        ax.plot([row["dead_fraction"] for row in rows], [row["fve"] for row in rows], "o", color=color, label=rule)
    ax.set(title=f"512 concepts, {name}", xlabel="dead fraction", ylabel="FVE", xlim=(-0.05, 1.05))
    figure.legend(loc="outside right center", frameon=False, fontsize=7)
    return figure
