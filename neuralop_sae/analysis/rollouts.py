"""An operator applied to its own output, again and again: how far it gets by itself, and through the concepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..attach.hooks import eval_mode
from ..attach.interventions import splice
from ..models.base import SAE
from .drawing import PALETTE, subplots
from .faithfulness import mean_relative_l2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = {"clean": "operator", "spliced": "through the concepts", "persistence": "no change"}


@torch.no_grad()
def rollout(model: nn.Module, x: Tensor, n_steps: int) -> Tensor:
    """A state and what the operator makes of it step by step.

    Parameters
    ----------
    model : nn.Module
        An operator whose output can be its next input.
    x : Tensor
        States ``(B, channels, *grid)``.
    n_steps : int
        How often it is applied.

    Returns
    -------
    Tensor
        ``(B, n_steps + 1, channels, *grid)``, the first being `x`.
    """
    states = [x]
    with eval_mode(model):
        for _ in range(n_steps):
            states.append(model(states[-1]))
    return torch.stack(states, 1)


def rollout_errors(model: nn.Module, site: str, sae: SAE, truth: Tensor) -> dict[str, Tensor]:
    """Errors of rollouts against true trajectories.

    Parameters
    ----------
    model : nn.Module
        The operator.
    site, sae : str, SAE
        Where the SAE stands in, at every step, with nothing of what it does not explain.
    truth : Tensor
        True trajectories ``(B, n_steps + 1, channels, *grid)``, on the device of the model.

    Returns
    -------
    dict
        ``"clean"`` (the operator as it is), ``"spliced"`` (through the concepts) and ``"persistence"`` (the first state for
        ever): relative L2 by the quadrature of the SAE's basis, the mean over trajectories at each step, ``(n_steps,)``.
    """
    x, n_steps = truth[:, 0], truth.shape[1] - 1
    states = {"clean": rollout(model, x, n_steps)}
    with splice(model, site, sae, keep_error=False), eval_mode(sae):
        states["spliced"] = rollout(model, x, n_steps)
    states["persistence"] = x[:, None].expand_as(truth)
    weights = sae.basis.quadrature(truth.shape[3:], like=truth)
    errors = {
        name: mean_relative_l2(values.flatten(0, 1), truth.flatten(0, 1), weights).unflatten(0, truth.shape[:2]).mean(0)[1:]
        for name, values in states.items()
    }
    return {name: values.cpu() for name, values in errors.items()}


def rollout_figure(errors: Mapping[str, Tensor], times: Tensor, unit: str) -> Figure:
    """Errors ``(n_steps,)`` of rollouts, as :func:`rollout_errors` returns them, against the time of each step."""
    figure, axes = subplots(1, 1, 4.2, 2.8)
    ax = axes[0, 0]
    for color, (name, values) in zip(PALETTE, errors.items(), strict=False):
        ax.plot(times, values, label=_LABELS.get(name, name), color=color, marker=".")
    ax.set_xlabel(f"time of the rollout ({unit})")
    ax.set_ylabel("relative L2 error")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return figure
