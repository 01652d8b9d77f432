"""A few concepts per sample let a large dictionary die. Remedies that are known from elsewhere, on two operators: a threshold
over the batch, the auxiliary loss, the start from data, nesting; and competition among all concepts, our default, beside."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, spread, write
from fidelity import Bed
from large import Values, measured
from large_darcy import QUICK as DARCY_QUICK
from large_darcy import SIZES as DARCY
from large_navier_stokes import QUICK as FLOW_QUICK
from large_navier_stokes import SIZES as FLOW
from matplotlib.figure import Figure

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots
from neuralop_sae.quickstart import Darcy, NavierStokes

FEW = ns.TopK(32)
REMEDIES: dict[str, tuple[ns.ConceptRule, dict[str, Any]]] = {
    "32 per sample": (FEW, {}),
    "32 per sample on average": (ns.BatchTopK(32), {}),
    "no auxiliary loss": (FEW, {"auxiliary_weight": 0.0}),
    "8 x auxiliary loss": (FEW, {"auxiliary_weight": 0.25}),
    "random start": (FEW, {"initialize": False}),
    "nested, 32 and 128 first": (FEW, {"prefixes": (32, 128)}),
    "all": (ns.All(), {}),
}
QUICK_REMEDIES = ("32 per sample", "nested, 32 and 128 first", "all")


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Dead fraction and FVE with each remedy."""
    started = time.perf_counter()
    p, steps, seeds = (160, 4, 1) if quick else (512, 160, seeds)
    names = QUICK_REMEDIES if quick else tuple(REMEDIES)
    problems = [Darcy(**(DARCY_QUICK if quick else DARCY)), NavierStokes(**(FLOW_QUICK if quick else FLOW))]
    values: dict[str, Values] = {}
    for problem in problems:
        bed = Bed.of(problem, output / "data")
        train, test = (bed.activations[part][..., ::2, ::2].contiguous() for part in ("train", "test"))
        values[problem.title] = {
            name: [measured(trained(train, name, p, steps, s), test) for s in range(seeds)] for name in names
        }
        print(
            problem.key, {name: round(rows[0]["dead_fraction"], 3) for name, rows in values[problem.title].items()}, flush=True
        )
    settings = {"n_concepts": p, "steps": steps, "seeds": seeds, "rate": 6e-3}
    rows = [row(title, found) for title, found in values.items()]
    write(__file__, output, rows=rows, values=values, figure=draw(values), settings=settings, started=started)


def trained(train: torch.Tensor, name: str, p: int, steps: int, seed: int) -> ns.SAE:
    """One dictionary; at each point four concepts, half soft, in all."""
    rule, training = REMEDIES[name]
    torch.manual_seed(seed)
    sae = ns.SAEFNO(train.shape[1], p, (9, 9), concept_rule=rule)
    n_epochs = max(1, round(steps * 8 / len(train)))
    config = ns.TrainingConfig(n_epochs=n_epochs, batch_size=8, learning_rate=6e-3, seed=seed, **training)
    ns.train(sae, train, config, progress=False)
    return sae


def row(title: str, found: Values) -> Row:
    """One bed."""

    def of(name: str, what: str) -> list[float]:
        return [each[what] for each in found[name]]

    def text(name: str) -> str:
        return f"{name}: dead {spread(of(name, 'dead_fraction'))}, FVE {spread(of(name, 'fve'))}"

    others = [name for name in found if name != "all"]
    criteria = [
        Criterion(
            "all: fewer dead than with any remedy, every pair of seeds",
            max(of("all", "dead_fraction")) < min(min(of(name, "dead_fraction")) for name in others),
        ),
        Criterion(
            "all: FVE higher than with any remedy, means over seeds",
            statistics.fmean(of("all", "fve")) > max(statistics.fmean(of(name, "fve")) for name in others),
        ),
    ]
    claim = f"{title}: competition of all concepts at each point does more against death than remedies for a few per sample"
    return Row(claim, "512 concepts, 4 per point, held out", text("all"), "; ".join(map(text, others)), criteria)


def draw(values: dict[str, Values]) -> Figure:
    """Dead fraction against FVE, a panel for each bed."""
    figure, (axes,) = subplots(1, len(values), 3.6, 3.2)
    for ax, (title, found) in zip(axes, values.items(), strict=True):
        for color, (name, rows) in zip(PALETTE, found.items(), strict=False):
            ax.plot([each["dead_fraction"] for each in rows], [each["fve"] for each in rows], "o", color=color, label=name)
        ax.set(title=title, xlabel="dead fraction", ylabel="FVE", xlim=(-0.05, 1.05))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    return figure


if __name__ == "__main__":
    typer.run(main)
