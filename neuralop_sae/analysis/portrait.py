"""One concept in one figure: what it writes, how it treats scales, and where it is expressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.base import SAE
from .curves import draw_spectrum
from .drawing import ColorScale, aspect_of, color_bar, draw_field, set_title, slice_note, subplots
from .summaries import code_of, codes_of_samples, leading_components, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def concept_figure(
    sae: SAE, acts: Tensor, concept: int, *, inputs: Tensor | None = None, n_samples: int = 4, batch_size: int = 16
) -> Figure:
    """A concept's atom, its spectrum, and its code in the samples where it is strongest.

    Parameters
    ----------
    sae : SAE
        The model.
    acts : Tensor
        Activations ``(N, channels, *grid)``.
    concept : int
        Which.
    inputs : Tensor, optional
        ``(N, channels, *grid)``, the operator's inputs on any grid: contours of their first channel.
    n_samples : int
        How many maps of codes; they share a colour scale, in units of the code.
    batch_size : int
        Samples per forward pass.

    Raises
    ------
    ValueError
        If the model has no such concept, or it is on in none of the samples.
    """
    sae.check_concepts([concept])
    summary = summarize(sae, acts, n_samples=n_samples, batch_size=batch_size)
    samples = summary.samples[concept][summary.norms[concept] > 0].tolist()
    if not samples:
        raise ValueError(f"concept {concept} is on in none of the {len(acts)} samples: choose another, or other samples")
    codes = codes_of_samples(sae, acts, samples, concepts=torch.tensor([concept]), batch_size=batch_size)
    maps = [code_of(codes, concept, position) for position in range(len(samples))]
    found = [torch.zeros(codes.grid) if code is None else code for code in maps]
    figure, axes = subplots(1, len(samples) + 2, 2.1, 2.2, aspect_of(codes.grid, sae.basis))
    atom, share = leading_components(sae, [concept], acts.shape[2:])
    peak = float(atom.abs().max()) or 1.0
    image = draw_field(axes[0, 0], atom[0], ColorScale("RdBu_r", -peak, peak), sae.basis)
    note = slice_note(codes.basis.n_dim)
    set_title(axes[0, 0], f"atom of concept {concept}", f"\n{100 * float(share[0]):.0f} % of its energy{note}")
    color_bar(figure, image, axes[0, 0], "normalised activation")
    draw_spectrum(axes[0, 1], sae, concept)
    set_title(axes[0, 1], "spectrum")
    scale = ColorScale.of(*found)
    for ax, sample, code in zip(axes[0, 2:], samples, found, strict=True):
        image = draw_field(ax, code, scale, codes.basis, None if inputs is None else inputs[sample, 0])
        set_title(ax, f"sample {sample}", note)
    color_bar(figure, image, list(axes[0, 2:]), "code")
    return figure
