"""Writing a store of activations so that a killed run can go on."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..attach.capture import capture
from ..attach.inputs import n_samples, shared_arguments
from ..attach.rules import original_module
from ..attach.sites import resolve_site
from ..checkpoint import check_writable
from ..layers.basis import SpectralBasis
from .coordinates import describe_basis
from .extras import import_extra
from .labels import Labels
from .manifest import MANIFEST_NAME, Manifest, StoredArray, crc32, damaged, model_digest
from .origins import check_order, labels_of, place_of
from .samples import batches_of, n_known, prepared

__all__ = ["write_store"]

_SHARD_BYTES = 2**25
_UNITS = ("activations", "lengths", "time")


def write_store(
    path: Path,
    model: nn.Module,
    sites: list[str],
    inputs: Any,
    *,
    batch_size: int,
    dtype: str,
    padded: bool,
    device: torch.device | str | None,
    data_processor: Any,
    shared: Collection[str],
    labels: tuple[Any, Any],
    basis: SpectralBasis | None,
    lengths: Sequence[float] | None,
    units: dict[str, str],
    shard_size: int | None,
    progress: bool,
) -> None:
    """Write a store, or what is missing of it; see `ActivationStore.write`."""
    shared = {*shared, *shared_arguments(model)}
    known = n_known(inputs, shared)
    check_order(inputs)
    checked = labels_of(inputs, *labels, known)
    if checked.time_units is not None:
        units = {**units, "time": checked.time_units}
    place = place_of(model, inputs, basis, lengths, padded=padded)
    manifest = Manifest(
        model=type(original_module(model)).__name__,
        model_digest=model_digest(model),
        sites=tuple(str(resolve_site(model, site)) for site in sites),
        batch_size=batch_size,
        shard_size=shard_size,
        dtype=dtype,
        padded=padded,
        basis=None if place.basis is None else describe_basis(place.basis),
        lengths=place.lengths,
        coordinates=dict(place.points),
        units=units,
        calendar=checked.calendar,
    )
    _check(manifest)
    writer = _Writer(path, _taken_up(path, manifest), checked)
    bar = tqdm(desc="activations", total=known, unit="sample", disable=not progress)
    run = {"batch_size": batch_size, "padded": padded, "device": device, "shared": shared}
    with bar:
        for batch in prepared(batches_of(inputs, batch_size, shared), data_processor):
            n = n_samples(batch, shared)
            if writer.awaits(batch, n):
                # One batch of the size of the inputs' own: the last bits of a product depend on it.
                writer.add(capture(model, sites, [batch], **run))  # type: ignore[call-overload]
            bar.update(n)
    writer.finish()


def _check(manifest: Manifest) -> None:
    """ValueError for settings that no store can have."""
    if not manifest.sites:
        raise ValueError("no sites to write: give a name or a list of names from find_sites(model)")
    if manifest.dtype not in ("float16", "float32", "float64"):
        raise ValueError(f"activations are stored as float32, float16 or float64; got dtype={manifest.dtype!r}")
    if manifest.shard_size is not None and manifest.shard_size < 1:
        raise ValueError(f"shard_size must be at least 1; got {manifest.shard_size}")
    if not all(0 < length < math.inf for length in manifest.lengths or ()):
        raise ValueError(f"lengths are positive numbers, one for each axis; got {manifest.lengths}")
    unknown = sorted(set(manifest.units) - set(_UNITS))
    if unknown:
        raise ValueError(f"units are those of {', '.join(_UNITS)}; got {', '.join(unknown)}")


def _taken_up(path: Path, wanted: Manifest) -> Manifest:
    """The manifest of the store that is there, if it is of the same activations, or a new one on disk."""
    if (path / MANIFEST_NAME).exists():
        found = Manifest.read(path)
        differences = found.differences(wanted)
        if differences and found.n_batches:
            raise ValueError(
                f"{path} holds other activations: {'; '.join(differences)}. Write to another folder, or delete this one"
            )
        if not found.n_batches:
            for site in found.sites:
                shutil.rmtree(path / site, ignore_errors=True)
            wanted.write(path)
            found = wanted
        for leftover in [*path.rglob("*.partial"), *path.glob(f".{MANIFEST_NAME}.*")]:  # of a write that was cut short
            leftover.unlink()
        return found
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there already and is no store of activations: give another path, or delete it")
    check_writable(path)
    wanted.write(path)
    return wanted


class _Writer:
    """Collects activations, and writes those of all sites whenever a shard is full.

    The manifest is written last: what it does not mention yet is written again.
    """

    def __init__(self, path: Path, manifest: Manifest, labels: Labels) -> None:
        self.path, self.manifest, self.labels = path, manifest, labels
        self.zarr = import_extra("zarr")
        self.arrays: dict[str, dict[str, Any]] = {}
        key = "zarr.json"
        try:
            self.root = self.zarr.open_group(path, mode="a")
            for key, entry in manifest.arrays.items():
                self.arrays[key] = {name: self.root[f"{key}/{name}"] for name in entry.crc32}
                for array in self.arrays[key].values():
                    array.resize((entry.n_samples, *array.shape[1:]))
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path, key, error) from error
        self.waiting: dict[str, dict[str, list[Tensor]]] = {}
        self.n_batches = self.n_samples = self.inputs_crc32 = 0

    def awaits(self, batch: dict[str, Any], n: int) -> bool:
        """Count a batch of n inputs; whether its activations are still to be written. ValueError if it is not the batch that
        was there when the store was written."""
        first, self.n_samples = self.n_samples, self.n_samples + n
        self.n_batches += 1
        self.batch_labels = {}
        for name, labels in self.labels.tensors().items():
            self.batch_labels[name] = labels[first : self.n_samples]
            if len(self.batch_labels[name]) < n:
                raise ValueError(f"{name} has {len(labels)} numbers, but there are more samples: give one for each")
        for key, value in sorted({**batch, **self.batch_labels}.items()):
            if isinstance(value, Tensor):
                described = torch.tensor([*key.encode(), *value.shape])
                self.inputs_crc32 = crc32(value, crc32(described, self.inputs_crc32))
        if self.n_batches == self.manifest.n_batches and self.inputs_crc32 != self.manifest.inputs_crc32:
            raise self._other_inputs("they, or their order, differ")
        if self.n_batches > self.manifest.n_batches and self.manifest.complete:
            raise self._other_inputs("there are more now")
        return self.n_batches > self.manifest.n_batches

    def add(self, activations: dict[str, Tensor]) -> None:
        """Take the activations of the batch that was counted last."""
        for site, fields in activations.items():
            key = f"{site}/{'x'.join(map(str, fields.shape[2:]))}"
            if key not in self.manifest.arrays:
                self._create(key, site, tuple(fields.shape[1:]))
            stored = fields.to(getattr(torch, self.manifest.dtype))
            if not torch.isfinite(stored).all():
                reason = "NaN or Inf" if not torch.isfinite(fields).all() else f"values beyond the range of {stored.dtype}"
                last = self.n_samples - 1
                raise ValueError(
                    f"the activations of site {site!r} for the inputs {self.n_samples - len(fields)} to {last} hold {reason}"
                )
            waiting = self.waiting.setdefault(key, {name: [] for name in self.arrays[key]})
            waiting["activations"].append(stored)
            for name in self.batch_labels:
                waiting[name].append(self._repeated(self.batch_labels[name], len(fields)))
        if any(
            sum(map(len, waiting["activations"])) >= self.arrays[key]["activations"].shards[0]
            for key, waiting in self.waiting.items()
        ):
            self._write(complete=False)

    def finish(self) -> None:
        """Write the rest."""
        if self.n_batches < self.manifest.n_batches:
            raise self._other_inputs(f"there were {self.manifest.n_samples}, now {self.n_samples}")
        if not self.n_samples:
            raise ValueError("the inputs hold no samples")
        for name, labels in self.labels.tensors().items():
            if len(labels) != self.n_samples:
                raise ValueError(f"{name} has {len(labels)} numbers for {self.n_samples} samples: give one for each")
        if not self.manifest.complete:
            self._write(complete=True)

    def _write(self, complete: bool) -> None:
        for key in list(self.waiting):
            entry, waiting = self.manifest.arrays[key], self.waiting.pop(key)
            for name, array in self.arrays[key].items():
                whole = torch.cat(waiting.pop(name))
                array.append(whole.numpy())
                entry.crc32[name] = crc32(whole, entry.crc32[name])
            entry.n_samples = array.shape[0]
        progress = {name: getattr(self, name) for name in ("n_batches", "n_samples", "inputs_crc32")}
        self.manifest = self.manifest.model_copy(update={**progress, "complete": complete})
        self.manifest.write(self.path)

    def _repeated(self, labels: Tensor, n: int) -> Tensor:
        """Labels of a batch of inputs for its n activations: an operator may fold an axis into the batch, as the slower
        one."""
        if n % len(labels):
            raise ValueError(f"{n} activations for a batch of {len(labels)} inputs: labels cannot be told for this site")
        return labels.repeat(n // len(labels))

    def _create(self, key: str, site: str, shape: tuple[int, ...]) -> None:
        manifest = self.manifest
        place = manifest.place
        axes = place.coordinates(shape[1:])
        codecs = self.zarr.codecs
        guard = codecs.Crc32cCodec()
        group = self.root.create_group(key, overwrite=True)
        size = manifest.shard_size or max(1, min(256, _SHARD_BYTES // (4 * math.prod(shape))))
        attributes = {"site": site, "units": manifest.units.get("activations", "1")}
        labels = {name: tensor for name, tensor in self.labels.tensors().items()}
        if labels:
            attributes["coordinates"] = " ".join(labels)
        self.arrays[key] = {
            "activations": group.create_array(
                "activations",
                shape=(0, *shape),
                chunks=(1, *shape),
                shards=(size, *shape),
                dtype=manifest.dtype,
                compressors=[codecs.BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), guard],
                fill_value=math.nan,
                dimension_names=("sample", "channel", *place.names(len(shape) - 1)),
                attributes=attributes,
            )
        }
        for name, tensor in labels.items():
            described = {"units": manifest.units.get("time"), "calendar": manifest.calendar} if name == "time" else {}
            self.arrays[key][name] = group.create_array(
                name,
                shape=(0,),
                chunks=(4096,),
                dtype=str(tensor.dtype).removeprefix("torch."),
                compressors=[guard],
                dimension_names=("sample",),
                attributes={key: value for key, value in described.items() if value},
            )
        units = {"lat": "degrees_north", "lon": "degrees_east"}
        for name, values in axes.items():
            unit = units.get(name) or manifest.units.get("lengths")
            described = {"units": unit} if unit else {}
            group.create_array(name, data=values, compressors=[guard], dimension_names=(name,), attributes=described)
        manifest.arrays[key] = StoredArray(site=site, shape=shape, crc32=dict.fromkeys(self.arrays[key], 0))

    def _other_inputs(self, reason: str) -> ValueError:
        return ValueError(
            f"{self.path} was written from other inputs: {reason}. Give the same in the same order, unshuffled, or write to "
            "another folder"
        )
