"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from rich.table import Table
from rich.text import Text

__all__ = ["frame_table", "metrics_table"]

_MEANING = {
    "fve": "variance of the activations that the concepts explain",
    "relative_l2": "norm of what they leave over, relative",
    "l0_local": "concepts expressed per point",
    "l0": "concepts on per sample",
    "dead_fraction": "concepts never on in held-out samples",
    "loss_clean": "relative L2 error of the operator",
    "loss_spliced": "the same, running through the concepts",
    "loss_zero_ablated": "the same, with the layer set to zero",
    "loss_recovered": "share of what the layer does that the concepts keep",
    "code_consistency": "correlation of codes between the two resolutions",
    "code_relative_l2": "norm of their difference, relative",
    "code_support_iou": "overlap of where concepts are expressed",
    "rollout_clean": "error of the operator at the end of its rollout",
    "rollout_spliced": "the same, running through the concepts at every step",
    "rollout_persistence": "the same, if nothing changed",
    "seconds": "time",
}


def metrics_table(title: str, metrics: Mapping[str, object]) -> Table:
    """Those metrics that are for everybody, with what they mean."""
    table = Table(title=Text(title))
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("what it is", style="dim")
    for name, meaning in _MEANING.items():
        if name in metrics:
            table.add_row(name, _shown(metrics[name]), meaning)
    return table


def frame_table(title: str, frame: pd.DataFrame) -> Table:
    """A table of pandas."""
    table = Table(title=Text(title))
    for name in frame.columns:
        table.add_column(str(name), overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_shown(value) for value in row))
    return table


def _shown(value: object) -> Text:
    """Plain text: rich takes words in brackets for markup."""
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    return Text(" x ".join(map(str, value)) if isinstance(value, (list, tuple)) else "" if value is None else str(value))
