"""The parts of a report's page: figures as SVG, cards and rows of concepts, numbers as people read them."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup, escape
from torch import Tensor

from ..attach.capture import eval_mode
from ..codes import ConceptCodes
from ..models.base import SAE
from . import figures
from .drawing import INK, PALETTE, ColorScale, aspect_of
from .summaries import (
    ConceptSummary,
    atom_spectra,
    code_of,
    codes_of_samples,
    has_pointwise_part,
    leading_components,
    rank_energy,
    strongest_concepts,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_ROWS = 4096
_CHUNK = 256
_WIDE = 9.0  # inches; wider figures get the page's full width


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


def _svg(figure: Figure, *, transparent: bool = True) -> str:
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same figure is the same text.
    settings: dict[Any, Any] = {"svg.hashsalt": "neuralop_sae", "svg.fonttype": "none", "savefig.dpi": 110}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=transparent, metadata={"Date": None, "Creator": None})
    # Hundredths of a point are enough for lines.
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), buffer.getvalue())
    return re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)


def inline_svg(figure: Figure, alt: str, prefix: str) -> Markup:
    """A figure as an SVG element whose text takes the colour of the page around it.

    Parameters
    ----------
    figure : Figure
        The figure, in the ink of this package.
    alt : str
        What it shows, for those who cannot see it.
    prefix : str
        Put before all ids, which must be unique in the page.
    """
    text = _svg(figure).replace(INK, "currentColor")
    # Matplotlib names every group, and equal images alike; only what is referred to needs its id.
    needed = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in needed else "", text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", text)
    width = re.search(r'<svg[^>]*?width="([\d.]+)pt"', text)
    assert width is not None
    text = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", text, count=1)
    size = f'style="width:{float(width[1]) * 4 / 3:.0f}px"'
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}" {size}', 1))


def data_uri(figure: Figure) -> str:
    """A figure as a data URI for an ``img``."""
    encoded = base64.b64encode(_svg(figure).encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"


@dataclass
class Page:
    """Makes the parts of the page that come from tensors.

    Parameters
    ----------
    sae, activations, inputs
        As for :func:`neuralop_sae.analysis.report.report`.
    summary : ConceptSummary
        Of these activations.
    labels : dict of int to str
        Names of concepts.
    n_concepts, n_samples, batch_size : int
        Cards, maps on each, samples per forward pass.
    """

    sae: SAE
    activations: Tensor
    inputs: Tensor | None
    summary: ConceptSummary
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
        return [
            {
                "index": c,
                "share": float(self.summary.share[c]),
                "bar": round(100 * float(self.summary.share[c]) / largest, 1),
                "frequency": float(self.summary.frequency[c]),
                "area": float(self.summary.area[c]),
                "kernel_norm": float(self.summary.kernel_norm[c]),
                "wavenumber": int(k),
                "label": self.labels.get(c, ""),
                "has_card": c in self.shown,
            }
            for c, k in zip(order.tolist(), torch.cat(parts).tolist(), strict=True)
        ]

    def _background(self, sample: int) -> Tensor | None:
        return None if self.inputs is None else self.inputs[sample, 0]

    @cached_property
    def _strongest(self) -> tuple[list[int], ConceptCodes | None]:
        """The samples on any card, and in this order the codes in them of the concepts that have a card."""
        on = self.summary.norms[self.shown] > 0
        samples = sorted(set(self.summary.samples[self.shown][on].tolist()))
        if not samples:
            return [], None
        concepts = torch.tensor(self.shown)
        return samples, codes_of_samples(self.sae, self.activations, samples, concepts=concepts, batch_size=self.batch_size)

    def cards(self) -> Iterator[dict[str, Any]]:
        """One card per shown concept, strongest first."""
        if not self.shown:
            return
        rows = {row["index"]: row for row in self.rows}
        atoms, held = leading_components(self.sae, self.shown, self.grid)
        rests = (
            leading_components(self.sae, self.shown, self.grid, pointwise=False)[0] if has_pointwise_part(self.sae) else None
        )
        for position, (concept, atom, share) in enumerate(zip(self.shown, atoms, held.tolist(), strict=True)):
            peak = float(atom.abs().max()) or 1.0
            spectrum = figures.spectra_figure(self.sae, [concept])
            yield {
                **rows[concept],
                "atom": data_uri(figures.field_image(atom, ColorScale("RdBu_r", -peak, peak), self.sae.basis)),
                "atom_share": share,
                "atom_peak": peak,
                **({} if rests is None else self._rest(rests[position])),
                "spectrum": inline_svg(spectrum, f"Energy spectrum of the atom of concept {concept}", f"spectrum-{concept}"),
                **self._maps(concept),
            }

    def _rest(self, rest: Tensor) -> dict[str, Any]:
        peak = float(rest.abs().max()) or 1.0
        image = figures.field_image(rest, ColorScale("RdBu_r", -peak, peak), self.sae.basis)
        return {"rest": data_uri(image), "rest_peak": peak}

    def _maps(self, concept: int) -> dict[str, Any]:
        samples, codes = self._strongest
        norms = self.summary.norms[concept]
        chosen = self.summary.samples[concept][norms > 0].tolist()
        assert codes is not None
        found = [code_of(codes, concept, samples.index(sample)) for sample in chosen]
        maps = [torch.zeros(codes.grid) if code is None else code for code in found]
        scale = ColorScale.of(*maps)
        return {
            "low": scale.low,
            "high": scale.high,
            "gradient": scale.css_gradient(),
            "maps": [
                {
                    "sample": sample,
                    "norm": float(norm),
                    "image": data_uri(figures.field_image(code, scale, codes.basis, self._background(sample))),
                }
                for sample, norm, code in zip(chosen, norms.tolist(), maps, strict=False)
            ],
        }

    def overview(
        self, history: Sequence[Mapping[str, Any]] | None, high_resolution: Tensor | None
    ) -> Iterator[dict[str, Any]]:
        """Figures with title and caption."""
        for key, title, caption, figure in self._overview_figures(history, high_resolution):
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
            yield "spectra", "What concepts do to scales", caption, figures.spectra_figure(self.sae, self.shown)
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
