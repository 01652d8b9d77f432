"""Where training reports beside its history: TensorBoard or Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Log", "open_log"]

OnLog = Callable[[str, dict[str, float]], object]


class Log(StrEnum):
    """Programs that show training."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


@contextmanager
def open_log(log: Log | None, folder: Path, settings: Mapping[str, Any]) -> Iterator[OnLog | None]:
    """A function that gets the name of a model ("" for the only one) and a row of its history; None without a log.

    Parameters
    ----------
    log : Log, optional
        Which.
    folder : Path
        Where TensorBoard's files go, into ``tensorboard``.
    settings : mapping
        What Weights & Biases keeps of the run.

    Raises
    ------
    ImportError
        If the program is not installed.
    """
    if log is None:
        yield None
    elif log is Log.TENSORBOARD:
        with _import("torch.utils.tensorboard", log).SummaryWriter(str(folder / log.value)) as writer:

            def write(name: str, row: dict[str, float]) -> None:
                for key, value in _values(name, row).items():
                    writer.add_scalar(key, value, int(row["step"]))

            yield write
    else:
        with _import("wandb", log).init(dir=str(folder), config=dict(settings)) as run:
            yield lambda name, row: run.log(_values(name, row), step=int(row["step"]))


def _values(name: str, row: dict[str, float]) -> dict[str, float]:
    return {f"{name}/{key}" if name else key: value for key, value in row.items() if key != "step"}


def _import(module: str, log: Log) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"--log {log.value} needs {log.value}: pip install {log.value}", name=error.name) from error
