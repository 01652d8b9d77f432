r"""Uncertainty of what is read off fields: blocks are resampled, series exchanged, thousands of tests share one level.

Points of a field depend on each other, and so do moments of a trajectory. What is independent, or nearly so, is a block: a
trajectory, a sample, a run of samples, a tile of a field. Everything here is made of sums over blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln
from torch import Tensor

from ..data.indexed import IndexedActivations

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: From so many series on they are exchanged whole; fewer have too few orders for a small p-value.
MANY = 8


@dataclass(frozen=True)
class Series:
    """Which samples follow each other.

    Parameters
    ----------
    trajectory : ndarray
        ``(N,)``, int64: 0 to n_trajectories - 1.
    time : ndarray
        ``(N,)``, float64: different within a trajectory.
    """

    trajectory: Index
    time: Array

    @classmethod
    def of(cls, n_samples: int, trajectory: ArrayLike | None, time: ArrayLike | None) -> Series:
        """From what a caller gives: samples are independent by default, and in order of time where no time is given; with a
        time and no trajectory they are all of one.

        Raises
        ------
        ValueError
            If a length is wrong, or two samples are of one trajectory at one time.
        """
        for name, given in (("trajectory", trajectory), ("time", time)):
            if given is not None and np.shape(given) != (n_samples,):
                raise ValueError(f"{name} has one entry for each of the {n_samples} samples, got shape {np.shape(given)}")
        if trajectory is None:
            labels = np.arange(n_samples) if time is None else np.zeros(n_samples, dtype=np.int64)
        else:
            labels = np.unique(np.asarray(trajectory), return_inverse=True)[1]
        if time is None:
            moments = pd.Series(labels).groupby(labels).cumcount().to_numpy(dtype=np.float64)
        else:
            moments = np.asarray(time, dtype=np.float64)
        series = cls(labels.astype(np.int64), moments)
        if not np.isfinite(moments).all() or series._key(0.0).has_duplicates:
            raise ValueError("time is finite and differs between the samples of a trajectory: pass trajectory= for several")
        return series

    def _key(self, lag: float) -> pd.MultiIndex:
        return pd.MultiIndex.from_arrays([self.trajectory, np.round(self.time + lag, 9)])

    def partner(self, lag: float) -> Index:
        """Which sample comes `lag` after each in its trajectory, ``(N,)``; -1 where there is none."""
        return self._key(0.0).get_indexer(self._key(lag)).astype(np.int64)

    @property
    def order(self) -> Index:
        """Samples by trajectory and then by time, ``(N,)``."""
        return np.lexsort((self.time, self.trajectory))

    def blocks(self, length: int | None) -> Index:
        """Which block each sample is in, ``(N,)``: its trajectory, or the run of so many consecutive samples of it."""
        if length is None:
            return self.trajectory
        order = self.order
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = pd.Series(self.trajectory[order]).groupby(self.trajectory[order]).cumcount().to_numpy()
        return np.unique(np.stack([self.trajectory, rank // length]), axis=1, return_inverse=True)[1].astype(np.int64).ravel()

    @property
    def units(self) -> Index:
        """What :meth:`exchanges` moves about, ``(N,)``: each sample's trajectory, or the sample itself where trajectories are
        fewer than :data:`MANY` or of several lengths."""
        lengths = np.bincount(self.trajectory)
        whole = len(lengths) >= MANY and bool((lengths == lengths[0]).all())
        return self.trajectory if whole else np.arange(len(self.time))

    def exchanges(self, n_draws: int, rng: np.random.Generator) -> Index:
        """Random reorderings under which nothing but the link between two series is lost, ``(n_draws, N)``: the sample that
        takes each one's place.

        Trajectories change places whole. Where the samples are the :attr:`units`, trajectories are joined end to end in random
        order, and the whole is turned by a random time.
        """
        order, whole = self.order, self.units is self.trajectory
        pieces = np.split(order, np.cumsum(np.bincount(self.trajectory))[:-1])
        found = np.empty((n_draws, len(order)), dtype=np.int64)
        for draw in found:
            joined = np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])
            draw[order] = joined if whole else np.roll(joined, rng.integers(1, max(2, len(joined))))
        return found


class Bootstrap:
    """Sums over blocks, of the whole and of bootstrap samples of blocks; tiles of a domain make each block several.

    Parameters
    ----------
    block : ndarray
        ``(N,)``, int64: which block each sample is in, 0 to n - 1.
    n_tiles : int
        Parts of the domain.
    n_draws : int
        Bootstrap samples.
    rng : numpy.random.Generator
        Draws them.

    Attributes
    ----------
    n_blocks : int
        Blocks by tiles.
    """

    def __init__(self, block: Index, n_tiles: int, n_draws: int, rng: np.random.Generator) -> None:
        self._block, self._n_tiles = block, n_tiles
        self.n_blocks = n = (int(block.max()) + 1) * n_tiles
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=n_draws)
        self._counts = np.vstack([np.ones(n), drawn])

    def of_samples(self, values: Array) -> Array:
        """Of values ``(N, n_tiles)``: ``(1 + n_draws, 1)``, the whole first."""
        tiles = np.arange(self._n_tiles)
        place = self._block[:, None] * self._n_tiles + tiles
        return self._counts @ np.bincount(place.ravel(), values.ravel(), self.n_blocks)[:, None]

    def of_codes(self, sample: Index, tile: Index, concept: Index, values: Array, n_concepts: int) -> Array:
        """Of values ``(n,)`` of concepts in tiles of samples, zero where there is none: ``(1 + n_draws, n_concepts)``."""
        place = self._block[sample] * self._n_tiles + tile
        by_block = scipy.sparse.csr_array((values, (concept, place)), shape=(n_concepts, self.n_blocks))
        return (by_block @ self._counts.T).T


def labels_of(
    acts: Tensor | IndexedActivations, trajectory: ArrayLike | None, time: ArrayLike | None
) -> tuple[ArrayLike | None, ArrayLike | None]:
    """Trajectory and time of each sample: what is given, else what the activations themselves know, as those of a store do."""
    if isinstance(acts, IndexedActivations):
        own = acts.time if acts.dates is None else acts.dates
        return acts.trajectory if trajectory is None else trajectory, own if time is None else time
    return trajectory, time


def check_draws(confidence: float, **counts: int) -> None:
    """ValueError unless a confidence is a share between 0 and 1, and draws are two or more."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a share between 0 and 1, such as 0.95; got {confidence!r}")
    for name, count in counts.items():
        if count < 2:
            raise ValueError(f"{name} is at least 2, got {count!r}: an interval takes hundreds of draws")


