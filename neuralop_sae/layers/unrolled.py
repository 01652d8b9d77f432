r"""An encoder that solves for its codes: some iterations of proximal gradient on the decoder.

.. math:: z \leftarrow \sigma\bigl(y + \alpha D^*(x - D y) + b\bigr), \qquad
          \alpha = 1 / \max_\kappa \lambda_\max(D_\kappa D_\kappa^*)

The sparsity rules are the proximal map sigma: concepts are selected in every iteration. Codes stay sparse: what an iteration
hands to the next is a field, the residual, beside the codes of the concepts that were on.

The step is safe whatever the codes, and short where concepts are alike. On an FNO's activations (24 channels, 96 concepts, the
decoder of a trained one-step encoder whose FVE is .95) alpha was .05: 4, 8, 16 and 64 accelerated iterations from zero gave
.55, .83, .92 and .94, plain ones .48, .69, .84 and .93.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from .adjoint import AdjointEncoder
from .concepts import ConceptDecoder
from .factorized import MixedKernels
from .kernels import Kernels, chunk_bytes
from .lifting import Lifting
from .moments import Energies, Spectrum
from .selection import Selection


@dataclass(frozen=True)
class SparseCodes:
    """Codes that can be asked for by sample and concept.

    Parameters
    ----------
    row : Tensor
        ``(B, p)``: row of `values` that holds a pair's code; the last one, which is zero, where a concept is off.
    values : Tensor
        ``(n + 1, *grid)``.
    """

    row: Tensor
    values: Tensor

    @classmethod
    def of(cls, selection: Selection, values: Tensor) -> SparseCodes:
        """Codes ``(n, *grid)`` of the selected pairs."""
        row = torch.full((selection.n_samples, selection.n_concepts), len(values), device=values.device)
        row[selection.sample, selection.concept] = torch.arange(len(values), device=values.device)
        return cls(row, torch.cat([values, values.new_zeros(1, *values.shape[1:])]))

    def at(self, selection: Selection) -> Tensor:
        """Codes of the selected pairs, ``(n, *grid)``."""
        return self.values[self.row[selection.sample, selection.concept]]

    def on(self) -> Tensor:
        """Boolean ``(B, p)``: the pairs that have a row."""
        return self.row < len(self.values) - 1


@dataclass(frozen=True)
class Residual(Spectrum):
    """What codes leave of a field, as an iteration reads it.

    Parameters
    ----------
    target : Tensor
        The field, ``(B, m, *grid)``.
    step : Tensor
        alpha, ``()``.
    codes : SparseCodes or None
        y, from which the next gradient step goes; None for zero.
    previous : SparseCodes or None
        The codes that the latest iteration gave, where y is extrapolated beyond them.
    n_done : int
        Iterations so far.
    """

    target: Tensor
    step: Tensor
    codes: SparseCodes | None = None
    previous: SparseCodes | None = None
    n_done: int = 0


def take(spectrum: Spectrum, samples: slice) -> Spectrum:
    """The spectrum of some samples."""
    part = replace(spectrum, field=spectrum.field[samples], coefficients=spectrum.coefficients[samples])
    if isinstance(part, Residual) and part.codes is not None:
        return replace(part, codes=replace(part.codes, row=part.codes.row[samples]))
    return part


@final
class UnrolledEncoder(AdjointEncoder):
    """Proximal gradient iterations with the decoder's adjoint, see :mod:`~neuralop_sae.layers.unrolled`. Its gains are the
    step size; a negative bias is a threshold.

    Parameters
    ----------
    decoder : ConceptDecoder
        D.
    n_iterations : int
        How many; the first starts from zero.
    accelerate : bool
        Whether gradient steps go from codes that are extrapolated along the latest change (FISTA) instead of from the codes
        themselves (ISTA).
    """

    def __init__(self, decoder: ConceptDecoder, n_iterations: int, accelerate: bool) -> None:
        super().__init__(decoder)
        self.n_iterations, self.accelerate = n_iterations, accelerate
        self._lifting: tuple[Lifting, ...] = ()  # in a tuple: its parameters are not this module's

    def look_through(self, lifting: Lifting) -> None:
        """Where the fields are lifted: compare codes with the activations, so that iterations are those of the dictionary
        ``P D`` of the activations' channels. P has to be the transpose of L."""
        self._lifting = (lifting,)

    def _seen(self, written: Tensor) -> Tensor:
        """A field that the decoder wrote, as the residual sees it."""
        for lifting in self._lifting:
            written = lifting.lift(lifting.project(written))
        return written

    def _step(self) -> Tensor:
        return step_size(self.decoder, *(lifting.projection for lifting in self._lifting))

    def start(self, spectrum: Spectrum) -> Residual:
        """The residual of no codes."""
        field = spectrum.field - self._seen(self.exchange.spread(self.decoder.conv.bias)[None])
        return self._residual(field, spectrum.field, self._step())

    def proceed(self, residual: Residual, selection: Selection, values: Tensor) -> Residual:
        """The residual from which the next iteration goes, once one gave the codes ``values (n, *grid)``."""
        n_done, latest = residual.n_done + 1, SparseCodes.of(selection, values)
        momentum, previous = self.momentum(n_done), residual.previous
        codes = latest
        if momentum and previous is not None:
            selection = Selection.from_mask(latest.on() | previous.on())
            values = (1 + momentum) * latest.at(selection) - momentum * previous.at(selection)
            codes = SparseCodes.of(selection, values)
        field = residual.target - self._seen(self.exchange.spread(self.decoder(values, selection)))
        return replace(self._residual(field, residual.target, residual.step), codes=codes, previous=latest, n_done=n_done)

    def _residual(self, field: Tensor, target: Tensor, step: Tensor) -> Residual:
        spectrum = Spectrum.of(field, self.basis)
        return Residual(spectrum.field, spectrum.coefficients, target, step)

    def momentum(self, n_done: int) -> float:
        """By how much the codes are extrapolated after so many iterations: 0 without acceleration, and after the first."""
        if not self.accelerate:
            return 0.0
        t = following = 1.0
        for _ in range(n_done):
            t, following = following, (1 + math.sqrt(1 + 4 * following**2)) / 2
        return (t - 1) / following

    def gains(self, spectrum: Spectrum) -> Tensor:
        """See :class:`AdjointEncoder`."""
        assert isinstance(spectrum, Residual)
        return spectrum.step.expand(self.n_concepts)

    @torch.no_grad()
    def energies(self, spectrum: Spectrum) -> Energies:
        """See :class:`AdjointEncoder`; of concepts that are on, from their maps."""
        found = super().energies(spectrum)
        if not isinstance(spectrum, Residual) or spectrum.codes is None:
            return found
        selection = Selection.from_mask(spectrum.codes.on())
        maps, pairs = self.gather(spectrum, selection), (selection.sample, selection.concept)
        mean = (maps * self.basis.quadrature(spectrum.grid, like=maps)).flatten(1).sum(1)
        return Energies(found.mean.index_put(pairs, mean), found.mean_square.index_put(pairs, self.basis.mean_square(maps)))

    def gather(self, spectrum: Spectrum, selection: Selection) -> Tensor:
        """See :class:`AdjointEncoder`."""
        read = super().gather(spectrum, selection)
        codes = spectrum.codes if isinstance(spectrum, Residual) else None
        return read if codes is None else read + codes.at(selection)

    def dense_forward(self, field: Tensor, codes: Tensor | None = None) -> Tensor:
        """What the proximal map gets from a gradient step, all concepts: ``(B, m, *grid)`` and codes ``(B, p, *grid)`` (None:
        zero) -> ``(B, p, *grid)``."""
        start = field.new_zeros(len(field), self.n_concepts, *field.shape[2:]) if codes is None else codes
        gradient = self.dense_adjoint(field - self._seen(self.decoder.dense_forward(start)))
        return start + self._step() * gradient + self._per_concept(self.bias)

    @torch.no_grad()
    def copy_adjoint(self, decoder: ConceptDecoder) -> None:
        """Nothing to copy: the decoder is all there is."""


