"""Concept codes: for each concept that is on in a sample, a function over the domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from . import notebook
from .layers.basis import SpectralBasis
from .layers.selection import Selection


@dataclass(frozen=True)
class ConceptCodes:
    """The codes of a batch, sparse: one row per concept that is on in a sample, sorted by sample.

    Parameters
    ----------
    sample, concept : Tensor
        ``(n,)`` int64: which sample and which concept a row belongs to.
    values : Tensor
        ``(n, *code_grid)``: the code functions, in units of the normalised activations.
    n_samples, n_concepts : int
        Sizes of the batch and of the dictionary.
    basis : SpectralBasis
        Gives quadrature and resampling.
    """

    sample: Tensor
    concept: Tensor
    values: Tensor
    n_samples: int
    n_concepts: int
    basis: SpectralBasis

    @cached_property
    def selection(self) -> Selection:
        """The (sample, concept) pairs."""
        return Selection(self.sample, self.concept, self.n_samples, self.n_concepts)

    @property
    def grid(self) -> tuple[int, ...]:
        """The code grid."""
        return tuple(self.values.shape[1:])

    def __len__(self) -> int:
        return len(self.sample)

    def __repr__(self) -> str:
        return f"ConceptCodes({len(self)} codes of {self.n_concepts} concepts in {self.n_samples} samples on {self.grid})"

    def _repr_html_(self) -> str:
        rows: dict[str, object] = {"samples": self.n_samples, "concepts": self.n_concepts, "code grid": self.grid}
        rows |= {"on per sample (l0)": float(self.l0()), "expressed per point (l0_local)": float(self.l0_local())}
        return notebook.facts("Concept codes", rows) + self._strongest_html()

    def _strongest_html(self, n: int = 5) -> str:
        """The concepts of most energy."""
        norms, on = self.detach().norms().cpu(), self.expressed().cpu()
        square = torch.zeros(self.n_concepts, dtype=norms.dtype).index_add_(0, self.concept.cpu(), norms.square())
        count = torch.bincount(self.concept.cpu()[on], minlength=self.n_concepts)
        strongest = [c for c in square.argsort(descending=True)[:n].tolist() if square[c] > 0]
        rows = [(c, float(count[c]) / self.n_samples, float((square[c] / self.n_samples).sqrt())) for c in strongest]
        return notebook.table("Strongest concepts", ["concept", "on in", "norm (rms)"], rows)

    def norms(self) -> Tensor:
        """L2 norm of each code over the domain, ``(n,)``."""
        weighted = self.values * self.basis.quadrature(self.grid, like=self.values).sqrt()
        return torch.linalg.vector_norm(weighted.flatten(1), dim=1)

    def expressed(self) -> Tensor:
        """Boolean ``(n,)``: rows whose code is not zero everywhere. A row may be, competed away or gated."""
        return self.values.detach().flatten(1).any(1)

    def l0(self) -> Tensor:
        """Concepts on per sample (their code is not zero everywhere), mean over the samples, ``()``."""
        return self.expressed().sum() / self.n_samples

    def l0_local(self) -> Tensor:
        """Concepts expressed per point (their code is not zero there), mean over the domain by quadrature and over the
        samples, ``()``."""
        expressed = (self.values.detach() != 0).to(self.values.dtype)
        return (expressed * self.basis.quadrature(self.grid, like=expressed)).sum() / self.n_samples

    def to_dense(self) -> Tensor:
        """``(n_samples, n_concepts, *code_grid)``, zero where a concept is off."""
        dense = self.values.new_zeros(self.n_samples * self.n_concepts, *self.grid)
        dense = dense.index_copy(0, self.sample * self.n_concepts + self.concept, self.values)
        return dense.reshape(self.n_samples, self.n_concepts, *self.grid)

    def of(self, concept: int) -> Tensor:
        """The code of one concept in every sample, ``(n_samples, *code_grid)``."""
        if not 0 <= concept < self.n_concepts:
            raise ValueError(f"concept {concept} is out of range for {self.n_concepts} concepts")
        rows = self.concept == concept
        return self.values.new_zeros(self.n_samples, *self.grid).index_copy(0, self.sample[rows], self.values[rows])

    def resample(self, shape: Sequence[int]) -> ConceptCodes:
        """The same codes on another grid, keeping every frequency that both grids resolve."""
        return replace(self, values=self.basis.resample(self.values, shape))

    def keep(self, rows: Tensor) -> ConceptCodes:
        """The rows where the boolean ``rows (n,)`` is true."""
        return replace(self, sample=self.sample[rows], concept=self.concept[rows], values=self.values[rows])

    def detach(self) -> ConceptCodes:
        """Without gradient."""
        return replace(self, values=self.values.detach())

    def cpu(self) -> ConceptCodes:
        """On the CPU."""
        return replace(self, sample=self.sample.cpu(), concept=self.concept.cpu(), values=self.values.cpu())


def concatenate(parts: Sequence[ConceptCodes]) -> ConceptCodes:
    """Codes of consecutive batches as one; ValueError if there are none or they do not share grid and dictionary."""
    if not parts:
        raise ValueError("no codes to concatenate")
    shared = {(part.grid, part.n_concepts) for part in parts}
    if len(shared) > 1:
        raise ValueError(f"codes must share (grid, n_concepts), got {sorted(shared)}")
    sizes = [0, *(part.n_samples for part in parts)]
    starts = torch.tensor(sizes).cumsum(0).tolist()
    return ConceptCodes(
        torch.cat([part.sample + start for part, start in zip(parts, starts, strict=False)]),
        torch.cat([part.concept for part in parts]),
        torch.cat([part.values for part in parts]),
        starts[-1],
        parts[0].n_concepts,
        parts[0].basis,
    )
