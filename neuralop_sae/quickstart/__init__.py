"""The whole way once: data, an operator trained by neuralop, a sparse autoencoder on it, what its concepts are."""

from .flows import NavierStokes, ShallowWater
from .problems import Darcy, Problem
from .run import check_device, quickstart

PROBLEMS: dict[str, type[Problem]] = {problem.key: problem for problem in (Darcy, ShallowWater, NavierStokes)}

__all__ = ["PROBLEMS", "Darcy", "NavierStokes", "Problem", "ShallowWater", "check_device", "quickstart"]
