"""When samples were, and which trajectory they belong to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Labels"]

#: What xarray and CF conventions call the numbers into which dates are turned.
EPOCH = "microseconds since 1970-01-01"


class Labels(NamedTuple):
    """Numbers of each sample.

    Parameters
    ----------
    time : Tensor or None
        ``(N,)`` float64, or int64 where dates were given, in the units of `time_units`.
    trajectory : Tensor or None
        ``(N,)`` int64.
    time_units : str or None
        ``"microseconds since 1970-01-01"`` for dates.
    """

    time: Tensor | None = None
    trajectory: Tensor | None = None
    time_units: str | None = None

    @classmethod
    def of(cls, time: Any, trajectory: Any, n_samples: int | None) -> Labels:
        """Checked labels; ValueError if they are not one number, or date, for each of the samples (None: not known yet)."""
        units = None
        if time is not None:
            array = np.asarray(time)
            if np.issubdtype(array.dtype, np.datetime64):
                array, units = array.astype("datetime64[us]").astype(np.int64), EPOCH
            elif np.issubdtype(array.dtype, np.floating):
                array = array.astype(np.float64)
            elif not np.issubdtype(array.dtype, np.integer):
                raise ValueError(
                    f"time holds numbers or dates of numpy (datetime64); got {array.dtype}: for another calendar or for lead "
                    "times give numbers, with their unit"
                )
            time = torch.as_tensor(np.ascontiguousarray(array))
        if trajectory is not None:
            trajectory = torch.as_tensor(trajectory)
            if trajectory.is_floating_point() or trajectory.dtype == torch.bool:
                raise ValueError(f"trajectory holds whole numbers, one per sample; got {trajectory.dtype}")
            trajectory = trajectory.to(torch.int64)
        for name, labels in (("time", time), ("trajectory", trajectory)):
            if labels is not None and (labels.ndim != 1 or n_samples not in (None, len(labels))):
                many = "" if n_samples is None else f"; there are {n_samples} samples"
                raise ValueError(f"{name} is one number per sample, in their order: got shape {tuple(labels.shape)}{many}")
        return cls(time, trajectory, units)

    def tensors(self) -> dict[str, Tensor]:
        """Those that are known, by name."""
        named = {"time": self.time, "trajectory": self.trajectory}
        return {name: tensor for name, tensor in named.items() if tensor is not None}
