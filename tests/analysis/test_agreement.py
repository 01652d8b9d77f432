"""Correlations of rollouts with the truth, against states of known correlation."""

import math

import numpy as np
import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.analysis.agreement import pattern_correlation

BOX = ns.FourierBasis((3, 3))


def waves(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A sine and a cosine of each of n samples, ``(n, 1, 1, 8, 8)``: of equal norm, and not correlated."""
    s = torch.arange(8, dtype=torch.float64) / 8
    size = torch.arange(1, n + 1, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    return tuple(size * wave(2 * torch.pi * s)[:, None].expand(8, 8) for wave in (torch.sin, torch.cos))


def test_correlation_of_turned_waves() -> None:
    sine, cosine = waves(5)
    angles = [0.0, 0.7, math.pi]
    truth = sine.expand(-1, 3, -1, -1, -1)
    turned = torch.cat([math.cos(a) * sine + math.sin(a) * cosine for a in angles], 1) + 4
    table = pattern_correlation({"turned": turned, "stays": truth}, truth, BOX).set_index(["rollout", "step"])
    np.testing.assert_allclose(table.correlation["turned"], np.cos(angles), atol=1e-12)
    np.testing.assert_allclose(table.correlation["stays"], 1.0)
    np.testing.assert_allclose(table.low, table.correlation, atol=1e-12)  # the same in every sample


def test_intervals_are_of_whole_trajectories() -> None:
    """Twenty copies of the states of two trajectories tell no more than two states."""
    sine, cosine = waves(6)
    angle = torch.linspace(0.2, 1.2, 6, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    turned = angle.cos() * sine + angle.sin() * cosine
    once = pattern_correlation({"run": turned}, sine, BOX).iloc[0]
    assert once.correlation == pytest.approx(float(angle.cos().mean()))
    assert once.low < once.correlation < once.high
    copies = [part.repeat_interleave(20, 0) for part in (turned, sine)]
    again = pattern_correlation({"run": copies[0]}, copies[1], BOX, trajectory=np.repeat(range(6), 20)).iloc[0]
    assert (again.low, again.high) == pytest.approx((once.low, once.high))
    alone = pattern_correlation({"run": copies[0]}, copies[1], BOX).iloc[0]
    assert alone.high - alone.low < 0.5 * (once.high - once.low)


def test_the_sphere_counts_by_area() -> None:
    basis = ns.SphericalBasis((4, 8))
    colatitude = basis.colatitudes(25)[:, None].expand(25, 48).double()
    sine, zonal = colatitude.cos(), colatitude.cos() ** 3
    found = pattern_correlation({"run": zonal[None, None, None]}, sine[None, None, None], basis)
    # over the sphere the means of x^2, x^4 and x^6 for x = sin(latitude) are 1/3, 1/5 and 1/7
    assert found.correlation.item() == pytest.approx((1 / 5) / math.sqrt(1 / 3 * 1 / 7), abs=1e-4)
    assert math.isnan(found.low.item())


def test_shapes_that_do_not_fit_are_refused() -> None:
    sine, _ = waves(2)
    with pytest.raises(ValueError, match=r"rollout 'run' has shape \(2, 1, 1, 8, 8\), the truth \(2, 2, 1, 8, 8\)"):
        pattern_correlation({"run": sine}, sine.expand(-1, 2, -1, -1, -1), BOX)
    with pytest.raises(ValueError, match="confidence is a share"):
        pattern_correlation({"run": sine}, sine, BOX, confidence=95)
