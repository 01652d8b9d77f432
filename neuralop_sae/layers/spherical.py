"""Spherical harmonics on the sphere, with torch-harmonics' transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch_harmonics import InverseRealSHT, RealSHT
from torch_harmonics.quadrature import clenshaw_curtiss_weights, legendre_gauss_weights, lobatto_weights

from .basis import Pairing, SpectralBasis, real_dtype, register_basis, transform_of_nothing

#: Name of a grid -> (nodes and weights in the cosine of the colatitude, number of degrees that n latitudes hold).
_GRIDS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], Callable[[int], int]]] = {
    "equiangular": (clenshaw_curtiss_weights, lambda nlat: (nlat + 1) // 2),
    "legendre-gauss": (legendre_gauss_weights, lambda nlat: nlat),
    "lobatto": (lobatto_weights, lambda nlat: nlat - 1),
}
_MEAN = (4 * torch.pi) ** 0.5


@register_basis("spherical")
class SphericalBasis(SpectralBasis):
    r"""Real fields on the sphere in spherical harmonics, in the layout of neuralop's SphericalConv.

    With the harmonics :math:`Y_{lm}` that are orthonormal over the sphere's area (torch-harmonics' ``norm="ortho"``, with the
    Condon-Shortley phase), the coefficients

    .. math:: f_{lm} = \frac{1}{\sqrt{4\pi}} \int f\,\overline{Y_{lm}}\,d\Omega, \qquad
              (S c)(s) = \sqrt{4\pi}\,\mathrm{Re}\sum_{l < L}\sum_{m=0}^{l} w_{lm}\,c_{lm}\,Y_{lm}(s)

    belong to the measure that gives the sphere area one: :math:`f_{00}` is the mean of f, and the mean of :math:`f^2` is
    :math:`\sum w_{lm} |f_{lm}|^2` with w = 1 at order m = 0, where coefficients of real fields are real, 2 for m > 0, which
    stand for -m too, and 0 for m > l, where there is no harmonic and coefficients are zero. Truncation is triangular, which
    alone is the same in every orientation of the sphere. The first axis counts degrees l, the second orders m.

    A field is ``(..., nlat, nlon)``: latitudes from north to south, longitudes from 0 eastward. Quadrature over n latitudes is
    exact for products of harmonics of degree below :math:`(n+1)/2` (equiangular: Clenshaw-Curtiss, both poles), n
    (legendre-gauss, no pole) or n - 1 (lobatto, both poles); grids that are too coarse for L are refused, since energies and
    round trips would be wrong on them.

    Parameters
    ----------
    n_modes : (int, int)
        ``(L, M)`` as in SphericalConv: degrees, and twice the number of orders. M must be at least 2 L.
    grid : {"equiangular", "legendre-gauss", "lobatto"}
        Where fields are sampled. neuralop's SFNO has equiangular grids.

    Raises
    ------
    ValueError
        For another grid (the quadrature of "equiangular-trapezoidal" is not exact: a round trip loses .3 of the field and
        more), or M < 2 L.

    Examples
    --------
    >>> basis = SphericalBasis((4, 8))
    >>> field = basis.synthesis(torch.ones(3, 4, 4, dtype=torch.cfloat).tril(), (9, 16))
    >>> torch.allclose(basis.analysis(field), torch.ones(3, 4, 4, dtype=torch.cfloat).tril(), atol=1e-5)
    True
    """

    n_dim = 2
    wavenumber_label = "degree l"

    def __init__(self, n_modes: Sequence[int], grid: str = "equiangular") -> None:
        if grid not in _GRIDS:
            reason = ": its quadrature is not exact" if grid == "equiangular-trapezoidal" else ""
            raise ValueError(f"unknown grid {grid!r}{reason}; known: {', '.join(_GRIDS)}")
        modes = tuple(int(n) for n in n_modes) if isinstance(n_modes, Sequence) else (n_modes,)
        if len(modes) != 2 or min(modes) < 1:
            raise ValueError(f"n_modes on the sphere is (degrees L, M with M >= 2 L), got {n_modes!r}")
        degrees, orders = modes
        if orders < 2 * degrees:
            raise ValueError(
                f"n_modes=({degrees}, {orders}) cuts orders below degrees, which torch-harmonics 0.9 does not do and no "
                f"rotation respects; use n_modes=({degrees}, {2 * degrees})"
            )
        self.n_modes, self.grid = modes, grid
        self.mode_shape = (degrees, degrees)

    def __repr__(self) -> str:
        return f"SphericalBasis(n_modes={self.n_modes}, grid={self.grid!r})"

    def check_grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """See :meth:`SpectralBasis.check_grid`; ValueError also if the grid is too coarse for the degrees."""
        nlat, nlon = super().check_grid(shape)
        held = _degrees(nlat, nlon, self.grid)
        if held < self.mode_shape[0]:
            degrees = self.mode_shape[0]
            needed = next(n for n in range(1, 2 * degrees + 2) if _GRIDS[self.grid][1](n) >= degrees)
            raise ValueError(
                f"a {self.grid} grid of {nlat} x {nlon} points holds {max(held, 0)} degrees, n_modes has {degrees}: use "
                f"n_modes=({max(held, 1)}, {2 * max(held, 1)}), or at least {needed} x {2 * degrees - 1} points"
            )
        return nlat, nlon

    def colatitudes(self, nlat: int) -> Tensor:
        """See :meth:`SpectralBasis.colatitudes`."""
        return torch.as_tensor(_GRIDS[self.grid][0](nlat, -1, 1)[0]).double().flip(0).clamp(-1, 1).acos()

    def longitudes(self, nlon: int) -> Tensor:
        """Angles from the first meridian eastward, ``(nlon,)`` in float64, in radians."""
        return torch.arange(nlon, dtype=torch.float64) * (2 * torch.pi / nlon)

    def analysis(self, field: Tensor) -> Tensor:
        """See :meth:`SpectralBasis.analysis`."""
        grid = self.check_grid(field.shape[-2:])
        if not field.numel():  # MKL refuses to transform nothing
            shape = (*field.shape[:-2], *self.mode_shape)
            return transform_of_nothing(field, shape, real_dtype(field).to_complex())
        transform: RealSHT = self.cached("analysis", grid, field, self._make_analysis)
        return transform(field) * (1 / _MEAN)

    def synthesis(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        """See :meth:`SpectralBasis.synthesis`."""
        grid = self.check_grid(shape)
        self.check_modes(coefficients)
        if not coefficients.numel():
            fields = (*coefficients.shape[:-2], *grid)
            return transform_of_nothing(coefficients, fields, real_dtype(coefficients))
        transform: InverseRealSHT = self.cached("synthesis", grid, coefficients, self._make_synthesis)
        return transform(coefficients * _MEAN)

    def _make_analysis(self, shape: Sequence[int], like: Tensor) -> RealSHT:
        degrees = self.mode_shape[0]
        return RealSHT(*shape, lmax=degrees, mmax=degrees, grid=self.grid, norm="ortho").to(like.device, real_dtype(like))

    def _make_synthesis(self, shape: Sequence[int], like: Tensor) -> InverseRealSHT:
        degrees = self.mode_shape[0]
        transform = InverseRealSHT(*shape, lmax=degrees, mmax=degrees, grid=self.grid, norm="ortho")
        return transform.to(like.device, real_dtype(like))

    def weights(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Tensor:
        """See :meth:`SpectralBasis.weights`; the same on every grid."""
        if shape is not None:
            self.check_grid(shape)
        return self.cached("weights", None, like, self._make_weights)

    def _make_weights(self, _: Sequence[int] | None, like: Tensor) -> Tensor:
        weights = torch.full(self.mode_shape, 2.0, dtype=real_dtype(like), device=like.device).tril()
        weights[:, 0] = 1.0
        return weights

    def pairing(self, shape: Sequence[int] | None = None, *, like: Tensor) -> Pairing:
        """See :meth:`SpectralBasis.pairing`: the identity, and the real part at order zero."""
        weights = self.weights(shape, like=like).flatten()
        own, mirrored = weights.clamp_max(1.0).clone(), torch.zeros_like(weights)
        own[weights == 1], mirrored[weights == 1] = 0.5, 0.5
        return Pairing(own, mirrored, torch.arange(len(own), device=own.device))

    def quadrature(self, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """See :meth:`SpectralBasis.quadrature`, ``(nlat, 1)``: shares of the sphere's area."""
        grid = super().check_grid(shape)
        return self.cached("quadrature", grid, like, self._make_quadrature)

    def _make_quadrature(self, shape: Sequence[int], like: Tensor) -> Tensor:
        nlat, nlon = shape
        weights = torch.as_tensor(_GRIDS[self.grid][0](nlat, -1, 1)[1]).double().flip(0) / (2 * nlon)
        return weights[:, None].to(like.device, real_dtype(like))

    def resample(self, field: Tensor, shape: Sequence[int]) -> Tensor:
        """See :meth:`SpectralBasis.resample`: keeps every degree that both grids hold. The same grid returns the field
        itself."""
        grid, old = super().check_grid(shape), super().check_grid(field.shape[-2:])
        if grid == old:
            return field
        degrees = min(_degrees(nlat, nlon, self.grid) for nlat, nlon in (old, grid))
        if degrees < 1:
            raise ValueError(f"a {self.grid} grid of {old} or {grid} points holds no degree")
        band = self.cached(f"band {degrees}", None, field, lambda *_: SphericalBasis((degrees, 2 * degrees), self.grid))
        return band.synthesis(band.analysis(field), grid)

    def smallest_grid(self) -> tuple[int, ...]:
        """See :meth:`SpectralBasis.smallest_grid`."""
        degrees = self.mode_shape[0]
        return next(n for n in range(2, 2 * degrees + 2) if _GRIDS[self.grid][1](n) >= degrees), 2 * degrees

    def resolved_by(self, shape: Sequence[int]) -> SphericalBasis:
        """See :meth:`SpectralBasis.resolved_by`: every degree that the grid holds."""
        nlat, nlon = self.check_grid(shape)
        degrees = _degrees(nlat, nlon, self.grid)
        return SphericalBasis((degrees, 2 * degrees), self.grid)

    def wavenumbers(self) -> Tensor:
        """The degree l of each coefficient."""
        return torch.arange(self.mode_shape[0], dtype=torch.float64)[:, None].expand(self.mode_shape)

    def _make_impulse(self, _: Sequence[int] | None, like: Tensor) -> Tensor:
        """In phase on the equator, half way round: the middle of a map of the sphere. A legendre-gauss grid of one degree more
        than is needed, and odd, has a point there."""
        degrees = self.mode_shape[0]
        nodes = SphericalBasis(self.n_modes, "legendre-gauss")
        grid = (degrees + 1 + degrees % 2, 2 * degrees)
        point = torch.zeros(grid, dtype=torch.float64, device=like.device)
        point[grid[0] // 2, grid[1] // 2] = 1.0
        coefficients = nodes.analysis(point)
        return (coefficients / nodes.energy(coefficients).sqrt()).to(real_dtype(like).to_complex())

    def shared_points(self, fine: Sequence[int], coarse: Sequence[int]) -> tuple[slice, ...] | None:
        """See :meth:`SpectralBasis.shared_points`: equiangular grids nest where nlat - 1 and nlon have whole ratios, others
        where their latitudes are the same."""
        (nlat, nlon), (few, fewer) = fine, coarse
        step = (nlat - 1) // (few - 1) if few > 1 and (nlat - 1) % (few - 1) == 0 else 0
        if nlon % fewer or not (step == 1 or (step and self.grid == "equiangular")):
            return None
        return slice(None, None, step), slice(None, None, nlon // fewer)


def _degrees(nlat: int, nlon: int, grid: str) -> int:
    """How many degrees a grid holds, all their orders included."""
    return min(_GRIDS[grid][1](nlat), (nlon + 1) // 2)
