"""How large is a report, and how soon is it in use? Pages of 24 and of 500 cards, opened in Chromium.

Each page is opened in a fresh browser, in turn with an empty page, several times. From the browser: the time after
navigation at which its script is done (``ready``: the table can be searched and sorted), at which the whole file is parsed,
and at which it has loaded; then what a search and a sort of the table take, layout included. From the system: processor time
of all the browser's processes, less the median of the empty page. On a busy machine go by processor time.

About three minutes on two cores; ``--quick`` takes seconds. Needs Chromium and psutil.

    python examples/benchmarks/report_page.py
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
import typer
from common import Output, Quick, curve, label, machine, panels, prepare, random_fields, table, write_figure, write_json
from matplotlib.figure import Figure

import neuralop_sae as ns

SWITCHES = (
    "headless no-sandbox no-zygote disable-gpu no-first-run disable-background-networking disable-dev-shm-usage dump-dom"
)
# Appended to the page: replaces it by its timings, so that writing out the document costs nothing.
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const taken = action => {
    const start = performance.now();
    action();
    document.body.offsetHeight;
    return performance.now() - start;
  };
  const [page] = performance.getEntriesByType("navigation"), [ready] = performance.getEntriesByName("ready");
  const found = {ready: ready.startTime, parsed: page.domInteractive, loaded: page.loadEventEnd};
  document.getElementById("table").scrollIntoView({behavior: "instant"});
  found.search = taken(() => { search.value = "1"; search.dispatchEvent(new Event("input")); });
  found.sort = taken(() => document.querySelector("[data-key=norm] button").click());
  document.documentElement.textContent = "timings" + JSON.stringify(found);
}));</script>"""


def main(output: Output = None, quick: Quick = False, repeats: int = 7) -> None:
    """Make the pages, open them, print the table."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise typer.BadParameter("no Chromium is installed: the pages cannot be opened")
    folder, device = prepare(__file__, output, "cpu", 0)
    counts, repeats = ((10, 30), 2) if quick else ((24, 500), repeats)
    with tempfile.TemporaryDirectory() as scratch:
        pages = {"empty": Path(scratch) / "empty.html", **{f"{n} cards": write_page(n, Path(scratch)) for n in counts}}
        pages["empty"].write_text("<!doctype html><title>empty</title>")
        sizes = {name: page.stat().st_size / 1e6 for name, page in pages.items()}
        for page in pages.values():
            page.write_text(page.read_text(encoding="utf-8") + (PROBE if page.stem != "empty" else ""), encoding="utf-8")
        opened: dict[str, list[dict[str, float]]] = {name: [] for name in pages}
        for _ in range(repeats):
            for name, page in pages.items():
                opened[name].append(open_page(chromium, page))
    empty = statistics.median(each["cpu"] for each in opened.pop("empty"))
    for each in itertools.chain.from_iterable(opened.values()):
        each["cpu"] -= empty
    rows = [row_of(name, sizes[name], each) for name, each in opened.items()]
    table(f"Report pages, medians of {repeats}", rows)
    write_json(folder, "report_page", {"machine": machine(device), "rows": rows, "opened": opened})
    write_figure(folder, "report_page", draw(opened))


def write_page(n_cards: int, folder: Path) -> Path:
    """The report of a new model with a few more concepts than cards, and with every part that a page can have; correlations
    are drawn at random."""
    torch.manual_seed(0)
    x, inputs = random_fields(64, 16, (64, 64)), random_fields(64, 1, (64, 64), seed=1)
    n_concepts = n_cards + n_cards // 5
    sae, other = (ns.SAEFNO(16, n_concepts, (12, 12), concept_rule=ns.TopK(n_cards // 10 + 4)) for _ in range(2))
    sae.initialize_from(x)
    rows = itertools.product(
        range(n_concepts), ("vorticity", "enstrophy", "strain rate", "pressure", "kinetic energy", "helicity")
    )
    probes = pd.DataFrame(rows, columns=["concept", "quantity"]).assign(kind="map", lag=0)
    r = torch.rand(len(probes), generator=torch.Generator().manual_seed(0)).numpy() - 0.5
    probes = probes.assign(correlation=r, low=r - 0.1, high=r + 0.1, q_value=0.5 - abs(r))
    arguments: dict[str, Any] = {"inputs": inputs, "probes": probes, "stability": other}
    return ns.report(sae, x, path=folder / f"{n_cards}.html", n_concepts=n_cards, **arguments)


def open_page(chromium: str, page: Path) -> dict[str, float]:
    """Seconds of one opening in a fresh browser; ``cpu`` is the processor time of all its processes."""
    cpu: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as profile, tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        switches = [f"--{switch}" for switch in SWITCHES.split()]
        command = [chromium, *switches, f"--user-data-dir={profile}", page.as_uri()]
        with subprocess.Popen(command, stdout=printed, stderr=subprocess.DEVNULL) as browser:
            family = psutil.Process(browser.pid)
            # Not from the system's sum over children: some of a browser's processes end without being waited for.
            while browser.poll() is None:
                cpu |= processor_times(family)
                time.sleep(0.02)
        printed.seek(0)
        found = re.search(r"timings(\{.*?\})", printed.read())
    return {"cpu": sum(cpu.values()), **({} if found is None else {k: ms / 1e3 for k, ms in json.loads(found[1]).items()})}


def processor_times(browser: psutil.Process) -> dict[int, float]:
    """Seconds of processor time of a browser and of all that came from it, by process."""
    times = {}
    with suppress(psutil.NoSuchProcess):
        for process in (browser, *browser.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                spent = process.cpu_times()
                times[process.pid] = spent.user + spent.system
    return times


def row_of(name: str, size: float, opened: list[dict[str, float]]) -> dict[str, Any]:
    """A row of the table: medians over the openings, in seconds."""
    return {"": name, "MB": size, **{f"{part} (s)": statistics.median(each[part] for each in opened) for part in opened[0]}}


def draw(opened: dict[str, list[dict[str, float]]]) -> Figure:
    """Every opening of the pages."""
    figure, (axis,) = panels(1, width=4.4, height=2.8)
    for number, name in enumerate(opened):
        parts = list(opened[name][0])
        points = [(parts.index(part) + 0.15 * number, each[part]) for each in opened[name] for part in parts]
        curve(axis, number, [x for x, _ in points], [y for _, y in points], name, linestyle="none", alpha=0.7)
    axis.set(yscale="log", xticks=range(len(parts)), xticklabels=parts)
    label(axis, "opening a report", "", "seconds")
    axis.legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    typer.run(main)
