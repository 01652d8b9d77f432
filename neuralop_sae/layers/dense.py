"""Dense kernels, stored concept by concept so that one layout serves the products over modes and the gather of rows.

Rows are gathered and contracted a few samples at a time, in cache: on a CPU one large temporary costs more than the
arithmetic. A gradient stays in its factors, codes and fields, until an optimiser asks for its rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tltorch.factorized_tensors.core import FactorizedTensor
from torch import Tensor, nn

from .kernels import Kernels, chunk_bytes, register_form
from .rows import RowGradients, recording, take_rows
from .selection import Selection

# A pair's share of one product over all concepts costs about a seventh of gathering its row (measured on two CPU cores,
# 144 modes, 64 channels, 16 samples: 0.65 against 4.5 microseconds).
_GATHER_COST = 7


@register_form("dense")
class DenseKernels(Kernels):
    """Kernels of a dense weight, which is laid out in memory as (concept, *modes, channel); its logical shape stays
    neuralop's. See :class:`Kernels`."""

    def __init__(self, weight: FactorizedTensor, axis: int, multiplicity: int = 1) -> None:
        super().__init__(weight, axis, multiplicity)
        self.order = (axis, *range(2, weight.tensor.ndim), 1 - axis)

    @property
    def concept_tensor(self) -> tuple[Tensor, int]:
        return self.weight.tensor, self.axis

    def lay_out_(self) -> None:
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        self.weight.tensor = nn.Parameter(self.weight.tensor.detach().permute(self.order).contiguous().permute(inverse))

    @property
    def _table(self) -> Tensor:
        return self.table_of(self.weight.tensor)

    def table_of(self, weight: Tensor) -> Tensor:
        """All kernels, ``(p, K, m)``: a view of the weight's tensor."""
        return weight.permute(self.order).flatten(1, -2)

    def rows(self, concepts: Tensor | slice) -> Tensor:
        return take_rows(self.weight.tensor, concepts, order=self.order).flatten(1, -2)

    def respond(self, x: Tensor, selection: Selection) -> Tensor:
        return self.unfold(self._product(self.fold_fields(x), selection, reads=True))

    def write(self, codes: Tensor, selection: Selection) -> Tensor:
        return self.unfold_fields(self._product(self.fold(codes), selection, reads=False))

    def _product(self, data: Tensor, selection: Selection, *, reads: bool) -> Tensor:
        weight = self.weight.tensor
        return _Product.apply(weight, data, self, selection, recording(weight), reads)  # type: ignore[no-any-return]

    def respond_all(self, x: Tensor, concepts: slice) -> Tensor:
        folded = self.fold_fields(x)  # (B, K, Q, m)
        batch, n_modes, n_each, _ = folded.shape
        table = self._table.detach()[concepts].permute(1, 2, 0)
        out = torch.bmm(folded.permute(1, 2, 0, 3).flatten(1, 2), table)  # (K, Q B, n)
        if not self.is_real:
            return out.view(n_modes * n_each, batch, -1)
        pairs = out.view(-1, 2, batch, out.shape[-1]).movedim(1, -1)
        return torch.view_as_complex(pairs.contiguous())

    @torch.no_grad()
    def scale_(self, scale: Tensor) -> None:
        self._table.mul_(scale[:, None, None])

    @torch.no_grad()
    def copy_adjoint_(self, other: Kernels) -> None:
        self._table.copy_(other.rows(slice(None)).conj())

    def accumulate(self, record: RowGradients | None, outer: OuterProducts) -> Tensor | None:
        """Hand a gradient to `record`, or form it whole, ``(in, out, *modes)``, if there is none."""
        if record is not None:
            record.add(self.weight.tensor, self.order, outer)
            return None
        total = torch.zeros_like(self.weight.tensor)
        table = total.permute(self.order)
        outer.add_to(table, outer.index, slice(None))
        return total


