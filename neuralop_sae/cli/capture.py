"""``neuralop-sae capture``: activations of an operator, to disk."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

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
    lengths: tuple[float, ...] | None = Field(None, description="Lengths of the periodic box: --lengths 6.28 --lengths 6.28.")


@command(CaptureSettings, interrupted="the same command goes on where this one stopped")
def capture(settings: CaptureSettings) -> Answer:
    """Run an operator on inputs once, and keep its activations in a store on disk.

    The command is resumable: after Ctrl-C or a crash the same command goes on where it stopped. Other programs read the store,
    which is in the format Zarr 3.

    neuralop-sae capture --model checkpoints/fno --inputs train.safetensors --site fno_blocks.2 --output acts.zarr
    """
    store = ActivationStore.write(
        settings.output,
        settings.operator(),
        settings.site,
        settings.read_inputs(),
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        padded=settings.padded,
        data_processor=settings.processor(),
        lengths=settings.lengths,
        progress=True,
    )
    arrays = [
        {"site": entry.site, "samples": entry.n_samples, "channels": entry.shape[0], "grid": list(entry.shape[1:])}
        for entry in store.manifest.arrays.values()
    ]
    return Answer({"store": str(store.path), "arrays": arrays}, [repr(store)])
