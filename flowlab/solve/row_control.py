"""Loops and branches of a single-lane program, evaluated in rows.

A row is an array over the lanes. `rows` evaluates some operations by `jax.vmap`, which a kernel
cannot use, so this module has rules for loops and branches in rows. A loop runs until the last lane
leaves it, and changes only the lanes that are still in it. A branch is carried out if any lane
takes it. The results of a lane do not depend on the other lanes of its row.

n: lanes.
"""

from collections.abc import Callable, Collection
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from flowlab.solve.row_indices import INDEXED, chosen, each_position, is_known
from flowlab.solve.rows import Layout, NoRowsError, Rows, alike, evaluated, shared

__all__ = ["program_in_rows"]

_LARGEST = 1024  # the most elements of an array that is stored in rows
_UNROLLED = 64  # the most passes of a loop that is written out
_CHEAP = 24  # operations of a branch that is always carried out, and not skipped
_CALLS = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "eval_jaxpr")


def program_in_rows(
    program: ClosedJaxpr,
    arguments: list[np.ndarray],
    lanes: tuple[int, ...],
    lacking: Collection[str] = (),
) -> list[np.ndarray]:
    """The results of a program for one lane, evaluated for a row of lanes.

    Args:
        program: The program of one lane.
        arguments: For each argument of the program, an object array of the argument's shape. Its
            elements are rows, or numbers that all lanes share.
        lanes: Shape of a row.
        lacking: Names of functions that are not available, such as `expm1`, and must be expressed
            by others.

    Returns:
        For each result of the program, an object array of the result's shape, whose elements are
        rows.

    Raises:
        NoRowsError: If an operation of the program has no rule for rows.
    """
    layout = Layout(lanes, _LARGEST, partial(_own, frozenset(lacking)))
    variables = program.jaxpr.invars
    given = [Rows(a, v.aval.dtype) for a, v in zip(arguments, variables, strict=True)]
    results = _run(program, given, layout)
    return [_as_rows(result, layout) for result in results]


def _run(program: ClosedJaxpr, arguments: list[Rows], layout: Layout) -> list[Rows]:
    constants = []
    for constant in program.consts:
        if np.size(constant) > layout.largest:
            raise NoRowsError(f"an array of {np.size(constant):,} elements")
        known = constant if isinstance(constant, Tracer) else np.asarray(constant)
        constants.append(shared(known, layout))
    return evaluated(program.jaxpr, constants, arguments, layout)


def _own(
    lacking: Collection[str], equation: Any, inputs: list[Rows], layout: Layout
) -> list[Rows] | None:
    """The outputs of an operation by a rule of this module; None if there is no rule."""
    name, parameters = equation.primitive.name, equation.params
    for variable in equation.outvars:
        if variable.aval.size > layout.largest:
            raise NoRowsError(f"{name} of {variable.aval.size:,} elements")
    if name in _CALLS:
        inner = next(v for k, v in parameters.items() if k in ("call_jaxpr", "fun_jaxpr", "jaxpr"))
        closed = inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ())
        return _run(closed, inputs, layout)
    if name in _CONTROL:
        return _CONTROL[name](equation, inputs, layout)
    if all(is_known(element) for value in inputs for element in value.elements.flat):
        return _known_now(equation, inputs, layout)
    if name in lacking and name in _REWRITTEN:
        elements = inputs[0].elements
        made = each_position(elements.shape, lambda position: _REWRITTEN[name](elements[position]))
        return [Rows(made, inputs[0].dtype)]
    if name == "polynomial":
        return [Rows(_polynomial([value.elements for value in inputs], layout), inputs[0].dtype)]
    if name in INDEXED:
        made = INDEXED[name](equation, [value.elements for value in inputs], layout)
        if made is not None:
            pairs = zip(made, equation.outvars, strict=True)
            return [Rows(elements, variable.aval.dtype) for elements, variable in pairs]
    return None


