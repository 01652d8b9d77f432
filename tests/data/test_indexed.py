"""Reading ahead, batches in order, and parts that share no trajectory."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralop_sae.data.indexed import IndexedActivations


class Numbers(IndexedActivations):
    """Fields that hold their own number; remembers who read what."""

    def __init__(self, n: int = 20, **labels: Any) -> None:
        super().__init__((n, 2, 3), **labels)
        self.reads: list[tuple[list[int], bool]] = []

    def read(self, rows: Tensor) -> Tensor:
        self.reads.append((rows.tolist(), threading.current_thread() is threading.main_thread()))
        return rows[:, None, None].expand(-1, 2, 3).float().clone()


def test_what_was_read_ahead_is_taken() -> None:
    numbers, index = Numbers(), torch.tensor([4, 2])
    numbers.prefetch(index)
    assert numbers[index][:, 0, 0].tolist() == [4, 2]
    assert numbers.reads == [([4, 2], False)]
    assert numbers[index][:, 0, 0].tolist() == [4, 2]
    assert numbers.reads[1:] == [([4, 2], True)]  # once only


def test_another_batch_than_was_read_ahead() -> None:
    numbers = Numbers()
    numbers.prefetch(torch.tensor([4, 2]))
    assert numbers[torch.tensor([2, 4])][:, 0, 0].tolist() == [2, 4]
    assert numbers[torch.tensor([1])][:, 0, 0].tolist() == [1]


def test_a_single_field_and_no_field() -> None:
    numbers = Numbers()
    assert torch.equal(numbers[7], torch.full((2, 3), 7.0))
    assert numbers[torch.tensor(3)].shape == (2, 3)
    assert numbers[5:5].shape == (0, 2, 3)
    with pytest.raises(IndexError):
        numbers[20]


def test_batches_in_order_are_read_ahead() -> None:
    numbers = Numbers(7)
    assert [batch[:, 0, 0].tolist() for batch in numbers.split(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [main for _, main in numbers.reads] == [True, False, False]


def test_it_is_moved_to_the_device(device: torch.device) -> None:
    numbers, index = Numbers(), torch.arange(3)
    numbers.prefetch(index, device)
    fields = numbers[index]
    assert fields.device.type == device.type
    assert torch.equal(fields.cpu(), numbers[index])


TRAJECTORY = torch.tensor([5, 5, 1, 1, 1, 9, 9, 2, 2, 2, 2, 4])


@pytest.mark.parametrize("seed", range(5))
def test_parts_share_no_trajectory(seed: int) -> None:
    numbers = Numbers(12, trajectory=TRAJECTORY)
    train, test = numbers.train_test(0.4, seed=seed)
    assert train.trajectory is not None
    assert test.trajectory is not None
    assert not set(train.trajectory.tolist()) & set(test.trajectory.tolist())
    assert len(test.trajectory.unique()) == 2
    assert sorted([*train.rows.tolist(), *test.rows.tolist()]) == list(range(12))
    assert train[:][:, 0, 0].tolist() == train.rows.tolist()
    again = numbers.train_test(0.4, seed=seed)[1]
    assert torch.equal(again.rows, test.rows)


def test_draws_differ() -> None:
    numbers = Numbers(12, trajectory=TRAJECTORY)
    assert len({tuple(numbers.train_test(0.4, seed=seed)[1].rows.tolist()) for seed in range(8)}) > 1


def test_parts_of_parts_and_named_trajectories() -> None:
    train, test = Numbers(12, trajectory=TRAJECTORY).train_test([2, 4])
    assert test.rows.tolist() == [7, 8, 9, 10, 11]
    rest, validation = train.train_test([1])
    assert validation.rows.tolist() == [2, 3, 4]
    assert rest.rows.tolist() == [0, 1, 5, 6]
    rest.prefetch(torch.tensor([3]))
    assert validation[torch.tensor([0])][0, 0, 0] == 2  # a part does not take what another read ahead
    assert rest[torch.tensor([3])][0, 0, 0] == 6


def test_without_trajectories_every_sample_is_one() -> None:
    train, test = Numbers(10).train_test(0.3)
    assert (len(train), len(test)) == (7, 3)
    assert test.trajectory is None


@pytest.mark.parametrize("test", [0.0, 1.0, -0.5, [], [1, 2, 4, 5, 9]])
def test_empty_parts_are_refused(test: Any) -> None:
    with pytest.raises(ValueError, match="leaves one part empty"):
        Numbers(12, trajectory=TRAJECTORY).train_test(test)


def test_unknown_trajectories_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trajectories \[3, 7\] are not among the 5 here: 1, 2, 4, 5, 9"):
        Numbers(12, trajectory=TRAJECTORY).train_test([3, 1, 7])
