"""How an edit reaches codes: the rows of some concepts get new values, everywhere or in a region."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import interpolate

from .arrays import tensor_of

if TYPE_CHECKING:
    from ..codes import ConceptCodes

Edit = Callable[["ConceptCodes"], "ConceptCodes"]
Concepts = int | Iterable[int] | None
Region = Tensor | ArrayLike


@dataclass(frozen=True, eq=False)
class Rewrite:
    """Edit that gives the codes of some concepts new values; made by the functions of `edits` and `moves`.

    Parameters
    ----------
    concepts : tuple of int or None
        The concepts; None stands for all.
    change : callable
        Codes of these concepts -> their new values ``(n, *code_grid)``, row by row.
    name, arguments : str
        What the edit is called, and its arguments beside concepts and region.
    region : Tensor, optional
        Weights w, ``(*grid)`` or ``(n_samples, *grid)``: values v become ``(1 - w) v + w change(v)``.
    fills : bool
        Whether the change makes something of a code that is zero: concepts that are off get a row first.
    """

    concepts: tuple[int, ...] | None
    change: Callable[[ConceptCodes], Tensor]
    name: str
    arguments: str = ""
    region: Tensor | None = None
    fills: bool = False

    def __post_init__(self) -> None:
        if self.region is not None:
            check_region(self.region)

    def __call__(self, codes: ConceptCodes) -> ConceptCodes:
        """The edited codes."""
        if self.fills:
            codes = with_rows(codes, self.concepts)
        at = rows_of(codes, self.concepts).nonzero().squeeze(1)
        part = replace(codes, sample=codes.sample[at], concept=codes.concept[at], values=codes.values[at])
        values = self.change(part)
        if self.region is not None:
            # lerp is exact where a weight is 0 or 1, and where nothing changes
            values = torch.lerp(part.values, values, _weights(self.region, part).expand_as(values))
        return replace(codes, values=codes.values.index_put((at,), values))

    def __repr__(self) -> str:
        concepts = str(self.concepts if self.concepts is None or len(self.concepts) > 1 else self.concepts[0])
        region = "" if self.region is None else f"region=<{' x '.join(map(str, self.region.shape))}>"
        return f"{self.name}({', '.join(filter(None, (concepts, self.arguments, region)))})"


def indices(concepts: Any) -> tuple[int, ...]:
    """Integers from one integer or from an iterable of them (a tensor or an array too); ValueError otherwise."""
    items = concepts.tolist() if hasattr(concepts, "tolist") else concepts
    items = list(items) if isinstance(items, Iterable) else [items]
    if not items:
        raise ValueError("no concepts given: name at least one, an integer in 0..n_concepts-1")
    for item in items:
        if isinstance(item, bool) or not hasattr(item, "__index__"):
            raise ValueError(f"concepts are integers in 0..n_concepts-1; got {item!r} of type {type(item).__name__}")
    return tuple(index(item) for item in items)


def indices_or_all(concepts: Concepts) -> tuple[int, ...] | None:
    """As :func:`indices`; None stands for all concepts."""
    return None if concepts is None else indices(concepts)


def concepts_of(codes: ConceptCodes, concepts: tuple[int, ...] | None) -> Tensor:
    """The concepts as a tensor on the device of the codes; ValueError if the codes do not have one of them."""
    for concept in concepts or ():
        if not 0 <= concept < codes.n_concepts:
            raise ValueError(f"concept {concept} is out of range 0..{codes.n_concepts - 1}: n_concepts={codes.n_concepts}")
    return torch.as_tensor(range(codes.n_concepts) if concepts is None else concepts, device=codes.concept.device)


def rows_of(codes: ConceptCodes, concepts: tuple[int, ...] | None) -> Tensor:
    """Which rows ``(n,)`` belong to the concepts."""
    return torch.isin(codes.concept, concepts_of(codes, concepts))


def pair_keys(sample: Tensor, concept: Tensor, n_concepts: int) -> Tensor:
    """One number for each pair (sample, concept), in the order of rows: ``(n,)``."""
    return sample * n_concepts + concept


def with_rows(codes: ConceptCodes, concepts: tuple[int, ...] | None) -> ConceptCodes:
    """The same codes, with a row of zeros wherever one of the concepts (None: of all) is off. Rows are sorted by sample, then
    by concept."""
    p, device = codes.n_concepts, codes.concept.device
    wanted = concepts_of(codes, concepts).unique()
    here = pair_keys(codes.sample, codes.concept, p)
    pairs = pair_keys(torch.arange(codes.n_samples, device=device)[:, None], wanted, p).flatten()
    absent = pairs[~torch.isin(pairs, here)]
    keys, order = torch.cat([here, absent]).sort()
    values = torch.cat([codes.values, codes.values.new_zeros(len(absent), *codes.values.shape[1:])])
    return replace(codes, sample=keys // p, concept=keys % p, values=values[order])


def check_region(region: Region) -> Tensor:
    """Weights as a tensor, from a tensor or an array; TypeError unless they are bool or float."""
    weights = tensor_of("region", region) if hasattr(region, "__array__") else None
    if weights is None or not (weights.dtype == torch.bool or weights.is_floating_point()):
        kind = type(region).__name__ if weights is None else weights.dtype
        raise TypeError(f"region must be a bool mask or a float tensor of weights; got {kind}")
    return weights


def region_or_none(region: Region | None) -> Tensor | None:
    """As :func:`check_region`; None stands for everywhere."""
    return None if region is None else check_region(region)


def on_grid(region: Tensor, grid: Sequence[int]) -> Tensor:
    """Weights ``(*old)`` or ``(n_samples, *old)`` on another grid, with ``torch.nn.functional.interpolate``: bool by
    ``mode="nearest"``, float by ``mode="area"``."""
    n_dim = len(grid)
    if region.ndim not in (n_dim, n_dim + 1):
        raise ValueError(f"region has shape {tuple(region.shape)}, the codes are on a grid {tuple(grid)}")
    if tuple(region.shape[-n_dim:]) == tuple(grid):
        return region
    if n_dim > 3:
        raise ValueError(f"cannot resample a region in {n_dim} dimensions: give it on the codes' grid {tuple(grid)}")
    mode = "nearest" if region.dtype == torch.bool else "area"
    field = region.to(torch.get_default_dtype() if mode == "nearest" else region.dtype)
    lead, old = region.shape[:-n_dim], region.shape[-n_dim:]
    return interpolate(field.reshape(lead.numel(), 1, *old), size=tuple(grid), mode=mode).reshape(*lead, *grid)


def _weights(region: Tensor, part: ConceptCodes) -> Tensor:
    weights = on_grid(region, part.values.shape[1:]).to(part.values)
    if weights.ndim < part.values.ndim:
        return weights
    if len(weights) != part.n_samples:
        raise ValueError(f"region has weights for {len(weights)} samples, the batch has {part.n_samples}")
    return weights[part.sample]
