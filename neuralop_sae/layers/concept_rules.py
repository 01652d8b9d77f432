"""Concept rules: which concepts are on in a sample."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .rows import take_rows
from .selection import Selection
from .sparsity import ConceptRule, positive_int, register_concept_rule


@register_concept_rule("All")
class All(ConceptRule):
    """Every concept takes part; where each is expressed is the domain rule's affair alone.

    With a domain rule that makes concepts compete (:class:`SoftLocalTopK`) this is the rule under which no dictionary
    collapsed on FNO activations. Its cost grows with the dictionary: take :class:`TopK` for thousands of concepts.
    """

    takes_all = True

    def select(self, scores: Tensor) -> Tensor:
        return scores > 0

    def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
        return estimate > 0


@register_concept_rule("TopK")
class TopK(ConceptRule):
    """The k concepts of highest score in each sample.

    Parameters
    ----------
    k : int
        Concepts on per sample.
    """

    arguments: ClassVar[tuple[str, ...]] = ("k",)

    def __init__(self, k: int = 16) -> None:
        super().__init__()
        self.k = positive_int(k, "k")

    def bind(self, n_concepts: int) -> None:
        if self.k > n_concepts:
            raise ValueError(f"k={self.k} concepts per sample, but the dictionary has n_concepts={n_concepts}")
        self.takes_all = self.k == n_concepts

    def select(self, scores: Tensor) -> Tensor:
        return self.exchange.top(scores, self.k)

    def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
        return self.exchange.top(estimate, self.k * oversample)

    def choose(self, scores: Tensor) -> Selection:
        """In training mode always k pairs per sample, those of score zero too."""
        return self.exchange.pairs(scores, self.k) if self.training else super().choose(scores)

    def shortlist(self, estimate: Tensor, bound: Tensor, oversample: int) -> Selection:
        return self.exchange.pairs(estimate, self.k * oversample)


@register_concept_rule("BatchTopK")
class BatchTopK(TopK):
    """The ``k * batch`` pairs of highest score in a batch (Bussmann et al., arXiv 2412.06410): k per sample on average,
    more where a sample needs them.

    In training the lowest score that was on is averaged into ``threshold``; in eval mode a concept is on when its score
    exceeds it, whatever else is in the batch. Before the first training batch eval mode is per-sample top-k.

    Parameters
    ----------
    k : int
        Concepts on per sample, on average over a batch.
    momentum : float
        Weight of a new batch in the running threshold: scores fall while training goes on, and a threshold that remembers
        for long switches concepts off in eval mode.
    """

    arguments = ("k", "momentum")
    threshold: Tensor
    n_batches: Tensor

    def __init__(self, k: int = 16, momentum: float = 0.1) -> None:
        super().__init__(k)
        self.momentum = float(momentum)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))

    def bind(self, n_concepts: int) -> None:
        super().bind(n_concepts)
        self.takes_all = False  # the running threshold decides in eval mode

    def select(self, scores: Tensor) -> Tensor:
        if self.training:
            mask = self._top_of_batch(scores, self.k)
            self._update(self.exchange.lowest(torch.where(mask, scores, math.inf).min()))
            return mask
        above = scores > self.threshold.to(scores.dtype)
        return torch.where(self.n_batches > 0, above, self.exchange.top(scores, self.k))

    def _top_of_batch(self, scores: Tensor, k: int) -> Tensor:
        return self.exchange.top(scores.flatten()[None], k * len(scores)).reshape(scores.shape)

    def choose(self, scores: Tensor) -> Selection:
        """As many pairs as the batch needs: the number of each sample is counted on the host."""
        return ConceptRule.choose(self, scores)

    def shortlist(self, estimate: Tensor, bound: Tensor, oversample: int) -> Selection:
        return ConceptRule.shortlist(self, estimate, bound, oversample)

    def _update(self, lowest: Tensor) -> None:
        lowest = torch.where(lowest.isfinite(), lowest, 0).to(self.threshold.dtype)
        rate = torch.maximum(1.0 / (self.n_batches + 1.0), torch.full_like(self.threshold, self.momentum))
        self.threshold.lerp_(lowest, rate.to(self.threshold.dtype))
        self.n_batches += 1

    def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
        if self.training:
            return self._top_of_batch(estimate, self.k * oversample)
        above = bound > self.threshold.to(bound.dtype)
        return torch.where(self.n_batches > 0, above, self.exchange.top(estimate, self.k * oversample))


class _Step(torch.autograd.Function):
    """Heaviside step of ``score - threshold``; backward to the threshold through a rectangle of width `bandwidth`
    (Rajamanoharan et al., arXiv 2407.14435)."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(score, threshold)
        ctx.bandwidth = bandwidth
        return (score > threshold).to(score.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        score, threshold = ctx.saved_tensors
        near = (score - threshold).abs() < ctx.bandwidth / 2
        return None, -grads[0] * near / ctx.bandwidth, None


@register_concept_rule("JumpReLU")
class JumpReLU(ConceptRule):
    """A concept is on when its score exceeds its own learned threshold.

    The threshold itself is the parameter, not its logarithm (which freezes under Adam). It learns from the
    reconstruction and from the trainer's penalty on the number of concepts that are on, through a rectangular
    pseudo-derivative; in training mode concepts within half a bandwidth below their threshold are therefore rows too,
    with a code of zero.

    Parameters
    ----------
    threshold : float
        Initial value, in units of the score.
    bandwidth : float
        Width of the pseudo-derivative, in units of the score.
    """

    arguments = ("threshold", "bandwidth")

    def __init__(self, threshold: float = 0.1, bandwidth: float = 0.1) -> None:
        super().__init__()
        if threshold < 0 or bandwidth <= 0:
            raise ValueError(f"threshold >= 0 and bandwidth > 0 are needed, got {threshold} and {bandwidth}")
        self.threshold, self.bandwidth = float(threshold), float(bandwidth)

    def bind(self, n_concepts: int) -> None:
        self.thresholds = nn.Parameter(torch.full((n_concepts,), self.threshold))

    def _lowest(self) -> Tensor:
        return self.thresholds.detach() - (self.bandwidth / 2 if self.training else 0.0)

    def select(self, scores: Tensor) -> Tensor:
        return (scores > self._lowest()) & (scores > 0)

    def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
        return self.select(bound)

    def gate(self, scores: Tensor, concept: Tensor) -> Tensor:
        return _Step.apply(scores, take_rows(self.thresholds, concept), self.bandwidth)
