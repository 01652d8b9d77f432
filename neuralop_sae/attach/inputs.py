"""Inputs of operators: batches of every accepted kind, and how a model is called with one."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from math import ceil
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .rules import original_module, rule_of

Inputs = Tensor | Mapping[str, Any] | Dataset[Any] | Iterable[Any]


def iterate_batches(inputs: Inputs, batch_size: int = 32, shared: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Go through inputs of every accepted kind as batches, each a mapping.

    Parameters
    ----------
    inputs : Tensor, mapping of str to Tensor, Dataset, or iterable
        As in `capture`.
    batch_size : int, optional
        Samples per batch for a tensor, a mapping or a data set; batches of an iterable are passed on as they come.
    shared : collection of str, optional
        Entries of a mapping that all samples share, such as a geometry: they are in every batch as they are. Entries
        that are no tensors, and tensors without axes, are shared too. See `shared_arguments`.

    Yields
    ------
    dict
        A new dict per batch; a tensor stands under ``"x"``.

    Raises
    ------
    TypeError
        If the inputs or a batch are of another type.
    ValueError
        If the tensors of a mapping differ in the number of samples, or `batch_size` is not positive.

    Examples
    --------
    >>> [batch["x"].shape[0] for batch in iterate_batches(torch.zeros(5, 1, 8), batch_size=2)]
    [2, 2, 1]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if isinstance(inputs, (Tensor, Mapping)):
        whole = _as_batch(inputs)
        batched = _batched(whole, shared)
        lengths = {key: len(value) for key, value in batched.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"a mapping of inputs holds tensors with the same number of samples; got {lengths}: "
                "name those that all samples share, as in shared=['input_geom']"
            )
        for start in range(0, n_samples(whole, shared), batch_size):
            yield whole | {key: value[start : start + batch_size] for key, value in batched.items()}
    elif _is_numbered(inputs):
        for batch in DataLoader(inputs, batch_size=batch_size):  # type: ignore[arg-type]  # a data set
            yield _as_batch(batch)
    elif isinstance(inputs, Iterable) and not isinstance(inputs, (str, bytes)) and not hasattr(inputs, "__array__"):
        for batch in inputs:
            yield _as_batch(batch)
    else:
        way = ": use torch.from_numpy, or neuralop_sae.from_xarray for coordinates" if hasattr(inputs, "__array__") else ""
        raise TypeError(
            f"inputs must be a tensor, a mapping, a data set or an iterable of batches; got {type(inputs).__name__}{way}"
        )


def call_model(model: nn.Module, batch: Mapping[str, Any], device: torch.device | str | None = None) -> Any:
    """Call a model with the entries of a batch that its ``forward`` takes by name.

    ``"x"`` stands for the first argument of a model that has no argument ``x``. Entries that the model does not take,
    such as the target ``"y"`` of most operators, are left out.

    Parameters
    ----------
    model : nn.Module
        The operator; one that passes all arguments on, as UQNO does, is called by the names of the inner operator if
        its `SiteRule` says which.
    batch : mapping
        Arguments by name.
    device : torch.device or str, optional
        Where tensors are moved; by default they stay.

    Returns
    -------
    object
        What the model returns.

    Raises
    ------
    ValueError
        If an argument that the model requires is missing; the message lists what it takes.

    Examples
    --------
    >>> call_model(nn.Linear(3, 2), {"x": torch.zeros(4, 3), "y": torch.zeros(4, 2)}).shape
    torch.Size([4, 2])
    """
    signature, names = _arguments(model)
    entries = dict(batch)
    if "x" in entries and "x" not in names:
        first = names[0] if names else None
        if first is None:
            return model(_moved(entries["x"], device))
        entries.setdefault(first, entries.pop("x"))
    taken = {name: _moved(entries[name], device) for name in names if name in entries}
    try:
        bound = signature.bind(**taken)
    except TypeError as error:
        name = type(original_module(model)).__name__
        raise ValueError(f"{name} takes the inputs {', '.join(names)}; got the keys {sorted(batch)}: {error}") from None
    return model(*bound.args, **bound.kwargs)


def shared_arguments(model: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of a model that all samples of a batch share, by its `SiteRule`.

    Parameters
    ----------
    model : nn.Module
        The operator.

    Returns
    -------
    tuple of str
        The names; empty for an operator without a rule.
    """
    module = _named_module(model)
    rule = rule_of(module)
    return () if rule is None else rule.shared_by(module)


