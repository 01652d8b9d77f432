"""What paths and names on the command line stand for: operators, inputs, activations, fields."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn

from .. import hub
from ..attach.checkpoints import load_operator, load_weights, read_torch
from ..checkpoint import read_tensors
from ..data.activations import load_activations
from ..data.extras import import_extra
from ..data.labelled import LabelledFields, from_xarray
from ..data.labels import Labels
from ..data.store import ActivationStore, StoredActivations
from ..models.base import SAE
from ..quickstart import check_device
from .command import Settings

__all__ = [
    "ActivationSettings",
    "InputSettings",
    "LabelSettings",
    "OperatorSettings",
    "SAESettings",
    "activations_of",
    "stored",
]

_INPUTS = (
    "Inputs of the operator: .safetensors, .npz or .pt with tensors by name, 'x' being the input and 'y' the target; .npy; "
    "NetCDF (.nc) or .zarr; or 'module:function', which gives a tensor, batches or a data set."
)


class Fields(NamedTuple):
    """What a file says of samples: numbers ``(N,)`` and fields ``(N, *grid)`` by name; when each was, and of which trajectory;
    and the lengths of the periodic box."""

    values: dict[str, Tensor]
    labels: Labels = Labels()
    lengths: tuple[float, ...] | None = None


class OperatorSettings(Settings):
    """Which operator."""

    model: str | None = Field(
        None,
        description="The operator: a checkpoint of neuralop (its folder, or folder/name where it holds several), or "
        "'module:function', as in neuralop.models:FNO.",
    )
    model_arguments: dict[str, Any] = Field({}, description="Arguments of the function, JSON: '{\"n_modes\": [16, 16]}'.")
    weights: Path | None = Field(
        None, description="Weights for what the function makes: .safetensors, or a state dict in .pt."
    )
    device: str = Field("cpu", description="Where models run: cpu, cuda, ...")

    def operator(self) -> nn.Module:
        """The operator, in eval mode."""
        check_device(self.device)
        if self.model is None:
            raise ValueError("model is missing: give --model, a checkpoint of neuralop or 'module:function'")
        if ":" not in self.model or Path(self.model).exists():
            if self.model_arguments or self.weights:
                raise ValueError(f"{self.model} says how it is made: leave out --model-arguments and --weights")
            return load_operator(self.model, device=self.device)
        made = imported(self.model)(**self.model_arguments)
        if not isinstance(made, nn.Module):
            raise TypeError(f"{self.model} must give an operator, a torch.nn.Module; got {type(made).__name__}")
        if self.weights is not None:
            load_weights(made, self.weights)
        return made.to(self.device).eval()


class LabelSettings(Settings):
    """Which dimensions of NetCDF or Zarr count samples."""

    time_dim: str | None = Field(
        None, description="Of NetCDF or Zarr: the dimension of time; by default time, or valid_time as in ERA5."
    )
    trajectory_dim: str | None = Field(
        None, description="Of NetCDF or Zarr: the dimension that counts trajectories, such as member."
    )

    def labelled(self, path: Path, variables: Sequence[str] | None = None) -> LabelledFields:
        """The fields of such a file."""
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
        xr = import_extra("xarray")
        dataset = xr.open_zarr(path) if path.suffix == ".zarr" else xr.open_dataset(path)
        return from_xarray(dataset, variables, time_dim=self.time_dim, trajectory=self.trajectory_dim)

    def read_fields(self, path: Path) -> Fields:
        """Fields of a ``.safetensors``, ``.npz``, ``.pt``, ``.nc`` or ``.zarr``, with what else the file has."""
        if path.suffix in (".nc", ".zarr"):
            labelled = self.labelled(path)
            values = dict(zip(labelled.channels, labelled.tensor().unbind(1), strict=True))
            return Fields(values, Labels.of(labelled.time, labelled.trajectory, len(labelled)), labelled.lengths)
        return Fields({name or path.stem: tensor for name, tensor in _tensors(path).items()})


class InputSettings(LabelSettings, OperatorSettings):
    """An operator and what it runs on."""

    inputs: str | None = Field(None, description=_INPUTS)
    variables: list[str] | None = Field(None, description="Of NetCDF or Zarr: which, in the order of the channels.")
    data_processor: str | None = Field(
        None, description="'module:function' that gives neuralop's data processor, which prepares the inputs."
    )
    batch_size: int = Field(16, ge=1, description="Samples at a time.")

    def read_inputs(self) -> Any:
        """What `capture` and `ActivationStore.write` take."""
        if self.inputs is None:
            raise ValueError("inputs are missing: give --inputs, a file or 'module:function'")
        path = Path(self.inputs)
        if ":" in self.inputs and not path.exists():
            return imported(self.inputs)()
        if path.suffix in (".nc", ".zarr"):
            return self.labelled(path, self.variables)
        found = _tensors(path)
        return found if len(found) > 1 else next(iter(found.values()))

    def processor(self) -> Any:
        """The data processor, if one is named."""
        return None if self.data_processor is None else imported(self.data_processor)()


class ActivationSettings(Settings):
    """Which activations."""

    activations: Path = Field(description="A store from 'capture', or fields (N, channels, *grid) in .safetensors or .npy.")
    site: str | None = Field(None, description="Which site of a store, if it has several; where those of a file are from.")
    grid: tuple[int, ...] | None = Field(None, description="Which grid of a store: --grid 32 --grid 32.")

    def read_activations(self) -> Tensor | StoredActivations:
        """A tensor, or activations that are read when they are asked for."""
        return activations_of(self.activations, self.site, self.grid)


class SAESettings(Settings):
    """Which sparse autoencoder."""

    sae: str = Field(description="Folder of the sparse autoencoder, or 'user/name' on the Hugging Face Hub.")
    revision: str | None = Field(None, description="Which commit, tag or branch on the hub.")

    def load(self, device: str = "cpu") -> SAE:
        """The model, in eval mode."""
        check_device(device)
        if not Path(self.sae).exists():
            if not hub.is_name(self.sae):
                raise FileNotFoundError(
                    f"there is no folder {self.sae}: --sae is a folder that 'train' or save_pretrained wrote, or 'user/name' "
                    "of a model on the Hugging Face Hub"
                )
            Console(stderr=True).print(f"there is no folder {self.sae}; asking the Hugging Face Hub for it", markup=False)
        return hub.pull(self.sae, revision=self.revision, device=device)


def imported(name: str) -> Any:
    """What ``module:attribute`` names; modules of the working folder are found too."""
    module_name, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{name!r}: there is no module {error.name!r} in the working folder or among what is installed"
        ) from error
    if not callable(getattr(module, attribute, None)):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{name!r}: {module_name} has no function {attribute!r}; it has: {', '.join(known[:20]) or 'none'}")
    return getattr(module, attribute)


def activations_of(path: Path, site: str | None, grid: tuple[int, ...] | None) -> Tensor | StoredActivations:
    """The activations of a file, or of one site and one grid of a store."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}, and no store of 'capture'")
    if not path.is_dir():
        if grid is not None:
            raise ValueError(f"{path} holds activations on one grid: leave out --grid or --fine-grid, which are for stores")
        return load_activations(path)
    (found,) = stored(path, site and [site], grid, one=True).values()
    return found


