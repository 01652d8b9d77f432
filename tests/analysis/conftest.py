"""A model whose codes are known, concept c being channel c of its input, and activations with labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import neuralop_sae as ns
from neuralop_sae.data.indexed import IndexedActivations
from neuralop_sae.data.labels import Labels


class Channels(nn.Module):
    def __init__(self, n_concepts: int, basis: ns.SpectralBasis) -> None:
        super().__init__()
        self.n_concepts, self.basis = n_concepts, basis
        self.register_buffer("mean", torch.zeros(n_concepts))

    def encode(self, x: torch.Tensor) -> ns.ConceptCodes:
        sample, concept = x.flatten(2).any(2).nonzero(as_tuple=True)
        return ns.ConceptCodes(sample, concept, x[sample, concept], len(x), self.n_concepts, self.basis)

    def atoms(self, concepts, shape):
        impulse = self.basis.synthesis(self.basis.impulse(like=torch.zeros((), dtype=torch.float64)), shape)
        return (1.0 + torch.as_tensor(concepts)).view(-1, *(1,) * (1 + self.basis.n_dim)) * impulse

    def kernel_norms(self):
        return 1.0 + torch.arange(self.n_concepts)


class Held(IndexedActivations):
    """Activations that know when each sample was, as those of a store do."""

    def __init__(self, fields: torch.Tensor, time: Any = None, trajectory: Any = None) -> None:
        super().__init__(fields.shape, *Labels.of(time, trajectory, len(fields)))
        self._fields = fields

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        return self._fields[rows]


@pytest.fixture
def held() -> type[Held]:
    return Held


@pytest.fixture
def channels() -> type[Channels]:
    return Channels
