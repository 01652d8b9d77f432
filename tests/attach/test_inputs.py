"""How models are called: arguments by name, batches, what all samples share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuralop.models import FNO, FNOGNO, GINO, UQNO
from torch import Tensor, nn

from neuralop_sae.attach.capture import capture
from neuralop_sae.attach.inputs import call_model, first_samples, iterate_batches, n_batches, n_samples, shared_arguments


class Sampler(nn.Module):
    """Takes a field and points by names of its own, and records what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.calls: list[tuple[Any, ...]] = []

    def forward(self, field: Tensor, points: Tensor, *, scale: float = 1.0) -> Tensor:
        self.calls.append((len(field), tuple(points.shape), scale))
        return self.inner(field * scale)


def gino() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    grid = torch.stack(torch.meshgrid([torch.linspace(0, 1, 4)] * 2, indexing="ij"), -1)
    model = GINO(
        **{"in_channels": 3, "out_channels": 1, "gno_coord_dim": 2, "in_gno_radius": 0.5, "out_gno_radius": 0.5},
        in_gno_channel_mlp_hidden_layers=[4],
        out_gno_channel_mlp_hidden_layers=[4],
        **{"fno_n_modes": (2, 2), "fno_hidden_channels": 4, "fno_n_layers": 1, "gno_embed_channels": 4},
        gno_use_open3d=False,
        gno_use_torch_scatter=False,
    )
    # As many points as samples, so that geometry cannot be told from a batch by its size.
    shared = {"input_geom": torch.rand(5, 2), "latent_queries": grid, "output_queries": torch.rand(5, 2)}
    return model.eval(), shared | {"x": torch.randn(5, 5, 3)}


def test_a_geometry_is_shared_by_all_batches() -> None:
    model, inputs = gino()
    assert shared_arguments(model) == ("input_geom", "latent_queries", "output_queries", "ada_in")
    expected = capture(model, "gno_out", inputs)
    torch.testing.assert_close(capture(model, "gno_out", inputs, batch_size=2), expected)
    torch.testing.assert_close(capture(model, "gno_out", inputs, max_samples=3, batch_size=2), expected[:3])
    loader = [inputs | {"x": x, "y": x[..., :1]} for x in inputs["x"].split(2)]
    torch.testing.assert_close(capture(model, "gno_out", loader), expected)
    torch.testing.assert_close(capture(model, "gno_out", loader, max_samples=3), expected[:3])
    # UQNO passes on what it is given: its arguments are those of the base model.
    wrapped = UQNO(model).eval()
    torch.testing.assert_close(capture(wrapped, "base_model.gno_out", inputs, batch_size=2), expected)


def test_entries_are_handed_over_by_name() -> None:
    model, x, points = Sampler(), torch.randn(5, 2, 4), torch.rand(7, 1)
    inputs = {"field": x, "points": points, "scale": 2.0, "y": x, "note": "not taken"}
    assert torch.equal(capture(model, "inner", inputs, batch_size=2, shared=["points"]), 2 * x)
    assert model.calls == [(2, (7, 1), 2.0), (2, (7, 1), 2.0), (1, (7, 1), 2.0)]
    # "x" stands for the first argument of a model that has none of this name.
    assert torch.equal(call_model(model, {"x": x, "points": points}), x)
    with pytest.raises(ValueError, match=r"Sampler takes the inputs field, points, scale; got .*'x', 'y'\]: .*'points'"):
        call_model(model, {"x": x, "y": x})
    with pytest.raises(ValueError, match=r"same number of samples; got .* shared=\['input_geom'\]"):
        capture(model, "inner", inputs)
    compiled: Any = torch.compile(model, backend="eager")
    assert torch.equal(capture(compiled, "inner", inputs, shared=["points"]), 2 * x)


def test_a_target_is_left_to_the_data_processor() -> None:
    # FNO takes any keyword, and warns of those that it ignores.
    model, x = FNO((2,), 1, 1, hidden_channels=2, n_layers=1).eval(), torch.randn(3, 1, 8)
    assert torch.equal(capture(model, "projection", {"x": x, "y": x}), model(x).detach())

    class Any_(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
            assert not kwargs
            return self.inner(*args)

    assert torch.equal(capture(Any_(), "inner", {"x": x, "y": x}), x)


def test_a_missing_input_is_named() -> None:
    model, inputs = gino()
    del inputs["output_queries"]
    with pytest.raises(ValueError, match=r"GINO takes the inputs input_geom, .*; got the keys .*: missing .*'output_queries'"):
        capture(model, "gno_in", inputs)


@pytest.mark.parametrize("batched", [False, True])
def test_fnogno_without_a_batch_takes_one_sample_per_call(batched: bool) -> None:
    options: dict[str, Any] = {"fno_n_modes": (2, 2), "fno_hidden_channels": 4, "fno_n_layers": 1, "gno_coord_dim": 2}
    options |= {"gno_embed_channels": 4, "gno_use_open3d": False, "gno_use_torch_scatter": False, "gno_radius": 1.0}
    model = FNOGNO(3, 2, gno_channel_mlp_hidden_layers=[4], gno_batched=batched, **options).eval()
    inputs = {"in_p": torch.rand(4, 4, 2), "out_p": torch.rand(7, 2), "f": torch.randn(5, 4, 4, 3)}
    assert ("f" in shared_arguments(model)) is not batched
    samples = inputs if batched else [inputs | {"f": f} for f in inputs["f"]]
    assert capture(model, "gno", samples, batch_size=2).shape == (5, 4, 7)
    assert capture(model, "gno", samples, batch_size=2, max_samples=3).shape == (3, 4, 7)


def test_samples_are_counted_in_what_is_not_shared() -> None:
    batch = {"mesh": torch.zeros(7, 2), "x": torch.zeros(4, 1, 3), "time": torch.tensor(0.5), "name": "a"}
    shared = ("mesh",)
    assert n_samples(batch, shared) == 4
    assert n_samples({"mesh": batch["mesh"]}, shared) == 1
    assert first_samples(batch, 2, shared)["x"].shape == (2, 1, 3)
    assert first_samples(batch, 2, shared)["mesh"] is batch["mesh"]
    assert first_samples(batch, 9, shared) == batch
    batches = list(iterate_batches(batch, 3, shared))
    assert [len(b["x"]) for b in batches] == [3, 1]
    assert all(b["mesh"] is batch["mesh"] and b["name"] == "a" and b["time"] == 0.5 for b in batches)
    assert n_batches(batch, 3, shared) == 2
    assert n_batches([batch], 3) == 1
    assert n_batches(iter([batch]), 3) == 1  # a list iterator tells its length
    assert n_batches((b for b in [batch]), 3) is None
    assert list(iterate_batches({"mesh": batch["mesh"]}, 3, shared)) == [{"mesh": batch["mesh"]}]
