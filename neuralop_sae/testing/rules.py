"""The contract of a sparsity rule."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..layers.selection import Selection
from ..layers.sparsity import ConceptRule, DomainRule, Rule, build_rule, concept_rules, domain_rules
from .accuracy import assert_equal, require, require_same_state, through_json


def check_rule(rule: Rule, *, n_concepts: int = 12, seed: int = 0) -> None:
    """The contract of a concept rule or a domain rule.

    Both: registered; the config is plain data and makes the rule again; a model's copy is its own; eval mode changes no
    state and treats a sample the same whatever else is in the batch; the state dict restores the rule. A concept rule: a
    score of zero is never on; what is on was a candidate. A domain rule: rows are activated as in the dense tensor; a code
    is no larger than its pre-code (candidates rely on that bound), nor estimated at zero where a constant pre-code has a
    code; competition ignores absent concepts.

    Parameters
    ----------
    rule : ConceptRule or DomainRule
        As a user makes it, not bound to a model; registered.
    n_concepts : int
        Size of the dictionary to bind it to.
    seed : int
        Of the random scores and codes.

    Raises
    ------
    AssertionError
        Naming the property that failed.

    Examples
    --------
    >>> from neuralop_sae.layers import LocalTopK, TopK
    >>> check_rule(TopK(4))
    >>> check_rule(LocalTopK(2))
    """
    generator = torch.Generator().manual_seed(seed)
    require(isinstance(rule, ConceptRule | DomainRule), "rule", f"neither a concept nor a domain rule: {rule!r}")
    _check_registered(rule)
    built = _build(rule, n_concepts)
    _check_config(rule, built)
    if isinstance(rule, ConceptRule):
        _check_concept_rule(built, n_concepts, generator)
    else:
        _check_domain_rule(built, n_concepts, generator)


def _check_registered(rule: Rule) -> None:
    try:
        rule.registry.name_of(type(rule))
    except ValueError as error:
        decorator = "register_concept_rule" if isinstance(rule, ConceptRule) else "register_domain_rule"
        raise AssertionError(f"registered: {error}; decorate it with @{decorator}({type(rule).__name__!r})") from error


def _build(rule: Any, n_concepts: int, config: Any = None) -> Any:
    """From a config, by default the rule itself, a rule of the same kind."""
    registry: Any = concept_rules if isinstance(rule, ConceptRule) else domain_rules
    return build_rule(config or rule, registry, n_concepts)


def _check_config(rule: Rule, built: Rule) -> None:
    """`built` is a copy of its own of `rule`, and its config makes it again."""
    require(built is not rule, "build_rule", "the model shares its rule with the caller")
    config = rule.config()
    signature = inspect.signature(type(rule)).parameters.values()
    arguments = {p.name for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    require(set(config) - {"name"} == arguments, "config", f"{config} does not hold the arguments {sorted(arguments)}")
    again = _build(rule, 3000, through_json("config", config))
    require(type(again) is type(rule) and again.config() == config, "config", f"{config} does not make the rule again")
    copied = copy.deepcopy(built)
    for tensor in copied.state_dict().values():
        tensor.fill_(1)
    shared = {t.data_ptr() for t in built.state_dict().values()} & {t.data_ptr() for t in copied.state_dict().values()}
    require(not shared, "deepcopy", "shares tensors with the original")


def _scores(n_concepts: int, generator: torch.Generator) -> Tensor:
    """Scores (6, p), a quarter of them zero."""
    scores = torch.rand(6, n_concepts, generator=generator)
    return scores * (torch.rand(6, n_concepts, generator=generator) > 0.25)


@torch.no_grad()
def _check_concept_rule(rule: ConceptRule, p: int, generator: torch.Generator) -> None:
    for training in (True, False):
        rule.train(training)
        mode = "in training mode" if training else "in eval mode"
        for _ in range(3):
            scores = _scores(p, generator)
            candidates, on = rule.candidates(scores, scores, 2), rule.select(scores)
            for what, mask in (("select", on), ("candidates", candidates)):
                found = f"{mask.dtype} {tuple(mask.shape)} instead of torch.bool (B, p)={tuple(scores.shape)}"
                require(mask.shape == scores.shape and mask.dtype == torch.bool, f"{what} {mode}", found)
            require(not on[scores == 0].any(), f"a score of zero is never on {mode}")
            require(not (on & ~candidates).any(), f"a concept that is on was a candidate {mode}")
            idle = not rule.takes_all or torch.equal(on, scores > 0)
            require(idle, f"a rule that takes all has every positive score on {mode}")
        require(not rule.select(torch.zeros(2, p)).any(), f"a score of zero is never on {mode}")
    scores = _scores(p, generator)
    _check_frozen(rule, lambda some: rule.select(scores[some]), len(scores))
    rows = Selection.from_mask(rule.select(scores))
    gates = rule.gate(scores[rows.sample, rows.concept], rows.concept)
    require(gates is None or bool((gates == 1).all()), "gates in eval mode", f"are one, got {gates}")
    _check_state(rule, lambda other: other.select(scores), p)


@torch.no_grad()
def _check_domain_rule(rule: DomainRule, p: int, generator: torch.Generator) -> None:
    values = torch.randn(6 * p, 9, generator=generator)
    concept = torch.arange(p).repeat(6)
    quadrature = torch.full((1,), 1 / 9)
    for training in (True, False):
        rule.train(training)
        mode = "in training mode" if training else "in eval mode"
        rows = (torch.rand(6 * p, generator=generator) > 0.4).nonzero()[:, 0]
        dense = rule.activate(values, concept, quadrature)
        alone = rule.activate(values[rows], concept[rows], quadrature)
        assert_equal(f"rows are activated as in the dense tensor {mode}", alone, dense[rows])
        excess = float((dense.square().mean(1) - values.square().mean(1)).max())
        require(excess < 1e-6, f"a code is no larger than its pre-code {mode}", f"mean square larger by {excess:.1e}")
        if training:
            rule.observe(values, concept, quadrature)
    moments = values.mean(1).reshape(6, p), values.square().mean(1).reshape(6, p)
    estimate = rule.estimate(*moments)
    require(estimate.shape == (6, p), "estimate", f"shape {tuple(estimate.shape)} instead of (B, p)={(6, p)}")
    require((estimate >= 0).all(), "estimate", "is negative, or NaN")
    _check_estimate_of_constants(rule, p)
    if not rule.rectifies:
        assert_equal("estimate of a rule that does not rectify", estimate, dense.square().mean(1).reshape(6, p))
    slots = values.reshape(6, p, 9)
    _check_competition(rule, slots.abs())

    def codes(some: Tensor) -> Tensor:
        rows = slots[some].flatten(0, 1)
        return rule.compete(rule.activate(rows, concept[: len(rows)], quadrature).reshape(-1, p, 9))

    _check_frozen(rule, codes, len(slots))
    _check_state(rule, lambda other: other.activate(values, concept, quadrature), p)


def _check_estimate_of_constants(rule: DomainRule, p: int) -> None:
    """A concept that is estimated at zero is no candidate, however strong its code is."""
    for constant in (5.0, -5.0):
        values = torch.full((p, 9), constant)
        codes = rule.activate(values, torch.arange(p), torch.full((1,), 1 / 9)).square().mean(1)
        estimate = rule.estimate(values.mean(1)[None], values.square().mean(1)[None])[0]
        require(
            not (estimate[codes > 0] == 0).any(),
            "estimate",
            f"is zero for pre-codes of constant {constant:g}, whose codes are not: override it if codes may be negative",
        )


def _check_competition(rule: DomainRule, slots: Tensor) -> None:
    what, p = "competition ignores absent concepts", slots.shape[1]
    padded = rule.compete(torch.cat([slots, torch.zeros_like(slots)], 1))
    assert_equal(what, padded[:, :p], rule.compete(slots))
    require(not padded[:, p:].any(), what, "an absent concept has a code")


def _check_frozen(rule: Rule, apply: Callable[[Tensor], Tensor], n: int) -> None:
    """In eval mode no state changes, and a sample's result is its own."""
    before = copy.deepcopy(rule.state_dict())
    together = apply(torch.arange(n))
    one_by_one = torch.cat([apply(torch.tensor([i])) for i in range(n)])
    differing = int((together != one_by_one).flatten(1).any(1).sum())
    require(not differing, "eval mode is a function of the sample alone", f"{differing} of {n} samples differ")
    require_same_state(before, rule.state_dict(), "eval mode changes no state")


def _check_state(rule: Rule, apply: Callable[[Any], Tensor], p: int) -> None:
    fresh = _build(rule, p, rule.config()).eval()
    fresh.load_state_dict(rule.state_dict())
    require(torch.equal(apply(fresh), apply(rule)), "the state dict restores the rule", "results differ")
