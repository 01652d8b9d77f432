"""Rows of a spectral weight, dense or factorised, without ever forming the other rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tltorch.factorized_tensors.core import FactorizedTensor
from torch import Tensor, nn

_LETTERS = "abcdefghijklmnop"


def concept_rows(weight: FactorizedTensor, concepts: Tensor | slice, *, axis: int) -> Tensor:
    """The kernels of some concepts, from a weight of logical shape (in, out, *modes).

    Parameters
    ----------
    weight : FactorizedTensor
        Weight of a neuralop SpectralConv: dense, Tucker, CP or TT.
    concepts : Tensor or slice
        Which concepts, n of them.
    axis : {0, 1}
        The axis that counts concepts: 1 (out) in an encoder, 0 (in) in a decoder.

    Returns
    -------
    Tensor
        ``(n, *modes, channels)``, complex. For a dense weight that :func:`mode_major_` laid out and a slice, a view.
    """
    name = weight.name.lower().removeprefix("complex")
    try:
        return _ROWS[name](weight, concepts, axis)
    except KeyError:
        raise ValueError(f"no rows for factorization {name!r}; known: {', '.join(_ROWS)}") from None


def mode_major_(weight: FactorizedTensor, *, axis: int) -> None:
    """Lay out a dense weight in memory as (concept, *modes, channel) while its logical shape stays neuralop's.

    One layout then serves the batched product over modes and the gather of rows, both without a copy. Factorised
    weights are left alone: their concept factor is row-major already.
    """
    if not weight.name.lower().endswith("dense"):
        return
    old = weight.tensor
    order = (axis, *range(2, old.ndim), 1 - axis)
    inverse = sorted(range(old.ndim), key=order.__getitem__)
    weight.tensor = nn.Parameter(old.detach().permute(order).contiguous().permute(inverse))


@torch.no_grad()
def scale_rows_(weight: FactorizedTensor, scale: Tensor, *, axis: int) -> None:
    """Multiply the kernel of each concept by a factor, ``scale (p,)``, in place."""
    if weight.name.lower().endswith("dense"):
        weight.tensor.mul_(scale.view(-1, *(1,) * (weight.tensor.ndim - axis - 1)))
    else:  # (p, rank) in Tucker and CP, (rank, p, rank) in TT
        weight.factors[axis].mul_(scale[:, None])


@torch.no_grad()
def copy_adjoint_(encoder: FactorizedTensor, decoder: FactorizedTensor) -> bool:
    """Make an encoder's weight (m, p, *modes) the adjoint of a decoder's (p, m, *modes), in place, where both have the
    same form. False if they have not (a tensor train, whose first two axes don't swap, say): nothing is changed."""
    kinds = {weight.name.lower().removeprefix("complex") for weight in (encoder, decoder)}
    if kinds == {"dense"}:
        encoder.tensor.copy_(decoder.tensor.conj().transpose(0, 1))
        return True
    swapped = [decoder.factors[1], decoder.factors[0], *list(decoder.factors)[2:]] if kinds != {"tt"} else []
    if len(kinds) != 1 or not swapped or any(a.shape != b.shape for a, b in zip(encoder.factors, swapped, strict=True)):
        return False
    for mine, theirs in zip(encoder.factors, swapped, strict=True):
        mine.copy_(theirs.conj())
    if kinds == {"tucker"}:
        encoder.core.copy_(decoder.core.conj().transpose(0, 1))
    else:
        encoder.weights.copy_(decoder.weights.conj())
    return True


def _take(factor: Tensor, concepts: Tensor | slice, dim: int) -> Tensor:
    if isinstance(concepts, Tensor):
        return factor.index_select(dim, concepts)
    index: list[slice] = [slice(None)] * factor.ndim
    index[dim] = concepts
    return factor[tuple(index)]


def _dense(weight: FactorizedTensor, concepts: Tensor | slice, axis: int) -> Tensor:
    tensor = weight.to_tensor()
    rows = tensor.permute(axis, *range(2, tensor.ndim), 1 - axis)
    return _take(rows, concepts, 0)


def _tucker(weight: FactorizedTensor, concepts: Tensor | slice, axis: int) -> Tensor:
    factors = list(weight.factors)
    factors[axis] = _take(factors[axis], concepts, 0)
    order = len(factors)
    ranks, sizes = _LETTERS[:order], _LETTERS[:order].upper()
    terms = ",".join(size + rank for size, rank in zip(sizes, ranks, strict=True))
    return torch.einsum(f"{ranks},{terms}->{_row_order(sizes, axis)}", weight.core, *factors)


def _cp(weight: FactorizedTensor, concepts: Tensor | slice, axis: int) -> Tensor:
    factors = list(weight.factors)
    factors[axis] = _take(factors[axis], concepts, 0)
    sizes = _LETTERS[: len(factors)].upper()
    terms = ",".join(size + "r" for size in sizes)
    return torch.einsum(f"r,{terms}->{_row_order(sizes, axis)}", weight.weights, *factors)


def _tt(weight: FactorizedTensor, concepts: Tensor | slice, axis: int) -> Tensor:
    factors = list(weight.factors)
    factors[axis] = _take(factors[axis], concepts, 1)
    sizes = _LETTERS[: len(factors)].upper()
    bonds = _LETTERS[: len(factors) + 1]
    terms = ",".join(bonds[i] + size + bonds[i + 1] for i, size in enumerate(sizes))
    return torch.einsum(f"{terms}->{_row_order(sizes, axis)}", *factors)


def _row_order(sizes: str, axis: int) -> str:
    return sizes[axis] + sizes[2:] + sizes[1 - axis]


_ROWS: dict[str, Callable[[FactorizedTensor, Tensor | slice, int], Tensor]] = {
    "dense": _dense,
    "tucker": _tucker,
    "cp": _cp,
    "tt": _tt,
}
