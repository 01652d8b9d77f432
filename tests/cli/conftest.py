"""A tiny operator as neuralop saves it, its inputs, and how commands are called."""

import json
import warnings

import pytest
import torch
from neuralop.models import FNO
from safetensors.torch import save_file
from typer.testing import CliRunner

from neuralop_sae.cli import app

SITES = ["fno_blocks.0", "fno_blocks.1"]


def call(*arguments):
    """The result of a command."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(each) for each in arguments])


def answer(*arguments):
    """The JSON object that a command prints."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def check_refused(result, *said):
    """Bad input: exit code 2 and a line on stderr, no traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    text = " ".join(result.stderr.split())
    for each in said:
        assert each in text, text


@pytest.fixture(scope="session")
def operator():
    torch.manual_seed(0)
    return FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=4, n_layers=2).eval()


@pytest.fixture(scope="session")
def folder(operator, tmp_path_factory):
    """``fno_state_dict.pt`` and ``fno_metadata.pkl``, and ``inputs.safetensors`` with x and y of 12 samples."""
    folder = tmp_path_factory.mktemp("operator")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator.save_checkpoint(folder, "fno")
    x = torch.randn(12, 1, 12, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        save_file({"x": x, "y": operator(x) + 0.1}, folder / "inputs.safetensors")
    return folder