@torch.no_grad()
def step_size(decoder: ConceptDecoder, projection: Tensor | None = None) -> Tensor:
    r"""The largest step that surely descends, ``()``: 1 over the largest eigenvalue of :math:`D_\kappa D_\kappa^*`, over all
    modes with :math:`D_\kappa = W(\kappa) + V` and the frequencies that have the pointwise part V alone; of :math:`P
    D_\kappa` with a projection P of the channels.

    Where coefficients are redundant, in the first column of the half spectrum or at order zero of the sphere, what acts is
    a mean of entries of W, so that the bound holds there too.
    """
    pointwise = decoder.pointwise
    form = _mixed_products if isinstance(decoder.kernels, MixedKernels) else _products
    products = form(decoder.kernels, pointwise)
    if pointwise is not None:
        products = torch.cat([products, (pointwise.T @ pointwise)[None].to(products.dtype)])
    if projection is not None:
        products = projection.to(products.dtype) @ products @ projection.T.to(products.dtype)
    largest = torch.linalg.eigvalsh(decoder.exchange.sum(products)).max()
    return 1 / largest.clamp_min(torch.finfo(largest.dtype).tiny)


def _products(kernels: Kernels, pointwise: Tensor | None) -> Tensor:
    """D D* of every mode, transposed, ``(K, m, m)``, in chunks of concepts."""
    step = max(1, chunk_bytes(kernels.concept_tensor[0].device) // (8 * kernels.n_modes * kernels.n_channels))
    total: Tensor | None = None
    for first in range(0, kernels.n_concepts, step):
        some = slice(first, first + step)
        rows = kernels.rows(some)
        rows = (rows if pointwise is None else rows + pointwise[some, None]).transpose(0, 1)
        total = rows.mH @ rows if total is None else total.baddbmm_(rows.mH, rows)
    assert total is not None
    return total


def _mixed_products(kernels: Kernels, pointwise: Tensor | None) -> Tensor:
    """:func:`_products` from the mixing vectors' products and the templates."""
    assert isinstance(kernels, MixedKernels)
    mixing, templates = kernels.mixing(slice(None)), kernels.templates().transpose(0, 1)  # (p, r), (K, r, m)
    if pointwise is not None:
        mixing = torch.cat([mixing, pointwise.to(mixing.dtype)], 1)
        unit = torch.eye(kernels.n_channels, dtype=templates.dtype, device=templates.device)
        templates = torch.cat([templates, unit.expand(len(templates), -1, -1)], 1)
    return templates.mH @ (mixing.mH @ mixing) @ templates
