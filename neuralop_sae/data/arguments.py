"""Checks of arguments that the generators share."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import TypeVar

__all__ = ["at_least", "distinct", "positive", "whole_steps"]

T = TypeVar("T", int, tuple[int, int])


def at_least(name: str, value: int, low: int) -> int:
    """The integer `value`, checked.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is below `low`.
    """
    number = operator.index(value)
    if number < low:
        raise ValueError(f"{name} is {number}; it must be an integer of at least {low}.")
    return number


def distinct(name: str, values: Iterable[T], example: str) -> list[T]:
    """The values, ascending and each once.

    Raises
    ------
    ValueError
        If there are none; the message shows an `example`.
    """
    found = sorted(set(values))
    if not found:
        raise ValueError(f"{name} is empty; name at least one, such as {example}.")
    return found


def positive(name: str, value: float, *, zero: bool = False) -> float:
    """The number `value` as a float, checked to be finite and above 0 (or, with `zero`, at least 0).

    Raises
    ------
    ValueError
        If it is not.
    """
    number = float(value)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(f"{name} is {number:g}; it must be finite and {'at least' if zero else 'above'} 0.")
    return number


def whole_steps(name: str, duration: float, time_step: float, low: int) -> int:
    """How many steps of `time_step` make `duration`.

    Raises
    ------
    ValueError
        If it is no whole number of them, or one below `low`.

    Examples
    --------
    >>> whole_steps("lead_time", 0.3, 0.1, 1)
    3
    """
    positive(name, duration, zero=True)
    steps = round(duration / time_step)
    if steps < low or not math.isclose(steps * time_step, duration, rel_tol=1e-9):
        raise ValueError(
            f"{name} is {duration:g}; it must be a whole multiple of time_step={time_step:g}, at least {low} of them "
            f"(such as {max(low, steps) * time_step:g}): round it, or pass another time_step."
        )
    return steps
