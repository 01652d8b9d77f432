import numpy as np
import pytest
import torch

from neuralop_sae.analysis.associations import Fields
from neuralop_sae.analysis.inference import Bootstrap
from neuralop_sae.analysis.roc import RocAreas


def exact(score, high, weight):
    """Over all pairs of points."""
    a, b, wa, wb = score[high], score[~high], weight[high], weight[~high]
    wins = (a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()
    return float((wa[:, None] * wb * wins).sum() / (wa.sum() * wb.sum()))


def areas_of(codes, field, measure, n_draws, rng):
    n = len(codes)
    fields = Fields.of(
        [field], measure, torch.zeros(codes.shape[1], dtype=torch.int64), np.arange(n)[None], 0.8, torch.float64
    )
    areas = RocAreas(fields, 1)
    for sample in range(n):
        on = codes[sample : sample + 1] if codes[sample].any() else codes[:0]
        areas.update(sample, torch.zeros(len(on), dtype=torch.int64), on)
    bootstrap = Bootstrap(np.arange(n), 1, n_draws, rng)
    return areas.finish(0, 0, bootstrap)[:, 0], fields.high[:, 0], bootstrap._counts


@pytest.mark.parametrize("signed", [False, True])
def test_areas_and_their_bootstrap_against_all_pairs(signed):
    """The whole to the width of a bin; a bootstrap sample to second order in how far it is from the whole."""
    field = torch.randn(40, 1, dtype=torch.float64) + torch.randn(40, 12, dtype=torch.float64)
    codes = 0.7 * field + torch.randn(40, 12, dtype=torch.float64)
    codes = codes if signed else codes.relu()
    codes[:5] = 0
    measure = torch.rand(12, dtype=torch.float64)
    measure /= measure.sum()
    found, high, counts = areas_of(codes, field, measure, 30, np.random.default_rng(0))
    weights = [torch.from_numpy(row)[:, None] * measure for row in counts]
    expected = [exact(codes.flatten(), high.flatten(), weight.flatten()) for weight in weights]
    assert found[0] == pytest.approx(expected[0], abs=1e-3)
    np.testing.assert_allclose(found[1:], expected[1:], atol=0.02)
    assert np.std(found[1:] - expected[1:]) < 0.15 * np.std(expected[1:])


def test_codes_of_any_size_are_told_apart():
    """Bins reach over 32 octaves; a code that is 0 but for one point is better than chance by what that point is worth."""
    field = torch.arange(10, dtype=torch.float64)[None].expand(2, -1)
    measure = torch.full((10,), 0.1, dtype=torch.float64)
    for size in (1e-3, 1.0, 1e3):
        found, high, _ = areas_of(size * (1 + field), field, measure, 2, np.random.default_rng(0))
        assert high.sum() == 4
        assert found[0] == pytest.approx(1.0)
    single = torch.zeros(2, 10, dtype=torch.float64)
    single[:, 9] = 1.0
    assert areas_of(single, field, measure, 2, np.random.default_rng(0))[0][0] == pytest.approx(0.75)


def test_nothing_high_has_no_area():
    flat = torch.ones(3, 10, dtype=torch.float64)
    found, _, _ = areas_of(flat, flat, torch.full((10,), 0.1, dtype=torch.float64), 4, np.random.default_rng(0))
    assert np.isnan(found).all()
