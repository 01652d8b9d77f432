"""Every tutorial in examples/ runs from an empty folder, leaves figures with titles, and has the gallery's form."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*/plot_*.py"))
LIMIT_SECONDS = 300
RUNNER = """
import json, runpy, sys
import matplotlib.pyplot as plt

runpy.run_path(sys.argv[1], run_name="__main__")
figures = [plt.figure(number) for number in plt.get_fignums()]
titles = [[figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)] for figure in figures]
print(json.dumps(["".join(of_figure) for of_figure in titles]))
"""


def name_of(script):
    return f"{script.parent.name}/{script.stem}"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """One working folder for all, so that data are made once."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_it_runs_and_draws(script, folder):
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", RUNNER, str(script)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert result.returncode == 0, result.stderr
    titles = json.loads(result.stdout.splitlines()[-1])
    assert titles, "the script left no figure open"
    assert all(titles), f"figures without a title: {[i for i, title in enumerate(titles) if not title]}"


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_it_has_the_form_of_the_gallery(script):
    text = script.read_text(encoding="utf-8")
    tree = ast.parse(text)
    title, underline, empty, *rest = (ast.get_docstring(tree) or "").splitlines()
    assert title
    assert re.fullmatch("=+", underline)
    assert len(underline) >= len(title)
    assert not empty
    assert rest
    assert len(re.findall("^# %%", text, flags=re.MULTILINE)) >= 3
    assert "plt.show()" in text


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_it_uses_public_names_alone(script):
    private = []
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names = [node.attr]
        else:
            continue
        private += [name for name in names if re.match("_(?!_)", name)]
    assert not private


def test_names_are_unique_in_the_gallery():
    assert len({script.stem for script in SCRIPTS}) == len(SCRIPTS)


def test_every_folder_has_a_header():
    for folder in {EXAMPLES, *(script.parent for script in SCRIPTS)}:
        assert re.search(r"^.+\n(=+|-+)$", (folder / "GALLERY_HEADER.rst").read_text(encoding="utf-8"), flags=re.MULTILINE)
