"""Whether codes are on where known concepts fire: peaks of a code against events, within a distance.

Distances are physical (units of length of a box, radians on a sphere), so that scores do not change their meaning with the
grid, the size of the domain or the latitude.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..data.domains import Box, Domain
from ..data.synthetic import Events
from .matching import Matching


@dataclass(frozen=True)
class DetectionCurve:
    """Detections of one concept, the surest first.

    Parameters
    ----------
    height : Tensor
        ``(n,)``, float64, descending: of a peak in the code. A threshold on it is a point of the curve.
    hit : Tensor
        ``(n,)``, bool: whether it found an event of its own.
    n_events : int
        How many there were to find.
    """

    height: Tensor
    hit: Tensor
    n_events: int

    @property
    def precision(self) -> Tensor:
        """Share of the peaks at least that high that are hits, ``(n,)``."""
        return self.hit.double().cumsum(0) / torch.arange(1, len(self.hit) + 1)

    @property
    def recall(self) -> Tensor:
        """Share of the events that peaks at least that high found, ``(n,)``. NaN without events."""
        return self.hit.double().cumsum(0) / (self.n_events or torch.nan)

    @property
    def f1(self) -> Tensor:
        """Harmonic mean of precision and recall, ``(n,)``: twice the hits over peaks and events together."""
        return 2 * self.hit.double().cumsum(0) / (torch.arange(1, len(self.hit) + 1) + self.n_events)

    @property
    def best(self) -> int:
        """The index of the threshold with the best F1; -1 without peaks."""
        return int(self.f1.argmax()) if len(self.hit) else -1

    @property
    def best_f1(self) -> float:
        """F1 there; 0 without peaks. The threshold is chosen on the same data."""
        return float(self.f1[self.best]) if len(self.hit) else 0.0

    @property
    def average_precision(self) -> float:
        """Area under precision over recall, with steps at the hits. NaN without events."""
        return float(self.precision[self.hit].sum()) / self.n_events if self.n_events else float("nan")


def find_peaks(code: Tensor, domain: Domain, separation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Local maxima of codes, the highest of those that are close.

    Parameters
    ----------
    code : Tensor
        ``(n, *grid)``: one concept's code in each sample. Only where it is positive it has peaks.
    domain : Domain
        Positions and distances.
    separation : float
        A peak at most so far from a higher one does not count.

    Returns
    -------
    sample, position, height : Tensor
        ``(k,)`` int64, ``(k, n_dim)`` and ``(k,)`` float64, by sample and then by height, descending.
    """
    code = code.detach().cpu().double()
    around = domain.surround(code)
    for dim in range(1, code.ndim):
        around = around.unfold(dim, 3, 1).amax(-1)
    place = ((code > 0) & (code >= around)).nonzero(as_tuple=True)
    sample, position, height = place[0], domain.points(code.shape[1:])[place[1:]], code[place]
    order = height.argsort(descending=True, stable=True)
    order = order[sample[order].argsort(stable=True)]
    sample, position, height = sample[order], position[order], height[order]
    kept = torch.ones(len(sample), dtype=torch.bool)
    for rows in torch.arange(len(sample)).split(sample.bincount().tolist()):
        near = domain.distance(position[rows, None], position[rows]) <= separation
        mine = kept[rows]
        for i in range(len(rows) - 1):
            if mine[i]:
                mine[i + 1 :] &= ~near[i, i + 1 :]
        kept[rows] = mine
    return sample[kept], position[kept], height[kept]


def detect_events(code: Tensor, sample: Tensor, position: Tensor, domain: Domain, tolerance: float) -> DetectionCurve:
    """Peaks of one concept's codes against events, one to one: the highest peak first, each takes the nearest event that is
    left within the tolerance.

    Parameters
    ----------
    code : Tensor
        ``(n, *grid)``: in each sample.
    sample, position : Tensor
        ``(k,)`` int64 and ``(k, n_dim)``: of the events.
    domain : Domain
        Positions and distances.
    tolerance : float
        Within which a peak finds an event, in units of length or radians. Peaks closer than that count as one.

    Raises
    ------
    ValueError
        If the tolerance is not positive or the code is on no grid of the domain.

    Examples
    --------
    >>> code = torch.zeros(1, 10)
    >>> code[0, 2], code[0, 7] = 1.0, 0.5
    >>> found = detect_events(code, torch.tensor([0]), torch.tensor([[0.19]]), Box(1), tolerance=0.02)
    >>> found.hit.tolist(), found.best_f1
    ([True, False], 1.0)
    """
    domain.check_grid(code.shape[1:])
    if not tolerance > 0:
        raise ValueError(f"tolerance is a distance above 0, got {tolerance}")
    # Of two events that are as near the same one is taken, in whatever order they come.
    order = torch.from_numpy(np.lexsort(position.double().numpy().T))
    sample, position = sample[order], position[order]
    peak_sample, peak, height = find_peaks(code, domain, tolerance)
    hit = torch.zeros(len(height), dtype=torch.bool)
    for number in sample.unique().tolist():
        rows = (peak_sample == number).nonzero()[:, 0]
        distance = domain.distance(peak[rows, None], position[sample == number].double())
        for row, to_events in zip(rows, distance, strict=True):
            nearest = int(to_events.argmin())
            if to_events[nearest] <= tolerance:
                hit[row] = True
                distance[:, nearest] = torch.inf
    order = height.argsort(descending=True, stable=True)
    return DetectionCurve(height[order], hit[order], len(sample))


def event_scores(
    codes: Tensor, events: Events, matching: Matching, domain: Domain, *, tolerance: float
) -> list[DetectionCurve]:
    """Precision and recall of events in place, for each true concept by the code of the learned one that is matched to it,
    moved as the matching says.

    Parameters
    ----------
    codes : Tensor
        ``(n, p, *grid)``: of the learned concepts.
    events : Events
        The truth about these n samples.
    matching : Matching
        From :func:`~neuralop_sae.analysis.matching.match_atoms`.
    domain, tolerance
        As in :func:`detect_events`.

    Returns
    -------
    list of DetectionCurve
        One for each true concept; with no peaks where no learned one is matched.
    """
    curves = []
    for concept, (learned, shift) in enumerate(zip(matching.learned.tolist(), matching.shift, strict=True)):
        mine = events.of(events.concept == concept)
        position = mine.position + shift * domain.length if isinstance(domain, Box) else mine.position
        code = codes[:, learned] if learned >= 0 else torch.zeros_like(codes[:, 0])
        curves.append(detect_events(code, mine.sample, position, domain, tolerance))
    return curves


def event_chance(
    codes: Tensor, events: Events, matching: Matching, domain: Domain, *, tolerance: float
) -> list[DetectionCurve]:
    """:func:`event_scores` with each sample's codes against the next sample's events: what so many peaks find by chance."""
    other = replace(events, sample=(events.sample - 1) % len(codes))
    return event_scores(codes, other, matching, domain, tolerance=tolerance)
