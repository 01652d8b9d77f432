"""The contract of site rules: each property breaks on a rule that is wrong in one way, and is named."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from neuralop.models import FNO
from torch import Tensor, nn

from neuralop_sae.attach import capture as capture_module
from neuralop_sae.attach import hooks, rules
from neuralop_sae.attach.padding import unpadded_slices
from neuralop_sae.attach.rules import Stage, register_sites
from neuralop_sae.attach.sites import Site, find_sites
from neuralop_sae.testing.sites import check_sites

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    """One module, called once per block."""

    def __init__(self) -> None:
        super().__init__()
        self.n_blocks, self.parts = 2, nn.ModuleList(nn.Conv1d(3, 3, 1) for _ in range(2))

    def forward(self, x: Tensor, shift: float = 0.0, block: int = 0) -> Tensor:
        return self.parts[block](x) + shift


class Operator(nn.Module):
    """Lifting, blocks, cell once per step, points with channels last, a gate that is closed, a part without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.lifting, self.blocks = nn.Conv1d(3, 3, 1), Blocks()
        self.cell, self.points = nn.Conv1d(3, 3, 1), nn.Linear(3, 2)
        self.gate, self.apart = nn.Conv1d(3, 3, 1), nn.Conv1d(3, 3, 1)
        self.unused = nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.lifting(x)
        with torch.no_grad():
            apart = self.apart(x)
        x = x + 0.0 * self.gate(x) + apart
        for i in range(2):
            x = self.blocks(x, block=i)
        x = self.cell(self.cell(x).tanh())
        return self.points(x.transpose(1, 2)), {"x": x}


@pytest.fixture(autouse=True)
def _no_rules_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "site_rules", copy.deepcopy(rules.site_rules))


def register(stages: Sequence[str | Stage] | None = None, **properties: Any) -> None:
    right: dict[str, Any] = {"call_argument": ("block", 2), "n_calls": "n_blocks"}
    register_sites(Blocks, **(right | properties))(lambda module, call: (f"parts.{call}",))
    register_sites(Operator)(lambda module, call: RIGHT if stages is None else stages)


RIGHT: tuple[str | Stage, ...] = (
    "lifting",
    Stage("apart", frozen=True),
    "gate",
    "blocks",
    Stage("cell", repeats="step"),
    Stage("points", layout="batch points channels"),
)


def test_a_right_rule_passes_and_leaves_the_model_alone() -> None:
    register()
    model = Operator().train()
    model.lifting.weight.grad = torch.ones_like(model.lifting.weight)
    before = copy.deepcopy(model.state_dict())
    sites = check_sites(model, X, inert=["gate"])
    assert sites == [
        *("lifting", "apart", "gate", "blocks.parts.0", "blocks.0", "blocks.parts.1", "blocks.1", "cell", "points")
    ]
    assert isinstance(sites[0], Site)
    assert model.training
    assert torch.equal(model.lifting.weight.grad, torch.ones_like(model.lifting.weight))
    assert model.cell.weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def without(path: str, *new: str | Stage) -> list[str | Stage]:
    return [s for stage in RIGHT for s in (new if (stage if isinstance(stage, str) else stage.path) == path else (stage,))]


WRONG: list[tuple[list[str | Stage], str]] = [
    (["points", *RIGHT[:-1]], "points: .*"),
    (["gate", "lifting", *RIGHT[1:2], *RIGHT[3:]], "gate: order of execution: it ends after lifting"),
    (without("gate", "gate", "unused"), "unused: fires: the forward pass never calls this module"),
    (without("cell", "cell"), r"cell: fires once per pass: the forward pass calls the module 2 times, the rule says 1"),
    (without("apart", "apart"), "apart: gradient of a splice: none comes from the model's output"),
    (without("lifting", Stage("lifting", frozen=True)), "lifting: gradient of a splice: comes from .* the rule says frozen"),
    (without("points", Stage("points", layout="batch points more channels ...")), "points: captured activation"),
]


