"""Layouts: where the batch, the channels and the grid are in the tensors that modules return.

`capture` hands out fields, ``(batch, channels, *grid)``, whatever the module's own order of axes. A layout names the
axes in the module's order, as in ``"batch points channels"``; see `SiteRule`.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The layout of neuralop's own fields.
FIELD = "batch channels ..."


def axes_of(layout: str, n_dim: int | None = None) -> tuple[str, ...]:
    """Names of the axes of a field that comes from a module with a layout.

    Parameters
    ----------
    layout : str
        Axes in the module's order.
    n_dim : int, optional
        Number of axes that ``...`` stands for; it stays as it is if they are not known.

    Returns
    -------
    tuple of str
        Batch first, then the channels.

    Examples
    --------
    >>> axes_of("batch time channels ...", n_dim=2)
    ('batch', 'channels', 'time', 'd1', 'd2')
    >>> axes_of("channels points")
    ('batch', 'channels', 'points')
    """
    names = _names(layout)
    rest = tuple(name for name in names[1:] if name != "channels")
    if n_dim is not None and "..." in rest:
        start = rest.index("...")
        rest = (*rest[:start], *(f"d{i + 1}" for i in range(n_dim)), *rest[start + 1 :])
    return (names[0], "channels", *rest)


def to_field(activation: Tensor, layout: str) -> Tensor:
    """A view of an activation as a field.

    Parameters
    ----------
    activation : Tensor
        In the module's order of axes; the batch may be missing where the layout has no ``...``.
    layout : str
        Its axes.

    Returns
    -------
    Tensor
        The field ``(batch, channels, *grid)``.

    Raises
    ------
    TypeError
        If the activation does not have these axes.

    Examples
    --------
    >>> to_field(torch.zeros(7, 3), "batch points channels").shape
    torch.Size([1, 3, 7])
    """
    names = _names(layout)
    with_batch = activation.unsqueeze(0) if _lacks_batch(activation, layout) else activation
    wanted = len(names)
    fits = with_batch.ndim >= wanted - 1 if "..." in names else with_batch.ndim == wanted
    if not fits:
        raise TypeError(
            f"an activation with axes ({', '.join(layout.split())}) was expected; got shape {tuple(activation.shape)}"
        )
    return with_batch.movedim(_channels(names), 1)


def from_field(field: Tensor, like: Tensor, layout: str) -> Tensor:
    """Undo `to_field`: put a field into the order of axes, and of memory, of an activation.

    Parameters
    ----------
    field : Tensor
        The field ``(batch, channels, *grid)``.
    like : Tensor
        The activation in the module's own order.
    layout : str
        Its axes.

    Returns
    -------
    Tensor
        A tensor of the shape of `like`.

    Examples
    --------
    >>> x = torch.randn(4, 7, 3)
    >>> torch.equal(from_field(to_field(x, "batch points channels"), x, "batch points channels"), x)
    True
    """
    new = field.movedim(1, _channels(_names(layout)))
    if _lacks_batch(like, layout):
        new = new.squeeze(0)
    if new.stride() == like.stride():
        return new
    # neuralop's pointwise skips call view() on what they get, and kernels may round differently in other strides.
    return torch.empty_like(like, dtype=new.dtype).copy_(new)


def _names(layout: str) -> tuple[str, ...]:
    """Names of the axes, a batch axis first."""
    names = tuple(layout.split())
    return names if names[0].startswith("batch") else ("batch", *names)


def _channels(names: tuple[str, ...]) -> int:
    """Position of the channels, from the end if the grid comes before them."""
    position = names.index("channels")
    return position - len(names) if "..." in names[:position] else position


def _lacks_batch(activation: Tensor, layout: str) -> bool:
    names = layout.split()
    return not names[0].startswith("batch") or ("..." not in names and activation.ndim == len(names) - 1)
