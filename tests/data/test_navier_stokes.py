"""Kolmogorov flow: pairs that the solver confirms, the same on every grid, statistics as documented."""

from pathlib import Path

import pytest
import torch

from neuralop_sae.data import trajectories
from neuralop_sae.data.navier_stokes import kolmogorov_flow
from neuralop_sae.data.trajectories import TrajectorySplit
from neuralop_sae.data.vorticity import kolmogorov_forcing, solve_vorticity

SMALL = {"max_wavenumber": 7, "reynolds": 20.0, "time_step": 0.05, "spin_up": 1.0, "n_pairs": 2, "progress": False}


@pytest.fixture(scope="module")
def splits() -> dict[int, TrajectorySplit]:
    return kolmogorov_flow(9, (48, 24, 20), seed=3, **SMALL)


def test_shapes_and_order(splits: dict[int, TrajectorySplit]) -> None:
    assert list(splits) == [20, 24, 48]
    for n, split in splits.items():
        assert split.x.shape == split.y.shape == (18, 1, n, n)
        assert split.x.dtype == split.y.dtype == torch.float32
        assert split.trajectory.tolist() == [i for i in range(9) for _ in range(2)]


def test_every_grid_shows_the_same_functions(splits: dict[int, TrajectorySplit]) -> None:
    for name in ("x", "y"):
        coarse, fine = (getattr(splits[n], name) for n in (24, 48))
        torch.testing.assert_close(coarse, fine[..., ::2, ::2], rtol=0, atol=2e-6)
        few, many = (torch.fft.rfft2(getattr(splits[n], name).double(), norm="forward") for n in (20, 48))
        torch.testing.assert_close(few[..., :8, :8], many[..., :8, :8], rtol=0, atol=1e-7)
        assert many[..., 8:-7, :].abs().max() < 1e-7
        assert many[..., 8:].abs().max() < 1e-7
        assert many[..., 7].abs().max() > 1e-4  # the highest wavenumber asked for is there


def test_y_is_x_one_lead_time_later_in_physical_units(splits: dict[int, TrajectorySplit]) -> None:
    split = splits[24]
    later = solve_vorticity(
        split.physical(split.x)[:, 0], 0.2, viscosity=1 / 20, drag=0.1, forcing=kolmogorov_forcing(24), time_step=0.05
    )
    torch.testing.assert_close(split.physical(split.y)[:, 0].double(), later, rtol=0, atol=1e-5)
    change = (split.y - split.x).flatten(1).norm(dim=1) / split.x.flatten(1).norm(dim=1)
    assert 0.1 < change.mean() < 0.4


def test_the_next_x_is_the_last_one_interval_later(splits: dict[int, TrajectorySplit]) -> None:
    physical = splits[24].physical(splits[24].x)[:, 0]
    later = solve_vorticity(physical[::2], 2.0, viscosity=1 / 20, drag=0.1, forcing=kolmogorov_forcing(24), time_step=0.05)
    torch.testing.assert_close(physical[1::2].double(), later, rtol=0, atol=1e-4)


def test_the_first_trajectories_have_unit_variance(splits: dict[int, TrajectorySplit]) -> None:
    first = torch.stack([splits[24].x[:16], splits[24].y[:16]])
    assert first.square().mean() == pytest.approx(1, abs=1e-5)
    assert abs(first.mean()) < 1e-6
    assert splits[24].mean.tolist() == [[[0.0]]]
    assert splits[24].std.shape == (1, 1, 1)


def test_without_spin_up_the_first_state_is_noise_of_the_documented_strength() -> None:
    split = kolmogorov_flow(2, (24,), **{**SMALL, "spin_up": 0.0})[24]
    start = split.physical(split.x)[::2, 0].double()
    torch.testing.assert_close(start.square().mean((1, 2)).sqrt(), torch.full((2,), 3.0).double(), rtol=1e-5, atol=0)
    spectrum = torch.fft.rfft2(start, norm="forward").abs()
    k = torch.fft.fftfreq(24, 1 / 24)[:, None]
    inside = k**2 + torch.arange(13) ** 2 <= 36
    assert spectrum[:, ~inside].max() < 1e-6
    assert (spectrum[:, inside] > 1e-3).double().mean() > 0.95


def test_a_longer_set_begins_with_the_shorter_one(splits: dict[int, TrajectorySplit]) -> None:
    short = kolmogorov_flow(2, (24,), seed=3, **SMALL)[24]
    assert torch.equal(short.x, splits[24].x[:4])
    assert torch.equal(short.y, splits[24].y[:4])
    other = kolmogorov_flow(2, (24,), seed=4, **SMALL)[24]
    assert (other.x - short.x).abs().max() > 0.1
    assert (short.x[0] - short.x[2]).abs().max() > 0.1


def test_a_cached_set_is_read_and_every_parameter_is_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**SMALL, "spin_up": 0.0, "n_pairs": 1, "cache_dir": tmp_path}
    first = kolmogorov_flow(1, (16,), **small)
    others = {
        "n_pairs": 2,
        "seed": 1,
        "reynolds": 21.0,
        "drag": 0.2,
        "forcing_wavenumber": 3,
        "lead_time": 0.1,
        "interval": 1.0,
        "spin_up": 0.1,
        "time_step": 0.1,
        "max_wavenumber": 6,
    }
    for name, value in others.items():
        kolmogorov_flow(1, (16,), **{**small, name: value})
    kolmogorov_flow(2, (16,), **small)
    kolmogorov_flow(1, (16, 32), **small)
    assert len(list(tmp_path.iterdir())) == 1 + len(others) + 2
    monkeypatch.delattr(trajectories, "_states")
    again = kolmogorov_flow(1, (16,), **small)
    assert torch.equal(first[16].y, again[16].y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"resolutions": (32,), "max_wavenumber": 21},
            "wavenumbers up to 21: pass at least 43, or .*=15 or less",
        ),
        ({"resolutions": ()}, "resolutions is empty"),
        ({"n_trajectories": 0}, "n_trajectories is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"reynolds": 0.0}, "reynolds is 0"),
        ({"drag": -0.1}, "drag is -0.1; .* at least 0"),
        ({"max_wavenumber": 5}, "max_wavenumber is 5; it must be an integer of at least 6"),
        ({"forcing_wavenumber": 22}, "forcing_wavenumber is 22; it must be at most max_wavenumber=21"),
        ({"lead_time": 0.215}, "lead_time is 0.215; it must be a whole multiple of time_step=0.01"),
        ({"n_pairs": 0}, "n_pairs is 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kolmogorov_flow(**{"n_trajectories": 1, "progress": False, **arguments})  # type: ignore[arg-type]


def test_steps_too_long_for_the_flow_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="no longer finite .* smaller time_step"):
        kolmogorov_flow(1, (48,), reynolds=1e6, lead_time=1.0, spin_up=50.0, time_step=1.0, n_pairs=1, progress=False)