def stored(
    path: Path, sites: Sequence[str] | None, grid: tuple[int, ...] | None, one: bool = False
) -> dict[str, StoredActivations]:
    """Activations of a store by site, all sites by default; ValueError if the store is not whole, or `one` is several."""
    store = ActivationStore(path)
    if not store.complete:
        raise ValueError(f"{path} is not complete ({store.manifest.n_samples} inputs so far): run its capture again")
    names = list(sites) if sites else store.sites
    if one and len(names) > 1:
        raise ValueError(f"{path} holds the sites {', '.join(names)}: name one by --site")
    return {name: store[name if grid is None else (name, grid)] for name in names}


def _tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name; "" where they have none."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    readers = {".safetensors": lambda: read_tensors(path)[0], ".npy": lambda: {"": load_activations(path)}}
    readers |= {".npz": lambda: _from_npz(path), ".pt": lambda: _from_torch(path), ".pth": lambda: _from_torch(path)}
    if path.suffix not in readers:
        raise ValueError(f"{path} is none of {', '.join(readers)}, .nc, .zarr")
    return readers[path.suffix]()


def _from_npz(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, BadZipFile) as error:
        raise ValueError(f"{path} holds no arrays that can be read without unpickling ({error})") from error


def _from_torch(path: Path) -> dict[str, Tensor]:
    held = read_torch(path)
    found = {"": held} if isinstance(held, Tensor) else held
    if not isinstance(found, dict) or not found or not all(isinstance(each, Tensor) for each in found.values()):
        raise ValueError(f"{path} must hold a tensor, or tensors by name; it holds {type(held).__name__}")
    return found
