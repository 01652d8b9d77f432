"""Sites: names, execution order, padding."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from neuralop import models
from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.models import FNO, TFNO
from torch import Tensor, nn

from neuralop_sae.attach import rules
from neuralop_sae.attach.capture import capture
from neuralop_sae.attach.interventions import replace_activation
from neuralop_sae.attach.padding import unpadded_slices
from neuralop_sae.attach.rules import Stage
from neuralop_sae.attach.sites import Site, find_sites, register_sites, resolve_site
from neuralop_sae.testing import check_sites


def make_fno(kind: type = FNO, dims: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"hidden_channels": 8, "n_layers": 3, "in_channels": 1, "out_channels": 1}
    return kind(n_modes=(4,) * dims, **(defaults | options)).eval()


def fired_order(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the modules in the order in which their calls end, blocks numbered by call."""
    order: list[str] = []
    handles = []
    for name, module in model.named_modules():

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
            order.append(f"{name}.{args[1]}" if name.endswith("fno_blocks") else name)

        handles.append(module.register_forward_hook(hook))
    model(x)
    for handle in handles:
        handle.remove()
    return order


VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_layers": 1},
    {"norm": "group_norm"},
    {"norm": "instance_norm", "preactivation": True},
    {"use_channel_mlp": False},
    {"fno_skip": None, "channel_mlp_skip": None},
    {"fno_skip": "identity", "channel_mlp_skip": "identity", "domain_padding": 0.25},
]


@pytest.mark.parametrize("kind", [FNO, TFNO])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_sites_are_in_execution_order(kind: type, options: dict[str, Any]) -> None:
    model = make_fno(kind, **options)
    sites = find_sites(model)
    order = fired_order(model, torch.randn(2, 1, 8, 8))
    assert sites == [name for name in order if name in sites]
    assert {"lifting", "fno_blocks.0", "projection"} <= set(sites)
    parts = len(sites) - 2 - model.n_layers
    expected = sum(len(child) for child in model.fno_blocks.children() if isinstance(child, nn.ModuleList))
    assert parts == expected


@pytest.mark.skipif(not hasattr(models, "SFNO"), reason="neuralop has no SFNO without a torch-harmonics it can import")
def test_sfno_has_the_sites_of_an_fno() -> None:
    options: dict[str, Any] = {"in_channels": 1, "out_channels": 1, "hidden_channels": 4, "n_layers": 2}
    assert find_sites(models.SFNO(n_modes=(4, 8), **options)) == find_sites(FNO(n_modes=(4, 8), **options))


def test_site_is_its_name() -> None:
    model = make_fno(domain_padding=0.25)
    site = resolve_site(model, "fno_blocks.2")
    assert site == "fno_blocks.2"
    assert "fno_blocks.2" in find_sites(model)
    assert (site.path, site.index, site.padded, site.output) == ("fno_blocks", 2, True, None)
    conv = resolve_site(model, "fno_blocks.convs.1")
    assert (conv.path, conv.index, conv.padded) == ("fno_blocks.convs.1", None, True)
    assert not resolve_site(model, "lifting").padded
    assert not resolve_site(model, "projection").padded
    with pytest.raises(AttributeError, match="read-only"):
        site.padded = False
    for copied in (copy.deepcopy(site), pickle.loads(pickle.dumps(site))):
        assert isinstance(copied, Site)
        assert copied.__dict__ == site.__dict__


def test_nested_operators_get_a_prefix() -> None:
    inner = make_fno(domain_padding=0.25)
    sites = find_sites(nn.Sequential(nn.Conv2d(1, 1, 1), inner))
    assert sites == ["0", *(f"1.{name}" for name in find_sites(inner)), "1"]
    block = next(site for site in sites if site == "1.fno_blocks.2")
    assert (block.path, block.index, block.padded, block.owner) == ("1.fno_blocks", 2, True, "1")


def test_other_modules_have_their_submodules_as_sites() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"a": nn.ReLU()}))
    assert find_sites(model) == ["0", "1.a"]  # a container is never called
    assert resolve_site(model, "0").path == "0"
    assert resolve_site(model, "0[1]").output == 1
    with pytest.raises(ValueError, match="known sites: none"):
        resolve_site(nn.Linear(2, 2), "weight")


