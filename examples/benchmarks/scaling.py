"""How does the time of our step grow with concepts, grid, concepts on, and batch?

Four curves around the reference setting (64 channels on 64 x 64 points, 16 x 16 modes, 1024 concepts of which 32 are on, batch
16), forward + backward and the trainer's whole step:

- concepts, 256 to 65,536: dense dictionaries while they fit in ``--memory-gb``, factorised ones (64 Tucker templates), and the
  dense oracle up to 1024. A dense dictionary of 65,536 has two layers of 4.8 GB: its forward + backward fits in 16 GB, its
  training step, with two moments for each weight (3 x 2 x 4.8 GB), does not.
- grid, 32 to 512 points a side, batch 4: codes on a fixed 32 x 32 grid or on the input's. Timed beside them: the transforms of
  the m channels (to the code grid, to coefficients, and back with its adjoint), and all that touches the input's grid (these,
  centring, scaling, and the loss), so that what is left can be seen not to grow.
- concepts on per sample, 8 to 128; and batch, 4 to 64.

About five minutes on two cores; ``--quick`` takes seconds.

    python examples/benchmarks/scaling.py --memory-gb 16
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import torch
import typer
from common import (
    Device,
    Output,
    Quick,
    Threads,
    alternate,
    curve,
    label,
    machine,
    panels,
    prepare,
    table,
    write_figure,
    write_json,
)
from contestants import Setting, oracle_pass, rows_pass, trainer_step
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.training.losses import unexplained_variance

CURVES = {
    "concepts": "concepts",
    "grid": "points per side",
    "k": "concepts on per sample",
    "batch": "samples per batch",
}
OTHERS = {"oracle": "dense oracle", "transforms": "transforms alone", "grid work": "all work on the input's grid"}
TIMES = ("pass", "step", *OTHERS)


@dataclass(frozen=True)
class Point:
    """A setting on a curve, the name of its line, and what is timed there."""

    curve: str
    line: str
    x: int
    setting: Setting
    what: tuple[str, ...] = ("pass", "step")


def points(base: Setting, quick: bool) -> Iterator[Point]:
    """All points, curve by curve."""
    templates = base.channels
    for p in (64, 128) if quick else (256, 512, 1024, 4096, 16_384, 65_536):
        oracle = ("oracle",) if p <= 1024 else ()
        dense = replace(base, concepts=p)
        yield Point("concepts", "dense", p, dense, ("pass", "step", *oracle))
        yield Point("concepts", f"Tucker, {templates} templates", p, replace(dense, templates=templates))
    side = base.grid if quick else 32
    for grid in (16, 32) if quick else (32, 64, 128, 256, 512):
        fixed = replace(base, grid=grid, batch=4, code_grid=side)
        yield Point("grid", f"codes on {side} x {side}", grid, fixed, ("pass", "step", "transforms", "grid work"))
        yield Point("grid", "codes on the input's grid", grid, replace(fixed, code_grid=None))
    for k in (2, 4) if quick else (8, 16, 32, 64, 128):
        yield Point("k", "dense", k, replace(base, k=k))
    for batch in (2, 4) if quick else (4, 8, 16, 32, 64):
        yield Point("batch", "dense", batch, replace(base, batch=batch))


def main(
    output: Output = None,
    quick: Quick = False,
    device: Device = "cpu",
    threads: Threads = 0,
    repeats: Annotated[int, typer.Option(help="Timed rounds.")] = 5,
    memory_gb: Annotated[float, typer.Option(help="What is estimated to need more is left out, with a note.")] = 16.0,
    only: Annotated[str | None, typer.Option(help=f"One curve alone: {', '.join(CURVES)}.")] = None,
) -> None:
    """Time all points."""
    folder, where = prepare(__file__, output, device, threads)
    if only is not None and only not in CURVES:
        raise typer.BadParameter(f"no curve {only!r}; known: {', '.join(CURVES)}")
    base = Setting.tiny() if quick else Setting()
    rows: list[dict[str, Any]] = []
    for point in points(base, quick):
        if only is None or point.curve == only:
            rows.append(measure(point, where, 2 if quick else repeats, memory_gb * 1e9))
            write_json(folder, "scaling", {"machine": machine(where), "setting": asdict(base), "points": rows})
    for name, axis in CURVES.items():
        shown = [_shown(row, axis) for row in rows if row["curve"] == name]
        if shown:
            table(name, shown)
    write_figure(folder, "scaling", draw(rows))


def _shown(row: dict[str, Any], axis: str) -> dict[str, Any]:
    times = {f"{name} (ms)": _times(row, name, 1e3) for name in TIMES}
    if row["curve"] == "grid":
        times["pass beyond grid work (ms)"] = 1e3 * _beyond(row) if "grid work" in row["timings"] else None
    return {"": row["line"], axis: row["x"], **times, "note": row["note"] or ""}


def _times(row: dict[str, Any], name: str, factor: float = 1.0) -> float | None:
    return factor * row["timings"][name]["median_s"] if name in row["timings"] else None


def memory_needed(s: Setting, what: str) -> float:
    """Bytes, roughly: weights as they are made (three layers at the peak), gradients and moments, and the maps of a step."""
    n, code_points = s.batch * s.k, (s.code_grid or s.grid) ** 2
    fields = 4 * 8 * s.batch * s.channels * s.grid**2
    maps = 4 * code_points * n * (6 + 3 * 3)
    factorised = s.templates is not None
    layer = 8 * s.concepts * s.templates if s.templates is not None else s.layer_bytes
    used = 0 if factorised else 2 * min(s.concepts, n) * s.layer_bytes / s.concepts
    if what == "oracle":
        return 4 * layer + fields + 9 * 4 * s.batch * s.concepts * code_points
    if what == "step":
        return 6 * layer + used + fields + maps
    return max(3 * layer, 2 * layer + used + fields + maps)


def measure(point: Point, device: torch.device, repeats: int, limit: float) -> dict[str, Any]:
    """Seconds of all that fits in memory; a note for what does not."""
    needed = {what: memory_needed(point.setting, what) for what in point.what}
    what = [name for name in point.what if needed[name] <= limit]
    left_out = [f"{name} left out: needs about {needed[name] / 1e9:.1f} GB" for name in point.what if name not in what]
    timings = alternate(_contestants(point.setting, what, device), device, repeats=repeats) if what else {}
    gc.collect()
    row = {
        **{name: getattr(point, name) for name in ("curve", "line", "x")},
        "setting": asdict(point.setting),
        "timings": {name: timing.as_dict() for name, timing in timings.items()},
        "note": "; ".join(left_out) or None,
    }
    found = ", ".join(f"{name} {1e3 * timing.median:,.1f} ms" for name, timing in timings.items())
    print(f"{point.curve} {point.x:,}, {point.line}: {'; '.join([found, *left_out])}", flush=True)
    return row


def _contestants(setting: Setting, what: list[str], device: torch.device) -> dict[str, Callable[[], object]]:
    sae, x = setting.model(device), setting.fields(device=device)
    makers: dict[str, Callable[[], Callable[[Tensor], object]]] = {
        "pass": lambda: rows_pass(sae),
        "step": lambda: trainer_step(sae, x),
        "oracle": lambda: oracle_pass(sae),
        "transforms": lambda: _transforms(sae),
        "grid work": lambda: _grid_work(sae),
    }
    steps = {name: makers[name]() for name in what}
    return {name: lambda step=step: step(x) for name, step in steps.items()}  # type: ignore[misc]


def _transforms(sae: ns.SAEFNO) -> Callable[[Tensor], object]:
    """The m channels to the code grid, to coefficients, and back to the input's grid, with the adjoint of the last."""
    basis = sae.basis

    def step(x: Tensor) -> object:
        grid = tuple(x.shape[2:])
        small = basis.resample(x, grid if isinstance(sae.code_grid, str) else sae.code_grid)
        coefficients = basis.analysis(small)
        written = small.detach().requires_grad_()
        back = basis.resample(written, grid)
        return coefficients, torch.autograd.grad(back, written, x)

    return step


