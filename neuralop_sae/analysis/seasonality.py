"""Whether concepts keep a calendar: how much of the variance of a code's norm the phase of a period explains."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from ..attach.capture import eval_mode
from ..data.activations import opened
from ..data.indexed import IndexedActivations
from ..data.labels import Labels
from ..models.base import SAE
from .inference import (
    MANY,
    Array,
    Bootstrap,
    Index,
    Series,
    check_draws,
    false_discovery,
    interval,
    labels_of,
    pooled_p_values,
)


@torch.no_grad()
def seasonality(
    sae: SAE,
    acts: Tensor | IndexedActivations | ArrayLike,
    time: ArrayLike | None,
    period: float | str | timedelta | np.timedelta64,
    *,
    trajectory: ArrayLike | None = None,
    n_harmonics: int = 1,
    n_bootstrap: int = 200,
    n_permutations: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
) -> pd.DataFrame:
    r"""Share of the variance of each concept's norm that a period explains: R^2 of the least-squares fit

    .. math:: \|z_c(t)\| \approx a_0 + \sum_{h=1}^{H} a_h \cos(2\pi h t/T) + b_h \sin(2\pi h t/T).

    Blocks are trajectories, or single periods of them where trajectories are fewer than eight. Intervals are of a bootstrap
    over blocks, moved by the bootstrap's own bias: a share is never negative, and noise makes it larger. p-values are of the
    null hypothesis that blocks do not share a phase: each block's calendar is turned at random. Norms that remember a good
    part of a period carry their phase into the next one; then take trajectories.

    Parameters
    ----------
    sae : SAE
        The model; its training flags are restored.
    acts : Tensor, array_like, or activations of a store or stream
        Activations ``(N, channels, *grid)``.
    time : array_like or None
        ``(N,)``, as numbers in any unit or as dates (``datetime64``). None for what the activations of a store or stream know.
    period : float, or str, timedelta or timedelta64
        T: a number in the unit of `time`; for dates a length of time, ``"365.2425D"`` or ``"24h"``.
    trajectory : array_like, optional
        ``(N,)``. By default what the activations of a store or stream know; else all samples are of one.
    n_harmonics : int
        H.
    n_bootstrap, n_permutations, confidence, seed, batch_size, progress
        As in :func:`~neuralop_sae.probe`.

    Returns
    -------
    pandas.DataFrame
        A row for each concept: ``concept``, ``share`` with ``low`` and ``high``, ``chance`` (its mean under the null
        hypothesis), ``p_value``, ``q_value`` (Benjamini and Hochberg's over concepts), ``peak`` (the time in [0, T) at which
        the first harmonic is largest; of dates since 1970-01-01, and so after midnight UTC or after the first of January, with
        ``peak_unit``) and ``frequency``. NaN for a concept whose norm never changes.

    Raises
    ------
    TypeError
        If dates meet a period that is a number, or numbers one that is a length of time.
    ValueError
        If the samples are of one block, no time is known, or an argument is out of range.

    Examples
    --------
    >>> import neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=1, n_concepts=4, n_modes=(5, 5), concept_rule=ns.TopK(2))
    >>> time = torch.arange(24)
    >>> season = (2 + torch.cos(2 * torch.pi * time / 12)).view(-1, 1, 1, 1)
    >>> table = seasonality(sae, season * torch.randn(24, 1, 8, 8), time, period=12)
    >>> len(table)
    4
    """
    check_draws(confidence, n_bootstrap=n_bootstrap, n_permutations=n_permutations)
    acts = opened(acts)
    trajectory, time = labels_of(acts, trajectory, time)
    if time is None:
        raise ValueError("seasonality needs the time of each sample: pass time=, or activations of a store that knows it")
    moments, unit = Labels.of(time, None, len(acts)).elapsed(since_first=False)
    period = _in_unit(period, unit)
    if not (period > 0 and n_harmonics >= 1):
        raise ValueError(f"period is above 0 and n_harmonics at least 1, got {period} and {n_harmonics}")
    series = Series.of(len(acts), trajectory, moments)
    cycle = np.floor(series.time / period)
    many = series.trajectory.max() + 1 >= MANY
    keys = series.trajectory[None] if many else np.stack([series.trajectory, cycle])
    block = np.unique(keys, axis=1, return_inverse=True)[1].astype(np.int64).ravel()
    if block.max() == 0:
        raise ValueError(f"all samples are of one block: give several trajectories, or more time than one period={period}")
    norms = _norms(sae, acts, batch_size, progress)
    rng = np.random.default_rng(seed)
    bootstrap = Bootstrap(block, 1, n_bootstrap, rng)
    angle = 2 * np.pi * series.time / period
    share, first = _fit(norms, angle, n_harmonics, bootstrap)
    turned = [angle + rng.uniform(0, 2 * np.pi, block.max() + 1)[block] for _ in range(n_permutations)]
    once = Bootstrap(block, 1, 0, rng)
    null = np.concatenate([_fit(norms, angles, n_harmonics, once)[0] for angles in turned])
    drawn = np.nan_to_num(share[1:])
    low, high = (edge - (drawn.mean(0) - share[0]) for edge in interval(drawn, confidence, bootstrap.n_blocks))
    p_values = pooled_p_values(share[0], null, two_sided=False)
    columns = {
        "concept": np.arange(norms.shape[1]),
        "share": share[0],
        "low": low.clip(0, 1),
        "high": high.clip(0, 1),
        "chance": null.mean(0),
        "p_value": p_values,
        "q_value": false_discovery(p_values),
        "peak": np.where(np.isfinite(share[0]), np.arctan2(first[1], first[0]) % (2 * np.pi) * period / (2 * np.pi), np.nan),
        "frequency": np.diff(norms.tocsc().indptr) / len(acts),
    }
    table = pd.DataFrame(columns)
    if unit is not None:
        table.insert(table.columns.get_loc("peak") + 1, "peak_unit", unit)
    return table


def _in_unit(period: float | str | timedelta | np.timedelta64, unit: str | None) -> float:
    """A period as a number, in a unit of dates or as it is."""
    if unit is None:
        if isinstance(period, str | timedelta | np.timedelta64):
            raise TypeError(f"period={period!r} is a length of time, but time holds numbers: pass a number in their unit")
        return float(period)
    if not isinstance(period, str | timedelta | np.timedelta64):
        raise TypeError(f"time holds dates: pass period as a length of time, '365.2425D' or numpy.timedelta64; got {period!r}")
    return float(pd.Timedelta(period) / pd.Timedelta(1, unit))


def _norms(sae: SAE, acts: Tensor | IndexedActivations, batch_size: int, progress: bool) -> scipy.sparse.csr_array:
    """Norm of each concept's code in each sample, ``(N, n_concepts)``."""
    parts: list[tuple[Index, Index, Array]] = []
    with eval_mode(sae):
        for start in tqdm(range(0, len(acts), batch_size), desc="seasonality", disable=not progress):
            codes = sae.encode(acts[start : start + batch_size].to(sae.mean.device)).detach().cpu()
            on = codes.expressed()
            parts.append(((codes.sample[on] + start).numpy(), codes.concept[on].numpy(), codes.norms()[on].double().numpy()))
    sample, concept, norm = (np.concatenate(part) for part in zip(*parts, strict=True))
    return scipy.sparse.csr_array((norm, (sample, concept)), shape=(len(acts), sae.n_concepts))


