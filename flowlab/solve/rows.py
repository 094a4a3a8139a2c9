"""A function of one lane, evaluated for a block of lanes component by component.

If a function indexes or stacks vectors, `jax.vmap` moves the lanes to the first axis: arrays get
the shape (n, d), and loops over them have strides. This module traces the function of one lane
instead, and applies each of its operations to rows. A row is one component of a small vector, as an
array over the lanes. Indexing, stacking, padding and reshaping then cost nothing. Operations that
cannot be evaluated in rows (on a large array, a loop, a custom rule) are mapped by `jax.vmap`
within the same program.

Programs in rows run several times as fast, but take two to three times as long to trace and to
compile. They are used for optimised programs, within `in_rows`; all others are mapped.

n: lanes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, reduce
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, Literal
from jaxtyping import Array, PyTree

__all__ = [
    "Layout",
    "NoRowsError",
    "Rows",
    "alike",
    "evaluated",
    "in_rows",
    "lanewise",
    "row",
    "shared",
    "written_out",
]

_SMALL = 64  # the most elements of an array that is stored in rows
_LONGEST = 8  # elements of an argument up to which rows are faster

_ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp "
    "convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 "
    "expm1 floor ge gt igamma igammac integer_pow is_finite le lgamma log log1p log2 logistic "
    "lt max min mul ne neg nextafter not one_minus_square or polynomial pow reduce_precision "
    "rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin "
    "sinh sqrt square stop_gradient sub tan tanh xor".split()
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
    """A context, entered while tracing, that switches `lanewise` between rows and `jax.vmap`."""
    before = _IN_ROWS.set(wanted)
    try:
        yield
    finally:
        _IN_ROWS.reset(before)


def written_out() -> bool:
    """True if the program being traced should run fast rather than compile fast."""
    return _IN_ROWS.get()


class Rows:
    """A small array whose elements are rows (arrays over the lanes) or numbers of all lanes."""

    def __init__(self, elements: np.ndarray, dtype: Any) -> None:
        self.elements = elements
        self.dtype = dtype


_Value = Any  # Rows, or an array with the lanes last, or a _Shared


class NoRowsError(Exception):
    """The error for an operation without a rule for rows, in a program that allows only rows."""


@dataclass(frozen=True)
class Layout:
    """The rules by which operations are evaluated in rows.

    Attributes:
        lanes: Shape of a row.
        largest: Number of elements up to which an array is stored in rows.
        own: A function with further rules, tried first: from an operation and its inputs to the
            outputs, or None if no rule applies. With such a function, an operation without any rule
            raises a `NoRowsError`; if `own` is None, it is mapped by `jax.vmap`.
    """

    lanes: tuple[int, ...]
    largest: int = _SMALL
    own: Callable[[Any, list[Any], "Layout"], list[Any] | None] | None = None


class _Shared:
    """A large array that all lanes share."""

    def __init__(self, array: Any) -> None:
        self.array = array


def lanewise(function: Callable[..., Any], *, longest: int = _LONGEST) -> Callable[..., Any]:
    """A function of one lane, mapped over the last axis of its arguments and results.

    It is evaluated in rows within `in_rows(True)`, and otherwise mapped by `jax.vmap`.

    Args:
        function: The function to map.
        longest: Number of elements of an argument, per lane, above which `jax.vmap` is used anyway.
    """

    def mapped(*arguments: PyTree[Array]) -> PyTree[Array]:
        leaves, structure = jax.tree.flatten(arguments)
        if all(leaf.shape[-1] == 1 for leaf in leaves):
            return _alone(function, arguments)
        if not written_out() or any(leaf.size > longest * leaf.shape[-1] for leaf in leaves):
            return jax.vmap(function, -1, -1)(*arguments)
        layout = Layout(leaves[0].shape[-1:])
        one = [jax.ShapeDtypeStruct(leaf.shape[:-1], leaf.dtype) for leaf in leaves]
        closed, shapes = jax.make_jaxpr(
            lambda *flat: function(*jax.tree.unflatten(structure, flat)), return_shape=True
        )(*one)
        constants = [shared(constant, layout) for constant in closed.consts]
        results = evaluated(
            closed.jaxpr, constants, [_taken_apart(leaf, layout) for leaf in leaves], layout
        )
        as_given = dict(zip(closed.jaxpr.invars, leaves, strict=True))
        whole = [
            as_given[variable]
            if _is_given(variable, as_given)
            else _with_lanes_last(result, layout)
            for variable, result in zip(closed.jaxpr.outvars, results, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(shapes), whole)

    return mapped


def _alone(function: Callable[..., Any], arguments: PyTree[Array]) -> PyTree[Array]:
    """The result for a block of a single lane, which is traced faster without a map."""
    lane = jax.tree.map(lambda leaf: lax.squeeze(leaf, (leaf.ndim - 1,)), arguments)
    return jax.tree.map(lambda leaf: lax.expand_dims(leaf, (np.ndim(leaf),)), function(*lane))


def _is_given(variable: Any, as_given: dict[Any, Array]) -> bool:
    return not isinstance(variable, Literal) and variable in as_given


def evaluated(
    jaxpr: Jaxpr, constants: list[_Value], arguments: list[_Value], layout: Layout
) -> list[Any]:
    """The results of a single-lane function for all lanes; constants and arguments are rows."""
    known: dict[Any, _Value] = {}

    def read(variable: Any) -> _Value:
        if isinstance(variable, Literal):
            return shared(np.asarray(variable.val, variable.aval.dtype), layout)  # type: ignore[attr-defined]
        return known[variable]

    known.update(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        outputs = _done(equation, inputs, layout)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _done(equation: Any, inputs: list[_Value], layout: Layout) -> list[_Value]:
    """The outputs of one operation: in rows if there is a rule, otherwise mapped."""
    name, parameters = equation.primitive.name, equation.params
    found = None if layout.own is None else layout.own(equation, inputs, layout)
    if found is not None:
        return found
    if name in _INLINED and "jaxpr" in parameters:
        inner = parameters["jaxpr"]
        constants = [shared(constant, layout) for constant in getattr(inner, "consts", ())]
        return evaluated(getattr(inner, "jaxpr", inner), constants, inputs, layout)
    sizes = [v.aval.size for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "size")]
    if all(isinstance(value, Rows) for value in inputs) and max(sizes, default=0) <= layout.largest:
        elements = [value.elements for value in inputs]
        if name in _PARTED:
            parts = _PARTED[name](equation, *elements)
            return [Rows(part, inputs[0].dtype) for part in parts]
        made = None
        if name in _ELEMENTWISE:
            made = _each(equation, elements, layout)
        elif name in _MOVED:
            made = _MOVED[name](equation, *elements)
        elif name in _FOLDS and elements[0].size:
            made = _folded(_FOLDS[name], elements[0], parameters["axes"], layout)
        elif name == "dot_general" and elements[0].size:
            made = _product(equation, (elements[0], elements[1]), layout)
        if made is not None:
            return [Rows(made, equation.outvars[0].aval.dtype)]
    if layout.own is not None:
        raise NoRowsError(name)
    return _mapped(equation, inputs, layout)


def _each(equation: Any, operands: list[np.ndarray], layout: Layout) -> np.ndarray:
    bind = partial(equation.primitive.bind, **equation.params)
    if "sharding" in equation.params:
        bind = partial(bind, sharding=None)
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    spread = [np.broadcast_to(operand, shape) for operand in operands]
    result = np.empty(shape, object)
    for position in np.ndindex(*shape):
        result[position] = bind(*alike([operand[position] for operand in spread], layout))
    return result


def _folded(fold: Any, operand: np.ndarray, axes: tuple[int, ...], layout: Layout) -> np.ndarray:
    kept = [axis for axis in range(operand.ndim) if axis not in axes]
    flat = operand.transpose(*kept, *axes)
    flat = flat.reshape(*(operand.shape[axis] for axis in kept), -1)
    result = np.empty(flat.shape[:-1], object)
    for position in np.ndindex(*result.shape):
        result[position] = reduce(lambda a, b: fold(*alike([a, b], layout)), flat[position])
    return result


def _product(equation: Any, factors: tuple[np.ndarray, np.ndarray], layout: Layout) -> np.ndarray:
    """A matrix product of small arrays, written out as sums of products."""
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
        terms = [lax.mul(*alike([x, y], layout)) for x, y in pairs]
        result[(*lead, i, j)] = reduce(lambda x, y: lax.add(*alike([x, y], layout)), terms)
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
    positions = zip(given["start_indices"], given["limit_indices"], strides, strict=True)
    return operand[tuple(slice(*position) for position in positions)]


def _padded(equation: Any, operand: np.ndarray, filling: np.ndarray) -> np.ndarray:
    result = np.empty(equation.outvars[0].aval.shape, object)
    for position in np.ndindex(*result.shape):
        result[position] = filling[()]
    configuration = equation.params["padding_config"]
    for position in np.ndindex(*operand.shape):
        there = tuple(
            low + i * (1 + gap) for i, (low, _, gap) in zip(position, configuration, strict=True)
        )
        if all(0 <= i < size for i, size in zip(there, result.shape, strict=True)):
            result[there] = operand[position]
    return result


def _reshaped(equation: Any, operand: np.ndarray, *_: Any) -> np.ndarray:
    return operand.reshape(equation.outvars[0].aval.shape)


def _stacked(equation: Any, *operands: np.ndarray) -> np.ndarray:
    return np.stack(operands, axis=equation.params["axis"])


_MOVED: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda e, *parts: np.concatenate(parts, axis=e.params["dimension"]),
    "expand_dims": _reshaped,
    "pad": _padded,
    "reshape": _reshaped,
    "rev": lambda e, operand: np.flip(operand, e.params["dimensions"]),
    "slice": _slice,
    "squeeze": _reshaped,
    "stack": _stacked,
    "transpose": lambda e, operand: operand.transpose(e.params["permutation"]),
}


def _split(equation: Any, operand: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum(equation.params["sizes"])[:-1].tolist()
    return np.split(operand, ends, axis=equation.params["axis"])


def _unstacked(equation: Any, operand: np.ndarray) -> list[np.ndarray]:
    parts = np.moveaxis(operand, equation.params["axis"], 0)
    return [parts[index, ...] for index in range(len(parts))]


_PARTED: dict[str, Callable[..., list[np.ndarray]]] = {"split": _split, "unstack": _unstacked}


def _mapped(equation: Any, inputs: list[_Value], layout: Layout) -> list[_Value]:
    """The outputs of an operation, mapped over whole arrays by `jax.vmap`."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)

    def operation(*operands: Array) -> list[Array]:
        result = equation.primitive.bind(*functions, *operands, **parameters)
        return list(result) if equation.primitive.multiple_results else [result]

    common = [_is_shared(value) for value in inputs]
    operands = [
        _one_array(value) if same else _with_lanes_last(value, layout)
        for value, same in zip(inputs, common, strict=True)
    ]
    if all(common):
        return [shared(result, layout) for result in operation(*operands)]
    axes = tuple(None if same else -1 for same in common)
    results = jax.vmap(operation, in_axes=axes, out_axes=-1)(*operands)
    return [_taken_apart(result, layout) for result in results]


