"""Causal tests on an operator whose answer is known: a linear read-out of concepts with separate jobs."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import FNO
from torch import Tensor, nn

import neuralop_sae as ns
from neuralop_sae.analysis.causal import causal_test
from neuralop_sae.analysis.replay import Replay
from neuralop_sae.attach.edits import add, steer
from neuralop_sae.attach.interventions import splice
from neuralop_sae.attach.moves import translate
from neuralop_sae.codes import ConceptCodes

GAINS = torch.tensor([3.0, 1.0, -1.0, 0.5, 0.5, 0.0])
P = len(GAINS)


class Channels(nn.Module):
    """Concept c is channel c, its code the positive part."""

    n_concepts, n_dim, dtype = P, 2, torch.float64

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(P, dtype=torch.float64))
        self.basis = ns.FourierBasis((3, 3))

    def encode(self, x: Tensor) -> ConceptCodes:
        sample, concept = x.flatten(2).gt(0).any(2).nonzero(as_tuple=True)
        return ConceptCodes(sample, concept, x.relu()[sample, concept], len(x), P, self.basis)

    def decode(self, codes: ConceptCodes, output_shape: Any) -> Tensor:
        return codes.to_dense()

    def kernel_norms(self) -> Tensor:
        return torch.ones(P, dtype=torch.float64)

    def check_concepts(self, concepts: Any) -> None:
        assert max(concepts) < P


def make_operator(tail: nn.Module | None = None) -> nn.Module:
    """Output: the channels summed with the gains."""
    read_out = nn.Conv2d(P, 1, 1, bias=False).double()
    read_out.weight.data = GAINS.double().view(1, P, 1, 1)
    return nn.Sequential(nn.Identity(), read_out, tail or nn.Identity())


def make_inputs(n: int = 6) -> Tensor:
    return torch.rand(n, P, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1


def run(**options: Any) -> Any:
    defaults: dict[str, Any] = {"inputs": make_inputs(), "concepts": [0, 5], "n_controls": 3, "n_bootstrap": 50}
    arguments = defaults | options
    return causal_test(arguments.pop("model", make_operator()), "0", Channels(), **arguments)


def effect_of(result: Any, concept: int, outcome: str, dose: float) -> Any:
    table = result.effects
    return table[(table.concept == concept) & (table.outcome == outcome) & (table.dose == dose)].iloc[0]


def test_effects_of_a_linear_read_out_are_known() -> None:
    x, result = make_inputs(), run()
    for dose in (0.0, 0.5, 1.5, 2.0):
        row = effect_of(result, 0, "channel 0", dose)
        change = (dose - 1) * x[:, 0]
        assert row.effect == pytest.approx(float(3 * change.mean()))
        assert row.energy == pytest.approx(float(change.square().mean()))
        assert row.effect_per_energy == pytest.approx(row.effect / row.energy)
        assert row.low < row.effect < row.high
        rms = effect_of(result, 0, "rms channel 0", dose)
        assert rms.effect == pytest.approx(float(3 * change.square().mean((1, 2)).sqrt().mean()))
    nothing = effect_of(result, 5, "rms channel 0", 0.0)
    assert nothing.effect == 0
    assert nothing.energy > 0


def test_the_effect_is_that_of_a_splice() -> None:
    model, sae, x = make_operator(nn.Tanh()), Channels(), make_inputs()
    with torch.no_grad(), splice(model, "0", sae, steer(1, 0.5)):
        edited = model(x)
    result = run(model=model, concepts=1, outcomes={"largest": lambda y: y.flatten(1).amax(1)})
    expected = (edited.flatten(1).amax(1) - model(x).detach().flatten(1).amax(1)).mean()
    assert effect_of(result, 1, "largest", 0.5).effect == pytest.approx(float(expected))
    assert set(result.effects.outcome) == {"largest"}
    assert result.places.empty


def test_dose_response() -> None:
    response = run(concepts=[0, 2, 5]).dose_response.set_index(["concept", "outcome"])
    mean = make_inputs().mean((0, 2, 3))
    assert response.loc[(0, "channel 0")].slope == pytest.approx(3 * float(mean[0]))
    assert response.loc[(2, "channel 0")].slope == pytest.approx(-float(mean[2]))
    assert response.loc[(0, "channel 0")].monotonicity == pytest.approx(1)
    assert response.loc[(2, "channel 0")].monotonicity == pytest.approx(-1)
    assert np.isnan(response.loc[(5, "channel 0")].monotonicity)
    assert abs(response.loc[(0, "rms channel 0")].monotonicity) < 1  # it grows to both sides


def test_the_strong_concept_stands_out_and_the_idle_one_does_not() -> None:
    result = run(n_controls=4)
    tests = result.tests.set_index(["concept", "outcome", "kind"])
    for kind in ("random", "frequency", "norm"):
        strong, idle = (tests.loc[(c, "channel 0", kind)] for c in (0, 5))
        assert strong.p_value == pytest.approx(1 / 5)  # the largest of five
        assert idle.p_value == 1
        assert strong.q_value == pytest.approx(2 / 5)  # the smaller of two
        assert abs(strong.effect) > abs(strong.control_mean)
        first = effect_of(result, 0, "channel 0", 0.0)
        assert (strong.effect, strong.low, strong.high) == (first.effect, first.low, first.high)


def test_controls_of_matched_norm_remove_the_same_energy() -> None:
    x = make_inputs() * torch.tensor([1.0, 2, 3, 4, 5, 6]).view(-1, 1, 1)
    result = run(inputs=x, concepts=0)
    energy = effect_of(result, 0, "channel 0", 0.0).energy
    norm = result.controls[result.controls.kind == "norm"]
    assert norm.energy.to_numpy() == pytest.approx(energy)
    assert set(norm.concept) == {1, 2, 3}  # the nearest in energy
    other = result.controls[result.controls.kind == "random"]
    assert (other.energy / energy > 1.5).all()
    assert len(result.controls) == 3 * 3 * 2  # kinds, controls, the mean and the rms
    assert 0 not in result.controls.concept.to_numpy()


def test_controls_of_matched_frequency() -> None:
    x = make_inputs(8)
    for concept, n_off in enumerate((4, 0, 1, 3, 5, 7)):
        x[:n_off, concept] = -1.0
    result = run(inputs=x, concepts=0, n_controls=2)
    assert set(result.controls[result.controls.kind == "frequency"].concept) == {3, 4}


def test_neither_batches_nor_the_order_of_runs_matter() -> None:
    whole, parts = run(), run(batch_size=4, concepts=[5, 0])
    key = ["concept", "outcome", "dose"]
    a, b = (r.effects.sort_values(key)[[*key, "effect", "energy"]].reset_index(drop=True) for r in (whole, parts))
    np.testing.assert_allclose(a.drop(columns="outcome").to_numpy(), b.drop(columns="outcome").to_numpy(), rtol=1e-12)
    assert run().tests.equals(whole.tests)


def test_regions_and_places() -> None:
    x = make_inputs()
    x[:, 0, :, 3:] = -1.0  # concept 0 is expressed in the left half
    left = torch.zeros(4, 6, dtype=torch.bool)
    left[:, :3] = True
    result = run(inputs=x, concepts=0, doses=(0.0,), regions={"left": left, "right": ~left})
    whole, inside, outside = (effect_of(result, 0, f"channel 0{where}", 0.0).effect for where in ("", " in left", " in right"))
    assert outside == 0
    assert inside == pytest.approx(2 * whole)
    place = result.places.iloc[0]
    assert place.inside == pytest.approx(-inside)
    assert place.outside == 0
    assert place.correlation == pytest.approx(1)


def test_a_read_out_elsewhere_is_not_where_the_code_is() -> None:
    class Shift(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.roll(3, -1)

    x = make_inputs()
    x[:, 0, :, 3:] = -1.0
    place = run(model=make_operator(Shift()), inputs=x, concepts=0, doses=(0.0,)).places.iloc[0]
    assert place.inside == 0
    assert place.outside > 0
    assert place.correlation < -0.5


def test_outputs_on_another_grid_and_of_fewer_axes() -> None:
    """A finer output is compared with codes resampled to it, one of fewer axes with none; in some batches a concept is off."""
    x = make_inputs()
    x[:2, 0] = -1.0
    result = run(model=make_operator(nn.Upsample(scale_factor=2)), inputs=x, concepts=0, doses=(0.0,), batch_size=2)
    assert effect_of(result, 0, "channel 0", 0.0).effect == pytest.approx(-3 * float(x[:, 0].relu().mean()))
    assert result.places.iloc[0].correlation == pytest.approx(1)
    profile = run(model=make_operator(nn.Flatten(2)), inputs=x, concepts=0, doses=(0.0,))
    assert profile.places.empty
    assert effect_of(profile, 0, "channel 0", 0.0).effect == pytest.approx(-3 * float(x[:, 0].relu().mean()))


def test_other_edits() -> None:
    result = run(edit=lambda concept, dose: add(concept, dose), doses=(1.0, -2.0), neutral=0.0, concepts=[0, 2])
    assert effect_of(result, 0, "channel 0", 1.0).effect == pytest.approx(3)
    assert effect_of(result, 2, "channel 0", -2.0).effect == pytest.approx(2)
    slopes = result.dose_response.set_index(["concept", "outcome"]).slope
    assert slopes[0, "channel 0"] == pytest.approx(3)
    moved = run(edit=lambda concept, dose: translate(concept, (0.0, dose)), doses=(1 / 6,), neutral=0.0, concepts=0)
    assert effect_of(moved, 0, "channel 0", 1 / 6).effect == pytest.approx(0, abs=1e-12)
    assert effect_of(moved, 0, "rms channel 0", 1 / 6).effect > 0.1


def test_intervals_are_of_whole_trajectories() -> None:
    x = make_inputs(3).repeat_interleave(8, 0)
    widths = []
    for trajectory in (None, torch.arange(3).repeat_interleave(8)):
        row = effect_of(run(inputs=x, trajectory=trajectory, n_bootstrap=500, controls=()), 0, "channel 0", 0.0)
        widths.append(row.high - row.low)
    assert widths[1] > 2 * widths[0]
    with pytest.raises(ValueError, match="trajectory has one entry for each of the 24 samples"):
        run(inputs=x, trajectory=[0, 1])


def test_without_controls() -> None:
    result = run(controls=())
    assert result.tests.empty
    assert result.controls.empty
    assert len(result.effects) == 2 * 2 * 4


def test_arrays_of_numpy_are_regions_and_outcomes() -> None:
    region = torch.zeros(4, 6, dtype=torch.bool)
    region[:2] = True
    expected = run(regions={"top": region}, outcomes={"y": lambda y: y[:, 0]}).effects
    found = run(regions={"top": region.numpy()}, outcomes={"y": lambda y: y[:, 0].numpy()}).effects
    pd.testing.assert_frame_equal(found, expected)


def test_fields_of_xarray_are_inputs_with_their_trajectories() -> None:
    names = [f"c{k}" for k in range(P)]
    x = make_inputs(12)
    variables = {name: (("member", "time", "y", "x"), x[:, k].reshape(3, 4, 4, 6).numpy()) for k, name in enumerate(names)}
    fields = ns.from_xarray(xarray.Dataset(variables), names, trajectory="member")
    model = make_operator().float()
    expected = run(inputs=fields.tensor(), trajectory=np.arange(12) // 4, model=model)
    pd.testing.assert_frame_equal(run(inputs=fields, model=model).effects, expected.effects)


def test_one_kind_of_controls_needs_no_list() -> None:
    pd.testing.assert_frame_equal(run(controls="random").controls, run(controls=("random",)).controls)


def test_outputs_are_those_after_the_data_processor() -> None:
    x = make_inputs()
    normalizers = [
        UnitGaussianNormalizer(mean=torch.zeros(1).double(), std=torch.full((1,), s).double(), eps=0) for s in (1.0, 10.0)
    ]
    processor = DefaultDataProcessor(*normalizers)
    plain, processed = run(concepts=0), run(concepts=0, data_processor=processor, inputs={"x": x})
    np.testing.assert_allclose(processed.effects.effect, 10 * plain.effects.effect)
    np.testing.assert_allclose(processed.effects.energy, plain.effects.energy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controls": ["size"]}, "unknown controls .*'size'.*known: random, frequency, norm"),
        ({"doses": ()}, "at least one"),
        ({"doses": (1.0, 0.0)}, "without neutral=1.0"),
        ({"n_controls": 6}, "only 5 other concepts are on"),
        ({"confidence": 95, "model": nn.Identity()}, "confidence is a share"),
        ({"n_bootstrap": 0, "model": nn.Identity()}, "n_bootstrap is at least 2"),
        ({"outcomes": {"all": lambda y: y.sum()}}, "outcome 'all' gave ()"),
        ({"outcomes": {"y": lambda y: y}}, r"outcome 'y' gave \(6, 1, 4, 6\)"),
        ({"regions": {"nowhere": torch.zeros(4, 6)}}, "region 'nowhere' has no point"),
        ({"inputs": torch.zeros(0, P, 4, 6).double()}, "no samples"),
        ({"inputs": -make_inputs()}, r"concepts \[0, 5\] are off in all 6 inputs"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**options)


def on_an_operator(model: nn.Module, site: str, x: Tensor) -> Any:
    """A test of two concepts of an autoencoder with fresh weights."""
    torch.manual_seed(0)
    sae = ns.SAEFNO(6, 12, (3, 3), concept_rule=ns.TopK(4))
    concepts = sae.eval().encode(ns.capture(model, site, x)).concept.unique()[:2].tolist()
    return causal_test(model, site, sae, x, concepts, doses=(0.0, 2.0), n_controls=2, n_bootstrap=20, batch_size=3)


def counted(modules: dict[str, nn.Module]) -> Counter[str]:
    """Counts passes through the ``forward`` of modules."""
    counts: Counter[str] = Counter()
    for name, module in modules.items():

        def forward(*args: Any, name: str = name, true: Any = module.forward, **kwargs: Any) -> Any:
            counts[name] += 1
            return true(*args, **kwargs)

        module.forward = forward  # type: ignore[method-assign]
    return counts


@pytest.mark.parametrize(("site", "before"), [("fno_blocks.convs.1", 2), ("lifting", 0)])
def test_what_lies_before_the_site_is_computed_once_per_batch(site: str, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = FNO((4, 4), 1, 1, 6, n_layers=3, domain_padding=0.25).eval(), torch.randn(5, 1, 8, 8)
    with monkeypatch.context() as patch:
        patch.setattr(Replay, "give_back", lambda self: nullcontext())
        expected = on_an_operator(model, site, x)
    counts = counted({"lifting": model.lifting, **{f"conv {i}": conv for i, conv in enumerate(model.fno_blocks.convs)}})
    forwards = {name: vars(module).get("forward") for name, module in model.named_modules()}
    found = on_an_operator(model, site, x)
    for table in ("effects", "controls", "tests", "dose_response", "places"):
        pd.testing.assert_frame_equal(getattr(found, table), getattr(expected, table), check_exact=True)
    n_batches, n_captured = 2, 1
    once = n_captured + 2 * n_batches  # captured, read and recorded
    assert counts["lifting"] == once
    assert all(counts[f"conv {i}"] == once for i in range(before))
    assert all(counts[f"conv {i}"] > once + 2 * n_batches for i in range(before, 3))
    assert {name: vars(module).get("forward") for name, module in model.named_modules()} == forwards
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class InPlace(nn.Module):
    """Changes in place what a module gave: what was kept of it is not what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.site, self.last = nn.Conv2d(P, P, 1), nn.Identity(), nn.Conv2d(P, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x += 1
        return self.last(torch.tanh(self.site(x)))


def test_an_operator_that_works_in_place_is_run_whole() -> None:
    torch.manual_seed(0)
    model, sae, x = InPlace().double().eval(), Channels(), make_inputs()
    result = causal_test(model, "site", sae, x, 1, doses=(0.0, 0.5), controls=())
    for dose in (0.0, 0.5):
        with torch.no_grad(), splice(model, "site", sae, steer(1, dose)):
            edited = model(x)
        expected = float((edited - model(x).detach()).mean())
        assert effect_of(result, 1, "channel 0", dose).effect == pytest.approx(expected)


def test_a_pass_that_fails_leaves_the_operator_as_it_was() -> None:
    model, failing = make_operator(), iter([False, False, False, True])

    def outcome(y: Tensor) -> Tensor:
        if next(failing):
            raise RuntimeError("no more")
        return y.mean((1, 2, 3))

    with pytest.raises(RuntimeError, match="no more"):
        run(model=model, concepts=0, outcomes={"mean": outcome}, controls=())
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())


def test_on_an_fno_with_padding() -> None:
    """The real classes together: ablation has the effect of the splice."""
    torch.manual_seed(0)
    model = FNO(n_modes=(4, 4), in_channels=1, out_channels=2, hidden_channels=6, n_layers=2, domain_padding=0.25)
    sae = ns.SAEFNO(6, 12, (3, 3), concept_rule=ns.TopK(4))
    x = torch.randn(5, 1, 8, 8)
    codes = sae.eval().encode(ns.capture(model, "fno_blocks.0", x))
    concept = int(codes.concept[0])
    result = causal_test(model, "fno_blocks.0", sae, x, concept, doses=(0.0,), n_controls=2, n_bootstrap=20, batch_size=2)
    with torch.no_grad(), splice(model.eval(), "fno_blocks.0", sae, steer(concept, 0.0)):
        edited = model(x)
    expected = (edited - model(x)).double().mean((0, 2, 3)).tolist()
    effects = result.effects.set_index("outcome").effect
    assert [effects["channel 0"], effects["channel 1"]] == pytest.approx(expected, rel=1e-3, abs=1e-7)
