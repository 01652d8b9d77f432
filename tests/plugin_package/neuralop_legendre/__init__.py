"""Legendre polynomials for neuralop_sae. Importing this package registers what is in it."""

from .basis import LegendreBasis
from .operator import LegendreConcepts, LegendreConv, LegendreNO
from .rules import AtMost, Shrink

__all__ = ["AtMost", "LegendreBasis", "LegendreConcepts", "LegendreConv", "LegendreNO", "Shrink"]
