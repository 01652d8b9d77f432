"""Read activations at the sites of a pretrained operator."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, overload

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .hooks import eval_mode, hooked
from .inputs import Inputs, call_model, first_samples, iterate_batches, n_batches, n_samples, preprocessed, shared_arguments
from .padding import unpadded_slices
from .sites import Site, resolve_site


@overload
def capture(  # type: ignore[overload-overlap]  # a str is a Sequence[str]; the first signature wins
    model: nn.Module,
    sites: str,
    inputs: Inputs,
    *,
    batch_size: int = ...,
    padded: bool = ...,
    device: torch.device | str | None = ...,
    data_processor: Any = ...,
    max_samples: int | None = ...,
    shared: Collection[str] = ...,
    progress: bool = ...,
) -> Tensor: ...


@overload
def capture(
    model: nn.Module,
    sites: Sequence[str],
    inputs: Inputs,
    *,
    batch_size: int = ...,
    padded: bool = ...,
    device: torch.device | str | None = ...,
    data_processor: Any = ...,
    max_samples: int | None = ...,
    shared: Collection[str] = ...,
    progress: bool = ...,
) -> dict[str, Tensor]: ...


def capture(
    model: nn.Module,
    sites: str | Sequence[str],
    inputs: Inputs,
    *,
    batch_size: int = 32,
    padded: bool = False,
    device: torch.device | str | None = None,
    data_processor: Any = None,
    max_samples: int | None = None,
    shared: Collection[str] = (),
    progress: bool = False,
) -> Tensor | dict[str, Tensor]:
    """Run a model on inputs and keep what it computes at one site or several, in one pass.

    The model runs without gradient in eval mode, and gets every submodule's training flag back. Inside a
    `splice` the activations are those after the edit.

    Parameters
    ----------
    model : nn.Module
        The operator; a mapping is handed to it by the names that its ``forward`` takes, see `call_model`.
    sites : str or sequence of str
        Names from `find_sites`.
    inputs : Tensor, mapping of str to Tensor, Dataset, or iterable
        A tensor ``(N, channels, *grid)``; a mapping of the model's inputs by name, ``"x"`` being such a tensor; a data set
        of such samples, as `from_xarray` gives one; or batches, each a tensor or a mapping, such as neuralop's data loaders.
    batch_size : int, optional
        Samples per forward pass for a tensor, a mapping or a data set; batches are used as they come.
    padded : bool, optional
        Whether to keep neuralop's domain padding at the sites that have it; by default it is cut off.
    device : torch.device or str, optional
        Where the inputs are moved; the device of the model's first parameter by default. The model is never
        moved.
    data_processor : DataProcessor, optional
        neuralop's processor: its ``preprocess`` is applied, in eval mode, to every batch as a mapping.
    max_samples : int, optional
        Stop after this many samples.
    shared : collection of str, optional
        Entries of a mapping that all samples share, such as a geometry, beside those that the `SiteRule` of the
        operator names (GINO: ``input_geom``, ``latent_queries``, ``output_queries``, ``ada_in``).
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    Tensor or dict of str to Tensor
        Activations ``(N, channels, *grid)`` on the CPU, detached and sharing no memory with the model: one
        tensor for a single name, a dict by name for a sequence of names. Channels are second whatever the layout of
        the module; `Site.axes` names the axes. Points of a mesh are a grid of one axis. Where a module runs once per
        time step, the steps are stacked along an axis ``"time"`` after the channels.

    Raises
    ------
    TypeError
        If the inputs, or the module's output, are not of a type listed here.
    ValueError
        If a site is unknown, an input of the model is missing, there are no samples, or batches differ in grid.
    RuntimeError
        If a site does not fire in a forward pass, or several times where no rule says along which axis: then name
        the call, as in ``"gno_out.0"``.

    Examples
    --------
    >>> from neuralop.models import FNO
    >>> model = FNO(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=8)
    >>> capture(model, "fno_blocks.2", torch.randn(5, 1, 8, 8)).shape
    torch.Size([5, 8, 8, 8])
    """
    names = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
    if not names:
        raise ValueError("no sites to capture: give a name or a list of names from find_sites(model)")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1; got {max_samples}")
    shared = {*shared, *shared_arguments(model)}
    recorders = [_Recorder(model, resolve_site(model, name), padded) for name in names]
    processors = [data_processor] if isinstance(data_processor, nn.Module) else []
    with ExitStack() as stack:
        # Not inference_mode: it would leave inference tensors in caches of the model (SphericalConv's
        # transforms), and later backward passes fail on them.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(eval_mode(model, *processors))
        for recorder in recorders:
            stack.enter_context(hooked(model, recorder.site, recorder))
        batches = tqdm(
            iterate_batches(inputs, batch_size, shared),
            total=n_batches(inputs, batch_size, shared),
            disable=not progress,
        )
        for batch in _prepared(batches, data_processor, max_samples, shared):
            call_model(model, batch, device or _device_of(model))
            for recorder in recorders:
                recorder.end_of_pass()
    captured = {str(recorder.site): recorder.result() for recorder in recorders}
    return captured[names[0]] if isinstance(sites, str) else captured


class _Recorder:
    """Keeps the activations of one site, pass by pass."""

    def __init__(self, model: nn.Module, site: Site, padded: bool) -> None:
        self.site = site
        self._model = model
        self._padded = padded
        self._calls: list[Tensor] = []
        self._batches: list[Tensor] = []

    def __call__(self, activation: Tensor) -> None:
        if not self._padded:
            activation = activation[unpadded_slices(self._model, self.site, activation.shape)]
        # A copy even on the CPU: identity skips return the tensor that the model goes on with.
        self._calls.append(activation.detach().to("cpu", copy=True))

    def end_of_pass(self) -> None:
        calls, self._calls = self._calls, []
        name = str(self.site)
        if not calls:
            often = "so often" if self.site.nth else "at all"
            raise RuntimeError(f"site {name!r} did not fire: the forward pass does not call this module {often}")
        if self.site.repeats is not None:
            calls = [torch.stack(calls, dim=2)]
        if len(calls) > 1:
            raise RuntimeError(
                f"site {name!r} fired {len(calls)} times in a pass: name one call, as in '{name}.0' for the first, or "
                "give the class that calls it a rule with register_sites"
            )
        self._batches += calls

    def result(self) -> Tensor:
        if not self._batches:
            raise ValueError("the inputs hold no samples")
        shapes = sorted({tuple(batch.shape[1:]) for batch in self._batches})
        if len(shapes) > 1:
            raise ValueError(
                f"site {str(self.site)!r}: batches differ in shape {shapes} and cannot form one tensor; "
                "capture each resolution by itself"
            )
        return torch.cat(self._batches) if len(self._batches) > 1 else self._batches[0]


def _prepared(
    batches: Iterable[dict[str, Any]], data_processor: Any, max_samples: int | None, shared: Collection[str]
) -> Iterator[dict[str, Any]]:
    remaining = max_samples
    for batch in batches:
        if data_processor is not None:
            batch = preprocessed(batch, data_processor)
        if remaining is None:
            yield batch
            continue
        yield first_samples(batch, remaining, shared)
        remaining -= n_samples(batch, shared)
        if remaining <= 0:
            return


def _device_of(model: nn.Module) -> torch.device:
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")
