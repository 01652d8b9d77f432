"""An FNO on Darcy flow: concepts against a pointwise dictionary and every other model."""

from __future__ import annotations

import typer
from beds import darcy
from common import RESULTS, Output, Quick, Seeds
from fidelity import run


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Curves of FVE and loss recovered against concepts per point."""
    run(darcy(quick), __file__, seeds=seeds, quick=quick, output=output)


if __name__ == "__main__":
    typer.run(main)
