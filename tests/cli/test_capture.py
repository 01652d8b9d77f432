"""What ``capture`` hands on to the store."""

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

import neuralop_sae as ns
from neuralop_sae.data.store import ActivationStore

from .conftest import SITES, answer, call, check_refused

DATES = np.datetime64("2021-03-01", "us") + 6 * np.arange(6) * np.timedelta64(1, "h")


@pytest.fixture
def inputs(tmp_path):
    path = tmp_path / "inputs.safetensors"
    save_file({"x": torch.randn(6, 1, 12, 10), "t": torch.arange(6) * 0.5, "run": torch.arange(6) // 3}, path)
    return path


def flags(folder, inputs, tmp_path):
    return ["capture", "--model", folder, "--inputs", inputs, "--site", SITES[0], "--output", tmp_path / "acts.zarr"]


def test_every_option_of_a_store_has_a_flag(folder, inputs, tmp_path):
    given = ["--time", "t", "--trajectory", "run", "--units", '{"time": "days"}', "--shard-size", 2, "--lengths", 1]
    basis = ["--basis", '{"name": "cosine", "n_modes": [1, 1]}']
    check_refused(call(*flags(folder, inputs, tmp_path), *basis), "cosine", "fourier")
    basis = ["--basis", '{"name": "fourier", "n_modes": [1, 1]}']
    answer(*flags(folder, inputs, tmp_path), *given, "--lengths", 2, *basis)
    store = ActivationStore(tmp_path / "acts.zarr")
    view = store[SITES[0]]
    assert (view.time.tolist(), view.time_units, view.lengths) == ([0, 0.5, 1, 1.5, 2, 2.5], "days", (1.0, 2.0))
    assert view.trajectory.tolist() == [0, 0, 0, 1, 1, 1]
    assert store.manifest.shard_size == 2
    assert isinstance(view.basis, ns.FourierBasis)


def test_dates_of_a_file(folder, inputs, tmp_path):
    np.save(tmp_path / "dates.npy", DATES)
    answer(*flags(folder, inputs, tmp_path), "--time", tmp_path / "dates.npy")
    assert np.array_equal(ActivationStore(tmp_path / "acts.zarr")[SITES[0]].dates, DATES)


def test_labels_that_are_not_there(folder, inputs, tmp_path):
    result = call(*flags(folder, inputs, tmp_path), "--time", "when")
    check_refused(result, "--time is an entry of --inputs (there are: run, t) or a .npy file that exists, got when")


def test_lengths_of_the_coordinates_are_kept(folder, tmp_path):
    axes = {"y": np.arange(12) * 0.5, "x": np.arange(10) * 0.25}
    fields = {"u": (("month", "y", "x"), np.random.default_rng(0).normal(size=(3, 12, 10)))}
    xr.Dataset(fields, axes).to_netcdf(tmp_path / "flow.nc")
    answer(*flags(folder, tmp_path / "flow.nc", tmp_path), "--time-dim", "month")
    assert ActivationStore(tmp_path / "acts.zarr")[SITES[0]].lengths == (6.0, 2.5)
