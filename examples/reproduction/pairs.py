"""Two dictionaries of the same activations: how alike are their living concepts? What stability.py and large.py share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.analysis.evaluate import ConceptUse
from neuralop_sae.analysis.matching import chance_cosine, match_atoms


class Dictionary(NamedTuple):
    """A trained model, which of its concepts are on in held-out fields, their atoms and codes."""

    sae: ns.SAE
    alive: Tensor
    atoms: Tensor
    codes: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, sae: ns.SAE, x: Tensor) -> Dictionary:
        """Of a model, on fields ``(N, channels, *grid)``."""
        use = ConceptUse(sae)
        codes = sae.encode(x)
        use.update(codes)
        alive = use.frequency() > 0
        index = alive.nonzero()[:, 0]
        return cls(sae, alive, sae.atoms(index, x.shape[2:]), codes.to_dense()[:20, index].transpose(0, 1))


def alike(a: Dictionary, b: Dictionary) -> dict[str, float]:
    """Matched cosine of living concepts, its chance level and what it exceeds that by; and the same for their codes, with the
    codes of other fields as chance. The mean is over the dictionary with fewer living concepts."""
    few, many = sorted((a, b), key=lambda each: len(each.atoms))
    basis = few.sae.basis
    cosine = match_atoms(many.atoms, few.atoms, basis).matched_cosine
    chance = chance_cosine(many.sae, few.atoms, n_atoms=len(many.atoms), n_draws=3, seed=1000).mean
    code = match_atoms(many.codes, few.codes, basis).matched_cosine
    code_chance = match_atoms(many.codes.roll(1, dims=1), few.codes, basis).matched_cosine
    excess = cosine - chance
    of_atoms = {"cosine": cosine, "chance": chance, "excess": excess, "share": excess / (1 - chance)}
    return {**of_atoms, "code": code, "code_chance": code_chance}
