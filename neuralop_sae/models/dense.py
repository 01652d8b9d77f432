"""The path of the models to compare with: every code of every concept is worked out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..codes import ConceptCodes
from ..layers.basis import SpectralBasis
from ..layers.fourier import FourierBasis
from ..layers.rows import take_rows
from ..layers.selection import Selection
from ..layers.sparsity import ConceptRule, DomainRule
from ..layers.spherical import SphericalBasis
from .base import SAE, SAEOutput, full_precision


class Expressed(NamedTuple):
    """What the rules make of pre-codes.

    Parameters
    ----------
    values : Tensor
        Codes of all concepts, ``(B, p, *grid)``, zero where a concept is off.
    selection : Selection
        The pairs that are on.
    scores : Tensor
        ``(B, p)``, without gradient.
    gates : Tensor or None
        ``(n,)``, see :class:`~neuralop_sae.models.base.SAEOutput`.
    """

    values: Tensor
    selection: Selection
    scores: Tensor
    gates: Tensor | None = None


class DenseSAE(SAE):
    """An SAE whose pre-codes ``(B, p, *grid)`` all exist. The rules are those of :class:`~neuralop_sae.SAEFNO`, and concepts
    are ranked by their true scores.

    Subclasses give :meth:`_pre_codes`, :meth:`_write` and :meth:`_norms`, and set `concept_rule`, `domain_rule`,
    `decoder_bias` and `decoder_weight` ``(p, m, ...)``.
    """

    concept_rule: ConceptRule
    domain_rule: DomainRule
    decoder_weight: Tensor
    decoder_bias: Tensor
    _basis: SpectralBasis

    @abstractmethod
    def _pre_codes(self, field: Tensor) -> Tensor:
        """Pre-codes ``(B, p, *grid)`` of a field ``(B, m, *grid)`` in normalised units."""

    @abstractmethod
    def _write(self, values: Tensor, concepts: slice = slice(None)) -> Tensor:
        """The field ``(B, m, *grid)`` of the codes of some concepts, ``(B, n, *grid)``, bias left out, in normalised units."""

    @abstractmethod
    def _norms(self, weight: Tensor) -> Tensor:
        """L2 norms of the atoms in a decoder's weights ``(n, channels, ...)``, ``(n,)``."""

    def kernel_norms(self, concepts: Tensor | None = None) -> Tensor:
        """See :meth:`SAE.kernel_norms`; with gradient for concepts that are named."""
        return self._norms(self._weight(concepts))

    def seen_norms(self, concepts: Tensor | None = None) -> Tensor:
        """See :meth:`SAE.seen_norms`."""
        weight = self._weight(concepts)
        for lifting in self._lifting:
            weight = lifting.project(weight)
        return self._norms(weight if concepts is not None else weight.detach())

    def _weight(self, concepts: Tensor | None) -> Tensor:
        return self.decoder_weight.detach() if concepts is None else take_rows(self.decoder_weight, concepts)

    @property
    def basis(self) -> SpectralBasis:
        """Of the domain, for quadrature and resampling; no concept is held in it."""
        return self._basis

    @full_precision
    def forward(self, x: Tensor, *, dead: Tensor | None = None, dead_k: int = 16, prefixes: Sequence[int] = ()) -> SAEOutput:
        """See :meth:`SAE.forward`."""
        self.check_prefixes(prefixes)
        pre_codes = self._pre_codes(self.normalize(x))
        values, selection, scores, gates = self._express(pre_codes)
        codes = self._codes(values, selection, x.shape[2:])
        revived = None if dead is None else self._revive(pre_codes, dead, dead_k) * self.scale
        *nested, reconstruction = self._decode_prefixes(values, prefixes)
        return SAEOutput(reconstruction, codes, scores, gates, revived, tuple(nested))

    def dense_forward(self, x: Tensor) -> SAEOutput:
        """The same as :meth:`forward`, which is dense already."""
        return self.forward(x)

    @full_precision
    def encode(self, x: Tensor) -> ConceptCodes:
        """Codes of a field ``(B, channels, *grid)``."""
        expressed = self._express(self._pre_codes(self.normalize(x)))
        return self._codes(expressed.values, expressed.selection, x.shape[2:])

    @full_precision
    def decode(self, codes: ConceptCodes, output_shape: Sequence[int] | None = None) -> Tensor:
        """The field ``(B, channels, *output_shape)`` that codes stand for; on the code grid by default."""
        if codes.n_concepts != self.n_concepts:
            raise ValueError(f"codes of {codes.n_concepts} concepts, but this model has n_concepts={self.n_concepts}")
        values = self._dense(codes).to(self.dtype)
        (field,) = self._decode_prefixes(values)
        return self.basis.resample(field, output_shape or codes.grid)

    def _dense(self, codes: ConceptCodes) -> Tensor:
        """Codes as :meth:`_write` takes them."""
        return codes.to_dense()

    def _decode_prefixes(self, values: Tensor, prefixes: Sequence[int] = ()) -> list[Tensor]:
        """Reconstructions from each prefix and from the whole. Every concept is written once."""
        bounds = pairwise((0, *prefixes, self.n_concepts))
        parts = (self._write(values[:, first:last], slice(first, last)) for first, last in bounds)
        return [self.denormalize(field + self._offset) for field in accumulate(parts)]

    @property
    def _code_basis(self) -> SpectralBasis:
        """Of the grid that pre-codes have."""
        return self._basis

    @property
    def _offset(self) -> Tensor:
        """The decoder's bias as a field."""
        return self._per_channel(self.decoder_bias)

    def _codes(self, values: Tensor, selection: Selection, grid: Sequence[int]) -> ConceptCodes:
        rows = values[selection.sample, selection.concept]
        return ConceptCodes(selection.sample, selection.concept, rows, selection.n_samples, selection.n_concepts, self.basis)

    def _express(self, pre_codes: Tensor) -> Expressed:
        batch, p = pre_codes.shape[:2]
        quadrature = self._code_basis.quadrature(pre_codes.shape[2:], like=pre_codes)
        concept = torch.arange(p, device=pre_codes.device).repeat(batch)
        values = self.domain_rule.activate(pre_codes.flatten(0, 1), concept, quadrature).reshape(pre_codes.shape)
        scores = (self._code_basis.mean_square(values.detach()).sqrt() * self.seen_norms()).detach()
        selection = Selection.from_mask(self.concept_rule.select(scores))
        if self.training:
            on = pre_codes.detach()[selection.sample, selection.concept]
            self.domain_rule.observe(on, selection.concept, quadrature)
        gates = self.concept_rule.gate(scores[selection.sample, selection.concept], selection.concept)
        factors = selection.mask().to(values.dtype)
        if gates is not None:
            factors = factors.index_put((selection.sample, selection.concept), gates)
        return Expressed(self.domain_rule.compete(values * self._per_code(factors)), selection, scores, gates)

    def _revive(self, pre_codes: Tensor, dead: Tensor, k: int) -> Tensor:
        """What the strongest dead concepts of each sample would write, in normalised units. Their pre-codes are rectified by a
        leaky ReLU, so that a wholly negative one still gets a gradient."""
        bound = torch.where(dead, self._code_basis.mean_square(pre_codes.detach()).sqrt() * self.seen_norms(), -1.0)
        strongest, index = bound.topk(min(k, self.n_concepts), dim=1)
        chosen = torch.zeros_like(bound).scatter(1, index, (strongest >= 0).to(bound.dtype))
        return self._write(nn.functional.leaky_relu(pre_codes, 0.01) * self._per_code(chosen))

    def _per_code(self, values: Tensor) -> Tensor:
        return values.view(*values.shape, *(1,) * self.n_dim)


def domain(n_dim: int, grid: str | None) -> SpectralBasis:
    """The periodic box, or the sphere where `grid` names how it is sampled: quadrature and resampling of these bases do not
    depend on their modes. ValueError for an unknown grid, or a sphere of another dimension than 2."""
    if grid is None:
        return FourierBasis((1,) * n_dim)
    if n_dim != 2:
        raise ValueError(f"grid={grid!r} is on the sphere, which has n_dim=2, got {n_dim}; on a box leave grid out")
    return SphericalBasis((1, 2), grid)
