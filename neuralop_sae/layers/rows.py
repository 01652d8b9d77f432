"""Rows of parameters that are indexed by concept, and their gradients without the rows that no sample used.

A dictionary's gradient is zero for every concept that was off. PyTorch forms it all the same, as large as the parameter.
A forward pass inside ``with RowGradients() as rows:`` makes its backward pass leave ``.grad`` of such parameters alone and
hand the rows that were used to `rows`; outside, autograd is as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_active: ContextVar[RowGradients | None] = ContextVar("row_gradients", default=None)


class Part(Protocol):
    """A share of a gradient: values for some rows, maybe not formed yet."""

    @property
    def index(self) -> Tensor:
        """Rows, ``(n,)``."""

    def add_to(self, total: Tensor, position: Tensor, entries: Tensor | slice) -> None:
        """Add the values of some entries, those of row ``index[entries][i]`` to ``total[position[i]]``."""

    def square_norm(self, position: Tensor, n_rows: int) -> Tensor | None:
        """Sum of the squares of the rows, entries of one position added up, where that is cheaper than forming them."""


@dataclass(frozen=True)
class Rows:
    """Values ``(n, ...)`` for the rows ``index (n,)``."""

    index: Tensor
    values: Tensor

    def add_to(self, total: Tensor, position: Tensor, entries: Tensor | slice) -> None:
        """See :class:`Part`."""
        total.index_add_(0, position, self.values[entries].to(total.dtype))

    def square_norm(self, position: Tensor, n_rows: int) -> None:
        """See :class:`Part`: they are formed already."""


@dataclass(frozen=True)
class RowGradient:
    """Gradient of the rows ``index (U,)`` of a parameter. Its values ``(U, ...)`` are formed a few rows at a time.

    Parameters
    ----------
    parameter : Parameter
        The parameter.
    view : Tensor
        The parameter with its concepts first, ``(p, ...)``, in the order of its memory.
    index : Tensor
        The rows, each once. On an accelerator, where counting distinct rows would wait for the device, U is an upper bound;
        surplus entries have the index p and the value zero.
    parts : list of (Part, Tensor)
        Shares of the gradient, with the position in `index` of each of their rows.
    """

    parameter: nn.Parameter
    view: Tensor
    index: Tensor
    parts: list[tuple[Part, Tensor]]

    @property
    def values(self) -> Tensor:
        """All values at once, ``(U, ...)``."""
        values = self.view.new_zeros(len(self.index), *self.view.shape[1:])
        for part, position in self.parts:
            part.add_to(values, position, slice(None))
        return values

    def square_norm(self, n_bytes: int) -> Tensor:
        """Sum of the squares of all values, ``()`` real; `n_bytes` as for :meth:`chunks`."""
        if len(self.parts) == 1:
            part, position = self.parts[0]
            known = part.square_norm(position, len(self.index))
            if known is not None:
                return known
        return torch.stack([values.abs().square().sum() for _, values in self.chunks(n_bytes)]).sum()

    def chunks(self, n_bytes: int) -> Iterator[tuple[slice, Tensor]]:
        """Values of some rows after the other, ``index[rows]`` and ``(n, ...)``, of about `n_bytes` each on a CPU. On an
        accelerator, which has no cache to fit and would have to be waited for, all at once."""
        row_bytes = max(1, self.view[:1].numel() * self.view.element_size())
        step = max(1, n_bytes // row_bytes)
        if self.index.device.type != "cpu" or step >= len(self.index):
            yield slice(0, len(self.index)), self.values
            return
        ordered = []
        for part, position in self.parts:
            ranked, order = position.sort(stable=True)
            bounds = torch.searchsorted(ranked, torch.arange(0, len(self.index) + step, step)).tolist()
            ordered.append((part, ranked, order, bounds))
        for number, first in enumerate(range(0, len(self.index), step)):
            rows = slice(first, min(first + step, len(self.index)))
            values = self.view.new_zeros(rows.stop - first, *self.view.shape[1:])
            for part, ranked, order, bounds in ordered:
                entries = slice(bounds[number], bounds[number + 1])
                part.add_to(values, ranked[entries] - first, order[entries])
            yield rows, values


class RowGradients:
    """Collects gradients by row during a backward pass; a context manager."""

    def __init__(self) -> None:
        self._parts: dict[nn.Parameter, tuple[tuple[int, ...], list[Part]]] = {}
        self._token: Token[RowGradients | None] | None = None

    def __enter__(self) -> RowGradients:
        self._token = _active.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _active.reset(self._token)

    def add(self, parameter: nn.Parameter, order: tuple[int, ...], part: Part) -> None:
        """Take a share; `order` permutes the parameter's axes so that concepts come first."""
        known, parts = self._parts.setdefault(parameter, (order, []))
        assert known == order, f"rows of one parameter along two axes: {known} and {order}"
        parts.append(part)

    def parts(self) -> Iterator[tuple[nn.Parameter, tuple[int, ...], Part]]:
        """All shares, as they were added."""
        for parameter, (order, parts) in self._parts.items():
            for part in parts:
                yield parameter, order, part

    @torch.no_grad()
    def join_whole(self) -> None:
        """Add the rows of parameters that have a whole gradient as well to that, ``.grad``, and forget them: two steps along
        the parts of one gradient are not a step along their sum."""
        for parameter in [parameter for parameter in self._parts if parameter.grad is not None]:
            order, parts = self._parts.pop(parameter)
            assert parameter.grad is not None
            for part in parts:
                part.add_to(parameter.grad.permute(order), part.index, slice(None))

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._parts

    def sums(self) -> Iterator[RowGradient]:
        """The gradient of each parameter, shares of the same row added up."""
        for parameter, (order, parts) in self._parts.items():
            view = parameter.detach().permute(order)
            index, position = distinct(torch.cat([part.index for part in parts]), len(view))
            positions = position.split([len(part.index) for part in parts])
            yield RowGradient(parameter, view, index, list(zip(parts, positions, strict=True)))


