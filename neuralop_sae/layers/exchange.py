"""What a shard of a dictionary asks the other shards: which concepts are strongest, and the sum of what all write."""

from __future__ import annotations

import torch
from torch import Tensor

from .selection import Selection


class Exchange:
    """A dictionary in one piece: nobody to ask. :mod:`neuralop_sae.training.distributed` has the one for shards.

    Everything that couples concepts goes through here, so that layers and rules need not know whether they hold all
    concepts or a shard of them.
    """

    def whole(self, n_concepts: int) -> int:
        """Concepts of all shards, from those of one."""
        return n_concepts

    def first(self, n_concepts: int) -> int:
        """Number in the whole dictionary of a shard's first concept, where each has so many."""
        return 0

    def top(self, scores: Tensor, k: int) -> Tensor:
        """Boolean ``(B, p)``: of each row of scores the k largest, over all shards, that are positive."""
        if k >= scores.shape[-1]:
            return scores > 0
        index = scores.topk(k, dim=-1, sorted=False).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, True) & (scores > 0)

    def pairs(self, scores: Tensor, k: int) -> Selection:
        """The k largest of each row of scores ``(B, p)`` as pairs, those that are not positive too, if that spares waiting
        for the device."""
        return Selection.from_index(scores.topk(min(k, scores.shape[1]), sorted=False).indices, scores.shape[1])

    def strongest(self, slots: Tensor, k: int) -> Tensor:
        """At every point the k-th largest of the codes ``(B, width, *grid)`` of all shards, not below zero:
        ``(B, 1, *grid)``, with gradient."""
        if k > slots.shape[1]:
            return slots.new_zeros(len(slots), 1, *slots.shape[2:])
        return slots.topk(k, dim=1).values[:, -1:]

    def lowest(self, values: Tensor) -> Tensor:
        """Smallest of one number per shard."""
        return values

    def sum(self, partial: Tensor) -> Tensor:
        """Sum over the shards; the gradient of the sum is the gradient of each shard's part."""
        return partial

    def share(self, value: Tensor) -> Tensor:
        """A part of what all shards hold, such that the parts sum to it; the gradient is that of the whole."""
        return value

    def spread(self, field: Tensor) -> Tensor:
        """What all shards read; the gradients of the shards add up."""
        return field


ALONE = Exchange()