def test_unknown_names_list_the_known() -> None:
    model = make_fno(n_layers=1)
    with pytest.raises(ValueError, match=r"'fno_block.0'; did you mean 'fno_blocks.0'\? known sites: lifting, .*"):
        resolve_site(model, "fno_block.0")
    with pytest.raises(ValueError, match="known sites: lifting"):
        resolve_site(model, "fno_blocks")
    with pytest.raises(TypeError, match="named by a string"):
        resolve_site(model, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"nn\.Module"):
        find_sites("fno")  # type: ignore[arg-type]


def test_a_rule_tells_the_calls_of_a_new_layer_apart() -> None:
    class Steps(nn.Module):
        n_steps = 2

        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(2, 2)

        def forward(self, x: Tensor, step: int = 0) -> Tensor:
            return self.cell(x) + step

    @register_sites(Steps, call_argument=("step", 1), n_calls="n_steps")
    def _(module: nn.Module, call: int) -> Sequence[str]:
        return ("cell",)

    class Derived(Steps):
        pass

    assert find_sites(nn.ModuleDict({"net": Derived()})) == ["net.cell", "net.0", "net.1"]
    with pytest.raises(ValueError, match="registered already"):
        register_sites(Steps)(lambda module, call: ())


@pytest.mark.parametrize("padding", [0.1, 0.25, [0.0, 0.3]], ids=str)
@pytest.mark.parametrize("grid", [(8, 8), (9, 12), (15, 10)], ids=str)
def test_unpadded_slices_agree_with_upstream(padding: float | list[float], grid: tuple[int, ...]) -> None:
    # The list is copied: upstream keeps the one that it is given.
    model = make_fno(domain_padding=copy.copy(padding))
    site = resolve_site(model, "fno_blocks.1")
    x = torch.randn(2, 8, *grid)
    fresh = copy.deepcopy(model)
    padded = model.domain_padding.pad(x)
    for candidate in (
        model,
        fresh,
    ):  # also before the first forward pass, when upstream's unpad knows no grid
        assert torch.equal(padded[unpadded_slices(candidate, site, padded.shape)], x)
    assert torch.equal(model.domain_padding.unpad(padded), x)


def test_unpadded_slices_after_resampling() -> None:
    # neuralop unpads a resampling operator only if it has one block; a list scales the axes of DomainPadding.
    model = make_fno(n_layers=1, domain_padding=0.25, resolution_scaling_factor=2)
    model(torch.randn(1, 1, 8, 8))
    skip, conv = (resolve_site(model, f"fno_blocks.{part}.0") for part in ("fno_skips", "convs"))
    assert unpadded_slices(model, skip, (1, 8, 12, 12))[2:] == (slice(2, 10),) * 2
    assert unpadded_slices(model, conv, (1, 8, 24, 24))[2:] == (slice(4, 20),) * 2
    assert torch.zeros(24, 24)[unpadded_slices(model, conv, (1, 8, 24, 24))[2:]].shape == (16, 16)


def test_grids_without_margins_are_refused() -> None:
    model = make_fno(domain_padding=0.25)
    site = resolve_site(model, "fno_blocks.0")
    # 10 points are padded to 14, 11 to 17
    with pytest.raises(ValueError, match=r"grid \(16, 12\) does not fix the margins .* padded=True"):
        unpadded_slices(model, site, (1, 8, 16, 12))
    # 10 and 11 points are padded to 14 and 17, both of which end on 4, with margins of 0 and 1
    quarter = make_fno(n_layers=1, domain_padding=0.25, resolution_scaling_factor=0.25)
    with pytest.raises(ValueError, match="resolution scale"):
        unpadded_slices(quarter, resolve_site(quarter, "fno_blocks.0"), (1, 8, 4, 4))


