"""Kernels held by a Tucker, CP or TT weight: a small dictionary of templates, mixed anew by every concept.

Cut any of these forms at the axis that counts concepts. What remains of the factors is a set of r *templates*
``F (r, K, m)``, kernels that all concepts share; the concept's own slice of the form is a *mixing vector* ``U[c] (r,)``:

.. math:: W_{ci}(\\kappa) = \\sum_r U_{cr}\\,F_{ri}(\\kappa)

So a sample is read by r templates rather than by the kernels that are on, and a concept costs r numbers in the forward
pass, in its gradient and in the optimiser. Nothing of size p K m is ever formed, and the templates themselves only where
an operation count says that it is cheaper than to pass the data through their factors one by one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from typing import final

import opt_einsum
import torch
from tltorch.factorized_tensors.core import FactorizedTensor
from torch import Generator, Tensor

from .kernels import Kernels, register_form
from .rows import take_rows
from .selection import Selection

# In every contraction below: B sample, N concept, I channel, one of XYZUVW per mode axis, Q coefficient of a mode, rs mixing,
# abcdef other ranks.
_AXES, _BONDS = "XYZUVW", "abcdef"


class MixedKernels(Kernels):
    """Kernels that are mixtures of templates; see :class:`Kernels` for the parameters.

    Attributes
    ----------
    mixing_shape : tuple of int
        Shape of one concept's mixing vector before it is flattened.
    rank : int
        r, the number of templates.
    """

    mixing_shape: tuple[int, ...]

    @property
    def concept_tensor(self) -> tuple[Tensor, int]:
        return self.weight.factors[self.axis], 0

    @property
    def rank(self) -> int:
        """Number of templates."""
        return math.prod(self.mixing_shape)

    @abstractmethod
    def mixing(self, concepts: Tensor | slice) -> Tensor:
        """Mixing vectors of some concepts, ``(n, r)``, with gradient (by row inside :class:`RowGradients`)."""

    @abstractmethod
    def _template_factors(self) -> tuple[str, list[Tensor]]:
        """The factors whose contraction over ranks is the templates, and their subscripts."""

    @abstractmethod
    def _draw(self, generator: Generator | None) -> None:
        """Random factors with templates of norm one on average; the mixing is rescaled afterwards."""

    @abstractmethod
    def _copy_adjoint(self, other: MixedKernels) -> None:
        """:meth:`copy_adjoint_` from kernels of the same form and the transposed shape."""

    @property
    def _axes(self) -> str:
        return _AXES[: len(self.mode_shape)]

    @property
    def _mixed(self) -> str:
        return "rs"[: len(self.mixing_shape)]

    def _contract(self, before: str, after: str, *data: Tensor) -> Tensor:
        terms, shared = self._template_factors()
        factors = [self.exchange.spread(factor) for factor in shared]  # every shard of a dictionary holds them all
        return _einsum(f"{','.join([terms, before] if before else [terms])}->{after}", *factors, *data)

    def templates(self) -> Tensor:
        """F, ``(r, K, m)``, with gradient."""
        return self._contract("", f"{self._mixed}{self._axes}I").reshape(self.rank, self.n_modes, self.n_channels)

    def features(self, x: Tensor) -> Tensor:
        r"""What the templates read, :math:`\sum_i F_{ri}(\kappa)\,x_i(\kappa)`: ``x (B, K Q, m)`` -> ``(B, r, K Q)``,
        complex."""
        return self.unfold(self._features(x))

    def _features(self, x: Tensor) -> Tensor:
        folded = self.fold_fields(x)  # (B, K, Q, m)
        data = folded.reshape(len(x), *self.mode_shape, *folded.shape[2:])
        out = self._contract(f"B{self._axes}QI", f"B{self._mixed}{self._axes}Q", data)
        return out.reshape(len(x), self.rank, self.n_modes, folded.shape[2])

    def _expand(self, y: Tensor) -> Tensor:
        """What the templates write, the adjoint of :meth:`_features` but for conjugation: ``y (B, r, K, Q)`` ->
        ``(B, K Q, m)``."""
        data = y.reshape(len(y), *self.mixing_shape, *self.mode_shape, y.shape[-1])
        out = self._contract(f"B{self._mixed}{self._axes}Q", f"B{self._axes}QI", data)
        return self.unfold_fields(out.reshape(len(y), self.n_modes, y.shape[-1], self.n_channels))

    def rows(self, concepts: Tensor | slice) -> Tensor:
        mixing = self.mixing(concepts)
        out = self._contract(f"N{self._mixed}", f"N{self._axes}I", mixing.reshape(-1, *self.mixing_shape))
        return out.reshape(len(mixing), self.n_modes, self.n_channels)

    def respond(self, x: Tensor, selection: Selection) -> Tensor:
        mixing, features = selection.to_slots(self.mixing(selection.concept)), self._features(x)
        return self.unfold(selection.to_rows(mixing @ features.flatten(2)).unflatten(-1, features.shape[2:]))

    def write(self, codes: Tensor, selection: Selection) -> Tensor:
        mixing, folded = selection.to_slots(self.mixing(selection.concept)), self.fold(codes)
        mixed = mixing.transpose(1, 2) @ selection.to_slots(folded.flatten(1))
        return self._expand(mixed.unflatten(-1, folded.shape[1:]))

    @torch.no_grad()
    def respond_all(self, x: Tensor, concepts: slice) -> Tensor:
        features = self.features(x).permute(2, 0, 1)  # one large product instead of K small ones
        mixing = self.mixing(concepts).to(features.dtype)
        return (features.reshape(-1, self.rank) @ mixing.T).reshape(len(features), len(x), -1)

    @torch.no_grad()
    def scale_(self, scale: Tensor) -> None:
        self.weight.factors[self.axis].mul_(scale[:, None])  # (p, rank) in Tucker and CP, (rank, p, rank) in TT

    @torch.no_grad()
    def copy_adjoint_(self, other: Kernels) -> None:
        mine, theirs = tuple(self.weight.shape), tuple(other.weight.shape)
        if type(other) is not type(self) or self.axis == other.axis or mine != (theirs[1], theirs[0], *theirs[2:]):
            raise ValueError(
                f"{type(self).__name__} of shape {mine} (concepts on axis {self.axis}) cannot be the adjoint of"
                f" {type(other).__name__} of shape {theirs} (concepts on axis {other.axis}): the form has to be the same,"
                " the first two axes swapped"
            )
        self._copy_adjoint(other)

    @torch.no_grad()
    def reset_(self, std: float, generator: Generator | None = None) -> None:
        r"""Draw new factors so that the entries of the kernels have mean zero and a root mean square \|W\| of exactly `std`.

        Factors that no concept owns are isometries (CP: phases), so that templates are close to orthonormal and no product of
        small factors shrinks or fattens the distribution. Upstream's draw collapses for TT: 0.0009 instead of 0.158 at
        rank 1.
        """
        self._draw(generator)
        templates, mixing = self.templates().flatten(1), self.mixing(slice(None))
        square = ((templates @ templates.mH) * (mixing.mH @ mixing).T).real.sum()
        now = (square / (self.n_concepts * self.n_modes * self.n_channels)).sqrt()
        self.scale_((std / now).expand(self.n_concepts))


@final
@register_form("tucker")
class TuckerKernels(MixedKernels):
    """Kernels in a Tucker weight: r is the concept axis' rank, the templates are the core times the other factors."""

    def __init__(self, weight: FactorizedTensor, axis: int, multiplicity: int = 1) -> None:
        super().__init__(weight, axis, multiplicity)
        self.mixing_shape = (weight.core.shape[axis],)

    def mixing(self, concepts: Tensor | slice) -> Tensor:
        return take_rows(self.weight.factors[self.axis], concepts)

    def _template_factors(self) -> tuple[str, list[Tensor]]:
        ranks = _BONDS[: len(self.mode_shape)]
        first = "ri" if self.axis == 0 else "ir"
        terms = [f"{first}{ranks}", "Ii", *(axis + rank for axis, rank in zip(self._axes, ranks, strict=True))]
        factors = list(self.weight.factors)
        return ",".join(terms), [self.weight.core, factors[1 - self.axis], *factors[2:]]

    def _draw(self, generator: Generator | None) -> None:
        core = self.weight.core
        core.copy_(_normal(core.shape, core, generator)).mul_(math.sqrt(self.rank / core.numel()))
        for axis, factor in enumerate(self.weight.factors):
            draw = _normal if axis == self.axis else _isometry
            factor.copy_(draw(factor.shape, factor, generator))

    def _copy_adjoint(self, other: MixedKernels) -> None:
        _require_ranks(tuple(self.weight.core.shape), _swapped(other.weight.core.shape))
        for mine, theirs in zip(self.weight.factors, _swapped(other.weight.factors), strict=True):
            mine.copy_(theirs.conj())
        self.weight.core.copy_(other.weight.core.conj().transpose(0, 1))


