"""Splicing with a linear stand-in autoencoder: what the operator computes, gradients, hooks, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from neuralop.models import FNO, TFNO
from torch import Tensor, nn

from neuralop_sae.attach.capture import capture
from neuralop_sae.attach.edits import ablate, steer
from neuralop_sae.attach.interventions import replace_activation, splice
from neuralop_sae.attach.sites import find_sites

P = 6


@dataclass(frozen=True)
class Codes:
    """The fields of ConceptCodes that attach relies on."""

    sample: Tensor
    concept: Tensor
    values: Tensor
    n_samples: int
    n_concepts: int
    basis: Any = None


class LinearSAE(nn.Module):
    """Pointwise codes; the k concepts of largest norm are on in a sample."""

    def __init__(self, channels: int = 8, k: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.encoder = nn.Parameter(torch.randn(P, channels, generator=generator))
        self.decoder = nn.Parameter(torch.randn(P, channels, generator=generator))
        self.bias = nn.Parameter(torch.randn(channels, generator=generator))
        self.k = k

    def encode(self, x: Tensor) -> Any:
        if x.shape[1] != self.encoder.shape[1]:
            raise ValueError(f"expected {self.encoder.shape[1]} channels, got {x.shape[1]}")
        assert not self.training
        assert x.dtype == self.encoder.dtype
        dense = torch.einsum("pc,bc...->bp...", self.encoder, x).relu()
        concept = dense.flatten(2).norm(dim=2).topk(self.k).indices.sort().values.flatten()
        sample = torch.arange(len(x)).repeat_interleave(self.k)
        return Codes(sample, concept, dense[sample, concept], len(x), P)

    def decode(self, codes: Any, output_shape: tuple[int, ...]) -> Tensor:
        assert tuple(codes.values.shape[1:]) == output_shape
        ones = (1,) * len(output_shape)
        rows = codes.values[:, None] * self.decoder[codes.concept].reshape(-1, len(self.bias), *ones)
        out = rows.new_zeros(codes.n_samples, len(self.bias), *output_shape).index_add(0, codes.sample, rows)
        return out + self.bias.reshape(1, -1, *ones)


def make_fno(kind: type = FNO, dims: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"hidden_channels": 8, "n_layers": 3, "in_channels": 1, "out_channels": 1}
    return kind(n_modes=(4,) * dims, **(defaults | options)).eval()


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def channels_of(model: nn.Module, site: str) -> int:
    return 1 if site == "projection" else 8


@pytest.mark.parametrize(
    ("kind", "dims", "options"),
    [
        (FNO, 2, {}),
        (TFNO, 2, {"norm": "instance_norm", "preactivation": True}),
        (FNO, 2, {"domain_padding": 0.25, "fno_skip": "identity", "channel_mlp_skip": "identity"}),
        (FNO, 1, {"n_layers": 1}),
        (FNO, 3, {"n_layers": 2}),
    ],
    ids=str,
)
def test_identity_edits_keep_the_output_bit_for_bit(kind: type, dims: int, options: dict[str, Any]) -> None:
    model, x = make_fno(kind, dims, **options), torch.randn(2, 1, *(8,) * dims)
    expected = model(x)
    for site in find_sites(model):
        sae = LinearSAE(channels_of(model, site), k=2).eval()
        on = set(sae.encode(capture(model, site, x, padded=True)).concept.tolist())
        on |= set(sae.encode(capture(model, site, x)).concept.tolist())
        edits: list[Any] = [lambda codes: codes, steer(0, scale=1.0)]
        edits += [ablate(set(range(P)) - on)] if len(on) < P else []
        for padded in (False, True):
            for chain in ((), edits):
                with splice(model, site, sae, chain, padded=padded):
                    assert torch.equal(model(x), expected), (site, padded, chain)
    assert torch.equal(model(x), expected)
    assert n_hooks(model) == 0


def test_the_same_codes_are_bit_exact_even_if_decoding_is_not() -> None:
    class Noisy(LinearSAE):
        def decode(self, codes: Any, output_shape: tuple[int, ...]) -> Tensor:
            return super().decode(codes, output_shape) + 1e-6 * torch.rand(output_shape)

    model, x = make_fno(), torch.randn(2, 1, 8, 8)
    with splice(model, "fno_blocks.1", Noisy(), [steer(range(P), scale=1.0)]):
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("padding", [None, 0.25])
@pytest.mark.parametrize("keep_error", [True, False])
@pytest.mark.parametrize("site", ["lifting", "fno_blocks.0", "fno_blocks.convs.1", "fno_blocks.2"])
def test_spliced_value_follows_the_formula(padding: float | None, keep_error: bool, site: str) -> None:
    model, sae, x = make_fno(domain_padding=padding), LinearSAE().eval(), torch.randn(2, 1, 8, 8)
    edit = steer([0, 1, 2], scale=-2.0)
    clean = capture(model, site, x)
    clean_padded = capture(model, site, x, padded=True)
    codes = sae.encode(clean)
    edited, reconstruction = (sae.decode(c, output_shape=(8, 8)).detach() for c in (edit(codes), codes))
    assert (edited - reconstruction).abs().max() > 0.1
    with splice(model, site, sae, [edit], keep_error=keep_error):
        spliced = capture(model, site, x)
        spliced_padded = capture(model, site, x, padded=True)
    expected = edited + (clean - reconstruction if keep_error else 0.0)
    torch.testing.assert_close(spliced, expected)
    if clean_padded.shape != clean.shape:
        margins = torch.ones(12, 12, dtype=torch.bool)
        margins[2:-2, 2:-2] = False
        assert torch.equal(spliced_padded[..., margins], clean_padded[..., margins])
        assert torch.equal(spliced_padded[..., 2:-2, 2:-2], spliced)


def test_padded_splice_sees_the_whole_grid() -> None:
    model, x = make_fno(domain_padding=0.25), torch.randn(2, 1, 8, 8)
    grids: list[tuple[int, ...]] = []

    def record(codes: Any) -> Any:
        grids.append(tuple(codes.values.shape[1:]))
        return codes

    for padded in (False, True):
        with splice(model, "fno_blocks.0", LinearSAE(), record, padded=padded):
            model(x)
    assert grids == [(8, 8), (12, 12)]


def test_edits_apply_in_order_and_may_write_in_place() -> None:
    model, sae, x = make_fno(), LinearSAE(), torch.randn(2, 1, 8, 8)

    def add(codes: Any) -> Any:
        return replace(codes, values=codes.values + 1)

    def double_in_place(codes: Any) -> Any:
        codes.values.mul_(2)
        return codes

    def run(*edits: Callable[[Any], Any]) -> Tensor:
        with splice(model, "fno_blocks.1", sae, edits):
            return model(x).detach()

    double = steer(range(P), scale=2.0)
    torch.testing.assert_close(run(double_in_place), run(double))
    assert not torch.allclose(run(double), model(x))
    torch.testing.assert_close(run(add, double), run(double, add, add))
    assert not torch.allclose(run(add, double), run(double, add))


@pytest.mark.parametrize("keep_error", [True, False])
def test_gradients_reach_inputs_autoencoder_and_edits(keep_error: bool) -> None:
    model, sae = make_fno(domain_padding=0.25), LinearSAE()
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)  # an edit that changes nothing still has a derivative
    region = torch.rand(8, 8).requires_grad_()
    with splice(model, "fno_blocks.1", sae, [steer(range(P), scale), steer(0, 3.0, region)], keep_error):
        loss = model(x).square().sum()
    loss.backward()
    for tensor in (x, sae.encoder, sae.decoder, scale, region):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_gradient_of_a_scale_is_its_finite_difference() -> None:
    model, sae, x = make_fno(), LinearSAE(), torch.randn(2, 1, 8, 8)

    def output(scale: Tensor | float) -> Tensor:
        with splice(model, "fno_blocks.1", sae, [steer(range(P), scale)]):
            return model(x).sum()

    scale = torch.tensor(1.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(output(scale), scale)
    difference = (output(1.51) - output(1.49)) / 0.02
    torch.testing.assert_close(gradient, difference.detach(), rtol=1e-2, atol=1e-3)


def test_the_error_carries_no_gradient() -> None:
    model, sae = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Identity()), LinearSAE()
    x = torch.randn(2, 1, 4, 4, requires_grad=True)
    gradients = []
    for keep_error in (True, False):
        with splice(model, "0", sae, keep_error=keep_error):
            gradients.append(torch.autograd.grad(model(x).square().sum(), (x, sae.bias)))
    by_hand = sae.eval().decode(sae.encode(model[0](x)), (4, 4))
    weight = 2 * model[0](x).detach()
    torch.testing.assert_close(gradients[0], torch.autograd.grad((by_hand * weight).sum(), (x, sae.bias)))
    by_hand = sae.decode(sae.encode(model[0](x)), (4, 4))
    torch.testing.assert_close(gradients[1], torch.autograd.grad(by_hand.square().sum(), (x, sae.bias)))


def test_nested_splices_at_several_sites_and_at_one() -> None:
    model, sae, x = make_fno(), LinearSAE(), torch.randn(2, 1, 8, 8)
    with splice(model, "fno_blocks.0", sae, ablate(range(P)), keep_error=False):
        first = model(x)
        with splice(model, "fno_blocks.2", sae, ablate(range(P)), keep_error=False):
            both = model(x)
        assert torch.equal(model(x), first)
    bias = sae.bias.reshape(1, 8, 1, 1).expand(2, 8, 8, 8)
    torch.testing.assert_close(both, model.projection(bias))
    clean = inner_output(model, x)
    with (
        replace_activation(model, "fno_blocks.1", lambda a: a + 1),
        replace_activation(model, "fno_blocks.1", lambda a: a * 2),
    ):
        torch.testing.assert_close(capture(model, "fno_blocks.1", x), 2 * (clean + 1))
    assert n_hooks(model) == 0


def inner_output(model: Any, x: Tensor) -> Tensor:
    """Output of block 1, by hand."""
    with torch.no_grad():
        x = model.lifting(model.positional_embedding(x))
        return model.fno_blocks(model.fno_blocks(x, 0), 1)


def test_replacement_equals_the_forward_pass_by_hand() -> None:
    model, x = make_fno(), torch.randn(2, 1, 8, 8)
    with replace_activation(model, "fno_blocks.1", lambda a: a.flip(2)):
        replaced = model(x)
    expected = model.projection(model.fno_blocks(inner_output(model, x).flip(2), 2))
    assert torch.equal(replaced, expected)
    with replace_activation(model, "fno_blocks.2", torch.zeros_like):
        torch.testing.assert_close(model(x), model.projection(torch.zeros(2, 8, 8, 8)))


def test_an_identity_skip_is_not_edited_in_place() -> None:
    # fno_skip="identity" hands on the block's own input; an edit of the skip must not reach the convolution.
    model = make_fno(fno_skip="identity", domain_padding=0.25)
    x = torch.randn(2, 1, 8, 8)
    before = capture(model, "fno_blocks.convs.0", x)
    with replace_activation(model, "fno_blocks.fno_skips.0", torch.zeros_like):
        assert torch.equal(capture(model, "fno_blocks.convs.0", x), before)
        assert not torch.allclose(capture(model, "fno_blocks.0", x), torch.zeros(()))


def test_hooks_and_modes_are_restored_after_exceptions() -> None:
    model, sae, x = make_fno(), LinearSAE().train(), torch.randn(2, 1, 8, 8)
    expected = model(x)

    def fail(codes: Any) -> Any:
        raise KeyError("edit")

    with pytest.raises(KeyError, match="body"), splice(model, "fno_blocks.1", sae):
        assert not sae.training
        raise KeyError("body")
    with pytest.raises(KeyError, match="edit"), splice(model, "fno_blocks.1", sae, [fail]):
        model(x)
    with pytest.raises(RuntimeError), splice(model, "fno_blocks.1", sae):
        model(torch.randn(2, 3, 8, 8))
    with (
        pytest.raises(ValueError, match="expected 4 channels, got 8"),
        splice(model, "fno_blocks.1", LinearSAE(4)),
    ):
        model(x)
    assert n_hooks(model) == 0
    assert sae.training
    assert torch.equal(model(x), expected)


def test_a_context_can_be_used_again_but_not_twice_at_once() -> None:
    model, sae, x = make_fno(), LinearSAE(), torch.randn(2, 1, 8, 8)
    context = splice(model, "fno_blocks.1", sae, ablate(range(P)))
    outputs = []
    for _ in range(2):
        with context:
            outputs.append(model(x))
            with pytest.raises(RuntimeError, match="active already"), context:
                pass
    assert torch.equal(*outputs)
    assert n_hooks(model) == 0
    assert not torch.allclose(outputs[0], model(x))


@pytest.mark.parametrize("model_dtype", [torch.float64, torch.bfloat16])
def test_dtypes_are_cast_to_the_autoencoder_and_back(model_dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 1, 1)).to(model_dtype)
    x = torch.randn(2, 1, 4, 4, dtype=model_dtype)
    with splice(model, "0", LinearSAE()):
        assert torch.equal(model(x), model(x))
        assert capture(model, "0", x).dtype == model_dtype
        output = model(x)
    assert torch.equal(output, model(x))  # float32 has fewer digits than float64: the error term restores them
    with splice(model, "0", LinearSAE(), keep_error=False):
        assert model(x).dtype == model_dtype


def test_autocast_does_not_reach_the_autoencoder() -> None:
    model, x = make_fno(), torch.randn(2, 1, 8, 8)
    dtypes = []

    def record(codes: Any) -> Any:
        dtypes.append(codes.values.dtype)
        return codes

    with torch.autocast("cpu", dtype=torch.bfloat16), splice(model, "lifting", LinearSAE(), record):
        model(x)
    assert dtypes == [torch.float32]


def test_another_device_is_refused() -> None:
    model, x = make_fno(), torch.randn(2, 1, 8, 8)
    with (
        pytest.raises(ValueError, match="SAE is on meta, the activation on cpu"),
        splice(model, "lifting", LinearSAE().to("meta")),
    ):
        model(x)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


def test_output_structure_is_kept() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Pair:
            return Pair(x, x + 1)

    model, x = nn.Sequential(Two()), torch.randn(2, 1, 4)
    with replace_activation(model, "0[1]", torch.zeros_like):
        output = model(x)
    assert isinstance(output, Pair)
    assert output.first is x
    assert not output.second.any()


def test_bad_arguments() -> None:
    model, sae, x = make_fno(), LinearSAE(), torch.randn(2, 1, 8, 8)
    nothing: Any = lambda _: None
    with pytest.raises(ValueError, match="unknown site 'fno_blocks.3'.*known sites: lifting"):
        splice(model, "fno_blocks.3", sae)
    with pytest.raises(TypeError, match="encode and decode"):
        splice(model, "lifting", nn.Linear(2, 2))
    with pytest.raises(TypeError, match="an edit is a function"):
        splice(model, "lifting", sae, [3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="an edit is a function codes -> codes; got int"):
        splice(model, "lifting", sae, 3)  # type: ignore[arg-type]
    with (
        pytest.raises(TypeError, match="must return Codes; got NoneType"),
        splice(model, "lifting", sae, [nothing]),
    ):
        model(x)
    with (
        pytest.raises(ValueError, match="the replacement has shape"),
        replace_activation(model, "lifting", lambda a: a[:, :1]),
    ):
        model(x)
    with (
        pytest.raises(TypeError, match="must be a tensor; got NoneType"),
        replace_activation(model, "lifting", nothing),
    ):
        model(x)


# Dynamo warns of its own about what it finds in neuralop's contractions.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_model_is_spliced() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.GELU()).eval()
    x = torch.randn(2, 1, 4, 4)
    compiled: Any = torch.compile(model, backend="eager")
    compiled(x)
    with splice(compiled, "0", LinearSAE(), ablate(range(P)), keep_error=False):
        spliced = compiled(x)
    torch.testing.assert_close(spliced, torch.nn.functional.gelu(LinearSAE().bias.reshape(1, 8, 1, 1)).expand(2, 8, 4, 4))
    assert torch.equal(compiled(x), model(x))


# Dynamo warns of its own about what it finds in neuralop's contractions.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_fno_is_spliced() -> None:
    model, sae, x = make_fno(), LinearSAE(), torch.randn(2, 1, 8, 8)
    with splice(model, "fno_blocks.1", sae, steer(range(P), 2.0)):
        expected = model(x)
    compiled: Any = torch.compile(model, backend="eager")
    clean = compiled(x)
    with splice(compiled, "fno_blocks.1", sae, steer(range(P), 2.0)):
        assert torch.equal(compiled(x), expected)
    assert torch.equal(compiled(x), clean)
    assert n_hooks(model) == 0


def test_a_replacement_that_never_acts_says_so() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model, x = Skipping(), torch.randn(1, 2, 4)
    with (
        pytest.raises(RuntimeError, match="nothing was replaced at 'unused': the model ran, but never called this module"),
        replace_activation(model, "unused", torch.zeros_like),
    ):
        model(x)
    with (
        pytest.raises(RuntimeError, match="nothing was replaced at 'used.1': .* 2 times in a pass"),
        replace_activation(model, "used.1", torch.zeros_like),
    ):
        model(x)
    with replace_activation(model, "unused", torch.zeros_like):
        pass  # the model did not run
    with pytest.raises(KeyError), replace_activation(model, "unused", torch.zeros_like):
        model(x)
        raise KeyError  # the first error is the one to see
    assert n_hooks(model) == 0
