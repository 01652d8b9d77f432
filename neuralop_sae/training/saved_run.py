"""The file from which a run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint
from ..models.base import SAE
from .config import TrainingConfig
from .losses import Loss, describe_loss

CHECKPOINT_NAME = "training.safetensors"


def identity(sae: SAE, config: TrainingConfig, n_fields: int, loss: Loss | None) -> str:
    """What a checkpoint must share with a run that resumes it."""
    run = {"model": type(sae).__name__, "arguments": sae.config(), "n_fields": n_fields}
    if loss is not None:
        run["loss"] = describe_loss(loss)
    return json.dumps({**run, "config": config.model_dump()}, sort_keys=True)


def write(path: Path, run: str, state: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Save the state and the progress of a run, `run` being its :func:`identity`."""
    checkpoint.write_tensors(path, state, {"run": run, "progress": json.dumps(progress)})


def read(path: Path, run: str, kind: type[SAE]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and progress; ValueError if they are of another run. `kind` is the class of the model."""
    state, header = checkpoint.read_tensors(path)
    saved, now = json.loads(header.get("run", "{}")), json.loads(run)
    if saved != now and (differences := "; ".join(_differences(_of_this_version(saved, kind), now))):
        raise ValueError(f"{path} is of another run: {differences}. Resume with the same, or train in another folder")
    return state, json.loads(header["progress"])


def put_aside(path: Path) -> None:
    """Rename the checkpoint of an earlier run, if there is one."""
    if path.exists():
        path.replace(path.with_stem(f"{path.stem}.previous"))


def _of_this_version(saved: dict[str, Any], kind: type[SAE]) -> dict[str, Any]:
    """The description of a run; what the version that wrote it did not know stands at its default."""
    config = {**TrainingConfig().model_dump(), **saved.get("config", {})}
    arguments = saved.get("arguments", {})
    try:
        with torch.random.fork_rng(devices=[]):
            arguments = kind(**arguments).config()
    except (TypeError, ValueError):
        pass  # of another class, or of a later version: the differences tell
    return json.loads(json.dumps({**saved, "config": config, "arguments": arguments}))  # type: ignore[no-any-return]


def _differences(saved: dict[str, Any], now: dict[str, Any], path: str = "") -> Iterator[str]:
    """Where two descriptions of runs differ, in words."""
    for name in sorted(saved.keys() | now.keys()):
        old, new = saved.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}{name}.")
        elif old != new:
            yield f"{path}{name} was {old!r}, now {new!r}"