@final
@register_form("cp")
class CPKernels(MixedKernels):
    """Kernels in a CP weight: r is its rank, template number r an outer product over channels and modes."""

    def __init__(self, weight: FactorizedTensor, axis: int, multiplicity: int = 1) -> None:
        super().__init__(weight, axis, multiplicity)
        self.mixing_shape = (len(weight.weights),)

    def mixing(self, concepts: Tensor | slice) -> Tensor:
        return take_rows(self.weight.factors[self.axis], concepts)

    def _template_factors(self) -> tuple[str, list[Tensor]]:
        terms = ["r", "Ir", *(f"{axis}r" for axis in self._axes)]
        factors = list(self.weight.factors)
        return ",".join(terms), [self.weight.weights, factors[1 - self.axis], *factors[2:]]

    def _draw(self, generator: Generator | None) -> None:
        self.weight.weights.fill_(1 / math.sqrt(self.n_modes * self.n_channels))
        for axis, factor in enumerate(self.weight.factors):
            normal = _normal(factor.shape, factor, generator)
            factor.copy_(normal if axis == self.axis else torch.sgn(normal))  # a product of phases is a phase

    def _copy_adjoint(self, other: MixedKernels) -> None:
        _require_ranks((self.rank,), (other.rank,))
        for mine, theirs in zip(self.weight.factors, _swapped(other.weight.factors), strict=True):
            mine.copy_(theirs.conj())
        self.weight.weights.copy_(other.weight.weights.conj())


