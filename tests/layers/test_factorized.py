"""Mixed kernels against the dense tensor that their weight stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor

from neuralop_sae.layers.factorized import CPKernels, MixedKernels, TTKernels, TuckerKernels
from neuralop_sae.layers.kernels import kernels_of
from neuralop_sae.layers.rows import RowGradients
from neuralop_sae.layers.selection import Selection
from neuralop_sae.testing import assert_equal, relative_error

M, P = 3, 7
FORMS = ["tucker", "cp", "tt", "ComplexTucker", "ComplexCP", "ComplexTT"]
MODES = [(5,), (4, 3), (3, 2, 4)]


def make(form: str, axis: int, modes: tuple[int, ...] = (4, 3), rank: Any = 0.6, *, double: bool = True) -> Any:
    n_modes = (*modes[:-1], 2 * (modes[-1] - 1))
    shape = (P, M) if axis == 0 else (M, P)
    torch.manual_seed(0)
    conv = SpectralConv(*shape, n_modes, factorization=form, rank=rank, implementation="factorized")
    for parameter in conv.weight.parameters():
        parameter.data = parameter.data.to(torch.complex128 if parameter.is_complex() else torch.float64)
        if not double:
            parameter.data = parameter.data.to(torch.complex64 if parameter.is_complex() else torch.float32)
    kernels = kernels_of(conv.weight, axis)
    assert isinstance(kernels, MixedKernels)
    kernels.reset_(1.0)
    return kernels


def dense(kernels: MixedKernels) -> Tensor:
    """All kernels ``(p, K, m)`` from the reconstructed weight."""
    tensor = kernels.weight.to_tensor()
    return tensor.permute(kernels.axis, *range(2, tensor.ndim), 1 - kernels.axis).flatten(1, -2)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


RAGGED = Selection(torch.tensor([0, 0, 0, 2, 3, 3]), torch.tensor([1, 4, 6, 4, 0, 1]), 4, P)
EVEN = Selection(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.tensor([0, 6, 2, 3, 2, 5, 0, 1]), 4, P)
EMPTY = Selection(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), 4, P)
SELECTIONS = pytest.mark.parametrize("selection", [RAGGED, EVEN, EMPTY], ids=["ragged", "even", "empty"])

everything = pytest.mark.parametrize("form", FORMS)
axes = pytest.mark.parametrize("axis", [0, 1])
mode_shapes = pytest.mark.parametrize("modes", MODES, ids=str)


def test_forms_are_registered() -> None:
    kinds = [type(make(form, 0)) for form in FORMS]
    assert kinds == 2 * [TuckerKernels, CPKernels, TTKernels]


@everything
@axes
@mode_shapes
def test_kernels_are_mixed_templates(form: str, axis: int, modes: tuple[int, ...]) -> None:
    kernels = make(form, axis, modes)
    expected = dense(kernels)
    mixing, templates = kernels.mixing(slice(None)), kernels.templates()
    assert mixing.shape == (P, kernels.rank)
    assert_equal("mixture", torch.einsum("cr,rki->cki", mixing, templates), expected)
    for concepts in (torch.tensor([4, 0, 4]), slice(1, 4), slice(5, 99), torch.tensor([], dtype=torch.int64)):
        assert_equal(f"rows {concepts}", kernels.rows(concepts), expected[concepts])
        assert_equal(f"mixing {concepts}", kernels.mixing(concepts), mixing[concepts])


@everything
@axes
@mode_shapes
def test_data_through_templates(form: str, axis: int, modes: tuple[int, ...]) -> None:
    kernels = make(form, axis, modes)
    templates = kernels.templates()
    x, y = draw(2, kernels.n_modes, M), draw(2, kernels.rank, kernels.n_modes)
    assert_equal("features", kernels.features(x), torch.einsum("rki,bki->brk", templates, x))
    assert_equal("expand", kernels._expand(y[..., None]), torch.einsum("rki,brk->bki", templates, y))
    assert kernels.features(x[:0]).shape == (0, kernels.rank, kernels.n_modes)


@everything
@axes
@mode_shapes
@SELECTIONS
def test_respond_and_write(form: str, axis: int, modes: tuple[int, ...], selection: Selection) -> None:
    kernels = make(form, axis, modes)
    rows = dense(kernels)[selection.concept]
    x, codes = draw(4, kernels.n_modes, M), draw(len(selection), kernels.n_modes)
    assert_equal("respond", kernels.respond(x, selection), torch.einsum("nki,nki->nk", rows, x[selection.sample]))
    written = torch.zeros_like(x).index_add(0, selection.sample, rows * codes[..., None])
    assert_equal("write", kernels.write(codes, selection), written)


@everything
@axes
def test_respond_all_has_no_gradient(form: str, axis: int) -> None:
    kernels = make(form, axis)
    x = draw(2, kernels.n_modes, M)
    for concepts in (slice(0, P), slice(2, 5), slice(6, 99)):
        out = kernels.respond_all(x, concepts)
        assert_equal("respond_all", out, torch.einsum("cki,bki->kbc", dense(kernels)[concepts], x).detach())
        assert not out.requires_grad


def gradients(kernels: MixedKernels, selection: Selection, *, through_dense: bool) -> list[Tensor]:
    x = draw(4, kernels.n_modes, M).requires_grad_()
    codes = draw(len(selection), kernels.n_modes, seed=2).requires_grad_()
    if through_dense:
        rows = dense(kernels)[selection.concept]
        read = torch.einsum("nki,nki->nk", rows, x[selection.sample])
        written = torch.zeros_like(x).index_add(0, selection.sample, rows * codes[..., None])
    else:
        rows = kernels.rows(selection.concept)
        read, written = kernels.respond(x, selection), kernels.write(codes, selection)
    outputs = [rows, read, written]
    loss = sum((draw(*out.shape, seed=3) * out).real.sum() for out in outputs)
    inputs = [x, codes, *kernels.weight.parameters()]
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in inputs]
    kernels.weight.zero_grad()
    return grads


@everything
@axes
@mode_shapes
def test_gradients_are_those_of_the_dense_weight(form: str, axis: int, modes: tuple[int, ...]) -> None:
    kernels = make(form, axis, modes)
    mine = gradients(kernels, RAGGED, through_dense=False)
    for number, (grad, expected) in enumerate(zip(mine, gradients(kernels, RAGGED, through_dense=True), strict=True)):
        assert expected.norm() > 0
        assert_equal(f"gradient {number}", grad, expected)


@pytest.mark.parametrize("form", ["tucker", "cp", "tt"])
@axes
def test_rows_of_the_concept_factor_are_recorded(form: str, axis: int) -> None:
    kernels = make(form, axis)
    factor = kernels.weight.factors[axis]
    which = 2 + next(i for i, parameter in enumerate(kernels.weight.parameters()) if parameter is factor)
    expected = gradients(kernels, RAGGED, through_dense=False)
    with RowGradients() as record:
        rest = gradients(kernels, RAGGED, through_dense=False)
    (recorded,) = record.sums()
    assert recorded.parameter is factor
    assert recorded.index.tolist() == [0, 1, 4, 6]
    total = torch.zeros_like(recorded.view).index_copy(0, recorded.index, recorded.values)
    assert_equal("rows", total, expected[which].movedim(1, 0) if form == "tt" else expected[which])
    for number, (grad, dense_grad) in enumerate(zip(rest, expected, strict=True)):
        assert_equal(f"gradient {number}", grad, torch.zeros_like(grad) if number == which else dense_grad)


@everything
@axes
def test_scale(form: str, axis: int) -> None:
    kernels = make(form, axis)
    scale = torch.arange(1.0, P + 1)
    expected = dense(kernels).detach() * scale[:, None, None]
    kernels.scale_(scale)
    assert_equal("scaled", dense(kernels).detach(), expected)


def layers(form: str, decoder_rank: Any, encoder_rank: Any) -> tuple[MixedKernels, MixedKernels]:
    return make(form, 0, rank=decoder_rank), make(form, 1, rank=encoder_rank)


@pytest.mark.parametrize(
    ("form", "decoder_rank", "encoder_rank"),
    [
        ("tucker", (5, 2, 3, 2), (2, 5, 3, 2)),
        ("ComplexTucker", (5, 2, 3, 2), (2, 5, 3, 2)),
        ("cp", 6, 6),
        ("tt", (1, 6, 2, 3, 1), (1, M, 2, 3, 1)),
        ("tt", (1, 2, 3, 2, 1), (1, M, 3, 2, 1)),
        ("ComplexTT", (1, 6, 2, 3, 1), (1, M, 2, 3, 1)),
    ],
)
def test_adjoint_is_the_conjugate_transpose(form: str, decoder_rank: Any, encoder_rank: Any) -> None:
    decoder, encoder = layers(form, decoder_rank, encoder_rank)
    encoder.copy_adjoint_(decoder)
    assert_equal("encoder", dense(encoder), dense(decoder).conj())
    expected = dense(encoder).detach().conj()
    decoder.reset_(1.0)
    decoder.copy_adjoint_(encoder)
    assert_equal("decoder", dense(decoder), expected)


@pytest.mark.parametrize("form", ["tt", "ComplexTT"])
def test_adjoint_of_a_train_is_otherwise_the_nearest(form: str) -> None:
    decoder, encoder = layers(form, (1, 6, 2, 3, 1), (1, 2, 2, 3, 1))
    target = dense(decoder).detach().conj()
    encoder.copy_adjoint_(decoder)
    lost = torch.linalg.svdvals(target.permute(2, 0, 1).flatten(1))[2:].norm()
    assert relative_error(dense(encoder), target) == pytest.approx(float(lost / target.norm()), rel=1e-6)
    assert lost > 0.1

    decoder, encoder = layers(form, (1, 4, 2, 3, 1), (1, M, 2, 3, 1))
    target = dense(encoder).detach().conj()
    decoder.copy_adjoint_(encoder)
    lost = torch.linalg.svdvals(target.flatten(1))[4:].norm()
    assert relative_error(dense(decoder), target) == pytest.approx(float(lost / target.norm()), rel=1e-6)
    assert lost > 0.1


def test_adjoint_fills_ranks_that_it_does_not_need_with_zeros() -> None:
    decoder, encoder = layers("tt", (1, 7, 2, 3, 1), (1, 2, 2, 3, 1))
    decoder.copy_adjoint_(encoder)
    assert_equal("decoder", dense(decoder), dense(encoder).conj())
    assert not decoder.weight.factors[0][:, :, 4:].any()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            ("tucker", 0, (5, 2, 3, 2)),
            ("tucker", 1, (3, 5, 3, 2)),
            r"ranks \(3, 5, 3, 2\) cannot hold .* ranks \(2, 5, 3, 2\)",
        ),
        (("cp", 0, 5), ("cp", 1, 4), r"ranks \(4,\) cannot hold the adjoint of ranks \(5,\)"),
        (("tt", 0, (1, 6, 2, 3, 1)), ("tt", 1, (1, 3, 2, 2, 1)), r"mode ranks \(2, 2\) cannot hold .* mode ranks \(2, 3\)"),
        (("tt", 0, 2), ("cp", 1, 2), "CPKernels of shape .* cannot be the adjoint of TTKernels"),
        (("cp", 1, 2), ("cp", 1, 2), "the first two axes swapped"),
    ],
)
def test_adjoint_that_cannot_be_is_refused_without_a_change(first: Any, second: Any, message: str) -> None:
    source, target = (make(form, axis, rank=rank) for form, axis, rank in (first, second))
    before = dense(target).detach().clone()
    with pytest.raises(ValueError, match=message):
        target.copy_adjoint_(source)
    assert torch.equal(dense(target), before)


@everything
@axes
@pytest.mark.parametrize("rank", [0.6, 1])
def test_reset_has_the_wanted_size(form: str, axis: int, rank: Any) -> None:
    if rank == 1:
        rank = {"cp": 1, "tt": (1,) * 5}.get(form.lower().removeprefix("complex"), (1,) * 4)
    kernels = make(form, axis, rank=rank, double=False)
    kernels.reset_(0.158, torch.Generator().manual_seed(5))
    first = dense(kernels).detach().clone()
    assert first.abs().square().mean().sqrt().item() == pytest.approx(0.158, rel=1e-5)
    kernels.reset_(0.158, torch.Generator().manual_seed(5))
    assert torch.equal(dense(kernels), first)
    kernels.reset_(0.158, torch.Generator().manual_seed(6))
    assert relative_error(dense(kernels), first) > 0.5


@pytest.mark.parametrize(("form", "rank"), [("tucker", (6, 3, 4, 3)), ("cp", 24), ("tt", (1, 6, 12, 3, 1))])
def test_reset_spreads_evenly(form: str, rank: Any) -> None:
    kernels = make(form, 0, rank=rank)
    drawn = torch.stack([kernels.reset_(1.0) or dense(kernels).detach() for _ in range(200)])
    assert drawn.mean(0).abs().max() < 0.35
    assert ((drawn.abs().square().mean(0) - 1).abs() < 0.6).all()  # every entry, every concept
    assert drawn.abs().pow(4).mean().item() == pytest.approx(2, rel=0.2)  # a complex normal variable has 2


def test_contractions_compile() -> None:
    kernels = make("tucker", 0)
    x = draw(2, kernels.n_modes, M)
    assert_equal("compiled", torch.compile(kernels.features, backend="eager")(x), kernels.features(x))


def test_nothing_is_as_large_as_the_dense_weight() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.size = max(self.size, out.numel())
            return out

    p, m, modes, n_modes = 600, 8, 20, (5, 6)
    for form, rank in [("tucker", (4, 8, 5, 4)), ("cp", 6), ("tt", (1, 5, 2, 4, 1))]:
        conv = SpectralConv(p, m, n_modes, factorization=form, rank=rank, implementation="factorized")
        kernels = kernels_of(conv.weight, 0)
        selection = Selection(torch.tensor([0, 0, 1]), torch.tensor([5, 599, 7]), 2, p)
        x = torch.randn(2, modes, m, dtype=torch.complex64)
        with Largest() as largest:
            kernels.reset_(1.0)
            codes = kernels.respond(x, selection)
            kernels.write(codes, selection).abs().sum().backward()
            kernels.respond_all(x, slice(0, 60))
            kernels.scale_(torch.ones(p))
        assert largest.size < p * m * modes / 10