def _known_now(equation: Any, inputs: list[Rows], layout: Layout) -> list[Rows] | None:
    """The outputs of an operation on known numbers; None if it contains a nested program."""
    if "jaxpr" in equation.params or "call_jaxpr" in equation.params:
        return None
    operands = [_numbers(value) for value in inputs]
    with jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*operands, **equation.params)
        results = results if equation.primitive.multiple_results else [results]
        return [shared(np.asarray(result), layout) for result in results]


def _numbers(value: Rows) -> np.ndarray:
    return np.asarray(value.elements.tolist(), value.dtype).reshape(value.elements.shape)


def _full(element: Any, dtype: Any, layout: Layout) -> Any:
    """An element, a row or a shared number, as a row of a dtype."""
    if np.ndim(element) == 0:
        return lax.full(layout.lanes, lax.convert_element_type(element, dtype))
    return lax.convert_element_type(element, dtype)


def _as_rows(value: Rows, layout: Layout) -> np.ndarray:
    result = np.empty(value.elements.shape, object)
    for position in np.ndindex(*result.shape):
        result[position] = _full(value.elements[position], value.dtype, layout)
    return result


def _any(condition: Any) -> Any:
    """True if a condition holds for at least one lane."""
    if np.ndim(condition) == 0:
        return condition
    return jnp.max(condition.astype(jnp.int32)) > 0


class _Flat:
    """A conversion between `Rows` of certain shapes and a flat list of rows."""

    def __init__(self, values: list[Rows], layout: Layout) -> None:
        self.shapes = [value.elements.shape for value in values]
        self.dtypes = [value.dtype for value in values]
        self.layout = layout

    def flat(self, values: list[Rows]) -> list[Any]:
        return [
            _full(element, dtype, self.layout)
            for value, dtype in zip(values, self.dtypes, strict=True)
            for element in value.elements.flat
        ]

    def values(self, rows: Any) -> list[Rows]:
        left, values = iter(rows), []
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            elements = np.empty(shape, object)
            for position in np.ndindex(*shape):
                elements[position] = next(left)
            values.append(Rows(elements, dtype))
        return values


def _while(equation: Any, inputs: list[Rows], layout: Layout) -> list[Rows]:
    """A `while` loop that each lane leaves by its own condition."""
    given = equation.params
    for_condition, for_body = given["cond_nconsts"], given["body_nconsts"]
    asked, kept = inputs[:for_condition], inputs[for_condition : for_condition + for_body]
    carry = inputs[for_condition + for_body :]
    moving = _moving(given["body_jaxpr"].jaxpr, for_body)
    shapes = _Flat([value for value, moves in zip(carry, moving, strict=True) if moves], layout)

    def whole(rows: Any) -> list[Rows]:
        moved = iter(shapes.values(rows))
        return [next(moved) if moves else v for v, moves in zip(carry, moving, strict=True)]

    def moving_of(values: list[Rows]) -> list[Any]:
        return shapes.flat([v for v, moves in zip(values, moving, strict=True) if moves])

    def condition(values: list[Rows]) -> Any:
        found = _run(given["cond_jaxpr"], [*asked, *values], layout)[0].elements[()]
        return _full(found, jnp.int32, layout)

    def step(state: Any) -> Any:
        goes, rows = state
        new = moving_of(_run(given["body_jaxpr"], [*kept, *whole(rows)], layout))
        rows = [chosen(goes > 0, n, o, layout) for n, o in zip(new, rows, strict=True)]
        return condition(whole(rows)), rows

    first = moving_of(carry)
    state = condition(whole(first)), first
    _, rows = lax.while_loop(lambda state: jnp.max(state[0]) > 0, step, state)
    return whole(rows)


def _moving(body: Jaxpr, constants: int) -> list[bool]:
    """Mask of the parts of a loop's carry that its body changes."""
    carry = body.invars[constants:]
    return [out is not variable for out, variable in zip(_sources(body), carry, strict=True)]


