"""Rollouts of operators that are known, with edits by schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuralop.models import FNO
from torch import Tensor, nn

import neuralop_sae as ns
from neuralop_sae.analysis.rollouts import Scheduled, during, ramp, rollout, rollout_errors, rollout_figure
from neuralop_sae.attach.edits import ablate, add, steer
from neuralop_sae.attach.interventions import splice
from neuralop_sae.codes import ConceptCodes


class Scalar(nn.Module):
    """One concept, whose code is the field."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = ns.FourierBasis(3)

    def encode(self, x: Tensor) -> ConceptCodes:
        n = len(x)
        return ConceptCodes(torch.arange(n), torch.zeros(n, dtype=torch.int64), x[:, 0], n, 1, self.basis)

    def decode(self, codes: ConceptCodes, output_shape: Any) -> Tensor:
        return codes.of(0)[:, None]


class Double(nn.Module):
    """The next state is twice the state."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inside(x)


def run(*edits: Any, n_steps: int = 4) -> list[float]:
    states = rollout(Double(), torch.ones(2, 1, 4), n_steps, site="inside", sae=Scalar(), edits=edits)
    assert states.shape == (2, n_steps + 1, 1, 4)
    assert (states == states[:1, :, :, :1]).all()
    return states[0, :, 0, 0].tolist()


def test_edits_by_schedule() -> None:
    assert run() == [1, 2, 4, 8, 16]
    assert run(add(0, 1.0)) == [1, 4, 10, 22, 46]  # 2 (x + 1)
    assert run(during(add(0, 1.0), start=1, stop=3)) == [1, 2, 6, 14, 28]
    assert run(during(add(0, 1.0), start=2)) == [1, 2, 4, 10, 22]
    assert run(ramp(lambda scale: steer(0, scale), 1.0, 0.5, start=1, stop=3)) == [1, 2, 4, 6, 6]
    assert run(Scheduled(lambda step: ablate(0) if step == 2 else None)) == [1, 2, 4, 0, 0]


def test_each_edit_has_its_own_schedule_and_they_act_in_order() -> None:
    first, second = during(add(0, 1.0), 0, 1), during(steer(0, 3.0), 0, 2)
    assert run(first, second) == [1, 12, 72, 144, 288]
    assert run(second, first) == [1, 8, 48, 96, 192]


def test_a_single_edit_needs_no_list() -> None:
    edit = add(0, 1.0)
    for given in (edit, during(edit)):
        states = rollout(Double(), torch.ones(1, 1, 4), 2, site="inside", sae=Scalar(), edits=given)
        assert states[0, :, 0, 0].tolist() == [1, 4, 10]


def test_an_edit_in_every_step_is_the_splice() -> None:
    torch.manual_seed(0)
    model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=6, n_layers=2)
    sae, x, edit = ns.SAEFNO(6, 12, (3, 3), concept_rule=ns.TopK(4)), torch.randn(2, 1, 8, 8), steer(range(12), 1.5)
    for keep_error in (True, False):
        with splice(model, "fno_blocks.0", sae, edit, keep_error):
            expected = rollout(model, x, 3)
        found = rollout(model, x, 3, site="fno_blocks.0", sae=sae, edits=edit, keep_error=keep_error)
        assert torch.equal(found, expected)
    assert torch.equal(rollout(model, x, 3, site="fno_blocks.0", sae=sae), rollout(model, x, 3))
    assert sae.training
    assert model.training


def test_errors_of_a_rollout_without_and_with_the_sae() -> None:
    truth = torch.tensor([1.0, 2.0, 4.0, 16.0]).view(1, 4, 1, 1).expand(2, -1, 1, 4).contiguous()
    errors = rollout_errors(Double(), "inside", Scalar(), truth)  # type: ignore[arg-type]
    assert errors["clean"].tolist() == errors["spliced"].tolist() == [0, 0, 0.5]
    assert errors["persistence"].tolist() == pytest.approx([0.5, 0.75, 15 / 16])


class Half(Scalar):
    """The reconstruction is half of the field."""

    def decode(self, codes: ConceptCodes, output_shape: Any) -> Tensor:
        return super().decode(codes, output_shape) / 2


def test_errors_of_ablated_rollouts_and_what_the_concepts_recover() -> None:
    """States 1, 2, 4, 8 at every point. Without the activation the next state is 0; with its mean over the true states with a
    next one, (1 + 2 + 4) / 3, always 14 / 3; through half of it 1."""
    truth = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1, 1).expand(2, -1, 1, 4).contiguous()
    errors = rollout_errors(Double(), "inside", Half(), truth)  # type: ignore[arg-type]
    assert errors["clean"].tolist() == [0, 0, 0]
    assert errors["spliced"].tolist() == pytest.approx([1 / 2, 3 / 4, 7 / 8])
    assert errors["zero_ablated"].tolist() == [1, 1, 1]
    assert errors["mean_ablated"].tolist() == pytest.approx([4 / 3, 1 / 6, 5 / 12])
    assert errors["loss_recovered"].tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 8])
    assert errors["loss_recovered_mean"].tolist() == pytest.approx([1 - 3 / 8, 1 - 6 * 3 / 4, 1 - 7 / 8 * 12 / 5])
    figure = rollout_figure(errors, torch.arange(1, 4), "s")
    left, right = figure.axes
    assert [line.get_label() for line in right.lines] == ["against zero", "against the mean"]
    assert [tuple(line.get_ydata()) for line in left.lines] == [tuple(errors[name]) for name in list(errors)[:5]]
    assert len(rollout_figure({"clean": errors["clean"]}, torch.arange(1, 4), "s").axes) == 1


def test_ablated_rollouts_are_those_of_an_operator() -> None:
    torch.manual_seed(0)
    model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=6, n_layers=2)
    sae, truth = ns.SAEFNO(6, 12, (3, 3), concept_rule=ns.TopK(4)), torch.randn(2, 4, 1, 8, 8)
    errors = rollout_errors(model, "fno_blocks.0", sae, truth)
    mean = ns.capture(model, "fno_blocks.0", truth[:, :-1].flatten(0, 1)).mean((0, 2, 3), keepdim=True)
    for name, value in (("zero_ablated", 0 * mean), ("mean_ablated", mean)):
        with ns.replace_activation(model, "fno_blocks.0", lambda x, value=value: value.expand_as(x).contiguous()):
            last = rollout(model, truth[:, 0], 3)[:, -1]
        expected = ((last - truth[:, -1]).flatten(1).norm(dim=1) / truth[:, -1].flatten(1).norm(dim=1)).mean()
        assert float(errors[name][-1]) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert model.training
    assert sae.training


def test_bad_arguments() -> None:
    x = torch.ones(1, 1, 4)
    for options in ({"site": "inside"}, {"sae": Scalar()}, {"edits": add(0, 1.0)}):
        with pytest.raises(ValueError, match="edits act on the codes of an SAE at a site: give both"):
            rollout(Double(), x, 2, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_steps is at least 0, got -1"):
        rollout(Double(), x, -1)
    with pytest.raises(TypeError, match="an edit is a function .* made by during or ramp; got int"):
        rollout(Double(), x, 1, site="inside", sae=Scalar(), edits=3)  # type: ignore[arg-type]
    calls: list[Tensor] = []
    narrowing = FNO(n_modes=(2,), in_channels=2, out_channels=1, hidden_channels=4, n_layers=1)
    narrowing.register_forward_pre_hook(lambda _, arguments: calls.append(arguments[0]))
    for model in (narrowing, nn.Conv1d(2, 1, 1)):
        with pytest.raises(ValueError, match=r"makes \(1, 1, 8\) of a state \(1, 2, 8\): its output is not its next input"):
            rollout(model, torch.ones(1, 2, 8), 3)
    assert len(calls) == 1
    with pytest.raises(ValueError, match=r"truth is \(B, n_steps \+ 1, channels, \*grid\), a step at least"):
        rollout_errors(Double(), "inside", Scalar(), x[None])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no step is from start=3 to before stop=3"):
        during(add(0, 1.0), 3, 3)
    with pytest.raises(ValueError, match="0 <= start < stop"):
        ramp(lambda scale: steer(0, scale), 1.0, 0.0, start=2, stop=2)
    with pytest.raises(TypeError, match="an edit is a function"), splice(Double(), "inside", Scalar(), [during(add(0, 1.0))]):  # type: ignore[list-item]
        pass
