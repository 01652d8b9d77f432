"""Pairs of states of a flow, one lead time apart, along several trajectories: what the generators of flows share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .arguments import at_least, positive, whole_steps
from .cache import cached_tensors

__all__ = ["BATCH", "Flow", "Schedule", "TrajectorySplit", "generate", "sample_seed"]

#: Trajectories integrated at once. Full batches are computed even where fewer trajectories are asked for, because the last
#: bits of a batched product depend on the size of the batch: so a longer set begins with exactly the shorter one.
BATCH = 8

Grid = TypeVar("Grid", bound=Hashable)


@dataclass(frozen=True)
class TrajectorySplit:
    """States of a flow and the states one lead time later, on one grid, normalised per channel.

    Pairs are ordered by trajectory, then by time. Training and test pairs are to come from different trajectories
    (`train_test`): neighbours in time look alike.

    Parameters
    ----------
    x : torch.Tensor
        States at time t, shape (n, channels, *grid), float32, normalised: (physical - mean) / std.
    y : torch.Tensor
        States of the same trajectories at t + lead time, same shape, normalised with the same numbers.
    trajectory : torch.Tensor
        Which trajectory a pair belongs to, shape (n,), int64.
    mean, std : torch.Tensor
        Mean and standard deviation per channel in physical units, shape (channels, 1, 1), float32.

    Examples
    --------
    >>> fields = torch.zeros(6, 1, 4, 4)
    >>> split = TrajectorySplit(fields, fields, torch.arange(3).repeat_interleave(2), torch.ones(1, 1, 1), torch.ones(1, 1, 1))
    >>> train, test = split.train_test(2)
    >>> len(train.x), test.trajectory.tolist(), split.physical(fields).unique().item()
    (4, [2, 2], 1.0)
    """

    x: Tensor
    y: Tensor
    trajectory: Tensor
    mean: Tensor
    std: Tensor

    def physical(self, fields: Tensor) -> Tensor:
        """Normalised fields (..., channels, *grid) in physical units."""
        return fields * self.std.to(fields) + self.mean.to(fields)

    def train_test(self, n_train: int) -> tuple[TrajectorySplit, TrajectorySplit]:
        """The pairs of the first `n_train` trajectories, and those of the others.

        Raises
        ------
        ValueError
            If one of the two would be empty.
        """
        n_trajectories = int(self.trajectory.max()) + 1
        if not 1 <= n_train < n_trajectories:
            raise ValueError(
                f"n_train is {n_train}; there are {n_trajectories} trajectories, so it must be 1 to {n_trajectories - 1} "
                "for both parts to have some: generate more trajectories or train on fewer."
            )
        first = self.trajectory < n_train
        return self._of(first), self._of(~first)

    def _of(self, pairs: Tensor) -> TrajectorySplit:
        return TrajectorySplit(self.x[pairs], self.y[pairs], self.trajectory[pairs], self.mean, self.std)


@dataclass(frozen=True)
class Schedule:
    """When states are taken, in time steps: pair i at ``spin_up + i * interval`` and `lead` steps later.

    Parameters
    ----------
    n_pairs, lead, interval, spin_up : int
        Pairs per trajectory; steps from x to y, from one x to the next, and before the first x.
    """

    n_pairs: int
    lead: int
    interval: int
    spin_up: int

    @classmethod
    def of_times(cls, n_pairs: int, lead_time: float, interval: float, spin_up: float, time_step: float) -> Schedule:
        """A schedule from durations, which must be whole multiples of the time step (ValueError otherwise)."""
        positive("time_step", time_step)
        return cls(
            at_least("n_pairs", n_pairs, 1),
            whole_steps("lead_time", lead_time, time_step, 1),
            whole_steps("interval", interval, time_step, 1),
            whole_steps("spin_up", spin_up, time_step, 0),
        )

    @property
    def starts(self) -> list[int]:
        """The steps after which the x are taken."""
        return [self.spin_up + i * self.interval for i in range(self.n_pairs)]

    @property
    def stops(self) -> list[int]:
        """The steps after which something is taken, ascending."""
        return sorted({step for start in self.starts for step in (start, start + self.lead)})

    def run(self, state: Tensor, advance: Callable[[Tensor, int], Tensor], bar: tqdm) -> tuple[Tensor, Tensor]:
        """The x and the y of a batch, (B, n_pairs, ...) each, from its initial state (B, ...).

        Raises
        ------
        RuntimeError
            If a state is not finite.
        """
        taken, now = {}, 0
        for step in self.stops:
            state = advance(state, step - now)
            if not torch.isfinite(torch.view_as_real(state)).all():
                raise RuntimeError(
                    f"the flow is no longer finite at time step {step}: the steps are too long for its speed. "
                    "Pass a smaller time_step, a slower flow or more viscosity."
                )
            bar.update(step - now)
            taken[step], now = state, step
        starts = self.starts
        return torch.stack([taken[i] for i in starts], 1), torch.stack([taken[i + self.lead] for i in starts], 1)


def sample_seed(seed: int, trajectory: int) -> int:
    """A seed of 64 bits that depends on the two numbers only."""
    return int(np.random.SeedSequence([seed, trajectory]).generate_state(1, np.uint64)[0])


class Flow(Protocol):
    """What `generate` needs to know of a flow; states are complex spectra (..., as the flow likes)."""

    @property
    def name(self) -> str:
        """What the progress bar says."""

    @property
    def n_channels(self) -> int:
        """Channels of a state."""

    def initial(self, trajectory: int) -> Tensor:
        """The spectrum at time 0, which depends on the flow's seed and the trajectory's number only."""

    def advance(self, states: Tensor, n_steps: int) -> Tensor:
        """Spectra (B, ...) that many time steps later."""

    def moments(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel over the domain and over spectra (N, ...): two of shape (channels,)."""

    def evaluate(self, states: Tensor, size: tuple[int, int]) -> Tensor:
        """Spectra (B, ...) on a grid of `size` points: (B, channels, *size), float64, in physical units."""


