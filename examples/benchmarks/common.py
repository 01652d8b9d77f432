"""What the benchmarks share: the machine, clocks, peak memory, random fields, tables, JSON and the style of pictures."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from neuralop_sae import checkpoint
from neuralop_sae.analysis.drawing import PALETTE, subplots

Output = Annotated[Path | None, typer.Option(help="Folder for JSON and figure; default: results/<script>/ beside the script.")]
Quick = Annotated[bool, typer.Option(help="Tiny sizes: seconds, to see that it runs.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(help="Threads of torch; 0: as many as torch takes.")]

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_CONSOLE = Console(width=None if sys.stdout.isatty() else 140)


def prepare(script: str, output: Path | None, device: str, threads: int) -> tuple[Path, torch.device]:
    """The output folder (`script` is its ``__file__``) and the device, with the threads set."""
    if threads:
        torch.set_num_threads(threads)
    if device != "cpu" and not torch.cuda.is_available():
        raise typer.BadParameter(f"device {device!r}, but torch sees no GPU here; take --device cpu")
    name = Path(script).stem
    folder = output or Path(script).parent / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder, torch.device(device)


def machine(device: torch.device) -> dict[str, Any]:
    """On what the numbers were taken."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass
class Timing:
    """Seconds of each repeat of one contestant."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        return {"median_s": self.median, "minimum_s": self.minimum, "repeats_s": self.seconds}


def alternate(
    contestants: Mapping[str, Callable[[], object]], device: torch.device, *, warmup: int = 2, repeats: int = 7
) -> dict[str, Timing]:
    """Time contestants in turn, round by round, so that a slow spell of the machine meets them all alike."""
    timings = {name: Timing() for name in contestants}
    for turn in range(warmup + repeats):
        for name, run in contestants.items():
            seconds = clock(run, device)
            if turn >= warmup:
                timings[name].seconds.append(seconds)
    return timings


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, to the end of what it started on a GPU."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class PeakMemory:
    """Bytes in use: before, at the highest point, and that point beyond what was there before."""

    before: int = 0
    peak: int = 0

    @property
    def beyond(self) -> int:
        return self.peak - self.before


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Peak of what the block uses: resident memory of the process, or allocated memory of the GPU.

    The kernel's high-water mark is set back at the start. Where that is not allowed it is the mark of the whole process.
    """
    memory = PeakMemory()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        memory.before = torch.cuda.memory_allocated(device)
        yield memory
        synchronize(device)
        memory.peak = torch.cuda.max_memory_allocated(device)
        return
    _return_free_memory()
    _reset_high_water_mark()
    memory.before = _status("VmRSS")
    yield memory
    memory.peak = _status("VmHWM")


def _return_free_memory() -> None:
    """Give the allocator's free pages back, so that what an earlier block left does not hide what the next one takes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _reset_high_water_mark() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the high-water mark of memory cannot be set back here: peaks count from the start of the process")


def _status(name: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in path.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def random_fields(
    n: int, channels: int, grid: Sequence[int], *, decay: float = 2.0, device: torch.device | None = None, seed: int = 0
) -> Tensor:
    """Gaussian random fields ``(n, channels, *grid)`` of variance one, with an amplitude that falls as |k|^-decay; decay 0 is
    white noise."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfftn(torch.randn(n, channels, *grid, generator=generator), dim=tuple(range(2, 2 + len(grid))))
    frequencies = [torch.fft.fftfreq(size, 1 / size) for size in grid[:-1]] + [torch.fft.rfftfreq(grid[-1], 1 / grid[-1])]
    square = sum(k.square() for k in torch.meshgrid(*frequencies, indexing="ij"))
    assert isinstance(square, Tensor)
    fields = torch.fft.irfftn(spectrum * (1 + square) ** (-decay / 2), s=tuple(grid))
    return (fields / fields.std()).to(device)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that share their columns; floats with three digits."""
    shown = Table(title=title, title_justify="left")
    for number, column in enumerate(rows[0]):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row.values()))
    _CONSOLE.print(shown)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def timing_rows(timings: Mapping[str, Timing], reference: str | None = None) -> list[dict[str, Any]]:
    """Rows of a table of timings, with the ratio to one of them."""
    rows = []
    for name, timing in timings.items():
        row: dict[str, Any] = {"": name, "median (s)": timing.median, "minimum (s)": timing.minimum}
        if reference is not None:
            row[f"times {reference}"] = timing.median / timings[reference].median
        rows.append(row)
    return rows


def write_json(folder: Path, name: str, data: Mapping[str, Any]) -> None:
    """Write ``folder/name.json``, whole or not at all, so that a run that is cut off leaves what it had."""
    checkpoint.write_json(folder / f"{name}.json", data)


def write_figure(folder: Path, name: str, figure: Figure) -> None:
    """Write ``folder/name.png``."""
    checkpoint.write_atomically(folder / f"{name}.png", partial(figure.savefig, format="png", dpi=160))
    print(f"wrote {name}.json and {name}.png")


def panels(n_columns: int, *, n_rows: int = 1, width: float = 3.6, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure with a row or more of axes, in the package's style and with a light grid."""
    figure, axes = subplots(n_rows, n_columns, width, height)
    flat = list(chain.from_iterable(axes))
    for axis in flat:
        axis.grid(True, which="major", color="#e5e7eb", linewidth=0.6)
        axis.tick_params(which="both", labelsize=8)
        axis.set_axisbelow(True)
    return figure, flat


def label(axis: Axes, title: str, x: str, y: str = "") -> None:
    """Title and names of the axes, with their units."""
    axis.set_title(title, fontsize=9)
    axis.set(xlabel=x, ylabel=y)


def curve(axis: Axes, number: int, x: Sequence[float], y: Sequence[float], name: str, **style: Any) -> None:
    """One line with the colour and the marker of its number, both of which tell it from the others."""
    look = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
    axis.plot(x, y, label=name, **{**look, "markersize": 5, "linewidth": 1.4, **style})
