"""neuralop's Navier-Stokes files, by neuralop's own loader, from the file to the table of probes."""

from pathlib import Path

import pytest
import torch
from neuralop.data.datasets.navier_stokes import NavierStokesDataset
from neuralop.models import FNO
from torch import Tensor
from torch.utils.data import DataLoader

import neuralop_sae as ns
from neuralop_sae.analysis.causal import causal_test
from neuralop_sae.analysis.probes import probe
from neuralop_sae.data.store import ActivationStore
from neuralop_sae.data.streaming import stream

SITE, N = "fno_blocks.0", 4


def vorticity(n: int, seed: int) -> Tensor:
    """Smooth random fields ``(n, 128, 128)``: of the sizes that the archive has, the smallest."""
    spectrum = torch.randn(n, 9, 5, dtype=torch.cfloat, generator=torch.Generator().manual_seed(seed))
    return ns.FourierBasis((9, 9)).synthesis(spectrum, (128, 128)) + 0.5


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> NavierStokesDataset:
    """Files of the archive's names and keys, and the data set that neuralop makes of them."""
    folder: Path = tmp_path_factory.mktemp("nsforcing")
    for seed, split in enumerate(("train", "test")):
        torch.save({"x": vorticity(N, seed), "y": 2 * vorticity(N, seed + 2)}, folder / f"nsforcing_{split}_128.pt")
    return NavierStokesDataset(
        folder, N, [N], 3, [3], 128, [128], encode_input=True, encode_output=True, channel_dim=1, download=False
    )


@pytest.fixture(scope="module")
def operator() -> FNO:
    torch.manual_seed(0)
    return FNO((4, 4), in_channels=1, out_channels=1, hidden_channels=4, n_layers=2).eval()


def test_activations_are_those_of_what_the_file_holds(flow: NavierStokesDataset, operator: FNO, tmp_path: Path) -> None:
    x = vorticity(N, 0)[:, None]
    expected = ns.capture(operator, SITE, (x - x.mean()) / x.std())
    options = {"data_processor": flow.data_processor}
    store = ActivationStore.write(tmp_path / "acts.zarr", operator, SITE, flow.train_db, batch_size=3, **options)
    captured = ns.capture(operator, SITE, DataLoader(flow.train_db, batch_size=3), **options)
    for found in (captured, stream(operator, SITE, flow.train_db, **options)[:], store[SITE][:]):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    tests = {128: DataLoader(flow.test_dbs[128], batch_size=3)}
    assert ActivationStore.write(tmp_path / "test.zarr", operator, SITE, tests, **options).grids == {SITE: [(128, 128)]}


def test_from_the_file_to_the_tables(flow: NavierStokesDataset, operator: FNO) -> None:
    processor, tests = flow.data_processor, DataLoader(flow.test_dbs[128], batch_size=3)
    processor.eval()
    sae = ns.SAEFNO(in_channels=4, n_concepts=8, n_modes=(3, 3), concept_rule=ns.TopK(4))
    acts = stream(operator, SITE, flow.train_db, data_processor=processor)
    ns.train(sae, acts, ns.TrainingConfig(n_epochs=15, batch_size=2), progress=False)
    held_out = ns.capture(operator, SITE, tests, data_processor=processor)
    assert ns.evaluate(sae, held_out)["fve"] > 0.5
    table = probe(sae, held_out, {"vorticity": vorticity(N, 1)}, n_permutations=20)
    assert table.correlation.abs().max() > 0.5
    kept = ns.faithfulness(operator, SITE, sae, tests, data_processor=processor)
    x, y = vorticity(N, 1)[:, None], 2 * vorticity(N, 3)[:, None]
    train_x, train_y = vorticity(N, 0), 2 * vorticity(N, 2)
    with torch.no_grad():
        predicted = operator((x - train_x.mean()) / train_x.std()) * train_y.std() + train_y.mean()
    error = (predicted - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
    assert kept["loss_clean"] == pytest.approx(float(error.mean()), rel=1e-4)
    concept = int(sae.encode(held_out).concept[0])
    tested = causal_test(operator, SITE, sae, tests, concept, doses=(0.0,), controls=(), data_processor=processor)
    assert tested.effects.set_index("outcome").effect["rms channel 0"] > 0
