"""Sparsity against fidelity on a real operator: spectral concepts, a pointwise dictionary, principal components, and the same
operator with random weights. What real_darcy.py, real_navier_stokes.py and real_shallow_water.py share."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import Criterion, Row, spread, write
from matplotlib.figure import Figure
from torch import Tensor, nn

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots
from neuralop_sae.quickstart import Problem
from neuralop_sae.quickstart.operators import train_operator
from neuralop_sae.quickstart.problems import Splits

SPARSITIES = (2, 4, 8)
COMPARED = 4  # concepts per point, at which learning rates are tuned and criteria are checked
RATES = dict.fromkeys(("concepts", "factorised", "pointwise", "wide"), (3e-3, 1e-2, 3e-2))
NAMES = {
    "concepts": "spectral concepts",
    "factorised": "factorised concepts",
    "pointwise": "pointwise",
    "wide": "pointwise, as many parameters as factorised",
    "pca": "principal components per point",
    "random": "spectral concepts, operator with random weights",
}


@dataclass(frozen=True)
class Bed:
    """An operator with its data, and the activations of one site: for training, for tuning and held out."""

    problem: Problem
    splits: Splits
    operator: nn.Module
    processor: Any
    activations: dict[str, Tensor]

    @classmethod
    def of(cls, problem: Problem, folder: Path) -> Bed:
        """Make data, train the operator, capture."""
        torch.manual_seed(problem.seed)
        splits = problem.splits(folder, progress=False)
        operator, processor = train_operator(problem, splits.train, progress=False)
        return cls(problem, splits, operator, processor, activations(problem, splits, operator, processor))

    @property
    def held_out(self) -> dict[str, Tensor]:
        """Inputs and outputs that nothing was trained on."""
        return {"x": self.splits.coarse.x, "y": self.splits.coarse.y}

    @property
    def grid(self) -> str | None:
        """How the sphere is sampled, which models of single points are told; None on a box."""
        return "equiangular" if self.problem.operator_name == "SFNO" else None

    def randomised(self) -> Bed:
        """The same with an operator that was never trained."""
        control = ns.random_control(self.operator, seed=self.problem.seed)
        found = activations(self.problem, self.splits, control, self.processor)
        return replace(self, operator=control, activations=found)


def activations(problem: Problem, splits: Splits, operator: nn.Module, processor: Any) -> dict[str, Tensor]:
    """Of the problem's site: to train on, to tune on, held out."""
    train, test = (
        ns.capture(operator, problem.site, {"x": part.x, "y": part.y}, data_processor=processor)
        for part in (splits.train, splits.coarse)
    )
    n = len(train) - len(train) // 10
    return {"train": train[:n], "tune": train[n:], "test": test}


