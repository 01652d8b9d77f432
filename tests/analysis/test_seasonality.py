from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.analysis.seasonality import seasonality

LINE = ns.FourierBasis(5)


def with_norms(norms):
    """Activations ``(N, p, 8)`` with such norms ``(N, p)``."""
    shape = torch.randn(*norms.shape, 8, dtype=torch.float64)
    return norms[..., None] * shape / shape.square().mean(-1, keepdim=True).sqrt()


def test_the_share_of_a_season(channels):
    time = torch.arange(120, dtype=torch.float64)
    season = torch.cos(2 * torch.pi * (time - 3) / 12)
    noise = torch.randn(120, dtype=torch.float64)
    norms = torch.stack([3 + season, 5 + season + noise, torch.full_like(time, 2.0), torch.zeros_like(time)], 1)
    norms[::2, 0] = 0
    table = seasonality(channels(4, LINE), with_norms(norms), time, period=12.0, batch_size=50)
    angle = 2 * np.pi * time.numpy() / 12
    design = np.column_stack([np.ones(120), np.cos(angle), np.sin(angle)])
    for concept in range(2):
        y = norms[:, concept].numpy()
        residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        assert table.share[concept] == pytest.approx(1 - residual.var() / y.var())
    assert table.peak[1] == pytest.approx(3, abs=0.6)
    assert table.q_value[1] < 0.01
    assert table.low[1] < table.share[1] < table.high[1]
    assert table.share[2:].isna().all()
    np.testing.assert_allclose(table.frequency, [0.5, 1, 1, 0])


def test_harmonics_of_a_pulse(channels):
    time = torch.arange(96, dtype=torch.float64)
    norms = 1 + (torch.cos(4 * torch.pi * time / 12) + 0.5 * torch.cos(2 * torch.pi * time / 12))[:, None]
    shares = [seasonality(channels(1, LINE), with_norms(norms + 2), time, 12.0, n_harmonics=h).share[0] for h in (1, 2)]
    np.testing.assert_allclose(shares, [0.2, 1.0])


def test_p_values_without_a_season(channels):
    """Norms that wander through each year and know nothing of the others: years of one series, and trajectories."""
    generator = torch.Generator().manual_seed(0)
    wander = torch.randn(10, 26, 500, dtype=torch.float64, generator=generator)
    wander = (wander[:, 2:] + 1.6 * wander[:, 1:-1] + 0.64 * wander[:, :-2]).flatten(0, 1)
    acts = with_norms(20 + wander)
    one = seasonality(channels(500, LINE), acts, np.arange(240), 24.0, n_bootstrap=100, n_permutations=100)
    several = {"trajectory": np.repeat(np.arange(10), 24), "time": np.tile(np.arange(24), 10)}
    many = seasonality(channels(500, LINE), acts, period=24.0, n_bootstrap=100, n_permutations=100, **several)
    for table in (one, many):
        assert 0.03 < (table.p_value < 0.05).mean() < 0.07
        assert (table.q_value > 0.05).all()
        assert table.share.mean() == pytest.approx(table.chance.mean(), rel=0.1)


def test_labels_of_activations_are_the_default(channels, held):
    time, trajectory = np.tile(np.arange(24.0), 3), np.repeat([0, 1, 2], 24)
    acts = with_norms(torch.from_numpy(2 + np.cos(2 * np.pi * time / 12) + np.random.default_rng(0).normal(size=72))[:, None])
    options = {"period": 12.0, "n_bootstrap": 20, "n_permutations": 20}
    expected = seasonality(channels(1, LINE), acts, time, trajectory=trajectory, **options)
    found = seasonality(channels(1, LINE), held(acts, time, trajectory), None, **options)
    pd.testing.assert_frame_equal(found, expected)
    dates = np.datetime64("2020-01-01") + np.arange(72)
    options["period"] = "12D"
    expected = seasonality(channels(1, LINE), acts, dates, **options)
    pd.testing.assert_frame_equal(seasonality(channels(1, LINE), held(acts, dates), None, **options), expected)


def test_what_is_refused(channels):
    with pytest.raises(ValueError, match="seasonality needs the time of each sample: pass time="):
        seasonality(channels(1, LINE), torch.rand(10, 1, 8), None, period=2)
    for option in ({"confidence": 95}, {"n_bootstrap": 0}, {"n_permutations": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is "):
            seasonality(channels(1, LINE), torch.rand(10, 1, 8), np.arange(10), period=2, **option)
    with pytest.raises(ValueError, match="one block"):
        seasonality(channels(1, LINE), torch.rand(10, 1, 8), np.arange(10), period=12)
    with pytest.raises(ValueError, match="period is above 0"):
        seasonality(channels(1, LINE), torch.rand(10, 1, 8), np.arange(10), period=0)
    dates = np.datetime64("2020-01-01") + np.arange(10)
    with pytest.raises(TypeError, match="pass period as a length of time"):
        seasonality(channels(1, LINE), torch.rand(10, 1, 8), dates, period=5.0)
    with pytest.raises(TypeError, match="but time holds numbers"):
        seasonality(channels(1, LINE), torch.rand(10, 1, 8), np.arange(10), period="5D")


@pytest.mark.parametrize("period", ["365.2425D", np.timedelta64(31556952, "s"), timedelta(days=365.2425)])
def test_a_year_of_dates(channels, period):
    """Largest in mid July, from fields of every tenth day of six years."""
    dates = np.datetime64("2001-03-01") + 10 * np.arange(219)
    days = (dates - np.datetime64("1970-01-01")).astype(float)
    norms = torch.from_numpy(2 + np.cos(2 * np.pi * (days - 195) / 365.2425))[:, None]
    table = seasonality(channels(1, LINE), with_norms(norms), dates, period)
    assert table.share[0] == pytest.approx(1)
    assert table.peak[0] == pytest.approx(195)
    assert table.peak_unit[0] == "days"
