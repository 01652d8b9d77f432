"""Sparse autoencoders on fields."""

from .base import SAE, SAEOutput, load, saes
from .baselines import SAEPointwise
from .compression import Compression, compress
from .fno import SAEFNO, SAETFNO
from .sfno import SAESFNO

__all__ = ["SAE", "SAEFNO", "SAESFNO", "SAETFNO", "Compression", "SAEOutput", "SAEPointwise", "compress", "load", "saes"]
