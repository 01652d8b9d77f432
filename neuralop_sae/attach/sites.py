"""Sites: the places of a pretrained operator where activations can be read and replaced.

A site is a module path, the call of that module and the entry of its output: neuralop calls one ``FNOBlocks`` module
once per layer, so a path alone does not name a block's output. Which submodules run, in which order and in which
layout, is the `SiteRule` of each class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import pandas as pd
from tltorch.factorized_tensors.core import FactorizedTensor
from torch import nn

from .. import notebook
from . import operators  # noqa: F401  # fills the table of rules
from .layouts import FIELD, axes_of
from .rules import SiteRule, Stage, original_module, rule_of
from .rules import register_sites as register_sites  # part of this module's interface

if TYPE_CHECKING:
    from typing import Self


class Site(str):
    """The name of a place in a model: the string itself, with read-only attributes that say where it is.

    Parameters
    ----------
    name : str
        The name, such as ``"fno_blocks.2"``.
    path : str, optional
        Path of the module inside the model; the name if not given.
    index : int, optional
        Which call of that module, told by an argument of the call; None where the `SiteRule` of its class names none.
    nth : int, optional
        Which of the calls in one pass of the model, counted from 0; None for all of them.
    padded : bool, optional
        Whether activations there live on the grid of neuralop's `DomainPadding`.
    output : int or str, optional
        Which entry of a tuple, a list or a mapping; None for a tensor output.
    owner : str, optional
        Path of the operator whose `domain_padding` applies.
    scale : tuple of float, optional
        Resolution of the site over the resolution that the operator pads, per axis; empty where it is 1.
    layout : str, optional
        Axes of the activation in the module's own order; see `SiteRule`.
    repeats : str, optional
        Name of the axis that the calls of one pass run through, such as ``"time"``; None where there is one call.
    frozen : bool, optional
        Whether the module runs without gradient.
    n_dim : int, optional
        Number of axes of the grid; None if it is not known before a pass.

    Attributes
    ----------
    axes : tuple of str
        Names of the axes of a captured activation, such as ``("batch", "channels", "d1", "d2")`` or
        ``("batch", "channels", "time", "d1", "d2")``; ``"..."`` for a grid of unknown dimension. A product in the name
        of the batch axis, as in ``"batch*tokens"``, says that the operator folds an axis into the batch there, the
        batch being the slower one.
    """

    path: str
    index: int | None  # type: ignore[assignment]  # str.index gives way: a name is not searched for characters
    nth: int | None
    padded: bool
    output: int | str | None
    owner: str
    scale: tuple[float, ...]
    layout: str
    repeats: str | None
    frozen: bool
    n_dim: int | None

    def __new__(
        cls,
        name: str,
        *,
        path: str | None = None,
        index: int | None = None,
        nth: int | None = None,
        padded: bool = False,
        output: int | str | None = None,
        owner: str = "",
        scale: tuple[float, ...] = (),
        layout: str = FIELD,
        repeats: str | None = None,
        frozen: bool = False,
        n_dim: int | None = None,
    ) -> Self:
        site = super().__new__(cls, name)
        path = str(name) if path is None else path
        site.__dict__.update(path=path, index=index, nth=nth, padded=padded, output=output, owner=owner, scale=scale)
        site.__dict__.update(layout=layout, repeats=repeats, frozen=frozen, n_dim=n_dim)
        return site

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Site is read-only; cannot set {name!r} of {str(self)!r}")

    def _repr_html_(self) -> str:
        return Sites([self])._repr_html_()

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of a captured activation."""
        batch, channels, *grid = axes_of(self.layout, self.n_dim)
        return (batch, channels, *([self.repeats] if self.repeats else []), *grid)


class Sites(list[Site]):
    """Sites in execution order: a list, and a table."""

    def to_frame(self) -> pd.DataFrame:
        """``site``, ``axes`` of a captured activation, ``padded`` and ``frozen``, a row for each site."""
        columns = ["site", "axes", "padded", "frozen"]
        rows = [(str(site), ", ".join(site.axes), site.padded, site.frozen) for site in self]
        return pd.DataFrame(rows, columns=columns)

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        title = "1 site" if len(self) == 1 else f"{len(self)} sites"
        return notebook.table(title, list(frame.columns), frame.itertuples(index=False))


def find_sites(model: nn.Module) -> Sites:
    """List the sites of a model in execution order.

    Lifting, the parts and the output of every block, and projection of neuralop's operators. A module without a
    `SiteRule` contributes its submodules by path, children before their parent, each taken to be called once;
    operators nested in it keep their own sites, with their path as prefix.

    Parameters
    ----------
    model : nn.Module
        The operator, or a module that contains one; a model made by ``torch.compile`` has the names of the
        original.

    Returns
    -------
    Sites
        A list of sites, each a string, which shows itself as a table (:meth:`Sites.to_frame`).

    Notes
    -----
    Inside the attention layers of CODANO activations are ``(B * n_tokens, token codimension, *grid)``. The base model
    of UQNO runs in eval mode and without gradient: its sites are frozen, and no loss trains an autoencoder there.
    The cells of RNO run once per time step: `capture` stacks the steps along an axis ``"time"``, a replacement sees
    them one by one.

    Examples
    --------
    >>> from neuralop.models import FNO
    >>> model = FNO((4,), 1, 1, hidden_channels=4, n_layers=1, use_channel_mlp=False)
    >>> find_sites(model)
    ['lifting', 'fno_blocks.fno_skips.0', 'fno_blocks.convs.0', 'fno_blocks.0', 'projection']
    >>> find_sites(model)[-2].axes
    ('batch', 'channels', 'd1')
    """
    return Sites(_walk(original_module(model), Site("")))


