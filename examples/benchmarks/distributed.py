"""What travels between processes, what it costs, and that the result is that of one process.

Runs itself under torchrun. A table of bytes per step over the number of concepts and the grid, with and without the pointwise
skip; the time of a step on one process, with the dictionary divided, and with the batch divided; and the largest difference
of a weight after 20 steps. On a machine whose processes share cores and memory, time says what distribution costs, not what
it gains. A quarter of a minute on two cores.

    python examples/benchmarks/distributed.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import Device, Output, Quick, curve, label, machine, panels, prepare, table, write_figure, write_json
from contestants import Setting
from matplotlib.figure import Figure
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.training.distributed import Mesh, Single, start
from neuralop_sae.training.run import Run
from neuralop_sae.training.together import begin

N_STEPS = 20


def main(
    output: Output = None,
    quick: Quick = False,
    device: Device = "cpu",
    processes: Annotated[int, typer.Option(help="How many torchrun starts.")] = 2,
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure, compare, and write what was found."""
    folder, where = prepare(__file__, output, device, 1)
    if worker:
        _work(folder / "distributed_raw.json", quick)
        return
    arguments = ["--output", str(folder), "--device", device, "--worker", *(["--quick"] if quick else [])]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # Processes share the cores: one thread each, for every contestant.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(Path(__file__).resolve()), *arguments], check=True, env=environment)
    found = json.loads((folder / "distributed_raw.json").read_text())
    (folder / "distributed_raw.json").unlink()
    for title in ("traffic", "steps"):
        table(title, found[title])
    write_json(folder, "distributed", {"machine": machine(where), "processes": processes, **found})
    write_figure(folder, "distributed", draw(found["traffic"]))


def _work(path: Path, quick: bool) -> None:
    """On every rank."""
    torch.set_num_threads(1)
    base = Setting.tiny() if quick else Setting(channels=32, grid=32, modes=8, k=16, batch=8, concepts=512)
    with start() as ranks:
        assert isinstance(ranks, Mesh)
        world = ranks.n_data
        shards = Mesh(world, ranks.device)
        found: dict[str, Any] = {"traffic": [], "steps": []}
        for skip in (True, False):
            for concepts in (base.concepts, 2 * base.concepts, 4 * base.concepts):
                found["traffic"].append(_traffic(shards, _changed(base, skip=skip, concepts=concepts)))
            for grid in (2 * base.grid, 4 * base.grid):
                found["traffic"].append(_traffic(shards, _changed(base, skip=skip, grid=grid)))
        found["traffic"].append(_traffic(Mesh(1, ranks.device), base))
        found["steps"] = _compare(base, {"dictionary divided": shards, "batch divided": Mesh(1, ranks.device)})
        if ranks.is_main:
            path.write_text(json.dumps(found))


def _changed(setting: Setting, **changes: Any) -> Setting:
    return Setting(**{**setting.__dict__, **changes})


def _fields(setting: Setting) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(setting.batch, setting.channels, setting.grid, setting.grid, generator=generator)


def _run(setting: Setting, ranks: Single) -> Run:
    fields = _fields(setting)
    config = ns.TrainingConfig(n_epochs=N_STEPS, batch_size=setting.batch, auxiliary_weight=0.0)
    run = Run(setting.model(), fields.to(getattr(ranks, "device", "cpu")), config, None, ranks)
    begin([[run]])
    run.sae.train()
    return run


def _step(run: Run) -> None:
    index = run.parallel.share(torch.arange(len(run.activations)))
    run.one_step(run.activations[index])
    run.step += 1


def _traffic(ranks: Mesh, setting: Setting) -> dict[str, Any]:
    """Bytes that one rank sends in a step."""
    run = _run(setting, ranks)
    ranks.traffic.clear()
    _step(run)
    what = "dictionary" if ranks.n_concept > 1 else "batch"
    sizes = {"divided": what, "skip": setting.skip, "concepts": setting.concepts, "grid": setting.grid}
    kinds = ("candidates", "reconstruction", "row gradients", "dense gradients", "bookkeeping")
    return {**sizes, "bytes per step": sum(ranks.traffic.values()), **{kind: ranks.traffic[kind] for kind in kinds}}


def _compare(setting: Setting, meshes: dict[str, Mesh]) -> list[dict[str, Any]]:
    """Time of a step, and the largest difference of a weight from the run on one process."""
    alone, seconds = _trained(setting, Single())
    reference = alone.sae.state_dict()
    rows = [{"contestant": "one process", "seconds per step": seconds, "largest difference": 0.0}]
    for name, mesh in meshes.items():
        run, seconds = _trained(setting, mesh)
        whole = mesh.whole_state(run.sae.state_dict(), run.axes) or {}
        worst = max((float((whole[key] - value).abs().max()) for key, value in reference.items() if key in whole), default=0.0)
        rows.append({"contestant": name, "seconds per step": seconds, "largest difference": worst})
    return rows


def _trained(setting: Setting, ranks: Single) -> tuple[Run, float]:
    run = _run(setting, ranks)
    started = time.perf_counter()
    for _ in range(N_STEPS):
        _step(run)
    return run, (time.perf_counter() - started) / N_STEPS


def draw(traffic: list[dict[str, Any]]) -> Figure:
    """Bytes over concepts and over the grid."""
    figure, axes = panels(2)
    grids = [row["grid"] for row in traffic if row["divided"] == "dictionary"]
    for axis, what, fixed in ((axes[0], "concepts", "grid"), (axes[1], "grid", "concepts")):
        least = min(grids) if fixed == "grid" else min(row["concepts"] for row in traffic)
        for number, skip in enumerate((True, False)):
            rows = [r for r in traffic if r["divided"] == "dictionary" and r["skip"] == skip and r[fixed] == least]
            rows.sort(key=lambda row: row[what])
            name = "with pointwise skip" if skip else "modes alone"
            curve(axis, number, [r[what] for r in rows], [r["bytes per step"] / 1e3 for r in rows], name)
        label(axis, f"over {what}", "concepts" if what == "concepts" else "points per side", "kB per step and rank")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    typer.run(main)
