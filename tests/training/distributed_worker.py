"""What a rank of tests/training/test_distributed.py does: each case on one process and on the mesh. Prints what it found as
JSON, from the main rank."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

import neuralop_sae as ns
from neuralop_sae.layers import FourierBasis
from neuralop_sae.models.base import saes
from neuralop_sae.training.distributed import Mesh, start
from neuralop_sae.training.trainer import _Run, train

TOP = {"name": "TopK", "k": 4}
CASES: dict[str, dict[str, Any]] = {
    "TopK, Rectify": {"concept_rule": TOP, "domain_rule": "Rectify"},
    "TopK, no skip": {"concept_rule": TOP, "domain_rule": "Rectify", "skip": None},
    "TopK, SoftLocalTopK": {"concept_rule": TOP, "domain_rule": {"name": "SoftLocalTopK", "k": 2}},
    "TopK, LocalTopK, energy": {
        "concept_rule": TOP,
        "domain_rule": {"name": "LocalTopK", "k": 2},
        "selection": "energy",
    },
    "All, SoftLocalTopK": {"concept_rule": "All"},
    "JumpReLU, SoftThreshold": {
        "concept_rule": {"name": "JumpReLU", "threshold": 0.3, "bandwidth": 0.3},
        "domain_rule": "SoftThreshold",
    },
    "BatchTopK, TopFraction": {
        "concept_rule": {"name": "BatchTopK", "k": 4},
        "domain_rule": {"name": "TopFraction", "fraction": 0.3},
    },
    "trunks": {"concept_rule": TOP, "encoder": "fno_block", "decoder": "fno_block"},
    "Tucker": {"concept_rule": TOP, "model": "SAETFNO", "rank": [4, 6, 5, 3]},
    "CP": {"concept_rule": TOP, "model": "SAETFNO", "factorization": "cp", "rank": 7},
    "TT": {"concept_rule": TOP, "model": "SAETFNO", "factorization": "tt", "rank": [1, 4, 2, 2, 1]},
    "pointwise": {"model": "SAEPointwise", "k": 2},
}


def activations() -> torch.Tensor:
    """Smooth fields with noise, ``(32, 4, 12, 10)``."""
    generator = torch.Generator().manual_seed(0)
    basis = FourierBasis((5, 5))
    coefficients = torch.randn(32, 4, *basis.mode_shape, dtype=torch.cdouble, generator=generator)
    return basis.synthesis(coefficients, (12, 10)) + 0.1 * torch.randn(32, 4, 12, 10, dtype=torch.double, generator=generator)


def build(arguments: dict[str, Any], dtype: torch.dtype, n_concepts: int = 16) -> ns.SAE:
    arguments = dict(arguments)
    kind = saes.get(arguments.pop("model", "SAEFNO"))
    modes = {} if kind is ns.SAEPointwise else {"n_modes": (5, 5)}
    torch.manual_seed(0)
    return kind(in_channels=4, n_concepts=n_concepts, **modes, **arguments).to(dtype)


def config(**changes: Any) -> ns.TrainingConfig:
    # Few fields make a concept dead, so that the auxiliary loss takes part; ratios of means differ between data ranks.
    settings = {"n_epochs": 5, "batch_size": 8, "log_every": 3, "learning_rate": 1e-2, "dead_after": 16, "gate_weight": 1e-3}
    return ns.TrainingConfig(**settings | changes)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.to(torch.cdouble) - b.to(torch.cdouble)).abs().max())


def compare(arguments: dict[str, Any], mesh: Mesh, dtype: torch.dtype) -> dict[str, Any]:
    """20 steps on one process and on the mesh: the largest difference of a weight, and of a row of the history."""
    changes = {} if mesh.n_data == 1 else {"auxiliary_weight": 0.0}
    x = activations().to(dtype)
    alone, divided = build(arguments, dtype), build(arguments, dtype)
    expected = train(alone, x, config(**changes), progress=False)
    run = _Run(divided, x, config(**changes), None, mesh)
    run.prepare()
    found = run.go(progress=False)
    whole = mesh.whole_state(divided.state_dict(), run.axes)
    if whole is None:
        return {}
    state = alone.state_dict()
    assert whole.keys() == state.keys()
    worst = max(difference(whole[name], state[name]) for name in state)
    moved = max(difference(state[name], value) for name, value in build(arguments, dtype).state_dict().items())
    rows = max(abs(a[name] - b[name]) for a, b in zip(expected.rows, found.rows, strict=True) for name in a)
    n_dead = sum(row["dead_fraction"] > 0 for row in found.rows)
    return {"worst": worst, "moved": moved, "history": rows, "rows_with_dead": n_dead}


def traffic(mesh: Mesh, n_concepts: int, grid: int, skip: str | None) -> int:
    """Bytes per step."""
    sae = build({"concept_rule": TOP, "domain_rule": "Rectify", "skip": skip}, torch.float32, n_concepts)
    run = _Run(sae, torch.randn(8, 4, grid, grid), config(), None, mesh)
    run.prepare()
    sae.train()
    mesh.traffic.clear()
    run._one_step(run.activations[mesh.share(torch.arange(8))])
    return sum(mesh.traffic.values())


def main() -> None:
    torch.set_num_threads(1)
    with start() as first:
        assert isinstance(first, Mesh)
        world = first.n_data
        results: dict[str, Any] = {}
        for n_concept in (1, 2):
            mesh = Mesh(n_concept, first.device)
            for name, arguments in CASES.items():
                if n_concept > 1 and name == "pointwise":
                    continue
                for dtype in (torch.float64, torch.float32) if name in ("TopK, Rectify", "Tucker") else (torch.float64,):
                    key = f"{name} | {world // n_concept} x {n_concept} | {str(dtype).removeprefix('torch.')}"
                    results[key] = compare(arguments, mesh, dtype)
        shards = Mesh(2, first.device)
        if world == 2:
            results["traffic"] = {
                "reference": traffic(shards, 16, 12, None),
                "more concepts": traffic(shards, 64, 12, None),
                "larger grid": traffic(shards, 16, 24, None),
                "skip": traffic(shards, 16, 12, "linear"),
                "skip, more concepts": traffic(shards, 64, 12, "linear"),
            }
        if first.is_main:
            print(json.dumps(results))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