class Structured(nn.Module):
    """Returns what its name says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Conv1d(2, 2, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        kinds = {"list": [x, y], "tuple": (x, y), "dict": OrderedDict(a=x, b=y), "digits": {"0": x, "1": y}}
        self.kept: Any = kinds[self.kind]
        return self.kept


@pytest.mark.parametrize(
    ("kind", "name"), [("list", "inner[1]"), ("tuple", "inner[1]"), ("dict", "inner[b]"), ("digits", "inner[1]")]
)
def test_outputs_of_other_types_have_sites_by_index_or_key(kind: str, name: str) -> None:
    inner, x = Structured(kind), torch.randn(3, 2, 4)
    model = nn.ModuleDict({"inner": inner})
    model.forward = lambda x: inner(x)  # type: ignore[method-assign]
    clean = model(x)
    entries = list(clean.values()) if isinstance(clean, dict) else clean
    assert torch.equal(capture(model, name, x), entries[1])
    with replace_activation(model, name, torch.zeros_like):
        ablated = model(x)
    assert type(ablated) is type(clean)
    assert all(value.any() for value in (inner.kept.values() if isinstance(clean, dict) else inner.kept))  # not in place
    first, second = list(ablated.values()) if isinstance(ablated, dict) else ablated
    assert torch.equal(first, x)
    assert not second.any()
    if isinstance(clean, dict):
        assert list(ablated) == list(clean)
        with pytest.raises(
            TypeError, match=r"returns .*ict with the keys \[.*\]; name one entry of a mapping by its key, as in"
        ):
            capture(model, "inner", x)
    with pytest.raises(TypeError, match="no output 7, but"):
        capture(model, "inner[7]", x)
    with pytest.raises(TypeError, match="no output c, but"):
        capture(model, "inner[c]", x)


@pytest.mark.parametrize(("kind", "entry"), [("tuple", 1), ("dict", "b")])
def test_a_rule_names_the_entries_that_are_activations(kind: str, entry: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "site_rules", copy.deepcopy(rules.site_rules))

    class Operator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = Structured(kind), nn.Conv1d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.inner(x)[entry])

    register_sites(Operator)(lambda module, call: (Stage("inner", outputs=(entry,)), "out"))
    model, x = Operator(), torch.randn(3, 2, 4)
    assert check_sites(model, x) == find_sites(model) == [f"inner[{entry}]", "out"]
    assert torch.equal(capture(model, f"inner[{entry}]", x), model.inner.linear(x))
    assert resolve_site(model, f"inner.0[{entry}]").nth == 0


def test_weights_are_no_sites() -> None:
    assert find_sites(nn.ModuleDict({"conv": SpectralConv(2, 2, (4,), factorization="cp")})) == ["conv"]


def test_the_kth_call_of_any_module() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv1d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(self.net(x))

    model, x = Twice(), torch.randn(3, 2, 4)
    first, second = resolve_site(model, "net.0"), resolve_site(model, "net.1")
    assert (first.path, first.nth, second.nth) == ("net", 0, 1)
    captured = capture(model, [first, second], x)
    assert torch.equal(captured["net.0"], model.net(x).detach())
    assert torch.equal(captured["net.1"], model(x).detach())
    with pytest.raises(RuntimeError, match="fired 2 times in a pass: name one call, as in 'net.0'"):
        capture(model, "net", x)
    with replace_activation(model, "net.0", torch.zeros_like):
        assert torch.equal(model(x), model.net(torch.zeros_like(x)))
    assert resolve_site(nn.ModuleDict({"a": nn.LSTM(2, 2)}), "a.1[0]").__dict__ | {"n_dim": None} == (
        Site("a", path="a", nth=1, output=0).__dict__
    )


def test_rules_are_registered_once_and_by_name() -> None:
    with pytest.raises(ValueError, match=r"fno.FNO' is registered already: .* classes with a rule: .*neuralop.models.rno.rno"):
        register_sites(FNO)(lambda module, call: ())
    with pytest.raises(ValueError, match="registered already"):
        register_sites("neuralop.models.rno.RNO")(lambda module, call: ())
    with pytest.raises(TypeError, match="call_arguments"):
        register_sites("elsewhere.Operator", call_arguments=("index", 1))(lambda module, call: ())
    register_sites("elsewhere.Operator", output="batch points channels")(lambda module, call: ("b", "a"))

    class Operator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(x))

    Operator.__module__, Operator.__qualname__ = "elsewhere", "Operator"
    assert find_sites(nn.Sequential(Operator())) == ["0.b", "0.a", "0"]
    assert resolve_site(nn.Sequential(Operator()), "0").axes == ("batch", "channels", "points")
