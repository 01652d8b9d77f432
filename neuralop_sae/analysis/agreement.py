"""How far rollouts have the pattern of the truth, step by step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..layers.basis import SpectralBasis
from ..metrics import pearson
from .inference import Bootstrap, Series, check_draws, interval


@torch.no_grad()
def pattern_correlation(
    rollouts: Mapping[str, Tensor],
    truth: Tensor,
    basis: SpectralBasis,
    *,
    trajectory: ArrayLike | None = None,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Pearson correlation of states with the true ones over channels and domain, step by step; the mean over samples.

    Of departures from a climate it is the anomaly correlation of weather forecasts; of the change that an edit makes, it tells
    whether an operator carries the edit on as the flow would.

    Parameters
    ----------
    rollouts : mapping of str to Tensor
        From name to states ``(B, n_steps, channels, *grid)``. Channels count as they are: give one, or normalised ones.
    truth : Tensor
        Of the same shape.
    basis : SpectralBasis
        Gives the quadrature: on the sphere by area.
    trajectory : array_like, optional
        ``(B,)``: which trajectory each sample is of. By default samples are independent.
    n_bootstrap, confidence, seed : int, float, int, optional
        Of the interval, by bootstrap over trajectories.

    Returns
    -------
    pandas.DataFrame
        A row for each rollout and step: ``correlation`` and its interval ``low`` to ``high``, NaN for a single trajectory. All
        are NaN where a state is constant.

    Raises
    ------
    ValueError
        If shapes do not agree.

    Examples
    --------
    >>> from neuralop_sae import FourierBasis
    >>> truth = torch.randn(4, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> table = pattern_correlation({"exact": 2 * truth, "reversed": -truth}, truth, FourierBasis((5, 5)))
    >>> table.groupby("rollout").correlation.mean().round(6).to_dict()
    {'exact': 1.0, 'reversed': -1.0}
    """
    check_draws(confidence, n_bootstrap=n_bootstrap)
    for name, states in rollouts.items():
        if states.shape != truth.shape or truth.ndim != basis.n_dim + 3:
            raise ValueError(
                f"rollout {name!r} has shape {tuple(states.shape)}, the truth {tuple(truth.shape)}: both are (B, n_steps, "
                f"channels, *grid) with a grid of {basis.n_dim} axes"
            )
    area = basis.quadrature(truth.shape[3:], like=truth)
    blocks = Series.of(len(truth), trajectory, None).trajectory
    bootstrap = Bootstrap(blocks, 1, n_bootstrap, np.random.default_rng(seed))
    n_samples = bootstrap.of_samples(np.ones((len(truth), 1)))
    tables = []
    for name, states in rollouts.items():
        pairs = zip(states.flatten(0, 1), truth.flatten(0, 1), strict=True)
        found = np.reshape([pearson(a, b, area) for a, b in pairs], truth.shape[:2])
        means = np.hstack([bootstrap.of_samples(step[:, None]) for step in found.T]) / n_samples
        low, high = interval(means[1:], confidence, bootstrap.n_blocks)
        columns = {"step": range(truth.shape[1]), "correlation": means[0], "low": low, "high": high}
        tables.append(pd.DataFrame({"rollout": name, **columns}))
    return pd.concat(tables, ignore_index=True)
