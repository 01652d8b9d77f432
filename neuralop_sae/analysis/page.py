"""The parts of a report's page: facts, rows of concepts, overview figures, numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..attach.capture import eval_mode
from ..codes import ConceptCodes
from ..data.indexed import IndexedActivations
from ..models.base import SAE
from . import figures
from .drawing import PALETTE, aspect_of
from .evidence import Evidence
from .findings import fve_figure, probes_map_figure, stability_figure
from .summaries import ConceptSummary, atom_spectra, codes_of_samples, rank_energy, strongest_concepts
from .svg import inline_svg
from .tradeoff import fve_by_k, k_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_ROWS = 4096
_CHUNK = 256
_COLUMNS = 48  # concepts in overview figures
_TRADEOFF_SAMPLES = 32
_WIDE = 6.8  # inches; wider figures get the page's full width


def percent(value: float) -> str:
    """A fraction as a percentage of three significant digits at most: ``0.0312`` gives ``"3.12 %"``."""
    return f"{number(100 * value)} %" if math.isfinite(value) else "n/a"


def number(value: Any) -> str:
    """A value as people read it: three significant digits, whole numbers in full, NaN as ``n/a``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "n/a"
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


@dataclass
class Page:
    """Makes the parts of the page that come from tensors.

    Parameters
    ----------
    sae, activations, inputs
        As for :func:`neuralop_sae.analysis.report.report`.
    summary : ConceptSummary
        Of these activations.
    evidence : Evidence
        What else is known of concepts.
    labels : dict of int to str
        Names of concepts.
    n_concepts, n_samples, batch_size : int
        Cards, samples in overview figures, samples per forward pass.
    """

    sae: SAE
    activations: Tensor | IndexedActivations
    inputs: Tensor | None
    summary: ConceptSummary
    evidence: Evidence
    labels: Mapping[int, str]
    n_concepts: int
    n_samples: int
    batch_size: int
    shown: list[int] = field(init=False)

    def __post_init__(self) -> None:
        top, shares = rank_energy(self.summary.energy, self.n_concepts)
        self.shown = top[shares > 0].tolist()

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid of the activations."""
        return tuple(self.activations.shape[2:])

    @property
    def aspect(self) -> float:
        """Height over width of a map."""
        return aspect_of(self.grid, self.sae.basis)

    def facts(self) -> list[tuple[str, str]]:
        """What was analysed, for the head of the page."""
        alive = int((self.summary.frequency > 0).sum())
        config = self.sae.config()
        facts = [
            ("Model", type(self.sae).__name__),
            ("Concepts", f"{self.sae.n_concepts} ({alive} in use)"),
            ("Samples", str(len(self.activations))),
            ("Grid", " \u00d7 ".join(map(str, self.grid))),
            ("Channels", str(self.sae.in_channels)),
        ]
        if "n_modes" in config:
            facts.append(("Modes", " \u00d7 ".join(map(str, config["n_modes"]))))
        for key, name in (("concept_rule", "Concept rule"), ("domain_rule", "Domain rule")):
            rule = config.get(key)
            if isinstance(rule, Mapping):
                arguments = ", ".join(f"{k}={number(v)}" for k, v in rule.items() if k != "name")
                facts.append((name, f"{rule.get('name')}({arguments})"))
        return facts

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per concept, strongest first."""
        order = rank_energy(self.summary.energy, min(self.sae.n_concepts, _MAX_ROWS))[0]
        parts = [atom_spectra(self.sae, chunk).dominant() for chunk in order.split(_CHUNK)]
        largest = float(self.summary.share.max()) or 1.0
        shown = set(self.shown)
        follows, effects = self.evidence.follows(), self.evidence.first_effects()
        return [
            {
                "index": c,
                "share": float(self.summary.share[c]),
                "bar": round(100 * float(self.summary.share[c]) / largest, 1),
                "frequency": float(self.summary.frequency[c]),
                "area": float(self.summary.area[c]),
                "kernel_norm": float(self.summary.kernel_norm[c]),
                "wavenumber": int(k),
                "follows": follows.get(c),
                "effect": effects.get(c),
                "stability": self.evidence.stability.get(c),
                "label": self.labels.get(c, ""),
                "has_card": c in shown,
            }
            for c, k in zip(order.tolist(), torch.cat(parts).tolist(), strict=True)
        ]

    def overview(
        self,
        history: Sequence[Mapping[str, Any]] | None,
        high_resolution: Tensor | None,
        fve: Mapping[int, float] | None,
    ) -> Iterator[dict[str, Any]]:
        """Figures with title and caption."""
        for key, title, caption, figure in (
            *self._overview_figures(history, high_resolution),
            *self._tradeoff(fve),
            *self._findings(),
        ):
            svg = inline_svg(figure, f"{title}. {caption}", f"overview-{key}")
            yield {"key": key, "title": title, "caption": caption, "svg": svg, "wide": figure.get_figwidth() > _WIDE}

    def _overview_figures(
        self, history: Sequence[Mapping[str, Any]] | None, high_resolution: Tensor | None
    ) -> Iterator[tuple[str, str, str, Figure]]:
        x, rebuilt, codes = self._first_samples()
        samples, basis = list(range(len(x))), self.sae.basis
        fields = {} if self.inputs is None else {"input, channel 0": self.inputs[0, 0]}
        fields |= {"activation": x[0], "reconstruction": rebuilt[0]}
        shared = [("activation", "reconstruction")]
        figure = figures.fields_figure(fields, basis=basis, shared=shared)
        yield "fields", "The layer and its copy", "Sample 0, in the units in which the fields came.", figure
        if self.shown:
            # The strongest of these samples: those of the whole set may be off in them.
            local = strongest_concepts(codes, self.sae, len(PALETTE))[0].tolist()
            figure = figures.dominance_figure(codes, self.sae, local, samples, self.inputs)
            yield "territory", "Who writes where", _TERRITORY, figure
        figure = figures.usage_figure(self.summary.frequency, self.summary.share)
        yield "usage", "How the dictionary is used", _USAGE, figure
        if len(self.shown) > 1:
            caption = _SPECTRA.format(basis.wavenumber_label)
            yield "spectra", "What concepts do to scales", caption, figures.spectra_figure(self.sae, self.shown[:_COLUMNS])
        figure = figures.reconstruction_figure(x, rebuilt, basis=basis)
        yield "channels", "Channel by channel", "Sample 0, the channels that vary most.", figure
        if high_resolution is not None and self.shown:
            low = codes_of_samples(self.sae, self.activations, [0])
            high = codes_of_samples(self.sae, high_resolution, [0])
            on = [c for c in self.shown if bool((low.concept == c).any())][:3]
            if on:
                yield (
                    "resolution",
                    "The same codes on a finer grid",
                    _RESOLUTION,
                    figures.resolution_figure(low, high, on),
                )
        if history:
            yield "history", "Training", "Quantities logged during training.", figures.history_figure(history)

    def _tradeoff(self, fve: Mapping[int, float] | None) -> Iterator[tuple[str, str, str, Figure]]:
        rule, counted = k_of(self.sae)
        caption = _TRADEOFF_GIVEN
        if fve is None and rule is not None and self.shown:
            fve = fve_by_k(self.sae, self.activations[:_TRADEOFF_SAMPLES], batch_size=self.batch_size)
            n = min(len(self.activations), _TRADEOFF_SAMPLES)
            caption = _TRADEOFF.format("sample" if n == 1 else f"{n} samples")
        if fve:
            own = None if rule is None else rule.k
            caption += "" if own is None else _TRAINED_AT.format(own, counted)
            caption += _BELOW_ZERO if min(fve.values()) < 0 else ""
            yield "tradeoff", "What sparsity costs", caption, fve_figure(fve, own=own, counted=counted or "k")

    def _findings(self) -> Iterator[tuple[str, str, str, Figure]]:
        if self.evidence.probes is not None and self.shown:
            figure = probes_map_figure(self.evidence.probes, self.shown[:_COLUMNS])
            yield "physics", "What physics concepts follow", _PHYSICS, figure
        if self.evidence.stability:
            cosines, chance = (torch.tensor(each) for each in zip(*self.evidence.stability.values(), strict=True))
            caption = _STABILITY.format(float(chance.mean()))
            yield "stability", "What another run finds again", caption, stability_figure(cosines, chance)

    @torch.no_grad()
    def _first_samples(self) -> tuple[Tensor, Tensor, ConceptCodes]:
        x = self.activations[: self.n_samples]
        with eval_mode(self.sae):
            out = self.sae(x.to(self.sae.mean.device))
        return x.cpu(), out.reconstruction.cpu(), out.codes.detach().cpu()


