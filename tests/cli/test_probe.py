"""On which domain ``probe`` takes derivatives, and what it hands on."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from neuralop.models import FNO

import neuralop_sae as ns
from neuralop_sae.analysis.calculus import Globe, PeriodicBox, WalledBox
from neuralop_sae.analysis.probes import probe
from neuralop_sae.cli.probe import ProbeSettings
from neuralop_sae.data.labelled import from_xarray
from neuralop_sae.data.store import ActivationStore

from .conftest import SITES, answer, call, check_refused

FEW = ["--n-bootstrap", 5, "--n-permutations", 5]


def settings(**given):
    return ProbeSettings(activations="a", fields="f", sae="s", **given)


def test_the_domain_is_what_is_said_else_what_is_known():
    box, sphere = ns.FourierBasis((2, 2)), ns.SphericalBasis((2, 4), "legendre-gauss")
    assert settings().calculus(box, None) is None
    assert settings().calculus(sphere, None) is None
    known = settings().calculus(box, (2.0, 3.0))
    assert (type(known), known.lengths) == (PeriodicBox, (2.0, 3.0))
    assert settings(lengths=(4.0, 5.0)).calculus(box, (2.0, 3.0)).lengths == (4.0, 5.0)
    walled = settings(walls=True).calculus(box, (2.0, 3.0))
    assert (type(walled), walled.lengths) == (WalledBox, (2.0, 3.0))
    assert settings(walls=True).calculus(box, None).lengths == (1.0, 1.0)
    globe = settings(radius=6.4e6).calculus(sphere, None)
    assert (type(globe), globe.grid, globe.radius) == (Globe, "legendre-gauss", 6.4e6)


@pytest.mark.parametrize("given", [{"lengths": (1.0, 1.0)}, {"walls": True}])
def test_a_sphere_has_no_lengths(given):
    with pytest.raises(ValueError, match="this model is on the sphere: give --radius"):
        settings(**given).calculus(ns.SphericalBasis((2, 4)), None)


def test_a_box_has_no_radius():
    with pytest.raises(ValueError, match="this model is on a box: give --lengths"):
        settings(radius=1.0).calculus(ns.FourierBasis((2, 2)), None)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """Velocities in a box of sides 6 and 2, as arrays and as NetCDF with coordinates; a model and its activations."""
    folder = tmp_path_factory.mktemp("flow")
    values = {name: np.random.default_rng(i).normal(size=(8, 12, 8)).astype(np.float32) for i, name in enumerate("uv")}
    axes = {"y": 3 + np.arange(12) * 0.5, "x": np.arange(8) * 0.25}
    data = xr.Dataset({name: (("time", "y", "x"), each) for name, each in values.items()}, axes)
    data.to_netcdf(folder / "flow.nc")
    np.savez(folder / "flow.npz", **values)
    torch.manual_seed(0)
    model = FNO(n_modes=(4, 4), in_channels=2, out_channels=1, hidden_channels=3, n_layers=1)
    ns.SAEFNO(3, 4, (3, 3), concept_rule=ns.TopK(2)).save_pretrained(folder / "sae")
    fields = from_xarray(data)
    ActivationStore.write(folder / "acts.zarr", model, SITES[0], fields)
    np.save(folder / "acts.npy", ns.capture(model, SITES[0], fields.tensor()).numpy())
    return folder, {name: torch.from_numpy(each) for name, each in values.items()}


@pytest.mark.parametrize(("acts", "fields"), [("acts.zarr", "flow.npz"), ("acts.npy", "flow.nc")])
def test_lengths_are_those_of_the_store_or_of_the_coordinates(flow, acts, fields):
    folder, values = flow
    flags = ["--sae", folder / "sae", "--activations", folder / acts, "--fields", folder / fields]
    found = pd.DataFrame(answer("probe", *flags, "--physics", "vorticity", *FEW)["rows"])
    model, array = ns.load(folder / "sae"), torch.from_numpy(np.load(folder / "acts.npy"))
    box = {"calculus": PeriodicBox((6.0, 2.0)), "time": np.arange(8), "n_bootstrap": 5, "n_permutations": 5}
    expected = probe(model, array, ["vorticity"], fields=values, **box)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6, check_dtype=False)


def test_draws_shares_and_tiles_are_handed_on(flow):
    folder, values = flow
    flags = ["--sae", folder / "sae", "--activations", folder / "acts.npy", "--fields", folder / "flow.npz", *FEW]
    flags += ["--quantile", 0.6, "--confidence", 0.8, "--tiles", 2, "--tiles", 2, "--physics", "u"]
    found = pd.DataFrame(answer("probe", *flags)["rows"])
    model, array = ns.load(folder / "sae"), torch.from_numpy(np.load(folder / "acts.npy"))
    given = {"quantile": 0.6, "confidence": 0.8, "tiles": (2, 2), "n_bootstrap": 5, "n_permutations": 5}
    expected = probe(model, array, {"u": values["u"]}, **given)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6, check_dtype=False)


def test_darcy_flux_needs_walls(flow):
    folder, values = flow
    np.savez(folder / "darcy.npz", coefficient=values["u"].abs() + 1, solution=values["v"])
    flags = ["--sae", folder / "sae", "--activations", folder / "acts.zarr", "--fields", folder / "darcy.npz", *FEW]
    flags += ["--physics", "darcy_speed"]
    check_refused(call("probe", *flags), "Darcy's domain has walls")
    assert {row["quantity"] for row in answer("probe", *flags, "--walls")["rows"]} == {"darcy_speed"}
