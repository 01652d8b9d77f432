"""SAEFNO: the shipped contract on every kind, and constructor arguments."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from neuralop.layers.fno_block import FNOBlocks
from neuralop.layers.spectral_convolution import SpectralConv

from neuralop_sae.layers import BatchTopK, FourierConv, JumpReLU, LocalTopK, SoftThreshold, TopFraction, TopK
from neuralop_sae.models import SAEFNO
from neuralop_sae.testing import check_model

VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "defaults": ({"n_concepts": 20}, (8, 9)),
    "1-d": ({"n_modes": 7, "concept_rule": TopK(2)}, (12,)),
    "3-d": ({"n_modes": (3, 4, 3), "concept_rule": BatchTopK(2)}, (5, 6, 5)),
    "fixed code grid": ({"code_grid": (6, 7), "concept_rule": JumpReLU(0.2, 0.3), "domain_rule": LocalTopK(2)}, (9, 8)),
    "fno blocks": ({"encoder": "fno_block", "decoder": "fno_block", "concept_rule": TopK(2)}, (7, 8)),
    "no skip, tucker": ({"skip": None, "factorization": "Tucker", "rank": 0.5, "concept_rule": TopK(3)}, (8, 8)),
    "cp, exact": ({"factorization": "cp", "rank": 0.5, "selection": "exact", "concept_rule": BatchTopK(2)}, (8, 8)),
    "tt, energy": ({"factorization": "tt", "rank": 0.5, "selection": "energy", "domain_rule": SoftThreshold(0.1),
                    "concept_rule": TopK(3)}, (8, 8)),
    "top fraction": ({"domain_rule": TopFraction(0.3), "concept_rule": BatchTopK(3), "oversample": 1}, (9, 9)),
    "more modes than the grid": ({"n_modes": (9, 12), "concept_rule": TopK(2)}, (6, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_contract(name: str) -> None:
    arguments, grid = VARIANTS[name]
    defaults: dict[str, Any] = {"in_channels": 3, "n_concepts": 6, "n_modes": (5, 4)}
    sae = SAEFNO(**(defaults | arguments))
    x = 1 + 2 * torch.randn(3, 3, *grid)
    sae.fit_normalization(torch.ones(3), 2.0)
    sae.initialize_from(x)
    with torch.no_grad():
        sae.concept_encoder.conv.bias.normal_(0, 0.1)
    for _ in range(2):  # thresholds that run have run
        sae(1 + 2 * torch.randn(3, 3, *grid))  # not x: its weakest concept would sit on the threshold to round-off
    check_model(sae, x)


def test_weights_are_neuralops_own() -> None:
    sae = SAEFNO(3, 6, (5, 4), concept_rule=TopK(2), encoder="fno_block", factorization="tucker", rank=0.5)
    for layer in (sae.concept_encoder, sae.concept_decoder):
        assert type(layer.conv) is SpectralConv
        assert layer.conv.fft_norm == "forward"
        assert layer.conv.weight.name.endswith("Tucker")
    assert isinstance(sae.encoder_trunk, FNOBlocks)
    assert isinstance(sae.encoder_trunk.convs[0], FourierConv)
    assert isinstance(sae.decoder_trunk, torch.nn.Identity)
    assert sae.concept_encoder.conv.weight.shape == (3, 6, 5, 3)


def test_n_modes_forms() -> None:
    assert SAEFNO(3, 6, 5, concept_rule=TopK(2)).n_modes == (5,)
    assert SAEFNO(3, 6, [5, 4], concept_rule=TopK(2)).n_dim == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concept_rule": TopK(9)}, "k=9 concepts per sample, but the dictionary has n_concepts=6"),
        ({"concept_rule": "TopP"}, "unknown concept rule 'TopP'; known: all, batchtopk, jumprelu, topk"),
        ({"domain_rule": {"name": "relu"}}, "unknown domain rule 'relu'; known: identity"),
        ({"concept_rule": LocalTopK(2)}, "LocalTopK is no concept rule"),
        ({"encoder": "mlp"}, "unknown encoder 'mlp'; known: linear, fno_block"),
        ({"decoder": "mlp"}, "unknown decoder 'mlp'; known: linear, fno_block"),
        ({"selection": "best"}, "unknown selection 'best'; known: energy, two_stage, exact"),
        ({"skip": "soft-gating"}, "unknown skip 'soft-gating'"),
        ({"oversample": 0}, "oversample must be a positive int, got 0"),
        ({"oversample": True}, "oversample must be a positive int, got True"),
        ({"code_grid": "output"}, "code_grid is 'input' or a grid of 2 sizes, got 'output'"),
        ({"code_grid": (8,)}, "a grid of 2 positive sizes is needed, got (8,)"),
        ({"code_grid": (8, 0)}, "a grid of 2 positive sizes is needed, got (8, 0)"),
        ({"n_modes": ()}, "n_modes needs one positive number per dimension, got ()"),
        ({"n_modes": (5, 0)}, "n_modes needs one positive number per dimension, got (5, 0)"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    defaults: dict[str, Any] = {"in_channels": 3, "n_concepts": 6, "n_modes": (5, 4), "concept_rule": TopK(2)}
    with pytest.raises(ValueError, match=re.escape(message)):
        SAEFNO(**(defaults | arguments))


def test_unknown_factorization_is_refused_with_the_known() -> None:
    with pytest.raises(ValueError, match="factorization"):
        SAEFNO(3, 6, (5, 4), concept_rule=TopK(2), factorization="svd")


def test_unknown_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="n_atoms"):
        SAEFNO(3, 6, (5, 4), n_atoms=3)  # type: ignore[call-arg]


def test_the_callers_rule_stays_the_callers() -> None:
    rule = BatchTopK(2)
    first, second = SAEFNO(3, 6, 5, concept_rule=rule), SAEFNO(3, 8, 5, concept_rule=rule)
    first(torch.randn(2, 3, 8))
    assert rule.n_batches == 0
    assert second.concept_rule.n_batches == 0
    assert first.concept_rule.n_batches == 1


@pytest.mark.parametrize("n_concepts", [1, 6, 40])
def test_a_dictionary_of_any_size_works_with_the_defaults(n_concepts: int) -> None:
    sae = SAEFNO(3, n_concepts, 5)
    assert sae(torch.randn(2, 3, 8)).reconstruction.isfinite().all()
