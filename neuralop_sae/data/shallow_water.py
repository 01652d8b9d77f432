r"""Shallow-water flow on the rotating Earth, from torch-harmonics' solver.

A layer of water of mean depth 10 km on a sphere of the Earth's radius :math:`R = 6.371 \cdot 10^6` m and angular velocity
:math:`\Omega = 7.292 \cdot 10^{-5}` 1/s; :math:`\varphi = g h` is its geopotential (m^2/s^2), u its velocity (m/s),
:math:`\zeta` and :math:`\delta` vorticity and divergence of u (1/s), :math:`f = 2 \Omega \sin(latitude)`:

.. math::
    \partial_t \varphi &= -\nabla\cdot(\varphi u) \\
    \partial_t \zeta &= -\nabla\cdot((\zeta + f) u) - D \zeta \\
    \partial_t \delta &= \operatorname{curl}((\zeta + f) u) - \Delta(\varphi + |u|^2 / 2) - D \delta

with the hyperdiffusion :math:`D = (\Delta / \Delta_{max})^4 / (2 h)` (two hours), :math:`\Delta_{max}` the Laplacian of the
highest degree. States are spherical harmonics of degree and order below lmax; products are free of aliasing.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_harmonics import InverseRealSHT
from torch_harmonics.examples import ShallowWaterSolver

from ..layers.spherical import SphericalBasis
from .arguments import at_least, distinct, positive
from .cache import cache_file
from .trajectories import Schedule, TrajectorySplit, generate, sample_seed

__all__ = ["SphereSolver", "balanced", "shallow_water"]

CACHE_FORMAT = 1  # raise it whenever the same parameters give other numbers or the layout changes
#: Root mean square speed in m/s of the random part of an initial state.
WIND_SPEEDS = {"random": 20.0, "galewsky": 2.0}


class SphereSolver(ShallowWaterSolver):
    """torch-harmonics' solver for batches, in double precision, with a time step of fourth order.

    Upstream's ``timestep`` takes one state, treats hyperdiffusion to first order and starts every call with a step of
    Euler's. Its equations, transforms and initial states are used as they are.

    Parameters
    ----------
    lmax : int
        Degrees and orders are 0 to lmax - 1.
    time_step : float
        Seconds.

    Notes
    -----
    States are spectra (3, ..., lmax, lmax) of geopotential, vorticity and divergence, complex128, orthonormal harmonics
    without Condon-Shortley phase. On a grid, rows run from the north pole to the south, columns from longitude 0 eastwards.
    """

    def __init__(self, lmax: int, time_step: float) -> None:
        # Gauss points enough for the product of two fields projected on a third; a Fourier series likewise.
        nlat = (3 * lmax + 1) // 2
        super().__init__(nlat, 2 * nlat, time_step, lmax=lmax, mmax=lmax, grid="legendre-gauss")
        self.double()

    def vrtdivspec(self, ugrid: Tensor) -> Tensor:
        """Vorticity and divergence (2, ..., lmax, lmax) of velocities (2, ..., nlat, nlon)."""
        spectrum: Tensor = super().vrtdivspec(ugrid.movedim(0, -3))
        return spectrum.movedim(-3, 0)

    def getuv(self, vrtdivspec: Tensor) -> Tensor:
        """Velocities (2, ..., nlat, nlon), eastwards and northwards, from vorticity and divergence (2, ..., lmax, lmax)."""
        velocity: Tensor = super().getuv(vrtdivspec.movedim(0, -3))
        return velocity.movedim(-3, 0)

    def advance(self, state: Tensor, n_steps: int) -> Tensor:
        """The state `n_steps` time steps later: Runge-Kutta of fourth order, hyperdiffusion as an integrating factor."""
        h = self.dt
        half = torch.stack([torch.ones_like(self.hyperdiff), *[self.hyperdiff.sqrt()] * 2])
        half = half.reshape(3, *[1] * (state.ndim - 3), *half.shape[1:])
        for _ in range(n_steps):
            k1 = self.dudtspec(state)
            k2 = self.dudtspec(half * (state + h / 2 * k1))
            k3 = self.dudtspec(half * state + h / 2 * k2)
            k4 = self.dudtspec(half * (half * state + h * k3))
            state = half * (half * (state + h / 6 * k1) + h / 3 * (k2 + k3)) + h / 6 * k4
        return state

    def area_mean(self, ugrid: Tensor) -> Tensor:
        """Mean over the sphere of fields (..., nlat, nlon) on the solver's own grid."""
        return (ugrid * self.quad_weights).mean(-1).sum(-1) / 2


