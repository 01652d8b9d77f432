"""Domain rules: where on the domain a concept is expressed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .rows import take_rows
from .sparsity import DomainRule, positive_int, register_domain_rule


@register_domain_rule("Identity")
class Identity(DomainRule):
    """Codes are the pre-codes: signed, expressed everywhere."""

    rectifies = False

    def activate(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> Tensor:
        return values

    def estimate(self, mean: Tensor, mean_square: Tensor) -> Tensor:
        return mean_square


@register_domain_rule("Rectify")
class Rectify(DomainRule):
    """The positive part."""

    def activate(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> Tensor:
        return torch.relu(values)


@register_domain_rule("SoftThreshold")
class SoftThreshold(DomainRule):
    """``relu(z - theta_c)`` with one learned threshold per concept, kept from going below zero.

    Parameters
    ----------
    threshold : float
        Initial value, in units of the code.
    """

    arguments = ("threshold",)

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        if threshold < 0:
            raise ValueError(f"a soft threshold is not negative, got {threshold}")
        self.threshold = float(threshold)

    def bind(self, n_concepts: int) -> None:
        self.thresholds = nn.Parameter(torch.full((n_concepts,), self.threshold))

    def activate(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> Tensor:
        own = take_rows(self.thresholds, concept)
        # The gradient of a clamp is zero where it acts, and at zero, where thresholds start: they would never move.
        thresholds = own + (own.clamp_min(0) - own).detach()
        return torch.relu(values - thresholds.view(-1, *(1,) * (values.ndim - 1)))

    def estimate(self, mean: Tensor, mean_square: Tensor) -> Tensor:
        shifted = mean - self.thresholds.detach().clamp_min(0)
        return super().estimate(shifted, mean_square - mean.square() + shifted.square())


@register_domain_rule("LocalTopK")
class LocalTopK(Rectify):
    """At every point only the strongest of the concepts that are on are expressed, and only where positive. A
    pointwise rule: it commutes with sampling and with a change of domain.

    Parameters
    ----------
    k : int
        Concepts expressed per point.
    """

    arguments: ClassVar[tuple[str, ...]] = ("k",)

    def __init__(self, k: int = 4) -> None:
        super().__init__()
        self.k = positive_int(k, "k")

    def compete(self, slots: Tensor) -> Tensor:
        return slots * (slots >= self.exchange.strongest(slots.detach(), self.k))


@register_domain_rule("SoftLocalTopK")
class SoftLocalTopK(LocalTopK):
    """:class:`LocalTopK` with a softer threshold: of a code that is expressed at a point a share of the strongest concept
    that is not is subtracted, ``z_c(s) - softness z_(k+1)(s)`` where ``z_c(s) > z_(k+1)(s)``.

    With softness 1 codes are continuous functions of the activations: where two concepts tie, none jumps, and codes agree most
    between resolutions. In a large dictionary part of the concepts then dies: the gradient of each code that is expressed
    pushes the strongest that is not further down. At 0.5 nearly none does, see ``examples/reproduction/large.py``.

    Parameters
    ----------
    k : int
        Concepts expressed per point.
    softness : float
        From 0, which is :class:`LocalTopK`, to 1.
    """

    arguments = ("k", "softness")

    def __init__(self, k: int = 4, softness: float = 1.0) -> None:
        super().__init__(k)
        if not 0 <= softness <= 1:
            raise ValueError(f"softness is a share in [0, 1], got {softness}")
        self.softness = float(softness)

    def compete(self, slots: Tensor) -> Tensor:
        threshold = self.exchange.strongest(slots, self.k + 1)
        # Where it is zero nothing is subtracted: its gradient would go to an arbitrary one of the absent.
        competed = torch.where(slots > threshold, slots - self.softness * threshold, 0)
        return torch.where(threshold > 0, competed, slots)


#: The domain rule of a model that is told none: at most four concepts per point, and of 512 nearly all stay alive.
DEFAULT_DOMAIN_RULE: Mapping[str, Any] = {"name": "SoftLocalTopK", "k": 4, "softness": 0.5}


@register_domain_rule("TopFraction")
class TopFraction(DomainRule):
    """Each code is expressed, where positive, on the strongest fraction of the domain's *measure*.

    A fraction of the measure (by quadrature), never a count of points, so that it means the same on every grid. In
    training the threshold is the code's own quantile, averaged per concept into ``thresholds``; in eval mode the
    averaged threshold applies, a pointwise operator that also means the same on a larger domain. Where the size of codes
    varies much between samples the two differ: on activations of a Darcy FNO eval mode expressed eight times the fraction.

    Parameters
    ----------
    fraction : float
        Of the domain, in (0, 1].
    momentum : float
        Weight of a new batch in a concept's running threshold.
    """

    arguments = ("fraction", "momentum")
    thresholds: Tensor
    seen: Tensor

    def __init__(self, fraction: float = 0.1, momentum: float = 0.05) -> None:
        super().__init__()
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is a share of the domain in (0, 1], got {fraction}")
        self.fraction, self.momentum = float(fraction), float(momentum)

    def bind(self, n_concepts: int) -> None:
        self.register_buffer("thresholds", torch.zeros(n_concepts))
        self.register_buffer("seen", torch.zeros(n_concepts, dtype=torch.bool))

    def _quantiles(self, values: Tensor, quadrature: Tensor) -> Tensor:
        """The lowest value that is still within the fraction, ``(n,)``."""
        flat = values.detach().flatten(1)
        measure = quadrature.expand(values.shape[1:]).flatten()
        ordered, order = flat.sort(dim=1, descending=True)
        kept = (measure[order].cumsum(1) <= self.fraction + 1e-6).sum(1).clamp_min(1)
        return ordered.gather(1, kept[:, None] - 1)[:, 0]

    def activate(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> Tensor:
        lowest = self._quantiles(values, quadrature) if self.training else self.thresholds[concept].to(values.dtype)
        return torch.relu(values) * (values >= lowest.view(-1, *(1,) * (values.ndim - 1)))

    @torch.no_grad()
    def observe(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> None:
        lowest = self._quantiles(values, quadrature).to(self.thresholds.dtype)
        counts = torch.bincount(concept, minlength=len(self.thresholds))
        means = torch.zeros_like(self.thresholds).index_add(0, concept, lowest) / counts.clamp_min(1)
        rate = torch.where(self.seen, self.momentum, 1.0) * (counts > 0)
        self.thresholds.lerp_(means, rate.to(means.dtype))
        self.seen |= counts > 0
