r"""Energies of concepts without an inverse transform.

A field written by modes and by a pointwise part, :math:`S z + \sum_i P_i x_i`, has its mean square in closed form: by the
adjoint relation of the basis the pointwise part may be moved into the coefficients, :math:`z' = z + \sum_i P_i \tilde x_i`
with :math:`G\tilde x = A x`, and what is left of it is the m x m covariance of the part of x that the modes do not hold:

.. math:: \|S z + P x\|^2 = \sum_\kappa w_\kappa \mathrm{Re}\,\overline{z'_\kappa} (G z')_\kappa + P^T C' P, \qquad
          C' = \langle x x^T\rangle - \sum_\kappa w_\kappa \mathrm{Re}\,\overline{\tilde x_\kappa} (A x)_\kappa^T .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import torch
from torch import Tensor

from .basis import SpectralBasis
from .factorized import MixedKernels
from .kernels import Kernels, chunk_bytes


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


class EnergyForm:
    r"""The quadratic form :math:`\sum_\kappa w_\kappa \mathrm{Re}\,\bar c_\kappa (G c)_\kappa` over flattened modes, and the
    coefficients of the constant field one.

    Parameters
    ----------
    basis : SpectralBasis
        Gives w and G.
    shape : sequence of int, optional
        Grid; None: the continuum.
    like : Tensor
        Gives dtype and device.

    Attributes
    ----------
    ones : Tensor
        Coefficients ``(K,)`` of the constant field one, through which a bias costs no pass over the grid.
    """

    def __init__(self, basis: SpectralBasis, shape: Sequence[int] | None, like: Tensor) -> None:
        weights = basis.weights(shape, like=like).flatten()
        own, mirrored, partner = basis.pairing(shape, like=like)
        self.weights, self.own = weights, weights * own
        self.paired = mirrored.nonzero()[:, 0]
        self.partner = partner[self.paired]
        self.mirrored = (weights * mirrored)[self.paired]
        total = own + mirrored
        self.inverse = torch.where(total > 0, 1 / total, 0)  # of G, on coefficients of real fields
        ones = like.new_ones(tuple(shape) if shape is not None else basis.smallest_grid(), dtype=self.own.dtype)
        constant = basis.analysis(ones).flatten()
        self.constant_modes = (constant.abs() > 1e-6).nonzero()[:, 0]
        self.constant = constant[self.constant_modes]
        self.ones = torch.zeros_like(constant).index_copy_(0, self.constant_modes, self.constant)
        self.mean_weights = weights[self.constant_modes] * self.constant.conj()

    def of(self, coefficients: Tensor) -> Tensor:
        """Mean square of what coefficients ``(K, ...)`` stand for, ``(...)``."""
        shape = coefficients.shape[1:]
        paired = coefficients[self.paired]
        mirrored = self.mirrored @ (paired * coefficients[self.partner]).real.flatten(1)
        squares = torch.view_as_real(coefficients).square_().flatten(1)  # in place: the caller is done with them
        return ((self.own @ squares).view(-1, 2).sum(1) + mirrored).view(shape)

    def products(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products over the domain of what coefficients ``a (..., J, K)`` and ``b (..., L, K)`` stand for,
        ``(..., J, L)``."""
        own = _as_real(a * self.own) @ _as_real(b).mT
        mirrored = _as_real(a[..., self.paired] * self.mirrored) @ _as_real(b[..., self.partner].conj()).mT
        return own + mirrored

    def mean(self, coefficients: Tensor) -> Tensor:
        """Mean of what coefficients ``(K, ...)`` stand for, ``(...)``."""
        kept = coefficients[self.constant_modes]
        return (self.mean_weights.view(-1, *(1,) * (kept.ndim - 1)) * kept).real.sum(0)


def _as_real(coefficients: Tensor) -> Tensor:
    """``(..., K)`` complex -> ``(..., 2 K)`` real, so that a product of two is the real part of one with a conjugate."""
    return torch.view_as_real(coefficients.resolve_conj().contiguous()).flatten(-2)


