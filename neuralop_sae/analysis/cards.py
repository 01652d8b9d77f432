"""The cards of a report: what there is to see and know of one concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from ..attach.capture import eval_mode
from ..data.indexed import IndexedActivations
from ..models.base import SAE
from . import figures
from .drawing import ColorScale
from .evidence import Evidence
from .pictures import contour_paths, png, side_within
from .relations import alike, nearest, together
from .summaries import ConceptSummary, atom_spectra, code_of, has_pointwise_part, leading_components
from .svg import data_uri, spectrum_axes

# Images are base64, four bytes for three: with these a page of any number of cards stays near 20 MB.
_IMAGE_BYTES, _CONTOUR_BYTES = 12_000_000, 3_000_000
_CHUNK = 32


@dataclass
class Cards:
    """Makes the cards.

    Parameters
    ----------
    sae, activations, inputs
        As for :func:`neuralop_sae.analysis.report.report`.
    summary : ConceptSummary
        Of these activations.
    evidence : Evidence
        What else is known.
    shown : list of int
        The concepts that get a card.
    batch_size : int
        Samples per forward pass.
    """

    sae: SAE
    activations: Tensor | IndexedActivations
    inputs: Tensor | None
    summary: ConceptSummary
    evidence: Evidence
    shown: Sequence[int]
    batch_size: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.shown:
            return
        similar = nearest(alike(self.sae, self.shown), self.shown)
        beside = nearest(together(self.summary.on[:, list(self.shown)]), self.shown)
        for concept, pictures in zip(self.shown, self._atoms(), strict=True):
            yield {
                "index": concept,
                **pictures,
                "spectrum": self.spectra[1][concept],
                **self._maps(concept),
                "physics": self.evidence.physics(concept),
                "acts": self.evidence.acts(concept),
                "similar": similar[concept],
                "beside": beside[concept],
            }

    @property
    def grid(self) -> tuple[int, ...]:
        """Of the atoms."""
        return tuple(self.activations.shape[2:])

    @cached_property
    def _side(self) -> int:
        n_atoms = 2 if has_pointwise_part(self.sae) else 1
        return side_within(len(self.shown) * (n_atoms + self.summary.samples.shape[1]), _IMAGE_BYTES)

    def _picture(self, values: Tensor, scale: ColorScale, background: Tensor | None = None) -> str:
        if values.ndim == 1:
            return data_uri(figures.field_image(values, scale, self.sae.basis, background))
        return png(values, scale, self.sae.basis, self._side)

    def _atoms(self) -> Iterator[dict[str, Any]]:
        for first in range(0, len(self.shown), _CHUNK):
            chosen = self.shown[first : first + _CHUNK]
            atoms, shares = leading_components(self.sae, chosen, self.grid)
            rests: Sequence[Tensor | None] = [None] * len(chosen)
            if has_pointwise_part(self.sae):
                rests = list(leading_components(self.sae, chosen, self.grid, pointwise=False)[0])
            for atom, share, rest in zip(atoms, shares.tolist(), rests, strict=True):
                yield {
                    "atom_share": share,
                    **self._signed("atom", atom),
                    **({} if rest is None else self._signed("rest", rest)),
                }

    def _signed(self, name: str, values: Tensor) -> dict[str, Any]:
        peak = float(values.abs().max()) or 1.0
        return {name: self._picture(values, ColorScale("RdBu_r", -peak, peak)), f"{name}_peak": peak}

    @cached_property
    def spectra(self) -> tuple[Markup, dict[int, Markup]]:
        """Axes that all cards share, so that their spectra compare, and the line of each concept."""
        if not self.shown:
            return Markup(), {}
        parts = [atom_spectra(self.sae, self.shown[i : i + _CHUNK]) for i in range(0, len(self.shown), _CHUNK)]
        gains = torch.cat([part.gain() for part in parts])
        return spectrum_axes(parts[0].wavenumbers, gains, self.sae.basis.wavenumber_label, self.shown)

    @cached_property
    def _chosen(self) -> dict[int, list[tuple[int, float]]]:
        """Of each concept the samples on its card, with the norm of its code."""
        pairs = ((c, zip(self.summary.samples[c].tolist(), self.summary.norms[c].tolist(), strict=True)) for c in self.shown)
        return {concept: [(sample, norm) for sample, norm in rows if norm > 0] for concept, rows in pairs}

    @cached_property
    def _samples(self) -> list[int]:
        return sorted({sample for rows in self._chosen.values() for sample, _ in rows})

    @cached_property
    @torch.no_grad()
    def _codes(self) -> dict[tuple[int, int], Tensor]:
        """The code of each concept in each of its samples; no other is kept."""
        wanted: dict[int, list[int]] = {sample: [] for sample in self._samples}
        for concept, rows in self._chosen.items():
            for sample, _ in rows:
                wanted[sample].append(concept)
        found = {}
        with eval_mode(self.sae):
            for first in range(0, len(self._samples), self.batch_size):
                batch = self._samples[first : first + self.batch_size]
                codes = self.sae.encode(self.activations[batch].to(self.sae.mean.device)).detach().cpu()
                for position, sample in enumerate(batch):
                    for concept in wanted[sample]:
                        code = code_of(codes, concept, position)
                        found[concept, sample] = torch.zeros(codes.grid) if code is None else code
        return found

    @cached_property
    def contours(self) -> tuple[dict[int, str], int]:
        """Contours of the inputs as a path for each sample on a card, and the side of the square they are drawn in."""
        if self.inputs is None or len(self.grid) == 1:
            return {}, 1
        paths, units = contour_paths([self.inputs[sample, 0] for sample in self._samples], self.sae.basis, _CONTOUR_BYTES)
        return {sample: path for sample, path in zip(self._samples, paths, strict=True) if path}, units

    def _maps(self, concept: int) -> dict[str, Any]:
        chosen = self._chosen[concept]
        maps = [self._codes[concept, sample] for sample, _ in chosen]
        scale = ColorScale.of(*maps)
        return {
            "low": scale.low,
            "high": scale.high,
            "gradient": scale.css_gradient(),
            "contour_color": scale.contour_color,
            "maps": [
                {
                    "sample": sample,
                    "norm": norm,
                    "image": self._picture(code, scale, None if self.inputs is None else self.inputs[sample, 0]),
                }
                for (sample, norm), code in zip(chosen, maps, strict=True)
            ],
        }
