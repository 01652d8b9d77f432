"""Activations that are read or computed when they are asked for: what stores and streams of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..layers.basis import SpectralBasis
from .labels import Labels
from .place import Place

__all__ = ["IndexedActivations"]


class IndexedActivations(ABC):
    """Fields ``(N, channels, *grid)`` that are indexed as a tensor is, along the first axis: by a number, a slice, a list, a
    tensor of indices or of booleans.

    Parameters
    ----------
    shape : sequence of int
        ``(N, channels, *grid)``.
    time : Tensor, optional
        ``(N,)``: when each sample was.
    trajectory : Tensor, optional
        ``(N,)`` int64: which trajectory each sample belongs to.
    time_units, calendar : str, optional
        Of `time`.

    Attributes
    ----------
    rows : Tensor
        Which of the samples these are, int64; all of them at first, a part after `train_test`.
    time_units : str or None
        Of `time`, where they are known.
    calendar : str or None
        Of `time`, where it counts from a date in another calendar than numpy's.
    """

    def __init__(
        self,
        shape: Sequence[int],
        time: Tensor | None = None,
        trajectory: Tensor | None = None,
        time_units: str | None = None,
        calendar: str | None = None,
    ) -> None:
        self.rows = torch.arange(shape[0])
        self._shape = tuple(shape[1:])
        self._time, self._trajectory, self.time_units, self.calendar = time, trajectory, time_units, calendar
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="activations")
        self._ahead: tuple[Tensor, Future[Tensor]] | None = None

    @abstractmethod
    def read(self, rows: Tensor) -> Tensor:
        """The samples `rows` ``(B,)`` of the whole: ``(B, channels, *grid)``, on the CPU."""

    @property
    def place(self) -> Place:
        """Where the activations are, as far as that is known."""
        return Place()

    @property
    def basis(self) -> SpectralBasis | None:
        """The kind of basis that the operator works in; None if that is not known."""
        return self.place.basis

    @property
    def lengths(self) -> tuple[float, ...] | None:
        """Lengths of the periodic box; None if they are not known, and on the sphere."""
        return self.place.lengths

    @property
    def coordinates(self) -> dict[str, np.ndarray]:
        """Coordinates of the axes of the grid where they are known, such as ``lat`` and ``lon``."""
        return self.place.coordinates(self._shape[1:])

    @property
    def shape(self) -> torch.Size:
        """``(N, channels, *grid)``."""
        return torch.Size([len(self.rows), *self._shape])

    @property
    def time(self) -> Tensor | None:
        """``(N,)``: when each sample was; None if that is not known."""
        return None if self._time is None else self._time[self.rows]

    @property
    def dates(self) -> np.ndarray | None:
        """``(N,)`` datetime64: :attr:`time` where dates were given, else None."""
        return Labels(self.time, None, self.time_units, self.calendar).dates

    @property
    def trajectory(self) -> Tensor | None:
        """``(N,)``: which trajectory each sample belongs to; None if that is not known."""
        return None if self._trajectory is None else self._trajectory[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{tuple(self.shape)}"

    def __getitem__(self, index: Any) -> Tensor:
        rows = self.rows[index]
        ahead, self._ahead = self._ahead, None
        if ahead is not None and torch.equal(ahead[0], rows):
            return ahead[1].result()
        if ahead is not None:
            ahead[1].cancel()
        return self.read(rows) if rows.ndim else self.read(rows[None])[0]

    def prefetch(self, index: Tensor, device: torch.device | str = "cpu") -> None:
        """Begin to read the samples `index` ``(B,)`` in another thread, and to move them to a device: the next
        ``self[index]`` takes them from there."""
        rows = self.rows[index]
        self._ahead = (rows, self._pool.submit(self._read_to, rows, torch.device(device)))

    def _read_to(self, rows: Tensor, device: torch.device) -> Tensor:
        fields = self.read(rows)
        if device.type == "cuda":  # the copy is queued behind the step that runs: whoever asks for the fields is behind it too
            return fields.pin_memory().to(device, non_blocking=True)
        return fields.to(device)

    def split(self, batch_size: int) -> Iterator[Tensor]:
        """Batches in order, as those of ``Tensor.split``, each read while the one before is used."""
        batches = torch.arange(len(self)).split(batch_size)
        for index, following in zip(batches, [*batches[1:], None], strict=True):
            fields = self[index]
            if following is not None:
                self.prefetch(following)
            yield fields

    def train_test(self, test: float | Sequence[int] = 0.2, *, seed: int = 0) -> tuple[Self, Self]:
        """Two parts that share no trajectory; where trajectories are not known, every sample is one.

        Parameters
        ----------
        test : float or sequence of int
            Share of the trajectories that the second part gets, drawn at random, at least one; or which ones.
        seed : int
            Of the draw.

        Raises
        ------
        ValueError
            If one of the two would be empty, or a trajectory is unknown.
        """
        of_sample = self.rows if self.trajectory is None else self.trajectory
        known = of_sample.unique()
        if isinstance(test, (int, float)):
            order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
            chosen = known[order[: max(test > 0, round(test * len(known)))]]
        else:
            chosen = torch.as_tensor(list(test), dtype=torch.int64)
            unknown = chosen[~torch.isin(chosen, known)].tolist()
            if unknown:
                raise ValueError(f"trajectories {unknown} are not among the {len(known)} here: {_few(known)}")
        second = torch.isin(of_sample, chosen)
        if second.all() or not second.any():
            raise ValueError(
                f"test={test!r} of {len(known)} trajectories leaves one part empty: give a share between 0 and 1 of at "
                "least 2 trajectories, or name some of them"
            )
        return self._part(~second), self._part(second)

    def _part(self, which: Tensor) -> Self:
        part = copy(self)
        part.rows, part._ahead = self.rows[which], None
        return part


def _few(numbers: Tensor) -> str:
    shown = ", ".join(map(str, numbers[:8].tolist()))
    return shown if len(numbers) <= 8 else f"{shown}, ..."
