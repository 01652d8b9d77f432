"""Passes of an operator from a site on: what its modules compute before is recorded once, and given back from then on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..attach.rules import original_module


class Replay:
    """What submodules of an operator give before a site fires, for one input.

    Of each call that ends before the site fires, and is inside no other such call, the output is kept: of an FNO those of its
    lifting and of the blocks up to the site. In a later pass on the same input these calls return it and compute nothing. That
    is right where a module is a function of its input: no randomness, nothing changed in place. Whoever records compares.

    Parameters
    ----------
    model : nn.Module
        The operator, in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._root = original_module(model)
        self._calls: list[tuple[nn.Module, Any]] = []

    @contextmanager
    def record(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Record one pass; what is yielded is to be called with the activation when the site fires, and returns it."""
        calls = self._calls = []
        starts: list[int] = []
        fired = False

        def fire(activation: Tensor) -> Tensor:
            nonlocal fired
            fired = True
            return activation

        def start(*_: Any) -> None:
            starts.append(len(calls))

        def end(module: nn.Module, _: Any, output: Any) -> None:
            first = starts.pop()
            if not fired:
                calls[first:] = [(module, output)]  # in the place of the calls that it made itself

        with ExitStack() as stack:
            for module in self._root.modules():
                stack.callback(module.register_forward_pre_hook(start).remove)
                # Before other hooks, the site's among them: they act on what is given back as well.
                stack.callback(module.register_forward_hook(end, prepend=True).remove)
            yield fire

    @contextmanager
    def give_back(self) -> Iterator[None]:
        """For one pass: recorded calls return what they gave, all later ones compute."""
        waiting: dict[nn.Module, deque[Any]] = {}
        for module, output in self._calls:
            waiting.setdefault(module, deque()).append(output)
        with ExitStack() as stack:
            for module, outputs in waiting.items():
                stack.callback(_restore, module, vars(module).get("forward"))
                module.forward = _first_from(outputs, module.forward)
            yield

    def forget(self) -> None:
        """Give nothing back: compute everything."""
        self._calls = []


def _first_from(outputs: deque[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: outputs.popleft() if outputs else forward(*args, **kwargs)


def _restore(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    del module.forward
    if forward is not None:
        module.forward = forward