def n_samples(batch: Mapping[str, Any], shared: Collection[str] = ()) -> int:
    """Number of samples in a batch: the length of ``"x"``, or of its first tensor that is not shared; 1 if all are.

    Parameters
    ----------
    batch : mapping
        Arguments by name.
    shared : collection of str, optional
        As in `iterate_batches`.

    Returns
    -------
    int
        The number of samples.
    """
    batched = _batched(batch, shared)
    if not batched:
        return 1
    first = batched["x"] if "x" in batched else next(iter(batched.values()))
    return len(first)


def first_samples(batch: Mapping[str, Any], n: int, shared: Collection[str] = ()) -> dict[str, Any]:
    """The first samples of a batch; a batch that has no more is returned as it is.

    Parameters
    ----------
    batch : mapping
        Arguments by name.
    n : int
        Number of samples.
    shared : collection of str, optional
        As in `iterate_batches`.

    Returns
    -------
    dict
        The smaller batch.
    """
    if n_samples(batch, shared) <= n:
        return dict(batch)
    return dict(batch) | {key: value[:n] for key, value in _batched(batch, shared).items()}


def n_batches(inputs: Inputs, batch_size: int, shared: Collection[str] = ()) -> int | None:
    """Number of batches of `iterate_batches`, for a progress bar; None if it is not known beforehand.

    Parameters
    ----------
    inputs, batch_size, shared
        As in `iterate_batches`.

    Returns
    -------
    int or None
        The number.
    """
    if isinstance(inputs, Tensor):
        return ceil(len(inputs) / batch_size)
    if isinstance(inputs, Mapping):
        return ceil(n_samples(inputs, shared) / batch_size)
    if _is_numbered(inputs):
        return ceil(length_hint(inputs) / batch_size) or None
    return length_hint(inputs) or None


def _is_numbered(inputs: Any) -> bool:
    """Whether the inputs are a data set whose samples are asked for by number."""
    return isinstance(inputs, Dataset) and not isinstance(inputs, Iterable)


def _named_module(model: nn.Module) -> nn.Module:
    """The module whose ``forward`` names the arguments of a model."""
    module = original_module(model)
    rule = rule_of(module)
    if rule is None or not rule.called_like:
        return module
    return _named_module(module.get_submodule(rule.called_like))


def _arguments(model: nn.Module) -> tuple[inspect.Signature, list[str]]:
    signature = inspect.signature(_named_module(model).forward)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return signature, [name for name, parameter in signature.parameters.items() if parameter.kind not in kinds]


def _batched(batch: Mapping[str, Any], shared: Collection[str]) -> dict[str, Tensor]:
    return {k: value for k, value in batch.items() if isinstance(value, Tensor) and value.ndim and k not in shared}


def _moved(value: Any, device: torch.device | str | None) -> Any:
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(entry, device) for key, entry in value.items()}
    return value


def _as_batch(batch: Any) -> dict[str, Any]:
    """A new dict, because neuralop's data processors write into the one they are given."""
    if isinstance(batch, Tensor):
        return {"x": batch}
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"a batch must be a tensor or a mapping of the model's inputs by name; got {type(batch).__name__}: "
            "pass for example ({'x': b[0]} for b in loader)"
        )
    if hasattr(batch, "data_vars"):
        raise TypeError("an xarray Dataset becomes the input of an operator by neuralop_sae.from_xarray")
    if not isinstance(batch.get("x"), (Tensor, type(None))):
        raise TypeError(f"the model's input 'x' must be a tensor; got {type(batch['x']).__name__}")
    return dict(batch)


def preprocessed(batch: dict[str, Any], data_processor: Any) -> dict[str, Any]:
    """A batch as neuralop's data processor hands it to the model; ValueError if the processor misses an entry."""
    try:
        return data_processor.preprocess(batch)
    except KeyError as error:
        name, keys = type(data_processor).__name__, sorted(batch)
        raise ValueError(f"{name} needs the entry {error}; got the keys {keys}") from error


def call_processed(model: Any, batch: dict[str, Any], data_processor: Any) -> tuple[Tensor, dict[str, Any]]:
    """Output of a model for a batch, and the batch, as they leave neuralop's data processor, if there is one."""
    if data_processor is not None:
        batch = preprocessed(batch, data_processor)
    output = call_model(model, batch, next(model.parameters()).device)
    return (output, batch) if data_processor is None else data_processor.postprocess(output, batch)
