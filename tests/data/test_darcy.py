"""Darcy flow against closed forms, conservation, the spectrum's formula and neuralop's own data."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.sparse.linalg
import torch

from neuralop_sae.data import darcy
from neuralop_sae.data.darcy import darcy_flow, darcy_matrix, gaussian_field, load_darcy, solve_darcy


def nodes(n: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.arange(n + 1) / n, np.arange(n + 1) / n, indexing="ij")
    return x, y


def two_phase(n: int, seed: int = 0, low: float = 3.0, high: float = 12.0) -> np.ndarray:
    return np.where(gaussian_field(1, n, seed=seed)[0] > 0, high, low)


def convergence_rate(errors: list[float]) -> float:
    return float(np.log2(errors[0] / errors[1]))


def poisson_series(n: int, terms: int = 400) -> np.ndarray:
    """Solution of -Laplace(u) = 1: the parabola in x plus a sine series that corrects the sides y = 0, 1."""
    x, y = nodes(n)
    u = x * (1 - x) / 2
    for k in range(1, 2 * terms, 2):
        decay = (np.exp(-np.pi * k * y) + np.exp(-np.pi * k * (1 - y))) / (1 + np.exp(-np.pi * k))
        u -= 4 / (np.pi * k) ** 3 * np.sin(np.pi * k * x) * decay
    return np.asarray(u)


def test_constant_coefficient_matches_the_fourier_series_at_second_order() -> None:
    errors = [float(np.abs(solve_darcy(np.full((n + 1, n + 1), 5.0)) - poisson_series(n) / 5).max()) for n in (24, 48)]
    assert errors[1] < 1e-5
    assert convergence_rate(errors) == pytest.approx(2, abs=0.1)


def test_manufactured_solution_with_a_smooth_coefficient_converges_at_second_order() -> None:
    errors = []
    for n in (32, 64):
        x, y = nodes(n)
        a = 2 + x + np.sin(np.pi * y)
        u = np.sin(np.pi * x) * np.sin(2 * np.pi * y)
        u_x = np.pi * np.cos(np.pi * x) * np.sin(2 * np.pi * y)
        u_y = 2 * np.pi * np.sin(np.pi * x) * np.cos(2 * np.pi * y)
        forcing = 5 * np.pi**2 * a * u - u_x - np.pi * np.cos(np.pi * y) * u_y
        errors.append(float(np.abs(solve_darcy(a, forcing) - u).max()))
    assert errors[1] < 2e-3
    assert convergence_rate(errors) == pytest.approx(2, abs=0.1)


def test_harmonic_mean_is_exact_for_layers_crossed_by_a_constant_flux() -> None:
    n = 12
    layers = np.where(np.arange(n + 1) % 5 < 2, 3.0, 12.0)
    steps = (1 / layers[1:] + 1 / layers[:-1]) / 2  # u' = 1/a, jumps of a half-way between nodes
    u = np.concatenate([[0.0], np.cumsum(steps)])
    field = np.broadcast_to(u[:, None], (n + 1, n + 1))
    balance = darcy_matrix(np.broadcast_to(layers[:, None], (n + 1, n + 1))) @ field[1:-1, 1:-1].ravel()
    # Rows beside the boundary hold u = 0 there, which this field does not satisfy.
    np.testing.assert_allclose(balance.reshape(n - 1, n - 1)[1:-1, 1:-1], 0, atol=1e-12)


@pytest.mark.parametrize("n", [3, 4, 9])
def test_matrix_is_symmetric_positive_definite_and_holds_the_five_point_balances(n: int) -> None:
    a = np.random.default_rng(0).uniform(0.1, 10, (n + 1, n + 1))
    expected = np.zeros((n + 1, n + 1, n + 1, n + 1))
    for i in range(1, n):
        for j in range(1, n):
            for p, q in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                t = 2 / (1 / a[i, j] + 1 / a[p, q])
                expected[i, j, i, j] += t
                expected[i, j, p, q] -= t
    inner = slice(1, -1)
    matrix = darcy_matrix(a).toarray()
    size = (n - 1) ** 2
    np.testing.assert_allclose(matrix, expected[inner, inner, inner, inner].reshape(size, size), atol=1e-13)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_flux_through_the_boundary_equals_the_integral_of_the_forcing() -> None:
    n = 96
    a = two_phase(n)
    u = solve_darcy(a)

    def outflow(a: np.ndarray, u: np.ndarray) -> float:
        a_inner, a_edge, u_inner = a[1, 1:-1], a[0, 1:-1], u[1, 1:-1]
        return float((2 * a_inner * a_edge / (a_inner + a_edge) * u_inner).sum())

    total = sum(outflow(np.rot90(a, k), np.rot90(u, k)) for k in range(4))
    # The control volumes of the interior nodes fill [h/2, 1 - h/2]^2.
    assert total == pytest.approx((1 - 1 / n) ** 2, rel=1e-8)


@pytest.mark.parametrize(("low", "high"), [(3.0, 12.0), (1e-3, 1.0)])
def test_solution_satisfies_the_equations_symmetrically_and_obeys_the_maximum_principle(low: float, high: float) -> None:
    n = 48
    a = two_phase(n, 1, low, high)
    u = solve_darcy(a)
    residual = darcy_matrix(a) @ u[1:-1, 1:-1].ravel() * n**2 - 1
    assert np.linalg.norm(residual) < 1e-8 * n
    assert (u[1:-1, 1:-1] > 0).all()
    for edge in (u[0], u[-1], u[:, 0], u[:, -1]):
        assert (edge == 0).all()
    np.testing.assert_allclose(solve_darcy(a.T), u.T, rtol=0, atol=1e-8 * u.max())
    np.testing.assert_allclose(solve_darcy(10 * a, 20.0), 2 * u, rtol=0, atol=1e-8 * u.max())


@pytest.mark.parametrize("n", [24, 96])
def test_the_number_of_iterations_does_not_grow_with_the_grid(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    conjugate_gradients = scipy.sparse.linalg.cg
    iterations: list[int] = []

    def counted(*args: object, **kwargs: object) -> object:
        return conjugate_gradients(*args, callback=lambda _: iterations.append(1), **kwargs)

    monkeypatch.setattr("scipy.sparse.linalg.cg", counted)
    solve_darcy(two_phase(n))
    # The bound ln(2 / 1e-10) / ln 3 of conjugate gradients at condition number 4 is 22, in the energy norm.
    assert 0 < len(iterations) < 30


def test_no_convergence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scipy.sparse.linalg.cg", lambda matrix, b, **_: (b, 7))
    with pytest.raises(RuntimeError, match="no convergence in 7 iterations at contrast 4"):
        solve_darcy(two_phase(8))


def test_field_is_the_same_at_every_resolution_and_for_every_length() -> None:
    coarse, fine = gaussian_field(3, 24, seed=5), gaussian_field(2, 96, seed=5)
    np.testing.assert_allclose(coarse[:2], fine[:, ::4, ::4], rtol=0, atol=1e-13)
    assert np.abs(coarse[0] - coarse[1]).max() > 0.01
    assert np.abs(coarse - gaussian_field(3, 24, seed=6)).max() > 0.01


@pytest.mark.parametrize(("alpha", "tau"), [(2.0, 3.0), (3.0, 1.0)])
def test_field_has_the_covariance_spectrum_of_the_formula(alpha: float, tau: float) -> None:
    samples, n = 2000, 8
    # A DCT-I on more nodes than modes inverts the cosine series exactly.
    spectrum = scipy.fft.dctn(gaussian_field(samples, n, alpha=alpha, tau=tau, n_modes=n), type=1, axes=(1, 2))
    spectrum /= (2 * n) ** 2
    spectrum[:, 1:] *= np.sqrt(2)
    spectrum[:, :, 1:] *= np.sqrt(2)
    k = np.arange(n)
    variance = (np.pi**2 * (k[:, None] ** 2 + k**2) + tau**2) ** -alpha
    whitened = spectrum[:, :n, :n] / np.sqrt(variance)
    whitened = whitened.reshape(samples, -1)
    np.testing.assert_allclose(whitened[:, 0], 0, atol=1e-12)
    covariance = whitened[:, 1:].T @ whitened[:, 1:] / samples
    assert np.abs(covariance - np.eye(n * n - 1)).max() < 5 * np.sqrt(2 / samples)


def test_half_of_the_coefficient_is_high_and_the_set_does_not_depend_on_its_length_or_resolutions() -> None:
    long = darcy_flow(40, (8, 16), seed=3, solver_resolution=32, progress=False)
    assert list(long) == [8, 16]
    assert long[16].x.shape == long[16].y.shape == (40, 1, 16, 16)
    assert long[16].x.dtype == long[16].y.dtype == torch.float32
    assert set(long[16].x.unique().tolist()) == {3.0, 12.0}
    share = (long[16].x == 12).float().mean()
    assert abs(share - 0.5) < 0.05
    assert torch.equal(long[16].x[..., ::2, ::2], long[8].x)
    assert torch.equal(long[16].y[..., ::2, ::2], long[8].y)
    short = darcy_flow(4, [16], seed=3, solver_resolution=32, progress=False)
    assert torch.equal(short[16].x, long[16].x[:4])
    assert torch.equal(short[16].y, long[16].y[:4])
    assert not torch.equal(short[16].x, darcy_flow(4, [16], seed=4, progress=False)[16].x)


def test_samples_are_the_solution_at_i_over_n() -> None:
    split = darcy_flow(2, (8,), seed=1, solver_resolution=24, progress=False)[8]
    a = two_phase(24, 1)
    np.testing.assert_array_equal(split.x[0, 0], a[:-1:3, :-1:3])
    np.testing.assert_allclose(split.y[0, 0], solve_darcy(a)[:-1:3, :-1:3], rtol=1e-6)
    assert (split.y[:, :, 0] == 0).all()
    assert (split.y[:, :, 1:, 1:] > 0).all()


def cached_set(folder: Path) -> dict[int, darcy.DarcySplit]:
    return darcy_flow(3, (8, 16), cache_dir=folder, progress=False)


def test_cache_returns_the_same_set_without_solving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "folder"
    first = cached_set(folder)
    with monkeypatch.context() as patch:
        patch.delattr(darcy, "solve_darcy")
        second = cached_set(folder)
    for n in (8, 16):
        assert torch.equal(first[n].x, second[n].x)
        assert torch.equal(first[n].y, second[n].y)
    darcy_flow(3, (8, 16), seed=1, cache_dir=folder, progress=False)
    darcy_flow(3, (8, 16), solver_resolution=32, cache_dir=folder, progress=False)
    darcy_flow(3, (16,), cache_dir=folder, progress=False)
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("step", ["write", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_writing_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def write_half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise error

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(Path, "write_bytes", write_half)
        else:
            patch.setattr(os, "replace", fail)
        with pytest.raises(type(error)):
            cached_set(tmp_path)
    assert list(tmp_path.iterdir()) == []


DAMAGE = {
    "empty": lambda good: b"",
    "garbage": lambda good: b"\xff" * 200,
    "truncated header": lambda good: good[:50],
    "truncated data": lambda good: good[:-1],
    "flipped bit": lambda good: good[:-1000] + bytes([good[-1000] ^ 1]) + good[-999:],
    "other keys": lambda good: good.replace(b'"x_8"', b'"z_8"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cache_is_regenerated_with_a_warning(tmp_path: Path, damage: str) -> None:
    cached_set(tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    bad = DAMAGE[damage](good)
    assert bad != good
    path.write_bytes(bad)
    with pytest.warns(UserWarning, match="damaged"):
        cached_set(tmp_path)
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolutions": (32, 48)}, r"\[32\] do not divide .* 48, which allows \[1, .*solver_resolution=96"),
        ({"resolutions": (16,), "solver_resolution": 24}, r"\[16\] do not divide .* 24"),
        ({"resolutions": ()}, "resolutions is empty"),
        ({"resolutions": (0,)}, "each resolution is 0"),
        ({"resolutions": (2,)}, "solver_resolution is 2; it must be an integer of at least 3"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_arguments_of_the_generator(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        darcy_flow(**{"n_samples": 1, "progress": False, **arguments})  # type: ignore[arg-type]


def test_wrong_coefficients_forcings_and_spectra() -> None:
    for shape in ((5,), (5, 6), (3, 3)):
        with pytest.raises(ValueError, match="both ends included"):
            solve_darcy(np.ones(shape))
    for value in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and positive"):
            solve_darcy(np.where(np.eye(6) > 0, value, 1.0))
    for forcing in (np.ones((5, 5)), np.inf):
        with pytest.raises(ValueError, match=r"forcing has shape .* of shape \(6, 6\)"):
            solve_darcy(np.ones((6, 6)), forcing)
    for alpha, tau in ((1.0, 3.0), (2.0, -1.0)):
        with pytest.raises(ValueError, match="alpha must exceed 1"):
            gaussian_field(1, 4, alpha=alpha, tau=tau)
    with pytest.raises(TypeError):
        gaussian_field(1, 4.5)  # type: ignore[arg-type]


def save_split(path: Path, n_samples: int, resolution: int) -> None:
    shape = (n_samples, resolution, resolution)
    torch.save({"x": torch.ones(shape, dtype=torch.bool), "y": torch.full(shape, float(resolution))}, path)


def test_load_darcy_takes_the_smallest_training_resolution_and_every_test_resolution(tmp_path: Path) -> None:
    for kind, n in (("train", 16), ("train", 8), ("test", 16), ("test", 8)):
        save_split(tmp_path / f"darcy_{kind}_{n}.pt", 5, n)
    train, tests = load_darcy(tmp_path, n_train=3)
    assert train.x.shape == train.y.shape == (3, 1, 8, 8)
    assert train.x.dtype == torch.float32
    assert list(tests) == [8, 16]
    assert (tests[16].y == 16).all()
    for n_train in (0, 6):
        with pytest.raises(ValueError, match="pass 1 to 5"):
            load_darcy(tmp_path, n_train=n_train)


def test_load_darcy_says_what_is_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder .*absent"):
        load_darcy(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"darcy_train_<resolution>.pt in .* holds nothing"):
        load_darcy(tmp_path)
    save_split(tmp_path / "darcy_train_8.pt", 2, 8)
    with pytest.raises(FileNotFoundError, match=r"darcy_test_<resolution>.pt in .* holds \['darcy_train_8.pt'\]"):
        load_darcy(tmp_path)
    save_split(tmp_path / "darcy_test_16.pt", 2, 8)
    with pytest.raises(ValueError, match="its name promises"):
        load_darcy(tmp_path)


def test_load_darcy_runs_no_code_from_the_file(tmp_path: Path) -> None:
    save_split(tmp_path / "darcy_test_8.pt", 2, 8)
    torch.save({"x": Path("any object"), "y": torch.ones(2, 8, 8)}, tmp_path / "darcy_train_8.pt")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        load_darcy(tmp_path)


@pytest.fixture
def neuralop_data() -> Path:
    folder = os.environ.get("NEURALOP_DATA")
    if not folder:
        pytest.skip("set NEURALOP_DATA to the folder with neuralop's darcy_train_16.pt and darcy_test_*.pt")
    return Path(folder)


def test_neuralop_files_are_what_the_docstring_says(neuralop_data: Path) -> None:
    train, tests = load_darcy(neuralop_data, n_train=100)
    assert train.x.shape == train.y.shape == (100, 1, 16, 16)
    assert set(train.x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(tests[16].x, tests[32].x[..., ::2, ::2])
    assert torch.equal(tests[16].y, tests[32].y[..., ::2, ::2])


def test_solver_reproduces_the_solutions_of_neuralop(neuralop_data: Path) -> None:
    split, n = load_darcy(neuralop_data)[1][32], 128
    nearest = np.clip(np.rint(np.arange(n + 1) / n * 32), 0, 31).astype(int)
    errors = []
    for mask, truth in zip(split.x[:5, 0].numpy(), split.y[:5, 0].numpy(), strict=True):
        u = solve_darcy(np.where(mask[np.ix_(nearest, nearest)] > 0, 0.36, 0.02))[:-1:4, :-1:4]
        errors.append(np.linalg.norm(u - truth) / np.linalg.norm(truth))
    # Their points lie 1/32 of a step beside ours and the coefficient is known at 32 x 32 points only.
    assert np.mean(errors) < 0.06
