"""Concept layers over a convolution of which nothing is known: every concept is computed, then most are dropped.

That is the dense path: right for any linear layer with the signature of neuralop's ``conv_module``, and slow. It suits a
first try and small dictionaries; a :class:`~neuralop_sae.layers.convolutions.Convolution` makes the layer fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .concept_layer import ConceptLayer
from .convolutions import Convolution
from .fourier import FourierBasis
from .moments import Energies, Spectrum
from .selection import Selection

_CHUNK = 64


class _OpaqueLayer(ConceptLayer):
    """What encoder and decoder share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: Sequence[int],
        *,
        conv_module: Convolution,
        skip: str | None = "linear",
        factorization: str | None = None,
        rank: float | int | Sequence[int] = 1.0,
    ) -> None:
        super().__init__(in_channels, out_channels, conv_module, skip=skip, factorization=factorization, rank=rank)
        self.n_modes = tuple(n_modes)


class OpaqueEncoder(_OpaqueLayer):
    """Scalar pre-codes of p concepts by any convolution; the methods are those of
    :class:`~neuralop_sae.layers.ConceptEncoder`."""

    def __init__(self, in_channels: int, n_concepts: int, n_modes: Sequence[int], **kwargs: Any) -> None:
        super().__init__(in_channels, n_concepts, n_modes, **kwargs)
        self.in_channels, self.n_concepts = in_channels, n_concepts

    @torch.no_grad()
    def energies(self, spectrum: Spectrum) -> Energies:
        """Mean and mean square of every pre-code."""
        codes = self.dense_forward(spectrum.field)
        quadrature = self.basis.quadrature(spectrum.grid, like=codes)
        return Energies((codes * quadrature).flatten(2).sum(-1), self.basis.mean_square(codes))

    def gather(self, spectrum: Spectrum, selection: Selection) -> Tensor:
        """Pre-codes of the selected pairs, with gradient, ``(n, *grid)``."""
        return self.dense_forward(spectrum.field)[selection.sample, selection.concept]

    @torch.no_grad()
    def copy_adjoint(self, decoder: OpaqueDecoder) -> None:
        """The adjoint of a decoder's pointwise part; what the adjoint of its convolution is, is not known."""
        if self.skip is not None and decoder.skip is not None:
            self.skip.conv.weight.copy_((decoder.skip.conv.weight * decoder.scale.view(1, -1, 1)).transpose(0, 1))


