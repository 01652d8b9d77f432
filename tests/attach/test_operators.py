"""The site rules of neuralop's operators: the contract on every site, and forward passes written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from neuralop import models
from neuralop.layers.fno_block import FNOBlocks
from neuralop.layers.resample import resample
from neuralop.models import CODANO, FNO, FNOGNO, GINO, TFNO, UNO, UQNO
from torch import Tensor, nn

from neuralop_sae.attach.capture import capture
from neuralop_sae.attach.interventions import replace_activation, splice
from neuralop_sae.attach.sites import find_sites, resolve_site
from neuralop_sae.models import SAEPointwise
from neuralop_sae.testing.sites import check_sites

Inputs = Any
GRID = torch.stack(torch.meshgrid([torch.linspace(0, 1, 4)] * 2, indexing="ij"), -1)


def fno(kind: Any = FNO, **options: Any) -> tuple[nn.Module, Inputs]:
    defaults: dict[str, Any] = {"n_modes": (4, 4), "in_channels": 1, "out_channels": 1, "hidden_channels": 4, "n_layers": 2}
    return kind(**(defaults | options)), torch.randn(2, 1, 8, 8)


def uno(**options: Any) -> tuple[nn.Module, Inputs]:
    defaults: dict[str, Any] = {
        "hidden_channels": 4,
        "uno_out_channels": [4, 6, 4],
        "uno_n_modes": [[4, 4]] * 3,
        "uno_scalings": [[1, 1], [0.5, 0.5], [2, 2]],
        "n_layers": 3,
        # The default, soft-gating, cannot change the number of channels.
        "channel_mlp_skip": "linear",
    }
    return UNO(1, 1, **(defaults | options)), torch.randn(2, 1, 16, 16)


def codano(n_layers: int = 1, **options: Any) -> tuple[nn.Module, Inputs]:
    defaults: dict[str, Any] = {
        "lifting_channels": 4,
        "hidden_variable_codimension": 4,
        "projection_channels": 4,
        "n_modes": [[4, 4]] * n_layers,
        "per_layer_scaling_factors": [[1, 1]] * n_layers,
        "n_heads": [2] * n_layers,
        "attention_scaling_factors": [0.5] * n_layers,
        "attention_token_dim": 2,
        "n_layers": n_layers,
    }
    return CODANO(**(defaults | options)), torch.randn(2, 2, 8, 8)


GNO: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 2,
    "gno_coord_dim": 2,
    "fno_n_modes": (4, 4),
    "fno_hidden_channels": 4,
    "fno_n_layers": 2,
    "gno_embed_channels": 4,
    "gno_use_open3d": False,
    "gno_use_torch_scatter": False,
}


def gino(**options: Any) -> tuple[nn.Module, Inputs]:
    # The lists are made anew: upstream appends to them.
    radii: dict[str, Any] = {"in_gno_radius": 0.5, "out_gno_radius": 0.5}
    hidden: dict[str, Any] = {"in_gno_channel_mlp_hidden_layers": [6], "out_gno_channel_mlp_hidden_layers": [6]}
    inputs = {
        "input_geom": torch.rand(9, 2),
        "latent_queries": GRID,
        "output_queries": torch.rand(7, 2),
        "x": torch.randn(5, 9, 3),
    }
    return GINO(**GNO, **radii, **hidden, **options), inputs


def fnogno(batched: bool) -> tuple[nn.Module, Inputs]:
    f = torch.randn(*((3,) if batched else ()), 4, 4, 3)
    options: dict[str, Any] = {"gno_radius": 0.5, "gno_channel_mlp_hidden_layers": [6], "gno_batched": batched}
    return FNOGNO(**GNO, **options), {"in_p": GRID, "out_p": torch.rand(7, 2), "f": f}


def uqno() -> tuple[nn.Module, Inputs]:
    base, x = fno(domain_padding=0.25)
    model = UQNO(base)
    # The residual model is a copy of the base model; another state, so that the two are not mixed up.
    for parameter in model.residual_model.parameters():
        parameter.data.mul_(1.5)
    return model, x


def uqno_of_gino() -> tuple[nn.Module, Inputs]:
    model, inputs = gino()
    return UQNO(model), inputs


OPERATORS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "FNO": fno,
    "FNO, all parts": lambda: fno(norm="group_norm", preactivation=True, domain_padding=0.25),
    "TFNO": lambda: fno(TFNO, rank=0.5, fno_skip="identity", channel_mlp_skip="identity"),
    "UNO": uno,
    "UNO, padded": lambda: uno(domain_padding=0.25),
    "CODANO": codano,
    "GINO": gino,
    "GINO, nonlinear": lambda: gino(in_gno_transform_type="nonlinear"),
    "FNOGNO": lambda: fnogno(batched=False),
    "FNOGNO, batched": lambda: fnogno(batched=True),
    "UQNO": uqno,
    "UQNO of GINO": uqno_of_gino,
}
# neuralop leaves these out where it cannot import torch-harmonics.
if hasattr(models, "SFNO"):
    OPERATORS["SFNO"] = lambda: (fno(models.SFNO, n_modes=(4, 8))[0], torch.randn(2, 1, 8, 16))
if hasattr(models, "LocalNO"):

    def local_no(**options: Any) -> tuple[nn.Module, Inputs]:
        return fno(models.LocalNO, default_in_shape=(8, 8), **options)

    OPERATORS["LocalNO"] = local_no
    OPERATORS["LocalNO, all parts"] = lambda: local_no(
        disco_layers=[False, True], use_channel_mlp=True, norm="group_norm", domain_padding=0.25
    )
    # Upstream's preactivation with differential layers asks for an attribute that does not exist.
    OPERATORS["LocalNO, preactivation"] = lambda: local_no(
        preactivation=True, diff_layers=[False, False], norm="group_norm", use_channel_mlp=True
    )
#: Compiling takes seconds; most of it is left to the slow tests.
COMPILED = ("FNO", "LocalNO", "SFNO")
COMPILED_SLOWLY = ("UNO", "CODANO", "GINO", "FNOGNO", "UQNO")


def make(name: str) -> tuple[Any, Inputs]:
    torch.manual_seed(0)
    model, inputs = OPERATORS[name]()
    return model.eval(), inputs


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        *((name, name in COMPILED) for name in OPERATORS),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in COMPILED_SLOWLY),
    ],
)
def test_every_site_keeps_the_contract(name: str, compiled: bool) -> None:
    model, inputs = make(name)
    sites = check_sites(model, inputs, compiled=compiled)
    assert len(sites) == len(set(sites)) > 5


def blocks_by_hand(blocks: Any, x: Tensor, prefix: str, seen: dict[str, Tensor]) -> Tensor:
    for i in range(blocks.n_layers):
        seen[f"{prefix}.{i}"] = x = blocks(x, i)
    return x


def uno_by_hand(model: Any, x: Tensor) -> dict[str, Tensor]:
    seen = {"lifting": model.lifting(model.positional_embedding(x))}
    x = seen["lifting"]
    x = seen["fno_blocks.0"] = model.fno_blocks[0](x)
    skip = seen["horizontal_skips.0"] = model.horizontal_skips["0"](x)
    x = seen["fno_blocks.1"] = model.fno_blocks[1](x)
    x = torch.cat([x, resample(skip, [0.5, 0.5], [-2, -1])], dim=1)
    x = seen["fno_blocks.2"] = model.fno_blocks[2](x, output_shape=[16, 16])
    return seen | {"projection": model.projection(x)}


def codano_by_hand(model: Any, x: Tensor) -> dict[str, Tensor]:
    seen = {"lifting": model.lifting(x.reshape(4, 1, 8, 8))}
    x = model.domain_padding.pad(seen["lifting"].reshape(2, 8, 8, 8))
    layer, prefix = model.attention_layers[0], "attention_layers.0"
    tokens = x.reshape(8, 2, 12, 12)
    seen[f"{prefix}.norm1"] = normed = layer.norm1(tokens)
    for part in ("Key", "Query", "Value"):
        seen[f"{prefix}.{part}"] = getattr(layer, part)(normed)
    attention = layer.multi_head_proj(layer.compute_attention(normed, 2))
    seen[f"{prefix}.multi_head_proj"] = attention
    attention = seen[f"{prefix}.attention_normalizer"] = layer.attention_normalizer(attention + tokens)
    out = seen[f"{prefix}.mixer_in_normalizer"] = layer.mixer_in_normalizer(attention)
    out = blocks_by_hand(layer.mixer, out, f"{prefix}.mixer", seen)
    out = seen[f"{prefix}.mixer_out_normalizer"] = layer.mixer_out_normalizer(out)
    x = seen[prefix] = resample((out + attention).reshape(2, 8, 12, 12), [1.0, 1.0], [-2, -1], output_shape=[12, 12])
    x = model.domain_padding.unpad(x).reshape(4, 4, 8, 8)
    return seen | {"projection": model.projection(x)}


def gino_by_hand(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    latent = GRID.reshape(16, 2)
    x = model.gno_in(y=inputs["input_geom"], x=latent, f_y=inputs["x"])
    seen = {"gno_in": x.transpose(1, 2)}
    x = seen["lifting"] = model.lifting(x.reshape(5, 4, 4, 3).permute(0, 3, 1, 2))
    x = blocks_by_hand(model.fno_blocks, x, "fno_blocks", seen)
    x = model.gno_out(y=latent, x=inputs["output_queries"], f_y=x.flatten(2).transpose(1, 2))
    seen["gno_out"] = x.transpose(1, 2)
    return seen | {"projection": model.projection(x.permute(0, 2, 1))}


def fnogno_by_hand(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    f = inputs["f"] if model.gno_batched else inputs["f"][None]
    x = torch.cat((f, GRID.expand(len(f), 4, 4, 2)), dim=-1).permute(0, 3, 1, 2)
    seen = {"lifting": model.lifting(x)}
    x = blocks_by_hand(model.fno_blocks, seen["lifting"], "fno_blocks", seen)
    x = x.permute(0, 2, 3, 1).reshape(len(x), 16, 4)
    x = model.gno(y=GRID.reshape(16, 2), x=inputs["out_p"], f_y=x if model.gno_batched else x[0])
    x = (x if model.gno_batched else x[None]).permute(0, 2, 1)
    return seen | {"gno": x, "projection": model.projection(x)}


def uqno_by_hand(model: Any, x: Tensor) -> dict[str, Tensor]:
    seen = {}
    for name in ("base_model", "residual_model"):
        inner = getattr(model, name)
        value = seen[f"{name}.lifting"] = inner.lifting(inner.positional_embedding(x))
        value = blocks_by_hand(inner.fno_blocks, inner.domain_padding.pad(value), f"{name}.fno_blocks", seen)
        value = seen[f"{name}.projection"] = inner.projection(inner.domain_padding.unpad(value))
        seen[name] = value
    return seen


def local_no_by_hand(model: Any, x: Tensor) -> dict[str, Tensor]:
    seen = {"lifting": model.lifting(model.positional_embedding(x))}
    x, blocks, prefix = seen["lifting"], model.local_no_blocks, "local_no_blocks"
    for i in range(2):
        parts = {"local_no_skips": (x,), "convs": (x,), "differential": (x, 1.0), "local_convs": (x,)}
        values = [blocks.get_submodule(f"{part}.{i}")(*args) for part, args in parts.items()]
        seen |= {f"{prefix}.{part}.{i}": value for part, value in zip(parts, values, strict=True)}
        skip, conv, differential, local = values
        x = conv + differential + local + skip
        x = seen[f"{prefix}.{i}"] = torch.nn.functional.gelu(x) if i == 0 else x
    return seen | {"projection": model.projection(x)}


BY_HAND: dict[str, Callable[[Any, Any], dict[str, Tensor]]] = {
    "UNO": uno_by_hand,
    "CODANO": codano_by_hand,
    "GINO": gino_by_hand,
    "FNOGNO": fnogno_by_hand,
    "FNOGNO, batched": fnogno_by_hand,
    "UQNO": uqno_by_hand,
    "LocalNO": local_no_by_hand,
}


@pytest.mark.parametrize("name", [name for name in BY_HAND if name in OPERATORS])
def test_captures_equal_the_forward_pass_by_hand(name: str) -> None:
    model, inputs = make(name)
    with torch.no_grad():
        expected = BY_HAND[name](model, inputs)
    captured = capture(model, list(expected), inputs, padded=True)
    assert {site for site in find_sites(model) if site.count(".") < 1} <= captured.keys()
    for site, value in expected.items():
        assert torch.equal(captured[site], value), site


def test_names_and_axes() -> None:
    grid = ("d1", "d2")
    for name, site, axes, shape in (
        ("UNO", "fno_blocks.1", ("batch", "channels", *grid), (2, 6, 8, 8)),
        ("UNO, padded", "fno_blocks.1", ("batch", "channels", *grid), (2, 6, 8, 8)),
        ("CODANO", "attention_layers.0.mixer.1", ("batch*tokens", "channels", *grid), (8, 2, 8, 8)),
        ("CODANO", "attention_layers.0.Key", ("batch*tokens", "channels", *grid), (8, 4, 4, 4)),
        ("CODANO", "lifting", ("batch*variables", "channels", *grid), (4, 4, 8, 8)),
        ("GINO", "gno_in", ("batch", "channels", "points"), (5, 3, 16)),
        ("GINO", "lifting", ("batch", "channels", *grid), (5, 4, 4, 4)),
        ("FNOGNO", "gno", ("batch", "channels", "points"), (1, 4, 7)),
        ("UQNO", "base_model", ("batch", "channels", *grid), (2, 1, 8, 8)),
        ("UQNO of GINO", "residual_model", ("batch", "channels", "points"), (5, 2, 7)),
    ):
        model, inputs = make(name)
        found = resolve_site(model, site)
        assert (found.axes, found.frozen) == (axes, site.startswith("base_model")), (name, site)
        assert capture(model, site, inputs).shape == shape, (name, site)


def test_padding_is_cut_where_the_resolution_changes() -> None:
    model, x = make("UNO, padded")
    padded, cut = (capture(model, "fno_blocks.1", x, padded=keep) for keep in (True, False))
    assert padded.shape[2:] == (12, 12)
    assert torch.equal(cut, padded[:, :, 2:-2, 2:-2])
    # A layer of CODANO may coarsen its keys and its output, by different factors.
    torch.manual_seed(0)
    codano_model, inputs = codano(2, per_layer_scaling_factors=[[0.5, 0.5], [2, 2]])
    scales = {str(site): site.scale for site in find_sites(codano_model)}
    assert scales["attention_layers.0.Key"] == (0.5, 0.5)
    assert scales["attention_layers.0.Value"] == ()
    assert scales["attention_layers.0"] == scales["attention_layers.1.Value"] == (0.5, 0.5)
    assert scales["attention_layers.1.Query"] == (0.25, 0.25)
    assert scales["attention_layers.1"] == (1.0, 1.0)
    shapes = {site: capture(codano_model, site, inputs).shape[2:] for site in ("attention_layers.0", "attention_layers.1")}
    assert shapes == {"attention_layers.0": (4, 4), "attention_layers.1": (8, 8)}


@pytest.mark.parametrize(("name", "site"), [("GINO", "gno_out"), ("FNOGNO", "gno"), ("FNOGNO", "fno_blocks.0")])
def test_an_autoencoder_on_points_and_at_batch_one(name: str, site: str) -> None:
    model, inputs = make(name)
    clean, activation = model(**inputs), capture(model, site, inputs)
    sae = SAEPointwise(activation.shape[1], 8, n_dim=activation.ndim - 2).eval()
    with splice(model, site, sae):
        assert torch.equal(model(**inputs), clean)
    with splice(model, site, sae, keep_error=False):
        spliced = model(**inputs)
        torch.testing.assert_close(capture(model, site, inputs), sae(activation).reconstruction.detach())
    assert not torch.equal(spliced, clean)


def test_calls_that_no_argument_tells_apart_are_counted() -> None:
    model, inputs = make("GINO")
    first, second = torch.rand(7, 2), torch.rand(6, 2)
    queries = {"output_queries": {"a": first, "b": second}}
    both = capture(model, ["gno_out.0", "gno_out.1", "projection.1"], inputs | queries)
    for name, points in (("gno_out.0", first), ("gno_out.1", second)):
        assert torch.equal(both[name], capture(model, "gno_out", inputs | {"output_queries": points})), name
    with pytest.raises(RuntimeError, match=r"'gno_out' fired 2 times in a pass: name one call, as in 'gno_out.0'"):
        capture(model, "gno_out", inputs | queries)
    with pytest.raises(RuntimeError, match="'gno_out.2' did not fire: .* so often"):
        capture(model, "gno_out.2", inputs | queries)
    clean = model(**inputs | queries)
    with replace_activation(model, "gno_out.1", torch.zeros_like):
        for _ in range(2):  # each pass is counted anew
            ablated = model(**inputs | queries)
            assert torch.equal(ablated["a"], clean["a"])
            assert not torch.equal(ablated["b"], clean["b"])


def test_a_copy_made_inside_a_splice_is_free_of_it() -> None:
    base, x = make("FNO")
    with replace_activation(base, "fno_blocks.0", torch.zeros_like):
        model = UQNO(base).eval()
        solution, quantile = model(x)
        assert not torch.equal(solution, quantile)
    solution, quantile = model(x)
    assert torch.equal(solution, quantile)
    assert torch.equal(solution, base(x))
    assert torch.equal(*(capture(model, f"{part}.fno_blocks.0", x) for part in ("base_model", "residual_model")))


def test_no_gradient_reaches_the_base_model_of_uqno() -> None:
    model, x = make("UQNO")
    for part, reached in (("base_model", False), ("residual_model", True)):
        scale = torch.ones((), requires_grad=True)
        with replace_activation(model, f"{part}.fno_blocks.0", partial(torch.mul, scale)):
            solution, quantile = model(x)
        (solution + quantile).sum().backward()
        assert (scale.grad is not None) is reached


class RNOCell(nn.Module):
    """A recurrent cell with the parts and calls of neuralop's, which the release lacks; one gate less."""

    def __init__(self) -> None:
        super().__init__()
        self.input_gates, self.hidden_gates = (
            nn.ModuleList(FNOBlocks(4, 4, (4, 4), use_channel_mlp=False) for _ in range(2)) for _ in range(2)
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        update = torch.sigmoid(self.input_gates[0](x) + self.hidden_gates[0](h))
        return (1 - update) * h + update * torch.selu(self.input_gates[1](x) + self.hidden_gates[1](h))


class RNOBlock(nn.Module):
    """The cell, once per time step."""

    def __init__(self, return_sequences: bool) -> None:
        super().__init__()
        self.cell, self.return_sequences, self.resolution_scaling_factor = RNOCell(), return_sequences, None

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = x.new_full((len(x), *x.shape[2:]), 0.1) if h is None else h
        states = []
        for step in x.unbind(1):
            h = self.cell(step, h)
            states.append(h)
        return torch.stack(states, 1) if self.return_sequences else states[-1]


class RNO(nn.Module):
    """(B, T, C, *grid) -> (B, C, *grid), on a padded domain."""

    def __init__(self) -> None:
        super().__init__()
        self.n_layers, self.n_dim = 2, 2
        model = fno(domain_padding=0.25, positional_embedding=None)[0]
        self.lifting, self.projection, self.domain_padding = model.lifting, model.projection, model.domain_padding
        self.layers = nn.ModuleList([RNOBlock(True), RNOBlock(False)])

    def forward(self, x: Tensor, init_hidden_states: Any = None) -> Tensor:
        padding, layers = cast(Any, self.domain_padding), self.layers
        steps = padding.pad(cast(Any, self.lifting)(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return cast(Any, self.projection)(padding.unpad(layers[1](layers[0](steps))))


class OTNO(FNO):
    """Latent grid -> points of the target, one sample per call."""

    def forward(self, x: Tensor, ind_dec: Tensor) -> Tensor:  # type: ignore[override]
        x = self.lifting(x)
        for i in range(self.n_layers):
            x = self.fno_blocks(x, i)
        return self.projection(x.flatten(2)[:, :, ind_dec]).squeeze(0)


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes that go by the full names under which neuralop's rules are registered."""
    modules = {RNOCell: "layers.rno_block", RNOBlock: "layers.rno_block", RNO: "models.rno", OTNO: "models.otno"}
    for standin, module in modules.items():
        monkeypatch.setattr(standin, "__module__", f"neuralop.{module}")


@pytest.mark.usefixtures("standins")
def test_recurrent_operators_have_a_time_axis() -> None:
    model: Any = RNO().eval()
    x = torch.randn(2, 3, 1, 8, 8)
    sites = check_sites(model, x, compiled=False)
    assert [site for site in sites if site.count(".") < 3] == [
        *("lifting", "layers.0.cell", "layers.0", "layers.1.cell", "layers.1", "projection"),
    ]
    axes = {str(site): site.axes for site in sites}
    assert axes["layers.0"] == axes["layers.0.cell"] == ("batch", "channels", "time", "d1", "d2")
    assert axes["layers.0.cell.input_gates.1"] == axes["layers.0.cell"]
    assert axes["layers.1"] == ("batch", "channels", "d1", "d2")
    assert axes["lifting"] == ("batch*time", "channels", "d1", "d2")
    captured = capture(model, sites, x)
    assert captured["lifting"].shape == (6, 4, 8, 8)
    # A state is the output of the cell at that step, and the layer's output holds them all.
    assert captured["layers.0"].shape == (2, 4, 3, 8, 8)
    assert torch.equal(captured["layers.0"], captured["layers.0.cell"])
    assert torch.equal(captured["layers.1"], captured["layers.1.cell"][:, :, -1])
    assert torch.equal(capture(model, "layers.0.cell.1", x), captured["layers.0"][:, :, 1])
    by_hand = model.layers[0](model.domain_padding.pad(model.lifting(x.flatten(0, 1))).unflatten(0, (2, 3)))
    assert torch.equal(capture(model, "layers.0", x, padded=True), by_hand.transpose(1, 2).detach())
    with replace_activation(model, "layers.0.cell.1", torch.zeros_like):
        ablated = capture(model, "layers.0", x)
    assert torch.equal(ablated[:, :, 0], captured["layers.0"][:, :, 0])
    assert not ablated[:, :, 1].any()
    assert not torch.equal(ablated[:, :, 2], captured["layers.0"][:, :, 2])  # the state is carried on


@pytest.mark.usefixtures("standins")
def test_a_subclass_with_a_rule_of_its_own_name() -> None:
    model = OTNO((4, 4), 3, 2, 4, n_layers=2, positional_embedding=None).eval()
    inputs = {"x": torch.randn(1, 3, 8, 8), "ind_dec": torch.randint(0, 64, (9,))}
    sites = check_sites(model, inputs, compiled=False)
    assert sites[-1].axes == ("batch", "channels", "points")
    assert capture(model, "projection", inputs).shape == (1, 2, 9)
    outer = UQNO(model).eval()
    assert capture(outer, "residual_model", inputs).shape == (1, 2, 9)
    assert resolve_site(outer, "residual_model").axes == ("batch", "channels", "points")


def test_operators_that_are_not_installed_have_rules() -> None:
    from neuralop_sae.attach.operators import OPERATORS as RULES

    names = {name.rsplit(".", 1)[1] for name in RULES}
    assert names >= {"FNO", "LocalNO", "UNO", "CODANO", "GINO", "FNOGNO", "UQNO", "RNO", "OTNO"}
