"""Operators of the quickstart: trained by neuralop's Trainer, and applied to their own output."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from neuralop import LpLoss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..attach.hooks import eval_mode
from .problems import Problem, Split


def data_processor(train: Split, normalize: bool) -> DefaultDataProcessor:
    """neuralop's, with the statistics of the training data for data that are not normalised yet."""
    if not normalize:
        return DefaultDataProcessor()
    normalizers = []
    for values in (train.x, train.y):
        normalizer = UnitGaussianNormalizer(dim=[0, 2, 3])
        normalizer.fit(values)
        normalizers.append(normalizer)
    return DefaultDataProcessor(*normalizers)


def train_operator(
    problem: Problem, train: Split, device: str = "cpu", progress: bool = True
) -> tuple[nn.Module, DefaultDataProcessor]:
    """A problem's operator, trained as neuralop's users do: its Trainer, AdamW, relative L2."""
    model, n_epochs = problem.operator(train.x.shape[2:]), problem.operator_epochs
    processor = data_processor(train, normalize=not problem.normalized)
    loader = DataLoader(TensorDataset(train.x, train.y), batch_size=problem.batch_size, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs)
    trainer = Trainer(model=model, n_epochs=n_epochs, device=device, data_processor=processor, verbose=False)
    bar = tqdm(total=len(loader) * n_epochs, desc="operator", unit="step", disable=not progress)
    with warnings.catch_warnings(), bar:

        def advance(*_: Any) -> None:
            bar.update()

        optimizer.register_step_post_hook(advance)
        # The Trainer hands the whole batch to the model, and FNO warns of the target in it.
        warnings.filterwarnings("ignore", message=r"FNO.forward\(\) received unexpected keyword")
        trainer.train(loader, {}, optimizer, scheduler, training_loss=_relative_l2)
    return model.eval(), processor


def _relative_l2(prediction: Tensor, y: Tensor, **_: Tensor) -> Tensor:
    """neuralop's loss, which warns of the batch's other entries that the Trainer hands to it."""
    return LpLoss(d=2, p=2)(prediction, y)


@torch.no_grad()
def predict(model: nn.Module, processor: DefaultDataProcessor, x: Tensor, device: torch.device) -> Tensor:
    """What an operator makes of inputs ``(B, channels, *grid)`` in the units of the data."""
    with eval_mode(model, processor):
        sample = processor.preprocess({"x": x, "y": x})
        prediction, _ = processor.postprocess(model(sample["x"].to(device)), sample)
    return prediction.cpu()
