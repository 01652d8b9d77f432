"""Edits of codes at their place: switch concepts off, scale, bound, add, filter, restrict, patch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .arrays import tensor_of
from .rewrite import (
    Concepts,
    Edit,
    Region,
    Rewrite,
    check_region,
    concepts_of,
    indices,
    indices_or_all,
    pair_keys,
    region_or_none,
    rows_of,
    with_rows,
)

if TYPE_CHECKING:
    from ..codes import ConceptCodes


@dataclass(frozen=True)
class Ablate:
    """Edit that drops the rows of some concepts; made by `ablate`."""

    concepts: tuple[int, ...]

    def __call__(self, codes: ConceptCodes) -> ConceptCodes:
        """The edited codes."""
        keep = ~rows_of(codes, self.concepts)
        return replace(codes, sample=codes.sample[keep], concept=codes.concept[keep], values=codes.values[keep])

    def __repr__(self) -> str:
        return f"ablate({', '.join(map(str, self.concepts))})"


@dataclass(frozen=True, eq=False)
class Compose:
    """Edit that applies several, one after the other; made by `compose`."""

    edits: tuple[Edit, ...]

    def __call__(self, codes: ConceptCodes) -> ConceptCodes:
        """The edited codes."""
        for edit in self.edits:
            codes = edit(codes)
        return codes

    def __repr__(self) -> str:
        return f"compose({', '.join(map(repr, self.edits))})"


def ablate(*concepts: int | Iterable[int]) -> Ablate:
    """An edit that switches concepts off: their rows are dropped from the codes.

    Parameters
    ----------
    *concepts : int, or one iterable of int
        The concepts.

    Returns
    -------
    Ablate
        The edit. It raises ValueError on codes that do not have one of these concepts in 0..n_concepts-1.

    Raises
    ------
    ValueError
        If no concept is given or one is not an integer.

    Examples
    --------
    >>> ablate(3, 5)
    ablate(3, 5)
    """
    return Ablate(indices(concepts[0] if len(concepts) == 1 else concepts))


def steer(concept: int | Iterable[int], scale: float | Tensor = 1.0, region: Region | None = None) -> Rewrite:
    """An edit that multiplies the codes of concepts by a number, everywhere or in a region.

    Parameters
    ----------
    concept : int or iterable of int
        The concepts.
    scale : float or Tensor, optional
        The factor, a number or a tensor with one element.
    region : Tensor or array_like, optional
        Weights w over the domain, ``(*grid)`` or ``(n_samples, *grid)``, bool or float: the factor is ``1 + w (scale - 1)``,
        hence `scale` where w is 1 or True and 1 where it is 0 or False. Weights on another grid than the codes' are
        resampled with ``torch.nn.functional.interpolate``: bool by ``mode="nearest"``, float by
        ``mode="area"``.

    Returns
    -------
    Rewrite
        The edit. It raises ValueError on codes that do not have one of these concepts in 0..n_concepts-1, and
        on codes whose grid or number of samples does not fit the region.

    Raises
    ------
    ValueError
        If a concept is not an integer, or `scale` has more than one element.
    TypeError
        If `scale` is no number, or `region` is not bool or float.

    Examples
    --------
    >>> steer(7, scale=2.0, region=torch.ones(8, 8))
    steer(7, scale=2, region=<8 x 8>)
    """
    which, number = indices(concept), tensor_of("scale", scale)
    if number.numel() != 1:
        raise ValueError(f"scale must have one element; got shape {tuple(number.shape)}")

    def change(codes: ConceptCodes) -> Tensor:
        return codes.values * number.reshape(()).to(codes.values)

    return Rewrite(which, change, "steer", f"scale={number.item():g}", region_or_none(region))


def clamp(
    concepts: Concepts, minimum: float | None = None, maximum: float | None = None, region: Region | None = None
) -> Rewrite:
    """An edit that keeps codes between two bounds. A concept that is off has a code of zero, and is bounded too.

    Parameters
    ----------
    concepts : int, iterable of int or None
        The concepts; None for all.
    minimum, maximum : float, optional
        The bounds, in units of the codes.
    region : Tensor or array_like, optional
        As in `steer`.

    Returns
    -------
    Rewrite
        The edit.

    Raises
    ------
    ValueError
        If a concept is not an integer, there is no bound, or they are in the wrong order.
    TypeError
        If `region` is not bool or float.

    Examples
    --------
    >>> clamp(7, maximum=1.5)
    clamp(7, minimum=None, maximum=1.5)
    """
    if minimum is None and maximum is None:
        raise ValueError("clamp needs a bound: give minimum, maximum or both")
    if minimum is not None and maximum is not None and minimum > maximum:
        raise ValueError(f"minimum={minimum} is above maximum={maximum}")
    which = indices_or_all(concepts)
    bounds = f"minimum={minimum}, maximum={maximum}"
    fills = (minimum or 0) > 0 or (maximum or 0) < 0
    return Rewrite(which, lambda codes: codes.values.clamp(minimum, maximum), "clamp", bounds, region_or_none(region), fills)


def add(concepts: Concepts, value: float | Tensor | ArrayLike, region: Region | None = None) -> Rewrite:
    """An edit that adds a number or a map to codes, also where a concept is off.

    Parameters
    ----------
    concepts : int, iterable of int or None
        The concepts; None for all.
    value : float, Tensor or array_like
        A number, or a map ``(*grid)`` or ``(n_samples, *grid)``, in units of the codes. A map on another grid than the codes'
        is resampled by the basis of the codes.
    region : Tensor or array_like, optional
        As in `steer`.

    Returns
    -------
    Rewrite
        The edit. It raises ValueError on codes whose grid or number of samples does not fit the map.

    Raises
    ------
    ValueError
        If a concept is not an integer.
    TypeError
        If `value` is not a number or numbers, or `region` is not bool or float.

    Examples
    --------
    >>> add([1, 2], torch.ones(8, 8))
    add((1, 2), <8 x 8>)
    """
    which = indices_or_all(concepts)
    addend = tensor_of("value", value)

    def change(codes: ConceptCodes) -> Tensor:
        n_dim = codes.values.ndim - 1
        if addend.ndim not in (0, n_dim, n_dim + 1) or (addend.ndim > n_dim and len(addend) != codes.n_samples):
            raise ValueError(
                f"the map to add has shape {tuple(addend.shape)}: give ({n_dim} axes of the grid), or these after "
                f"n_samples={codes.n_samples}"
            )
        part = addend.to(codes.values)
        if addend.ndim:
            part = codes.basis.resample(part, codes.grid)
        return codes.values + (part[codes.sample] if addend.ndim > n_dim else part)

    what = f"<{' x '.join(map(str, addend.shape))}>" if addend.ndim else f"{addend.item():g}"
    return Rewrite(which, change, "add", what, region_or_none(region), fills=True)


def band_filter(concepts: Concepts, low: float = 0.0, high: float | None = None) -> Rewrite:
    """An edit that keeps of codes the wavenumbers from `low` to `high`, both included.

    With A and S the analysis and synthesis of all modes that the code grid resolves, values v become ``S 1[low <= k <= high]
    A v``; without `high`, ``v - S 1[k < low] A v``, so that also what the grid shows beyond these modes is kept, and the
    parts below and above a wavenumber that is no mode's sum to v.

    Parameters
    ----------
    concepts : int, iterable of int or None
        The concepts; None for all.
    low, high : float, optional
        Wavenumbers as the basis counts them (``wavenumbers()``): cycles per domain on a box, degrees on the sphere.

    Returns
    -------
    Rewrite
        The edit. A filtered code may be negative where the code was not.

    Raises
    ------
    ValueError
        If a concept is not an integer or the band is empty.

    Examples
    --------
    >>> band_filter(None, high=4)
    band_filter(None, low=0, high=4)
    """
    if high is not None and low > high:
        raise ValueError(f"no wavenumber is between low={low} and high={high}")
    which = indices_or_all(concepts)

    def change(codes: ConceptCodes) -> Tensor:
        band = codes.basis.resolved_by(codes.grid)
        wavenumbers = band.wavenumbers().to(codes.values.device)
        coefficients = band.analysis(codes.values)
        if high is None:
            return codes.values - band.synthesis(coefficients * (wavenumbers < low), codes.grid)
        return band.synthesis(coefficients * ((wavenumbers >= low) & (wavenumbers <= high)), codes.grid)

    return Rewrite(which, change, "band_filter", f"low={low:g}, high={high}")


def restrict(concepts: Concepts, region: Region) -> Rewrite:
    """An edit that keeps concepts in a region, and switches them off elsewhere.

    Parameters
    ----------
    concepts : int, iterable of int or None
        The concepts; None for all.
    region : Tensor or array_like
        Weights w as in `steer`: codes are multiplied by w.

    Returns
    -------
    Rewrite
        The edit.

    Raises
    ------
    ValueError
        If a concept is not an integer.
    TypeError
        If `region` is not bool or float.

    Examples
    --------
    >>> restrict(7, torch.ones(8, 8) > 0)
    restrict(7, region=<8 x 8>)
    """
    which, inside = indices_or_all(concepts), check_region(region)
    outside = ~inside if inside.dtype == torch.bool else 1 - inside
    return Rewrite(which, lambda codes: torch.zeros_like(codes.values), "restrict", region=outside)


def patch(concepts: Concepts, source: ConceptCodes, sample: int | None = None, region: Region | None = None) -> Rewrite:
    """An edit that replaces codes by those of other samples. A concept that is off there is switched off.

    Parameters
    ----------
    concepts : int, iterable of int or None
        The concepts; None for all.
    source : ConceptCodes
        Where codes come from, such as ``sae.encode(capture(model, site, other_inputs))``; resampled to the grid of the
        codes they replace.
    sample : int, optional
        The sample of `source` that every sample gets its codes from. By default sample i gets those of sample i.
    region : Tensor or array_like, optional
        As in `steer`.

    Returns
    -------
    Rewrite
        The edit. It raises ValueError on codes of another dictionary, or of another number of samples where `sample` is not
        given.

    Raises
    ------
    ValueError
        If a concept is not an integer, or `source` has no such concept or sample.
    TypeError
        If `region` is not bool or float.
    """
    which = indices_or_all(concepts)
    concepts_of(source, which)
    if sample is not None:
        if not 0 <= sample < source.n_samples:
            raise ValueError(f"sample {sample} is out of range: source has samples 0 to {source.n_samples - 1}")
        source = replace(source.keep(source.sample == sample), n_samples=1)
        source = replace(source, sample=torch.zeros_like(source.sample))

    def change(codes: ConceptCodes) -> Tensor:
        if source.n_concepts != codes.n_concepts or (sample is None and source.n_samples != codes.n_samples):
            raise ValueError(
                f"source has {source.n_samples} samples of {source.n_concepts} concepts, the codes {codes.n_samples} of "
                f"{codes.n_concepts}: the dictionary must be the same, and the samples too unless one is named by sample="
            )
        whole = with_rows(source.resample(codes.grid), which)
        wanted = pair_keys(codes.sample if sample is None else torch.zeros_like(codes.sample), codes.concept, codes.n_concepts)
        at = torch.searchsorted(pair_keys(whole.sample, whole.concept, whole.n_concepts), wanted)
        return whole.values.to(codes.values)[at]

    return Rewrite(which, change, "patch", "" if sample is None else f"sample={sample}", region_or_none(region), fills=True)


def compose(*edits: Edit) -> Compose:
    """One edit from several, applied in order.

    Parameters
    ----------
    *edits : callable
        Functions codes -> codes.

    Returns
    -------
    Compose
        The edit.

    Raises
    ------
    TypeError
        If one is not callable.

    Examples
    --------
    >>> compose(ablate(3), steer(7, scale=2.0))
    compose(ablate(3), steer(7, scale=2))
    """
    for edit in edits:
        if not callable(edit):
            raise TypeError(f"an edit is a function codes -> codes; got {type(edit).__name__}")
    return Compose(edits)
