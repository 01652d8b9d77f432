"""What a rank of tests/training/test_distributed.py does: each case on one process and on the mesh. Prints what it found as
JSON, from the main rank.

Arguments: names of cases, as in "Tucker | 1 x 2 | float64" (data ranks, shards, dtype), and "traffic".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from neuralop import H1Loss

import neuralop_sae as ns
from neuralop_sae.layers import FourierBasis
from neuralop_sae.models.base import saes
from neuralop_sae.training.distributed import Mesh, State, start
from neuralop_sae.training.run import Run
from neuralop_sae.training.together import begin, go

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
        "domain_rule": {"name": "SoftThreshold", "threshold": 0.05},
    },
    "BatchTopK, TopFraction": {
        "concept_rule": {"name": "BatchTopK", "k": 4},
        "domain_rule": {"name": "TopFraction", "fraction": 0.3},
    },
    "H1Loss": {"concept_rule": TOP},
    "trunks": {"concept_rule": TOP, "encoder": "fno_block", "decoder": "fno_block"},
    "Tucker": {"concept_rule": TOP, "model": "SAETFNO", "rank": [4, 6, 5, 3]},
    "CP": {"concept_rule": TOP, "model": "SAETFNO", "factorization": "cp", "rank": 7},
    "TT": {"concept_rule": TOP, "model": "SAETFNO", "factorization": "tt", "rank": [1, 4, 2, 2, 1]},
    "prefixes": {"concept_rule": TOP, "domain_rule": {"name": "SoftLocalTopK", "k": 2}},
    "prefixes, trunks": {"concept_rule": TOP, "decoder": "fno_block"},
    "prefixes, Tucker": {"concept_rule": TOP, "model": "SAETFNO", "rank": [4, 6, 5, 3]},
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


@dataclass(frozen=True)
class Case:
    """One of CASES on a mesh; `key` is its name in arguments and results."""

    name: str
    n_data: int
    n_concept: int
    dtype: torch.dtype

    @property
    def key(self) -> str:
        return f"{self.name} | {self.n_data} x {self.n_concept} | {str(self.dtype).removeprefix('torch.')}"

    def run(self, mesh: Mesh | None) -> Run:
        """Made ready for its 20 steps."""
        auxiliary_weight = ns.TrainingConfig().auxiliary_weight if self.n_data == 1 else 0.0
        sae = build(CASES[self.name], self.dtype)
        loss = H1Loss(d=2) if self.name == "H1Loss" else None
        prefixes = (3, 8, 12) if self.name.startswith("prefixes") else ()  # of 16: in the first shard, all of it, and more
        how = config(auxiliary_weight=auxiliary_weight, prefixes=prefixes)
        run = Run(sae, activations().to(self.dtype), how, None, mesh, loss)
        begin([[run]])
        return run


@dataclass(frozen=True)
class Expected:
    """What one process learns."""

    before: State
    after: State
    history: ns.TrainingHistory


def on_one_process(case: Case) -> Expected:
    run = case.run(None)
    before = {name: tensor.clone() for name, tensor in run.sae.state_dict().items()}
    go([[run]], progress=False)
    return Expected(before, dict(run.sae.state_dict()), run.history)


def shared_out(cases: list[Case]) -> dict[str, Expected]:
    """What one process learns of each case; each rank is that one process for some of them."""
    mine = {case.key: on_one_process(case) for case in cases[dist.get_rank() :: dist.get_world_size()]}
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, mine)
    return {key: expected for each in everybody for key, expected in each.items()}


def compare(case: Case, mesh: Mesh, expected: Expected) -> dict[str, Any]:
    """The largest difference between the mesh and one process, of a weight and of a row of the history."""
    run = case.run(mesh)
    go([[run]], progress=False)
    found = run.history
    whole = mesh.whole_state(run.sae.state_dict(), run.axes)
    if whole is None:
        return {}
    before, after = expected.before, expected.after
    assert whole.keys() == after.keys()
    rows = zip(expected.history.rows, found.rows, strict=True)
    return {
        "worst": max(difference(whole[name], after[name]) for name in after),
        "moved": min(difference(before[name], after[name]) for name, _ in run.sae.named_parameters()),
        "history": max(abs(a[name] - b[name]) for a, b in rows for name in a),
        "rows_with_dead": sum(row["dead_fraction"] > 0 for row in found.rows),
    }


def traffic(
    mesh: Mesh, *, n_concepts: int = 16, grid: int = 12, skip: str | None = None, k: int = 4, dead: bool = False
) -> dict[str, int]:
    """Bytes of one step, as the mesh counts them, and what torch was asked to send ("really")."""
    rule = {"name": "TopK", "k": k}
    sae = build({"concept_rule": rule, "domain_rule": "Rectify", "skip": skip}, torch.float32, n_concepts)
    generator = torch.Generator().manual_seed(0)
    run = Run(sae, torch.randn(8, 4, grid, grid, generator=generator), config(), None, mesh)
    begin([[run]])
    if dead:
        run.dead.fields_since_on += 10_000
        run.dead.refresh(True)
    sae.train()
    mesh.traffic.clear()
    with counted() as really:
        run.one_step(run.activations[mesh.share(torch.arange(8))])
    return dict(mesh.traffic) | {"really": sum(really)}


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes of each call of a collective of torch; those that the package does not use are refused."""
    sizes: list[int] = []
    used = {"all_reduce": 0, "all_gather": 1}
    others = ("broadcast", "gather", "scatter", "reduce", "all_to_all", "reduce_scatter", "all_gather_into_tensor", "send")

    def counting(function: Callable[..., Any], position: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            sizes.append(args[position].numel() * args[position].element_size())
            return function(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name, position in used.items():
            stack.enter_context(patch.object(dist, name, counting(getattr(dist, name), position)))
        for name in others:
            stack.enter_context(patch.object(dist, name, side_effect=AssertionError(f"{name} is not counted")))
        yield sizes


def main() -> None:
    torch.set_num_threads(1)
    with start() as first:
        assert isinstance(first, Mesh)
        world = first.n_data
        dtypes = (torch.float64, torch.float32)
        cases = [Case(name, world // n, n, dtype) for n in (1, 2) for name in CASES for dtype in dtypes]
        cases = [case for case in cases if case.key in sys.argv[1:]]
        expected = shared_out(cases)
        meshes = {n: Mesh(n, first.device) for n in (1, 2)}
        results: dict[str, Any] = {case.key: compare(case, meshes[case.n_concept], expected[case.key]) for case in cases}
        if "traffic" in sys.argv[1:]:
            copies, shards = meshes[1], meshes[2]
            results["traffic"] = {
                "no skip": traffic(shards),
                "no skip, more concepts": traffic(shards, n_concepts=64),
                "no skip, larger grid": traffic(shards, grid=24),
                "no skip, larger k": traffic(shards, n_concepts=64, k=8),
                "no skip, dead": traffic(shards, n_concepts=64, dead=True),
                "skip": traffic(shards, skip="linear"),
                "skip, more concepts": traffic(shards, n_concepts=64, skip="linear"),
                "skip, larger grid": traffic(shards, grid=24, skip="linear"),
                "data": traffic(copies, skip="linear"),
                "data, more concepts": traffic(copies, n_concepts=64, skip="linear"),
            }
        if first.is_main:
            print(json.dumps(results))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
