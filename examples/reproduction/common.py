"""What the scripts share: claims, verdicts from written criteria, spread over seeds, and one way to write results."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure

from neuralop_sae import __version__, checkpoint

RESULTS = Path(__file__).parent / "results"
STANDING_STILL = 1e-12  # a learning rate that leaves a dictionary as training starts it

Seeds = Annotated[int, typer.Option(help="How many seeds, from 0.")]
Quick = Annotated[bool, typer.Option(help="Tiny sizes: seconds, to see that it runs. Its figures mean nothing.")]
Output = Annotated[Path, typer.Option(help="Folder for JSON and figure.")]


@dataclass(frozen=True)
class Criterion:
    """One statement that a claim stands or falls with.

    Parameters
    ----------
    text : str
        The statement with its bound, as written before the measurement.
    holds : bool
        Whether the figures meet it.
    """

    text: str
    holds: bool


@dataclass(frozen=True)
class Row:
    """One line of the table of results.

    Parameters
    ----------
    claim, measured : str
        What is claimed, and what was measured.
    figure, baseline : str
        Ours and the others', with spread.
    criteria : sequence of Criterion
        What the verdict follows from.
    remark : str
        What a reader should know beside it: why a claim fails, what was not tried.
    """

    claim: str
    measured: str
    figure: str
    baseline: str
    criteria: Sequence[Criterion]
    remark: str = ""

    @property
    def verdict(self) -> str:
        """From the criteria: all, some or none hold."""
        met = sum(criterion.holds for criterion in self.criteria)
        return "holds" if met == len(self.criteria) else "holds partly" if met else "does not hold here"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and, for several values, their least and largest."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def over_seeds(measure: Callable[[int], dict[str, float]], seeds: int) -> dict[str, list[float]]:
    """From name to its value for each seed, with the time of each run printed."""
    values: dict[str, list[float]] = {}
    for seed in range(seeds):
        started = time.perf_counter()
        torch.manual_seed(seed)
        for name, value in measure(seed).items():
            values.setdefault(name, []).append(float(value))
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    return values


def on_all_cores(function: Callable[..., Any], tasks: Iterable[Sequence[Any]]) -> list[Any]:
    """What a function of a module returns for each task, that is its arguments, in their order: in as many processes as there
    are threads, of one thread each. No result depends on it where each task draws from a seed of its own."""
    tasks = list(tasks)
    n = min(torch.get_num_threads(), len(tasks))
    if n == 1:
        return [function(*task) for task in tasks]
    with ProcessPoolExecutor(n, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(function, *zip(*tasks, strict=True)))


def write(
    script: str, output: Path, *, rows: Sequence[Row], values: Any, figure: Figure, settings: dict[str, Any], started: float
) -> None:
    """Write ``<script>.json`` and ``<script>.png`` to a folder, and print the rows."""
    name = Path(script).stem
    output.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomically(output / f"{name}.png", partial(figure.savefig, format="png", dpi=130))
    result = {
        "rows": [asdict(row) | {"verdict": row.verdict} for row in rows],
        "values": values,
        "settings": settings,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(sum(os.times()[:4]), 1),  # of processes it started, too
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "version": __version__,
        "command": f"python examples/reproduction/{name}.py",
    }
    checkpoint.write_json(output / f"{name}.json", result)
    for row in rows:
        print(f"{row.claim}: {row.verdict}\n  here {row.figure}\n  baseline {row.baseline}")
