"""``neuralop-sae capture``: activations of an operator, to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ..data.coordinates import basis_from
from ..data.store import ActivationStore
from .command import Answer, command
from .sources import InputSettings

__all__ = ["capture"]


class CaptureSettings(InputSettings):
    """Settings of ``capture``."""

    site: list[str] = Field(
        description="Sites, from 'neuralop-sae sites': --site fno_blocks.1 --site fno_blocks.2.", min_length=1
    )
    output: Path = Field(Path("activations.zarr"), description="Folder of the store.")
    dtype: str = Field("float32", description="What is stored: float32, float16 or float64.")
    padded: bool = Field(False, description="Whether to keep neuralop's domain padding.")
    time: str | None = Field(
        None,
        description="When each sample was: the entry of --inputs that says so, or a .npy file of numbers or dates. By default "
        "what NetCDF says; so for the trajectory and the lengths.",
    )
    trajectory: str | None = Field(None, description="Which trajectory each sample belongs to; as --time.")
    basis: dict[str, Any] = Field(
        {},
        description="Where the points are, if the operator does not say: "
        '\'{"name": "spherical", "n_modes": [1, 2], "grid": "legendre-gauss"}\'.',
    )
    lengths: tuple[float, ...] | None = Field(None, description="Lengths of the periodic box: --lengths 6.28 --lengths 6.28.")
    units: dict[str, str] = Field({}, description='Units of activations, lengths and time, JSON: \'{"time": "hours"}\'.')
    shard_size: int | None = Field(None, ge=1, description="Samples per file; by default as many as fill 32 MB.")


@command(CaptureSettings, interrupted="the same command goes on where this one stopped")
def capture(settings: CaptureSettings) -> Answer:
    """Run an operator on inputs once, and keep its activations in a store on disk.

    The command is resumable: after Ctrl-C or a crash the same command goes on where it stopped. Other programs read the store,
    which is in the format Zarr 3.

    neuralop-sae capture --model checkpoints/fno --inputs train.safetensors --site fno_blocks.2 --output acts.zarr
    """
    inputs = settings.read_inputs()
    labels = {name: _labels(name, getattr(settings, name), inputs) for name in ("time", "trajectory")}
    store = ActivationStore.write(
        settings.output,
        settings.operator(),
        settings.site,
        inputs,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        padded=settings.padded,
        data_processor=settings.processor(),
        basis=basis_from(settings.basis) if settings.basis else None,
        lengths=settings.lengths,
        units=settings.units,
        shard_size=settings.shard_size,
        progress=True,
        **labels,
    )
    arrays = [
        {"site": entry.site, "samples": entry.n_samples, "channels": entry.shape[0], "grid": list(entry.shape[1:])}
        for entry in store.manifest.arrays.values()
    ]
    return Answer({"store": str(store.path), "arrays": arrays}, [repr(store)])


def _labels(name: str, given: str | None, inputs: Any) -> Any:
    """What a flag stands for: an entry of the inputs, which is taken out of them, or the array of a file."""
    if given is None:
        return None
    entries = inputs if isinstance(inputs, dict) else {}
    if given in entries:
        return entries.pop(given)
    path = Path(given)
    if path.suffix != ".npy" or not path.is_file():
        known = ", ".join(sorted(entries.keys() - {"x"})) or "none"
        raise ValueError(f"--{name} is an entry of --inputs (there are: {known}) or a .npy file that exists, got {given}")
    return np.load(path, allow_pickle=False)
