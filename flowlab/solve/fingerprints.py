"""Fingerprints of users' functions: the keys of compiled programs.

A function may depend on a global, an attribute or a captured array. A compiled program has their
values at the time of compilation as constants. The fingerprint of a function is a digest of the
operations that JAX records when it traces the function, with their constants. A function that now
computes something else is therefore compiled again, whatever the reason for the change, and a
function that computes the same is not.

A fingerprint sees only what JAX traces. JAX does not trace a function again that the user has
compiled with `jax.jit`, so such a function keeps the old values of its globals: call its
`clear_cache()`. The same holds for functions that JAX caches if they are defined once, outside the
function that uses them: bodies of `lax.scan` and `lax.fori_loop`, branches of `lax.cond` and
`lax.switch`, and results of `jax.checkpoint`. For a function that runs on the host
(`jax.pure_callback`), the fingerprint covers the Python code, and the objects that the code holds
and names. It does not cover files, the state of installed libraries, or names computed at run time.
"""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array, Float, PyTree

from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.measures import Ends, Measure, Nodes
from flowlab.solve.captured import LIBRARIES, add_array, add_held

__all__ = ["fingerprint", "motion_of", "observed", "one_call", "one_of", "operations_at"]

_KNOWN: ContextVar[dict[Any, str] | None] = ContextVar("known", default=None)

_BACKWARDS: ContextVar[bool] = ContextVar("backwards", default=False)
"""Whether derivatives are to be taken in reverse mode, for whose rules they are then made."""

_REVERSE_ALONE = ("custom_lin", "custom_vjp")
"""Operations that stand for a rule of a user's for reverse mode, which is not in them."""

_CALLBACK = "callback"  # the parameter of an operation that holds a function on the host

_NAMES = ("name", "debug_info", "metadata")  # parameters of an operation that only name it


def fingerprint(things: Any, state: PyTree[Any], observe: Callable[[Any, Any], Any]) -> str:
    """A digest of the operations of functions at a state; "" if none is a function of the user.

    Values of array leaves are left out, since they are arguments of compiled programs. Arrays that
    a function captures are constants of the program, and are part of the digest.

    Args:
        things: A flow, or any PyTree with functions.
        state: A state that the functions accept; only its shapes and dtypes matter.
        observe: `observe(things, state)` calls all the functions and returns their results.
    """
    known = _KNOWN.get()
    if known is None:
        return _fingerprint(things, state, observe)
    leaves, structure = jax.tree.flatten((things, jax.tree.map(_shape, state)))
    key = (structure, *(_shape(leaf) if eqx.is_array(leaf) else leaf for leaf in leaves))
    if key not in known:
        known[key] = _fingerprint(things, state, observe)
    return known[key]


@contextmanager
def one_call() -> Iterator[None]:
    """A context for one call by the user, in which the user's functions are assumed not to change.

    A call that uses a flow many times then takes the fingerprint of its functions only once.
    """
    before = _KNOWN.get()
    token = _KNOWN.set({} if before is None else before)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def _fingerprint(things: Any, state: PyTree[Any], observe: Callable[[Any, Any], Any]) -> str:
    if _is_known(things):
        return ""
    held, rest = eqx.partition(things, eqx.is_array)
    with jax.enable_x64(_is_wide(state)):
        abstract = jax.tree.map(_shape, (held, state))

        def traced() -> ClosedJaxpr:
            # A new function each time, since JAX caches its traces of functions.
            return jax.make_jaxpr(
                lambda arrays, at: _arrays(observe(eqx.combine(arrays, rest), at))
            )(*abstract)

        closed = traced()
        if any(name.startswith(_REVERSE_ALONE) for name in _names(closed.jaxpr)):
            token = _BACKWARDS.set(True)
            try:
                closed = traced()
            finally:
                _BACKWARDS.reset(token)
    digest = hashlib.blake2b(digest_size=16)
    _add_closed(digest, closed)
    return digest.hexdigest()


def motion_of(flow: AbstractFlow, state: PyTree[Array]) -> tuple[Any, ...]:
    """All results of a flow's functions at a state, for its fingerprint.

    Forward derivatives are included, so that the functions' own derivative rules count, at a third
    of the cost of a gradient.
    """

    def values(state: PyTree[Array]) -> tuple[Any, ...]:
        if type(flow) is not PreferenceFlow:
            return (flow.potential(state),)
        pairs = flow.pairs(state)  # the potential depends on these, and is not traced again
        return flow.loss.mean(pairs, flow.weights), pairs

    seen: list[Any] = [_with_derivatives(values, state), flow.metric(state, state)]
    if not _is_of_library(type(flow)):
        seen += [flow.gradient(state), flow.velocity(state), flow.speed(state)]
        seen += [flow.pairs(state)] if isinstance(flow, PreferenceFlow) else []
    return (*seen, () if _is_known(flow.domain) else _domain_at(flow, state))


def _with_derivatives(function: Callable[[Any], Any], state: PyTree[Array]) -> Any:
    if not _BACKWARDS.get():
        return jax.jvp(function, (state,), (state,))
    values, pull = jax.vjp(function, state)
    return values, pull(values)


