"""Times, trajectories, basis, lengths and coordinates of labelled inputs reach the activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from neuralop.models import FNO, SFNO
from torch import nn
from torch.utils.data import DataLoader, Subset

import neuralop_sae as ns
from neuralop_sae.data.labelled import codes_to_xarray, from_xarray
from neuralop_sae.data.store import ActivationStore
from neuralop_sae.data.streaming import stream

SITE = "fno_blocks.0"
DATES = np.datetime64("2021-03-01", "us") + 6 * np.arange(4) * np.timedelta64(1, "h")
#: Digits as files keep them.
GAUSS = (90 - np.rad2deg(np.arccos(np.polynomial.legendre.leggauss(8)[0][::-1]))).round(3)
MIDDLE = 90 - 180 * (np.arange(8) + 0.5) / 8


def data(dims: tuple[str, str], *axes: np.ndarray) -> xr.Dataset:
    """Four times of a field on a grid."""
    values = np.random.default_rng(0).normal(size=(4, *map(len, axes)))
    return xr.Dataset({"t": (("time", *dims), values)}, dict(zip(("time", *dims), (DATES, *axes), strict=True)))


def sphere(latitudes: np.ndarray | None = None) -> xr.Dataset:
    latitudes = np.linspace(90, -90, 9) if latitudes is None else latitudes
    return data(("lat", "lon"), latitudes, np.arange(16) * 22.5 - 180)


def box() -> xr.Dataset:
    return data(("y", "x"), 100 + np.arange(8) * 0.5, -4 + np.arange(8) * 0.25)


def operator(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(n_modes=(4, 8) if kind is SFNO else (4, 4), in_channels=1, out_channels=1, hidden_channels=3, n_layers=1)


def write(path: Path, kind: Any, inputs: Any, **options: Any) -> ns.StoredActivations:
    return ActivationStore.write(path, operator(kind), SITE, inputs, batch_size=2, **options)[SITE]


@pytest.mark.parametrize("kind", ["sphere", "box"])
def test_a_store_has_the_coordinates_of_its_inputs(tmp_path: Path, kind: str) -> None:
    given, model = (sphere(), SFNO) if kind == "sphere" else (box(), FNO)
    view = write(tmp_path / "acts.zarr", model, from_xarray(given))
    array = view.to_xarray()
    for name in ("lat", "lon") if kind == "sphere" else ("y", "x"):
        assert np.array_equal(array[name], given[name])  # to the last digit, as xarray joins by equality
        assert np.array_equal(view.coordinates[name], given[name])
    assert np.array_equal(array.time, DATES)
    assert np.array_equal(view.dates, DATES)
    assert view.lengths == (None if kind == "sphere" else (4.0, 2.0))
    again = ActivationStore.write(tmp_path / "acts.zarr", operator(model), SITE, from_xarray(given), batch_size=2)
    assert again[SITE].lengths == view.lengths


def test_a_grid_between_the_poles_keeps_its_latitudes_in_an_fno(tmp_path: Path) -> None:
    given = sphere(MIDDLE)
    array = write(tmp_path / "acts.zarr", FNO, from_xarray(given)).to_xarray()
    assert array.dims[2:] == ("lat", "lon")
    assert np.array_equal(array.lat, MIDDLE)
    assert np.array_equal(array.lon, given.lon)


@pytest.mark.parametrize("kind", ["legendre-gauss", "midpoint", "box"])
def test_an_operator_on_another_grid_is_refused(tmp_path: Path, kind: str) -> None:
    fields = from_xarray({"legendre-gauss": sphere(GAUSS), "midpoint": sphere(MIDDLE), "box": box()}[kind])
    said = f"SFNO works on the grid 'equiangular', and the fields are on '{kind}': interpolate"
    with pytest.raises(ValueError, match=said):
        write(tmp_path / "acts.zarr", SFNO, fields)
    with pytest.raises(ValueError, match=said):
        stream(operator(SFNO), SITE, fields)
    assert not (tmp_path / "acts.zarr").exists()


def test_a_basis_that_is_named_holds(tmp_path: Path) -> None:
    given = sphere(GAUSS)
    view = write(tmp_path / "acts.zarr", SFNO, from_xarray(given), basis=ns.SphericalBasis((1, 2), "legendre-gauss"))
    assert isinstance(view.basis, ns.SphericalBasis)
    assert view.basis.grid == "legendre-gauss"
    assert np.array_equal(view.to_xarray().lat, GAUSS)


def test_lengths_that_are_named_hold(tmp_path: Path) -> None:
    view = write(tmp_path / "acts.zarr", FNO, from_xarray(box()), lengths=(8.0, 8.0))
    assert view.lengths == (8.0, 8.0)
    assert view.coordinates["y"].tolist() == list(range(8))


def test_labels_that_are_named_hold(tmp_path: Path) -> None:
    view = write(tmp_path / "acts.zarr", FNO, from_xarray(box()), time=np.arange(4) * 0.5, trajectory=[0, 0, 1, 1])
    assert view.time is not None
    assert view.trajectory is not None
    assert view.time.tolist() == [0, 0.5, 1, 1.5]
    assert view.trajectory.tolist() == [0, 0, 1, 1]


def test_members_are_trajectories_of_stores_and_streams(tmp_path: Path) -> None:
    members = xr.concat([box(), box() + 1], "member")
    fields = from_xarray(members, trajectory="member")
    for view in (write(tmp_path / "acts.zarr", FNO, fields), stream(operator(FNO), SITE, fields)):
        assert view.trajectory is not None
        assert view.trajectory.tolist() == [0] * 4 + [1] * 4
        assert np.array_equal(view.dates, np.tile(DATES, 2))
        assert view.lengths == (4.0, 2.0)
        assert view.coordinates["x"].tolist() == box().x.values.tolist()
        assert isinstance(view.basis, ns.FourierBasis)


def test_parts_loaders_and_resolutions_bring_their_labels(tmp_path: Path) -> None:
    fields = from_xarray(box())
    part = write(tmp_path / "part.zarr", FNO, Subset(fields, [3, 1]))
    assert np.array_equal(part.dates, DATES[[3, 1]])
    loaded = write(tmp_path / "loader.zarr", FNO, DataLoader(fields, batch_size=2))
    assert np.array_equal(loaded.dates, DATES)
    fine = from_xarray(data(("y", "x"), 100 + np.arange(16) * 0.25, -4 + np.arange(16) * 0.125))
    store = ActivationStore.write(tmp_path / "both.zarr", operator(FNO), SITE, {8: fields, 16: fine}, batch_size=2)
    assert np.array_equal(store[SITE, 16].dates, DATES)
    assert store[SITE, 16].coordinates["x"].tolist() == (-4 + np.arange(16) * 0.125).tolist()


@pytest.mark.parametrize("options", [{"shuffle": True}, {"drop_last": True}])
def test_a_loader_in_another_order_is_refused(tmp_path: Path, options: dict[str, bool]) -> None:
    loader = DataLoader(from_xarray(box()), batch_size=3, **options)  # type: ignore[arg-type]  # both are bool
    with pytest.raises(ValueError, match="shuffles the fields or leaves some out"):
        write(tmp_path / "acts.zarr", FNO, loader)


def test_other_coordinates_are_other_activations(tmp_path: Path) -> None:
    write(tmp_path / "acts.zarr", SFNO, from_xarray(sphere()))
    with pytest.raises(ValueError, match=r"holds other activations: coordinates was \{'lat': \(90.0, .*\.\.\.\)"):
        write(tmp_path / "acts.zarr", SFNO, from_xarray(sphere().assign_coords(lon=np.arange(16) * 22.5)))


def test_padding_is_on_no_grid_of_the_inputs(tmp_path: Path) -> None:
    view = write(tmp_path / "acts.zarr", FNO, from_xarray(box()), padded=True)
    assert (view.lengths, view.coordinates) == (None, {})


def test_codes_are_where_their_samples_are(tmp_path: Path) -> None:
    given = sphere()
    fields = from_xarray(given)
    view = write(tmp_path / "acts.zarr", SFNO, fields)
    sae = ns.SAESFNO(in_channels=3, n_concepts=4, n_modes=(4, 8), concept_rule=ns.TopK(2))
    for like in (view, fields):
        codes = codes_to_xarray(sae.encode(view[:]), [0, 1], like=like)
        for name in ("time", "lat", "lon"):
            assert np.array_equal(codes[name], given[name])
    assert codes_to_xarray(sae.encode(view[:])).lon[0] == 0
