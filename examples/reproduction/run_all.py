"""Run every script of this folder and write RESULTS.md from what they found.

``python examples/reproduction/run_all.py`` takes at most ten minutes per script on two cores; ``--jobs 2`` runs two at a time,
each on its share of the cores; ``--only smooth`` runs one and takes the results of the others as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from common import RESULTS, Quick

HERE = Path(__file__).parent
SCRIPTS = sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__) and "def main(" in path.read_text("utf-8"))

HEADER = """# What the method's claims come to here

Each row is one claim of sparse autoencoder neural operators ([arXiv 2509.03738](https://arxiv.org/abs/2509.03738)), tested on
data of our own with baselines tuned alike. These are not reproductions of that paper's numbers: its settings are not public.
Verdicts follow from the criteria under each heading, which were written before the figures. Spread is from the least to the
largest over seeds.

Made by `python examples/reproduction/run_all.py`. Seconds are of the wall clock, in some cases of a machine that did other
things beside; those of CPU, where they are given, are not.
"""


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(SCRIPTS)}; may be repeated; default: all.")
    ] = None,
    quick: Quick = False,
    jobs: Annotated[int, typer.Option(min=1, help="Scripts at a time.")] = 1,
    output: Annotated[Path, typer.Option(help="The page.")] = HERE / "RESULTS.md",
) -> None:
    """Run scripts and write the page."""
    unknown = set(only or ()) - set(SCRIPTS)
    if unknown:
        raise typer.BadParameter(f"no script {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    results = RESULTS.with_name("results_quick") if quick else RESULTS
    names = only or SCRIPTS
    with ThreadPoolExecutor(jobs) as pool:
        ended_well = pool.map(partial(run, results=results, quick=quick, jobs=jobs), names)
        failed = [name for name, well in zip(names, ended_well, strict=True) if not well]
    output.write_text(page(results), encoding="utf-8")
    print(f"wrote {output}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run(name: str, results: Path, quick: bool, jobs: int) -> bool:
    """Run one script on its share of the cores; whether it ended well."""
    print(f"== {name}", flush=True)
    n_threads = max(1, (os.cpu_count() or 1) // jobs)
    command = [sys.executable, str(HERE / f"{name}.py"), "--output", str(results), *(["--quick"] if quick else [])]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(n_threads)}).returncode == 0


def page(results: Path) -> str:
    """The page, from the scripts' JSON files."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    return "\n".join([HEADER, *summary(found), *(line for result in found for line in details(result, results))]) + "\n"


def summary(found: list[dict[str, Any]]) -> Iterator[str]:
    """One table of all rows."""
    yield "| claim | measured | here | baseline | verdict |"
    yield "|---|---|---|---|---|"
    for row in (row for result in found for row in result["rows"]):
        cells = [row["claim"], row["measured"], row["figure"], row["baseline"], f"**{row['verdict']}**"]
        yield f"| {' | '.join(cells)} |"
    yield ""


def details(result: dict[str, Any], results: Path) -> Iterator[str]:
    """Criteria, remarks, command and picture of one script."""
    name = Path(result["command"].split()[-1]).stem
    yield f"## {name}\n"
    for row in result["rows"]:
        yield f"{row['claim']}: **{row['verdict']}**\n"
        for criterion in row["criteria"]:
            yield f"- {'met' if criterion['holds'] else 'not met'}: {criterion['text']}"
        if row["remark"]:
            yield f"\n{row['remark']}"
        yield ""
    spent = f"{result['seconds']:.0f} s" + (f" ({result['cpu_seconds']:.0f} s of CPU)" if "cpu_seconds" in result else "")
    yield f"`{result['command']}`, {spent} on {result['machine']}, version {result['version']}.\n"
    yield f"![{name}]({results.name}/{name}.png)\n"


if __name__ == "__main__":
    typer.run(main)
