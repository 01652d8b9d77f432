"""``neuralop-sae evaluate``: how good a sparse autoencoder is."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from rich.console import Console

from .. import checkpoint
from ..analysis.evaluate import evaluate as run
from ..analysis.faithfulness import faithfulness
from .command import Answer, command
from .shown import metrics_table
from .sources import ActivationSettings, InputSettings, SAESettings

__all__ = ["evaluate"]


class EvaluateSettings(InputSettings, ActivationSettings, SAESettings):
    """Settings of ``evaluate``: `model` and `inputs`, with targets, add faithfulness."""

    output: Path | None = Field(None, description="JSON file for the metrics.")


@command(EvaluateSettings)
def evaluate(settings: EvaluateSettings) -> Answer:
    """Tell how well a sparse autoencoder describes activations that it was not trained on.

    With --model, --inputs and --site also how well the operator works through it. For that the inputs need the target 'y'.

    neuralop-sae evaluate --sae neuralop-sae-train/sae --activations test.zarr --json
    """
    if (settings.model is None) != (settings.inputs is None):
        raise ValueError("faithfulness needs both --model and --inputs, and --site; without it leave out both")
    sae = settings.load(settings.device)
    activations = settings.read_activations()
    site = getattr(activations, "site", settings.site)
    if settings.model is not None and site is None:
        raise ValueError("faithfulness needs the site that the activations are from: give --site")
    # A store is split into batches as a tensor is.
    metrics = run(sae, activations, batch_size=settings.batch_size, progress=True)  # type: ignore[arg-type]
    if settings.model is not None and site is not None:
        operator, inputs, processor = settings.operator(), settings.read_inputs(), settings.processor()
        metrics |= faithfulness(operator, site, sae, inputs, data_processor=processor, batch_size=settings.batch_size)
    if settings.output is not None:
        checkpoint.write_json(settings.output, metrics)
        Console(stderr=True).print(f"metrics are in {settings.output}", markup=False)
    return Answer(metrics, [metrics_table(f"{type(sae).__name__} on {settings.activations}", metrics)])
