"""Does the operator still work through the concepts? Its error with activations replaced by their reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attach.capture import capture
from ..attach.hooks import eval_mode
from ..attach.inputs import call_processed, iterate_batches, shared_arguments
from ..attach.interventions import replace_activation, splice
from ..layers.basis import SpectralBasis
from ..metrics import loss_recovered
from ..models.base import SAE

Loss = Callable[[Tensor, Tensor], Tensor]


def mean_relative_l2(prediction: Tensor, target: Tensor, quadrature: Tensor | None = None) -> Tensor:
    """``|prediction - target| / |target|`` of each sample, ``(B, channels, *grid)`` -> ``(B,)``; norms by a quadrature of the
    grid, or with equal weights."""
    weights = 1.0 if quadrature is None else quadrature
    error = ((prediction - target).square() * weights).flatten(1).sum(1).sqrt()
    return error / (target.square() * weights).flatten(1).sum(1).sqrt().clamp_min(1e-20)


@torch.no_grad()
def faithfulness(
    model: nn.Module,
    site: str,
    sae: SAE,
    loader: Mapping[str, Tensor] | Iterable[Any],
    *,
    loss: Loss | None = None,
    data_processor: Any = None,
    batch_size: int = 16,
) -> dict[str, float]:
    """Loss of an operator as it is, with one site spliced by the SAE's reconstruction, and with the site ablated.

    Parameters
    ----------
    model : nn.Module
        The operator; called as ``model(x)``.
    site : str
        A name from :func:`neuralop_sae.find_sites`.
    sae : SAE
        Trained on that site.
    loader : mapping or iterable of mappings
        Batches with ``"x"`` and ``"y"``, such as neuralop's data loaders; or one mapping with all samples.
    loss : callable
        ``(prediction, target)`` -> loss per sample ``(B,)``, or the batch's mean ``()``. By default relative L2, by the
        quadrature of the SAE's basis where the operator's output has as many dimensions: true to the area on the sphere.
    data_processor : DataProcessor, optional
        neuralop's: batches are preprocessed, and predictions and targets postprocessed, in eval mode.
    batch_size : int
        For a mapping with all samples.

    Returns
    -------
    dict
        ``loss_clean``, ``loss_spliced``, ``loss_zero_ablated``, ``loss_mean_ablated`` (every point set to the mean of its
        channel over data and domain), ``loss_recovered`` (against zero ablation, see
        :func:`neuralop_sae.metrics.loss_recovered`) and ``loss_recovered_mean`` (against mean ablation).

    Raises
    ------
    ValueError
        If a batch has no target ``"y"`` and no processor makes one, or the site is unknown.
    """
    batches = list(iterate_batches(loader, batch_size, shared_arguments(model)))
    for batch in batches:
        if "y" not in batch and data_processor is None:
            raise ValueError(f"batches need the target under 'y'; got the keys {sorted(batch)}")
    activations = capture(model, site, batches, data_processor=data_processor)
    steps, grid = activations.shape[2 : -sae.basis.n_dim], activations.shape[-sae.basis.n_dim :]
    weights = sae.basis.quadrature(grid, like=activations).double()
    mean = (activations.double() * weights).flatten(2).sum(2).mean(0) / math.prod(steps)
    conditions: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "clean": nullcontext,
        "spliced": lambda: splice(model, site, sae, keep_error=False),
        "zero_ablated": lambda: replace_activation(model, site, torch.zeros_like),
        "mean_ablated": lambda: replace_activation(model, site, lambda x: fill(x, mean)),
    }
    loss = loss or partial(_relative_l2_on, sae.basis)
    losses = {}
    processors = [data_processor] if isinstance(data_processor, nn.Module) else []
    with eval_mode(model, sae, *processors):
        for name, condition in conditions.items():
            with condition():
                losses[f"loss_{name}"] = _mean_loss(model, batches, loss, data_processor)
    clean, spliced = losses["loss_clean"], losses["loss_spliced"]
    return {
        **losses,
        "loss_recovered": loss_recovered(clean, spliced, losses["loss_zero_ablated"]),
        "loss_recovered_mean": loss_recovered(clean, spliced, losses["loss_mean_ablated"]),
    }


def _relative_l2_on(basis: SpectralBasis, prediction: Tensor, target: Tensor) -> Tensor:
    grid = target.shape[2:]
    return mean_relative_l2(prediction, target, basis.quadrature(grid, like=target) if len(grid) == basis.n_dim else None)


def fill(x: Tensor, mean: Tensor) -> Tensor:
    """A field like x ``(B, channels, *grid)`` that has a mean ``(channels,)`` at every point."""
    return mean.to(x).view(-1, *(1,) * (x.ndim - 2)).expand_as(x).contiguous()


def _mean_loss(model: nn.Module, batches: list[dict[str, Any]], loss: Loss, data_processor: Any) -> float:
    total, n = 0.0, 0
    for prediction, target in _predictions(model, batches, data_processor):
        value = loss(prediction, target).double()
        total += float(value.sum() if value.ndim else value * len(target))
        n += len(target)
    return total / n


def _predictions(model: nn.Module, batches: list[dict[str, Any]], data_processor: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        prediction, sample = call_processed(model, dict(batch), data_processor)
        yield prediction, sample["y"].to(prediction.device)