def shared(array: Any, layout: Layout) -> _Value:
    """An array that all lanes share, as separate numbers if it is small."""
    if np.size(array) > layout.largest:
        return _Shared(array)
    result = np.empty(np.shape(array), object)
    for position in np.ndindex(*result.shape):
        result[position] = array[position] if result.shape else array
    return Rows(result, array.dtype)


def _taken_apart(array: Array, layout: Layout) -> _Value:
    shape = array.shape[:-1]
    if int(np.prod(shape)) > layout.largest:
        return array
    result = np.empty(shape, object)
    for position in np.ndindex(*shape):
        result[position] = array[position]
    return Rows(result, array.dtype)


def _is_shared(value: _Value) -> bool:
    if isinstance(value, Rows):
        return all(np.ndim(element) == 0 for element in value.elements.flat)
    return isinstance(value, _Shared)


def _one_array(value: _Value) -> Any:
    """Values that all lanes share, as a single array."""
    if isinstance(value, _Shared):
        return value.array
    elements = [jnp.asarray(element) for element in value.elements.flat]
    if value.elements.ndim == 0:
        return elements[0]
    if not elements:
        return jnp.zeros(value.elements.shape, value.dtype)
    return jnp.reshape(jnp.stack(elements), value.elements.shape)


def _with_lanes_last(value: _Value, layout: Layout) -> Array:
    if isinstance(value, _Shared):
        return jnp.broadcast_to(value.array[..., None], (*value.array.shape, *layout.lanes))
    if not isinstance(value, Rows):
        return value
    rows = [row(element, layout) for element in value.elements.flat]
    if value.elements.ndim == 0:
        return rows[0]
    if not rows:
        return jnp.zeros((*value.elements.shape, *layout.lanes), value.dtype)
    return jnp.reshape(jnp.stack(rows), (*value.elements.shape, *layout.lanes))


def row(element: Any, layout: Layout) -> Array:
    """An element as a row; a number that all lanes share is repeated for each lane."""
    return element if np.ndim(element) else jnp.broadcast_to(element, layout.lanes)


def alike(elements: list[Any], layout: Layout) -> list[Any]:
    """Elements, converted to rows if at least one of them is a row."""
    if all(np.ndim(element) == 0 for element in elements):
        return elements
    return [row(element, layout) for element in elements]
