import pytest
import torch

from neuralop_sae.data.concepts import Gabors, ZonalKernels
from neuralop_sae.data.domains import Sphere
from neuralop_sae.data.synthetic import SyntheticConcepts

GABORS_1D = SyntheticConcepts(Gabors(5), snr_db=0.0, noise_band=63)
GABORS_2D = SyntheticConcepts(Gabors(4, channels=3, n_dim=2), rate=1.0, snr_db=3.0, noise_band=9)
ZONAL = SyntheticConcepts(ZonalKernels(3, channels=2), rate=2.0, snr_db=0.0, noise_band=7)
MODELS = [(GABORS_1D, (128,), (256,), 2), (GABORS_2D, (16, 20), (64, 80), 4), (ZONAL, (17, 32), (33, 64), 2)]


@pytest.mark.parametrize(("model", "coarse", "fine", "ratio"), MODELS)
def test_every_grid_sees_the_same_functions(model, coarse, fine, ratio) -> None:
    data = model.sample(6, coarse, seed=5)
    again = data.on(fine)
    shared = (..., *(slice(None, None, ratio) for _ in coarse))
    torch.testing.assert_close(again.x[shared], data.x, rtol=0, atol=2e-5)
    torch.testing.assert_close(again.codes(0.1)[shared], data.codes(0.1), rtol=0, atol=2e-4)
    assert torch.equal(again.events.position, data.events.position)


