import math

import pytest
import torch

from neuralop_sae import metrics


def test_fve_of_the_channel_mean_is_zero_even_if_channels_differ_in_mean():
    # A scalar mean would give .999 here.
    x = torch.randn(8, 3, 6, 5) + torch.tensor([100.0, -50.0, 0.0]).view(-1, 1, 1)
    mean = x.mean((0, 2, 3), keepdim=True).expand_as(x)
    assert abs(metrics.fraction_of_variance_explained(x, mean)) < 1e-9
    assert metrics.fraction_of_variance_explained(x, x) == 1.0


def test_fve_pools_batches():
    x, y = torch.randn(10, 2, 7), torch.randn(10, 2, 7)
    statistics = metrics.FieldStatistics()
    statistics.update(x[:3], y[:3])
    statistics.update(x[3:], y[3:])
    centred = x.double() - x.double().mean((0, 2), keepdim=True)
    expected = 1 - (x.double() - y.double()).square().sum() / centred.square().sum()
    assert statistics.fve() == pytest.approx(float(expected), rel=1e-12)
    assert statistics.relative_l2() == pytest.approx(float((x - y).norm() / x.norm()), rel=1e-6)
    assert statistics.shrinkage() == pytest.approx(float(y.norm() / x.norm()), rel=1e-6)


@pytest.mark.parametrize("shape", [(30, 30), (48, 48)])
@pytest.mark.parametrize("offset", [100.0, 3000.0])
def test_fve_of_the_channel_mean_is_zero_however_large_it_is(shape, offset):
    # Weights of single precision add up to 1 + 1e-8 or so, and the square of the mean is 1e7 variances.
    x = torch.randn(6, 2, *shape).double() + offset
    mean = x.mean((0, 2, 3), keepdim=True).expand_as(x)
    weights = torch.full(shape, 1.0).div(shape[0] * shape[1])
    assert abs(metrics.fraction_of_variance_explained(x, mean, weights)) < 1e-7


def test_fve_uses_the_quadrature():
    x, y = torch.randn(4, 1, 5).double(), torch.zeros(4, 1, 5).double()
    y[..., 0] = 9.0
    quadrature = torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25])
    weighted = metrics.fraction_of_variance_explained(x, y, quadrature)
    assert weighted == pytest.approx(metrics.fraction_of_variance_explained(x[..., 1:], y[..., 1:]), rel=1e-9)


def test_constant_data_have_no_fve():
    assert math.isnan(metrics.fraction_of_variance_explained(torch.ones(3, 2, 4), torch.ones(3, 2, 4)))


def test_loss_recovered():
    assert metrics.loss_recovered(0.1, 0.1, 0.9) == 1.0
    assert metrics.loss_recovered(0.1, 0.9, 0.9) == 0.0
    assert metrics.loss_recovered(0.1, 0.2, 0.9) == pytest.approx(0.875)
    assert math.isnan(metrics.loss_recovered(0.5, 0.4, 0.5))


def test_pearson_against_torch():
    a, b = torch.randn(50).double(), torch.randn(50).double()
    assert metrics.pearson(a, b) == pytest.approx(float(torch.corrcoef(torch.stack([a, b]))[0, 1]))
    assert metrics.pearson(a, 3 * a + 1) == pytest.approx(1.0)
    assert math.isnan(metrics.pearson(a, torch.ones(50)))
    assert math.isnan(metrics.pearson(torch.full((49,), 0.1), b[:49]))  # whose mean is not 0.1 to the last bit
    assert metrics.pearson(a + 1e6, b + 1e6) == pytest.approx(metrics.pearson(a, b), abs=1e-8)


def test_weights_of_pearson_count_points_more_than_once():
    a, b, times = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([1, 3, 2, 1, 4])
    repeated = (x.repeat_interleave(times, -1) for x in (a, b))
    assert metrics.pearson(a, b, times) == pytest.approx(metrics.pearson(*repeated))


def test_support_and_counts():
    a, b = torch.tensor([1.0, 2, 0, 0]), torch.tensor([0.0, 5, 1, 0])
    assert metrics.support_iou(a, b) == pytest.approx(1 / 3)
    assert metrics.support_iou(a * 0, b * 0) == 1.0
    assert metrics.relative_l2(torch.tensor([3.0, 0]), torch.tensor([0.0, 4])) == pytest.approx(1.25)
    assert metrics.energy_quantile_count(torch.tensor([1.0, 90.0, 9.0]), 0.9) == 1
    assert metrics.energy_quantile_count(torch.tensor([50.0, 0.0, 50.0]), 0.9) == 2
    assert metrics.energy_quantile_count(torch.zeros(3)) == 0


def test_usage_entropy():
    assert metrics.usage_entropy(torch.ones(7)) == pytest.approx(1.0)
    assert metrics.usage_entropy(torch.tensor([1.0, 0, 0])) == 0.0
    assert metrics.usage_entropy(torch.tensor([0.5, 0.5, 0, 0])) == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(40,), (6, 8)])
def test_locality_of_known_energies(shape):
    n = math.prod(shape)
    flat, point, half = torch.ones(n), torch.zeros(n), torch.zeros(n)
    point[3], half[: n // 2] = 5.0, 2.0
    energy = torch.stack([flat, point, half, 0 * flat]).reshape(4, *shape)
    torch.testing.assert_close(
        metrics.participation(energy), torch.tensor([1, 1 / n, 0.5, math.nan]).double(), equal_nan=True, rtol=1e-6, atol=0
    )
    expected = torch.tensor([math.ceil(0.86 * n) / n, 1 / n, math.ceil(0.43 * n) / n, math.nan]).double()
    torch.testing.assert_close(metrics.energy_area(energy, share=0.86), expected, equal_nan=True, rtol=1e-6, atol=0)


def test_locality_counts_points_by_their_area():
    energy, times = torch.rand(5, 7), torch.tensor([1, 3, 2, 1, 4, 1, 2])
    repeated = energy.repeat_interleave(times, 1)
    torch.testing.assert_close(metrics.participation(energy, times), metrics.participation(repeated))
    coarse, fine = metrics.energy_area(energy, times), metrics.energy_area(repeated)
    assert ((coarse >= fine) & (coarse < fine + 4 / 14)).all()  # a point counts as a whole