_TERRITORY = (
    "The concept that writes most at each point: the strongest seven of these samples in colours, others grey, none white."
)
_USAGE = "Left: how often each concept is on. Right: how few concepts carry most of the energy."
_SPECTRA = (
    "Energy of each atom by {}, relative to an impulse: 1 copies the code as it is, more strengthens and less weakens "
    "that scale."
)
_RESOLUTION = "Sample 0 on two grids, and value against value: on the diagonal, resolution does not matter."
_TRADEOFF = (
    "Variance explained in the first {} when more or fewer concepts may be on than the model was trained for, without "
    "training it again: concepts that come on beyond the trained k were never fitted together, and with more of them less "
    "may be explained."
)
_TRADEOFF_GIVEN = "Variance explained against the number of concepts that may be on, as it was given to this page."
_TRAINED_AT = " The model was trained at k = {}, {} (dashed line)."
_BELOW_ZERO = " Below 0 the copy is worse than the mean of the layer."
_PHYSICS = (
    "Correlations of codes with quantities, at the lag where each is closest; crosses are not told from chance (q above 0.05)."
)
_STABILITY = (
    "Cosine of each atom with the one matched to it in another run: 1 is found again. Beside it what the same matching gives "
    "with dictionaries before any training, on average {:.2f}: as much as that means nothing."
)
