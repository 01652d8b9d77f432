"""RowAdam against torch.optim.Adam: on everything where every row is used, on single rows where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuralop_sae.layers.rows import RowGradient, RowGradients, Rows, distinct, take_rows
from neuralop_sae.testing import assert_equal
from neuralop_sae.training import row_adam
from neuralop_sae.training.row_adam import RowAdam, as_table

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
N_STEPS = 10


def gradient(parameter: nn.Parameter, index: Tensor, values: Tensor, dim: int = 0) -> RowGradient:
    return RowGradient(parameter, parameter.detach().movedim(dim, 0), index, [(Rows(index, values), torch.arange(len(index)))])


def adam(start: Tensor, gradients: list[Tensor], **settings: Any) -> Tensor:
    """What torch.optim.Adam makes of these gradients, a complex number being a pair of reals."""
    parameter = nn.Parameter((torch.view_as_real(start) if start.is_complex() else start).clone())
    optimizer = torch.optim.Adam([parameter], foreach=False, **settings)
    for g in gradients:
        parameter.grad = torch.view_as_real(g) if g.is_complex() else g
        optimizer.step()
    return torch.view_as_complex(parameter.detach()) if start.is_complex() else parameter.detach()


def sparse_steps(p: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Rows and gradients of ten steps: row 0 in all of them, row 1 in the last alone, row 2 in none."""
    steps = []
    for number in range(N_STEPS):
        used = torch.rand(p) < 0.4
        used[:3] = torch.tensor([True, number == N_STEPS - 1, False])
        index = used.nonzero()[:, 0]
        steps.append((index, torch.randn(len(index), *shape, dtype=dtype) * 10.0 ** (number % 3 - 1)))
    return steps


