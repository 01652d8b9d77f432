"""An SFNO on shallow water: concepts on the sphere against a pointwise dictionary and every other model, all by area."""

from __future__ import annotations

import typer
from beds import shallow_water
from common import RESULTS, Output, Quick, Seeds
from fidelity import run


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Curves of FVE and loss recovered against concepts per point."""
    run(shallow_water(quick), __file__, seeds=seeds, quick=quick, output=output)


if __name__ == "__main__":
    typer.run(main)
