import numpy as np
import pytest
import scipy.stats

from neuralop_sae.analysis.inference import (
    Bootstrap,
    Series,
    check_draws,
    false_discovery,
    fewest_arrangements,
    interval,
    pooled_p_values,
    stretch,
)


def test_partners_are_in_the_same_trajectory_at_the_right_time():
    series = Series.of(6, ["b", "a", "b", "a", "b", "a"], [0.1, 0.1, 0.2, 0.3, 0.3, 0.2])
    assert series.partner(0.1).tolist() == [2, 5, 4, -1, -1, 3]
    assert series.partner(-0.1).tolist() == [-1, -1, 0, 5, 2, 1]
    assert Series.of(3, None, None).partner(1).tolist() == [-1, -1, -1]
    assert Series.of(3, None, [5, 7, 6]).partner(1).tolist() == [2, -1, 1]
    assert Series.of(4, [0, 0, 1, 1], None).partner(1).tolist() == [1, -1, 3, -1]


def test_blocks_are_trajectories_or_runs_of_them():
    series = Series.of(7, [0, 0, 0, 0, 0, 1, 1], [4, 3, 2, 1, 0, 0, 1])
    assert series.blocks(None).tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert series.blocks(2).tolist() == [2, 1, 1, 0, 0, 3, 3]


def test_what_is_no_series_is_refused():
    with pytest.raises(ValueError, match="each of the 3 samples"):
        Series.of(3, [0, 1], None)
    with pytest.raises(ValueError, match="differs between the samples"):
        Series.of(3, None, [0, 1, 1])


def test_exchanges_keep_trajectories_whole_where_there_are_many():
    rng = np.random.default_rng(0)
    orders = Series.of(24, np.repeat(np.arange(8), 3), None).exchanges(50, rng).reshape(50, 8, 3)
    assert (np.sort(orders.reshape(50, -1)) == np.arange(24)).all()
    assert (orders % 3 == np.arange(3)).all()
    assert len({tuple(order) for order in orders[:, :, 0]}) > 45
    single = Series.of(30, None, np.arange(30)).exchanges(50, rng)
    assert (np.diff(single, axis=1) % 30 == 1).all()
    assert (single[:, 0] != 0).all()


def test_bootstrap_sums_against_a_loop():
    rng = np.random.default_rng(0)
    block, n_tiles, n_draws = np.array([0, 1, 1, 2, 0]), 2, 7
    bootstrap = Bootstrap(block, n_tiles, n_draws, rng)
    counts = bootstrap._counts
    assert counts.shape == (8, 6)
    assert (counts.sum(1) == 6).all()
    values = rng.standard_normal((5, n_tiles))
    expected = [sum(row[block[n] * 2 + t] * values[n, t] for n in range(5) for t in range(2)) for row in counts]
    np.testing.assert_allclose(bootstrap.of_samples(values)[:, 0], expected)
    sample, tile, concept = rng.integers(0, 5, 30), rng.integers(0, 2, 30), rng.integers(0, 3, 30)
    entries = rng.standard_normal(30)
    dense = np.zeros((8, 3))
    for n, t, c, value in zip(sample, tile, concept, entries, strict=True):
        dense[:, c] += counts[:, block[n] * 2 + t] * value
    np.testing.assert_allclose(bootstrap.of_codes(sample, tile, concept, entries, 3), dense)


def test_intervals_of_a_mean_cover_it_also_for_few_blocks():
    rng, n_blocks, covered = np.random.default_rng(0), 8, 0
    for _ in range(400):
        bootstrap = Bootstrap(np.arange(n_blocks), 1, 400, rng)
        means = bootstrap.of_samples(rng.standard_normal((n_blocks, 1))) / n_blocks
        low, high = interval(means[1:], 0.9, n_blocks)
        covered += int(low[0] < 0 < high[0])
    assert 0.86 < covered / 400 < 0.94  # without the correction for few blocks .82


def test_pooled_p_values_are_uniform_below_one_over_the_draws():
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.1, 10, 3000)
    draws = rng.standard_t(6, (201, 3000)) * scale + 5
    p = pooled_p_values(draws[0], draws[1:])
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert p.min() < 1 / 1000
    upper = pooled_p_values(draws[0], draws[1:], two_sided=False)
    assert scipy.stats.kstest(upper, "uniform").pvalue > 0.01
    assert np.corrcoef(upper, (draws[0] - 5) / scale)[0, 1] < -0.9


def test_what_cannot_be_tested_has_no_p_value():
    null = np.random.default_rng(0).standard_normal((50, 3))
    null[:, 1] = 2.0
    p = pooled_p_values(np.array([0.1, 2.0, np.nan]), null, floor=np.array([0.9, 0.9, 0.9]))
    assert np.isnan(p).tolist() == [False, True, True]
    assert p[0] >= 0.9
    np.testing.assert_allclose(fewest_arrangements([0, 1, 2, 5], 5), [1, 1 / 5, 1 / 20, 1 / 120])


def test_q_values_are_those_of_benjamini_and_hochberg():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.5])
    q = false_discovery(p)
    np.testing.assert_allclose(q[[0, 1, 3, 4]], [0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert np.isnan(q[2])
    assert np.isnan(false_discovery([np.nan])).all()


def test_intervals_are_stretched_to_what_the_null_says():
    rng = np.random.default_rng(0)
    draws, null = 0.1 * rng.standard_normal((4000, 3)), 0.3 * rng.standard_normal((4000, 3))
    null[:, 2] *= 0.1
    factors = stretch(np.array([0.0, 0.5, 0.0]), draws, null)
    np.testing.assert_allclose(factors, [3, 0.75 * 3, 1], rtol=0.05)
    null[:100] = 0.9  # draws that are next to the fields as they are
    np.testing.assert_allclose(stretch(np.zeros(3), draws, null)[:2], [3, 3], rtol=0.1)
    assert stretch(np.array([np.nan]), np.zeros((5, 1)), np.zeros((5, 1))).tolist() == [1]


@pytest.mark.parametrize(
    ("confidence", "count", "match"),
    [(95, 100, "confidence is a share .* 0.95; got 95"), (0.9, 0, "n_bootstrap is at least 2, got 0")],
)
def test_draws_that_make_no_interval_are_refused(confidence, count, match):
    with pytest.raises(ValueError, match=match):
        check_draws(confidence, n_bootstrap=count)
