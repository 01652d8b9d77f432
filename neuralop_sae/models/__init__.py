"""Sparse autoencoders on fields."""

from .base import SAE, SAEOutput, load, saes
from .fno import SAEFNO

__all__ = ["SAE", "SAEFNO", "SAEOutput", "load", "saes"]
