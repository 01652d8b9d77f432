"""Rows of training in TensorBoard and Weights & Biases."""

import sys
from types import SimpleNamespace

import pytest

from neuralop_sae.cli.logs import Log, open_log

ROWS = [("", {"step": 2.0, "fve": 0.5}), ("k8", {"step": 4.0, "fve": 0.7})]


def test_wandb_gets_the_rows_by_step(monkeypatch, tmp_path):
    logged, ended = [], []

    class Run:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            ended.append(error)

        def log(self, values, step):
            logged.append((values, step))

    def init(*, dir, config):
        assert (dir, config) == (str(tmp_path), {"seed": 3})
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with open_log(Log.WANDB, tmp_path, {"seed": 3}) as on_log:
        for name, row in ROWS:
            on_log(name, row)
    assert logged == [({"fve": 0.5}, 2), ({"k8/fve": 0.7}, 4)]
    assert ended == [(None, None, None)]


def test_tensorboard_reads_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_log(Log.TENSORBOARD, tmp_path, {}) as on_log:
        for name, row in ROWS:
            on_log(name, row)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for name in ("fve", "k8/fve") for event in events.Scalars(name)]
    assert found == [(2, pytest.approx(0.5)), (4, pytest.approx(0.7))]


def test_without_a_log():
    with open_log(None, None, {}) as on_log:
        assert on_log is None


@pytest.mark.parametrize(("log", "module"), [(Log.WANDB, "wandb"), (Log.TENSORBOARD, "torch.utils.tensorboard")])
def test_a_missing_program_is_named(log, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {log.value}"), open_log(log, tmp_path, {}):
        pass
