"""Derivatives and distances on the domains that fields live on: a periodic box, a box with walls, a sphere.

Vectors have their components along an axis before the grid. On a box these are along its axes, in order; on a sphere eastward
and northward. Lengths are those that a domain is made with: a box of lengths in metres takes derivatives per metre.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree
from torch import Tensor
from torch_harmonics import InverseRealVectorSHT

from ..layers.basis import SpectralBasis, real_dtype
from ..layers.fourier import FourierBasis
from ..layers.spherical import SphericalBasis


class Calculus(ABC):
    """What quantities of physics need to know of a domain.

    Attributes
    ----------
    n_dim : int
        Axes of a grid, and components of a vector.
    """

    n_dim: int

    @abstractmethod
    def gradient(self, field: Tensor) -> Tensor:
        """``(..., *grid)`` -> ``(..., n_dim, *grid)``, in units of the field per length."""

    def jacobian(self, vector: Tensor) -> Tensor:
        """Derivatives of a vector ``(..., n_dim, *grid)``: ``(..., component, direction, *grid)``; covariant on a sphere."""
        return self.gradient(vector)

    def laplacian(self, field: Tensor) -> Tensor:
        """``(..., *grid)`` -> ``(..., *grid)``, in units of the field per length squared: the divergence of the gradient."""
        slopes = self.jacobian(self.gradient(field))
        return slopes.diagonal(dim1=-self.n_dim - 2, dim2=-self.n_dim - 1).sum(-1)

    def velocity(self, vorticity: Tensor) -> Tensor:
        r"""The velocity ``(..., 2, *grid)`` without divergence that has a vorticity ``(..., *grid)``:
        :math:`(-\partial_2\psi, \partial_1\psi)` with :math:`\Delta\psi = \omega`. Mean vorticity is dropped, and no mean
        velocity is added."""
        raise ValueError(f"velocity does not follow from vorticity on a {type(self).__name__}: pass the fields u and v")

    @abstractmethod
    def distance(self, marked: Tensor) -> Tensor:
        """Distance from each point to the nearest marked one, boolean ``(*grid)`` -> float64 ``(*grid)``."""

    @abstractmethod
    def spacing(self, grid: Sequence[int]) -> float:
        """The shortest distance between neighbours along an axis; on a sphere between latitudes, in the mean."""

    def wavelengths(self, wavenumbers: Tensor) -> Tensor:
        """Of wavenumbers: one over them, these being in cycles per unit of length."""
        return 1 / wavenumbers

    @abstractmethod
    def places(self, grid: Sequence[int]) -> Tensor:
        """Vectors ``(m, *grid)``, float64, whose mean over a density tells its centre; see :meth:`centre`."""

    @abstractmethod
    def centre(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Centre ``(..., n_dim)`` and spread ``(...)``, a root mean square distance from it, of a density over which the means
        of :meth:`places` are ``(..., m)``."""

    def _check(self, field: Tensor) -> tuple[int, ...]:
        grid = tuple(field.shape[-self.n_dim :])
        if field.ndim < self.n_dim or min(grid) < 3:
            raise ValueError(
                f"a field on a {self.n_dim}-d domain ends in a grid of at least 3 points per axis, got {tuple(field.shape)}"
            )
        return grid