@dataclass(frozen=True)
class _Field:
    """What the energies of all concepts need of a batch of fields."""

    coefficients: Tensor
    """``(B, K, m)``: A x."""
    lifted: Tensor
    """``(B, K, m)``: the coefficients that stand for the pointwise part, G^-1 A x."""
    covariance: Tensor
    """``(B, m, m)``: C', of what the modes do not hold."""
    mean: Tensor
    """``(B, m)``: mean of what the modes do not hold."""

    @classmethod
    def of(cls, spectrum: Spectrum, basis: SpectralBasis, form: EnergyForm) -> _Field:
        x, quadrature = spectrum.coefficients, basis.quadrature(spectrum.grid, like=spectrum.field)
        lifted = x * form.inverse[:, None]
        held = form.products(lifted.mT, lifted.mT)
        flat = spectrum.field.flatten(2)
        if quadrature.numel() == 1:  # the same weight everywhere: no pass over the field
            moment, mean = quadrature.flatten() * (flat @ flat.mT), quadrature.flatten() * flat.sum(-1)
        else:
            weighted = (spectrum.field * quadrature).flatten(2)
            moment, mean = weighted @ flat.mT, weighted.sum(-1)
        return cls(x, lifted, moment - held, mean - form.mean(lifted.transpose(0, 1)))


