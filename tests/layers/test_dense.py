"""Dense kernels against einsum with the whole weight, in every way of cutting the work into chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor

from neuralop_sae.layers import dense
from neuralop_sae.layers.dense import DenseKernels
from neuralop_sae.layers.kernels import kernels_of
from neuralop_sae.layers.rows import RowGradients
from neuralop_sae.layers.selection import Selection
from neuralop_sae.testing import assert_equal

M, P, B = 3, 40, 10
MODES = [(6,), (3, 2), (2, 3, 2)]


def ragged(density: float) -> Selection:
    mask = torch.rand(B, P, generator=torch.Generator().manual_seed(3)) < density
    mask[[0, 4, 5, 9]] = False
    return Selection.from_mask(mask)


SELECTIONS = {
    "few, uniform": Selection.from_index(torch.arange(30).view(3, B).T, P),
    "few, ragged": ragged(0.1),
    "few, one concept for all": Selection.from_index(torch.full((B, 1), 7), P),
    "many, uniform": Selection.from_index((torch.arange(60).view(B, 6) * 7) % P, P),
    "many, ragged": ragged(0.5),
    "all": Selection.from_mask(torch.ones(B, P, dtype=torch.bool)),
    "all, uniform": Selection.from_index(torch.arange(P).expand(B, P), P),
    "empty": Selection.from_mask(torch.zeros(B, P, dtype=torch.bool)),
}

axes = pytest.mark.parametrize("axis", [0, 1])
mode_shapes = pytest.mark.parametrize("modes", MODES, ids=str)
selections = pytest.mark.parametrize("name", SELECTIONS)


def make(axis: int, modes: tuple[int, ...] = (3, 2), p: int = P) -> DenseKernels:
    """Kernels as a concept layer holds them: laid out, in double precision."""
    n_modes = (*modes[:-1], 2 * (modes[-1] - 1))
    conv = SpectralConv(*((p, M) if axis == 0 else (M, p)), n_modes)
    conv.weight.tensor.data = torch.randn(conv.weight.shape, dtype=torch.complex128)
    kernels = kernels_of(conv.weight, axis)
    assert isinstance(kernels, DenseKernels)
    kernels.lay_out_()
    return kernels


def table(kernels: DenseKernels, weight: Tensor | None = None) -> Tensor:
    """``(p, K, m)`` by einsum, from the logical weight (in, out, *modes)."""
    weight = kernels.weight.tensor if weight is None else weight
    return torch.einsum("cik->cki" if kernels.axis == 0 else "ick->cki", weight.flatten(2))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def one_hot(selection: Selection) -> Tensor:
    """``(n, B, p)``: which sample and which concept a pair is of."""
    hot = torch.zeros(len(selection), selection.n_samples, selection.n_concepts, dtype=torch.complex128)
    hot[torch.arange(len(selection)), selection.sample, selection.concept] = 1
    return hot


def read(kernels: DenseKernels, x: Tensor, selection: Selection) -> Tensor:
    """Oracle: every concept reads every sample, then the pairs are picked by a product."""
    return torch.einsum("nbc,bkc->nk", one_hot(selection), torch.einsum("cki,bki->bkc", table(kernels), x))


def written(kernels: DenseKernels, codes: Tensor, selection: Selection) -> Tensor:
    spread = torch.einsum("nbc,nk->bkc", one_hot(selection), codes)
    return torch.einsum("bkc,cki->bki", spread, table(kernels))


def operation(kernels: DenseKernels, selection: Selection, *, write: bool, oracle: bool = False) -> tuple[Any, Tensor]:
    """A function of one tensor, and a tensor for it."""
    data = draw(len(selection), kernels.n_modes) if write else draw(B, kernels.n_modes, M)
    if oracle:
        return (lambda data: (written if write else read)(kernels, data, selection)), data
    return (lambda data: (kernels.write if write else kernels.respond)(data, selection)), data


def gradients(out: Tensor, probe: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out * probe).real.sum(), inputs)


class Gathers:
    """Counts how often rows are gathered instead of a product over all concepts."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.chunks: list[tuple[slice, tuple[int, ...]]] = []
        self.calls = 0
        by_sample = dense._by_sample

        def watch(selection: Selection, fields: Tensor) -> Iterator[tuple[slice, Tensor]]:
            self.calls += 1
            for pairs, some in by_sample(selection, fields):
                self.chunks.append((pairs, tuple(some.shape)))
                yield pairs, some

        patch.setattr(dense, "_by_sample", watch)


@pytest.fixture
def gathers(monkeypatch: pytest.MonkeyPatch) -> Gathers:
    return Gathers(monkeypatch)


