"""Problems of the quickstart that go on in time: shallow water on the sphere, two-dimensional turbulence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from neuralop.models import SFNO
from pydantic import Field
from torch import Tensor, nn

from ..data.navier_stokes import kolmogorov_flow
from ..data.shallow_water import shallow_water
from ..data.trajectories import TrajectorySplit
from ..models.sfno import SAESFNO
from ..models.spectral import SpectralSAE
from .problems import Problem, Split, Splits


class Flow(Problem):
    """From the state of a flow to the state one lead time later; `n_train` and `n_test` count trajectories.

    Parameters
    ----------
    lead_time : float
        From input to output, in the generator's units.
    rollout_steps : int
        How often the operator is applied to its own output, from the first state of trajectories that are in no split.
    generator : dict
        Other arguments of the data's generator.
    """

    normalized = True
    batch_size = 8
    time_unit: ClassVar[str]

    n_train: int = Field(20, ge=1)
    n_test: int = Field(4, ge=1)
    lead_time: float
    rollout_steps: int = Field(20, ge=1)
    generator: dict[str, Any] = Field(default_factory=dict)

    @abstractmethod
    def trajectories(self, n: int, resolutions: Sequence[Any], **options: Any) -> dict[Any, TrajectorySplit]:
        """From grid to n trajectories."""

    def times(self) -> Tensor:
        """When the states of a rollout are, its start left out."""
        return self.lead_time * torch.arange(1, self.rollout_steps + 1)

    def captions(self) -> tuple[str, str, str]:
        """See :meth:`Problem.captions`."""
        what, later = f"{self.inputs[self.pictured]} (std. dev.)", f"{self.lead_time:g} {self.time_unit} later"
        return what, later, f"{later}, by the {self.operator_name}"

    def splits(self, cache_dir: Path, progress: bool) -> Splits:
        """See :meth:`Problem.splits`."""
        coarse, fine = self.resolutions
        options = {"seed": self.seed, "lead_time": self.lead_time, "cache_dir": cache_dir, "progress": progress}
        data = self.trajectories(self.n_train + self.n_test, (coarse, fine), **options, **self.generator)
        train, test = data[coarse].train_test(self.n_train)
        sizes = " and ".join(" x ".join(map(str, split.x.shape[2:])) for split in (test, data[fine]))
        return Splits(f"{self.title}, {sizes}", train, test, data[fine].train_test(self.n_train)[1])

    def futures(self, like: Split, cache_dir: Path, progress: bool) -> Tensor:
        """Trajectories of no split, one lead time from state to state, ``(n_test, rollout_steps + 1, channels, *grid)``,
        normalised as `like`."""
        assert isinstance(like, TrajectorySplit)
        coarse = self.resolutions[0]
        times = {"lead_time": self.lead_time, "interval": self.lead_time, "n_pairs": self.rollout_steps}
        options = {**self.generator, **times, "seed": self.seed + 1_000_003, "cache_dir": cache_dir, "progress": progress}
        split = self.trajectories(self.n_test, (coarse,), **options)[coarse]
        x, y = (((split.physical(z) - like.mean) / like.std).unflatten(0, (self.n_test, -1)) for z in (split.x, split.y))
        return torch.cat([x, y[:, -1:]], 1)


class ShallowWater(Flow):
    """Weather of one layer on the sphere: an SFNO, an hour ahead."""

    key, title = "shallow-water", "shallow water"
    inputs = outputs = ("geopotential", "vorticity", "divergence")
    pictured = 1
    operator_name = "SFNO"
    time_unit = "h"

    resolutions: tuple[tuple[int, int], tuple[int, int]] = ((33, 64), (65, 128))
    lead_time: float = 1.0
    operator_modes: tuple[int, int] = (16, 32)
    operator_epochs: int = Field(10, ge=1)
    sae_modes: tuple[int, int] = (12, 24)
    sae_epochs: int = Field(20, ge=1)

    def trajectories(self, n: int, resolutions: Sequence[Any], **options: Any) -> dict[Any, TrajectorySplit]:
        """See :meth:`Flow.trajectories`."""
        return shallow_water(n, resolutions, **options)

    def operator(self, grid: Sequence[int]) -> nn.Module:
        """See :meth:`Problem.operator`."""
        return SFNO(n_modes=self.operator_modes, **self._sizes())

    def autoencoder(self) -> SpectralSAE:
        """See :meth:`Problem.autoencoder`."""
        return SAESFNO(**self._dictionary())


class NavierStokes(Flow):
    """Two-dimensional turbulence under Kolmogorov's forcing: an FNO on the vorticity, a fifth of a time unit ahead."""

    key, title = "navier-stokes", "Kolmogorov flow"
    inputs = outputs = ("vorticity",)
    time_unit = "time units"

    resolutions: tuple[int, int] = (48, 96)
    lead_time: float = 0.2
    operator_modes: tuple[int, int] = (24, 24)
    sae_modes: tuple[int, int] = (13, 13)
    sae_epochs: int = Field(20, ge=1)

    def trajectories(self, n: int, resolutions: Sequence[Any], **options: Any) -> dict[Any, TrajectorySplit]:
        """See :meth:`Flow.trajectories`."""
        return kolmogorov_flow(n, resolutions, **options)