@torch.no_grad()
def energies(
    kernels: Kernels, skip: Tensor | None, bias: Tensor, spectrum: Spectrum, basis: SpectralBasis, form: EnergyForm
) -> Energies:
    """Mean and mean square of every pre-code ``S(E x) + P x + b``, in chunks of concepts, so that memory is bounded.

    Parameters
    ----------
    kernels : Kernels
        E, p concepts.
    skip : Tensor or None
        P, ``(p, m)``.
    bias : Tensor
        b, ``(p,)``.
    spectrum : Spectrum
        x.
    basis, form
        The basis, and its energy form on the grid of x.
    """
    field = _Field.of(spectrum, basis, form)
    batch, n_modes, n_channels = field.coefficients.shape
    if isinstance(kernels, MixedKernels):
        size = (1 if kernels.is_real else 2) * kernels.rank + (0 if skip is None else n_channels) + 1
        by_form = 2 * size**2
        by_modes = n_modes * (8 * kernels.rank + 4 * (0 if skip is None else n_channels) + 8)
        if by_form < by_modes:
            return _mixed_energies(kernels, skip, bias, field, form)
    chunk = max(1, chunk_bytes(bias.device) // (8 * batch * n_modes))
    parts = [
        _chunk_energies(kernels, skip, bias, field, form, slice(first, first + chunk))
        for first in range(0, kernels.n_concepts, chunk)
    ]
    mean, mean_square = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    return Energies(mean, mean_square.clamp_min_(0))


def _chunk_energies(
    kernels: Kernels, skip: Tensor | None, bias: Tensor, field: _Field, form: EnergyForm, concepts: slice
) -> tuple[Tensor, Tensor]:
    z = kernels.respond_all(field.coefficients, concepts)  # (K, B, n)
    z[form.constant_modes] += form.constant[:, None, None] * bias[concepts]
    if skip is None:
        return form.mean(z), form.of(z)
    pointwise = skip[concepts]
    pairs = torch.view_as_real(field.lifted).permute(1, 0, 3, 2).flatten(1, 2)  # (K, 2 B, m)
    lifted = torch.matmul(pairs, pointwise.T).view(*z.shape[:2], 2, -1)
    torch.view_as_real(z).add_(lifted.transpose(2, 3))
    mean = form.mean(z) + field.mean @ pointwise.T
    rest = ((pointwise @ field.covariance) * pointwise).sum(-1)
    return mean, form.of(z) + rest


def _mixed_energies(kernels: MixedKernels, skip: Tensor | None, bias: Tensor, field: _Field, form: EnergyForm) -> Energies:
    """The energy of a concept as a quadratic form in its own vector (Re U, Im U, P, b), whose matrix is one per sample."""
    templates = kernels.features(field.coefficients)  # (B, r, K)
    parts = [templates] if kernels.is_real else [templates, 1j * templates]
    n_mixing = len(parts) * kernels.rank
    if skip is not None:
        parts.append(field.lifted.mT)
    parts.append(form.ones.expand(len(templates), 1, -1))
    functions = torch.cat(parts, 1)  # (B, R, K)
    matrix = form.products(functions, functions)
    means = form.mean(functions.permute(2, 0, 1))  # (B, R)
    if skip is not None:
        inside = slice(n_mixing, -1)
        matrix[:, inside, inside] += field.covariance
        means[:, inside] += field.mean
    chunk = max(1, chunk_bytes(bias.device) // (4 * matrix[:, 0].numel()))
    mean, mean_square = [], []
    for first in range(0, kernels.n_concepts, chunk):
        vectors = _vectors(kernels, skip, bias, slice(first, first + chunk))
        mean.append(means @ vectors.T)
        mean_square.append(torch.matmul(vectors, matrix).mul_(vectors).sum(-1))
    return Energies(torch.cat(mean, 1), torch.cat(mean_square, 1).clamp_min_(0))


def _vectors(kernels: MixedKernels, skip: Tensor | None, bias: Tensor, concepts: slice) -> Tensor:
    mixing = kernels.mixing(concepts)
    parts = [mixing] if kernels.is_real else [mixing.real, mixing.imag]
    if skip is not None:
        parts.append(skip[concepts])
    return torch.cat([*parts, bias[concepts, None]], 1)


@torch.no_grad()
def kernel_norms(kernels: Kernels, skip: Tensor | None, form: EnergyForm, through: Tensor | None = None) -> Tensor:
    r"""L2 norm of each concept, ``(p,)``: root mean square, over all channels, of what it writes for a code of unit norm.

    :math:`\|d_c\|^2 = \sum_i\sum_\kappa w_\kappa \mathrm{Re}\,\overline{u_\kappa}(G u + 2 V G\delta)_\kappa + |V|^2` with
    u = W G delta for the flat spectrum delta of unit norm, on the continuum. That is the mean over white codes, the
    Hilbert-Schmidt norm over the root of the number of modes. Where concepts commute with translations
    (:attr:`SpectralBasis.equivariant`), each atom has this norm, wherever it is put; elsewhere atoms have it on average.

    Pointwise parts are ``skip (p, m)``. With a matrix ``through (l, m)`` norms are of what it makes of the channels.
    """
    norms = _Norms.of(form, kernels.multiplicity, through)
    skip = norms.seen(skip)
    mixed = norms.of_templates(kernels) if isinstance(kernels, MixedKernels) else None
    numbers = kernels.rank if isinstance(kernels, MixedKernels) else kernels.n_modes * kernels.n_channels
    chunk = max(1, chunk_bytes(form.own.device) // (8 * numbers))
    parts = []
    for first in range(0, kernels.n_concepts, chunk):
        concepts = slice(first, first + chunk)
        parts.append(norms.squares(kernels, mixed, concepts, None if skip is None else skip[concepts]))
    return torch.cat(parts).clamp_min_(0).sqrt_()


def norms_of(
    kernels: Kernels, concepts: Tensor, pointwise: Tensor | None, form: EnergyForm, through: Tensor | None = None
) -> Tensor:
    """:func:`kernel_norms` of the kernels of some concepts ``(n,)`` and their pointwise parts ``(n, m)``, with gradient,
    ``(n,)``."""
    norms = _Norms.of(form, kernels.multiplicity, through)
    mixed = norms.of_templates(kernels) if isinstance(kernels, MixedKernels) else None
    squares = norms.squares(kernels, mixed, concepts, norms.seen(pointwise))
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _flat(form: EnergyForm) -> Tensor:
    """The flat spectrum ``(K,)`` of L2 norm one."""
    ones = torch.ones(len(form.own), dtype=form.own.dtype.to_complex(), device=form.own.device)
    return ones / form.of(ones[:, None].clone()).sqrt()


@dataclass(frozen=True)
class _Norms:
    """Weights of a squared kernel norm, over the modes of a kernel: of ``|W|^2``, of ``Re W(k) W(pi k)`` over pairs of modes,
    and of ``2 V Re W``."""

    own: Tensor
    mirrored: Tensor
    cross: Tensor
    paired: Tensor
    partner: Tensor
    through: Tensor | None

    @classmethod
    def of(cls, form: EnergyForm, multiplicity: int, through: Tensor | None) -> _Norms:
        """`multiplicity` coefficients in a row belong to one mode of a kernel."""
        response = torch.where(form.inverse > 0, _flat(form).real / form.inverse, 0.0)  # G delta
        mirrored = form.mirrored * response[form.paired] * response[form.partner]
        each = (-1, multiplicity)
        own, cross = ((part * response.square()).view(each).sum(1) for part in (form.own, form.weights))
        return cls(own, mirrored, cross, form.paired // multiplicity, form.partner // multiplicity, through)

    @overload
    def seen(self, channels: Tensor) -> Tensor: ...
    @overload
    def seen(self, channels: Tensor | None) -> Tensor | None: ...
    def seen(self, channels: Tensor | None) -> Tensor | None:
        """What the matrix makes of channels ``(..., m)``."""
        if self.through is None or channels is None:
            return channels
        return channels @ self.through.T.to(channels.dtype)

    def squares(self, kernels: Kernels, mixed: _Mixed | None, concepts: Tensor | slice, pointwise: Tensor | None) -> Tensor:
        """Squared norms of some concepts with pointwise parts as they are :meth:`seen`, ``(n,)``; `mixed` is
        :meth:`of_templates` for kernels that are mixtures."""
        if mixed is not None:
            assert isinstance(kernels, MixedKernels)
            return mixed.squares(kernels.mixing(concepts), pointwise)
        rows = self.seen(kernels.rows(concepts))
        numbers = rows if kernels.is_real else torch.view_as_real(rows.resolve_conj()).flatten(-2)  # (n, K, m or 2 m)
        squares = numbers.square().sum(-1) @ self.own
        squares = squares + (rows[:, self.paired] * rows[:, self.partner]).sum(-1).real @ self.mirrored
        if pointwise is None:
            return squares
        copied = (self.cross @ numbers)[:, :: 1 if kernels.is_real else 2]
        return squares + ((2 * copied + pointwise) * pointwise).sum(-1)

    def of_templates(self, kernels: MixedKernels) -> _Mixed:
        """The norm as a quadratic form in each concept's own vector."""
        templates = self.seen(kernels.templates()) + 0j  # a real one counts as complex here
        weighted = (templates.conj() * self.own[:, None]).flatten(1)
        mirrored = (templates[:, self.paired] * self.mirrored[:, None]).flatten(1)
        return _Mixed(
            weighted @ templates.flatten(1).T,
            mirrored @ templates[:, self.partner].flatten(1).T,
            torch.einsum("rkm,k->rm", templates, self.cross.to(templates.dtype)),
        )


class _Mixed(NamedTuple):
    """A squared kernel norm as a form in the mixing vector: Hermitian and symmetric part ``(r, r)``, and in mixing vector and
    pointwise part together ``(r, m)``."""

    hermitian: Tensor
    symmetric: Tensor
    copied: Tensor

    def squares(self, mixing: Tensor, pointwise: Tensor | None) -> Tensor:
        """Of the concepts with these vectors ``(n, r)``, ``(n,)``."""
        mixing = mixing.to(self.hermitian.dtype)
        squares = ((mixing.conj() @ self.hermitian + mixing @ self.symmetric) * mixing).sum(-1).real
        if pointwise is None:
            return squares
        return squares + ((2 * (mixing @ self.copied).real + pointwise) * pointwise).sum(-1)