def model(bed: Bed, kind: str, k: int, p: int) -> ns.SAE:
    """An untrained dictionary of p concepts, k expressed per point."""
    problem, channels = bed.problem, bed.activations["train"].shape[1]
    small = problem.model_copy(update={"concepts_per_point": k, "n_concepts": p, "hidden_channels": channels})
    if kind in ("concepts", "random"):
        return small.autoencoder()
    if kind == "factorised":
        like = small.autoencoder()
        return type(like)(**{**like.config(), "factorization": "tucker", "rank": 0.05})
    if kind == "wide":
        p = max(p, n_parameters(model(bed, "factorised", k, p)) // (2 * channels + 1))
    return ns.SAEPointwise(channels, p, k=k, grid=bed.grid)


def n_parameters(sae: nn.Module) -> int:
    """Real numbers in a model."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in sae.parameters())


def trained(bed: Bed, kind: str, k: int, p: int, rate: float, seed: int, steps: int) -> ns.SAE:
    """A dictionary, trained."""
    torch.manual_seed(seed)
    sae, x = model(bed, kind, k, p), bed.activations["train"]
    n_epochs = max(1, round(steps * 8 / len(x)))
    config = ns.TrainingConfig(n_epochs=n_epochs, batch_size=8, learning_rate=rate, seed=seed)
    ns.train(sae, x, config, progress=False)
    return sae


def components(bed: Bed, k: int) -> float:
    """FVE of the k leading principal components of the channels."""
    x = bed.activations["train"]
    pca = ns.PCA(x.shape[1], k, grid=bed.grid)
    pca.fit(x)
    return ns.evaluate(pca, bed.activations["test"])["fve"]


def run(problem: Problem, script: str, *, seeds: int, quick: bool, output: Path, steps: int = 200) -> None:
    """Measure, draw, write."""
    started = time.perf_counter()
    p, steps, ks = (16, 10, (2, 4)) if quick else (problem.n_concepts, steps, SPARSITIES)
    bed = Bed.of(problem, output / "data")
    rates = {kind: tuned(bed, kind, p, steps) for kind in RATES}
    values: dict[str, Any] = {kind: {} for kind in NAMES}
    for kind in RATES:
        for k in ks if kind in ("concepts", "pointwise") else (COMPARED,):
            values[kind][k] = [measure(bed, kind, k, p, rates[kind], seed, steps) for seed in range(seeds)]
            print(kind, k, [round(row["fve"], 4) for row in values[kind][k]], flush=True)
    values["pca"] = {k: [{"fve": components(bed, k)}] for k in ks}
    fresh = bed.randomised()
    values["random"] = {COMPARED: [measure(fresh, "random", COMPARED, p, rates["concepts"], s, steps) for s in range(seeds)]}
    settings = {"problem": problem.model_dump(mode="json"), "steps": steps, "seeds": seeds, "rates": rates, "n_concepts": p}
    rows = list(table(problem, values))
    write(script, output, rows=rows, values=values, figure=draw(problem, values), settings=settings, started=started)


def tuned(bed: Bed, kind: str, p: int, steps: int) -> float:
    """The learning rate with the highest FVE on fields that are kept for it."""

    def quality(rate: float) -> float:
        return ns.evaluate(trained(bed, kind, COMPARED, p, rate, 0, steps), bed.activations["tune"])["fve"]

    return max(RATES[kind], key=quality)


def measure(bed: Bed, kind: str, k: int, p: int, rate: float, seed: int, steps: int) -> dict[str, float]:
    """Numbers of one trained dictionary on held-out fields."""
    sae = trained(bed, kind, k, p, rate, seed, steps)
    found = ns.evaluate(sae, bed.activations["test"])
    row = {name: found[name] for name in ("fve", "l0_local", "dead_fraction")} | {"parameters": float(n_parameters(sae))}
    if kind != "random":
        faith = ns.faithfulness(bed.operator, bed.problem.site, sae, bed.held_out, data_processor=bed.processor)
        row |= {name: faith[name] for name in ("loss_recovered", "loss_clean", "loss_spliced")}
    return row


def table(problem: Problem, values: dict[str, Any]) -> list[Row]:
    """The rows: equal sparsity, and equal sparsity and parameters."""

    def of(kind: str, what: str) -> list[float]:
        return [row[what] for row in values[kind][COMPARED]]

    def gain(kind: str, baseline: str, what: str) -> float:
        return min(of(kind, what)) - max(of(baseline, what))

    def text(kind: str) -> str:
        count = f"{of(kind, 'parameters')[0]:,.0f} parameters"
        return f"FVE {spread(of(kind, 'fve'))}, loss recovered {spread(of(kind, 'loss_recovered'))}, {count}"

    name = f"{problem.operator_name} on {problem.title}"
    others = f"principal components {values['pca'][COMPARED][0]['fve']:.3f}; random operator {spread(of('random', 'fve'))}"
    rows = []
    for kind, baseline, what in (("concepts", "pointwise", ""), ("factorised", "wide", ", as many parameters")):
        criteria = [
            Criterion(
                "FVE at least 0.01 above the pointwise dictionary, for every pair of seeds",
                gain(kind, baseline, "fve") >= 0.01,
            ),
            Criterion("loss recovered higher, for every pair of seeds", gain(kind, baseline, "loss_recovered") > 0),
        ]
        claim = f"{name}: concepts as operators describe activations better than a pointwise dictionary{what}"
        measured = f"{problem.site}, {COMPARED} concepts per point, held out"
        rows.append(Row(claim, measured, text(kind), f"{text(baseline)}; {others}", criteria))
    return rows


def draw(problem: Problem, values: dict[str, Any]) -> Figure:
    """FVE and loss recovered against concepts per point."""
    figure, axes = subplots(1, 2, 4.0, 3.0)
    for ax, what in zip(axes[0], ("fve", "loss_recovered"), strict=True):
        for color, (kind, name) in zip(PALETTE, NAMES.items(), strict=False):
            points = [(k, [row[what] for row in rows]) for k, rows in values[kind].items() if what in rows[0]]
            if points:
                ks, runs = zip(*points, strict=True)
                means = [sum(run) / len(run) for run in runs]
                low, high = ([abs(f(run) - m) for run, m in zip(runs, means, strict=True)] for f in (min, max))
                ax.errorbar(ks, means, (low, high), label=name, color=color, marker="o", markersize=3.5, capsize=3)
        ax.set(xlabel="concepts per point", ylabel={"fve": "FVE", "loss_recovered": "loss recovered"}[what], xscale="log")
        ax.set_xticks(SPARSITIES, [str(k) for k in SPARSITIES], minor=False)
        ax.minorticks_off()
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.suptitle(f"{problem.operator_name} on {problem.title}, {problem.site}")
    return figure
