"""Kinds of grids and their bases: those of an operator, of a description, of coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.layers.spherical_convolution import SphericalConv
from torch import nn

from ..layers.basis import SpectralBasis, bases
from ..layers.fourier import FourierBasis
from ..layers.spherical import SphericalBasis

__all__ = ["LATITUDES", "LONGITUDES", "TIMES", "basis_from", "basis_of", "describe_basis", "grid_of"]

LATITUDES, LONGITUDES, TIMES = ("lat", "latitude"), ("lon", "longitude"), ("time", "valid_time")


def basis_of(model: nn.Module) -> SpectralBasis | None:
    """The kind of basis that an operator of neuralop works in, with a single mode: enough for quadrature and coordinates.
    None for an operator without spectral layers."""
    for module in model.modules():
        if isinstance(module, SphericalConv):
            return SphericalBasis((1, 2), module.sht_grids[0])
        if isinstance(module, SpectralConv):
            return FourierBasis((1,) * module.order)
    return None


def describe_basis(basis: SpectralBasis) -> dict[str, Any]:
    """Name and arguments of a basis as plain data."""
    return {"name": bases.name_of(type(basis)), **basis.config()}


def basis_from(description: dict[str, Any]) -> SpectralBasis:
    """The basis of such a description."""
    arguments = dict(description)
    return bases.get(arguments.pop("name"))(**arguments)


def grid_of(
    points: Mapping[str, np.ndarray], dims: Sequence[str], grid: Sequence[int]
) -> tuple[str, SpectralBasis | None, tuple[float, ...] | None]:
    """Kind, basis and lengths of a grid, by the coordinates of its axes.

    Parameters
    ----------
    points : mapping of str to numpy.ndarray
        Coordinates of the axes that have some.
    dims : sequence of str
        Names of the axes.
    grid : sequence of int
        Points along each.

    Returns
    -------
    tuple
        As in `LabelledFields`.

    Raises
    ------
    ValueError
        If the points are on no grid known, or in another order.
    """
    if len(dims) == 2 and dims[0] in LATITUDES and dims[1] in LONGITUDES:
        if set(points) != set(dims):
            raise ValueError(
                f"{' and '.join(dims)} have no coordinates: assign them in degrees, or rename them y and x for a box"
            )
        kind = _kind_of(points[dims[0]].astype(float))
        _check_longitudes(points[dims[1]].astype(float))
        return kind, None if kind == "midpoint" else SphericalBasis((1, 2), kind), None
    lengths = []
    for name, values in points.items():
        if not np.issubdtype(values.dtype, np.number) or len(values) < 2:
            break
        steps = np.diff(values.astype(float))
        if not np.allclose(steps, steps.mean(), rtol=1e-3) or steps.mean() <= 0:
            raise ValueError(f"the points of {name} are not evenly spaced and rising: interpolate to such a grid first")
        lengths.append(float(steps.mean() * len(values)))
    return "box", FourierBasis((1,) * len(grid)), tuple(lengths) if len(lengths) == len(grid) else None


def _kind_of(latitudes: np.ndarray) -> str:
    """The grid that latitudes in degrees make; ValueError if none."""
    n = len(latitudes)
    tolerance = 0.02 * 180 / max(1, n)  # files keep few digits; kinds differ by far more
    known = {kind: 90 - np.rad2deg(SphericalBasis((1, 2), kind).colatitudes(n).numpy()) for kind in _kinds(n)}
    known["midpoint"] = 90 - 180 * (np.arange(n) + 0.5) / n
    for kind, values in known.items():
        if np.allclose(latitudes, values, rtol=0, atol=tolerance):
            return kind
        if np.allclose(latitudes[::-1], values, rtol=0, atol=tolerance):
            raise ValueError(
                "latitudes run from south to north, and the transforms on the sphere begin at the north pole: turn them, as "
                "with dataset.isel(lat=slice(None, None, -1))"
            )
    raise ValueError(
        f"{n} latitudes from {latitudes[0]:g} to {latitudes[-1]:g} are on no grid of the whole sphere that is known "
        f"({', '.join(known)}): interpolate to one of them; for a region, rename the dimensions y and x"
    )


def _kinds(nlat: int) -> list[str]:
    return ["equiangular", "legendre-gauss", "lobatto"] if nlat > 2 else ["legendre-gauss"]


def _check_longitudes(longitudes: np.ndarray) -> None:
    step = 360 / len(longitudes)
    if not np.allclose(np.diff(longitudes), step, rtol=0, atol=0.02 * step):
        raise ValueError(
            f"{len(longitudes)} longitudes from {longitudes[0]:g} to {longitudes[-1]:g} do not go round the sphere once in "
            "even steps eastward: sort them, and leave out a meridian that is there twice"
        )