@DTYPES
@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.9)}], ids=str)
def test_equals_adam_where_every_step_uses_every_row(
    dtype: torch.dtype, shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    parameter = nn.Parameter(torch.randn(shape, dtype=dtype))
    start, optimizer = parameter.detach().clone(), RowAdam([parameter], **settings)
    gradients = [torch.randn(shape, dtype=dtype) * 10.0 ** (number % 3 - 1) for number in range(N_STEPS)]
    for number, g in enumerate(gradients, start=1):
        optimizer.step(rows=[gradient(parameter, torch.arange(6), g)])
        assert_equal(f"step {number}", parameter.detach(), adam(start, gradients[:number], **settings))
        assert_equal("change", parameter.detach() - start, adam(start, gradients[:number], **settings) - start)


@DTYPES
def test_every_row_has_a_clock_of_its_own(dtype: torch.dtype) -> None:
    """Row by row: Adam over the steps that used it, as if there had been no others."""
    p, shape = 8, (3, 2)
    parameter = nn.Parameter(torch.randn(p, *shape, dtype=dtype))
    start, steps = parameter.detach().clone(), sparse_steps(p, shape, dtype)
    optimizer = RowAdam([parameter], lr=0.05)
    for index, values in steps:
        optimizer.step(rows=[gradient(parameter, index, values)])
    for row in range(p):
        mine = [values[index == row][0] for index, values in steps if row in index]
        expected = adam(start[row], mine, lr=0.05)
        assert_equal(f"row {row}", parameter.detach()[row] - start[row], expected - start[row])
        assert int(optimizer.state[parameter]["steps"][row]) == len(mine)
    assert torch.equal(parameter.detach()[2], start[2])


@DTYPES
def test_rows_that_a_step_does_not_use_stay_bit_for_bit(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.randn(8, 3, dtype=dtype))
    optimizer = RowAdam([parameter], lr=0.05)
    optimizer.step(rows=[gradient(parameter, torch.arange(8), torch.randn(8, 3, dtype=dtype))])
    state = optimizer.state[parameter]
    before = [t.clone() for t in (parameter.detach(), *state.values())]
    index = torch.tensor([1, 4, 5])
    optimizer.step(rows=[gradient(parameter, index, torch.randn(3, 3, dtype=dtype))])
    others = torch.tensor([0, 2, 3, 6, 7])
    for old, new in zip(before, (parameter.detach(), *state.values()), strict=True):
        assert torch.equal(new[others], old[others])
        assert (new[index] != old[index]).all()


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_the_first_update_of_a_rare_row_is_as_large_as_the_rate(size: float) -> None:
    """However late it comes, and however large the gradient; with one clock for all rows it would be 3.2 times the rate."""
    parameter = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    optimizer = RowAdam([parameter], lr=0.01)
    for _ in range(50):
        optimizer.step(rows=[gradient(parameter, torch.tensor([0]), torch.randn(1, 4, dtype=torch.float64))])
    g = size * torch.tensor([[1.0, -1.0, 2.0, -0.5]], dtype=torch.float64)
    optimizer.step(rows=[gradient(parameter, torch.tensor([2]), g)])
    assert_equal("update", parameter.detach()[2:], -0.01 * g / (g.abs() + 1e-8))


@DTYPES
@pytest.mark.parametrize("n_rows", [0, 1, 3])
def test_chunks_change_nothing(n_rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = sparse_steps(11, (2, 3), dtype)
    start = torch.randn(11, 2, 3, dtype=dtype)
    lengths: list[int] = []
    update = row_adam._update_rows

    def watch(table: Tensor, state: dict[str, Tensor], index: Tensor, *rest: Any) -> None:
        lengths.append(len(index))
        update(table, state, index, *rest)

    monkeypatch.setattr(row_adam, "_update_rows", watch)

    def run() -> list[Tensor]:
        parameter = nn.Parameter(start.clone())
        optimizer = RowAdam([parameter], lr=0.05)
        for index, values in steps:
            optimizer.step(rows=[gradient(parameter, index, values)])
        return [parameter.detach(), *optimizer.state[parameter].values()]

    whole = run()
    assert lengths == [len(index) for index, _ in steps]
    lengths.clear()
    monkeypatch.setattr(row_adam, "CHUNK_BYTES", n_rows * 6 * dtype.itemsize)
    for mine, expected in zip(run(), whole, strict=True):
        assert torch.equal(mine, expected)
    assert max(lengths) == max(1, n_rows)
    assert sum(lengths) == sum(len(index) for index, _ in steps)


@pytest.mark.parametrize("last", [True, False], ids=["last row used", "last row not used"])
def test_surplus_entries_change_nothing(last: bool) -> None:
    """What an accelerator does, step by step on the CPU: padded indices, clamped to the last row, with a mask of use."""
    p, settings = 5, {"lr": 0.05, "betas": (0.9, 0.999), "eps": 1e-8}
    plain, padded = (nn.Parameter(t) for t in torch.randn(1, p, 3, dtype=torch.float64).repeat(2, 1, 1))
    optimizers = [RowAdam([parameter], lr=0.05) for parameter in (plain, padded)]
    for parameter, optimizer in zip((plain, padded), optimizers, strict=True):  # moments that are not zero
        optimizer.step(rows=[gradient(parameter, torch.arange(p), torch.ones(p, 3, dtype=torch.float64))])
    for used in ([3, 1, 3, 1, 1], [4 if last else 2, 0, 0, 0], [2, 2, 4 if last else 0, 2]):
        found, position = distinct(torch.tensor(used), p, static=True)
        n = len(set(used))
        assert (found[n:] == p).all()
        values = torch.zeros(len(found), 3, dtype=torch.float64).index_add(0, position, torch.randn(len(used), 3).double())
        optimizers[0].step(rows=[gradient(plain, found[:n], values[:n])])
        mask = (found < p).to(torch.float64)[:, None]
        row_adam._update_rows(padded.detach(), optimizers[1].state[padded], found.clamp_max(p - 1), values, mask, settings)
        assert_equal("values", padded.detach(), plain.detach())
        for name, expected in optimizers[0].state[plain].items():
            assert_equal(name, optimizers[1].state[padded][name].double(), expected.double())


def test_padded_gradients_on_every_device(device: torch.device) -> None:
    """The same run as on the CPU, from gradients as the device itself sums them up."""
    torch.manual_seed(1)
    start, index = torch.randn(5, 3, dtype=torch.float64), [torch.randint(0, 5, (4,)) for _ in range(6)]
    probes = [torch.randn(4, 3, dtype=torch.float64) for _ in index]

    def run(where: torch.device) -> Tensor:
        parameter = nn.Parameter(start.to(where, copy=True))
        optimizer = RowAdam([parameter], lr=0.05)
        for rows_used, probe in zip(index, probes, strict=True):
            with RowGradients() as rows:
                (take_rows(parameter, rows_used.to(where)) * probe.to(where)).sum().backward()
            optimizer.step(rows=rows.sums())
        return parameter.detach().cpu()

    expected = start.clone()
    for row in range(5):
        grads = [(p[i == row]).sum(0) for i, p in zip(index, probes, strict=True) if row in i]
        expected[row] = adam(start[row], grads, lr=0.05)
    assert_equal("values", run(device), expected)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "in order": lambda t: t,
    "concepts second, stored first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "tensor train of rank one": lambda t: t[:1].contiguous(),
    "tensor train": lambda t: t,
}


@DTYPES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_of_any_layout(layout: str, dtype: torch.dtype) -> None:
    """A parameter whose concepts are its second axis: a dense or pointwise weight, stored with concepts first, and the core
    of a tensor train, which is not."""
    dim = 0 if layout == "in order" else 1
    parameter = nn.Parameter(LAYOUTS[layout](torch.randn(3, 6, 2, dtype=dtype)))
    p, start = parameter.shape[dim], parameter.detach().clone()
    optimizer, index = RowAdam([parameter], lr=0.05), torch.arange(p)
    gradients = [torch.randn(parameter.shape, dtype=dtype) for _ in range(3)]
    for g in gradients:
        with RowGradients() as rows:
            taken = take_rows(parameter, index, dim)
            (taken * g.movedim(dim, 0).conj()).real.sum().backward()
        optimizer.step(rows=rows.sums())
    assert_equal("values", parameter.detach(), adam(start, gradients, lr=0.05))


def test_a_step_that_used_no_row_changes_nothing() -> None:
    parameter = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    start, optimizer = parameter.detach().clone(), RowAdam([parameter])
    with RowGradients() as rows:
        take_rows(parameter, torch.tensor([], dtype=torch.int64)).sum().backward()
    optimizer.step(rows=rows.sums())
    optimizer.step()
    assert torch.equal(parameter.detach(), start)


def test_tables_share_memory() -> None:
    for tensor in (torch.randn(4, 3, 2), torch.randn(4, dtype=torch.complex64), torch.randn(4)):
        table = as_table(tensor)
        assert table.shape == (4, tensor.numel() // 4 * (2 if tensor.is_complex() else 1))
        table.zero_()
        assert not tensor.any()


def test_groups_have_rates_of_their_own_and_a_closure_is_called() -> None:
    fast, slow = (nn.Parameter(torch.zeros(2, 1, dtype=torch.float64)) for _ in range(2))
    optimizer = RowAdam([{"params": [fast], "lr": 0.5}, {"params": [slow]}], lr=0.25)
    ones = torch.ones(1, 1, dtype=torch.float64)
    rows = [gradient(parameter, torch.tensor([1]), ones) for parameter in (fast, slow)]
    assert optimizer.step(lambda: 3.0, rows=rows) == 3.0
    assert fast[:, 0].tolist() == pytest.approx([0, -0.5])
    assert slow[:, 0].tolist() == pytest.approx([0, -0.25])


def test_errors() -> None:
    parameter, stranger = nn.Parameter(torch.zeros(2, 1)), nn.Parameter(torch.zeros(2, 1))
    optimizer = RowAdam([parameter])
    with pytest.raises(ValueError, match="a parameter that this optimiser does not have"):
        optimizer.step(rows=[gradient(stranger, torch.tensor([0]), torch.ones(1, 1))])
    assert not stranger.any()
    settings: list[dict[str, Any]] = [{"lr": 0.0}, {"lr": -1.0}, {"eps": 0.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}]
    for wrong in settings:
        with pytest.raises(ValueError, match=r"lr > 0, eps > 0 and betas in \[0, 1\) are needed, got"):
            RowAdam([parameter], **wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_long_rows_are_updated_as_short_ones(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torch's fused kernel, row by row, in the parameter's own memory."""
    start = torch.randn(4, 3, 5, dtype=dtype)
    steps = sparse_steps(4, (3, 5), dtype)
    results = []
    for long_row in (1, 10**9):
        monkeypatch.setattr(row_adam, "_LONG_ROW", long_row)
        parameter = nn.Parameter(start.clone())
        optimizer = RowAdam([parameter], lr=0.05)
        for index, values in steps:
            optimizer.step(rows=[gradient(parameter, index, values)])
        results.append([parameter.detach(), *optimizer.state[parameter].values()])
    assert not torch.equal(results[0][0], start)
    for fused, gathered in zip(*results, strict=True):
        assert_equal("fused", fused, gathered)
