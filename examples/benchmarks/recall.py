"""Recall of the cheap selections: how much of what ``selection="exact"`` turns on do they turn on too?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import neuralop_sae as ns

OVERSAMPLES = (1, 2, 3, 4)


@torch.no_grad()
def recall_rows(sae: ns.SAEFNO, fields: Tensor, batch: int, *, data: str, state: str) -> list[dict[str, Any]]:
    """One row per selection: the share of exact's (sample, concept) pairs that are also selected, and the share of exact's
    total score that is kept (scores being the true ones). The model is left in eval mode, its selection as it was."""
    before = sae.selection, sae.oversample
    sae.eval()
    ways = [("energy", 1), *(("two_stage", n) for n in OVERSAMPLES)]
    found, kept = torch.zeros(len(ways)), torch.zeros(len(ways))
    n_pairs = score = 0.0
    for x in fields.split(batch):
        sae.selection = "exact"
        out = sae(x)
        exact = out.codes.selection.mask()
        n_pairs += float(exact.sum())
        score += float(out.scores[exact].sum())
        for number, (sae.selection, sae.oversample) in enumerate(ways):
            chosen = sae.encode(x).selection.mask()
            found[number] += float((chosen & exact).sum())
            kept[number] += float(out.scores[chosen].sum())
    sae.selection, sae.oversample = before
    return [
        {
            "fields": data,
            "dictionary": state,
            "selection": name,
            "oversample": oversample if name == "two_stage" else None,
            "pairs found": float(found[number]) / max(n_pairs, 1.0),
            "score kept": float(kept[number]) / max(score, 1e-12),
        }
        for number, (name, oversample) in enumerate(ways)
    ]


def train_for(sae: ns.SAEFNO, fields: Tensor, batch: int, steps: int) -> None:
    """Train for about so many steps with the default settings."""
    steps_per_epoch = -(-len(fields) // batch)
    config = ns.TrainingConfig(n_epochs=max(1, round(steps / steps_per_epoch)), batch_size=batch)
    ns.train(sae, fields, config, progress=False)
