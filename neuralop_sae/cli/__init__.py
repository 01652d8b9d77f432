"""The command line, ``neuralop-sae``: one command per file."""

from __future__ import annotations

# isort: off
from . import quickstart, sites, capture, train, evaluate, probe, report  # noqa: F401  # in the order of the help
from .command import ExitCode, app

__all__ = ["ExitCode", "app"]


@app.callback()
def main() -> None:
    """Sparse autoencoders for neural operators: sites, capture, train, evaluate, probe, report, one after the other.

    Settings come from flags or from a YAML file (--config); answers are JSON if asked (--json).

    Exit codes: 0 done, 2 input that does not fit, 3 another process was lost, 130 interrupted.
    """
