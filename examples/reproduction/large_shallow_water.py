"""An SFNO on shallow water: which of 512 concepts stay alive, and are they the same from seed to seed?"""

from __future__ import annotations

from typing import Any

import typer
from common import RESULTS, Output, Quick, Seeds
from large import run

from neuralop_sae.quickstart import ShallowWater

SIZES: dict[str, Any] = {"n_train": 10, "n_test": 4, "hidden_channels": 24}
QUICK: dict[str, Any] = {
    "n_train": 2,
    "n_test": 1,
    "hidden_channels": 8,
    "n_layers": 2,
    "operator_epochs": 1,
    "generator": {"spin_up": 1.0},
}


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Dead fraction, FVE and stability of dictionaries under several rules."""
    run(ShallowWater(**(QUICK if quick else SIZES)), __file__, seeds=seeds, quick=quick, output=output)


if __name__ == "__main__":
    typer.run(main)