def balanced(solver: SphereSolver, vorticity: Tensor) -> Tensor:
    r"""The state without divergence, now and at first, that has this vorticity.

    Its geopotential has mean g times 10 km and solves the nonlinear balance equation
    :math:`\Delta(\varphi + |u|^2/2) = \operatorname{curl}((\zeta + f) u)`. Without balance gravity waves hide everything
    else: from the solver's own random state, they change geopotential and divergence by 100 % (relative L2) within an hour.

    Parameters
    ----------
    solver : SphereSolver
        The equations.
    vorticity : torch.Tensor
        Spectrum (..., lmax, lmax), complex128. Its mean over the sphere is set to 0, which Stokes' theorem asks for.

    Returns
    -------
    torch.Tensor
        State (3, ..., lmax, lmax).

    Examples
    --------
    Solid-body rotation is balanced by a geopotential of degree 2, besides its mean:

    >>> solver = SphereSolver(4, 900.0)
    >>> vorticity = torch.zeros(4, 4, dtype=torch.complex128)
    >>> vorticity[1, 0] = 1e-5
    >>> balanced(solver, vorticity)[0].abs().gt(1e-6).nonzero().tolist()
    [[0, 0], [2, 0]]
    """
    vorticity = vorticity.clone()
    vorticity[..., 0, 0] = 0
    flow = torch.stack([vorticity, torch.zeros_like(vorticity)])
    velocity = solver.getuv(flow)
    curl = solver.vrtdivspec(velocity * (solver.spec2grid(vorticity) + solver.coriolis))[0]
    geopotential = solver.invlap * curl - solver.grid2spec((velocity**2).sum(0) / 2)
    geopotential[..., 0, 0] = math.sqrt(4 * math.pi) * solver.havg * solver.gravity
    return torch.stack([geopotential, *flow])


@dataclass(frozen=True)
class _SphereFlow:
    """Trajectories of the solver; spectra are (B, 3, lmax, lmax)."""

    solver: SphereSolver
    kind: str
    wind_speed: float
    seed: int
    grid: str
    name: str = "shallow water"
    n_channels: int = 3

    def initial(self, trajectory: int) -> Tensor:
        solver = self.solver
        # The solver draws from torch's global generator. (torch.manual_seed would seed the accelerators, too.)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample_seed(self.seed, trajectory))
            noise = solver.random_initial_condition(mach=1.0)[1]
        noise[:, 0] = noise[:, 0].real.to(noise.dtype)  # a real field; the transforms ignore the rest, but drag it along
        velocity = solver.getuv(torch.stack([noise, torch.zeros_like(noise)]))
        vorticity = noise * self.wind_speed / solver.area_mean((velocity**2).sum(0)).sqrt()
        if self.kind == "galewsky":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.meshgrid")
                vorticity = vorticity + solver.galewsky_initial_condition()[1]
        return balanced(solver, vorticity)

    def advance(self, states: Tensor, n_steps: int) -> Tensor:
        return self.solver.advance(states.movedim(1, 0), n_steps).movedim(0, 1)

    def moments(self, states: Tensor) -> tuple[Tensor, Tensor]:
        # Parseval: orders above 0 stand for two.
        mean = states[..., 0, 0].real.mean(0) / math.sqrt(4 * math.pi)
        power = states.abs() ** 2
        square = (2 * power.sum((-2, -1)) - power[..., 0].sum(-1)).mean(0) / (4 * math.pi)
        return mean, (square - mean**2).sqrt()

    def evaluate(self, states: Tensor, size: tuple[int, int]) -> Tensor:
        lmax = self.solver.lmax
        synthesis = InverseRealSHT(*size, lmax=lmax, mmax=lmax, grid=self.grid, csphase=False).double()
        fields: Tensor = synthesis(states)
        return fields


