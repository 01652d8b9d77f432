r"""Kolmogorov flow: the Navier-Stokes equations on a periodic square, driven by a sinusoidal force.

The problem of `neuralop_sae.data.vorticity` with the force :math:`\sin(n y)` along x,

.. math:: \partial_t \omega + u \partial_x \omega + v \partial_y \omega
    = \frac{1}{Re} \Delta \omega - \mu \omega - n \cos(n y).

Everything is dimensionless; Re is the Reynolds number of [1]_.

References
----------
.. [1] Chandler and Kerswell, Invariant recurrent solutions embedded in a turbulent two-dimensional Kolmogorov flow,
   Journal of Fluid Mechanics 722 (2013).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from .arguments import at_least, distinct, positive
from .cache import cache_file
from .trajectories import Schedule, TrajectorySplit, generate, sample_seed
from .vorticity import VorticitySolver, kolmogorov_forcing

__all__ = ["kolmogorov_flow"]

CACHE_FORMAT = 1  # raise it whenever the same parameters give other numbers or the layout changes
#: Initial vorticity: white noise up to this wavenumber, with this root mean square.
INITIAL_WAVENUMBER, INITIAL_VORTICITY = 6, 3.0


@dataclass(frozen=True)
class _PlaneFlow:
    """Trajectories of the solver; spectra are (B, N, N // 2 + 1) on its own grid."""

    solver: VorticitySolver
    max_wavenumber: int
    seed: int
    name: str = "Kolmogorov flow"
    n_channels: int = 1

    def initial(self, trajectory: int) -> Tensor:
        m, n = INITIAL_WAVENUMBER, self.solver.resolution
        draw = np.random.default_rng(sample_seed(self.seed, trajectory)).standard_normal((2, 2 * m + 1, m + 1))
        noise = torch.complex(*torch.from_numpy(draw))
        k, l = torch.arange(-m, m + 1)[:, None], torch.arange(m + 1)  # noqa: E741
        spectrum = torch.zeros(n, n // 2 + 1, dtype=noise.dtype)
        spectrum[torch.arange(-m, m + 1), : m + 1] = noise * (k**2 + l**2 <= m**2)
        spectrum[0, 0] = 0
        field = torch.fft.irfft2(spectrum, s=(n, n), norm="forward")
        return torch.fft.rfft2(field * INITIAL_VORTICITY / field.square().mean().sqrt(), norm="forward")

    def advance(self, states: Tensor, n_steps: int) -> Tensor:
        return self.solver.advance(states, n_steps)

    def moments(self, states: Tensor) -> tuple[Tensor, Tensor]:
        # Parseval: column l stands for -l, too; there is no Nyquist column. The mean vorticity is 0.
        power = states.abs() ** 2
        square = (2 * power.sum((-2, -1)) - power[..., 0].sum(-1)).mean()
        return torch.zeros(1, dtype=square.dtype), square.sqrt()[None]

    def evaluate(self, states: Tensor, size: tuple[int, int]) -> Tensor:
        n, m = size[0], self.max_wavenumber
        rows = torch.arange(-m, m + 1)
        spectrum = states.new_zeros(len(states), n, n // 2 + 1)
        spectrum[:, rows, : m + 1] = states[:, rows, : m + 1]
        return torch.fft.irfft2(spectrum, s=size, norm="forward")[:, None]


def kolmogorov_flow(
    n_trajectories: int,
    resolutions: Sequence[int] = (64, 128),
    *,
    seed: int = 0,
    reynolds: float = 100.0,
    drag: float = 0.1,
    forcing_wavenumber: int = 4,
    n_pairs: int = 16,
    lead_time: float = 0.2,
    interval: float = 2.0,
    spin_up: float = 10.0,
    time_step: float = 0.01,
    max_wavenumber: int = 21,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[int, TrajectorySplit]:
    r"""Generate trajectories of Kolmogorov flow: the vorticity now, and one lead time later; the same on every grid.

    The flow starts from noise, and forgets it during the spin-up. It has wavenumbers up to `max_wavenumber` along each
    axis only, in the solver and on every grid: all show the same functions, and nested grids agree where they meet.

    Parameters
    ----------
    n_trajectories : int
        Number of trajectories. Number i depends on (seed, i) only, so a longer set begins with the shorter one. The
        constant of the normalisation comes from the first 8, computed also where fewer are asked for.
    resolutions : sequence of int, optional
        Points per side N of the grids wanted; x_i = 2 pi i/N, first axis x. More than twice `max_wavenumber`.
    seed : int, optional
        Seed, not negative.
    reynolds : float, optional
        Re. The wavenumbers kept resolve about 100 with 21; enstrophy piles up at the last ones beyond.
    drag : float, optional
        :math:`\mu`, at least 0. Keeps energy from gathering in two vortices of the size of the square.
    forcing_wavenumber : int, optional
        n, at most `max_wavenumber`.
    n_pairs : int, optional
        Pairs per trajectory.
    lead_time : float, optional
        From x to y. After 0.2 they differ by about a quarter (relative L2).
    interval : float, optional
        From one x to the next.
    spin_up : float, optional
        Before the first x.
    time_step : float, optional
        Of the solver; the other times must be whole multiples.
    max_wavenumber : int, optional
        At least 6, of which the initial noise is made. Work grows with its square, and with the shorter time steps.
    cache_dir : path-like, optional
        Folder for a safetensors file with the result, created if missing. The name holds every parameter;
        a damaged file is made anew with a warning.
    progress : bool, optional
        Show a progress bar.

    Returns
    -------
    dict of int to TrajectorySplit
        From resolution, ascending, to x and y of shape (n_trajectories * n_pairs, 1, N, N), float32, normalised.

    Raises
    ------
    ValueError
        If an argument is out of range, or a grid too coarse for `max_wavenumber`.
    RuntimeError
        If the flow blows up.

    Examples
    --------
    >>> splits = kolmogorov_flow(1, (16, 32), n_pairs=2, spin_up=0.0, max_wavenumber=7, progress=False)
    >>> splits[16].x.shape, bool((splits[16].x - splits[32].x[..., ::2, ::2]).abs().max() < 1e-5)
    (torch.Size([2, 1, 16, 16]), True)
    """
    n_trajectories, seed = at_least("n_trajectories", n_trajectories, 1), at_least("seed", seed, 0)
    max_wavenumber = at_least("max_wavenumber", max_wavenumber, INITIAL_WAVENUMBER)
    forcing_wavenumber = at_least("forcing_wavenumber", forcing_wavenumber, 1)
    if forcing_wavenumber > max_wavenumber:
        raise ValueError(f"forcing_wavenumber is {forcing_wavenumber}; it must be at most max_wavenumber={max_wavenumber}.")
    reynolds, drag = positive("reynolds", reynolds), positive("drag", drag, zero=True)
    schedule = Schedule.of_times(n_pairs, lead_time, interval, spin_up, time_step)
    grids = _checked_grids(resolutions, max_wavenumber)
    path = cache_file(
        cache_dir,
        f"kolmogorov_v{CACHE_FORMAT}_n{n_trajectories}_r{'-'.join(map(str, grids))}_k{max_wavenumber}"
        f"_re{reynolds!r}_drag{drag!r}_force{forcing_wavenumber}_pairs{schedule.n_pairs}"
        f"_steps{schedule.spin_up}-{schedule.interval}-{schedule.lead}_dt{float(time_step)!r}_seed{seed}",
    )
    resolution = scipy.fft.next_fast_len(3 * max_wavenumber + 1, real=True)
    forcing = kolmogorov_forcing(resolution, forcing_wavenumber)
    flow = _PlaneFlow(
        VorticitySolver(resolution, max_wavenumber, 1 / reynolds, drag, forcing, time_step), max_wavenumber, seed
    )
    return generate(flow, n_trajectories, schedule, {n: (n, n) for n in grids}, path=path, progress=progress)


def _checked_grids(resolutions: Sequence[int], max_wavenumber: int) -> list[int]:
    grids = distinct("resolutions", (at_least("each resolution", n, 2) for n in resolutions), "(64, 128)")
    if grids[0] <= 2 * max_wavenumber:
        raise ValueError(
            f"a grid of {grids[0]} points per side cannot show wavenumbers up to {max_wavenumber}: pass at least "
            f"{2 * max_wavenumber + 1}, or max_wavenumber={(grids[0] - 1) // 2} or less."
        )
    return grids
