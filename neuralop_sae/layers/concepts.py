"""Concept layers: p integral operators between m channels and scalar codes, held by a neuralop spectral convolution.

An encoder maps a field to one scalar code per concept, a decoder writes codes back as fields. Both hold neuralop's own
layers (``conv``: SpectralConv; ``skip``: the FNO block's pointwise skip) and work on the concepts that are on;
``dense_forward`` calls the neuralop layers themselves on every concept and is the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tltorch.factorized_tensors.core import FactorizedTensor
from torch import Tensor, nn

from .basis import SpectralBasis
from .concept_layer import ConceptLayer
from .conv_modules import convolution_of
from .convolutions import Convolution
from .exchange import Exchange
from .factorized import MixedKernels
from .kernels import Kernels, kernels_of
from .moments import Energies, EnergyForm, Spectrum, energies, kernel_norms, norms_of
from .ranks import decoder_rank, dictionary_rank
from .rows import take_rows
from .selection import Selection


class _SpectralLayer(ConceptLayer):
    """What encoder and decoder share: the neuralop layers, seen concept by concept."""

    concept_axis: int
    n_concepts: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: Sequence[int],
        *,
        conv_module: str | type[nn.Module] | Convolution = "SpectralConv",
        conv_options: Mapping[str, Any] | None = None,
        skip: str | None = "linear",
        factorization: str | None = None,
        rank: float | int | Sequence[int] = 1.0,
    ) -> None:
        convolution = convolution_of(conv_module, n_modes, conv_options)
        channels, concepts = (in_channels, out_channels) if self.concept_axis else (out_channels, in_channels)
        ranks = self._explicit_rank(factorization, rank, channels, concepts, convolution) if factorization else 1.0
        super().__init__(in_channels, out_channels, convolution, skip=skip, factorization=factorization, rank=ranks)
        _check_weight(self.conv)
        self.n_modes = tuple(n_modes)
        self.multiplicity = math.prod(self.basis.mode_shape) // math.prod(convolution.kernel_shape)
        self.kernels.lay_out_()
        if isinstance(self.kernels, MixedKernels):
            self.kernels.reset_((channels * self.kernels.n_modes) ** -0.5)
        if self.skip is not None and self.concept_axis == 0:
            weight = self.skip.conv.weight
            weight.data = weight.data.transpose(0, 1).contiguous().transpose(0, 1)
        self._forms: dict[tuple[object, ...], EnergyForm] = {}

    def _explicit_rank(
        self,
        factorization: str,
        rank: float | int | Sequence[int],
        n_channels: int,
        n_concepts: int,
        convolution: Convolution,
    ) -> int | tuple[int, ...]:
        """Ranks in the order of this layer's axes, from those in the encoder's."""
        if isinstance(rank, Sequence) and self.concept_axis == 0:
            rank = decoder_rank(factorization, rank, n_concepts)
        return dictionary_rank(
            factorization,
            rank,
            n_channels=n_channels,
            n_concepts=n_concepts,
            mode_shape=convolution.kernel_shape,
            axis=self.concept_axis,
        )

    @property
    def kernels(self) -> Kernels:
        """The spectral weight, concept by concept."""
        kernels = kernels_of(self.conv.weight, self.concept_axis, self.multiplicity)
        kernels.exchange = self.exchange
        return kernels

    def skip_rows(self, concepts: Tensor | slice) -> Tensor | None:
        """Pointwise parts of some concepts, ``(n, m)``; None without a skip."""
        if self.skip is None:
            return None
        return take_rows(self.skip.conv.weight, concepts, 1 - self.concept_axis).squeeze(-1)

    @property
    def pointwise(self) -> Tensor | None:
        """All pointwise parts, ``(p, m)``, without gradient."""
        skip = self.skip_rows(slice(None))
        return None if skip is None else skip.detach()

    def concept_axes(self) -> dict[str, int]:
        """Names of parameters that hold something for each concept, with the axis that counts concepts; empty where a factor
        stored as pairs of reals is a view of its parameter."""
        owned, axis = self.kernels.concept_tensor
        axes = {name: axis for name, parameter in self.named_parameters() if parameter is owned}
        if not axes:
            return {}
        if self.concept_axis:
            axes["conv.bias"] = 0
        return axes if self.skip is None else axes | {"skip.conv.weight": 1 - self.concept_axis}

    def divide(self, n_concepts: int, exchange: Exchange) -> None:
        """Become a shard: the tensors of :meth:`concept_axes` hold so many concepts by now."""
        self.kernels.resize_(n_concepts)
        self.n_concepts, self.exchange = n_concepts, exchange

    def energy_form(self, shape: Sequence[int] | None) -> EnergyForm:
        """The energy form of the basis on a grid (None: on the continuum), made once."""
        like = self.conv.bias
        key = (None if shape is None else tuple(shape), like.device, like.dtype)
        if key not in self._forms:
            # Made in a caller's inference mode, it would break later backward passes.
            with torch.inference_mode(False):
                self._forms[key] = EnergyForm(self.basis, shape, like.detach())
        return self._forms[key]


def _check_weight(conv: nn.Module) -> None:
    """TypeError unless a layer holds its weight as concepts are read from it."""
    weight = getattr(conv, "weight", None)
    if not isinstance(weight, FactorizedTensor):
        raise TypeError(
            f"{type(conv).__name__}.weight is a {type(weight).__name__}: concepts are read from a FactorizedTensor (tltorch) "
            "of shape (in, out, *kernel_shape), as neuralop's SpectralConv has. Hold the weight in one, or give the "
            "Convolution an encoder and a decoder of its own; a class that is not registered works on the dense path"
        )


class ConceptEncoder(_SpectralLayer):
    """Scalar pre-codes of p concepts, ``z_c = sum_i E_ic * x_i + sum_i P_ic x_i + b_c``.

    Parameters
    ----------
    in_channels : int
        m, channels of the field.
    n_concepts : int
        p, size of the dictionary.
    n_modes : sequence of int
        Modes per dimension, as in SpectralConv.
    conv_module, conv_options
        The convolution that holds the concepts, see :func:`~neuralop_sae.layers.conv_modules.convolution_of`.
    skip : {"linear", None}
        Pointwise part P, as an FNO block's skip. It acts on every frequency.
    factorization, rank
        Of the spectral weight, as in SpectralConv.
    """

    concept_axis = 1

    def __init__(self, in_channels: int, n_concepts: int, n_modes: Sequence[int], **kwargs: object) -> None:
        super().__init__(in_channels, n_concepts, n_modes, **kwargs)  # type: ignore[arg-type]
        self.in_channels, self.n_concepts = in_channels, n_concepts

    def energies(self, spectrum: Spectrum) -> Energies:
        """Mean and mean square of every pre-code, with no inverse transform; see :mod:`~neuralop_sae.layers.moments`."""
        form = self.energy_form(spectrum.grid)
        return energies(self.kernels, self.pointwise, self.conv.bias.detach().flatten(), spectrum, self.basis, form)

    @torch.no_grad()
    def copy_adjoint(self, decoder: ConceptDecoder) -> None:
        """Become the adjoint of a decoder: conjugate transpose per mode and of the pointwise part."""
        self.kernels.copy_adjoint_(decoder.kernels)
        if self.skip is not None and decoder.skip is not None:
            self.skip.conv.weight.copy_(decoder.skip.conv.weight.transpose(0, 1))

    def gather(self, spectrum: Spectrum, selection: Selection) -> Tensor:
        """Pre-codes of the selected pairs, with gradient, ``(n, *grid)``."""
        spectral = self.kernels.respond(spectrum.coefficients, selection)
        bias = take_rows(self.conv.bias, selection.concept).flatten()
        spectral = spectral + bias[:, None] * self.energy_form(spectrum.grid).ones
        return on_grid(spectral, self.skip_rows(selection.concept), spectrum, selection, self.basis)


def on_grid(spectral: Tensor, skip: Tensor | None, spectrum: Spectrum, selection: Selection, basis: SpectralBasis) -> Tensor:
    """Pre-codes ``(n, *grid)`` of the selected pairs, from their coefficients ``(n, K)`` and pointwise parts ``(n, m)``."""
    codes = basis.synthesis(spectral.reshape(-1, *basis.mode_shape), spectrum.grid)
    if skip is None:
        return codes
    slots = selection.to_slots(codes.flatten(1))
    slots = torch.baddbmm(slots, selection.to_slots(skip), spectrum.field.flatten(2))
    return selection.to_rows(slots).reshape(codes.shape)


class ConceptDecoder(_SpectralLayer):
    """Fields written by p concepts, ``x_i = sum_c W_ci * a_c + sum_c V_ci a_c + b_i``. Parameters as for
    :class:`ConceptEncoder`."""

    concept_axis = 0

    def __init__(self, out_channels: int, n_concepts: int, n_modes: Sequence[int], **kwargs: object) -> None:
        super().__init__(n_concepts, out_channels, n_modes, **kwargs)  # type: ignore[arg-type]
        self.out_channels, self.n_concepts = out_channels, n_concepts

    def contract(self, codes: Tensor, selection: Selection) -> Tensor:
        """Sum over the concepts that are on, bias left out: ``(n, *grid)`` -> ``(n_samples, m, *grid)``."""
        return self._write(codes, selection, with_bias=False)

    def forward(self, codes: Tensor, selection: Selection) -> Tensor:
        """:meth:`contract` with the bias."""
        return self._write(codes, selection, with_bias=True)

    def bias_field(self, grid: Sequence[int]) -> Tensor:
        """What is written where no concept is on, ``(m, *grid)``."""
        modes = self.conv.bias.flatten()[:, None] * self.energy_form(grid).ones
        return self.basis.synthesis(modes.reshape(-1, *self.basis.mode_shape), grid)

    def _write(self, codes: Tensor, selection: Selection, *, with_bias: bool) -> Tensor:
        grid = tuple(codes.shape[1:])
        coefficients = self.basis.analysis(codes).flatten(1)
        modes = self.kernels.write(coefficients, selection).transpose(1, 2)
        if with_bias:
            modes = modes + self.exchange.share(self.conv.bias).flatten()[:, None] * self.energy_form(grid).ones
        if self.skip is None:  # coefficients are all that has to travel between shards
            modes = self.exchange.sum(modes)
        field = self.basis.synthesis(modes.reshape(selection.n_samples, -1, *self.basis.mode_shape), grid)
        skip = self.skip_rows(selection.concept)
        if skip is None:
            return field
        slots = selection.to_slots(codes.flatten(1))
        pointwise = torch.baddbmm(field.flatten(2), selection.to_slots(skip).transpose(1, 2), slots)
        return self.exchange.sum(pointwise.reshape(field.shape))

    @torch.no_grad()
    def scale_concepts(self, scale: Tensor) -> None:
        """Multiply each concept by a factor, ``scale (p,)``."""
        self.kernels.scale_(scale)
        if self.skip is not None:
            self.skip.conv.weight.mul_(scale[:, None])

    @torch.no_grad()
    def scale_spectral(self, norm: float) -> None:
        """Scale each concept's spectral part so that its own impulse response has this L2 norm."""
        norms = kernel_norms(self.kernels, None, self.energy_form(None)).clamp_min(1e-12)
        self.kernels.scale_(norm / norms)

    def kernel_norms(self, concepts: Tensor | None = None, through: Tensor | None = None) -> Tensor:
        """L2 norm of each concept's kernel over all channels, ``(p,)``: of its atom where concepts commute with translations;
        for a concept with a pointwise part alone it is ``|V_c|``. See :func:`~neuralop_sae.layers.moments.kernel_norms`.

        Without gradient; or of the concepts ``(n,)`` that are named, with gradient. With a matrix ``through (l, m)`` norms are
        of what it makes of the channels.
        """
        if concepts is None:
            return kernel_norms(self.kernels, self.pointwise, self.energy_form(None), through)
        return norms_of(self.kernels, concepts, self.skip_rows(concepts), self.energy_form(None), through)

    def atoms(self, concepts: Tensor, shape: Sequence[int], *, pointwise: bool = True) -> Tensor:
        """What each concept writes for the unit impulse in the middle of the domain, ``(n, m, *shape)``; with or without its
        pointwise part."""
        unit = self.basis.impulse(like=self.conv.bias)
        rows = self.kernels.rows(concepts).transpose(1, 2).repeat_interleave(self.multiplicity, -1)
        written = rows.reshape(*rows.shape[:2], *self.basis.mode_shape) * self.basis.gram(unit)
        skip = self.skip_rows(concepts)
        if skip is not None and pointwise:
            written = written + skip.view(*skip.shape, *(1,) * self.basis.n_dim) * unit
        return self.basis.centred(self.basis.synthesis(written, shape))