def interval(draws: Array, confidence: float, n_blocks: ArrayLike) -> tuple[Array, Array]:
    """Percentile intervals along the first axis, their tails widened for few blocks as those of a t interval are [1]_.

    Parameters
    ----------
    draws : ndarray
        ``(n_draws, ...)``.
    confidence : float
        Share of the intervals that are to hold what is estimated.
    n_blocks : array_like
        ``(...)`` or a number: how many blocks each statistic rests on. Of less than two there is no interval.

    Returns
    -------
    low, high : ndarray
        ``(...)``, NaN where there is none.

    References
    ----------
    .. [1] Hesterberg, What teachers should know about the bootstrap, The American Statistician 69 (2015), section 5.3.
    """
    n = np.broadcast_to(np.asarray(n_blocks, dtype=np.float64), draws.shape[1:])
    n = np.where(n >= 2, n, np.nan)
    level = scipy.stats.norm.cdf(scipy.stats.t.ppf((1 - confidence) / 2, n - 1) * np.sqrt(n / (n - 1)))
    ordered = np.sort(draws, axis=0)

    def quantile(share: Array) -> Array:
        place = share * (len(draws) - 1)
        below = np.nan_to_num(place).astype(np.int64)
        ends = [np.take_along_axis(ordered, np.minimum(k, len(draws) - 1)[None], 0)[0] for k in (below, below + 1)]
        return ends[0] + (place - below) * (ends[1] - ends[0])

    return quantile(level), quantile(1 - level)


