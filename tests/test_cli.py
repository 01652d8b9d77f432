"""The train command on one process; on several: tests/training/test_distributed.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import neuralop_sae as ns
from neuralop_sae import checkpoint
from neuralop_sae.cli import app
from neuralop_sae.training.run import Run
from neuralop_sae.training.saved_run import CHECKPOINT_NAME

ROOT = Path(__file__).parents[1]
MODEL = ["--n-concepts", "12", "--arguments", '{"n_modes": [5, 5], "concept_rule": {"name": "TopK", "k": 3}}']
SHORT = ["--training", '{"n_epochs": 2, "batch_size": 8, "log_every": 2}']


@pytest.fixture(scope="module")
def acts(tmp_path_factory):
    path = tmp_path_factory.mktemp("acts") / "acts.safetensors"
    save_file({"activations": torch.randn(16, 4, 12, 10, generator=torch.Generator().manual_seed(0))}, path)
    return path


def invoke(acts, output, *options):
    return CliRunner().invoke(app, ["train", str(acts), "--output", str(output), *map(str, options)])


def check_refused(result, *said):
    """Bad input: exit code 2 and a line on stderr, no traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    for each in said:
        assert each in result.stderr
    assert "Traceback" not in result.output


def test_the_model_is_the_one_that_python_trains(acts, tmp_path):
    result = invoke(acts, tmp_path, *MODEL, *SHORT, "--seed", 3)
    assert result.exit_code == 0, result.output
    torch.manual_seed(3)
    sae = ns.SAEFNO(4, 12, (5, 5), concept_rule=ns.TopK(3))
    config = ns.TrainingConfig(n_epochs=2, batch_size=8, log_every=2, seed=3)
    history = ns.train(sae, ns.data.activations.load_activations(acts), config, progress=False)
    found = ns.load(tmp_path / "sae")
    assert found.config() == sae.config()
    for name, tensor in sae.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    written = json.loads((tmp_path / "history.json").read_text())
    assert written == {"rows": history.rows, "bytes_per_step": {}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "sae", CHECKPOINT_NAME]


def test_as_a_module_of_a_process_of_its_own(acts, tmp_path):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "neuralop_sae.cli", "train", str(acts), "--output", str(tmp_path / "a"), *MODEL, *SHORT]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert invoke(acts, tmp_path / "b", *MODEL, *SHORT).exit_code == 0
    state = ns.load(tmp_path / "b" / "sae").state_dict()
    for name, tensor in ns.load(tmp_path / "a" / "sae").state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", ["SAEPointwise", "SAETFNO"])
def test_other_models(acts, tmp_path, model):
    arguments = "{}" if model == "SAEPointwise" else '{"n_modes": [5, 5], "rank": 0.5, "factorization": "cp"}'
    result = invoke(acts, tmp_path, "--model", model, "--n-concepts", 20, "--arguments", arguments, *SHORT)
    assert result.exit_code == 0, result.output
    assert type(ns.load(tmp_path / "sae")).__name__ == model


@pytest.mark.parametrize("option", ["--arguments", "--training"])
@pytest.mark.parametrize(("text", "said"), [("{n_modes: 5}", "is not JSON"), ("[1]", "must be a JSON object, got [1]")])
def test_what_is_no_json_object_is_refused(acts, tmp_path, option, text, said):
    check_refused(invoke(acts, tmp_path, *MODEL, option, text), f"{option} {said}")


