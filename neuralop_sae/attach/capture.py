"""Read activations at the sites of a pretrained operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil
from operator import length_hint
from typing import Any, overload

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .sites import Site, SiteRule, original_module, resolve_site, rule_of, unpadded_slices

Inputs = Tensor | Mapping[str, Tensor] | Iterable[Any]


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
    progress: bool = False,
) -> Tensor | dict[str, Tensor]:
    """Run a model on inputs and keep what it computes at one site or several, in one pass.

    The model runs without gradient in eval mode, and gets every submodule's training flag back. Inside a
    `splice` the activations are those after the edit.

    Parameters
    ----------
    model : nn.Module
        The operator; called as ``model(x)``.
    sites : str or sequence of str
        Names from `find_sites`.
    inputs : Tensor, mapping of str to Tensor, or iterable
        A tensor ``(N, channels, *grid)``; a mapping with such a tensor as ``"x"``; or batches, each a tensor
        or a mapping with ``"x"``, such as neuralop's data loaders.
    batch_size : int, optional
        Samples per forward pass for a tensor or a mapping; batches are used as they come.
    padded : bool, optional
        Whether to keep neuralop's domain padding at the sites that have it; by default it is cut off.
    device : torch.device or str, optional
        Where the inputs are moved; the device of the model's first parameter by default. The model is never
        moved.
    data_processor : DataProcessor, optional
        neuralop's processor: its ``preprocess`` is applied, in eval mode, to every batch as a mapping.
    max_samples : int, optional
        Stop after this many samples.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    Tensor or dict of str to Tensor
        Activations ``(N, channels, *grid)`` on the CPU, detached and sharing no memory with the model: one
        tensor for a single name, a dict by name for a sequence of names.

    Raises
    ------
    TypeError
        If the inputs, or the module's output, are not of a type listed here.
    ValueError
        If a site is unknown, there are no samples, or batches differ in grid.
    RuntimeError
        If a site does not fire exactly once in a forward pass.

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
        batches = tqdm(iterate_batches(inputs, batch_size), total=_n_batches(inputs, batch_size), disable=not progress)
        for x in _model_inputs(batches, data_processor, device or _device_of(model), max_samples):
            model(x)
            for recorder in recorders:
                recorder.end_of_pass()
    captured = {str(recorder.site): recorder.result() for recorder in recorders}
    return captured[names[0]] if isinstance(sites, str) else captured


def iterate_batches(inputs: Inputs, batch_size: int = 32) -> Iterator[dict[str, Any]]:
    """Go through inputs of every accepted kind as batches with the model's input under ``"x"``.

    Parameters
    ----------
    inputs : Tensor, mapping of str to Tensor, or iterable
        As in `capture`.
    batch_size : int, optional
        Samples per batch for a tensor or a mapping; batches of an iterable are passed on as they come.

    Yields
    ------
    dict
        A new dict per batch; ``"x"`` is a tensor ``(batch, channels, *grid)``.

    Raises
    ------
    TypeError
        If the inputs or a batch are of another type.
    ValueError
        If a mapping has no ``"x"``, its tensors differ in the number of samples, or `batch_size` is not
        positive.

    Examples
    --------
    >>> [batch["x"].shape[0] for batch in iterate_batches(torch.zeros(5, 1, 8), batch_size=2)]
    [2, 2, 1]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if isinstance(inputs, (Tensor, Mapping)):
        whole = _as_batch(inputs)
        lengths = {key: value.shape[0] if isinstance(value, Tensor) else None for key, value in whole.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a mapping of inputs holds tensors with the same number of samples; got {lengths}")
        for start in range(0, whole["x"].shape[0], batch_size):
            yield {key: value[start : start + batch_size] for key, value in whole.items()}
    elif isinstance(inputs, Iterable) and not isinstance(inputs, (str, bytes)):
        for batch in inputs:
            yield _as_batch(batch)
    else:
        raise TypeError(f"inputs must be a tensor, a mapping or an iterable of batches; got {type(inputs).__name__}")


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode, and give every submodule its own training flag back afterwards.

    Parameters
    ----------
    *modules : nn.Module
        The modules.
    """
    flags = [(submodule, submodule.training) for module in modules for submodule in module.modules()]
    try:
        for submodule, _ in flags:
            submodule.training = False
        yield
    finally:
        for submodule, flag in flags:
            submodule.training = flag


