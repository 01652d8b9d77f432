"""Site rules: how the forward pass of a module class runs its submodules.

neuralop calls one ``FNOBlocks`` module once per layer, its GNO layers put channels last, its recurrent cells run once
per time step. What a class does of this kind is written down once, as data: a `SiteRule` with a `Stage` for each
submodule that runs. `operators` holds the table of neuralop's own classes; `register_sites` adds to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from ..registry import Registry


@dataclass(frozen=True)
class Stage:
    """A submodule that runs in the forward pass of a module.

    Parameters
    ----------
    path : str
        Path of the submodule below the module. A path that the module does not have is skipped.
    padded : bool, optional
        Whether it runs between ``domain_padding.pad`` and ``domain_padding.unpad`` of the module.
    layout : str, optional
        Axes of activations there, as in ``"batch points channels"``; see `SiteRule`. By default those of the module.
    repeats : str, optional
        Name of the axis that is run through if the submodule is called once per step, as in ``"time"``.
    once : bool, optional
        Whether the submodule tells calls apart, but is called once here: its output then has the name of its path.
    branch : bool, optional
        Whether a change of resolution in the submodule does not reach the stages that follow.
    frozen : bool, optional
        Whether it runs without gradient.
    outputs : sequence of int or str, optional
        Where the submodule returns a tuple, a list or a mapping: the entries that are activations. Each is a site
        ``"path[entry]"``.
    """

    path: str
    padded: bool = False
    layout: str | None = None
    repeats: str | None = None
    once: bool = False
    branch: bool = False
    frozen: bool = False
    outputs: Sequence[int | str] = ()


Stages = Callable[[Any, int], Sequence["str | Stage"]]
StagesT = TypeVar("StagesT", bound=Stages)


@dataclass(frozen=True)
class SiteRule:
    """How the forward pass of one module class runs its submodules.

    A layout names the axes of an activation in the order of the module, apart by spaces: one is ``channels``, the
    first may be ``batch`` or a product such as ``batch*time``, and ``...`` stands for the axes of the grid. Without
    ``...``, a leading batch axis may be missing in the activation.

    Parameters
    ----------
    stages : sequence of str or Stage, or callable
        The submodules that run, in the order in which they end. ``stages(module, call)`` if they depend on the module
        or on the call. A path stands for a `Stage` without further properties.
    call_argument : (str, int), optional
        Name and position of the argument of ``forward`` that tells calls apart; None if there is one call.
    n_calls : str, optional
        Attribute of the module that holds the number of calls. A submodule that runs in several of them is one site.
    output : str or callable, optional
        Layout of what the module returns, or a function of the module that gives it. By default the layout of the
        place where it runs, at first ``"batch channels ..."``.
    scaling : str, optional
        Attribute of the module with the resolution of its output over that of its input, as a number or one per axis.
    n_dim : str, optional
        Attribute of the module that holds the number of axes of the grid.
    shared : sequence of str, or callable, optional
        Arguments of ``forward`` that all samples of a batch share, such as a geometry; a function of the module if it
        depends on it.
    called_like : str, optional
        Path of the submodule whose ``forward`` names the arguments, for a class that passes on what it is given.
    """

    stages: Sequence[str | Stage] | Stages
    call_argument: tuple[str, int] | None = None
    n_calls: str | None = None
    output: str | Callable[[Any], str] | None = None
    scaling: str | None = None
    n_dim: str = "n_dim"
    shared: Sequence[str] | Callable[[Any], Sequence[str]] = ()
    called_like: str = ""

    def stages_of(self, module: nn.Module, call: int) -> list[Stage]:
        """The stages of a call of a module."""
        stages = self.stages(module, call) if callable(self.stages) else self.stages
        return [Stage(stage) if isinstance(stage, str) else stage for stage in stages]

    def output_of(self, module: nn.Module) -> str | None:
        """Layout of what a module returns; None for that of its place."""
        return self.output(module) if callable(self.output) else self.output

    def shared_by(self, module: nn.Module) -> tuple[str, ...]:
        """Names of the arguments of a module that all samples share."""
        return tuple(self.shared(module) if callable(self.shared) else self.shared)


site_rules: Registry[SiteRule] = Registry("site rule")


def register_sites(module_class: type[nn.Module] | str, **properties: Any) -> Callable[[StagesT], StagesT]:
    """Decorator that adds the `SiteRule` of a module class; subclasses inherit it.

    `neuralop_sae.testing.check_sites` tells whether the rule says what the class does.

    Parameters
    ----------
    module_class : type or str
        Class of the operator or layer, or its full name such as ``"neuralop.models.rno.RNO"``, which imports nothing.
    **properties
        The other fields of `SiteRule`, such as ``call_argument``; the decorated function is its ``stages``.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    ValueError
        If the class has a rule already; the message lists the classes that have one.
    TypeError
        If a property is no field of `SiteRule`.

    Examples
    --------
    >>> from neuralop_sae import find_sites
    >>> class Encoder(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.first, self.second = nn.Identity(), nn.Identity()
    >>> @register_sites(Encoder)
    ... def _encoder(module, call):
    ...     return ("second", Stage("first", layout="batch points channels"))
    >>> find_sites(Encoder())
    ['second', 'first']
    """

    def add(stages: StagesT) -> StagesT:
        add_rule(module_class, SiteRule(stages, **properties))
        return stages

    return add


def add_rule(module_class: type[nn.Module] | str, rule: SiteRule) -> None:
    """Add the rule of a class, as `register_sites` does.

    Parameters
    ----------
    module_class : type or str
        The class or its full name.
    rule : SiteRule
        Its rule.

    Raises
    ------
    ValueError
        If the class has a rule already; the message lists the classes that have one.
    """
    name = module_class if isinstance(module_class, str) else _class_name(module_class)
    if name in site_rules:
        raise ValueError(
            f"site rule {name!r} is registered already: register a subclass under its own name; "
            f"classes with a rule: {', '.join(site_rules.names())}"
        )
    site_rules.register(name)(rule)


def rule_of(module: nn.Module) -> SiteRule | None:
    """The rule of a module's class, or of the nearest base class that has one; None if there is none."""
    names = (_class_name(base) for base in type(module).__mro__)
    return next((site_rules.get(name) for name in names if name in site_rules), None)


def original_module(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped, so that its names carry no ``_orig_mod``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be an nn.Module; got {type(model).__name__}")
    original = getattr(model, "_orig_mod", model)
    return original if isinstance(original, nn.Module) else model


def _class_name(module_class: type) -> str:
    return f"{module_class.__module__}.{module_class.__qualname__}"
