import math

import numpy as np
import pytest
import torch

import neuralop_sae as ns
from neuralop_sae.analysis.calculus import Globe, PeriodicBox
from neuralop_sae.analysis.spectra import concept_spectra

PLANE = ns.FourierBasis((5, 5))


def plane(lengths, grid):
    axes = [torch.arange(n, dtype=torch.float64) * length / n for n, length in zip(grid, lengths, strict=True)]
    return torch.meshgrid(*axes, indexing="ij")


def test_plane_waves_have_their_scale_and_direction(channels):
    lengths = (2.0, 1.0)
    x, y = plane(lengths, (24, 20))
    slanted = torch.cos(2 * math.pi * (3 * x / 2 + 2 * y)) + 7  # k = (1.5, 2) cycles per unit of length, |k| = 2.5
    both = torch.cos(2 * math.pi * 2 * x) + torch.cos(2 * math.pi * 2 * y)
    acts = torch.stack([slanted, both, torch.zeros_like(x)])[None].repeat(3, 1, 1, 1)
    acts[1, 0] = 0
    found = concept_spectra(channels(3, PLANE), acts, calculus=PeriodicBox(lengths), batch_size=2)
    np.testing.assert_allclose(found.code_scale[:2], [1 / 2.5, 1 / 2])
    np.testing.assert_allclose(found.code_anisotropy[:2], [1, 0], atol=1e-12)
    np.testing.assert_allclose(found.code_direction[0], [0.6, 0.8])
    energy = found.code_energy.sel(concept=0)
    assert float(energy.sel(wavenumber=2.5)) == pytest.approx(0.5)  # shells are 1/2 cycle per unit of length wide
    assert float(energy.sel(wavenumber=0)) == pytest.approx(49)
    assert float(energy.sum()) == pytest.approx(49.5)
    np.testing.assert_allclose(found.frequency, [2 / 3, 1, 0])
    assert found.sel(concept=2)[["code_scale", "code_anisotropy", "code_spread", "extent"]].to_array().isnull().all()


def test_energy_is_the_mean_square_also_of_noise(channels):
    acts = torch.randn(5, 2, 9, 7, dtype=torch.float64)
    found = concept_spectra(channels(2, PLANE), acts)
    np.testing.assert_allclose(found.code_energy.sum("wavenumber"), acts.square().mean((0, 2, 3)))


def test_anisotropy_is_the_second_moment_of_the_spectrum(channels):
    basis, grid = ns.FourierBasis((7, 7)), (15, 15)
    spectrum = torch.randn(4, *basis.mode_shape, dtype=torch.cdouble)
    fields = basis.synthesis(spectrum, grid)
    spectrum = basis.analysis(fields)
    k = torch.stack(torch.meshgrid(*[torch.tensor(list(f), dtype=torch.float64) for f in basis.frequencies()], indexing="ij"))
    power = basis.weights(grid, like=k) * spectrum.abs().square().sum(0)
    values, vectors = torch.linalg.eigh(torch.einsum("iab,jab,ab->ij", k, k, power))
    found = concept_spectra(channels(1, basis), fields[:, None])
    assert float(found.code_anisotropy[0]) == pytest.approx(float((values[1] - values[0]) / values.sum()))
    assert abs(float(found.code_direction[0].values @ vectors[:, 1].numpy())) == pytest.approx(1)


def test_places_of_bumps_over_the_edge(channels):
    x, y = plane((1.0, 1.0), (32, 32))
    near = lambda s, at: (s - at + 0.5).remainder(1.0) - 0.5
    bump = lambda a, b: torch.exp(-(near(x, a).square() + near(y, b).square()) / (4 * 0.05**2))
    acts = torch.stack([bump(0.05, 0.4), bump(0.95, 0.4)])[:, None]
    found = concept_spectra(channels(1, PLANE), acts)
    centre = found.code_centre[0].values
    assert abs((centre[0] + 0.5) % 1 - 0.5) < 1e-9
    assert centre[1] == pytest.approx(0.4)
    assert float(found.extent[0]) == pytest.approx(0.05 * 2**0.5, rel=1e-2)  # z^2 is as wide as 0.05 along each axis
    assert float(found.code_spread[0]) == pytest.approx((2 * 0.05**2 + 0.05**2) ** 0.5, rel=2e-2)


def test_harmonics_on_the_sphere_have_their_degree(channels):
    basis = ns.SphericalBasis((6, 12))
    coefficients = torch.zeros(2, 6, 6, dtype=torch.cdouble)
    coefficients[0, 4, 2], coefficients[1, 3, 0] = 1.0, 1.0
    acts = basis.synthesis(coefficients, (17, 32))[None]
    found = concept_spectra(channels(2, basis), acts, calculus=Globe(radius=3.0))
    np.testing.assert_allclose(found.code_scale, [6 * math.pi / 20**0.5, 6 * math.pi / 12**0.5])
    np.testing.assert_allclose(found.code_energy.sel(concept=0, wavenumber=4), 2)
    np.testing.assert_allclose(found.code_energy.sum("wavenumber"), [2, 1])
    assert float(found.code_anisotropy[1]) == pytest.approx(1)
    np.testing.assert_allclose(found.code_direction[1], [0, 1], atol=1e-9)  # a zonal field varies northward only


def test_a_code_at_a_pole_is_there(channels):
    up = Globe().places((33, 64))
    acts = torch.stack([torch.exp(30 * (up[2] - 1)), torch.exp(30 * (-up[1] - 1))])[None]
    found = concept_spectra(channels(2, ns.SphericalBasis((4, 8))), acts)
    assert float(found.code_centre[0, 0]) == pytest.approx(90)
    np.testing.assert_allclose(found.code_centre[1], [0, 270], atol=1e-6)
    np.testing.assert_allclose(found.code_spread, (2 / 60) ** 0.5, rtol=1e-2)


def test_kernels_of_a_model_of_the_package():
    sae = ns.SAEFNO(3, 70, (5, 5), skip=None, concept_rule=ns.TopK(8))
    found = concept_spectra(sae, torch.randn(4, 3, 12, 12))
    np.testing.assert_allclose(found.kernel_energy.sum("wavenumber"), sae.kernel_norms().detach().square(), rtol=1e-5)
    atoms = sae.atoms([66], (12, 12)).detach().double()[0]
    slope = PeriodicBox((1.0, 1.0)).gradient(atoms)
    values = torch.linalg.eigvalsh(torch.einsum("cixy,cjxy->ij", slope, slope))
    assert float(found.kernel_anisotropy[66]) == pytest.approx(float((values[1] - values[0]) / values.sum()))


def test_no_samples_are_refused(channels):
    with pytest.raises(ValueError, match="no samples"):
        concept_spectra(channels(2, PLANE), torch.zeros(0, 2, 8, 8))
