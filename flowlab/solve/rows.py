"""Mathematics written for one lane, evaluated for a block of lanes, component by component.

`jax.vmap` moves the lanes to the front where a function takes a vector apart or puts one together:
arrays become (n, d), and every loop over them strides. Here the function of one lane is traced, and
what it does is done on rows: each component of a small vector is an array of its own over the
lanes, from the first operation to the last. Taking apart, putting together, padding and reshaping
then cost nothing. What cannot be done in rows (a large array, a loop, a rule of its own) is mapped
by `jax.vmap`, in the same program.

Rows make programs that run several times as fast, and take two to three times as long to trace and
to compile: they are for programs that are optimised, within `in_rows`; all others are mapped.

n: lanes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, reduce
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, Literal
from jaxtyping import Array, PyTree

__all__ = ["in_rows", "lanewise", "written_out"]

_SMALL = 64  # elements of an array above which it is mapped whole
_LONGEST = 8  # elements of an argument up to which rows are faster, and compile as quickly

_ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp "
    "convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 "
    "expm1 floor ge gt igamma igammac integer_pow is_finite le lgamma log log1p logistic lt "
    "max min mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n sign "
    "sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
_FOLDS = {
    "reduce_sum": lax.add,
    "reduce_prod": lax.mul,
    "reduce_max": lax.max,
    "reduce_min": lax.min,
    "reduce_and": lax.bitwise_and,
    "reduce_or": lax.bitwise_or,
}
_INLINED = ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint")


_IN_ROWS = ContextVar("in_rows", default=False)


@contextmanager
def in_rows(wanted: bool) -> Iterator[None]:
    """A context in which `lanewise` evaluates in rows, or does not; entered while tracing."""
    before = _IN_ROWS.set(wanted)
    try:
        yield
    finally:
        _IN_ROWS.reset(before)


def written_out() -> bool:
    """Whether the program that is being traced is to run fast, rather than to compile fast."""
    return _IN_ROWS.get()


class _Rows:
    """A small array whose elements are arrays: rows over the lanes, or numbers that all share."""

    def __init__(self, elements: np.ndarray, dtype: Any) -> None:
        self.elements = elements
        self.dtype = dtype


_Value = Any  # _Rows, or an array with the lanes last, or a _Shared


class _Shared:
    """A large array that all lanes share."""

    def __init__(self, array: Any) -> None:
        self.array = array


def lanewise(function: Callable[..., Any], *, longest: int = _LONGEST) -> Callable[..., Any]:
    """A function of one lane, mapped over the last axis of its arguments and results.

    Args:
        function: What to map.
        longest: Elements of an argument up to which everything is done in rows.

    Within `in_rows(True)` in rows, else by `jax.vmap`.
    """

    def mapped(*arguments: PyTree[Array]) -> PyTree[Array]:
        leaves, structure = jax.tree.flatten(arguments)
        if not written_out() or any(leaf.size > longest * leaf.shape[-1] for leaf in leaves):
            alone = all(leaf.shape[-1] == 1 for leaf in leaves)
            return _alone(function, arguments) if alone else jax.vmap(function, -1, -1)(*arguments)
        count = leaves[0].shape[-1]
        one = [jax.ShapeDtypeStruct(leaf.shape[:-1], leaf.dtype) for leaf in leaves]
        closed, shapes = jax.make_jaxpr(
            lambda *flat: function(*jax.tree.unflatten(structure, flat)), return_shape=True
        )(*one)
        constants = [_shared(constant) for constant in closed.consts]
        results = _evaluated(
            closed.jaxpr, constants, [_taken_apart(leaf) for leaf in leaves], count
        )
        as_given = dict(zip(closed.jaxpr.invars, leaves, strict=True))
        whole = [
            as_given[variable] if _is_given(variable, as_given) else _with_lanes_last(result, count)
            for variable, result in zip(closed.jaxpr.outvars, results, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(shapes), whole)

    return mapped


def _alone(function: Callable[..., Any], arguments: PyTree[Array]) -> PyTree[Array]:
    """The function of the one lane there is, which is traced without a map in less time."""
    lane = jax.tree.map(lambda leaf: lax.squeeze(leaf, (leaf.ndim - 1,)), arguments)
    return jax.tree.map(lambda leaf: lax.expand_dims(leaf, (np.ndim(leaf),)), function(*lane))


def _is_given(variable: Any, as_given: dict[Any, Array]) -> bool:
    return not isinstance(variable, Literal) and variable in as_given


def _evaluated(jaxpr: Jaxpr, constants: list[_Value], arguments: list[_Value], count: int) -> Any:
    known: dict[Any, _Value] = {}

    def read(variable: Any) -> _Value:
        if isinstance(variable, Literal):
            return _shared(np.asarray(variable.val, variable.aval.dtype))  # type: ignore[attr-defined]
        return known[variable]

    known.update(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        outputs = _done(equation, inputs, count)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _done(equation: Any, inputs: list[_Value], count: int) -> list[_Value]:
    """The outputs of one operation: in rows where it can be done so, else mapped."""
    name, parameters = equation.primitive.name, equation.params
    if name in _INLINED and "jaxpr" in parameters:
        inner = parameters["jaxpr"]
        constants = [_shared(constant) for constant in getattr(inner, "consts", ())]
        return _evaluated(getattr(inner, "jaxpr", inner), constants, inputs, count)
    sizes = [v.aval.size for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "size")]
    if all(isinstance(value, _Rows) for value in inputs) and max(sizes, default=0) <= _SMALL:
        elements = [value.elements for value in inputs]
        made = None
        if name in _ELEMENTWISE:
            made = _each(equation, elements, count)
        elif name in _MOVED:
            made = _MOVED[name](equation, *elements)
        elif name in _FOLDS and elements[0].size:
            made = _folded(_FOLDS[name], elements[0], parameters["axes"], count)
        elif name == "dot_general" and elements[0].size:
            made = _product(equation, (elements[0], elements[1]), count)
        if made is not None:
            return [_Rows(made, equation.outvars[0].aval.dtype)]
    return _mapped(equation, inputs, count)


def _each(equation: Any, operands: list[np.ndarray], count: int) -> np.ndarray:
    bind = partial(equation.primitive.bind, **equation.params)
    if "sharding" in equation.params:
        bind = partial(bind, sharding=None)
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    spread = [np.broadcast_to(operand, shape) for operand in operands]
    result = np.empty(shape, object)
    for place in np.ndindex(*shape):
        result[place] = bind(*_alike([operand[place] for operand in spread], count))
    return result


def _folded(fold: Any, operand: np.ndarray, axes: tuple[int, ...], count: int) -> np.ndarray:
    kept = [axis for axis in range(operand.ndim) if axis not in axes]
    flat = operand.transpose(*kept, *axes)
    flat = flat.reshape(*(operand.shape[axis] for axis in kept), -1)
    result = np.empty(flat.shape[:-1], object)
    for place in np.ndindex(*result.shape):
        result[place] = reduce(lambda a, b: fold(*_alike([a, b], count)), flat[place])
    return result


def _product(equation: Any, factors: tuple[np.ndarray, np.ndarray], count: int) -> np.ndarray:
    """A product of small arrays, written out."""
    left, right = factors
    (left_over, right_over), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left_free = [i for i in range(left.ndim) if i not in (*left_over, *left_batch)]
    right_free = [i for i in range(right.ndim) if i not in (*right_over, *right_batch)]
    a = left.transpose(*left_batch, *left_free, *left_over)
    b = right.transpose(*right_batch, *right_free, *right_over)
    batch = [left.shape[i] for i in left_batch]
    rows, columns = ([x.shape[i] for i in f] for x, f in ((left, left_free), (right, right_free)))
    a = a.reshape(*batch, int(np.prod(rows)), -1)
    b = b.reshape(*batch, int(np.prod(columns)), -1)
    result = np.empty((*batch, a.shape[-2], b.shape[-2]), object)
    for *lead, i, j in product(*map(range, result.shape)):
        pairs = zip(a[(*lead, i)], b[(*lead, j)], strict=True)
        terms = [lax.mul(*_alike([x, y], count)) for x, y in pairs]
        result[(*lead, i, j)] = reduce(lambda x, y: lax.add(*_alike([x, y], count)), terms)
    wanted = equation.outvars[0].aval
    cast = np.frompyfunc(lambda x: lax.convert_element_type(x, wanted.dtype), 1, 1)
    return np.asarray(cast(result), object).reshape(wanted.shape)


def _broadcast(equation: Any, operand: np.ndarray, *_: Any) -> np.ndarray:
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    spread = operand.reshape(
        [operand.shape[axes.index(i)] if i in axes else 1 for i in range(len(shape))]
    )
    return np.broadcast_to(spread, shape)


def _slice(equation: Any, operand: np.ndarray) -> np.ndarray:
    given = equation.params
    strides = given["strides"] or (1,) * operand.ndim
    places = zip(given["start_indices"], given["limit_indices"], strides, strict=True)
    return operand[tuple(slice(*place) for place in places)]


def _padded(equation: Any, operand: np.ndarray, filling: np.ndarray) -> np.ndarray:
    result = np.empty(equation.outvars[0].aval.shape, object)
    for place in np.ndindex(*result.shape):
        result[place] = filling[()]
    configuration = equation.params["padding_config"]
    for place in np.ndindex(*operand.shape):
        there = tuple(
            low + i * (1 + gap) for i, (low, _, gap) in zip(place, configuration, strict=True)
        )
        if all(0 <= i < size for i, size in zip(there, result.shape, strict=True)):
            result[there] = operand[place]
    return result


def _reshaped(equation: Any, operand: np.ndarray, *_: Any) -> np.ndarray:
    return operand.reshape(equation.outvars[0].aval.shape)


_MOVED: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda e, *parts: np.concatenate(parts, axis=e.params["dimension"]),
    "expand_dims": _reshaped,
    "pad": _padded,
    "reshape": _reshaped,
    "rev": lambda e, operand: np.flip(operand, e.params["dimensions"]),
    "slice": _slice,
    "squeeze": _reshaped,
    "transpose": lambda e, operand: operand.transpose(e.params["permutation"]),
}


def _mapped(equation: Any, inputs: list[_Value], count: int) -> list[_Value]:
    """The outputs of an operation on whole arrays, by `jax.vmap`."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)

    def operation(*operands: Array) -> list[Array]:
        result = equation.primitive.bind(*functions, *operands, **parameters)
        return list(result) if equation.primitive.multiple_results else [result]

    shared = [_is_shared(value) for value in inputs]
    operands = [
        _one_array(value) if same else _with_lanes_last(value, count)
        for value, same in zip(inputs, shared, strict=True)
    ]
    if all(shared):
        return [_shared(result) for result in operation(*operands)]
    axes = tuple(None if same else -1 for same in shared)
    results = jax.vmap(operation, in_axes=axes, out_axes=-1)(*operands)
    return [_taken_apart(result) for result in results]


