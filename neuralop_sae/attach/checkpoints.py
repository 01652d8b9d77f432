"""Operators from checkpoints of neuralop, without unpickling: nothing in a file is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.layers.spherical_convolution import SphericalConv
from neuralop.models.base_model import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from ..checkpoint import read_tensors

__all__ = ["load_operator", "load_weights"]

_SUFFIX = "_state_dict.pt"
# What neuralop keeps of a constructor's arguments, beside plain data. torch makes nothing else of a file's names.
_ARGUMENTS: tuple[Callable[..., Any], ...] = (
    SpectralConv,
    SphericalConv,
    functional.gelu,
    functional.relu,
    functional.silu,
    functional.elu,
    functional.leaky_relu,
    functional.mish,
)
_KNOWN = {f"{entry.__module__}.{entry.__name__}": entry for entry in _ARGUMENTS}


def load_operator(path: str | Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """The operator that neuralop's Trainer or ``model.save_checkpoint(folder, name)`` saved, in eval mode.

    neuralop's own ``from_checkpoint`` unpickles ``{name}_metadata.pkl``, which can run code. The arguments of the constructor
    are in ``{name}_state_dict.pt`` too, and from there torch reads plain data and tensors, neuralop's convolutions and the
    activation functions, and refuses all else.

    Parameters
    ----------
    path : path
        The folder, if it holds one operator; ``folder/name``; or the file ``folder/name_state_dict.pt``.
    device : torch.device or str
        Where the operator goes.

    Returns
    -------
    nn.Module
        The operator.

    Raises
    ------
    FileNotFoundError
        If there is no checkpoint.
    ValueError
        If there are several; if the file is damaged, needs something that is not read, or does not say how to make the
        operator: then make it, and fill it by :func:`load_weights`.

    Examples
    --------
    >>> import tempfile
    >>> from neuralop.models import FNO
    >>> model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_checkpoint(folder, "fno")
    ...     type(load_operator(folder)).__name__
    'FNO'
    """
    path = _state_dict_path(Path(path))
    state = _read(path)
    arguments = dict(state.get("_metadata") or {})
    arguments.pop("_version", None)
    name, positional = str(arguments.pop("_name", "")), arguments.pop("args", ())
    if name.lower() not in BaseModel._models:
        raise ValueError(
            f"{path} does not say how its operator is made (neuralop keeps that for FNO, TFNO and SFNO): make the operator, "
            "and fill it by load_weights; on the command line, --model module:function --weights this file"
        )
    operator = BaseModel._models[name.lower()](*positional, **arguments)
    _fill(operator, state, path)
    return operator.to(device).eval()


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a model with the tensors of a ``.safetensors`` file, or of a state dict that ``torch.save`` wrote.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is damaged, or it is of another model.
    """
    path = Path(path)
    _fill(model, read_tensors(path)[0] if path.suffix == ".safetensors" else _read(path), path)


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, if that is tensors, plain data and what neuralop's operators are made of.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is damaged, or it holds anything else, which is not unpickled.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (ValueError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no whole file of torch.save ({str(error).splitlines()[0]})") from error
    unknown = sorted(set(names) - _KNOWN.keys())
    if unknown:
        raise ValueError(
            f"{path} holds {', '.join(unknown)}: pickled objects can run code and are not read. Save tensors alone, as "
            "in .safetensors, and give the operator by --model module:function with --weights"
        )
    with torch.serialization.safe_globals([_KNOWN[name] for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict_path(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        named = path.with_name(path.name + _SUFFIX)
        if named.is_file():
            return named
        raise FileNotFoundError(f"there is no checkpoint of neuralop at {path}: neither a folder nor {named.name}")
    found = sorted(path.glob(f"*{_SUFFIX}"))
    if not found:
        raise FileNotFoundError(f"{path} holds no checkpoint of neuralop: there is no *{_SUFFIX}")
    if len(found) > 1:
        names = ", ".join(str(path / file.name.removesuffix(_SUFFIX)) for file in found)
        raise ValueError(f"{path} holds several operators: name one of {names}")
    return found[0]


def _read(path: Path) -> dict[str, Any]:
    state = read_torch(path)
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict, a mapping of names to tensors, but {type(state).__name__}")
    return state


def _fill(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    tensors = {name: value for name, value in state.items() if name != "_metadata"}
    try:
        nn.Module.load_state_dict(model, tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} is of another model: {error}") from error
