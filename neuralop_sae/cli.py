"""The command line: ``neuralop-sae``."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .quickstart import QuickstartConfig
from .quickstart import quickstart as run

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
    "seconds": "time",
}


class ExitCode(IntEnum):
    """What the shell gets."""

    BAD_INPUT = 2
    INTERRUPTED = 130


@app.callback()
def main() -> None:
    """Sparse autoencoders for neural operators."""


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for metrics, report, figures and both models.")] = Path(
        "neuralop-sae-quickstart"
    ),
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with neuralop's own Darcy files, instead of generated data.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of data, operator and autoencoder.")] = 0,
    device: Annotated[str, typer.Option(help="Where the models run: cpu, cuda, ...")] = "cpu",
) -> None:
    """Train an FNO on Darcy flow and an SAEFNO on one of its blocks, and show the concepts it uses.

    Under five minutes on two cores, without a download.
    """
    console = Console()
    try:
        metrics = run(
            output,
            data_root=data_root,
            device=device,
            config=QuickstartConfig(seed=seed),
            say=lambda line: console.print(f"[bold]{line}[/bold]"),
        )
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; nothing half-written is left[/yellow]")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except (OSError, ValueError, RuntimeError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        raise typer.Exit(ExitCode.BAD_INPUT) from error
    console.print(_table(metrics))
    for what, name in (("report", "report.html"), ("numbers", "metrics.json"), ("figures", "figures"), ("models", "sae")):
        console.print(f"{what:8} {output / name}", soft_wrap=True)


def _table(metrics: dict[str, object]) -> Table:
    table = Table(title=f"Concepts of {metrics['site']} on {metrics['data']}")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("what it is", style="dim")
    for name, meaning in _MEANING.items():
        value = metrics[name]
        assert isinstance(value, (int, float))
        table.add_row(name, f"{value:.4g}", meaning)
    return table