def _shared(array: Any) -> _Value:
    """What all lanes share: as numbers where there are few of them."""
    if np.size(array) > _SMALL:
        return _Shared(array)
    result = np.empty(np.shape(array), object)
    for place in np.ndindex(*result.shape):
        result[place] = array[place] if result.shape else array
    return _Rows(result, array.dtype)


def _taken_apart(array: Array) -> _Value:
    shape = array.shape[:-1]
    if int(np.prod(shape)) > _SMALL:
        return array
    result = np.empty(shape, object)
    for place in np.ndindex(*shape):
        result[place] = array[place]
    return _Rows(result, array.dtype)


def _is_shared(value: _Value) -> bool:
    if isinstance(value, _Rows):
        return all(np.ndim(element) == 0 for element in value.elements.flat)
    return isinstance(value, _Shared)


def _one_array(value: _Value) -> Any:
    """What all lanes share, as one array."""
    if isinstance(value, _Shared):
        return value.array
    elements = [jnp.asarray(element) for element in value.elements.flat]
    if value.elements.ndim == 0:
        return elements[0]
    if not elements:
        return jnp.zeros(value.elements.shape, value.dtype)
    return jnp.reshape(jnp.stack(elements), value.elements.shape)


def _with_lanes_last(value: _Value, count: int) -> Array:
    if isinstance(value, _Shared):
        return jnp.broadcast_to(value.array[..., None], (*value.array.shape, count))
    if not isinstance(value, _Rows):
        return value
    rows = [_row(element, count) for element in value.elements.flat]
    if value.elements.ndim == 0:
        return rows[0]
    if not rows:
        return jnp.zeros((*value.elements.shape, count), value.dtype)
    return jnp.reshape(jnp.stack(rows), (*value.elements.shape, count))


def _row(element: Any, count: int) -> Array:
    return element if np.ndim(element) else jnp.broadcast_to(element, (count,))


def _alike(elements: list[Any], count: int) -> list[Any]:
    """Elements as rows where one of them is."""
    if all(np.ndim(element) == 0 for element in elements):
        return elements
    return [_row(element, count) for element in elements]
