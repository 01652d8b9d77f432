"""The solver of the sphere against upstream's, closed forms and conservation; the pairs against the solver."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_harmonics import InverseRealSHT, RealSHT
from torch_harmonics.examples import ShallowWaterSolver

from neuralop_sae.data import trajectories
from neuralop_sae.data.shallow_water import SphereSolver, balanced, shallow_water
from neuralop_sae.data.trajectories import TrajectorySplit, sample_seed

LMAX = 9


def random_vorticity(n: int, lmax: int = LMAX, scale: float = 2e-6) -> Tensor:
    draw = torch.randn(n, lmax, lmax, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)) * scale
    draw[..., 0] = draw[..., 0].real.to(draw.dtype)
    draw[..., 0, 0] = 0
    return draw.tril()


def analysis(fields: Tensor, grid: str = "equiangular", lmax: int = LMAX) -> Tensor:
    return RealSHT(*fields.shape[-2:], lmax=lmax, mmax=lmax, grid=grid, csphase=False).double()(fields.double())


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def solver() -> SphereSolver:
    return SphereSolver(LMAX, 900.0)


def test_batches_obey_the_equations_of_upstream_on_a_finer_grid(solver: SphereSolver) -> None:
    states = balanced(solver, random_vorticity(3))
    states[2] = random_vorticity(4)[1:] / 10
    upstream = ShallowWaterSolver(32, 64, 900.0, lmax=LMAX, mmax=LMAX, grid="legendre-gauss").double()
    rate = solver.dudtspec(states)
    for i in range(3):
        expected = upstream.dudtspec(states[:, i])
        for channel in range(3):
            assert error(rate[channel, i], expected[channel]) < 1e-10


def test_the_flow_is_that_of_upstreams_time_step_as_this_gets_short(solver: SphereSolver) -> None:
    state = balanced(solver, random_vorticity(1)[0])
    later = solver.advance(state, 4)
    errors = []
    for step in (60.0, 30.0):
        upstream = ShallowWaterSolver(14, 28, step, lmax=LMAX, mmax=LMAX, grid="legendre-gauss").double()
        errors.append(error(upstream.timestep(state, round(3600 / step))[1:], later[1:]))
    assert error(state[1:], later[1:]) > 0.05
    assert errors[1] < 2e-4
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)  # upstream's hyperdiffusion is of first order


def test_the_time_step_is_of_fourth_order() -> None:
    ends = {}
    for step in (225.0, 900.0, 1800.0):
        fine = SphereSolver(LMAX, step)
        ends[step] = fine.advance(balanced(fine, random_vorticity(2, scale=4e-6)), round(6 * 3600 / step))
    # Geopotential counts apart: its numbers are larger by 10^9.
    for channel in range(3):
        coarse, middle = (error(ends[step][channel, :, 1:], ends[225.0][channel, :, 1:]) for step in (1800.0, 900.0))
        assert middle < 1e-3
        assert math.log2(coarse / middle) == pytest.approx(4, abs=0.6)


def test_small_waves_without_rotation_oscillate_and_eddies_decay_as_in_the_closed_form() -> None:
    solver = SphereSolver(LMAX, 450.0)
    solver.coriolis.zero_()
    degree = torch.arange(LMAX, dtype=torch.float64)[:, None]
    depth, radius = float(solver.gravity * solver.havg), float(solver.radius)
    decay = torch.exp(-(10 * 450.0 / 7200.0) * (degree * (degree + 1) / (LMAX * (LMAX - 1))) ** 4)
    state = balanced(solver, 1e-9 * random_vorticity(1)[0])
    eddies = solver.advance(state, 10)[1]
    assert error(eddies, decay * state[1]) < 1e-6
    assert decay[-1] < 0.6  # a time long enough to see it
    solver.hyperdiff.fill_(1.0)
    state[2] = 1e4 * state[1]
    frequency = (depth * degree * (degree + 1)).sqrt() / radius
    assert error(solver.advance(state, 10)[2], torch.cos(frequency * 4500.0) * state[2]) < 1e-3
    assert frequency[-1] * 4500 > 1.5


def test_solid_body_rotation_is_balanced_by_the_closed_form_and_is_steady(solver: SphereSolver) -> None:
    # Williamson et al. (1992), test case 2: u = u0 cos(latitude).
    speed, radius, omega = 40.0, float(solver.radius), float(solver.omega)
    sine = torch.sin(solver.lats).reshape(-1, 1).expand(solver.nlat, solver.nlon)
    vorticity = solver.grid2spec(2 * speed / radius * sine)
    state = balanced(solver, vorticity)
    geopotential = -(radius * omega * speed + speed**2 / 2) * sine**2
    geopotential += float(solver.gravity * solver.havg) - solver.area_mean(geopotential)
    # torch-harmonics' vector transforms divide by l (l + 1) in single precision.
    torch.testing.assert_close(solver.spec2grid(state[0]), geopotential, rtol=1e-8, atol=0)
    free = SphereSolver(LMAX, 900.0)
    free.hyperdiff.fill_(1.0)
    later = free.advance(state, 48)
    assert error(later[0], state[0]) < 1e-12
    assert error(later[1], state[1]) < 1e-10
    assert later[2].abs().max() < 1e-10 * state[1].abs().max()


def test_a_balanced_state_has_no_divergence_now_nor_at_first(solver: SphereSolver) -> None:
    vorticity = random_vorticity(2)
    vorticity[:, 0, 0] = 1e-5
    state = balanced(solver, vorticity)
    assert vorticity[0, 0, 0] == 1e-5  # the caller's is left alone
    assert torch.equal(state[1, :, 1:], vorticity[:, 1:])
    assert (state[1, :, 0, 0] == 0).all()
    assert (state[2] == 0).all()
    rate = solver.dudtspec(state)[2]
    unbalanced = state.clone()
    unbalanced[0, :, 1:] = 0
    assert rate.abs().max() < 1e-12 * solver.dudtspec(unbalanced)[2].abs().max()
    mean = solver.area_mean(solver.spec2grid(state[0]))
    torch.testing.assert_close(mean, torch.full((2,), 9.80616e4, dtype=torch.float64), rtol=1e-12, atol=0)


def energy(solver: SphereSolver, state: Tensor) -> Tensor:
    geopotential = solver.spec2grid(state[0])
    available = (geopotential - geopotential.new_tensor(9.80616e4)).square() / 2
    return solver.area_mean(geopotential * solver.getuv(state[1:]).square().sum(0) / 2 + available)


def test_mass_and_energy_are_kept() -> None:
    solver = SphereSolver(LMAX, 450.0)
    solver.hyperdiff.fill_(1.0)
    vorticity = random_vorticity(2)
    vorticity[:, 4:] = 0  # so that little reaches the degrees that are cut off
    state = balanced(solver, 10 * vorticity)
    state[0, :, 1:] *= 0.5  # half balanced: energy changes its form
    later = solver.advance(state, 16)
    torch.testing.assert_close(later[0, :, 0, 0], state[0, :, 0, 0], rtol=1e-14, atol=0)
    torch.testing.assert_close(energy(solver, later), energy(solver, state), rtol=1e-5, atol=0)
    kinetic = [solver.area_mean(solver.getuv(s[1:]).square().sum(0)) for s in (state, later)]
    assert (kinetic[1] / kinetic[0] - 1).abs().min() > 0.01


SMALL = {"lmax": LMAX, "n_pairs": 2, "spin_up": 2.0, "interval": 3.0, "progress": False}


@pytest.fixture(scope="module")
def splits() -> dict[tuple[int, int], TrajectorySplit]:
    return shallow_water(9, ((33, 64), (17, 32), (20, 17)), seed=3, **SMALL)


def test_shapes_and_order(splits: dict[tuple[int, int], TrajectorySplit]) -> None:
    assert list(splits) == [(17, 32), (20, 17), (33, 64)]
    for size, split in splits.items():
        assert split.x.shape == split.y.shape == (18, 3, *size)
        assert split.x.dtype == split.y.dtype == torch.float32
        assert split.trajectory.tolist() == [i for i in range(9) for _ in range(2)]


def test_every_grid_shows_the_same_functions(splits: dict[tuple[int, int], TrajectorySplit]) -> None:
    gauss = shallow_water(9, ((9, 17),), seed=3, grid="legendre-gauss", **SMALL)[9, 17]
    for name in ("x", "y"):
        coarse, fine = getattr(splits[17, 32], name), getattr(splits[33, 64], name)
        # Every second latitude, both poles, and every second longitude.
        torch.testing.assert_close(coarse, fine[..., ::2, ::2], rtol=0, atol=2e-6)
        expected = analysis(fine)
        for fields, grid in ((getattr(splits[20, 17], name), "equiangular"), (getattr(gauss, name), "legendre-gauss")):
            torch.testing.assert_close(analysis(fields, grid), expected, rtol=0, atol=1e-5)
        poles = fine[..., [0, -1], :]
        torch.testing.assert_close(poles, poles[..., :1].expand_as(poles), rtol=0, atol=1e-5)


def test_y_is_x_one_lead_time_later_in_physical_units(splits: dict[tuple[int, int], TrajectorySplit]) -> None:
    split, solver = splits[17, 32], SphereSolver(LMAX, 900.0)
    now, then, next_x = (
        analysis(f.double() * split.std + split.mean).movedim(1, 0) for f in (split.x, split.y, split.x[1::2])
    )
    later = solver.advance(now, 4)
    after_interval = solver.advance(now[:, ::2], 12)
    for channel in range(3):
        assert error(later[channel, :, 1:], then[channel, :, 1:]) < 1e-4
        assert error(now[channel, :, 1:], then[channel, :, 1:]) > 0.02
        assert error(after_interval[channel, :, 1:], next_x[channel, :, 1:]) < 1e-4


def test_the_first_trajectories_have_mean_zero_and_unit_variance_over_the_area(
    splits: dict[tuple[int, int], TrajectorySplit],
) -> None:
    split, solver = splits[17, 32], ShallowWaterSolver(17, 32, 1.0, lmax=LMAX, mmax=LMAX, grid="equiangular")
    first = torch.stack([split.x[:16], split.y[:16]]).double()
    weights = solver.quad_weights / 2
    torch.testing.assert_close(solver.quad_weights.sum().item(), 2.0)
    mean = (first * weights).mean(-1).sum(-1).mean((0, 1))
    square = (first.square() * weights).mean(-1).sum(-1).mean((0, 1))
    torch.testing.assert_close(mean, torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(square, torch.ones(3).double(), rtol=1e-5, atol=0)
    assert split.mean.flatten().tolist() == pytest.approx([9.80616e4, 0, 0], rel=1e-6)
    assert split.std.shape == (3, 1, 1)


@pytest.mark.parametrize("wind_speed", [None, 5.0])
def test_the_random_wind_starts_with_its_documented_speed(wind_speed: float | None) -> None:
    split = shallow_water(2, ((17, 32),), wind_speed=wind_speed, **{**SMALL, "spin_up": 0.0})[17, 32]
    solver = SphereSolver(LMAX, 900.0)
    start = analysis(split.x[::2].double() * split.std + split.mean).movedim(1, 0)
    speed = solver.area_mean(solver.getuv(start[1:]).square().sum(0)).sqrt()
    torch.testing.assert_close(speed, torch.full((2,), wind_speed or 20.0, dtype=torch.float64), rtol=1e-4, atol=0)
    assert split.x[::2, 2].abs().max() < 1e-5  # no divergence at first


def test_the_random_flow_is_the_draw_of_upstream_on_the_grid_of_upstream() -> None:
    solver = SphereSolver(LMAX, 900.0)
    gauss = {"grid": "legendre-gauss", **SMALL, "spin_up": 0.0}
    split = shallow_water(2, ((solver.nlat, solver.nlon),), seed=5, **gauss)[solver.nlat, solver.nlon]
    for trajectory in range(2):
        torch.manual_seed(sample_seed(5, trajectory))
        draw = solver.random_initial_condition(mach=1.0)[1]
        draw[0, 0] = 0
        expected = solver.spec2grid(draw)
        found = split.physical(split.x[2 * trajectory].double())[1]
        assert error(found / found.norm(), expected / expected.norm()) < 1e-5


def test_the_jet_of_galewsky_blows_eastwards_at_45_degrees_north_and_rows_start_there() -> None:
    split = shallow_water(2, ((33, 64),), initial="galewsky", **{**SMALL, "lmax": 17, "spin_up": 0.0})[33, 64]
    solver = SphereSolver(17, 900.0)
    state = analysis(split.x[0].double() * split.std + split.mean, lmax=17)
    east, north = solver.getuv(state[1:])
    along = east.mean(-1)
    latitude = solver.lats[along.argmax()] * 180 / math.pi
    assert 40 < latitude < 50
    assert 50 < along.max() < 80
    assert north.abs().max() < 0.3 * along.max()
    assert solver.lats[0] > 0
    # North of an eastward jet vorticity is positive: so the upper rows are the north.
    vorticity = split.x[0, 1, 4:-4].mean(-1)
    assert vorticity.argmax() < vorticity.argmin() < 12
    assert vorticity[14:].abs().max() < 0.2 * vorticity.max()
    assert (split.x[0] - split.x[2]).abs().max() > 0.01  # trajectories differ


def test_a_longer_set_begins_with_the_shorter_one_and_leaves_the_callers_generator_alone(
    splits: dict[tuple[int, int], TrajectorySplit],
) -> None:
    before = torch.get_rng_state()
    short = shallow_water(2, ((17, 32),), seed=3, **SMALL)[17, 32]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(short.x, splits[17, 32].x[:4])
    assert torch.equal(short.y, splits[17, 32].y[:4])
    torch.manual_seed(99)
    assert torch.equal(shallow_water(2, ((17, 32),), seed=3, **SMALL)[17, 32].x, short.x)
    other = shallow_water(2, ((17, 32),), seed=4, **SMALL)[17, 32]
    assert (other.x - short.x).abs().max() > 0.1
    assert (short.x[0] - short.x[2]).abs().max() > 0.1


def test_a_cached_set_is_read_and_every_parameter_is_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"lmax": 4, "n_pairs": 1, "spin_up": 0.0, "interval": 1.0, "progress": False, "cache_dir": tmp_path}
    first = shallow_water(1, ((9, 16),), **small)
    others = {
        "n_pairs": 2,
        "seed": 1,
        "initial": "galewsky",
        "lead_time": 0.5,
        "interval": 2.0,
        "spin_up": 0.5,
        "time_step": 0.5,
        "wind_speed": 21.0,
        "lmax": 5,
        "grid": "lobatto",
    }
    for name, value in others.items():
        shallow_water(1, ((9, 16),), **{**small, name: value})
    shallow_water(2, ((9, 16),), **small)
    shallow_water(1, ((9, 16), (17, 32)), **small)
    assert len(list(tmp_path.iterdir())) == 1 + len(others) + 2
    monkeypatch.delattr(trajectories, "_states")
    again = shallow_water(1, ((9, 16),), **small)
    assert torch.equal(first[9, 16].y, again[9, 16].y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolutions": ((32, 64),)}, "equiangular grid of 32 x 64 points .* below 16 .* pass lmax=16 .* 33 latitudes by 33"),
        ({"resolutions": ((33, 32),)}, "below 16 exactly, but lmax is 17"),
        ({"resolutions": ((16, 64),), "grid": "legendre-gauss"}, "below 16 .* at least 17 latitudes"),
        ({"resolutions": ((17, 64),), "grid": "lobatto"}, "below 16 .* at least 18 latitudes"),
        ({"resolutions": ()}, "resolutions is empty"),
        ({"grid": "healpix"}, "unknown grid 'healpix'; known: equiangular, legendre-gauss, lobatto"),
        ({"initial": "zonal"}, "initial is 'zonal'; it must be one of 'random', 'galewsky'"),
        ({"n_trajectories": 0}, "n_trajectories is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"wind_speed": 0.0}, "wind_speed is 0"),
        ({"lmax": 2}, "lmax is 2"),
        ({"interval": 0.4}, "interval is 0.4; it must be a whole multiple of time_step=0.25"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shallow_water(**{"n_trajectories": 1, "progress": False, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("lmax", [4, 9])
def test_the_documented_degrees_are_those_that_quadrature_keeps_apart(lmax: int) -> None:
    for grid, nlat in (("equiangular", 2 * lmax - 1), ("legendre-gauss", lmax), ("lobatto", lmax + 1)):
        spectrum = random_vorticity(1, lmax, 1.0)
        synthesis = InverseRealSHT(nlat, 2 * lmax - 1, lmax=lmax, mmax=lmax, grid=grid, csphase=False).double()
        torch.testing.assert_close(analysis(synthesis(spectrum), grid, lmax), spectrum, rtol=0, atol=1e-9)


def test_steps_too_long_for_the_waves_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="no longer finite .* smaller time_step"):
        shallow_water(1, ((33, 64),), time_step=3.0, lead_time=3.0, n_pairs=1, spin_up=60.0, progress=False)