def resolve_site(model: nn.Module, name: str) -> Site:
    """Find a site of a model by name.

    Parameters
    ----------
    model : nn.Module
        The model.
    name : str
        A name from `find_sites`. ``"name.k"`` is the k-th call, from 0, of a module that is called several times in
        a pass; ``"name[k]"`` the k-th output of a module that returns a tuple or a list, and ``"name[key]"`` an entry
        of the mapping that it returns.

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
    parts = re.fullmatch(r"(?P<site>.+?)(\.(?P<nth>\d+))?(\[(?P<output>[^\[\]]+)\])?", name)
    if parts:
        attributes: dict[str, Any] = {}
        base, nth, output = parts["site"], parts["nth"], parts["output"]
        if output is not None:
            attributes["output"] = int(output) if output.isdecimal() else output.strip("'\"")
        if nth is not None and f"{base}.{nth}" in sites:
            base, nth = f"{base}.{nth}", None
        if nth is not None:
            attributes |= {"nth": int(nth), "repeats": None}
        if base not in sites:
            base = f"{base}[{output}]"  # an entry that the rule of the class names
        if base in sites:
            return Site(name, **(sites[base].__dict__ | attributes))
    close = get_close_matches(name, sites, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    raise ValueError(f"unknown site {name!r}{hint} known sites: {', '.join(sites) or 'none'}")


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
            yield _output_at(child, inner)


def _walk_known(module: nn.Module, rule: SiteRule, place: Site) -> Iterator[Site]:
    place = _at(place, "", n_dim=getattr(module, rule.n_dim, place.n_dim))
    scale, listed = place.scale, set[str]()
    for call in range(getattr(module, rule.n_calls) if rule.n_calls else 1):
        for stage in rule.stages_of(module, call):
            sites, after = _stage_sites(module, stage, place, scale)
            yield from (site for site in sites if site not in listed)
            listed.update(sites)
            scale = scale if stage.branch else after
        if rule.call_argument is not None:
            yield _at(place, str(call), path=place.path, index=call, scale=scale)


def _stage_sites(
    module: nn.Module, stage: Stage, place: Site, scale: tuple[float, ...]
) -> tuple[list[Site], tuple[float, ...]]:
    """Sites of a stage of the module at a place, and the resolution that it leaves to the next stage."""
    try:
        child = module.get_submodule(stage.path)
    except AttributeError:
        return [], scale
    changes: dict[str, Any] = {"frozen": place.frozen or stage.frozen, "repeats": stage.repeats or place.repeats}
    if getattr(module, "domain_padding", None) is not None:
        changes |= {"padded": stage.padded, "owner": place.path}
    if stage.layout is not None:
        changes["layout"] = stage.layout
    place = _at(place, stage.path, scale=scale, **changes)
    rule = rule_of(child)
    sites = list(_walk(child, place)) if rule is not None else []
    scale = sites[-1].scale if sites else scale
    if rule is None or rule.scaling is not None:
        # A spectral convolution changes the grid for itself and all that follows in the operator.
        factor = getattr(child, "resolution_scaling_factor" if rule is None else str(rule.scaling), None)
        scale = _times(place.scale, factor, place.n_dim)
    if stage.outputs:
        whole = _output_at(child, _at(place, "", scale=scale))
        sites += [Site(f"{whole}[{entry}]", **(whole.__dict__ | {"output": entry})) for entry in stage.outputs]
    elif _is_called(child):
        sites.append(_output_at(child, _at(place, "", scale=scale)))
    elif stage.once and sites:
        sites[-1] = Site(str(place), **sites[-1].__dict__)
    return sites, scale


def _output_at(module: nn.Module, place: Site) -> Site:
    """The site of what the module at a place returns."""
    rule = rule_of(module)
    if rule is None:
        return place
    return _at(place, "", layout=rule.output_of(module) or place.layout, n_dim=getattr(module, rule.n_dim, place.n_dim))


def _at(place: Site, name: str, **changes: Any) -> Site:
    """The site `name` below a place; it inherits what is known of its padding and layout."""
    full = ".".join(part for part in (place, name) if part)
    path = ".".join(part for part in (place.path, name) if part)
    return Site(full, **(place.__dict__ | {"path": path} | changes))


def _times(scale: tuple[float, ...], factor: Any, n_dim: int | None) -> tuple[float, ...]:
    factors: Sequence[float] = (factor,) * (n_dim or 1) if isinstance(factor, (int, float)) else factor or ()
    if all(factor == 1 for factor in factors):
        return scale
    return tuple(a * b for a, b in zip(scale or (1.0,) * len(factors), factors, strict=True))


def _is_called(module: nn.Module) -> bool:
    """Whether a call of the module is a site: not a container, not a weight, and not told apart by calls."""
    rule = rule_of(module)
    if isinstance(module, FactorizedTensor) or (rule is not None and rule.call_argument is not None):
        return False
    return type(module).forward is not nn.Module.forward
