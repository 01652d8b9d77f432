"""A command: settings, whose fields are its flags and the entries of its YAML file, and a function of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_json
from rich.console import Console, RenderableType
from rich.markup import escape
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["Answer", "ExitCode", "Settings", "app", "command"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


class ExitCode(IntEnum):
    """What the shell gets."""

    BAD_INPUT = 2
    RANK_LOST = 3
    INTERRUPTED = 130


class Settings(BaseModel):
    """Settings of a command. The description of a field is the help of its flag; `positional` fields have no flag."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


@dataclass(frozen=True)
class Answer:
    """What a command has to say: plain data for ``--json``, and what is shown to people otherwise."""

    data: Mapping[str, Any]
    shown: list[RenderableType] = field(default_factory=list)


S = TypeVar("S", bound=Settings)
Command = Callable[[S], Answer]

_CONFIG = typer.Option(
    help="YAML file with these settings by their names; flags go before it. One for several commands has them under the names "
    "of the commands.",
    show_default=False,
)
_JSON = typer.Option("--json", help="Print one JSON object to stdout; progress goes to stderr.")


def command(settings: type[S], interrupted: str = "what was written is whole") -> Callable[[Command[S]], Command[S]]:
    """Decorator that adds a function as a command of its name, and its docstring as the help.

    Parameters
    ----------
    settings : type of Settings
        Its fields.
    interrupted : str
        What to say after Ctrl-C.
    """

    def register(run: Command[S]) -> Command[S]:
        name = run.__name__

        def invoked(config: Path | None, as_json: bool, **flags: Any) -> None:
            console = Console(stderr=True)
            try:
                answer = run(_settings(settings, name, config, flags))
            except KeyboardInterrupt:
                console.print(f"[yellow]interrupted; {interrupted}[/yellow]")
                raise typer.Exit(ExitCode.INTERRUPTED) from None
            except ConnectionError as error:
                console.print(f"[red]a rank was lost[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
                raise typer.Exit(ExitCode.RANK_LOST) from error
            except (OSError, ValueError, TypeError, FloatingPointError, RuntimeError, ImportError) as error:
                kind = type(error).__name__
                console.print(f"[red]{kind}[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
                raise typer.Exit(ExitCode.BAD_INPUT) from error
            if as_json and answer.data:
                typer.echo(to_json(answer.data, inf_nan_mode="null", indent=2).decode())
            if as_json:
                return
            for each in answer.shown:
                Console().print(each, soft_wrap=isinstance(each, str), markup=False, highlight=False)

        paragraphs = inspect.cleandoc(run.__doc__ or "").split("\n\n")
        invoked.__doc__ = "\n\n".join(" ".join(each.split()) for each in paragraphs)  # as wide as the terminal
        invoked.__annotations__ = {}
        invoked.__signature__ = inspect.Signature(list(_parameters(settings)))  # type: ignore[attr-defined]
        app.command(name)(invoked)
        return run

    return register


def _parameters(settings: type[Settings]) -> list[inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    found = [
        inspect.Parameter(name, kind, default=None, annotation=Annotated[_flag_type(info) | None, _flag(info)])
        for name, info in settings.model_fields.items()
    ]
    config = inspect.Parameter("config", kind, default=None, annotation=Annotated[Path | None, _CONFIG])
    return [*found, config, inspect.Parameter("as_json", kind, default=False, annotation=Annotated[bool, _JSON])]


def _flag(info: FieldInfo) -> Any:
    extra = info.json_schema_extra
    if isinstance(extra, dict) and extra.get("positional"):
        return typer.Argument(help=info.description, show_default=False)
    # The flag itself has no default, so that what is given is told from what is not.
    default = getattr(info.default, "value", info.default)
    plain = default in (None, False) or isinstance(default, (dict, tuple, BaseModel))
    ending = " (needed)" if info.is_required() else "" if plain else f" (default: {default})"
    return typer.Option(help=f"{info.description}{ending}", show_default=False)


def _flag_type(info: FieldInfo) -> Any:
    """What typer reads: the type of a field, lists for sequences, and JSON text for mappings and models."""
    kinds: list[Any] = [info.annotation]
    if isinstance(info.annotation, UnionType):
        kinds = [kind for kind in get_args(info.annotation) if kind is not NoneType]
    origin = get_origin(kinds[0]) or kinds[0]
    if origin in (list, tuple):
        return list[get_args(kinds[0])[0]]  # type: ignore[misc]  # the type is known when the command is made
    return str if _is_mapping(origin) else kinds[0]


def _is_mapping(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, (dict, BaseModel))


def _settings(settings: type[S], command_name: str, config: Path | None, flags: Mapping[str, Any]) -> S:
    """The settings of the file with those of the flags in their place; of mappings entry by entry."""
    entries = {} if config is None else _read(config, command_name)
    for name, value in entries.items():  # 'lags: 0' is as good as 'lags: [0]'
        if isinstance(value, (int, float, str)) and name in settings.model_fields:
            entries[name] = [value] if get_origin(_flag_type(settings.model_fields[name])) is list else value
    for name, value in flags.items():
        if value is None or value == []:
            continue
        annotation = settings.model_fields[name].annotation
        if isinstance(value, str) and _is_mapping(get_origin(annotation) or annotation):
            value = _object(value, f"--{name.replace('_', '-')}")
            old = entries.get(name)
            value = {**old, **value} if isinstance(old, dict) else value
        entries[name] = value
    try:
        return settings.model_validate(entries)
    except ValidationError as error:
        raise ValueError(_explained(error, settings, config)) from error


def _read(path: Path, command_name: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        entries = YAML(typ="safe", pure=True).load(path)
    except YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must hold settings by their names, such as 'output: folder', got {type(entries).__name__}")
    of_commands = entries and entries.keys() <= {each.name for each in app.registered_commands}
    found = entries.get(command_name) or {} if of_commands else entries
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {command_name} must hold settings by their names, got {found!r}")
    return dict(found)


def _object(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object, got {text}")
    return value


def _explained(error: ValidationError, settings: type[Settings], config: Path | None) -> str:
    """What came, what is allowed, what to do: a line for each fault."""
    where = "" if config is None else f" (flags and {config})"
    return "\n".join([f"the settings do not fit{where}", *(f"  {_fault(each, settings)}" for each in error.errors())])


def _fault(fault: Mapping[str, Any], settings: type[Settings]) -> str:
    *outer, last = fault["loc"] or ("settings",)
    name = ".".join(map(str, (*outer, last)))
    if fault["type"] == "missing":
        extra = settings.model_fields[name].json_schema_extra if name in settings.model_fields else None
        flag = f"{name} on the command line" if extra else f"--{name.replace('_', '-')}"
        return f"{name} is missing: give {flag}, or {name}: in the file of --config"
    if fault["type"] == "extra_forbidden":
        fields = list(_model_at(settings, outer).model_fields)
        close = get_close_matches(str(last), fields, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"there is no setting {name!r} (it is {fault['input']!r}); {hint}known: {', '.join(fields)}"
    return f"{name} = {fault['input']!r}: {fault['msg']}"


def _model_at(settings: type[BaseModel], path: list[Any]) -> type[BaseModel]:
    for name in path:
        settings = settings.model_fields[name].annotation  # type: ignore[assignment]  # extra fields are those of a model
    return settings
