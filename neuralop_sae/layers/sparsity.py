"""Sparsity rules: a concept rule decides which concepts are on in a sample, a domain rule where each is expressed.

A rule is a module made from plain data (``TopK(16)``); a model takes a copy of its own and binds it to its number of
concepts. Thresholds and running statistics live in the state dict, change in training mode only and are never a function
of the rest of the batch in eval mode.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..registry import Registry


class Rule(nn.Module, ABC):
    """A rule with a name and arguments of plain data.

    Attributes
    ----------
    arguments : tuple of str
        Names of the constructor's arguments, kept as attributes of the same names.
    """

    arguments: ClassVar[tuple[str, ...]] = ()
    registry: ClassVar[Registry[Any]]

    def bind(self, n_concepts: int) -> None:
        """Make state for a dictionary of this size; ValueError if the arguments do not fit it."""

    def config(self) -> dict[str, Any]:
        """``{"name": ..., **arguments}``, from which :func:`build_rule` makes the rule again."""
        return {"name": self.registry.name_of(type(self)), **{name: getattr(self, name) for name in self.arguments}}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.arguments)


class ConceptRule(Rule):
    """Decides from scores ``(B, p)`` which concepts are on."""

    takes_all: bool = False
    """Whether every concept with a positive score is on, so that ranking is idle."""

    @abstractmethod
    def select(self, scores: Tensor) -> Tensor:
        """Boolean ``(B, p)``. A score of zero is never on."""

    @abstractmethod
    def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
        """Boolean ``(B, p)``: concepts worth an exact score, from an estimate of the score and an upper bound."""

    def gate(self, scores: Tensor, concept: Tensor) -> Tensor | None:
        """A factor ``(n,)`` on each selected code, through which a threshold learns; None for no gate."""
        return None


class DomainRule(Rule):
    """Decides where on the domain a code is expressed.

    Attributes
    ----------
    rectifies : bool
        Whether the energy of a pre-code differs from that of its code, so that energy alone cannot rank.
    """

    rectifies: ClassVar[bool] = True

    @abstractmethod
    def activate(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> Tensor:
        """The code of each row by itself, ``(n, *grid)`` -> ``(n, *grid)``; `quadrature` broadcasts to the grid."""

    def compete(self, slots: Tensor) -> Tensor:
        """Competition between the concepts of one sample, ``(B, width, *grid)``; zeros are absent concepts."""
        return slots

    def observe(self, values: Tensor, concept: Tensor, quadrature: Tensor) -> None:
        """Update running statistics from the selected pre-codes; called once per training step."""

    def estimate(self, mean: Tensor, mean_square: Tensor) -> Tensor:
        r"""Mean square of the code from the pre-code's moments ``(B, p)``, for ranking: exact for a rectified Gaussian,
        :math:`(\mu^2 + \sigma^2)\Phi(\mu/\sigma) + \mu\sigma\varphi(\mu/\sigma)`. Without the mean, a wholly negative
        pre-code would rank high and code to zero."""
        deviation = (mean_square - mean.square()).clamp_min(1e-20).sqrt()
        ratio = mean / deviation
        below = 0.5 * torch.erfc(-ratio / math.sqrt(2.0))
        density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2.0 * math.pi)
        return (mean_square * below + mean * deviation * density).clamp_min(0)


concept_rules: Registry[type[ConceptRule]] = Registry("concept rule")
domain_rules: Registry[type[DomainRule]] = Registry("domain rule")
ConceptRule.registry, DomainRule.registry = concept_rules, domain_rules
register_concept_rule = concept_rules.register
register_domain_rule = domain_rules.register

R = TypeVar("R", bound=Rule)


def build_rule(rule: Rule | Mapping[str, Any] | str, registry: Registry[type[R]], n_concepts: int) -> R:
    """A rule of its own for a model: from a rule (copied), its config, or its name; bound to `n_concepts`."""
    if isinstance(rule, Rule):
        registry.name_of(type(rule))  # type: ignore[arg-type]  # an unknown class is refused
        built = copy.deepcopy(rule)
    elif isinstance(rule, str):
        built = registry.get(rule)()
    elif isinstance(rule, Mapping):
        arguments = dict(rule)
        built = registry.get(str(arguments.pop("name", None)))(**arguments)
    else:
        raise TypeError(f"a {registry.kind} is a rule, its config (a dict with 'name') or its name, got {rule!r}")
    built.bind(n_concepts)
    return built  # type: ignore[return-value]


def _positive_int(value: int, name: str) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    return int(value)


def _top(scores: Tensor, k: int) -> Tensor:
    """Mask of the k largest entries of each row that are positive."""
    if k >= scores.shape[-1]:
        return scores > 0
    index = scores.topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, True) & (scores > 0)


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
        self.k = _positive_int(k, "k")

    def bind(self, n_concepts: int) -> None:
        if self.k > n_concepts:
            raise ValueError(f"k={self.k} concepts per sample, but the dictionary has n_concepts={n_concepts}")
        self.takes_all = self.k == n_concepts

    def select(self, scores: Tensor) -> Tensor:
        return _top(scores, self.k)

    def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
        return _top(estimate, self.k * oversample)


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
        Weight of a new batch in the running threshold.
    """

    arguments = ("k", "momentum")
    threshold: Tensor
    n_batches: Tensor

    def __init__(self, k: int = 16, momentum: float = 0.01) -> None:
        super().__init__(k)
        self.momentum = float(momentum)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))

    def bind(self, n_concepts: int) -> None:
        super().bind(n_concepts)
        self.takes_all = False  # the running threshold decides in eval mode

    def select(self, scores: Tensor) -> Tensor:
        if self.training:
            mask = _top(scores.flatten(), self.k * len(scores)).reshape(scores.shape)
            self._update(torch.where(mask, scores, math.inf).min())
            return mask
        above = scores > self.threshold.to(scores.dtype)
        return torch.where(self.n_batches > 0, above, _top(scores, self.k))

    def _update(self, lowest: Tensor) -> None:
        lowest = torch.where(lowest.isfinite(), lowest, 0).to(self.threshold.dtype)
        rate = torch.maximum(1.0 / (self.n_batches + 1.0), torch.full_like(self.threshold, self.momentum))
        self.threshold.lerp_(lowest, rate.to(self.threshold.dtype))
        self.n_batches += 1

    def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
        if self.training:
            return _top(estimate.flatten(), self.k * oversample * len(estimate)).reshape(estimate.shape)
        above = bound > self.threshold.to(bound.dtype)
        return torch.where(self.n_batches > 0, above, _top(estimate, self.k * oversample))


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
        return _Step.apply(scores, self.thresholds[concept], self.bandwidth)


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
        thresholds = self.thresholds[concept].clamp_min(0).view(-1, *(1,) * (values.ndim - 1))
        return torch.relu(values - thresholds)

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

    arguments = ("k",)

    def __init__(self, k: int = 4) -> None:
        super().__init__()
        self.k = _positive_int(k, "k")

    def compete(self, slots: Tensor) -> Tensor:
        if self.k >= slots.shape[1]:
            return slots
        lowest = slots.detach().topk(self.k, dim=1).values[:, -1:]
        return slots * (slots >= lowest)


@register_domain_rule("SoftLocalTopK")
class SoftLocalTopK(LocalTopK):
    """:class:`LocalTopK` with a soft instead of a hard threshold: at every point a code is what it has in excess of the
    strongest concept that is not expressed there, ``relu(z_c(s) - z_(k+1)(s))``.

    Codes are continuous functions of the activations: where two concepts tie, none jumps. On FNO activations this raised
    both the fraction of variance explained and the agreement of codes between resolutions.
    """

    def compete(self, slots: Tensor) -> Tensor:
        if self.k >= slots.shape[1]:
            return slots
        excess = slots.topk(self.k + 1, dim=1).values[:, -1:]
        # Where it is zero nothing is subtracted: its gradient would go to an arbitrary one of the absent.
        return torch.where(excess > 0, torch.relu(slots - excess), slots)


@register_domain_rule("TopFraction")
class TopFraction(DomainRule):
    """Each code is expressed, where positive, on the strongest fraction of the domain's *measure*.

    A fraction of the measure (by quadrature), never a count of points, so that it means the same on every grid. In
    training the threshold is the code's own quantile, averaged per concept into ``thresholds``; in eval mode the
    averaged threshold applies, a pointwise operator that also means the same on a larger domain.

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
