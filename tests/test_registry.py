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
    with pytest.raises(ValueError, match="number 'ONE' is registered already: 1; known: one, two"):
        registry.register("ONE")(3)
    assert registry.get("one") == 1


def test_a_decorator_without_its_name_is_refused() -> None:
    with pytest.raises(TypeError, match=r"register\('my_name'\); got"):
        make().register(Registry)  # type: ignore[arg-type]


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match="unknown number 'three'; known: one, two"):
        make().get("three")
    with pytest.raises(ValueError, match="known: none"):
        Registry("thing").get("x")


def write_plugin(folder, name, body):
    """An installed package as pip leaves it: a module, and metadata that name it as an entry point."""
    (folder / f"{name}.py").write_text(body)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[neuralop_sae.plugins]\n{name} = {name}\n")


def test_plugins_register_themselves(tmp_path):
    """In a process of its own: what a plugin registers is known after `import neuralop_sae`; a broken one is named."""
    import os
    import subprocess
    import sys

    body = """
from neuralop_sae.layers import FourierBasis, register_basis

@register_basis("from-a-plugin")
class Basis(FourierBasis):
    pass
"""
    write_plugin(tmp_path, "good_plugin", body)
    write_plugin(tmp_path, "bad_plugin", "raise RuntimeError('no such luck')")
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import neuralop_sae as ns
told = [str(w.message) for w in caught if "plugin" in str(w.message)]
assert len(told) == 1 and "'bad_plugin'" in told[0] and "no such luck" in told[0], told
import torch
sae = ns.SAEFNO(2, 4, (3, 3), conv_module="from-a-plugin")
print(sae(torch.randn(1, 2, 8, 8)).reconstruction.shape)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "[1, 2, 8, 8]" in result.stdout
