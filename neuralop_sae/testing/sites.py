"""The contract of the sites of an operator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..attach.capture import capture
from ..attach.hooks import entry_of, eval_mode
from ..attach.inputs import call_model
from ..attach.interventions import Replacement, replace_activation
from ..attach.rules import original_module
from ..attach.sites import Site, find_sites
from .accuracy import assert_equal, require

Calls = dict[str, list[tuple[int, Any]]]


def check_sites(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Any],
    *,
    inert: Collection[str] = (),
    compiled: bool = True,
) -> list[Site]:
    """The contract of the sites of an operator, for the author of a `SiteRule`.

    Every site that `find_sites` lists fires as its rule says, in the listed order. There, the captured activation is what
    a plain forward hook sees, with the channels second; putting it back changes no bit of the model's output and no
    gradient; putting zeros in its place changes the output; afterwards the model is as before. Gradients reach the
    activation from the output unless the rule says that the module runs without, and the parameters before it through
    it. The same holds for the model compiled by ``torch.compile`` with ``backend="eager"``. Which axis is which is the
    rule's word: of a layout only the number of axes is checked.

    Parameters
    ----------
    model : nn.Module
        The operator; it runs in eval mode and is left as it was.
    inputs : Tensor or mapping
        One batch, as the model takes it; see `neuralop_sae.attach.inputs.call_model`.
    inert : collection of str, optional
        Sites that do not act on the output with this model and these inputs, such as a gate that is closed.
    compiled : bool, optional
        Whether to check the compiled model too.

    Returns
    -------
    list of Site
        The sites that were checked.

    Raises
    ------
    AssertionError
        Naming the site and the property that failed.

    Examples
    --------
    >>> from neuralop.models import FNO
    >>> check_sites(FNO((4,), 1, 1, hidden_channels=4, n_layers=1), torch.randn(2, 1, 8), compiled=False)[0]
    'lifting'
    """
    sites = find_sites(model)
    require(sites, "find_sites", "no sites: register a rule with register_sites, or give the model submodules")
    unknown = sorted(set(inert) - set(sites))
    require(not unknown, "inert", f"unknown sites {unknown}; the model has {', '.join(sites)}")
    batch: Mapping[str, Any] = {"x": inputs} if isinstance(inputs, Tensor) else inputs
    with eval_mode(model), _left_as_it_was(model):
        _check_captures(model, sites, batch)
        clean = _outputs(model, batch)
        gradients = _gradients(model, batch)
        for site in sites:
            _check_replacement(model, site, batch, clean, acts=site not in inert)
            _check_gradients(model, site, batch, gradients)
        require(_same(_outputs(model, batch), clean), "removal", "the model's output is not what it was")
        if compiled:
            _check_compiled(model, sites, batch, clean)
    return sites


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    before = _n_hooks(model)
    yield
    require(_n_hooks(model) == before, "removal", f"{_n_hooks(model) - before} hooks are left on the model")


def _n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _check_captures(model: nn.Module, sites: list[Site], batch: Mapping[str, Any]) -> None:
    calls = _plain_calls(model, {site.path for site in sites}, batch)
    ends = []
    for site in sites:
        own = _calls_of(site, sites, calls)
        ends.append(own[0][0])
        captured = _captured(model, site, batch, padded=True)
        _check_layout(site, captured, [output for _, output in own])
        if site.padded:
            _check_margins(site, _captured(model, site, batch, padded=False), captured)
    for (site, end), (after, later) in pairwise(zip(sites, ends, strict=True)):
        require(end < later, f"{site}: order of execution", f"it ends after {after}, which is listed after it")


def _captured(model: nn.Module, site: Site, batch: Mapping[str, Any], padded: bool) -> Tensor:
    try:
        return capture(model, site, [batch], padded=padded)
    except (RuntimeError, TypeError, ValueError) as error:
        raise AssertionError(f"{site}: captured activation: {error}") from error


def _plain_calls(model: nn.Module, paths: Collection[str], batch: Mapping[str, Any]) -> Calls:
    """Outputs of every call of some modules, with their number in the order in which calls end."""
    calls: Calls = {path: [] for path in paths}
    count = iter(range(10**9))

    def record(path: str) -> Callable[..., None]:
        # Copies: an operator may go on with the tensor in place.
        return lambda module, args, output: calls[path].append((next(count), _copied(output)))

    root = original_module(model)
    handles = [root.get_submodule(path).register_forward_hook(record(path)) for path in paths]
    try:
        with torch.no_grad():
            call_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _calls_of(site: Site, sites: list[Site], calls: Calls) -> list[tuple[int, Any]]:
    """The calls of a site: blocks that share a module take turns."""
    blocks = [other for other in sites if other.path == site.path and other.index is not None]
    made = calls[site.path]
    turns = max(1, len(blocks))
    require(made, f"{site}: fires", "the forward pass never calls this module: take it out of the rule's stages")
    once = site.repeats is not None or len(made) == turns
    require(
        once,
        f"{site}: fires once per pass",
        f"the forward pass calls the module {len(made)} times, the rule says {turns}: give it a call_argument and n_calls, "
        "or the axis that its calls run through as Stage(repeats=...)",
    )
    return made[site.index or 0 :: turns]


def _check_layout(site: Site, captured: Tensor, outputs: list[Any]) -> None:
    """The captured field against the module's own outputs, axis by axis."""
    what = f"{site}: captured activation"
    try:
        outputs = [entry_of(output, site) for output in outputs]
    except TypeError as error:
        raise AssertionError(f"{what}: {error}, or in the rule as Stage(outputs=...)") from error
    known = "..." not in site.axes
    require(not known or captured.ndim == len(site.axes), what, f"shape {tuple(captured.shape)}, axes {site.axes}")
    steps = captured.unbind(2) if site.repeats is not None else (captured,)
    require(len(steps) == len(outputs), what, f"{len(steps)} steps, the module is called {len(outputs)} times")
    names = site.layout.split()
    for step, output in zip(steps, outputs, strict=True):
        own = step.movedim(1, _position(names, step))
        if own.ndim > output.ndim and len(own) == 1:
            own = own[0]
        require(
            own.shape == output.shape and torch.equal(own, output.cpu()),
            what,
            f"{tuple(step.shape)} is not what a forward hook sees, {tuple(output.shape)} with axes ({', '.join(names)})",
        )


