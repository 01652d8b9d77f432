"""Sparsity rules: a budget with a threshold, and signed codes."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralop_sae import ConceptRule, DomainRule, register_concept_rule, register_domain_rule


@register_concept_rule("AtMost")
class AtMost(ConceptRule):
    """The concepts whose score exceeds a threshold, at most k of them in a sample: few where little happens.

    Parameters
    ----------
    k : int
        Most concepts on per sample.
    threshold : float
        In units of the score.
    """

    arguments = ("k", "threshold")

    def __init__(self, k: int = 16, threshold: float = 0.1) -> None:
        super().__init__()
        self.k, self.threshold = k, threshold

    def select(self, scores: Tensor) -> Tensor:
        # Through the exchange, so that k counts the concepts of all shards of a distributed dictionary.
        return self.exchange.top(scores, self.k) & (scores > self.threshold)

    def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
        return self.exchange.top(estimate, self.k * oversample) & (bound > self.threshold)


@register_domain_rule("Shrink")
class Shrink(DomainRule):
    r"""Codes of both signs, shrunk towards zero: :math:`\mathrm{sign}(z) \max(|z| - \theta, 0)`.

    Parameters
    ----------
    threshold : float
        :math:`\theta`, in units of the code.
    """

    arguments = ("threshold",)

    def __init__(self, threshold: float = 0.1) -> None:
        super().__init__()
        self.threshold = threshold

    def activate(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> Tensor:
        return torch.nn.functional.softshrink(values, self.threshold)

    def estimate(self, mean: Tensor, mean_square: Tensor) -> Tensor:
        """The default is that of rectified codes, for which a negative pre-code counts nothing. This is exact for constant
        pre-codes."""
        return (mean_square.sqrt() - self.threshold).clamp_min(0).square()
