"""Sparse autoencoders on fields."""

from .base import SAE, SAEOutput, load, saes
from .baselines import SAEPointwise
from .fno import SAEFNO, SAETFNO

__all__ = ["SAE", "SAEFNO", "SAETFNO", "SAEOutput", "SAEPointwise", "load", "saes"]