class OpaqueDecoder(_OpaqueLayer):
    """Fields written by p concepts through any convolution; the methods are those of
    :class:`~neuralop_sae.layers.ConceptDecoder`.

    Attributes
    ----------
    scale : Tensor
        ``(p,)``: factors on the codes, by which concepts are scaled.
    """

    scale: Tensor

    def __init__(self, out_channels: int, n_concepts: int, n_modes: Sequence[int], **kwargs: Any) -> None:
        super().__init__(n_concepts, out_channels, n_modes, **kwargs)
        self.out_channels, self.n_concepts = out_channels, n_concepts
        self.register_buffer("scale", torch.ones(n_concepts))
        self.register_buffer("spectral_scale", torch.ones(()))
        self.spectral_scale: Tensor

    def dense_forward(self, field: Tensor) -> Tensor:
        """All concepts, ``(B, p, *grid)`` -> ``(B, m, *grid)``."""
        scaled = field * self.scale.view(-1, *(1,) * self.basis.n_dim)
        written = self._spectral(scaled) + self.bias_field(field.shape[2:])
        return written if self.skip is None else written + self.skip(scaled)

    def bias_field(self, grid: Sequence[int]) -> Tensor:
        """What is written where no concept is on, ``(m, *grid)``."""
        return self.conv(self.scale.new_zeros(1, self.n_concepts, *grid))[0]  # type: ignore[no-any-return]

    def _spectral(self, field: Tensor) -> Tensor:
        return (self.conv(field) - self.bias_field(field.shape[2:])) * self.spectral_scale

    def _scattered(self, codes: Tensor, selection: Selection) -> Tensor:
        dense = codes.new_zeros(selection.n_samples, self.n_concepts, *codes.shape[1:])
        return dense.index_put((selection.sample, selection.concept), codes)

    def contract(self, codes: Tensor, selection: Selection) -> Tensor:
        """Sum over the concepts that are on, bias left out: ``(n, *grid)`` -> ``(n_samples, m, *grid)``."""
        dense = self._scattered(codes, selection)
        return self.dense_forward(dense) - self.bias_field(codes.shape[1:])

    def forward(self, codes: Tensor, selection: Selection) -> Tensor:
        """:meth:`contract` with the bias."""
        return self.dense_forward(self._scattered(codes, selection))

    @torch.no_grad()
    def scale_concepts(self, scale: Tensor) -> None:
        """Multiply each concept by a factor, ``scale (p,)``."""
        self.scale.mul_(scale)

    @torch.no_grad()
    def scale_spectral(self, norm: float) -> None:
        """Scale the convolution so that the root mean square of the concepts' norms in it is `norm`."""
        atoms = self.atoms(torch.arange(self.n_concepts, device=self.scale.device), pointwise=False)
        self.spectral_scale.mul_(norm / self._norms(atoms).square().mean().sqrt().clamp_min(1e-12))

    def kernel_norms(self, concepts: Tensor | None = None, through: Tensor | None = None) -> Tensor:
        """L2 norm of each concept's atom over all channels, ``(p,)``, or of those that are named; without gradient. With a
        matrix ``through (l, m)`` norms are of what it makes of the channels."""
        every = torch.arange(self.n_concepts, device=self.scale.device)
        atoms = self.atoms(every if concepts is None else concepts)
        return self._norms(atoms if through is None else torch.einsum("nm...,lm->nl...", atoms, through))

    def _norms(self, atoms: Tensor) -> Tensor:
        return self.basis.mean_square(atoms).sum(1).sqrt()

    @torch.no_grad()
    def atoms(self, concepts: Tensor, shape: Sequence[int] | None = None, *, pointwise: bool = True) -> Tensor:
        """What each concept writes for the unit impulse in the middle of the domain, ``(n, m, *shape)``; with or without its
        pointwise part."""
        grid = self.basis.smallest_grid() if shape is None else shape
        impulse = self.basis.centred(self.basis.synthesis(self.basis.impulse(like=self.scale), grid))
        parts = []
        for some in concepts.split(_CHUNK):  # a field with as many channels as concepts for each of them
            field = impulse.new_zeros(len(some), self.n_concepts, *grid)
            field[torch.arange(len(some)), some] = impulse * self.scale[some].view(-1, *(1,) * len(grid))
            written = self._spectral(field)
            parts.append(written + self.skip(field) if self.skip is not None and pointwise else written)
        return torch.cat(parts) if parts else impulse.new_zeros(0, self.out_channels, *grid)


class Opaque(Convolution):
    """Any class with the signature of neuralop's ``conv_module``: ``(in_channels, out_channels, n_modes, ...)``, linear up
    to a bias, from fields ``(B, in, *grid)`` to ``(B, out, *grid)``. The domain counts as a periodic box.

    Parameters
    ----------
    conv_module : type
        The class.
    n_modes : tuple of int
        As in neuralop.
    **options
        Further arguments of the class.
    """

    encoder = OpaqueEncoder
    decoder = OpaqueDecoder

    def __init__(self, conv_module: type[nn.Module], n_modes: Sequence[int], **options: Any) -> None:
        self.conv_module, self.n_modes, self.options = conv_module, tuple(n_modes), options
        self.basis: FourierBasis = FourierBasis(self.n_modes)

    def make(self, in_channels: int, out_channels: int, *, factorization: str | None, rank: Any) -> Any:
        """See :class:`Convolution`; the form of the weight is asked for if the class takes it."""
        taken = inspect.signature(self.conv_module).parameters
        form = {"factorization": factorization, "rank": rank} if factorization else {}
        unknown = sorted(name for name in form if name not in taken)
        if unknown:
            raise ValueError(f"{self.conv_module.__name__} takes no {' and '.join(unknown)}: leave factorization=None")
        return self.conv_module(in_channels, out_channels, self.n_modes, **form, **self.options)

    def block_module(self) -> type[nn.Module]:
        """The class itself."""
        return self.conv_module
