"""Every code block of the README runs."""

import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from neuralop_sae.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    python = [text for language, text in BLOCKS if language == "python"]
    assert len(python) >= 4
    for text in python:
        exec(compile(text, "README.md", "exec"), names)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert names["fields"].shape == (2, 16, 64, 64)
    assert names["same"].config()["concept_rule"] == {"name": "TopK", "k": 8}
    assert not torch.equal(names["edited"], names["model"](names["x"]))


def test_shell_blocks_are_the_two_commands():
    """CI runs the second; the first one's program is called here with its help, and whole in the slow test."""
    shell = [text.strip() for language, text in BLOCKS if language == "bash"]
    assert shell == ["pip install . && neuralop-sae quickstart", 'pip install ".[test]" && pytest']
    command = shlex.split(shell[0].split("&&")[1])
    result = CliRunner().invoke(app, [*command[1:], "--help"])
    assert result.exit_code == 0
    assert "--data-root" in result.output


def test_no_other_language():
    assert {language for language, _ in BLOCKS} == {"python", "bash"}


@pytest.mark.slow
def test_the_quickstart_command_as_it_stands(tmp_path):
    import json
    import subprocess
    import sys

    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", "from neuralop_sae.cli import app; app()", "quickstart"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    metrics = json.loads((tmp_path / "neuralop-sae-quickstart" / "metrics.json").read_text())
    assert metrics["l0_local"] <= 4
    assert metrics["fve"] >= 0.97
    assert metrics["loss_recovered"] >= 0.985
    assert metrics["dead_fraction"] <= 0.2
    assert metrics["code_consistency"] >= 0.99
    assert metrics["fno_relative_l2"] <= 0.06
