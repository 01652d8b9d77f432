"""Names for things that can be extended from outside: one class, which refuses duplicates and lists what exists."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Generic, TypeVar

T = TypeVar("T")

PLUGINS = "neuralop_sae.plugins"


class Registry(Generic[T]):
    """A table from names to objects of one kind.

    Parameters
    ----------
    kind : str
        What the entries are; used in messages.

    Examples
    --------
    >>> shapes = Registry("shape")
    >>> @shapes.register("square")
    ... class Square: ...
    >>> shapes.names()
    ['square']
    >>> shapes.get("circle")
    Traceback (most recent call last):
    ...
    ValueError: unknown shape 'circle'; known: square
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._spelling: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an object under `name` (case does not matter); ValueError if the name is taken."""
        if not isinstance(name, str):
            raise TypeError(f"a {self.kind} is registered under a name, as in register('my_name'); got {name!r}")

        def add(entry: T) -> T:
            key = name.lower()
            if key in self._entries:
                taken = f"{self.kind} {name!r} is registered already: {self._entries[key]!r}"
                raise ValueError(f"{taken}; known: {', '.join(self.names())}")
            self._entries[key], self._spelling[key] = entry, name
            return entry

        return add

    def get(self, name: str) -> T:
        """The object registered under `name`; ValueError that lists the known names otherwise."""
        try:
            return self._entries[name.lower()]
        except KeyError:
            known = ", ".join(self.names()) or "none"
            raise ValueError(f"unknown {self.kind} {name!r}; known: {known}") from None

    def name_of(self, entry: T, default: str | None = None) -> str:
        """The name under which an object is registered; if it is not, `default`, or ValueError that lists the known
        names."""
        for name, known in self._entries.items():
            if known is entry:
                return self._spelling[name]
        if default is not None:
            return default
        raise ValueError(f"{getattr(entry, '__name__', entry)} is no {self.kind}; known: {', '.join(self.names()) or 'none'}")

    def names(self) -> list[str]:
        """Registered names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


def load_plugins(group: str = PLUGINS) -> list[str]:
    """Import the modules that installed packages name as entry points of a group, so that what they register is known.

    A plugin that fails is named in a warning, and the others are loaded: a broken package must not keep anybody from
    importing this one.

    Returns
    -------
    list of str
        Names of the entry points that were loaded, sorted.
    """
    loaded = []
    for entry in sorted(metadata.entry_points(group=group), key=lambda entry: entry.name):
        try:
            entry.load()
        except Exception as error:
            message = f"plugin {entry.name!r} ({entry.value}) of {group} is not loaded: {type(error).__name__}: {error}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        else:
            loaded.append(entry.name)
    return loaded
