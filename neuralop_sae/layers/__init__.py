"""Spectral bases, concept layers and sparsity rules."""

from .basis import SpectralBasis, bases, register_basis
from .concepts import ConceptDecoder, ConceptEncoder, Spectrum
from .fourier import FourierBasis
from .selection import Selection
from .sparsity import (
    All,
    BatchTopK,
    ConceptRule,
    DomainRule,
    Identity,
    JumpReLU,
    LocalTopK,
    Rectify,
    SoftLocalTopK,
    SoftThreshold,
    TopFraction,
    TopK,
    register_concept_rule,
    register_domain_rule,
)
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