@final
@register_form("tt")
class TTKernels(MixedKernels):
    r"""Kernels in a tensor train, whose order of axes makes encoder and decoder differ.

    Decoder (concepts first): :math:`W_{ci}(\kappa) = \sum_{Rb} G_{cR}\,G'_{Rib}\,M_b(\kappa)`, so r is the first rank.
    Encoder (channels first): :math:`E_{ic}(\kappa) = \sum_{ab} H_{ia}\,H'_{acb}\,N_b(\kappa)`, so a mixing vector is a matrix
    over (a, b). The adjoint needs equal ranks behind the first two axes. It is exact in an encoder whose first rank is m, and
    in a decoder whose first rank is p or the number of the encoder's templates; else it is the nearest in least squares.
    """

    def __init__(self, weight: FactorizedTensor, axis: int, multiplicity: int = 1) -> None:
        super().__init__(weight, axis, multiplicity)
        first, _, last = weight.factors[axis].shape
        self.mixing_shape = (last,) if axis == 0 else (first, last)

    def mixing(self, concepts: Tensor | slice) -> Tensor:
        return take_rows(self.weight.factors[self.axis], concepts, dim=1).flatten(1)

    def _mode_cores(self) -> list[Tensor]:
        *cores, last = list(self.weight.factors)[2:]
        return [*cores, last.squeeze(-1)]

    def _mode_terms(self, bonds: str) -> list[str]:
        return [f"{left}{axis}{right}" for left, axis, right in zip(bonds, self._axes, [*bonds[1:], ""], strict=True)]

    def _template_factors(self) -> tuple[str, list[Tensor]]:
        bonds = _BONDS[: len(self.mode_shape)]
        channels = self.weight.factors[1 - self.axis]
        if self.axis == 0:
            return ",".join(["rIa", *self._mode_terms(bonds)]), [channels, *self._mode_cores()]
        return ",".join(["Ir", *self._mode_terms("s" + bonds[1:])]), [channels.squeeze(0), *self._mode_cores()]

    @property
    def concept_tensor(self) -> tuple[Tensor, int]:
        return self.weight.factors[self.axis], 1

    def lay_out_(self) -> None:
        if self.axis == 1:  # (a, p, b): concepts first in memory
            core = self.weight.factors[1]
            core.data = core.data.transpose(0, 1).contiguous().transpose(0, 1)

    def _profiles(self) -> Tensor:
        """What the mode cores contract to, ``(b, K)``."""
        bonds = _BONDS[: len(self.mode_shape)]
        terms = ",".join(self._mode_terms(bonds))
        return _einsum(f"{terms}->{bonds[0]}{self._axes}", *self._mode_cores()).flatten(1)

    def _draw(self, generator: Generator | None) -> None:
        for axis, core in enumerate(self.weight.factors):
            left, size, right = core.shape
            if axis == self.axis:
                core.copy_(_normal(core.shape, core, generator))
            elif axis == 0:
                core.copy_(_isometry((size, right), core, generator)[None])
            else:
                core.copy_(_isometry((left, size * right), core, generator).reshape(core.shape))

    def _copy_adjoint(self, other: MixedKernels) -> None:
        assert isinstance(other, TTKernels)
        mine, theirs = (tuple(len(core) for core in kernels._mode_cores()) for kernels in (self, other))
        _require_ranks(mine, theirs, "mode ")
        for core, source in zip(list(self.weight.factors)[2:], list(other.weight.factors)[2:], strict=True):
            core.copy_(source.conj())
        (self._read_as if self.axis == 1 else self._write_as)(other)

    def _read_as(self, decoder: TTKernels) -> None:
        """The encoder's first two cores: leading left singular vectors of the unfolding (channels) x (concepts, modes), by its
        m x m Gram matrix, and the projection on them."""
        first, second = decoder.weight.factors[0][0].conj(), decoder.weight.factors[1].conj()
        profiles = _double(self._profiles())
        wide = _double(second)
        gram = torch.einsum("Rib,RQ,bd,Qjd->ij", wide, _gram(first), profiles @ profiles.mH, wide.conj())
        left = _leading(gram, self.mixing_shape[0]).to(first.dtype)
        projected = torch.einsum("ia,Rib->aRb", left.conj(), second)
        fill_leading_(self.weight.factors[0], left[None])
        fill_leading_(self.weight.factors[1], torch.einsum("cR,aRb->acb", first, projected))

    def _write_as(self, encoder: TTKernels) -> None:
        """The decoder's first two cores: the mixing is compressed to the decoder's rank in the metric of the templates."""
        mixing = encoder.mixing(slice(None)).conj()
        templates = _double(encoder.templates().flatten(1).conj())
        values, vectors = torch.linalg.eigh(templates @ templates.mH)
        held = values > values[-1] * 1e-12
        root, inverse = vectors[:, held] * values[held].sqrt(), (vectors[:, held] / values[held].sqrt()).mH
        right = _leading(root.mT @ _gram(mixing) @ root.conj(), self.rank).conj()
        channels = encoder.weight.factors[0][0].conj()
        blend = (right.mH @ inverse).reshape(-1, *encoder.mixing_shape).to(mixing.dtype)
        fill_leading_(self.weight.factors[0], (mixing @ (root @ right).to(mixing.dtype))[None])
        fill_leading_(self.weight.factors[1], torch.einsum("Rab,ia->Rib", blend, channels))


