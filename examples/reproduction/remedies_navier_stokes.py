"""An FNO on Kolmogorov flow: which remedies keep a few concepts per sample alive?"""

from __future__ import annotations

import typer
from beds import navier_stokes
from common import RESULTS, Output, Quick, Seeds
from remedies import run


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Dead fraction and FVE with each remedy."""
    run(navier_stokes(quick), __file__, seeds=seeds, quick=quick, output=output)


if __name__ == "__main__":
    typer.run(main)
