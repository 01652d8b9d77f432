"""The contract of a spectral basis: a transform between fields on a grid and coefficients, with its quadrature."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..registry import Registry

bases: Registry[type[SpectralBasis]] = Registry("basis")
register_basis = bases.register

T = TypeVar("T")


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

    Subclasses take `n_modes` in their constructor, set :attr:`n_dim` and :attr:`mode_shape`, and give :meth:`analysis`,
    :meth:`synthesis`, :meth:`weights` and :meth:`quadrature`. The other methods have general forms here; a basis that knows
    better replaces them: :meth:`pairing` in closed form, :meth:`resample` and :meth:`resolved_by` beyond its own modes,
    :meth:`wavenumbers`, :meth:`impulse`, :meth:`shared_points`, :meth:`smallest_grid`, :meth:`colatitudes`.

    Attributes
    ----------
    n_dim : int
        Number of grid dimensions, and of axes of the coefficients.
    mode_shape : tuple of int
        Shape of the coefficients of one field.
    equivariant : bool
        Whether multiplying coefficients commutes with translations, so that a concept's atom is the same function wherever
        it is put.
    wavenumber_label : str
        What :meth:`wavenumbers` counts, with its unit: the axis of a spectrum.
    """

    n_dim: int
    mode_shape: tuple[int, ...]
    equivariant: bool = False
    wavenumber_label: str = "mode number"

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

    def resample(self, field: Tensor, shape: Sequence[int]) -> Tensor:
        """The field ``(..., *grid)`` on the grid `shape`. Here only the modes of the basis are kept, unless the grid is the
        same; a basis that can make a larger one of its kind keeps every mode that both grids resolve."""
        grid = self.check_grid(shape)
        return field if grid == tuple(field.shape[-self.n_dim :]) else self.synthesis(self.analysis(field), grid)

    def config(self) -> dict[str, object]:
        """Constructor arguments as plain data: attributes of the same names."""
        names = list(inspect.signature(type(self)).parameters)
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def pairing(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Pairing:
        """``analysis(synthesis(c))`` on the grid `shape` (None: on the continuum), see :class:`Pairing`; real, with the
        device and real dtype of `like`. Here it is found by trying every mode; on the continuum stands
        :meth:`smallest_grid`."""
        return self.cached("pairing", shape, like, self._try_modes)

    def _try_modes(self, shape: Sequence[int] | None, like: Tensor) -> Pairing:
        grid = self.smallest_grid() if shape is None else self.check_grid(shape)
        size = math.prod(self.mode_shape)
        unit = torch.eye(size, dtype=torch.complex128, device=like.device)
        direct, turned = (
            self.analysis(self.synthesis((factor * unit).reshape(size, *self.mode_shape), grid)).reshape(size, size)
            for factor in (1, 1j)
        )
        own, mirrored = (direct - 1j * turned) / 2, (direct + 1j * turned) / 2  # of c and of its conjugate
        partner = mirrored.abs().argmax(0)
        parts = (own.diagonal().real, mirrored.gather(0, partner[None])[0].real)
        mine, other = (part.where(part.abs() > 1e-9, 0.0).to(real_dtype(like)) for part in parts)
        return Pairing(mine, other, partner)

    def smallest_grid(self) -> tuple[int, ...]:
        """A grid that holds all modes, in as few points as is known."""
        return tuple(2 * size + 1 for size in self.mode_shape)

    def resolved_by(self, shape: Sequence[int]) -> SpectralBasis:
        """The basis of its kind with all modes that the grid `shape` resolves: here this one."""
        self.check_grid(shape)
        return self

    def colatitudes(self, nlat: int) -> Tensor | None:
        """Where the domain is a sphere, and grids are ``(nlat, nlon)`` with longitudes from 0 eastward in equal steps: angles
        of the rows from the north pole, ``(nlat,)`` in float64, in radians. None on other domains."""
        return None

    def wavenumbers(self) -> Tensor:
        """By which modes are sorted into spectra, ``(*mode_shape)`` in float64: here the length of the mode's index."""
        axes = [torch.arange(size, dtype=torch.float64) for size in self.mode_shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)

    def impulse(self, *, like: Tensor) -> Tensor:
        """Coefficients ``(*mode_shape)`` of the unit impulse in the middle of the domain: all modes in phase there, L2 norm
        one. Here it is found on :meth:`smallest_grid`."""
        return self.cached("impulse", None, like, self._make_impulse)

    def _make_impulse(self, _: Sequence[int] | None, like: Tensor) -> Tensor:
        grid = self.smallest_grid()
        point = torch.zeros(grid, dtype=torch.float64, device=like.device)
        point[tuple(size // 2 for size in grid)] = 1.0
        coefficients = self.analysis(point)
        return (coefficients / self.energy(coefficients).sqrt()).to(real_dtype(like).to_complex())

    def centred(self, field: Tensor) -> Tensor:
        """A field ``(..., *grid)`` made from :meth:`impulse`, with its impulse in the middle of the grid."""
        return field

    def shared_points(self, fine: Sequence[int], coarse: Sequence[int]) -> tuple[slice, ...] | None:
        """Slices that pick the points of the grid `coarse` from a field on the grid `fine`; None if it does not hold them,
        or it is not known."""
        return (slice(None),) * self.n_dim if tuple(fine) == tuple(coarse) else None

    def restrict(self, field: Tensor, shape: Sequence[int]) -> Tensor:
        """A field ``(..., *grid)`` on a coarser grid: read off at the shared points where the grids nest, resampled
        otherwise."""
        shared = self.shared_points(field.shape[-self.n_dim :], self.check_grid(shape))
        return self.resample(field, shape) if shared is None else field[(..., *shared)]  # type: ignore[index]

    def cached(self, what: str, shape: Sequence[int] | None, like: Tensor, make: Callable[..., T]) -> T:
        """What `make` gives for a grid, a device and a dtype, made once."""
        constants: dict[tuple[object, ...], Any] = self.__dict__.setdefault("_constants", {})
        key = (what, None if shape is None else tuple(shape), like.device, real_dtype(like))
        if key not in constants:
            # Made in a caller's inference mode, it would break later backward passes.
            with torch.inference_mode(False), torch.no_grad():
                constants[key] = make(shape, like)
        return constants[key]  # type: ignore[no-any-return]

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


def transform_of_nothing(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The transform ``(*shape)`` of an empty batch. It depends on the batch, so that ranks whose batches are not all empty go
    through one graph, collectives included."""
    return tensor.new_zeros(shape, dtype=dtype) + tensor.sum().real.to(dtype)


def real_dtype(tensor: Tensor) -> torch.dtype:
    """The real dtype of a real or complex tensor."""
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype
