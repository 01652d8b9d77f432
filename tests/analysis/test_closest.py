"""Concepts chosen in one table of probes, with the numbers of another."""

import numpy as np
import pandas as pd
import pytest

from neuralop_sae.analysis.closest import closest_concepts


def table(correlations, quantities=("b", "a"), lag=0.0):
    """Probes of concepts (rows) with quantities (columns)."""
    rows = [
        {"concept": concept, "quantity": quantity, "kind": "map", "lag": lag, "correlation": r, "low": r - 0.1}
        for quantity, column in zip(quantities, np.transpose(correlations), strict=True)
        for concept, r in enumerate(column)
    ]
    return pd.DataFrame(rows)


CHOOSE = table([[0.2, 0.1], [-0.7, 0.3], [0.5, np.nan]])
REST = table([[0.9, 0.8], [-0.4, 0.25], [0.45, 0.6]])


def test_the_largest_absolute_correlation_in_the_order_of_the_probes() -> None:
    found = closest_concepts(CHOOSE)
    assert found.index.tolist() == ["b", "a"]
    assert found.concept.tolist() == [1, 1]
    assert found.correlation.tolist() == [-0.7, 0.3]
    assert closest_concepts(CHOOSE, 2).loc["b", "concept"].tolist() == [1, 2]
    assert closest_concepts(CHOOSE, 9).loc["a", "concept"].tolist() == [1, 0]


def test_held_out_numbers_of_what_was_chosen_elsewhere() -> None:
    found = closest_concepts(CHOOSE, held_out=REST)
    assert found.concept.tolist() == [1, 1]
    assert found.correlation.tolist() == [-0.4, 0.25]
    assert found.low.tolist() == pytest.approx([-0.5, 0.15])


def test_a_concept_counts_once_at_its_best_lag() -> None:
    lags = pd.concat([CHOOSE, table([[0.6, 0.0], [-0.8, 0.0], [0.0, 0.0]], lag=2.0)])
    found = closest_concepts(lags, 2).loc["b"]
    assert list(zip(found.concept, found.lag, strict=True)) == [(1, 2.0), (0, 2.0)]


def test_choosing_on_noise_is_told_by_held_out_samples() -> None:
    """Of many concepts without any link the closest seems to have one, on the samples on which it was chosen alone."""
    choose, rest = (table(np.random.default_rng(seed).normal(0, 0.1, (200, 2))) for seed in (0, 1))
    assert closest_concepts(choose).correlation.abs().min() > 0.2
    assert closest_concepts(choose, held_out=rest).correlation.abs().max() < 0.2


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least 1; got 0"):
        closest_concepts(CHOOSE, 0)
    with pytest.raises(ValueError, match="held_out has no row for .*'quantity': 'b'"):
        closest_concepts(CHOOSE, held_out=REST[REST.quantity == "a"])
