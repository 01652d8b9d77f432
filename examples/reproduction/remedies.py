"""A few concepts per sample let a large dictionary die. Remedies that are known from elsewhere: a threshold over the batch,
the auxiliary loss, the start from data, balanced use, archetypes, nesting; and competition among all concepts, our default.
What remedies_darcy.py, remedies_navier_stokes.py and remedies_shallow_water.py share."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from beds import Bed
from common import STANDING_STILL, Criterion, Row, spread, write
from large import RATE, measured
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils import parametrize

import neuralop_sae as ns
from neuralop_sae.analysis.drawing import PALETTE, subplots
from neuralop_sae.layers.selection import Selection
from neuralop_sae.layers.sparsity import register_concept_rule
from neuralop_sae.models.spectral import SpectralSAE
from neuralop_sae.quickstart import Problem


@register_concept_rule("Balanced")
class Balanced(ns.TopK):
    """The k of highest score times a factor that grows while a concept is on less often than others, and shrinks while it is
    on more often (after Wang et al., arXiv 2408.15664)."""

    arguments = ("k", "rate")
    factor: Tensor

    def __init__(self, k: int = 16, rate: float = 0.02) -> None:
        super().__init__(k)
        self.rate = float(rate)

    def bind(self, n_concepts: int) -> None:
        """Make room for the factors."""
        super().bind(n_concepts)
        self.register_buffer("factor", torch.ones(n_concepts))

    def choose(self, scores: Tensor) -> Selection:
        """The k of each sample; in training mode the factors learn of it."""
        selection = super().choose(scores * self.factor)
        if self.training:
            use = torch.bincount(selection.concept, minlength=len(self.factor)) / selection.concept.numel()
            self.factor *= torch.exp(self.rate * torch.sign(1 / len(self.factor) - use))
        return selection

    def shortlist(self, estimate: Tensor, bound: Tensor, oversample: int) -> Selection:
        """Those worth an exact score."""
        return super().shortlist(estimate * self.factor, bound, oversample)


class Archetypes(nn.Module):
    """Channel vectors that are mixtures of points of the data (Fel et al., arXiv 2502.12892), beside free kernels."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.register_buffer("points", points)

    def forward(self, logits: Tensor) -> Tensor:
        """From ``(p, n)`` to weights ``(channels, p, 1)``."""
        return (logits.softmax(1) @ self.points).T[..., None]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Mixtures of the points that are like each vector."""
        cosine = nn.functional.normalize(weight[..., 0].T) @ nn.functional.normalize(self.points).T
        return 50 * cosine

    @classmethod
    def hold(cls, sae: SpectralSAE, train: Tensor) -> None:
        """Start from the data, and bind the pointwise parts of a dictionary to 1,000 points of them."""
        ns.train(sae, train[:64], ns.TrainingConfig(n_epochs=1, batch_size=64, learning_rate=STANDING_STILL), progress=False)
        field = sae.normalize(train).transpose(0, 1).flatten(1).T
        points = nn.functional.normalize(field[torch.randperm(len(field))[:1000]])
        parametrize.register_parametrization(sae.concept_decoder.skip.conv, "weight", cls(points))
        sae.concept_encoder.copy_adjoint(sae.concept_decoder)


FEW = ns.TopK(32)
REMEDIES: dict[str, tuple[ns.ConceptRule, dict[str, Any]]] = {
    "32 per sample": (FEW, {}),
    "32 per sample on average": (ns.BatchTopK(32), {}),
    "no auxiliary loss": (FEW, {"auxiliary_weight": 0.0}),
    "random start": (FEW, {"initialize": False}),
    "balanced use": (Balanced(32), {}),
    "archetypes": (FEW, {"initialize": False}),
    "nested, 32 and 128 first": (FEW, {"prefixes": (32, 128)}),
    "all": (ns.All(), {}),
}
QUICK = ("32 per sample", "balanced use", "archetypes", "nested, 32 and 128 first", "all")
Found = dict[str, list[dict[str, float]]]  # by remedy, for each seed


def run(problem: Problem, script: str, *, seeds: int, quick: bool, output: Path) -> None:
    """Measure, draw, write."""
    started = time.perf_counter()
    p, steps, seeds = (160, 4, 1) if quick else (512, 160, seeds)
    bed = Bed.of(problem, output / "data")
    train, test = map(bed.every_other, ("train", "test"))
    found: Found = {}
    for name in QUICK if quick else REMEDIES:
        found[name] = [measured(trained(bed, train, name, p, steps, seed), test) for seed in range(seeds)]
        print(name, [{of: round(each[of], 4) for of in ("fve", "dead_fraction")} for each in found[name]], flush=True)
    settings = {"problem": problem.model_dump(mode="json"), "n_concepts": p, "steps": steps, "seeds": seeds, "rate": RATE}
    title = f"{problem.operator_name} on {problem.title}"
    write(
        script, output, rows=[row(title, found)], values=found, figure=draw(title, found), settings=settings, started=started
    )


def trained(bed: Bed, train: Tensor, name: str, p: int, steps: int, seed: int) -> ns.SAE:
    """One dictionary; at each point four concepts, half soft, in all."""
    rule, training = REMEDIES[name]
    torch.manual_seed(seed)
    kind, modes = (ns.SAESFNO, (8, 16)) if bed.grid else (ns.SAEFNO, (9, 9))
    sae = kind(train.shape[1], p, modes, concept_rule=rule)
    if name == "archetypes":
        Archetypes.hold(sae, train)
    n_epochs = max(1, round(steps * 8 / len(train)))
    config = ns.TrainingConfig(n_epochs=n_epochs, batch_size=8, learning_rate=RATE, seed=seed, **training)
    ns.train(sae, train, config, progress=False)
    return sae


def row(title: str, found: Found) -> Row:
    """Competition of all concepts against the remedies."""

    def of(name: str, what: str) -> list[float]:
        return [each[what] for each in found[name]]

    def text(name: str) -> str:
        return f"{name}: dead {spread(of(name, 'dead_fraction'))}, FVE {spread(of(name, 'fve'))}"

    others = [name for name in found if name != "all"]
    criteria = [
        Criterion(
            "all: fewer dead than with any remedy, every pair of seeds",
            max(of("all", "dead_fraction")) < min(min(of(name, "dead_fraction")) for name in others),
        ),
        Criterion(
            "all: FVE higher than with any remedy, means over seeds",
            statistics.fmean(of("all", "fve")) > max(statistics.fmean(of(name, "fve")) for name in others),
        ),
    ]
    claim = f"{title}: competition of all concepts at each point does more against death than remedies for a few per sample"
    return Row(claim, "512 concepts, 4 per point, held out", text("all"), "; ".join(map(text, others)), criteria)


def draw(title: str, found: Found) -> Figure:
    """Dead fraction against FVE."""
    figure, ((ax,),) = subplots(1, 1, 4.6, 3.2)
    for color, marker, (name, rows) in zip(PALETTE * 2, "o" * len(PALETTE) + "s" * len(PALETTE), found.items(), strict=False):
        points = [[each[what] for each in rows] for what in ("dead_fraction", "fve")]
        ax.plot(*points, marker, color=color, label=name)
    ax.set(title=f"512 concepts, {title}", xlabel="dead fraction", ylabel="FVE", xlim=(-0.05, 1.05))
    figure.legend(loc="outside right center", frameon=False, fontsize=7)
    return figure
