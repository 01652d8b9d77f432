"""Encoders without kernels of their own: they read with the adjoint of the decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from .concepts import ConceptDecoder, on_grid
from .exchange import ALONE, Exchange
from .moments import Energies, Spectrum, energies
from .rows import take_rows
from .selection import Selection


class AdjointEncoder(nn.Module, ABC):
    r"""Pre-codes ``z_c = g_c (D* x)_c + b_c`` with the adjoint of the decoder, :math:`\langle D a, x\rangle = \langle a,
    D^* x\rangle`: the conjugate transpose of its kernels per mode, and the transpose of its pointwise part. The methods are
    those of :class:`~neuralop_sae.layers.ConceptEncoder`.

    Parameters
    ----------
    decoder : ConceptDecoder
        Whose weights are read, now and as they change.

    Attributes
    ----------
    bias : Parameter
        b, ``(p,)``.
    """

    exchange: Exchange = ALONE

    def __init__(self, decoder: ConceptDecoder) -> None:
        super().__init__()
        if not isinstance(decoder, ConceptDecoder):
            raise TypeError(
                f"the adjoint is known for kernels that can be read, which a {type(decoder).__name__} does not show: take "
                "encoder='linear'"
            )
        self._decoder = (decoder,)  # in a tuple: its parameters are not this module's
        self.in_channels, self.n_concepts = decoder.out_channels, decoder.n_concepts
        self.basis, self.convolution = decoder.basis, decoder.convolution
        self.bias = nn.Parameter(torch.zeros(self.n_concepts))

    @property
    def decoder(self) -> ConceptDecoder:
        """The decoder."""
        return self._decoder[0]

    @abstractmethod
    def gains(self, spectrum: Spectrum) -> Tensor:
        """g, ``(p,)``."""

    @torch.no_grad()
    def energies(self, spectrum: Spectrum) -> Energies:
        """Mean and mean square of every pre-code, with no inverse transform."""
        # The pre-codes of a conjugated spectrum by the decoder's own kernels are the conjugates: of the same moments.
        conjugate = replace(spectrum, coefficients=spectrum.coefficients.conj_physical())
        decoder, none = self.decoder, torch.zeros_like(self.bias)
        form = decoder.energy_form(spectrum.grid)
        mean, mean_square = energies(decoder.kernels, decoder.pointwise, none, conjugate, self.basis, form)
        mean, mean_square = mean * self.gains(spectrum), mean_square * self.gains(spectrum).square()
        return Energies(mean + self.bias, (mean_square + self.bias * (2 * mean + self.bias)).clamp_min_(0))

    def gather(self, spectrum: Spectrum, selection: Selection) -> Tensor:
        """Pre-codes of the selected pairs, with gradient, ``(n, *grid)``."""
        kernels, concept = self.decoder.kernels, selection.concept
        spectral = kernels.respond(spectrum.coefficients.conj_physical(), selection).conj_physical()
        read = on_grid(spectral, self.decoder.skip_rows(concept), spectrum, selection, self.basis)
        each = (-1, *(1,) * self.basis.n_dim)
        return read * take_rows(self.gains(spectrum), concept).view(each) + take_rows(self.bias, concept).view(each)

    def dense_adjoint(self, field: Tensor) -> Tensor:
        """D* x by a plain product with the whole weight, ``(B, m, *grid)`` -> ``(B, p, *grid)``."""
        decoder, basis = self.decoder, self.basis
        weight = decoder.conv.weight.to_tensor().conj() + 0j
        weight = weight.view(*weight.shape, *(1,) * (len(basis.mode_shape) - weight.ndim + 2))
        coefficients = torch.einsum("bi...,ci...->bc...", basis.analysis(field), weight)
        read = basis.synthesis(coefficients, field.shape[2:])
        if decoder.skip is None:
            return read
        return read + torch.einsum("ic,bi...->bc...", decoder.skip.conv.weight[..., 0], field)

    def _per_concept(self, values: Tensor) -> Tensor:
        return values.view(-1, *(1,) * self.basis.n_dim)

    @torch.no_grad()
    def zero_bias(self) -> None:
        """Set the bias to zero."""
        self.bias.zero_()

    def concept_axes(self) -> dict[str, int]:
        """See :meth:`~neuralop_sae.layers.ConceptEncoder.concept_axes`."""
        return {name: 0 for name, _ in self.named_parameters()}

    def divide(self, n_concepts: int, exchange: Exchange) -> None:
        """See :meth:`~neuralop_sae.layers.ConceptEncoder.divide`."""
        self.n_concepts, self.exchange = n_concepts, exchange


@final
class TiedEncoder(AdjointEncoder):
    """One step with the adjoint, of a learned gain per concept.

    Attributes
    ----------
    gain : Parameter
        g, ``(p,)``.
    """

    def __init__(self, decoder: ConceptDecoder) -> None:
        super().__init__(decoder)
        self.gain = nn.Parameter(torch.ones(self.n_concepts))

    def gains(self, spectrum: Spectrum) -> Tensor:
        """See :class:`AdjointEncoder`."""
        return self.gain

    def dense_forward(self, field: Tensor) -> Tensor:
        """All pre-codes, ``(B, m, *grid)`` -> ``(B, p, *grid)``."""
        return self._per_concept(self.gain) * self.dense_adjoint(field) + self._per_concept(self.bias)

    @torch.no_grad()
    def copy_adjoint(self, decoder: ConceptDecoder) -> None:
        """Become the adjoint itself: unit gains."""
        self.gain.fill_(1)
