"""How long does one training step take, ours and others', and how far is ours from what this machine could do?

Reference setting: 64 channels on 64 x 64 points, 16 x 16 modes, 1024 concepts of which 32 are on, batch 16. In one process,
in turn, after two rounds of warm-up: our forward + backward (gradients by row as the trainer takes them, and plain autograd)
and the trainer's whole step, with ``selection="two_stage"`` and ``"energy"``; the dense oracle, which computes every code of
every concept; and a token-wise TopK SAE as the language-model libraries write it (every point is a token, the same number of
concepts, k = 32 per token). SAELens and overcomplete take part if they are installed.

Then the parts of our step beside their floors (floors.py), and the recall of the cheap selections against ``"exact"`` on
random fields and, with ``--activations``, on real ones, before and after some training.

About five minutes on two cores; ``--quick`` takes seconds.

    python examples/benchmarks/train_step.py
    python examples/benchmarks/train_step.py --no-skip --output results/train_step_no_skip
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import (
    Device,
    Output,
    Quick,
    Threads,
    Timing,
    alternate,
    curve,
    label,
    machine,
    panels,
    prepare,
    random_fields,
    table,
    timing_rows,
    write_figure,
    write_json,
)
from contestants import (
    Setting,
    Step,
    TokenwiseSAE,
    eager_pass,
    installed_libraries,
    oracle_pass,
    oracle_step,
    rows_pass,
    tokens_of,
    tokenwise_pass,
    trainer_run,
    trainer_step,
    with_adam,
)
from floors import floor_rows, measure_rates
from matplotlib.figure import Figure
from recall import OVERSAMPLES, recall_rows, train_for
from torch import Tensor

from neuralop_sae import checkpoint

OURS = "ours, two_stage"


def main(
    output: Output = None,
    quick: Quick = False,
    device: Device = "cpu",
    threads: Threads = 0,
    skip: Annotated[bool, typer.Option(help="Models with the pointwise skip, as by default, or without.")] = True,
    repeats: Annotated[int, typer.Option(help="Timed rounds.")] = 7,
    activations: Annotated[
        Path | None, typer.Option(help="Safetensors file with a tensor 'activations' (N, C, *grid), for the recall.")
    ] = None,
    recall_steps: Annotated[int, typer.Option(help="Training steps before recall is measured again; 0: not again.")] = 100,
) -> None:
    """Time the contestants, compare our parts with their floors, and measure recall."""
    folder, where = prepare(__file__, output, device, threads)
    setting = replace(Setting.tiny() if quick else Setting(), skip=skip)
    if quick:
        repeats, recall_steps = 2, min(recall_steps, 4)
    result: dict[str, Any] = {"machine": machine(where), "setting": asdict(setting)}

    timings = time_contestants(setting, where, repeats)
    result["timings"] = {name: timing.as_dict() for name, timing in timings.items()}
    passes = {name: timing for name, timing in timings.items() if "step" not in name}
    steps = {name: timing for name, timing in timings.items() if "step" in name}
    table("forward + backward", timing_rows(passes, OURS))
    table("whole training step", timing_rows(steps, OURS + ", step"))
    write_json(folder, "train_step", result)

    rates = measure_rates(where, large_bytes=2**26 if quick else 2**29, repeats=repeats)
    result["rates"] = asdict(rates)
    table("rates of this machine", [{"": name, "1e9 per second": value / 1e9} for name, value in asdict(rates).items()])
    batches = batches_of(setting, where)
    result["floors"] = {}
    for selection in ("two_stage", "energy"):
        rows = floor_rows(replace(setting, selection=selection), batches, rates, where, repeats)
        table(f"parts of our step, selection {selection!r}", rows)
        result["floors"][selection] = rows
    write_json(folder, "train_step", result)

    result["recall"] = measure_recall(setting, where, activations, recall_steps)
    table("recall against selection 'exact'", result["recall"])
    write_json(folder, "train_step", result)
    write_figure(folder, "train_step", draw(timings, result["floors"]["two_stage"], result["recall"]))


def batches_of(setting: Setting, device: torch.device) -> list[Tensor]:
    """Four batches, so that a step meets other rows of the dictionary than the one before."""
    return [setting.fields(device=device, seed=seed) for seed in range(4)]


def time_contestants(setting: Setting, device: torch.device, repeats: int) -> dict[str, Timing]:
    """Everybody in turn; names of whole training steps end in 'step'."""
    batches = batches_of(setting, device)
    tokens = [tokens_of(x) for x in batches]
    energy = replace(setting, selection="energy")
    shared = setting.model(device)  # passes leave the weights as they are
    on_fields: dict[str, Step] = {
        OURS: rows_pass(shared),
        "ours, two_stage, plain autograd": eager_pass(shared),
        "ours, energy": rows_pass(energy.model(device)),
        "dense oracle": oracle_pass(shared),
        OURS + ", step": trainer_step(setting.model(device), batches[0]),
        "ours, energy, step": trainer_step(energy.model(device), batches[0]),
        "dense oracle, step": oracle_step(setting.model(device)),
    }
    plain = TokenwiseSAE(setting.channels, setting.concepts, setting.k).to(device)
    on_tokens: dict[str, Step] = {
        "token-wise TopK": tokenwise_pass(plain),
        "token-wise TopK, step": with_adam(tokenwise_pass(plain), plain),
    }
    for name, (both_ways, sae) in installed_libraries(setting, device).items():
        on_tokens |= {name: both_ways, f"{name}, step": with_adam(both_ways, sae)}
    runs: dict[str, Callable[[], object]] = {name: _on(step, cycle(batches)) for name, step in on_fields.items()}
    runs |= {name: _on(step, cycle(tokens)) for name, step in on_tokens.items()}
    return alternate(runs, device, repeats=repeats)


def _on(step: Step, batches: Iterator[Tensor]) -> Callable[[], object]:
    return lambda: step(next(batches))


def measure_recall(setting: Setting, device: torch.device, activations: Path | None, steps: int) -> list[dict[str, Any]]:
    """Recall on random fields and on real ones, of the initial dictionary and of a trained one."""
    n, grid = 4 * setting.batch, (setting.grid, setting.grid)
    data = {
        f"random, {name}": random_fields(n, setting.channels, grid, decay=decay, device=device)
        for name, decay in (("smooth", 2.0), ("white", 0.0))
    }
    if activations is not None:
        data["real"] = checkpoint.read_tensors(activations)[0]["activations"].to(device)
    rows = []
    for name, fields in data.items():
        held_out, rest = fields[: 2 * setting.batch], fields[2 * setting.batch :]
        sae = replace(setting, channels=fields.shape[1]).model(device)
        trainer_run(sae, rest)
        rows += recall_rows(sae, held_out, setting.batch, data=name, state="initial")
        if steps:
            train_for(sae, rest, setting.batch, steps)
            rows += recall_rows(sae, held_out, setting.batch, data=name, state=f"after {steps} steps")
    return rows


def draw(timings: dict[str, Timing], floors: list[dict[str, Any]], recall: list[dict[str, Any]]) -> Figure:
    """Medians of the contestants, our parts beside their floors, and recall over the oversample."""
    figure, (times, parts, found) = panels(3, width=4.4, height=3.6)
    names = list(reversed(timings))
    for number, ours in enumerate((True, False)):
        mine = [name for name in names if name.startswith("ours") == ours]
        places = [names.index(name) for name in mine]
        curve(times, number, [timings[name].median for name in mine], places, "ours" if ours else "others", linestyle="none")
    times.set(xscale="log", yticks=range(len(names)), yticklabels=names)
    label(times, "forward + backward, and whole steps", "median time of a batch (s)")

    order = list(reversed(floors))
    for number, (column, name) in enumerate((("measured (ms)", "measured"), ("floor (ms)", "floor"))):
        curve(parts, number, [row[column] or float("nan") for row in order], range(len(order)), name, linestyle="none")
    parts.set(xscale="log", yticks=range(len(order)), yticklabels=[row["part"] for row in order])
    label(parts, "parts of our step (two_stage)", "time (ms)")

    groups = sorted({(row["fields"], row["dictionary"]) for row in recall})
    for number, group in enumerate(groups):
        rows = [row for row in recall if (row["fields"], row["dictionary"]) == group and row["oversample"] is not None]
        curve(found, number, OVERSAMPLES, [1 - row["pairs found"] for row in rows], ", ".join(group))
    found.set_xticks(OVERSAMPLES)
    found.set_yscale("symlog", linthresh=1e-3)
    found.set_ylim(bottom=0)
    label(found, "two_stage", "oversample (candidates per concept that is on)", "share of exact's pairs missed")
    for axis in (times, parts, found):
        axis.legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    typer.run(main)
