"""Hooks: pass what a model computes at a site to a function, and put its result in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layouts import from_field, to_field
from .rules import SiteRule, original_module, rule_of
from .sites import Site


@dataclass
class Firings:
    """How often a site fired inside `hooked`.

    Parameters
    ----------
    passes : int
        Forward passes of the model so far.
    in_pass : int
        Calls of the site's module in the last pass, those of other blocks not counted.
    acted : int
        How often the function was called, in all passes.
    """

    passes: int = 0
    in_pass: int = 0
    acted: int = 0


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode, and give every submodule its own training flag back afterwards.

    Parameters
    ----------
    *modules : nn.Module
        The modules.
    """
    flags = [(submodule, submodule.training) for module in modules for submodule in module.modules()]
    try:
        for submodule, _ in flags:
            submodule.training = False
        yield
    finally:
        for submodule, flag in flags:
            submodule.training = flag


def forget_inference_transforms(model: nn.Module) -> None:
    """Drop the spherical transforms that neuralop's layers cached in ``torch.inference_mode``: backward passes through them
    fail. They are made again when needed.

    Parameters
    ----------
    model : nn.Module
        The operator.
    """
    for handle in model.modules():
        for cache in (getattr(handle, "_SHT_cache", None), getattr(handle, "_iSHT_cache", None)):
            if isinstance(cache, nn.ModuleDict) and any(buffer.is_inference() for buffer in cache.buffers()):
                cache.clear()


@contextmanager
def hooked(model: nn.Module, site: Site, function: Callable[[Tensor], Tensor | None]) -> Iterator[Firings]:
    """While active, pass every activation at a site to a function, and put its result in their place.

    Code made by ``torch.compile`` runs eagerly meanwhile: a compiled graph does not notice hooks that come
    later (Dynamo does not guard on them: ``torch._dynamo.config.skip_nnmodule_hook_guards``).

    Parameters
    ----------
    model : nn.Module
        The model.
    site : Site
        One of its sites, from `resolve_site`.
    function : callable
        Takes the whole activation as a field ``(B, channels, *grid)``, padding included, and must not change it in
        place: identity skips of neuralop return the tensor that they were given. None leaves the activation as it is.

    Yields
    ------
    Firings
        The count of passes and calls.
    """
    root = original_module(model)
    forget_inference_transforms(root)
    module = root.get_submodule(site.path)
    rule = rule_of(module)
    firings = Firings()

    # A copy of a module made meanwhile, as UQNO makes one of its base model, has the hooks too, and keeps them.
    def start(called: nn.Module, args: tuple[Any, ...]) -> None:
        if called is root:
            firings.passes, firings.in_pass = firings.passes + 1, 0

    def hook(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if called is not module:
            return None
        if site.index is not None and rule is not None and _call_of(rule, args, kwargs) != site.index:
            return None
        nth, firings.in_pass = firings.in_pass, firings.in_pass + 1
        if site.nth is not None and nth != site.nth:
            return None
        firings.acted += 1
        entry = entry_of(output, site)
        try:
            field = to_field(entry, site.layout)
        except TypeError as error:
            raise TypeError(f"site {str(site)!r}: {error}") from None
        new = function(field)
        return None if new is None else _with_entry(output, site, from_field(new, entry, site.layout))

    with ExitStack() as stack:
        stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        stack.callback(root.register_forward_pre_hook(start).remove)
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield firings


def _call_of(rule: SiteRule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    assert rule.call_argument is not None
    name, position = rule.call_argument
    return int(kwargs.get(name, args[position] if len(args) > position else 0))


def entry_of(output: Any, site: Site) -> Tensor:
    """The tensor at a site, of what its module returns."""
    entry = output
    if site.output is not None:
        try:
            entry = output[_key(output, site)]
        except (TypeError, KeyError, IndexError):
            raise TypeError(
                f"site {str(site)!r}: the module returns no output {site.output}, but {_describe(output)}"
            ) from None
    if not isinstance(entry, Tensor):
        example = next(iter(entry), "key") if isinstance(entry, Mapping) else 0
        name = f"{site.path}[{example}]" if site.nth is None else f"{site.path}.{site.nth}[{example}]"
        kind = "a mapping by its key" if isinstance(entry, Mapping) else "a tuple by its index"
        raise TypeError(
            f"site {str(site)!r}: a tensor was expected, the module returns {_describe(entry)}; "
            f"name one entry of {kind}, as in '{name}'"
        )
    return entry


def _with_entry(output: Any, site: Site, new: Tensor) -> Any:
    if site.output is None:
        return new
    if isinstance(output, Mapping):
        # A copy, so that a subclass of dict keeps its class and attributes.
        mapping: Any = copy.copy(output)
        mapping[_key(output, site)] = new
        return mapping
    entries = [new if i == site.output else entry for i, entry in enumerate(output)]
    if hasattr(output, "_fields"):
        return type(output)(*entries)
    return type(output)(entries)


def _key(output: Any, site: Site) -> Any:
    """The index or key of the entry: a number names a string of digits too."""
    if isinstance(output, Mapping):
        return site.output if site.output in output else str(site.output)
    if not isinstance(output, (tuple, list)) or not isinstance(site.output, int):
        raise TypeError
    return site.output


def _describe(output: Any) -> str:
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"{name} with the keys {list(output)}"
    return f"{name} of length {len(output)}" if isinstance(output, (tuple, list)) else name