def shallow_water(
    n_trajectories: int,
    resolutions: Sequence[tuple[int, int]] = ((33, 64), (65, 128)),
    *,
    seed: int = 0,
    initial: str = "random",
    n_pairs: int = 16,
    lead_time: float = 1.0,
    interval: float = 6.0,
    spin_up: float = 24.0,
    time_step: float = 0.25,
    wind_speed: float | None = None,
    lmax: int = 17,
    grid: str = "equiangular",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[tuple[int, int], TrajectorySplit]:
    r"""Generate shallow-water trajectories: the state now, and one lead time later; the same on every grid.

    Channels are geopotential (m^2/s^2), vorticity and divergence (1/s), each normalised by constants (`TrajectorySplit`),
    because they differ by eleven orders of magnitude. Times are hours. Fields have no degree from lmax on, so every grid
    shows the same functions, and those of 33 x 64 equiangular points are every second of 65 x 128, poles included.

    Parameters
    ----------
    n_trajectories : int
        Number of trajectories. Number i depends on (seed, i) only, so a longer set begins with the shorter one. The
        constants come from the first 8, computed also where fewer are asked for.
    resolutions : sequence of (int, int), optional
        Grids wanted, latitudes by longitudes: rows from the north pole to the south, columns from longitude 0 eastwards.
    seed : int, optional
        Seed, not negative.
    initial : {"random", "galewsky"}, optional
        Vorticity of the initial state: the solver's white noise, or the unstable jet of [1]_ with such noise instead of
        their bump. Both are balanced (`balanced`), so that there is weather, not only gravity waves. The jet breaks up in
        about 72 hours if lmax is at least 33 (65 latitudes); with 17 hyperdiffusion is so strong that it stays. For it
        take, say, resolutions=((65, 128),), lmax=33, spin_up=72.0, lead_time=3.0.
    n_pairs : int, optional
        Pairs per trajectory.
    lead_time : float, optional
        From x to y. After 1 hour they differ by about a quarter (relative L2), divergence by a half.
    interval : float, optional
        From one x to the next.
    spin_up : float, optional
        Before the first x, for the noise to become eddies.
    time_step : float, optional
        Of the solver; the other times must be whole multiples. The fastest waves ask for at most 10 / lmax.
    wind_speed : float, optional
        Root mean square of the random wind at time 0, m/s. Default: 20 ("random") or 2 ("galewsky", whose jet has 80).
    lmax : int, optional
        Degrees 0 to lmax - 1. Grids need 2 lmax - 1 longitudes, and so many latitudes that quadrature is exact.
    grid : {"equiangular", "legendre-gauss", "lobatto"}, optional
        Kind of grid; neuralop's SFNO has equiangular ones, with both poles.
    cache_dir : path-like, optional
        Folder for a safetensors file with the result, created if missing. The name holds every parameter;
        a damaged file is made anew with a warning.
    progress : bool, optional
        Show a progress bar.

    Returns
    -------
    dict of (int, int) to TrajectorySplit
        From grid, ascending, to x and y of shape (n_trajectories * n_pairs, 3, nlat, nlon), float32, normalised.

    Raises
    ------
    ValueError
        If an argument is out of range, or a grid too coarse for lmax.
    RuntimeError
        If the flow blows up.

    References
    ----------
    .. [1] Galewsky, Scott and Polvani, An initial-value problem for testing numerical models of the global
       shallow-water equations, Tellus A 56 (2004).
    .. [2] Bonev et al., Spherical Fourier neural operators: learning stable dynamics on the sphere, arXiv 2306.03838.

    Examples
    --------
    >>> splits = shallow_water(1, ((9, 16), (17, 32)), n_pairs=2, spin_up=0.0, interval=1.0, lmax=5, progress=False)
    >>> x = {size: split.x for size, split in splits.items()}
    >>> x[9, 16].shape, bool((x[9, 16] - x[17, 32][..., ::2, ::2]).abs().max() < 1e-5)
    (torch.Size([2, 3, 9, 16]), True)
    """
    n_trajectories, seed = at_least("n_trajectories", n_trajectories, 1), at_least("seed", seed, 0)
    if initial not in WIND_SPEEDS:
        raise ValueError(f"initial is {initial!r}; it must be one of {', '.join(map(repr, WIND_SPEEDS))}.")
    wind_speed = positive("wind_speed", WIND_SPEEDS[initial] if wind_speed is None else wind_speed)
    schedule = Schedule.of_times(n_pairs, lead_time, interval, spin_up, time_step)
    sizes = _checked_grids(resolutions, grid, at_least("lmax", lmax, 3))
    path = cache_file(
        cache_dir,
        f"shallow-water_v{CACHE_FORMAT}_n{n_trajectories}_r{'-'.join(f'{a}x{b}' for a, b in sizes)}_{grid}_lmax{lmax}"
        f"_{initial}{wind_speed!r}_pairs{schedule.n_pairs}_steps{schedule.spin_up}-{schedule.interval}-{schedule.lead}"
        f"_dt{float(time_step)!r}_seed{seed}",
    )
    flow = _SphereFlow(SphereSolver(lmax, 3600 * time_step), initial, wind_speed, seed, grid)
    return generate(flow, n_trajectories, schedule, {size: size for size in sizes}, path=path, progress=progress)


def _checked_grids(resolutions: Sequence[tuple[int, int]], grid: str, lmax: int) -> list[tuple[int, int]]:
    pairs = ((at_least("nlat", nlat, 2), at_least("nlon", nlon, 2)) for nlat, nlon in resolutions)
    sizes = distinct("resolutions", pairs, "((33, 64), (65, 128))")
    sphere = SphericalBasis((1, 2), grid)
    for nlat, nlon in sizes:
        held = sphere.resolved_by((nlat, nlon)).mode_shape[0]
        if held < lmax:
            enough = SphericalBasis((lmax, 2 * lmax), grid).smallest_grid()[0]
            raise ValueError(
                f"the {grid} grid of {nlat} x {nlon} points holds degrees below {held} exactly, but lmax is {lmax}: pass "
                f"lmax={held} or less, or at least {enough} latitudes by {2 * lmax - 1} longitudes."
            )
    return sizes
