"""Recovery of known concepts, and of the places where they fire, by every model that has concepts to compare: what
recovery_plane.py and recovery_sphere.py share."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import Criterion, Row, over_seeds, spread, write
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from synthetic_bed import fit
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.analysis.detection import DetectionCurve, event_chance, event_scores
from neuralop_sae.analysis.drawing import GREY, PALETTE, ColorScale, draw_field, subplots
from neuralop_sae.analysis.matching import Matching, match_atoms
from neuralop_sae.data.concepts import Gabors, Kernels, ZonalKernels
from neuralop_sae.data.synthetic import SyntheticConcepts, SyntheticData

CHANNELS = 4
N_CONCEPTS = 8  # learned; five are known
N_FIELDS = 64  # concepts of models of whole fields, which need one for each place
PENALTY = 0.06
RULES: dict[str, Any] = {"concept_rule": "All", "domain_rule": "Rectify"}
NAMES = {
    "fno": "SAEFNO",
    "zonal": "SAESFNO, zonal",
    "positional": "SAESFNO, positional",
    "tied": "tied encoder",
    "unrolled": "unrolled encoder",
    "lifted": "lifted channels",
    "cnn": "SAECNN",
    "pointwise": "pointwise SAE",
    "mlp": "SAE-MLP",
    "pca": "PCA of points",
    "fields": "PCA of fields",
}
_RIVALS = ("pointwise", "mlp", "pca", "fields")
COMPARED = {
    "plane": ("fno", "tied", "unrolled", "lifted", "cnn", *_RIVALS),
    "sphere": ("zonal", "positional", "tied", "unrolled", "lifted", *_RIVALS),
}
OF_POINTS = ("pointwise", "pca")
FITTED = ("pca", "fields")
RATES = dict.fromkeys(NAMES, (1e-2, 3e-2)) | {"mlp": (3e-3, 1e-2)}
ENCODERS: dict[str, dict[str, Any]] = {"tied": {"encoder": "tied"}, "unrolled": {"encoder": "unrolled", "n_iterations": 4}}
GRID = {"plane": (24, 24), "sphere": (25, 48)}
FINE = {"plane": (72, 72), "sphere": (49, 96)}
TOLERANCE = {"plane": 0.06, "sphere": 0.2}  # units of length, radians: a step and a half of the grid
SHOWN = 1  # the concept that is drawn
Values = dict[str, list[float]]


@dataclass(frozen=True)
class Bed:
    """Five known concepts of four channels, drawn anew for each seed, in noise of the same power."""

    domain: str
    seed: int
    n_train: int = 1000
    steps: int = 300
    n_test: int = 200

    @cached_property
    def concepts(self) -> SyntheticConcepts:
        """What makes the fields."""
        kernels: Kernels[Any] = ZonalKernels(5, CHANNELS, degrees=(0, 5), bandwidth=2.0, seed=self.seed)
        if self.domain == "plane":
            kernels = Gabors(5, CHANNELS, n_dim=2, widths=(0.06, 0.12), wavenumbers=(0, 3), seed=self.seed)
        return SyntheticConcepts(kernels, rate=1.0, snr_db=0.0, noise_band=11)

    @cached_property
    def train(self) -> Tensor:
        """Fields, ``(n_train, 4, *grid)``."""
        return self.concepts.sample(self.n_train, GRID[self.domain], seed=1000 + self.seed).x

    @cached_property
    def test(self) -> SyntheticData:
        """Others."""
        return self.concepts.sample(self.n_test, GRID[self.domain], seed=2000 + self.seed)

    @cached_property
    def atoms(self) -> Tensor:
        """The known concepts, ``(5, 4, *fine grid)``."""
        return self.concepts.atoms(FINE[self.domain])

    def match(self, sae: ns.SAE) -> Matching:
        """Learned concepts assigned to the known ones: by their kernels, or by what a vector of channels can hold of them."""
        if isinstance(sae, ns.SAEPointwise | ns.PCA):
            return match_vectors(sae.decoder_weight.detach(), self.atoms, sae.basis)
        return match_atoms(self.turn(sae, self.learned(sae)), self.atoms, sae.basis)

    def learned(self, sae: ns.SAE) -> Tensor:
        """Learned atoms on the fine grid, ``(p, 4, *fine grid)``."""
        return sae.basis.resample(sae.atoms(range(sae.n_concepts), GRID[self.domain]), FINE[self.domain])

    def codes(self, sae: ns.SAE) -> Tensor:
        """Of the test fields, ``(n_test, p, *grid)``."""
        with torch.no_grad():
            codes = sae.encode(self.test.x).to_dense()
        return self.turn(sae, codes.transpose(0, 1)).transpose(0, 1)

    def turn(self, sae: ns.SAE, fields: Tensor) -> Tensor:
        """Atoms or codes of all concepts, ``(p, ..., *grid)``; of an SAESFNO on the other side of the sphere where the atom is
        there more like a known concept. With ``(-1)^l`` for each degree a kernel goes to the antipode; its code goes there
        too, and all reconstructions are the same: the sphere's counterpart of moving a concept on the plane."""
        if not isinstance(sae.inner if isinstance(sae, ns.Lifted) else sae, ns.SAESFNO):
            return fields
        atoms = self.learned(sae)
        here, there = (alike(each, self.atoms, sae.basis).amax(1) for each in (atoms, antipodal(atoms)))
        return torch.where((there > here).view(-1, *(1,) * (fields.ndim - 1)), antipodal(fields), fields)


