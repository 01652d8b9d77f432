"""The whole way once: data, an operator trained by neuralop, a sparse autoencoder on it, what its concepts are."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from neuralop import LpLoss, Trainer
from neuralop.data.datasets.tensor_dataset import TensorDataset
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.models import FNO
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from . import checkpoint
from .analysis import figures
from .analysis.evaluate import code_consistency, evaluate, restrict
from .analysis.faithfulness import faithfulness
from .analysis.report import report
from .analysis.summaries import codes_of_samples, strongest_concepts
from .attach.capture import capture, eval_mode
from .data.darcy import DarcySplit, darcy_flow, load_darcy
from .layers.concept_rules import All
from .layers.domain_rules import SoftLocalTopK
from .metrics import pearson
from .models.fno import SAEFNO
from .training.trainer import TrainingConfig, TrainingHistory, train


class QuickstartConfig(BaseModel):
    """Sizes of the quickstart; the defaults take under five minutes on two cores.

    Parameters
    ----------
    n_train, n_test : int
        Samples of the generated data (``--data-root`` brings its own).
    resolutions : (int, int)
        Grid of training and test, and the finer one on which codes are compared.
    hidden_channels, n_layers, operator_epochs : int
        Of the operator.
    block : int
        The block whose output is taken apart.
    n_concepts, concepts_per_point : int
        Dictionary size, and how many concepts may be expressed at a point.
    sae_epochs : int
        Of the autoencoder, for 48 x 48 points. Coarser grids, on which a step costs less, get up to three times as many.
    seed : int
        Of everything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    n_train: int = Field(800, ge=2)
    n_test: int = Field(100, ge=1)
    resolutions: tuple[int, int] = (48, 96)
    hidden_channels: int = Field(32, ge=1)
    n_layers: int = Field(4, ge=1)
    operator_epochs: int = Field(8, ge=1)
    block: int = Field(2, ge=0)
    n_concepts: int = Field(64, ge=1)
    concepts_per_point: int = Field(4, ge=1)
    sae_epochs: int = Field(10, ge=1)
    seed: int = 0


@dataclass(frozen=True)
class Problem:
    """Data of the run: `train` and `coarse` on one grid, `fine` the samples of `coarse` on a finer one."""

    name: str
    train: DarcySplit
    coarse: DarcySplit
    fine: DarcySplit


