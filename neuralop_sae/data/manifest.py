"""What a store of activations says about itself: a JSON file with a checksum, and what belongs to whom."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from ..attach.rules import original_module
from ..checkpoint import write_json
from .coordinates import basis_from
from .place import Place

__all__ = ["MANIFEST_NAME", "Manifest", "StoredArray", "crc32", "damaged", "model_digest"]

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class StoredArray(BaseModel):
    """The activations of one site on one grid.

    Parameters
    ----------
    site : str
        Name of the site.
    shape : tuple of int
        ``(channels, *grid)`` of a sample.
    n_samples : int
        How many are stored.
    crc32 : dict of str to int
        Checksum of each array of the group, ``"activations"``, ``"time"`` and ``"trajectory"``, over all its samples in order.
    """

    model_config = ConfigDict(extra="forbid")

    site: str
    shape: tuple[int, ...]
    n_samples: int = 0
    crc32: dict[str, int] = {}


class Manifest(BaseModel):
    """What was asked for, how far the writing came, and what is there.

    Parameters
    ----------
    schema_version : int
        Of this description.
    model, model_digest : str
        Class of the operator, and the SHA-256 of its weights.
    sites : tuple of str
        Names of the sites.
    batch_size, shard_size : int
        Samples per forward pass and per file; the size of a shard is None where the shape of the fields sets it.
    dtype : str
        Of the stored activations.
    padded : bool
        Whether neuralop's domain padding was kept.
    basis : dict, optional
        Name and arguments of the basis, which gives quadrature and coordinates.
    lengths : tuple of float, optional
        Lengths of a periodic box.
    coordinates : dict of str to tuple of float
        Those of the grid of the inputs, by axis, where they had some.
    units : dict of str to str
        Units of ``"activations"``, ``"lengths"`` and ``"time"``.
    calendar : str, optional
        In which time counts from a date, where it is not that of numpy.
    n_batches, n_samples : int
        Inputs of which everything is stored.
    inputs_crc32 : int
        Checksum of these inputs.
    complete : bool
        Whether they are all.
    arrays : dict of str to StoredArray
        By the path of their group in the store.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model: str
    model_digest: str
    sites: tuple[str, ...]
    batch_size: int
    shard_size: int | None
    dtype: str
    padded: bool
    basis: dict[str, Any] | None
    lengths: tuple[float, ...] | None
    coordinates: dict[str, tuple[float, ...]] = {}
    units: dict[str, str]
    calendar: str | None = None
    n_batches: int = 0
    n_samples: int = 0
    inputs_crc32: int = 0
    complete: bool = False
    arrays: dict[str, StoredArray] = {}

    def write(self, folder: Path) -> None:
        """Put it into the folder of a store, atomically."""
        data = self.model_dump(mode="json")
        write_json(folder / MANIFEST_NAME, {"checksum": _digest(data), **data})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a store.

        Raises
        ------
        FileNotFoundError
            If the folder has none.
        ValueError
            If it is damaged, or of another schema.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise FileNotFoundError(f"there is no store of activations in {folder}: it has no {MANIFEST_NAME}")
        try:
            data = json.loads(path.read_bytes())
            stored = data.pop("checksum")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise damaged(folder, MANIFEST_NAME, error) from error
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{path} has schema version {data.get('schema_version')}; this version of neuralop_sae reads {SCHEMA_VERSION}"
            )
        if stored != _digest(data):
            raise damaged(folder, MANIFEST_NAME, "its checksum differs")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ValueError(f"{path} is no manifest of a store of activations: {error}") from error

    def differences(self, other: Manifest) -> list[str]:
        """What another request asks for differently, in words; progress does not count."""
        progress = {"n_batches", "n_samples", "inputs_crc32", "complete", "arrays"}
        mine, theirs = self.model_dump(exclude=progress), other.model_dump(exclude=progress)
        different = [name for name in mine if mine[name] != theirs[name]]
        return [f"{name} was {_SHORT.repr(mine[name])}, now {_SHORT.repr(theirs[name])}" for name in different]

    @property
    def place(self) -> Place:
        """Where the activations are."""
        return Place(None if self.basis is None else basis_from(self.basis), self.lengths, self.coordinates)


def damaged(folder: Path, name: str, reason: object) -> ValueError:
    """The error for something in the folder of a store that is not as it was written."""
    said = repr(reason) if isinstance(reason, Exception) else reason
    return ValueError(f"{folder / name} is damaged ({said}): delete the folder {folder} and write the store again")


def crc32(tensor: Tensor, start: int = 0) -> int:
    """CRC-32 of the values of a tensor, going on from that of earlier ones."""
    return zlib.crc32(_bytes(tensor), start)


def model_digest(model: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(original_module(model).state_dict().items()):
        if isinstance(tensor, Tensor):  # neuralop's state dicts hold metadata too
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    plain = tensor.detach().cpu().resolve_conj().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
