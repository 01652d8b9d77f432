"""neuralop's own Trainer, losses and get_model take our models as they are."""

from typing import Any

import pytest
import torch
from configmypy import Bunch
from neuralop import H1Loss, LpLoss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.models import get_model
from torch.utils.data import DataLoader

import neuralop_sae as ns

MODELS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "saefno": ({"n_modes": [5, 5]}, (12, 12)),
    "saetfno": ({"n_modes": [5, 5], "concept_rule": {"name": "TopK", "k": 4}, "rank": 0.5}, (12, 12)),
    "saesfno": ({"n_modes": [4, 8], "grid": "lobatto", "isotropic": True}, (7, 12)),
    "saepointwise": ({"k": 2}, (12, 12)),
}


def made(name: str) -> ns.SAE:
    torch.manual_seed(0)
    arguments = {"model_arch": name, "data_channels": 3, "n_concepts": 8, **MODELS[name][0]}
    return get_model(Bunch({"model": Bunch(arguments)}))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_get_model(name: str) -> None:
    model = made(name)
    assert isinstance(model, ns.SAE)
    assert type(model).__name__.lower() == name
    assert type(model)(**model.config()).config() == model.config()


@pytest.mark.filterwarnings("ignore:LpLoss.__call__:UserWarning", "ignore:H1Loss.__call__:UserWarning")
@pytest.mark.parametrize("loss", [LpLoss(d=2), H1Loss(d=2)], ids=["Lp", "H1"])
@pytest.mark.parametrize("name", MODELS)
def test_the_trainer_trains_and_saves(name: str, loss: Any, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    model, x = made(name), torch.randn(8, 3, *MODELS[name][1])
    loader = DataLoader(TensorDataset(x, x), batch_size=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    trainer = Trainer(model=model, n_epochs=6, device="cpu", verbose=False)
    with torch.no_grad():
        before = float(loss(model(x, y=x), x))
    trainer.train(loader, {}, optimizer, scheduler, training_loss=loss, save_every=1, save_dir=str(tmp_path))
    with torch.no_grad():
        assert float(loss(model(x, y=x), x)) < 0.97 * before
    saved = next(tmp_path.rglob("model.safetensors")).parent
    again = ns.load(saved)
    assert torch.equal(again(x).reconstruction, model.eval()(x).reconstruction)


def test_a_target_asks_for_the_reconstruction() -> None:
    model, x = made("saefno").eval(), torch.randn(2, 3, 12, 12)
    assert torch.equal(model(x, y=x), model(x).reconstruction)
    assert torch.equal(model(x=x, y=x), model(x).reconstruction)