def quickstart(
    output: str | Path,
    *,
    data_root: str | Path | None = None,
    device: str = "cpu",
    config: QuickstartConfig | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run everything and write it to a folder.

    Parameters
    ----------
    output : path
        Gets ``metrics.json``, ``report.html``, ``figures/``, ``sae/`` and ``fno/``.
    data_root : path, optional
        Folder with neuralop's own Darcy files, instead of generated data.
    device : str
        Where the models run.
    config : QuickstartConfig, optional
        Sizes.
    cache_dir : path, optional
        Where generated data are kept; ``output/data`` by default.
    progress : bool
        Whether to show progress bars.
    say : callable
        Gets one line per stage.

    Returns
    -------
    dict
        The metrics that were written.

    Raises
    ------
    OSError, ValueError
        If the output folder cannot be written or the device cannot be used, before anything is computed.
    """
    config = config or QuickstartConfig()
    started = time.perf_counter()
    output = Path(output)
    checkpoint.check_writable(output)
    check_device(device)
    torch.manual_seed(config.seed)

    say("1/5  Darcy flow: coefficient fields and solutions")
    problem = darcy_problem(config, data_root, Path(cache_dir) if cache_dir else output / "data", progress)
    say(f"2/5  an FNO on {len(problem.train.x)} samples, by neuralop's Trainer")
    operator, processor = train_operator(config, problem, device, progress)
    site = f"fno_blocks.{min(config.block, config.n_layers - 1)}"
    say(f"3/5  activations of {site!r}")
    splits = {"train": problem.train, "coarse": problem.coarse, "fine": problem.fine}
    activations = {
        name: capture(operator, site, {"x": split.x, "y": split.y}, data_processor=processor) for name, split in splits.items()
    }
    say(f"4/5  an SAEFNO of {config.n_concepts} concepts")
    sae, history = _train_autoencoder(config, activations["train"], device, progress)
    say("5/5  what its concepts are")
    metrics: dict[str, Any] = {
        **evaluate(sae, activations["coarse"]),
        **faithfulness(operator, site, sae, {"x": problem.coarse.x, "y": problem.coarse.y}, data_processor=processor),
        **code_consistency(sae, activations["coarse"], activations["fine"]),
    }
    metrics["activation_consistency"] = pearson(
        activations["coarse"], restrict(activations["fine"], activations["coarse"].shape[2:], sae.basis)
    )
    metrics["fno_relative_l2"] = metrics["loss_clean"]
    metrics |= {"site": site, "seed": config.seed, "data": problem.name}
    metrics["seconds"] = time.perf_counter() - started
    with checkpoint.folder_atomically(output / "fno") as folder:
        operator.save_checkpoint(folder, "fno")
    sae.save_pretrained(output / "sae")
    _draw(output, operator, processor, sae, activations, problem, metrics, history)
    metrics["seconds"] = time.perf_counter() - started
    checkpoint.write_json(output / "metrics.json", metrics)
    return metrics


def check_device(device: str) -> None:
    """ValueError that names the device if nothing can be put on it."""
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def darcy_problem(config: QuickstartConfig, data_root: str | Path | None, cache_dir: Path, progress: bool) -> Problem:
    """Generated Darcy flow, or neuralop's own files from `data_root`."""
    if data_root is not None:
        training, tests = load_darcy(data_root)
        coarse, fine = min(tests), max(tests)
        return Problem(f"neuralop's Darcy files, {coarse} and {fine}", training, tests[coarse], tests[fine])
    coarse, fine = config.resolutions
    # Samples depend on (seed, number): data of other seeds are other samples, drawn with the run's own seed.
    splits = darcy_flow(
        config.n_train + config.n_test, (coarse, fine), seed=config.seed, cache_dir=cache_dir, progress=progress
    )
    n = config.n_train
    parts = {grid: (DarcySplit(s.x[:n], s.y[:n]), DarcySplit(s.x[n:], s.y[n:])) for grid, s in splits.items()}
    return Problem(f"generated Darcy flow, {coarse} and {fine}", parts[coarse][0], parts[coarse][1], parts[fine][1])


def train_operator(
    config: QuickstartConfig, problem: Problem, device: str, progress: bool
) -> tuple[FNO, DefaultDataProcessor]:
    """An FNO as neuralop's tutorials train it: normalised fields, AdamW, relative L2."""
    size = problem.train.x.shape[-1]
    model = FNO(
        n_modes=(min(16, size // 2),) * 2,
        in_channels=1,
        out_channels=1,
        hidden_channels=config.hidden_channels,
        n_layers=config.n_layers,
        lifting_channel_ratio=2,
        projection_channel_ratio=2,
    )
    normalizers = []
    for values in (problem.train.x, problem.train.y):
        normalizer = UnitGaussianNormalizer(dim=[0, 2, 3])
        normalizer.fit(values)
        normalizers.append(normalizer)
    processor = DefaultDataProcessor(*normalizers)
    loader = DataLoader(TensorDataset(problem.train.x, problem.train.y), batch_size=20, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.operator_epochs)
    trainer = Trainer(model=model, n_epochs=config.operator_epochs, device=device, data_processor=processor, verbose=False)
    n_steps = len(loader) * config.operator_epochs
    with warnings.catch_warnings(), tqdm(total=n_steps, desc="operator", unit="step", disable=not progress) as bar:

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


def _train_autoencoder(
    config: QuickstartConfig, activations: Tensor, device: str, progress: bool
) -> tuple[SAEFNO, TrainingHistory]:
    sae = SAEFNO(
        in_channels=activations.shape[1],
        n_concepts=config.n_concepts,
        n_modes=(9, 9),
        concept_rule=All(),
        domain_rule=SoftLocalTopK(config.concepts_per_point),
    ).to(device)
    n_epochs = config.sae_epochs * max(1, min(3, round((48 / activations.shape[-1]) ** 2)))
    training = TrainingConfig(n_epochs=n_epochs, learning_rate=6e-3, seed=config.seed)
    return sae, train(sae, activations, training, progress=progress)


def _draw(
    output: Path,
    operator: FNO,
    processor: DefaultDataProcessor,
    sae: SAEFNO,
    activations: dict[str, Tensor],
    problem: Problem,
    metrics: dict[str, Any],
    history: TrainingHistory,
) -> None:
    """Figures one by one, and the report."""
    coarse, fine = activations["coarse"], activations["fine"]
    samples = list(range(min(4, len(coarse))))
    grid = tuple(coarse.shape[2:])
    codes = codes_of_samples(sae, coarse, samples)
    codes_fine = codes_of_samples(sae, fine, samples[:1])
    concepts = [int(c) for c in strongest_concepts(codes, sae, min(6, sae.n_concepts))[0]]
    coefficient, solution = problem.coarse.x[0], problem.coarse.y[0]
    prediction = _predict(operator, processor, problem.coarse.x[:1], sae.mean.device)[0]
    with torch.no_grad():
        reconstruction = sae(coarse[:1].to(sae.mean.device)).reconstruction.cpu()
    fields = {
        "coefficient a": coefficient,
        "solution u": solution,
        "the FNO's u": prediction,
        f"activation of {metrics['site']}": coarse[0],
    }
    drawn = {
        "fields": figures.fields_figure(fields, shared=[("solution u", "the FNO's u")]),
        "code_maps": figures.code_maps_figure(codes, concepts, samples, problem.coarse.x[: len(samples)]),
        "atoms": figures.atoms_figure(sae, concepts, grid),
        "spectra": figures.spectra_figure(sae, concepts),
        "reconstruction": figures.reconstruction_figure(coarse[:1], reconstruction),
        "resolution": figures.resolution_figure(codes.keep(codes.sample == 0), codes_fine, concepts[:3], 0),
        "dominance": figures.dominance_figure(codes, sae, concepts, samples, problem.coarse.x[: len(samples)]),
        "training": figures.history_figure(history.rows),
    }
    for name, figure in drawn.items():
        draw = partial(figure.savefig, format="png", dpi=160)
        checkpoint.write_atomically(output / "figures" / f"{name}.png", draw)
    report(
        sae,
        coarse,
        path=output / "report.html",
        title=f"Concepts of an FNO on Darcy flow: {metrics['site']}",
        inputs=problem.coarse.x,
        metrics=metrics,
        history=history.rows,
        high_resolution=fine,
        model_card={
            "operator": _describe(operator),
            "data": problem.name,
            "site": metrics["site"],
            "seed": metrics["seed"],
            "command": "neuralop-sae quickstart",
        },
    )


def _predict(operator: FNO, processor: DefaultDataProcessor, x: Tensor, device: torch.device) -> Tensor:
    with torch.no_grad(), eval_mode(operator, processor):
        sample = processor.preprocess({"x": x, "y": x})
        prediction, _ = processor.postprocess(operator(sample["x"].to(device)), sample)
    return prediction.cpu()


def _describe(operator: FNO) -> str:
    """One line about an operator."""
    n_parameters = sum(parameter.numel() for parameter in operator.parameters())
    return f"FNO, {operator.n_layers} layers, {operator.hidden_channels} channels, {n_parameters:,} parameters"
