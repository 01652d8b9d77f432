"""A rule that counts nonzeros over the whole field: what shift.py and the scripts on images of characters share."""

from __future__ import annotations

from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.layers.sparsity import register_domain_rule


@register_domain_rule("Strongest")
class Strongest(ns.LocalTopK):
    """Of the codes of a field at all points, the k largest values, so that nonzeros are counted as those of SAE-MLP are."""

    def compete(self, slots: Tensor) -> Tensor:
        """Codes of the concepts that are on, ``(B, n, *grid)``."""
        least = slots.detach().flatten(1).topk(self.k).values[:, -1]
        return slots * (slots >= least.view(-1, *(1,) * (slots.ndim - 1)))
