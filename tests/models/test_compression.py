"""Dense dictionaries into factorised ones: what is exact, how errors are counted, and what is carried over."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import neuralop_sae
from neuralop_sae.layers import BatchTopK, JumpReLU, SoftThreshold, TopFraction, TopK
from neuralop_sae.layers.factorized import MixedKernels
from neuralop_sae.models import SAEFNO, SAETFNO, SAEPointwise
from neuralop_sae.models.compression import Compression, compress
from neuralop_sae.models.spectral import SpectralSAE
from neuralop_sae.testing import assert_equal, relative_error

M, P, MODES, MODE_SHAPE = 3, 20, (4, 6), (4, 4)
LAYERS = ("concept_encoder", "concept_decoder")
RANKS: dict[str, Any] = {"tucker": (3, 5, 4, 4), "tt": (1, 3, 2, 3, 1), "cp": 3}

forms = pytest.mark.parametrize("form", RANKS)
layers = pytest.mark.parametrize("layer", LAYERS)


def arguments(**changes: Any) -> dict[str, Any]:
    return {"in_channels": M, "n_concepts": P, "n_modes": MODES, "concept_rule": TopK(4)} | changes


def randomise(sae: SpectralSAE) -> None:
    """Random numbers in every parameter and statistic, not only in those that a constructor draws."""
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    sae.fit_normalization(torch.randn(M), 1.7)


def dense(**changes: Any) -> SAEFNO:
    sae = SAEFNO(**arguments(**changes))
    randomise(sae)
    return sae


def dense_like(source: SAETFNO) -> SAEFNO:
    """The same model with the weights of a factorised one, multiplied out."""
    sae = SAEFNO(**source.config() | {"factorization": None, "rank": 1.0}).to(source.dtype)
    sae.load_state_dict({k: v for k, v in source.state_dict().items() if ".weight." not in k}, strict=False)
    with torch.no_grad():
        for layer in LAYERS:
            getattr(sae, layer).conv.weight.tensor.copy_(getattr(source, layer).conv.weight.to_tensor())
    return sae


def fields(n: int = 4, **kwargs: Any) -> Tensor:
    return torch.randn(n, M, 9, 10, **kwargs)


def weight(sae: SpectralSAE, layer: str) -> Tensor:
    """A layer's spectral weight, ``(in, out, *modes)``, whatever its form."""
    return getattr(sae, layer).conv.weight.to_tensor().detach()


def two_frequencies_count_twice(weight: Tensor) -> Tensor:
    """The weight with entries scaled such that its L2 norm is that of the whole spectrum."""
    columns = torch.full((weight.shape[-1],), 2.0, dtype=weight.real.dtype).sqrt()
    columns[0] = 1
    return weight * columns


@forms
def test_what_is_of_low_rank_stays_the_same_model(form: str) -> None:
    source = SAETFNO(**arguments(factorization=form, rank=RANKS[form])).double()
    for layer in LAYERS:  # the encoder not the adjoint of the decoder
        kernels = getattr(source, layer).kernels
        assert isinstance(kernels, MixedKernels)
        kernels.reset_(0.5)
    sae = dense_like(source)
    result = compress(sae, form, RANKS[form])
    tolerance = 1e-4 if form == "cp" else 1e-12
    assert isinstance(result.sae, SAETFNO)
    assert max(result.encoder_error, result.decoder_error) < tolerance
    x = fields(dtype=torch.float64)
    codes, expected = result.sae.encode(x), sae.encode(x)
    assert torch.equal(codes.concept, expected.concept)
    assert relative_error(codes.values, expected.values) < 10 * tolerance
    assert relative_error(result.sae(x).reconstruction, sae(x).reconstruction) < 10 * tolerance


