"""Reading activations from a file."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from neuralop.models import FNO
from safetensors.torch import save_file

import neuralop_sae as ns
from neuralop_sae.data.activations import load_activations, opened
from neuralop_sae.data.store import ActivationStore

FIELDS = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)


def test_the_only_tensor_of_a_safetensors_file(tmp_path):
    save_file({"block 2": FIELDS}, tmp_path / "acts.safetensors")
    assert torch.equal(load_activations(tmp_path / "acts.safetensors"), FIELDS)


def test_the_tensor_named_activations_among_several(tmp_path):
    save_file({"a": torch.zeros(3), "activations": FIELDS, "z": FIELDS + 1}, tmp_path / "acts.safetensors")
    assert torch.equal(load_activations(tmp_path / "acts.safetensors"), FIELDS)


def test_several_tensors_of_other_names_are_refused_by_name(tmp_path):
    save_file({"first": FIELDS, "second": FIELDS + 1}, tmp_path / "acts.safetensors")
    with pytest.raises(ValueError, match=r"first.*second.*name one of them 'activations'"):
        load_activations(tmp_path / "acts.safetensors")


def test_a_safetensors_file_without_tensors(tmp_path):
    save_file({}, tmp_path / "acts.safetensors")
    with pytest.raises(ValueError, match="activations"):
        load_activations(tmp_path / "acts.safetensors")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_numpy_array_keeps_its_dtype(tmp_path, dtype):
    array = FIELDS.numpy().astype(dtype)
    np.save(tmp_path / "acts.npy", array)
    found = load_activations(str(tmp_path / "acts.npy"))
    assert found.numpy().dtype == dtype
    assert np.array_equal(found.numpy(), array)


def test_a_numpy_array_in_fortran_order(tmp_path):
    np.save(tmp_path / "acts.npy", np.asfortranarray(FIELDS.numpy()))
    assert torch.equal(load_activations(tmp_path / "acts.npy"), FIELDS)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at the mappings of this process")
def test_a_numpy_array_is_mapped_not_read(tmp_path):
    path = tmp_path / "acts.npy"
    np.save(path, FIELDS.numpy())
    activations = load_activations(path)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            first, last = (int(bound, 16) for bound in line.split()[0].split("-"))
            assert first <= activations.data_ptr() < last
            break
    else:
        pytest.fail("the file is not mapped")


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="asks Linux for the size of the memory")
def test_a_numpy_array_larger_than_the_memory(tmp_path):
    sizes = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    memory = 1024 * (int(sizes["MemTotal:"]) + int(sizes["SwapTotal:"]))
    n = 2 * memory // (3 * 64 * 64 * 4)
    try:
        np.lib.format.open_memmap(tmp_path / "acts.npy", "w+", np.float32, (n, 3, 64, 64)).flush()  # holes: no disk is used
    except OSError as error:
        pytest.skip(f"this disk holds no file with holes: {error}")
    activations = load_activations(tmp_path / "acts.npy")
    assert activations.shape == (n, 3, 64, 64)
    assert not activations[[0, n - 1]].any()
    del activations
    (tmp_path / "acts.npy").unlink()


def test_what_is_written_to_a_batch_does_not_reach_the_file(tmp_path):
    np.save(tmp_path / "acts.npy", FIELDS.numpy())
    batch = load_activations(tmp_path / "acts.npy")[torch.arange(2)]  # as a training run takes its batches
    batch += 1
    assert np.array_equal(np.load(tmp_path / "acts.npy"), FIELDS.numpy())


@pytest.mark.parametrize("name", ["acts.pt", "acts.npz", "acts", "acts.NPY.gz"])
def test_other_kinds_of_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ValueError, match=r"\.safetensors or \.npy files, got acts"):
        load_activations(tmp_path / name)


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_nothing_is_unpickled(tmp_path):
    trace = tmp_path / "trace"
    np.save(tmp_path / "objects.npy", np.array([Trap(trace)] * 3, dtype=object))
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Trap(trace)))
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(Trap(trace)))
    for name in ("objects.npy", "pickle.npy"):
        with pytest.raises(ValueError, match=f"{name} is no array that can be read without unpickling"):
            load_activations(tmp_path / name)
    with pytest.raises(ValueError, match="pickle.safetensors is not a whole safetensors file"):
        load_activations(tmp_path / "pickle.safetensors")
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["acts.npy", "acts.safetensors"])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, FIELDS.numpy())
    else:
        save_file({"activations": FIELDS}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=name):
        load_activations(path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.float32),
        np.zeros((3,), np.float32),
        np.zeros((2, 3, 4, 5), np.int64),
        np.zeros((2, 3, 4, 5), np.uint8),
        np.zeros((2, 3, 4, 5), bool),
        np.zeros((2, 3, 4, 5), np.complex64),
    ],
    ids=lambda array: f"{array.dtype}-{array.ndim}d",
)
def test_what_is_no_batch_of_real_fields_is_refused(tmp_path, array):
    np.save(tmp_path / "acts.npy", array)
    save_file({"activations": torch.from_numpy(array)}, tmp_path / "acts.safetensors")
    for name in ("acts.npy", "acts.safetensors"):
        with pytest.raises(ValueError, match=rf"real fields \(N, channels, \*grid\), but {name} holds torch\.\w+ of shape"):
            load_activations(tmp_path / name)


@pytest.mark.parametrize("dtype", ["U3", [("a", np.float32), ("b", np.float32)]])
def test_dtypes_that_torch_lacks_are_refused(tmp_path, dtype):
    np.save(tmp_path / "acts.npy", np.zeros((2, 3, 4), dtype))
    with pytest.raises(ValueError, match="acts.npy"):
        load_activations(tmp_path / "acts.npy")


def test_a_missing_file_or_a_folder(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    for name in ("acts.safetensors", "acts.npy", "folder.npy"):
        with pytest.raises(FileNotFoundError, match=f"there is no file .*{name}"):
            load_activations(tmp_path / name)


@pytest.fixture
def operator():
    torch.manual_seed(0)
    return FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=3, n_layers=2)


def test_a_store_of_one_site_is_its_activations(operator, tmp_path):
    x = torch.randn(6, 1, 8, 8)
    store = ActivationStore.write(tmp_path / "acts.zarr", operator, "fno_blocks.0", x)
    view = store["fno_blocks.0"]
    assert torch.equal(opened(store)[:], view[:])
    config = ns.TrainingConfig(n_epochs=1, batch_size=3)
    weights, metrics = [], []
    for given in (store, view[:]):
        torch.manual_seed(0)
        sae = ns.SAEFNO(3, 4, (3, 3), concept_rule=ns.TopK(2))
        ns.train(sae, given, config, progress=False)
        weights.append(sae.state_dict())
        metrics.append(ns.evaluate(sae, given))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert metrics[0] == pytest.approx(metrics[1])
    ns.train_many({"a": sae}, {"a": store}, config, progress=False)
    pages = [ns.report(sae, given, path=tmp_path / "report.html").read_text() for given in (store, view, view[:])]
    assert pages[0] == pages[1] == pages[2]


def test_a_store_of_several_is_told_what_it_has(operator, tmp_path):
    inputs = {8: torch.randn(3, 1, 8, 8), 12: torch.randn(3, 1, 12, 12)}
    store = ActivationStore.write(tmp_path / "acts.zarr", operator, "fno_blocks.0", inputs)
    said = r"pass store\['site', grid\]; it has: \['fno_blocks.0', \(8, 8\)\], \['fno_blocks.0', \(12, 12\)\]"
    with pytest.raises(ValueError, match=said):
        ns.train(ns.SAEFNO(3, 4, (3, 3)), store)


def test_an_incomplete_store_is_refused(operator, tmp_path, monkeypatch):
    store = ActivationStore.write(tmp_path / "acts.zarr", operator, "fno_blocks.0", torch.randn(6, 1, 8, 8))
    monkeypatch.setattr(ActivationStore, "complete", False)
    with pytest.raises(ValueError, match="is not complete: write it with the same call again"):
        opened(store)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fno_blocks.0": FIELDS}, "not dict: pass one of its entries"),
        (iter([FIELDS]), "not list_iterator"),
    ],
)
def test_what_holds_no_samples_by_number(given, said):
    with pytest.raises(TypeError, match=rf"a tensor or array \(N, channels, \*grid\), an ActivationStore, .*{said}"):
        ns.train(ns.SAEFNO(3, 4, (3, 3)), given)
    with pytest.raises(TypeError, match=said):
        ns.evaluate(ns.SAEFNO(3, 4, (3, 3)), given)


def test_arrays_are_taken_as_tensors():
    array = xr.DataArray(FIELDS.numpy(), dims=["time", *"cyx"[: FIELDS.ndim - 1]])
    for given in (FIELDS.numpy(), array):
        assert torch.equal(opened(given), FIELDS)
    with pytest.raises(TypeError, match="activations is a tensor or an array of numbers"):
        opened(np.array(["a"]))


def test_quantities_of_a_store_are_differentiated_on_its_box(operator, tmp_path):
    x = torch.randn(12, 1, 8, 8)
    store = ActivationStore.write(tmp_path / "acts.zarr", operator, "fno_blocks.0", x, lengths=(1.0, 3.0))
    sae = ns.SAEFNO(3, 4, (3, 3), concept_rule=ns.TopK(2))
    settings = {"fields": {"f": x[:, 0]}, "n_bootstrap": 9, "n_permutations": 9}
    physics = {"slope": lambda f, calculus: calculus.gradient(f).square().sum(1)}
    box = ns.PeriodicBox((1.0, 3.0))
    found = [
        ns.probe(sae, given, physics, calculus=calculus, **settings)
        for given, calculus in ((store, None), (store["fno_blocks.0"][:], box), (store["fno_blocks.0"][:], None))
    ]
    pd.testing.assert_frame_equal(found[0], found[1])
    assert not found[0].correlation.equals(found[2].correlation)
    assert float(ns.concept_spectra(sae, store).wavenumber[1]) == pytest.approx(1 / 3)