@contextmanager
def hooked(model: nn.Module, site: Site, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """While active, pass every activation at a site to a function, and put its result in their place.

    Code made by ``torch.compile`` runs eagerly meanwhile: a compiled graph does not notice hooks that come
    later (Dynamo does not guard on them: ``torch._dynamo.config.skip_nnmodule_hook_guards``).

    Parameters
    ----------
    model : nn.Module
        The model.
    site : Site
        One of its sites, from `resolve_site`.
    function : callable
        Takes the whole activation, padding included, and must not change it in place: identity skips of
        neuralop return the tensor that they were given. None leaves the activation as it is.
    """
    module = original_module(model).get_submodule(site.path)
    rule = rule_of(module)

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if site.index is not None and rule is not None and _call_of(rule, args, kwargs) != site.index:
            return None
        new = function(_activation(output, site))
        return None if new is None else _with_activation(output, site, new)

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        handle.remove()


class _Recorder:
    """Keeps the activations of one site, batch by batch, and counts how often the site fires."""

    def __init__(self, model: nn.Module, site: Site, padded: bool) -> None:
        self.site = site
        self._model = model
        self._padded = padded
        self._fired = 0
        self._batches: list[Tensor] = []

    def __call__(self, activation: Tensor) -> None:
        self._fired += 1
        if not self._padded:
            activation = activation[unpadded_slices(self._model, self.site, activation.shape)]
        # A copy even on the CPU: identity skips return the tensor that the model goes on with.
        self._batches.append(activation.detach().to("cpu", copy=True))

    def end_of_pass(self) -> None:
        fired, self._fired = self._fired, 0
        if fired == 0:
            raise RuntimeError(f"site {str(self.site)!r} did not fire: the forward pass never calls this module")
        if fired > 1:
            raise RuntimeError(
                f"site {str(self.site)!r} fired {fired} times in a pass: its calls are not told apart; "
                "give the class that calls it a rule with register_sites"
            )

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


def _model_inputs(
    batches: Iterable[dict[str, Any]],
    data_processor: Any,
    device: torch.device | str,
    max_samples: int | None,
) -> Iterator[Tensor]:
    remaining = max_samples
    for batch in batches:
        if data_processor is not None:
            if "y" not in batch:
                raise ValueError(f"neuralop's data processors need the target under 'y' too; got the keys {sorted(batch)}")
            batch = data_processor.preprocess(batch)
        x = batch["x"][:remaining].to(device)
        yield x
        if remaining is not None:
            remaining -= x.shape[0]
            if remaining <= 0:
                return


def _as_batch(batch: Any) -> dict[str, Any]:
    """A new dict, because neuralop's data processors write into the one they are given."""
    if isinstance(batch, Tensor):
        return {"x": batch}
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"a batch must be a tensor or a mapping with 'x'; got {type(batch).__name__}: "
            "pass for example ({'x': b[0]} for b in loader)"
        )
    if "x" not in batch:
        raise ValueError(f"a mapping must hold the model's input as 'x'; its keys are {list(batch)}")
    if not isinstance(batch["x"], Tensor):
        raise TypeError(f"the model's input 'x' must be a tensor; got {type(batch['x']).__name__}")
    return dict(batch)


def _n_batches(inputs: Inputs, batch_size: int) -> int | None:
    """Number of batches for the progress bar; None if it is not known beforehand."""
    if isinstance(inputs, (Tensor, Mapping)):
        x = inputs if isinstance(inputs, Tensor) else inputs.get("x")
        return None if x is None else ceil(len(x) / batch_size)
    return length_hint(inputs) or None


def _device_of(model: nn.Module) -> torch.device:
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def _call_of(rule: SiteRule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    assert rule.call_argument is not None
    name, position = rule.call_argument
    return int(kwargs.get(name, args[position] if len(args) > position else 0))


def _activation(output: Any, site: Site) -> Tensor:
    entry = output
    if site.output is not None:
        if not isinstance(output, (tuple, list)) or site.output >= len(output):
            raise TypeError(f"site {str(site)!r}: the module returns no output {site.output}, but {_describe(output)}")
        entry = output[site.output]
    if not isinstance(entry, Tensor):
        raise TypeError(
            f"site {str(site)!r}: a tensor was expected, the module returns {_describe(entry)}; "
            f"name one entry of a tuple by its index, as in '{site.path}[0]'"
        )
    return entry


def _with_activation(output: Any, site: Site, new: Tensor) -> Any:
    if site.output is None:
        return new
    entries = [new if i == site.output else entry for i, entry in enumerate(output)]
    if hasattr(output, "_fields"):
        return type(output)(*entries)
    return type(output)(entries)


def _describe(output: Any) -> str:
    name = type(output).__name__
    return f"{name} of length {len(output)}" if isinstance(output, (tuple, list)) else name
