"""The path of a spectral SAE: rank concepts by energy, express those that are on, write them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..codes import ConceptCodes
from ..layers.basis import SpectralBasis
from ..layers.concepts import ConceptDecoder, ConceptEncoder, Energies, Spectrum
from ..layers.exchange import Exchange
from ..layers.kernels import chunk_bytes
from ..layers.selection import Selection
from ..layers.sparsity import ConceptRule, DomainRule
from ..layers.unrolled import Residual, UnrolledEncoder, take
from .base import SAE, SAEOutput, full_precision
from .domain_size import reindexed
from .starts import directions, random_points, start_kernels

_CHUNK_BYTES = 256 * 2**20
_SPECTRAL_SHARE = 0.3


class Rules(NamedTuple):
    """The rules of one pass over a field."""

    concept: ConceptRule
    domain: DomainRule


class Pass(NamedTuple):
    """What a pass over a field gives: which concepts are on, the scores ``(B, p)`` that decided and an upper bound of them,
    codes ``(n, *code_grid)`` and gates ``(n,)``."""

    selection: Selection
    scores: Tensor
    bound: Tensor
    values: Tensor
    gates: Tensor | None


class SpectralSAE(SAE):
    """An SAE whose encoder and decoder are spectral concept layers.

    Everything happens on the code grid: a field is brought there and its reconstruction back. On it the codes never
    exist for concepts that are off. Subclasses make the layers in their constructor.

    Attributes
    ----------
    concept_encoder, concept_decoder : ConceptEncoder, ConceptDecoder
        The layers, or others with their methods.
    earlier_rules : nn.ModuleList
        Rules of all passes but the last, as pairs (concept rule, domain rule): an unrolled encoder makes a pass for each of
        its iterations, whose thresholds and running statistics are its own.
    encoder_trunk, decoder_trunk : nn.Module
        Operators on the m channels before and after them (the identity for linear kinds).
    """

    concept_encoder: ConceptEncoder
    concept_decoder: ConceptDecoder
    encoder_trunk: nn.Module
    decoder_trunk: nn.Module
    concept_rule: ConceptRule
    domain_rule: DomainRule
    earlier_rules: nn.ModuleList
    selection: str
    oversample: int
    code_grid: tuple[int, ...] | str

    def concept_axes(self) -> dict[str, int]:
        """See :meth:`SAE.concept_axes`."""
        layers = {"concept_encoder": self.concept_encoder, "concept_decoder": self.concept_decoder}
        owned = {name: layer.concept_axes() for name, layer in layers.items()}
        if not all(owned.values()):
            return {}
        axes = {f"{layer}.{name}": axis for layer, each in owned.items() for name, axis in each.items()}
        for name, tensor in {**dict(self.named_parameters()), **dict(self.named_buffers())}.items():
            of_rules = name.startswith(("concept_rule.", "domain_rule.", "earlier_rules."))
            if of_rules and tensor.ndim and len(tensor) == self.n_concepts:
                axes[name] = 0
        return axes

    def divide(self, n_concepts: int, exchange: Exchange) -> None:
        """See :meth:`SAE.divide`."""
        self.n_concepts, self.exchange = n_concepts, exchange
        for layer in (self.concept_encoder, self.concept_decoder):
            layer.divide(n_concepts, exchange)
        for rules in self._passes():
            rules.concept.exchange = rules.domain.exchange = exchange

    def config(self) -> dict[str, Any]:
        """Constructor arguments as plain data; of the whole dictionary, if this is a shard."""
        return {**super().config(), "n_concepts": self.exchange.whole(self.n_concepts)}

    @full_precision
    def forward(self, x: Tensor, *, dead: Tensor | None = None, dead_k: int = 16, prefixes: Sequence[int] = ()) -> SAEOutput:
        """See :meth:`SAE.forward`. Dead concepts are ranked by their energy before rectification, and their pre-codes are
        rectified by a leaky ReLU, so that a wholly negative one still gets a gradient."""
        self.check_prefixes(prefixes)
        spectrum, grid = self._analyse(x), x.shape[2:]
        out = self._infer(spectrum)
        if prefixes:
            *nested, reconstruction = self._decode_prefixes(out.values, out.selection, prefixes, grid)
        else:
            nested, reconstruction = [], self._decode(out.values, out.selection, grid)
        revived = None if dead is None else self._revive(spectrum, out.bound, dead, dead_k, grid)
        codes = self._codes(out.values, out.selection)
        return SAEOutput(reconstruction, codes, out.scores, out.gates, revived, tuple(nested))

    @full_precision
    def encode(self, x: Tensor) -> ConceptCodes:
        """Codes of a field ``(B, channels, *grid)``."""
        out = self._infer(self._analyse(x))
        return self._codes(out.values, out.selection)

    @full_precision
    def decode(self, codes: ConceptCodes, output_shape: Sequence[int] | None = None) -> Tensor:
        """The field ``(B, channels, *output_shape)`` that codes stand for; on the code grid by default."""
        if codes.n_concepts != self.n_concepts:
            raise ValueError(f"codes of {codes.n_concepts} concepts, but this model has n_concepts={self.n_concepts}")
        return self._decode(codes.values.to(self.dtype), codes.selection, output_shape or codes.grid)

    def _decode(self, values: Tensor, selection: Selection, grid: Sequence[int]) -> Tensor:
        return self._read_out(self.concept_decoder(values, selection), grid)

    def _decode_prefixes(
        self, values: Tensor, selection: Selection, prefixes: Sequence[int], grid: Sequence[int]
    ) -> list[Tensor]:
        """As :meth:`_decode`, from each prefix and from the whole. Every concept is written once."""
        first = self.exchange.first(self.n_concepts)
        written = self.concept_decoder.contract(values, selection.by_part([n - first for n in prefixes]))
        parts = written.unflatten(0, (selection.n_samples, -1)).unbind(1)
        fields = accumulate(parts, initial=self.concept_decoder.bias_field(values.shape[1:]))
        return [self._read_out(field, grid) for field in islice(fields, 1, None)]

    def _read_out(self, field: Tensor, grid: Sequence[int]) -> Tensor:
        return self.denormalize(self.basis.resample(self.decoder_trunk(field), grid))

    @property
    def basis(self) -> SpectralBasis:
        """The spectral basis of the concept layers."""
        return self.concept_encoder.basis

    def _field(self, x: Tensor) -> Tensor:
        """The normalised field on the code grid, after the trunk."""
        return self.exchange.spread(self.encoder_trunk(self._on_code_grid(x)))

    def _on_code_grid(self, x: Tensor) -> Tensor:
        field = self.normalize(x)
        return self.basis.resample(field, x.shape[2:] if isinstance(self.code_grid, str) else self.code_grid)

    def _analyse(self, x: Tensor) -> Spectrum:
        """The field with its coefficients, as the first pass reads it."""
        spectrum, encoder = Spectrum.of(self._field(x), self.basis), self._unrolled
        return spectrum if encoder is None else encoder.start(spectrum)

    @property
    def _unrolled(self) -> UnrolledEncoder | None:
        encoder: nn.Module = self.concept_encoder
        return encoder if isinstance(encoder, UnrolledEncoder) else None

    @property
    def _rules(self) -> Rules:
        return Rules(self.concept_rule, self.domain_rule)

    def _passes(self) -> list[Rules]:
        """The rules of each pass over a field."""
        return [*(Rules(*pair) for pair in self.earlier_rules), self._rules]  # type: ignore[misc]  # pairs are ModuleLists

    def _infer(self, spectrum: Spectrum) -> Pass:
        """All passes over a field: of the last one, but for the bound, which is of the first."""
        norms, encoder, (first, *later) = self._norms(), self._unrolled, self._passes()
        out = self._pass(spectrum, norms, first)
        bound = out.bound
        for rules in later:
            assert encoder is not None
            assert isinstance(spectrum, Residual)
            spectrum = encoder.proceed(spectrum, out.selection, out.values)
            out = self._pass(spectrum, norms, rules)
        return out._replace(bound=bound)

    def _pass(self, spectrum: Spectrum, norms: Tensor, rules: Rules) -> Pass:
        estimate, bound = self._estimates(spectrum, norms, rules)
        selection, scores = self._rank(spectrum, norms, estimate, bound, rules)
        return Pass(selection, scores, bound, *self._express(spectrum, selection, scores, rules))

    def _codes(self, values: Tensor, selection: Selection) -> ConceptCodes:
        return ConceptCodes(selection.sample, selection.concept, values, selection.n_samples, selection.n_concepts, self.basis)

    @torch.no_grad()
    def _estimates(self, spectrum: Spectrum, norms: Tensor, rules: Rules | None = None) -> tuple[Tensor, Tensor]:
        """Scores of all concepts estimated from the moments of their pre-codes, and an upper bound of them, ``(B, p)``."""
        return self._from_moments(self.concept_encoder.energies(spectrum), norms, rules or self._rules)

    def _from_moments(self, energies: Energies, norms: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
        estimate = rules.domain.estimate(energies.mean, energies.mean_square)
        return estimate.sqrt() * norms, energies.mean_square.sqrt() * norms

    @torch.no_grad()
    def _rank(
        self, spectrum: Spectrum, norms: Tensor, estimate: Tensor, bound: Tensor, rules: Rules | None = None
    ) -> tuple[Selection, Tensor]:
        """Which concepts are on, and the scores ``(B, p)`` that decided."""
        rules, scores = rules or self._rules, estimate
        if self.selection == "exact":
            scores = self._all_scores(spectrum, norms, rules)
        elif self._has_second_stage(rules):
            scores = self._scores(spectrum, rules.concept.shortlist(estimate, bound, self.oversample), norms, rules)
        return rules.concept.choose(scores), scores

    def _has_second_stage(self, rules: Rules) -> bool:
        """Whether candidates are ranked again by their true code norm: not where energy is exact or all are on."""
        return self.selection == "two_stage" and rules.domain.rectifies and not rules.concept.takes_all

    def _scores(self, spectrum: Spectrum, selection: Selection, norms: Tensor, rules: Rules) -> Tensor:
        """True scores of the selected pairs, zero elsewhere, ``(B, p)``; a few samples at a time."""
        scores = norms.new_zeros(selection.n_samples, selection.n_concepts)
        map_bytes = scores.element_size() * spectrum.field[0, 0].numel()
        for samples, part in selection.split(max(1, chunk_bytes(norms.device) // (map_bytes * (selection.every or 1)))):
            values = self._activate(self.concept_encoder.gather(take(spectrum, samples), part), part.concept, rules)
            found = self.basis.mean_square(values).sqrt() * norms[part.concept]
            scores[samples].index_put_((part.sample, part.concept), found)
        return scores

    def _all_scores(self, spectrum: Spectrum, norms: Tensor, rules: Rules) -> Tensor:
        """True scores of all concepts, in chunks of concepts."""
        batch, n_points = len(spectrum.field), spectrum.field[0, 0].numel()
        chunk = max(1, _CHUNK_BYTES // (batch * (16 * n_points + 8 * spectrum.coefficients[0].numel())))
        scores = spectrum.field.new_zeros(batch, self.n_concepts)
        mask = torch.zeros_like(scores, dtype=torch.bool)
        for first in range(0, self.n_concepts, chunk):
            part = mask.clone()
            part[:, first : first + chunk] = True
            scores += self._scores(spectrum, Selection.from_mask(part), norms, rules)
        return scores

    def _activate(self, values: Tensor, concept: Tensor, rules: Rules) -> Tensor:
        quadrature = self.basis.quadrature(values.shape[1:], like=values)
        return rules.domain.activate(values, concept, quadrature)

    def _express(
        self, spectrum: Spectrum, selection: Selection, scores: Tensor, rules: Rules | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Codes of the selected pairs, with gradient, ``(n, *code_grid)``, and their gates."""
        rules = rules or self._rules
        pre_codes = self.concept_encoder.gather(spectrum, selection)
        if self.training:
            quadrature = self.basis.quadrature(spectrum.grid, like=pre_codes)
            rules.domain.observe(pre_codes.detach(), selection.concept, quadrature)
        values = self._activate(pre_codes, selection.concept, rules)
        if selection.every is not None and self.selection == "energy":  # pairs of score zero are there
            values = values * (scores[selection.sample, selection.concept] > 0).view(-1, *(1,) * self.n_dim)
        gates = rules.concept.gate(scores[selection.sample, selection.concept], selection.concept)
        if gates is not None:
            values = values * gates.view(-1, *(1,) * self.n_dim)
        return selection.to_rows(rules.domain.compete(selection.to_slots(values))), gates

    @full_precision
    def dense_forward(self, x: Tensor) -> SAEOutput:
        """The oracle: every code of every concept through the neuralop layers; the same :class:`SAEOutput`."""
        field, encoder, (first, *later) = self._field(x), self._unrolled, self._passes()
        values, selection, scores, gates = self._dense_pass(self.concept_encoder.dense_forward(field), first)
        previous = values
        for n_done, rules in enumerate(later, start=1):
            assert encoder is not None
            start = values + encoder.momentum(n_done) * (values - previous)
            previous = values
            values, selection, scores, gates = self._dense_pass(encoder.dense_forward(field, start), rules)
        out = self.decoder_trunk(self.concept_decoder.dense_forward(values))
        codes = self._codes(values[selection.sample, selection.concept], selection)
        return SAEOutput(self.denormalize(self.basis.resample(out, x.shape[2:])), codes, scores, gates)

    def _dense_pass(self, pre_codes: Tensor, rules: Rules) -> tuple[Tensor, Selection, Tensor, Tensor | None]:
        """Codes ``(B, p, *code_grid)`` of all concepts from their pre-codes; which are on, scores and gates."""
        batch, p, *grid = pre_codes.shape
        quadrature = self.basis.quadrature(grid, like=pre_codes)
        concept = torch.arange(p, device=pre_codes.device).repeat(batch)
        values = rules.domain.activate(pre_codes.flatten(0, 1), concept, quadrature).reshape(pre_codes.shape)
        scores = self._dense_scores(pre_codes.detach(), values.detach(), quadrature, rules)
        selection = Selection.from_mask(rules.concept.select(scores))
        on = selection.mask()
        gates = rules.concept.gate(scores.flatten(), concept)
        factors = on if gates is None else on * gates.reshape(batch, p)
        values = rules.domain.compete(values * factors.view(batch, p, *(1,) * self.n_dim))
        return values, selection, scores, None if gates is None else gates.reshape(batch, p)[on]

    @torch.no_grad()
    def _dense_scores(self, pre_codes: Tensor, values: Tensor, quadrature: Tensor, rules: Rules) -> Tensor:
        """As :meth:`_rank`, with moments and norms taken on the grid."""
        norms = self._norms()
        scores = self.basis.mean_square(values).sqrt() * norms
        if self.selection == "exact":
            return scores
        mean = (pre_codes * quadrature).flatten(2).sum(-1)
        estimate, bound = self._from_moments(Energies(mean, self.basis.mean_square(pre_codes)), norms, rules)
        if not self._has_second_stage(rules):
            return estimate
        return scores * rules.concept.candidates(estimate, bound, self.oversample)

    def kernel_norms(self, concepts: Tensor | None = None) -> Tensor:
        """L2 norm of each concept's atom over all channels, before the decoder's trunk; see :meth:`SAE.kernel_norms`."""
        return self.concept_decoder.kernel_norms(concepts)

    def seen_norms(self, concepts: Tensor | None = None) -> Tensor:
        """See :meth:`SAE.seen_norms`; after the decoder's trunk, if there is one."""
        if not self._lifting or self._has_trunk:
            return super().seen_norms(concepts)
        return self.concept_decoder.kernel_norms(concepts, self._lifting[0].projection)

    def _norms(self) -> Tensor:
        """By which concepts are ranked. What a trunk makes of an atom takes too long to find for every field."""
        return self.kernel_norms() if self._has_trunk else self.seen_norms()

    def _with_lengths(self, factors: tuple[float, ...]) -> Self:
        return reindexed(self, factors)

    @property
    def _has_trunk(self) -> bool:
        return not isinstance(self.decoder_trunk, nn.Identity)

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
        """Start each concept at a random point of a random sample, drawn in proportion to the norm there: its pointwise part
        from the activation; where it has none, its kernel from the field around the point
        (:func:`~neuralop_sae.models.starts.start_kernels`), and encoder and decoder times the one factor that fits the
        activations best. See :meth:`initialize_dictionary` for the rest."""
        decoder = self.concept_decoder
        if decoder.skip is not None:
            field = self.normalize(x)
            points = random_points(field, generator, self.basis.quadrature(field.shape[2:], like=field))
            decoder.skip.conv.weight[..., 0] = directions(points, self.n_concepts, generator).T
        started = decoder.skip is None and start_kernels(decoder, self._on_code_grid(x), generator)
        self.initialize_dictionary()
        if started:
            self._fit_gain(x[:8])  # no more memory than a step takes

    def _fit_gain(self, x: Tensor) -> None:
        """Multiply encoder and decoder by the root of the one factor that fits the activations best: Adam's steps are of one
        size, and the encoder alone would be small beside them. An encoder that iterates needs none."""
        if isinstance(self.concept_encoder, UnrolledEncoder):
            return
        training = self.training
        self.eval()  # a look at the activations, not a step
        spectrum = self._analyse(x)
        out = self._infer(spectrum)
        self.train(training)
        written = self.concept_decoder.contract(out.values, out.selection)
        weighted = written * self.basis.quadrature(spectrum.grid, like=written)
        gain = (weighted * spectrum.field).sum() / (weighted * written).sum().clamp_min(1e-12)
        self.concept_decoder.scale_concepts(torch.where(gain > 0, gain, 1).sqrt().expand(self.n_concepts))
        self.concept_encoder.copy_adjoint(self.concept_decoder)

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
