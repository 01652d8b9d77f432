"""Rows taken from parameters, and their gradients, against index_select and the dense gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from neuralop_sae.layers.dense import OuterProducts
from neuralop_sae.layers.rows import Part, RowGradient, RowGradients, Rows, distinct, take_rows
from neuralop_sae.layers.selection import Selection
from neuralop_sae.testing import assert_equal

INDICES = {
    "ascending": [0, 2, 5],
    "shuffled": [4, 0, 2],
    "repeated": [3, 1, 3, 3, 0, 1],
    "more than rows": [5, 4, 3, 2, 1, 0, 0, 5, 3],
    "empty": [],
}
DTYPES = [torch.float64, torch.complex128]

indices = pytest.mark.parametrize("index", [torch.tensor(i, dtype=torch.int64) for i in INDICES.values()], ids=INDICES)
dims = pytest.mark.parametrize("dim", [0, 1])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def parameter(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=dtype))


def loss(rows: Tensor, probe: Tensor) -> Tensor:
    """Not linear in the rows, so that the gradient depends on them."""
    return (rows * rows.conj() * probe.conj() + rows * probe).real.sum()


def reference(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    return torch.stack([tensor.select(dim, int(i)) for i in index]) if len(index) else tensor.movedim(dim, 0)[:0]


def check_sums(rows: RowGradients, expected: dict[nn.Parameter, tuple[Tensor, int]]) -> None:
    """The row gradients are those of the dense gradients, at all rows that are not zero."""
    sums = list(rows.sums())
    assert {gradient.parameter for gradient in sums} == set(expected)
    for gradient in sums:
        dense, dim = expected[gradient.parameter]
        dense = dense.movedim(dim, 0)
        assert torch.equal(gradient.index, gradient.index.unique())
        assert torch.equal(gradient.view, gradient.parameter.detach().movedim(dim, 0))
        assert gradient.view.untyped_storage().data_ptr() == gradient.parameter.untyped_storage().data_ptr()
        assert_equal("rows", gradient.values, dense[gradient.index])
        rest = torch.ones(len(dense), dtype=torch.bool).index_fill(0, gradient.index, False)
        assert not dense[rest].any()


@dtypes
@dims
@indices
def test_rows_are_those_of_index_select(index: Tensor, dim: int, dtype: torch.dtype) -> None:
    weight = parameter(6, 6, 2, dtype=dtype)
    expected = reference(weight.detach(), index, dim)
    assert torch.equal(take_rows(weight, index, dim).detach(), expected)
    with RowGradients():
        taken = take_rows(weight, index, dim)
    assert torch.equal(taken.detach(), expected)
    assert taken.requires_grad


@dtypes
@dims
@indices
def test_gradient_by_row_is_the_dense_gradient_at_the_rows_used(index: Tensor, dim: int, dtype: torch.dtype) -> None:
    weight, probe = parameter(6, 6, 2, dtype=dtype), torch.randn(len(index), 6, 2, dtype=dtype)
    (dense,) = torch.autograd.grad(loss(take_rows(weight, index, dim), probe), weight)
    with RowGradients() as rows:
        loss(take_rows(weight, index, dim), probe).backward()
    assert weight.grad is None
    assert weight in rows
    check_sums(rows, {weight: (dense, dim)})
    assert torch.equal(next(rows.sums()).index, index.unique())


def test_shares_of_several_uses_and_backward_passes_add_up() -> None:
    first, second, unused = parameter(5, 3), parameter(2, 4, 3, dtype=torch.complex128), parameter(3, 3)
    uses = [
        (first, torch.tensor([4, 1]), 0),
        (second, torch.tensor([0, 3, 3]), 1),
        (first, torch.tensor([1, 1, 0]), 0),
        (second, torch.tensor([2, 0]), 1),
    ]
    probes = [torch.randn(len(index), *w.movedim(dim, 0).shape[1:], dtype=w.dtype) for w, index, dim in uses]

    def losses() -> list[Tensor]:
        return [loss(take_rows(*use), probe) for use, probe in zip(uses, probes, strict=True)]

    # The first two uses share one backward pass, the others have their own; the last is passed through twice.
    expected = torch.autograd.grad(losses()[0] + losses()[1] + losses()[2] + 2 * losses()[3], [first, second])
    with RowGradients() as rows:
        one, two, three, four = losses()
        (one + two).backward()
        three.backward()
        four.backward(retain_graph=True)
        four.backward()
    assert first.grad is None
    assert second.grad is None
    assert unused not in rows
    check_sums(rows, {first: (expected[0], 0), second: (expected[1], 1)})


def test_other_gradients_of_a_parameter_go_their_own_way() -> None:
    """What does not pass through taken rows stays in ``.grad``: the two shares together are the gradient."""
    weight, index = parameter(4, 3), torch.tensor([2, 0, 2])
    with RowGradients() as rows:
        (take_rows(weight, index).square().sum() + weight.sin().sum() + take_rows(weight, slice(1, 3)).sum()).backward()
    whole = weight.detach().cos()
    whole[1:3] += 1
    assert weight.grad is not None
    assert_equal("whole", weight.grad, whole)
    (gradient,) = rows.sums()
    assert gradient.index.tolist() == [0, 2]
    assert_equal("rows", gradient.values, weight.detach()[[0, 2]] * torch.tensor([[2.0], [4.0]], dtype=torch.float64))


def test_slices_are_views_along_the_axis() -> None:
    weight = parameter(4, 5, 2)
    assert torch.equal(take_rows(weight, slice(1, 3), 1), weight[:, 1:3].transpose(0, 1))
    assert take_rows(weight, slice(None), 1).data_ptr() == weight.data_ptr()


@dims
def test_tensors_that_are_no_parameters_fall_back_to_autograd(dim: int) -> None:
    weight, index = parameter(4, 4), torch.tensor([1, 1, 3])
    with RowGradients() as rows:
        take_rows(weight * 2, index, dim).square().sum().backward()
    assert weight not in rows
    assert not list(rows.sums())
    counts = torch.tensor([0, 2, 0, 1], dtype=torch.float64).view((-1, 1) if dim == 0 else (1, -1))
    assert weight.grad is not None
    assert_equal("gradient", weight.grad, 8 * weight.detach() * counts)


def test_nothing_is_recorded_without_gradient() -> None:
    weight, frozen, index = parameter(4, 3), parameter(4, 3).requires_grad_(False), torch.tensor([1, 3])
    with RowGradients() as rows:
        with torch.no_grad():
            assert not take_rows(weight, index).requires_grad
        out = take_rows(frozen, index)
        assert not out.requires_grad
        (out * take_rows(weight, index[:1])).sum().backward()
    assert frozen not in rows
    assert next(rows.sums()).index.tolist() == [1]


def test_the_innermost_context_takes_the_gradient() -> None:
    weight = parameter(4, 3)
    with RowGradients() as outer:
        take_rows(weight, torch.tensor([0])).sum().backward()
        with RowGradients() as inner:
            (2 * take_rows(weight, torch.tensor([1])).sum()).backward()
        (3 * take_rows(weight, torch.tensor([2])).sum()).backward()
    take_rows(weight, torch.tensor([3])).sum().backward()
    found = [[(g.index.tolist(), g.values[:, 0].tolist()) for g in rows.sums()] for rows in (outer, inner)]
    assert found == [[([0, 2], [1.0, 3.0])], [([1], [2.0])]]
    assert weight.grad is not None
    assert weight.grad.sum(1).tolist() == [0, 0, 0, 3]


def test_the_context_ends_with_an_exception() -> None:
    weight = parameter(4, 3)
    with pytest.raises(RuntimeError, match="stop"), RowGradients():
        raise RuntimeError("stop")
    take_rows(weight, torch.tensor([3])).sum().backward()
    assert weight.grad is not None


@indices
def test_distinct_counts(index: Tensor) -> None:
    found, position = distinct(index, 6, static=False)
    assert found.tolist() == sorted(set(index.tolist()))
    assert torch.equal(found[position], index)


@indices
def test_static_distinct_pads_with_the_size(index: Tensor) -> None:
    """The same entries and positions as where they are counted, then entries equal to the size."""
    found, position = distinct(index, 6, static=True)
    counted, expected = distinct(index, 6, static=False)
    assert len(found) == len(index)
    assert torch.equal(found[: len(counted)], counted)
    assert (found[len(counted) :] == 6).all()
    assert torch.equal(position, expected)


def test_distinct_is_static_on_devices_that_would_wait(device: torch.device) -> None:
    found, _ = distinct(torch.tensor([1, 1, 0], device=device), 4)
    assert found.tolist() == ([0, 1] if device.type == "cpu" else [0, 1, 4])


# A parameter of 9 concepts, 2 x 3 modes and 2 channels, concepts on its second axis; a row has 12 numbers.
ROW_SHAPE, ROW_BYTES = (2, 3, 2), 12 * 16


def outer_products(mask: Tensor, n_each: int = 1) -> OuterProducts:
    selection = Selection.from_mask(mask)
    left = torch.randn(len(selection), 6, n_each, dtype=torch.complex128)
    return OuterProducts(selection, left, torch.randn(len(mask), 6, n_each, 2, dtype=torch.complex128))


def row_part(index: list[int]) -> Rows:
    return Rows(torch.tensor(index, dtype=torch.int64), torch.randn(len(index), *ROW_SHAPE, dtype=torch.complex128))


def some(n_samples: int, density: float) -> Tensor:
    return torch.rand(n_samples, 9, generator=torch.Generator().manual_seed(2)) < density


def parts_of(name: str) -> list[Part]:
    return {
        "rows": lambda: [row_part([4, 0, 7, 2, 8])],
        "rows, repeated": lambda: [row_part([3, 8, 3, 3, 0, 1, 8])],
        "one row": lambda: [row_part([5])],
        "several rows": lambda: [row_part([4, 1]), row_part([1, 1, 0]), row_part([]), row_part([8, 6, 4])],
        "outer products, few": lambda: [outer_products(some(30, 0.01))],
        "outer products, many": lambda: [outer_products(some(3, 0.7))],
        "several coefficients, few": lambda: [outer_products(some(30, 0.01), 3)],
        "several coefficients, many": lambda: [outer_products(some(3, 0.7), 3)],
        "both": lambda: [outer_products(some(4, 0.4)), row_part([8, 8, 2]), outer_products(some(2, 0.9))],
    }[name]()


PARTS = ["rows", "rows, repeated", "one row", "several rows", "outer products, few", "outer products, many"]
PARTS += ["several coefficients, few", "several coefficients, many", "both"]


def collected(parts: list[Part]) -> RowGradient:
    rows, weight = RowGradients(), parameter(2, 9, 2, 3, dtype=torch.complex128)
    for part in parts:
        rows.add(weight, (1, 2, 3, 0), part)
    (gradient,) = rows.sums()
    return gradient


def expected_rows(parts: list[Part]) -> Tensor:
    """The whole gradient ``(9, *ROW_SHAPE)``, one entry after the other."""
    total = torch.zeros(9, *ROW_SHAPE, dtype=torch.complex128)
    for part in parts:
        for n, row in enumerate(part.index.tolist()):
            if isinstance(part, Rows):
                total[row] += part.values[n]
            else:
                assert isinstance(part, OuterProducts)
                right = part.right[int(part.selection.sample[n])]
                total[row] += (part.left[n, ..., None] * right).sum(1).reshape(ROW_SHAPE)
    return total


@pytest.mark.parametrize("n_bytes", [0, 1, ROW_BYTES, 2 * ROW_BYTES, 3 * ROW_BYTES - 1, 4 * ROW_BYTES, 10**6])
@pytest.mark.parametrize("name", PARTS)
def test_chunks_are_the_values_a_few_rows_at_a_time(name: str, n_bytes: int) -> None:
    """Less than a row is a row; sizes that do not divide the number of rows leave a smaller last chunk."""
    parts = parts_of(name)
    gradient = collected(parts)
    chunks = list(gradient.chunks(n_bytes))
    assert [n for rows, _ in chunks for n in range(rows.start, rows.stop)] == list(range(len(gradient.index)))
    n_rows = max(1, n_bytes // ROW_BYTES)
    assert [rows.stop - rows.start for rows, _ in chunks[:-1]] == [n_rows] * (len(chunks) - 1)
    assert 1 <= chunks[-1][0].stop - chunks[-1][0].start <= n_rows
    expected = expected_rows(parts)
    for rows, values in chunks:
        assert values.shape == (rows.stop - rows.start, *ROW_SHAPE)
        assert_equal("chunk", values, expected[gradient.index[rows]])
    assert_equal("all", torch.cat([values for _, values in chunks]), gradient.values)
    assert gradient.index.tolist() == sorted({row for part in parts for row in part.index.tolist()})


def test_chunks_of_single_precision_rows_are_counted_in_their_own_bytes() -> None:
    weight = parameter(7, 5, dtype=torch.float32)
    with RowGradients() as rows:
        take_rows(weight, torch.arange(7)).square().sum().backward()
    (gradient,) = rows.sums()
    assert [chunk.stop - chunk.start for chunk, _ in gradient.chunks(3 * 5 * 4)] == [3, 3, 1]


def test_chunks_of_no_rows_are_empty() -> None:
    (chunk,) = collected([row_part([])]).chunks(1)
    assert chunk[0] == slice(0, 0)
    assert chunk[1].shape == (0, *ROW_SHAPE)


def test_chunks_are_one_on_devices_that_would_wait(device: torch.device) -> None:
    weight = nn.Parameter(torch.randn(6, 3, device=device))
    with RowGradients() as rows:
        take_rows(weight, torch.tensor([4, 1, 4], device=device)).square().sum().backward()
    (gradient,) = rows.sums()
    chunks = list(gradient.chunks(1))
    assert len(chunks) == (2 if device.type == "cpu" else 1)
    assert_equal("all", torch.cat([values for _, values in chunks]), gradient.values)
