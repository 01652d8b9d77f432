"""Edits that move codes over the domain, or put one where there was none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layers.fourier import FourierBasis
from ..layers.spherical import SphericalBasis
from .rewrite import Concepts, Rewrite, indices, indices_or_all

if TYPE_CHECKING:
    from ..codes import ConceptCodes
    from ..layers.basis import SpectralBasis


def translate(concepts: Concepts, shift: Sequence[float] | Tensor) -> Rewrite:
    r"""An edit that moves codes over a periodic box, ``z(s) -> z(s - shift)``; what leaves on one side comes in on the other.

    Every frequency of the code grid is multiplied by :math:`e^{-2\pi i k\cdot shift}`. That is exact for whole steps of the
    code grid, and for any shift on the frequencies below the grid's Nyquist frequency; of that one, on an even grid, the part
    that the grid cannot show is lost. Between grid points a rectified code may so become negative.

    Parameters
    ----------
    concepts : int, iterable of int or None
        The concepts; None for all.
    shift : sequence of float or Tensor
        How far along each axis of the grid, in the order of the axes, as fractions of the domain.

    Returns
    -------
    Rewrite
        The edit. It raises ValueError on codes that are not on a periodic box of as many axes. Gradients reach `shift`.

    Raises
    ------
    ValueError
        If a concept is not an integer or `shift` is not a list of numbers.

    Examples
    --------
    >>> translate(7, (0.25, 0.0))
    translate(7, shift=(0.25, 0))
    """
    which, fractions = indices_or_all(concepts), _numbers("shift", shift)

    def change(codes: ConceptCodes) -> Tensor:
        if not isinstance(codes.basis, FourierBasis) or codes.basis.n_dim != len(fractions):
            raise ValueError(
                f"translate by {tuple(fractions.tolist())} is for periodic boxes of {len(fractions)} axes; these codes have "
                f"{codes.basis!r}: give one fraction per axis of a box, and use rotate on the sphere"
            )
        return _shifted(codes.values, fractions)

    return Rewrite(which, change, "translate", f"shift={_shown(fractions)}")


def rotate(concepts: Concepts, angle: float, axis: Sequence[float] = (0.0, 0.0, 1.0)) -> Rewrite:
    r"""An edit that rotates codes over the sphere, :math:`z(s) \to z(R^{-1} s)`.

    About the poles it is a shift in longitude, exact as in `translate`. About any other axis each degree l of the code is
    multiplied by its Wigner matrix :math:`D^l = \exp(-i\,angle\; n\cdot J)`: exact to round-off for the degrees that the code
    grid holds; what a code has beyond them is lost. A rectified code has such a part: 22 % of its L2 norm for a concept of
    shallow water on 33 x 64 points. A finer ``code_grid`` holds more degrees.

    Parameters
    ----------
    concepts : int, iterable of int or None
        The concepts; None for all.
    angle : float
        In degrees, counter-clockwise as seen from the tip of the axis: about the north pole, eastward.
    axis : sequence of float, optional
        The axis (x, y, z), of any length but zero: x points to longitude 0 on the equator, z to the north pole.

    Returns
    -------
    Rewrite
        The edit. It raises ValueError on codes that are not on the sphere.

    Raises
    ------
    ValueError
        If a concept is not an integer, or `axis` is no direction.

    Examples
    --------
    >>> rotate(7, 30)
    rotate(7, 30, axis=(0, 0, 1))
    """
    which, vector = indices_or_all(concepts), _numbers("axis", axis)
    if len(vector) != 3 or not vector.any():
        raise ValueError(f"axis is a direction (x, y, z), such as (0, 0, 1) for the poles; got {tuple(axis)}")
    unit = vector / vector.norm()

    def change(codes: ConceptCodes) -> Tensor:
        if not isinstance(codes.basis, SphericalBasis):
            raise ValueError(f"rotate is for codes on the sphere; these have {codes.basis!r}: use translate on a box")
        if not unit[:2].any():
            return _shifted(codes.values, unit[2:] * angle / 360)
        return _turned(codes.values, codes.basis.resolved_by(codes.grid), math.radians(angle) * unit)

    return Rewrite(which, change, "rotate", f"{angle:g}, axis={_shown(vector)}")


def inject(concepts: Concepts, at: Sequence[float] | Tensor, amplitude: float = 1.0, width: float | None = None) -> Rewrite:
    r"""An edit that adds a bump at a place to codes, also where a concept is off.

    Without `width` it is `amplitude` times the unit impulse of the basis (all its modes in phase at the place, L2 norm one),
    so that an equivariant decoder writes `amplitude` times the concept's atom there, in normalised units: in those of the
    activation ``sae.scale`` times that. With one it is positive, smooth, of height `amplitude`, and for small widths a
    Gaussian of that standard deviation: on a box :math:`\prod_i \exp((\cos 2\pi(s_i - at_i) - 1) / (2\pi\,width)^2)`, on the
    sphere :math:`\exp((\cos\gamma - 1) / width^2)` at the angle :math:`\gamma` from the place.

    Parameters
    ----------
    concepts : int or iterable of int
        The concepts.
    at : sequence of float or Tensor
        The place: on a box one fraction of the domain per axis of the grid; on the sphere (latitude, longitude) in degrees,
        longitude counted eastward from the first column of the grid.
    amplitude : float, optional
        In units of the codes.
    width : float, optional
        Fraction of the domain, or degrees on the sphere.

    Returns
    -------
    Rewrite
        The edit. It raises ValueError on codes of a basis that is neither a periodic box nor the sphere, or of another number
        of axes than `at`. With a width, gradients reach `at`.

    Raises
    ------
    ValueError
        If a concept is not an integer, `at` is not a list of numbers or `width` is not positive.

    Examples
    --------
    >>> inject(7, at=(0.3, 0.7), amplitude=2.0, width=0.05)
    inject(7, at=(0.3, 0.7), amplitude=2, width=0.05)
    """
    which, place = indices(concepts), _numbers("at", at)
    if width is not None and not width > 0:
        raise ValueError(f"width must be positive, or None for an impulse; got {width}")

    def change(codes: ConceptCodes) -> Tensor:
        bump = _impulse if width is None else _bump
        sizes = () if width is None else (width,)
        return codes.values + amplitude * bump(codes.basis, codes.values, place, *sizes)

    size = "" if width is None else f", width={width:g}"
    return Rewrite(which, change, "inject", f"at={_shown(place)}, amplitude={amplitude:g}{size}", fills=True)


def _numbers(name: str, values: Sequence[float] | Tensor) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64)
    if numbers.ndim != 1 or not len(numbers) or not numbers.isfinite().all():
        raise ValueError(f"{name} is a list of finite numbers; got {values!r}")
    return numbers


def _shown(numbers: Tensor) -> str:
    return f"({', '.join(f'{x:g}' for x in numbers.tolist())})"


def _shifted(field: Tensor, shift: Tensor) -> Tensor:
    """Fields ``(..., *grid)`` moved along their last ``len(shift)`` axes by fractions of a period."""
    if not len(field):
        return field
    n_dim = len(shift)
    dims = tuple(range(-n_dim, 0))
    spectrum = torch.fft.rfftn(field, dim=dims)
    for dim, fraction in zip(dims, shift.to(field.device), strict=True):
        size, frequencies = field.shape[dim], torch.fft.rfftfreq if dim == -1 else torch.fft.fftfreq
        k = frequencies(size, 1 / size, dtype=torch.float64, device=field.device)
        phase = torch.polar(torch.ones_like(k), -2 * torch.pi * k * fraction)
        spectrum = spectrum * phase.to(spectrum.dtype).view(-1, *(1,) * (-1 - dim))
    return torch.fft.irfftn(spectrum, s=field.shape[-n_dim:], dim=dims)


def _turned(field: Tensor, basis: SphericalBasis, rotation: Tensor) -> Tensor:
    """Fields ``(..., nlat, nlon)`` rotated by a vector, its length the angle, in the degrees of the basis."""
    positive = basis.analysis(field)
    orders = torch.arange(1, positive.shape[-1], device=field.device)
    negative = (positive[..., 1:].conj() * (-1.0) ** orders).flip(-1)
    matrices = _wigner(positive.shape[-2], *rotation.tolist()).to(positive)
    turned = torch.einsum("lmk,...lk->...lm", matrices, torch.cat([negative, positive], -1))
    return basis.synthesis(turned[..., len(orders) :], field.shape[-2:])


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _wigner(n_degrees: int, x: float, y: float, z: float) -> Tensor:
    """Matrices that rotate coefficients of degrees 0 to L - 1, orders -(L - 1) to L - 1, ``(L, 2 L - 1, 2 L - 1)``, by the
    exponential of the generators of rotations."""
    degree = torch.arange(n_degrees, dtype=torch.float64)[:, None]
    order = torch.arange(1 - n_degrees, n_degrees, dtype=torch.float64)
    ladder = ((degree - order) * (degree + order + 1)).clamp_min(0).sqrt()  # from order m to m + 1
    raising = torch.diag_embed(ladder[:, :-1], offset=-1).to(torch.complex128)
    lowering = raising.mT
    generator = x * (raising + lowering) / 2 + y * (raising - lowering) / 2j + z * torch.diag(order)
    return torch.linalg.matrix_exp(-1j * generator)


def _impulse(basis: SpectralBasis, like: Tensor, at: Tensor) -> Tensor:
    """The unit impulse at a place, on the grid of `like`."""
    grid = like.shape[1:]
    impulse = basis.synthesis(basis.impulse(like=like), grid)
    _check_place(basis, at)
    if isinstance(basis, FourierBasis):
        return _shifted(impulse, at)
    assert isinstance(basis, SphericalBasis)
    latitude, longitude = at.tolist()  # the impulse is on the equator, half way round
    upright = _turned(impulse, basis, torch.tensor([0.0, math.radians(latitude), 0.0]))
    return _shifted(upright, torch.tensor([(longitude - 180) / 360]))


def _bump(basis: SpectralBasis, like: Tensor, at: Tensor, width: float) -> Tensor:
    """A smooth bump of height one at a place, on the grid of `like`."""
    grid, at = like.shape[1:], at.to(like.device)
    _check_place(basis, at)
    if isinstance(basis, SphericalBasis):
        south = basis.colatitudes(grid[0]).to(like.device)[:, None]
        east = basis.longitudes(grid[1]).to(like.device)
        colatitude, longitude = torch.pi / 2 - at[0].deg2rad(), at[1].deg2rad()
        cosine = south.cos() * colatitude.cos() + south.sin() * colatitude.sin() * (east - longitude).cos()
        return ((cosine - 1) / math.radians(width) ** 2).exp().to(like)
    exponent = torch.zeros((), dtype=torch.float64, device=like.device)
    for size, centre in zip(grid, at, strict=True):
        points = torch.arange(size, dtype=torch.float64, device=like.device) / size
        exponent = exponent[..., None] + (2 * torch.pi * (points - centre)).cos() - 1
    return (exponent / (2 * torch.pi * width) ** 2).exp().to(like)


def _check_place(basis: SpectralBasis, at: Tensor) -> None:
    if not isinstance(basis, FourierBasis | SphericalBasis):
        raise ValueError(f"inject knows places on periodic boxes and on the sphere, not in {basis!r}: use add with a map")
    if len(at) != basis.n_dim:
        raise ValueError(f"at={tuple(at.tolist())} has {len(at)} coordinates; a place in {basis!r} has {basis.n_dim}")
