"""The pointwise sparse autoencoder, which applied work uses on fields."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from neuralop.models.base_model import BaseModel
from torch import Tensor, nn

from ..layers.fourier import FourierBasis
from ..layers.selection import Selection
from .base import saes
from .dense import DenseSAE, Expressed, domain
from .starts import directions, random_points


class PointSAE(DenseSAE):
    """An SAE of every point by itself, on a periodic box, or on the sphere where `grid` names how it is sampled. Subclasses
    set `decoder_weight` ``(p, m)`` and `decoder_bias` ``(m,)``."""

    def __init__(self, in_channels: int, n_concepts: int, n_dim: int, grid: str | None) -> None:
        super().__init__(in_channels, n_concepts)
        self.n_dim, self.grid = n_dim, grid
        self._basis = domain(n_dim, grid)

    @property
    def atom_grid(self) -> tuple[int, ...]:
        """See :attr:`SAE.atom_grid`: any that has an equator, since an atom is one point."""
        return (3,) * self.n_dim

    def _write(self, values: Tensor, concepts: slice = slice(None)) -> Tensor:
        return torch.einsum("bc...,ci->bi...", values, self.decoder_weight[concepts])

    def _with_lengths(self, factors: tuple[float, ...]) -> Self:
        if not isinstance(self.basis, FourierBasis):
            raise ValueError(f"this {type(self).__name__} is on the sphere, which has no box of another length")
        return copy.deepcopy(self)

    def _norms(self, weight: Tensor) -> Tensor:
        return weight.norm(dim=1)

    @torch.no_grad()
    def atoms(self, concepts: Sequence[int] | Tensor, shape: Sequence[int]) -> Tensor:
        """The channel vector at the central point, zero elsewhere, ``(n, channels, *shape)``, of L2 norm
        :meth:`kernel_norms`."""
        index, grid = self.check_concepts(concepts), self.basis.check_grid(shape)
        atoms = self.decoder_weight.new_zeros(len(index), self.in_channels, *grid)
        centre: tuple[Any, ...] = (..., *(size // 2 for size in grid))
        share = self.basis.quadrature(grid, like=atoms).expand(grid)[centre]
        atoms[centre] = self.decoder_weight[index] / share.sqrt()
        return atoms


@saes.register("SAEPointwise")
class SAEPointwise(PointSAE, BaseModel, name="SAEPointwise"):  # type: ignore[call-arg]  # mypy misses the base
    """The SAE of language models applied to every point of a field: one dictionary of channel vectors, the k strongest
    at each point.

    ``a(s) = TopK_k(relu(E (x(s) - b) + c))`` and ``xhat(s) = W a(s) + b`` at every point s by itself. Points count alike on
    a periodic box, and by their area on the sphere: in the loss, in norms and in every metric.

    Parameters
    ----------
    in_channels, n_concepts : int
        Channels of a field and size of the dictionary.
    k : int
        Concepts expressed per point.
    n_dim : int
        Dimensions of the grid.
    grid : {"equiangular", "legendre-gauss", "lobatto"}, optional
        Where fields on the sphere are sampled, as in :class:`SAESFNO`; by default they are on a periodic box.

    Raises
    ------
    ValueError
        If `k` is out of range, `grid` is unknown, or `n_dim` is not 2 on the sphere.

    Examples
    --------
    >>> sae = SAEPointwise(in_channels=4, n_concepts=16, k=2)
    >>> float(sae(torch.randn(3, 4, 8, 8)).codes.l0_local()) <= 2
    True
    >>> SAEPointwise(in_channels=4, n_concepts=16, grid="equiangular").basis
    SphericalBasis(n_modes=(1, 2), grid='equiangular')
    """

    def __init__(self, in_channels: int, n_concepts: int, *, k: int = 4, n_dim: int = 2, grid: str | None = None) -> None:
        super().__init__(in_channels, n_concepts, n_dim, grid)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n_concepts:
            raise ValueError(f"k must be a whole number from 1 to n_concepts={n_concepts}, got {k!r}")
        self.k = k
        directions = nn.functional.normalize(torch.randn(n_concepts, in_channels), dim=1)
        self.decoder_weight = nn.Parameter(directions)
        self.encoder_weight = nn.Parameter(directions.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(n_concepts))
        self.decoder_bias = nn.Parameter(torch.zeros(in_channels))

    def _pre_codes(self, field: Tensor) -> Tensor:
        centred = field - self._offset
        return torch.einsum("bi...,ci->bc...", centred, self.encoder_weight) + self._per_channel(self.encoder_bias)

    def _express(self, pre_codes: Tensor) -> Expressed:
        strongest, index = torch.relu(pre_codes).topk(self.k, dim=1)
        values = torch.zeros_like(pre_codes).scatter(1, index, strongest)
        scores = self.basis.mean_square(values.detach()).sqrt() * self.seen_norms()
        return Expressed(values, Selection.from_mask(values.detach().flatten(2).any(2)), scores)

    def _revive(self, pre_codes: Tensor, dead: Tensor, k: int) -> Tensor:
        """Of the dead, the strongest at each point."""
        masked = torch.where(self._per_channel(dead), nn.functional.leaky_relu(pre_codes, 0.01), -torch.inf)
        values, index = masked.topk(min(k, self.n_concepts), dim=1)
        return self._write(torch.zeros_like(pre_codes).scatter(1, index, torch.where(values.isfinite(), values, 0.0)))

    @torch.no_grad()
    def initialize_from(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Start each concept from the activation at a random point, drawn in proportion to its norm; encoder = decoder."""
        field = self.normalize(x)
        points = random_points(field, generator, self.basis.quadrature(field.shape[2:], like=field))
        self.decoder_weight.copy_(directions(points, self.n_concepts, generator))
        self.encoder_weight.copy_(self.decoder_weight)
