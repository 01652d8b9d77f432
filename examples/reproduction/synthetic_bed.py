"""Fields of five known Gabors in noise, and dictionaries trained on them alike: what smooth.py, resolution.py, domain_size.py,
representation.py and locality.py share; and the training that recovery.py shares with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.analysis.matching import Matching, match_atoms
from neuralop_sae.data.concepts import Gabors
from neuralop_sae.data.synthetic import SyntheticConcepts, SyntheticData
from neuralop_sae.training.losses import domain_penalty, unexplained_variance

WAVENUMBERS = {"smooth": (0.0, 7.0), "rough": (16.0, 32.0)}
POINTS = 128
BAND = 127  # modes of the fields
FINE = (512,)
N_CONCEPTS = 10
MODELS = {"truncated": 33, "full": BAND, "cnn": 33, "wide cnn": BAND}  # modes, or taps
NAMES = {
    "truncated": "SAEFNO, 33 modes",
    "full": "SAEFNO, 127 modes",
    "cnn": "SAECNN, 33 taps",
    "wide cnn": "SAECNN, 127 taps",
}
BATCH = 50
PENALTY = 0.6


@dataclass(frozen=True)
class Bed:
    """Concepts, drawn anew for each seed, and fields of them to train on and to test on."""

    kind: str
    seed: int
    n_train: int = 2000
    steps: int = 800
    n_test: int = 200
    channels: int = 1
    snr_db: float | None = 0.0
    correlation: float = 0.0

    @cached_property
    def concepts(self) -> SyntheticConcepts:
        """What makes the fields. Noise is a function too, with every wavenumber that 128 points resolve."""
        gabors = Gabors(5, self.channels, wavenumbers=WAVENUMBERS[self.kind], seed=self.seed)
        return SyntheticConcepts(gabors, correlation=self.correlation, snr_db=self.snr_db, noise_band=BAND // 2)

    @cached_property
    def train(self) -> Tensor:
        """Fields, ``(n_train, channels, 128)``."""
        return self.concepts.sample(self.n_train, (POINTS,), seed=1000 + self.seed).x

    def test(self, length: int = 1) -> SyntheticData:
        """Others, on a box of any length with the same spacing."""
        return self.concepts.sample(self.n_test, (POINTS * length,), length=length, seed=2000 + self.seed)

    def match(self, sae: ns.SAE) -> Matching:
        """Learned concepts assigned to the known ones, on a grid that is fine beside both."""
        return match_atoms(fine_atoms(sae), self.concepts.atoms(FINE), sae.basis)

    def chance(self, name: str, draws: int = 5) -> float:
        """Matched cosine of models as they are made, the mean of some."""
        return sum(self.match(model(name, seed, self.channels)).matched_cosine for seed in range(draws)) / draws


def fine_atoms(sae: ns.SAE) -> Tensor:
    """All atoms on the fine grid, ``(n_concepts, channels, 512)``. Kernels of taps are there the band-limited functions
    that have these values."""
    if not isinstance(sae, ns.SAECNN):
        return sae.atoms(range(N_CONCEPTS), FINE)
    band = ns.FourierBasis(BAND)
    return band.synthesis(band.analysis(sae.atoms(range(N_CONCEPTS), (POINTS,))), FINE)


def model(name: str, seed: int, channels: int = 1, domain_rule: ns.DomainRule | str = "Rectify") -> ns.SAE:
    """An untrained dictionary: every concept may be on, by default wherever its code is positive."""
    torch.manual_seed(seed)
    rules: dict[str, Any] = {"concept_rule": "All", "domain_rule": domain_rule}
    if "cnn" in name:
        return ns.SAECNN(channels, N_CONCEPTS, MODELS[name], **rules)
    return ns.SAEFNO(channels, N_CONCEPTS, (MODELS[name],), skip=None, **rules)


@cache
def trained(bed: Bed, name: str, rate: float) -> ns.SAE:
    """A dictionary of this bed."""
    return fit(model(name, bed.seed), bed.train, rate=rate, steps=bed.steps, seed=bed.seed)


def fit(
    sae: ns.SAE, x: Tensor, *, rate: float, steps: int, seed: int, penalty: float = PENALTY, batch_size: int = BATCH
) -> ns.SAE:
    """A dictionary that minimises unexplained variance + penalty * sum_c |kappa_c| int |a_c|, by Adam.

    A loop of its own: :func:`neuralop_sae.train` has no such penalty. With norms held fixed kernels grow while codes shrink:
    matched cosine 0.76 instead of 0.97 (one channel, smooth, 33 modes, seed 0).
    """
    mean = (x * sae.basis.quadrature(x.shape[2:], like=x)).flatten(2).sum(2).mean(0)
    centred = x - mean.view(-1, *(1,) * sae.n_dim)
    sae.fit_normalization(mean, sae.basis.mean_square(centred).mean().sqrt())
    random = torch.Generator().manual_seed(seed)
    sae.initialize_from(x, random)
    optimizer = torch.optim.Adam(sae.parameters())
    sae.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 20 * (step + 1) / steps, (1 - step / steps) / 0.4)
        batch = x[torch.randint(len(x), (batch_size,), generator=random)]
        out = sae(batch)
        loss = unexplained_variance(batch, out.reconstruction, sae.scale, sae.basis)
        if penalty:
            loss = loss + penalty * domain_penalty(out.codes, kernel_norms(sae, x.shape[2:]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
    return sae.eval()


def kernel_norms(sae: ns.SAE, grid: Sequence[int]) -> Tensor:
    """L2 norm of what each concept writes for a unit integral at one place, with its gradient, ``(n_concepts,)``."""
    concepts = torch.arange(sae.n_concepts)
    if isinstance(sae, ns.SAECNN):
        return sae.kernel_norms(concepts) * math.prod(grid) ** 0.5
    assert isinstance(sae, ns.SAEFNO)
    weights = sae.basis.weights(like=sae.mean).flatten()
    n_functions = weights.sum() / weights[0]  # an impulse of norm one, flat over so many, has an integral of 1 / root of it
    return sae.concept_decoder.kernel_norms(concepts) * n_functions.sqrt()