@pytest.mark.parametrize(("stages", "message"), WRONG, ids=[message[:20] for _, message in WRONG])
def test_a_wrong_rule_is_named(stages: list[str | Stage], message: str) -> None:
    register(stages)
    with pytest.raises(AssertionError, match=f"^{message}"):
        check_sites(Operator(), X, inert=["gate"], compiled=False)


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"call_argument": ("block", 1)}, None),  # by keyword: the position does not matter
        ({"call_argument": ("index", 2)}, "blocks.0: "),
        ({"call_argument": None, "n_calls": None}, "blocks: fires once per pass"),
    ],
)
def test_a_wrong_call_argument_is_named(properties: dict[str, Any], message: str | None) -> None:
    register(**properties)
    if message is None:
        check_sites(Operator(), X, inert=["gate"], compiled=False)
    else:
        with pytest.raises(AssertionError, match=f"^{message}"):
            check_sites(Operator(), X, inert=["gate"], compiled=False)


def test_sites_that_do_not_act_are_named_and_believed_only_if_so() -> None:
    register()
    with pytest.raises(AssertionError, match=r"^gate: zero ablation: .* does not change; .* inert"):
        check_sites(Operator(), X, compiled=False)
    with pytest.raises(AssertionError, match=r"^lifting: zero ablation: .* changes, although"):
        check_sites(Operator(), X, inert=["gate", "lifting"], compiled=False)
    with pytest.raises(AssertionError, match=r"^inert: unknown sites \['nothing'\]"):
        check_sites(Operator(), X, inert=["nothing"], compiled=False)
    with pytest.raises(AssertionError, match="^find_sites: no sites"):
        check_sites(nn.Linear(2, 2), X)


class Growing(Operator):
    """Leaves a hook at every pass."""

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.gate.register_forward_hook(lambda *_: None)
        return super().forward(x)


def test_blocks_out_of_order_and_hooks_that_stay_are_named() -> None:
    register()
    model = Operator()
    model.blocks.forward = lambda x, block: Blocks.forward(model.blocks, x, block=1 - block)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="^blocks.parts.0: order of execution: it ends after blocks.0"):
        check_sites(model, X, inert=["gate"], compiled=False)
    with pytest.raises(AssertionError, match=r"^removal: \d+ hooks are left"):
        check_sites(Growing(), X, inert=["gate"], compiled=False)


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("to_field", lambda true: lambda x, layout: true(x, layout) + 1, "lifting: captured activation: .* is not what"),
        ("from_field", lambda true: lambda new, *args: true(new, *args) * 1.001, "lifting: identity splice: the model's"),
        (
            "from_field",
            lambda true: lambda new, *args: true(new, *args).detach(),
            "lifting: gradient of lifting.weight: reaches",
        ),
        ("from_field", lambda true: lambda new, *args: 2 * true(new, *args) - new.detach(), "lifting: gradient of lifting.w"),
    ],
    ids=["captured", "put back", "no gradient", "another gradient"],
)
def test_a_broken_hook_is_named(monkeypatch: pytest.MonkeyPatch, name: str, broken: Any, message: str) -> None:
    register()
    monkeypatch.setattr(hooks, name, broken(getattr(hooks, name)))
    with pytest.raises(AssertionError, match=f"^{message}"):
        check_sites(Operator(), X, inert=["gate"], compiled=False)


def test_margins_off_centre_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: nn.Module, site: Site, shape: Sequence[int]) -> tuple[slice, ...]:
        return (*unpadded_slices(model, site, shape)[:2], slice(1, 9))

    monkeypatch.setattr(capture_module, "unpadded_slices", shifted)
    model = FNO((4,), 1, 1, hidden_channels=4, n_layers=1, domain_padding=0.25)
    with pytest.raises(AssertionError, match=r"^fno_blocks.fno_skips.0: without padding: .* not the middle"):
        check_sites(model, torch.randn(2, 1, 8), compiled=False)


def test_a_compiled_model_that_sees_no_hooks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: nullcontext())
    with pytest.raises(AssertionError, match="captured activation of the compiled model"):
        check_sites(Operator(), X, inert=["gate"])


def test_an_operator_that_no_one_knows() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Sequential(nn.GELU(), nn.Conv1d(4, 2, 3, padding=1)), nn.Tanh())
    assert check_sites(model, X) == ["0", "1.0", "1.1", "1", "2"]
    assert find_sites(model)[0].axes == ("batch", "channels", "...")
