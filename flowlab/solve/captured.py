"""Digests of functions that run on the host, whose operations JAX does not see when it traces.

The digest of a user's function covers its code, constants, defaults, attributes, closure, and the
globals that it names, and recursively the same of the functions among these. Functions of installed
libraries are identified by their names alone.
"""

import functools
import hashlib
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Set
from enum import Enum
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["LIBRARIES", "add_array", "add_held"]

LIBRARIES = frozenset(
    "builtins diffrax equinox flowlab functools jax jaxlib lineax numpy optax optimistix".split()
)
"""Whose functions compute the same as long as a process lives."""

_INSTALLED = tuple(
    Path(place).resolve()
    for name, place in sysconfig.get_paths().items()
    if name in ("stdlib", "platstdlib", "purelib", "platlib")
)

_PLAIN = (str, bytes, bool, int, float, complex, Enum, slice, range, type(None), type(...))

_OF_A_PROCESS = ("logging", "threading")  # modules whose objects do not affect results

_ADDRESS = re.compile(r"0x[0-9a-f]+", re.IGNORECASE)  # the address of an object in memory


def add_held(digest: Any, thing: Any, known: dict[int, tuple[Any, bytes]] | None = None) -> None:
    """Add the contents of a Python object to a digest; the result is the same in every process.

    Args:
        digest: The digest, a hash object.
        thing: Any Python object.
        known: Objects that were read before, each with its digest, by their address; None for no
            such objects. It ends the recursion into objects that contain themselves.
    """
    known = {} if known is None else known
    if isinstance(thing, _PLAIN):
        digest.update(f"{type(thing).__name__} {thing!r};".encode())
    elif isinstance(thing, np.ndarray | np.generic | jax.Array) and thing.dtype != object:
        add_array(digest, thing)
    else:
        if id(thing) not in known:
            known[id(thing)] = (thing, b"itself")
            own = hashlib.blake2b(digest_size=16)
            for part in _parts(thing):
                own.update(part) if isinstance(part, bytes) else add_held(own, part[0], known)
            known[id(thing)] = (thing, own.digest())
        digest.update(known[id(thing)][1])


def add_array(digest: Any, value: Any) -> None:
    """Add the dtype, shape and values of an array (or random key) to a digest."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())


def _parts(thing: Any) -> Iterator[bytes | tuple[Any]]:
    """The contents of an object: bytes, or further objects, each wrapped in a tuple."""
    kind = type(thing)
    yield f"{kind.__module__}.{kind.__qualname__}(".encode()
    if isinstance(thing, Mapping):
        for item in thing.items():
            yield (item,)
    elif isinstance(thing, Set):
        yield _ADDRESS.sub("", repr(sorted(map(repr, thing)))).encode()
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield (part,)
    elif isinstance(thing, np.ndarray):  # of objects
        yield (thing.tolist(),)
    elif isinstance(thing, functools.partial):
        yield ((thing.func, thing.args, thing.keywords),)
    elif isinstance(thing, types.MethodType):
        yield ((thing.__func__, thing.__self__),)
    elif isinstance(thing, types.BuiltinMethodType):
        yield thing.__qualname__.encode()
        if not isinstance(thing.__self__, types.ModuleType):
            yield (thing.__self__,)
    elif isinstance(thing, types.FunctionType):
        yield from _of_function(thing)
    elif isinstance(thing, types.CodeType):
        yield thing.co_code
        yield ((thing.co_names, thing.co_consts),)
    elif isinstance(thing, type | types.ModuleType):
        yield from _of_class(thing) if isinstance(thing, type) else (thing.__name__.encode(),)
    elif isinstance(thing, classmethod | staticmethod) or hasattr(thing, "__wrapped__"):
        yield (thing.__wrapped__,)
    else:
        yield from _of_object(thing)


def _of_function(function: types.FunctionType) -> Iterator[bytes | tuple[Any]]:
    yield f"{function.__module__}.{function.__qualname__}".encode()
    for cell in function.__closure__ or ():
        try:
            yield (cell.cell_contents,)
        except ValueError:  # a variable of the closure without a value yet
            yield b"empty;"
    if _is_installed(function.__module__):
        return
    yield ((function.__code__, function.__defaults__, function.__kwdefaults__),)
    yield (function.__dict__,)
    names = sorted(set(_names(function.__code__)))
    for name in names:
        if name in function.__globals__:
            found = function.__globals__[name]
            yield ((name, found),)
            if isinstance(found, types.ModuleType) and not _is_installed(found.__name__):
                held = vars(found)
                yield ([(other, held[other]) for other in names if other in held],)


def _of_class(kind: type) -> Iterator[bytes | tuple[Any]]:
    for each in kind.__mro__:
        yield f"{each.__module__}.{each.__qualname__}".encode()
        if not _is_installed(each.__module__):
            held = {n: v for n, v in vars(each).items() if n == "__call__" or n[:2] != "__"}
            yield ({n: getattr(v, "fget", None) or v for n, v in sorted(held.items())},)


def _of_object(thing: Any) -> Iterator[bytes | tuple[Any]]:
    slots = [name for each in type(thing).__mro__ for name in getattr(each, "__slots__", ())]
    held = {name: getattr(thing, name) for name in slots if _is_held(thing, name)}
    held |= getattr(thing, "__dict__", {})
    if not _is_installed(type(thing).__module__):
        yield (type(thing),)
    if held and type(thing).__module__ not in _OF_A_PROCESS:
        yield (held,)
    else:
        yield _ADDRESS.sub("", repr(thing)).encode()


def _is_held(thing: Any, name: str) -> bool:
    return not name.startswith("__") and hasattr(thing, name)


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names that a code object uses, nested functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@functools.cache
def _is_installed(name: str | None) -> bool:
    """True if a module name belongs to Python or to an installed library."""
    top = str(name).partition(".")[0]
    if top in LIBRARIES or top in sys.builtin_module_names:
        return True
    place = getattr(sys.modules.get(str(name)), "__file__", None)
    return place is not None and any(Path(place).resolve().is_relative_to(p) for p in _INSTALLED)
