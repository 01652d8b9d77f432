r"""How codes go with fields, gathered sample by sample: correlations, and what they are where there is no link.

The sums of z, z^2 and z q by quadrature, over each tile of each sample, are all that a correlation needs. Codes that are off
add nothing: what is kept has a row for each concept that is on in a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .inference import Array, Bootstrap, Index


@dataclass(frozen=True)
class Fields:
    """What codes are compared with, on the codes' grid of P points.

    Parameters
    ----------
    values : Tensor
        ``(N, Q, P)``: Q quantities, of mean 0 and mean square 1 over samples and points; or 0 where they are constant.
    high : Tensor
        ``(N, Q, P)``, bool: where a quantity is above its quantile.
    measure : Tensor
        ``(P,)``, float64: quadrature, of sum 1.
    tile : Tensor
        ``(P,)``, int64: which part of the domain a point is in.
    partner : ndarray
        ``(L, N)``, int64: at each lag, the sample whose fields each one's codes are compared with; -1 for none.
    """

    values: Tensor
    high: Tensor
    measure: Tensor
    tile: Tensor
    partner: Index

    @classmethod
    def of(
        cls,
        quantities: Sequence[Tensor],
        measure: Tensor,
        tile: Tensor,
        partner: Index,
        quantile: float,
        dtype: torch.dtype,
    ) -> Fields:
        """From quantities ``(N, P)`` in any units and dtype; quantiles are by quadrature, too."""
        share = (measure / partner.shape[1]).expand(partner.shape[1], -1)
        values, high = [], []
        for quantity in quantities:
            q = quantity.double()
            mean = (share * q).sum()
            deviation = (share * (q - mean).square()).sum().sqrt()
            standard = (q - mean) / deviation if deviation > 1e-12 * q.abs().max() else torch.zeros_like(q)
            order = q.flatten().argsort()
            place = int(torch.searchsorted(share.flatten()[order].cumsum(0), quantile * (1 - 1e-12)))
            high.append(q > q.flatten()[order[min(place, len(order) - 1)]])
            values.append(standard.to(dtype))
        return cls(torch.stack(values, 1), torch.stack(high, 1), measure, tile, partner)

    @property
    def n_tiles(self) -> int:
        """Parts of the domain."""
        return self._parts.shape[1]

    @cached_property
    def _parts(self) -> Tensor:
        """Quadrature over each tile, ``(P, n_tiles)``."""
        return torch.nn.functional.one_hot(self.tile) * self.measure[:, None]

    def by_tile(self, values: Tensor) -> Tensor:
        """Integrals over each tile, ``(..., P)`` -> float64 ``(..., n_tiles)``."""
        return (values @ self._parts.to(values)).double()


class Null(Protocol):
    """What stands in the place of a sample's fields where codes and fields are not linked."""

    def products(self, weighted: Tensor, fields: Tensor, sample: int) -> Tensor:
        """Inner products ``(k, Q, n_draws)`` of ``(k, P)`` with what takes the place of one of the samples ``(N, Q, P)``."""

    def sums(self, values: Array, samples: Index) -> Array:
        """Of numbers ``(N,)`` of the samples, sums over what takes the place of some, ``(n_draws,)``."""


@dataclass(frozen=True)
class Exchanged:
    """The fields of other samples.

    Parameters
    ----------
    orders : ndarray
        ``(n_draws, N)``: which sample's take each one's place.
    """

    orders: Index

    def products(self, weighted: Tensor, fields: Tensor, sample: int) -> Tensor:
        """See :meth:`Null.products`."""
        drawn, index = np.unique(self.orders[:, sample], return_inverse=True)
        chosen = fields if len(drawn) == len(fields) else fields[torch.from_numpy(drawn)]
        cross = (weighted @ chosen.flatten(0, 1).T).unflatten(1, chosen.shape[:2])
        return cross.transpose(1, 2)[..., torch.from_numpy(index.ravel())]

    def sums(self, values: Array, samples: Index) -> Array:
        """See :meth:`Null.sums`."""
        return values[self.orders[:, samples]].sum(1)


