"""An FNO on Darcy flow: which of 512 concepts stay alive, and are they the same from seed to seed?"""

from __future__ import annotations

from typing import Any

import typer
from common import RESULTS, Output, Quick, Seeds
from large import run

from neuralop_sae.quickstart import Darcy

SIZES: dict[str, Any] = {"n_train": 240, "n_test": 60, "resolutions": (48, 96), "hidden_channels": 24}
QUICK: dict[str, Any] = {
    "n_train": 40,
    "n_test": 8,
    "resolutions": (16, 32),
    "hidden_channels": 8,
    "n_layers": 2,
    "operator_epochs": 1,
}


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Dead fraction, FVE and stability of dictionaries under several rules."""
    run(Darcy(**(QUICK if quick else SIZES)), __file__, seeds=seeds, quick=quick, output=output)


if __name__ == "__main__":
    typer.run(main)
