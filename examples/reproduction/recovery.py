"""Recovery of known concepts, and of the places where they fire, on the plane and on the sphere."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from statistics import fmean
from typing import Any

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, over_seeds, spread, write
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
RATES = (1e-2, 3e-2)
PENALTY = 0.06
RULES: dict[str, Any] = {"concept_rule": "All", "domain_rule": "Rectify"}
NAMES = {
    "fno": "SAEFNO",
    "cnn": "SAECNN",
    "zonal": "SAESFNO, zonal",
    "positional": "SAESFNO, positional",
    "pointwise": "pointwise SAE",
    "pca": "principal components of points",
}
COMPARED = {"plane": ("fno", "cnn", "pointwise", "pca"), "sphere": ("zonal", "positional", "pointwise", "pca")}
OF_POINTS = ("pointwise", "pca")
GRID = {"plane": (24, 24), "sphere": (25, 48)}
FINE = {"plane": (72, 72), "sphere": (49, 96)}
TOLERANCE = {"plane": 0.06, "sphere": 0.2}  # units of length, radians: a step and a half of the grid
SHOWN = 1  # the concept that is drawn
Values = dict[str, dict[str, list[float]]]


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
        """Learned atoms on the fine grid, ``(8, 4, *fine grid)``."""
        return sae.basis.resample(sae.atoms(range(N_CONCEPTS), GRID[self.domain]), FINE[self.domain])

    def codes(self, sae: ns.SAE) -> Tensor:
        """Of the test fields, ``(n_test, p, *grid)``."""
        with torch.no_grad():
            codes = sae.encode(self.test.x).to_dense()
        return codes if isinstance(sae, ns.SAEPointwise | ns.PCA) else self.turn(sae, codes.transpose(0, 1)).transpose(0, 1)

    def turn(self, sae: ns.SAE, fields: Tensor) -> Tensor:
        """Atoms or codes of all concepts, ``(8, ..., *grid)``, on the sphere to the other side of it where the atom is there
        more like a known concept. With ``(-1)^l`` for each degree a kernel goes to the antipode; its code goes there too, and
        all reconstructions are the same: the sphere's counterpart of moving a concept on the plane."""
        if self.domain == "plane":
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
    if name == "fno":
        return ns.SAEFNO(CHANNELS, N_CONCEPTS, (17, 17), skip=None, **RULES)
    if name == "cnn":
        return ns.SAECNN(CHANNELS, N_CONCEPTS, (11, 11), **RULES)
    if name == "pointwise":
        return ns.SAEPointwise(CHANNELS, N_CONCEPTS, k=2, grid=grid)
    if name == "pca":
        return ns.PCA(CHANNELS, CHANNELS, grid=grid)
    return ns.SAESFNO(CHANNELS, N_CONCEPTS, (13, 26), kernel=name, isotropic=name == "zonal", skip=None, **RULES)


