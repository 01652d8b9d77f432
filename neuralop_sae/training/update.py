"""One update of a model's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers.concept_layer import ConceptLayer
from ..layers.rows import RowGradient, RowGradients
from ..models.base import SAE
from .distributed import Single
from .row_adam import CHUNK_BYTES, RowAdam


class Update:
    """Adam on all parameters of a model, or of this rank's part of it: torch's fused one where a gradient or a part of it is
    whole, :class:`RowAdam` where all comes by row, so that concepts which a batch did not use cost nothing. One norm clips
    both.

    Parameters
    ----------
    sae : SAE
        The model.
    parallel : Single
        The ranks that share the gradients.
    gradient_clip : float
        Largest norm of the whole gradient.
    spectral_rate : float
        Learning rate of spectral kernels over that of all other parameters.
    """

    def __init__(self, sae: SAE, parallel: Single, gradient_clip: float, spectral_rate: float = 1.0) -> None:
        self.parallel, self.gradient_clip = parallel, gradient_clip
        self.names, self.parameters = map(list, zip(*sae.named_parameters(), strict=True))
        self.views = [real_view(parameter) for parameter in self.parameters]
        convolutions = [module.conv for module in sae.modules() if isinstance(module, ConceptLayer)]
        spectral = {p for conv in convolutions for name, p in conv.named_parameters() if name != "bias"}
        rates = [spectral_rate if parameter in spectral else 1.0 for parameter in self.parameters]
        self.optimizer = torch.optim.Adam(_groups(self.views, rates), fused=True)
        self.row_optimizer = RowAdam(_groups(self.parameters, rates))

    def step(self, loss: Tensor, rows: RowGradients, learning_rate: float) -> None:
        """Follow the gradient of a loss; `rows` collects what of it comes by row."""
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        rows = self.parallel.exchange_rows(rows)
        rows.join_whole()
        by_row = list(rows.sums())
        factor = self.clip(by_row)
        for group in (*self.optimizer.param_groups, *self.row_optimizer.param_groups):
            group["lr"] = learning_rate * group["rate"]
        self.optimizer.step()
        self.row_optimizer.step(rows=by_row, scale=factor)

    def clip(self, by_row: list[RowGradient]) -> Tensor:
        """Scale the whole gradients to the largest allowed norm; give the factor, which those by row still need."""
        for parameter, view in zip(self.parameters, self.views, strict=True):
            view.grad = None if parameter.grad is None else real_view(parameter.grad, like=parameter)
        gradients = [view.grad for view in self.views if view.grad is not None]
        zero = self.views[0].new_zeros(())
        shared = sum((gradient.square().sum() for gradient in gradients), zero)
        mine = sum((gradient.square_norm(CHUNK_BYTES) for gradient in by_row), zero)
        norm = (shared + self.parallel.sum_of_shards(mine)).sqrt()
        factor = (self.gradient_clip / norm.clamp_min(1e-6)).clamp_max(1.0)
        torch._foreach_mul_(gradients, factor)
        return factor

    def is_finite(self) -> bool:
        """Whether no parameter on any rank holds a NaN or Inf; waits for the device."""
        total = torch.stack([view.detach().sum() for view in self.views]).sum()
        return bool(self.parallel.mean_of_data(self.parallel.sum_of_shards(total)).isfinite())

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, by name."""
        state: dict[str, Tensor] = {}
        for number, (view, parameter) in enumerate(zip(self.views, self.parameters, strict=True)):
            for kind, moments in self._moments(view, parameter).items():
                state |= {f"{kind}.{number}.{name}": value for name, value in moments.items()}
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state` gave, among other tensors."""
        for number, (view, parameter) in enumerate(zip(self.views, self.parameters, strict=True)):
            for kind, moments in self._moments(view, parameter).items():
                prefix = f"{kind}.{number}."
                moments |= {name[len(prefix) :]: t.to(view.device) for name, t in state.items() if name.startswith(prefix)}

    def axes(self, concept_axes: dict[str, int]) -> dict[str, int]:
        """Which tensors of :meth:`state` are divided between shards, and along which axis."""
        divided = [number for number, name in enumerate(self.names) if name in concept_axes]
        moments = ("exp_avg", "exp_avg_sq", "steps")
        return {f"row_optimizer.{number}.{moment}": 0 for number in divided for moment in moments}

    def _moments(self, view: Tensor, parameter: Tensor) -> dict[str, dict[str, Tensor]]:
        return {"optimizer": self.optimizer.state[view], "row_optimizer": self.row_optimizer.state[parameter]}


def _groups(tensors: Sequence[Tensor], rates: Sequence[float]) -> list[dict[str, Any]]:
    """Groups of an optimiser, one for each rate."""
    members: dict[float, list[Tensor]] = {}
    for tensor, rate in zip(tensors, rates, strict=True):
        members.setdefault(rate, []).append(tensor)
    return [{"params": group, "rate": rate} for rate, group in members.items()]


def real_view(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """The numbers of a tensor as a contiguous real tensor that shares its memory: what fused Adam runs over. Weights are
    laid out with permuted strides; a gradient in another layout than its parameter (`like`) is copied into it."""
    like = tensor if like is None else like
    order = sorted(range(like.ndim), key=like.stride, reverse=True)
    view = tensor.detach().permute(order).contiguous()
    return torch.view_as_real(view) if view.is_complex() else view
