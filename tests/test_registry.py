"""Registry: names, duplicates, messages."""

from __future__ import annotations

import pytest

from neuralop_sae.registry import Registry


def make() -> Registry[int]:
    registry: Registry[int] = Registry("number")
    registry.register("Two")(2)
    registry.register("one")(1)
    return registry


def test_names_are_case_insensitive_and_sorted() -> None:
    registry = make()
    assert registry.get("TWO") == 2
    assert registry.get("two") == 2
    assert registry.names() == ["one", "two"] == list(registry)
    assert "One" in registry
    assert "three" not in registry
    assert 1 not in registry


def test_register_returns_the_entry() -> None:
    registry: Registry[object] = Registry("function")

    def entry() -> None: ...

    assert registry.register("f")(entry) is entry


def test_duplicates_are_refused_and_leave_the_first() -> None:
    registry = make()
    with pytest.raises(ValueError, match="number 'ONE' is registered already: 1"):
        registry.register("ONE")(3)
    assert registry.get("one") == 1


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match="unknown number 'three'; known: one, two"):
        make().get("three")
    with pytest.raises(ValueError, match="known: none"):
        Registry("thing").get("x")
