"""``neuralop-sae train``: one sparse autoencoder or several, on one process or on many."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pandas as pd
import torch
from pydantic import Field

from .. import checkpoint
from ..data.activations import load_activations
from ..layers.fourier import FourierBasis
from ..layers.spherical import SphericalBasis
from ..models.base import SAE, saes
from ..models.sfno import SAESFNO
from ..quickstart import check_device
from ..training import distributed, trainer
from ..training.history import TrainingHistory
from ..training.many import train_many
from ..training.statistics import Activations
from .command import Answer, Settings, command
from .logs import Log, OnLog, open_log
from .shown import frame_table
from .sources import stored

__all__ = ["train"]

_MAX_DEGREES = 16
#: Arguments of models that have flags, or follow from the activations.
_OWN = ("self", "in_channels", "n_concepts")


class TrainSettings(Settings):
    """Settings of ``train``."""

    activations: list[Path] = Field(
        description="Stores from 'capture', or fields (N, channels, *grid) in .safetensors or .npy files.",
        min_length=1,
        json_schema_extra={"positional": True},
    )
    output: Path = Field(Path("neuralop-sae-train"), description="Folder for the model, its history and its checkpoint.")
    site: list[str] | None = Field(None, description="Which sites of a store; all by default. Each gets a model.")
    grid: tuple[int, ...] | None = Field(None, description="Which grid of a store: --grid 32 --grid 32.")
    model: str | None = Field(
        None,
        description="SAEFNO, SAETFNO, SAESFNO, SAEPointwise, ...; by default SAESFNO for a store on the sphere, else SAEFNO.",
    )
    n_concepts: int = Field(256, description="Size of the dictionary.")
    k: list[int] | None = Field(None, description="Concepts on per sample: k of the concept rule. Each value gets a model.")
    k_local: list[int] | None = Field(None, description="Concepts expressed per point: k of the domain rule; as --k.")
    arguments: dict[str, Any] = Field(
        {}, description='Other arguments of the model, JSON: \'{"n_modes": [16, 16], "rank": 0.05}\'.'
    )
    training: trainer.TrainingConfig = Field(
        trainer.TrainingConfig(), description="Fields of TrainingConfig, JSON: '{\"n_epochs\": 5}'."
    )
    concept_parallel: int = Field(
        1, description="Processes that share the dictionary, under torchrun; the others share the batches."
    )
    resume: bool = Field(False, description="Go on from the checkpoints in the output folder.")
    overwrite: bool = Field(False, description="Train anew where the output folder holds a trained model.")
    log: Log | None = Field(None, description="Report to it too.")
    device: str = Field("cpu", description="cpu or cuda.")
    seed: int = Field(0, description="Of the dictionary's random start and the order of the fields.")

    def config(self) -> trainer.TrainingConfig:
        """How to train; a seed of its own goes before that of all."""
        own = "seed" in self.training.model_fields_set
        return self.training if own else self.training.model_copy(update={"seed": self.seed})

    def build(self, activations: Activations, k: int | None, k_local: int | None) -> SAE:
        """A model for activations; ValueError if it is none for the domain that they are on."""
        _, channels, *grid = activations[:1].shape
        basis = getattr(activations, "basis", None)
        sphere = basis if isinstance(basis, SphericalBasis) else None
        kind: Any = saes.get(self.model or ("SAEFNO" if sphere is None else "SAESFNO"))
        arguments = dict(self.arguments)
        if sphere is not None and kind is SAESFNO:
            arguments = {"grid": sphere.grid, "n_modes": _degrees(sphere, grid), **arguments}
        for name, default, value in (("concept_rule", "TopK", k), ("domain_rule", "SoftLocalTopK", k_local)):
            if value is not None:
                given = arguments.get(name, default)
                arguments[name] = {**(given if isinstance(given, Mapping) else {"name": given}), "k": value}
        _check_arguments(kind, arguments)
        torch.manual_seed(self.seed)
        sae: SAE = kind(in_channels=channels, n_concepts=self.n_concepts, **arguments)
        if sphere is not None and isinstance(sae.basis, FourierBasis):
            raise ValueError(
                f"the activations are on the sphere, on the grid {sphere.grid!r}, and this {kind.__name__} is on a periodic "
                f'box: give --model SAESFNO, or to SAEPointwise --arguments \'{{"grid": "{sphere.grid}"}}\''
            )
        return sae


@command(TrainSettings, interrupted="the last checkpoint is whole: go on with --resume")
def train(settings: TrainSettings) -> Answer:
    """Train sparse autoencoders on activations, on one process or on many.

    Several sites, --k or --k-local train one model for each combination, in one pass over the activations; the output folder
    then has a folder for each. After Ctrl-C or a crash, --resume goes on to the same bits.

    neuralop-sae train acts.zarr --site fno_blocks.2 --k-local 4 --k-local 8 --arguments '{"n_modes": [16, 16]}'

    torchrun --nproc-per-node 2 -m neuralop_sae.cli train acts.safetensors --concept-parallel 2
    """
    with distributed.start(settings.concept_parallel, settings.device) as parallel:
        if isinstance(parallel, distributed.Mesh):
            signal.signal(signal.SIGTERM, _ended_by_torchrun)
        check_device(settings.device)
        activations = _activations(settings)
        device = parallel.device if isinstance(parallel, distributed.Mesh) else settings.device
        site_of, models = {}, {}
        none: list[int | None] = [None]
        for site, k, k_local in product(activations, settings.k or none, settings.k_local or none):
            name = _name(site if len(activations) > 1 else "", k, k_local) or site
            site_of[name] = site
            models[name] = settings.build(activations[site], k, k_local).to(device)
        log = settings.log if parallel.is_main else None
        with (
            _folder(settings, list(models)),
            open_log(log, settings.output, settings.model_dump(mode="json")) as on_log,
        ):
            if len(models) == 1:
                ((name, sae),) = models.items()
                return _train_one(settings, sae, activations[site_of[name]], parallel, on_log)
            return _train_many(settings, models, activations, site_of, parallel, on_log)


@contextmanager
def _folder(settings: TrainSettings, names: Sequence[str]) -> Iterator[None]:
    """The folder of the output, which is gone again where nothing was written to it; ValueError if a finished run is there
    that is neither to be resumed nor to be overwritten."""
    folder = settings.output
    finished = [path for path in (folder / "sae", *(folder / name / "sae" for name in names)) if path.exists()]
    if finished and not settings.resume and not settings.overwrite:
        raise ValueError(
            f"{finished[0].parent} holds a trained model: give another --output, --resume to go on with it, or --overwrite"
        )
    is_new = not folder.exists()
    checkpoint.check_writable(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            if is_new:
                folder.rmdir()


def _train_one(
    settings: TrainSettings, sae: SAE, activations: Activations, parallel: distributed.Single, on_log: OnLog | None
) -> Answer:
    history = trainer.train(
        sae,
        activations,
        settings.config(),
        checkpoint_dir=settings.output,
        resume=settings.resume,
        parallel=parallel,
        on_log=on_log and partial(on_log, ""),
    )
    trainer.save_pretrained(sae, settings.output / "sae", parallel)
    if parallel.is_main:
        n_steps = max(1, round(history.rows[-1]["step"]))
        traffic = {name: n_bytes / n_steps for name, n_bytes in parallel.traffic.items()}
        checkpoint.write_json(settings.output / "history.json", {"rows": history.rows, "bytes_per_step": traffic})
    return _answer({settings.output: history}) if parallel.is_main else Answer({})


def _train_many(
    settings: TrainSettings,
    models: dict[str, SAE],
    activations: Mapping[str, Activations],
    site_of: dict[str, str],
    parallel: distributed.Single,
    on_log: OnLog | None,
) -> Answer:
    if isinstance(parallel, distributed.Mesh):
        raise ValueError(f"several models ({', '.join(models)}) are trained on one process: leave out torchrun, or train one")
    histories = train_many(
        models,
        activations,
        settings.config(),
        sites=site_of,
        checkpoint_dir=settings.output,
        resume=settings.resume,
        on_log=on_log,
    )
    for name, history in histories.items():
        models[name].save_pretrained(settings.output / name / "sae")
        checkpoint.write_json(settings.output / name / "history.json", {"rows": history.rows, "bytes_per_step": {}})
    return _answer({settings.output / name: history for name, history in histories.items()})


def _activations(settings: TrainSettings) -> dict[str, Activations]:
    """Activations by site; a file is a site of its name."""
    found: dict[str, Activations] = {}
    for path in settings.activations:
        new: Mapping[str, Activations]
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}, and no store of 'capture'")
        if path.is_dir():
            new = stored(path, settings.site, settings.grid)
        elif settings.site or settings.grid:
            raise ValueError(f"{path} holds the activations of one site: --site and --grid are for stores")
        else:
            new = {path.stem: load_activations(path)}
        again = sorted(found.keys() & new.keys())
        if again:
            raise ValueError(f"there are several activations of {', '.join(again)}: train on them one after the other")
        found |= new
    return found


def _check_arguments(kind: type[SAE], arguments: Mapping[str, Any]) -> None:
    """ValueError if a model has no such arguments, or needs one that is not there."""
    parameters: dict[str, inspect.Parameter] = {}
    for owner in kind.__mro__:
        if "__init__" in vars(owner):
            own = inspect.signature(vars(owner)["__init__"]).parameters
            parameters = {**own, **parameters}
            if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in own.values()):
                break
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    known = {name: each for name, each in parameters.items() if each.kind not in several and name not in _OWN}
    unknown = sorted(arguments.keys() - known.keys())
    needed = [name for name, each in known.items() if each.default is inspect.Parameter.empty and name not in arguments]
    if unknown or needed:
        fault = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(needed)}"
        rules = " (--k and --k-local set rules)" if {"concept_rule", "domain_rule"} & set(unknown) else ""
        raise ValueError(f"--arguments: {kind.__name__} {fault}{rules}; it takes: {', '.join(sorted(known))}")


def _degrees(basis: SphericalBasis, grid: Sequence[int]) -> tuple[int, int]:
    """Modes of a model on the sphere: all degrees that the grid holds, at most 16."""
    held = basis.resolved_by(grid).n_modes[0]
    return min(held, _MAX_DEGREES), 2 * min(held, _MAX_DEGREES)


def _name(site: str, k: int | None, k_local: int | None) -> str:
    parts = (site, "" if k is None else f"k{k}", "" if k_local is None else f"k_local{k_local}")
    return "-".join(part for part in parts if part)


def _answer(histories: Mapping[Path, TrainingHistory]) -> Answer:
    rows = [{"folder": str(folder), **history.rows[-1]} for folder, history in histories.items()]
    return Answer({"models": rows}, [frame_table("Trained, in the last steps", pd.DataFrame(rows))])


def _ended_by_torchrun(_: int, __: FrameType | None) -> NoReturn:
    raise ConnectionError("torchrun ended this process, as it does when another one has died; go on with --resume")
