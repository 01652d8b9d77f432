"""Drift of integrals and spectra in closed form, on boxes and on the sphere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.analysis.conservation import conservation, shell_energy, spectrum_drift

BOX = ns.FourierBasis((3, 3))


def decaying(n: int = 3, n_steps: int = 4) -> torch.Tensor:
    """A mean of 1, 2, ... that stays, and a wave of wavenumber 2 that halves at each step."""
    s = torch.arange(8, dtype=torch.float64) / 8
    wave = (2 * torch.pi * 2 * s).sin()[:, None].expand(8, 8)
    states = [torch.stack([i + 1 + 0.5**t * wave for t in range(n_steps + 1)]) for i in range(n)]
    return torch.stack(states)[:, :, None]


def test_integrals_of_a_wave_that_decays() -> None:
    quantities = {"mass": lambda u: u[:, 0], "energy": lambda u: u[:, 0].square() / 2}
    table = conservation({"edited": decaying()}, quantities, BOX).set_index(["quantity", "step"])
    mass, energy = table.loc["mass"], table.loc["energy"]
    np.testing.assert_allclose(mass.value, 2.0)
    np.testing.assert_allclose(mass.drift, 0, atol=1e-12)
    fading = np.array([(0.25**t - 1) / 4 for t in range(5)])  # a wave of amplitude a has a mean square of a^2 / 2
    np.testing.assert_allclose(energy.drift, fading, atol=1e-12)
    np.testing.assert_allclose(energy.relative_drift, fading / ((1 + 4 + 9) / 6 + 1 / 4), atol=1e-12)
    np.testing.assert_allclose(energy.low, energy.drift)  # the same in every trajectory
    assert list(table.loc["energy"].index) == [0, 1, 2, 3, 4]


def test_the_scale_of_a_quantity_that_cancels_is_its_size() -> None:
    """The mean of a wave is zero up to round-off; its drift is small beside the wave, not huge beside the round-off."""
    states = decaying(1) - 1
    states[:, 1:] += 0.01
    last = conservation({"run": states}, {"mean": lambda u: u[:, 0]}, BOX).iloc[-1]
    assert last.relative_drift == pytest.approx(0.01 / float(states[0, 0].abs().mean()))


def test_intervals_are_over_trajectories() -> None:
    states = torch.zeros(40, 2, 1, 8, 8, dtype=torch.float64)
    states[:, 1] = torch.randn(40, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    last = conservation({"run": states}, {"mass": lambda u: u[:, 0]}, BOX).iloc[-1]
    error = float(states[:, 1].mean((1, 2, 3)).std()) / math.sqrt(40)
    assert last.high - last.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert math.isnan(last.relative_drift)
    assert math.isnan(conservation({"one": states[:1]}, {"mass": lambda u: u[:, 0]}, BOX).iloc[-1].low)


def test_the_sphere_counts_by_area() -> None:
    basis = ns.SphericalBasis((4, 8))
    sine = basis.colatitudes(9).cos()[:, None].expand(9, 16)  # of the latitude: its square has mean 1/3
    states = (torch.arange(3).view(1, 3, 1, 1, 1) * sine).double()
    table = conservation({"run": states}, {"square": lambda u: u[:, 0].square()}, basis)
    np.testing.assert_allclose(table.value, [0, 1 / 3, 4 / 3])


def test_shells_sum_to_the_mean_square() -> None:
    torch.manual_seed(0)
    for basis, field in (
        (BOX, torch.randn(2, 7, 9, dtype=torch.float64)),
        (ns.FourierBasis(3), torch.randn(2, 9, dtype=torch.float64)),
        (ns.SphericalBasis((4, 8)), ns.SphericalBasis((4, 8)).resample(torch.randn(2, 9, 16, dtype=torch.float64), (17, 32))),
    ):
        torch.testing.assert_close(shell_energy(field, basis).sum(-1), basis.mean_square(field))


def test_spectra_of_a_wave_that_decays() -> None:
    table = spectrum_drift({"truth": decaying(n_steps=2), "edited": 2 * decaying(n_steps=2)}, BOX, reference="truth")
    table = table.set_index(["rollout", "step", "wavenumber"])
    for step in range(3):
        assert table.loc[("truth", step, 2)].energy == pytest.approx(0.25**step / 2)
        assert table.loc[("truth", step, 0)].energy == pytest.approx((1 + 4 + 9) / 3)
        assert table.loc[("truth", step, 2)].log_ratio == pytest.approx(0)
        assert table.loc[("edited", step, 2)].log_ratio == pytest.approx(math.log10(4))
    assert set(table.channel) == {"0"}
    named = spectrum_drift({"truth": decaying()}, BOX, reference="truth", channels={"vorticity": 0})
    assert set(named.channel) == {"vorticity"}


def test_bad_arguments() -> None:
    states = decaying()
    with pytest.raises(ValueError, match="'mass' gave .*; a density is"):
        conservation({"run": states}, {"mass": lambda u: u}, BOX)
    with pytest.raises(ValueError, match=r"rollout 'run' has shape .*states are \(B, n_steps \+ 1, channels, \*grid\)"):
        conservation({"run": states[:, 0]}, {"mass": lambda u: u[:, 0]}, BOX)
    for rollouts, quantities in (({}, {"mass": len}), ({"run": states}, {})):
        with pytest.raises(ValueError, match="give a rollout and a quantity at least"):
            conservation(rollouts, quantities, BOX)
    for options in ({"confidence": 95}, {"n_bootstrap": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
            conservation({"run": states}, {"mass": lambda u: u[:, 0]}, BOX, **options)
    with pytest.raises(ValueError, match="reference='truth' is none of the rollouts: 'run'"):
        spectrum_drift({"run": states}, BOX, reference="truth")