class PeriodicBox(Calculus):
    r"""A box whose axes close: spectral derivatives.

    Of an even grid's Nyquist frequency only the cosine is seen, whose derivative is zero at every point.

    Parameters
    ----------
    lengths : sequence of float
        Of the sides. N points along an axis are at ``length * i / N``.

    Examples
    --------
    >>> box = PeriodicBox([2.0])
    >>> x = torch.arange(8) / 4
    >>> torch.allclose(box.gradient(torch.sin(torch.pi * x))[0], torch.pi * torch.cos(torch.pi * x), atol=1e-5)
    True
    """

    def __init__(self, lengths: Sequence[float]) -> None:
        self.lengths = _lengths(lengths)
        self.n_dim = len(self.lengths)

    def _angular(self, grid: Sequence[int], like: Tensor) -> list[Tensor]:
        """Angular wavenumbers of rfftn along each axis, each of a shape that broadcasts."""
        found = []
        for axis, (n, length) in enumerate(zip(grid, self.lengths, strict=True)):
            frequencies = torch.fft.rfftfreq if axis == self.n_dim - 1 else torch.fft.fftfreq
            k = frequencies(n, length / (2 * torch.pi * n), dtype=real_dtype(like), device=like.device)
            found.append(k.reshape(-1, *(1,) * (self.n_dim - 1 - axis)))
        return found

    def _slopes(self, spectrum: Tensor, grid: tuple[int, ...]) -> Tensor:
        parts = []
        for k, n in zip(self._angular(grid, spectrum), grid, strict=True):
            if n % 2 == 0:
                k.view(-1)[n // 2] = 0
            parts.append(torch.fft.irfftn(1j * k * spectrum, s=grid, dim=self._axes))
        return torch.stack(parts, -self.n_dim - 1)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-self.n_dim, 0))

    def gradient(self, field: Tensor) -> Tensor:
        """See :meth:`Calculus.gradient`."""
        grid = self._check(field)
        return self._slopes(torch.fft.rfftn(field, dim=self._axes), grid)

    def velocity(self, vorticity: Tensor) -> Tensor:
        """See :meth:`Calculus.velocity`."""
        grid = self._check(vorticity)
        if self.n_dim != 2:
            raise ValueError(f"velocity follows from vorticity in 2 dimensions, this box has {self.n_dim}")
        k, l = self._angular(grid, vorticity)  # noqa: E741
        square = k.square() + l.square()
        stream = -torch.fft.rfftn(vorticity, dim=self._axes) * torch.where(square > 0, 1 / square, 0.0)
        slope = self._slopes(stream, grid)
        return torch.stack([-slope.select(-3, 1), slope.select(-3, 0)], -3)

    def distance(self, marked: Tensor) -> Tensor:
        """See :meth:`Calculus.distance`: to the nearest periodic image."""
        grid = self._check(marked)
        width = [(n // 2, n // 2) for n in grid]
        far = _distance(np.pad(marked.cpu().numpy(), width, mode="wrap"), self._steps(grid))
        return torch.from_numpy(far[tuple(slice(n // 2, n // 2 + n) for n in grid)].copy())

    def _steps(self, grid: Sequence[int]) -> list[float]:
        return [length / n for length, n in zip(self.lengths, grid, strict=True)]

    def spacing(self, grid: Sequence[int]) -> float:
        """See :meth:`Calculus.spacing`."""
        return min(self._steps(grid))

    def places(self, grid: Sequence[int]) -> Tensor:
        """Cosine and sine of the angle along each axis, ``(2 n_dim, *grid)``."""
        angles = torch.meshgrid(*[2 * torch.pi * torch.arange(n, dtype=torch.float64) / n for n in grid], indexing="ij")
        return torch.stack([turn for angle in angles for turn in (angle.cos(), angle.sin())])

    def centre(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        r"""The circular mean along each axis, and the root of the sum over the axes of the circular variances
        :math:`-2\ln R\,(L/2\pi)^2`, with the length R of the mean unit vector: those of wrapped normal distributions, infinite
        for a density that has no middle."""
        cosine, sine = mean.unflatten(-1, (self.n_dim, 2)).unbind(-1)
        lengths = torch.tensor(self.lengths, dtype=mean.dtype)
        resultant = (cosine.square() + sine.square()).sqrt().clamp_max(1.0)
        angle = torch.atan2(sine, cosine).remainder(2 * torch.pi)
        variance = -2 * resultant.log() * (lengths / (2 * torch.pi)).square()
        return angle * lengths / (2 * torch.pi), variance.sum(-1).sqrt()


class WalledBox(Calculus):
    """A box that does not close: differences of second order, one-sided at the walls.

    Parameters
    ----------
    lengths : sequence of float
        Of the sides.
    endpoint : bool
        Whether the last of N points lies on the far wall, at ``length``. False, as in neuralop's embedding and the package's
        Darcy flow: N points at ``length * i / N``.
    """

    def __init__(self, lengths: Sequence[float], *, endpoint: bool = False) -> None:
        self.lengths, self.endpoint = _lengths(lengths), endpoint
        self.n_dim = len(self.lengths)

    def steps(self, grid: Sequence[int]) -> list[float]:
        """Distances of neighbours along each axis."""
        return [length / (n - self.endpoint) for length, n in zip(self.lengths, grid, strict=True)]

    def gradient(self, field: Tensor) -> Tensor:
        """See :meth:`Calculus.gradient`."""
        axes = list(range(-self.n_dim, 0))
        parts = torch.gradient(field, spacing=self.steps(self._check(field)), dim=axes, edge_order=2)
        return torch.stack(list(parts), -self.n_dim - 1)

    def distance(self, marked: Tensor) -> Tensor:
        """See :meth:`Calculus.distance`."""
        return torch.from_numpy(_distance(marked.cpu().numpy(), self.steps(self._check(marked))))

    def spacing(self, grid: Sequence[int]) -> float:
        """See :meth:`Calculus.spacing`."""
        return min(self.steps(grid))

    def places(self, grid: Sequence[int]) -> Tensor:
        """Coordinates and their squares, ``(2 n_dim, *grid)``."""
        axes = [torch.arange(n, dtype=torch.float64) * step for n, step in zip(grid, self.steps(grid), strict=True)]
        return torch.stack([power for x in torch.meshgrid(*axes, indexing="ij") for power in (x, x.square())])

    def centre(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The mean, and the root of the sum of the variances along the axes."""
        first, second = mean.unflatten(-1, (self.n_dim, 2)).unbind(-1)
        return first, (second - first.square()).clamp_min(0.0).sum(-1).sqrt()


class Globe(Calculus):
    """A sphere: spectral derivatives by torch-harmonics, of every degree that the grid holds.

    Parameters
    ----------
    grid : {"equiangular", "legendre-gauss", "lobatto"}
        Where fields are sampled, as in :class:`~neuralop_sae.SphericalBasis`: ``(nlat, nlon)``, rows from north to south.
    radius : float
        Derivatives are per unit of it. At 1 they are per radian.

    Notes
    -----
    A vector's derivatives are those of its three Cartesian components, projected on east and north: nothing is singular at the
    poles. These components hold one degree more than the vector's potentials.
    """

    n_dim = 2

    def __init__(self, grid: str = "equiangular", radius: float = 1.0) -> None:
        self._basis = SphericalBasis((1, 2), grid)
        self.grid, (self.radius,) = grid, _lengths([radius])

    def _band(self, grid: Sequence[int], like: Tensor) -> tuple[SphericalBasis, InverseRealVectorSHT]:
        """The basis of all degrees of a grid, and the transform from potentials to vectors."""
        band = self._basis.cached("band", grid, like, lambda shape, _: self._basis.resolved_by(shape))
        degrees = band.mode_shape[0]

        def make(shape: Sequence[int], like: Tensor) -> InverseRealVectorSHT:
            transform = InverseRealVectorSHT(*shape, lmax=degrees, mmax=degrees, grid=self.grid, norm="ortho")
            return transform.to(like.device, real_dtype(like))

        return band, band.cached("vectors", grid, like, make)

    def _slopes(self, coefficients: Tensor, vectors: InverseRealVectorSHT) -> Tensor:
        potentials = torch.stack([coefficients, torch.zeros_like(coefficients)], -3)
        southward, eastward = (vectors(potentials) * ((4 * torch.pi) ** 0.5 / self.radius)).unbind(-3)
        return torch.stack([eastward, -southward], -3)

    def gradient(self, field: Tensor) -> Tensor:
        """See :meth:`Calculus.gradient`."""
        band, vectors = self._band(self._check(field), field)
        return self._slopes(band.analysis(field), vectors)

    def jacobian(self, vector: Tensor) -> Tensor:
        """See :meth:`Calculus.jacobian`."""
        frame = self._frame(self._check(vector)).to(vector)
        slopes = self.gradient(torch.einsum("iaxy,...ixy->...axy", frame, vector))
        return torch.einsum("iaxy,...ajxy->...ijxy", frame, slopes)

    def velocity(self, vorticity: Tensor) -> Tensor:
        """See :meth:`Calculus.velocity`."""
        band, vectors = self._band(self._check(vorticity), vorticity)
        degree = band.wavenumbers().to(vorticity)
        stream = -band.analysis(vorticity) * (self.radius**2 / (degree * (degree + 1)).clamp_min(1.0)) * (degree > 0)
        slope = self._slopes(stream, vectors)
        return torch.stack([-slope.select(-3, 1), slope.select(-3, 0)], -3)

    def _angles(self, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        colatitude = self._basis.colatitudes(grid[0])
        return torch.meshgrid(colatitude, self._basis.longitudes(grid[1]), indexing="ij")  # type: ignore[return-value]

    def _frame(self, grid: Sequence[int]) -> Tensor:
        """Unit vectors to the east and the north, ``(2, 3, *grid)``."""
        colatitude, longitude = self._angles(grid)
        east = torch.stack([-longitude.sin(), longitude.cos(), torch.zeros_like(longitude)])
        tilt = colatitude.cos()
        north = torch.stack([-tilt * longitude.cos(), -tilt * longitude.sin(), colatitude.sin()])
        return torch.stack([east, north])

    def distance(self, marked: Tensor) -> Tensor:
        """See :meth:`Calculus.distance`: along great circles."""
        points = self.places(self._check(marked)).flatten(1).T.numpy()
        chord = KDTree(points[marked.cpu().numpy().ravel()]).query(points)[0]
        return torch.from_numpy(2 * self.radius * np.arcsin(np.minimum(chord / 2, 1.0))).reshape(marked.shape)

    def spacing(self, grid: Sequence[int]) -> float:
        """See :meth:`Calculus.spacing`."""
        return float(np.pi * self.radius / grid[0])

    def wavelengths(self, wavenumbers: Tensor) -> Tensor:
        r"""Of degrees l: :math:`2\pi a/\sqrt{l(l+1)}`."""
        return 2 * torch.pi * self.radius / (wavenumbers * (wavenumbers + 1)).sqrt()

    def places(self, grid: Sequence[int]) -> Tensor:
        """Unit vectors, ``(3, *grid)``."""
        colatitude, longitude = self._angles(grid)
        sine = colatitude.sin()
        return torch.stack([sine * longitude.cos(), sine * longitude.sin(), colatitude.cos()])

    def centre(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        r"""Latitude and longitude of the mean unit vector, in degrees, and the root mean square chord from there,
        :math:`a\sqrt{2 - 2R}` with the radius a and the length R of the mean."""
        resultant = mean.norm(dim=-1)
        latitude = torch.rad2deg((mean[..., 2] / resultant).clamp(-1, 1).asin())
        longitude = torch.rad2deg(torch.atan2(mean[..., 1], mean[..., 0])).remainder(360.0)
        return torch.stack([latitude, longitude], -1), self.radius * (2 - 2 * resultant).clamp_min(0.0).sqrt()


def calculus_of(basis: SpectralBasis, lengths: Sequence[float] | None = None) -> Calculus:
    """The domain of a basis: a periodic box of these lengths, by default of unit ones, or the unit sphere.

    Raises
    ------
    ValueError
        For any other basis: its author knows its derivatives.
    """
    if isinstance(basis, SphericalBasis):
        return Globe(basis.grid)
    if isinstance(basis, FourierBasis):
        return PeriodicBox(lengths or (1.0,) * basis.n_dim)
    raise ValueError(f"derivatives are not known on the domain of a {type(basis).__name__}: pass calculus=, a Calculus")


def _lengths(lengths: Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(length) for length in lengths)
    if not found or not all(0 < length < float("inf") for length in found):
        raise ValueError(f"lengths are positive numbers, one for each axis, got {lengths!r}")
    return found


def _distance(marked: np.ndarray, steps: Sequence[float]) -> np.ndarray:
    return np.asarray(distance_transform_edt(~marked, sampling=steps), dtype=np.float64)