def _einsum(equation: str, *operands: Tensor) -> Tensor:
    """torch.einsum in the order of fewest operations. torch.einsum finds the same order, anew in each call: measured, 1.1 ms
    for a Tucker weight and 8 channels instead of 0.1 ms."""
    if torch.compiler.is_compiling():
        return torch.einsum(equation, *operands)
    left = list(operands)
    for index, step in _order(equation, tuple(tuple(operand.shape) for operand in operands)):
        left.append(torch.einsum(step, *(left.pop(i) for i in index)))
    return left[0]


@lru_cache(maxsize=1024)
def _order(equation: str, shapes: tuple[tuple[int, ...], ...]) -> list[tuple[tuple[int, ...], str]]:
    """Steps of a contraction: which of the operands still left (last first) to take away, and the einsum to put back."""
    steps = opt_einsum.contract_path(equation, *shapes, shapes=True)[1].contraction_list
    return [(tuple(sorted(step[0], reverse=True)), step[2]) for step in steps]


def _normal(shape: Iterable[int], like: Tensor, generator: Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(tuple(shape), dtype=like.dtype, device=device, generator=generator).to(like.device)


def _isometry(shape: tuple[int, int], like: Tensor, generator: Generator | None) -> Tensor:
    """Random matrix whose columns, or rows if it is wide, are orthonormal."""
    q = torch.linalg.qr(_normal((max(shape), min(shape)), like, generator)).Q
    return q if shape[0] >= shape[1] else q.mT


def _double(tensor: Tensor) -> Tensor:
    """In double precision."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _gram(rows: Tensor) -> Tensor:
    """Sum over rows of outer products ``r conj(r)``: ``(n, r)`` -> ``(r, r)``."""
    return _double(rows.mT @ rows.conj())


def _leading(gram: Tensor, rank: int) -> Tensor:
    """Eigenvectors of the largest eigenvalues, at most as many as there are, as columns."""
    return torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank]


def fill_leading_(target: Tensor, source: Tensor) -> None:
    """Copy into the leading corner; ranks that are not needed become zero."""
    target.zero_()
    target[tuple(slice(size) for size in source.shape)].copy_(source)


def _swapped(items: Iterable[Tensor] | Iterable[int]) -> tuple:  # type: ignore[type-arg]
    first, second, *rest = items
    return (second, first, *rest)


def _require_ranks(mine: tuple[int, ...], theirs: tuple[int, ...], kind: str = "") -> None:
    if mine != theirs:
        raise ValueError(
            f"{kind}ranks {mine} cannot hold the adjoint of {kind}ranks {theirs} (in this layer's order of axes):"
            " give both layers the same ranks"
        )
