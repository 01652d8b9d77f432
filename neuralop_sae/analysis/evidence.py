"""What was found out about concepts elsewhere, concept by concept: physics they follow, effects they have, stability."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from ..data.indexed import IndexedActivations
from ..models.base import SAE
from .causal import CausalTest
from .relations import stability as stability_of
from .relations import stability_by_chance

#: A q-value up to which a correlation or an effect is called a finding.
LEVEL = 0.05
_PROBES = ("concept", "quantity", "kind", "lag", "correlation", "low", "high", "q_value")
_EFFECTS = ("concept", "outcome", "dose", "effect", "low", "high")


class Stability(NamedTuple):
    """How well another run finds a concept again.

    Parameters
    ----------
    cosine : float
        Of its atom with the one matched to it.
    chance : float
        What the same matching gives with dictionaries before any training.
    """

    cosine: float
    chance: float

    @property
    def excess(self) -> float:
        """The share of the way from chance to 1; 0 where chance leaves no way."""
        return (self.cosine - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0

    @property
    def label(self) -> str:
        """In a word. Where chance gives nothing these are the customary cosines of 0.9 and 0.7."""
        if self.excess <= 0:
            return "as chance"
        return "stable" if self.excess >= 0.9 else "similar" if self.excess >= 0.7 else "unstable"


@dataclass(frozen=True)
class Evidence:
    """Tables of `probe` and `causal_test` and the stability of concepts, checked; any may be missing.

    Parameters
    ----------
    probes, effects, tests : pandas.DataFrame or None
        As these functions return them.
    stability : dict of int to Stability
        By concept.
    """

    probes: pd.DataFrame | None = None
    effects: pd.DataFrame | None = None
    tests: pd.DataFrame | None = None
    stability: Mapping[int, Stability] = field(default_factory=dict)

    @classmethod
    def of(cls, sae: SAE, activations: Tensor | IndexedActivations, probes: Any, effects: Any, stability: Any) -> Evidence:
        """From what :func:`~neuralop_sae.report` is given."""
        tests = effects.tests if isinstance(effects, CausalTest) else None
        effects = effects.effects if isinstance(effects, CausalTest) else effects
        _check_table("probes", "probe", probes, _PROBES, sae.n_concepts)
        _check_table("effects", "causal_test", effects, _EFFECTS, sae.n_concepts)
        return cls(probes, effects, tests, _stability(sae, activations, stability))

    def physics(self, concept: int, n: int = 6) -> list[dict[str, Any]]:
        """The n closest correlations of a concept, closest first."""
        if self.probes is None:
            return []
        own = self.probes[(self.probes.concept == concept) & self.probes.correlation.notna()]
        own = own.sort_values("correlation", key=abs, ascending=False, kind="stable").head(n)
        return [{**row, "name": name_of(row), "finding": row["q_value"] <= LEVEL} for row in _rows(own)]

    def follows(self) -> dict[int, dict[str, Any]]:
        """For each concept the closest of its correlations that is a finding."""
        if self.probes is None:
            return {}
        found = self.probes[self.probes.q_value <= LEVEL].sort_values("correlation", key=abs, ascending=False, kind="stable")
        return {row["concept"]: {**row, "name": name_of(row)} for row in _rows(found.drop_duplicates("concept"))}

    def acts(self, concept: int, n: int = 12) -> list[dict[str, Any]]:
        """A concept's effects at the first dose, on the first n outcomes, with the largest q-value over the kinds of controls
        (None without controls)."""
        if self.effects is None:
            return []
        own = self.effects[(self.effects.concept == concept) & (self.effects.dose == self.dose)].head(n)
        q_values = (
            {} if self.tests is None else self.tests[self.tests.concept == concept].groupby("outcome").q_value.max().to_dict()
        )
        return [{**row, "q_value": q_values.get(row["outcome"])} for row in _rows(own)]

    @property
    def dose(self) -> float | None:
        """The first dose, to which tests belong."""
        return None if self.effects is None or self.effects.empty else float(self.effects.dose.iloc[0])

    @property
    def outcome(self) -> str | None:
        """The first outcome, which has a column of its own."""
        return None if self.effects is None or self.effects.empty else str(self.effects.outcome.iloc[0])

    def first_effects(self) -> dict[int, float]:
        """Each tested concept's effect on the first outcome at the first dose."""
        if self.effects is None:
            return {}
        first = self.effects[(self.effects.outcome == self.outcome) & (self.effects.dose == self.dose)]
        return {row["concept"]: row["effect"] for row in _rows(first)}


def name_of(row: Mapping[str, Any]) -> str:
    """A quantity as rows name it: with its lag, and whether the code's norm is meant."""
    kind = ", norm" if row["kind"] == "norm" else ""
    return f"{row['quantity']}{kind}" + (f", lag {row['lag']:g} {row.get('lag_unit', '')}".rstrip() if row["lag"] else "")


def _rows(table: pd.DataFrame) -> Iterable[dict[str, Any]]:
    return ({str(key): value for key, value in row.items()} for row in table.to_dict("records"))


def _check_table(name: str, function: str, table: Any, columns: Iterable[str], n_concepts: int) -> None:
    if table is None:
        return
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{name} must be what {function} returns, got {type(table).__name__}")
    if missing := [column for column in columns if column not in table.columns]:
        raise ValueError(f"{name} lacks the columns {missing}: pass the table that {function} returns")
    if unknown := sorted(set(table.concept) - set(range(n_concepts))):
        raise ValueError(
            f"{name} is about concepts {unknown[:5]}, but this model has {n_concepts}: pass the table of this model"
        )


def _stability(sae: SAE, activations: Tensor | IndexedActivations, given: Any) -> dict[int, Stability]:
    """Cosines beside chance, of concepts that are on; where only cosines are given, the other run is taken to have had the
    same arguments and as many concepts on."""
    if given is None:
        return {}
    other = given if isinstance(given, SAE) else sae
    cosines = _by_concept(sae, stability_of(sae, given, activations) if isinstance(given, SAE) else given)
    chance = stability_by_chance(sae, other, activations).tolist()
    found = {concept: Stability(cosine, chance[concept]) for concept, cosine in cosines.items()}
    return {concept: pair for concept, pair in found.items() if not math.isnan(pair.cosine + pair.chance)}


def _by_concept(sae: SAE, stability: Any) -> dict[int, float]:
    if isinstance(stability, Mapping | pd.Series):
        found = {int(concept): float(cosine) for concept, cosine in stability.items()}
    elif isinstance(stability, Tensor) and stability.shape == (sae.n_concepts,):
        found = dict(enumerate(stability.tolist()))
    else:
        got = tuple(stability.shape) if isinstance(stability, Tensor) else type(stability).__name__
        raise TypeError(
            f"stability is another SAE, or cosines: a mapping from concept or a tensor ({sae.n_concepts},); got {got}"
        )
    if unknown := [concept for concept in found if not 0 <= concept < sae.n_concepts]:
        raise ValueError(f"stability names concepts {unknown[:5]}, but this model has {sae.n_concepts}")
    return found
