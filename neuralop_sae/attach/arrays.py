"""Arrays of numpy, xarray and pandas, taken as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor_of(name: str, values: Any) -> Tensor:
    """A tensor as it is, or one of the same numbers; any order of bytes or of memory will do.

    Raises
    ------
    TypeError
        If the values are no numbers; the message calls them `name`.

    Examples
    --------
    >>> tensor_of("region", np.eye(2, dtype=">f4")[::-1])
    tensor([[0., 1.],
            [1., 0.]])
    """
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} is a tensor or an array of numbers; got {type(values).__name__} of {array.dtype}")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