@cache
def trained(bed: Bed, name: str, rate: float) -> ns.SAE:
    """A dictionary of this bed; principal components are fitted, whatever the rate."""
    sae = model(name, bed.seed, bed.domain)
    if isinstance(sae, ns.PCA):
        sae.fit(bed.train)
        return sae.eval()
    penalty = 0.0 if name in OF_POINTS else PENALTY
    return fit(sae, bed.train, rate=rate, steps=bed.steps, seed=bed.seed, penalty=penalty, batch_size=32)


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Matched cosine with chance, precision and recall of events."""
    started = time.perf_counter()
    seeds = 1 if quick else seeds
    beds = {domain: Bed(domain, 0, *((40, 5, 10) if quick else ())) for domain in COMPARED}
    rates = {domain: {name: tuned(bed, name, seeds) for name in COMPARED[domain]} for domain, bed in beds.items()}
    values = {domain: over_seeds(partial(measure, bed, rates[domain]), seeds) for domain, bed in beds.items()}
    bed = beds["plane"]
    settings = {"seeds": seeds, "steps": bed.steps, "fields": bed.n_train, "rates": rates, "penalty": PENALTY}
    figure = draw(values, beds, rates)
    write(__file__, output, rows=table(values), values=values, figure=figure, settings=settings, started=started)


def tuned(bed: Bed, name: str, seeds: int) -> float:
    """The learning rate with the highest mean matched cosine over the seeds."""
    if name == "pca":
        return RATES[0]
    beds = [replace(bed, seed=seed) for seed in range(seeds)]
    found = {rate: fmean(each.match(trained(each, name, rate)).matched_cosine for each in beds) for rate in RATES}
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
        untrained = [bed.match(model(name, 100 + draw, bed.domain)).matched_cosine for draw in range(5)]
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


def table(values: Values) -> list[Row]:
    """A row for each domain on the concepts, one on the places."""
    rows = []
    for domain, found in values.items():
        ours, *others = COMPARED[domain]
        criteria = [
            Criterion("matched cosine at least 0.85 in the best of the seeds", max(found[f"{ours}, cosine"]) >= 0.85),
            Criterion("at least 0.1 above the untrained model, every seed", min(above_chance(found, ours)) >= 0.1),
        ]
        known = {"plane": "five Gabors of four channels", "sphere": "five zonal kernels of four channels"}[domain]
        remark = (
            "One learning rate for each model, that with the highest mean matched cosine. A concept of points has no kernel:"
            " its cosine is the largest that any shape of its code allows, 1 for a known concept whose channels share one"
            " shape, as on the sphere."
        )
        if domain == "sphere":
            remark += (
                " Zonal concepts are known up to the antipode: with (-1)^l for each degree a kernel and its code go to the"
                " other side, and no reconstruction changes; both sides count."
            )
        rows.append(
            Row(
                f"{NAMES[ours]} finds known concepts on the {domain}",
                f"{known}, noise of the same power, {N_CONCEPTS} learned concepts",
                of_kernels(found, ours),
                "; ".join(of_kernels(found, name) for name in others),
                criteria,
                remark,
            )
        )
        rows.append(in_place(domain, found))
    return rows


def in_place(domain: str, found: dict[str, list[float]]) -> Row:
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
        " another field.",
    )


def best_of_both(found: dict[str, list[float]], name: str) -> float:
    """The lower of precision and recall, in the best seed."""
    return max(map(min, zip(found[f"{name}, precision"], found[f"{name}, recall"], strict=True)))


def above_chance(found: dict[str, list[float]], name: str) -> list[float]:
    """Matched cosines minus those of untrained models."""
    return [a - b for a, b in zip(found[f"{name}, cosine"], found[f"{name}, chance"], strict=True)]


def of_kernels(found: dict[str, list[float]], name: str) -> str:
    """A model's name and matched cosine."""
    return f"{NAMES[name]}: {spread(found[f'{name}, cosine'])}, minus chance {spread(above_chance(found, name))}"


def of_events(found: dict[str, list[float]], name: str) -> str:
    """A model's name, precision and recall."""
    parts = (f"{what} {spread(found[f'{name}, {what}'], 2)}" for what in ("precision", "recall", "f1", "f1 by chance"))
    return f"{NAMES[name]}: {', '.join(parts)}"


def draw(values: Values, beds: dict[str, Bed], rates: dict[str, dict[str, float]]) -> Figure:
    """Figures of all seeds with chance, and one concept of seed 0 as it is known and found."""
    figure, axes = subplots(2, 5, 2.5, 2.3)
    for row, (domain, bed) in zip(axes, beds.items(), strict=True):
        names, found = COMPARED[domain], values[domain]
        for ax, (what, chance) in zip(row, (("cosine", "chance"), ("f1", "f1 by chance")), strict=False):
            for place, (name, color) in enumerate(zip(names, PALETTE, strict=False)):
                runs = found[f"{name}, {what}"]
                ax.plot([place] * len(runs), runs, "o", color=color, markersize=4)
                ax.hlines(fmean(found[f"{name}, {chance}"]), place - 0.3, place + 0.3, color=GREY, linewidth=2)
            ax.set_xticks(range(len(names)), [NAMES[name].replace(" ", "\n") for name in names], fontsize=5)
            ax.set(ylim=(0, 1.03), ylabel={"cosine": "matched cosine", "f1": "F1 of events"}[what], title=f"on the {domain}")
        shown = {"known": bed.atoms[SHOWN]}
        for name in names[:2]:
            sae = trained(bed, name, rates[domain][name])
            shown[NAMES[name]] = moved(sae, bed)
        for ax, (title, atom) in zip(row[2:], shown.items(), strict=True):
            channel = int(bed.atoms[SHOWN].square().flatten(1).sum(1).argmax())
            field = atom[channel] / atom.norm()
            largest = float(field.abs().max())
            draw_field(ax, field, ColorScale("RdBu_r", -largest, largest), sae.basis)
            ax.set(title=title, xticks=[], yticks=[])
    return figure


def moved(sae: ns.SAE, bed: Bed) -> Tensor:
    """The learned atom that is assigned to the drawn concept, moved onto it."""
    matching = bed.match(sae)
    atom = bed.turn(sae, bed.learned(sae))[matching.learned[SHOWN]]
    return atom.roll(
        [round(float(part) * size) for part, size in zip(matching.shift[SHOWN], FINE[bed.domain], strict=True)], (1, 2)
    )


if __name__ == "__main__":
    typer.run(main)