@layers
@forms
def test_error_is_that_of_the_weights_over_the_whole_spectrum(form: str, layer: str) -> None:
    sae = dense()
    result = compress(sae, form, 0.3)
    expected = relative_error(
        two_frequencies_count_twice(weight(result.sae, layer)), two_frequencies_count_twice(weight(sae, layer))
    )
    error = result.encoder_error if layer == "concept_encoder" else result.decoder_error
    assert 0.1 < error < 1
    assert error == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n_modes", [7, (4, 6), (3, 4, 3)], ids=str)
def test_no_weight_of_the_rank_is_nearer(n_modes: Any) -> None:
    """With the concept axis alone cut, the truncated singular value decomposition of the weighted kernels is the best."""
    sae = dense(n_modes=n_modes).double()
    shape = tuple(weight(sae, "concept_encoder").shape)
    kept = 7
    result = compress(sae, "tucker", (M, kept, *shape[2:]))
    values = torch.linalg.svdvals(two_frequencies_count_twice(weight(sae, "concept_encoder")).transpose(0, 1).flatten(1))
    assert result.encoder_error == pytest.approx(float(values[kept:].norm() / values.norm()), rel=1e-6)


@forms
def test_error_falls_with_rank(form: str) -> None:
    sae = dense()
    ranks = [1, 4, 12] if form == "cp" else [0.1, 0.3, 0.7]
    results = [compress(sae, form, rank) for rank in ranks]
    for errors in ([r.encoder_error for r in results], [r.decoder_error for r in results]):
        assert 1 > errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize(("form", "rank"), [("tucker", (3, 20, 4, 4)), ("tt", (1, 3, 16, 4, 1))])
def test_full_rank_is_exact(form: str, rank: Any) -> None:
    sae = dense().double()
    result = compress(sae, form, rank)
    assert max(result.encoder_error, result.decoder_error) < 1e-12
    for layer in LAYERS:
        assert_equal(layer, weight(result.sae, layer), weight(sae, layer))


