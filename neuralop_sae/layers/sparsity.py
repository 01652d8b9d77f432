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
from .exchange import ALONE, Exchange
from .selection import Selection


class Rule(nn.Module, ABC):
    """A rule with a name and arguments of plain data.

    Attributes
    ----------
    arguments : tuple of str
        Names of the constructor's arguments, kept as attributes of the same names.
    exchange : Exchange
        Whom to ask about concepts of other shards, where the dictionary is distributed.
    """

    arguments: ClassVar[tuple[str, ...]] = ()
    registry: ClassVar[Registry[Any]]
    exchange: Exchange = ALONE

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

    def choose(self, scores: Tensor) -> Selection:
        """:meth:`select` as pairs. A rule may give pairs of score zero as well, in training mode, if that spares it from
        waiting for the device; their codes are zero."""
        return Selection.from_mask(self.select(scores))

    def shortlist(self, estimate: Tensor, bound: Tensor, oversample: int) -> Selection:
        """:meth:`candidates` as pairs, as in :meth:`choose`."""
        return Selection.from_mask(self.candidates(estimate, bound, oversample))

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


def positive_int(value: int, name: str) -> int:
    """`value` as an int; ValueError that names it unless it is a positive whole number."""
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    return int(value)
