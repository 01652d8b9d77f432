"""Legendre polynomials on a box with walls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralop_sae import SpectralBasis, register_basis


@register_basis("legendre")
class LegendreBasis(SpectralBasis):
    r"""Products of Legendre polynomials on the box :math:`[-1, 1]^d`, for fields that are not periodic.

    Fields are sampled at Gauss-Legendre nodes, in ascending order along each axis. The coefficients

    .. math:: f_k = \int f\,\phi_k\,\frac{ds}{2^d}, \qquad \phi_k(s) = \prod_j \sqrt{2 k_j + 1}\,P_{k_j}(s_j)

    are real numbers; quadrature over n nodes is exact for products of polynomials of degree below n, and n nodes hold the
    n lowest degrees.

    Parameters
    ----------
    n_modes : sequence of int
        Degrees per axis.
    """

    def __init__(self, n_modes: Sequence[int]) -> None:
        self.n_modes = tuple(n_modes)
        self.n_dim, self.mode_shape = len(self.n_modes), self.n_modes

    def analysis(self, field: Tensor) -> Tensor:
        for axis, n in zip(range(-self.n_dim, 0), self.n_modes, strict=True):
            values, weights = polynomials(n, field.shape[axis])
            field = _along(axis, field, values * weights)
        return field + 0j

    def synthesis(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        field = coefficients.real
        for axis, n, size in zip(range(-self.n_dim, 0), self.n_modes, shape, strict=True):
            field = _along(axis, field, polynomials(n, size)[0].T)
        return field

    def weights(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Tensor:
        degrees = torch.meshgrid(*map(torch.arange, self.n_modes), indexing="ij")
        held = [degree < size for degree, size in zip(degrees, shape or self.n_modes, strict=True)]
        return torch.stack(held).all(0).to(like)

    def quadrature(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        product = torch.ones(())
        for size in shape:
            product = product[..., None] * torch.as_tensor(polynomials(1, size)[1])
        return product.to(like)

    def resolved_by(self, shape: Sequence[int]) -> LegendreBasis:
        return LegendreBasis(self.check_grid(shape))

    def resample(self, field: Tensor, shape: Sequence[int]) -> Tensor:
        """Beyond the modes of this basis: every degree that both grids hold."""
        old, new = self.check_grid(field.shape[-self.n_dim :]), self.check_grid(shape)
        if old == new:
            return field
        both = self.resolved_by(tuple(map(min, old, new)))
        return both.synthesis(both.analysis(field), new)


@lru_cache(maxsize=256)
def polynomials(n_modes: int, size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values ``(n_modes, size)`` of the orthonormal polynomials at the nodes, zero where `size` nodes do not hold the
    degree, and the nodes' weights ``(size,)``, which sum to one."""
    nodes, weights = np.polynomial.legendre.leggauss(size)
    degrees = np.arange(n_modes)[:, None]
    values = np.polynomial.legendre.legvander(nodes, n_modes - 1).T * np.sqrt(2 * degrees + 1)
    return values * (degrees < size), weights / 2


def _along(axis: int, field: Tensor, matrix: np.ndarray[Any, Any]) -> Tensor:
    return torch.tensordot(field.movedim(axis, -1), torch.as_tensor(matrix).to(field).T, 1).movedim(-1, axis)