def _names(jaxpr: Jaxpr) -> Iterator[str]:
    """The names of all operations of a program, nested programs included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, ClosedJaxpr):
                    yield from _names(part.jaxpr)
                elif isinstance(part, Jaxpr):
                    yield from _names(part)


def observed(problem: Any, state: PyTree[Array]) -> tuple[Any, ...]:
    """All results of the flow, target and measures of a problem at a state, for its fingerprint."""
    flow, target = problem.flow, problem.target
    seen: list[Any] = [motion_of(flow, state)]
    if not _is_known(target):
        seen.append(target.signal(flow, state, _zero(state)))
    seen += problem.clock.watched(flow, target)
    seen += [_measured(one, flow, state) for one in problem.measures if not _is_known(one)]
    return tuple(seen)


def one_of(states: PyTree[Any]) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of one state, from arrays of many states."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x)[1:], x.dtype), states)


def operations_at(flow: AbstractFlow, states: Any) -> str:
    """The fingerprint of a flow, from arrays of many of its states."""
    return fingerprint(flow, one_of(states), motion_of)


def _measured(measure: Measure, flow: AbstractFlow, state: PyTree[Array]) -> Any:
    rate, carry = measure.rate(flow, state, state), measure.begin(flow, state)
    time, points = jnp.stack([_zero(state)]), jax.tree.map(lambda leaf: leaf[None], state)
    carry = measure.fold(flow, carry, Nodes(time, points, points))
    ends = Ends(state, state, state, state, state, time[0], time[0])
    return rate, carry, measure.results(flow, rate, carry, ends)


def _zero(state: PyTree[Array]) -> Float[Array, ""]:
    return jnp.zeros((), jax.tree.leaves(state)[0].dtype)


def _domain_at(flow: AbstractFlow, state: PyTree[Array]) -> Any:
    domain, small = flow.domain, _zero(state)
    coordinates = domain.coordinates(state)
    return (
        domain.contains(state),
        coordinates,
        domain.state(coordinates),
        domain.pushforward(state, state),
        domain.error_scale(coordinates, small, small),
        domain.default_atol(state, small),
        domain.walls(),
    )


def _arrays(tree: PyTree[Any]) -> PyTree[Any]:
    return eqx.filter(tree, eqx.is_array_like)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype
    if not jnp.issubdtype(dtype, jax.dtypes.extended):  # such as keys for random numbers
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, weak_type=getattr(leaf, "weak_type", False))


def _is_wide(state: PyTree[Any]) -> bool:
    return any(leaf.dtype.itemsize > 4 for leaf in jax.tree.leaves(state))


def _is_known(thing: Any) -> bool:
    """True if all functions and classes in an object come from libraries, none from the user."""
    if thing is None or isinstance(thing, str | bytes | bool | int | float | np.ndarray | Enum):
        return True
    if isinstance(thing, tuple | list):
        return all(map(_is_known, thing))
    if isinstance(thing, Mapping):
        return all(map(_is_known, thing.values()))
    if isinstance(thing, functools.partial):
        return all(map(_is_known, (thing.func, thing.args, thing.keywords)))
    if isinstance(thing, types.MethodType):
        return _is_known(thing.__func__) and _is_known(thing.__self__)
    if isinstance(thing, types.FunctionType):
        cells = (cell.cell_contents for cell in thing.__closure__ or ())
        return _is_of_library(thing) and all(map(_is_known, cells))
    if isinstance(thing, type) or hasattr(thing, "__qualname__"):
        return _is_of_library(thing)
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    return _is_of_library(type(thing)) and all(_is_known(getattr(thing, f.name)) for f in fields)


def _is_of_library(thing: Any) -> bool:
    return str(thing.__module__).partition(".")[0] in LIBRARIES


def _add_closed(digest: Any, closed: ClosedJaxpr) -> None:
    for constant in closed.consts:
        _add(digest, constant)
    _add_operations(digest, closed.jaxpr)


def _add_operations(digest: Any, jaxpr: Jaxpr) -> None:
    """Add the operations of a program, with variables numbered in the order of their appearance."""
    numbers: dict[Any, int] = {}

    def kind_of(variable: Any) -> str:
        aval = variable.aval
        if not hasattr(aval, "dtype"):
            return str(aval)
        return f"{aval.dtype}{aval.shape}{getattr(aval, 'weak_type', '')}"

    def add_variables(variables: Iterable[Any]) -> None:
        for variable in variables:
            if isinstance(variable, Literal):
                digest.update(kind_of(variable).encode())
                _add(digest, variable.val)
            elif variable in numbers:
                digest.update(b"%d," % numbers[variable])
            else:
                numbers[variable] = len(numbers)
                digest.update(f"{numbers[variable]}:{kind_of(variable)}".encode())

    add_variables((*jaxpr.constvars, *jaxpr.invars))
    for equation in jaxpr.eqns:
        digest.update(equation.primitive.name.encode())
        add_variables(equation.invars)
        for name, value in equation.params.items():
            if name not in _NAMES:
                digest.update(name.encode())
                # JAX does not trace a function on the host, so its contents are added.
                (add_held if name == _CALLBACK else _add)(digest, value)
        add_variables(equation.outvars)
    digest.update(b"->")
    add_variables(jaxpr.outvars)


def _add(digest: Any, value: Any) -> None:
    """Add a constant or a parameter of an operation to a digest, by its value."""
    if value is None or isinstance(value, str | bool | int | float):
        digest.update(repr(value).encode())
    elif isinstance(value, ClosedJaxpr):
        _add_closed(digest, value)
    elif isinstance(value, Jaxpr):
        _add_operations(digest, value)
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        add_array(digest, value)
    elif isinstance(value, tuple | list):
        digest.update(b"(%d" % len(value))
        for part in value:
            _add(digest, part)
    elif isinstance(value, Mapping):
        _add(digest, list(value.items()))
    elif isinstance(value, types.FunctionType):
        digest.update(f"{value.__module__}.{value.__qualname__}".encode())
        digest.update(value.__code__.co_code)
    elif type(value).__repr__ is object.__repr__ or callable(value):
        digest.update(type(value).__qualname__.encode())
    else:
        digest.update(repr(value).encode())
