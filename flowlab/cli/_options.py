"""The table of options, as typer reads it off the parameters of a function."""

import functools
import inspect
from collections.abc import Callable, Iterator
from enum import Enum, StrEnum
from typing import Annotated, Any

import typer

from flowlab._options import OPTIONS, as_flag

__all__ = ["option", "with_options"]

_Function = Callable[..., None]


def with_options(*names: str) -> Callable[[_Function], _Function]:
    """Give a function the options of the table that have the names of its parameters.

    Each has the type and the default of the parameter.

    Args:
        names: What the function takes as `**others`: options of the type of the table, each of
            which is None where it is not given.
    """

    def given_to(function: _Function) -> _Function:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            function(**{n: v.value if isinstance(v, Enum) else v for n, v in given.items()})

        # The help has what must be given first, else the order of the table.
        order = list(OPTIONS)
        parameters = sorted(
            _parameters(function, names),
            key=lambda own: (own.default is not own.empty, order.index(own.name)),
        )
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return given_to


def option(name: str, command: str = "") -> Any:
    """An option of the table, as typer takes it for a command."""
    entry, flag = OPTIONS[name], as_flag(name)
    text = entry.help_of.get(command, entry.help)
    if not flag.startswith("--"):
        return typer.Argument(metavar=entry.flag, help=text)
    return typer.Option(
        flag, help=text, metavar=entry.metavar, min=entry.least, envvar=entry.variable
    )


def _parameters(function: _Function, names: tuple[str, ...]) -> Iterator[inspect.Parameter]:
    def parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
        annotation = Annotated[kind, option(name, function.__name__)]
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )

    for own in inspect.signature(function).parameters.values():
        if own.kind is own.VAR_KEYWORD:
            for name in names:
                words = OPTIONS[name].choices
                kind: Any = StrEnum(name, list(words)) if words else OPTIONS[name].annotation
                yield parameter(name, kind | None, None)
        else:
            yield parameter(own.name, own.annotation, own.default)
