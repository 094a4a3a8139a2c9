"""Hyper-parameters: checked fields of modules, and access to them by name.

A hyper-parameter is a non-static field that holds a number or an array. It belongs to a module or
to one of its submodules, which are fields themselves or elements of a tuple. The walls of domains
are not hyper-parameters.
"""

import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike

from flowlab._checks import within
from flowlab.domains import AbstractDomain

__all__ = [
    "arguments",
    "parameter",
    "parameter_names",
    "parameters_of",
    "positive",
    "replaced",
    "short",
    "short_call",
]

_WRITTEN_OUT = 9  # the most numbers of an array that is written out: a kernel of three responses


def parameter(default: Any, name: str, interval: str, *, single: bool = True) -> Any:
    """A field for a hyper-parameter: an array leaf, checked unless its value is a tracer.

    Args:
        default: The default; a default of None also allows None as a value, and
            `dataclasses.MISSING` makes the hyper-parameter required.
        name: The name of the hyper-parameter.
        interval: The allowed interval, such as "[0, 0.5)"; see `flowlab._checks.within`.
        single: Whether it must be a single number.
    """
    convert = functools.partial(_converted, name, interval, single, default is None)
    return eqx.field(default=default, converter=convert)


def positive(default: float, name: str = "beta", *, single: bool = False) -> Any:
    """A field for a positive, finite hyper-parameter: one number, or one per pair."""
    return parameter(default, name, "(0, inf)", single=single)


def _converted(name: str, interval: str, single: bool, optional: bool, value: ArrayLike) -> Any:
    if isinstance(value, Tracer) or (optional and value is None):
        return value
    held = within(name, np.asarray(value) if isinstance(value, jax.Array) else value, interval)
    if single and held.ndim:
        raise ValueError(f"Argument `{name}` must be a single number, but has shape {held.shape}.")
    return held


def arguments(module: Any) -> dict[str, Any]:
    """The values of a module's fields, by the names of its constructor's arguments.

    A field whose argument has another name states that name as `argument` in its metadata. A field
    that is computed from others states None there and is left out.
    """
    return {name: held for name, held, _ in _fields(module)}


def parameter_names(held: Any) -> list[str]:
    """The names of the hyper-parameters of a module, or of a tuple of modules."""
    return list(dict.fromkeys(name for name, _ in parameters_of(held)))


def parameters_of(held: Any) -> Iterator[tuple[str, Any]]:
    """The hyper-parameters of a module, or of a tuple of modules, and their values, in order."""
    if isinstance(held, tuple):
        for part in held:
            yield from parameters_of(part)
    else:
        for name, part, own in _fields(held):
            if own:
                yield name, part
            else:
                yield from parameters_of(part)


def replaced(held: Any, name: str, value: Any) -> Any:
    """A module with one hyper-parameter replaced, in the module and in all of its parts.

    Parts without a hyper-parameter of that name are unchanged; others are constructed anew.

    Raises:
        ValueError: If a constructor refuses the value.
    """
    if isinstance(held, tuple):
        return tuple(replaced(part, name, value) for part in held)
    if name not in parameter_names(held):
        return held
    fields, accepted = list(_fields(held)), inspect.signature(type(held)).parameters
    if name not in accepted and any(own and key == name for key, _, own in fields):
        return eqx.tree_at(lambda module: getattr(module, name), held, np.asarray(value, float))
    known = {
        key: value if own and key == name else replaced(part, name, value)
        for key, part, own in fields
        if key in accepted
    }
    return type(held)(**known)


def short_call(module: Any) -> str:
    """A module as the text of a constructor call, without arguments that equal their defaults."""
    usual = {name: one.default for name, one in inspect.signature(type(module)).parameters.items()}
    for field in dataclasses.fields(module):  # the value that a constructor makes of None
        if "usual" in field.metadata:
            usual[field.metadata.get("argument", field.name)] = field.metadata["usual"]
    given = arguments(module)
    told = {n: given[n] for n in usual if n in given and not _is_usual(usual[n], given[n])}
    return f"{type(module).__name__}({', '.join(f'{n}={short(v)}' for n, v in told.items())})"


def short(value: Any) -> str:
    """The value of an argument as text on one line; for a large array, its shape."""
    if isinstance(value, Tracer):
        return "traced"
    if isinstance(value, np.ndarray | jax.Array):
        if value.ndim == 0:
            return f"{float(value):g}"
        large = value.size > _WRITTEN_OUT
        return f"array of shape {value.shape}" if large else str(np.asarray(value).tolist())
    if isinstance(value, tuple):
        return f"({', '.join(map(short, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {short(part)}' for name, part in value.items())}}}"
    if inspect.isroutine(value):
        return value.__qualname__
    return repr(value)


def _is_usual(usual: Any, value: Any) -> bool:
    """True if an argument has its default value, or is a domain without walls."""
    if value is None or isinstance(value, Tracer):
        return value is None
    if isinstance(value, AbstractDomain):
        return not value.walls()[1].size
    if isinstance(value, np.ndarray | jax.Array):
        if isinstance(usual, np.ndarray):
            return np.array_equal(value, usual)
        # A single number is the default of each element.
        return isinstance(usual, float | int) and bool(np.all(np.asarray(value) == usual))
    return isinstance(value, str | float | int | tuple) and bool(value == usual)


def _fields(held: Any) -> Iterator[tuple[str, Any, bool]]:
    """For each field of a module: its argument, its value, and whether it is a hyper-parameter."""
    if not dataclasses.is_dataclass(held) or isinstance(held, (type, AbstractDomain)):
        return
    for field in dataclasses.fields(held):
        name, part = field.metadata.get("argument", field.name), getattr(held, field.name)
        if name is not None:
            fixed = field.metadata.get("static", False)
            yield name, part, eqx.is_array_like(part) and not fixed
