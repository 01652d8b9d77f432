import math

import pytest
import torch
from scipy.special import eval_legendre

from neuralop_sae.data.concepts import Gabors, ZonalKernels
from neuralop_sae.data.domains import Box, Sphere


def written(kernels, position, shape, length=1.0):
    domain, concept = kernels.domain(length), torch.arange(kernels.n_concepts)
    return kernels.write(concept, torch.tensor(position, dtype=torch.float64).expand(len(concept), -1), shape, domain)


@pytest.mark.parametrize("wavenumbers", [(0, 7), (16, 32)])
@pytest.mark.parametrize(("n_dim", "channels", "length"), [(1, 1, 1.0), (1, 3, 2.0), (2, 1, 1.0), (2, 3, 1.5)])
def test_gabors_have_norm_one_on_any_box(wavenumbers, n_dim, channels, length) -> None:
    gabors = Gabors(5, channels, n_dim, wavenumbers=wavenumbers, seed=3)
    fields = written(gabors, [0.123] * n_dim, (400 if n_dim == 1 else 160,) * n_dim, length)
    square = fields.square().sum(1).flatten(1).mean(1) * length**n_dim
    torch.testing.assert_close(square, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_gabor_is_its_formula() -> None:
    gabors = Gabors(4, 2, 2, seed=1)
    fields = written(gabors, [0.41, 0.52], (16, 16))
    for c in range(4):
        for i, j in ((7, 8), (3, 12)):
            r = torch.tensor([i / 16 - 0.41, j / 16 - 0.52], dtype=torch.float64)
            envelope = math.exp(-float(r.square().sum()) / (2 * float(gabors.width[c]) ** 2))
            wave = torch.exp(2j * torch.pi * (gabors.wavenumber[c] @ r))
            torch.testing.assert_close(fields[c, :, i, j], envelope * (gabors.amplitude[c] * wave).real, rtol=0, atol=1e-9)


def test_wavenumbers_are_where_they_were_asked_for() -> None:
    for low, high in ((0, 7), (16, 32)):
        gabors = Gabors(5, wavenumbers=(low, high))
        spectrum = torch.fft.rfft(written(gabors, [0.5], (256,))[:, 0]).abs()
        if low:  # elsewhere positive and negative wavenumbers overlap
            torch.testing.assert_close(spectrum.argmax(1).double(), gabors.wavenumber[:, 0], rtol=0, atol=0.5)
        assert gabors.wavenumber[:, 0].tolist() == torch.linspace(low, high, 5, dtype=torch.float64).tolist()
        assert sorted(gabors.width.tolist()) == pytest.approx([0.03, 0.0425, 0.055, 0.0675, 0.08])


def test_directions_in_two_dimensions_differ() -> None:
    gabors = Gabors(6, n_dim=2, wavenumbers=(4, 8))
    torch.testing.assert_close(gabors.wavenumber.norm(dim=1), torch.linspace(4, 8, 6, dtype=torch.float64))
    angles = torch.atan2(*gabors.wavenumber.T.flip(0)) % torch.pi
    torch.testing.assert_close(angles.sort().values, torch.pi * torch.arange(6).double() / 6)


def test_concepts_depend_on_the_seed_only() -> None:
    first, again, other = (Gabors(5, 2, seed=seed).amplitude for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("grid", ["equiangular", "legendre-gauss"])
def test_zonal_kernels_are_their_formula(grid: str) -> None:
    zonal = ZonalKernels(4, 2, (0, 7), grid=grid)
    place = torch.tensor([0.7, 2.0], dtype=torch.float64)
    fields = written(zonal, place.tolist(), (33, 64))
    cosine = Sphere(grid).distance(place, Sphere(grid).points((33, 64))).cos()
    for c in range(4):
        series = sum((2 * l + 1) * float(d) * eval_legendre(l, cosine.numpy()) for l, d in enumerate(zonal.spectrum[c]))  # noqa: E741
        for i in range(2):
            expected = zonal.amplitude[c, i] * torch.as_tensor(series)
            torch.testing.assert_close(fields[c, i], expected, rtol=0, atol=1e-9)


def test_zonal_kernels_have_norm_one_and_their_spectrum_by_degree() -> None:
    zonal = ZonalKernels(3, 2, (1, 6))
    fields = written(zonal, [1.1, 4.0], (41, 80))
    basis = Sphere().basis(20)
    coefficients = basis.analysis(fields)
    by_degree = (basis.weights(like=fields) * coefficients.abs().square()).sum((1, 3))
    l = torch.arange(len(zonal.spectrum[0]), dtype=torch.float64)  # noqa: E741
    expected = (2 * l + 1) * zonal.spectrum.square()
    torch.testing.assert_close(by_degree[:, : len(l)], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(basis.mean_square(fields).sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gabors(0), "n_concepts is 0"),
        (lambda: Gabors(5, 0), "channels is 0"),
        (lambda: Gabors(5, n_dim=3), "boxes of 1 or 2"),
        (lambda: Gabors(5, widths=(0.0, 0.1)), "widths is 0"),
        (lambda: Gabors(5, wavenumbers=(7, 0)), "lower comes first"),
        (lambda: ZonalKernels(5, bandwidth=0), "bandwidth is 0"),
        (lambda: ZonalKernels(5, grid="healpix"), "unknown grid"),
        (lambda: ZonalKernels(5).domain(2.0), "the sphere has none"),
    ],
)
def test_bad_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_domain_has_the_length() -> None:
    assert Gabors(2, n_dim=2).domain(3.0) == Box(2, 3.0)
    assert ZonalKernels(2).domain(1.0) == Sphere()