def test_noise_is_sampled_on_a_grid_too_coarse_for_it() -> None:
    data = GABORS_1D.sample(4, (128,))
    torch.testing.assert_close(data.on((16,)).x, data.x[..., ::8], rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", [GABORS_1D, GABORS_2D, ZONAL])
def test_the_signal_is_the_sum_of_the_events(model) -> None:
    shape = (128,) if model is GABORS_1D else (17, 32)
    data = model.sample(5, shape, seed=2)
    expected = torch.zeros(data.signal.shape, dtype=torch.float64)
    events = data.events
    for e in range(len(events)):
        kernel = model.kernels.write(events.concept[e : e + 1], events.position[e : e + 1], shape, data.domain)
        expected[events.sample[e]] += events.amplitude[e] * kernel[0]
    torch.testing.assert_close(data.signal, expected.float(), rtol=0, atol=1e-5)
    assert len(events) > 5


@pytest.mark.parametrize("n_dim", [1, 2])
def test_the_signal_is_the_convolution_of_codes_with_atoms(n_dim: int) -> None:
    model = SyntheticConcepts(Gabors(3, channels=2, n_dim=n_dim), rate=3.0)
    n, length, width, dims = 128 if n_dim == 1 else 64, 2.0 if n_dim == 1 else 1.0, 0.02, tuple(range(-n_dim, 0))
    shape = (n,) * n_dim
    data = model.sample(4, shape, seed=1, length=length)
    atoms = model.atoms(shape, length=length).roll((n // 2,) * n_dim, dims)  # the impulse from the middle to the origin
    codes = torch.fft.fftn(data.codes(width).double(), dim=dims)
    convolved = torch.einsum("np...,pc...->nc...", codes, torch.fft.fftn(atoms, dim=dims)) * (length / n) ** n_dim
    # A Gaussian in place of each delta multiplies the coefficients of the signal by those of the Gaussian.
    k = torch.stack(torch.meshgrid(*[torch.fft.fftfreq(n, length / n, dtype=torch.float64)] * n_dim, indexing="ij"))
    blurred = torch.fft.fftn(data.signal.double(), dim=dims) * (-2 * (torch.pi * width) ** 2 * k.square().sum(0)).exp()
    assert float((convolved - blurred).abs().max() / blurred.abs().max()) < 1e-5
    assert len(data.events) > 20


def test_a_longer_set_begins_with_the_shorter_one() -> None:
    for model, shape in ((GABORS_2D, (12, 12)), (ZONAL, (17, 32))):
        short, long, other = (model.sample(n, shape, seed=s) for n, s in ((3, 7), (5, 7), (3, 8)))
        torch.testing.assert_close(long.x[:3], short.x, rtol=0, atol=1e-6)
        assert torch.equal(long.events.position[long.events.sample < 3], short.events.position)
        assert not torch.allclose(other.x, short.x, atol=0.1)


@pytest.mark.parametrize("n_dim", [1, 2])
def test_a_longer_box_has_the_events_of_the_shorter_and_new_ones_in_the_new_part(n_dim: int) -> None:
    model = SyntheticConcepts(Gabors(3, n_dim=n_dim, widths=(0.02, 0.03)), rate=2.0)
    short = model.sample(20, (32,) * n_dim, length=1.0, seed=3)
    long = model.sample(20, (80,) * n_dim, length=2.5, seed=3)
    old = (long.events.position < 1).all(1)
    assert torch.equal(long.events.of(old).position, short.events.position)
    assert torch.equal(long.events.of(old).amplitude, short.events.amplitude)
    within = (long.events.position % 1)[:, 0].sort().values
    assert float((within[1:] - within[:-1]).min()) > 1e-12  # cells are not copies of each other
    volume = 2.5**n_dim
    assert float((~old).sum()) == pytest.approx(20 * 3 * 2 * (volume - 1), rel=0.25)
    assert float(long.events.position.max()) < 2.5
    # Far from the seams an event is written alike: same spacing, same points.
    lonely = [e for e in range(len(short.events)) if (short.events.position[e] - 0.5).abs().max() < 0.2]
    event = short.events.of(torch.tensor(lonely[:1]))
    a, b = (model.kernels.write(event.concept, event.position, d.x.shape[2:], d.domain) for d in (short, long))
    torch.testing.assert_close(b[(..., *(slice(0, 32),) * n_dim)], a, rtol=0, atol=1e-12)


def test_numbers_of_events_are_poisson_and_positions_uniform() -> None:
    model = SyntheticConcepts(Gabors(2), rate=(0.4, 1.5), amplitudes=(1.0, 2.0))
    events = model.sample(3000, (8,)).events
    for concept, rate in enumerate((0.4, 1.5)):
        mine = events.of(events.concept == concept)
        counts = mine.sample.bincount(minlength=3000).double()
        assert float(counts.mean()) == pytest.approx(rate, abs=4 * (rate / 3000) ** 0.5)
        assert float(counts.var()) == pytest.approx(rate, rel=0.15)
        uniform = mine.position[:, 0].sort().values
        ideal = torch.linspace(0, 1, len(uniform), dtype=torch.float64)
        assert float((uniform - ideal).abs().max()) < 1.95 / len(uniform) ** 0.5  # Kolmogorov, one in a thousand
        assert float(mine.amplitude.mean()) == pytest.approx(1.5, abs=0.05)
        assert float(mine.amplitude.min()) >= 1
        assert float(mine.amplitude.max()) <= 2


def test_concepts_come_together_as_often_as_they_should() -> None:
    model = SyntheticConcepts(Gabors(3), rate=(0.5, 0.5, 2.0), correlation=0.6)
    events = model.sample(2000, (4,)).events
    counts = torch.stack([events.sample[events.concept == c].bincount(minlength=2000) for c in range(3)]).double()
    correlation = torch.corrcoef(counts)
    assert float(correlation[0, 1]) == pytest.approx(0.6, abs=0.08)
    assert float(correlation[0, 2]) == pytest.approx(0.3, abs=0.08)
    assert float(counts[2].mean()) == pytest.approx(2.0, abs=0.1)
    alone = SyntheticConcepts(Gabors(2), rate=0.5).sample(2000, (4,)).events
    counts = torch.stack([alone.sample[alone.concept == c].bincount(minlength=2000) for c in range(2)]).double()
    assert abs(float(torch.corrcoef(counts)[0, 1])) < 0.08


@pytest.mark.parametrize(("model", "shape"), [(GABORS_1D, (32,)), (GABORS_2D, (16, 16)), (ZONAL, (17, 32))])
def test_signal_and_noise_have_the_power_that_was_asked_for(model, shape) -> None:
    data = model.sample(600 if len(shape) == 1 else 150, shape, seed=11)
    quadrature = Sphere().basis(2).quadrature(shape, like=data.x) if model is ZONAL else torch.tensor(1 / data.x[0, 0].numel())

    def power(fields):
        return float((fields.double().square() * quadrature).flatten(1).sum(1).mean())

    low, high = model.amplitudes
    expected = float(model.rates.sum()) * (low**2 + low * high + high**2) / 3
    signal = power(data.signal - data.signal.mean((0, *range(2, data.x.ndim)), keepdim=True))
    assert signal == pytest.approx(expected, rel=0.15)
    noise = power(data.x - data.signal)
    assert noise == pytest.approx(expected / 10 ** (model.snr_db / 10), rel=0.04)


def test_noise_is_white_on_the_grid_of_its_band_and_alike_everywhere() -> None:
    model = SyntheticConcepts(Gabors(2), rate=1e-09, snr_db=-90.0, noise_band=3)
    noise = model.sample(2000, (7,)).x[:, 0].double() / model.noise_variance**0.5
    covariance = noise.T @ noise / len(noise)
    torch.testing.assert_close(covariance, torch.eye(7, dtype=torch.float64), rtol=0, atol=0.11)
    sphere = SyntheticConcepts(ZonalKernels(2), rate=1e-09, snr_db=-90.0, noise_band=3)
    noise = sphere.sample(1000, (9, 12)).x[:, 0].double() / sphere.noise_variance**0.5
    torch.testing.assert_close(noise.square().mean(0), torch.ones(9, 12).double(), rtol=0, atol=0.22)
    # Two points at a right angle: (1 / L^2) sum (2 l + 1) P_l(0) over L = 4 degrees is (1 - 5 / 2) / 16.
    assert float((noise[:, 0, 0] * noise[:, 4, 3]).mean()) == pytest.approx(-1.5 / 16, abs=0.1)


def test_noise_without_a_band_is_independent_at_each_point() -> None:
    model = SyntheticConcepts(Gabors(2), rate=1e-09, snr_db=-90.0)
    noise = model.sample(2000, (6,)).x[:, 0].double() / model.noise_variance**0.5
    torch.testing.assert_close(noise.T @ noise / len(noise), torch.eye(6, dtype=torch.float64), rtol=0, atol=0.11)
    clean = SyntheticConcepts(Gabors(2)).sample(2, (16,))
    assert torch.equal(clean.x, clean.signal)


@pytest.mark.parametrize(("model", "shape"), [(GABORS_1D, (64,)), (ZONAL, (33, 64))])
def test_codes_integrate_to_the_amplitudes(model, shape) -> None:
    data = model.sample(30, shape, seed=4)
    codes = data.codes(0.2).double()
    quadrature = Sphere().basis(2).quadrature(shape, like=codes) if model is ZONAL else torch.tensor(1 / 64)
    integral = (codes * quadrature).flatten(2).sum(2)
    expected = torch.zeros(30, model.kernels.n_concepts, dtype=torch.float64)
    expected.index_put_((data.events.sample, data.events.concept), data.events.amplitude, accumulate=True)
    torch.testing.assert_close(integral, expected, rtol=0, atol=1e-5)


def test_atoms_stand_where_those_of_an_sae_do() -> None:
    import neuralop_sae as ns

    sae = ns.SAESFNO(in_channels=1, n_concepts=1, n_modes=(9, 18), skip=None, isotropic=True)
    impulse = sae.basis.synthesis(sae.basis.impulse(like=torch.zeros((), dtype=torch.float64)), (33, 64))
    blob = SyntheticConcepts(ZonalKernels(2, degrees=(0, 0), bandwidth=3.0)).atoms((33, 64))
    assert blob[0, 0].abs().argmax() == impulse.argmax() == 16 * 64 + 32
    for shape in ((128,), (33,)):
        blob = SyntheticConcepts(Gabors(2, wavenumbers=(0, 0))).atoms(shape)
        assert blob[:, 0].abs().argmax(1).tolist() == [shape[0] // 2] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SyntheticConcepts(Gabors(3), rate=(1.0, 2.0)), "rate has 2 numbers"),
        (lambda: SyntheticConcepts(Gabors(3), rate=0.0), "rate is 0"),
        (lambda: SyntheticConcepts(Gabors(3), amplitudes=(2.0, 1.0)), "smaller comes first"),
        (lambda: SyntheticConcepts(Gabors(3), correlation=1.5), "correlation is 1.5"),
        (lambda: SyntheticConcepts(Gabors(3), snr_db=float("nan")), "snr_db is nan"),
        (lambda: SyntheticConcepts(Gabors(3), noise_band=-1), "noise_band is -1"),
        (lambda: GABORS_1D.sample(0, (8,)), "n_samples is 0"),
        (lambda: GABORS_1D.sample(1, (8,), seed=-1), "seed is -1"),
        (lambda: GABORS_1D.sample(1, (8, 8)), "1 positive sizes"),
        (lambda: GABORS_1D.sample(1, (8,), length=0.0), "length is 0"),
        (lambda: ZONAL.sample(1, (17, 32), length=2.0), "the sphere has none"),
        (lambda: ZONAL.sample(1, (5, 8)), "holds 3 degrees"),
        (lambda: GABORS_1D.sample(1, (8,)).codes(0.0), "width is 0"),
    ],
)
def test_bad_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