def antipodal(fields: Tensor) -> Tensor:
    """Fields ``(..., nlat, nlon)`` seen from the other side of the sphere."""
    return fields.flip(-2).roll(fields.shape[-1] // 2, -1)


def alike(a: Tensor, b: Tensor, basis: ns.SpectralBasis) -> Tensor:
    """Cosines of fields ``(p, m, *grid)`` and ``(q, m, *grid)`` where they stand, ``(p, q)``."""
    root = basis.quadrature(a.shape[2:], like=b).sqrt()
    return torch.cosine_similarity((a * root).flatten(1)[:, None], (b * root).flatten(1), dim=-1)


def match_vectors(vectors: Tensor, true: Tensor, basis: ns.SpectralBasis) -> Matching:
    """Channel vectors ``(p, m)`` assigned to known kernels ``(q, m, *grid)`` by the largest cosine that any code shape allows:
    the share of a kernel's norm along the vector."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    along = basis.mean_square(torch.einsum("pm,qm...->qp...", unit, true)).sqrt()
    cosines = along / basis.mean_square(true).sum(1).sqrt()[:, None]
    rows, columns = (torch.from_numpy(found) for found in linear_sum_assignment(cosines.numpy(), maximize=True))
    cosine = torch.zeros(len(true), dtype=torch.float64).index_copy(0, rows, cosines[rows, columns])
    learned = torch.full((len(true),), -1).index_copy(0, rows, columns)
    return Matching(cosine, learned, torch.zeros(len(true), basis.n_dim, dtype=torch.float64))


def model(name: str, seed: int, domain: str) -> ns.SAE:
    """An untrained dictionary."""
    torch.manual_seed(seed)
    grid = "equiangular" if domain == "sphere" else None
    if name == "cnn":
        return ns.SAECNN(CHANNELS, N_CONCEPTS, (11, 11), **RULES)
    if name == "pointwise":
        return ns.SAEPointwise(CHANNELS, N_CONCEPTS, k=2, grid=grid)
    if name == "mlp":
        return ns.SAEMLP(CHANNELS, N_FIELDS, GRID[domain], k=6, sht_grid=grid)
    if name == "pca":
        return ns.PCA(CHANNELS, CHANNELS, grid=grid)
    if name == "fields":
        return ns.FieldPCA(CHANNELS, N_FIELDS, GRID[domain], sht_grid=grid)
    options = {"skip": None, **RULES, **ENCODERS.get(name, {})}
    if domain == "plane":
        sae: ns.SAE = ns.SAEFNO(CHANNELS, N_CONCEPTS, (17, 17), **options)
    else:
        kernel = "positional" if name == "positional" else "zonal"
        sae = ns.SAESFNO(CHANNELS, N_CONCEPTS, (13, 26), kernel=kernel, isotropic=kernel == "zonal", **options)
    return ns.Lifted(sae, channels=2 * CHANNELS) if name == "lifted" else sae


@cache
def trained(bed: Bed, name: str, rate: float) -> ns.SAE:
    """A dictionary of this bed; principal components are fitted, whatever the rate."""
    sae = model(name, bed.seed, bed.domain)
    if isinstance(sae, ns.PCA | ns.FieldPCA):
        sae.fit(bed.train)
        return sae.eval()
    penalty = 0.0 if name in _RIVALS else PENALTY
    return fit(sae, bed.train, rate=rate, steps=bed.steps, seed=bed.seed, penalty=penalty, batch_size=32)


def run(domain: str, script: str, *, seeds: int, quick: bool, output: Path) -> None:
    """Matched cosine with chance, precision and recall of events; written."""
    started = time.perf_counter()
    bed, seeds = (Bed(domain, 0, 80, 5, 10), 1) if quick else (Bed(domain, 0), seeds)
    rates = {name: tuned(bed, name, seeds) for name in COMPARED[domain]}
    values = over_seeds(partial(measure, bed, rates), seeds)
    settings = {"seeds": seeds, "steps": bed.steps, "fields": bed.n_train, "rates": rates, "penalty": PENALTY}
    rows = [kernels(domain, values), in_place(domain, values)]
    write(script, output, rows=rows, values=values, figure=draw(values, bed, rates), settings=settings, started=started)


def tuned(bed: Bed, name: str, seeds: int) -> float:
    """The learning rate with the highest mean matched cosine over the seeds."""
    if name in FITTED:
        return RATES[name][0]
    beds = [replace(bed, seed=seed) for seed in range(seeds)]
    found = {rate: fmean(each.match(trained(each, name, rate)).matched_cosine for each in beds) for rate in RATES[name]}
    print(bed.domain, name, {rate: round(cosine, 3) for rate, cosine in found.items()}, flush=True)
    return max(found, key=found.__getitem__)


def measure(like: Bed, rates: dict[str, float], seed: int) -> dict[str, float]:
    """Figures of each model with the chance level of each."""
    bed = replace(like, seed=seed)
    values: dict[str, float] = {}
    for name in COMPARED[bed.domain]:
        sae = trained(bed, name, rates[name])
        matching = bed.match(sae)
        codes, test = bed.codes(sae), bed.test
        found, chance = (
            scores(codes, test.events, matching, test.domain, tolerance=TOLERANCE[bed.domain])
            for scores in (event_scores, event_chance)
        )
        fresh = "mlp" if name == "fields" else name  # as many random fields
        untrained = [bed.match(model(fresh, 100 + draw, bed.domain)).matched_cosine for draw in range(5)]
        values |= {f"{name}, cosine": matching.matched_cosine, f"{name}, chance": fmean(untrained)}
        values |= {f"{name}, {what}": value for what, value in summary(found).items()}
        values[f"{name}, f1 by chance"] = summary(chance)["f1"]
    return values


def summary(curves: list[DetectionCurve]) -> dict[str, float]:
    """Means over the known concepts, each at the threshold of its best F1."""
    best = [(curve, curve.best) for curve in curves if curve.best >= 0]
    return {
        "precision": sum(float(curve.precision[at]) for curve, at in best) / len(curves),
        "recall": sum(float(curve.recall[at]) for curve, at in best) / len(curves),
        "f1": sum(float(curve.f1[at]) for curve, at in best) / len(curves),
    }


def kernels(domain: str, found: Values) -> Row:
    """The row on the concepts."""
    ours, *others = COMPARED[domain]
    criteria = [
        Criterion("matched cosine at least 0.85 in the best of the seeds", max(found[f"{ours}, cosine"]) >= 0.85),
        Criterion("at least 0.1 above the untrained model, every seed", min(above_chance(found, ours)) >= 0.1),
    ]
    known = {"plane": "five Gabors of four channels", "sphere": "five zonal kernels of four channels"}[domain]
    remark = (
        "One learning rate for each model, that with the highest mean matched cosine. A concept of points has no kernel: its"
        " cosine is the largest that any shape of its code allows, 1 for a known concept whose channels share one shape, as on"
        f" the sphere. Models of whole fields have {N_FIELDS} concepts: such a one does not move"
    )
    if domain == "sphere":
        remark += (
            ", and is compared where it stands. Zonal concepts are known up to the antipode: with (-1)^l for each degree a"
            " kernel and its code go to the other side, and no reconstruction changes; both sides count."
        )
    else:
        remark += ", and is all the same compared at its best shift."
    return Row(
        f"{NAMES[ours]} finds known concepts on the {domain}",
        f"{known}, noise of the same power, {N_CONCEPTS} learned concepts",
        of_kernels(found, ours),
        "; ".join(of_kernels(found, name) for name in others),
        criteria,
        remark,
    )


def in_place(domain: str, found: Values) -> Row:
    """The row on events."""
    ours, *others = COMPARED[domain]
    points = max(max(found[f"{name}, f1"]) for name in OF_POINTS)
    criteria = [
        Criterion("precision and recall at least 0.8 in the best of the seeds", best_of_both(found, ours) >= 0.8),
        Criterion("F1 higher than that of models of points, every pair of seeds", min(found[f"{ours}, f1"]) > points),
    ]
    unit = {"plane": "of the box's side", "sphere": "radians"}[domain]
    return Row(
        f"codes of {NAMES[ours]} are on where known concepts fire, on the {domain}",
        f"peaks of codes within {TOLERANCE[domain]} {unit} of an event, one to one, fresh fields",
        of_events(found, ours),
        "; ".join(of_events(found, name) for name in others),
        criteria,
        "At the threshold with the best F1 for each concept, chosen on the same fields; chance is the same with the events of"
        " another field. Codes of whole fields are the same number at every point; their peaks are rounding.",
    )


def best_of_both(found: Values, name: str) -> float:
    """The lower of precision and recall, in the best seed."""
    return max(map(min, zip(found[f"{name}, precision"], found[f"{name}, recall"], strict=True)))


def above_chance(found: Values, name: str) -> list[float]:
    """Matched cosines minus those of untrained models."""
    return [a - b for a, b in zip(found[f"{name}, cosine"], found[f"{name}, chance"], strict=True)]


def of_kernels(found: Values, name: str) -> str:
    """A model's name and matched cosine."""
    return f"{NAMES[name]}: {spread(found[f'{name}, cosine'])}, minus chance {spread(above_chance(found, name))}"


def of_events(found: Values, name: str) -> str:
    """A model's name, precision and recall."""
    parts = (f"{what} {spread(found[f'{name}, {what}'], 2)}" for what in ("precision", "recall", "f1", "f1 by chance"))
    return f"{NAMES[name]}: {', '.join(parts)}"


def draw(values: Values, bed: Bed, rates: dict[str, float]) -> Figure:
    """Figures of all seeds with chance, and one concept of seed 0 as it is known and found."""
    figure, axes = subplots(1, 5, 2.5, 3.0)
    names = COMPARED[bed.domain]
    colors = dict(zip(names, PALETTE * 2, strict=False))
    for ax, (what, chance) in zip(axes[0], (("cosine", "chance"), ("f1", "f1 by chance")), strict=False):
        for place, name in enumerate(names):
            runs = values[f"{name}, {what}"]
            ax.plot([place] * len(runs), runs, "o", color=colors[name], markersize=4)
            level = fmean(values[f"{name}, {chance}"])
            ax.hlines(level, place - 0.3, place + 0.3, color=GREY, linewidth=2, label=None if place else "chance")
        ax.set_xticks(range(len(names)), [NAMES[name] for name in names], fontsize=6, rotation=90)
        ax.set(ylim=(-0.03, 1.03), title={"cosine": "matched cosine", "f1": "F1 of events"}[what])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=7)
    ours = trained(bed, names[0], rates[names[0]])
    shown = {"known": bed.atoms[SHOWN]} | {NAMES[name]: moved(trained(bed, name, rates[name]), bed) for name in names[:2]}
    for ax, (title, atom) in zip(axes[0][2:], shown.items(), strict=True):
        channel = int(bed.atoms[SHOWN].square().flatten(1).sum(1).argmax())
        field = atom[channel] / atom.norm()
        largest = float(field.abs().max())
        draw_field(ax, field, ColorScale("RdBu_r", -largest, largest), ours.basis)
        ax.set(title=title, xticks=[], yticks=[])
    return figure


def moved(sae: ns.SAE, bed: Bed) -> Tensor:
    """The learned atom that is assigned to the drawn concept, moved onto it."""
    matching = bed.match(sae)
    atom = bed.turn(sae, bed.learned(sae))[matching.learned[SHOWN]]
    return atom.roll(
        [round(float(part) * size) for part, size in zip(matching.shift[SHOWN], FINE[bed.domain], strict=True)], (1, 2)
    )
