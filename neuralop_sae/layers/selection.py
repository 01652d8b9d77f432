"""Which concepts are on in which samples, and the two layouts of data about them: rows and slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """The (sample, concept) pairs that are on, sorted by sample.

    Data about the pairs are *rows* ``(n, ...)``, one per pair. Work within a sample (a matrix product, a competition) wants
    *slots* ``(n_samples, width, ...)``: the rows of each sample side by side, padded with zeros to the fullest sample.

    Parameters
    ----------
    sample, concept : Tensor
        Indices ``(n,)`` of dtype int64.
    n_samples, n_concepts : int
        Sizes of the two index ranges.
    every : int, optional
        Number of pairs of each sample, where all have the same.
    """

    sample: Tensor
    concept: Tensor
    n_samples: int
    n_concepts: int
    every: int | None = None

    @classmethod
    def from_index(cls, index: Tensor, n_concepts: int) -> Selection:
        """The same number of concepts in each sample, ``index (n_samples, k)``; nothing waits for the device."""
        n_samples, k = index.shape
        sample = torch.arange(n_samples, device=index.device).repeat_interleave(k)
        return cls(sample, index.sort(1).values.flatten(), n_samples, n_concepts, k)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Selection:
        """The pairs where ``mask (n_samples, n_concepts)`` is true."""
        sample, concept = mask.nonzero(as_tuple=True)
        return cls(sample, concept, *mask.shape)

    def split(self, n_samples: int) -> Iterator[tuple[slice, Selection]]:
        """Parts of `n_samples` samples each, with the slice of samples. In one piece unless :attr:`every` is known, since
        where a sample begins would have to be asked of the device."""
        if self.every is None or n_samples >= self.n_samples:
            yield slice(0, self.n_samples), self
            return
        for first in range(0, self.n_samples, n_samples):
            samples = slice(first, min(first + n_samples, self.n_samples))
            pairs = slice(samples.start * self.every, samples.stop * self.every)
            part = replace(
                self, sample=self.sample[pairs] - first, concept=self.concept[pairs], n_samples=samples.stop - first
            )
            yield samples, part

    def by_part(self, bounds: Sequence[int]) -> Selection:
        """The same pairs in the same order, each sample cut into several: the pairs of sample b whose concepts lie between two
        `bounds`, parts 0 to ``len(bounds)``, are those of sample ``b * (len(bounds) + 1) + part``. Within a sample concepts
        ascend."""
        parts = len(bounds) + 1
        sample = self.sample * parts
        for bound in bounds:
            sample = sample + (self.concept >= bound)
        return replace(self, sample=sample, n_samples=self.n_samples * parts, every=None)

    def __len__(self) -> int:
        return len(self.sample)

    def mask(self) -> Tensor:
        """Boolean ``(n_samples, n_concepts)``."""
        mask = torch.zeros(self.n_samples, self.n_concepts, dtype=torch.bool, device=self.sample.device)
        mask[self.sample, self.concept] = True
        return mask

    @cached_property
    def _layout(self) -> tuple[Tensor, int]:
        if self.every is not None:
            return torch.arange(len(self), device=self.sample.device), self.every
        counts = torch.bincount(self.sample, minlength=self.n_samples)
        first = counts.cumsum(0) - counts
        slot = torch.arange(len(self), device=self.sample.device) - first[self.sample]
        width = int(counts.max()) if len(self) else 0
        return self.sample * width + slot, width

    @property
    def width(self) -> int:
        """Concepts on in the fullest sample."""
        return self._layout[1]

    def to_slots(self, rows: Tensor) -> Tensor:
        """``(n, ...)`` -> ``(n_samples, width, ...)``."""
        position, width = self._layout
        if len(self) == self.n_samples * width:
            return rows.reshape(self.n_samples, width, *rows.shape[1:])
        slots = rows.new_zeros(self.n_samples * width, *rows.shape[1:]).index_copy(0, position, rows)
        return slots.reshape(self.n_samples, width, *rows.shape[1:])

    def to_rows(self, slots: Tensor) -> Tensor:
        """``(n_samples, width, ...)`` -> ``(n, ...)``."""
        position, width = self._layout
        flat = slots.reshape(self.n_samples * width, *slots.shape[2:])
        return flat if len(self) == len(flat) else flat.index_select(0, position)