def generate(
    flow: Flow,
    n_trajectories: int,
    schedule: Schedule,
    sizes: Mapping[Grid, tuple[int, int]],
    *,
    path: Path | None,
    progress: bool,
) -> dict[Grid, TrajectorySplit]:
    """Trajectories of a flow, the same on every grid.

    Fields are normalised with the moments of all x and y of the first `BATCH` trajectories, computed also where fewer are
    asked for.

    Parameters
    ----------
    flow : Flow
        What flows.
    n_trajectories : int
        How many.
    schedule : Schedule
        When states are taken.
    sizes : mapping of Grid to tuple of int
        The points of every grid wanted.
    path : pathlib.Path or None
        The file that keeps the result; see `cached_tensors`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict of Grid to TrajectorySplit
        In the order of `sizes`.
    """
    n_pairs, channels = n_trajectories * schedule.n_pairs, flow.n_channels
    names = {grid: {name: f"{name}_{size[0]}x{size[1]}" for name in "xy"} for grid, size in sizes.items()}
    shapes: dict[str, tuple[int, ...]] = {"mean": (channels, 1, 1), "std": (channels, 1, 1)}
    shapes |= {names[grid][name]: (n_pairs, channels, *size) for grid, size in sizes.items() for name in "xy"}

    def make() -> dict[str, Tensor]:
        states = _states(flow, n_trajectories, schedule, progress)  # (2, trajectories, pairs, ...)
        mean, std = (moment[:, None, None] for moment in flow.moments(states[:, :BATCH].flatten(0, 2)))
        tensors = {"mean": mean.float(), "std": std.float()}
        for grid, size in sizes.items():
            for name, trajectories in zip("xy", states[:, :n_trajectories], strict=True):
                fields = [((flow.evaluate(one, size) - mean) / std).float() for one in trajectories]
                tensors[names[grid][name]] = torch.cat(fields)
        return tensors

    tensors = cached_tensors(path, shapes, make)
    trajectory = torch.arange(n_trajectories).repeat_interleave(schedule.n_pairs)
    return {
        grid: TrajectorySplit(tensors[of["x"]], tensors[of["y"]], trajectory, tensors["mean"], tensors["std"])
        for grid, of in names.items()
    }


def _states(flow: Flow, n_trajectories: int, schedule: Schedule, progress: bool) -> Tensor:
    batches = range(0, n_trajectories, BATCH)
    runs = []
    with tqdm(total=len(batches) * schedule.stops[-1], desc=flow.name, unit="step", disable=not progress) as bar:
        for first in batches:
            state = torch.stack([flow.initial(i) for i in range(first, first + BATCH)])
            runs.append(torch.stack(schedule.run(state, flow.advance, bar)))
    return torch.cat(runs, 1)
