r"""Quantities of physics, ready for :func:`neuralop_sae.probe`: functions of fields, known by name.

A quantity's arguments are the names of fields ``(N, *grid)`` or of other quantities, and ``calculus``, the domain on which
derivatives are taken. What is not given follows where it can: enstrophy from u and v by way of the vorticity, strain from the
vorticity alone by way of the velocity.
"""

from __future__ import annotations

import inspect
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..attach.arrays import tensor_of
from ..registry import Registry
from .calculus import Calculus, WalledBox

quantities: Registry[Callable[..., Tensor]] = Registry("physical quantity")


def register_physics(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator that adds a quantity under a name; ValueError if it is taken.

    Parameters
    ----------
    name : str
        Under which :func:`neuralop_sae.probe` knows it.

    Returns
    -------
    callable
        A decorator for a function that takes fields ``(N, *grid)``, or numbers ``(N,)``, by their names, and `calculus` if it
        asks for it. It returns numbers ``(N,)``, a field ``(N, *grid)`` or a vector field ``(N, n_dim, *grid)``.

    Examples
    --------
    >>> @register_physics("palinstrophy")
    ... def palinstrophy(vorticity, calculus):
    ...     return calculus.gradient(vorticity).square().sum(1) / 2
    >>> from neuralop_sae.analysis.calculus import PeriodicBox
    >>> compute_physics("palinstrophy", {"vorticity": torch.ones(2, 8, 8)}, PeriodicBox([1.0, 1.0])).shape
    torch.Size([2, 8, 8])
    """
    return quantities.register(name)


def compute_physics(name: str, fields: Mapping[str, Tensor], calculus: Calculus) -> Tensor:
    """A quantity by its name.

    Parameters
    ----------
    name : str
        Of a registered quantity, or of a field that is given.
    fields : mapping of str to Tensor
        Fields ``(N, *grid)``, on one grid.
    calculus : Calculus
        The domain.

    Returns
    -------
    Tensor
        ``(N,)``, ``(N, *grid)`` or ``(N, n_dim, *grid)``.

    Raises
    ------
    ValueError
        If the quantity is not known, or does not follow from these fields.
    """
    return _follow(name, ChainMap({}, dict(fields)), calculus, [])


def apply_physics(name: str, function: Callable[..., Any], fields: Mapping[str, Tensor], calculus: Calculus) -> Tensor:
    """What a function gives for fields and quantities of the names of its arguments; see :func:`compute_physics`. An argument
    with a default keeps it unless a field has its name. Errors call the result `name`."""
    return _apply(function, ChainMap({}, dict(fields)), calculus, [name])


def _follow(name: str, known: ChainMap[str, Tensor], calculus: Calculus, way: list[str]) -> Tensor:
    """A field, or a quantity on the way to others. Of `known`, the first map is of what followed, the second of fields."""
    if name not in known:
        if name in way or name not in quantities:
            asked = f"{way[0]!r} does not follow from" if way else f"{name!r} is neither a known quantity nor among"
            need = f": it takes {(way[-1] if name == way[0] else name)!r}" if way else ""
            raise ValueError(
                f"{asked} the fields {sorted(known)}{need}; give that in fields={{...}}, or take one of the quantities "
                f"{', '.join(quantities.names())}"
            )
        known[name] = _apply(quantities.get(name), known, calculus, [*way, name])
    return known[name]


def _apply(function: Callable[..., Any], known: ChainMap[str, Tensor], calculus: Calculus, way: list[str]) -> Tensor:
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "calculus":
            arguments[name] = calculus
        elif parameter.default is parameter.empty or name in known.parents:
            arguments[name] = _follow(name, known, calculus, way)
    try:
        return tensor_of(repr(way[-1]), function(**arguments))
    except (RuntimeError, ValueError) as error:
        grids = {name: tuple(x.shape[-calculus.n_dim :]) for name, x in arguments.items() if _is_field(x, calculus)}
        if len(set(grids.values())) < 2:
            raise
        raise ValueError(
            f"{way[-1]!r} is made of fields on several grids, {grids}: bring them to one by sae.basis.resample(field, grid)"
        ) from error


def _is_field(value: Any, calculus: Calculus) -> bool:
    return isinstance(value, Tensor) and value.ndim > calculus.n_dim


def _planar(calculus: Calculus) -> Calculus:
    if calculus.n_dim != 2:
        raise ValueError(f"this quantity is of flow in 2 dimensions, the domain has {calculus.n_dim}: register your own")
    return calculus


def _velocity_gradient(u: Tensor, v: Tensor, calculus: Calculus) -> Tensor:
    """``(N, 2, 2, *grid)``: component, direction."""
    return _planar(calculus).jacobian(torch.stack([u, v], 1))


@register_physics("u")
def eastward_velocity(vorticity: Tensor, calculus: Calculus) -> Tensor:
    """Velocity along the first axis of a box, or eastward, of the flow without divergence that has this vorticity."""
    return calculus.velocity(vorticity)[:, 0]


@register_physics("v")
def northward_velocity(vorticity: Tensor, calculus: Calculus) -> Tensor:
    """Velocity along the second axis of a box, or northward, of the flow without divergence that has this vorticity."""
    return calculus.velocity(vorticity)[:, 1]


@register_physics("vorticity")
def vorticity(u: Tensor, v: Tensor, calculus: Calculus) -> Tensor:
    r""":math:`\omega = \partial_1 v - \partial_2 u`, ``(N, *grid)``, 1/time; on a sphere the curl along the normal outward."""
    slope = _velocity_gradient(u, v, calculus)
    return slope[:, 1, 0] - slope[:, 0, 1]


@register_physics("divergence")
def divergence(u: Tensor, v: Tensor, calculus: Calculus) -> Tensor:
    r""":math:`\partial_1 u + \partial_2 v`, ``(N, *grid)``, 1/time."""
    slope = _velocity_gradient(u, v, calculus)
    return slope[:, 0, 0] + slope[:, 1, 1]


@register_physics("enstrophy")
def enstrophy(vorticity: Tensor) -> Tensor:
    r"""Density :math:`\omega^2/2`, ``(N, *grid)``, 1/time^2."""
    return vorticity.square() / 2


@register_physics("kinetic_energy")
def kinetic_energy(u: Tensor, v: Tensor) -> Tensor:
    r"""Density per mass :math:`(u^2 + v^2)/2`, ``(N, *grid)``, length^2/time^2."""
    return (u.square() + v.square()) / 2


@register_physics("strain")
def strain(u: Tensor, v: Tensor, calculus: Calculus) -> Tensor:
    r"""Rate of strain :math:`\sqrt{s_n^2 + s_s^2}` with :math:`s_n = \partial_1 u - \partial_2 v`,
    :math:`s_s = \partial_1 v + \partial_2 u`, ``(N, *grid)``, 1/time."""
    slope = _velocity_gradient(u, v, calculus)
    return torch.hypot(slope[:, 0, 0] - slope[:, 1, 1], slope[:, 1, 0] + slope[:, 0, 1])


@register_physics("okubo_weiss")
def okubo_weiss(strain: Tensor, vorticity: Tensor) -> Tensor:
    r""":math:`s_n^2 + s_s^2 - \omega^2`, ``(N, *grid)``, 1/time^2: negative in vortices, positive where strain wins."""
    return strain.square() - vorticity.square()


@register_physics("gradient_magnitude")
def gradient_magnitude(scalar: Tensor, calculus: Calculus) -> Tensor:
    r""":math:`|\nabla c|` of the field ``scalar``, ``(N, *grid)``, its units per length."""
    return calculus.gradient(scalar).norm(dim=1)


@register_physics("flux")
def flux(scalar: Tensor, u: Tensor, v: Tensor, calculus: Calculus) -> Tensor:
    """Advective flux ``(c u, c v)`` of the field ``scalar``, ``(N, 2, *grid)``, its units times length/time."""
    _planar(calculus)
    return torch.stack([scalar * u, scalar * v], 1)


@register_physics("darcy_flux")
def darcy_flux(coefficient: Tensor, solution: Tensor, calculus: Calculus) -> Tensor:
    r""":math:`-a\nabla u`, ``(N, n_dim, *grid)``, units of a times those of u per length, on a box with walls.

    The means of the fluxes through the two faces beside each point, a at a face being the harmonic mean of its neighbours;
    extrapolated linearly to the walls. Second order where a is smooth, and exact along an axis on which the flux is constant,
    however a jumps.
    """
    if not isinstance(calculus, WalledBox):
        raise ValueError(f"Darcy's domain has walls: pass calculus=WalledBox(lengths), not a {type(calculus).__name__}")
    parts = []
    for axis, step in enumerate(calculus.steps(coefficient.shape[1:]), start=1):
        a, u = coefficient.movedim(axis, -1), solution.movedim(axis, -1)
        conductance = 2 * a[..., 1:] * a[..., :-1] / (a[..., 1:] + a[..., :-1])
        face = -conductance * u.diff(dim=-1) / step
        first, last = 2 * face[..., :1] - face[..., 1:2], 2 * face[..., -1:] - face[..., -2:-1]
        face = torch.cat([first, face, last], -1)
        parts.append(((face[..., 1:] + face[..., :-1]) / 2).movedim(-1, axis))
    return torch.stack(parts, 1)


@register_physics("darcy_speed")
def darcy_speed(darcy_flux: Tensor) -> Tensor:
    r""":math:`|a\nabla u|`, ``(N, *grid)``."""
    return darcy_flux.norm(dim=1)


@register_physics("interface_distance")
def interface_distance(coefficient: Tensor, calculus: Calculus) -> Tensor:
    """Signed distance to the interface between the two phases of a coefficient, ``(N, *grid)``, in units of length: positive
    where the coefficient is above the middle of its range, negative below.

    The interface lies half a grid spacing from the points beside it, which is exact where it runs along the grid.

    Raises
    ------
    ValueError
        If a sample has one phase only.
    """
    grid = coefficient.shape[1:]
    high = coefficient > (coefficient.min() + coefficient.max()) / 2
    alone = (high.flatten(1).all(1) | ~high.flatten(1).any(1)).nonzero()[:, 0].tolist()
    if alone:
        raise ValueError(f"no interface in samples {alone}: the coefficient stays on one side of the middle of its range")
    half = calculus.spacing(grid) / 2
    far = [torch.where(one, calculus.distance(~one) - half, half - calculus.distance(one)) for one in high]
    return torch.stack(far).to(coefficient)
