"""What inputs with coordinates say about the activations that an operator makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler, Subset

from ..attach.rules import original_module
from ..layers.basis import SpectralBasis
from ..layers.spherical import SphericalBasis
from .coordinates import basis_of
from .labelled import LabelledFields
from .labels import Labels
from .place import Place
from .samples import is_by_resolution

__all__ = ["check_order", "labels_of", "place_of"]


def labels_of(inputs: Any, time: Any, trajectory: Any, n_samples: int | None) -> Labels:
    """Checked labels of the samples: those given, else those of `LabelledFields`, of part of them, or of a loader of them."""
    parts = _parts(inputs)
    if time is None and parts and all(fields.time is not None for fields, _ in parts):
        time = np.concatenate([np.asarray(fields.time)[rows] for fields, rows in parts])
    if trajectory is None and parts and all(fields.trajectory is not None for fields, _ in parts):
        trajectory = np.concatenate([np.asarray(fields.trajectory)[rows] for fields, rows in parts])
    return Labels.of(time, trajectory, n_samples)


def place_of(
    model: nn.Module,
    inputs: Any,
    basis: SpectralBasis | None = None,
    lengths: Sequence[float] | None = None,
    *,
    padded: bool = False,
) -> Place:
    """Where the activations of a model are: what is given, else what the model and `LabelledFields` as its inputs say. With
    its padding kept, a grid is not that of the inputs.

    Raises
    ------
    ValueError
        If the model works on another grid of the sphere than the fields are on.
    """
    fields = next((each for each, _ in _parts(inputs)), None)
    of_model = basis or basis_of(model)
    own = None if lengths is None else tuple(float(length) for length in lengths)
    if fields is None:
        return Place(of_model, own)
    if basis is None:
        _check_grid(model, of_model, fields)
    on_sphere = isinstance(of_model, SphericalBasis)
    if padded:
        return Place(of_model or fields.basis, own)
    other = own is not None and (fields.lengths is None or not np.allclose(own, fields.lengths))
    points = {} if other else {name: tuple(map(float, values)) for name, values in fields.coordinates.items()}
    return Place(of_model or fields.basis, own or (None if on_sphere else fields.lengths), points)


def check_order(inputs: Any) -> None:
    """ValueError if a loader brings `LabelledFields` in another order than that of their labels."""
    loaders = inputs.values() if is_by_resolution(inputs) else [inputs]
    for loader in loaders:
        if not isinstance(loader, DataLoader) or not _parts(loader):
            continue
        if loader.drop_last or not isinstance(loader.sampler, SequentialSampler):
            raise ValueError(
                "the loader shuffles the fields or leaves some out, and their times would be those of others: pass the fields "
                "themselves, or a loader without shuffle and drop_last"
            )


def _parts(inputs: Any) -> list[tuple[LabelledFields, np.ndarray]]:
    """The labelled fields that the samples are from in order, with their numbers there; none if some are not labelled."""
    if is_by_resolution(inputs):
        found = [_parts(part) for part in inputs.values()]
        return [each for parts in found for each in parts] if all(found) else []
    if isinstance(inputs, DataLoader):
        return _parts(inputs.dataset)
    if isinstance(inputs, Subset):
        return [(fields, rows[np.asarray(inputs.indices, dtype=int)]) for fields, rows in _parts(inputs.dataset)]
    return [(inputs, np.arange(len(inputs)))] if isinstance(inputs, LabelledFields) else []


def _check_grid(model: nn.Module, basis: SpectralBasis | None, fields: LabelledFields) -> None:
    if not isinstance(basis, SphericalBasis) or fields.kind == basis.grid:
        return
    if fields.kind == "box" and not fields.coordinates:
        return
    on = fields.basis.grid if isinstance(fields.basis, SphericalBasis) else basis.grid
    raise ValueError(
        f"{type(original_module(model)).__name__} works on the grid {basis.grid!r}, and the fields are on {fields.kind!r}: "
        f"interpolate the fields to {basis.grid!r}, or say where the points are taken to be, as in "
        f"basis=SphericalBasis((1, 2), {on!r})"
    )
