"""Activations from a file, and from what a caller has in hand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..attach.arrays import tensor_of
from .indexed import IndexedActivations
from .store import ActivationStore, StoredActivations

__all__ = ["load_activations", "opened"]

A = TypeVar("A")


def load_activations(path: str | Path) -> Tensor:
    """Activations ``(N, channels, *grid)`` from a ``.safetensors`` file (its tensor "activations", or its only one) or a
    ``.npy`` file, which is mapped into memory, not read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is of another kind, not whole, holds several tensors, or what it holds is no batch of real fields.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    readers = {".safetensors": _from_safetensors, ".npy": _from_numpy}
    if path.suffix not in readers:
        raise ValueError(f"activations are read from {' or '.join(readers)} files, got {path.name}")
    activations = readers[path.suffix](path)
    if activations.ndim < 3 or not activations.is_floating_point():
        raise ValueError(
            f"activations are real fields (N, channels, *grid), but {path.name} holds {activations.dtype} of shape "
            f"{tuple(activations.shape)}"
        )
    return activations


@overload
def opened(activations: Tensor | IndexedActivations | ActivationStore | ArrayLike) -> Tensor | IndexedActivations: ...


@overload
def opened(activations: A | ActivationStore) -> A | StoredActivations: ...


def opened(activations: Any) -> Any:
    """Activations as they are, arrays of numpy or xarray as tensors, and those of a store with one site and one grid.

    Raises
    ------
    TypeError
        For a mapping, or what has no samples by number.
    ValueError
        If a store has several sites or grids, or is not complete.
    """
    if isinstance(activations, ActivationStore):
        if not activations.complete:
            raise ValueError(f"{activations.path} is not complete: write it with the same call again, which goes on")
        known = [(site, grid) for site, grids in activations.grids.items() for grid in grids]
        if len(known) != 1:
            shown = ", ".join(f"[{site!r}, {grid}]" for site, grid in known)
            raise ValueError(f"{activations.path} holds several activations: pass store['site', grid]; it has: {shown}")
        return activations[known[0]]
    if hasattr(activations, "__array__"):
        return tensor_of("activations", activations)
    if isinstance(activations, Mapping | list | tuple) or not hasattr(activations, "__getitem__"):
        way = ": pass one of its entries" if isinstance(activations, Mapping) else ""
        raise TypeError(
            "activations are a tensor or array (N, channels, *grid), an ActivationStore, one of its sites as in store['site'] "
            f"or a stream, not {type(activations).__name__}{way}"
        )
    return activations


def _from_safetensors(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            name = "activations" if "activations" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise ValueError(f"{path.name} holds the tensors {names}; name one of them 'activations'")
            return file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file ({error})") from error


def _from_numpy(path: Path) -> Tensor:
    try:
        # "r", not "c": a private map counts as memory, and a file may be larger than that.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to it
            return torch.from_numpy(array)
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path.name} is no array that can be read without unpickling ({error})") from error
