"""How much memory does a step need beyond the parameters? Ours, the dense oracle, and a token-wise SAE.

Each contestant runs in a fresh process that does nothing else. On a CPU: the highest resident memory during forward +
backward (the gradient included) less the resident memory just before, after the model and its batch were made and a tiny
model of the same kind had run, so that libraries and their tables are not counted. Freed blocks go back to the system at once
(``MALLOC_MMAP_THRESHOLD_``), so that resident memory is memory in use. On a GPU: the allocator's own peak and start.

Then factorised dictionaries of 65,536 and 262,144 concepts (64 Tucker templates): peak resident memory of the whole process
over the making of the model and two whole training steps, parameters, moments and libraries included.

About three minutes on two cores; ``--quick`` takes seconds. Needs about 8 GB.

    python examples/benchmarks/memory.py
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from typing import Any

import torch
import typer
from common import (
    Device,
    Output,
    Quick,
    Threads,
    curve,
    label,
    machine,
    panels,
    peak_memory,
    prepare,
    table,
    write_figure,
    write_json,
)
from contestants import (
    Setting,
    Step,
    TokenwiseSAE,
    eager_pass,
    oracle_pass,
    rows_pass,
    tokens_of,
    tokenwise_pass,
    trainer_step,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

OURS = "ours, two_stage"


def main(output: Output = None, quick: Quick = False, device: Device = "cpu", threads: Threads = 0) -> None:
    """Measure everybody in processes of their own."""
    folder, where = prepare(__file__, output, device, threads)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # read by the processes that are started from here
    setting = Setting.tiny() if quick else Setting()
    settings = {
        OURS: setting,
        "ours, two_stage, plain autograd": setting,
        "ours, energy": replace(setting, selection="energy"),
        "dense oracle": setting,
        "token-wise TopK": setting,
    }
    if quick:  # the start of a process takes most of the time
        settings = {name: settings[name] for name in (OURS, "dense oracle", "token-wise TopK")}
    result: dict[str, Any] = {"machine": machine(where), "setting": asdict(setting)}
    measured = {name: in_fresh_process(pass_memory, name, s, device, threads) for name, s in settings.items()}
    result["passes"] = pass_rows(measured)
    table("forward + backward, beyond the parameters", result["passes"])
    write_json(folder, "memory", result)

    result["factorised steps"] = []
    for p in (1024,) if quick else (65_536, 262_144):
        large = replace(setting, concepts=p, templates=setting.channels)
        row = in_fresh_process(step_memory, large, device, threads)
        result["factorised steps"].append({"concepts": p, **(row or {"peak of all (MB)": None})})
        write_json(folder, "memory", result)
    table("SAETFNO, two whole training steps", result["factorised steps"])
    write_figure(folder, "memory", draw(result["passes"], result["factorised steps"]))


def in_fresh_process(work: Any, *arguments: Any) -> Any:
    """What `work` returns in a process of its own; None if the system ends it, for want of memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            print("a process was ended by the system (memory?)")
            return None


def contestant(name: str, setting: Setting, device: torch.device) -> tuple[nn.Module, Step, Tensor]:
    """The model, its pass, and its batch."""
    x = setting.fields(device=device)
    if name == "token-wise TopK":
        plain = TokenwiseSAE(setting.channels, setting.concepts, setting.k).to(device)
        return plain, tokenwise_pass(plain), tokens_of(x)
    make = {"dense oracle": oracle_pass, "ours, two_stage, plain autograd": eager_pass}.get(name, rows_pass)
    sae = setting.model(device)
    return sae, make(sae), x


def pass_memory(name: str, setting: Setting, device: str, threads: int) -> dict[str, int]:
    """Bytes of the parameters, and peak bytes of a forward and backward pass beyond what was there."""
    where = _start(device, threads)
    _, step, x = contestant(name, replace(setting, concepts=2 * setting.k, channels=4, batch=2), where)
    step(x)
    model, step, x = contestant(name, setting, where)
    with peak_memory(where) as memory:
        gradients = step(x)
    del gradients
    return {"parameters": _bytes_of(model), "beyond": memory.beyond, "before": memory.before, "peak": memory.peak}


def step_memory(setting: Setting, device: str, threads: int) -> dict[str, Any]:
    """Peak of the whole process, from the making of the model to its second training step."""
    where = _start(device, threads)
    with peak_memory(where) as memory:
        sae, x = setting.model(where), setting.fields(device=where)
        step = trainer_step(sae, x)
        step(x)
        step(x)
    dense = 2 * setting.layer_bytes
    return {
        "parameters (MB)": _bytes_of(sae) / 1e6,
        "a dense dictionary's (MB)": dense / 1e6,
        "libraries (MB)": memory.before / 1e6,
        "peak of all (MB)": memory.peak / 1e6,
    }


def _start(device: str, threads: int) -> torch.device:
    if threads:
        torch.set_num_threads(threads)
    return torch.device(device)


def _bytes_of(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def pass_rows(measured: dict[str, dict[str, int] | None]) -> list[dict[str, Any]]:
    """Rows of the table; ratios are to our default."""
    ours = measured[OURS]
    rows = []
    for name, memory in measured.items():
        row: dict[str, Any] = {"": name, "parameters (MB)": None, "beyond them (MB)": None, "times ours": None}
        if memory is not None:
            row |= {"parameters (MB)": memory["parameters"] / 1e6, "beyond them (MB)": memory["beyond"] / 1e6}
            row["times ours"] = memory["beyond"] / max(ours["beyond"], 1) if ours else None
        rows.append(row)
    return rows


def draw(passes: list[dict[str, Any]], steps: list[dict[str, Any]]) -> Figure:
    """Memory of the contestants, and of steps of large factorised dictionaries."""
    figure, (left, right) = panels(2, width=4.4, height=2.8)
    order = list(reversed(passes))
    for number, (column, name) in enumerate(
        (("beyond them (MB)", "beyond the parameters"), ("parameters (MB)", "parameters"))
    ):
        curve(left, number, [row[column] or float("nan") for row in order], range(len(order)), name, linestyle="none")
    left.set(xscale="log", yticks=range(len(order)), yticklabels=[row[""] for row in order])
    label(left, "forward + backward", "memory (MB)")
    known = [row for row in steps if row["peak of all (MB)"] is not None]
    p = [row["concepts"] for row in known]
    names = ("peak of all (MB)", "a dense dictionary's (MB)", "parameters (MB)", "libraries (MB)")
    for number, column in enumerate(names):
        curve(right, number, p, [row[column] for row in known], column.removesuffix(" (MB)"))
    right.set(xscale="log", yscale="log", xticks=p, xticklabels=[f"{n:,}" for n in p])
    right.minorticks_off()
    label(right, "factorised dictionary, whole training step", "concepts", "memory (MB)")
    for axis in (left, right):
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(0.02, 0.65))
    return figure


if __name__ == "__main__":
    typer.run(main)