def _sources(body: Jaxpr) -> list[Any]:
    """For each result of a function, the variable that it equals."""
    source: dict[Any, Any] = {}

    def of(variable: Any) -> Any:
        if isinstance(variable, Literal):
            return variable
        return source.get(variable, variable)

    for equation in body.eqns:
        for out, origin in zip(equation.outvars, _handed_on(equation), strict=False):
            if origin is not None:
                source[out] = of(origin)
    return [of(variable) for variable in body.outvars]


def _handed_on(equation: Any) -> list[Any]:
    """For each output of an operation, the input that it equals, or None for a new value."""
    inner = equation.params.get("jaxpr")
    if equation.primitive.name == "cond":
        operands = equation.invars[1:]
        inside = [
            _inputs_of(getattr(branch, "jaxpr", branch), operands)
            for branch in equation.params["branches"]
        ]
        each_output = zip(*inside, strict=True)
        return [o[0] if all(other is o[0] for other in o) else None for o in each_output]
    if inner is not None and equation.primitive.name in ("jit", "pjit", "closed_call"):
        return _inputs_of(getattr(inner, "jaxpr", inner), equation.invars)
    return [None] * len(equation.outvars)


def _inputs_of(inner: Jaxpr, operands: list[Any]) -> list[Any]:
    position = {variable: operand for variable, operand in zip(inner.invars, operands, strict=True)}
    return [None if isinstance(s, Literal) else position.get(s) for s in _sources(inner)]


def _cond(equation: Any, inputs: list[Rows], layout: Layout) -> list[Rows]:
    """A `cond` or `switch` in which each lane takes its own branch."""
    which, operands = inputs[0].elements[()], inputs[1:]
    branches = equation.params["branches"]
    if is_known(which):
        return _run(branches[int(np.clip(which, 0, len(branches) - 1))], operands, layout)
    last = len(branches) - 1
    taken = [which <= 0, *(which == i for i in range(1, last)), which >= last]
    found = [
        _branch(branch, _any(mask), operands, equation, layout)
        for branch, mask in zip(branches, taken, strict=True)
    ]

    def merged(*elements: Any) -> Any:
        pairs = list(zip(taken, elements, strict=True))
        return reduce(lambda old, p: chosen(p[0], p[1], old, layout), pairs[1:], pairs[0][1])

    results = []
    for values in zip(*found, strict=True):
        elements = np.empty(values[0].elements.shape, object)
        for position in np.ndindex(*elements.shape):
            elements[position] = merged(*(value.elements[position] for value in values))
        results.append(Rows(elements, values[0].dtype))
    return results


def _branch(
    branch: ClosedJaxpr, wanted: Any, operands: list[Rows], equation: Any, layout: Layout
) -> list[Rows]:
    """The results of a branch; a branch that is not cheap is skipped if no lane takes it."""
    if _cost(branch.jaxpr) <= _CHEAP:
        return _run(branch, operands, layout)
    given = dict(zip(branch.jaxpr.invars, operands, strict=True))
    sources = _sources(branch.jaxpr)
    same = [None if isinstance(s, Literal) else given.get(s) for s in sources]
    avals = [v.aval for v in equation.outvars]
    outs = [
        Rows(np.empty(aval.shape, object), aval.dtype)
        for aval, old in zip(avals, same, strict=True)
        if old is None
    ]
    shapes = _Flat(outs, layout)

    def carried_out() -> list[Any]:
        results = _run(branch, operands, layout)
        return shapes.flat([r for r, old in zip(results, same, strict=True) if old is None])

    def nothing() -> list[Any]:
        blank = [Rows(np.zeros(o.elements.shape, o.dtype).astype(object), o.dtype) for o in outs]
        return shapes.flat(blank)

    fresh = iter(shapes.values(lax.cond(wanted, carried_out, nothing)))
    return [next(fresh) if old is None else old for old in same]


