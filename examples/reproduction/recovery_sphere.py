"""Recovery of known concepts, and of the places where they fire, on the sphere."""

from __future__ import annotations

import typer
from common import RESULTS, Output, Quick, Seeds
from recovery import run


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Matched cosine with chance, precision and recall of events."""
    run("sphere", __file__, seeds=seeds, quick=quick, output=output)


if __name__ == "__main__":
    typer.run(main)
