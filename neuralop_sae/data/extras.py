"""Packages that only some users need: imported on use."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["import_extra"]


def import_extra(name: str) -> ModuleType:
    """The module `name`; ImportError that says how to install it if it is missing."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"this needs {name}: pip install 'neuralop-sae[data]'", name=name) from error