def _cost(body: Jaxpr) -> float:
    """The number of operations of a function, nested ones included; infinite if it has a loop."""
    total = 0.0
    for equation in body.eqns:
        if equation.primitive.name in ("while", "scan"):
            return np.inf
        outputs: list[Any] = list(equation.outvars)
        values = equation.params.values()
        inner: list[Any] = [value for value in values if isinstance(value, ClosedJaxpr | Jaxpr)]
        inner += list(equation.params.get("branches", ()))
        parts = [_cost(getattr(each, "jaxpr", each)) for each in inner]
        own = max((variable.aval.size for variable in outputs), default=1)
        total += sum(parts) if parts else own
    return total


def _scan(equation: Any, inputs: list[Rows], layout: Layout) -> list[Rows]:
    """A loop of known length, written out if it is short or runs along arrays."""
    given = equation.params
    if "num_consts" in given:
        constants, carried = given["num_consts"], given["num_carry"]
    else:  # from JAX 0.12 on: constants, carry and arrays as trees
        constants, carried = (len(part) for part in given["ft_in"].unpack()[:2])
    kept, carry = inputs[:constants], inputs[constants : constants + carried]
    along, length, body = inputs[constants + carried :], given["length"], given["jaxpr"]
    rows_out = len(equation.outvars) - carried
    if length > _UNROLLED:
        if along or rows_out:
            raise NoRowsError(f"scan of {length:,} passes over arrays")
        return _repeated(body, length, kept, carry, layout)
    made: list[list[Rows]] = [[] for _ in range(rows_out)]
    positions = range(length)
    for position in reversed(positions) if given["reverse"] else positions:
        here = [Rows(v.elements[position, ...], v.dtype) for v in along]
        results = _run(body, [*kept, *carry, *here], layout)
        carry = results[:carried]
        for collected, result in zip(made, results[carried:], strict=True):
            collected.append(result)
    stacked = []
    for collected, variable in zip(made, equation.outvars[carried:], strict=True):
        ordered = collected[::-1] if given["reverse"] else collected
        elements = np.empty(variable.aval.shape, object)
        for position, value in enumerate(ordered):
            elements[position, ...] = value.elements
        stacked.append(Rows(elements, variable.aval.dtype))
    return [*carry, *stacked]


def _repeated(
    body: ClosedJaxpr, length: int, kept: list[Rows], carry: list[Rows], layout: Layout
) -> list[Rows]:
    shapes = _Flat(carry, layout)

    def once(_: Any, rows: Any) -> Any:
        return shapes.flat(_run(body, [*kept, *shapes.values(rows)], layout))

    return shapes.values(lax.fori_loop(0, length, once, shapes.flat(carry)))


def _copied(equation: Any, inputs: list[Rows], layout: Layout) -> list[Rows]:
    del equation, layout
    return inputs


_CONTROL: dict[str, Callable[[Any, list[Rows], Layout], list[Rows]]] = {
    "while": _while,
    "cond": _cond,
    "scan": _scan,
    "copy": _copied,
    "copy_p": _copied,
    "stop_gradient": _copied,
    "optimization_barrier": _copied,
}


def _polynomial(operands: list[np.ndarray], layout: Layout) -> np.ndarray:
    """The value of a polynomial at the first operand, by Horner's scheme.

    The other operands are the coefficients, beginning with the constant term.
    """
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    point, *coefficients = (np.broadcast_to(operand, shape) for operand in operands)

    def of_position(position: tuple[int, ...]) -> Any:
        x, total, *others = [part[position] for part in (point, *coefficients[::-1])]
        for coefficient in others:
            product = lax.mul(*alike([total, x], layout))
            total = lax.add(*alike([product, coefficient], layout))
        return total

    return each_position(shape, of_position)


def _expm1(x: Any) -> Any:
    """exp(x) − 1 without cancellation: tanh(x/2)·(exp(x) + 1)."""
    half = np.asarray(0.5, x.dtype)
    return lax.tanh(half * x) * (lax.exp(x) + np.asarray(1, x.dtype))


_REWRITTEN: dict[str, Callable[[Any], Any]] = {"expm1": _expm1}
