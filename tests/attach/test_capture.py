"""Captured activations against forward passes written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import FNO, TFNO
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.data import DataLoader

from neuralop_sae.attach.capture import capture, eval_mode, iterate_batches
from neuralop_sae.attach.sites import find_sites


def make_fno(kind: type = FNO, dims: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"hidden_channels": 8, "n_layers": 3, "in_channels": 1, "out_channels": 1}
    return kind(n_modes=(4,) * dims, **(defaults | options)).eval()


def block_by_hand(blocks: Any, x: Tensor, i: int, seen: dict[str, Tensor]) -> Tensor:
    """One FNO block from its parts, every value recorded under the name of its site."""

    def run(name: str, value: Tensor) -> Tensor:
        seen[f"fno_blocks.{name}"] = result = blocks.get_submodule(name)(value)
        return result

    def norm(j: int, value: Tensor) -> Tensor:
        return value if blocks.norm is None else run(f"norm.{j}", value)

    last = i == blocks.n_layers - 1
    if blocks.preactivation:
        x = norm(2 * i, gelu(x))
    skip = run(f"fno_skips.{i}", x) if blocks.fno_skips is not None else 0.0
    mlp_skip = run(f"channel_mlp_skips.{i}", x) if getattr(blocks, "channel_mlp_skips", None) is not None else 0.0
    x = run(f"convs.{i}", x)
    if not blocks.preactivation:
        x = norm(2 * i, x)
    x = x + skip
    x = x if last else gelu(x)
    if blocks.preactivation:
        x = norm(2 * i + 1, x)
    if blocks.use_channel_mlp:
        x = run(f"channel_mlp.{i}", x) + mlp_skip
    if not blocks.preactivation:
        x = norm(2 * i + 1, x)
        x = x if last else gelu(x)
    seen[f"fno_blocks.{i}"] = x
    return x


def fno_by_hand(model: Any, x: Tensor) -> dict[str, Tensor]:
    """Activations at every site of an FNO, on the padded grid where there is padding."""
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        x = seen["lifting"] = model.lifting(model.positional_embedding(x))
        if model.domain_padding is not None:
            x = model.domain_padding.pad(x)
        for i in range(model.n_layers):
            x = block_by_hand(model.fno_blocks, x, i, seen)
        if model.domain_padding is not None:
            x = model.domain_padding.unpad(x)
        seen["projection"] = model.projection(x)
    return seen


VARIANTS: list[tuple[type, int, dict[str, Any]]] = [
    (FNO, 2, {}),
    (TFNO, 2, {"rank": 0.5}),
    (FNO, 1, {}),
    (FNO, 3, {"n_layers": 2}),
    (FNO, 2, {"n_layers": 1}),
    (FNO, 2, {"norm": "group_norm"}),
    (FNO, 2, {"norm": "instance_norm", "preactivation": True}),
    (FNO, 2, {"norm": "batch_norm", "use_channel_mlp": False}),
    (FNO, 2, {"fno_skip": "identity", "channel_mlp_skip": "identity"}),
    (FNO, 2, {"fno_skip": None, "channel_mlp_skip": None}),
]


@pytest.mark.parametrize(("kind", "dims", "options"), VARIANTS, ids=str)
def test_every_site_equals_the_forward_pass_by_hand(kind: type, dims: int, options: dict[str, Any]) -> None:
    model = make_fno(kind, dims, **options)
    x = torch.randn(2, 1, *(8, 10, 8)[:dims])
    expected = fno_by_hand(model, x)
    captured = capture(model, find_sites(model), x)
    assert captured.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(captured[name], value), name
    assert torch.equal(capture(model, "projection", x), model(x).detach())
    blocks = [captured[f"fno_blocks.{i}"] for i in range(model.n_layers)]
    assert not any(torch.equal(a, b) for a, b in pairwise(blocks))


@pytest.mark.parametrize("padding", [0.25, [0.0, 0.3]], ids=str)
def test_domain_padding_is_cut_unless_asked(padding: float | list[float]) -> None:
    model = make_fno(domain_padding=padding)
    x = torch.randn(2, 1, 8, 12)
    expected = fno_by_hand(model, x)
    unpadded = capture(model, find_sites(model), x)
    padded = capture(model, find_sites(model), x, padded=True)
    for name, value in expected.items():
        assert torch.equal(padded[name], value), name
        assert unpadded[name].shape[2:] == (8, 12)
        inside = value if value.shape[2:] == (8, 12) else model.domain_padding.unpad(value)
        assert torch.equal(unpadded[name], inside), name


def test_calls_are_told_apart_however_the_index_is_passed() -> None:
    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = make_fno(n_layers=2).fno_blocks

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(self.blocks(x), index=1)

    model, x = Caller(), torch.randn(2, 8, 8, 8)
    captured = capture(model, ["blocks.0", "blocks.1"], x)
    assert torch.equal(captured["blocks.0"], model.blocks(x, 0).detach())
    assert torch.equal(captured["blocks.1"], model(x).detach())


def test_a_model_inside_another() -> None:
    inner = make_fno(domain_padding=0.25)
    x = torch.randn(2, 1, 8, 8)
    outer = nn.Sequential(nn.Identity(), inner)
    assert torch.equal(capture(outer, "1.fno_blocks.1", x), capture(inner, "fno_blocks.1", x))
    assert torch.equal(capture(outer, "1", x), inner(x).detach())


def test_all_kinds_of_inputs_agree() -> None:
    model = make_fno(norm="batch_norm")
    x, y = torch.randn(7, 1, 8, 8), torch.randn(7, 1, 8, 8)
    samples = [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]

    def generator() -> Iterator[Tensor]:
        yield from x.split(3)

    reference = capture(model, "fno_blocks.1", x, batch_size=7)
    loader: DataLoader[Any] = DataLoader(samples, batch_size=3)  # type: ignore[arg-type]
    for inputs in (x, {"x": x, "y": y}, loader, generator(), list(x.split(2))):
        # Convolutions round differently in batches of other sizes.
        torch.testing.assert_close(capture(model, "fno_blocks.1", inputs, batch_size=2), reference)
    assert list(capture(model, ("lifting", "fno_blocks.1"), x)) == ["lifting", "fno_blocks.1"]


@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_max_samples_stops_early(n: int) -> None:
    model, x = make_fno(), torch.randn(6, 1, 8, 8)
    drawn: list[int] = []

    def batches() -> Iterator[Tensor]:
        for start in range(0, 6, 2):
            drawn.append(start)
            yield x[start : start + 2]

    captured = capture(model, "fno_blocks.2", batches(), max_samples=n)
    torch.testing.assert_close(captured, capture(model, "fno_blocks.2", x[:n]))
    assert len(drawn) == min(3, -(-n // 2))


def test_data_processor_is_applied_in_eval_mode() -> None:
    model, x = make_fno(), torch.randn(4, 1, 8, 8)
    normalizer = UnitGaussianNormalizer(mean=x.mean(), std=x.std())
    processor = DefaultDataProcessor(in_normalizer=normalizer)
    processor.train()  # upstream's train() returns None, so that it cannot be chained
    batch = {"x": x, "y": x}
    captured = capture(model, "fno_blocks.0", [batch], data_processor=processor)
    assert torch.equal(captured, capture(model, "fno_blocks.0", normalizer.transform(x)))
    assert batch["x"] is x  # upstream's preprocess writes into the dict that it is given
    assert processor.training
    seen = []

    class Watching(DefaultDataProcessor):
        def preprocess(self, data_dict: dict[str, Tensor], batched: bool = True) -> dict[str, Tensor]:
            seen.append(self.training)
            return super().preprocess(data_dict, batched)

    capture(model, "fno_blocks.0", [batch], data_processor=Watching())
    assert seen == [False]


def test_training_flags_are_restored_one_by_one() -> None:
    model = make_fno(channel_mlp_dropout=0.5).train()
    model.lifting.eval()
    before = {name: module.training for name, module in model.named_modules()}
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(capture(model, "projection", x), capture(model, "projection", x))  # no dropout
    assert {name: module.training for name, module in model.named_modules()} == before
    with pytest.raises(KeyError), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert {name: module.training for name, module in model.named_modules()} == before


def test_captures_share_no_memory_with_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Identity(), nn.ReLU(inplace=True))
    x = torch.randn(2, 1, 4, 4)
    captured = capture(model, ["0", "1", "2"], x)
    assert torch.equal(captured["0"], model[0](x).detach())  # although the ReLU has overwritten the original
    assert torch.equal(captured["2"], captured["1"].relu())
    assert len({value.untyped_storage().data_ptr() for value in captured.values()}) == 3
    assert not any(value.requires_grad or value.is_inference() for value in captured.values())


def test_capture_under_inference_mode_leaves_no_inference_tensors() -> None:
    model, x = make_fno(), torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        captured = capture(model, "fno_blocks.0", x)
    assert not captured.is_inference()
    captured.requires_grad_().sum().backward()


def test_hooks_are_gone_after_success_and_failure() -> None:
    model = make_fno()
    capture(model, find_sites(model), torch.randn(1, 1, 8, 8))
    with pytest.raises(RuntimeError):
        capture(model, find_sites(model), torch.randn(1, 3, 8, 8))  # three channels for a model of one
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_hooks_with_kwargs for module in model.modules())


def test_sites_that_do_not_fire_once_are_errors() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)
            self.twice = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(x))

    with pytest.raises(RuntimeError, match="'unused' did not fire"):
        capture(Odd(), "unused", torch.randn(3, 2))
    with pytest.raises(RuntimeError, match="'twice' fired 2 times"):
        capture(Odd(), "twice", torch.randn(3, 2))


def test_one_output_of_a_tuple() -> None:
    model, x = nn.Sequential(nn.LSTM(2, 3, batch_first=True)), torch.randn(4, 5, 2)
    assert torch.equal(capture(model, "0[0]", x), model(x)[0].detach())
    with pytest.raises(TypeError, match=r"returns tuple of length 2; name one .* '0\[0\]'"):
        capture(model, "0", x)
    with pytest.raises(TypeError, match="no output 2, but tuple of length 2"):
        capture(model, "0[2]", x)


def test_bad_inputs() -> None:
    model, x = make_fno(), torch.randn(2, 1, 8, 8)
    for inputs in (3, "x", [(x, x)], [{"x": 1}], b"x"):
        with pytest.raises(TypeError):
            capture(model, "lifting", inputs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"FNO takes the inputs x, output_shape; got the keys \['y'\]: missing .* 'x'"):
        capture(model, "lifting", {"y": x})
    with pytest.raises(ValueError, match="same number of samples"):
        capture(model, "lifting", {"x": x, "y": x[:1]})
    with pytest.raises(ValueError, match="no samples"):
        capture(model, "lifting", [])
    with pytest.raises(ValueError, match="no sites"):
        capture(model, [], x)
    with pytest.raises(ValueError, match="max_samples"):
        capture(model, "lifting", x, max_samples=0)
    with pytest.raises(ValueError, match="differ in shape"):
        capture(model, "lifting", [x, x[..., ::2, ::2]])
    with pytest.raises(ValueError, match="batch_size"):
        next(iterate_batches(x, batch_size=0))


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    capture(make_fno(), "lifting", torch.randn(4, 1, 8, 8), batch_size=2, progress=True)
    assert "2/2" in capsys.readouterr().err


# Dynamo warns of its own about what it finds in neuralop's contractions.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_model() -> None:
    # The whole graph is compiled and run before the hook comes: Dynamo does not guard on hooks.
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.GELU()).eval()
    x = torch.randn(2, 1, 4, 4)
    compiled: Any = torch.compile(model, backend="eager")
    compiled(x)
    assert find_sites(compiled) == ["0", "1"]
    assert torch.equal(capture(compiled, "0", x), model[0](x).detach())


def test_arrays_are_told_how_they_get_in() -> None:
    model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=3, n_layers=1)
    array = xr.DataArray(np.zeros((2, 1, 8, 8), dtype=np.float32), dims=("time", "c", "y", "x"))
    for given in (array, array.values):
        with pytest.raises(TypeError, match=r"use torch.from_numpy, or neuralop_sae.from_xarray"):
            capture(model, "fno_blocks.0", given)
    with pytest.raises(TypeError, match=r"becomes the input of an operator by neuralop_sae.from_xarray"):
        capture(model, "fno_blocks.0", array.to_dataset(name="x"))
