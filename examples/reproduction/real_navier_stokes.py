"""An FNO on Kolmogorov flow: concepts against a pointwise dictionary."""

from __future__ import annotations

import typer
from common import RESULTS, Output, Quick, Seeds
from fidelity import run

from neuralop_sae.quickstart import NavierStokes


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Curves of FVE and loss recovered against concepts per point."""
    sizes = (
        {
            "n_train": 2,
            "n_test": 1,
            "hidden_channels": 8,
            "n_layers": 2,
            "operator_epochs": 1,
            "sae_modes": (5, 5),
            "generator": {"spin_up": 1.0},
        }
        if quick
        else {"n_train": 12, "n_test": 4, "hidden_channels": 24}
    )
    run(NavierStokes(**sizes), __file__, seeds=1 if quick else seeds, quick=quick, output=output)


if __name__ == "__main__":
    typer.run(main)
