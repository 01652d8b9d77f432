import json
import os
from pathlib import Path

import pytest
import torch
from neuralop.models import FNO
from typer.testing import CliRunner

import neuralop_sae as ns
from neuralop_sae.cli import app
from neuralop_sae.quickstart import QuickstartConfig, quickstart

TINY = QuickstartConfig(
    n_train=24, n_test=6, resolutions=(12, 24), hidden_channels=6, n_layers=2, operator_epochs=1, n_concepts=8, sae_epochs=2
)
NAMES = [
    "fve",
    "relative_l2",
    "l0",
    "l0_local",
    "dead_fraction",
    "loss_clean",
    "loss_spliced",
    "loss_zero_ablated",
    "loss_mean_ablated",
    "loss_recovered",
    "code_consistency",
    "code_relative_l2",
    "fno_relative_l2",
    "n_concepts",
    "seconds",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    output = tmp_path_factory.mktemp("quickstart")
    return output, quickstart(output, config=TINY, progress=False, say=lambda line: None)


def test_it_writes_everything(run):
    output, metrics = run
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert set(NAMES) <= set(metrics)
    assert metrics["fno_relative_l2"] == metrics["loss_clean"]
    assert metrics["n_concepts"] == 8
    figures = {path.stem for path in (output / "figures").iterdir()}
    assert {"fields", "code_maps", "atoms", "spectra", "reconstruction"} <= figures
    assert "<html" in (output / "report.html").read_text()
    assert not list(output.glob(".*"))


def test_its_models_load_and_give_its_numbers(run):
    output, metrics = run
    sae = ns.load(output / "sae")
    operator = FNO.from_checkpoint(output / "fno", "fno")
    assert sae.in_channels == operator.hidden_channels == 6
    data = ns.data.darcy.darcy_flow(30, (12, 24), seed=0, cache_dir=output / "data", progress=False)
    x, y = data[12].x, data[12].y
    normal = [(values[:24].mean(), values[:24].std()) for values in (x, y)]
    inputs = (x[24:] - normal[0][0]) / normal[0][1]
    acts = ns.capture(operator, metrics["site"], inputs)
    assert ns.evaluate(sae, acts)["fve"] == pytest.approx(metrics["fve"], abs=1e-4)
    with torch.no_grad():
        prediction = operator.eval()(inputs) * normal[1][1] + normal[1][0]
    error = (prediction - y[24:]).flatten(1).norm(dim=1) / y[24:].flatten(1).norm(dim=1)
    assert float(error.mean()) == pytest.approx(metrics["fno_relative_l2"], rel=1e-3)


def test_the_same_seed_gives_the_same_numbers(run, tmp_path):
    again = quickstart(tmp_path, config=TINY, cache_dir=run[0] / "data", progress=False, say=lambda line: None)
    assert {name: again[name] for name in NAMES[:-1]} == {name: run[1][name] for name in NAMES[:-1]}


@pytest.mark.skipif("NEURALOP_DATA" not in os.environ, reason="NEURALOP_DATA names no folder with neuralop's data")
def test_neuralops_own_files(tmp_path):
    config = TINY.model_copy(update={"sae_epochs": 1})
    metrics = quickstart(tmp_path, data_root=os.environ["NEURALOP_DATA"], config=config, progress=False, say=lambda line: None)
    assert metrics["data"].startswith("neuralop's Darcy files, 16 and 32")
    assert metrics["n_samples"] == 50


def test_an_unwritable_output_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    lines = []
    with pytest.raises(OSError, match="cannot write to the output folder"):
        quickstart(tmp_path / "file" / "out", say=lines.append)
    assert not lines


def test_an_unusable_device_is_refused_before_any_work(tmp_path):
    lines = []
    with pytest.raises(ValueError, match="device 'abacus'"):
        quickstart(tmp_path, device="abacus", say=lines.append)
    assert not lines


def test_command_line_says_what_is_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["quickstart", "--output", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert "cannot write to the output folder" in " ".join(result.output.split())
    result = CliRunner().invoke(
        app, ["quickstart", "--output", str(tmp_path / "out"), "--data-root", str(tmp_path / "nowhere")]
    )
    assert result.exit_code == 2
    assert "nowhere" in "".join(result.output.split())


def test_an_interrupted_run_leaves_nothing_half_written(tmp_path, monkeypatch):
    from neuralop_sae import cli
    from neuralop_sae import quickstart as module

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "faithfulness", interrupt)
    monkeypatch.setattr(cli, "QuickstartConfig", lambda seed: TINY)
    result = CliRunner().invoke(app, ["quickstart", "--output", str(tmp_path)])
    assert result.exit_code == 130
    assert "interrupted" in result.output
    assert [path.name for path in Path(tmp_path).iterdir()] == ["data"]


def test_config_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="n_concept"):
        QuickstartConfig(n_concept=3)
