r"""Two-dimensional incompressible flow on a periodic square, pseudo-spectral.

On the torus :math:`[0, 2\pi)^2`, with vorticity :math:`\omega = \partial_x v - \partial_y u` of the velocity (u, v),

.. math:: \partial_t \omega + u \partial_x \omega + v \partial_y \omega = \nu \Delta \omega - \mu \omega + F

with viscosity :math:`\nu`, drag :math:`\mu` and F the curl of a force. Everything is dimensionless.

Grids follow neuralop's positional embedding: N points per side at :math:`x_i = 2 \pi i/N`, first axis x, second axis y.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arguments import at_least, positive

__all__ = ["VorticitySolver", "kolmogorov_forcing", "solve_vorticity"]


def kolmogorov_forcing(resolution: int, wavenumber: int = 4, amplitude: float = 1.0) -> Tensor:
    r"""The curl :math:`-A n \cos(n y)` of the force :math:`A \sin(n y)` along x.

    Parameters
    ----------
    resolution : int
        Points per side N, more than 2 n.
    wavenumber : int
        n.
    amplitude : float
        A.

    Returns
    -------
    torch.Tensor
        Shape (N, N), float64.

    Raises
    ------
    ValueError
        If the grid is too coarse.
    """
    wavenumber = at_least("wavenumber", wavenumber, 1)
    resolution = at_least("resolution", resolution, 2 * wavenumber + 1)
    y = 2 * torch.pi * torch.arange(resolution, dtype=torch.float64) / resolution
    return (-amplitude * wavenumber * torch.cos(wavenumber * y)).repeat(resolution, 1)


def solve_vorticity(
    vorticity: Tensor,
    duration: float,
    *,
    viscosity: float,
    drag: float = 0.0,
    forcing: Tensor | None = None,
    time_step: float = 0.01,
) -> Tensor:
    r"""The vorticity some time later: :math:`\partial_t \omega + (u, v)\cdot\nabla\omega = \nu\Delta\omega - \mu\omega + F`.

    Pseudo-spectral with the wavenumbers up to (N - 1)/3 along each axis, so that products are free of aliasing: without
    viscosity, drag and forcing energy and enstrophy are kept, but for the error of the time step (fourth order).

    Parameters
    ----------
    vorticity : torch.Tensor
        Shape (..., N, N), real; dimensionless, on :math:`[0, 2\pi)^2`. Higher wavenumbers and the mean are dropped.
    duration : float
        At least 0.
    viscosity, drag : float
        :math:`\nu` and :math:`\mu`, at least 0.
    forcing : torch.Tensor, optional
        F, shape (N, N), real, constant in time; see `kolmogorov_forcing`. Default: none.
    time_step : float
        At most so much; shortened so that a whole number makes the duration. Speed times (N - 1)/3 times it has to stay
        below about 2.

    Returns
    -------
    torch.Tensor
        Shape of `vorticity`, float64.

    Raises
    ------
    ValueError
        If a shape or a number is not allowed.
    RuntimeError
        If the flow blows up.

    Examples
    --------
    A Taylor-Green vortex only decays:

    >>> x = 2 * torch.pi * torch.arange(16, dtype=torch.float64) / 16
    >>> vortex = torch.cos(x)[:, None] * torch.cos(x)
    >>> later = solve_vorticity(vortex, 1.0, viscosity=0.1)
    >>> torch.allclose(later, math.exp(-0.2) * vortex)
    True
    """
    n = vorticity.shape[-1] if vorticity.ndim else 0
    if vorticity.ndim < 2 or vorticity.shape[-2] != n or n < 4 or not vorticity.is_floating_point():
        raise ValueError(f"vorticity is {vorticity.dtype} {tuple(vorticity.shape)}; pass real (..., N, N), N at least 4.")
    if forcing is not None and forcing.shape != (n, n):
        raise ValueError(f"forcing has shape {tuple(forcing.shape)}; pass ({n}, {n}), the grid of the vorticity.")
    duration, time_step = positive("duration", duration, zero=True), positive("time_step", time_step)
    viscosity, drag = positive("viscosity", viscosity, zero=True), positive("drag", drag, zero=True)
    n_steps = math.ceil(duration / time_step * (1 - 1e-12))
    force = torch.zeros(n, n, dtype=torch.float64) if forcing is None else forcing.double()
    solver = VorticitySolver(n, (n - 1) // 3, viscosity, drag, force, duration / max(n_steps, 1))
    spectrum = torch.fft.rfft2(vorticity.double(), norm="forward") * solver.kept
    result = torch.fft.irfft2(solver.advance(spectrum, n_steps), s=(n, n), norm="forward")
    if not torch.isfinite(result).all():
        raise RuntimeError(
            f"the flow is not finite after {duration:g}: pass finite fields, a time_step shorter than {time_step:g}, or "
            "more viscosity."
        )
    return result


class VorticitySolver:
    r"""Fourier coefficients of the vorticity in time: ETDRK4, the linear part exact.

    Coefficients are those of rfft2 with norm="forward", (..., N, N // 2 + 1), complex128, with wavenumbers up to
    `max_wavenumber` along each axis only. Products are free of aliasing if N exceeds three times that.

    Parameters
    ----------
    resolution, max_wavenumber : int
        N, and the highest wavenumber kept.
    viscosity, drag : float
        At least 0.
    forcing : torch.Tensor
        Curl of the force, shape (N, N), float64.
    time_step : float
        Above 0.
    """

    def __init__(
        self, resolution: int, max_wavenumber: int, viscosity: float, drag: float, forcing: Tensor, time_step: float
    ) -> None:
        self.resolution = resolution
        k, l = _wavenumbers(resolution)  # noqa: E741
        kept = (k.abs() <= max_wavenumber) & (l <= max_wavenumber) & ((k != 0) | (l != 0))
        self.kept = kept.double()
        stream = -self.kept / (k**2 + l**2).clamp(min=1)
        self.to_u, self.to_v = -1j * l * stream, 1j * k * stream
        # -(u w_x + v w_y) = (d_yy - d_xx) uv + d_xy (u^2 - v^2): four transforms instead of five.
        self.of_uv, self.of_difference = (k**2 - l**2) * self.kept, k * l * self.kept
        self.forcing = torch.fft.rfft2(forcing, norm="forward") * self.kept
        z = -time_step * (viscosity * (k**2 + l**2) + drag)
        self.decay, self.half_decay = z.exp() * self.kept, (z / 2).exp() * self.kept
        phi1, phi2, phi3 = _phi(z)
        self.half = time_step / 2 * _phi(z / 2)[0]
        self.first = time_step * (phi1 - 3 * phi2 + 4 * phi3)
        self.middle = time_step * (2 * phi2 - 4 * phi3)
        self.last = time_step * (4 * phi3 - phi2)

    def rate(self, w: Tensor) -> Tensor:
        """All of the time derivative but the linear part."""
        size = (self.resolution, self.resolution)
        u = torch.fft.irfft2(w * self.to_u, s=size, norm="forward")
        v = torch.fft.irfft2(w * self.to_v, s=size, norm="forward")
        product, difference = (torch.fft.rfft2(f, norm="forward") for f in (u * v, v * v - u * u))
        return product * self.of_uv + difference * self.of_difference + self.forcing

    def advance(self, w: Tensor, n_steps: int) -> Tensor:
        """The coefficients `n_steps` time steps later (Cox and Matthews 2002, as Kassam and Trefethen write it)."""
        for _ in range(n_steps):
            now = self.rate(w)
            a = self.half_decay * w + self.half * now
            rate_a = self.rate(a)
            rate_b = self.rate(self.half_decay * w + self.half * rate_a)
            rate_c = self.rate(self.half_decay * a + self.half * (2 * rate_b - now))
            w = self.decay * w + self.first * now + self.middle * (rate_a + rate_b) + self.last * rate_c
        return w


def _phi(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""(e^z - 1)/z, (e^z - 1 - z)/z^2, (e^z - 1 - z - z^2/2)/z^3, as means over a circle around real z: the differences
    cancel near z = 0 (Kassam and Trefethen, SIAM Journal on Scientific Computing 26, 2005)."""
    angles = torch.pi * (torch.arange(32, dtype=torch.float64) + 0.5) / 32  # of half the circle: the other is conjugate
    ring = z[..., None] + torch.polar(torch.ones_like(angles), angles)
    first = (ring.exp() - 1) / ring
    second = (first - 1) / ring
    third = (second - 0.5) / ring
    return first.mean(-1).real, second.mean(-1).real, third.mean(-1).real


def _wavenumbers(resolution: int) -> tuple[Tensor, Tensor]:
    k = torch.fft.fftfreq(resolution, 1 / resolution, dtype=torch.float64)
    return k[:, None], torch.arange(resolution // 2 + 1, dtype=torch.float64)
