"""Recovery of the underlying representation: are inferred codes the true ones?

The claim is the method's; what it means is our reading. Fields are made by known codes, functions that are sparse over
concepts and over the domain. The codes of a trained autoencoder for fresh fields are compared with those that made them, after
what leaves a reconstruction the same is taken out: the numbering of the concepts, one shift and one scale for each. True codes
are impulses: both are seen through a Gaussian window of the width of the narrowest concept. Codes of an SAE-MLP are numbers:
these are compared with the sum of the amplitudes of a concept in a field.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from statistics import fmean
from typing import Any, NamedTuple

import torch
import typer
from common import RESULTS, Criterion, Output, Quick, Row, Seeds, over_seeds, spread, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from recovery import match_vectors, summary
from scipy.optimize import linear_sum_assignment
from synthetic_bed import FINE, POINTS, Bed, fit
from synthetic_bed import model as spectral
from torch import Tensor

import neuralop_sae as ns
from neuralop_sae.analysis.detection import event_scores
from neuralop_sae.analysis.drawing import GREY, PALETTE, subplots
from neuralop_sae.analysis.matching import Matching
from neuralop_sae.data.synthetic import SyntheticData
from neuralop_sae.metrics import relative_l2

CHANNELS = 4
RATES = (1e-2, 3e-2)
PENALTY = 0.15
WIDTH = 0.03
TOLERANCE = 0.04
NAMES = {"truncated": "SAEFNO", "cnn": "SAECNN", "pointwise": "pointwise SAE", "mlp": "SAE-MLP"}
MAPS = ("truncated", "cnn", "pointwise")  # models whose codes are functions
CONDITIONS: dict[str, dict[str, Any]] = {
    "no noise": {"snr_db": None},
    "10 dB": {"snr_db": 10.0},
    "0 dB": {"snr_db": 0.0},
    "10 dB, correlation 0.5": {"snr_db": 10.0, "correlation": 0.5},
    "10 dB, correlation 1": {"snr_db": 10.0, "correlation": 1.0},
}
TUNED_ON = "10 dB"
FIGURES = ("r", "relative l2", "precision", "recall", "amplitude r")
Values = dict[str, list[float]]


class Assigned(NamedTuple):
    """Learned codes of the test fields in the order of the known concepts: functions seen through the window, ``(n, 5, 128)``,
    or None where codes are numbers; their sizes ``(n, 5)``; and the matching."""

    maps: Tensor | None
    sizes: Tensor
    matching: Matching


def main(seeds: Seeds = 3, quick: Quick = False, output: Output = RESULTS) -> None:
    """Codes of four models against the truth, in five conditions."""
    started = time.perf_counter()
    seeds = 1 if quick else seeds
    like = Bed("smooth", 0, *((100, 10, 20) if quick else (1000, 400, 200)), channels=CHANNELS)
    rates = {name: tuned(like, name, seeds) for name in NAMES}
    values = over_seeds(lambda seed: measure(replace(like, seed=seed), rates), seeds)
    settings = {"seeds": seeds, "steps": like.steps, "fields": like.n_train, "rates": rates, "penalty": PENALTY}
    figure = draw(values, like, rates)
    write(__file__, output, rows=table(values), values=values, figure=figure, settings=settings, started=started)


def model(name: str, seed: int) -> ns.SAE:
    """An untrained dictionary."""
    if name in ("truncated", "cnn"):
        return spectral(name, seed, CHANNELS)
    torch.manual_seed(seed)
    return ns.SAEMLP(CHANNELS, 64, POINTS, k=4) if name == "mlp" else ns.SAEPointwise(CHANNELS, 10, k=2, n_dim=1)


@cache
def trained(bed: Bed, name: str, rate: float) -> ns.SAE:
    """A dictionary of this bed."""
    penalty = PENALTY if name in ("truncated", "cnn") else 0.0
    return fit(model(name, bed.seed), bed.train, rate=rate, steps=bed.steps, seed=bed.seed, penalty=penalty)


def tuned(like: Bed, name: str, seeds: int) -> float:
    """The learning rate with the highest correlation with the true sizes of codes, the mean over the seeds."""
    beds = [replace(like, seed=seed, **CONDITIONS[TUNED_ON]) for seed in range(seeds)]
    found = {rate: fmean(size_correlation(bed, trained(bed, name, rate)) for bed in beds) for rate in RATES}
    print(name, {rate: round(r, 3) for rate, r in found.items()}, flush=True)
    return max(found, key=found.__getitem__)


def size_correlation(bed: Bed, sae: ns.SAE) -> float:
    """Of sizes of codes with the truth, the mean over the concepts."""
    return float(correlations(assign(bed, sae, bed.test()).sizes, amplitudes(bed.test())).diagonal().mean())


def measure(like: Bed, rates: dict[str, float]) -> dict[str, float]:
    """Figures by condition and model, with those of an untrained model and of permuted concepts."""
    values: dict[str, float] = {}
    for condition, arguments in CONDITIONS.items():
        bed = replace(like, **arguments)
        test = bed.test()
        for name in NAMES:
            sae = trained(bed, name, rates[name])
            found = assign(bed, sae, test)
            fresh = assign(bed, model(name, bed.seed).eval(), test)
            permuted = Assigned(None if found.maps is None else found.maps.roll(1, 1), found.sizes.roll(1, 1), found.matching)
            for kind, each in (("", found), (", untrained", fresh), (", permuted", permuted)):
                for figure, value in agreement(each, test).items():
                    values[f"{condition}, {name}, {figure}{kind}"] = value
            if found.maps is not None:
                codes = sae.encode(test.x).detach().to_dense()
                scores = summary(event_scores(codes, test.events, found.matching, test.domain, tolerance=TOLERANCE))
                values |= {f"{condition}, {name}, {what}": scores[what] for what in ("precision", "recall")}
    return values


def agreement(found: Assigned, test: SyntheticData) -> dict[str, float]:
    """Means over the known concepts: correlation of sizes; of maps, and their relative L2 distance at the best scale."""
    values = {"amplitude r": float(correlations(found.sizes, amplitudes(test)).diagonal().mean())}
    if found.maps is not None:
        learned, true = (maps.transpose(1, 2).flatten(0, 1) for maps in (found.maps, test.codes(WIDTH)))
        values["r"] = float(correlations(learned, true).diagonal().mean())
        pairs = zip(learned.unbind(1), true.unbind(1), strict=True)
        values["relative l2"] = fmean(relative_l2(best_scale(a, b) * a, b) for a, b in pairs)
    return values


def best_scale(learned: Tensor, true: Tensor) -> Tensor:
    """The factor that brings codes nearest to the true ones, ``()``."""
    return (learned * true).sum() / learned.square().sum().clamp_min(1e-12)


def correlations(a: Tensor, b: Tensor) -> Tensor:
    """Of columns ``(n, p)`` with columns ``(n, q)``, ``(p, q)``; 0 for one that does not vary."""
    a, b = (torch.nn.functional.normalize(each.double() - each.double().mean(0), dim=0) for each in (a, b))
    return a.T @ b


def amplitudes(test: SyntheticData) -> Tensor:
    """Sum of the amplitudes of each known concept in each field, ``(n, 5)``."""
    events, n_concepts = test.events, test.model.kernels.n_concepts
    flat = torch.zeros(len(test.x) * n_concepts, dtype=torch.float64)
    return flat.index_add(0, events.sample * n_concepts + events.concept, events.amplitude).reshape(-1, n_concepts)


@torch.no_grad()
def assign(bed: Bed, sae: ns.SAE, test: SyntheticData) -> Assigned:
    """Learned concepts assigned to known ones: by their kernels, by their channels, or, where codes are numbers, by the
    correlation of these with the true sizes in the fields of training."""
    codes = sae.encode(test.x).to_dense()
    if isinstance(sae, ns.SAEMLP):
        events = bed.concepts.sample(bed.n_train, (POINTS,), seed=1000 + bed.seed)
        matching = match_numbers(sae.encode(events.x).to_dense().mean(-1), amplitudes(events))
        return Assigned(None, codes.mean(-1)[:, matching.learned], matching)
    if isinstance(sae, ns.SAEPointwise):
        matching = match_vectors(sae.decoder_weight, bed.concepts.atoms(FINE), sae.basis)
    else:
        matching = bed.match(sae)
    mine = codes[:, matching.learned]
    return Assigned(through_window(mine, matching.shift[:, 0]), mine.mean(-1), matching)


def match_numbers(numbers: Tensor, true: Tensor) -> Matching:
    """Columns ``(n, p)`` assigned to columns ``(n, q)`` by their correlation."""
    found = correlations(true, numbers)
    rows, columns = (torch.from_numpy(each) for each in linear_sum_assignment(found.numpy(), maximize=True))
    return Matching(found[rows, columns], columns, torch.zeros(len(rows), 1, dtype=torch.float64))


def through_window(codes: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """Codes ``(n, q, N)`` moved back by shares ``(q,)`` of the box, and seen through the window."""
    k = torch.arange(codes.shape[-1] // 2 + 1)
    moved = torch.exp(2j * torch.pi * k * torch.as_tensor(shift).float()[..., None])
    window = (-2 * (torch.pi * k * WIDTH).square()).exp()
    return torch.fft.irfft(torch.fft.rfft(codes) * moved * window, n=codes.shape[-1])


def table(values: Values) -> list[Row]:
    """Three rows: codes, correlated concepts, baselines."""

    def of(condition: str, name: str, figure: str) -> list[float]:
        return values[f"{condition}, {name}, {figure}"]

    def text(name: str, figures: tuple[str, ...], conditions: tuple[str, ...] = tuple(CONDITIONS)) -> str:
        parts = (f"{c}: " + ", ".join(f"{f} {spread(of(c, name, f), 2)}" for f in figures) for c in conditions)
        return f"{NAMES[name]}: {'; '.join(parts)}"

    noise, correlated = ("no noise", "10 dB", "0 dB"), ("10 dB", "10 dB, correlation 0.5", "10 dB, correlation 1")
    ours, whole = "truncated", ("r", "relative l2", "precision", "recall")
    chance = max(max(of(c, ours, f"r, {kind}")) for c in CONDITIONS for kind in ("untrained", "permuted"))
    lowest = min(fmean(of(c, ours, what)) for c in noise[:2] for what in ("precision", "recall"))
    loss = fmean(of("10 dB", ours, "r")) - fmean(of(correlated[-1], ours, "r"))
    above = min(fmean(of(c, ours, "r")) - fmean(of(c, "pointwise", "r")) for c in CONDITIONS)
    above_mlp = min(fmean(of(c, ours, "amplitude r")) - fmean(of(c, "mlp", "amplitude r")) for c in CONDITIONS)
    remark = (
        f"Codes of an untrained SAEFNO, or of another of its concepts, have r up to {chance:.2f}. Relative L2 at the best"
        " scale of each concept. Precision and recall of peaks within 0.04 of the box, at the threshold with the best F1."
    )
    recovered = [
        Criterion(
            "r at least 0.9 without noise and at 10 dB, means over seeds",
            all(fmean(of(c, ours, "r")) >= 0.9 for c in noise[:2]),
        ),
        Criterion("r at least 0.7 at 0 dB, mean over seeds", fmean(of("0 dB", ours, "r")) >= 0.7),
        Criterion("precision and recall at least 0.85 without noise and at 10 dB, means over seeds", lowest >= 0.85),
    ]
    better = [
        Criterion("r of code maps higher than the pointwise dictionary's in each condition, means over seeds", above > 0),
        Criterion("r of sizes higher than an SAE-MLP's in each condition, means over seeds", above_mlp > 0),
    ]
    sizes = ("amplitude r",)
    return [
        Row(
            "SAEFNO recovers the codes that made the fields",
            "1-d, five Gabors of four channels, fresh fields; code maps through a window of 0.03",
            text(ours, whole, noise),
            "; ".join(text(name, whole, noise) for name in MAPS[1:]),
            recovered,
            remark,
        ),
        Row(
            "SAEFNO recovers codes of concepts that come together",
            "the same, numbers of events correlated between concepts",
            text(ours, whole, correlated),
            "; ".join(text(name, whole, correlated) for name in MAPS[1:]),
            [Criterion("r at correlation 1 at most 0.1 below that at 0, means over seeds", loss <= 0.1)],
        ),
        Row(
            "Codes that are functions tell more than those of points or of whole fields",
            "correlation of code maps, and of the sizes of codes in a field",
            text(ours, ("r", *sizes)),
            f"{text('cnn', ('r', *sizes))}; {text('pointwise', ('r', *sizes))}; {text('mlp', sizes)}",
            better,
            "An SAE-MLP of 64 concepts, 4 on, matched by the best correlation in the fields of training; of each concept's"
            " places it can hold one. Sizes say little where all concepts come together: at correlation 1 those of an"
            f" untrained SAEFNO have r {spread(of(correlated[-1], ours, 'amplitude r, untrained'), 2)}.",
        ),
    ]


def draw(values: Values, like: Bed, rates: dict[str, float]) -> Figure:
    """Correlations by condition with chance, and the codes of one field."""
    figure, axes = subplots(1, 3, 3.8, 2.9)
    for ax, figure_name in zip(axes[0], ("r", "amplitude r"), strict=False):
        for name, color in zip(NAMES, PALETTE, strict=False):
            if figure_name == "r" and name not in MAPS:
                continue
            for place, condition in enumerate(CONDITIONS):
                runs = values[f"{condition}, {name}, {figure_name}"]
                label = NAMES[name] if not place else None
                ax.plot([place] * len(runs), runs, "o", color=color, markersize=4, alpha=0.8, label=label)
        for kind, style in (("untrained", ":"), ("permuted", "--")):
            level = [fmean(values[f"{condition}, truncated, {figure_name}, {kind}"]) for condition in CONDITIONS]
            ax.plot(level, style, color=GREY, label=f"SAEFNO, {kind}")
        ax.set_xticks(range(len(CONDITIONS)), [condition.replace(", correlation", "\ncorr.") for condition in CONDITIONS])
        ax.tick_params(axis="x", labelsize=6)
        ax.set(ylim=(-0.25, 1.03), ylabel={"r": "r of code maps", "amplitude r": "r of sizes in a field"}[figure_name])
    figure.legend(*axes[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=7)
    draw_codes(axes[0][2], replace(like, **CONDITIONS[TUNED_ON]), rates)
    return figure


def draw_codes(ax: Axes, bed: Bed, rates: dict[str, float]) -> None:
    """The true code of the concept and field where it is largest, and what the models infer."""
    test = bed.test()
    true = test.codes(WIDTH)
    sample, concept = divmod(int(true.mean(-1).argmax()), true.shape[1])
    position = torch.arange(POINTS) / POINTS
    ax.fill_between(position, true[sample, concept], color=GREY, alpha=0.4, label="true", linewidth=0)
    for name, color in zip(MAPS, PALETTE, strict=False):
        maps = assign(bed, trained(bed, name, rates[name]), test).maps
        assert maps is not None
        code = best_scale(maps[:, concept], true[:, concept]) * maps[sample, concept]
        ax.plot(position, code, color=color, linewidth=1, label=NAMES[name])
    ax.set(xlabel="position", ylabel="code, through the window", title=f"one field, {TUNED_ON}")
    ax.legend(frameon=False, fontsize=6)


if __name__ == "__main__":
    typer.run(main)
