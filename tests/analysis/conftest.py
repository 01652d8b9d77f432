"""A model whose codes are known: concept c is channel c of its input, on wherever that is not zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import neuralop_sae as ns


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


@pytest.fixture
def channels() -> type[Channels]:
    return Channels
