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

    def add_to(self, total: Tensor, position: Tensor) -> None:
        """Add the values of row ``index[n]`` to ``total[position[n]]``."""


@dataclass(frozen=True)
class Rows:
    """Values ``(n, ...)`` for the rows ``index (n,)``."""

    index: Tensor
    values: Tensor

    def add_to(self, total: Tensor, position: Tensor) -> None:
        total.index_add_(0, position, self.values.to(total.dtype))


@dataclass(frozen=True)
class RowGradient:
    """Gradient of the rows ``index (U,)`` of a parameter: ``values (U, ...)``.

    ``view`` is the parameter with its concepts first, ``(p, ...)``, in the order of its memory. On an accelerator, where
    counting distinct rows would wait for the device, U is the number of rows used with repetition; surplus entries have
    the index p and the value zero.
    """

    parameter: nn.Parameter
    view: Tensor
    index: Tensor
    values: Tensor


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

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._parts

    def sums(self) -> Iterator[RowGradient]:
        """The gradient of each parameter, shares of the same row added up."""
        for parameter, (order, parts) in self._parts.items():
            view = parameter.detach().permute(order)
            index, position = distinct(torch.cat([part.index for part in parts]), len(view))
            values = view.new_zeros(len(index), *view.shape[1:])
            first = 0
            for part in parts:
                part.add_to(values, position[first : first + len(part.index)])
                first += len(part.index)
            yield RowGradient(parameter, view, index, values)


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
    def forward(ctx: Any, parameter: nn.Parameter, index: Tensor, dim: int, record: RowGradients) -> Tensor:
        ctx.parameter, ctx.index, ctx.dim, ctx.record = parameter, index, dim, record
        return parameter.index_select(dim, index).movedim(dim, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, None]:
        others = (axis for axis in range(ctx.parameter.ndim) if axis != ctx.dim)
        ctx.record.add(ctx.parameter, (ctx.dim, *others), Rows(ctx.index, grads[0]))
        return None, None, None, None


def take_rows(tensor: Tensor, index: Tensor | slice, dim: int = 0) -> Tensor:
    """``tensor[index]`` along `dim`, which becomes the first axis: ``(n, ...)``. The gradient goes to the active
    :class:`RowGradients`, if there is one and the tensor is a parameter."""
    if isinstance(index, slice):
        return tensor.movedim(dim, 0)[index]
    record = recording(tensor)
    if record is not None:
        return _TakeRows.apply(tensor, index, dim, record)  # type: ignore[no-any-return]
    return tensor.index_select(dim, index).movedim(dim, 0)
