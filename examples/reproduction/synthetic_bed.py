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
RANDOM = ", random start"  # after the name of a model that does not start from the fields
NAMES |= {f"{name}{RANDOM}": f"{NAMES[name]}{RANDOM}" for name in ("truncated", "full")}
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
    size = MODELS[name.removesuffix(RANDOM)]
    if "cnn" in name:
        return ns.SAECNN(channels, N_CONCEPTS, size, **rules)
    return ns.SAEFNO(channels, N_CONCEPTS, (size,), skip=None, **rules)


@cache
def trained(bed: Bed, name: str, rate: float) -> ns.SAE:
    """A dictionary of this bed."""
    start = not name.endswith(RANDOM)
    return fit(model(name, bed.seed), bed.train, rate=rate, steps=bed.steps, seed=bed.seed, initialize=start)


def fit(
    sae: ns.SAE,
    x: Tensor,
    *,
    rate: float,
    steps: int,
    seed: int,
    penalty: float = PENALTY,
    batch_size: int = BATCH,
    initialize: bool = True,
) -> ns.SAE:
    """A dictionary that minimises unexplained variance + penalty * sum_c |kappa_c| int |a_c|, where kappa_c is what a concept
    writes for a unit integral at one place."""
    config = ns.TrainingConfig(
        n_epochs=math.ceil(steps * batch_size / len(x)),
        batch_size=batch_size,
        learning_rate=rate,
        auxiliary_weight=0.0,
        domain_weight=penalty * size_of_unit_integral(sae, x.shape[2:]) if penalty else 0.0,
        initialize=initialize,
        seed=seed,
    )
    ns.train(sae, x, config, progress=False)
    return sae


def size_of_unit_integral(sae: ns.SAE, grid: Sequence[int]) -> float:
    """L2 norm of an impulse at one place whose integral is one; kernel norms are of an impulse of L2 norm one."""
    if isinstance(sae, ns.SAECNN):
        return math.prod(grid) ** 0.5
    weights = sae.basis.weights(like=sae.mean).flatten()
    return float((weights.sum() / weights[0]).sqrt())  # flat over so many functions
