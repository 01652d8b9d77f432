"""Rows of training in TensorBoard and Weights & Biases."""

import json
import struct
import sys
import time
from types import SimpleNamespace

import pytest

from neuralop_sae.cli.logs import Log, open_log

HEADER = 7  # bytes of a file of Weights & Biases before its records, each of which has as many of its own
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


def history(path):
    """Rows and settings in the file of a run of Weights & Biases: a log of LevelDB, here of a single block, of protobufs."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, place, rows, settings = path.read_bytes(), HEADER, [], {}
    assert len(raw) < 32768
    while place < len(raw):
        _, size, _ = struct.unpack_from("<IHB", raw, place)
        record = Record.FromString(raw[place + HEADER : place + HEADER + size])
        place += HEADER + size
        settings |= {entry.key: json.loads(entry.value_json) for entry in record.run.config.update}
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        rows += [{name: value for name, value in row.items() if name in ("fve", "k8/fve", "_step")}] if row else []
    return rows, settings


@pytest.mark.slow
def test_the_real_wandb_keeps_the_rows(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with open_log(Log.WANDB, tmp_path, {"seed": 3, "k": [8]}) as on_log:
        for name, row in ROWS:
            on_log(name, row)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    until = time.monotonic() + 30
    while file.stat().st_size <= HEADER and time.monotonic() < until:  # a process of its own writes, a moment later
        time.sleep(0.1)
    rows, settings = history(file)
    assert rows == [{"fve": 0.5, "_step": 2}, {"k8/fve": 0.7, "_step": 4}]
    assert settings["seed"] == 3
    assert settings["k"] == [8]


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
