"""Data with coordinates into an operator, and codes back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from neuralop.models import FNO
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.data.labelled import codes_to_xarray, from_xarray
from neuralop_sae.data.store import ActivationStore
from neuralop_sae.data.streaming import stream

GAUSS = 90 - np.rad2deg(np.arccos(np.polynomial.legendre.leggauss(8)[0][::-1]))
LATITUDES = {
    "equiangular": np.linspace(90, -90, 9),
    "legendre-gauss": GAUSS,
    "lobatto": np.array([90, *(90 - np.rad2deg(np.arccos([0.65465367, 0, -0.65465367]))), -90]),
    "midpoint": 90 - 180 * (np.arange(8) + 0.5) / 8,
}
TIMES = np.datetime64("2021-03-01", "ns") + 6 * np.arange(5) * np.timedelta64(1, "h")


def weather(kind: str = "equiangular", **sizes: int) -> xr.Dataset:
    """Temperature at two levels and orography, for five times."""
    generator = np.random.default_rng(0)
    lat, lon = LATITUDES[kind], np.arange(16) * 22.5
    coords = {"time": TIMES, "level": [500, 850], "lat": lat, "lon": lon}
    shape = (5, 2, len(lat), 16)
    temperature = (("time", "level", "lat", "lon"), 250 + 10 * generator.standard_normal(shape).astype(np.float32))
    pressure = (("time", "lat", "lon"), generator.standard_normal((5, len(lat), 16)))
    orography = (("lon", "lat"), generator.standard_normal((16, len(lat))))
    return xr.Dataset({"temperature": temperature, "pressure": pressure, "orography": orography}, coords)


def test_channels_are_variables_and_levels() -> None:
    data = weather()
    fields = from_xarray(data, ["pressure", "temperature", "orography"])
    assert fields.channels == ["pressure", "temperature[level=500]", "temperature[level=850]", "orography"]
    assert (len(fields), fields.grid, fields.kind) == (5, (9, 16), "equiangular")
    whole = fields.tensor()
    assert whole.dtype == torch.float32
    assert np.array_equal(whole[:, 0], data.pressure.values.astype(np.float32))
    assert np.array_equal(whole[:, 1:3], data.temperature.values)
    assert np.array_equal(whole[4, 3], data.orography.values.T.astype(np.float32))
    assert torch.equal(fields[3]["x"], whole[3])
    assert torch.equal(fields[-1]["x"], whole[4])
    assert np.array_equal(fields.time, TIMES)
    assert fields.trajectory is None
    with pytest.raises(IndexError):
        fields[5]


@pytest.mark.parametrize("kind", LATITUDES)
def test_the_kind_of_the_grid(kind: str) -> None:
    for dtype in (np.float64, np.float32):
        data = weather(kind)
        fields = from_xarray(data.assign_coords(lat=data.lat.astype(dtype)).rename(lat="latitude", lon="longitude"))
        assert fields.kind == kind
        if kind == "midpoint":
            assert fields.basis is None
        else:
            assert isinstance(fields.basis, ns.SphericalBasis)
            assert fields.basis.grid == kind
            assert np.allclose(90 - np.rad2deg(fields.basis.colatitudes(fields.grid[0]).numpy()), LATITUDES[kind], atol=1e-4)


BAD: dict[str, tuple[Any, str]] = {
    "south first": (
        lambda d: d.isel(lat=slice(None, None, -1)),
        r"run from south to north.*isel\(lat=slice\(None, None, -1\)",
    ),
    "a region": (lambda d: d.isel(lat=slice(2, 7)), r"5 latitudes from 45 to -45 are on no grid.*equiangular, legendre-gauss"),
    "shuffled": (lambda d: d.isel(lat=[1, 0, *range(2, 9)]), "on no grid of the whole sphere"),
    "half the longitudes": (lambda d: d.isel(lon=slice(0, 8)), "8 longitudes from 0 to 157.5 do not go round"),
    "westward": (lambda d: d.isel(lon=slice(None, None, -1)), "do not go round the sphere once in even steps eastward"),
    "no coordinates": (lambda d: d.drop_vars("lat"), "lat and lon have no coordinates"),
    "no such dimension": (
        lambda d: d.rename(lat="a", lon="b"),
        "dimensions of the grid are not among those of the dataset: a, b",
    ),
    "nothing": (lambda d: d[[]], "has no variables at all"),
}


@pytest.mark.parametrize("kind", BAD)
def test_grids_that_no_transform_knows_are_refused(kind: str) -> None:
    change, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        from_xarray(change(weather()))


def test_names_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="no variables wind; it has: temperature, pressure, orography"):
        from_xarray(weather(), ["temperature", "wind"])
    with pytest.raises(ValueError, match="dimensions member are not among"):
        from_xarray(weather(), trajectory="member")
    with pytest.raises(ValueError, match=r"mean has the dimensions \('time',\), not all of the grid's"):
        from_xarray(weather().assign(mean=("time", np.zeros(5))))


def test_missing_values_are_named() -> None:
    data = weather()
    data.pressure[3, 2, 1] = np.nan
    fields = from_xarray(data, ["temperature", "pressure"])
    assert fields[2]["x"].isfinite().all()
    with pytest.raises(ValueError, match="pressure has missing values in sample 3"):
        fields[3]


def test_members_are_trajectories() -> None:
    data = xr.concat([weather()[["pressure"]] + i for i in range(3)], "member")
    fields = from_xarray(data, trajectory="member")
    assert len(fields) == 15
    assert fields.trajectory is not None
    assert fields.trajectory.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert np.array_equal(fields.time, np.tile(TIMES, 3))
    assert np.allclose(fields.tensor([7, 2])[0, 0], data.pressure[1, 2], atol=1e-6)


def test_a_box_has_lengths() -> None:
    data = xr.Dataset({"u": (("time", "y", "x"), np.zeros((2, 4, 8)))}, {"y": np.arange(4) * 0.5, "x": 1 + np.arange(8) / 8})
    fields = from_xarray(data)
    assert (fields.kind, fields.lengths) == ("box", (2.0, 1.0))
    assert isinstance(fields.basis, ns.FourierBasis)
    assert from_xarray(data.drop_vars("y")).lengths is None
    assert from_xarray(data.rename(y="north", x="east"), grid_dims=["east", "north"]).grid == (8, 4)
    with pytest.raises(ValueError, match="points of x are not evenly spaced"):
        from_xarray(data.assign_coords(x=np.arange(8) ** 2))


@pytest.mark.parametrize("kind", LATITUDES)
def test_normalisation_is_by_area(kind: str) -> None:
    data = weather(kind)[["temperature", "pressure"]]
    fields = from_xarray(data, normalize=True)
    # An independent rule: on every one of these grids the weights of latitudes integrate polynomials in their sine.
    sine = np.sin(np.deg2rad(LATITUDES[kind]))
    if kind == "midpoint":
        edges = np.sin(np.deg2rad(np.linspace(90, -90, len(sine) + 1)))
        weights = (edges[:-1] - edges[1:]) / 2
    else:
        powers = np.arange(len(sine))
        weights = np.linalg.solve(sine[None] ** powers[:, None], (1 + (-1.0) ** powers) / 2 / (powers + 1))
    weighted = data.weighted(xr.DataArray(weights, dims="lat", coords={"lat": data.lat}))
    dims = ("time", "lat", "lon")
    assert fields.mean is not None
    assert fields.std is not None
    mean, std = weighted.mean(dims), weighted.std(dims)
    assert np.allclose(fields.mean.flatten(), [*mean.temperature.values, mean.pressure], rtol=1e-5, atol=1e-6)
    assert np.allclose(fields.std.flatten(), [*std.temperature.values, std.pressure], rtol=1e-4)
    raw = from_xarray(data).tensor()
    assert torch.allclose(fields.tensor() * fields.std + fields.mean, raw, rtol=1e-5)


def test_a_constant_channel_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match=r"temperature\[level=500\], .* is constant"):
        from_xarray(weather()[["temperature"]] * 0, normalize=True)


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_from_a_file_through_an_operator_and_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weather.{suffix}"
    data = weather()[["pressure"]]
    if suffix == "nc":
        data.to_netcdf(path)
    else:
        data.to_zarr(path, consolidated=False)
    model = FNO((4, 4), 1, 1, 3, n_layers=1)
    with xr.open_dataset(path) if suffix == "nc" else xr.open_zarr(path, consolidated=False, chunks=None) as opened:
        fields = from_xarray(opened, normalize=True)
        store = ActivationStore.write(
            tmp_path / "acts.zarr", model, "lifting", fields, time=fields.time, basis=fields.basis, batch_size=5
        )
        streamed = stream(model, "lifting", fields)[:]
        loaded = ns.capture(model, "lifting", DataLoader(fields, batch_size=5))
    found = store["lifting"].to_xarray()
    assert found.dims == ("sample", "channel", "lat", "lon")
    assert np.array_equal(found.time.values, TIMES)
    assert np.allclose(found.lat, data.lat)
    assert np.allclose(found.lon, data.lon)
    assert torch.equal(streamed, loaded)
    assert np.array_equal(found.values, loaded.numpy())
    found.to_dataset().to_netcdf(tmp_path / "back.nc")
    with xr.open_dataset(tmp_path / "back.nc") as back:
        assert np.array_equal(back.activations, loaded.numpy())
        assert np.array_equal(back.time.values, TIMES)


@pytest.fixture
def codes() -> ns.ConceptCodes:
    sae = ns.SAESFNO(in_channels=2, n_concepts=6, n_modes=(4, 8), concept_rule=ns.TopK(2), code_grid=(9, 16)).eval()
    with torch.no_grad():
        return sae.encode(torch.randn(5, 2, 9, 16))


def test_codes_row_by_row(codes: ns.ConceptCodes) -> None:
    data = codes_to_xarray(codes, time=TIMES, trajectory=[0, 0, 1, 1, 1])
    assert data.code.dims == ("row", "lat", "lon")
    assert np.array_equal(data.code.values, codes.values.numpy())
    assert np.array_equal(data.norm.values, codes.norms().numpy())
    assert np.array_equal(data.time.values, TIMES[codes.sample])
    dense = np.zeros((5, 6, 9, 16), np.float32)
    dense[data.sample.values, data.concept.values] = data.code.values
    assert np.array_equal(dense, codes.to_dense().numpy())
    assert np.allclose(data.lat, np.linspace(90, -90, 9))
    assert data.attrs == {"n_samples": 5, "n_concepts": 6}


def test_codes_of_some_concepts(codes: ns.ConceptCodes, tmp_path: Path) -> None:
    data = codes_to_xarray(codes, [4, 1], time=TIMES)
    assert data.code.dims == ("sample", "concept", "lat", "lon")
    assert np.array_equal(data.code.values, codes.to_dense()[:, [4, 1]].numpy())
    assert data.sel(concept=1).code.equals(data.code[:, 1])
    data.to_netcdf(tmp_path / "codes.nc")
    with xr.open_dataset(tmp_path / "codes.nc") as back:
        assert np.array_equal(back.code.values, data.code.values)
        assert np.array_equal(back.time.values, TIMES)
    with pytest.raises(ValueError, match="concept 6 is out of range"):
        codes_to_xarray(codes, [6])
    with pytest.raises(ValueError, match="there are 5 samples"):
        codes_to_xarray(codes, trajectory=[0, 1])


def test_codes_in_a_box() -> None:
    sae = ns.SAEFNO(in_channels=1, n_concepts=4, n_modes=(4, 4), concept_rule=ns.TopK(1), code_grid=(6, 8)).eval()
    with torch.no_grad():
        codes = sae.encode(torch.randn(2, 1, 6, 8))
    data = codes_to_xarray(codes, lengths=(3.0, 2.0))
    assert data.code.dims == ("row", "y", "x")
    assert np.allclose(data.y, np.arange(6) / 2)
    assert np.allclose(data.x, np.arange(8) / 4)
    assert "x" not in codes_to_xarray(codes).coords


def test_a_missing_package_is_named(codes: ns.ConceptCodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"xarray: pip install 'neuralop-sae\[data\]'"):
        codes_to_xarray(codes)


def test_an_array_and_a_plain_name_are_taken() -> None:
    data = weather()
    for fields in (from_xarray(data["pressure"]), from_xarray(data, "pressure")):
        assert fields.channels == ["pressure"]
        assert np.array_equal(fields.time, TIMES)
    assert from_xarray(data["pressure"].rename(None)).channels == ["field"]
    with pytest.raises(TypeError, match="takes a Dataset or a DataArray of xarray, not ndarray"):
        from_xarray(data["pressure"].values)  # type: ignore[arg-type]  # on purpose


def test_the_dimension_of_time_may_have_another_name() -> None:
    data = weather()[["pressure"]]
    for name, options in (("valid_time", {}), ("month", {"time_dim": "month"})):
        fields = from_xarray(data.rename(time=name), **options)
        assert fields.channels == ["pressure"]
        assert np.array_equal(fields.time, TIMES)
    with pytest.raises(ValueError, match="the dimensions month are not among those of the dataset"):
        from_xarray(data, time_dim="month")


def test_fields_are_inputs_of_capture() -> None:
    fields = from_xarray(weather(), "pressure")
    model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=3, n_layers=1)
    expected = ns.capture(model, "fno_blocks.0", fields.tensor(), batch_size=2)
    assert torch.equal(ns.capture(model, "fno_blocks.0", fields, batch_size=2, progress=True), expected)


@pytest.mark.parametrize(("calendar", "unit"), [("noleap", "hours"), ("360_day", "hours")])
def test_other_calendars_go_through_a_store(tmp_path: Path, calendar: str, unit: str) -> None:
    dates = xr.date_range("2000-02-27", periods=5, freq="6h", calendar=calendar, use_cftime=True)
    data = weather()[["pressure"]].assign_coords(time=dates)
    data.to_netcdf(tmp_path / "weather.nc")
    with xr.open_dataset(tmp_path / "weather.nc") as read:
        fields = from_xarray(read)
        model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=3, n_layers=1)
        view = ActivationStore.write(tmp_path / "acts.zarr", model, "fno_blocks.0", fields)["fno_blocks.0"]
        assert (view.dates, view.time_units, view.calendar) == (None, f"{unit} since 1970-01-01", calendar)
        assert view.time is not None
        assert view.time.diff().tolist() == [6] * 4
        assert view.to_xarray().time.values.tolist() == dates.tolist()
        sae = ns.SAEFNO(3, 4, (3, 3), concept_rule=ns.TopK(2))
        for like in (fields, view):
            codes_to_xarray(sae.encode(view[:]), like=like).to_netcdf(tmp_path / "codes.nc")
            with xr.open_dataset(tmp_path / "codes.nc") as codes:
                assert np.array_equal(codes.time, np.array(dates)[codes.sample])


def test_lead_times_are_counted_in_their_unit(tmp_path: Path) -> None:
    fields = from_xarray(weather()[["pressure"]].assign_coords(time=np.arange(5) * np.timedelta64(3, "h").astype("m8[ns]")))
    model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=3, n_layers=1)
    view = ActivationStore.write(tmp_path / "acts.zarr", model, "fno_blocks.0", fields)["fno_blocks.0"]
    assert view.time is not None
    assert (view.time.tolist(), view.time_units, view.dates) == ([0, 3, 6, 9, 12], "hours", None)
