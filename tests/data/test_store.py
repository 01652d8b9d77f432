"""A store holds what capture gives, through kills; what is damaged, or of another run, is refused."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from neuralop.data.datasets.darcy import DarcyDataset
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.layers.spherical_convolution import SphericalConv
from neuralop.models import FNO
from torch import Tensor, nn
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.data import writing
from neuralop_sae.data.manifest import MANIFEST_NAME, Manifest
from neuralop_sae.data.store import ActivationStore

SITES = ["fno_blocks.0", "fno_blocks.1"]
N = 23


def operator(seed: int = 0) -> FNO:
    torch.manual_seed(seed)
    return FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=3, n_layers=2)


def fields(n: int = N, size: int = 8) -> Tensor:
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(1))


#: 5 batches of 4 and one of 3; shards of 6, so that they end inside batches.
REQUEST: dict[str, Any] = {"batch_size": 4, "shard_size": 6, "trajectory": torch.arange(N) // 4, "lengths": (1.0, 2.0)}


def write(path: Path, inputs: Any = None, model: nn.Module | None = None, **changes: Any) -> ActivationStore:
    inputs = fields() if inputs is None else inputs
    return ActivationStore.write(path, model or operator(), SITES, inputs, **(REQUEST | changes))


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "acts.zarr"
    write(path)
    return path


def test_it_holds_what_capture_gives(whole: Path) -> None:
    store = ActivationStore(whole)
    assert store.sites == SITES
    assert store.complete
    assert store.grids == {site: [(8, 8)] for site in SITES}
    captured = ns.capture(operator(), SITES, fields(), batch_size=4)
    for site in SITES:
        view = store[site]
        assert view.shape == captured[site].shape == (N, 3, 8, 8)
        assert torch.equal(view[:], captured[site])
        assert view.trajectory is not None
        assert view.trajectory.tolist() == [i // 4 for i in range(N)]
        for index in (3, -1, slice(4, 17, 3), [5, 2, 2], torch.tensor([22, 0, 7]), torch.arange(N) % 2 == 0):
            assert torch.equal(view[index], captured[site][index])
    store.verify()


def test_what_is_written_to_a_batch_does_not_reach_the_store(whole: Path) -> None:
    view = ActivationStore(whole)[SITES[0]]
    before = view[torch.arange(2)]
    view[torch.arange(2)].add_(1)
    assert torch.equal(view[torch.arange(2)], before)


def test_training_on_a_store_is_training_on_the_tensor(whole: Path) -> None:
    view = ActivationStore(whole)[SITES[0]]
    states = []
    for activations in (view, view[:]):
        torch.manual_seed(0)
        sae = ns.SAEFNO(in_channels=3, n_concepts=8, n_modes=(4, 4), concept_rule=ns.TopK(2))
        ns.train(sae, activations, ns.TrainingConfig(n_epochs=2, batch_size=4), progress=False)
        states.append(sae.state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items() if isinstance(tensor, Tensor))
    assert ns.evaluate(sae, view) == ns.evaluate(sae, view[:])


class Stop(Exception):
    pass


def stopping_after(n_batches: int) -> Iterator[Tensor]:
    yield from fields().split(4)[:n_batches]
    raise Stop


@pytest.mark.parametrize("n_batches", range(7))
def test_a_write_that_stopped_goes_on_to_the_same_bytes(tmp_path: Path, whole: Path, n_batches: int) -> None:
    path = tmp_path / "acts.zarr"
    with pytest.raises(Stop):
        write(path, stopping_after(n_batches))
    stopped = ActivationStore(path)
    assert not stopped.complete
    assert 4 * n_batches - 8 < stopped.manifest.n_samples <= 4 * n_batches  # no more than a shard and a batch are lost
    if stopped.manifest.arrays:
        stopped.verify()
        captured = ns.capture(operator(), SITES[1], fields(), batch_size=4)
        assert torch.equal(stopped[SITES[1]][:], captured[: stopped.manifest.n_samples])
    write(path)
    assert tree(path) == tree(whole)


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 6, 8, 11])
def test_a_write_that_stopped_between_arrays_goes_on_to_the_same_bytes(
    tmp_path: Path, whole: Path, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls, append = tmp_path / "acts.zarr", itertools.count(1), zarr.Array.append

    def stopping(array: zarr.Array, data: Any, axis: int = 0) -> Any:
        result = append(array, data, axis)
        if next(calls) == nth:
            raise Stop
        return result

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "append", stopping)
        with pytest.raises(Stop):
            write(path)
    write(path)
    assert tree(path) == tree(whole)


KILLED = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import test_store as t
from neuralop_sae.data.manifest import Manifest
write, calls = Manifest.write, []
def killing(self, folder):
    calls.append(folder)
    if len(calls) == 3:  # the second shard of each site is on disk, but not in the manifest
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, folder)
Manifest.write = killing
t.torch.set_num_threads(1)
t.write(t.Path({path!r}))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_write_goes_on_to_the_same_bytes(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "acts.zarr"
    code = KILLED.format(folder=str(Path(__file__).parent), path=str(path))
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    killed = ActivationStore(path)
    assert not killed.complete
    assert killed.manifest.n_samples == 8
    assert "incomplete after 8 inputs" in repr(killed)
    (path / "fno_blocks.0" / "8x8" / "activations" / "zarr.123.partial").write_bytes(b"cut short")
    write(path)
    assert tree(path) == tree(whole)


def test_going_on_does_not_run_the_model_on_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "acts.zarr"
    with pytest.raises(Stop):
        write(path, stopping_after(4))
    passes = []
    monkeypatch.setattr(writing, "capture", lambda *args, **kw: passes.append(1) or ns.capture(*args, **kw))
    write(path)
    assert len(passes) == 2  # 16 of 23 samples were there
    write(path)
    assert len(passes) == 2


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": operator(1)}, "model_digest was '.*', now '"),
    "inputs": ({"inputs": fields() + 1e-6}, "other inputs: they, or their order, differ"),
    "order": ({"inputs": fields().flip(0)}, "other inputs"),
    "fewer inputs": (
        {"inputs": fields()[:12], "trajectory": REQUEST["trajectory"][:12]},
        "other inputs: there were 23, now 12",
    ),
    "more inputs": ({"inputs": [*fields().split(4), fields(1)], "trajectory": torch.arange(24) // 4}, "there are more"),
    "trajectories": ({"trajectory": torch.arange(N)}, "other inputs"),
    "batch size": ({"batch_size": 5}, "batch_size was 4, now 5"),
    "precision": ({"dtype": "float16"}, "dtype was 'float32', now 'float16'"),
    "lengths": ({"lengths": (1.0, 1.0)}, r"lengths was \(1.0, 2.0\), now \(1.0, 1.0\)"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_store_of_something_else_is_neither_taken_nor_touched(whole: Path, other: str) -> None:
    changes, message = OTHERS[other]
    before = tree(whole)
    with pytest.raises(ValueError, match=message):
        write(whole, **changes)
    assert tree(whole) == before


def test_a_store_in_which_nothing_is_yet_takes_another_request(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "acts.zarr"
    for wrong in ({"lengths": (1.0,)}, {"inputs": fields() * torch.nan}):
        with pytest.raises(ValueError, match="lengths has 1 numbers|NaN"):
            write(path, **wrong)
    write(path)
    assert tree(path) == tree(whole)


def test_other_sites_are_refused(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"sites was .*Write to another folder, or delete this one"):
        ActivationStore.write(whole, operator(), SITES[:1], fields(), **REQUEST)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match="is no store of activations"):
            write(path)
    with pytest.raises(FileNotFoundError, match="no store of activations"):
        ActivationStore(tmp_path)
    assert tree(tmp_path) == {"thesis.txt": b"years of work"}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"trajectory": torch.arange(5)}, r"trajectory is one number per sample.*\(5,\); there are 23 samples"),
    "real labels": ({"trajectory": torch.rand(N)}, "whole numbers"),
    "times of no kind": ({"time": np.array([object()] * N)}, "time holds numbers, dates .* got object"),
    "precision": ({"dtype": "int8"}, "float32, float16 or float64; got dtype='int8'"),
    "lengths": ({"lengths": (1.0,)}, "lengths has 1 numbers for the axes y, x"),
    "negative lengths": ({"lengths": (1.0, -2.0)}, r"lengths are positive numbers, one for each axis; got \(1.0, -2.0\)"),
    "no lengths": ({"lengths": (0.0, float("nan"))}, "lengths are positive numbers"),
    "units": ({"units": {"speed": "m/s"}}, "units are those of activations, lengths, time; got speed"),
    "shard": ({"shard_size": 0}, "shard_size must be at least 1; got 0"),
    "batch": ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
    "nothing": ({"inputs": fields()[:0], "trajectory": None}, "no samples"),
    "NaN": ({"inputs": fields().index_fill(0, torch.tensor([9]), torch.nan)}, "for the inputs 8 to 11 hold NaN or Inf"),
    "range": ({"inputs": fields() * 1e8, "dtype": "float16"}, "values beyond the range of torch.float16"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, kind: str) -> None:
    changes, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "acts.zarr", **changes)


def test_labels_that_end_too_soon_or_too_late_for_inputs_of_unknown_number(tmp_path: Path) -> None:
    for n in (20, 25):
        with pytest.raises(ValueError, match=f"trajectory has {n} numbers"):
            write(tmp_path / str(n), iter(fields().split(4)), trajectory=torch.arange(n))


def test_unknown_sites_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown site 'fno_blocks.7'"):
        ActivationStore.write(tmp_path / "acts.zarr", operator(), ["fno_blocks.7"], fields())
    assert not (tmp_path / "acts.zarr").exists()


def vital(path: Path) -> list[str]:
    """Files of one site, and the manifest: all but the coordinates of the grid, which only xarray reads."""
    return [name for name in tree(path) if not name.startswith((SITES[1], f"{SITES[0]}/8x8/x/", f"{SITES[0]}/8x8/y/"))]


def test_no_byte_can_flip_unseen(tmp_path: Path, whole: Path) -> None:
    """An error, or, for a byte of a description that changes nothing, the same activations."""
    expected = ActivationStore(whole)[SITES[0]][:]
    path, generator, errors = tmp_path / "acts.zarr", np.random.default_rng(0), 0
    shutil.copytree(whole, path)
    for name in vital(path):
        good = (path / name).read_bytes()
        for place in generator.choice(len(good), 3, replace=False):
            (path / name).write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
            try:
                found = ActivationStore(path)[SITES[0]][:]
            except ValueError as error:
                assert "damaged" in str(error) or "schema" in str(error)  # noqa: PT017
                errors += 1
            else:
                assert name.endswith("zarr.json")
                assert torch.equal(found, expected), name
            (path / name).write_bytes(good)
    assert errors >= 18  # four shards, one of labels, the manifest


def test_a_missing_file_is_no_data(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "acts.zarr"
    shutil.copytree(whole, path)
    chunks = [name for name in vital(path) if "/c/" in name]
    assert len(chunks) == 5
    for name in chunks:
        (path / name).rename(tmp_path / "away")
        with pytest.raises(ValueError, match="damaged"):
            ActivationStore(path)[SITES[0]][:]
        (tmp_path / "away").rename(path / name)


@pytest.mark.parametrize("name", [MANIFEST_NAME, "zarr.json", f"{SITES[0]}/8x8/activations/zarr.json"])
def test_what_is_damaged_is_written_again_once_its_folder_is_gone(tmp_path: Path, whole: Path, name: str) -> None:
    path = tmp_path / "acts.zarr"
    shutil.copytree(whole, path)
    (path / name).write_text("{")
    said = rf"is damaged \(.*\): delete the folder {path} and write the store again"
    with pytest.raises(ValueError, match=said):
        write(path)
    if name != "zarr.json":  # the group of the root is not read
        with pytest.raises(ValueError, match=said):
            ActivationStore(path)
    shutil.rmtree(path)
    write(path).verify()


def test_exchanged_files_are_found_by_verify(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "acts.zarr"
    shutil.copytree(whole, path)
    shards = sorted((path / SITES[0] / "8x8" / "activations").glob("c/[01]/0/0/0"))
    assert len(shards) == 2
    contents = [shard.read_bytes() for shard in shards]
    for shard, content in zip(shards, reversed(contents), strict=True):
        shard.write_bytes(content)
    store = ActivationStore(path)
    with pytest.raises(ValueError, match=r"8x8 is damaged \(its checksum differs\)"):
        store.verify()


def test_half_precision_is_rounded_and_given_back_as_float32(tmp_path: Path, whole: Path) -> None:
    half, single = write(tmp_path / "acts.zarr", dtype="float16"), ActivationStore(whole)
    assert half[SITES[0]][:].dtype == torch.float32
    assert torch.equal(half[SITES[0]][:], single[SITES[0]][:].half().float())


def test_several_grids_in_one_pass(tmp_path: Path) -> None:
    coarse, fine = fields(6), fields(5, 12)
    loaders = {8: coarse, (12, 12): DataLoader(TensorDataset(fine, fine), batch_size=2)}
    labels = {"trajectory": torch.arange(11), "time": torch.arange(11.0)}
    store = write(tmp_path / "acts.zarr", loaders, **labels)
    assert store.grids == {site: [(8, 8), (12, 12)] for site in SITES}
    for size, inputs, batch_size, first in ((8, coarse, 4, 0), (12, fine, 2, 6)):
        view = store[SITES[1], size]
        assert torch.equal(view[:], ns.capture(operator(), SITES[1], inputs, batch_size=batch_size))
        assert view.trajectory is not None
        assert view.trajectory.tolist() == list(range(first, first + len(inputs)))
    with pytest.raises(ValueError, match=r"on the grids \(8, 8\), \(12, 12\): name one"):
        store[SITES[0]]
    with pytest.raises(ValueError, match=r"no activations on the grid \(9,\); there are: \(8, 8\), \(12, 12\)"):
        store[SITES[0], 9]
    with pytest.raises(ValueError, match="no activations of site 'lifting'"):
        store["lifting"]


def test_batches_of_several_grids_in_turn(tmp_path: Path) -> None:
    coarse, fine = fields(6), fields(5, 12)
    mixed = [coarse[:4], fine[:2], fine[2:4], coarse[4:], fine[4:]]
    path, labels = tmp_path / "acts.zarr", {"trajectory": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1])}
    with pytest.raises(Stop):
        write(path, (batch if i < 4 else stop() for i, batch in enumerate(mixed)), **labels)
    store = write(path, mixed, **labels)
    for size, batches, trajectory in ((8, [mixed[0], mixed[3]], 0), (12, [mixed[1], mixed[2], mixed[4]], 1)):
        assert torch.equal(store[SITES[0], size][:], ns.capture(operator(), SITES[0], batches))
        assert set(store[SITES[0], size].trajectory.tolist()) == {trajectory}
    store.verify()


def stop() -> Tensor:
    raise Stop


def test_the_basis_is_that_of_the_operator(tmp_path: Path, whole: Path) -> None:
    box = ActivationStore(whole)[SITES[0]]
    assert isinstance(box.basis, ns.FourierBasis)
    assert box.quadrature().expand(8, 8).sum() == 1
    torch.manual_seed(0)
    sphere = FNO((4, 8), 1, 1, 3, n_layers=1, conv_module=SphericalConv)
    store = ActivationStore.write(tmp_path / "sphere.zarr", sphere, "fno_blocks.convs.0", torch.randn(2, 1, 9, 16))
    view = store["fno_blocks.convs.0"]
    assert isinstance(view.basis, ns.SphericalBasis)
    expected = ns.SphericalBasis((4, 8)).quadrature((9, 16), like=torch.zeros(()))
    assert torch.equal(view.quadrature(), expected)
    data = view.to_xarray()
    assert data.dims == ("sample", "channel", "lat", "lon")
    assert np.allclose(data.lat, np.linspace(90, -90, 9), atol=1e-12)
    assert np.allclose(data.lon, np.arange(16) * 22.5)


def test_it_becomes_a_data_array(tmp_path: Path) -> None:
    dates = np.datetime64("2020-02-28") + 6 * np.arange(N) * np.timedelta64(1, "h")
    units = {"lengths": "km", "activations": "K"}
    view = write(tmp_path / "acts.zarr", time=dates, units=units)[SITES[0]]
    assert np.array_equal(view.dates, dates)
    test = view.train_test([2, 5])[1]
    data = test.to_xarray()
    assert data.dims == ("sample", "channel", "y", "x")
    assert data.attrs == {"site": SITES[0], "units": "K"}
    assert np.array_equal(data.time.values, dates[[8, 9, 10, 11, 20, 21, 22]])
    assert data.trajectory.values.tolist() == [2, 2, 2, 2, 5, 5, 5]
    assert np.array_equal(data.values, view[[8, 9, 10, 11, 20, 21, 22]].numpy())
    assert np.array_equal(data.x.values, np.arange(8) / 4)
    assert data.x.attrs == {"units": "km"}


def test_plain_numbers_stay_numbers_whatever_their_unit(tmp_path: Path) -> None:
    view = write(tmp_path / "acts.zarr", time=torch.arange(N) / 2, units={"time": "hours"})[SITES[0]]
    assert torch.equal(view.time, torch.arange(N, dtype=torch.float64) / 2)
    assert view.dates is None
    assert view.time_units == "hours"
    assert np.array_equal(view.to_xarray().time.values, np.arange(N) / 2)


DATA = Path(os.environ.get("NEURALOP_DATA", "/nowhere"))


@pytest.mark.skipif(not (DATA / "darcy_test_32.pt").exists(), reason="neuralop's Darcy files: set NEURALOP_DATA")
def test_neuralops_darcy_data(tmp_path: Path) -> None:
    darcy = DarcyDataset(DATA, 20, [6, 6], 4, [4, 4], 16, [16, 32], encode_input=True, download=False)
    darcy.data_processor.train()
    store = write(tmp_path / "a.zarr", darcy.train_db, data_processor=darcy.data_processor, trajectory=None)
    assert darcy.data_processor.training
    inputs = darcy.data_processor.in_normalizer.transform(darcy.train_db.x)
    assert torch.equal(store[SITES[0]][:], ns.capture(operator(), SITES[0], inputs, batch_size=4))
    tests = {size: DataLoader(data, batch_size=4) for size, data in darcy.test_dbs.items()}
    store = write(tmp_path / "b.zarr", tests, data_processor=darcy.data_processor, trajectory=None)
    assert store.grids[SITES[0]] == [(16, 16), (32, 32)]
    assert len(store[SITES[1], 32]) == 6


class Well(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Samples as the Well's data sets give them: time first, channels last."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x = fields(7)[index].permute(1, 2, 0)[None]
        return {"input_fields": x, "output_fields": x + 1, "boundary_conditions": torch.zeros(2, 2)}


class WellProcessor(DefaultDataProcessor):
    """What neuralop's processor for the Well does to a sample with one step and no constant fields."""

    def preprocess(self, data_dict: dict[str, Tensor], batched: bool = True) -> dict[str, Tensor]:
        data_dict["x"] = data_dict["input_fields"].permute(0, 4, 1, 2, 3).flatten(1, 2) / 2
        data_dict["y"] = data_dict["output_fields"].permute(0, 4, 1, 2, 3).flatten(1, 2)
        return data_dict


def test_samples_of_the_well(tmp_path: Path) -> None:
    store = write(tmp_path / "acts.zarr", Well(), data_processor=WellProcessor(), trajectory=None)
    assert torch.equal(store[SITES[0]][:], ns.capture(operator(), SITES[0], fields(7) / 2, batch_size=4))
    with pytest.raises(ValueError, match=r"WellProcessor needs the entry 'input_fields'; got the keys \['x'\]"):
        write(tmp_path / "other.zarr", fields(7), data_processor=WellProcessor(), trajectory=None)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"zarr: pip install 'neuralop-sae\[data\]'"):
        ActivationStore(whole)


def test_the_manifest_is_the_last_thing_written(whole: Path) -> None:
    manifest = Manifest.read(whole)
    assert manifest.n_samples == N
    assert {entry.n_samples for entry in manifest.arrays.values()} == {N}
    assert (whole / MANIFEST_NAME).is_file()
