"""Generated data in files: made once, read afterwards, made anew where the file is damaged."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..checkpoint import check_writable, write_atomically

__all__ = ["cache_file", "cached_tensors"]


def cache_file(cache_dir: str | os.PathLike[str] | None, name: str) -> Path | None:
    """The file `name`.safetensors of a folder; None where there is no folder to cache in."""
    return None if cache_dir is None else Path(cache_dir) / f"{name}.safetensors"


def cached_tensors(
    path: Path | None, shapes: Mapping[str, tuple[int, ...]], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of `path` if it is there and whole, else those of `make`, which are then written to it.

    The file is safetensors with one tensor more, a checksum. Its name is to hold every parameter that the numbers depend
    on, and a format number that goes up when the same parameters give other numbers.

    Parameters
    ----------
    path : pathlib.Path or None
        The file, as `cache_file` names it; its folder is made if missing. None: no file, always made.
    shapes : mapping of str to tuple of int
        The tensors expected, by name. A file with others counts as damaged, and is made anew with a warning.
    make : callable
        Gives the tensors, on the CPU.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    OSError
        If the folder cannot be written; before the work is done, not after.

    Examples
    --------
    >>> cached_tensors(None, {"x": (2,)}, lambda: {"x": torch.zeros(2)})
    {'x': tensor([0., 0.])}
    """
    if path is None:
        return make()
    if path.exists():
        found = _read(path, shapes)
        if isinstance(found, dict):
            return found
        warnings.warn(f"{path} is damaged ({found}); generating it again.", stacklevel=3)
    check_writable(path.parent)
    tensors = make()
    data = safetensors.torch.save({**tensors, "crc32": _checksum(tensors)})
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> Tensor:
    # safetensors notices a wrong length but not a flipped bit.
    crc = 0
    for key in sorted(tensors):
        crc = zlib.crc32(tensors[key].numpy().tobytes(), crc)
    return torch.tensor(crc, dtype=torch.int64)


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | str:
    """The tensors, or what is wrong with the file."""
    # Read as bytes: tensors of safetensors' load_file would stay mapped to a file that may be replaced.
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except SafetensorError as error:
        return repr(error)
    stored = tensors.pop("crc32", None)
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != dict(shapes):
        return "it holds other tensors"
    return tensors if stored is not None and bool(stored == _checksum(tensors)) else "its checksum differs"
