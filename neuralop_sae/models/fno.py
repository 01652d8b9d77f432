"""SAE-FNO: concepts as integral operators in the Fourier domain, on neuralop's own layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuralop.layers.fno_block import FNOBlocks
from neuralop.models.base_model import BaseModel
from torch import nn

from ..layers.adjoint import TiedEncoder
from ..layers.concepts import ConceptDecoder, ConceptEncoder
from ..layers.conv_modules import convolution_of, name_of_module
from ..layers.domain_rules import DEFAULT_DOMAIN_RULE
from ..layers.sparsity import ConceptRule, DomainRule, build_rule, concept_rules, domain_rules
from ..layers.unrolled import UnrolledEncoder
from .base import saes
from .spectral import SpectralSAE

_SELECTIONS = ("energy", "two_stage", "exact")
_ENCODERS = ("linear", "fno_block", "tied", "unrolled")
_DECODERS = ("linear", "fno_block")


@saes.register("SAEFNO")
class SAEFNO(SpectralSAE, BaseModel, name="SAEFNO"):  # type: ignore[call-arg]  # mypy misses the base
    r"""Sparse autoencoder neural operator with Fourier concepts, for activations of an FNO.

    A field x of m channels becomes few codes, each a function over the domain, and their sum through operators:

    .. math::
        a_c = D\,\sigma\Bigl(\sum_i E_{ic} * x_i + P_{ic} x_i + b_c\Bigr), \qquad
        \hat x_i = \sum_{c\ \mathrm{on}} W_{ci} * a_c + V_{ci} a_c + b_i .

    The convolutions are neuralop SpectralConv layers, P and V an FNO block's pointwise skip. Which concepts are on is
    decided from the energies of all pre-codes, by Parseval, with no inverse transform.

    Parameters
    ----------
    in_channels : int
        m, channels of the activations.
    n_concepts : int
        p, size of the dictionary.
    n_modes : int or sequence of int
        Modes per dimension, as in FNO; its length is the dimension of the grid. Odd numbers are best
        (:class:`neuralop_sae.layers.FourierBasis`).
    concept_rule : ConceptRule, dict or str
        Which concepts are on in a sample.
    domain_rule : DomainRule, dict or str
        Where on the domain each is expressed.
    encoder : {"linear", "fno_block", "tied", "unrolled"}
        ``"linear"``: kernels E and P of its own. ``"fno_block"`` puts a neuralop FNOBlocks on the m channels before these.
        ``"tied"``: the adjoint of the decoder, times a gain per concept, and b. ``"unrolled"``: `n_iterations` of proximal
        gradient on the decoder, the rules being the proximal map and b a threshold; see
        :mod:`neuralop_sae.layers.unrolled`.
    decoder : {"linear", "fno_block"}
        ``"fno_block"`` puts an FNOBlocks after the decoder.
    skip : {"linear", None}
        The pointwise part of every concept. Without it, modes alone describe activations worse than a pointwise SAE.
    code_grid : "input" or sequence of int
        Grid of the codes: the input's own, or a fixed one, which makes codes the same function whatever the input's
        grid, at the price of frequencies that it does not resolve.

    Other Parameters
    ----------------
    selection : {"two_stage", "energy", "exact"}
        How concepts are ranked: by their true code norm among ``oversample`` times as many candidates as the rule asks
        for, by estimated energy alone, or by true code norm among all.
    oversample : int
        See `selection`.
    n_iterations : int
        Of an unrolled encoder. Concepts are selected in each, by rules with thresholds and running statistics of their own.
    accelerate : bool
        Whether an unrolled encoder is FISTA instead of ISTA, whose error falls with every iteration, but slowly.
    factorization, rank
        Of the spectral weights, as in SpectralConv: None (dense), "Tucker", "CP", "TT".
    conv_module : str or type
        What holds the concepts, as in FNO: a registered concept layer ("SpectralConv", "SphericalConv"), a registered basis
        ("cosine"), or a class with the signature of neuralop's ``conv_module``; see
        :func:`neuralop_sae.layers.conv_modules.convolution_of`.
    conv_options : mapping, optional
        Its further arguments.

    Raises
    ------
    ValueError, TypeError
        For arguments that don't fit, saying which are allowed.

    Examples
    --------
    >>> import torch, neuralop_sae as ns
    >>> sae = ns.SAEFNO(in_channels=8, n_concepts=32, n_modes=(9, 9), concept_rule=ns.TopK(4))
    >>> out = sae(torch.randn(2, 8, 24, 24))
    >>> out.reconstruction.shape, out.codes.values.shape
    (torch.Size([2, 8, 24, 24]), torch.Size([8, 24, 24]))

    References
    ----------
    .. [1] Sparse autoencoder neural operators, arXiv 2509.03738.
    """

    def __init__(
        self,
        in_channels: int,
        n_concepts: int,
        n_modes: int | Sequence[int],
        *,
        concept_rule: ConceptRule | Mapping[str, Any] | str = "All",
        domain_rule: DomainRule | Mapping[str, Any] | str = DEFAULT_DOMAIN_RULE,
        encoder: str = "linear",
        decoder: str = "linear",
        skip: str | None = "linear",
        code_grid: str | Sequence[int] = "input",
        selection: str = "two_stage",
        oversample: int = 3,
        n_iterations: int = 8,
        accelerate: bool = True,
        factorization: str | None = None,
        rank: float | int | Sequence[int] = 1.0,
        conv_module: str | type[nn.Module] = "SpectralConv",
        conv_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, n_concepts)
        self.n_modes = (n_modes,) if isinstance(n_modes, int) else tuple(int(n) for n in n_modes)
        self.encoder, self.decoder, self.skip = encoder, decoder, skip
        self.selection, self.oversample = selection, oversample
        self.n_iterations, self.accelerate = n_iterations, accelerate
        self.factorization, self.rank = factorization, rank
        self.conv_module, self.conv_options = name_of_module(conv_module), dict(conv_options or {})
        self._check_arguments()
        self._convolution = convolution_of(conv_module, self.n_modes, self.conv_options)
        self._make_concept_layers()
        self.n_dim = self.basis.n_dim
        self.code_grid = self._check_code_grid(code_grid)
        self.encoder_trunk = self._trunk(encoder)
        self.decoder_trunk = self._trunk(decoder)
        n_earlier = n_iterations - 1 if encoder == "unrolled" else 0
        (*earlier, last) = (
            (build_rule(concept_rule, concept_rules, n_concepts), build_rule(domain_rule, domain_rules, n_concepts))
            for _ in range(n_earlier + 1)
        )
        self.concept_rule, self.domain_rule = last
        self.earlier_rules = nn.ModuleList(nn.ModuleList(pair) for pair in earlier)
        self.initialize_dictionary()

    def _check_arguments(self) -> None:
        for name, known in (("encoder", _ENCODERS), ("decoder", _DECODERS), ("selection", _SELECTIONS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        for name in ("oversample", "n_iterations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        if self.encoder == "unrolled" and self.decoder != "linear":
            raise ValueError(f"encoder='unrolled' takes residuals of a linear decoder, got decoder={self.decoder!r}")

    def _make_concept_layers(self) -> None:
        layer: dict[str, Any] = {
            "skip": self.skip,
            "factorization": self.factorization,
            "rank": self.rank,
            "conv_module": self._convolution,
        }
        sizes = (self.in_channels, self.n_concepts, self.n_modes)
        if self.encoder not in ("tied", "unrolled"):
            self.concept_encoder = (self._convolution.encoder or ConceptEncoder)(*sizes, **layer)
        self.concept_decoder = (self._convolution.decoder or ConceptDecoder)(*sizes, **layer)
        if self.encoder == "tied":
            self.concept_encoder = TiedEncoder(self.concept_decoder)  # type: ignore[assignment]  # has its methods
        elif self.encoder == "unrolled":
            unrolled = UnrolledEncoder(self.concept_decoder, self.n_iterations, self.accelerate)
            self.concept_encoder = unrolled  # type: ignore[assignment]

    def _check_code_grid(self, code_grid: str | Sequence[int]) -> str | tuple[int, ...]:
        if isinstance(code_grid, str):
            if code_grid != "input":
                raise ValueError(f"code_grid is 'input' or a grid of {self.n_dim} sizes, got {code_grid!r}")
            return code_grid
        return self.basis.check_grid(code_grid)

    def _trunk(self, kind: str) -> nn.Module:
        if kind != "fno_block":
            return nn.Identity()
        block_module = self._convolution.block_module()
        # Half as many hidden channels as channels, as neuralop has it, but at least one.
        expansion = max(0.5, 1 / self.in_channels)
        return FNOBlocks(
            self.in_channels,
            self.in_channels,
            self.n_modes,
            n_layers=1,
            conv_module=block_module,
            channel_mlp_expansion=expansion,
        )


@saes.register("SAETFNO")
class SAETFNO(SAEFNO, name="SAETFNO"):  # type: ignore[call-arg]  # mypy misses the base
    r"""SAE-FNO with a factorised dictionary, for very many concepts (10^4 to 10^6).

    The spectral kernels are r *templates* that every concept mixes with a vector of its own, :math:`W_c = \sum_r U_{cr}
    F_r`. Energies, gathers, kernel norms and reconstructions come from the factors; nothing of the size of the dense
    dictionary is formed.

    Parameters
    ----------
    in_channels, n_concepts, n_modes
        As in :class:`SAEFNO`.
    concept_rule : ConceptRule, dict or str
        Which concepts are on in a sample; 16 per sample by default. ``All`` would make a map per concept.
    factorization : {"tucker", "cp", "tt"}
        Form of the weights.
    rank : float, int or sequence of int
        A share of the dense weight's parameters, spent on the concept axis while channels and modes stay full; or ranks,
        in the encoder's order of axes (channels, concepts, *modes). See
        :func:`neuralop_sae.layers.ranks.dictionary_rank`.
    **kwargs
        As in :class:`SAEFNO`.

    Examples
    --------
    >>> import torch, neuralop_sae as ns
    >>> sae = ns.SAETFNO(in_channels=8, n_concepts=4096, n_modes=(9, 9), concept_rule=ns.TopK(16), rank=0.02)
    >>> sae(torch.randn(2, 8, 24, 24)).codes.values.shape
    torch.Size([32, 24, 24])
    """

    def __init__(
        self,
        in_channels: int,
        n_concepts: int,
        n_modes: int | Sequence[int],
        *,
        concept_rule: ConceptRule | Mapping[str, Any] | str = "TopK",
        factorization: str = "tucker",
        rank: float | int | Sequence[int] = 0.05,
        **kwargs: Any,
    ) -> None:
        if not factorization:
            raise ValueError("SAETFNO is factorised: factorization='tucker', 'cp' or 'tt'; SAEFNO is the dense one")
        given: dict[str, Any] = {"concept_rule": concept_rule, "factorization": factorization, "rank": rank}
        super().__init__(in_channels, n_concepts, n_modes, **given, **kwargs)
