"""What the quickstart can be run on: a problem's sizes, data, operator and autoencoder. Flows in time are in flows.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from neuralop.models import FNO
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from ..data.darcy import DarcySplit, darcy_flow, load_darcy
from ..data.trajectories import TrajectorySplit
from ..layers.concept_rules import All
from ..layers.domain_rules import SoftLocalTopK
from ..models.fno import SAEFNO
from ..models.spectral import SpectralSAE

Split = DarcySplit | TrajectorySplit


@dataclass(frozen=True)
class Splits:
    """Data of a run: `train` and `coarse` (held out) on one grid, `fine` the samples of `coarse` on a finer one."""

    name: str
    train: Split
    coarse: Split
    fine: Split


class Problem(BaseModel, ABC):
    """A problem of the quickstart and its sizes; the defaults take under five minutes on two cores.

    Parameters
    ----------
    n_train, n_test : int
        Samples, or for a flow trajectories; data of one seed are other samples than those of another.
    resolutions : tuple of two grids
        Grid of training and test, and the finer one on which codes are compared.
    hidden_channels, n_layers, operator_modes, operator_epochs : int
        Of the operator.
    block : int
        The block whose output is taken apart.
    n_concepts, concepts_per_point, sae_modes, sae_epochs : int
        Of the autoencoder: the size of its dictionary, how many concepts may be expressed at a point, and the rest.
    seed : int
        Of everything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    #: Its name on the command line, and in text.
    key: ClassVar[str]
    title: ClassVar[str]
    #: Channels of inputs and outputs, and the one that pictures show.
    inputs: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]
    pictured: ClassVar[int] = 0
    #: Whether the data come normalised; if not, neuralop's data processor does it.
    normalized: ClassVar[bool] = False
    operator_name: ClassVar[str] = "FNO"
    batch_size: ClassVar[int] = 20

    n_train: int = Field(ge=1)
    n_test: int = Field(ge=1)
    resolutions: tuple[Any, Any]
    hidden_channels: int = Field(32, ge=1)
    n_layers: int = Field(4, ge=1)
    operator_modes: tuple[int, int] = (16, 16)
    operator_epochs: int = Field(8, ge=1)
    block: int = Field(2, ge=0)
    n_concepts: int = Field(64, ge=1)
    concepts_per_point: int = Field(4, ge=1)
    sae_modes: tuple[int, int] = (9, 9)
    sae_epochs: int = Field(10, ge=1)
    seed: int = 0

    @abstractmethod
    def splits(self, cache_dir: Path, progress: bool) -> Splits:
        """The data, kept in `cache_dir`."""

    @abstractmethod
    def captions(self) -> tuple[str, str, str]:
        """Captions of an input, its true output and the operator's, with units."""

    @property
    def site(self) -> str:
        """The place in the operator that is taken apart."""
        return f"fno_blocks.{min(self.block, self.n_layers - 1)}"

    def operator(self, grid: Sequence[int]) -> nn.Module:
        """The operator, not trained."""
        n_modes = tuple(min(n, size // 2) for n, size in zip(self.operator_modes, grid, strict=True))
        return FNO(n_modes=n_modes, **self._sizes())

    def autoencoder(self) -> SpectralSAE:
        """The autoencoder, not trained."""
        return SAEFNO(**self._dictionary())

    def _sizes(self) -> dict[str, Any]:
        return {
            "in_channels": len(self.inputs),
            "out_channels": len(self.outputs),
            "hidden_channels": self.hidden_channels,
            "n_layers": self.n_layers,
            "lifting_channel_ratio": 2,
            "projection_channel_ratio": 2,
        }

    def _dictionary(self) -> dict[str, Any]:
        return {
            "in_channels": self.hidden_channels,
            "n_concepts": self.n_concepts,
            "n_modes": self.sae_modes,
            "concept_rule": All(),
            "domain_rule": SoftLocalTopK(self.concepts_per_point),
        }


class Darcy(Problem):
    """Steady flow through rock: from the permeability to the pressure.

    Parameters
    ----------
    data_root : path, optional
        Folder with neuralop's own Darcy files, instead of generated data.
    """

    key, title = "darcy", "Darcy flow"
    inputs, outputs = ("a",), ("u",)

    n_train: int = Field(800, ge=2)
    n_test: int = Field(100, ge=1)
    resolutions: tuple[int, int] = (48, 96)
    data_root: Path | None = None

    def captions(self) -> tuple[str, str, str]:
        """See :meth:`Problem.captions`."""
        return "coefficient a", "solution u", f"the {self.operator_name}'s u"

    def splits(self, cache_dir: Path, progress: bool) -> Splits:
        """See :meth:`Problem.splits`."""
        if self.data_root is not None:
            training, tests = load_darcy(self.data_root)
            coarse, fine = min(tests), max(tests)
            return Splits(f"neuralop's Darcy files, {coarse} and {fine}", training, tests[coarse], tests[fine])
        coarse, fine = self.resolutions
        n = self.n_train
        data = darcy_flow(n + self.n_test, (coarse, fine), seed=self.seed, cache_dir=cache_dir, progress=progress)
        parts = {grid: (DarcySplit(s.x[:n], s.y[:n]), DarcySplit(s.x[n:], s.y[n:])) for grid, s in data.items()}
        return Splits(f"generated Darcy flow, {coarse} and {fine}", parts[coarse][0], parts[coarse][1], parts[fine][1])
