"""Several sparse autoencoders in one pass over the activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ..data.activations import opened
from ..data.store import ActivationStore
from ..models.base import SAE
from .config import TrainingConfig
from .history import TrainingHistory
from .losses import Loss
from .run import Run
from .statistics import Activations
from .together import begin, go

_SHARED = ("n_epochs", "batch_size", "seed")


def train_many(
    saes: Mapping[str, SAE],
    activations: Activations | ActivationStore | Mapping[str, Activations],
    config: TrainingConfig | Mapping[str, TrainingConfig] | None = None,
    *,
    sites: Mapping[str, str] | None = None,
    loss: Loss | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_log: Callable[[str, dict[str, float]], object] | None = None,
) -> dict[str, TrainingHistory]:
    """Train several sparse autoencoders in place, each as :func:`train` would alone, bit for bit, and read each batch once.

    Parameters
    ----------
    saes : mapping of str to SAE
        The models by name.
    activations : Tensor, store or mapping
        ``(N, channels, *grid)`` for all models, see :class:`~neuralop_sae.training.statistics.Activations`; or those of
        several sites by name, all of the same N samples, as :func:`neuralop_sae.capture` gives them.
    config : TrainingConfig or mapping, optional
        How; by name for models that are trained differently. ``n_epochs``, ``batch_size`` and ``seed`` are those of all.
    sites : mapping of str to str, optional
        The site of each model by its name, where there are several sites; by default models are named like their sites.
    loss : callable, optional
        As for :func:`train`, of all models.
    checkpoint_dir : path, optional
        Folder for the folders of checkpoints, one for each model, by its name.
    resume : bool
        Go on from the checkpoints there. A model that has none begins.
    progress : bool
        Whether to show a progress bar.
    on_log : callable, optional
        Gets the name of a model and a copy of each row of its history when it is logged.

    Returns
    -------
    dict of str to TrainingHistory
        By name. The time to read a batch counts for every model that had it.

    Raises
    ------
    ValueError
        As :func:`train`, and if names, sites, numbers of samples or configurations do not fit together.
    TypeError
        As :func:`train`.
    FloatingPointError
        If the parameters of one model, which is named, become NaN or Inf. All stop, and each is left in its last good state:
        its last checkpoint, if there is a folder for them, from which the others go on without it.

    Examples
    --------
    >>> import torch, neuralop_sae as ns
    >>> activations = {"fno_blocks.1": torch.randn(16, 4, 12, 12), "fno_blocks.2": torch.randn(16, 4, 12, 12)}
    >>> saes = {name: ns.SAEFNO(in_channels=4, n_concepts=8, n_modes=(5, 5)) for name in activations}
    >>> histories = train_many(saes, activations, ns.TrainingConfig(n_epochs=1, batch_size=8), progress=False)
    >>> list(histories)
    ['fno_blocks.1', 'fno_blocks.2']
    """
    configs = _configs(saes, config)
    site_of, stores = _sites(saes, activations, sites)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    runs = {
        name: Run(
            sae,
            stores[site_of[name]],
            configs[name],
            folder and folder / name,
            loss=loss,
            name=name,
            on_log=on_log and partial(on_log, name),
        )
        for name, sae in saes.items()
    }
    saved = [run for run in runs.values() if resume and run.is_saved]
    for run in saved:
        run.load()
    by_site = [[run for name, run in runs.items() if site_of[name] == site] for site in stores]
    new = ([run for run in site if run not in saved] for site in by_site)
    begin([site for site in new if site])
    go(by_site, progress)
    return {name: run.history for name, run in runs.items()}


def _configs(
    saes: Mapping[str, SAE], config: TrainingConfig | Mapping[str, TrainingConfig] | None
) -> dict[str, TrainingConfig]:
    """The configuration of each model, checked."""
    if not saes:
        raise ValueError("there are no models to train")
    if len({id(sae) for sae in saes.values()}) < len(saes):
        raise ValueError(f"one model has several of the names {list(saes)}; train a copy")
    configs = dict(config) if isinstance(config, Mapping) else dict.fromkeys(saes, config or TrainingConfig())
    _check_names("config", configs, saes)
    for setting in _SHARED:
        found = {name: getattr(each, setting) for name, each in configs.items()}
        if len(set(found.values())) > 1:
            raise ValueError(f"models that share their batches have one {setting}, got {found}; give all the same")
    return configs


def _sites(
    saes: Mapping[str, SAE],
    activations: Activations | ActivationStore | Mapping[str, Activations],
    sites: Mapping[str, str] | None,
) -> tuple[dict[str, str], dict[str, Activations]]:
    """The site of each model and the activations of each site, checked."""
    if not isinstance(activations, Mapping):
        if sites is not None:
            raise ValueError("sites name entries of activations, which are of one site: leave sites out, or give a mapping")
        return dict.fromkeys(saes, ""), {"": opened(activations)}
    site_of = {name: name for name in saes} if sites is None else dict(sites)
    _check_names("sites", site_of, saes)
    unknown = sorted(set(site_of.values()) - set(activations))
    if unknown:
        raise ValueError(
            f"there are activations of the sites {sorted(activations)}, not of {unknown}; name one of them in sites"
        )
    stores = {site: opened(activations[site]) for site in dict.fromkeys(site_of.values())}
    lengths = {site: len(store) for site, store in stores.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"activations of several sites are of the same samples, got {lengths} of them")
    return site_of, stores


def _check_names(what: str, found: Mapping[str, object], saes: Mapping[str, SAE]) -> None:
    if found.keys() != saes.keys():
        raise ValueError(f"{what} is by the names of the models, {sorted(saes)}, got {sorted(found)}")
