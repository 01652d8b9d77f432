"""Which sparsity rules, and which remedies against collapse, work on the activations of a real operator?

Trains the quickstart's FNO on Darcy flow, then one autoencoder per row on its third block, all with the same number of
steps, and measures on held-out samples. The pointwise SAE gets the best of several learning rates; ours has the quickstart's.
Prints a table and writes it with all numbers as JSON.

    python examples/benchmarks/sparsity_rules.py --output rules.json
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import neuralop_sae as ns
from neuralop_sae.quickstart import Darcy
from neuralop_sae.quickstart.operators import train_operator

SITE = "fno_blocks.2"
POINTWISE_RATES = (3e-2, 6e-2, 1e-1)


def rows(p: int, k: int) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name of a row -> arguments of the model that differ from the default, and of its training."""
    half = p // 2
    return {
        f"All + SoftLocalTopK({k})": ({}, {}),
        f"All + SoftLocalTopK({k}, softness=0.5)": ({"domain_rule": ns.SoftLocalTopK(k, softness=0.5)}, {}),
        f"All + LocalTopK({k})": ({"domain_rule": ns.LocalTopK(k)}, {}),
        f"TopK({half}) + SoftLocalTopK({k})": ({"concept_rule": ns.TopK(half)}, {}),
        f"BatchTopK({half}) + SoftLocalTopK({k})": ({"concept_rule": ns.BatchTopK(half)}, {}),
        f"TopK({half}), no auxiliary loss": ({"concept_rule": ns.TopK(half)}, {"auxiliary_weight": 0.0}),
        f"TopK({half}), 8 x auxiliary loss": ({"concept_rule": ns.TopK(half)}, {"auxiliary_weight": 0.25}),
        f"TopK({half}), random start": ({"concept_rule": ns.TopK(half)}, {"initialize": False}),
        f"TopK({k}) + Rectify": ({"concept_rule": ns.TopK(k), "domain_rule": ns.Rectify()}, {}),
        "first row, random start": ({}, {"initialize": False}),
        "first row, no pointwise part": ({"skip": None}, {}),
        f"first row, codes on a fixed {48} x {48} grid": ({"code_grid": (48, 48)}, {}),
    }


def main(
    output: Annotated[Path, typer.Option(help="JSON file for all numbers.")] = Path("sparsity_rules.json"),
    n_concepts: int = 64,
    concepts_per_point: int = 4,
    seed: int = 0,
) -> None:
    """Train one autoencoder per row and print the table."""
    problem = Darcy(seed=seed, n_concepts=n_concepts)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as cache:
        data = problem.splits(Path(cache), True)
    operator, processor = train_operator(problem, data.train)
    splits = {"train": data.train, "coarse": data.coarse, "fine": data.fine}
    acts = {
        name: ns.capture(operator, SITE, {"x": split.x, "y": split.y}, data_processor=processor)
        for name, split in splits.items()
    }
    target = {"x": data.coarse.x, "y": data.coarse.y}

    def measure(sae: ns.SAE, **training: Any) -> dict[str, float]:
        settings = {"n_epochs": problem.sae_epochs, "learning_rate": 6e-3, "seed": seed, **training}
        started = time.perf_counter()
        history = ns.train(sae, acts["train"], ns.TrainingConfig(**settings), progress=False)
        seconds = time.perf_counter() - started
        faith = ns.faithfulness(operator, SITE, sae, target, data_processor=processor)
        return {
            **ns.evaluate(sae, acts["coarse"]),
            **ns.code_consistency(sae, acts["coarse"], acts["fine"]),
            "loss_recovered": faith["loss_recovered"],
            "parameters": sum(parameter.numel() for parameter in sae.parameters()),
            "seconds_per_step": seconds / history.rows[-1]["step"],
            **{name: value for name, value in training.items() if name == "learning_rate"},
        }

    results: dict[str, dict[str, float]] = {}
    print("| sparsity | FVE | loss recovered | l0 | l0_local | dead | code consistency |\n|---|---|---|---|---|---|---|")
    for name, (arguments, training) in rows(n_concepts, concepts_per_point).items():
        torch.manual_seed(seed)
        rule = {"domain_rule": ns.SoftLocalTopK(concepts_per_point), **arguments}
        results[name] = measure(ns.SAEFNO(problem.hidden_channels, n_concepts, (9, 9), **rule), **training)
        show(name, results[name])
    trials = []
    for rate in POINTWISE_RATES:
        torch.manual_seed(seed)
        pointwise = ns.SAEPointwise(problem.hidden_channels, n_concepts, k=concepts_per_point)
        trials.append(measure(pointwise, learning_rate=rate))
    name = f"pointwise SAE, k={concepts_per_point}, best of {len(trials)} rates"
    results[name] = max(trials, key=lambda trial: trial["fve"])
    show(name, results[name])
    output.write_text(json.dumps({"seed": seed, "results": results, "pointwise_trials": trials}, indent=2))


def show(name: str, result: dict[str, float]) -> None:
    """Print a row."""
    columns = ["fve", "loss_recovered", "l0", "l0_local", "dead_fraction", "code_consistency"]
    digits = [4, 4, 1, 2, 2, 4]
    cells = [f"{result[column]:.{n}f}" for column, n in zip(columns, digits, strict=True)]
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
