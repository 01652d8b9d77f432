"""Sparse autoencoders on fields."""

from .base import SAE, SAEOutput, load, saes
from .baselines import SAEPointwise
from .fno import SAEFNO

__all__ = ["SAE", "SAEFNO", "SAEOutput", "SAEPointwise", "load", "saes"]
