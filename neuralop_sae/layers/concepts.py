"""Concept layers: p integral operators between m channels and scalar codes, held by a neuralop SpectralConv.

An encoder maps a field to one scalar code per concept, a decoder writes codes back as fields. Both hold neuralop's own
layers (``conv``: SpectralConv; ``skip``: the FNO block's pointwise skip) and work on the rows of concepts that are on;
``dense_forward`` calls the neuralop layers themselves on every concept and is the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from neuralop.layers.skip_connections import skip_connection
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor, nn

from .basis import SpectralBasis
from .factorized import concept_rows, copy_adjoint_, mode_major_, scale_rows_
from .fourier import FourierBasis
from .selection import Selection

_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Spectrum:
    """A field ``(B, m, *grid)`` beside its coefficients, mode-major ``(B, K, m)`` with K = prod(mode_shape)."""

    field: Tensor
    coefficients: Tensor

    @classmethod
    def of(cls, field: Tensor, basis: SpectralBasis) -> Spectrum:
        """Analyse a field."""
        coefficients = basis.analysis(field).flatten(2).transpose(1, 2).contiguous()
        return cls(field, coefficients)

    @property
    def grid(self) -> tuple[int, ...]:
        """Grid of the field."""
        return tuple(self.field.shape[2:])


class Energies(NamedTuple):
    """Per sample and concept ``(B, p)``: the mean over the domain and the mean square of a pre-code."""

    mean: Tensor
    mean_square: Tensor


class _ConceptLayer(nn.Module):
    """What encoder and decoder share: the neuralop layers and their rows."""

    concept_axis: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: Sequence[int],
        *,
        skip: str | None = "linear",
        factorization: str | None = None,
        rank: float | int | Sequence[int] = 1.0,
    ) -> None:
        super().__init__()
        if skip not in ("linear", None):
            raise ValueError(f"unknown skip {skip!r}; known: 'linear' (pointwise, as in an FNO block) or None")
        self.n_modes = tuple(n_modes)
        self.basis: SpectralBasis = FourierBasis(n_modes)
        self.conv = SpectralConv(
            in_channels,
            out_channels,
            tuple(n_modes),
            factorization=factorization,
            rank=rank,
            implementation="factorized",
            fft_norm="forward",
        )
        self.skip = skip_connection(in_channels, out_channels, self.basis.n_dim, skip_type=skip) if skip else None
        mode_major_(self.conv.weight, axis=self.concept_axis)
        if self.skip is not None and self.concept_axis == 0:
            weight = self.skip.conv.weight
            weight.data = weight.data.transpose(0, 1).contiguous().transpose(0, 1)

    def rows(self, concepts: Tensor | slice) -> Tensor:
        """Spectral kernels of some concepts, ``(n, K, m)`` complex."""
        return concept_rows(self.conv.weight, concepts, axis=self.concept_axis).flatten(1, -2)

    def skip_rows(self, concepts: Tensor | slice) -> Tensor | None:
        """Pointwise parts of some concepts, ``(n, m)``; None without a skip."""
        if self.skip is None:
            return None
        weight = self.skip.conv.weight.squeeze(-1)
        rows = weight if self.concept_axis == 1 else weight.T
        return rows.index_select(0, concepts) if isinstance(concepts, Tensor) else rows[concepts]

    def dense_forward(self, field: Tensor) -> Tensor:
        """All concepts through the neuralop layers, ``(B, in, *grid)`` -> ``(B, out, *grid)``. Where upstream's transform
        is wrong (odd leading grid sizes, float64) a plain reference takes its place."""
        grid = field.shape[2:]
        upstream_is_right = field.dtype == torch.float32 and all(size % 2 == 0 for size in grid[:-1])
        out = self.conv(field) if upstream_is_right else self._reference(field)
        return out if self.skip is None else out + self.skip(field)

    def _reference(self, field: Tensor) -> Tensor:
        """SpectralConv by one full transform and explicit frequencies."""
        grid = field.shape[2:]
        dims = tuple(range(2, field.ndim))
        spectrum = torch.fft.rfftn(field, dim=dims, norm="forward")
        weight = self.conv.weight.to_tensor()
        frequencies = [torch.tensor(list(k)) for k in FourierBasis(self.n_modes).frequencies()]
        held = [(2 * k.abs() <= n) & (2 * k != n) for k, n in zip(frequencies[:-1], grid[:-1], strict=True)]
        held.append(2 * frequencies[-1] <= grid[-1])
        for axis, keep in enumerate(held):
            weight = weight.index_select(axis + 2, keep.nonzero()[:, 0].to(weight.device))
        kept = [k[h] % n for k, h, n in zip(frequencies[:-1], held[:-1], grid[:-1], strict=True)]
        kept.append(frequencies[-1][held[-1]])
        index = (slice(None), slice(None), *torch.meshgrid(*kept, indexing="ij"))
        out = spectrum.new_zeros(len(field), weight.shape[1], *spectrum.shape[2:])
        out[index] = torch.einsum("bi...,io...->bo...", spectrum[index], weight)
        return torch.fft.irfftn(out, s=grid, dim=dims, norm="forward") + self.conv.bias


class ConceptEncoder(_ConceptLayer):
    """Scalar pre-codes of p concepts, ``z_c = sum_i E_ic * x_i + sum_i P_ic x_i + b_c``.

    Parameters
    ----------
    in_channels : int
        m, channels of the field.
    n_concepts : int
        p, size of the dictionary.
    n_modes : sequence of int
        Modes per dimension, as in SpectralConv.
    skip : {"linear", None}
        Pointwise part P, as an FNO block's skip. It acts on every frequency.
    factorization, rank
        Of the spectral weight, as in SpectralConv.
    """

    concept_axis = 1

    def __init__(self, in_channels: int, n_concepts: int, n_modes: Sequence[int], **kwargs: object) -> None:
        super().__init__(in_channels, n_concepts, n_modes, **kwargs)  # type: ignore[arg-type]
        self.in_channels, self.n_concepts = in_channels, n_concepts

    @torch.no_grad()
    def energies(self, spectrum: Spectrum) -> Energies:
        r"""Mean and mean square of every pre-code, with no inverse transform.

        With z = S(E x) + P x the mean square is, by the adjoint relation of the basis,
        :math:`\sum_\kappa w_\kappa \mathrm{Re}\,\overline{(Ex)_\kappa}\,(G E x + 2 P x)_\kappa + P^T C P`, where C is the
        m x m covariance of the field: frequencies outside the modes enter through C alone. Concepts are taken in
        chunks, so that memory is bounded.
        """
        batch, n_modes, _ = spectrum.coefficients.shape
        chunk = max(1, _CHUNK_BYTES // (8 * batch * n_modes))
        covariance = self._covariance(spectrum.field) if self.skip is not None else None
        parts = [
            self._chunk_energies(spectrum, covariance, slice(first, first + chunk))
            for first in range(0, self.n_concepts, chunk)
        ]
        mean, mean_square = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        return Energies(mean, mean_square.clamp_min(0))

    def _chunk_energies(self, spectrum: Spectrum, covariance: Tensor | None, concepts: slice) -> tuple[Tensor, Tensor]:
        basis, grid = self.basis, spectrum.grid
        x = spectrum.coefficients.transpose(0, 1)
        spectral = torch.bmm(x, self.rows(concepts).permute(1, 2, 0)).permute(1, 2, 0)
        shape = (*spectral.shape[:2], *basis.mode_shape)
        spectral = spectral.reshape(shape)
        bias = self.conv.bias[concepts].flatten()
        constant = self._constant(grid, spectral)
        spectral = spectral + bias.view(-1, *(1,) * basis.n_dim) * constant
        partner = basis.gram(spectral, grid)
        offset = spectral.new_zeros(()).real
        mean_field = spectral
        if covariance is not None:
            skip = self.skip_rows(concepts)
            assert skip is not None
            pointwise = torch.matmul(spectrum.coefficients, skip.T.to(x.dtype)).transpose(1, 2).reshape(shape)
            partner = partner + 2 * pointwise
            mean_field = spectral + pointwise
            offset = torch.einsum("bpm,pm->bp", skip @ covariance, skip)
        weights = basis.weights(grid, like=offset)
        mean_square = (weights * (spectral.conj() * partner).real).flatten(2).sum(-1) + offset
        mean = (weights * (constant.conj() * mean_field).real).flatten(2).sum(-1)
        return mean, mean_square

    def _constant(self, grid: Sequence[int], like: Tensor) -> Tensor:
        """Coefficients of the constant field one."""
        return self.basis.analysis(like.real.new_ones(tuple(grid)))

    def _covariance(self, field: Tensor) -> Tensor:
        weighted = (field * self.basis.quadrature(field.shape[2:], like=field)).flatten(2)
        return weighted @ field.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def copy_adjoint(self, decoder: ConceptDecoder) -> None:
        """Become the adjoint of a decoder: conjugate transpose per mode and of the pointwise part. A spectral part whose
        factorised form does not allow it keeps its own weights."""
        copy_adjoint_(self.conv.weight, decoder.conv.weight)
        if self.skip is not None and decoder.skip is not None:
            self.skip.conv.weight.copy_(decoder.skip.conv.weight.transpose(0, 1))

    def gather(self, spectrum: Spectrum, selection: Selection) -> Tensor:
        """Pre-codes of the selected pairs, with gradient, ``(n, *grid)``."""
        x = spectrum.coefficients.index_select(0, selection.sample)
        spectral = (self.rows(selection.concept) * x).sum(-1).reshape(len(selection), *self.basis.mode_shape)
        codes = self.basis.synthesis(spectral, spectrum.grid)
        codes = codes + self.conv.bias.flatten()[selection.concept].view(-1, *(1,) * self.basis.n_dim)
        skip = self.skip_rows(selection.concept)
        if skip is None:
            return codes
        pointwise = torch.bmm(selection.to_slots(skip), spectrum.field.flatten(2))
        return codes + selection.to_rows(pointwise).reshape(codes.shape)


class ConceptDecoder(_ConceptLayer):
    """Fields written by p concepts, ``x_i = sum_c W_ci * a_c + sum_c V_ci a_c + b_i``. Parameters as for
    :class:`ConceptEncoder`."""

    concept_axis = 0

    def __init__(self, out_channels: int, n_concepts: int, n_modes: Sequence[int], **kwargs: object) -> None:
        super().__init__(n_concepts, out_channels, n_modes, **kwargs)  # type: ignore[arg-type]
        self.out_channels, self.n_concepts = out_channels, n_concepts

    def contract(self, codes: Tensor, selection: Selection) -> Tensor:
        """Sum over the concepts that are on, bias left out: ``(n, *grid)`` -> ``(n_samples, m, *grid)``."""
        grid = tuple(codes.shape[1:])
        coefficients = self.basis.analysis(codes).flatten(1)
        written = self.rows(selection.concept) * coefficients[..., None]
        modes = selection.to_slots(written).sum(1).transpose(1, 2)
        field = self.basis.synthesis(modes.reshape(selection.n_samples, -1, *self.basis.mode_shape), grid)
        skip = self.skip_rows(selection.concept)
        if skip is None:
            return field
        slots = selection.to_slots(codes.flatten(1))
        pointwise = torch.bmm(selection.to_slots(skip).transpose(1, 2), slots)
        return field + pointwise.reshape(field.shape)

    def forward(self, codes: Tensor, selection: Selection) -> Tensor:
        """:meth:`contract` with the bias."""
        return self.contract(codes, selection) + self.conv.bias

    @torch.no_grad()
    def scale_concepts(self, scale: Tensor) -> None:
        """Multiply each concept by a factor, ``scale (p,)``."""
        scale_rows_(self.conv.weight, scale, axis=self.concept_axis)
        if self.skip is not None:
            self.skip.conv.weight.mul_(scale[:, None])

    @torch.no_grad()
    def scale_spectral(self, norm: float) -> None:
        """Scale each concept's spectral part so that its own impulse response has this L2 norm."""
        skip, self.skip = self.skip, None
        try:
            norms = self.kernel_norms().clamp_min(1e-12)
        finally:
            self.skip = skip
        scale_rows_(self.conv.weight, norm / norms, axis=self.concept_axis)

    @torch.no_grad()
    def kernel_norms(self) -> Tensor:
        r"""L2 norm of each concept's atom over all channels, ``(p,)``, without its synthesis.

        :math:`\|d_c\|^2 = \sum_i \sum_\kappa w_\kappa \mathrm{Re}\,\overline{u_\kappa}(G u + 2 V G\delta)_\kappa + |V|^2`
        with u = W G delta for the unit impulse delta; for a concept with a pointwise part alone it is ``|V_c|``.
        """
        n_modes = torch.Size(self.basis.mode_shape).numel()
        chunk = max(1, _CHUNK_BYTES // (8 * n_modes * self.out_channels))
        parts = [self._chunk_norms(slice(first, first + chunk)) for first in range(0, self.n_concepts, chunk)]
        return torch.cat(parts).clamp_min(0).sqrt()

    def _chunk_norms(self, concepts: slice) -> Tensor:
        basis = self.basis
        spectral, pointwise = self._responses(concepts)
        partner = basis.gram(spectral)
        offset = spectral.real.new_zeros(())
        skip = self.skip_rows(concepts)
        if skip is not None:
            partner = partner + 2 * basis.gram(pointwise)
            offset = skip.square().sum(-1)
        weights = basis.weights(like=spectral.real)
        return (weights * (spectral.conj() * partner).real).flatten(1).sum(-1) + offset

    def _responses(self, concepts: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Coefficients ``(n, m, *mode_shape)`` of what the spectral and the pointwise part write for the unit impulse:
        all kept modes in phase at the origin, L2 norm one. A field of the basis, it does not depend on a grid."""
        rows = self.rows(concepts).transpose(1, 2)
        rows = rows.reshape(*rows.shape[:2], *self.basis.mode_shape)
        ones = torch.ones(self.basis.mode_shape, dtype=rows.dtype, device=rows.device)
        impulse = ones / self.basis.energy(ones).sqrt()
        skip = self.skip_rows(concepts)
        pointwise = skip.view(*skip.shape, *(1,) * self.basis.n_dim) * impulse if skip is not None else 0 * rows
        return rows * self.basis.gram(impulse), pointwise

    def atoms(self, concepts: Tensor, shape: Sequence[int], *, pointwise: bool = True) -> Tensor:
        """What each concept writes for the unit impulse at point ``size // 2`` of each axis, ``(n, m, *shape)``; with or
        without its pointwise part."""
        spectral, copied = self._responses(concepts)
        atoms = self.basis.synthesis(spectral + copied if pointwise else spectral, shape)
        return atoms.roll(tuple(size // 2 for size in shape), tuple(range(2, atoms.ndim)))
