"""Indexing, sorting and cumulative sums of small arrays, evaluated in rows.

A row is an array over the lanes. An index that differs between lanes selects among all elements of
an array in turn, which is cheap as arrays are small. n: lanes.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.lax import GatherScatterMode

from flowlab.solve.rows import Layout, NoRowsError, alike

__all__ = ["INDEXED", "chosen", "each_position", "is_known"]

Rule = Callable[[Any, list[np.ndarray], Layout], list[np.ndarray] | None]
"""From an operation and the elements of its operands to those of its outputs; None for no rule."""


def is_known(element: Any) -> bool:
    """True if an element is known while tracing, rather than computed when the program runs."""
    return not isinstance(element, Tracer)


def chosen(condition: Any, this: Any, other: Any, layout: Layout) -> Any:
    """`this` for the lanes for which a condition holds, `other` for the others."""
    if this is other:
        return this
    if is_known(condition):
        return this if condition else other
    return lax.select_n(*alike([condition, other, this], layout))


def each_position(shape: tuple[int, ...], of_position: Callable[..., Any]) -> np.ndarray:
    """An array of a given shape, with each element computed from its position."""
    result = np.empty(shape, object)
    for position in np.ndindex(*shape):
        result[position] = of_position(position)
    return result


def _among(indices: list[Any], sizes: list[int], made: Callable[..., Any], layout: Layout) -> Any:
    """The result `made(*indices)` for traced indices, each clipped to its range."""
    if not indices:
        return made()
    first, *others = indices

    def at(index: int) -> Any:
        return _among(others, sizes[1:], lambda *rest: made(index, *rest), layout)

    if is_known(first):
        return at(int(np.clip(first, 0, sizes[0] - 1)))

    def later(old: Any, index: int) -> Any:
        reached = lax.ge(*alike([first, np.asarray(index, first.dtype)], layout))
        return chosen(reached, at(index), old, layout)

    return reduce(later, range(1, sizes[0]), at(0))


def _selected(equation: Any, operands: list[np.ndarray], layout: Layout) -> list[np.ndarray] | None:
    """One of three or more cases, by its index; None for two cases, which have a built-in rule."""
    which, *cases = operands
    if len(cases) == 2:
        return None

    def of_position(position: tuple[int, ...]) -> Any:
        index = which[position if which.shape else ()]
        return _among([index], [len(cases)], lambda at: cases[at][position], layout)

    return [each_position(cases[0].shape, of_position)]


def _dynamic_slice(equation: Any, operands: list[np.ndarray], layout: Layout) -> list[np.ndarray]:
    operand, starts = operands[0], [start[()] for start in operands[1:]]
    cut = tuple(equation.params["slice_sizes"])
    sizes = [n - k + 1 for n, k in zip(operand.shape, cut, strict=True)]

    def of_position(position: tuple[int, ...]) -> Any:
        def made(*at: int) -> Any:
            return operand[tuple(a + p for a, p in zip(at, position, strict=True))]

        return _among(starts, sizes, made, layout)

    return [each_position(cut, of_position)]


def _dynamic_update_slice(
    equation: Any, operands: list[np.ndarray], layout: Layout
) -> list[np.ndarray]:
    del equation
    operand, update, starts = operands[0], operands[1], [start[()] for start in operands[2:]]
    sizes = [n - k + 1 for n, k in zip(operand.shape, update.shape, strict=True)]

    def of_position(position: tuple[int, ...]) -> Any:
        def made(*at: int) -> Any:
            inside = tuple(p - a for p, a in zip(position, at, strict=True))
            within = all(0 <= i < k for i, k in zip(inside, update.shape, strict=True))
            return update[inside] if within else operand[position]

        return _among(starts, sizes, made, layout)

    return [each_position(operand.shape, of_position)]


def _gather(equation: Any, operands: list[np.ndarray], layout: Layout) -> list[np.ndarray]:
    """The elements at indices that are known, or that differ between lanes."""
    operand, indices = operands
    given, shape = equation.params, equation.outvars[0].aval.shape
    numbers, flat = given["dimension_numbers"], operand.reshape(-1)
    positions = np.arange(1, operand.size + 1, dtype=np.int32).reshape(operand.shape)
    fill = given["fill_value"]
    outside = np.asarray(np.nan if fill is None else fill, equation.outvars[0].aval.dtype)

    def element(known: np.ndarray, position: tuple[int, ...]) -> Any:
        """The element at known indices, from a gather of an array of positions."""
        with jax.ensure_compile_time_eval():
            number = np.asarray(
                equation.primitive.bind(positions, known, **{**given, "fill_value": 0})
            )[position]
        return flat[number - 1] if number > 0 else outside

    if all(is_known(index) for index in indices.flat):
        known = _as_integers(indices)
        return [each_position(shape, lambda position: element(known, position))]
    if numbers.operand_batching_dims:
        raise NoRowsError("gather")
    lead = [axis for axis in range(len(shape)) if axis not in numbers.offset_dims]
    sizes = [operand.shape[axis] for axis in numbers.start_index_map]
    fills = given["mode"] == GatherScatterMode.FILL_OR_DROP

    def of_position(position: tuple[int, ...]) -> Any:
        own = list(indices[tuple(position[axis] for axis in lead)])

        def made(*at: int) -> Any:
            return element(np.broadcast_to(np.asarray(at, np.int32), indices.shape), position)

        found = _among(own, sizes, made, layout)
        return _where_inside(own, sizes, found, outside, layout) if fills else found

    return [each_position(shape, of_position)]


def _as_integers(indices: np.ndarray) -> np.ndarray:
    return np.asarray(indices.tolist(), np.int32).reshape(indices.shape)


def _where_inside(
    indices: list[Any], sizes: list[int], found: Any, outside: Any, layout: Layout
) -> Any:
    """`found` for the lanes whose indices are within their ranges, `outside` for the others."""
    for index, size in zip(indices, sizes, strict=True):
        dtype = index.dtype
        low, high = np.asarray(0, dtype), np.asarray(size, dtype)
        inside = lax.bitwise_and(
            lax.ge(*alike([index, low], layout)), lax.lt(*alike([index, high], layout))
        )
        found = chosen(inside, found, outside, layout)
    return found


def _scatter(equation: Any, operands: list[np.ndarray], layout: Layout) -> list[np.ndarray]:
    """An array updated, by new values or sums, at indices known or different between lanes."""
    operand, indices, updates = operands
    if not all(is_known(index) for index in indices.flat):
        return [_scattered_by_lanes(equation, operands, layout)]
    known, dtype = _as_integers(indices), equation.outvars[0].aval.dtype
    ones = np.eye(updates.size, dtype=dtype).reshape(updates.size, *updates.shape)
    zeros = np.zeros(operand.shape, dtype)
    bind, given = equation.primitive.bind, equation.params
    with jax.ensure_compile_time_eval():
        targets = [np.asarray(bind(zeros, known, one, **given)) for one in ones]
    adds = equation.primitive.name == "scatter-add"

    def of_position(position: tuple[int, ...]) -> Any:
        total = operand[position]
        for target, update in zip(targets, updates.flat, strict=True):
            if target[position] != 0:
                total = lax.add(*alike([total, update], layout)) if adds else update
        return total

    return [each_position(operand.shape, of_position)]


def _scattered_by_lanes(equation: Any, operands: list[np.ndarray], layout: Layout) -> np.ndarray:
    """A vector updated, by new values or sums, at indices that differ between lanes."""
    operand, indices, updates = operands
    name = equation.primitive.name
    if operand.ndim != 1 or indices.shape[-1] != 1 or indices.size != updates.size:
        raise NoRowsError(name)

    def of_position(position: tuple[int, ...]) -> Any:
        total = operand[position]
        for index, update in zip(indices.flat, updates.flat, strict=True):
            here = lax.eq(*alike([index, np.asarray(position[0], index.dtype)], layout))
            new = lax.add(*alike([total, update], layout)) if name == "scatter-add" else update
            total = chosen(here, new, total, layout)
        return total

    return each_position(operand.shape, of_position)


def _bitcast(equation: Any, operands: list[np.ndarray], layout: Layout) -> list[np.ndarray] | None:
    del layout
    (operand,), (out,) = operands, equation.outvars
    if out.aval.shape != operand.shape:
        return None

    def of_position(position: tuple[int, ...]) -> Any:
        return lax.bitcast_convert_type(operand[position], out.aval.dtype)

    return [each_position(operand.shape, of_position)]


def _sort(equation: Any, operands: list[np.ndarray], layout: Layout) -> list[np.ndarray] | None:
    """Arrays sorted by the first of them, stably and with NaN last, by exchanges of neighbours."""
    axis = equation.params["dimension"]
    if equation.params["num_keys"] != 1:
        return None
    moved = [np.moveaxis(operand, axis, -1).copy() for operand in operands]
    *leads, length = moved[0].shape
    for lead in np.ndindex(*leads):
        for last in range(length - 1, 0, -1):
            for here in range(last):
                position, after = (*lead, here), (*lead, here + 1)
                swap = _comes_first(moved[0][after], moved[0][position], lax.lt, layout)
                for array in moved:
                    a, b = array[position], array[after]
                    array[position], array[after] = (
                        chosen(swap, b, a, layout),
                        chosen(swap, a, b, layout),
                    )
    return [np.moveaxis(array, -1, axis) for array in moved]


def _comes_first(this: Any, other: Any, better: Any, layout: Layout) -> Any:
    """True if one element sorts before another; NaN sorts last."""
    a, b = alike([this, other], layout)
    return lax.bitwise_or(better(a, b), lax.bitwise_and(lax.eq(a, a), lax.ne(b, b)))


def _extreme(better: Any) -> Rule:
    """The rule for `argmax` or `argmin`: the first of equal elements, or the first NaN."""

    def of(equation: Any, operands: list[np.ndarray], layout: Layout) -> list[np.ndarray]:
        (axis,) = equation.params["axes"]
        dtype = equation.outvars[0].aval.dtype
        moved = np.moveaxis(operands[0], axis, -1)

        def of_position(position: tuple[int, ...]) -> Any:
            best, index = moved[(*position, 0)], np.asarray(0, dtype)
            for number in range(1, moved.shape[-1]):
                element = moved[(*position, number)]
                a, b = alike([element, best], layout)
                lost = lax.bitwise_and(lax.ne(a, a), lax.eq(b, b))
                later = lax.bitwise_or(better(a, b), lost)
                best = chosen(later, element, best, layout)
                index = chosen(later, np.asarray(number, dtype), index, layout)
            return index

        return [each_position(moved.shape[:-1], of_position)]

    return of


def _cumulated(fold: Any) -> Rule:
    """The rule for a cumulative reduction along an axis."""

    def of(equation: Any, operands: list[np.ndarray], layout: Layout) -> list[np.ndarray]:
        axis, reverse = equation.params["axis"], equation.params["reverse"]
        moved = np.moveaxis(operands[0], axis, 0)
        moved = moved[::-1] if reverse else moved
        result = moved.copy()
        for position in np.ndindex(*moved.shape):
            if position[0] > 0:
                before = result[(position[0] - 1, *position[1:])]
                result[position] = fold(*alike([before, moved[position]], layout))
        return [np.moveaxis(result[::-1] if reverse else result, 0, axis)]

    return of


INDEXED: dict[str, Rule] = {
    "argmax": _extreme(lax.gt),
    "argmin": _extreme(lax.lt),
    "bitcast_convert_type": _bitcast,
    "cummax": _cumulated(lax.max),
    "cummin": _cumulated(lax.min),
    "cumprod": _cumulated(lax.mul),
    "cumsum": _cumulated(lax.add),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "select_n": _selected,
    "sort": _sort,
}
"""How operations are done in rows, by the names of their primitives."""
