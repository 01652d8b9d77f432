"""SAEFNO: the shipped contract on every kind, and constructor arguments."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from neuralop.layers.fno_block import FNOBlocks
from neuralop.layers.spectral_convolution import SpectralConv

from neuralop_sae.layers import BatchTopK, FourierConv, JumpReLU, LocalTopK, SoftThreshold, TopFraction, TopK
from neuralop_sae.layers.rows import RowGradients
from neuralop_sae.models import SAEFNO, SAETFNO
from neuralop_sae.testing import assert_equal, check_model

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


def test_blocks_of_one_channel_have_a_hidden_one() -> None:
    sae = SAEFNO(1, 6, (5, 4), encoder="fno_block", decoder="fno_block")
    check_model(sae, torch.randn(3, 1, 7, 8))


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


FORMS = [("tucker", 0.3), ("cp", 0.3), ("tt", 0.4), ("ComplexTucker", 0.3), ("tucker", (3, 5, 4, 2)), ("tt", (1, 3, 4, 2, 1))]


@pytest.mark.parametrize("skip", ["linear", None])
@pytest.mark.parametrize(("factorization", "rank"), FORMS)
def test_factorised_contract(factorization: str, rank: Any, skip: str | None) -> None:
    sae = SAETFNO(3, 16, (5, 4), concept_rule=TopK(4), factorization=factorization, rank=rank, skip=skip)
    x = torch.randn(3, 3, 8, 9)
    sae.initialize_from(x)
    check_model(sae, x)


@pytest.mark.parametrize("factorization", ["tucker", "cp", "tt"])
def test_a_share_of_the_dense_parameters(factorization: str) -> None:
    share, sizes = 0.1, (16, 2048, (9, 9))
    sae = SAETFNO(*sizes, factorization=factorization, rank=share)
    dense = 16 * 2048 * 9 * 5
    for layer in (sae.concept_encoder, sae.concept_decoder):
        spent = sum(parameter.numel() for parameter in layer.conv.weight.parameters())
        assert share * dense / 2 < spent <= share * dense


@pytest.mark.parametrize("factorization", ["tucker", "cp", "tt"])
def test_kernels_start_as_unit_atoms_and_the_encoder_as_their_adjoint(factorization: str) -> None:
    sae = SAETFNO(4, 64, (5, 5), factorization=factorization, rank=0.3, concept_rule=TopK(8))
    torch.testing.assert_close(sae.kernel_norms(), torch.ones(64))
    rows = [layer.kernels.rows(slice(None)) for layer in (sae.concept_encoder, sae.concept_decoder)]
    torch.testing.assert_close(rows[0], rows[1].conj())


@pytest.mark.parametrize("factorization", ["tucker", "cp", "tt"])
def test_nothing_of_the_size_of_the_dense_dictionary_is_formed(factorization: str) -> None:
    """In a step with its gradients by row."""
    sae = SAETFNO(8, 1024, (7, 7), factorization=factorization, rank=0.03, concept_rule=TopK(4), domain_rule="Rectify")
    x = torch.randn(2, 8, 12, 12)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            leaves = torch.utils._pytree.tree_leaves(out)
            largest = max([largest, *(t.numel() for t in leaves if isinstance(t, torch.Tensor))])
            return out

    with Watch(), RowGradients() as rows:
        sae(x).reconstruction.square().sum().backward()
        for gradient in rows.sums():
            list(gradient.chunks(2**20))
    assert largest < 1024 * 8 * 28 / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factorization": "svd"}, "no ranks for factorization 'svd'; known: tucker, cp, tt"),
        ({"factorization": None}, "SAETFNO is factorised"),
        ({"rank": 1.5}, r"rank 1.5 as a share of the dense parameters has to be in \(0, 1\]"),
        ({"rank": (3, 5)}, r"rank \(3, 5\) is impossible for tucker; allowed: 4 ranks"),
        ({"factorization": "cp", "rank": 0}, "rank 0 is impossible for cp"),
    ],
)
def test_bad_factorisations(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAETFNO(**{"in_channels": 3, "n_concepts": 16, "n_modes": (5, 4), **arguments})


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the compiler's own
@pytest.mark.slow
@pytest.mark.parametrize("factorization", [None, "tucker"])
def test_compiled_is_eager(factorization: str | None) -> None:
    sae = SAEFNO(3, 12, (5, 4), concept_rule=TopK(3), factorization=factorization, rank=0.5)
    x = torch.randn(2, 3, 8, 9)
    compiled: Any = torch.compile(sae, backend="eager")
    for training in (True, False):
        sae.train(training)
        gradients = []
        for model in (compiled, sae):
            sae.zero_grad()
            out = model(x).reconstruction
            out.square().sum().backward()
            gradients.append([out.detach(), *(parameter.grad.clone() for parameter in sae.parameters())])
        for mine, reference in zip(*gradients, strict=True):
            assert_equal("compiled", mine, reference)
