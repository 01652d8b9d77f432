"""The command line: ``neuralop-sae``."""

from __future__ import annotations

import json
import signal
from enum import IntEnum, StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import checkpoint
from .data.activations import load_activations
from .models.base import saes
from .quickstart import PROBLEMS, Darcy, NavierStokes, ShallowWater, check_device
from .quickstart import quickstart as run
from .training import distributed, trainer

app = typer.Typer(help="Sparse autoencoders for neural operators.", no_args_is_help=True, pretty_exceptions_enable=False)
_MEANING = {
    "fve": "variance of the activations that the concepts explain",
    "l0_local": "concepts expressed per point",
    "l0": "concepts on per sample",
    "dead_fraction": "concepts never on in held-out samples",
    "loss_clean": "relative L2 error of the operator",
    "loss_spliced": "the same, running through the concepts",
    "loss_zero_ablated": "the same, with the layer set to zero",
    "loss_recovered": "share of what the layer does that the concepts keep",
    "code_consistency": "correlation of codes between the two resolutions",
    "rollout_clean": "error of the operator at the end of its rollout",
    "rollout_spliced": "the same, running through the concepts at every step",
    "rollout_persistence": "the same, if nothing changed",
    "seconds": "time",
}


class ExitCode(IntEnum):
    """What the shell gets."""

    BAD_INPUT = 2
    RANK_LOST = 3
    INTERRUPTED = 130


class ProblemName(StrEnum):
    """Keys of :data:`neuralop_sae.quickstart.PROBLEMS`."""

    DARCY = Darcy.key
    SHALLOW_WATER = ShallowWater.key
    NAVIER_STOKES = NavierStokes.key


@app.callback()
def main() -> None:
    """Sparse autoencoders for neural operators."""


@app.command()
def quickstart(
    problem: Annotated[ProblemName, typer.Option(help="What the operator learns.")] = ProblemName.DARCY,
    output: Annotated[Path, typer.Option(help="Folder for metrics, report, figures and both models.")] = Path(
        "neuralop-sae-quickstart"
    ),
    data_root: Annotated[
        Path | None, typer.Option(help="For darcy: folder with neuralop's own files, instead of generated data.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of data, operator and autoencoder.")] = 0,
    device: Annotated[str, typer.Option(help="Where the models run: cpu, cuda, ...")] = "cpu",
) -> None:
    """Train a neural operator and a sparse autoencoder on one of its blocks, and show the concepts it uses.

    darcy: an FNO, flow through rock. shallow-water: an SFNO, weather on the sphere. navier-stokes: an FNO, two-dimensional
    turbulence. Under five minutes on two cores each, without a download.
    """
    console = Console()
    try:
        if data_root is not None and problem is not ProblemName.DARCY:
            raise ValueError(f"--data-root holds Darcy files, which --problem {problem.value} cannot use; leave it out")
        own = {} if data_root is None else {"data_root": data_root}
        metrics = run(
            output,
            PROBLEMS[problem](seed=seed, **own),
            device=device,
            say=lambda line: console.print(f"[bold]{line}[/bold]"),
        )
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; nothing half-written is left[/yellow]")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except (OSError, ValueError, RuntimeError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", highlight=False)
        raise typer.Exit(ExitCode.BAD_INPUT) from error
    console.print(_table(metrics))
    for what, name in (("report", "report.html"), ("numbers", "metrics.json"), ("figures", "figures"), ("models", "sae")):
        console.print(f"{what:8} {output / name}", soft_wrap=True)


def _table(metrics: dict[str, object]) -> Table:
    table = Table(title=f"Concepts of {metrics['site']} on {metrics['data']}")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("what it is", style="dim")
    for name in (name for name in _MEANING if name in metrics):
        value = metrics[name]
        assert isinstance(value, (int, float))
        table.add_row(name, f"{value:.4g}", _MEANING[name])
    return table


@app.command()
def train(
    activations: Annotated[Path, typer.Argument(help="Fields (N, channels, *grid) in a .safetensors or .npy file.")],
    output: Annotated[Path, typer.Option(help="Folder for the model, its history and the checkpoint of the run.")] = Path(
        "neuralop-sae-train"
    ),
    model: Annotated[str, typer.Option(help="SAEFNO, SAETFNO, SAEPointwise, ...")] = "SAEFNO",
    n_concepts: Annotated[int, typer.Option(help="Size of the dictionary.")] = 256,
    arguments: Annotated[
        str, typer.Option(help='Other arguments of the model, JSON: \'{"n_modes": [16, 16], "rank": 0.05}\'.')
    ] = "{}",
    training: Annotated[str, typer.Option(help="Fields of TrainingConfig, JSON: '{\"n_epochs\": 5}'.")] = "{}",
    concept_parallel: Annotated[
        int, typer.Option(help="Processes that share the dictionary, under torchrun; the others share the batches.")
    ] = 1,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the output folder.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the dictionary's random start and the order of the fields.")] = 0,
) -> None:
    """Train a sparse autoencoder on activations, on one process or on many.

    torchrun --nproc-per-node 2 -m neuralop_sae.cli train acts.safetensors --concept-parallel 2
    """
    console = Console(stderr=True)
    try:
        with distributed.start(concept_parallel, device) as parallel:
            if isinstance(parallel, distributed.Mesh):
                signal.signal(signal.SIGTERM, _ended_by_torchrun)
            _train(activations, output, model, n_concepts, arguments, training, parallel, resume, device, seed)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; the last checkpoint is whole[/yellow]")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except ConnectionError as error:
        console.print(f"[red]a rank was lost[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(ExitCode.RANK_LOST) from error
    except (OSError, ValueError, TypeError, FloatingPointError, RuntimeError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(ExitCode.BAD_INPUT) from error


def _train(
    activations: Path,
    output: Path,
    model: str,
    n_concepts: int,
    arguments: str,
    training: str,
    parallel: distributed.Single,
    resume: bool,
    device: str,
    seed: int,
) -> None:
    checkpoint.check_writable(output)
    check_device(device)
    fields = load_activations(activations)
    torch.manual_seed(seed)
    sae = saes.get(model)(in_channels=fields.shape[1], n_concepts=n_concepts, **_json(arguments, "--arguments"))  # type: ignore[call-arg]
    sae.to(parallel.device if isinstance(parallel, distributed.Mesh) else device)
    config = trainer.TrainingConfig(**{"seed": seed, **_json(training, "--training")})
    history = trainer.train(sae, fields, config, checkpoint_dir=output, resume=resume, parallel=parallel)
    trainer.save_pretrained(sae, output / "sae", parallel)
    if parallel.is_main:
        n_steps = max(1, round(history.rows[-1]["step"]))
        traffic = {name: n_bytes / n_steps for name, n_bytes in parallel.traffic.items()}
        checkpoint.write_json(output / "history.json", {"rows": history.rows, "bytes_per_step": traffic})


def _json(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object, got {text}")
    return value


def _ended_by_torchrun(_: int, __: FrameType | None) -> NoReturn:
    raise ConnectionError("torchrun ended this process, as it does when another one has died; go on with --resume")


if __name__ == "__main__":
    app()
