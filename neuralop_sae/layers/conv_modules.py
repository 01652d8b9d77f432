"""Which convolution a model asks for, by name or by class."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from .basis import SpectralBasis, bases
from .convolutions import Convolution, OverBasis, concept_layers
from .opaque import Opaque


def convolution_of(
    conv_module: str | type[nn.Module] | Convolution, n_modes: Sequence[int], options: Mapping[str, Any] | None = None
) -> Convolution:
    """The convolution that a model asks for.

    Parameters
    ----------
    conv_module : str, type or Convolution
        Name of a registered concept layer ("SpectralConv", "SphericalConv", ...) or its class; name of a registered basis
        ("cosine"), over which neuralop's weights are then used; or any class with the signature of neuralop's
        ``conv_module``, which works on the dense path. Such a class is named "module.Class" in a saved model, whose module
        has to be imported before loading. A Convolution is given back as it is.
    n_modes : sequence of int
        As in neuralop.
    options : mapping, optional
        Further arguments of the convolution, or of the basis.

    Raises
    ------
    ValueError
        For an unknown name, listing the known ones, or options that do not fit.
    TypeError
        If `conv_module` is neither a name nor a class of modules.
    """
    if isinstance(conv_module, Convolution):
        return conv_module
    options = dict(options or {})
    found = _find(conv_module)
    try:
        inspect.signature(found).bind(tuple(n_modes), **options)
    except TypeError as error:
        raise ValueError(f"conv_options={options} do not fit {conv_module!r}: {error}") from error
    return found(tuple(n_modes), **options)


def name_of_module(conv_module: str | type[nn.Module]) -> str:
    """`conv_module` as plain data, for a config; TypeError if it is neither a name nor a class of modules."""
    if isinstance(conv_module, str):
        return conv_module
    if not (isinstance(conv_module, type) and issubclass(conv_module, nn.Module)):
        raise TypeError(f"conv_module is a name or a class of modules, got {conv_module!r}")
    known = [concept_layers.get(name) for name in concept_layers if concept_layers.get(name).conv_module is conv_module]
    return conv_module.__name__ if known else f"{conv_module.__module__}.{conv_module.__qualname__}"


def _find(conv_module: str | type[nn.Module]) -> Callable[..., Convolution]:
    if isinstance(conv_module, str):
        if conv_module in concept_layers:
            return concept_layers.get(conv_module)
        if conv_module in bases:
            return _over(bases.get(conv_module))
        # Saved before its class was registered, if it is now: its tensors are those of the dense path.
        return partial(Opaque, _imported(conv_module))
    name = name_of_module(conv_module)
    if name in concept_layers:
        return concept_layers.get(name)
    return partial(Opaque, conv_module)


def _imported(name: str) -> type[nn.Module]:
    """The class of a dotted name, from modules that are imported already: a saved model must not decide what is."""
    module, _, qualname = name.rpartition(".")
    found = getattr(sys.modules.get(module), qualname, None)
    if isinstance(found, type):
        return found
    known = ", ".join([*concept_layers.names(), *bases.names()])
    hint = f"; or is the module {module!r} not imported yet?" if module else ""
    raise ValueError(f"unknown conv_module {name!r}; known concept layers and bases: {known}{hint}")


def _over(basis_class: type[SpectralBasis]) -> Callable[..., Convolution]:
    def make(n_modes: tuple[int, ...], **options: Any) -> Convolution:
        return OverBasis(basis_class(n_modes, **options))  # type: ignore[call-arg]

    signature = inspect.signature(basis_class)
    make.__signature__ = signature  # type: ignore[attr-defined]
    return make
