"""Statistics of activations that training needs beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..models.base import SAE


class Activations(Protocol):
    """Anything with a length that gives fields ``(B, channels, *grid)`` for a tensor of indices: a tensor, a store."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


def channel_statistics(saes: Sequence[SAE], activations: Activations, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Mean of each channel ``(channels,)`` and root mean square of the centred activations ``()``, by the quadrature of each
    of several models, in one pass. ValueError if the activations do not fit a model or hold a NaN or Inf."""
    totals = [torch.zeros((), dtype=torch.float64) for _ in saes]
    squares = [torch.zeros((), dtype=torch.float64) for _ in saes]
    for index in torch.arange(len(activations)).split(batch_size):
        batch = activations[index]
        for number, sae in enumerate(saes):
            x = batch.to(sae.mean.device)
            sae.normalize(x)
            x = x.double()
            weights = sae.basis.quadrature(x.shape[2:], like=x)
            totals[number] = totals[number] + (x * weights).flatten(2).sum((0, 2)).cpu()
            squares[number] = squares[number] + (x.square() * weights).flatten(2).sum((0, 2)).cpu()
    means = [total / len(activations) for total in totals]
    scales = [
        (square / len(activations) - mean.square()).mean().clamp_min(0).sqrt()
        for square, mean in zip(squares, means, strict=True)
    ]
    return [(mean.to(sae.mean), scale.to(sae.mean)) for sae, mean, scale in zip(saes, means, scales, strict=True)]
