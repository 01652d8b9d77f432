"""Rows of the history are told as they are logged."""

import pytest
import torch

import neuralop_sae as ns

CONFIG = ns.TrainingConfig(n_epochs=2, batch_size=4, log_every=2)


def make():
    torch.manual_seed(0)
    return ns.SAEFNO(2, 4, (5, 5))


@pytest.fixture(scope="module")
def acts():
    return torch.randn(12, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def test_train_tells_each_row(acts):
    told = []
    history = ns.train(make(), acts, CONFIG, progress=False, on_log=told.append)
    assert told == history.rows
    assert [row["step"] for row in told] == [2, 4, 6]


def test_what_the_callable_does_to_a_row_stays_with_it(acts):
    history = ns.train(make(), acts, CONFIG, progress=False, on_log=dict.clear)
    assert all("fve" in row for row in history.rows)


def test_train_many_tells_the_name(acts):
    told = []
    histories = ns.train_many(
        {"a": make(), "b": make()}, acts, CONFIG, progress=False, on_log=lambda name, row: told.append((name, row))
    )
    for name, history in histories.items():
        assert [row for each, row in told if each == name] == history.rows
