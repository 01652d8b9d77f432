"""Which model ``train`` builds, and what it does to its folder."""

import json

import pytest
import torch
from neuralop.models import SFNO

import neuralop_sae as ns
from neuralop_sae.data.store import ActivationStore

from .conftest import SITES, answer, call, check_refused

BRIEF = ["--n-concepts", 4, "--k", 2, "--training", '{"n_epochs": 1, "batch_size": 4}']


@pytest.fixture(scope="module")
def globe(tmp_path_factory):
    """A store of activations on the sphere."""
    torch.manual_seed(0)
    model = SFNO(n_modes=(4, 8), in_channels=1, out_channels=1, hidden_channels=3, n_layers=1)
    path = tmp_path_factory.mktemp("globe") / "acts.zarr"
    ActivationStore.write(path, model, SITES[0], torch.randn(6, 1, 9, 16))
    return path


@pytest.mark.parametrize(("given", "modes"), [([], (5, 10)), (["--arguments", '{"n_modes": [3, 6]}'], (3, 6))])
def test_a_store_on_the_sphere_gets_a_model_on_the_sphere(globe, tmp_path, given, modes):
    answer("train", globe, *BRIEF, *given, "--output", tmp_path / "run")
    sae = ns.load(tmp_path / "run" / "sae")
    assert isinstance(sae, ns.SAESFNO)
    assert (sae.n_modes, sae.grid) == (modes, "equiangular")


def test_a_model_of_a_box_is_refused_on_the_sphere(globe, tmp_path):
    flags = ["train", globe, *BRIEF, "--output", tmp_path / "run"]
    said = ["the activations are on the sphere, on the grid 'equiangular'", "give --model SAESFNO"]
    check_refused(call(*flags, "--model", "SAEFNO", "--arguments", '{"n_modes": [3, 3]}'), *said, "this SAEFNO")
    check_refused(call(*flags, "--model", "SAETFNO", "--arguments", '{"n_modes": [3, 3]}'), *said, "this SAETFNO")
    assert not (tmp_path / "run").exists()


def test_a_pointwise_model_is_told_the_grid(globe, tmp_path):
    flags = ["train", globe, *BRIEF[:2], *BRIEF[4:], "--model", "SAEPointwise", "--output", tmp_path / "run"]
    check_refused(call(*flags, "--arguments", '{"k": 2}'), """--arguments '{"grid": "equiangular"}'""")
    answer(*flags, "--arguments", json.dumps({"k": 2, "grid": "equiangular"}))


def weights(folder):
    return ns.load(folder / "run" / "sae").state_dict()["concept_decoder.conv.weight.tensor"].tolist()


def test_a_finished_run_is_not_overwritten_unasked(globe, tmp_path):
    flags = ["train", globe, *BRIEF, "--output", tmp_path / "run"]
    answer(*flags)
    before = weights(tmp_path)
    check_refused(call(*flags, "--seed", 1), f"{tmp_path / 'run'} holds a trained model: give another --output, --resume")
    several = [*flags, "--k", 3]
    check_refused(call(*several), "holds a trained model")
    assert weights(tmp_path) == before
    assert call(*flags, "--resume").exit_code == 0
    assert weights(tmp_path) == before
    assert call(*flags, "--seed", 1, "--overwrite").exit_code == 0
    assert weights(tmp_path) != before


def test_one_of_several_models_counts(globe, tmp_path):
    flags = ["train", globe, *BRIEF, "--k", 3, "--output", tmp_path / "run"]
    answer(*flags)
    check_refused(call(*flags), f"{tmp_path / 'run' / 'k2'} holds a trained model")


def test_what_fails_leaves_no_folder(globe, tmp_path):
    bad = ["--training", '{"n_epochs": 1, "batch_size": 4, "prefixes": [40]}']
    check_refused(call("train", globe, *BRIEF[:4], *bad, "--output", tmp_path / "run"), "prefixes")
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    call("train", globe, *BRIEF[:4], *bad, "--output", tmp_path / "mine")
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize("flags", [[], ["--site", "x"], ["--grid", 8]])
def test_activations_that_are_not_there(tmp_path, flags):
    said = f"there is no file {tmp_path / 'nope.zarr'}, and no store of 'capture'"
    check_refused(call("train", tmp_path / "nope.zarr", *flags, "--output", tmp_path / "run"), said)
    check_refused(call("evaluate", "--activations", tmp_path / "nope.zarr", *flags, "--sae", tmp_path), "no")
    assert not (tmp_path / "run").exists()


def test_arguments_that_a_model_does_not_take_are_told_those_it_does(globe, tmp_path):
    flags = ["train", globe, *BRIEF, "--output", tmp_path / "run", "--arguments"]
    said = "--arguments: SAESFNO has no n_mods; it takes:"
    check_refused(call(*flags, '{"n_mods": [3, 6]}'), said, "kernel, n_iterations, n_modes,")
    check_refused(call(*flags, "{}", "--model", "SAEFNO"), "--arguments: SAEFNO needs n_modes; it takes: accelerate")
    pointwise = [*flags, '{"grid": "equiangular"}', "--model", "SAEPointwise"]
    check_refused(call(*pointwise), "SAEPointwise has no concept_rule (--k and --k-local set rules); it takes: grid, k, n_dim")
