"""Descriptions of objects as JSON, for the attributes of stores and comparisons of plans."""

import dataclasses
import functools
import hashlib
import inspect
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

__all__ = ["described", "differences", "without_code"]

_KNOWN_AS = {"flowlab.starts.DrawnStarts": "flowlab.plans.plan.DrawnStarts"}
# the old name of a renamed object, which stores contain, by its new name
_WRITTEN_OUT = 64  # numbers of an array that are written out; of a larger one, their checksum is


def described(thing: Any) -> Any:
    """A JSON-ready description of an object.

    Two objects have the same description only if they compute the same. Numbers, texts and
    containers are their own description. A dataclass (a loss, policy, flow or target) is described
    by its type and its fields; an array by its numbers, or by a checksum if there are many; a
    function by its name and, unless it belongs to flowlab, a checksum of its code, closure and
    defaults; any other object by its `repr`.
    """
    if isinstance(thing, bool | int | str | None):
        return thing
    if isinstance(thing, float):
        return thing if math.isfinite(thing) else repr(thing)
    if isinstance(thing, np.ndarray | np.generic | jax.Array):
        return _of_array(np.asarray(thing))
    if isinstance(thing, Mapping):
        return {str(name): described(value) for name, value in thing.items()}
    if isinstance(thing, tuple | list):
        return [described(value) for value in thing]
    if isinstance(thing, functools.partial | eqx.Partial):
        return {
            "partial": described(thing.func),
            "arguments": described(thing.args),
            "keywords": described(thing.keywords),
        }
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {f.name: described(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
        return {"type": _name(type(thing)), **fields}
    if isinstance(thing, types.MethodType):
        return {"method": _name(thing), "of": described(thing.__self__)}
    if isinstance(thing, types.FunctionType):
        # Like classes, by name alone: compiled code of a function differs between Python versions.
        ours = thing.__module__.startswith("flowlab.") and not thing.__closure__
        return {"function": _name(thing), **({} if ours else {"code": _of_function(thing)})}
    if callable(thing) and hasattr(thing, "__wrapped__"):
        return described(inspect.unwrap(thing))
    if isinstance(thing, type) or type(thing).__repr__ is not object.__repr__:
        return _name(thing) if isinstance(thing, type) else repr(thing)
    # The `repr` of such an object contains its address in memory.
    return {"type": _name(type(thing)), **described(getattr(thing, "__dict__", {}))}


def without_code(told: Any) -> Any:
    """A description without checksums of code, for comparisons that also compare results."""
    if isinstance(told, Mapping):
        return {name: without_code(value) for name, value in told.items() if name != "code"}
    return [without_code(value) for value in told] if isinstance(told, list) else told


def differences(stored: Any, given: Any, where: str = "") -> Iterator[str]:
    """The differences between two descriptions, each as a phrase."""
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        for name in dict.fromkeys([*stored, *given]):
            place = f"{where}.{name}" if where else str(name)
            yield from differences(stored.get(name), given.get(name), place)
    elif stored != given:
        yield f"`{where}` is {_short(stored)} in the store and {_short(given)} here"


def _of_array(array: np.ndarray) -> Any:
    if array.size <= _WRITTEN_OUT:
        return described(array.tolist())
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16)
    return {"shape": list(array.shape), "dtype": array.dtype.name, "blake2b": digest.hexdigest()}


def _of_function(function: types.FunctionType) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _add_code(digest, function.__code__)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    digest.update(repr(described([cells, function.__defaults__, function.__kwdefaults__])).encode())
    return digest.hexdigest()


def _add_code(digest: Any, code: types.CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _add_code(digest, constant)
        else:
            digest.update(repr(constant).encode())


def _name(thing: Any) -> str:
    name = f"{thing.__module__}.{thing.__qualname__}"
    return _KNOWN_AS.get(name, name)


def _short(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
