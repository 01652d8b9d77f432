"""Sparse autoencoders for neural operators: which concepts does an operator use, where, and what do they do?

Importing this package registers its models with neuralop, so that ``neuralop.models.get_model`` makes them by name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .analysis.evaluate import code_consistency, evaluate
from .analysis.faithfulness import faithfulness
from .analysis.rollouts import during, ramp, rollout, rollout_errors
from .attach.capture import capture
from .attach.checkpoints import load_operator
from .attach.control import random_control
from .attach.edits import ablate, add, band_filter, clamp, compose, patch, restrict, steer
from .attach.interventions import replace_activation, splice
from .attach.moves import inject, rotate, translate
from .attach.rules import Stage, register_sites
from .attach.sites import Site, find_sites
from .codes import ConceptCodes
from .data.labelled import codes_to_xarray, from_xarray
from .data.store import ActivationStore
from .data.streaming import ActivationStream, stream
from .hub import ModelCard, pull, push
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

if TYPE_CHECKING:  # on first use: they load pandas, xarray and matplotlib
    from .analysis import figures
    from .analysis.agreement import pattern_correlation
    from .analysis.animation import animation
    from .analysis.attribution import attribute, check_by_ablation
    from .analysis.calculus import Globe, PeriodicBox, WalledBox
    from .analysis.causal import causal_test
    from .analysis.closest import closest_concepts
    from .analysis.conservation import conservation, spectrum_drift
    from .analysis.physics import register_physics
    from .analysis.probes import probe
    from .analysis.recruitment import recruitment
    from .analysis.relations import stability
    from .analysis.report import report
    from .analysis.seasonality import seasonality
    from .analysis.spectra import concept_spectra
    from .analysis.tradeoff import fve_by_k

__version__ = "0.1.0"

__all__ = [
    "PCA",
    "SAE",
    "SAECNN",
    "SAEFNO",
    "SAEMLP",
    "SAESFNO",
    "SAETFNO",
    "ActivationStore",
    "ActivationStream",
    "All",
    "BatchTopK",
    "Compression",
    "ConceptCodes",
    "ConceptRule",
    "Convolution",
    "DomainRule",
    "FieldPCA",
    "FourierBasis",
    "Globe",
    "Identity",
    "JumpReLU",
    "Lifted",
    "LocalTopK",
    "ModelCard",
    "PeriodicBox",
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
    "WalledBox",
    "ablate",
    "add",
    "animation",
    "attribute",
    "band_filter",
    "capture",
    "causal_test",
    "check_by_ablation",
    "clamp",
    "closest_concepts",
    "code_consistency",
    "codes_to_xarray",
    "compose",
    "compress",
    "concept_spectra",
    "conservation",
    "during",
    "evaluate",
    "faithfulness",
    "figures",
    "find_sites",
    "from_xarray",
    "fve_by_k",
    "inject",
    "load",
    "load_operator",
    "patch",
    "pattern_correlation",
    "probe",
    "pull",
    "push",
    "ramp",
    "random_control",
    "recruitment",
    "register_basis",
    "register_concept_layer",
    "register_concept_rule",
    "register_domain_rule",
    "register_physics",
    "register_sites",
    "replace_activation",
    "report",
    "restrict",
    "rollout",
    "rollout_errors",
    "rotate",
    "seasonality",
    "spectrum_drift",
    "splice",
    "stability",
    "steer",
    "stream",
    "train",
    "train_many",
    "translate",
]

_LAZY = {
    "closest_concepts": ".analysis.closest",
    "pattern_correlation": ".analysis.agreement",
    "fve_by_k": ".analysis.tradeoff",
    "stability": ".analysis.relations",
    "animation": ".analysis.animation",
    "figures": ".analysis",
    "attribute": ".analysis.attribution",
    "check_by_ablation": ".analysis.attribution",
    "Globe": ".analysis.calculus",
    "PeriodicBox": ".analysis.calculus",
    "WalledBox": ".analysis.calculus",
    "causal_test": ".analysis.causal",
    "conservation": ".analysis.conservation",
    "spectrum_drift": ".analysis.conservation",
    "register_physics": ".analysis.physics",
    "probe": ".analysis.probes",
    "recruitment": ".analysis.recruitment",
    "report": ".analysis.report",
    "seasonality": ".analysis.seasonality",
    "concept_spectra": ".analysis.spectra",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_LAZY[name], __name__)
    return import_module(f".{name}", module.__name__) if name == "figures" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, *globals()]


load_plugins()
