"""Saving and loading: safetensors for tensors, JSON for plain data; never a pickle, never a half-written file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

SCHEMA_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary file beside `path`, then move it into place, so that a crash or Ctrl-C leaves either
    the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        write(Path(name))
        # mkstemp makes files private; give the result the mode any new file has.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def folder_atomically(path: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as holder:
        new = Path(holder) / "new"
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, Path(holder) / "old")
        os.replace(new, path)


def check_writable(folder: str | Path) -> None:
    """Make the folder, and raise OSError that names it if it cannot be made or written: before work is lost."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"cannot write to the output folder {folder}: {error.strerror or error}") from error


def write_json(path: str | Path, data: Any) -> None:
    """Write plain data as JSON, atomically."""
    text = json.dumps(data, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically. Complex tensors, which the format lacks in double precision, are
    stored as real pairs and named in the header."""
    plain: dict[str, Tensor] = {}
    is_complex = []
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu()
        if stored.is_complex():
            is_complex.append(name)
            stored = torch.view_as_real(stored.resolve_conj())
        plain[name] = stored.contiguous().clone()
    header = {**(metadata or {}), "complex": json.dumps(is_complex)}
    write_atomically(path, lambda temporary: save_file(plain, temporary, header))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file that :func:`write_tensors` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no safetensors file (a pickle, say: it is not opened as one) or is truncated.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}). It may be truncated, or a pickle, which is never read; "
            "save the model again with save_pretrained"
        ) from error
    for name in json.loads(header.pop("complex", "[]")):
        # A copy: in the file's memory complex numbers may lie at addresses at which the processor does not read them.
        tensors[name] = torch.view_as_complex(tensors[name].clone())
    return tensors, header


def save_model(folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a model's folder: ``model.safetensors`` and, after it, ``config.json`` with the schema version."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a model is saved as a folder")
    description = {"schema_version": SCHEMA_VERSION, **config}
    # The copy in the header is written in one step with the tensors: a crash between the files does not lose it.
    write_tensors(folder / WEIGHTS_NAME, tensors, {"config": json.dumps(description)})
    write_json(folder / CONFIG_NAME, description)


def load_model(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a folder that :func:`save_model` wrote.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its two files is missing.
    ValueError
        If a file is damaged, is a pickle, or has a newer schema.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file; a model is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}. Pickles are never read"
        )
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            found = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"{folder} has no {name} (found: {found or 'nothing'})")
    config = _parse_config((folder / CONFIG_NAME).read_bytes(), folder / CONFIG_NAME)
    tensors, _ = read_tensors(folder / WEIGHTS_NAME)
    return config, tensors


def _parse_config(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or "schema_version" not in config:
        raise ValueError(f"{path} is damaged: a JSON object with 'schema_version' was expected")
    schema = config.pop("schema_version")
    if schema != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {schema}; this version of neuralop_sae reads {SCHEMA_VERSION}")
    return config