VARIANTS: dict[str, dict[str, Any]] = {
    "jumprelu": {"concept_rule": JumpReLU(0.2, 0.3), "domain_rule": SoftThreshold(0.1)},
    "batchtopk": {"concept_rule": BatchTopK(3, momentum=0.2), "domain_rule": TopFraction(0.4)},
    "no skip": {"skip": None},
    "fno blocks": {"encoder": "fno_block", "decoder": "fno_block"},
    "settings": {"code_grid": (6, 7), "selection": "exact", "oversample": 2},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_all_but_the_kernels_is_carried_over(name: str, dtype: torch.dtype) -> None:
    sae = dense(**VARIANTS[name]).to(dtype)
    sae(fields())  # thresholds that run have run
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    random = torch.get_rng_state()
    new = compress(sae, rank=0.4, activations=fields(generator=torch.Generator().manual_seed(1))).sae
    assert torch.equal(torch.get_rng_state(), random)
    assert type(new) is SAETFNO
    assert new.config() == sae.config() | {"factorization": "tucker", "rank": 0.4}
    after = new.state_dict()
    kept = {key for key in before if not re.match(r"concept_(encoder|decoder)\.conv\.weight\.", key)}
    assert len(kept) == len(before) - 2
    assert kept == {key for key in after if not re.match(r"concept_(encoder|decoder)\.conv\.weight\.", key)}
    for key in kept:
        assert torch.equal(after[key], before[key]), key
        assert after[key].dtype == before[key].dtype, key
        assert after[key].untyped_storage().data_ptr() != sae.state_dict()[key].untyped_storage().data_ptr(), key
    assert {value.dtype for value in new.parameters()} <= {dtype, dtype.to_complex()}
    for key, value in sae.state_dict().items():  # the dense model is left as it was
        assert torch.equal(value, before[key]), key


def test_thresholds_that_ran_are_those_of_the_dense_model() -> None:
    """A guard on the test before: there is something to carry over."""
    sae = dense(**VARIANTS["batchtopk"])
    sae(fields())
    new = compress(sae, rank=0.4).sae
    assert isinstance(new.concept_rule, BatchTopK)
    assert new.concept_rule.n_batches == 1
    assert new.concept_rule.threshold > 0
    assert new.domain_rule.seen.any()


def test_flags_are_carried_over() -> None:
    for training in (True, False):
        sae = dense(encoder="fno_block").train(training)
        sae.encoder_trunk.train(not training).requires_grad_(False)
        new = compress(sae, rank=0.4, activations=fields()).sae
        for model in (sae, new):
            assert (model.training, model.concept_rule.training, model.encoder_trunk.training) == (
                training,
                training,
                not training,
            )
            frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
            assert frozen == {f"encoder_trunk.{name}" for name, _ in sae.encoder_trunk.named_parameters()}


def test_model_stays_on_its_device(device: torch.device) -> None:
    sae = dense().to(device)
    x = fields().to(device)
    result = compress(sae, rank=0.4, activations=x.cpu())
    assert {tensor.device.type for tensor in result.sae.state_dict().values()} == {device.type}
    assert result.sae(x).reconstruction.isfinite().all()


def test_a_kind_of_its_own_makes_its_own_factorised_one() -> None:
    class Mine(SAEFNO, name="MineForCompress"):  # type: ignore[call-arg]
        pass

    new = compress(Mine(**arguments()), rank=0.4).sae
    assert type(new) is Mine
    assert isinstance(new.concept_encoder.kernels, MixedKernels)


def test_parameters_are_counted_as_real_numbers() -> None:
    result = compress(dense(), "tucker", (3, 5, 4, 2))
    assert result.dense_n_parameters == 2 * 2 * M * P * math.prod(MODE_SHAPE)
    assert result.n_parameters == 2 * 2 * (3 * 5 * 4 * 2 + M * 3 + P * 5 + 4 * 4 + 4 * 2)


def test_variance_explained_is_that_of_evaluate() -> None:
    sae = dense(concept_rule=BatchTopK(3))
    sae(fields())
    x = fields(7)
    result = compress(sae, rank=0.5, activations=x, batch_size=3)
    assert sae.training
    assert result.dense_fve == pytest.approx(neuralop_sae.evaluate(sae, x)["fve"], rel=1e-5)
    assert result.fve == pytest.approx(neuralop_sae.evaluate(result.sae, x)["fve"], rel=1e-5)
    assert result.fve != result.dense_fve


def test_readable() -> None:
    plain = Compression(compress(dense(), rank=0.4).sae, 0.25, 0.5, 1200, 9600)
    text = "Compression(SAETFNO, tucker, rank 0.4: 1,200 of 9,600 spectral parameters (12.5%)"
    assert repr(plain) == f"{text}, relative error 0.25 (encoder), 0.5 (decoder))"
    measured = Compression(plain.sae, 0.25, 0.5, 1200, 9600, 0.5, 0.75)
    assert repr(measured).endswith("0.5 (decoder), FVE 0.500, was 0.750)")


@forms
def test_result_is_saved_and_loaded(form: str, tmp_path: Path) -> None:
    sae = compress(dense(concept_rule=JumpReLU(0.2)), form, 0.3).sae.eval()
    sae.save_pretrained(tmp_path)
    loaded = neuralop_sae.load(tmp_path)
    assert type(loaded) is SAETFNO
    x = fields()
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)


