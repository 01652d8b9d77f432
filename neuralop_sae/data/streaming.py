"""Activations computed by the frozen operator when training asks for them; nothing is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from threading import Lock
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..attach.capture import capture
from ..attach.inputs import shared_arguments
from .indexed import IndexedActivations
from .labels import Labels
from .origins import labels_of, place_of
from .place import Place
from .samples import batch_of, n_known, prepared

__all__ = ["ActivationStream", "stream"]


class ActivationStream(IndexedActivations):
    """Activations at one site of an operator, from `stream`: indexed like a tensor ``(N, channels, *grid)``, computed on the
    inputs that are asked for."""

    def __init__(self, source: _Source, site: str, shape: Sequence[int], labels: Labels, place: Place) -> None:
        super().__init__(shape, *labels)
        self.site = site
        self._source, self._place = source, place

    @property
    def place(self) -> Place:
        """See `IndexedActivations.place`."""
        return self._place

    def read(self, rows: Tensor) -> Tensor:
        """See `IndexedActivations.read`."""
        return self._source.take(self.site, rows)


@overload
def stream(  # type: ignore[overload-overlap]  # a str is a Sequence[str]; the first signature wins
    model: nn.Module,
    sites: str,
    inputs: Any,
    *,
    padded: bool = ...,
    device: torch.device | str | None = ...,
    data_processor: Any = ...,
    shared: Collection[str] = ...,
    time: Any = ...,
    trajectory: Any = ...,
) -> ActivationStream: ...


@overload
def stream(
    model: nn.Module,
    sites: Sequence[str],
    inputs: Any,
    *,
    padded: bool = ...,
    device: torch.device | str | None = ...,
    data_processor: Any = ...,
    shared: Collection[str] = ...,
    time: Any = ...,
    trajectory: Any = ...,
) -> dict[str, ActivationStream]: ...


def stream(
    model: nn.Module,
    sites: str | Sequence[str],
    inputs: Any,
    *,
    padded: bool = False,
    device: torch.device | str | None = None,
    data_processor: Any = None,
    shared: Collection[str] = (),
    time: Any = None,
    trajectory: Any = None,
) -> ActivationStream | dict[str, ActivationStream]:
    """What `capture` gives, without keeping it: activations are computed from the inputs that each batch asks for.

    Memory is that of two batches at all sites. Every epoch runs the operator again: where that costs more than reading,
    `ActivationStore.write` keeps its activations on disk. Streams of several sites share their passes, as long as they are
    asked for the same samples one after the other, as `train_many` does.

    Parameters
    ----------
    model : nn.Module
        The operator, as in `capture`; it is not changed.
    sites : str or sequence of str
        Names from `find_sites`.
    inputs : Tensor, mapping of str to Tensor, Dataset or DataLoader
        Inputs with numbered samples on one grid: a tensor, a mapping of the model's inputs by name, or a data set of torch or
        neuralop. Of a loader the data set is taken: the order is that of training.
    padded, device, data_processor, shared
        As in `capture`.
    time, trajectory : array, optional
        ``(N,)`` per sample; see `ActivationStore.write`. By default those of `from_xarray`, where the inputs come from it.

    Returns
    -------
    ActivationStream or dict of str to ActivationStream
        One for a single name, a dict by name for a sequence of names.

    Raises
    ------
    TypeError
        If samples of the inputs have no numbers.
    ValueError
        If a site is unknown, there are no samples, labels do not fit them, or the operator works on another grid of the sphere
        than the inputs are on.

    Examples
    --------
    >>> from neuralop.models import FNO
    >>> model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=8)
    >>> activations = stream(model, "fno_blocks.2", torch.randn(5, 1, 8, 8))
    >>> len(activations), activations[torch.tensor([4, 0])].shape
    (5, torch.Size([2, 8, 8, 8]))
    """
    names = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
    source = _Source(model, names, inputs, padded, device, data_processor, {*shared, *shared_arguments(model)})
    n = n_known(inputs, source.shared)
    if n == 0:
        raise ValueError("the inputs hold no samples")
    first = source.run(torch.zeros(1, dtype=torch.int64))  # a site or an input that does not fit is found here
    assert n is not None
    labels, place = labels_of(inputs, time, trajectory, n), place_of(model, inputs, padded=padded)
    streams = {name: ActivationStream(source, name, (n, *fields.shape[1:]), labels, place) for name, fields in first.items()}
    return streams[names[0]] if isinstance(sites, str) else streams


class _Source:
    """A frozen operator with its inputs, and what it computed last and was not taken yet."""

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        inputs: Any,
        padded: bool,
        device: torch.device | str | None,
        data_processor: Any,
        shared: Collection[str],
    ) -> None:
        self.model, self.names, self.inputs, self.padded = model, names, inputs, padded
        self.device, self.data_processor, self.shared = device, data_processor, shared
        self._lock = Lock()  # hooks of two passes at once would see each other's activations
        # Of two passes: one site may read ahead while another has not had the batch before.
        self._passes: deque[tuple[Tensor, dict[str, Tensor]]] = deque(maxlen=2)

    def take(self, site: str, rows: Tensor) -> Tensor:
        """Those of the samples `rows` at a site. What the pass gave at the others waits for its turn."""
        with self._lock:
            for known, waiting in self._passes:
                if site in waiting and torch.equal(known, rows):
                    return waiting.pop(site)
            waiting = self.run(rows)
            self._passes.append((rows, waiting))
            return waiting.pop(site)

    def run(self, rows: Tensor) -> dict[str, Tensor]:
        """The activations of samples at each site."""
        batches = prepared([batch_of(self.inputs, rows, self.shared)], self.data_processor)
        return capture(
            self.model,
            self.names,
            batches,
            padded=self.padded,
            device=self.device,
            shared=self.shared,
        )
