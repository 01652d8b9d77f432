"""What a training run reports."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from .. import notebook
from ..models.base import SAEOutput
from .distributed import Single


@dataclass
class TrainingHistory:
    """What happened: one row per ``log_every`` steps.

    Parameters
    ----------
    rows : list of dict
        step, epoch, loss, fve, l0, l0_local, dead_fraction, learning_rate. `loss` is what the run minimises, per field,
        without the auxiliary loss and gates: the unexplained variance by default, and then ``1 - fve``, unless it is a mean
        over prefixes of the dictionary. `fve`, the share of the training batches' variance that is explained, by
        quadrature, means the same whatever the loss.
    seconds : float
        Time spent in steps.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def __getitem__(self, name: str) -> list[float]:
        """One column."""
        return [row[name] for row in self.rows]

    def to_frame(self) -> pd.DataFrame:
        """A row for each that was logged, by step."""
        return pd.DataFrame(self.rows).set_index("step") if self.rows else pd.DataFrame()

    def _repr_html_(self) -> str:
        if not self.rows:
            return notebook.facts("Training history", {"rows": 0})
        drawn = "".join(notebook.curve(name, self["step"], self[name]) for name in ("loss", "fve"))
        return notebook.facts("Training history: the last row", {**self.rows[-1], "seconds": self.seconds}) + drawn


class Meter:
    """Means over the steps since the last row, kept on the device: no synchronisation per step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n = 0

    def update(self, loss: Tensor, unexplained: Tensor, out: SAEOutput) -> None:
        """Take note of a step: its loss, its unexplained variance and what the model gave."""
        codes = out.codes.detach()
        values = {"loss": loss, "unexplained": unexplained, "l0": codes.l0(), "l0_local": codes.l0_local()}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._n += 1

    def means(self, parallel: Single) -> dict[str, float]:
        """Over all ranks: shards add up their concepts, data ranks average."""
        sums = {name: value / self._n for name, value in self._sums.items()}
        for name in ("l0", "l0_local"):
            sums[name] = parallel.sum_of_shards(sums[name])
        row = {name: float(parallel.mean_of_data(value)) for name, value in sums.items()}
        return {"loss": row["loss"], "fve": 1.0 - row["unexplained"], "l0": row["l0"], "l0_local": row["l0_local"]}
