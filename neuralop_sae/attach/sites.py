"""Sites: the places of a pretrained operator where activations can be read and replaced.

neuralop calls one ``FNOBlocks`` module once per layer, so a module path alone does not name a block's output.
A site is therefore a module path, the index of the call and the index of the output. How the calls of a
module class are told apart, which submodules run in each, and which of them see the padded domain is written
once per class, in a `SiteRule`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Any

from neuralop.layers.fno_block import FNOBlocks
from neuralop.models.fno import FNO
from torch import nn

from ..registry import Registry

if TYPE_CHECKING:
    from typing import Self

Stages = Callable[[nn.Module, int], Sequence[str]]


class Site(str):
    """The name of a place in a model: the string itself, with read-only attributes that say where it is.

    Parameters
    ----------
    name : str
        The name, such as ``"fno_blocks.2"``.
    path : str, optional
        Path of the module inside the model; the name if not given.
    index : int, optional
        Which call of that module; None when the module is called once per forward pass.
    padded : bool, optional
        Whether activations there live on the grid of neuralop's `DomainPadding`.
    output : int, optional
        Which entry of a tuple output; None for a tensor output.
    owner : str, optional
        Path of the operator whose `domain_padding` applies.
    scale : tuple of float, optional
        Resolution of the site over the resolution that the operator pads, per axis; empty where it is 1.
    """

    path: str
    index: int | None  # type: ignore[assignment]  # str.index gives way: a name is not searched for characters
    padded: bool
    output: int | None
    owner: str
    scale: tuple[float, ...]

    def __new__(
        cls,
        name: str,
        *,
        path: str | None = None,
        index: int | None = None,
        padded: bool = False,
        output: int | None = None,
        owner: str = "",
        scale: tuple[float, ...] = (),
    ) -> Self:
        site = super().__new__(cls, name)
        path = str(name) if path is None else path
        site.__dict__.update(path=path, index=index, padded=padded, output=output, owner=owner, scale=scale)
        return site

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Site is read-only; cannot set {name!r} of {str(self)!r}")


@dataclass(frozen=True)
class SiteRule:
    """How the forward pass of one module class runs its submodules.

    Parameters
    ----------
    stages : callable
        ``stages(module, call)`` gives the paths of the submodules that run in that call, in execution order.
        A path that the module does not have is skipped.
    call_argument : (str, int), optional
        Name and position of the argument of ``forward`` that tells calls apart; None if there is one call.
    n_calls : str, optional
        Attribute of the module that holds the number of calls.
    padded : tuple of str, optional
        Stages that run between ``domain_padding.pad`` and ``domain_padding.unpad``.
    """

    stages: Stages
    call_argument: tuple[str, int] | None = None
    n_calls: str | None = None
    padded: tuple[str, ...] = ()


_RULES: Registry[SiteRule] = Registry("site rule")


def _class_name(module_class: type) -> str:
    return f"{module_class.__module__}.{module_class.__qualname__}"


def register_sites(
    module_class: type[nn.Module],
    *,
    call_argument: tuple[str, int] | None = None,
    n_calls: str | None = None,
    padded: tuple[str, ...] = (),
) -> Callable[[Stages], Stages]:
    """Decorator that adds the `SiteRule` of a module class; subclasses inherit it.

    Parameters
    ----------
    module_class : type
        Class of the operator or layer.
    call_argument, n_calls, padded
        As in `SiteRule`; the decorated function is its ``stages``.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    ValueError
        If the class has a rule already.

    Examples
    --------
    >>> class Encoder(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.first, self.second = nn.Identity(), nn.Identity()
    >>> @register_sites(Encoder)
    ... def _encoder(module, call):
    ...     return ("second", "first")
    >>> find_sites(Encoder())
    ['second', 'first']
    """

    def add(stages: Stages) -> Stages:
        rule = SiteRule(stages, call_argument=call_argument, n_calls=n_calls, padded=padded)
        _RULES.register(_class_name(module_class))(rule)
        return stages

    return add


@register_sites(FNO, padded=("fno_blocks",))
def _fno_stages(module: nn.Module, call: int) -> Sequence[str]:
    return ("lifting", "fno_blocks", "projection")


@register_sites(FNOBlocks, call_argument=("index", 1), n_calls="n_layers")
def _fno_block_stages(module: nn.Module, call: int) -> Sequence[str]:
    skips = (f"fno_skips.{call}", f"channel_mlp_skips.{call}")
    conv, mlp = f"convs.{call}", f"channel_mlp.{call}"
    first, second = f"norm.{2 * call}", f"norm.{2 * call + 1}"
    if module.preactivation:
        return (first, *skips, conv, second, mlp)
    return (*skips, conv, first, mlp, second)


def find_sites(model: nn.Module) -> list[Site]:
    """List the sites of a model in execution order.

    FNO, TFNO and SFNO: ``lifting``, the parts and the output of every block, ``projection``. A module without
    a `SiteRule` contributes its submodules by path, children before their parent, each taken to be called
    once; operators nested in it keep their own sites, with their path as prefix.

    Parameters
    ----------
    model : nn.Module
        The operator, or a module that contains one; a model made by ``torch.compile`` has the names of the
        original.

    Returns
    -------
    list of Site
        The sites; each is a string.

    Examples
    --------
    >>> from neuralop.models import FNO
    >>> model = FNO((4,), 1, 1, hidden_channels=4, n_layers=1, use_channel_mlp=False)
    >>> find_sites(model)
    ['lifting', 'fno_blocks.fno_skips.0', 'fno_blocks.convs.0', 'fno_blocks.0', 'projection']
    """
    return list(_walk(original_module(model), Site("")))


def resolve_site(model: nn.Module, name: str) -> Site:
    """Find a site of a model by name.

    Parameters
    ----------
    model : nn.Module
        The model.
    name : str
        A name from `find_sites`; ``"name[k]"`` is the k-th output of a module that returns a tuple.

    Returns
    -------
    Site
        The site.

    Raises
    ------
    ValueError
        If the model has no such site; the message lists those that it has.
    TypeError
        If `name` is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"a site is named by a string from find_sites(model); got {type(name).__name__}")
    sites = {str(site): site for site in find_sites(model)}
    if name in sites:
        return sites[name]
    entry = re.fullmatch(r"(.+)\[(\d+)\]", name)
    if entry and entry[1] in sites:
        attributes = sites[entry[1]].__dict__ | {"output": int(entry[2])}
        return Site(name, **attributes)
    close = get_close_matches(name, sites, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    raise ValueError(f"unknown site {name!r}{hint} known sites: {', '.join(sites) or 'none'}")


def unpadded_slices(model: nn.Module, site: Site, shape: Sequence[int]) -> tuple[slice, ...]:
    """Slices that cut neuralop's domain padding from an activation.

    ``DomainPadding.unpad`` knows only the grid of the last block, for input grids that it has padded before
    (KeyError for all others), so the margins are computed here from the padding fractions and the grid
    itself.

    Parameters
    ----------
    model : nn.Module
        The model that the site belongs to.
    site : Site
        The site.
    shape : sequence of int
        Shape of the activation, ``(B, channels, *grid)``.

    Returns
    -------
    tuple of slice
        One per axis; they keep everything at a site that is not padded.

    Raises
    ------
    ValueError
        If no margin, or more than one, belongs to the grid.
    """
    if not site.padded:
        return (slice(None),) * len(shape)
    grid = tuple(shape[2:])
    padding = original_module(model).get_submodule(site.owner).domain_padding
    assert isinstance(padding, nn.Module)
    # A number becomes a list at the first forward pass (upstream DomainPadding.pad).
    fractions: Any = padding.domain_padding
    if isinstance(fractions, (int, float)):
        fractions = [fractions] * len(grid)
    scale = site.scale or (1.0,) * len(grid)
    if not len(fractions) == len(scale) == len(grid):
        raise ValueError(f"site {str(site)!r}: grid {grid} does not have the {len(fractions)} axes of domain_padding")
    margins = [_margin(n, float(p), s) for n, p, s in zip(grid, fractions, scale, strict=True)]
    if any(margin is None for margin in margins):
        raise ValueError(
            f"site {str(site)!r}: grid {grid} does not fix the margins of domain_padding={list(fractions)} "
            f"at resolution scale {scale}: rounding left no unpadded grid or several; use padded=True"
        )
    inside = (slice(margin, n - margin) for margin, n in zip(margins, grid, strict=True) if margin is not None)
    return (slice(None), slice(None), *inside)


def original_module(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped, so that its names carry no ``_orig_mod``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be an nn.Module; got {type(model).__name__}")
    original = getattr(model, "_orig_mod", model)
    return original if isinstance(original, nn.Module) else model


def rule_of(module: nn.Module) -> SiteRule | None:
    """The rule of a module's class, or of the nearest base class that has one; None if there is none."""
    names = (_class_name(base) for base in type(module).__mro__)
    return next((_RULES.get(name) for name in names if name in _RULES), None)


def _walk(module: nn.Module, place: Site) -> Iterator[Site]:
    """Sites of the submodules of the module at a place."""
    rule = rule_of(module)
    if rule is not None:
        yield from _walk_known(module, rule, place)
        return
    for name, child in module.named_children():
        inner = _at(place, name)
        yield from _walk(child, inner)
        if _is_called(child):
            yield inner


def _walk_known(module: nn.Module, rule: SiteRule, place: Site) -> Iterator[Site]:
    pads = getattr(module, "domain_padding", None) is not None
    scale = place.scale
    for call in range(getattr(module, rule.n_calls) if rule.n_calls else 1):
        for stage in rule.stages(module, call):
            try:
                child = module.get_submodule(stage)
            except AttributeError:
                continue
            inner = _at(place, stage)
            if pads:
                inner = _at(place, stage, padded=stage in rule.padded, owner=place.path)
            if rule_of(child) is not None:
                yield from _walk(child, inner)
            else:
                # A spectral convolution changes the grid for itself and all that follows in the operator.
                scale = _times(scale, getattr(child, "resolution_scaling_factor", None))
                inner = _at(inner, "", scale=scale)
            if _is_called(child):
                yield inner
        if rule.call_argument is not None:
            yield _at(place, str(call), path=place.path, index=call, scale=scale)


def _at(place: Site, name: str, **changes: Any) -> Site:
    """The site `name` below a place; it inherits what is known of its padding."""
    full = ".".join(part for part in (place, name) if part)
    path = ".".join(part for part in (place.path, name) if part)
    return Site(full, **(place.__dict__ | {"path": path} | changes))


def _times(scale: tuple[float, ...], factors: Sequence[float] | None) -> tuple[float, ...]:
    if factors is None or all(factor == 1 for factor in factors):
        return scale
    return tuple(a * b for a, b in zip(scale or (1.0,) * len(factors), factors, strict=True))


def _is_called(module: nn.Module) -> bool:
    """Whether a call of the module is a site: not a container, and not told apart by calls."""
    rule = rule_of(module)
    if rule is not None and rule.call_argument is not None:
        return False
    return type(module).forward is not nn.Module.forward


@lru_cache(maxsize=1024)
def _margin(n: int, fraction: float, scale: float) -> int | None:
    """Padding at each end of an axis of n points, as DomainPadding rounds it; None if n does not fix it."""
    largest = ceil((n + 1) / scale)
    margins = {
        round(scale * round(fraction * points))
        for points in range(1, largest + 1)
        if round(scale * (points + 2 * round(fraction * points))) == n
    }
    return margins.pop() if len(margins) == 1 else None
