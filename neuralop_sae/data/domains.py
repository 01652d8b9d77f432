r"""Where synthetic fields live: a periodic box of any length, or the sphere.

A position is a point in physical units, of the box in units of length from the first grid point, of the sphere in radians:
(colatitude, longitude). Everything here is a closed form of positions, so that any grid shows the same functions.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers.basis import SpectralBasis
from ..layers.fourier import FourierBasis
from ..layers.spherical import SphericalBasis
from .arguments import at_least, positive

__all__ = ["Box", "Domain", "Sphere"]

#: A Gaussian of so many widths from its middle is below the last bit of 1.
_REACH = 8.6


class Domain(ABC):
    """What the generator and the metrics of events need to know of a domain.

    Attributes
    ----------
    n_dim : int
        Axes of a grid, and numbers in a position.
    cells : list of tuple of int
        The parts that events are drawn in, each by itself: a larger box has the cells of the smaller one and more.
    """

    n_dim: int

    @property
    @abstractmethod
    def cells(self) -> list[tuple[int, ...]]:
        """See the class."""

    @abstractmethod
    def place(self, cell: tuple[int, ...], uniform: Tensor) -> Tensor:
        """Positions ``(n, n_dim)`` in a cell, uniform by volume or area, from numbers ``(n, n_dim)`` uniform in [0, 1)."""

    @abstractmethod
    def inside(self, position: Tensor) -> Tensor:
        """Which positions ``(n, n_dim)`` the domain holds, ``(n,)``."""

    @abstractmethod
    def points(self, shape: Sequence[int]) -> Tensor:
        """Positions of the points of a grid, ``(*shape, n_dim)``, float64."""

    @abstractmethod
    def middle(self, shape: Sequence[int]) -> Tensor:
        """The position where atoms have their impulse, ``(n_dim,)``, float64."""

    @abstractmethod
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Length of the shortest way between positions ``(..., n_dim)``, broadcast, ``(...)``."""

    @abstractmethod
    def surround(self, values: Tensor) -> Tensor:
        """Values ``(n, *shape)`` on a grid with what lies around it, one more point at both ends of each axis."""

    @abstractmethod
    def bump(self, position: Tensor, shape: Sequence[int], width: float) -> Tensor:
        """Bumps of a width and unit integral at positions ``(n, n_dim)``, seen on a grid, ``(n, *shape)``, float64."""

    @abstractmethod
    def basis(self, highest: int) -> SpectralBasis:
        """The functions with wavenumbers (cycles per unit length along each axis) or degrees up to `highest`."""

    def synthesis(self, basis: SpectralBasis, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        """What a grid sees of the function with these coefficients, ``(..., *shape)``."""
        return basis.synthesis(coefficients, shape)

    def check_grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """`shape` as a tuple of ints; ValueError unless it is a grid of this domain."""
        grid = tuple(int(size) for size in shape)
        if len(grid) != self.n_dim or min(grid) < 1:
            raise ValueError(f"shape is {grid}; a grid here has {self.n_dim} positive sizes.")
        return grid


@dataclass(frozen=True)
class Box(Domain):
    """A periodic box with equal sides.

    Parameters
    ----------
    n_dim : int
        Its dimensions.
    length : float
        Of a side. Grids have the points ``length * i / N``.

    Examples
    --------
    >>> round(Box(1, 2.0).distance(torch.tensor([0.1]), torch.tensor([1.9])).item(), 6)
    0.2
    """

    n_dim: int
    length: float = 1.0

    def __post_init__(self) -> None:
        at_least("n_dim", self.n_dim, 1)
        positive("length", self.length)

    @property
    def cells(self) -> list[tuple[int, ...]]:
        """Cubes of side 1; the last ones may stick out."""
        return list(itertools.product(range(math.ceil(self.length)), repeat=self.n_dim))

    def place(self, cell: tuple[int, ...], uniform: Tensor) -> Tensor:
        """See :meth:`Domain.place`."""
        return uniform + torch.tensor(cell, dtype=torch.float64)

    def inside(self, position: Tensor) -> Tensor:
        """See :meth:`Domain.inside`."""
        return (position < self.length).all(-1)

    def axes(self, shape: Sequence[int]) -> list[Tensor]:
        """Coordinates of the points of a grid along each axis, ``(N_j,)`` each, float64."""
        return [torch.arange(n, dtype=torch.float64) / n * self.length for n in self.check_grid(shape)]

    def points(self, shape: Sequence[int]) -> Tensor:
        """See :meth:`Domain.points`."""
        return torch.stack(torch.meshgrid(*self.axes(shape), indexing="ij"), -1)

    def middle(self, shape: Sequence[int]) -> Tensor:
        """See :meth:`Domain.middle`: the point ``N // 2`` of each axis."""
        return torch.stack([axis[len(axis) // 2] for axis in self.axes(shape)])

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Domain.distance`."""
        apart = (a - b).abs() % self.length
        return torch.minimum(apart, self.length - apart).norm(dim=-1)

    def surround(self, values: Tensor) -> Tensor:
        """See :meth:`Domain.surround`: the other side of the box."""
        for dim in range(1, self.n_dim + 1):
            values = _closed(values, dim)
        return values

    def waves(self, position: Tensor, shape: Sequence[int], width: Tensor, wavenumber: Tensor) -> Tensor:
        r"""Gaussian wave packets and all their periodic images, seen on a grid:

        .. math:: \sum_{n\in\mathbb Z^d} g(s - t + nL), \qquad
                  g(r) = \exp\Bigl(-\frac{|r|^2}{2 w^2} + 2\pi i\,k\cdot r\Bigr).

        Parameters
        ----------
        position : torch.Tensor
            t, shape (n, n_dim).
        shape : sequence of int
            The grid.
        width : torch.Tensor
            w, shape (n,), in units of length.
        wavenumber : torch.Tensor
            k, shape (n, n_dim), in cycles per unit length.

        Returns
        -------
        torch.Tensor
            Shape (n, *shape), complex128.
        """
        n_images = max(0, math.ceil(_REACH * float(width.max()) / self.length - 0.5)) if len(width) else 0
        images = torch.arange(-n_images, n_images + 1, dtype=torch.float64) * self.length
        packets = torch.ones(len(position), dtype=torch.complex128)
        for axis, s in enumerate(self.axes(shape)):
            apart = s - position[:, axis, None]
            apart = apart - self.length * (apart / self.length).round()
            r = apart[..., None] + images
            phase = 2 * torch.pi * wavenumber[:, axis, None, None] * r
            along = torch.polar((-0.5 * (r / width[:, None, None]).square()).exp(), phase).sum(-1)
            packets = packets[..., None] * along.reshape(len(along), *(1,) * axis, len(s))
        return packets

    def bump(self, position: Tensor, shape: Sequence[int], width: float) -> Tensor:
        """See :meth:`Domain.bump`: Gaussians."""
        widths = torch.full((len(position),), positive("width", width), dtype=torch.float64)
        bumps = self.waves(position, shape, widths, torch.zeros_like(position)).real
        return bumps / (2 * torch.pi * width**2) ** (self.n_dim / 2)

    def basis(self, highest: int) -> FourierBasis:
        """See :meth:`Domain.basis`."""
        return FourierBasis((2 * math.floor(highest * self.length) + 1,) * self.n_dim)

    def synthesis(self, basis: SpectralBasis, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        """See :meth:`Domain.synthesis`: on a grid too coarse for the function, its values at the points, aliased."""
        steps = [math.ceil(modes / n) for modes, n in zip(basis.smallest_grid(), self.check_grid(shape), strict=True)]
        fine = basis.synthesis(coefficients, [n * step for n, step in zip(shape, steps, strict=True)])
        shared: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
        return fine[shared]


@dataclass(frozen=True)
class Sphere(Domain):
    """The unit sphere; integrals are means over its area.

    Parameters
    ----------
    grid : {"equiangular", "legendre-gauss", "lobatto"}
        Where fields are sampled, as in :class:`~neuralop_sae.layers.spherical.SphericalBasis`.

    Examples
    --------
    >>> poles = torch.tensor([[0.0, 1.0], [torch.pi, 4.0]])
    >>> round(Sphere().distance(*poles).item(), 4)
    3.1416
    """

    grid: str = "equiangular"
    n_dim = 2

    def __post_init__(self) -> None:
        self.basis(0)

    @property
    def cells(self) -> list[tuple[int, ...]]:
        """One: the whole sphere."""
        return [(0, 0)]

    def place(self, cell: tuple[int, ...], uniform: Tensor) -> Tensor:
        """See :meth:`Domain.place`."""
        return torch.stack([(1 - 2 * uniform[:, 0]).acos(), 2 * torch.pi * uniform[:, 1]], 1)

    def inside(self, position: Tensor) -> Tensor:
        """See :meth:`Domain.inside`."""
        return torch.ones(len(position), dtype=torch.bool)

    def points(self, shape: Sequence[int]) -> Tensor:
        """See :meth:`Domain.points`."""
        nlat, nlon = self.check_grid(shape)
        nodes = self.basis(0)
        return torch.stack(torch.meshgrid(nodes.colatitudes(nlat), nodes.longitudes(nlon), indexing="ij"), -1)

    def middle(self, shape: Sequence[int]) -> Tensor:
        """See :meth:`Domain.middle`: on the equator, half way round."""
        return torch.tensor([torch.pi / 2, torch.pi], dtype=torch.float64)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Domain.distance`, in radians. By the chord, whose rounding does not grow near 0."""
        chord = (_vectors(a) - _vectors(b)).norm(dim=-1)
        return 2 * (chord / 2).clamp_max(1).asin()

    def surround(self, values: Tensor) -> Tensor:
        """See :meth:`Domain.surround`: what lies across the pole. A pole itself is one point, whatever the longitude: around
        it is the largest value of its row and the next."""
        colatitudes = self.basis(0).colatitudes(values.shape[1])
        first, last = (
            rows.amax((1, 2), keepdim=True).expand(-1, 1, values.shape[2])
            if abs(math.sin(colatitude)) < 1e-6
            else rows[:, :1].roll(values.shape[2] // 2, 2)
            for rows, colatitude in ((values[:, :2], colatitudes[0]), (values[:, -2:].flip(1), colatitudes[-1]))
        )
        return _closed(torch.cat([first, values, last], 1), 2)

    def cosines(self, position: Tensor, shape: Sequence[int]) -> Tensor:
        """Cosines of the angles between positions ``(n, 2)`` and the points of a grid, ``(n, *shape)``, float64."""
        return torch.einsum("nd,abd->nab", _vectors(position.double()), _vectors(self.points(shape)))

    def bump(self, position: Tensor, shape: Sequence[int], width: float) -> Tensor:
        """See :meth:`Domain.bump`: von Mises-Fisher densities; width in radians."""
        square = positive("width", width) ** 2
        height = 2 / (square * -math.expm1(-2 / square))
        return height * ((self.cosines(position, shape) - 1) / square).exp()

    def basis(self, highest: int) -> SphericalBasis:
        """See :meth:`Domain.basis`."""
        return SphericalBasis((highest + 1, 2 * (highest + 1)), self.grid)


def _closed(values: Tensor, dim: int) -> Tensor:
    """A periodic axis with its last point before the first one and the first after the last."""
    size = values.shape[dim]
    return torch.cat([values.narrow(dim, size - 1, 1), values, values.narrow(dim, 0, 1)], dim)


def _vectors(position: Tensor) -> Tensor:
    """Unit vectors ``(..., 3)`` of positions ``(..., 2)``."""
    colatitude, longitude = position.unbind(-1)
    sine = colatitude.sin()
    return torch.stack([sine * longitude.cos(), sine * longitude.sin(), colatitude.cos()], -1)
