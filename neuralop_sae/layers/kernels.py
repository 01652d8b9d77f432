"""Spectral kernels: the weight of a concept layer, seen concept by concept, whatever form holds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from tltorch.factorized_tensors.core import FactorizedTensor
from torch import Tensor

from ..registry import Registry
from .exchange import ALONE, Exchange
from .selection import Selection

forms: Registry[type[Kernels]] = Registry("factorization")
register_form: Callable[..., Callable[[type[Kernels]], type[Kernels]]] = forms.register


class Kernels(ABC):
    """p kernels of K modes and m channels, logically ``(p, K, m)``, in the weight of a neuralop spectral convolution.

    A mode of a kernel acts on Q coefficients alike: one where there is a weight for each coefficient, all orders of a degree
    where the sphere has a weight for each degree. Fields and codes come with their K Q coefficients, Q consecutive ones for
    each mode. A real weight acts on real and imaginary parts alike, so for it these count as coefficients of their own.

    The object holds no tensors of its own: it is a view of a weight of logical shape (in, out, *modes), where `axis`
    counts concepts. Subclasses say how a form of weight answers, writes and is scaled without its other kernels.

    Parameters
    ----------
    weight : FactorizedTensor
        Dense, Tucker, CP or TT.
    axis : {0, 1}
        The axis that counts concepts: 1 (out) in an encoder, 0 (in) in a decoder.
    multiplicity : int
        Q, coefficients for each mode.

    Attributes
    ----------
    n_concepts, n_modes, n_channels : int
        p, K and m.
    is_real : bool
        Whether the weight is real.
    exchange : Exchange
        Whom to ask about concepts of other shards, where the dictionary is distributed.
    """

    exchange: Exchange = ALONE

    def __init__(self, weight: FactorizedTensor, axis: int, multiplicity: int = 1) -> None:
        self.weight, self.axis, self.multiplicity = weight, axis, multiplicity
        self.n_concepts, self.n_channels = weight.shape[axis], weight.shape[1 - axis]
        self.mode_shape = tuple(weight.shape[2:])
        self.n_modes = 1
        for size in self.mode_shape:
            self.n_modes *= size

    @property
    def is_real(self) -> bool:
        """Whether the weight is real."""
        return not self.concept_tensor[0].is_complex()

    def fold(self, coefficients: Tensor) -> Tensor:
        """Coefficients ``(..., K Q)`` mode by mode and in the weight's own kind of number: ``(..., K, Q)`` complex, or
        ``(..., K, 2 Q)`` real."""
        folded = coefficients.unflatten(-1, (self.n_modes, self.multiplicity))
        return torch.view_as_real(folded.resolve_conj()).flatten(-2) if self.is_real else folded

    def unfold(self, folded: Tensor) -> Tensor:
        """The inverse of :meth:`fold`."""
        if self.is_real:
            folded = torch.view_as_complex(folded.unflatten(-1, (self.multiplicity, 2)).contiguous())
        return folded.flatten(-2)

    def fold_fields(self, x: Tensor) -> Tensor:
        """As :meth:`fold` for fields with their channels last, ``(B, K Q, m)`` -> ``(B, K, Q or 2 Q, m)``."""
        if not self.is_real:
            return x.unflatten(1, (self.n_modes, self.multiplicity))
        pairs = torch.view_as_real(x.resolve_conj()).unflatten(1, (self.n_modes, self.multiplicity))
        return pairs.movedim(-1, 3).flatten(2, 3)

    def unfold_fields(self, folded: Tensor) -> Tensor:
        """The inverse of :meth:`fold_fields`."""
        if not self.is_real:
            return folded.flatten(1, 2)
        pairs = folded.unflatten(2, (self.multiplicity, 2)).movedim(3, -1)
        return torch.view_as_complex(pairs.contiguous()).flatten(1, 2)

    @property
    @abstractmethod
    def concept_tensor(self) -> tuple[Tensor, int]:
        """The one tensor of the weight that grows with the number of concepts, and its axis that counts them."""

    def resize_(self, n_concepts: int) -> None:
        """Take note that :attr:`concept_tensor` was replaced by one of so many concepts."""
        shape = list(self.weight.shape)
        shape[self.axis] = n_concepts
        self.weight.shape = tuple(shape)

    def lay_out_(self) -> None:  # noqa: B027  # most forms are in order already
        """Put the memory of the weight into the order of its concepts, whatever the order of its axes. Called once, before
        anything refers to the weight's tensors."""

    @abstractmethod
    def rows(self, concepts: Tensor | slice) -> Tensor:
        """Kernels of some concepts, ``(n, K, m)``, with gradient."""

    @abstractmethod
    def respond(self, x: Tensor, selection: Selection) -> Tensor:
        r"""What the selected kernels read, :math:`z_n(\kappa) = \sum_i E_{c_n i}(\kappa)\,x_{s_n i}(\kappa)`, with gradient:
        coefficients ``x (B, K Q, m)`` -> ``(n, K Q)``."""

    @abstractmethod
    def write(self, codes: Tensor, selection: Selection) -> Tensor:
        r"""What the selected kernels write, :math:`\hat x_{si}(\kappa) = \sum_{n: s_n = s} W_{c_n i}(\kappa)\,a_n(\kappa)`,
        with gradient: coefficients ``codes (n, K Q)`` -> ``(B, K Q, m)``."""

    @abstractmethod
    def respond_all(self, x: Tensor, concepts: slice) -> Tensor:
        """What the kernels of a range of concepts read from every sample, ``x (B, K Q, m)`` -> ``(K Q, B, n)``; no
        gradient."""

    @abstractmethod
    def scale_(self, scale: Tensor) -> None:
        """Multiply the kernel of each concept by a factor, ``scale (p,)``, in place."""

    @abstractmethod
    def copy_adjoint_(self, other: Kernels) -> None:
        """Become the adjoint of another layer's kernels of the same form (conjugate transpose per mode), in place; the
        nearest one (least squares) where the form cannot hold it exactly."""


def kernels_of(weight: FactorizedTensor, axis: int, multiplicity: int = 1) -> Kernels:
    """The kernels in a weight; ValueError for a form that has none."""
    return forms.get(weight.name.lower().removeprefix("complex"))(weight, axis, multiplicity)


def chunk_bytes(device: torch.device) -> int:
    """What one temporary of a calculation in chunks may take: on a CPU, what stays in cache (large temporaries cost more in
    page faults than their arithmetic)."""
    return 2**22 if device.type == "cpu" else 2**28
