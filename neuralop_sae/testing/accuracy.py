"""What counts as equal in a contract."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: Largest relative error of an identity, per real dtype.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def relative_error(actual: Tensor, expected: Tensor, scale: float = 0.0) -> float:
    """``|actual - expected| / max(|expected|, scale)`` in L2 norm, NaN counted as infinite; zero for two zeros."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    difference = float((actual.detach() - expected.detach()).norm())
    size = max(float(expected.detach().norm()), scale)
    error = difference / size if size else (0.0 if difference == 0 else math.inf)
    return math.inf if math.isnan(error) else error


def assert_equal(what: str, actual: Tensor, expected: Tensor, *, scale: float = 0.0, factor: float = 1.0) -> None:
    """AssertionError unless the relative error is within the tolerance of the dtype (times `factor`)."""
    real = expected.dtype.to_real() if expected.is_complex() else expected.dtype
    allowed = factor * TOLERANCE.get(real, 0.0)
    try:
        error = relative_error(actual, expected, scale)
    except AssertionError as mismatch:
        raise AssertionError(f"{what}: {mismatch}") from None
    require(actual.dtype == expected.dtype, what, f"dtype {actual.dtype} instead of {expected.dtype}")
    require(error <= allowed, what, f"relative error {error:.1e}, allowed {allowed:.0e}")


def require(condition: object, what: str, detail: str = "does not hold") -> None:
    """AssertionError with ``what: detail`` unless the condition holds."""
    if not condition:
        raise AssertionError(f"{what}: {detail}")


def require_same_state(before: dict[str, Tensor], after: dict[str, Tensor], what: str) -> None:
    """AssertionError that names the first tensor in which two state dicts differ."""
    tensors = [name for name, value in before.items() if isinstance(value, Tensor)]
    changed = [name for name in tensors if not torch.equal(before[name], after[name])]
    require(before.keys() == after.keys() and not changed, what, f"changed: {changed}")


def through_json(what: str, config: Mapping[str, Any]) -> Any:
    """A config written as JSON and read again; AssertionError if it is no plain data."""
    try:
        return json.loads(json.dumps(config))
    except TypeError as error:
        raise AssertionError(f"{what}: {config} is not plain data (numbers, strings, lists, dicts): {error}") from error
