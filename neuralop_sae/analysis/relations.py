"""How concepts relate: whose atoms are alike, which are on together, and which another training run finds again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attach.capture import eval_mode
from ..data.activations import opened
from ..data.indexed import IndexedActivations
from ..models.base import SAE
from .evaluate import ConceptUse
from .matching import match_atoms, pair_cosines, untrained

_BATCH = 16


def stability(sae: SAE, other: SAE, activations: Tensor | IndexedActivations | None = None) -> Tensor:
    """How well each concept is found again by another training run: the cosine of its atom with the one matched to it.

    Parameters
    ----------
    sae : SAE
        Whose concepts are asked about.
    other : SAE
        Trained on the same activations, say from another seed; it may have more or fewer concepts.
    activations : Tensor, or activations of a store or stream, optional
        ``(N, channels, *grid)``: concepts that are on in none of these are left out, of both models. A dead one says nothing,
        but may be matched.

    Returns
    -------
    Tensor
        ``(n_concepts,)``, float64: see :func:`~neuralop_sae.analysis.matching.match_atoms`; 0 where `other` has no concept
        left, NaN for a concept that is dead. The best of many atoms is like many things: :func:`stability_by_chance` tells
        how much.

    Raises
    ------
    TypeError, ValueError
        If `other` is no SAE, or of other channels or another domain.

    Examples
    --------
    >>> import neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=2, n_concepts=6, n_modes=(5, 5))
    >>> stability(sae, sae).round(decimals=4).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    _check_pair(sae, other)
    return _matched(sae, other, _living(sae, activations), _living(other, activations))


def stability_by_chance(
    sae: SAE, other: SAE, activations: Tensor | IndexedActivations | None = None, *, n_draws: int = 3, seed: int = 1000
) -> Tensor:
    """What :func:`stability` gives, concept by concept, where there is nothing to find again: in place of `other` a model of
    its arguments before any training, with as many concepts to choose from.

    Parameters
    ----------
    sae, other, activations
        As for :func:`stability`; of `other` only the arguments are used, and how many of its concepts are on.
    n_draws : int
        Models made; the result is the mean over them.
    seed : int
        Of the first; none that either of the two was made from, or it is no chance.

    Returns
    -------
    Tensor
        ``(n_concepts,)``, float64.

    Examples
    --------
    >>> import neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=2, n_concepts=6, n_modes=(5, 5))
    >>> bool((stability_by_chance(sae, sae) < stability(sae, sae)).all())
    True
    """
    _check_pair(sae, other)
    living, n_others = _living(sae, activations), len(_living(other, activations))
    draws = [_matched(sae, untrained(other, seed + draw), living, torch.arange(n_others)) for draw in range(n_draws)]
    return torch.stack(draws).mean(0)


def _check_pair(sae: SAE, other: SAE) -> None:
    if not isinstance(other, SAE):
        raise TypeError(f"stability compares with another SAE, got {type(other).__name__}; load one with neuralop_sae.load")
    if other.in_channels != sae.in_channels or type(other.basis) is not type(sae.basis):
        raise ValueError(
            f"atoms are compared over the same channels and domain: this model has {sae.in_channels} channels on a "
            f"{type(sae.basis).__name__}, the other {other.in_channels} on a {type(other.basis).__name__}"
        )


@torch.no_grad()
def _living(sae: SAE, activations: Tensor | IndexedActivations | None) -> Tensor:
    """The concepts that are on in some of the activations; by default all."""
    if activations is None:
        return torch.arange(sae.n_concepts)
    use = ConceptUse(sae)
    with eval_mode(sae):
        for x in opened(activations).split(_BATCH):
            use.update(sae.encode(x.to(sae.mean.device)))
    return use.frequency().nonzero()[:, 0]


@torch.no_grad()
def _matched(sae: SAE, other: SAE, concepts: Tensor, others: Tensor) -> Tensor:
    """Matched cosines of some concepts with some of another model, ``(n_concepts,)``; NaN for the rest."""
    found = torch.full((sae.n_concepts,), torch.nan, dtype=torch.float64)
    if len(concepts):
        grid = [max(sizes) for sizes in zip(sae.atom_grid, other.atom_grid, strict=True)]
        atoms, candidates = sae.atoms(concepts, grid).cpu(), other.atoms(others, grid).cpu()
        found[concepts] = match_atoms(candidates, atoms, sae.basis, signed=sae.rectifies, translate=sae.moves).cosine
    return found


@torch.no_grad()
def alike(sae: SAE, concepts: Sequence[int]) -> Tensor:
    """Largest cosines of the atoms of n concepts over the translations, as :func:`stability` takes them: ``(n, n)``."""
    atoms = sae.atoms(concepts, sae.atom_grid).cpu()
    return pair_cosines(atoms, atoms, sae.basis, sae.rectifies, sae.moves)[0]


def together(on: Tensor) -> Tensor:
    """Of the samples in which either of two concepts is on, the share in which both are (Jaccard), from the boolean
    ``(N, n)``: ``(n, n)``, zero where neither is."""
    indicator = on.double()
    both = indicator.T @ indicator
    count = both.diagonal()
    return both / (count[:, None] + count - both).clamp_min(1)


def nearest(likeness: Tensor, concepts: Sequence[int], n: int = 5) -> dict[int, list[tuple[int, float]]]:
    """For each of the concepts the n others most like it, from the likeness ``(p, p)`` between them; none of likeness zero."""
    others = likeness.clone().fill_diagonal_(-torch.inf)
    values, index = others.sort(dim=1, descending=True, stable=True)
    return {
        concept: [(concepts[i], v) for v, i in zip(row[:n], at, strict=False) if v > 0]
        for concept, row, at in zip(concepts, values.tolist(), index.tolist(), strict=True)
    }
