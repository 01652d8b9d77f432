"""The contract of a spectral basis: a transform between fields on a grid and coefficients, with its quadrature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..registry import Registry

bases: Registry[type[SpectralBasis]] = Registry("basis")
register_basis = bases.register


class Pairing(NamedTuple):
    r"""How coefficients of real fields hang together.

    .. math:: (A S c)_\kappa = o_\kappa c_\kappa + m_\kappa \bar c_{\pi(\kappa)}

    An orthonormal basis of real fields has o = 1 and m = 0. Where coefficients are redundant (Fourier: the first column of
    the half spectrum; spherical harmonics: order zero) both are 1/2. Modes that the grid does not hold have o = m = 0.

    Parameters
    ----------
    own, mirrored : Tensor
        o and m, real ``(K,)`` over the modes in the order of the flattened coefficients.
    partner : Tensor
        :math:`\pi`, int64 ``(K,)``; any valid index where m is zero.
    """

    own: Tensor
    mirrored: Tensor
    partner: Tensor


class SpectralBasis(ABC):
    r"""Basis functions :math:`\phi_\kappa` on a domain whose measure is normalised to one.

    A field is real, ``(..., *grid)``; its coefficients are complex, ``(..., *mode_shape)``. Two statements make a
    basis (:func:`neuralop_sae.testing.check_basis` holds an author to them):

    - *adjoint*: with the weights ``w`` of a grid,
      :math:`\langle f, S c\rangle_{L^2} = \sum_\kappa w_\kappa\,\mathrm{Re}(\overline{(A f)_\kappa}\,c_\kappa)`.
      For a field in the span this is Parseval, :math:`\|f\|^2 = \sum_\kappa w_\kappa |f_\kappa|^2`.
    - *discretisation invariance*: coefficients of a band-limited field do not depend on the grid.

    Subclasses give :meth:`analysis`, :meth:`synthesis`, :meth:`weights`, :meth:`pairing`, :meth:`quadrature`,
    :meth:`resample` and :meth:`config`.

    Attributes
    ----------
    n_dim : int
        Number of grid dimensions.
    mode_shape : tuple of int
        Shape of the coefficients of one field.
    """

    n_dim: int
    mode_shape: tuple[int, ...]

    @abstractmethod
    def analysis(self, field: Tensor) -> Tensor:
        """Coefficients ``(..., *mode_shape)`` (complex) of a real field ``(..., *grid)``; modes that the grid does
        not hold are zero."""

    @abstractmethod
    def synthesis(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        """The real field ``(..., *shape)`` of coefficients ``(..., *mode_shape)``; modes that the grid does not hold
        are dropped."""

    @abstractmethod
    def weights(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Tensor:
        """Parseval weights ``(*mode_shape)`` on the grid `shape` (None: on the continuum), real, with the device and
        real dtype of `like`."""

    @abstractmethod
    def quadrature(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """Quadrature weights of the grid, broadcastable to ``(*shape)``; over the whole grid they sum to one."""

    @abstractmethod
    def resample(self, field: Tensor, shape: Sequence[int]) -> Tensor:
        """The field ``(..., *grid)`` on the grid `shape`, keeping every frequency that both grids resolve."""

    @abstractmethod
    def config(self) -> dict[str, object]:
        """Constructor arguments as plain data."""

    @abstractmethod
    def pairing(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Pairing:
        """``analysis(synthesis(c))`` on the grid `shape` (None: on the continuum) in closed form, see :class:`Pairing`;
        real, with the device and real dtype of `like`."""

    def gram(self, coefficients: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """``analysis(synthesis(c))`` on the grid `shape` (None: on the continuum), by :meth:`pairing`."""
        self.check_modes(coefficients)
        own, mirrored, partner = self.pairing(shape, like=coefficients.real)
        flat = coefficients.flatten(-self.n_dim)
        return (own * flat + mirrored * flat[..., partner].conj()).reshape(coefficients.shape)

    def energy(self, coefficients: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        r"""Mean square over the domain of ``synthesis(c)``, without the synthesis: :math:`\sum_\kappa w_\kappa
        \mathrm{Re}(\bar c_\kappa\,(G c)_\kappa)` with :meth:`gram` G. ``(..., *mode_shape)`` -> ``(...)``."""
        weights = self.weights(shape, like=coefficients.real)
        density = weights * (coefficients.conj() * self.gram(coefficients, shape)).real
        return density.flatten(-self.n_dim).sum(-1)

    def mean_square(self, field: Tensor) -> Tensor:
        """Mean square of a field over the domain by quadrature. ``(..., *grid)`` -> ``(...)``."""
        quadrature = self.quadrature(field.shape[-self.n_dim :], like=field)
        if quadrature.numel() == 1:  # the same weight everywhere: one pass less over the field
            return field.square().flatten(-self.n_dim).sum(-1) * quadrature.flatten()
        return (field.square() * quadrature).flatten(-self.n_dim).sum(-1)

    def check_grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """`shape` as a tuple of ints; ValueError unless it is a grid of this basis's dimension."""
        grid = tuple(int(size) for size in shape)
        if len(grid) != self.n_dim or min(grid, default=0) < 1:
            raise ValueError(
                f"a grid of {self.n_dim} positive sizes is needed, got {grid}; n_modes has {self.n_dim} dimensions"
            )
        return grid

    def check_modes(self, coefficients: Tensor) -> None:
        """ValueError unless the coefficients end in :attr:`mode_shape`."""
        if tuple(coefficients.shape[-self.n_dim :]) != self.mode_shape:
            raise ValueError(f"coefficients must end in the mode shape {self.mode_shape}, got {tuple(coefficients.shape)}")


def real_dtype(tensor: Tensor) -> torch.dtype:
    """The real dtype of a real or complex tensor."""
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype
