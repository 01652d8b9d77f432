r"""Kernels on a periodic box of another length.

A mode counts cycles per box, so the same weights on a longer box are longer kernels. A kernel of the same physical size is
zero outside one period of its own box, centred at its origin: at the wavenumber :math:`\xi`, in cycles per box of old,

.. math:: \hat d(\xi) = \int_{-1/2}^{1/2} d(s)\,e^{-2\pi i \xi s}\,ds = \sum_k d_k\,\mathrm{sinc}(\xi - k),

which is :math:`d_k` at whole :math:`\xi = k`. The mode k' of a box c times as long is :math:`\xi = k'/c`, for any c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .fourier import FourierBasis


def length_factors(lengths: float | Sequence[float], n_dim: int) -> tuple[float, ...]:
    """Factors on the lengths of a box, one for each dimension; ValueError unless they are positive and fit."""
    factors = tuple(float(c) for c in lengths) if isinstance(lengths, Sequence) else (float(lengths),) * n_dim
    if len(factors) != n_dim or not all(math.isfinite(c) and c > 0 for c in factors):
        raise ValueError(
            f"lengths are {n_dim} positive factors on the lengths of the box of training, or one for all, got {lengths!r}"
        )
    return factors


def basis_on(basis: FourierBasis, lengths: Sequence[float]) -> FourierBasis:
    """The modes that a box of these lengths has below the first wavenumber that `basis` leaves out."""
    cutoffs = (n // 2 + 1 for n in basis.n_modes)
    return FourierBasis([2 * math.ceil(cutoff * c) - 1 for cutoff, c in zip(cutoffs, lengths, strict=True)])


def kernels_on(basis: FourierBasis, coefficients: Tensor, lengths: Sequence[float]) -> Tensor:
    """Coefficients of kernels in the modes of :func:`basis_on`, ``(..., *mode_shape)`` -> ``(..., *new mode_shape)``."""
    dims = tuple(range(-basis.n_dim, 0))
    kernels = basis.synthesis(coefficients, basis.smallest_grid())
    spectrum = torch.fft.fftshift(torch.fft.fftn(kernels, dim=dims, norm="forward"), dim=dims)
    for dim, length, kept in zip(dims, lengths, basis_on(basis, lengths).frequencies(), strict=True):
        old = torch.arange(spectrum.shape[dim], dtype=torch.float64) - spectrum.shape[dim] // 2
        wanted = torch.tensor(list(kept), dtype=torch.float64) / length
        interpolation = torch.sinc(wanted[:, None] - old).to(spectrum)
        spectrum = torch.tensordot(spectrum.movedim(dim, -1), interpolation.T, 1).movedim(-1, dim)
    return spectrum
