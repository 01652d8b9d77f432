"""Sparsity rules: the shipped contract, closed forms, thresholds that learn and that freeze."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralop_sae.layers import (
    All,
    BatchTopK,
    ConceptRule,
    DomainRule,
    Identity,
    JumpReLU,
    LocalTopK,
    Rectify,
    SoftLocalTopK,
    SoftThreshold,
    TopFraction,
    TopK,
)
from neuralop_sae.layers.sparsity import Rule, build_rule, concept_rules, domain_rules
from neuralop_sae.testing import assert_equal, check_rule

CONCEPT_RULES = [
    All(),
    TopK(1),
    TopK(4),
    TopK(12),
    BatchTopK(3),
    BatchTopK(2, momentum=0.5),
    JumpReLU(0.4, 0.3),
    JumpReLU(0.0, 0.1),
]
DOMAIN_RULES = [Identity(), Rectify(), SoftThreshold(), SoftThreshold(0.3), LocalTopK(1), LocalTopK(3), SoftLocalTopK(1),
                SoftLocalTopK(3), TopFraction(0.3), TopFraction(1.0)]  # fmt: skip


def concept_rule(rule: Any, p: int = 6) -> Any:
    return build_rule(rule, concept_rules, p)


def domain_rule(rule: Any, p: int = 6) -> Any:
    return build_rule(rule, domain_rules, p)


def uniform(*grid: int) -> Tensor:
    return torch.full((1,) * len(grid), 1 / math.prod(grid))


@pytest.mark.parametrize("rule", [*CONCEPT_RULES, *DOMAIN_RULES], ids=repr)
def test_contract(rule: Rule) -> None:
    check_rule(rule)


def test_every_registered_rule_is_in_the_contract_test() -> None:
    for registry, rules in ((concept_rules, CONCEPT_RULES), (domain_rules, DOMAIN_RULES)):
        ours = {kind for kind in map(registry.get, registry) if kind.__module__.startswith("neuralop_sae.")}
        assert ours == {type(rule) for rule in rules}


def test_a_negative_soft_threshold_keeps_the_bound() -> None:
    """Thresholds are learned and may become negative; then relu(z - theta) is larger than z, and candidates by the energy
    of z miss concepts."""
    rule = build_rule(SoftThreshold(0.0), domain_rules, 3)
    values, concept = torch.randn(3, 8, 8), torch.arange(3)
    quadrature = torch.full((1, 1), 1 / 64)
    expected = rule.activate(values, concept, quadrature)
    with torch.no_grad():
        rule.thresholds.fill_(-0.5)
    assert torch.equal(rule.activate(values, concept, quadrature), expected)
    with pytest.raises(ValueError, match="not negative"):
        SoftThreshold(-0.5)


def test_batch_topk_of_the_whole_dictionary() -> None:
    check_rule(BatchTopK(12))


def test_topk_takes_the_largest_per_sample() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.2], [0.0, 0.0, 0.7, 0.0], [0.0] * 4])
    expected = [[False, True, True, False], [False, False, True, False], [False] * 4]
    assert concept_rule(TopK(2), 4).select(scores).tolist() == expected
    assert concept_rule(TopK(4), 4).select(scores).tolist() == (scores > 0).tolist()


def test_topk_candidates_are_oversampled() -> None:
    estimate = torch.rand(3, 12)
    mask = concept_rule(TopK(2), 12).candidates(estimate, estimate, 3)
    assert torch.equal(mask, estimate >= estimate.topk(6, dim=1).values[:, -1:])


def test_batch_topk_in_training_takes_the_largest_of_the_batch() -> None:
    rule = concept_rule(BatchTopK(1))
    scores = torch.tensor([[0.9, 0.8, 0.7, 0, 0, 0], [0.1, 0.2, 0, 0, 0, 0], [0.3, 0, 0, 0, 0, 0]])
    assert rule.select(scores).nonzero().tolist() == [[0, 0], [0, 1], [0, 2]]
    assert rule.threshold.item() == pytest.approx(0.7)
    assert rule.n_batches.item() == 1


def test_the_threshold_of_batch_top_k_follows_scores_that_fall():
    rule = concept_rule(BatchTopK(1), 3).train()
    for size in torch.linspace(3, 1, 80):
        rule.select(size * torch.tensor([[1.0, 0.5, 0.2], [0.9, 0.3, 0.1]]))
    assert 0.9 < float(rule.threshold) < 1.15  # of the last batch 0.9; the mean over all is 1.8


def test_batch_topk_threshold_is_a_running_mean_of_the_lowest_that_is_on() -> None:
    rule = concept_rule(BatchTopK(1, momentum=0.25))
    lowest = [0.8, 0.2, 0.5, 0.6, 0.9, 0.1]
    expected = 0.0
    for n, value in enumerate(lowest):
        scores = torch.zeros(2, 6)
        scores[0, 0], scores[1, 3] = value, value + 0.05
        rule.select(scores)
        expected += max(1 / (n + 1), 0.25) * (value - expected)
        assert rule.threshold.item() == pytest.approx(expected, rel=1e-5)


def test_batch_topk_in_eval_does_not_depend_on_the_batch() -> None:
    rule = concept_rule(BatchTopK(2))
    before_training = concept_rule(BatchTopK(2)).eval()
    scores = torch.rand(5, 6)
    assert torch.equal(before_training.select(scores), concept_rule(TopK(2)).select(scores))
    for _ in range(3):
        rule.select(torch.rand(8, 6))
    rule.eval()
    assert torch.equal(rule.select(scores), scores > rule.threshold)
    assert "threshold" in rule.state_dict()
    assert "n_batches" in rule.state_dict()


def scores_with_zeros(batch: int = 5, p: int = 12) -> Tensor:
    """Distinct scores, many of them zero: more concepts than k in sample 0, fewer in sample 1, none in sample 2."""
    scores = torch.rand(batch, p, dtype=torch.float64)
    scores[1, 1:] = 0
    scores[2] = 0
    scores[3, ::2] = 0
    return scores


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", CONCEPT_RULES, ids=repr)
def test_pairs_are_those_of_the_masks(rule: ConceptRule, training: bool) -> None:
    """What :meth:`choose` and :meth:`shortlist` add has score zero; what they leave out, nothing."""
    rule = concept_rule(rule, 12).double()
    rule.select(torch.rand(4, 12, dtype=torch.float64))  # a threshold to go by
    rule.train(training)
    twin = copy.deepcopy(rule)
    scores = scores_with_zeros()
    bound = scores * 1.3
    for oversample in (1, 2, 5):
        for name, pairs, mask, by in (
            ("choose", rule.choose(scores), twin.select(scores), scores),
            ("shortlist", rule.shortlist(scores, bound, oversample), twin.candidates(scores, bound, oversample), scores),
        ):
            found = pairs.mask()
            assert len(pairs) == int(found.sum()), name  # no pair twice
            assert found.shape == mask.shape, name
            assert not (mask & ~found).any(), name
            assert not by[found & ~mask].any(), name
            order = pairs.sample * 12 + pairs.concept
            assert torch.equal(order, order.sort().values), name
    for state, expected in zip(rule.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(state, expected)  # statistics are taken once, either way


@pytest.mark.parametrize("k", [1, 4, 12])
def test_topk_in_training_keeps_k_pairs_also_of_score_zero(k: int) -> None:
    rule, scores = concept_rule(TopK(k), 12), scores_with_zeros()
    pairs = rule.choose(scores)
    assert pairs.every == k
    assert pairs.mask().sum(1).tolist() == [k] * 5
    kept = scores[pairs.sample, pairs.concept].view(5, k).sort(1, descending=True).values
    assert torch.equal(kept, scores.sort(1, descending=True).values[:, :k])
    rule.eval()
    pairs = rule.choose(scores)
    assert pairs.every is None
    assert torch.equal(pairs.mask(), rule.select(scores))
    assert (scores[pairs.sample, pairs.concept] > 0).all()


@pytest.mark.parametrize(("k", "oversample", "width"), [(1, 1, 1), (2, 3, 6), (4, 5, 12)])
def test_topk_shortlists_the_largest_estimates(k: int, oversample: int, width: int) -> None:
    """Never more than there are concepts; the bound plays no part."""
    rule, estimate = concept_rule(TopK(k), 12), torch.rand(5, 12)
    pairs = rule.shortlist(estimate, torch.rand(5, 12), oversample)
    assert pairs.every == width
    expected = estimate.argsort(1, descending=True)[:, :width].sort(1).values
    assert torch.equal(pairs.concept.view(5, width), expected)


def test_batch_topk_chooses_as_many_pairs_as_each_sample_needs() -> None:
    rule = concept_rule(BatchTopK(2), 6)
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0, 0], [0.1, 0.2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.5]])
    pairs = rule.choose(scores)
    assert pairs.every is None
    assert pairs.sample.tolist() == [0, 0, 0, 0, 1, 2]
    assert pairs.concept.tolist() == [0, 1, 2, 3, 1, 5]
    assert rule.threshold.item() == pytest.approx(0.2)
    assert rule.n_batches.item() == 1
    listed = rule.shortlist(scores, scores, 2)
    assert listed.every is None
    assert torch.equal(listed.mask(), scores > 0)  # 12 were allowed, 7 are not zero
    rule.eval()
    assert torch.equal(rule.choose(scores).mask(), scores > rule.threshold)


def test_jumprelu_gate_has_the_rectangular_pseudo_derivative() -> None:
    rule = concept_rule(JumpReLU(0.5, bandwidth=0.2), 4)
    scores = torch.tensor([[0.45, 0.55, 0.39, 0.7]])
    on = rule.select(scores)
    assert on.tolist() == [[True, True, False, True]]  # half a bandwidth below is a row in training
    concept = on.nonzero()[:, 1]
    gates = rule.gate(scores[on], concept)
    assert gates.tolist() == [0.0, 1.0, 1.0]
    (gates * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    assert_equal("gradient", rule.thresholds.grad, torch.tensor([-1 / 0.2, -2 / 0.2, 0.0, 0.0]))
    rule.eval()
    assert rule.select(scores).tolist() == [[False, True, False, True]]


def test_jumprelu_learns_the_threshold_itself() -> None:
    rule = concept_rule(JumpReLU(0.3), 4)
    assert [name for name, _ in rule.named_parameters()] == ["thresholds"]
    assert torch.equal(rule.thresholds, torch.full((4,), 0.3))


@pytest.mark.parametrize("p", [3, 8])
def test_candidates_of_a_threshold_rule_are_complete_in_eval(p: int) -> None:
    """With a true upper bound nothing that would be on is missed."""
    for rule in (JumpReLU(0.4, 0.2), BatchTopK(2)):
        bound_rule = concept_rule(rule, p)
        bound_rule.select(torch.rand(4, p))
        bound_rule.eval()
        scores = torch.rand(6, p)
        bound = scores * (1 + torch.rand(6, p))
        estimate = torch.zeros(6, p)
        assert not (bound_rule.select(scores) & ~bound_rule.candidates(estimate, bound, 1)).any()


def test_pointwise_rules_by_their_formula() -> None:
    values, concept, q = torch.randn(5, 4, 3), torch.tensor([0, 1, 1, 5, 2]), uniform(4, 3)
    assert torch.equal(domain_rule("identity").activate(values, concept, q), values)
    assert torch.equal(domain_rule("rectify").activate(values, concept, q), values.clamp_min(0))
    soft = domain_rule(SoftThreshold(0.1))
    soft.thresholds.data = torch.arange(6) / 10
    expected = (values - torch.tensor([0, 0.1, 0.1, 0.5, 0.2]).view(-1, 1, 1)).clamp_min(0)
    assert torch.equal(soft.activate(values, concept, q), expected)


def test_soft_threshold_learns() -> None:
    soft = domain_rule(SoftThreshold(0.1))
    values = torch.tensor([[1.0, -1.0, 0.5, 0.05]])
    soft.activate(values, torch.tensor([3]), uniform(4)).sum().backward()
    assert soft.thresholds.grad.tolist() == [0, 0, 0, -2.0, 0, 0]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_local_topk_keeps_the_strongest_at_every_point(k: int) -> None:
    slots = torch.rand(3, 4, 5, 6)
    kept = domain_rule(LocalTopK(k)).compete(slots)
    for b in range(3):
        for i in range(5):
            for j in range(6):
                order = slots[b, :, i, j].argsort(descending=True)
                assert torch.equal(kept[b, order[:k], i, j], slots[b, order[:k], i, j])
                assert not kept[b, order[k:], i, j].any()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_soft_local_topk_is_the_excess_over_the_next(k: int) -> None:
    slots = torch.rand(3, 4, 5, dtype=torch.float64)
    kept = domain_rule(SoftLocalTopK(k)).compete(slots)
    ordered = slots.sort(dim=1, descending=True).values
    assert_equal("excess", kept, (slots - ordered[:, k : k + 1]).clamp_min(0))
    assert ((kept > 0).sum(1) == k).all()
    slots.requires_grad_()
    assert torch.autograd.gradcheck(domain_rule(SoftLocalTopK(k)).compete, (slots,), fast_mode=True)


def test_soft_local_topk_does_not_jump_where_two_concepts_tie() -> None:
    """The hard rule jumps by the height of the code, the soft one by nothing."""
    tie = torch.tensor([1.0, 0.8, 0.8 + 1e-6, 0.1]).view(1, 4, 1)
    swapped = tie[:, [0, 2, 1, 3]]
    for rule, jump in ((LocalTopK(2), 0.8), (SoftLocalTopK(2), 0.0)):
        difference = domain_rule(rule).compete(tie) - domain_rule(rule).compete(swapped)
        assert difference.abs().max().item() == pytest.approx(jump, abs=1e-5)


def test_local_topk_with_fewer_concepts_than_k_and_zeros() -> None:
    rule = domain_rule(LocalTopK(3))
    slots = torch.rand(2, 2, 5)
    assert torch.equal(rule.compete(slots), slots)
    assert not rule.compete(torch.zeros(2, 5, 5)).any()


@pytest.mark.parametrize(
    "rule", [LocalTopK(2), SoftLocalTopK(2), Rectify(), SoftThreshold(0.2), Identity(), TopFraction(0.2)], ids=repr
)
def test_domain_rules_commute_with_sampling_in_eval(rule: DomainRule) -> None:
    """In eval mode every rule is pointwise: a subsampled field and a part of the domain give the subsampled code."""
    rule = domain_rule(rule)
    values, concept = torch.randn(6, 8, 8), torch.arange(6)
    rule.observe(values, concept, uniform(8, 8))
    rule.eval()

    def code(values: Tensor) -> Tensor:
        return rule.compete(rule.activate(values, concept, uniform(*values.shape[1:]))[None])[0]

    assert torch.equal(code(values[:, ::2, 1::3]), code(values)[:, ::2, 1::3])
    assert torch.equal(code(values[:, :5, :3]), code(values)[:, :5, :3])


def test_top_fraction_is_the_same_fraction_of_measure_at_two_resolutions() -> None:
    rule = domain_rule(TopFraction(0.25), 1)
    for n in (16, 64, 256):
        s = torch.arange(n) / n
        code = rule.activate((2 + torch.cos(2 * math.pi * s + 0.4))[None], torch.tensor([0]), uniform(n))
        assert (code > 0).float().mean().item() == pytest.approx(0.25, abs=1.01 / n)


def test_top_fraction_counts_measure_not_points() -> None:
    """On a grid where ten points hold half of the measure, half of the domain is ten points, not half of them."""
    measure = torch.cat([torch.full((10,), 0.05), torch.full((90,), 0.5 / 90)])
    values = torch.arange(100.0, 0, -1)[None]
    code = domain_rule(TopFraction(0.5), 1).activate(values, torch.tensor([0]), measure)
    assert (code > 0).sum().item() == 10
    code = domain_rule(TopFraction(0.5), 1).activate(values.flip(1), torch.tensor([0]), measure)
    assert (code > 0).sum().item() == 90


def test_top_fraction_keeps_only_positive_values() -> None:
    code = domain_rule(TopFraction(0.5), 1).activate(torch.tensor([[-1.0, -2, -3, 1]]), torch.tensor([0]), uniform(4))
    assert code.tolist() == [[0, 0, 0, 1]]


def test_top_fraction_threshold_is_a_running_mean_of_quantiles_per_concept() -> None:
    rule = domain_rule(TopFraction(0.5, momentum=0.2), 3)
    rule.observe(torch.tensor([[4.0, 3, 2, 1], [8.0, 6, 2, 1]]), torch.tensor([1, 1]), uniform(4))
    assert rule.thresholds.tolist() == [0, 4.5, 0]
    assert rule.seen.tolist() == [False, True, False]
    rule.observe(torch.tensor([[2.0, 0.5, 0, 0], [1.0, 1, 1, 1]]), torch.tensor([1, 0]), uniform(4))
    assert_equal("thresholds", rule.thresholds, torch.tensor([1.0, 4.5 + 0.2 * (0.5 - 4.5), 0]))
    rule.observe(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), uniform(4))
    assert rule.seen.tolist() == [True, True, False]


def test_estimate_is_that_of_a_rectified_gaussian() -> None:
    """Against a Monte Carlo average over Gaussian pre-codes."""
    mean, deviation = torch.tensor([[-2.0, -0.5, 0.0, 0.7, 3.0]]), torch.tensor([[1.0, 2.0, 0.5, 1.0, 0.2]])
    draws = mean + deviation * torch.randn(200_000, 5)
    moments = mean, mean.square() + deviation.square()
    for rule, code in [
        (Rectify(), draws.clamp_min(0)),
        (SoftThreshold(0.4), (draws - 0.4).clamp_min(0)),
        (LocalTopK(2), draws.clamp_min(0)),
        (Identity(), draws),
    ]:
        estimate = domain_rule(rule, 5).estimate(*moments)
        torch.testing.assert_close(estimate, code.square().mean(0, keepdim=True), rtol=0.05, atol=2e-3)


def test_estimate_of_constant_precodes() -> None:
    """No variance: exact, and nothing for a negative constant."""
    mean = torch.tensor([[-1.0, 0.0, 2.0]])
    torch.testing.assert_close(domain_rule(Rectify(), 3).estimate(mean, mean.square()), torch.tensor([[0.0, 0.0, 4.0]]))


def test_build_rule_from_object_config_and_name() -> None:
    rule = JumpReLU(0.3, bandwidth=0.2)
    for built in (
        concept_rule(rule),
        concept_rule(rule.config()),
        concept_rule({"name": "jumprelu", "threshold": 0.3, "bandwidth": 0.2}),
    ):
        assert isinstance(built, JumpReLU)
        assert built.config() == rule.config()
        assert built.thresholds.shape == (6,)
    assert not hasattr(rule, "thresholds")
    assert isinstance(concept_rule("TOPK", 20), TopK)
    assert repr(TopK(3)) == "TopK(k=3)"
    assert rule.config() == {"name": "JumpReLU", "threshold": 0.3, "bandwidth": 0.2}


def test_a_bound_rule_binds_again() -> None:
    assert concept_rule(concept_rule(JumpReLU(0.3), 6), 9).thresholds.shape == (9,)
    for rule in (TopFraction(0.3), SoftThreshold(0.1)):
        assert domain_rule(domain_rule(rule, 6), 9).thresholds.shape == (9,)


def test_a_rule_registered_under_another_name_than_its_class() -> None:
    @concept_rules.register("all_concepts")
    class AllConcepts(ConceptRule):
        def select(self, scores: Tensor) -> Tensor:
            return scores > 0

        def candidates(self, estimate: Tensor, bound: Tensor, oversample: int) -> Tensor:
            return bound > 0

    try:
        check_rule(AllConcepts())
    finally:
        concept_rules._entries.pop("all_concepts")


def test_rules_are_refused_with_the_cause() -> None:
    with pytest.raises(ValueError, match="unknown concept rule 'TopP'; known: all, batchtopk, jumprelu, topk"):
        concept_rule("TopP")
    with pytest.raises(ValueError, match=r"unknown domain rule 'relu'; known: identity, .*, topfraction"):
        domain_rule({"name": "relu"})
    with pytest.raises(ValueError, match="Rectify is no concept rule; known: all, batchtopk"):
        concept_rule(Rectify())
    with pytest.raises(ValueError, match="TopK is no domain rule"):
        domain_rule(TopK(2))
    with pytest.raises(TypeError, match=r"a concept rule is a rule, its config .* got 3"):
        concept_rule(3)
    with pytest.raises(TypeError, match="kk"):
        concept_rule({"name": "TopK", "kk": 3})
    for rule in (TopK(7), BatchTopK(7)):
        with pytest.raises(ValueError, match="k=7 concepts per sample, but the dictionary has n_concepts=6"):
            concept_rule(rule)


@pytest.mark.parametrize("make", [TopK, BatchTopK, LocalTopK])
@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_k_is_a_positive_whole_number(make: type[Rule], k: Any) -> None:
    with pytest.raises(ValueError, match="k must be a positive whole number"):
        make(k)


def test_other_arguments_are_checked() -> None:
    for fraction in (0, -0.1, 1.5):
        with pytest.raises(ValueError, match=r"share of the domain in \(0, 1\]"):
            TopFraction(fraction)
    for arguments in ((-1, 0.1), (0.1, 0)):
        with pytest.raises(ValueError, match="threshold >= 0 and bandwidth > 0 are needed"):
            JumpReLU(*arguments)


@pytest.mark.parametrize("rule", [*CONCEPT_RULES, *DOMAIN_RULES], ids=repr)
def test_rules_on_device_and_in_double(rule: Rule, device: torch.device) -> None:
    if isinstance(rule, ConceptRule):
        built = concept_rule(rule, 12).double().to(device)
        scores = torch.rand(4, 12, dtype=torch.float64, device=device)
        mask = built.select(scores)
        assert mask.device == scores.device
        gate = built.gate(scores[mask], mask.nonzero()[:, 1])
        assert gate is None or gate.dtype == torch.float64
    else:
        built = domain_rule(rule, 12).double().to(device)
        values = torch.randn(12, 6, dtype=torch.float64, device=device)
        built.observe(values, torch.arange(12, device=device), uniform(6).to(values))
        code = built.activate(values, torch.arange(12, device=device), uniform(6).to(values))
        assert code.dtype == torch.float64
        assert code.device == values.device
    assert copy.deepcopy(built).config() == rule.config()


def test_soft_thresholds_learn_from_zero_and_from_below() -> None:
    rule = SoftThreshold()
    rule.bind(2)
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for start in (0.0, -0.5):
        rule.thresholds = torch.nn.Parameter(torch.full((2,), start))
        codes = rule.activate(values, torch.tensor([0, 1]), torch.ones(1) / 2)
        assert torch.equal(codes, values)
        codes.sum().backward()
        assert rule.thresholds.grad.tolist() == [-2.0, -2.0]
