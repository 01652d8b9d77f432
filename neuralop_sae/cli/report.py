"""``neuralop-sae report``: what a sparse autoencoder found, as one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field
from torch import Tensor

from ..analysis.report import report as run
from ..data.labelled import LabelledFields
from .command import Answer, command
from .sources import ActivationSettings, InputSettings, SAESettings

__all__ = ["read_table", "report"]


class ReportSettings(InputSettings, ActivationSettings, SAESettings):
    """Settings of ``report``: of `inputs` the first channel is drawn."""

    probes: Path | None = Field(None, description="Table of 'probe', .csv or .json.")
    metrics: Path | None = Field(None, description="Metrics of 'evaluate', .json.")
    history: Path | None = Field(None, description="The history.json of 'train'.")
    title: str = Field("Concepts of a neural operator", description="Heading of the page.")
    max_samples: int | None = Field(None, ge=1, description="The first so many samples; all by default.")
    n_concepts: int = Field(24, ge=1, description="Concepts with a card, at most.")
    output: Path = Field(Path("report.html"), description="The file.")


@command(ReportSettings)
def report(settings: ReportSettings) -> Answer:
    """Write what a sparse autoencoder found as one HTML file, which needs no network.

    neuralop-sae report --sae run/sae --activations test.zarr --inputs test.safetensors --probes probes.csv
    """
    sae, found = settings.load(settings.device), settings.read_activations()
    activations = found[: settings.max_samples]
    card = {"sae": settings.sae, "activations": str(settings.activations), "site": getattr(found, "site", settings.site)}
    path = run(
        sae,
        activations,
        path=settings.output,
        title=settings.title,
        inputs=None if settings.inputs is None else _first_inputs(settings, len(activations)),
        metrics=None if settings.metrics is None else _json(settings.metrics),
        history=None if settings.history is None else _json(settings.history)["rows"],
        probes=None if settings.probes is None else read_table(settings.probes),
        model_card={name: value for name, value in card.items() if value is not None},
        n_concepts=settings.n_concepts,
        batch_size=settings.batch_size,
    )
    return Answer({"report": str(path)}, [f"the report is in {path}"])


def _first_inputs(settings: ReportSettings, n: int) -> Tensor:
    inputs = settings.read_inputs()
    if isinstance(inputs, LabelledFields):
        return inputs.tensor(range(min(n, len(inputs))))
    x = inputs.get("x") if isinstance(inputs, dict) else inputs
    if not isinstance(x, Tensor):
        raise TypeError(f"a report draws a tensor of inputs, or 'x' of several; {settings.inputs} gives {type(x).__name__}")
    return x[:n]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def read_table(path: Path) -> pd.DataFrame:
    """A table that ``probe`` wrote; ValueError if the file is of another kind."""
    if path.suffix == ".csv":
        return pd.read_csv(path)
    if path.suffix == ".json":
        return pd.DataFrame(_json(path))
    raise ValueError(f"a table of probes is a .csv or .json file, got {path.name}")
