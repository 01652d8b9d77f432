"""Losses other than the unexplained variance: neuralop's, torch's and a user's own."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from neuralop import H1Loss, LpLoss
from neuralop.losses import WeightedSumLoss
from torch import Tensor, nn

from neuralop_sae import SAEFNO, SAESFNO, FourierBasis, TopK, TrainingConfig, train
from neuralop_sae.training.losses import describe_loss, domain_penalty, per_field
from neuralop_sae.training.statistics import channel_statistics

CONFIG = TrainingConfig(n_epochs=12, batch_size=8, learning_rate=1e-2, log_every=3, dead_after=20)


def fields(n: int = 24, grid: tuple[int, int] = (12, 10)) -> Tensor:
    """Few smooth patterns mixed into four channels, on an offset."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.randn(n, 3, 5, 3, dtype=torch.cfloat, generator=generator)
    patterns = torch.relu(FourierBasis((5, 5)).synthesis(spectrum, grid))
    return torch.einsum("ci,bi...->bc...", torch.randn(4, 3, generator=generator), patterns) + 2.0


def model() -> SAEFNO:
    torch.manual_seed(0)
    return SAEFNO(4, 12, (5, 5), concept_rule=TopK(4))


def absolute(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).abs().mean()


LOSSES: dict[str, Any] = {
    "LpLoss": LpLoss(d=2, p=2),
    "LpLoss, p=1": LpLoss(d=2, p=1),
    "LpLoss, absolute": LpLoss(d=2, reduction="mean").abs,
    "H1Loss": H1Loss(d=2),
    "WeightedSumLoss": WeightedSumLoss([LpLoss(d=2), H1Loss(d=2)]),
    "torch": nn.MSELoss(),
    "a function": absolute,
}


@pytest.mark.parametrize("name", LOSSES)
def test_training_lowers_the_loss_and_reports_what_is_explained_beside_it(name: str) -> None:
    loss, sae, x = LOSSES[name], model(), fields()
    sae.fit_normalization(*channel_statistics([sae], x, 8)[0])
    sae.initialize_from(x, torch.Generator().manual_seed(0))
    value = per_field(loss, x)
    with torch.no_grad():
        before = float(value(sae(x).reconstruction, x))
    history = train(sae, x, CONFIG.model_copy(update={"normalize": False, "initialize": False}), loss=loss, progress=False)
    with torch.no_grad():
        out = sae(x).reconstruction
        after = float(value(out, x))
    assert after < 0.7 * before
    assert history["loss"][-1] == pytest.approx(after, rel=0.3)  # of the batches of the last steps, and of all fields after
    explained = 1 - (out - x).square().mean() / (x - x.mean((0, 2, 3), keepdim=True)).square().mean()
    assert history["fve"][-1] == pytest.approx(float(explained), abs=0.1)
    assert abs(history["loss"][-1] - (1 - history["fve"][-1])) > 1e-3


def test_the_unexplained_variance_as_a_users_loss_learns_the_same() -> None:
    default, own, x = model(), model(), fields()
    scale = channel_statistics([default], x, 8)[0][1]
    expected = train(default, x, CONFIG, progress=False)
    found = train(own, x, CONFIG, loss=lambda p, t: (p - t).square().mean() / scale**2, progress=False)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert found["fve"] == pytest.approx(expected["fve"], rel=1e-3)
    assert expected["loss"] == pytest.approx([1 - fve for fve in expected["fve"]])


