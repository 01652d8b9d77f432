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
    of several models, in one pass. A deviation below the model's precision is 0. ValueError if the activations do not fit a
    model or hold a NaN or Inf."""
    moments = [_Moments() for _ in saes]
    for index in torch.arange(len(activations)).split(batch_size):
        batch = activations[index]
        for sae, each in zip(saes, moments, strict=True):
            x = batch.to(sae.mean.device)
            sae.normalize(x)
            x = x.double()
            each.update(x, sae.basis.quadrature(x.shape[2:], like=x))
    return [each.finish(torch.finfo(sae.dtype).eps, like=sae.mean) for sae, each in zip(saes, moments, strict=True)]


class _Moments:
    """Sums about the mean of the first batch: about zero, those of a large mean would hide a small deviation."""

    def __init__(self) -> None:
        self._n = 0
        self._first: Tensor | None = None
        self._sum = self._square = torch.zeros(())

    def update(self, x: Tensor, weights: Tensor) -> None:
        """Add fields ``(B, channels, *grid)``."""
        means = (x * weights).flatten(2).sum(-1).mean(0)
        self._first = means if self._first is None else self._first
        apart = x - self._first.view(-1, *(1,) * (x.ndim - 2))
        self._sum = self._sum + (apart * weights).flatten(2).sum((0, 2))
        self._square = self._square + (apart.square() * weights).flatten(2).sum((0, 2))
        self._n += len(x)

    def finish(self, precision: float, *, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and root mean square."""
        assert self._first is not None
        apart = self._sum / self._n
        mean, scale = self._first + apart, (self._square / self._n - apart.square()).mean().clamp_min(0).sqrt()
        known = scale > precision * mean.square().mean().sqrt()
        return mean.to(like), (scale * known).to(like)
