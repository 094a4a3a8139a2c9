"""The conversion of the table of options to parameters for typer."""

import functools
import inspect
from collections.abc import Callable, Iterator
from enum import Enum, StrEnum
from typing import Annotated, Any

import typer

from flowlab._options import OPTIONS, OptionError, as_flag, refuse_unless

__all__ = ["option", "with_options"]

_NAMED = "losses_named"
_OF_LOSS = "Argument `loss`"
_Function = Callable[..., None]


def with_options(*names: str, named: bool = False) -> Callable[[_Function], _Function]:
    """A decorator that makes the parameters of a function options of the command line.

    The table of options has an entry for each name. The type and the default are those of the
    parameter.

    Args:
        names: Further options, passed as `**others` with the types of the table; an option that is
            not given is None.
        named: True if losses can also be given as positional arguments. The function receives a
            list of losses.
    """

    def given_to(function: _Function) -> _Function:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            plain = {n: v.value if isinstance(v, Enum) else v for n, v in given.items()}
            arguments = plain.pop(_NAMED, None)
            if not arguments:
                function(**plain)
                return
            refuse_unless(not plain["loss"], _NAMED, "has no effect beside {loss}")
            try:
                function(**plain | {"loss": arguments})
            except OptionError as error:  # which may name the option, that was not typed
                raise error.of_another(_NAMED) if error.name == "loss" else error from None
            except ValueError as error:
                told = str(error)
                if not told.startswith(_OF_LOSS):
                    raise
                raise ValueError(told.replace(_OF_LOSS, f"Argument `{_NAMED}`", 1)) from None

        # In the help, required arguments come first, and others in the order of the table.
        order = list(OPTIONS)
        own = list(_parameters(function, names))
        parameters = sorted(
            [*own, _losses_named(function)] if named else own,
            key=lambda one: (one.default is not one.empty, order.index(one.name)),
        )
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return given_to


def option(name: str, command: str = "") -> Any:
    """An option of the table as an object of typer."""
    entry, flag = OPTIONS[name], as_flag(name)
    text = entry.help_of.get(command, entry.help)
    complete = _losses_begun if name in ("loss", "name", _NAMED) else None
    if not flag.startswith("--"):
        return typer.Argument(metavar=entry.flag, help=text, autocompletion=complete)
    return typer.Option(
        flag,
        help=text,
        metavar=entry.metavar,
        min=entry.least,
        envvar=entry.variable,
        autocompletion=complete,
    )


def _losses_begun(incomplete: str) -> list[str]:
    """The losses whose names begin with a given text, for shell completion."""
    from flowlab.losses import CATALOGUE

    return [name for name in CATALOGUE if name.startswith(incomplete.lower())]


def _losses_named(function: _Function) -> inspect.Parameter:
    """The parameter for losses as positional arguments."""
    return _parameter(function, _NAMED, list[str] | None, None)


def _parameters(function: _Function, names: tuple[str, ...]) -> Iterator[inspect.Parameter]:
    for own in inspect.signature(function).parameters.values():
        if own.kind is own.VAR_KEYWORD:
            for name in names:
                words = OPTIONS[name].choices
                kind: Any = StrEnum(name, list(words)) if words else OPTIONS[name].annotation
                yield _parameter(function, name, kind | None, None)
        else:
            yield _parameter(function, own.name, own.annotation, own.default)


def _parameter(function: _Function, name: str, kind: Any, default: Any) -> inspect.Parameter:
    annotation = Annotated[kind, option(name, function.__name__)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