SUMS: dict[str, Any] = {
    "LpLoss": LpLoss(d=2),
    "H1Loss": H1Loss(d=2),
    "absolute": LpLoss(d=2).abs,
    "WeightedSumLoss": WeightedSumLoss([LpLoss(d=2), H1Loss(d=2)]),
    "torch": nn.MSELoss(reduction="sum"),
    "a function": lambda prediction, target: (prediction - target).square().sum(),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_over_fields_is_taken_as_their_mean(name: str) -> None:
    x, y, loss = fields(), fields().roll(1, 0), SUMS[name]
    each = [float(loss(y[i : i + 1], x[i : i + 1])) for i in range(len(x))]
    assert float(per_field(loss, x[:4])(y, x)) == pytest.approx(sum(each) / len(each), rel=1e-5)


@pytest.mark.parametrize("loss", [LpLoss(d=2, reduction="mean"), nn.MSELoss(), absolute])
def test_any_other_is_taken_as_it_is(loss: Any) -> None:
    x, y = fields(), fields().roll(1, 0)
    assert per_field(loss, x[:4])(y, x) == loss(y, x)


def test_targets_are_cast_to_the_models_dtype() -> None:
    seen = []

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        seen.append((prediction.dtype, target.dtype))
        return absolute(prediction, target)

    train(model(), fields().double(), CONFIG.model_copy(update={"n_epochs": 1}), loss=loss, progress=False)
    assert set(seen) == {(torch.float32, torch.float32)}


def test_a_model_on_the_sphere_takes_them() -> None:
    torch.manual_seed(0)
    sae = SAESFNO(3, 8, (4, 8), concept_rule=TopK(4))
    history = train(sae, torch.randn(16, 3, 9, 16), CONFIG, loss=LpLoss(d=2), progress=False)
    assert history["loss"][-1] < history["loss"][0]


def detached(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction.detach() - target).square().mean()


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no callable": ("l2", TypeError, r"called as loss\(prediction, target\).*; 'l2' cannot be called"),
    "a class": (LpLoss, TypeError, "LpLoss.> is a class: give an instance of it"),
    "a float": (lambda p, t: 0.5, TypeError, "gives a float"),
    "complex": (lambda p, t: torch.fft.fftn(p - t).mean(), TypeError, "gives a tensor of torch.complex64"),
    "no scalar": (nn.MSELoss(reduction="none"), ValueError, r"MSELoss gives a tensor \(4, 4, 12, 10\): reduce it"),
    "nan": (lambda p, t: (p - t).mean() * float("nan"), ValueError, "gives nan for fields that are finite"),
    "inf": (lambda p, t: 1 / (0 * p).sum(), ValueError, "gives inf"),
    "no gradient": (detached, ValueError, "test_losses.detached has no gradient by the prediction"),
    "a gradient of nan": (lambda p, t: (p - p).square().sum().sqrt(), ValueError, "has a gradient with NaN or Inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_loss_is_refused_before_anything_is_lost(name: str, tmp_path: Any) -> None:
    loss, kind, message = BAD[name]
    train(model(), fields(), CONFIG.model_copy(update={"n_epochs": 1}), checkpoint_dir=tmp_path, progress=False)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    sae = model()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    with pytest.raises(kind, match=message):
        train(sae, fields(), CONFIG, loss=loss, checkpoint_dir=tmp_path, progress=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


def test_bad_activations_are_not_blamed_on_the_loss() -> None:
    x = fields()
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the field has NaN or Inf in samples \[1\]"):
        train(model(), x, CONFIG, loss=LpLoss(d=2), progress=False)
    with pytest.raises(ValueError, match="are the activations constant"):
        train(model(), torch.zeros(8, 4, 8, 8), CONFIG, loss=LpLoss(d=2), progress=False)


def test_a_run_is_resumed_with_its_own_loss_only(tmp_path: Any) -> None:
    short = CONFIG.model_copy(update={"n_epochs": 1})
    train(model(), fields(), short, loss=LpLoss(d=2), checkpoint_dir=tmp_path, progress=False)
    resumed = model()
    train(resumed, fields(), short, loss=LpLoss(d=2), checkpoint_dir=tmp_path, resume=True, progress=False)
    for other, message in (
        (LpLoss(d=2, p=1), r"another run: loss\.p was 2, now 1\. Resume with the same"),
        (H1Loss(d=2), r"loss\.name was 'neuralop.losses.data_losses.LpLoss', now 'neuralop.losses.data_losses.H1Loss'"),
        (None, r"loss was \{.*LpLoss.*\}, now None"),
    ):
        with pytest.raises(ValueError, match=message):
            train(model(), fields(), short, loss=other, checkpoint_dir=tmp_path, resume=True, progress=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LpLoss(d=2), LpLoss(d=2).abs),
        (LpLoss(d=2), LpLoss(d=2, reduction="mean")),
        (H1Loss(d=2), H1Loss(d=2, periodic_in_y=False)),
        (WeightedSumLoss([LpLoss(d=2)]), WeightedSumLoss([LpLoss(d=2, p=1)])),
        (functools.partial(nn.functional.huber_loss, delta=1.0), functools.partial(nn.functional.huber_loss, delta=2.0)),
        (nn.HuberLoss(delta=1.0), nn.HuberLoss(delta=2.0)),
        (nn.functional.mse_loss, nn.functional.l1_loss),
    ],
)
def test_descriptions_tell_losses_apart(one: Any, other: Any) -> None:
    assert describe_loss(one) != describe_loss(other)


def test_a_description_is_plain_data() -> None:
    assert describe_loss(LpLoss(d=2, p=1)) == {
        "name": "neuralop.losses.data_losses.LpLoss",
        "d": 2,
        "eps": 1e-8,
        "measure": [1.0, 1.0],
        "p": 1,
        "reduction": "sum",
    }
    assert describe_loss(LpLoss(d=2)) == describe_loss(LpLoss(d=2))
    assert describe_loss(absolute)["name"].endswith("test_losses.absolute")
    weights = functools.partial(nn.functional.cross_entropy, weight=torch.ones(3))
    assert describe_loss(weights)["weight"] == "torch.float32 (3,)"


def test_the_domain_penalty_is_an_integral_and_does_not_follow_scale() -> None:
    sae = SAESFNO(3, 6, (4, 8), concept_rule=TopK(3), domain_rule="Rectify").eval().requires_grad_(False)
    x = torch.randn(2, 3, 9, 16)
    codes, norms = sae.encode(x), sae.kernel_norms()
    area = sae.basis.quadrature((9, 16), like=x)
    expected = sum(float(norms[c]) * float((codes.to_dense()[b, c].abs() * area).sum()) for b in range(2) for c in range(6))
    assert float(domain_penalty(codes, norms)) == pytest.approx(expected / 2, rel=1e-5)
    sae.concept_decoder.scale_concepts(torch.full((6,), 2.0))
    assert float(domain_penalty(codes, sae.kernel_norms())) == pytest.approx(expected, rel=1e-5)
