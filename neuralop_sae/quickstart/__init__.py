"""The whole way once: data, an operator trained by neuralop, a sparse autoencoder on it, what its concepts are."""

from .flows import NavierStokes, ShallowWater
from .problems import Darcy, Problem
from .result import Result
from .run import check_device, prepare, quickstart

PROBLEMS: dict[str, type[Problem]] = {problem.key: problem for problem in (Darcy, ShallowWater, NavierStokes)}

__all__ = ["PROBLEMS", "Darcy", "NavierStokes", "Problem", "Result", "ShallowWater", "check_device", "prepare", "quickstart"]
