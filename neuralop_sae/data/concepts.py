r"""Families of known concepts: kernels in closed form, which can be written at any position and seen on any grid.

A kernel has L2 norm one over all channels, in physical measure: length, area or volume of the box, share of the sphere's
area.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .arguments import at_least, positive
from .domains import Box, Domain, Sphere

__all__ = ["Gabors", "Kernels", "ZonalKernels"]

D = TypeVar("D", bound=Domain)


class Kernels(ABC, Generic[D]):
    """The kernels of p known concepts.

    Attributes
    ----------
    n_concepts, channels : int
        p, and the channels m of a field.
    """

    n_concepts: int
    channels: int

    @abstractmethod
    def domain(self, length: float) -> D:
        """The domain, of a length where it has one."""

    @abstractmethod
    def write(self, concept: Tensor, position: Tensor, shape: Sequence[int], domain: D) -> Tensor:
        """Kernels of concepts ``(n,)`` at positions ``(n, n_dim)``, seen on a grid, ``(n, channels, *shape)``, float64."""


@dataclass(frozen=True)
class Gabors(Kernels[Box]):
    r"""Gabors on a periodic box: waves under Gaussian envelopes,

    .. math:: \kappa_{ci}(s) = \exp\Bigl(-\frac{|s|^2}{2 w_c^2}\Bigr)\,\mathrm{Re}\bigl(A_{ci}\,e^{2\pi i\,k_c\cdot s}\bigr).

    Wavenumbers are spaced evenly over their range and so are widths, in a random order; directions, where there are
    several dimensions, evenly over half a turn, and the amplitudes :math:`A_{ci}`, in which the channels' phases are, are
    random.

    Parameters
    ----------
    n_concepts, channels : int
        How many, and the channels of a field.
    n_dim : {1, 2}
        Dimensions of the box.
    widths : (float, float)
        Narrowest and widest envelope w, in units of length.
    wavenumbers : (float, float)
        Lowest and highest :math:`|k|`, in cycles per unit length. 0 is a blob; concepts are smooth with the default and rough
        with (16, 32).
    seed : int
        Of the concepts.

    Raises
    ------
    ValueError
        If a number is not allowed.

    Examples
    --------
    >>> rough = Gabors(5, wavenumbers=(16, 32))
    >>> box = rough.domain(1.0)
    >>> rough.write(torch.arange(5), box.middle((128,)).expand(5, 1), (128,), box).shape
    torch.Size([5, 1, 128])
    """

    n_concepts: int
    channels: int = 1
    n_dim: int = 1
    widths: tuple[float, float] = (0.03, 0.08)
    wavenumbers: tuple[float, float] = (0.0, 7.0)
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("n_concepts", self.n_concepts, 1)
        at_least("channels", self.channels, 1)
        if self.n_dim not in (1, 2):
            raise ValueError(f"n_dim is {self.n_dim!r}; Gabors are made for boxes of 1 or 2 dimensions.")
        _check_range("widths", self.widths, zero=False)
        _check_range("wavenumbers", self.wavenumbers, zero=True)

    def domain(self, length: float) -> Box:
        """See :meth:`Kernels.domain`."""
        return Box(self.n_dim, length)

    @cached_property
    def width(self) -> Tensor:
        """w of each concept, ``(p,)``, float64."""
        order = torch.randperm(self.n_concepts, generator=_generator(self.seed, 0))
        return torch.linspace(*self.widths, self.n_concepts, dtype=torch.float64)[order]

    @cached_property
    def wavenumber(self) -> Tensor:
        """k of each concept, ``(p, n_dim)``, float64."""
        size = torch.linspace(*self.wavenumbers, self.n_concepts, dtype=torch.float64)
        if self.n_dim == 1:
            return size[:, None]
        order = torch.randperm(self.n_concepts, generator=_generator(self.seed, 1))
        angle = torch.pi * order / self.n_concepts
        return size[:, None] * torch.stack([angle.cos(), angle.sin()], 1)

    @cached_property
    def amplitude(self) -> Tensor:
        """A of each concept and channel, ``(p, channels)``, complex128."""
        shape = (self.n_concepts, self.channels)
        drawn = torch.randn(shape, dtype=torch.complex128, generator=_generator(self.seed, 2))
        # The square of the real part of a wave packet is half its modulus squared and half a packet of twice the wavenumber.
        modulus = (torch.pi**0.5 * self.width) ** self.n_dim / 2
        beat = (-(2 * torch.pi * self.width * self.wavenumber.norm(dim=1)).square()).exp()
        square = modulus * (drawn.abs().square() + drawn.square().real * beat[:, None]).sum(1)
        return drawn / square.sqrt()[:, None]

    def write(self, concept: Tensor, position: Tensor, shape: Sequence[int], domain: Box) -> Tensor:
        """See :meth:`Kernels.write`."""
        packets = domain.waves(position, shape, self.width[concept], self.wavenumber[concept])
        return torch.einsum("nc,n...->nc...", self.amplitude[concept], packets).real


@dataclass(frozen=True)
class ZonalKernels(Kernels[Sphere]):
    r"""Kernels on the sphere that depend on the angle from their middle, bands of degrees,

    .. math:: \kappa_{ci}(s) = A_{ci} \sum_l (2l + 1)\,d_c(l)\,P_l(s\cdot t), \qquad
              d_c(l) \propto \exp\Bigl(-\frac{(l - l_c)^2}{2 b^2}\Bigr).

    Parameters
    ----------
    n_concepts, channels : int
        How many, and the channels of a field.
    degrees : (float, float)
        Lowest and highest :math:`l_c`; the concepts' are spaced evenly between. 0 is a blob.
    bandwidth : float
        b, in degrees l. Degrees from ``max(degrees) + 6 b`` up are left out.
    grid : {"equiangular", "legendre-gauss", "lobatto"}
        Where fields are sampled.
    seed : int
        Of the amplitudes :math:`A_{ci}`, a random direction for each concept.

    Raises
    ------
    ValueError
        If a number is not allowed.

    Examples
    --------
    >>> zonal = ZonalKernels(4, channels=2)
    >>> zonal.write(torch.arange(4), torch.zeros(4, 2), (9, 16), zonal.domain(1.0)).shape
    torch.Size([4, 2, 9, 16])
    """

    n_concepts: int
    channels: int = 1
    degrees: tuple[float, float] = (0.0, 7.0)
    bandwidth: float = 1.5
    grid: str = "equiangular"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("n_concepts", self.n_concepts, 1)
        at_least("channels", self.channels, 1)
        _check_range("degrees", self.degrees, zero=True)
        positive("bandwidth", self.bandwidth)
        Sphere(self.grid)

    def domain(self, length: float) -> Sphere:
        """See :meth:`Kernels.domain`; ValueError for another length than 1."""
        if length != 1:
            raise ValueError(f"length is {length:g}; the sphere has none: leave it at 1.")
        return Sphere(self.grid)

    @cached_property
    def spectrum(self) -> Tensor:
        """d of each concept, ``(p, degrees)``, float64: ``sum (2 l + 1) d(l)^2`` is 1."""
        l = torch.arange(math.ceil(self.degrees[1] + 6 * self.bandwidth), dtype=torch.float64)  # noqa: E741
        middle = torch.linspace(*self.degrees, self.n_concepts, dtype=torch.float64)
        d = (-0.5 * ((l - middle[:, None]) / self.bandwidth).square()).exp()
        return d / ((2 * l + 1) * d.square()).sum(1, keepdim=True).sqrt()

    @cached_property
    def amplitude(self) -> Tensor:
        """A of each concept and channel, ``(p, channels)``, float64, of norm 1 over the channels."""
        shape = (self.n_concepts, self.channels)
        drawn = torch.randn(shape, dtype=torch.float64, generator=_generator(self.seed, 0))
        return torch.nn.functional.normalize(drawn, dim=1)

    def write(self, concept: Tensor, position: Tensor, shape: Sequence[int], domain: Sphere) -> Tensor:
        """See :meth:`Kernels.write`."""
        u = domain.cosines(position, shape)
        profile = torch.zeros_like(u)
        now, before = torch.ones_like(u), torch.zeros_like(u)  # Legendre polynomials of degrees l and l - 1
        for l, d in enumerate(self.spectrum[concept].T):  # noqa: E741
            profile.addcmul_(now, d[:, None, None], value=2 * l + 1)
            now, before = ((2 * l + 1) * u * now - l * before) / (l + 1), now
        return torch.einsum("nc,nab->ncab", self.amplitude[concept], profile)


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(3 * at_least("seed", seed, 0) + stream)


def _check_range(name: str, values: tuple[float, float], *, zero: bool) -> None:
    low, high = (positive(name, value, zero=zero) for value in values)
    if low > high:
        raise ValueError(f"{name} is ({low:g}, {high:g}); the lower comes first.")
