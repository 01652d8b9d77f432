"""An operator applied to its own output, again and again: by itself, through the concepts, with edits on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..attach.hooks import eval_mode
from ..attach.interventions import replace_activation, splice
from ..attach.rewrite import Edit
from ..metrics import loss_recovered
from ..models.base import SAE
from .drawing import PALETTE, subplots
from .faithfulness import fill, mean_relative_l2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = {
    "clean": "operator",
    "spliced": "through the concepts",
    "zero_ablated": "site set to zero",
    "mean_ablated": "site set to its mean",
    "persistence": "no change",
}
_RECOVERED = {"loss_recovered": "against zero", "loss_recovered_mean": "against the mean"}


@dataclass(frozen=True, eq=False)
class Scheduled:
    """An edit that depends on the step of a rollout; made by `during` and `ramp`, or from a function of your own.

    Parameters
    ----------
    at : callable
        Step 0, 1, ... -> the edit of this step, or None for none.
    """

    at: Callable[[int], Edit | None]


def during(edit: Edit, start: int = 0, stop: int | None = None) -> Scheduled:
    """An edit that acts in some steps of a rollout only.

    Parameters
    ----------
    edit : callable
        The edit.
    start, stop : int, optional
        It acts in the steps ``start <= step < stop``; to the end by default. Step 0 makes the second state.

    Returns
    -------
    Scheduled
        For `rollout`.

    Raises
    ------
    ValueError
        If it would act in no step.
    """
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"no step is from start={start} to before stop={stop}: steps count from 0, and stop is left out")
    return Scheduled(lambda step: edit if start <= step and (stop is None or step < stop) else None)


def ramp(edit: Callable[[float], Edit], first: float, last: float, start: int, stop: int) -> Scheduled:
    """An edit whose dose goes evenly from one value to another, and stays there.

    Parameters
    ----------
    edit : callable
        Dose -> edit, such as ``lambda scale: steer(7, scale)``.
    first, last : float
        The dose up to step `start` and from step `stop` on.
    start, stop : int
        Steps, counted from 0.

    Returns
    -------
    Scheduled
        For `rollout`.

    Raises
    ------
    ValueError
        If `stop` is not after `start`.

    Examples
    --------
    >>> from neuralop_sae.attach.edits import steer
    >>> fading = ramp(lambda scale: steer(7, scale), 1.0, 0.0, start=2, stop=6)
    >>> fading.at(0), fading.at(3), fading.at(9)
    (steer(7, scale=1), steer(7, scale=0.75), steer(7, scale=0))
    """
    if start < 0 or stop <= start:
        raise ValueError(f"a ramp needs steps 0 <= start < stop; got start={start}, stop={stop}")
    return Scheduled(lambda step: edit(first + (last - first) * min(max((step - start) / (stop - start), 0.0), 1.0)))


@torch.no_grad()
def rollout(
    model: nn.Module,
    x: Tensor,
    n_steps: int,
    *,
    site: str | None = None,
    sae: SAE | None = None,
    edits: Edit | Scheduled | Sequence[Edit | Scheduled] = (),
    keep_error: bool = True,
) -> Tensor:
    """A state and what the operator makes of it step by step, with concepts edited on the way if asked.

    Parameters
    ----------
    model : nn.Module
        An operator whose output can be its next input.
    x : Tensor
        States ``(B, channels, *grid)``.
    n_steps : int
        How often it is applied.
    site, sae : str, SAE, optional
        Where an SAE is spliced in; see :func:`neuralop_sae.splice`.
    edits : callable, Scheduled or sequence of these, optional
        Edits in the order in which they act, in every step or by a schedule of their own (`during`, `ramp`).
    keep_error : bool, optional
        Whether to keep what the SAE does not explain.

    Returns
    -------
    Tensor
        ``(B, n_steps + 1, channels, *grid)``, the first being `x`.

    Raises
    ------
    ValueError
        If the site is unknown, only one of `site` and `sae` is given or edits without them, `n_steps` is negative, or what the
        operator makes has not the shape of the state.
    TypeError
        If an edit is none.

    Examples
    --------
    >>> clean = rollout(model, x, 20)  # doctest: +SKIP
    >>> kick = during(inject(7, (0.3, 0.7), width=0.05), 0, 1)  # doctest: +SKIP
    >>> kicked = rollout(model, x, 20, site=site, sae=sae, edits=kick)  # doctest: +SKIP
    """
    chain = (edits,) if callable(edits) or not isinstance(edits, Iterable) else tuple(edits)
    if (site is None) != (sae is None) or (chain and site is None):
        raise ValueError(f"edits act on the codes of an SAE at a site: give both; got site={site!r}, sae={type(sae).__name__}")
    for edit in chain:
        if not callable(edit) and not isinstance(edit, Scheduled):
            raise TypeError(f"an edit is a function codes -> codes, or made by during or ramp; got {type(edit).__name__}")
    if n_steps < 0:
        raise ValueError(f"n_steps is at least 0, got {n_steps}")
    states = [x]
    with eval_mode(model):
        for step in range(n_steps):
            found = (edit.at(step) if isinstance(edit, Scheduled) else edit for edit in chain)
            now = [edit for edit in found if edit is not None]
            with nullcontext() if site is None else splice(model, site, sae, now, keep_error):
                states.append(model(states[-1]))
            if states[-1].shape != x.shape:
                raise ValueError(
                    f"the operator makes {tuple(states[-1].shape)} of a state {tuple(x.shape)}: its output is not its next "
                    "input; wrap it in a module that returns the whole next state"
                )
    return torch.stack(states, 1)


def rollout_errors(model: nn.Module, site: str, sae: SAE, truth: Tensor) -> dict[str, Tensor]:
    r"""Errors of rollouts against true trajectories, and how much of what the site gives them the concepts keep.

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
        ``"clean"`` (the operator as it is), ``"spliced"`` (through the concepts), ``"zero_ablated"`` (the activation is zero),
        ``"mean_ablated"`` (at every point the mean of its channel, over the true states that have a next one, and the domain)
        and ``"persistence"`` (the first state for ever): relative L2 by the quadrature of the SAE's basis, the mean over
        trajectories at each step, ``(n_steps,)``. ``"loss_recovered"`` and ``"loss_recovered_mean"`` of these errors, against
        zero and mean ablation at the same step: :math:`(e_{ablated} - e_{spliced}) / (e_{ablated} - e_{clean})`, NaN where
        ablation does not hurt.

    Raises
    ------
    ValueError
        If the truth has not these axes, or no step.
    """
    if truth.ndim != sae.basis.n_dim + 3 or truth.shape[1] < 2:
        raise ValueError(
            f"truth is (B, n_steps + 1, channels, *grid), a step at least and a grid of {sae.basis.n_dim} axes; got "
            f"{tuple(truth.shape)}"
        )
    x, n_steps = truth[:, 0], truth.shape[1] - 1
    states = {"clean": rollout(model, x, n_steps)}
    states["spliced"] = rollout(model, x, n_steps, site=site, sae=sae, keep_error=False)
    with replace_activation(model, site, torch.zeros_like):
        states["zero_ablated"] = rollout(model, x, n_steps)
    mean = _mean_activation(model, site, sae, truth[:, :-1])
    with replace_activation(model, site, lambda activation: fill(activation, mean)):
        states["mean_ablated"] = rollout(model, x, n_steps)
    states["persistence"] = x[:, None].expand_as(truth)
    weights = sae.basis.quadrature(truth.shape[3:], like=truth)
    errors = {
        name: mean_relative_l2(values.flatten(0, 1), truth.flatten(0, 1), weights)
        .unflatten(0, truth.shape[:2])
        .mean(0)[1:]
        .cpu()
        for name, values in states.items()
    }
    for name, ablated in (("loss_recovered", "zero_ablated"), ("loss_recovered_mean", "mean_ablated")):
        steps = zip(*(errors[which].tolist() for which in ("clean", "spliced", ablated)), strict=True)
        errors[name] = torch.tensor([loss_recovered(*step) for step in steps])
    return errors


@torch.no_grad()
def _mean_activation(model: nn.Module, site: str, sae: SAE, states: Tensor) -> Tensor:
    """Mean of the activation at a site over states ``(B, n, channels, *grid)`` and the domain, ``(channels,)`` in float64."""
    means: list[Tensor] = []

    def look(activation: Tensor) -> Tensor:
        weights = sae.basis.quadrature(activation.shape[2:], like=activation).double()
        means.append((activation.double() * weights).flatten(2).sum(2).mean(0))
        return activation

    with eval_mode(model), replace_activation(model, site, look):
        for x in states.unbind(1):
            model(x)
    return torch.stack(means).mean(0)


def rollout_figure(errors: Mapping[str, Tensor], times: Tensor, unit: str) -> Figure:
    """Errors ``(n_steps,)`` of rollouts, as :func:`rollout_errors` returns them, against the time of each step; with the loss
    recovered beside them where it is among them."""
    recovered = {name: values for name, values in errors.items() if name in _RECOVERED}
    panels = [("relative L2 error", {name: values for name, values in errors.items() if name not in recovered}, _LABELS)]
    panels += [("loss recovered", recovered, _RECOVERED)] if recovered else []
    figure, axes = subplots(1, len(panels), 4.2, 2.8)
    for ax, (ylabel, lines, labels) in zip(axes[0], panels, strict=True):
        for color, (name, values) in zip(PALETTE, lines.items(), strict=False):
            ax.plot(times, values, label=labels.get(name, name), color=color, marker=".")
        ax.set_xlabel(f"time of the rollout ({unit})")
        ax.set_ylabel(ylabel)
        ax.legend(frameon=False)
    axes[0, 0].set_ylim(bottom=0)
    return figure
