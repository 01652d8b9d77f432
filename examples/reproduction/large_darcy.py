"""An FNO on Darcy flow: which of 512 concepts stay alive, and are they the same from seed to seed?"""

from __future__ import annotations

import typer
from beds import darcy
from common import RESULTS, Output, Quick, Seeds
from large import run


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Dead fraction, FVE and stability of dictionaries under several rules."""
    run(darcy(quick), __file__, seeds=seeds, quick=quick, output=output)


if __name__ == "__main__":
    typer.run(main)