def test_an_unknown_model_lists_the_known(acts, tmp_path):
    check_refused(invoke(acts, tmp_path, *MODEL, "--model", "SAEFNOO"), "unknown sparse autoencoder 'SAEFNOO'", "saetfno")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"n_mode": [5, 5]}', "n_mode"),
        ("{}", "n_modes"),
        ('{"n_modes": [5, 5], "concept_rule": "TopC"}', "unknown concept rule 'TopC'"),
        ('{"n_modes": [5, 5], "concept_rule": {"name": "TopK", "k": 99}}', "k=99"),
        ('{"n_modes": [5, 5, 5]}', "3-d model"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(acts, tmp_path, arguments, said):
    check_refused(invoke(acts, tmp_path, "--n-concepts", 12, "--arguments", arguments, *SHORT), said)


@pytest.mark.parametrize("training", ['{"n_epoch": 2}', '{"n_epochs": 0}', '{"batch_size": "many"}'])
def test_training_settings_that_do_not_fit_are_refused(acts, tmp_path, training):
    check_refused(invoke(acts, tmp_path, *MODEL, "--training", training), training.split('"')[1])


# Rich takes lower case words in brackets for markup, which would drop them, and [/...] for an error of its own.
@pytest.mark.parametrize("name", ["none.safetensors", "[train].safetensors", "[/train].npy"])
def test_a_missing_file_is_named(tmp_path, name):
    check_refused(
        invoke(tmp_path / name, tmp_path / "output", *MODEL), "FileNotFoundError", f"there is no file {tmp_path / name}"
    )


def test_a_file_that_holds_no_fields(tmp_path):
    save_file({"activations": torch.zeros(3, 4)}, tmp_path / "acts.safetensors")
    check_refused(invoke(tmp_path / "acts.safetensors", tmp_path / "output", *MODEL), "torch.float32 of shape (3, 4)")


def test_fields_with_nan(tmp_path):
    save_file({"activations": torch.full((8, 4, 12, 10), torch.nan)}, tmp_path / "acts.safetensors")
    check_refused(invoke(tmp_path / "acts.safetensors", tmp_path / "output", *MODEL), "NaN")


@pytest.mark.parametrize("n_shards", [0, 2])
def test_shards_without_torchrun(acts, tmp_path, n_shards):
    result = invoke(acts, tmp_path / "output", *MODEL, "--concept-parallel", n_shards)
    check_refused(result, "torchrun" if n_shards else "0")
    assert not (tmp_path / "output").exists()


def test_an_output_that_is_a_file(acts, tmp_path):
    (tmp_path / "file").touch()
    check_refused(invoke(acts, tmp_path / "file", *MODEL), "cannot write to the output folder")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there(acts, tmp_path):
    check_refused(invoke(acts, tmp_path, *MODEL, *SHORT, "--device", "cuda"))


def test_an_unknown_device(acts, tmp_path):
    check_refused(invoke(acts, tmp_path, *MODEL, *SHORT, "--device", "gpu"))


def test_a_run_that_diverges(acts, tmp_path):
    training = '{"n_epochs": 4, "batch_size": 8, "learning_rate": 1e30, "checkpoint_every": 2}'
    check_refused(invoke(acts, tmp_path, *MODEL, "--training", training), "FloatingPointError", "learning rate")
    assert not (tmp_path / "sae").exists()
    state, _ = checkpoint.read_tensors(tmp_path / CHECKPOINT_NAME)
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_an_interrupted_run_is_resumed(acts, tmp_path, monkeypatch):
    training = ["--training", '{"n_epochs": 3, "batch_size": 8, "log_every": 2, "checkpoint_every": 2}']
    one_step = Run.one_step

    def interrupted(run, x):
        if run.step == 3:
            raise KeyboardInterrupt
        return one_step(run, x)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "one_step", interrupted)
        result = invoke(acts, tmp_path / "a", *MODEL, *training)
    assert result.exit_code == 130
    assert "the last checkpoint is whole" in result.stderr
    assert invoke(acts, tmp_path / "a", *MODEL, *training, "--resume").exit_code == 0
    assert invoke(acts, tmp_path / "b", *MODEL, *training).exit_code == 0
    state = ns.load(tmp_path / "b" / "sae").state_dict()
    for name, tensor in ns.load(tmp_path / "a" / "sae").state_dict().items():
        assert torch.equal(tensor, state[name]), name
    rows = [json.loads((tmp_path / run / "history.json").read_text())["rows"] for run in "ab"]
    assert rows[0] == rows[1]


def test_the_checkpoint_of_another_run_is_refused(acts, tmp_path):
    assert invoke(acts, tmp_path, *MODEL, *SHORT).exit_code == 0
    result = invoke(acts, tmp_path, *MODEL, "--training", '{"n_epochs": 3, "batch_size": 8}', "--resume")
    check_refused(result, "is of another run")