@axes
@mode_shapes
def test_rows_are_the_weight_seen_concept_by_concept(axis: int, modes: tuple[int, ...]) -> None:
    kernels = make(axis, modes)
    assert (kernels.n_concepts, kernels.n_modes, kernels.n_channels) == (P, math.prod(modes), M)
    assert kernels.mode_shape == modes
    for concepts in (torch.tensor([4, 0, 4]), slice(1, 4), slice(38, 99), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(kernels.rows(concepts), table(kernels)[concepts])
    g = draw(3, kernels.n_modes, M)
    index, weight = torch.tensor([4, 0, 4]), kernels.weight.tensor
    (mine,) = gradients(kernels.rows(index), g, [weight])
    (expected,) = gradients(table(kernels)[index], g, [weight])
    assert_equal("gradient", mine, expected)


@axes
@mode_shapes
def test_laying_out_keeps_values_and_makes_rows_contiguous(axis: int, modes: tuple[int, ...]) -> None:
    conv = SpectralConv(*((P, M) if axis == 0 else (M, P)), (*modes[:-1], 2 * (modes[-1] - 1)))
    before = conv.weight.tensor.detach().clone()
    kernels = kernels_of(conv.weight, axis)
    assert not kernels.rows(slice(None)).is_contiguous()
    kernels.lay_out_()
    after = conv.weight.tensor
    assert isinstance(after, torch.nn.Parameter)
    assert torch.equal(after, before)
    rows = kernels.rows(slice(3, 17))
    assert rows.is_contiguous()
    assert rows.untyped_storage().data_ptr() == after.untyped_storage().data_ptr()


@axes
@mode_shapes
@selections
def test_respond_and_write(name: str, axis: int, modes: tuple[int, ...], gathers: Gathers) -> None:
    kernels, selection = make(axis, modes), SELECTIONS[name]
    x, codes = draw(B, kernels.n_modes, M), draw(len(selection), kernels.n_modes)
    assert_equal("respond", kernels.respond(x, selection), read(kernels, x, selection))
    assert_equal("write", kernels.write(codes, selection), written(kernels, codes, selection))
    assert gathers.calls == (0 if name.startswith(("many", "all")) else 2)  # what the products over all concepts cost


@axes
@pytest.mark.parametrize("write", [False, True])
@selections
def test_gradients(name: str, write: bool, axis: int, gathers: Gathers) -> None:
    kernels, selection = make(axis), SELECTIONS[name]
    function, data = operation(kernels, selection, write=write)
    oracle, _ = operation(kernels, selection, write=write, oracle=True)
    data.requires_grad_()
    inputs = [data, kernels.weight.tensor]
    out = function(data)
    probe = torch.randn_like(out)
    mine = gradients(out, probe, inputs)
    for what, actual, expected in zip(("data", "weight"), mine, gradients(oracle(data), probe, inputs), strict=True):
        assert_equal(what, actual, expected)
    assert mine[1].stride() == kernels.weight.tensor.stride()
    assert gathers.calls == (0 if name.startswith(("many", "all")) else 2)
    # Expanded gradients, as a plain sum gives them, and each input by itself.
    (only_weight,) = torch.autograd.grad(function(data.detach()).real.sum(), inputs[1:])
    assert_equal("weight, of a sum", only_weight, torch.autograd.grad(oracle(data.detach()).real.sum(), inputs[1:])[0])
    kernels.weight.tensor.requires_grad_(False)
    (only_data,) = torch.autograd.grad(function(data).imag.sum(), [data])
    assert_equal("data, of a sum", only_data, torch.autograd.grad(oracle(data).imag.sum(), [data])[0])


@axes
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("name", ["few", "many", "ragged"])
def test_gradcheck(name: str, write: bool, axis: int) -> None:
    kernels = make(axis, (2, 2), p=16)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[1, [2, 5, 11]] = True
    selection = {
        "few": Selection.from_index(torch.tensor([[3, 1], [1, 9]]), 16),
        "many": Selection.from_index(torch.arange(14).view(2, 7), 16),
        "ragged": Selection.from_mask(mask),
    }[name]
    data = draw(len(selection), 4) if write else draw(2, 4, M)

    def function(weight: Tensor, data: Tensor) -> Tensor:
        assert weight is kernels.weight.tensor
        return kernels.write(data, selection) if write else kernels.respond(data, selection)

    assert torch.autograd.gradcheck(function, (kernels.weight.tensor, data.requires_grad_()), fast_mode=True)


@axes
@mode_shapes
@selections
def test_row_gradients_are_the_rows_of_the_dense_gradient(
    name: str, modes: tuple[int, ...], axis: int, gathers: Gathers
) -> None:
    """Reading and writing with the same kernels: the shares of both add up."""
    kernels, selection = make(axis, modes), SELECTIONS[name]
    weight = kernels.weight.tensor
    x, probe = draw(B, kernels.n_modes, M), draw(B, kernels.n_modes, M)
    (expected,) = gradients(written(kernels, read(kernels, x, selection), selection), probe, [weight])
    with RowGradients() as rows:
        out = kernels.write(kernels.respond(x, selection), selection)
        (out * probe).real.sum().backward()
    assert weight.grad is None
    (gradient,) = rows.sums()
    assert gradient.parameter is weight
    assert torch.equal(gradient.index, selection.concept.unique())
    assert gradient.view.shape == (P, *modes, M)
    assert torch.equal(gradient.view.flatten(1, -2), table(kernels).detach())
    assert_equal("rows", gradient.values.flatten(1, -2), table(kernels, expected)[gradient.index])


def chunk_sizes(every: int | None) -> list[int]:
    return [1, 2, 5] if every is None else [0, every - 1, every, 2 * every + 1, 10**6]


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(
    ("name", "n_rows"),
    [
        (name, n)
        for name in ("few, uniform", "few, ragged", "few, one concept for all")
        for n in chunk_sizes(SELECTIONS[name].every)
    ],
)
def test_chunks_change_nothing(name: str, n_rows: int, write: bool, gathers: Gathers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of less than a sample, of one, of several (not all alike), of everything."""
    kernels, selection = make(1), SELECTIONS[name]
    row_bytes = kernels.n_modes * M * 16
    monkeypatch.setattr(dense, "chunk_bytes", lambda device: n_rows * row_bytes)
    function, data = operation(kernels, selection, write=write)
    oracle, _ = operation(kernels, selection, write=write, oracle=True)
    data.requires_grad_()
    inputs = [data, kernels.weight.tensor]
    out = function(data)
    assert_equal("value", out, oracle(data))
    probe = torch.randn_like(out)
    expected = gradients(oracle(data), probe, inputs)
    for what, mine, reference in zip(("data", "weight"), gradients(out, probe, inputs), expected, strict=True):
        assert_equal(what, mine, reference)
    with RowGradients() as rows:
        (function(data) * probe).real.sum().backward()
    (gradient,) = rows.sums()
    assert_equal("rows", gradient.values.flatten(1, -2), table(kernels, expected[1])[gradient.index])
    every = selection.every or 1
    longest = max(pairs.stop - pairs.start for pairs, _ in gathers.chunks)
    assert longest == min(len(selection), max(1, n_rows if n_rows < every else n_rows // every * every))
    assert all(shape[1:] == (1, kernels.n_modes, 1, M) for _, shape in gathers.chunks)


def test_chunks_cover_every_pair_once_with_its_own_field(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = torch.arange(B, dtype=torch.float64).view(B, 1, 1)
    for name, selection in SELECTIONS.items():
        for n_rows in (1, 2, 3, 4, 7, 25, 1000):
            monkeypatch.setattr(dense, "chunk_bytes", lambda device, n_rows=n_rows: n_rows * 8)
            pairs, met = [], []
            for some, chunk in dense._by_sample(selection, fields):
                pairs += range(some.start, some.stop)
                met += chunk[:, 0, 0, 0].repeat_interleave((some.stop - some.start) // len(chunk)).tolist()
            assert pairs == list(range(len(selection))), name
            assert met == selection.sample.tolist(), name


@axes
def test_respond_all_has_no_gradient(axis: int) -> None:
    kernels = make(axis)
    x = draw(2, kernels.n_modes, M)
    for concepts in (slice(0, P), slice(2, 5), slice(39, 99)):
        out = kernels.respond_all(x, concepts)
        assert_equal("respond_all", out, torch.einsum("cki,bki->kbc", table(kernels)[concepts], x).detach())
        assert not out.requires_grad


@axes
@mode_shapes
def test_scaling_is_by_concept(axis: int, modes: tuple[int, ...]) -> None:
    kernels = make(axis, modes)
    before, scale = table(kernels).detach().clone(), torch.arange(1.0, P + 1, dtype=torch.float64)
    kernels.scale_(scale)
    assert_equal("scaled", table(kernels).detach(), before * scale[:, None, None])


@axes
@mode_shapes
def test_adjoint(axis: int, modes: tuple[int, ...]) -> None:
    r"""<W a, x> = <a, W* x> for complex inner products, whichever of the two layers copies the other."""
    kernels, other = make(axis, modes), make(1 - axis, modes)
    kernels.copy_adjoint_(other)
    encoder, decoder = (kernels, other) if axis else (other, kernels)
    everything = SELECTIONS["all"]
    codes, x = draw(len(everything), kernels.n_modes), draw(B, kernels.n_modes, M)
    left = (decoder.write(codes, everything).conj() * x).sum()
    right = (codes.conj() * encoder.respond(x, everything)).sum()
    assert_equal("adjoint", left.detach(), right.detach())
    assert kernels.rows(slice(None)).is_contiguous()
    assert not kernels.rows(slice(None)).is_conj()


@pytest.mark.parametrize("name", SELECTIONS)
def test_square_norm_of_row_gradients(name: str) -> None:
    """By products of samples where that is cheaper, else by forming the rows; with one share and with two."""
    kernels, selection = make(1), SELECTIONS[name]
    x, probe = draw(B, kernels.n_modes, M), draw(len(selection), kernels.n_modes)
    for n_shares in (1, 2):
        with RowGradients() as rows:
            for _ in range(n_shares):
                (kernels.respond(x, selection) * probe).real.sum().backward()
        (gradient,) = rows.sums()
        expected = gradient.values.abs().square().sum()
        assert_equal("square norm", gradient.square_norm(100), expected)
