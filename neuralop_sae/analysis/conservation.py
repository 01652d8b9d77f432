"""What a rollout should keep: integrals such as mass and energy, and the spectrum, as they drift from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..layers.basis import SpectralBasis
from ..metrics import by_shell
from .inference import check_draws, interval

Density = Callable[[Tensor], Tensor]


@torch.no_grad()
def conservation(
    rollouts: Mapping[str, Tensor],
    quantities: Mapping[str, Density],
    basis: SpectralBasis,
    *,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Drift of domain means in rollouts, :math:`Q(t) - Q(0)` with :math:`Q = \int_\Omega q`, the measure normalised to one.

    Parameters
    ----------
    rollouts : mapping of str to Tensor
        From name to states ``(B, n_steps + 1, channels, *grid)``, in physical units, as :func:`~.rollouts.rollout` makes them:
        clean, edited, and the truth where there is one.
    quantities : mapping of str to callable
        From name to density: states ``(n, channels, *grid)`` -> ``(n, *grid)``, such as ``lambda w: w[:, 0].square() / 2``.
    basis : SpectralBasis
        Gives the quadrature: on the sphere by area.
    n_bootstrap, confidence, seed : int, float, int, optional
        Of the interval, by bootstrap over trajectories.

    Returns
    -------
    pandas.DataFrame
        A row for each rollout, quantity and step: ``value`` (mean of Q over trajectories), ``drift`` (mean of Q(t) - Q(0))
        with its interval ``low`` to ``high`` (NaN for a single trajectory), and ``relative_drift``, the drift over the mean
        of :math:`\int_\Omega |q|` at the start, which is Q(0) where q is not negative (NaN where it is zero). A quantity need
        not be conserved in the true flow: compare with the truth.

    Raises
    ------
    ValueError
        If there is no rollout or no quantity, states have not these axes, or a density has not ``(n, *grid)``.
    """
    check_draws(confidence, n_bootstrap=n_bootstrap)
    if not rollouts or not quantities:
        raise ValueError(f"give a rollout and a quantity at least, by name; got {list(rollouts)} and {list(quantities)}")
    tables = []
    for rollout, states in rollouts.items():
        _check_states(rollout, states, basis)
        n = len(states)
        shares = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstrap) / n
        for quantity, density in quantities.items():
            values = _integrals(states, density, quantity, basis)
            drifts = values - values[:, :1]
            low, high = interval(shares @ drifts, confidence, n)
            scale = _integrals(states[:, :1], partial(_size, density), quantity, basis).mean() or np.nan
            columns = {"value": values.mean(0), "drift": drifts.mean(0), "low": low, "high": high}
            columns["relative_drift"] = columns["drift"] / scale
            tables.append(pd.DataFrame({"rollout": rollout, "quantity": quantity, "step": range(values.shape[1]), **columns}))
    return pd.concat(tables, ignore_index=True)


@torch.no_grad()
def spectrum_drift(
    rollouts: Mapping[str, Tensor], basis: SpectralBasis, *, reference: str, channels: Mapping[str, int] | None = None
) -> pd.DataFrame:
    r"""Spectra along rollouts, and how far they are from those of a reference at the same step.

    Parameters
    ----------
    rollouts : mapping of str to Tensor
        As in :func:`conservation`.
    basis : SpectralBasis
        Its kind gives the modes: all that the grid resolves.
    reference : str
        A key of `rollouts`: the truth, or the clean rollout.
    channels : mapping of str to int, optional
        From name to channel; by default all, by number.

    Returns
    -------
    pandas.DataFrame
        A row for each rollout, channel, step and whole wavenumber (degree on the sphere): ``energy``, the mean over
        trajectories of the part of the field's mean square in this shell, modes being counted to the nearest whole
        wavenumber; and ``log_ratio``, :math:`\log_{10}` of it over the reference's (NaN where that has none).

    Raises
    ------
    ValueError
        If states have not these axes, or `reference` is none of the rollouts.
    """
    if reference not in rollouts:
        raise ValueError(f"reference={reference!r} is none of the rollouts: {', '.join(map(repr, rollouts))}")
    tables = []
    for rollout, states in rollouts.items():
        _check_states(rollout, states, basis)
        named = channels or {str(channel): channel for channel in range(states.shape[2])}
        spectra = {name: shell_energy(states[:, :, channel].double(), basis).mean(0).cpu() for name, channel in named.items()}
        for name, spectrum in spectra.items():
            steps, shells = torch.meshgrid(*(torch.arange(n) for n in spectrum.shape), indexing="ij")
            columns = {"step": steps.flatten(), "wavenumber": shells.flatten(), "energy": spectrum.flatten()}
            tables.append(pd.DataFrame({"rollout": rollout, "channel": name, **columns}))
    table = pd.concat(tables, ignore_index=True)
    keys = ["channel", "step", "wavenumber"]
    standard = table[table.rollout == reference].set_index(keys).energy
    ratio = table.energy.to_numpy() / standard.replace(0, np.nan).reindex(pd.MultiIndex.from_frame(table[keys])).to_numpy()
    return table.assign(log_ratio=np.log10(ratio, where=ratio > 0, out=np.full_like(ratio, np.nan)))


def shell_energy(field: Tensor, basis: SpectralBasis) -> Tensor:
    """Mean square of fields ``(..., *grid)`` by shells of modes, rounded to whole wavenumbers: ``(..., n_shells)``; over the
    modes that the grid resolves they sum to the mean square."""
    grid = field.shape[-basis.n_dim :]
    band = basis.resolved_by(grid)
    coefficients = band.analysis(field)
    power = band.weights(grid, like=field) * coefficients.abs().square()
    return by_shell(power, band.wavenumbers().round().long().to(field.device))


def _size(density: Density, states: Tensor) -> Tensor:
    return density(states).abs()


def _check_states(name: str, states: Tensor, basis: SpectralBasis) -> None:
    if states.ndim != basis.n_dim + 3:
        raise ValueError(
            f"rollout {name!r} has shape {tuple(states.shape)}; states are (B, n_steps + 1, channels, *grid) with a grid of "
            f"{basis.n_dim} axes"
        )


def _integrals(states: Tensor, density: Density, quantity: str, basis: SpectralBasis) -> np.ndarray:
    """Domain means, ``(B, n_steps + 1)`` in float64."""
    flat = states.flatten(0, 1)
    values = density(flat)
    expected = (len(flat), *flat.shape[2:])
    if tuple(values.shape) != expected:
        raise ValueError(f"quantity {quantity!r} gave {tuple(values.shape)}; a density is (n, *grid) = {expected}")
    values = values.double()
    weighted = values * basis.quadrature(values.shape[1:], like=values)
    return weighted.flatten(1).sum(1).unflatten(0, states.shape[:2]).cpu().numpy()
