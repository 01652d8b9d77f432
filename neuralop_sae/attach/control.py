"""A control for what is found in a trained operator: the same operator with fresh weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def random_control(operator: M, *, seed: int = 0) -> M:
    """A copy of an operator with weights drawn anew, as its constructor draws them: what an SAE finds there owes nothing to
    training.

    What a constructor does not draw stays or goes back to its initial value: grids and other buffers stay, soft gates are
    one, the running statistics of norms start again. Spectral weights have the standard deviation of neuralop's
    ``init_std="auto"``.

    Parameters
    ----------
    operator : nn.Module
        Is left as it is.
    seed : int
        Of the weights. The state of torch's generators is restored.

    Returns
    -------
    nn.Module
        Of the same class, on the same device, in the same mode.

    Raises
    ------
    TypeError
        If it has parameters that no module draws anew, naming them.

    Examples
    --------
    >>> from neuralop.models import FNO
    >>> model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=4)
    >>> control = random_control(model)
    >>> bool((control.fno_blocks.convs[0].weight.tensor == model.fno_blocks.convs[0].weight.tensor).any())
    False
    """
    control = copy.deepcopy(operator)
    for parameter in control.parameters():
        parameter.fill_(torch.nan)  # by which those that nothing draws are known
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in control.modules():
            reset = _reset_of(module)
            if reset is not None:
                reset(module)
    left = [name for name, parameter in control.named_parameters() if parameter.isnan().any()]
    if left:
        raise TypeError(
            f"no rule says how {type(operator).__name__} draws {', '.join(left)}: give the modules that hold them a "
            "reset_parameters method, as torch's own modules have"
        )
    return control


def _reset_of(module: nn.Module) -> Callable[[Any], object] | None:
    """What draws the parameters of a module anew; None if its children do."""
    if callable(getattr(module, "reset_parameters", None)):
        return lambda known: known.reset_parameters()
    names = (f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__)
    return next((_RULES[name] for name in names if name in _RULES), None)


def _spectral(conv: Any) -> None:
    deviation = (2 / (conv.in_channels + conv.out_channels)) ** 0.5
    conv.weight.normal_(0, deviation)
    if conv.bias is not None:
        conv.bias.normal_(0, deviation)


def _discrete_continuous(conv: Any) -> None:
    conv.weight.normal_(0, conv.groupsize**-0.5)
    if conv.bias is not None:
        conv.bias.zero_()


def _soft_gating(gate: Any) -> None:
    for parameter in gate.parameters():
        parameter.fill_(1)


def _codano(operator: Any) -> None:
    tokens = [operator.cls_token] if operator.enable_cls_token else []
    encodings = operator.positional_encoding.values() if operator.use_positional_encoding else []
    for parameter in (*tokens, *encodings):
        parameter.normal_()


#: How a class of neuralop without a reset_parameters draws its parameters, by full name: some are missing from some versions.
_RULES: dict[str, Callable[[Any], None]] = {
    "neuralop.layers.spectral_convolution.SpectralConv": _spectral,
    "neuralop.layers.spherical_convolution.SphericalConv": _spectral,
    "neuralop.layers.discrete_continuous_convolution.DiscreteContinuousConv": _discrete_continuous,
    "neuralop.layers.skip_connections.SoftGating": _soft_gating,
    "neuralop.models.codano.CODANO": _codano,
}
