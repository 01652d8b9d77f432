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
        self._known = torch.zeros(n_concepts, dtype=torch.bool, device=device)
        self.exist = False

    def update(self, codes: ConceptCodes, n_fields: int | None = None) -> None:
        """Take note of a batch, which had `n_fields` fields on all ranks together (those of `codes` by default)."""
        on = torch.zeros_like(self.fields_since_on).index_add(0, codes.concept, codes.expressed().to(torch.int64)) > 0
        self.fields_since_on = torch.where(on, 0, self.fields_since_on + (n_fields or codes.n_samples))

    def mask(self) -> Tensor:
        """Boolean ``(n_concepts,)``: the dead."""
        return self.fields_since_on >= self.dead_after

    def refresh(self, exist: bool | None = None) -> None:
        """Bring :attr:`known` up to date; waits for the device. `exist`: whether any shard of the dictionary has dead
        concepts, asked of this one by default."""
        self._known = self.mask()
        self.exist = bool(self._known.any()) if exist is None else exist

    @property
    def known(self) -> Tensor | None:
        """The dead as of the last :meth:`refresh`, ``(n_concepts,)``, or None if there were none. Asking does not wait for
        the device."""
        return self._known if self.exist else None

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {"dead.fields_since_on": self.fields_since_on, "dead.known": self._known}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        device = self.fields_since_on.device
        self.fields_since_on = state["dead.fields_since_on"].clone().to(device)
        self._known = state["dead.known"].clone().to(device)
        self.exist = bool(self._known.any())
