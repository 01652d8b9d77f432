"""The commands one after the other, against the same calls in Python."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file

import neuralop_sae as ns
from neuralop_sae import hub
from neuralop_sae.analysis.probes import probe
from neuralop_sae.cli.probe import write_table
from neuralop_sae.cli.report import read_table
from neuralop_sae.data.store import ActivationStore

from .conftest import SITES, answer, call, check_refused

MODEL = ["--n-concepts", 6, "--arguments", '{"n_modes": [5, 5]}', "--training", '{"n_epochs": 1, "batch_size": 6}']


@pytest.fixture(scope="module")
def store(folder):
    sites = [flag for site in SITES for flag in ("--site", site)]
    path = folder / "acts.zarr"
    found = answer("capture", "--model", folder, "--inputs", folder / "inputs.safetensors", *sites, "--output", path)
    assert found["arrays"] == [{"site": site, "samples": 12, "channels": 4, "grid": [12, 10]} for site in SITES]
    return path


@pytest.fixture(scope="module")
def sae(folder, store):
    """Folder of a model of the second site."""
    output = folder / "run"
    result = call("train", store, "--site", SITES[1], *MODEL, "--k-local", 2, "--output", output)
    assert result.exit_code == 0, result.output
    return output / "sae"


def test_sites_are_those_of_python_with_their_shapes(folder, operator):
    found = answer("sites", "--model", folder / "fno", "--inputs", folder / "inputs.safetensors")
    assert found["model"] == "FNO"
    assert [row["site"] for row in found["sites"]] == ns.find_sites(operator)
    rows = {row["site"]: row for row in found["sites"]}
    assert rows["fno_blocks.convs.0"]["kind"] == "SpectralConv"
    assert (rows[SITES[0]]["channels"], rows[SITES[0]]["grid"]) == (4, [12, 10])
    assert "fno_blocks.1" in call("sites", "--model", folder).stdout


def test_the_store_holds_what_capture_gives_and_a_second_run_changes_nothing(folder, operator, store):
    expected = ns.capture(operator, SITES, load_file(folder / "inputs.safetensors"), batch_size=16)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("c/*") if path.is_file()}
    again = ["--model", folder, "--inputs", folder / "inputs.safetensors", "--site", SITES[0], "--site", SITES[1]]
    assert call("capture", *again, "--output", store).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in store.rglob("c/*") if path.is_file()} == before
    for site in SITES:
        torch.testing.assert_close(ActivationStore(store)[site][:], expected[site], rtol=0, atol=1e-6)


def test_the_model_is_the_one_that_python_trains(store, sae):
    torch.manual_seed(0)
    expected = ns.SAEFNO(4, 6, (5, 5), domain_rule=ns.SoftLocalTopK(2))
    ns.train(expected, ActivationStore(store)[SITES[1]], ns.TrainingConfig(n_epochs=1, batch_size=6), progress=False)
    found = ns.load(sae)
    assert found.config() == expected.config()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_several_sites_and_k_are_trained_at_once_each_as_alone(store, sae, tmp_path):
    found = answer("train", store, *MODEL, "--k-local", 2, "--k-local", 3, "--output", tmp_path)
    names = [f"{site}-k_local{k}" for site in SITES for k in (2, 3)]
    assert [row["folder"] for row in found["models"]] == [str(tmp_path / name) for name in names]
    alone, together = ns.load(sae).state_dict(), ns.load(tmp_path / names[2] / "sae").state_dict()
    assert all(torch.equal(tensor, together[name]) for name, tensor in alone.items())
    assert ns.load(tmp_path / names[3] / "sae").config()["domain_rule"]["k"] == 3
    rows = json.loads((tmp_path / names[0] / "history.json").read_text())["rows"]
    assert rows[-1]["fve"] == found["models"][0]["fve"]


def test_evaluate_gives_the_metrics_of_python(folder, operator, store, sae, tmp_path):
    output = tmp_path / "metrics.json"
    common = ["--sae", sae, "--activations", store, "--site", SITES[1]]
    found = answer("evaluate", *common, "--model", folder, "--inputs", folder / "inputs.safetensors", "--output", output)
    model, inputs = ns.load(sae), load_file(folder / "inputs.safetensors")
    expected = ns.evaluate(model, ActivationStore(store)[SITES[1]][:]) | ns.faithfulness(operator, SITES[1], model, inputs)
    assert found == json.loads(output.read_text())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert "concepts expressed per point" in call("evaluate", *common).stdout


@pytest.fixture(scope="module")
def grids(operator, folder):
    """A store of the same functions on 12 x 10 and 24 x 20 points, and the inputs."""
    coarse = load_file(folder / "inputs.safetensors")["x"]
    inputs = {(12, 10): coarse, (24, 20): ns.FourierBasis((5, 5)).resample(coarse, (24, 20))}
    labels = {"time": np.tile(np.arange(12), 2)}
    return ActivationStore.write(folder / "grids.zarr", operator, SITES[1], inputs, **labels), folder / "grids.zarr"


def test_a_second_grid_adds_whether_codes_agree(grids, sae, tmp_path):
    store, path = grids
    flags = ["--sae", sae, "--activations", path, "--grid", 12, "--grid", 10]
    fine_grid = ["--fine-grid", 24, "--fine-grid", 20]
    found, one_grid = answer("evaluate", *flags, *fine_grid), answer("evaluate", *flags)
    assert one_grid.items() < found.items()
    coarse, fine = (store[SITES[1], grid][:] for grid in ((12, 10), (24, 20)))
    expected = ns.code_consistency(ns.load(sae), coarse, fine)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["code_consistency"] > 0.9
    save_file({"activations": fine}, tmp_path / "fine.safetensors")
    by_file = answer("evaluate", *flags, "--fine", tmp_path / "fine.safetensors")
    assert by_file == pytest.approx(found)
    assert "correlation of codes between the two resolutions" in call("evaluate", *flags, *fine_grid).stdout


def test_a_second_grid_that_is_none(grids, store, sae, tmp_path):
    flags = ["--sae", sae, "--activations", grids[1], "--site", SITES[1]]
    shapes = r"is (12, 4, 12, 10) there and (12, 4, 24, 20) here"
    check_refused(call("evaluate", *flags, "--grid", 24, "--grid", 20, "--fine", store), "on a finer grid", shapes)
    check_refused(call("evaluate", *flags, "--grid", 12, "--grid", 10, "--fine", store), "on a finer grid")
    check_refused(call("evaluate", *flags, "--grid", 12, "--grid", 10, "--fine-grid", 48), "has no activations on the grid")
    save_file({"activations": torch.randn(11, 4, 24, 20)}, tmp_path / "fewer.safetensors")
    flags += ["--grid", 12, "--grid", 10, "--fine"]
    check_refused(call("evaluate", *flags, tmp_path / "fewer.safetensors"), "the samples of --activations, in their order")


def test_a_second_grid_of_other_samples(grids, operator, folder, sae, tmp_path):
    fine = ns.FourierBasis((5, 5)).resample(load_file(folder / "inputs.safetensors")["x"], (24, 20))
    ActivationStore.write(tmp_path / "later.zarr", operator, SITES[1], fine, time=np.arange(12) + 1)
    flags = ["--sae", sae, "--activations", grids[1], "--grid", 12, "--grid", 10, "--fine", tmp_path / "later.zarr"]
    check_refused(call("evaluate", *flags), "differ in time: capture the same, in one order")


@pytest.mark.parametrize("where", ["no_folder", "./no/folder", "a/b/c"])
def test_a_model_that_is_no_folder_and_no_name_is_not_asked_for(store, where, monkeypatch):
    monkeypatch.setattr(hub, "_huggingface_hub", lambda: pytest.fail("the hub was asked"))
    result = call("evaluate", "--sae", where, "--activations", store)
    check_refused(
        result, f"there is no folder {where}: --sae is a folder", "or 'user/name' of a model on the Hugging Face Hub"
    )


def test_the_hub_is_asked_for_names(store, sae, monkeypatch):
    asked = []
    client = SimpleNamespace(snapshot_download=lambda name, **given: asked.append((name, given["revision"])) or str(sae))
    monkeypatch.setattr(hub, "_huggingface_hub", lambda: client)
    flags = ["--activations", store, "--site", SITES[1], "--json"]
    for revision in ([], ["--revision", "v1"]):
        result = call("evaluate", "--sae", "me/darcy", *revision, *flags)
        assert result.exit_code == 0, result.output
        assert "there is no folder me/darcy; asking the Hugging Face Hub for it" in result.stderr
    assert asked == [("me/darcy", None), ("me/darcy", "v1")]
    check_refused(call("evaluate", "--sae", sae, "--revision", "v1", *flags), "is a folder, which has no revisions")


def test_faithfulness_needs_both_model_and_inputs(folder, store, sae):
    result = call("evaluate", "--sae", sae, "--activations", store, "--site", SITES[1], "--model", folder)
    check_refused(result, "needs both --model and --inputs")


def test_probe_and_report(store, sae, folder, tmp_path):
    fields = {"u": torch.randn(12, 12, 10).double(), "v": torch.randn(12, 12, 10).double()}
    np.savez(tmp_path / "flow.npz", **{name: field.numpy() for name, field in fields.items()})
    table, page = tmp_path / "probes.csv", tmp_path / "report.html"
    common = ["--sae", sae, "--activations", store, "--site", SITES[1]]
    flags = ["--physics", "vorticity", "--physics", "u", "--output", table]
    found = answer("probe", *common, "--fields", tmp_path / "flow.npz", *flags)
    expected = probe(ns.load(sae), ActivationStore(store)[SITES[1]][:], ["vorticity", "u"], fields=fields)
    pd.testing.assert_frame_equal(pd.read_csv(table), expected, rtol=1e-4, atol=1e-6, check_dtype=False)
    assert [row["quantity"] for row in found["rows"]] == list(expected.quantity)
    extra = ["--inputs", folder / "inputs.safetensors", "--history", sae.parent / "history.json", "--n-concepts", 1]
    assert answer("report", *common, "--probes", table, *extra, "--output", page) == {"report": str(page)}
    assert "vorticity" in page.read_text()


def test_lags_of_dates(store, sae, folder, operator, tmp_path):
    """A NetCDF file through capture and probe: its dates, six hours apart, go along."""
    x = load_file(folder / "inputs.safetensors")["x"][:, 0]
    dates = np.datetime64("2020-02-27") + np.arange(12) * np.timedelta64(6, "h")
    fields = xr.Dataset({"u": (("time", "y", "x"), x)}, {"time": dates})
    fields.to_netcdf(tmp_path / "flow.nc")
    acts = tmp_path / "acts.zarr"
    answer("capture", "--model", folder, "--inputs", tmp_path / "flow.nc", "--site", SITES[1], "--output", acts)
    flags = ["--sae", sae, "--activations", acts, "--fields", tmp_path / "flow.nc", "--lags", 0, "--lags", 6]
    rows = pd.DataFrame(answer("probe", *flags)["rows"])
    assert rows.lag_unit.unique().tolist() == ["hours"]
    assert rows.groupby("lag").n_samples.first().to_dict() == {0.0: 12, 6.0: 11}
    acts = ns.capture(operator, SITES[1], x[:, None])
    expected = probe(ns.load(sae), acts, {"u": x}, time=dates, lags=(0, 6))
    pd.testing.assert_frame_equal(rows, expected, rtol=1e-4, atol=1e-6, check_dtype=False)
    assert "hours" in call("probe", *flags).stdout


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_table_is_read_as_it_was_written(tmp_path, suffix):
    table = pd.DataFrame({"concept": [0, 1], "quantity": ["u", "v[0]"], "correlation": [1 / 3, np.nan]})
    write_table(table, tmp_path / f"probes{suffix}")
    pd.testing.assert_frame_equal(read_table(tmp_path / f"probes{suffix}"), table)


def test_a_table_of_another_kind_is_refused_before_any_work(store, sae, tmp_path):
    flags = ["--sae", sae, "--activations", store, "--fields", tmp_path / "none.npz", "--output", "probes.parquet"]
    check_refused(call("probe", *flags), "--output is a .csv or .json file, got probes.parquet")


def test_a_store_of_several_sites_asks_for_one(store, sae):
    check_refused(
        call("evaluate", "--sae", sae, "--activations", store), "holds the sites fno_blocks.0, fno_blocks.1", "--site"
    )


def test_the_activations_of_a_file(store, sae, folder, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"activations": ActivationStore(store)[SITES[1]][:]}, path)
    flags = ["--sae", sae, "--activations", path, "--model", folder, "--inputs", folder / "inputs.safetensors"]
    check_refused(call("evaluate", *flags), "needs the site that the activations are from: give --site")
    check_refused(call("evaluate", *flags, "--site", SITES[1], "--grid", 12), "leave out --grid")
    of_store = answer("evaluate", "--sae", sae, "--activations", store, "--site", SITES[1])
    found = answer("evaluate", *flags, "--site", SITES[1])
    assert found["loss_spliced"] > 0
    assert {name: found[name] for name in of_store} == pytest.approx(of_store)


def test_a_store_that_is_not_complete_is_refused(store, sae, monkeypatch):
    monkeypatch.setattr(ActivationStore, "complete", False)
    check_refused(call("train", store, *MODEL), "is not complete", "run its capture again")