def distinct(index: Tensor, size: int, *, static: bool | None = None) -> tuple[Tensor, Tensor]:
    """Distinct entries of ``index (n,)``, ascending, and the position of each entry among them, ``(n,)``.

    With ``static`` (default: on every device but the CPU) nothing waits for the device: the result has n entries, those
    that are too many equal to `size`.
    """
    if static is None:
        static = index.device.type != "cpu"
    if not static:
        return torch.unique(index, return_inverse=True)  # type: ignore[no-any-return]
    ordered, order = index.sort()
    head = torch.ones_like(ordered, dtype=torch.bool)
    head[1:] = ordered[1:] != ordered[:-1]
    rank = head.cumsum(0) - 1
    position = torch.empty_like(rank).scatter_(0, order, rank)
    return torch.full_like(index, size).scatter_(0, rank, ordered), position


def recording(tensor: Tensor) -> RowGradients | None:
    """The collector that wants the gradient of this tensor by row, if there is one. Only parameters have rows."""
    active = _active.get()
    wanted = active is not None and tensor.is_leaf and tensor.requires_grad and torch.is_grad_enabled()
    return active if wanted else None


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: nn.Parameter, index: Tensor, order: tuple[int, ...], record: RowGradients) -> Tensor:
        ctx.parameter, ctx.index, ctx.order, ctx.record = parameter, index, order, record
        return parameter.permute(order).index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, None]:
        ctx.record.add(ctx.parameter, ctx.order, Rows(ctx.index, grads[0]))
        return None, None, None, None


def take_rows(tensor: Tensor, index: Tensor | slice, dim: int = 0, order: tuple[int, ...] | None = None) -> Tensor:
    """``tensor[index]`` along `dim`, which becomes the first axis: ``(n, ...)``; or with all axes in an `order` whose first is
    indexed. The gradient goes to the active :class:`RowGradients`, if there is one and the tensor is a parameter."""
    order = order or (dim, *(axis for axis in range(tensor.ndim) if axis != dim))
    if isinstance(index, slice):
        return tensor.permute(order)[index]
    record = recording(tensor)
    if record is not None:
        return _TakeRows.apply(tensor, index, order, record)  # type: ignore[no-any-return]
    return tensor.permute(order).index_select(0, index)
