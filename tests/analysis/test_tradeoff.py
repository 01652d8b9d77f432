"""Variance explained at another k against a model made with that k."""

from __future__ import annotations

import pytest
import torch

from neuralop_sae import SAEFNO, BatchTopK, LocalTopK, Rectify, TopK, evaluate
from neuralop_sae.analysis.tradeoff import fve_by_k


def test_equals_a_model_made_with_that_k() -> None:
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    for rules in (lambda k: {"concept_rule": TopK(k)}, lambda k: {"domain_rule": LocalTopK(k)}):
        torch.manual_seed(0)
        sae = SAEFNO(2, 6, (5, 5), **rules(6))
        curve = fve_by_k(sae, x, [1, 3, 6], batch_size=3)
        for k, fve in curve.items():
            same = SAEFNO(2, 6, (5, 5), **rules(k))
            same.load_state_dict(sae.state_dict())
            assert fve == pytest.approx(evaluate(same, x)["fve"], abs=1e-6)
        assert evaluate(sae, x)["fve"] == pytest.approx(curve[6], abs=1e-6), "its own k is not restored"
        assert len(set(curve.values())) == 3


def test_refuses_what_has_no_k() -> None:
    x = torch.randn(2, 2, 8, 8)
    with pytest.raises(ValueError, match="n_concepts=4, got \\[5\\]"):
        fve_by_k(SAEFNO(2, 4, (3, 3), concept_rule=TopK(2)), x, [2, 5])
    with pytest.raises(ValueError, match="have none"):
        fve_by_k(SAEFNO(2, 4, (3, 3), concept_rule=BatchTopK(2), domain_rule=Rectify()), x)
