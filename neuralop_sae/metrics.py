"""Metrics: pure functions on tensors, accumulated in float64. They need no model.

Sums over the domain are weighted by a quadrature that broadcasts to the grid; None means equal weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class FieldStatistics:
    """Running sums over batches of fields, from which fraction of variance explained and relatives follow.

    Examples
    --------
    >>> statistics = FieldStatistics()
    >>> x = torch.randn(4, 3, 8, 8)
    >>> statistics.update(x, x.mean((0, 2, 3), keepdim=True).expand_as(x))
    >>> abs(statistics.fve()) < 1e-6
    True
    """

    def __init__(self) -> None:
        self._n = 0
        self._error = self._square = self._written = 0.0
        self._sum: Tensor | float = 0.0

    def update(self, x: Tensor, reconstruction: Tensor, quadrature: Tensor | None = None) -> None:
        """Add a batch: fields ``(B, channels, *grid)`` and their reconstructions."""
        x, reconstruction = x.detach().double(), reconstruction.detach().double()
        self._error += float(_integral((x - reconstruction).square(), quadrature).sum())
        self._written += float(_integral(reconstruction.square(), quadrature).sum())
        self._square += float(_integral(x.square(), quadrature).sum())
        self._sum = self._sum + _integral(x, quadrature).sum(0).cpu()
        self._n += len(x)

    def fve(self) -> float:
        """Fraction of variance explained, ``1 - sum |x - xhat|^2 / sum |x - xbar|^2`` with the mean *per channel* over the
        data set: predicting that mean gives 0. NaN for constant data."""
        assert isinstance(self._sum, Tensor), "no batch yet"
        variance = self._square - float((self._sum / self._n).square().sum()) * self._n
        return 1.0 - self._error / variance if variance > 1e-12 * self._square else float("nan")

    def relative_l2(self) -> float:
        """``|x - xhat| / |x|``, pooled over the data set."""
        return (self._error / self._square) ** 0.5 if self._square else float("nan")

    def shrinkage(self) -> float:
        """``|xhat| / |x|``, pooled over the data set."""
        return (self._written / self._square) ** 0.5 if self._square else float("nan")


def _integral(field: Tensor, quadrature: Tensor | None) -> Tensor:
    """Mean over the domain, ``(B, C, *grid)`` -> ``(B, C)``. Weights count by their shares: those of single precision add up
    to one only nearly, and variances are differences of means."""
    if quadrature is None:
        return field.flatten(2).mean(-1)
    weights = quadrature.to(field).expand(field.shape[2:])
    return (field * weights).flatten(2).sum(-1) / weights.sum()


def fraction_of_variance_explained(x: Tensor, reconstruction: Tensor, quadrature: Tensor | None = None) -> float:
    """FVE of one batch of fields ``(B, channels, *grid)``; see :meth:`FieldStatistics.fve`."""
    statistics = FieldStatistics()
    statistics.update(x, reconstruction, quadrature)
    return statistics.fve()


def loss_recovered(clean: float, spliced: float, ablated: float) -> float:
    """``(e_ablated - e_spliced) / (e_ablated - e_clean)``: 1 if the splice costs nothing, 0 if it is as bad as ablating the
    site. NaN if ablation does not hurt."""
    return (ablated - spliced) / (ablated - clean) if ablated > clean else float("nan")


def pearson(a: Tensor, b: Tensor, quadrature: Tensor | None = None) -> float:
    """Pearson correlation of two tensors of one shape ``(..., *grid)`` over all entries, in float64. NaN if one is
    constant."""
    a, b = a.detach().double(), b.detach().double()
    weights = torch.ones_like(a) if quadrature is None else quadrature.to(a).expand_as(a)
    raw = [float((weights * x * x).sum()) for x in (a, b)]
    a, b = (x - (weights * x).sum() / weights.sum() for x in (a, b))
    squares = [float((weights * x * x).sum()) for x in (a, b)]
    # What rounding leaves of a constant is no variation.
    if any(square <= 1e-24 * whole for square, whole in zip(squares, raw, strict=True)):
        return float("nan")
    return float((weights * a * b).sum()) / math.sqrt(math.prod(squares))


def relative_l2(a: Tensor, reference: Tensor) -> float:
    """``|a - reference| / |reference|`` over all entries, in float64."""
    reference = reference.detach().double()
    norm = float(reference.norm())
    return float((a.detach().double() - reference).norm()) / norm if norm else float("nan")


def support_iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of where two tensors are not zero; 1 if both are zero everywhere."""
    on_a, on_b = a != 0, b != 0
    union = int((on_a | on_b).sum())
    return int((on_a & on_b).sum()) / union if union else 1.0


def energy_quantile_count(energies: Tensor, share: float = 0.9) -> int:
    """How many of the strongest entries carry a share of the total, e.g. C90 of concept energies ``(p,)``."""
    ordered = energies.detach().double().sort(descending=True).values.cumsum(0)
    if not len(ordered) or ordered[-1] <= 0:
        return 0
    return int(torch.searchsorted(ordered, share * ordered[-1])) + 1


def participation(energy: Tensor, quadrature: Tensor | None = None) -> Tensor:
    """How evenly energy is spread, ``(mean e)^2 / mean e^2``: 1 for what is everywhere alike, near 0 for a point.

    Parameters
    ----------
    energy : Tensor
        ``(n, *grid)``, not negative: the square of a code, or of a kernel summed over its channels.
    quadrature : Tensor, optional
        Of the grid.

    Returns
    -------
    Tensor
        ``(n,)``, float64; NaN where there is no energy.
    """
    energy, share = _with_shares(energy, quadrature)
    return (energy @ share).square() / (energy.square() @ share)


def energy_area(energy: Tensor, quadrature: Tensor | None = None, share: float = 0.9) -> Tensor:
    """The least share of the domain that holds a share of the energy, ``(n,)``, float64; NaN where there is none. Energy and
    quadrature are as for :func:`participation`."""
    energy, area = _with_shares(energy, quadrature)
    order = energy.argsort(dim=1, descending=True)
    held, covered = (energy * area).gather(1, order).cumsum(1), area[order].cumsum(1)
    last = torch.searchsorted(held, share * held[:, -1:]).clamp_max(held.shape[1] - 1)
    return covered.gather(1, last)[:, 0].where(held[:, -1] > 0, torch.nan)


def _with_shares(energy: Tensor, quadrature: Tensor | None) -> tuple[Tensor, Tensor]:
    """Energy ``(n, points)`` in float64, and each point's share of the domain, ``(points,)``."""
    energy = energy.detach().double()
    weights = torch.ones_like(energy[0]) if quadrature is None else quadrature.to(energy).expand(energy.shape[1:])
    return energy.flatten(1), (weights / weights.sum()).flatten()


def usage_entropy(frequencies: Tensor) -> float:
    """Entropy of how often concepts are on, ``f / sum f``, over log p: 1 if all are on equally often."""
    total = frequencies.double().sum()
    if total <= 0 or len(frequencies) < 2:
        return 0.0
    share = frequencies.double() / total
    entropy = -torch.special.xlogy(share, share).sum()
    return float(entropy / torch.log(torch.tensor(float(len(frequencies)))))


def by_shell(power: Tensor, shells: Tensor) -> Tensor:
    """Power ``(..., *modes)`` summed over the modes of each shell, ``(..., n_shells)``; `shells` ``(*modes)`` numbers them."""
    flat = power.flatten(-shells.ndim)
    return flat.new_zeros(*flat.shape[:-1], int(shells.max()) + 1).index_add(-1, shells.flatten(), flat)
