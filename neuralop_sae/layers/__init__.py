"""Spectral bases, concept layers and sparsity rules."""

from .basis import SpectralBasis, bases, register_basis
from .concept_rules import All, BatchTopK, JumpReLU, TopK
from .concepts import ConceptDecoder, ConceptEncoder, Spectrum
from .domain_rules import Identity, LocalTopK, Rectify, SoftLocalTopK, SoftThreshold, TopFraction
from .fourier import FourierBasis
from .selection import Selection
from .sparsity import ConceptRule, DomainRule, register_concept_rule, register_domain_rule
from .spectral_convolution import FourierConv

__all__ = [
    "All",
    "BatchTopK",
    "ConceptDecoder",
    "ConceptEncoder",
    "ConceptRule",
    "DomainRule",
    "FourierBasis",
    "FourierConv",
    "Identity",
    "JumpReLU",
    "LocalTopK",
    "Rectify",
    "Selection",
    "SoftLocalTopK",
    "SoftThreshold",
    "SpectralBasis",
    "Spectrum",
    "TopFraction",
    "TopK",
    "bases",
    "register_basis",
    "register_concept_rule",
    "register_domain_rule",
]
