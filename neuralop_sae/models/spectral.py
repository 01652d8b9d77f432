"""The path of a spectral SAE: rank concepts by energy, express those that are on, write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..codes import ConceptCodes
from ..layers.basis import SpectralBasis
from ..layers.concepts import ConceptDecoder, ConceptEncoder, Energies, Spectrum
from ..layers.exchange import ALONE, Exchange
from ..layers.kernels import chunk_bytes
from ..layers.selection import Selection
from ..layers.sparsity import ConceptRule, DomainRule
from .base import SAE, SAEOutput, full_precision

_CHUNK_BYTES = 256 * 2**20
_SPECTRAL_SHARE = 0.3


class SpectralSAE(SAE):
    """An SAE whose encoder and decoder are spectral concept layers.

    Everything happens on the code grid: a field is brought there and its reconstruction back. On it the codes never
    exist for concepts that are off. Subclasses make the layers in their constructor.

    Attributes
    ----------
    concept_encoder, concept_decoder : ConceptEncoder, ConceptDecoder
        The layers.
    encoder_trunk, decoder_trunk : nn.Module
        Operators on the m channels before and after them (the identity for linear kinds).
    """

    concept_encoder: ConceptEncoder
    concept_decoder: ConceptDecoder
    encoder_trunk: nn.Module
    decoder_trunk: nn.Module
    concept_rule: ConceptRule
    domain_rule: DomainRule
    selection: str
    oversample: int
    code_grid: tuple[int, ...] | str
    exchange: Exchange = ALONE

    def concept_axes(self) -> dict[str, int]:
        """See :meth:`SAE.concept_axes`."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        kernels = [layer.kernels for layer in (self.concept_encoder, self.concept_decoder)]
        owned = [each.concept_tensor for each in kernels if each is not None]
        axes = {name: axis for name, tensor in tensors.items() for mine, axis in owned if mine is tensor}
        if len(axes) < len(kernels):
            return {}  # a factor stored as pairs of reals is a view of its parameter, and some layers have no kernels
        axes["concept_encoder.conv.bias"] = 0
        for name, axis in (("concept_encoder.skip.conv.weight", 0), ("concept_decoder.skip.conv.weight", 1)):
            if name in tensors:
                axes[name] = axis
        for name, tensor in tensors.items():
            if name.startswith(("concept_rule.", "domain_rule.")) and tensor.ndim and len(tensor) == self.n_concepts:
                axes[name] = 0
        return axes

    def divide(self, n_concepts: int, exchange: Exchange) -> None:
        """See :meth:`SAE.divide`."""
        self.n_concepts = n_concepts
        for layer in (self.concept_encoder, self.concept_decoder):
            layer.kernels.resize_(n_concepts)
            layer.n_concepts = n_concepts
        for module in (self, self.concept_encoder, self.concept_decoder, self.concept_rule, self.domain_rule):
            module.exchange = exchange

    def config(self) -> dict[str, Any]:
        """Constructor arguments as plain data; of the whole dictionary, if this is a shard."""
        return {**super().config(), "n_concepts": self.exchange.whole(self.n_concepts)}

    @full_precision
    def forward(self, x: Tensor, *, dead: Tensor | None = None, dead_k: int = 16) -> SAEOutput:
        """See :meth:`SAE.forward`. Dead concepts are ranked by their energy before rectification, and their pre-codes are
        rectified by a leaky ReLU, so that a wholly negative one still gets a gradient."""
        spectrum = self._analyse(x)
        norms = self.kernel_norms()
        estimate, bound = self._estimates(spectrum, norms)
        selection, scores = self._rank(spectrum, norms, estimate, bound)
        values, gates = self._express(spectrum, selection, scores)
        codes = self._codes(values, selection)
        reconstruction = self._decode(values, selection, x.shape[2:])
        revived = None if dead is None else self._revive(spectrum, bound, dead, dead_k, x.shape[2:])
        return SAEOutput(reconstruction, codes, scores, gates, revived)

    @full_precision
    def encode(self, x: Tensor) -> ConceptCodes:
        """Codes of a field ``(B, channels, *grid)``."""
        spectrum = self._analyse(x)
        norms = self.kernel_norms()
        selection, scores = self._rank(spectrum, norms, *self._estimates(spectrum, norms))
        return self._codes(self._express(spectrum, selection, scores)[0], selection)

    @full_precision
    def decode(self, codes: ConceptCodes, output_shape: Sequence[int] | None = None) -> Tensor:
        """The field ``(B, channels, *output_shape)`` that codes stand for; on the code grid by default."""
        if codes.n_concepts != self.n_concepts:
            raise ValueError(f"codes of {codes.n_concepts} concepts, but this model has n_concepts={self.n_concepts}")
        return self._decode(codes.values.to(self.dtype), codes.selection, output_shape or codes.grid)

    def _decode(self, values: Tensor, selection: Selection, grid: Sequence[int]) -> Tensor:
        field = self.decoder_trunk(self.concept_decoder(values, selection))
        return self.denormalize(self.basis.resample(field, grid))

    @property
    def basis(self) -> SpectralBasis:
        """The spectral basis of the concept layers."""
        return self.concept_encoder.basis

    def _analyse(self, x: Tensor) -> Spectrum:
        """The normalised field on the code grid, after the trunk, with its coefficients."""
        field = self.normalize(x)
        grid = x.shape[2:] if isinstance(self.code_grid, str) else self.code_grid
        return Spectrum.of(self.exchange.spread(self.encoder_trunk(self.basis.resample(field, grid))), self.basis)

    def _codes(self, values: Tensor, selection: Selection) -> ConceptCodes:
        return ConceptCodes(selection.sample, selection.concept, values, selection.n_samples, selection.n_concepts, self.basis)

    @torch.no_grad()
    def _estimates(self, spectrum: Spectrum, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of all concepts estimated from the moments of their pre-codes, and an upper bound of them, ``(B, p)``."""
        return self._from_moments(self.concept_encoder.energies(spectrum), norms)

    def _from_moments(self, energies: Energies, norms: Tensor) -> tuple[Tensor, Tensor]:
        estimate = self.domain_rule.estimate(energies.mean, energies.mean_square)
        return estimate.sqrt() * norms, energies.mean_square.sqrt() * norms

    @torch.no_grad()
    def _rank(self, spectrum: Spectrum, norms: Tensor, estimate: Tensor, bound: Tensor) -> tuple[Selection, Tensor]:
        """Which concepts are on, and the scores ``(B, p)`` that decided."""
        scores = estimate
        if self.selection == "exact":
            scores = self._all_scores(spectrum, norms)
        elif self._has_second_stage:
            scores = self._scores(spectrum, self.concept_rule.shortlist(estimate, bound, self.oversample), norms)
        return self.concept_rule.choose(scores), scores

    @property
    def _has_second_stage(self) -> bool:
        """Whether candidates are ranked again by their true code norm: not where energy is exact or all are on."""
        return self.selection == "two_stage" and self.domain_rule.rectifies and not self.concept_rule.takes_all

    def _scores(self, spectrum: Spectrum, selection: Selection, norms: Tensor) -> Tensor:
        """True scores of the selected pairs, zero elsewhere, ``(B, p)``; a few samples at a time."""
        scores = norms.new_zeros(selection.n_samples, selection.n_concepts)
        map_bytes = scores.element_size() * spectrum.field[0, 0].numel()
        for samples, part in selection.split(max(1, chunk_bytes(norms.device) // (map_bytes * (selection.every or 1)))):
            some = Spectrum(spectrum.field[samples], spectrum.coefficients[samples])
            values = self._activate(self.concept_encoder.gather(some, part), part.concept)
            found = self.basis.mean_square(values).sqrt() * norms[part.concept]
            scores[samples].index_put_((part.sample, part.concept), found)
        return scores

    def _all_scores(self, spectrum: Spectrum, norms: Tensor) -> Tensor:
        """True scores of all concepts, in chunks of concepts."""
        batch, n_points = len(spectrum.field), spectrum.field[0, 0].numel()
        chunk = max(1, _CHUNK_BYTES // (batch * (16 * n_points + 8 * spectrum.coefficients[0].numel())))
        scores = spectrum.field.new_zeros(batch, self.n_concepts)
        mask = torch.zeros_like(scores, dtype=torch.bool)
        for first in range(0, self.n_concepts, chunk):
            part = mask.clone()
            part[:, first : first + chunk] = True
            scores += self._scores(spectrum, Selection.from_mask(part), norms)
        return scores

    def _activate(self, values: Tensor, concept: Tensor) -> Tensor:
        quadrature = self.basis.quadrature(values.shape[1:], like=values)
        return self.domain_rule.activate(values, concept, quadrature)

    def _express(self, spectrum: Spectrum, selection: Selection, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes of the selected pairs, with gradient, ``(n, *code_grid)``, and their gates."""
        pre_codes = self.concept_encoder.gather(spectrum, selection)
        if self.training:
            quadrature = self.basis.quadrature(spectrum.grid, like=pre_codes)
            self.domain_rule.observe(pre_codes.detach(), selection.concept, quadrature)
        values = self._activate(pre_codes, selection.concept)
        if selection.every is not None and self.selection == "energy":  # pairs of score zero are there
            values = values * (scores[selection.sample, selection.concept] > 0).view(-1, *(1,) * self.n_dim)
        gates = self.concept_rule.gate(scores[selection.sample, selection.concept], selection.concept)
        if gates is not None:
            values = values * gates.view(-1, *(1,) * self.n_dim)
        return selection.to_rows(self.domain_rule.compete(selection.to_slots(values))), gates

    @full_precision
    def dense_forward(self, x: Tensor) -> SAEOutput:
        """The oracle: every code of every concept through the neuralop layers; the same :class:`SAEOutput`."""
        field = self._analyse(x).field
        batch, p, grid = len(field), self.n_concepts, tuple(field.shape[2:])
        quadrature = self.basis.quadrature(grid, like=field)
        concept = torch.arange(p, device=field.device).repeat(batch)
        pre_codes = self.concept_encoder.dense_forward(field)
        values = self.domain_rule.activate(pre_codes.flatten(0, 1), concept, quadrature).reshape(pre_codes.shape)
        scores = self._dense_scores(pre_codes.detach(), values.detach(), quadrature)
        selection = Selection.from_mask(self.concept_rule.select(scores))
        on = selection.mask()
        gates = self.concept_rule.gate(scores.flatten(), concept)
        factors = on if gates is None else on * gates.reshape(batch, p)
        values = self.domain_rule.compete(values * factors.view(batch, p, *(1,) * self.n_dim))
        out = self.decoder_trunk(self.concept_decoder.dense_forward(values))
        codes = self._codes(values[selection.sample, selection.concept], selection)
        reconstruction = self.denormalize(self.basis.resample(out, x.shape[2:]))
        rows = None if gates is None else gates.reshape(batch, p)[on]
        return SAEOutput(reconstruction, codes, scores, rows)

    @torch.no_grad()
    def _dense_scores(self, pre_codes: Tensor, values: Tensor, quadrature: Tensor) -> Tensor:
        """As :meth:`_rank`, with moments and norms taken on the grid."""
        norms = self.concept_decoder.kernel_norms()
        scores = self.basis.mean_square(values).sqrt() * norms
        if self.selection == "exact":
            return scores
        mean = (pre_codes * quadrature).flatten(2).sum(-1)
        estimate, bound = self._from_moments(Energies(mean, self.basis.mean_square(pre_codes)), norms)
        if not self._has_second_stage:
            return estimate
        return scores * self.concept_rule.candidates(estimate, bound, self.oversample)

    def kernel_norms(self) -> Tensor:
        """L2 norm of each concept's atom over all channels, ``(n_concepts,)``, before the decoder's trunk."""
        return self.concept_decoder.kernel_norms()

    @full_precision
    @torch.no_grad()
    def atoms(self, concepts: Sequence[int] | Tensor, shape: Sequence[int], *, pointwise: bool = True) -> Tensor:
        """What the decoder writes for one concept's unit impulse: its kernel, seen on a grid.

        The impulse holds every kept mode in phase at the centre of the grid and has L2 norm one, so atoms are the same
        functions on every grid. With a trunk the atom is the change that the impulse makes to the decoder's output.

        Parameters
        ----------
        concepts : sequence of int
            Which concepts, n of them.
        shape : sequence of int
            The grid.
        pointwise : bool
            Whether to include the pointwise part, which copies the impulse into some channels and often hides the rest.

        Returns
        -------
        Tensor
            ``(n, channels, *shape)``, in normalised units.
        """
        index, grid = self.check_concepts(concepts), self.basis.check_grid(shape)
        atoms = self.concept_decoder.atoms(index, grid, pointwise=pointwise)
        if isinstance(self.decoder_trunk, nn.Identity):
            return atoms
        bias = self.concept_decoder.dense_forward(atoms.new_zeros(1, self.n_concepts, *grid))
        return self.decoder_trunk(atoms + bias) - self.decoder_trunk(bias)

    def _revive(self, spectrum: Spectrum, bound: Tensor, dead: Tensor, k: int, grid: Sequence[int]) -> Tensor:
        """What the strongest dead concepts would write, mean left out."""
        # Only the dead: a row that is used, if only with a zero gradient, is a step on its optimiser's clock.
        selection = Selection.from_mask(self.exchange.top(torch.where(dead, bound, -1.0), k))
        values = nn.functional.leaky_relu(self.concept_encoder.gather(spectrum, selection), 0.01)
        written = self.concept_decoder.contract(values, selection)
        return self.basis.resample(written, grid) * self.scale

    @torch.no_grad()
    def initialize_from(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Start each concept's pointwise part from the activation at a random point of a random sample, drawn in
        proportion to its norm; see :meth:`initialize_dictionary` for the rest."""
        if self.concept_decoder.skip is not None:
            points = random_points(self.normalize(x), generator)
            self.concept_decoder.skip.conv.weight[..., 0] = directions(points, self.n_concepts, generator).T
        self.initialize_dictionary()

    @torch.no_grad()
    def initialize_dictionary(self) -> None:
        """Spectral parts small beside pointwise ones, atoms of L2 norm one, encoder = adjoint of the decoder, biases
        zero."""
        decoder = self.concept_decoder
        decoder.scale_spectral(_SPECTRAL_SHARE if decoder.skip is not None else 1.0)
        decoder.scale_concepts(1 / decoder.kernel_norms().clamp_min(1e-12))
        self.concept_encoder.copy_adjoint(decoder)
        decoder.zero_bias()
        self.concept_encoder.zero_bias()


def directions(points: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Unit vectors towards n of the points, drawn in proportion to their norm, ``(n, channels)``."""
    norms = points.norm(dim=1).clamp_min(1e-12)
    drawn = torch.multinomial(norms.cpu(), n, replacement=True, generator=generator).to(points.device)
    return points[drawn] / norms[drawn, None]


def random_points(field: Tensor, generator: torch.Generator | None, n: int = 2**15) -> Tensor:
    """Values at random points of random samples, ``(n, channels)``."""
    flat = field.flatten(2)
    sample = torch.randint(len(flat), (n,), generator=generator).to(field.device)
    point = torch.randint(flat.shape[2], (n,), generator=generator).to(field.device)
    return flat[sample, :, point]
