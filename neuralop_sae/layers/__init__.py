"""Spectral bases, concept layers and sparsity rules."""

from .basis import Pairing, SpectralBasis, bases, register_basis
from .concept_rules import All, BatchTopK, JumpReLU, TopK
from .concepts import ConceptDecoder, ConceptEncoder
from .conv_modules import convolution_of
from .convolutions import Convolution, concept_layers, register_concept_layer
from .dense import DenseKernels
from .domain_rules import Identity, LocalTopK, Rectify, SoftLocalTopK, SoftThreshold, TopFraction
from .factorized import CPKernels, MixedKernels, TTKernels, TuckerKernels
from .fourier import FourierBasis
from .kernels import Kernels
from .moments import Spectrum
from .selection import Selection
from .sparsity import ConceptRule, DomainRule, register_concept_rule, register_domain_rule
from .spectral_convolution import BasisConv, FourierConv
from .spherical import SphericalBasis
from .spherical_convolution import ConceptSphericalConv

__all__ = [
    "All",
    "BasisConv",
    "BatchTopK",
    "CPKernels",
    "ConceptDecoder",
    "ConceptEncoder",
    "ConceptRule",
    "ConceptSphericalConv",
    "Convolution",
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
    "SphericalBasis",
    "TTKernels",
    "TopFraction",
    "TopK",
    "TuckerKernels",
    "bases",
    "concept_layers",
    "convolution_of",
    "register_basis",
    "register_concept_layer",
    "register_concept_rule",
    "register_domain_rule",
]