def _position(names: list[str], field: Tensor) -> int:
    """Where the channels of a field are in the order of its module."""
    first = 0 if names[0].startswith("batch") else 1
    position = names.index("channels") + first
    return position if "..." not in names[: names.index("channels")] else field.ndim - len(names) - first + position


def _check_margins(site: Site, inside: Tensor, whole: Tensor) -> None:
    margins = [(n - m) // 2 for n, m in zip(whole.shape, inside.shape, strict=True)]
    middle = whole[tuple(slice(margin, n - margin) for margin, n in zip(margins, whole.shape, strict=True))]
    require(
        middle.shape == inside.shape and torch.equal(middle, inside),
        f"{site}: without padding",
        f"shape {tuple(inside.shape)} is not the middle of {tuple(whole.shape)}",
    )


def _check_replacement(
    model: nn.Module, site: Site, batch: Mapping[str, Any], clean: list[Tensor], *, acts: bool, how: str = ""
) -> None:
    for padded in {False, site.padded}:
        same = _outputs(model, batch, replace_activation(model, site, torch.clone, padded=padded))
        require(_same(same, clean), f"{site}: identity splice{how}", "the model's output differs")
    try:
        ablated = _outputs(model, batch, replace_activation(model, site, torch.zeros_like))
    except RuntimeError as error:
        raise AssertionError(f"{site}: zero ablation{how}: {error}") from error
    changed = not _same(ablated, clean)
    require(
        changed == acts,
        f"{site}: zero ablation{how}",
        "the model's output does not change; if that is right for these inputs, name the site in inert=(...)"
        if acts
        else "the model's output changes, although the site is named in inert",
    )
    require(_same(_outputs(model, batch), clean), f"{site}: removal{how}", "the model's output is not what it was")


def _check_gradients(model: nn.Module, site: Site, batch: Mapping[str, Any], expected: list[Tensor | None]) -> None:
    scale = torch.ones((), requires_grad=True)
    actual = _gradients(model, batch, replace_activation(model, site, lambda x: x * scale.to(x)))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, new, old in zip(names, actual, expected, strict=True):
        what = f"{site}: gradient of {name}"
        require((new is None) == (old is None), what, "reaches it only without a splice" if new is None else "is new")
        if new is not None and old is not None:
            assert_equal(what, new, old, factor=10, scale=1e-6)
    reached = scale.grad is not None and bool(scale.grad.isfinite())
    require(
        reached != site.frozen,
        f"{site}: gradient of a splice",
        "none comes from the model's output; if that is right, the rule says so by Stage(frozen=True)"
        if not reached
        else "comes from the model's output, although the rule says frozen",
    )


def _check_compiled(model: nn.Module, sites: list[Site], batch: Mapping[str, Any], clean: list[Tensor]) -> None:
    with warnings.catch_warnings():
        # Dynamo warns of its own about what it finds in neuralop's contractions.
        warnings.simplefilter("ignore")
        compiled: Any = torch.compile(original_module(model), backend="eager")
        before = _outputs(compiled, batch)
        for new, old in zip(before, clean, strict=True):
            assert_equal("compiled model", new, old)
        require(find_sites(compiled) == sites, "compiled model", "has other sites")
        for site in sites:
            what = f"{site}: captured activation of the compiled model"
            try:
                captured = capture(compiled, site, [batch])
            except RuntimeError as error:
                raise AssertionError(f"{what}: {error}") from error
            require(torch.equal(captured, capture(model, site, [batch])), what, "differs")
        for site in sites:
            for function in (torch.clone, torch.zeros_like):
                wanted = _outputs(model, batch, replace_activation(model, site, function))
                got = _outputs(compiled, batch, replace_activation(compiled, site, function))
                require(_same(got, wanted), f"{site}: {function.__name__} in the compiled model", "differs")
        require(_same(_outputs(compiled, batch), before), "removal", "the compiled model's output is not what it was")


def _outputs(model: nn.Module, batch: Mapping[str, Any], context: Replacement | None = None) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.clone() for tensor in _run(model, batch, context)]


def _gradients(model: nn.Module, batch: Mapping[str, Any], context: Replacement | None = None) -> list[Tensor | None]:
    """Gradients of the parameters that require one, of a sum of squares of the outputs; they are put back afterwards."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        with torch.enable_grad():
            outputs = [tensor for tensor in _run(model, batch, context) if tensor.requires_grad]
            if outputs:
                torch.stack([tensor.abs().square().sum() for tensor in outputs]).sum().backward()
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def _run(model: nn.Module, batch: Mapping[str, Any], context: Replacement | None) -> list[Tensor]:
    if context is None:
        return list(_tensors(call_model(model, batch)))
    with context:
        return list(_tensors(call_model(model, batch)))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for entry in output.values():
            yield from _tensors(entry)
    elif isinstance(output, (tuple, list)):
        for entry in output:
            yield from _tensors(entry)


def _copied(output: Any) -> Any:
    return output.detach().clone() if isinstance(output, Tensor) else output


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