def _fit(norms: scipy.sparse.csr_array, angle: Array, n_harmonics: int, bootstrap: Bootstrap) -> tuple[Array, Array]:
    """R^2 of the whole and of bootstrap samples ``(1 + n_draws, p)``, and the first harmonic's cosine and sine of the whole
    ``(2, p)``."""
    turns = np.arange(1, n_harmonics + 1) * angle[:, None]
    design = np.column_stack([np.ones_like(angle), np.stack([np.cos(turns), np.sin(turns)], 2).reshape(len(angle), -1)])
    entries = norms.tocoo()
    sample, concept = (index.astype(np.int64) for index in entries.coords)

    def summed(values: Array) -> Array:
        return bootstrap.of_codes(sample, np.zeros_like(sample), concept, values, norms.shape[1])

    gram = np.stack([np.hstack([bootstrap.of_samples((x * y)[:, None]) for y in design.T]) for x in design.T], 1)
    moments = np.stack([summed(entries.data * x[sample]) for x in design.T], 1)
    fitted = np.linalg.pinv(gram, hermitian=True) @ moments
    mean = moments[:, 0] ** 2 / gram[:, :1, 0]
    variance = summed(entries.data**2) - mean
    with np.errstate(divide="ignore", invalid="ignore"):
        share = ((fitted * moments).sum(1) - mean) / np.where(variance > 1e-12 * mean, variance, np.nan)
    return share, fitted[0, 1:3]