def _grid_work(sae: ns.SAEFNO) -> Callable[[Tensor], object]:
    """All that touches the input's grid: :func:`_transforms`, centring and scaling, the loss and its gradient."""
    basis = sae.basis

    def step(x: Tensor) -> object:
        grid = tuple(x.shape[2:])
        small = basis.resample(sae.normalize(x), grid if isinstance(sae.code_grid, str) else sae.code_grid)
        coefficients = basis.analysis(small)
        written = small.detach().requires_grad_()
        loss = unexplained_variance(x, sae.denormalize(basis.resample(written, grid)), sae.scale, basis)
        return coefficients, torch.autograd.grad(loss, written)

    return step


def draw(rows: list[dict[str, Any]]) -> Figure:
    """One panel per curve; colour and marker tell the line, dashes the whole step."""
    figure, axes = panels(2, n_rows=2, width=6.2, height=3.0)
    for axis, (name, title) in zip(axes, CURVES.items(), strict=True):
        mine = [row for row in rows if row["curve"] == name]
        for number, line in enumerate(dict.fromkeys(row["line"] for row in mine)):
            on_line = [row for row in mine if row["line"] == line]
            _line(axis, number, on_line, "pass", line)
            _line(axis, number, on_line, "step", f"{line}, whole step", linestyle="--", markerfacecolor="white")
        for number, (what, shown) in enumerate(OTHERS.items(), 2):
            _line(axis, number, mine, what, shown, linestyle=":")
        beyond = {row["x"]: _beyond(row) for row in mine if "grid work" in row["timings"]}
        if beyond:
            curve(axis, 5, list(beyond), list(beyond.values()), "fixed code grid, beyond that work")
        _finish(axis, sorted({row["x"] for row in mine}), title)
    return figure


def _beyond(row: dict[str, Any]) -> float:
    """Seconds of a pass that are not work on the input's grid."""
    return max((_times(row, "pass") or 0.0) - (_times(row, "grid work") or 0.0), 0.0)


def _line(axis: Axes, number: int, rows: list[dict[str, Any]], what: str, name: str, **style: Any) -> None:
    known = [row for row in rows if what in row["timings"]]
    if known:
        curve(axis, number, [row["x"] for row in known], [_times(row, what) or 0.0 for row in known], name, **style)


def _finish(axis: Axes, ticks: list[int], title: str) -> None:
    axis.set(xscale="log", yscale="log", xticks=ticks, xticklabels=[f"{n:,}" for n in ticks])
    axis.xaxis.minorticks_off()
    label(axis, "", title, "median time (s)")
    if axis.lines:
        axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


if __name__ == "__main__":
    typer.run(main)
