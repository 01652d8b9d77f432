"""``neuralop-sae quickstart``: an operator, its activations, a sparse autoencoder and a report, from nothing."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import Field
from rich.console import Console

from ..quickstart import PROBLEMS, Darcy, NavierStokes, ShallowWater
from ..quickstart import quickstart as run
from .command import Answer, Settings, command
from .shown import metrics_table

__all__ = ["quickstart"]


class ProblemName(StrEnum):
    """Keys of :data:`neuralop_sae.quickstart.PROBLEMS`."""

    DARCY = Darcy.key
    SHALLOW_WATER = ShallowWater.key
    NAVIER_STOKES = NavierStokes.key


class QuickstartSettings(Settings):
    """Settings of ``quickstart``."""

    problem: ProblemName = Field(ProblemName.DARCY, description="What the operator learns.")
    output: Path = Field(Path("neuralop-sae-quickstart"), description="Folder for metrics, report, figures and both models.")
    data_root: Path | None = Field(None, description="For darcy: folder with neuralop's own files, instead of generated data.")
    seed: int = Field(0, description="Of data, operator and autoencoder.")
    device: str = Field("cpu", description="Where the models run: cpu, cuda, ...")


@command(QuickstartSettings, interrupted="nothing half-written is left")
def quickstart(settings: QuickstartSettings) -> Answer:
    """Train a neural operator and a sparse autoencoder on one of its blocks, and show the concepts it uses.

    darcy: an FNO, flow through rock. shallow-water: an SFNO, weather on the sphere. navier-stokes: an FNO, two-dimensional
    turbulence. Under five minutes on two cores each, without a download.
    """
    problem, output = settings.problem, settings.output
    if settings.data_root is not None and problem is not ProblemName.DARCY:
        raise ValueError(f"--data-root holds Darcy files, which --problem {problem.value} cannot use; leave it out")
    own = {} if settings.data_root is None else {"data_root": settings.data_root}
    console = Console(stderr=True)
    metrics = run(
        output,
        PROBLEMS[problem](seed=settings.seed, **own),
        device=settings.device,
        say=lambda line: console.print(f"[bold]{line}[/bold]"),
    )
    written = (("report", "report.html"), ("numbers", "metrics.json"), ("figures", "figures"), ("models", "sae"))
    title = f"Concepts of {metrics['site']} on {metrics['data']}"
    return Answer(metrics, [metrics_table(title, metrics), *(f"{what:8} {output / name}" for what, name in written)])