@forms
def test_fine_tuning_goes_on_from_it(form: str) -> None:
    x = 0.2 + dense(concept_rule="All", domain_rule="Identity").decode(SAEFNO(**arguments()).encode(fields(32))).detach()
    sae = SAEFNO(**arguments())
    neuralop_sae.train(sae, x, neuralop_sae.TrainingConfig(n_epochs=10, learning_rate=1e-2), progress=False)
    result = compress(sae, form, 0.3, activations=x)
    config = neuralop_sae.TrainingConfig(n_epochs=5, initialize=False, normalize=False)
    neuralop_sae.train(result.sae, x, config, progress=False)
    assert result.fve is not None
    assert result.dense_fve is not None
    assert result.fve < result.dense_fve
    tuned = neuralop_sae.evaluate(result.sae, x)["fve"]
    assert tuned > result.fve + 0.3 * (result.dense_fve - result.fve)


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (SAEPointwise(3, 8, k=2), "compress takes an SAEFNO, or a spectral SAE .*, got SAEPointwise"),
        (torch.nn.Linear(2, 2), "got Linear"),
        (None, "got NoneType"),
    ],
    ids=str,
)
def test_other_models_are_refused(sae: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        compress(sae)


@pytest.mark.parametrize("encoder", ["tied", "unrolled"])
def test_encoders_without_weights_are_refused(encoder: str) -> None:
    with pytest.raises(ValueError, match=f"weights of its own.*is '{encoder}'"):
        compress(SAEFNO(3, 8, (5, 5), encoder=encoder), rank=0.3)


def test_factorised_models_are_refused() -> None:
    for sae in (SAETFNO(**arguments(rank=0.3)), SAEFNO(**arguments(factorization="cp", rank=0.3))):
        with pytest.raises(ValueError, match=r"is factorised already \((tucker|cp), rank 0.3\); compress the dense model"):
            compress(sae)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"factorization": "svd"}, ValueError, "no ranks for factorization 'svd'; known: tucker, cp, tt"),
        ({"factorization": "dense"}, ValueError, "known: tucker, cp, tt"),
        ({"factorization": None}, TypeError, "factorization is a name, 'tucker', 'cp' or 'tt', got None"),
        ({"factorization": ""}, ValueError, "factorization='tucker', 'cp' or 'tt'"),
        ({"rank": 0.0}, ValueError, "rank 0.0 as a share of the dense parameters has to be in (0, 1]"),
        ({"rank": 1.5}, ValueError, "rank 1.5 as a share"),
        ({"rank": math.nan}, ValueError, "rank nan as a share"),
        ({"rank": 0}, ValueError, "rank 0 is impossible for tucker; allowed: 4 ranks from 1 to (3, 20, 4, 4), or an int"),
        ({"rank": (3, 21, 4, 4)}, ValueError, "rank (3, 21, 4, 4) is impossible for tucker"),
        ({"rank": (3, 5, 4)}, ValueError, "rank (3, 5, 4) is impossible for tucker"),
        ({"factorization": "tt", "rank": (1, 3, 2, 1)}, ValueError, "impossible for tt; allowed: 5 ranks"),
        ({"factorization": "cp", "rank": (3, 3)}, ValueError, "rank (3, 3) is impossible for cp; allowed: from 1 to"),
        ({"rank": "full"}, TypeError, "a float in (0, 1]), an int or a sequence of ints, got 'full'"),
        ({"rank": True}, TypeError, "got True"),
        ({"rank": None}, TypeError, "got None"),
        ({"rank": (3, 0.5, 4, 4)}, TypeError, "got (3, 0.5, 4, 4)"),
        ({"activations": [1.0]}, TypeError, "activations are a tensor (N, channels, *grid), got list"),
        ({"activations": torch.zeros(2, M + 1, 8, 8)}, ValueError, "axis 1 (channels) must be 3, got 4"),
        ({"activations": torch.zeros(0, M, 8, 8)}, ValueError, "the field is empty"),
    ],
    ids=str,
)
def test_refused_before_any_work(
    changes: dict[str, Any], kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("decomposed")

    monkeypatch.setattr("neuralop_sae.models.compression.decompose_", work)
    sae = dense()
    with pytest.raises(kind, match=re.escape(message)):
        compress(sae, **changes)


def test_weights_that_are_not_finite_are_refused() -> None:
    sae = dense()
    with torch.no_grad():
        sae.concept_decoder.conv.weight.tensor[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        compress(sae)
