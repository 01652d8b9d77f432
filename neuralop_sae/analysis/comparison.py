"""Codes compared with quantities by a plan: what makes blocks, what is exchanged or moved, and the table of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..codes import ConceptCodes
from .associations import Correlations, Exchanged, Fields, Null, Translated
from .inference import MANY, Array, Bootstrap, Index, Series, fewest_arrangements, interval, pooled_p_values, stretch
from .roc import RocAreas

#: Tiles along each axis where samples are too few to be blocks by themselves.
_TILES = 4


class Use:
    """In which samples each concept is on.

    Parameters
    ----------
    series : Series
        Of the samples.
    """

    def __init__(self, series: Series) -> None:
        self._series = series
        self._pairs: list[Index] = []
        self._n_concepts = 0

    def update(self, first: int, codes: ConceptCodes) -> None:
        """Add the codes of a batch, the first sample of which has this number."""
        on = codes.expressed()
        self._n_concepts = codes.n_concepts
        self._pairs.append(torch.stack([codes.sample[on] + first, codes.concept[on]]).numpy())

    @property
    def frequency(self) -> Array:
        """Share of the samples, ``(n_concepts,)``."""
        return np.bincount(np.hstack(self._pairs)[1], minlength=self._n_concepts) / len(self._series.time)

    def n_on(self, group: Index) -> Index:
        """In how many groups of samples ``(N,)`` each concept is on, ``(n_concepts,)``."""
        sample, concept = np.hstack(self._pairs)
        pairs = np.unique(np.stack([group[sample], concept]), axis=1)
        return np.bincount(pairs[1], minlength=self._n_concepts)


@dataclass(frozen=True)
class Plan:
    """How codes and quantities are compared: arguments of :func:`~neuralop_sae.probe`, and

    Parameters
    ----------
    series : Series
        Of the samples.
    partner : ndarray
        ``(L, N)``: at each lag, the sample whose quantities each one's codes are compared with; -1 for none.
    """

    series: Series
    partner: Index
    block: int | None
    tiles: Sequence[int] | None
    null: str | None
    quantile: float
    n_permutations: int
    n_bootstrap: int
    confidence: float
    seed: int

    def compare(self, quantities: Mapping[str, Tensor], codes: ConceptCodes) -> list[Comparison]:
        """One comparison with fields and one with numbers, where there are any, of codes such as these."""
        fields = {name: value for name, value in quantities.items() if value.ndim > 1}
        numbers = {name: value for name, value in quantities.items() if value.ndim == 1}
        kinds = (("map", fields, self._maps), ("norm", numbers, self._norms))
        return [Comparison(self, kind, list(some), *make(some, codes), codes.n_concepts) for kind, some, make in kinds if some]

    @property
    def blocks(self) -> Index:
        """Which block each sample is in, ``(N,)``."""
        return self.series.blocks(self.block)

    @property
    def few(self) -> bool:
        """Whether blocks are too few to tell by themselves how much statistics vary."""
        return int(self.blocks.max()) + 1 < MANY

    def _maps(self, quantities: Mapping[str, Tensor], codes: ConceptCodes) -> tuple[Fields, Null]:
        grid = codes.grid
        values = [codes.basis.resample(value, grid).flatten(1) for value in quantities.values()]
        measure = codes.basis.quadrature(grid, like=values[0].double()[:0]).expand(grid).flatten()
        tile = _tile(grid, self.tiles, few=self.few)
        fields = Fields.of(values, measure, tile, self.partner, self.quantile, codes.values.dtype)
        return fields, self._null(codes)

    def _norms(self, quantities: Mapping[str, Tensor], codes: ConceptCodes) -> tuple[Fields, Null]:
        values = [value[:, None] for value in quantities.values()]
        measure, tile = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        fields = Fields.of(values, measure, tile, self.partner, self.quantile, codes.values.dtype)
        return fields, self._exchanged()

    def _exchanged(self) -> Exchanged:
        return Exchanged(self.series.exchanges(self.n_permutations, np.random.default_rng(self.seed)))

    def _null(self, codes: ConceptCodes) -> Null:
        name = self.null or ("translate" if len(self.series.time) < MANY else "exchange")
        if name == "exchange":
            return self._exchanged()
        if name != "translate":
            raise ValueError(f"null is 'exchange' or 'translate', got {name!r}")
        globe = codes.basis.colatitudes(codes.grid[0]) is not None
        if not (globe or codes.basis.equivariant):
            raise ValueError(f"fields cannot be moved on the domain of a {type(codes.basis).__name__}: pass null='exchange'")
        limits = [1, codes.grid[1]] if globe else list(codes.grid)
        size = (self.n_permutations, int(self.series.trajectory.max()) + 1, len(limits))
        shifts = np.random.default_rng(self.seed).integers(0, limits, size)
        return Translated(shifts[:, self.series.trajectory], codes.grid)


class Comparison:
    """Of maps with fields, or of norms with numbers.

    Parameters
    ----------
    plan : Plan
        How.
    kind : {"map", "norm"}
        What of the codes.
    names : sequence of str
        Of the quantities.
    fields : Fields
        The quantities.
    null : Null
        What stands in their place under the null hypothesis.
    n_concepts : int
        Size of the dictionary.
    """

    def __init__(self, plan: Plan, kind: str, names: Sequence[str], fields: Fields, null: Null, n_concepts: int) -> None:
        self._plan, self._kind, self._names, self._n_tiles = plan, kind, names, fields.n_tiles
        self._exchanged = isinstance(null, Exchanged)
        self._correlations = Correlations(fields, null, n_concepts, plan.n_permutations)
        self._areas = RocAreas(fields, n_concepts)

    def update(self, first: int, codes: ConceptCodes) -> None:
        """Add the codes of a batch, the first sample of which has this number."""
        values = codes.norms()[:, None] if self._kind == "norm" else codes.values.flatten(1)
        counts = torch.bincount(codes.sample, minlength=codes.n_samples).tolist()
        for sample, (concept, rows) in enumerate(zip(codes.concept.split(counts), values.split(counts), strict=True), first):
            self._correlations.update(sample, concept, rows)
            self._areas.update(sample, concept, rows)

    def table(self, lags: Sequence[float], use: Use) -> pd.DataFrame:
        """A row for each lag, quantity and concept."""
        plan = self._plan
        bootstrap = Bootstrap(plan.blocks, self._n_tiles, plan.n_bootstrap, np.random.default_rng([plan.seed, 1]))
        units = plan.series.units
        floor = fewest_arrangements(use.n_on(units), int(units.max()) + 1) if self._exchanged else 0.0
        n_blocks = use.n_on(plan.blocks) * self._n_tiles
        tables = []
        for lag, number in enumerate(lags):
            for quantity, name in enumerate(self._names):
                found = self._pair(lag, quantity, bootstrap, floor, n_blocks)
                n_samples = int((plan.partner[lag] >= 0).sum())
                labels = {"concept": np.arange(len(use.frequency)), "quantity": name, "kind": self._kind, "lag": number}
                tables.append(pd.DataFrame({**labels, **found, "frequency": use.frequency, "n_samples": n_samples}))
        return pd.concat(tables, ignore_index=True)

    def _pair(self, lag: int, quantity: int, bootstrap: Bootstrap, floor: Array | float, n_blocks: Index) -> dict[str, Array]:
        drawn, null = self._correlations.finish(lag, quantity, bootstrap)
        areas = self._areas.finish(lag, quantity, bootstrap)
        draws = np.nan_to_num(drawn[1:])
        low, high = interval(draws, self._plan.confidence, n_blocks)
        area_low, area_high = interval(areas[1:], self._plan.confidence, n_blocks)
        if self._plan.few:
            factor = stretch(drawn[0], draws, null)
            low, high = (drawn[0] + factor * (edge - drawn[0]) for edge in (low, high))
            area_low, area_high = (areas[0] + factor * (edge - areas[0]) for edge in (area_low, area_high))
        known = np.where(np.isfinite(drawn[0]), 1.0, np.nan)
        return {
            "correlation": drawn[0],
            "low": low.clip(-1, 1) * known,
            "high": high.clip(-1, 1) * known,
            "chance": null.mean(0),
            "p_value": pooled_p_values(drawn[0], null, floor=floor),
            "auroc": areas[0] * known,
            "auroc_low": area_low.clip(0, 1) * known,
            "auroc_high": area_high.clip(0, 1) * known,
        }


def _tile(grid: Sequence[int], tiles: Sequence[int] | None, *, few: bool) -> Tensor:
    """Which tile each point of a grid is in, ``(P,)``."""
    numbers = tuple(tiles) if tiles is not None else tuple(min(n, _TILES if few else 1) for n in grid)
    if len(numbers) != len(grid) or not all(1 <= t <= n for t, n in zip(numbers, grid, strict=True)):
        raise ValueError(f"tiles has a number for each axis of the codes' grid {tuple(grid)}, 1 to its size; got {tiles}")
    along = torch.meshgrid(*[torch.arange(n) * t // n for n, t in zip(grid, numbers, strict=True)], indexing="ij")
    return torch.from_numpy(np.ravel_multi_index(tuple(place.flatten().numpy() for place in along), numbers))
