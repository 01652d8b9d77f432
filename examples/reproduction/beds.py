"""The operators whose activations scripts take apart: made once, kept in the folder of data, and the same for every script."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import neuralop_sae as ns
from neuralop_sae import checkpoint
from neuralop_sae.quickstart import Darcy, NavierStokes, Problem, ShallowWater
from neuralop_sae.quickstart.operators import data_processor, train_operator
from neuralop_sae.quickstart.problems import Splits

_FLOW = {"n_train": 12, "n_test": 4, "hidden_channels": 24}
_SMALL: dict[str, Any] = {"hidden_channels": 8, "n_layers": 2, "operator_epochs": 1}
_SMALL_FLOW = {**_SMALL, "n_train": 2, "n_test": 1, "generator": {"spin_up": 1.0}}


def darcy(quick: bool) -> Darcy:
    """An FNO on Darcy flow."""
    if quick:
        return Darcy(n_train=40, n_test=8, resolutions=(16, 32), sae_modes=(5, 5), **_SMALL)
    return Darcy(n_train=240, n_test=60, resolutions=(48, 96), hidden_channels=24)


def navier_stokes(quick: bool) -> NavierStokes:
    """An FNO on Kolmogorov flow."""
    return NavierStokes(sae_modes=(5, 5), **_SMALL_FLOW) if quick else NavierStokes(**_FLOW)


def shallow_water(quick: bool) -> ShallowWater:
    """An SFNO on shallow water."""
    return ShallowWater(sae_modes=(5, 10), **_SMALL_FLOW) if quick else ShallowWater(sae_modes=(9, 18), **_FLOW)


@dataclass(frozen=True)
class Bed:
    """An operator with its data, and the activations of one site: for training, for tuning and held out, these also at twice
    the resolution."""

    problem: Problem
    splits: Splits
    operator: nn.Module
    processor: Any
    activations: dict[str, Tensor]

    @classmethod
    def of(cls, problem: Problem, folder: Path) -> Bed:
        """Make data, train the operator, capture; data and operator are kept in `folder`."""
        torch.manual_seed(problem.seed)
        splits = problem.splits(folder, progress=False)
        operator, processor = _operator(problem, splits, folder)
        return cls(problem, splits, operator, processor, _activations(problem, splits, operator, processor))

    @property
    def held_out(self) -> dict[str, Tensor]:
        """Inputs and outputs that nothing was trained on."""
        return {"x": self.splits.coarse.x, "y": self.splits.coarse.y}

    @property
    def grid(self) -> str | None:
        """How the sphere is sampled, which models of single points are told; None on a box."""
        return "equiangular" if self.problem.operator_name == "SFNO" else None

    def every_other(self, part: str) -> Tensor:
        """Activations at every other point of the grid, which holds the modes of concepts still."""
        return self.activations[part][..., ::2, ::2].contiguous()

    @cached_property
    def randomised(self) -> Bed:
        """The same with an operator that was never trained."""
        control = ns.random_control(self.operator, seed=self.problem.seed)
        found = _activations(self.problem, self.splits, control, self.processor)
        return replace(self, operator=control, activations=found)


_open: dict[str, Bed] = {}


def opened(problem: Problem, folder: Path) -> Bed:
    """A bed that this process makes once."""
    key = f"{folder}: {problem.model_dump_json()}"
    if key not in _open:
        _open[key] = Bed.of(problem, folder)
    return _open[key]


def _operator(problem: Problem, splits: Splits, folder: Path) -> tuple[nn.Module, Any]:
    settings = hashlib.sha256(problem.model_dump_json().encode()).hexdigest()
    path = folder / f"operator_{problem.key}_{settings[:12]}.safetensors"
    if not path.exists():
        operator, processor = train_operator(problem, splits.train, progress=False)
        checkpoint.write_tensors(path, {name: p for name, p in operator.state_dict().items() if isinstance(p, Tensor)})
        return operator, processor
    operator = problem.operator(splits.train.x.shape[2:])
    operator.load_state_dict(checkpoint.read_tensors(path)[0])
    return operator.eval(), data_processor(splits.train, normalize=not problem.normalized)


def _activations(problem: Problem, splits: Splits, operator: nn.Module, processor: Any) -> dict[str, Tensor]:
    train, test, fine = (
        ns.capture(operator, problem.site, {"x": part.x, "y": part.y}, data_processor=processor)
        for part in (splits.train, splits.coarse, splits.fine)
    )
    n = len(train) - len(train) // 10
    return {"train": train[:n], "tune": train[n:], "test": test, "fine": fine}
