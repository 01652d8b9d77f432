"""Schedules, splits and the generator of pairs, with a flow whose state at any time is known."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from neuralop_sae.data.trajectories import BATCH, Schedule, TrajectorySplit, generate, sample_seed


@dataclass(frozen=True)
class Clock:
    """Trajectory i has the value 100 i + t everywhere: its first channel as it is, its second ten times that."""

    fails_at: int | None = None
    name: str = "clock"
    n_channels: int = 2

    def initial(self, trajectory: int) -> Tensor:
        return torch.tensor([100.0 * trajectory, 1000.0 * trajectory], dtype=torch.complex128)

    def advance(self, states: Tensor, n_steps: int) -> Tensor:
        assert len(states) == BATCH, "bits depend on the size of the batch"
        states = states + n_steps * torch.tensor([1.0, 10.0])
        return states / 0 if self.fails_at is not None and states[0, 0].real >= self.fails_at else states

    def moments(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return states.real.mean(0), states.real.std(0, correction=0)

    def evaluate(self, states: Tensor, size: tuple[int, int]) -> Tensor:
        return states.real[..., None, None].expand(*states.shape, *size)


SCHEDULE = Schedule(n_pairs=3, lead=2, interval=5, spin_up=4)


def pairs(n: int, flow: Clock | None = None, path: Path | None = None) -> TrajectorySplit:
    splits = generate(flow or Clock(), n, SCHEDULE, {"small": (2, 3), "large": (4, 5)}, path=path, progress=False)
    assert list(splits) == ["small", "large"]
    assert splits["large"].x.shape == splits["large"].y.shape == (3 * n, 2, 4, 5)
    return splits["small"]


def test_times_in_whole_steps() -> None:
    assert Schedule.of_times(3, 0.2, 0.5, 0.4, 0.1) == SCHEDULE
    assert SCHEDULE.starts == [4, 9, 14]
    assert SCHEDULE.stops == [4, 6, 9, 11, 14, 16]
    # A lead time longer than the interval: pairs overlap.
    assert Schedule(n_pairs=2, lead=3, interval=1, spin_up=0).stops == [0, 1, 3, 4]
    for wrong in ({"n_pairs": 0}, {"lead_time": 0.0}, {"interval": 0.25}, {"spin_up": -0.1}, {"time_step": 0.0}):
        (name,) = wrong
        right = {"n_pairs": 3, "lead_time": 0.2, "interval": 0.5, "spin_up": 0.4, "time_step": 0.1}
        with pytest.raises(ValueError, match=f"{name} is"):
            Schedule.of_times(**{**right, **wrong})


def test_pairs_are_the_states_at_their_times_in_order() -> None:
    split = pairs(2)
    assert split.trajectory.tolist() == [0, 0, 0, 1, 1, 1]
    assert split.x.dtype == split.y.dtype == torch.float32
    x, y = split.physical(split.x), split.physical(split.y)
    expected = torch.tensor([4.0, 9, 14, 104, 109, 114])
    torch.testing.assert_close(x[:, 0, 0, 0], expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(y[:, 1, 1, 2], 10 * (expected + 2), rtol=1e-5, atol=1e-2)


def test_normalisation_is_that_of_the_first_batch_however_many_are_asked_for() -> None:
    first = pairs(BATCH)
    both = torch.stack([first.x, first.y])
    torch.testing.assert_close(both.mean((0, 1, 3, 4)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(both.std((0, 1, 3, 4), correction=0), torch.ones(2), rtol=1e-5, atol=0)
    for n in (1, BATCH + 3):
        other = pairs(n)
        shared = 3 * min(n, BATCH)
        assert torch.equal(other.mean, first.mean)
        assert torch.equal(other.std, first.std)
        assert torch.equal(other.x[:shared], first.x[:shared])
        assert torch.equal(other.y[:shared], first.y[:shared])
    assert pairs(BATCH + 3).trajectory.max() == BATCH + 2


def test_train_and_test_come_from_different_trajectories() -> None:
    split = pairs(4)
    train, test = split.train_test(3)
    assert train.trajectory.unique().tolist() == [0, 1, 2]
    assert test.trajectory.unique().tolist() == [3]
    assert torch.equal(torch.cat([train.x, test.x]), split.x)
    assert torch.equal(torch.cat([train.y, test.y]), split.y)
    assert test.mean is split.mean
    assert test.std is split.std
    for n_train in (0, 4):
        with pytest.raises(ValueError, match=f"n_train is {n_train}; there are 4 trajectories, so it must be 1 to 3"):
            split.train_test(n_train)


def test_a_flow_that_blows_up_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no longer finite at time step 11.*smaller time_step"):
        pairs(1, Clock(fails_at=10), tmp_path / "data.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_file_keeps_fields_and_constants(tmp_path: Path) -> None:
    path = tmp_path / "data.safetensors"
    first = pairs(2, path=path)
    second = pairs(2, Clock(fails_at=0), path)  # nothing is integrated
    for name in ("x", "y", "trajectory", "mean", "std"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_seeds_differ_by_seed_and_by_trajectory() -> None:
    seeds = {sample_seed(seed, trajectory) for seed in range(20) for trajectory in range(20)}
    assert len(seeds) == 400
    assert sample_seed(3, 4) == sample_seed(3, 4) != sample_seed(4, 3)


def test_the_progress_bar_counts_every_step_of_every_batch(capsys: pytest.CaptureFixture[str]) -> None:
    generate(Clock(), BATCH + 1, SCHEDULE, {"one": (1, 1)}, path=None, progress=False)
    assert capsys.readouterr().err == ""
    generate(Clock(), BATCH + 1, SCHEDULE, {"one": (1, 1)}, path=None, progress=True)
    last = capsys.readouterr().err.rstrip().split("\r")[-1]
    assert last.startswith("clock: 100%")
    assert "32/32" in last
