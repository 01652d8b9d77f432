"""What training minimises: plain functions on fields and codes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from ..codes import ConceptCodes
from ..layers.basis import SpectralBasis

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(prediction, target)`` of fields ``(B, m, *grid)``, one real number: neuralop's LpLoss, torch's MSELoss, ..."""


def unexplained_variance(x: Tensor, reconstruction: Tensor, scale: Tensor, basis: SpectralBasis) -> Tensor:
    r"""Mean square of the error in units of the activations' variance, :math:`\|x - \hat x\|^2 / (m\,s^2)`, pooled over the
    batch; one minus it is the batch's share of the FVE.

    Parameters
    ----------
    x, reconstruction : Tensor
        Fields ``(B, m, *grid)``.
    scale : Tensor
        s, root mean square of the centred activations, ``()``.
    basis : SpectralBasis
        Gives the quadrature.
    """
    return basis.mean_square(x - reconstruction).mean() / scale.square()


def auxiliary_loss(residual: Tensor, written: Tensor, basis: SpectralBasis) -> Tensor:
    """Share of the residual that dead concepts leave unexplained, ``()`` (Gao et al., arXiv 2406.04093). The residual is
    detached: dead concepts learn what the living miss, the living learn nothing from it.

    Parameters
    ----------
    residual : Tensor
        Error of the reconstruction, ``(B, m, *grid)``.
    written : Tensor
        What the dead concepts write for the same input.
    basis : SpectralBasis
        Gives the quadrature.
    """
    residual = residual.detach()
    return basis.mean_square(residual - written).mean() / basis.mean_square(residual).mean().clamp_min(1e-20)


def domain_penalty(codes: ConceptCodes, norms: Tensor) -> Tensor:
    r"""Size of the codes over the domain, :math:`\sum_c \|\kappa_c\| \int |a_c|`, the mean over the samples, ``()``: which
    concepts, and where. With norms that carry a gradient, scale does not move between codes and atoms.

    Parameters
    ----------
    codes : ConceptCodes
        Of a batch.
    norms : Tensor
        Kernel norms ``(n_concepts,)``.
    """
    quadrature = codes.basis.quadrature(codes.grid, like=codes.values)
    size = (codes.values.abs() * quadrature).flatten(1).sum(1)
    return (size * norms[codes.concept]).sum() / codes.n_samples


def per_field(loss: Loss, target: Tensor) -> Loss:
    """A loss as a mean over the fields of a batch, after a trial on a few fields and a prediction that is off by noise of
    their size.

    A loss that sums over fields, as neuralop's do by default, is known by twice the fields giving twice its value. It is
    divided by their number, so that neither the batch size nor the number of ranks changes what is learned. Any other is
    taken as it is.

    Parameters
    ----------
    loss : callable
        ``loss(prediction, target)``.
    target : Tensor
        Finite fields ``(B, m, *grid)``.

    Raises
    ------
    TypeError
        If it is no callable, or gives something else than a real tensor.
    ValueError
        If it gives more than one number, a NaN or Inf, or no finite gradient by the prediction.
    """
    wanted = "a loss is called as loss(prediction, target) on fields (B, channels, *grid) and gives one real number"
    if isinstance(loss, type) or not callable(loss):
        why = "is a class: give an instance of it" if isinstance(loss, type) else "cannot be called"
        raise TypeError(f"{wanted}; {loss!r} {why}")
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0)).to(target)
    size = float(target.square().mean().sqrt()) or 1.0
    prediction = (target + size * noise).requires_grad_()
    value = loss(prediction, target)
    _check_value(value, prediction, f"{wanted}; {_name(loss)}")
    twice = loss(prediction.detach().repeat_interleave(2, 0), target.repeat_interleave(2, 0))
    sums = math.isclose(twice.item(), 2 * value.item(), rel_tol=1e-3)

    def mean(prediction: Tensor, target: Tensor) -> Tensor:
        value = loss(prediction, target.to(prediction.dtype))
        return value / len(target) if sums else value

    return mean


def _check_value(value: Any, prediction: Tensor, what: str) -> None:
    if not isinstance(value, Tensor) or value.is_complex():
        got = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise TypeError(f"{what} gives {got}")
    if value.ndim:
        raise ValueError(f"{what} gives a tensor {tuple(value.shape)}: reduce it, by its mean say")
    if not value.isfinite():
        raise ValueError(f"{what} gives {value.item()} for fields that are finite")
    gradient = torch.autograd.grad(value, prediction, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None or not gradient.isfinite().all():
        has = "no gradient" if gradient is None else "a gradient with NaN or Inf"
        raise ValueError(f"{what} has {has} by the prediction, its first argument")


def describe_loss(loss: Any) -> Any:
    """What a loss is, as plain data: its name, its public settings and those of the losses in it; of a tensor the shape. Two
    functions of one name have one description."""
    if loss is None or isinstance(loss, bool | int | float | str):
        return loss
    if isinstance(loss, Mapping):
        return {str(key): describe_loss(value) for key, value in loss.items()}
    if isinstance(loss, list | tuple):
        return [describe_loss(value) for value in loss]
    if isinstance(loss, Tensor):
        return f"{loss.dtype} {tuple(loss.shape)}"
    if not hasattr(loss, "__dict__"):
        return repr(loss)
    settings: dict[str, Any] = {}
    if isinstance(loss, functools.partial):
        settings = {"func": loss.func, "args": loss.args, **loss.keywords}
    elif isinstance(loss, MethodType):
        settings = {"of": loss.__self__}
    elif not hasattr(loss, "__qualname__"):
        settings = {name: value for name, value in vars(loss).items() if not name.startswith("_")}
    return {"name": _name(loss), **{name: describe_loss(value) for name, value in sorted(settings.items())}}


def _name(loss: Any) -> str:
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{named.__module__}.{named.__qualname__}"