@dataclass(frozen=True)
class Translated:
    """A sample's own fields, moved along axes that close.

    Parameters
    ----------
    shifts : ndarray
        ``(n_draws, N, n_dim)``, int64: by how many grid points.
    grid : sequence of int
        Of the codes.
    """

    shifts: Index
    grid: Sequence[int]

    def products(self, weighted: Tensor, fields: Tensor, sample: int) -> Tensor:
        """See :meth:`Null.products`: all translations by one transform."""
        grid, dims = tuple(self.grid), tuple(range(-len(self.grid), 0))
        codes, moved = (torch.fft.rfftn(part.unflatten(-1, grid), dim=dims) for part in (weighted, fields[sample]))
        everywhere = torch.fft.irfftn(codes[:, None] * moved.conj(), s=grid, dim=dims).flatten(2)
        return everywhere[..., torch.from_numpy(np.ravel_multi_index(tuple(self.shifts[:, sample].T), grid))]

    def sums(self, values: Array, samples: Index) -> Array:
        """See :meth:`Null.sums`: the same in every place."""
        return np.full(len(self.shifts), values[samples].sum())


class Correlations:
    """Pearson correlations of every concept's code with every quantity, at every lag, pooled over samples and domain.

    Parameters
    ----------
    fields : Fields
        The quantities.
    null : Null
        What takes their place under the null hypothesis.
    n_concepts, n_draws : int
        Size of the dictionary, draws of the null.
    """

    def __init__(self, fields: Fields, null: Null, n_concepts: int, n_draws: int) -> None:
        self._fields, self._null, self._n_concepts = fields, null, n_concepts
        size = (len(fields.partner), fields.values.shape[1], n_concepts, n_draws)
        self._drawn = torch.zeros(size, dtype=torch.float64)
        self._samples: list[Tensor] = []
        self._concepts: list[Tensor] = []
        self._moments: list[Tensor] = []
        self._products: list[Tensor] = []

    def update(self, sample: int, concept: Tensor, values: Tensor) -> None:
        """Add the codes ``(k, P)`` of the concepts ``(k,)`` that are on in a sample."""
        fields = self._fields
        weighted = values * fields.measure.to(values)
        products = torch.zeros(len(values), *self._drawn.shape[:2], fields.n_tiles, dtype=torch.float64)
        for lag, target in enumerate(fields.partner[:, sample].tolist()):
            if target >= 0:
                products[:, lag] = fields.by_tile(values[:, None] * fields.values[target])
                drawn = self._null.products(weighted, fields.values, target).double()
                self._drawn[lag].index_add_(1, concept, drawn.transpose(0, 1))
        self._samples.append(torch.full_like(concept, sample))
        self._concepts.append(concept)
        self._moments.append(fields.by_tile(torch.stack([values, values.square()], 1)))
        self._products.append(products)

    def finish(self, lag: int, quantity: int, bootstrap: Bootstrap) -> tuple[Array, Array]:
        """Correlations of the whole and of bootstrap samples ``(1 + n_bootstrap, n_concepts)``, and under the null
        ``(n_draws, n_concepts)``. Of what is constant they are NaN."""
        sample, concept = (torch.cat(part).numpy() for part in (self._samples, self._concepts))
        partner, tiles = self._fields.partner[lag], self._fields.n_tiles
        there = (partner >= 0).astype(np.float64)
        row, tile = (index.ravel() for index in np.indices((len(sample), tiles)))

        def summed(values: Tensor) -> Array:
            kept = (values.numpy() * there[sample, None]).ravel()
            return bootstrap.of_codes(sample[row], tile, concept[row], kept, self._n_concepts)

        moments = torch.cat(self._moments)
        z, zz = (summed(moments[:, k]) for k in range(2))
        zq = summed(torch.cat([part[:, lag, quantity] for part in self._products]))
        q = self._fields.values[:, quantity]
        by_sample = [self._fields.by_tile(power).numpy() for power in (torch.ones_like(q), q, q.square())]
        n, sq, sqq = (bootstrap.of_samples(part[partner] * there[:, None]) for part in by_sample)
        drawn = [self._null.sums(part.sum(1), partner[partner >= 0])[:, None] for part in by_sample]
        null = _correlation(drawn[0], drawn[1], drawn[2], z[:1], zz[:1], self._drawn[lag, quantity].numpy().T)
        return _correlation(n, sq, sqq, z, zz, zq), null


def _correlation(n: Array, q: Array, qq: Array, z: Array, zz: Array, zq: Array) -> Array:
    """From the measure and the sums of q, q^2, z, z^2 and zq."""
    square = (n * zz - z * z) * (n * qq - q * q)
    scale = np.sqrt(np.where(square > 1e-20 * (n * zz) * (n * n), square, np.nan))
    return ((n * zq - z * q) / scale).clip(-1, 1)  # rounding of float32 codes goes beyond
