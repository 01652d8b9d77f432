"""The stages of the quickstart, and what they write."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint
from ..analysis.rollouts import rollout_errors, rollout_figure
from ..attach.capture import capture
from ..models.spectral import SpectralSAE
from ..training.trainer import TrainingConfig, TrainingHistory, train
from .flows import Flow
from .operators import train_operator
from .problems import Darcy, Problem
from .result import Result


def quickstart(
    output: str | Path,
    problem: Problem | None = None,
    *,
    device: str = "cpu",
    cache_dir: str | Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run everything and write it to a folder.

    Parameters
    ----------
    output : path
        Gets ``metrics.json``, ``report.html``, ``figures/``, ``sae/`` and the operator in ``fno/`` or ``sfno/``.
    problem : Problem, optional
        What to run on, with its sizes: :class:`Darcy` (default), :class:`ShallowWater` or :class:`NavierStokes`.
    device : str
        Where the models run.
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
    problem = problem or Darcy()
    started = time.perf_counter()
    output = Path(output)
    checkpoint.check_writable(output)
    cache_dir = Path(cache_dir) if cache_dir else output / "data"
    number = count(1)

    def stage(line: str) -> None:
        say(f"{next(number)}/5  {line}")

    result = prepare(problem, cache_dir=cache_dir, device=device, progress=progress, say=stage)
    splits, operator, sae = result.splits, result.operator, result.sae
    with checkpoint.folder_atomically(output / problem.operator_name.lower()) as folder:
        operator.save_checkpoint(folder, problem.operator_name.lower())  # type: ignore[operator]
    sae.save_pretrained(output / "sae")
    stage("what its concepts are")
    metrics: dict[str, Any] = {**result.metrics(), "problem": problem.key, "site": problem.site, "seed": problem.seed}
    metrics["data"] = splits.name
    drawn = result.figures()
    if isinstance(problem, Flow):
        errors = rollout_errors(operator, problem.site, sae, problem.futures(splits.train, cache_dir, progress).to(device))
        metrics |= {f"rollout_{which}": float(values[-1]) for which, values in errors.items()}
        drawn["rollout"] = rollout_figure(errors, problem.times(), problem.time_unit)
    metrics["seconds"] = time.perf_counter() - started
    for stem, figure in drawn.items():
        draw = partial(figure.savefig, format="png", dpi=160)
        checkpoint.write_atomically(output / "figures" / f"{stem}.png", draw)
    result.report(output / "report.html", metrics)
    metrics["seconds"] = time.perf_counter() - started
    checkpoint.write_json(output / "metrics.json", metrics)
    return metrics


def prepare(
    problem: Problem,
    *,
    cache_dir: str | Path,
    device: str = "cpu",
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Result:
    """Data, an operator trained on them, and an autoencoder of its activations, from nothing.

    Parameters
    ----------
    problem : Problem
        What to prepare, with its sizes and its seed.
    cache_dir : path
        Where generated data are kept.
    device : str, optional
        Where the models run.
    progress : bool, optional
        Whether to show progress bars.
    say : callable, optional
        Gets one line per stage.

    Returns
    -------
    Result
        ``splits`` (data: ``train``, and held out ``coarse`` and ``fine``), ``operator`` and its data ``processor``,
        ``activations`` (from the name of a split to ``(N, channels, *grid)``), ``sae``, ``history``; with ``metrics()`` on
        held-out data.

    Raises
    ------
    ValueError
        If the device cannot be used, before anything is computed.
    """
    check_device(device)
    torch.manual_seed(problem.seed)
    say(f"{problem.title}: data")
    splits = problem.splits(Path(cache_dir), progress)
    say(f"an {problem.operator_name} on {len(splits.train.x)} samples, by neuralop's Trainer")
    operator, processor = train_operator(problem, splits.train, device, progress)
    say(f"activations of {problem.site!r}")
    parts = {"train": splits.train, "coarse": splits.coarse, "fine": splits.fine}
    activations = {
        part: capture(operator, problem.site, {"x": split.x, "y": split.y}, data_processor=processor)
        for part, split in parts.items()
    }
    sae = problem.autoencoder().to(device)
    say(f"an {type(sae).__name__} of {problem.n_concepts} concepts")
    history = _train_autoencoder(problem, sae, activations["train"], progress)
    return Result(problem, splits, operator, processor, activations, sae, history)


def check_device(device: str) -> None:
    """ValueError that names the device if nothing can be put on it."""
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _train_autoencoder(problem: Problem, sae: SpectralSAE, activations: Tensor, progress: bool) -> TrainingHistory:
    # A step on a coarser grid than 48 x 48 costs less: up to three times as many.
    n_epochs = problem.sae_epochs * max(1, min(3, round((48 / activations.shape[-1]) ** 2)))
    config = TrainingConfig(n_epochs=n_epochs, learning_rate=6e-3, seed=problem.seed)
    return train(sae, activations, config, progress=progress)
