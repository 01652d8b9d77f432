"""Inputs of an operator as batches in order, or sample by sample."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ..attach.hooks import eval_mode
from ..attach.inputs import iterate_batches, n_samples, preprocessed

__all__ = ["batch_of", "batches_of", "n_known", "prepared"]


def batches_of(inputs: Any, batch_size: int, shared: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Inputs of every kind as batches in order.

    Parameters
    ----------
    inputs : Tensor, mapping, Dataset or iterable
        What `capture` takes; a data set of torch or neuralop, whose samples are put together; or a mapping of resolutions
        (numbers or tuples) to inputs, such as neuralop's test loaders, one after the other.
    batch_size : int
        Samples per batch, where the inputs are not batches already.
    shared : collection of str
        Entries that all samples share.
    """
    if is_by_resolution(inputs):
        return chain.from_iterable(batches_of(part, batch_size, shared) for part in inputs.values())
    if isinstance(inputs, IterableDataset):
        inputs = DataLoader(inputs, batch_size=batch_size)
    return iterate_batches(inputs, batch_size, shared)


def is_by_resolution(inputs: Any) -> bool:
    """Whether the inputs are a mapping of resolutions to inputs."""
    return isinstance(inputs, Mapping) and bool(inputs) and not any(isinstance(key, str) for key in inputs)


def n_known(inputs: Any, shared: Collection[str] = ()) -> int | None:
    """Number of samples, where the inputs say it beforehand."""
    if is_by_resolution(inputs):
        parts = [n_known(part, shared) for part in inputs.values()]
        return None if None in parts else sum(part or 0 for part in parts)
    if isinstance(inputs, DataLoader) and not inputs.drop_last:
        inputs = inputs.dataset
    if isinstance(inputs, Mapping):
        return n_samples(inputs, shared)
    return len(inputs) if isinstance(inputs, (Tensor, Dataset)) and isinstance(inputs, Sized) else None


def batch_of(inputs: Any, rows: Tensor, shared: Collection[str] = ()) -> dict[str, Any]:
    """The samples `rows` ``(B,)`` of a tensor, a mapping of tensors or a data set, as one batch.

    Raises
    ------
    TypeError
        If the inputs have no order of samples.
    """
    if isinstance(inputs, DataLoader):
        inputs = inputs.dataset
    if isinstance(inputs, Tensor):
        return {"x": inputs[rows]}
    if isinstance(inputs, Mapping) and not is_by_resolution(inputs):
        batched = {key for key, value in inputs.items() if isinstance(value, Tensor) and value.ndim} - set(shared)
        return {key: value[rows] if key in batched else value for key, value in inputs.items()}
    if not isinstance(inputs, Dataset) or isinstance(inputs, IterableDataset):
        raise TypeError(
            f"samples are asked for by number: inputs must be a tensor, a mapping of tensors, or a data set with numbered "
            f"samples, not {type(inputs).__name__}; ActivationStore.write takes batches"
        )
    numbers = rows.tolist()
    together = getattr(inputs, "__getitems__", None)
    batch = default_collate(together(numbers) if together else [inputs[number] for number in numbers])
    return next(iterate_batches([batch]))


@torch.no_grad()
def prepared(batches: Iterable[dict[str, Any]], data_processor: Any) -> Iterator[dict[str, Any]]:
    """Batches as neuralop's data processor leaves them, in eval mode; ValueError if it misses an entry."""
    for batch in batches:
        if data_processor is not None:
            with eval_mode(*([data_processor] if isinstance(data_processor, nn.Module) else [])):
                batch = preprocessed(batch, data_processor)
        yield batch
