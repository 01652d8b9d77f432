"""``neuralop-sae evaluate``: how good a sparse autoencoder is."""

from __future__ import annotations

from operator import ge
from pathlib import Path

import torch
from pydantic import Field
from rich.console import Console
from torch import Tensor

from .. import checkpoint
from ..analysis.evaluate import code_consistency
from ..analysis.evaluate import evaluate as run
from ..analysis.faithfulness import faithfulness
from ..data.store import StoredActivations
from .command import Answer, command
from .shown import metrics_table
from .sources import ActivationSettings, InputSettings, SAESettings, activations_of

__all__ = ["evaluate"]


class EvaluateSettings(InputSettings, ActivationSettings, SAESettings):
    """Settings of ``evaluate``: `model` and `inputs`, with targets, add faithfulness; `fine` or `fine_grid` resolution."""

    fine: Path | None = Field(
        None,
        description="Activations of the same samples on a finer grid, as --activations; where --fine-grid is given, the "
        "same store by default.",
    )
    fine_grid: tuple[int, ...] | None = Field(None, description="Which grid of that store: --fine-grid 64 --fine-grid 64.")
    output: Path | None = Field(None, description="JSON file for the metrics.")

    def read_fine(self, coarse: Tensor | StoredActivations) -> Tensor | StoredActivations | None:
        """Activations on the second grid, if there is one; ValueError if they are not those of the same samples."""
        if self.fine is None and self.fine_grid is None:
            return None
        fine = activations_of(self.fine or self.activations, self.site, self.fine_grid)
        (n, channels, *grid), (n_coarse, channels_coarse, *coarse_grid) = fine.shape, coarse.shape
        finer = len(grid) == len(coarse_grid) and grid != coarse_grid and all(map(ge, grid, coarse_grid))
        if (n, channels) != (n_coarse, channels_coarse) or not finer:
            raise ValueError(
                "--fine is of the samples of --activations, in their order, on a finer grid: (N, channels, *grid) is "
                f"{tuple(fine.shape)} there and {tuple(coarse.shape)} here"
            )
        for name in ("time", "trajectory"):
            one, other = (getattr(each, name, None) for each in (coarse, fine))
            if one is not None and other is not None and not torch.equal(one, other):
                raise ValueError(f"samples of --fine and of --activations differ in {name}: capture the same, in one order")
        return fine


@command(EvaluateSettings)
def evaluate(settings: EvaluateSettings) -> Answer:
    """Tell how well a sparse autoencoder describes activations that it was not trained on.

    With --model, --inputs and --site also how well the operator works through it. For that the inputs need the target 'y'.
    With --fine or --fine-grid also whether codes mean the same on a finer grid.

    neuralop-sae evaluate --sae neuralop-sae-train/sae --activations test.zarr --json

    neuralop-sae evaluate --sae run/sae --activations test.zarr --grid 32 --grid 32 --fine-grid 64 --fine-grid 64
    """
    if (settings.model is None) != (settings.inputs is None):
        raise ValueError("faithfulness needs both --model and --inputs, and --site; without it leave out both")
    sae = settings.load(settings.device)
    activations = settings.read_activations()
    fine = settings.read_fine(activations)
    site = getattr(activations, "site", settings.site)
    if settings.model is not None and site is None:
        raise ValueError("faithfulness needs the site that the activations are from: give --site")
    metrics = run(sae, activations, batch_size=settings.batch_size, progress=True)
    if settings.model is not None and site is not None:
        operator, inputs, processor = settings.operator(), settings.read_inputs(), settings.processor()
        metrics |= faithfulness(operator, site, sae, inputs, data_processor=processor, batch_size=settings.batch_size)
    if fine is not None:
        metrics |= code_consistency(sae, activations, fine, batch_size=settings.batch_size)
    if settings.output is not None:
        checkpoint.write_json(settings.output, metrics)
        Console(stderr=True).print(f"metrics are in {settings.output}", markup=False)
    return Answer(metrics, [metrics_table(f"{type(sae).__name__} on {settings.activations}", metrics)])
