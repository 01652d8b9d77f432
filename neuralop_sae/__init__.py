"""Sparse autoencoders for neural operators: which concepts does an operator use, where, and what do they do?

Importing this package registers its models with neuralop, so that ``neuralop.models.get_model`` makes them by name.
"""

from .analysis.evaluate import code_consistency, evaluate
from .analysis.faithfulness import faithfulness
from .analysis.report import report
from .attach.capture import capture
from .attach.control import random_control
from .attach.interventions import ablate, replace_activation, splice, steer
from .attach.rules import Stage, register_sites
from .attach.sites import Site, find_sites
from .codes import ConceptCodes
from .layers import (
    All,
    BatchTopK,
    ConceptRule,
    Convolution,
    DomainRule,
    FourierBasis,
    Identity,
    JumpReLU,
    LocalTopK,
    Rectify,
    SoftLocalTopK,
    SoftThreshold,
    SpectralBasis,
    SphericalBasis,
    TopFraction,
    TopK,
    register_basis,
    register_concept_layer,
    register_concept_rule,
    register_domain_rule,
)
from .models import (
    PCA,
    SAE,
    SAECNN,
    SAEFNO,
    SAEMLP,
    SAESFNO,
    SAETFNO,
    Compression,
    FieldPCA,
    Lifted,
    SAEOutput,
    SAEPointwise,
    compress,
    load,
)
from .registry import load_plugins
from .training.many import train_many
from .training.trainer import TrainingConfig, TrainingHistory, train

__version__ = "0.1.0"

__all__ = [
    "PCA",
    "SAE",
    "SAECNN",
    "SAEFNO",
    "SAEMLP",
    "SAESFNO",
    "SAETFNO",
    "All",
    "BatchTopK",
    "Compression",
    "ConceptCodes",
    "ConceptRule",
    "Convolution",
    "DomainRule",
    "FieldPCA",
    "FourierBasis",
    "Identity",
    "JumpReLU",
    "Lifted",
    "LocalTopK",
    "Rectify",
    "SAEOutput",
    "SAEPointwise",
    "Site",
    "SoftLocalTopK",
    "SoftThreshold",
    "SpectralBasis",
    "SphericalBasis",
    "Stage",
    "TopFraction",
    "TopK",
    "TrainingConfig",
    "TrainingHistory",
    "ablate",
    "capture",
    "code_consistency",
    "compress",
    "evaluate",
    "faithfulness",
    "find_sites",
    "load",
    "random_control",
    "register_basis",
    "register_concept_layer",
    "register_concept_rule",
    "register_domain_rule",
    "register_sites",
    "replace_activation",
    "report",
    "splice",
    "steer",
    "train",
    "train_many",
]

load_plugins()
