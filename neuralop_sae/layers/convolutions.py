"""How convolutions hold concepts: one :class:`Convolution` for each class of layer that can, in a registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.layers.spherical_convolution import SphericalConv
from torch import Tensor, nn

from ..registry import Registry
from .basis import SpectralBasis
from .fourier import FourierBasis
from .spectral_convolution import BasisConv, FourierConv
from .spherical import SphericalBasis
from .spherical_convolution import KERNELS, ConceptSphericalConv

concept_layers: Registry[type[Convolution]] = Registry("concept layer")

C = TypeVar("C", bound="type[Convolution]")


class Convolution(ABC):
    """How a class of convolutions holds concepts: over which basis, and how one is made.

    The layer's weight is a FactorizedTensor of the shape (in, out, \\*kernel_shape), its bias ``(out, 1, ...)``, and it
    multiplies the coefficients of :attr:`basis` mode by mode, in their order (:class:`FourierBasis`: frequencies ascending
    from -(n // 2), those of the last axis from 0). Everything else (energies, gathering, contraction, atoms)
    follows from the basis and the weight. A layer for which that does not hold gives an :attr:`encoder` and a
    :attr:`decoder` of its own, with the methods of :class:`~neuralop_sae.layers.ConceptEncoder` and
    :class:`~neuralop_sae.layers.ConceptDecoder`.

    Parameters
    ----------
    n_modes : tuple of int
        As the user gave it.
    **options
        Plain data, `conv_options` of the model.

    Attributes
    ----------
    conv_module : type
        The class of layer, set by :func:`register_concept_layer`.
    basis : SpectralBasis
        To be set by the constructor.
    kernel_shape : tuple of int
        Modes of a weight: the first axes of the basis's ``mode_shape``. Coefficients along the others share a weight.
    encoder, decoder : type or None
        Concept layers other than those of this package, called as ``encoder(channels, n_concepts, n_modes, conv_module=self,
        skip=..., factorization=..., rank=...)``.
    """

    conv_module: type[nn.Module]
    basis: Any
    encoder: ClassVar[Any] = None
    decoder: ClassVar[Any] = None

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """See the class."""
        return self.basis.mode_shape

    @abstractmethod
    def make(self, in_channels: int, out_channels: int, *, factorization: str | None, rank: Any) -> Any:
        """A layer with a weight of this form; `rank` is explicit."""

    def dense(self, conv: nn.Module, field: Tensor) -> Tensor:
        """The layer's own forward pass, which is the oracle, ``(B, in, *grid)`` -> ``(B, out, *grid)``; what is right in its
        place where upstream is wrong."""
        return conv(field)  # type: ignore[no-any-return]

    def block_module(self) -> type[nn.Module]:
        """The class to hand to neuralop's FNOBlocks, for operators before and after the concepts."""
        return BasisConv.over(self.basis)


def register_concept_layer(conv_module: type[nn.Module]) -> Callable[[C], C]:
    """Decorator that adds the :class:`Convolution` of a class of layers, under the name of the class.

    Raises
    ------
    ValueError
        If the name is taken.
    TypeError
        If what is decorated is no subclass of :class:`Convolution`.

    Examples
    --------
    >>> {"SpectralConv", "SphericalConv"} - set(map(concept_layers.name_of, map(concept_layers.get, concept_layers)))
    set()
    """

    def add(convolution: C) -> C:
        if not (isinstance(convolution, type) and issubclass(convolution, Convolution)):
            raise TypeError(
                f"@register_concept_layer({conv_module.__name__}) decorates a subclass of neuralop_sae.Convolution, which "
                f"says how {conv_module.__name__} holds concepts; got {convolution!r}"
            )
        convolution.conv_module = conv_module
        return concept_layers.register(conv_module.__name__)(convolution)  # type: ignore[return-value]

    return add


class OverBasis(Convolution):
    """neuralop's weights over any registered basis."""

    def __init__(self, basis: SpectralBasis) -> None:
        self.basis = basis
        self.conv_module = BasisConv.over(basis)

    def make(self, in_channels: int, out_channels: int, *, factorization: str | None, rank: Any) -> Any:
        return self.conv_module(in_channels, out_channels, factorization=factorization, rank=rank, implementation="factorized")


@register_concept_layer(SpectralConv)
class _Fourier(Convolution):
    """Concepts in a SpectralConv, on a periodic box."""

    def __init__(self, n_modes: tuple[int, ...]) -> None:
        self.basis: FourierBasis = FourierBasis(n_modes)

    def make(self, in_channels: int, out_channels: int, *, factorization: str | None, rank: Any) -> Any:
        return SpectralConv(
            in_channels,
            out_channels,
            self.basis.n_modes,
            factorization=factorization,
            rank=rank,
            implementation="factorized",
            fft_norm="forward",
        )

    def dense(self, conv: nn.Module, field: Tensor) -> Tensor:
        """Upstream, and a plain reference where its transform is wrong (odd leading grid sizes, float64)."""
        upstream_is_right = field.dtype == torch.float32 and all(size % 2 == 0 for size in field.shape[2:-1])
        return conv(field) if upstream_is_right else self._reference(conv, field)  # type: ignore[no-any-return]

    def _reference(self, conv: Any, field: Tensor) -> Tensor:
        """SpectralConv by one full transform and explicit frequencies."""
        grid = field.shape[2:]
        dims = tuple(range(2, field.ndim))
        spectrum = torch.fft.rfftn(field, dim=dims, norm="forward")
        weight = conv.weight.to_tensor()
        frequencies = [torch.tensor(list(k)) for k in self.basis.frequencies()]
        held = [(2 * k.abs() <= n) & (2 * k != n) for k, n in zip(frequencies[:-1], grid[:-1], strict=True)]
        held.append(2 * frequencies[-1] <= grid[-1])
        for axis, keep in enumerate(held):
            weight = weight.index_select(axis + 2, keep.nonzero()[:, 0].to(weight.device))
        kept = [k[h] % n for k, h, n in zip(frequencies[:-1], held[:-1], grid[:-1], strict=True)]
        kept.append(frequencies[-1][held[-1]])
        index = (slice(None), slice(None), *torch.meshgrid(*kept, indexing="ij"))
        out = spectrum.new_zeros(len(field), weight.shape[1], *spectrum.shape[2:])
        out[index] = torch.einsum("bi...,io...->bo...", spectrum[index], weight)
        return torch.fft.irfftn(out, s=grid, dim=dims, norm="forward") + conv.bias

    def block_module(self) -> type[nn.Module]:
        return FourierConv


@register_concept_layer(SphericalConv)
class _Spherical(Convolution):
    """Concepts in a SphericalConv, on the sphere; see :class:`~neuralop_sae.SAESFNO` for the options."""

    def __init__(
        self, n_modes: tuple[int, ...], grid: str = "equiangular", kernel: str = "zonal", isotropic: bool = False
    ) -> None:
        if kernel not in KERNELS:
            raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(KERNELS)}")
        if isotropic and kernel != "zonal":
            raise ValueError("an isotropic concept has one real weight per degree: use kernel='zonal'")
        self.basis: SphericalBasis = SphericalBasis(n_modes, grid)
        self.kernel, self.isotropic = kernel, isotropic

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return self.basis.mode_shape[: KERNELS[self.kernel]]

    def make(self, in_channels: int, out_channels: int, *, factorization: str | None, rank: Any) -> Any:
        return ConceptSphericalConv(
            in_channels,
            out_channels,
            self.basis.n_modes,
            factorization=factorization,
            rank=rank,
            implementation="factorized",
            sht_grids=self.basis.grid,
            kernel=self.kernel,
            isotropic=self.isotropic,
        )

    def block_module(self) -> type[nn.Module]:
        return ConceptSphericalConv.on(self.basis.grid)
