"""Sparse autoencoders on fields."""

from .base import SAE, SAEOutput, load, saes
from .baselines import SAEPointwise
from .cnn import SAECNN
from .compression import Compression, compress
from .fno import SAEFNO, SAETFNO
from .lifted import Lifted
from .mlp import SAEMLP
from .pca import PCA, FieldPCA
from .sfno import SAESFNO

__all__ = [
    "PCA",
    "SAE",
    "SAECNN",
    "SAEFNO",
    "SAEMLP",
    "SAESFNO",
    "SAETFNO",
    "Compression",
    "FieldPCA",
    "Lifted",
    "SAEOutput",
    "SAEPointwise",
    "compress",
    "load",
    "saes",
]
