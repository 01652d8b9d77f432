"""The house rules that a reader cannot see at a glance: imports point one way, everything public is documented, no pickle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import neuralop_sae

ROOT = Path(neuralop_sae.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
#: A part may import earlier parts; parts of one number do not import each other.
ORDER = {
    "registry": 0,
    "metrics": 0,
    "checkpoint": 0,
    "notebook": 0,
    "layers": 1,
    "codes": 2,
    "models": 3,
    "attach": 4,
    "hub": 4,
    "testing": 5,
    "data": 5,
    "training": 6,
    "analysis": 6,
    "quickstart": 7,
    "cli": 8,
    "__main__": 9,
}


def imported_modules(name: str, path: Path) -> set[str]:
    """Modules of this package that a file imports, anywhere in it, as dotted names below the package."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part and part != "__init__"]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("neuralop_sae.") for alias in node.names if alias.name.startswith("neuralop_sae.")
            }
            found |= {"" for alias in node.names if alias.name == "neuralop_sae"}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
            elif (node.module or "").split(".")[0] == "neuralop_sae":
                base = []
            else:
                continue
            module = (node.module or "").removeprefix("neuralop_sae").lstrip(".") if not node.level else node.module or ""
            base = [*base, *module.split(".")] if module else base
            found |= {".".join(base)} if base else {alias.name for alias in node.names}
    return found


def part(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_imports_point_one_way(name: str) -> None:
    mine = part(name)
    assert mine in ORDER, f"{name} has no place in the house: add it to ORDER and to the design"
    for module in imported_modules(name, MODULES[name]):
        theirs = part(module)
        assert theirs, f"{name} imports the package itself; import the module that it needs"
        assert theirs == mine or ORDER.get(theirs, 99) < ORDER[mine], f"{name} imports {module}: imports point one way"


def test_training_and_analysis_are_strangers() -> None:
    for name, path in MODULES.items():
        others = {part(module) for module in imported_modules(name, path)}
        if part(name) == "training":
            assert "analysis" not in others, name
        if part(name) == "analysis":
            assert "training" not in others, name


def test_the_import_test_sees_imports() -> None:
    """A guard on the guard: known imports are found in each of their forms."""
    assert {"layers.basis", "layers.selection"} <= imported_modules("codes", MODULES["codes"])
    assert {"checkpoint", "codes", "layers.sparsity", "registry"} <= imported_modules("models.base", MODULES["models.base"])
    assert "models.base" in imported_modules("models", MODULES["models"])


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_has_a_docstring(name: str) -> None:
    """Modules, and public functions, classes and methods. A method may rest on the docstring of what it overrides, an
    empty __init__ needs none."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    missing = [] if not tree.body or ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        overload = any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)
        if not ast.get_docstring(node) and not overload:
            missing.append(node.name)
        if isinstance(node, ast.ClassDef) and not node.bases:  # an heir's methods may be documented by its base
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]
            missing += [f"{node.name}.{item.name}" for item in methods if not ast.get_docstring(item)]
    assert not missing, f"{name}: no docstring for {', '.join(missing)}"


def _calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("name", MODULES)
def test_no_pickle_is_read(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for imported in names:
            assert imported.split(".")[0] not in {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, (
                f"{name} imports {imported}"
            )
    for function, call in _calls(tree):
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if function == "torch.load":
            assert arguments.get("weights_only") == "True", f"{name}:{call.lineno} torch.load without weights_only=True"
        if function in ("numpy.load", "np.load"):
            assert arguments.get("allow_pickle", "False") == "False", f"{name}:{call.lineno} allow_pickle"
        assert function not in ("eval", "exec"), f"{name}:{call.lineno} {function}"


@pytest.mark.parametrize("name", MODULES)
def test_no_exception_is_swallowed(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(item, ast.Pass) for item in node.body)
            everything = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException", "ImportError")
            assert not (silent and everything), f"{name}:{node.lineno} swallows every exception"
