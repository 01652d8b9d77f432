"""Kernels with taps on a grid: circular convolution, and the same kernel on another grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_CONVOLUTIONS = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}


def convolve(field: Tensor, kernels: Tensor, centre: Sequence[int]) -> Tensor:
    """``y_o(s) = sum_i sum_t kernels_oi(t) field_i(s + t)`` on a periodic grid of 1 to 3 dimensions.

    Parameters
    ----------
    field : Tensor
        ``(B, in, *grid)``.
    kernels : Tensor
        ``(out, in, *taps)``, no wider than the grid.
    centre : sequence of int
        Index of the tap with t = 0.

    Returns
    -------
    Tensor
        ``(B, out, *grid)``.
    """
    padding: list[int] = []
    for size, middle in zip(kernels.shape[2:], centre, strict=True):
        padding = [middle, size - 1 - middle, *padding]
    return _CONVOLUTIONS[len(centre)](nn.functional.pad(field, padding, mode="circular"), kernels)


def adjoint(kernels: Tensor, centre: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Kernels and centre of the adjoint of :func:`convolve`: ``x_i(s) = sum_o sum_t kernels_oi(t) y_o(s - t)``."""
    turned = [size - 1 - middle for size, middle in zip(kernels.shape[2:], centre, strict=True)]
    return kernels.transpose(0, 1).flip(tuple(range(2, kernels.ndim))), turned


def on_grid(kernels: Tensor, grid: Sequence[int], reference: Sequence[int] | None) -> tuple[Tensor, list[int]]:
    r"""Kernels ``(..., *taps)`` as they act on a grid, with the index of the central tap, ``K // 2`` of K taps to begin with.

    With a reference grid, taps are samples there of a piecewise linear kernel times the grid step,
    :math:`k(t) = \sum_j w_j \Lambda(t/h_0 - j)/h_0` with the hat function :math:`\Lambda`. A finer grid of step h samples the
    kernel, a coarser one takes it against its own hats:

    .. math:: w'_{j'} = \sum_j w_j\,\min(1, r)\,\Lambda\Bigl(\frac{j - j' r}{\max(1, r)}\Bigr), \qquad r = h / h_0,

    which keeps its integral on coarser grids and on grids that hold the reference grid. Without a reference grid (None) taps
    stay as they are. Kernels wider than the grid wrap around it.
    """
    axes, centre = kernels.shape[-len(grid) :], []
    for axis, (taps, points) in enumerate(zip(axes, grid, strict=True)):
        ratio = 1.0 if reference is None else reference[axis] / points
        left, right = (math.ceil((half + max(1.0, ratio)) / ratio) - 1 for half in (taps // 2, (taps - 1) // 2))
        centre.append(left % points)
        if ratio == 1 and taps <= points:
            continue
        old = torch.arange(taps, dtype=torch.float64) - taps // 2
        new = torch.arange(-left, right + 1, dtype=torch.float64)
        hats = min(1.0, ratio) * (1 - (old - ratio * new[:, None]).abs() / max(1.0, ratio)).clamp_min(0)
        wrapped = torch.arange(len(new)) % points
        matrix = hats.new_zeros(min(len(new), points), taps).index_add(0, wrapped, hats).to(kernels)
        dim = axis - len(grid)
        kernels = torch.tensordot(kernels, matrix, ([dim], [1])).movedim(-1, dim)
    return kernels, centre
