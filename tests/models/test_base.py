"""What every SAE is: argument and input checks, statistics, casting, nesting, DDP, copies."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from neuralop.models import FNO, get_model
from neuralop.models.base_model import BaseModel
from torch import nn

from neuralop_sae.layers import BatchTopK, JumpReLU, TopFraction, TopK
from neuralop_sae.models import PCA, SAE, SAECNN, SAEFNO, SAEMLP, SAEPointwise, saes
from neuralop_sae.testing import assert_equal


def make(**kwargs: Any) -> Any:
    defaults: dict[str, Any] = {
        "in_channels": 3,
        "n_concepts": 6,
        "n_modes": (5, 4),
        "concept_rule": TopK(2),
        "domain_rule": "Rectify",
    }
    return SAEFNO(**(defaults | kwargs))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Config(dict):
    """What zencfg and configmypy hand to get_model: a dict with attributes, nested."""

    def __init__(self, **entries: Any) -> None:
        super().__init__({k: Config(**v) if isinstance(v, dict) else v for k, v in entries.items()})

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def copy(self) -> Config:
        return Config(**self)


@pytest.mark.parametrize("arch", ["saefno", "SAEFNO", "saetfno"])
def test_get_model(arch: str) -> None:
    model = {"model_arch": arch, "data_channels": 3, "n_concepts": 6, "n_modes": [5, 4],
             "concept_rule": {"name": "JumpReLU", "threshold": 0.2}, "domain_rule": "Rectify"}  # fmt: skip
    sae = get_model(Config(model=model))
    assert isinstance(sae, SAEFNO)
    assert isinstance(sae, BaseModel)
    assert sae.in_channels == 3
    assert sae.concept_rule.config() == {"name": "JumpReLU", "threshold": 0.2, "bandwidth": 0.1}
    assert type(sae.config()["concept_rule"]) is dict
    patched = get_model(Config(model=model, patching={"levels": 1}))
    assert patched.in_channels == 6


def test_get_model_names_unknown_arguments() -> None:
    config = Config(model={"model_arch": "saefno", "data_channels": 3, "n_concepts": 6, "n_modes": [5, 4], "hidden": 3})
    with pytest.raises(TypeError, match="hidden"):
        get_model(config)


def test_registered_once_by_name() -> None:
    assert BaseModel._models["saefno"] is SAEFNO
    assert saes.get("SAEFNO") is SAEFNO


def test_config_is_the_constructor_arguments() -> None:
    sae = make(code_grid=(6, 6), rank=(2, 3, 2, 2), factorization="tucker", concept_rule="JumpReLU")
    names = [name for name in inspect.signature(SAEFNO.__init__).parameters if name != "self"]
    assert list(sae.config()) == names
    assert SAEFNO(**sae.config()).config() == sae.config()
    assert sae.config()["rank"] == [2, 3, 2, 2]
    assert sae.config()["code_grid"] == [6, 6]


@pytest.mark.parametrize("name", ["in_channels", "n_concepts"])
@pytest.mark.parametrize("value", [0, -2, 2.0, True, "3"])
def test_sizes_are_positive_ints(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive int, got {value!r}"):
        make(**{name: value})


BAD_FIELDS: dict[str, Any] = {
    "a field is a tensor .batch, channels=3, d1, d2., got list": ([1.0], TypeError),
    "is real, got dtype torch.complex64": (torch.zeros(1, 3, 8, 8, dtype=torch.cfloat), TypeError),
    "is real, got dtype torch.bool": (torch.zeros(1, 3, 8, 8, dtype=torch.bool), TypeError),
    "this 2-d model has 4 axes .batch, channels=3, d1, d2., got 5": (torch.zeros(1, 3, 8, 8, 8), ValueError),
    "this 2-d model has 4 axes .batch, channels=3, d1, d2., got 3": (torch.zeros(3, 8, 8), ValueError),
    r"axis 1 .channels. must be 3, got 8 in .2, 8, 8, 3.": (torch.zeros(2, 8, 8, 3), ValueError),
    "the field is empty": (torch.zeros(0, 3, 8, 8), ValueError),
    "the field is empty: .1, 3, 0, 8.": (torch.zeros(1, 3, 0, 8), ValueError),
}


@pytest.mark.parametrize("message", BAD_FIELDS)
def test_fields_are_checked_with_the_axes_named(message: str) -> None:
    x, kind = BAD_FIELDS[message]
    for call in (make(), make().encode, make().dense_forward):
        with pytest.raises(kind, match=message):
            call(x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_fields_that_are_not_finite_are_refused_by_sample(value: float) -> None:
    x = torch.zeros(4, 3, 8, 8)
    x[1, 2, 3, 4] = x[3, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"NaN or Inf in samples \[1, 3\]"):
        make()(x)


def test_a_finite_field_whose_sum_overflows_is_no_nan() -> None:
    x = torch.full((1, 3, 8, 8), 1e37)
    sae = make()
    sae.fit_normalization(torch.zeros(3), 1e37)
    assert sae(x).reconstruction.isfinite().all()


def test_a_4d_field_for_a_1d_model() -> None:
    with pytest.raises(ValueError, match=r"this 1-d model has 3 axes \(batch, channels=3, d1\), got 4"):
        make(n_modes=5)(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_fields_of_other_dtypes_are_cast_to_the_models(dtype: torch.dtype) -> None:
    sae, x = make().eval(), (3 * torch.randn(2, 3, 8, 8)).to(dtype)
    out = sae(x)
    assert out.reconstruction.dtype == torch.float32
    assert torch.equal(out.reconstruction, sae(x.float()).reconstruction)


def test_normalisation_is_inside_the_model() -> None:
    """A model fitted to the statistics of a x + b reconstructs it as it does x."""
    sae, x = make().eval(), torch.randn(2, 3, 8, 8)
    plain = sae(x)
    mean = torch.tensor([1.0, -2, 30])
    sae.fit_normalization(mean, 7.0)
    moved = sae(7 * x + mean.view(3, 1, 1))
    assert_equal("reconstruction", moved.reconstruction, 7 * plain.reconstruction + mean.view(3, 1, 1))
    assert_equal("codes", moved.codes.values, plain.codes.values)
    assert_equal("round trip", sae.denormalize(sae.normalize(x)), x)
    constant = mean.view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert_equal("the mean field", sae(constant).reconstruction, constant.contiguous())


@pytest.mark.parametrize(
    ("mean", "scale"), [([0.0, 0, 0], 0.0), ([0.0, 0, 0], -1), ([0.0, float("nan"), 0], 1), ([0.0] * 3, float("inf"))]
)
def test_bad_statistics_are_refused(mean: list[float], scale: float) -> None:
    with pytest.raises(ValueError, match="mean must be finite and scale positive"):
        make().fit_normalization(torch.tensor(mean), scale)


def test_check_concepts() -> None:
    assert make().check_concepts([5, 0]).tolist() == [5, 0]
    with pytest.raises(ValueError, match=r"concepts \[6, -1\] are out of range: this model has concepts 0 to 5"):
        make().check_concepts([6, 2, -1])


@pytest.mark.parametrize("factorization", [None, "tucker", "cp", "tt"])
@pytest.mark.parametrize("kind", ["linear", "fno_block"])
def test_double_casts_every_tensor_and_back(factorization: str | None, kind: str) -> None:
    sae = make(factorization=factorization, rank=0.5, encoder=kind, concept_rule=BatchTopK(2), domain_rule=TopFraction(0.3))
    parameters = list(sae.parameters())
    before = copy.deepcopy(sae.state_dict())
    sae.double()
    dtypes = {t.dtype for t in sae.state_dict().values()}
    assert dtypes <= {torch.float64, torch.complex128, torch.int64, torch.bool}
    assert torch.complex128 in dtypes
    assert [id(p) for p in sae.parameters()] == [id(p) for p in parameters], "an optimiser made before would be lost"
    assert sae.dtype == torch.float64
    assert sae(torch.randn(2, 3, 8, 8)).reconstruction.dtype == torch.float64
    sae = make(factorization=factorization, rank=0.5, encoder=kind, concept_rule=BatchTopK(2), domain_rule=TopFraction(0.3))
    sae.load_state_dict(before)
    sae.to(torch.float64).to(dtype=torch.float32)
    for name, tensor in sae.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_casting_inside_a_parent_and_gradients() -> None:
    parent: Any = nn.Sequential(make())
    parent[0](torch.randn(2, 3, 8, 8)).reconstruction.sum().backward()
    parent.double()
    weight = parent[0].concept_decoder.conv.weight.tensor
    assert weight.dtype == weight.grad.dtype == torch.complex128


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
@pytest.mark.parametrize(
    "model",
    [make(), SAEMLP(3, 8, (6, 6), k=2), SAECNN(3, 8, (3, 3)), SAEPointwise(3, 8), PCA(3, 2)],
    ids=lambda model: type(model).__name__,
)
def test_half_precision_is_refused_with_the_way_out(cast: str, model: SAE) -> None:
    with pytest.raises(TypeError, match=r"runs in float32 or float64, .* use autocast"):
        getattr(model, cast)()
    assert {tensor.dtype for tensor in model.state_dict().values()} <= {
        torch.float32,
        torch.complex64,
        torch.int64,
        torch.bool,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "fno_block"])
def test_autocast_changes_nothing(dtype: torch.dtype, kind: str) -> None:
    sae, x = make(encoder=kind, decoder=kind, concept_rule=JumpReLU(0.01)).eval(), torch.randn(2, 3, 8, 8)
    expected, atoms = sae(x), sae.atoms([1], (8, 8))
    with torch.autocast("cpu", dtype=dtype):
        out, codes = sae(x), sae.encode(x)
        assert torch.equal(out.reconstruction, expected.reconstruction)
        assert torch.equal(codes.values, expected.codes.values)
        assert torch.equal(sae.decode(codes, (8, 8)), expected.reconstruction)
        assert torch.equal(sae.dense_forward(x).reconstruction, sae.dense_forward(x).reconstruction)
        assert torch.equal(sae.atoms([1], (8, 8)), atoms)
        sae(x.to(dtype)).reconstruction.sum().backward()


def test_nested_state_dict_loads_strictly_and_without_warnings() -> None:
    parent, other = nn.Sequential(make(), make()), nn.Sequential(make(), make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = parent.state_dict()
        other.load_state_dict(state, strict=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert "_metadata" not in state
    x = torch.randn(2, 3, 8, 8)
    for mine, theirs in zip(parent.eval(), other.eval(), strict=True):
        assert torch.equal(mine(x).reconstruction, theirs(x).reconstruction)
    assert "_metadata" in nn.Sequential(FNO((4,), 1, 1, 4)).state_dict()  # when this fails, upstream is mended


def test_state_dict_arguments() -> None:
    sae = make()
    prefixed = sae.state_dict(prefix="sae.")
    assert set(prefixed) == {f"sae.{name}" for name in sae.state_dict()}
    assert sae.state_dict(keep_vars=True)["concept_decoder.conv.bias"].requires_grad
    destination: dict[str, torch.Tensor] = {}
    sae.state_dict(destination=destination)
    assert set(destination) == set(sae.state_dict())
    state = sae.state_dict()
    names = set(state)
    sae.load_state_dict(state)
    assert set(state) == names, "the caller's state dict changed"


@pytest.mark.parametrize("rule", [BatchTopK(2), JumpReLU(0.05, 0.1)], ids=repr)
@pytest.mark.filterwarnings("error:Grad strides do not match")
def test_distributed_data_parallel(rule: Any, process_group: None) -> None:
    sae, alone = make(concept_rule=rule), None
    alone = copy.deepcopy(sae)
    ddp = nn.parallel.DistributedDataParallel(sae)
    x = torch.randn(4, 3, 8, 8)
    for model in (ddp, alone):
        out = model(x)
        loss = out.reconstruction.square().sum() + (out.gates.sum() if out.gates is not None else 0)
        loss.backward()
    for (name, mine), theirs in zip(sae.named_parameters(), alone.parameters(), strict=True):
        assert_equal(name, mine.grad, theirs.grad, scale=1e-3)
    other = nn.parallel.DistributedDataParallel(make(concept_rule=rule))
    other.load_state_dict(ddp.state_dict(), strict=True)
    assert torch.equal(other.eval()(x).reconstruction, ddp.eval()(x).reconstruction)


def test_deepcopy_is_independent() -> None:
    sae = make(concept_rule=BatchTopK(2), domain_rule=TopFraction(0.4))
    sae(torch.randn(2, 3, 8, 8))
    copied, x = copy.deepcopy(sae).eval(), torch.randn(2, 3, 8, 8)
    expected = copied(x).reconstruction
    sae(torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
    assert torch.equal(copied(x).reconstruction, expected)


def test_averaged_model() -> None:
    sae, x = make(), torch.randn(2, 3, 8, 8)
    averaged = torch.optim.swa_utils.AveragedModel(sae)
    averaged.update_parameters(sae)
    first = {name: parameter.detach().clone() for name, parameter in sae.named_parameters()}
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.mul_(3)
    averaged.update_parameters(sae)
    for name, parameter in averaged.module.named_parameters():
        assert_equal(name, parameter, 2 * first[name])
    other = torch.optim.swa_utils.AveragedModel(make())
    other.load_state_dict(averaged.state_dict(), strict=True)
    assert torch.equal(other.eval()(x).reconstruction, averaged.eval()(x).reconstruction)


def test_optimisers_update_complex_weights() -> None:
    sae, x = make(), torch.randn(4, 3, 8, 8)
    optimiser = torch.optim.Adam(sae.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = (sae(x).reconstruction - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_inference_mode_before_training() -> None:
    sae, x = make(), torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        sae(x)
        sae.atoms([0], (8, 8))
    sae(x).reconstruction.sum().backward()
    assert sae.concept_decoder.conv.weight.tensor.grad.isfinite().all()


def test_sae_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        SAE(3, 4)  # type: ignore[abstract]


def test_an_unregistered_subclass_says_so_on_load(tmp_path: Path) -> None:
    class Mine(SAEFNO, name="test_mine"):  # type: ignore[call-arg]
        pass

    sae = Mine(3, 6, 5, concept_rule=TopK(2))
    sae.save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"unknown sparse autoencoder 'Mine'; known: .*saefno"):
        Mine.from_pretrained(tmp_path / "mine")