def stretch(correlation: Array, draws: Array, null: Array) -> Array:
    r"""By how much the intervals of correlations are too narrow where blocks are few, or are tiles that depend on each other.

    The variance of a correlation of two fields, each correlated in space and time, is :math:`(1 - r^2)^2 / (M - 1)`, M being
    the effective size of the sample [1]_. ``1 / (M - 1)`` is the variance of null draws that keep these correlations: over all
    translations of a field it is the sum over distances of the product of the two autocorrelations, as there. It is read off
    the middle half of the draws, so that the few near to no translation at all, which keep the link, do not count.

    Parameters
    ----------
    correlation : ndarray
        ``(p,)``.
    draws, null : ndarray
        ``(n_draws, p)``: of the bootstrap, and with nothing left of the link.

    Returns
    -------
    ndarray
        ``(p,)``: the deviation by M over that of the bootstrap, at least 1.

    References
    ----------
    .. [1] Clifford, Richardson and Hemon, Assessing the significance of the correlation between two spatial processes,
       Biometrics 45 (1989); Dutilleul, Biometrics 49 (1993).
    """
    spread = draws.std(0)
    expected = (1 - correlation**2) * scipy.stats.iqr(null, axis=0, scale="normal")
    return np.fmax(1.0, np.divide(expected, spread, out=np.ones_like(spread), where=spread > 0))


def pooled_p_values(observed: Array, null: Array, *, two_sided: bool = True, floor: ArrayLike = 0.0) -> Array:
    """p-values of many statistics, each against its own null draws, whose tails are pooled.

    Each statistic, and each draw, is standardised by the mean and deviation of the statistic and its draws together; a p-value
    is the share of the draws of *all* statistics that are as extreme. Thousands of tests need p-values far below one over the
    number of draws, and normal tails would be too light for concepts that are seldom on.

    Parameters
    ----------
    observed : ndarray
        ``(p,)``. NaN where there is nothing to test.
    null : ndarray
        ``(n_draws, p)``.
    two_sided : bool
        Whether low values are extreme, too.
    floor : array_like
        ``(p,)`` or a number, below which no p-value is; see :func:`fewest_arrangements`.

    Returns
    -------
    ndarray
        ``(p,)``, NaN where the statistic is, or its draws are all the same.
    """
    everything = np.vstack([observed, null])
    spread = everything.std(0)
    tested = np.isfinite(spread) & (null.std(0) > 1e-12)
    result = np.full(observed.shape, np.nan)
    if tested.any():
        scores = (everything[:, tested] - everything[:, tested].mean(0)) / spread[tested]
        scores = np.abs(scores) if two_sided else scores
        pool = np.sort(scores[1:].ravel())
        extreme = len(pool) - np.searchsorted(pool, scores[0] - 1e-9)
        result[tested] = (1 + extreme) / (1 + len(pool))
    return np.maximum(result, floor)


def fewest_arrangements(n_on: ArrayLike, n_units: int) -> Array:
    """One over the number of ways in which n units can take the places of those a in which a concept is on,
    ``(n - a)! / n!``: however far a draw lies out, its chance is not smaller."""
    return np.exp(gammaln(n_units - np.asarray(n_on) + 1) - gammaln(n_units + 1))


def false_discovery(p_values: ArrayLike) -> Array:
    """Benjamini and Hochberg's q-values of p-values ``(n,)``: keeping what is at most q keeps the expected share of false
    discoveries below q. NaN stays, and does not count as a test."""
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.isfinite(p)
    result = np.full(p.shape, np.nan)
    if tested.any():
        result[tested] = scipy.stats.false_discovery_control(p[tested])
    return result
