"""Contracts that every basis, rule, concept layer and model passes, also those registered from outside this package.

Each ``check_*`` raises AssertionError that names the property which failed and by how much. Call them from a test::

    def test_my_basis():
        check_basis(CosineBasis((8, 8)))
"""

from .accuracy import TOLERANCE, assert_equal, relative_error, require
from .bases import check_basis
from .concept_layers import check_concept_layer
from .models import check_model, check_oracle
from .rules import check_rule
from .sites import check_sites

__all__ = [
    "TOLERANCE",
    "assert_equal",
    "check_basis",
    "check_concept_layer",
    "check_model",
    "check_oracle",
    "check_rule",
    "check_sites",
    "relative_error",
    "require",
]
