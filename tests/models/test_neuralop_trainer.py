"""neuralop's own Trainer, losses, processors and optimiser take our models as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from configmypy import Bunch
from neuralop import H1Loss, LpLoss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import get_model
from neuralop.training import AdamW, IncrementalFNOTrainer, load_training_state
from torch.utils.data import DataLoader

import neuralop_sae as ns

pytestmark = pytest.mark.filterwarnings("ignore:LpLoss.__call__:UserWarning", "ignore:H1Loss.__call__:UserWarning")

MODELS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "saefno": ({"n_modes": [5, 5], "concept_rule": {"name": "BatchTopK", "k": 4}}, (12, 12)),
    "saetfno": ({"n_modes": [5, 5], "concept_rule": {"name": "TopK", "k": 4}, "rank": 0.5}, (12, 12)),
    "saesfno": ({"n_modes": [4, 8], "grid": "lobatto", "isotropic": True}, (7, 12)),
    "saepointwise": ({"k": 2}, (12, 12)),
}


def made(name: str, seed: int = 0) -> ns.SAE:
    torch.manual_seed(seed)
    arguments = {"model_arch": name, "data_channels": 3, "n_concepts": 8, **MODELS[name][0]}
    return get_model(Bunch({"model": Bunch(arguments)}))  # type: ignore[no-any-return]


def loader(name: str) -> DataLoader[Any]:
    x = torch.randn(8, 3, *MODELS[name][1], generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x), batch_size=4)


def trained(model: ns.SAE, name: str, n_epochs: int, *, options: Any = None, **arguments: Any) -> Trainer:
    """neuralop's Trainer after so many epochs, with neuralop's optimiser."""
    optimizer = AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    trainer = Trainer(model=model, n_epochs=n_epochs, device="cpu", verbose=False, **(options or {}))
    test = arguments.pop("test_loaders", {})
    trainer.train(loader(name), test, optimizer, scheduler, **{"training_loss": LpLoss(d=2), **arguments})
    return trainer


def same(one: ns.SAE, other: ns.SAE) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in one.state_dict().items())


@pytest.mark.parametrize("loss", [LpLoss(d=2), H1Loss(d=2)], ids=["Lp", "H1"])
@pytest.mark.parametrize("name", MODELS)
def test_the_trainer_trains_and_saves(name: str, loss: Any, tmp_path: Path) -> None:
    model, x = made(name), loader(name).dataset[:]["x"]
    with torch.no_grad():
        before = float(loss(made(name)(x, y=x), x))
    trained(model, name, 6, training_loss=loss, save_every=1, save_dir=str(tmp_path))
    with torch.no_grad():
        assert float(loss(model.eval()(x, y=x), x)) < 0.97 * before
    again = ns.load(tmp_path / "model")
    assert torch.equal(again(x).reconstruction, model(x).reconstruction)
    assert same(type(model).from_checkpoint(tmp_path, "model"), model)


@pytest.mark.parametrize("name", MODELS)
def test_the_trainer_resumes(name: str, tmp_path: Path) -> None:
    """Bit for bit, but for the epoch of the checkpoint, which upstream makes once more."""
    whole, first, resumed = made(name), made(name), made(name, seed=1)
    trained(whole, name, 5)
    trained(first, name, 2, save_every=1, save_dir=tmp_path)
    assert not same(first, whole)
    trainer = trained(resumed, name, 4, resume_from_dir=tmp_path)
    assert trainer.start_epoch == 1  # when this fails, upstream no longer repeats it: then 5 epochs above are 4
    assert same(resumed, whole)


@pytest.mark.parametrize("name", MODELS)
def test_the_trainer_keeps_the_best_and_resumes_from_it(name: str, tmp_path: Path) -> None:
    """With neuralop's processor, which normalises input and target."""
    x = loader(name).dataset[:]["x"]
    normalizer = UnitGaussianNormalizer(dim=[0, 2, 3])
    normalizer.fit(5 * x + 2)
    processor = DefaultDataProcessor(in_normalizer=normalizer, out_normalizer=normalizer)
    batches: list[float] = []

    def watched(out: torch.Tensor, y: torch.Tensor, **sample: Any) -> torch.Tensor:
        value: torch.Tensor = LpLoss(d=2)(out, y)
        batches.append(float(value))
        return value

    arguments = {"test_loaders": {"test": loader(name)}, "eval_losses": {"l2": watched}, "save_best": "test_l2"}
    trained(made(name), name, 4, options={"data_processor": processor}, save_dir=tmp_path, **arguments)
    epochs = [sum(pair) / 8 for pair in zip(batches[::2], batches[1::2], strict=True)]
    assert len(set(epochs)) == 4
    best = ns.load(tmp_path / "best_model")
    trainer = Trainer(model=best, n_epochs=1, data_processor=processor)
    assert float(trainer.evaluate({"l2": LpLoss(d=2)}, loader(name), "test")["test_l2"]) == pytest.approx(min(epochs))
    resumed = load_training_state(tmp_path, "best_model", made(name, seed=1))[0]
    assert same(resumed, best)


@pytest.mark.parametrize("name", MODELS)
def test_mixed_precision_changes_nothing(name: str) -> None:
    """Autocast reaches the loss alone: the models run in full precision."""
    plain, mixed = made(name), made(name)
    trained(plain, name, 2)
    trained(mixed, name, 2, options={"mixed_precision": True})
    assert same(mixed, plain)


def test_the_incremental_trainer_takes_fno_and_tfno_alone() -> None:
    """It grows ``model.fno_blocks.convs[0].n_modes``; no model of another class can be handed to it."""
    with pytest.raises(AssertionError, match="designed to work with FNO or TFNO"):
        IncrementalFNOTrainer(model=made("saefno"), n_epochs=1, incremental_loss_gap=True)


def test_upstream_has_no_callbacks() -> None:
    """When this fails, it has them again: try them on our models."""
    assert importlib.util.find_spec("neuralop.training.callbacks") is None


def test_a_target_asks_for_the_reconstruction() -> None:
    model, x = made("saefno").eval(), torch.randn(2, 3, 12, 12)
    assert torch.equal(model(x, y=x), model(x).reconstruction)
    assert torch.equal(model(x=x, y=x), model(x).reconstruction)
