"""Spectral bases, concept layers and sparsity rules."""

from .basis import Pairing, SpectralBasis, bases, register_basis
from .concept_rules import All, BatchTopK, JumpReLU, TopK
from .concepts import ConceptDecoder, ConceptEncoder
from .dense import DenseKernels
from .domain_rules import Identity, LocalTopK, Rectify, SoftLocalTopK, SoftThreshold, TopFraction
from .factorized import CPKernels, MixedKernels, TTKernels, TuckerKernels
from .fourier import FourierBasis
from .kernels import Kernels
from .moments import Spectrum
from .selection import Selection
from .sparsity import ConceptRule, DomainRule, register_concept_rule, register_domain_rule
from .spectral_convolution import FourierConv

__all__ = [
    "All",
    "BatchTopK",
    "CPKernels",
    "ConceptDecoder",
    "ConceptEncoder",
    "ConceptRule",
    "DenseKernels",
    "DomainRule",
    "FourierBasis",
    "FourierConv",
    "Identity",
    "JumpReLU",
    "Kernels",
    "LocalTopK",
    "MixedKernels",
    "Pairing",
    "Rectify",
    "Selection",
    "SoftLocalTopK",
    "SoftThreshold",
    "SpectralBasis",
    "Spectrum",
    "TTKernels",
    "TopFraction",
    "TopK",
    "TuckerKernels",
    "bases",
    "register_basis",
    "register_concept_rule",
    "register_domain_rule",
]
