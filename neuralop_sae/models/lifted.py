"""Lifting: any sparse autoencoder on more channels than the activations have."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from ..codes import ConceptCodes
from ..layers.basis import SpectralBasis
from ..layers.lifting import Lifting
from ..layers.unrolled import UnrolledEncoder
from .base import SAE, SAEOutput, full_precision, saes


@saes.register("Lifted")
class Lifted(SAE):
    r"""A sparse autoencoder of h channels between two pointwise maps, L from m to h and P back.

    With the encoder :math:`\tilde E` and the dictionary :math:`\tilde D` of the lifted SAE, the model infers as a plain one
    with the encoder :math:`\tilde E L` and the dictionary :math:`D = P \tilde D`, and learns otherwise. For :math:`P = L^T`
    and a loss that depends on D, a step of gradient descent on L and :math:`\tilde D` moves it, to first order, by
    :math:`-\eta\,(L^T L\,\nabla_D + \nabla_D \tilde D^T \tilde D)`: gradients are preconditioned by what was learned. A fixed
    L with orthonormal columns changes nothing.

    Concepts are ranked by what they write as activations, as those of the plain SAE are; only those of a decoder with a trunk
    by their norms before it.

    Parameters
    ----------
    sae : SAE or dict
        What to lift, as it would be for the m channels of the activations: a model of any class, or ``{"model": name of the
        class, **its arguments}``. A new one of h channels is made from its arguments; its weights are not used.
    channels : int
        h, at least m.
    projection : {"tied", "untied"}
        Whether P is the transpose of L, or learned by itself.
    residual : {"original", "lifted"}
        Where an unrolled encoder compares its codes with the field: as activations, :math:`L(x - P \tilde D z)`, or lifted,
        :math:`L x - \tilde D z`. The former infers as the plain SAE with the dictionary D after any number of iterations; the
        latter after one, or if L has orthonormal columns and :math:`\tilde D` lies in their range. Encoders of one step form
        no residual.

    Attributes
    ----------
    inner : SAE
        The SAE of h channels.
    lifting : Lifting
        L and P.

    Raises
    ------
    ValueError, TypeError
        For arguments that don't fit, saying which are allowed.

    Examples
    --------
    >>> import neuralop_sae as ns
    >>> sae = ns.Lifted(ns.SAEFNO(in_channels=4, n_concepts=8, n_modes=(5, 5)), channels=12)
    >>> sae.in_channels, sae.inner.in_channels, sae(torch.randn(2, 4, 9, 9)).reconstruction.shape
    (4, 12, torch.Size([2, 4, 9, 9]))
    """

    def __init__(
        self, sae: SAE | Mapping[str, Any], *, channels: int, projection: str = "tied", residual: str = "original"
    ) -> None:
        kind, arguments = _described(sae)
        super().__init__(arguments["in_channels"], arguments["n_concepts"])
        if residual not in ("original", "lifted"):
            raise ValueError(f"unknown residual {residual!r}; known: original (as activations), lifted")
        self.sae = {"model": saes.name_of(kind), **arguments}
        self.channels, self.projection, self.residual = channels, projection, residual
        self.lifting = Lifting(self.in_channels, channels, projection=projection)
        self.inner = kind(**{**arguments, "in_channels": channels})
        self.n_dim = self.inner.n_dim
        self._look_through()

    def _look_through(self) -> None:
        """What of the inner SAE has to see the activations' channels."""
        self.inner.look_through(self.lifting)
        encoder = getattr(self.inner, "concept_encoder", None)
        if self.residual == "original" and isinstance(encoder, UnrolledEncoder):
            if self.projection != "tied":
                raise ValueError(
                    "an unrolled encoder descends with the transpose of P: projection='tied', or residual='lifted'"
                )
            encoder.look_through(self.lifting)

    def _with_lengths(self, factors: tuple[float, ...]) -> Self:
        new = copy.deepcopy(self)
        new.inner = self.inner.on_domain(factors)
        new.sae = {**self.sae, **new.inner.config(), "in_channels": self.in_channels}
        new._look_through()
        return new

    @property
    def basis(self) -> SpectralBasis:
        """Of the SAE of h channels."""
        return self.inner.basis

    @property
    def moves(self) -> bool:
        """See :attr:`SAE.moves`."""
        return self.inner.moves

    @property
    def rectifies(self) -> bool:
        """See :attr:`SAE.rectifies`."""
        return self.inner.rectifies

    def _repr_html_(self) -> str:
        return super()._repr_html_() + self.inner._repr_html_()

    @full_precision
    def forward(self, x: Tensor, *, dead: Tensor | None = None, dead_k: int = 16, prefixes: Sequence[int] = ()) -> SAEOutput:
        """See :meth:`SAE.forward`."""
        return self._lower(self.inner(self._lift(x), dead=dead, dead_k=dead_k, prefixes=prefixes))

    @full_precision
    def dense_forward(self, x: Tensor) -> SAEOutput:
        """See :meth:`SAE.dense_forward`."""
        return self._lower(self.inner.dense_forward(self._lift(x)))

    @full_precision
    def encode(self, x: Tensor) -> ConceptCodes:
        """Codes of a field ``(B, channels, *grid)``."""
        return self.inner.encode(self._lift(x))

    @full_precision
    def decode(self, codes: ConceptCodes, output_shape: Sequence[int] | None = None) -> Tensor:
        """The field ``(B, channels, *output_shape)`` that codes stand for; on the code grid by default."""
        return self._read_out(self.inner.decode(codes, output_shape))

    def _read_out(self, lifted: Tensor) -> Tensor:
        return self.denormalize(self.lifting.project(lifted))

    def _lift(self, x: Tensor) -> Tensor:
        return self.lifting.lift(self.normalize(x))

    def _lower(self, out: SAEOutput) -> SAEOutput:
        dead = out.dead_reconstruction
        return replace(
            out,
            reconstruction=self._read_out(out.reconstruction),
            dead_reconstruction=None if dead is None else self.lifting.project(dead) * self.scale,
            prefix_reconstructions=tuple(map(self._read_out, out.prefix_reconstructions)),
        )

    @torch.no_grad()
    def atoms(self, concepts: Sequence[int] | Tensor, shape: Sequence[int], **kwargs: Any) -> Tensor:
        """What each concept writes for a unit impulse, ``(n, channels, *shape)``, in normalised units; further arguments as
        the lifted SAE has them."""
        return self.lifting.project(self.inner.atoms(concepts, shape, **kwargs))

    def kernel_norms(self, concepts: Tensor | None = None) -> Tensor:
        """L2 norm of each concept's atom as activations, ``(n_concepts,)``; or of the concepts ``(n,)`` that are named, with
        gradient where the lifted SAE has one."""
        return self.inner.seen_norms(concepts)

    @property
    def atom_grid(self) -> tuple[int, ...]:
        """See :attr:`SAE.atom_grid`."""
        return self.inner.atom_grid

    @torch.no_grad()
    def initialize_from(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Start the lifted SAE from the lifted activations."""
        self.inner.initialize_from(self._lift(x), generator)


def _described(sae: SAE | Mapping[str, Any]) -> tuple[type[SAE], dict[str, Any]]:
    """Class and arguments of an SAE, from itself or a description."""
    if isinstance(sae, SAE):
        kind, arguments = type(sae), sae.config()
    elif isinstance(sae, Mapping):
        arguments = dict(sae)
        kind = saes.get(str(arguments.pop("model", None)))
    else:
        raise TypeError(f"sae is an SAE, or a dict of its arguments with 'model', the name of its class; got {sae!r}")
    if kind is Lifted:
        raise ValueError("a Lifted SAE cannot be lifted once more: two liftings are one; lift its inner SAE to more channels")
    missing = [name for name in ("in_channels", "n_concepts") if name not in arguments]
    if missing:
        raise ValueError(
            f"a {kind.__name__} with the arguments {arguments} cannot be lifted: {', '.join(missing)} is not given"
        )
    return kind, arguments
