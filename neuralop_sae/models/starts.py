"""Where dictionaries start: values of fields at points where these are strong, kernels cut out of fields around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.basis import SpectralBasis
from ..layers.concepts import ConceptDecoder
from ..layers.dense import DenseKernels
from ..layers.fourier import FourierBasis
from ..layers.spherical import SphericalBasis

#: Standard deviation of the window around a point, as a share of the box or of the sphere's circumference.
WINDOW = 1 / 8
_CHUNK_BYTES = 256 * 2**20


def directions(points: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Unit vectors towards n of the points, drawn in proportion to their norm, ``(n, channels)``."""
    norms = points.norm(dim=1).clamp_min(1e-12)
    drawn = torch.multinomial(norms.cpu(), n, replacement=True, generator=generator).to(points.device)
    return points[drawn] / norms[drawn, None]


def random_points(
    field: Tensor, generator: torch.Generator | None, quadrature: Tensor | None = None, n: int = 2**15
) -> Tensor:
    """Values at random points of random samples, equal areas being equally likely, ``(n, channels)``."""
    flat = field.flatten(2)
    sample = torch.randint(len(flat), (n,), generator=generator)
    if quadrature is None or quadrature.numel() == 1:  # the same weight everywhere
        point = torch.randint(flat.shape[2], (n,), generator=generator)
    else:
        shares = quadrature.expand(field.shape[2:]).flatten().cpu()
        point = torch.multinomial(shares, n, replacement=True, generator=generator)
    return flat[sample.to(field.device), :, point.to(field.device)]


def strong_points(strength: Tensor, n: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Random points of random samples, drawn in proportion to ``strength (N, *grid)``: sample and index along each axis,
    ``(n,)`` each."""
    candidates = torch.randint(strength.numel(), (2**15,), generator=generator)
    found = strength.flatten()[candidates.to(strength.device)]
    drawn = torch.multinomial(found.cpu().clamp_min(1e-12), n, replacement=True, generator=generator)
    return torch.unravel_index(candidates[drawn].to(strength.device), strength.shape)


def around(field: Tensor, points: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Patches of periodic fields ``(N, m, *grid)`` around points as :func:`strong_points` gives them, ``(n, m, *sizes)``; each
    point is at the index ``size // 2``."""
    grid, (sample, *point) = field.shape[2:], points
    index: list[Any] = [sample.view(-1, *(1,) * len(grid)), slice(None)]
    for axis, (middle, size, period) in enumerate(zip(point, sizes, grid, strict=True)):
        shape = [-1, *(size if axis == other else 1 for other in range(len(grid)))]
        index.append(((middle[:, None] + torch.arange(size, device=field.device) - size // 2) % period).view(shape))
    return field[tuple(index)].movedim(-1, 1)


@torch.no_grad()
def start_kernels(decoder: nn.Module, field: Tensor, generator: torch.Generator | None) -> bool:
    """Fill the kernels of a decoder by :func:`kernels_from`; whether that could be done: not where kernels are factorised or
    unknown, or over a basis of which it knows nothing."""
    if not (isinstance(decoder, ConceptDecoder) and isinstance(decoder.kernels, DenseKernels)):
        return False
    kernels = kernels_from(field, decoder.n_concepts, decoder.basis, generator)
    if kernels is None:
        return False
    weight = decoder.conv.weight.tensor
    kernels = kernels.reshape(*kernels.shape, *(1,) * (weight.ndim - kernels.ndim))  # all orders of a degree alike
    weight.copy_(kernels if weight.is_complex() else kernels.real)
    return True


def kernels_from(field: Tensor, n: int, basis: SpectralBasis, generator: torch.Generator | None) -> Tensor | None:
    r"""Kernels that write, for an impulse, what a field is around one of its strong points.

    A point s is drawn in proportion to the field's norm there, equal areas being equally likely; the field around it is
    multiplied by a Gaussian window g of standard deviation :data:`WINDOW`. On a periodic box the kernel is what is left,
    moved so that s is the origin; on the sphere it is the zonal mean of it about s, the part of it that a kernel can write
    wherever it is put:

    .. math:: W_{ci}(k) = \int g(t)\,x_i(s + t)\,e^{-2\pi i k\cdot t}\,dt, \qquad
              W_{ci}(l) = \int g(t)\,x_i(t)\,P_l(\cos\angle(s, t))\,dt .

    Parameters
    ----------
    field : Tensor
        Normalised fields, ``(N, m, *grid)``.
    n : int
        How many kernels.
    basis : SpectralBasis
        Of the kernels.
    generator : torch.Generator, optional
        Draws samples and points.

    Returns
    -------
    Tensor or None
        ``(n, m, *n_modes)``, complex on a box; real and one for each degree on the sphere. None for another basis, where a
        kernel of one place is none of another.
    """
    if not isinstance(basis, FourierBasis | SphericalBasis):
        return None
    points = strong_points(field.norm(dim=1) * basis.quadrature(field.shape[2:], like=field), n, generator)
    step = max(1, _CHUNK_BYTES // (field[0].numel() * field.element_size()))
    parts = zip(*(index.split(step) for index in points), strict=True)
    if isinstance(basis, FourierBasis):
        return torch.cat([_on_box(basis, field, some) for some in parts])
    return torch.cat([_on_sphere(basis, field, some) for some in parts])


def _on_box(basis: FourierBasis, field: Tensor, points: Sequence[Tensor]) -> Tensor:
    grid = field.shape[2:]
    axes = [(torch.arange(size, dtype=torch.float64) - size // 2) / size for size in grid]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    window = (-offsets.square().sum(0) / (2 * WINDOW**2)).exp().to(field)
    to_origin = [-(size // 2) for size in grid]
    return basis.analysis((around(field, points, grid) * window).roll(to_origin, tuple(range(2, field.ndim))))


def _on_sphere(basis: SphericalBasis, field: Tensor, points: Sequence[Tensor]) -> Tensor:
    (sample, row, column), grid = points, field.shape[2:]
    colatitude, longitude = basis.colatitudes(grid[0]).to(field), basis.longitudes(grid[1]).to(field)
    latitudes = colatitude[row].cos()[:, None] * colatitude.cos(), colatitude[row].sin()[:, None] * colatitude.sin()
    cosine = latitudes[0][..., None] + latitudes[1][..., None] * (longitude - longitude[column, None]).cos()[:, None]
    window = ((cosine - 1) / (2 * math.pi * WINDOW) ** 2).exp()
    patch = basis.analysis(field[sample] * window[:, None])
    impulse = field.new_zeros(len(sample), 1, *grid)
    impulse[torch.arange(len(sample)), 0, row, column] = 1 / basis.quadrature(grid, like=field)[row, 0]
    along = basis.weights(like=field) * (basis.analysis(impulse).conj() * patch).real
    return along.sum(-1) / (2 * torch.arange(along.shape[-2]).to(field) + 1)
