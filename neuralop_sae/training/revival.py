"""Dead concepts: who they are, counted in fields."""

from __future__ import annotations

import torch
from torch import Tensor

from ..codes import ConceptCodes


class DeadConcepts:
    """Counts for each concept the fields since it was last on. A concept is on where its code is not zero.

    Parameters
    ----------
    n_concepts : int
        Size of the dictionary.
    dead_after : int
        A concept is dead after so many fields without being on. Fields, not points: the count does not depend on the grid.
    """

    def __init__(self, n_concepts: int, dead_after: int, device: torch.device | str = "cpu") -> None:
        self.dead_after = dead_after
        self.fields_since_on = torch.zeros(n_concepts, dtype=torch.int64, device=device)

    def update(self, codes: ConceptCodes) -> None:
        """Take note of a batch."""
        self.fields_since_on += codes.n_samples
        self.fields_since_on[codes.concept[codes.expressed()]] = 0

    def mask(self) -> Tensor:
        """Boolean ``(n_concepts,)``: the dead."""
        return self.fields_since_on >= self.dead_after