@dataclass(frozen=True)
class OuterProducts:
    """A gradient in its factors: row ``index[n]`` gets ``left[n, K, Q] * right[sample[n], K, Q, m]``, summed over Q."""

    selection: Selection
    left: Tensor
    right: Tensor

    @property
    def index(self) -> Tensor:
        """The concept of each pair, ``(n,)``."""
        return self.selection.concept

    def add_to(self, total: Tensor, position: Tensor, entries: Tensor | slice) -> None:
        """See :class:`~neuralop_sae.layers.rows.Part`; ``total (U, *modes, m)``."""
        table, left, sample = total.flatten(1, -2), self.left[entries], self.selection.sample[entries]
        if _GATHER_COST * len(left) >= len(table) * len(self.right):
            placed = _placed(left, position, sample, len(table), len(self.right))
            table += torch.bmm(placed, _by_mode(self.right)).transpose(0, 1)
            return
        step = max(1, chunk_bytes(left.device) // (self.right[0].numel() * self.right.element_size()))
        for first in range(0, len(left), step):
            some = slice(first, first + step)
            fields = self.right.index_select(0, sample[some]).mul_(left[some, ..., None])
            table.index_add_(0, position[some], _total(fields, 2))

    def square_norm(self, position: Tensor, n_rows: int) -> Tensor | None:
        r"""See :class:`~neuralop_sae.layers.rows.Part`. The rows are :math:`D_\kappa R_\kappa` with the entries of `left` on
        the places (row, sample) of D, so their squares sum to :math:`\sum_\kappa \mathrm{tr}\, D_\kappa (R_\kappa
        R_\kappa^*) D_\kappa^*`: products of samples take the place of channels."""
        n_samples, _, n_each, n_channels = self.right.shape
        if n_rows * n_each * n_samples**2 > 4 * len(self.left) * n_channels:
            return None
        placed = _placed(self.left, position, self.selection.sample, n_rows, n_samples)
        fields = _by_mode(self.right)
        weighted = torch.bmm(placed, torch.bmm(fields, fields.mH))
        return torch.linalg.vecdot(*(_reals(tensor).flatten() for tensor in (placed, weighted)))


def _placed(left: Tensor, position: Tensor, sample: Tensor, n_rows: int, n_samples: int) -> Tensor:
    """Entries ``(n, K, Q)`` at their rows and samples, ``(K, n_rows, n_samples Q)``."""
    placed = left.new_zeros(left.shape[1], n_rows, n_samples, left.shape[2])
    placed[:, position, sample] = left.transpose(0, 1)
    return placed.flatten(2)


def _by_mode(fields: Tensor) -> Tensor:
    """``(B, K, Q, m)`` -> ``(K, B Q, m)``."""
    return fields.transpose(0, 1).flatten(1, 2)


def _total(tensor: Tensor, dim: int) -> Tensor:
    """Sum over an axis; no work where its size is one."""
    return tensor.squeeze(dim) if tensor.shape[dim] == 1 else tensor.sum(dim)


def _reals(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class _Product(torch.autograd.Function):
    """Reading and writing, each the adjoint of the other: `data` are fields ``(B, K, Q, m)`` if it `reads`, else codes
    ``(n, K, Q)``."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        data: Tensor,
        kernels: DenseKernels,
        selection: Selection,
        record: RowGradients | None,
        reads: bool,
    ) -> Tensor:
        ctx.save_for_backward(weight, data)
        ctx.kernels, ctx.selection, ctx.record, ctx.reads = kernels, selection, record, reads
        return (_read if reads else _written)(kernels.table_of(weight), data, selection)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        weight, data = ctx.saved_tensors
        grad_weight = grad_data = None
        if ctx.needs_input_grad[0]:
            conjugate = data.detach().conj().resolve_conj()  # conj() of real data is the data, with their history
            left, right = (grads[0], conjugate) if ctx.reads else (conjugate, grads[0])
            grad_weight = ctx.kernels.accumulate(ctx.record, OuterProducts(ctx.selection, left, right))
        if ctx.needs_input_grad[1]:
            adjoint = _written if ctx.reads else _read
            grad_data = adjoint(ctx.kernels.table_of(weight), grads[0].conj().resolve_conj(), ctx.selection).conj()
        return grad_weight, grad_data, None, None, None, None


def _read(table: Tensor, x: Tensor, selection: Selection) -> Tensor:
    """``table (p, K, m)``, ``x (B, K, Q, m)`` -> ``(n, K, Q)``; see :meth:`Kernels.respond`."""
    n_samples, n_modes, n_each, _ = x.shape
    if _GATHER_COST * len(selection) >= len(table) * n_samples:
        everything = torch.bmm(_by_mode(x), table.permute(1, 2, 0)).view(n_modes, n_samples, n_each, len(table))
        return everything.transpose(2, 3)[:, selection.sample, selection.concept].transpose(0, 1).contiguous()
    out = x.new_empty(len(selection), n_modes, n_each)
    for pairs, fields in _by_sample(selection, x):
        rows = table.index_select(0, selection.concept[pairs]).view(len(fields), -1, *table.shape[1:])
        if n_each == 1:
            torch.sum(rows.mul_(fields[..., 0, :]).flatten(0, 1), -1, keepdim=True, out=out[pairs])
        else:
            out[pairs] = torch.matmul(fields, rows[..., None]).squeeze(-1).flatten(0, 1)
    return out


def _written(table: Tensor, codes: Tensor, selection: Selection) -> Tensor:
    """``table (p, K, m)``, ``codes (n, K, Q)`` -> ``(B, K, Q, m)``; see :meth:`Kernels.write`."""
    n_each = codes.shape[2]
    if _GATHER_COST * len(selection) >= len(table) * selection.n_samples:
        placed = codes.new_zeros(selection.n_samples, len(table), *codes.shape[1:])
        placed[selection.sample, selection.concept] = codes
        written = torch.bmm(placed.permute(2, 0, 3, 1).flatten(1, 2), table.transpose(0, 1))  # (K, B Q, m)
        return written.view(len(written), selection.n_samples, n_each, -1).transpose(0, 1)
    out = codes.new_zeros(selection.n_samples, table.shape[1], n_each, table.shape[2])
    for pairs, fields in _by_sample(selection, out):
        rows = table.index_select(0, selection.concept[pairs]).view(len(fields), -1, table.shape[1], 1, table.shape[2])
        entries = codes[pairs].view(len(fields), -1, *codes.shape[1:], 1)
        rows = rows.mul_(entries) if n_each == 1 else rows * entries
        if selection.every is None:
            out.index_add_(0, selection.sample[pairs], rows[:, 0])
        else:
            fields[:, 0] += rows.sum(1)
    return out


def _by_sample(selection: Selection, fields: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of pairs whose rows fit in cache, with the fields that they meet: ``(s, 1, K, Q, m)`` for s samples of equally
    many pairs, as a view, or one field for each pair."""
    row_bytes = fields[0].numel() * fields.element_size()
    step = max(1, chunk_bytes(fields.device) // row_bytes)
    every = selection.every
    if every is None:
        for first in range(0, len(selection), step):
            pairs = slice(first, min(first + step, len(selection)))
            yield pairs, fields.index_select(0, selection.sample[pairs])[:, None]
        return
    n_samples = max(1, step // every)
    for first in range(0, selection.n_samples, n_samples):
        some = fields[first : first + n_samples, None]
        stop = (first + len(some)) * every
        n_pairs = step if step < every else len(some) * every
        for begin in range(first * every, stop, n_pairs):
            yield slice(begin, min(begin + n_pairs, stop)), some
