"""Data of the Well, in its own format, by its own loader and by neuralop's, from the file to the table of probes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from neuralop.models import FNO
from ruamel.yaml import YAML
from torch import Tensor
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.analysis.causal import causal_test
from neuralop_sae.analysis.probes import probe
from neuralop_sae.data.store import ActivationStore
from neuralop_sae.data.streaming import stream

the_well, h5py = pytest.importorskip("the_well.data"), pytest.importorskip("h5py")

N_TRAJECTORIES, N_STEPS, GRID = 3, 5, (8, 6)
SITE, N = "fno_blocks.0", N_TRAJECTORIES * (N_STEPS - 1)


def write_file(path: Path, seed: int) -> None:
    """A file of the Well: pressure and velocity of a few trajectories, and a depth that is always the same."""
    rng = np.random.default_rng(seed)
    shape = (N_TRAJECTORIES, N_STEPS, *GRID)
    values = {"pressure": rng.normal(size=shape), "depth": rng.normal(size=GRID), "velocity": rng.normal(size=(*shape, 2))}
    kinds = {"t0_fields": ["pressure", "depth"], "t1_fields": ["velocity"], "t2_fields": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update(dataset_name="tiny", grid_type="cartesian", n_spatial_dims=2, n_trajectories=N_TRAJECTORIES)
        axes = {"time": np.arange(N_STEPS) * 0.5, "x": np.arange(GRID[0]) / GRID[0], "y": np.arange(GRID[1]) / GRID[1]}
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = ["x", "y"]
        for name, axis in axes.items():
            dimensions.create_dataset(name, data=axis.astype(np.float32)).attrs["sample_varying"] = False
        file.create_group("scalars").attrs["field_names"] = []
        for kind, names in kinds.items():
            group = file.create_group(kind)
            group.attrs["field_names"] = names
            for name in names:
                field = group.create_dataset(name, data=values[name].astype(np.float32))
                varying = name != "depth"
                field.attrs.update(dim_varying=[True, True], sample_varying=varying, time_varying=varying)
        boundaries = file.create_group("boundary_conditions")
        for name in ("x", "y"):
            boundary = boundaries.create_group(f"{name}_periodic")
            boundary.attrs.update(bc_type="PERIODIC", associated_dims=[name], sample_varying=False, time_varying=False)
            boundary.create_dataset("mask", data=np.eye(len(axes[name]), dtype=bool)[[0, -1]].any(0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as neuralop's wrapper looks for it."""
    root = tmp_path_factory.mktemp("well")
    folder = root / "datasets" / "tiny"
    for seed, split in enumerate(("train", "test")):
        write_file(folder / "data" / split / "tiny.hdf5", seed)
    stats = {"mean": {"pressure": 0.1, "velocity": [0.2, 0.3]}, "std": {"pressure": 1.5, "velocity": [2.0, 0.5]}}
    with (folder / "stats.yaml").open("w") as file:
        YAML().dump(stats, file)
    return root


@pytest.fixture(scope="module")
def tiny(root: Path) -> Any:
    """neuralop's data set, with its processor."""
    from neuralop.data.datasets.the_well_dataset import TheWellDataset

    return TheWellDataset(root, "tiny", download=False)


@pytest.fixture(scope="module")
def operator() -> FNO:
    torch.manual_seed(0)
    return FNO((4, 4), in_channels=4, out_channels=3, hidden_channels=4, n_layers=2).eval()


@pytest.fixture(scope="module")
def raw(root: Path) -> dict[str, Tensor]:
    """What the file holds: pressure and velocity ``(N, 3, *grid)`` of all steps but the last, and of the next, and depth."""
    with h5py.File(root / "datasets" / "tiny" / "data" / "train" / "tiny.hdf5") as file:
        pressure, velocity = file["t0_fields/pressure"][:], file["t1_fields/velocity"][:]
        depth = torch.from_numpy(file["t0_fields/depth"][:])
    flow = torch.from_numpy(np.concatenate([pressure[:, :, None], np.moveaxis(velocity, -1, 2)], axis=2))
    now, later = flow[:, :-1].flatten(0, 1), flow[:, 1:].flatten(0, 1)
    return {"now": now, "later": later, "depth": depth.expand(N, 1, *GRID)}


def test_activations_are_those_of_what_the_file_holds(
    tiny: Any, operator: FNO, raw: dict[str, Tensor], tmp_path: Path
) -> None:
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([1.5, 2.0, 0.5]).view(3, 1, 1)
    x = torch.cat([(raw["now"] - mean) / (std + tiny.data_processor.data_normalizer.eps), raw["depth"]], 1)
    expected = ns.capture(operator, SITE, x)
    processor = {"data_processor": tiny.data_processor}
    captured = ns.capture(operator, SITE, DataLoader(tiny.train_db, batch_size=5), **processor)
    streamed = stream(operator, SITE, tiny.train_db, **processor)
    store = ActivationStore.write(tmp_path / "acts.zarr", operator, SITE, tiny.train_db, batch_size=5, **processor)
    for found in (captured, streamed[:], store[SITE][:]):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_from_the_file_to_the_tables(tiny: Any, operator: FNO, raw: dict[str, Tensor], tmp_path: Path) -> None:
    """The Well's own loader, as it is: captured, trained on, probed, judged and edited."""
    processor, data = tiny.data_processor, the_well.WellDataset(path=tiny.train_db.data_path)
    labels = {"trajectory": np.repeat(np.arange(N_TRAJECTORIES), N_STEPS - 1), "time": np.tile(range(N_STEPS - 1), 3)}
    store = ActivationStore.write(tmp_path / "acts.zarr", operator, SITE, data, data_processor=processor, **labels)
    acts = store[SITE]
    sae = ns.SAEFNO(in_channels=4, n_concepts=8, n_modes=(3, 3), concept_rule=ns.TopK(4))
    ns.train(sae, acts, ns.TrainingConfig(n_epochs=20, batch_size=6), progress=False)
    assert ns.evaluate(sae, acts)["fve"] > 0.5
    labels, physics = {"trajectory": acts.trajectory, "time": acts.time}, {"pressure": raw["now"][:, 0]}
    table = probe(sae, acts, physics, lags=(0, 1), n_permutations=20, **labels)
    assert table.groupby("lag").n_samples.first().to_dict() == {0: N, 1: N - N_TRAJECTORIES}
    assert table.correlation.abs().max() > 0.1
    loader = DataLoader(data, batch_size=5)
    kept = ns.faithfulness(operator, SITE, sae, loader, data_processor=processor)
    processor.eval()
    with torch.no_grad():
        batch = processor.preprocess(next(iter(DataLoader(data, batch_size=N))))
        y = processor.postprocess(operator(batch["x"]), batch)[0]
    error = (y - raw["later"]).flatten(1).norm(dim=1) / raw["later"].flatten(1).norm(dim=1)
    assert kept["loss_clean"] == pytest.approx(float(error.mean()), rel=1e-4)
    concept = int(sae.encode(acts[:]).concept[0])
    tested = causal_test(operator, SITE, sae, loader, concept, doses=(0.0,), controls=(), data_processor=processor)
    assert set(tested.effects.outcome) >= {"channel 0", "channel 1", "channel 2"}
