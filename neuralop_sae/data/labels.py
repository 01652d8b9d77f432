"""When samples were, and which trajectory they belong to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .extras import import_extra

__all__ = ["Labels"]

#: What xarray and CF conventions call the numbers into which dates are turned.
EPOCH = "microseconds since 1970-01-01"
#: In microseconds, the longest first.
_UNITS = {
    "days": 86_400_000_000,
    "hours": 3_600_000_000,
    "minutes": 60_000_000,
    "seconds": 1_000_000,
    "milliseconds": 1000,
    "microseconds": 1,
}


class Labels(NamedTuple):
    """Numbers of each sample.

    Parameters
    ----------
    time : Tensor or None
        ``(N,)`` float64, or int64 where dates were given, in the units of `time_units`.
    trajectory : Tensor or None
        ``(N,)`` int64.
    time_units : str or None
        ``"microseconds since 1970-01-01"`` for dates; for those of another calendar in the longest unit of which all are
        whole multiples, and so for times without a date, such as lead times.
    calendar : str or None
        Where it is not that of numpy, such as ``"noleap"``.
    """

    time: Tensor | None = None
    trajectory: Tensor | None = None
    time_units: str | None = None
    calendar: str | None = None

    @classmethod
    def of(cls, time: Any, trajectory: Any, n_samples: int | None) -> Labels:
        """Checked labels; ValueError if they are not one number, or date, for each of the samples (None: not known yet)."""
        units = calendar = None
        if time is not None:
            array = np.asarray(time)
            if np.issubdtype(array.dtype, np.datetime64):
                if np.isnat(array).any():
                    raise ValueError("time has a date for each sample; some are missing (NaT): leave those samples out")
                array, units = array.astype("datetime64[us]").astype(np.int64), EPOCH
            elif array.dtype == object and array.size and hasattr(array.flat[0], "calendar"):
                calendar = array.flat[0].calendar
                since = import_extra("cftime").date2num(array, EPOCH, calendar=calendar)
                array, units = _in_longest_unit(np.asarray(since, dtype=np.int64))
                units = f"{units} since 1970-01-01"
            elif np.issubdtype(array.dtype, np.timedelta64) and not np.isnat(array).any():
                array, units = _in_longest_unit(array.astype("timedelta64[us]").astype(np.int64))
            elif np.issubdtype(array.dtype, np.floating):
                array = array.astype(np.float64)
            elif not np.issubdtype(array.dtype, np.integer):
                raise ValueError(
                    f"time holds numbers, dates (datetime64, or cftime's) or lead times (timedelta64); got {array.dtype}: "
                    "give numbers, with their unit"
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
        return cls(time, trajectory, units, calendar)

    @property
    def dates(self) -> np.ndarray | None:
        """``(N,)`` datetime64 in microseconds, where dates were given."""
        return None if self.time is None or not self._are_dates else self.time.numpy().astype("datetime64[us]")

    def elapsed(self, *, since_first: bool = True) -> tuple[np.ndarray | None, str | None]:
        """Time as people count it: of dates ``(N,)`` float64 since the first, or since 1970-01-01, in the longest unit
        ("days", "hours", ...) of which all steps are whole multiples, and this unit; of numbers these, without one."""
        if self.time is None or not self._are_dates:
            return (None if self.time is None else self.time.numpy()), None
        first = self.time.numpy().min()
        since = self.time.numpy() - first
        step = np.gcd.reduce(since)
        unit = _longest_unit(step)
        return (since if since_first else since + first) / _UNITS[unit], unit

    @property
    def _are_dates(self) -> bool:
        return self.time_units == EPOCH and self.calendar is None

    def tensors(self) -> dict[str, Tensor]:
        """Those that are known, by name."""
        named = {"time": self.time, "trajectory": self.trajectory}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def _longest_unit(step: int) -> str:
    """The longest unit of which so many microseconds are a whole multiple."""
    return next(name for name, length in _UNITS.items() if step % length == 0)


def _in_longest_unit(microseconds: np.ndarray) -> tuple[np.ndarray, str]:
    unit = _longest_unit(np.gcd.reduce(microseconds, axis=None))
    return microseconds // _UNITS[unit], unit
