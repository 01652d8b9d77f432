r"""Areas under ROC curves: how well a code tells where a field is high, gathered sample by sample as histograms.

.. math:: \mathrm{AUROC} = P(z_+ > z_-) + \tfrac12 P(z_+ = z_-)

for a code's values at a point where the field is high and at one where it is not, each drawn by quadrature. Codes are counted
in bins of 4 % of their size, within which they are taken to be equal; that is the one approximation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .associations import Fields
from .inference import Array, Bootstrap, Index

#: Bins of a histogram: so many for each octave of a code's size, over so many octaves to both sides of 1; of either sign.
PER_OCTAVE, OCTAVES = 16, 16
_ZERO = 2 * PER_OCTAVE * OCTAVES
_BINS = 2 * _ZERO + 1


class RocAreas:
    """AUROC of every concept's code for every quantity being above its quantile, at every lag.

    Parameters
    ----------
    fields : Fields
        The quantities.
    n_concepts : int
        Size of the dictionary.
    """

    def __init__(self, fields: Fields, n_concepts: int) -> None:
        self._fields, self._n_concepts = fields, n_concepts
        self._keys: list[Tensor] = []
        self._mass: list[Tensor] = []

    def update(self, sample: int, concept: Tensor, values: Tensor) -> None:
        """Add the codes ``(k, P)`` of the concepts ``(k,)`` that are on in a sample."""
        fields = self._fields
        row, point = values.nonzero(as_tuple=True)
        place = (row * fields.n_tiles + fields.tile[point]) * _BINS + _bin(values[row, point])
        high = fields.high[torch.from_numpy(fields.partner[:, sample])].flatten(0, 1)[:, point]
        columns = torch.cat([torch.ones_like(high[:1]), high]).T * fields.measure[point, None]
        mass = columns.new_zeros(len(values) * fields.n_tiles * _BINS, columns.shape[1]).index_add_(0, place, columns)
        found = mass[:, 0].nonzero()[:, 0]
        row = found // (fields.n_tiles * _BINS)
        self._keys.append(
            torch.stack([torch.full_like(row, sample), concept[row], found // _BINS % fields.n_tiles, found % _BINS])
        )
        self._mass.append(mass[found])

    def finish(self, lag: int, quantity: int, bootstrap: Bootstrap) -> Array:
        """Of the whole and, to first order in what a draw changes, of bootstrap samples: ``(1 + n_bootstrap, n_concepts)``.
        NaN where the quantity is nowhere above its quantile."""
        sample, concept, tile, place = torch.cat(self._keys, 1).numpy()
        mass = torch.cat(self._mass).double().numpy()
        partner = self._fields.partner[lag]
        there = (partner >= 0).astype(np.float64)
        n_fields = self._fields.high.shape[1]
        high = mass[:, 1 + lag * n_fields + quantity] * there[sample]
        low = mass[:, 0] * there[sample] - high
        indicator = self._fields.high[:, quantity].double()
        area = [self._fields.by_tile(part).numpy()[partner] * there[:, None] for part in (indicator, 1 - indicator)]
        n_high, n_low = (bootstrap.of_samples(part) for part in area)
        if not (n_high[0, 0] > 0 and n_low[0, 0] > 0):
            return np.full((len(n_high), self._n_concepts), np.nan)
        above = _placement(concept, place, low, n_low[0, 0], self._n_concepts)
        below = 1 - _placement(concept, place, high, n_high[0, 0], self._n_concepts)
        means, tiny = [], np.finfo(np.float64).tiny
        for table, part, n in ((above, high, n_high), (below, low, n_low)):
            excess = part * (table[concept, place] - table[concept, _ZERO])
            means.append(table[:, _ZERO] + bootstrap.of_codes(sample, tile, concept, excess, self._n_concepts) / n.clip(tiny))
        return means[0] + means[1] - means[0][:1]


def _bin(values: Tensor) -> Tensor:
    """The bin of each value that is not zero: ascending with it, :data:`_ZERO` being that of zero."""
    octave = values.abs().log2().clamp(-OCTAVES, OCTAVES) + OCTAVES
    size = 1 + (octave * PER_OCTAVE).long().clamp_max(_ZERO - 1)
    return torch.where(values > 0, _ZERO + size, _ZERO - size)


def _placement(concept: Index, place: Index, mass: Array, total: float, n_concepts: int) -> Array:
    """Share of a mass that lies below each bin, half of the bin's own counted, ``(n_concepts, _BINS)``."""
    table = np.bincount(concept * _BINS + place, mass, n_concepts * _BINS).reshape(n_concepts, _BINS)
    table[:, _ZERO] = total - table.sum(1)
    return (table.cumsum(1) - table / 2) / total
