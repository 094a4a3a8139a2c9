"""A measure of a flow line near a point: time of entry, time spent, closest approach.

k: nodes of a step; m: positions in a step.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox import Partial
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from flowlab._checks import positive
from flowlab.flow import AbstractFlow, inner
from flowlab.measures.base import Ends, Measure, Nodes
from flowlab.measures.steps import NODES, at, coefficients

__all__ = ["near"]

_GRID = np.linspace(0.0, 1.0, NODES)
_SHORT = 8  # components up to which they are separate numbers
_NEWTON_STEPS = 5  # from initial guesses within a sixth of a step


def near(point: PyTree[Float[ArrayLike, "..."]], radius: float, *, label: str) -> Measure:
    """Time spent near a point, first entry into its neighbourhood, and closest approach.

    The names of the results contain `label`, here "saddle":

    - `near_saddle_time`: total flow time within the radius;
    - `near_saddle_entry_time`, `near_saddle_entry_state`: flow time and state at which the line
      first comes within the radius; NaN if it never does. A line that starts within the radius
      enters at time 0;
    - `near_saddle_distance`, `near_saddle_distance_time`, `near_saddle_distance_state`: the
      smallest distance from the point, its flow time, and the state there.

    Distances are Euclidean, in the state's own coordinates.

    Args:
        point: A state, such as a critical point.
        radius: The radius of the neighbourhood, positive.
        label: The name of the point in the names of the results.

    Raises:
        ValueError: If the point is not finite, the radius is not positive and finite, or the label
            contains anything but letters, digits and underscores.

    Accuracy: crossings of the radius are located in the interpolant of each step, even if a line
        enters and leaves within one step. Consider lines that pass a linear saddle at a distance
        between 1e-1 and 1e-12 from its stable manifold, with `atol` far below that distance (as
        the default is for a saddle at the origin). The relative error of the time spent is 1e-7 at
        rtol 1e-6 and 1e-9 at rtol 1e-10, that of the smallest distance 2e-6 and 1e-8. For points
        away from the origin, the error of a distance is at least `rtol` times the size of the
        state.
    """
    held = jax.tree.map(lambda leaf: np.asarray(leaf, dtype=float), point, is_leaf=_is_list)
    if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(held)):
        raise ValueError(f"Argument `point` must hold finite numbers, but is {point!r}.")
    if not f"_{label}".isidentifier():
        raise ValueError(
            f"Argument `label` must be a word of letters, digits and underscores, but is {label!r}."
        )
    disc = {"point": held, "radius": np.asarray(positive("radius", radius))}
    entry = ("entry_time", "entry_state")
    results = ("time", *entry, "distance", "distance_time", "distance_state")
    return Measure(
        tuple(f"near_{label}_{name}" for name in results),
        check=Partial(_check_point, point=held),
        begin=Partial(_at_start, **disc),
        fold=Partial(_after_step, **disc),
        at_end=Partial(_visit_until, **disc),
    )


def _is_list(part: object) -> bool:
    """True for a list of numbers, which stands for an array."""
    return isinstance(part, list | tuple) and all(isinstance(x, int | float) for x in part)


class _Visit(eqx.Module):
    """The record of a line's visits to a neighbourhood so far.

    Attributes:
        spent: Flow time within the radius.
        entry_time: Flow time of the first entry; NaN before it.
        entry: The state at the first entry; NaN before it.
        square: The smallest squared distance.
        closest_time: Flow time of the closest approach.
        closest: The state at the closest approach.
    """

    spent: Float[Array, ""]
    entry_time: Float[Array, ""]
    entry: PyTree[Array]
    square: Float[Array, ""]
    closest_time: Float[Array, ""]
    closest: PyTree[Array]


def _check_point(flow: AbstractFlow, *, point: PyTree[np.ndarray]) -> None:
    shape = flow.state_shape
    if shape is not None and np.shape(point) != shape:
        raise ValueError(
            f"Argument `point` must be a state of the flow, of shape {shape}, but has shape "
            f"{np.shape(point)}."
        )


def _at_start(
    _flow: AbstractFlow, state: PyTree[Array], *, point: PyTree[Array], radius: Array
) -> _Visit:
    square = _square(state, point)
    zero = jnp.zeros_like(square)
    inside = square <= _limit(radius, square)
    entry = jax.tree.map(lambda leaf: jnp.where(inside, leaf, jnp.nan), state)
    return _Visit(zero, jnp.where(inside, zero, jnp.nan), entry, square, zero, state)


def _after_step(
    _flow: AbstractFlow, visit: _Visit, nodes: Nodes, *, point: PyTree[Array], radius: Array
) -> _Visit:
    offsets = jax.vmap(lambda state: _offset(state, point))(nodes.state)
    elapsed = nodes.time - nodes.time[0]
    squares = jax.vmap(lambda y: inner(y, y))(offsets)
    step = _Step.of(offsets, elapsed)
    low, lowest = _lowest(step, squares)
    spent, entry = _passage(step, squares, elapsed, (low, lowest), _limit(radius, elapsed))
    new, closer = ~jnp.isnan(entry) & jnp.isnan(visit.entry_time), lowest < visit.square

    def state(position: Float[Array, ""]) -> PyTree[Array]:
        return jax.tree.map(lambda y, p: jnp.asarray(p, y.dtype) + at(y, position), offsets, point)

    first = state(jnp.where(new, entry, 0))
    return _Visit(
        visit.spent + spent,
        jnp.where(new, nodes.time[0] + step.time(entry), visit.entry_time),
        _chosen(new, first, visit.entry),
        jnp.where(closer, lowest, visit.square),
        jnp.where(closer, nodes.time[0] + step.time(low), visit.closest_time),
        _chosen(closer, state(low), visit.closest),
    )


def _visit_until(
    _flow: AbstractFlow, ends: Ends, visit: _Visit, *, point: PyTree[Array], radius: Array
) -> tuple[PyTree[Array], ...]:
    last, end = _square(ends.last, point), _square(ends.end, point)
    limit = _limit(radius, end)
    late = (end <= limit) & jnp.isnan(visit.entry_time)
    closer = end < visit.square
    return (
        visit.spent + jnp.where(last <= limit, ends.tail, 0),
        jnp.where(late, ends.time, visit.entry_time),
        _chosen(late, ends.end, visit.entry),
        jnp.sqrt(jnp.where(closer, end, visit.square)),
        jnp.where(closer, ends.time, visit.closest_time),
        _chosen(closer, ends.end, visit.closest),
    )


def _square(state: PyTree[Array], point: PyTree[Array]) -> Float[Array, ""]:
    offset = _offset(state, point)
    return inner(offset, offset)


def _offset(state: PyTree[Array], point: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda y, p: y - jnp.asarray(p, y.dtype), state, point)


def _limit(radius: Array, like: Array) -> Float[Array, ""]:
    return jnp.asarray(radius, like.dtype) ** 2


def _chosen(which: Bool[Array, ""], new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda first, second: jnp.where(which, first, second), new, old)


class _Step(eqx.Module):
    """The offset of a line from the point during one step, as polynomials on [0, 1].

    The squared distance is computed from these polynomials, which are the solver's interpolant. A
    polynomial of the same degree through values of the squared distance would be less accurate.

    Attributes:
        offsets: Coefficients of each part of the offset, highest power first; the components of a
            short vector are separate parts.
        times: Coefficients of the flow time since the step began.
    """

    offsets: tuple[tuple[Float[Array, "..."], ...], ...]
    times: tuple[Float[Array, ""], ...]

    @classmethod
    def of(cls, offsets: PyTree[Float[Array, "k ..."]], times: Float[Array, " k"]) -> "_Step":
        """The polynomials that interpolate the offsets and the times at the nodes."""
        parts = [part for leaf in jax.tree.leaves(offsets) for part in _split(leaf)]
        return cls(tuple(_powers(part) for part in parts), _powers(times))

    def time(self, position: Float[Array, ""]) -> Float[Array, ""]:
        """The flow time since the step began, at a position in [0, 1]."""
        return _taylor(self.times, position)[0]

    def square(self, position: Float[Array, ""]) -> tuple[Array, Array, Array]:
        """The squared distance at a position in [0, 1], and its first two derivatives."""
        parts = [_taylor(part, position) for part in self.offsets]
        here, rate, half = ([part[i] for part in parts] for i in range(3))
        bend = 2 * inner(rate, rate) + 4 * inner(here, half)
        return inner(here, here), 2 * inner(here, rate), bend


def _split(leaf: Float[Array, "k ..."]) -> list[Float[Array, "k ..."]]:
    if leaf.size > _SHORT * NODES:
        return [leaf]
    flat = jnp.reshape(leaf, (NODES, -1))
    return [flat[:, index] for index in range(flat.shape[1])]


def _powers(values: Float[Array, "k ..."]) -> tuple[Array, ...]:
    found = coefficients(values)
    return tuple(found[index] for index in range(NODES))


def _taylor(powers: tuple[Array, ...], position: Float[Array, ""]) -> tuple[Array, Array, Array]:
    """Value, derivative and half the second derivative of a polynomial, by Horner's scheme."""
    value, slope, half = powers[0], jnp.zeros_like(powers[0]), jnp.zeros_like(powers[0])
    for power in powers[1:]:
        half = half * position + slope
        slope = slope * position + value
        value = value * position + power
    return value, slope, half


def _iterated(
    improve: Callable[[Float[Array, ""]], Float[Array, ""]], guess: Float[Array, ""]
) -> Float[Array, ""]:
    return lax.fori_loop(0, _NEWTON_STEPS, lambda _, position: improve(position), guess)


def _lowest(step: _Step, squares: Float[Array, " k"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The position in [0, 1] of the smallest distance, and the square of that distance."""
    least, node = squares[0], jnp.zeros_like(squares[0])
    for index in range(1, NODES):
        node = jnp.where(squares[index] < least, _GRID[index], node)
        least = jnp.minimum(squares[index], least)
    left, right = jnp.maximum(node - _GRID[1], 0), jnp.minimum(node + _GRID[1], 1)

    def lower(position: Float[Array, ""]) -> Float[Array, ""]:
        _, slope, bend = step.square(position)
        newton = position - slope / jnp.where(bend > 0, bend, 1)
        return jnp.where(bend > 0, jnp.clip(newton, left, right), position)

    position = _iterated(lower, node)
    found = step.square(position)[0]
    return jnp.where(found < least, position, node), jnp.minimum(found, least)


def _passage(
    step: _Step,
    squares: Float[Array, " k"],
    elapsed: Float[Array, " k"],
    least: tuple[Float[Array, ""], Float[Array, ""]],
    limit: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The time that a step spends within the radius, and the position of its first entry, or NaN.

    `limit` is the squared radius. A step is assumed to enter at most once and to leave at most
    once; a line that turned back more often would have shorter steps.
    """
    low, lowest = least
    grid = jnp.asarray(_GRID, squares.dtype)
    positions = _with_one_more(grid, grid, low, low)
    heights = _with_one_more(grid, squares, low, lowest) - limit
    times = _with_one_more(grid, elapsed, low, step.time(low))
    within = heights <= 0
    enters, leaves = within[1:] & ~within[:-1], within[:-1] & ~within[1:]
    entry = _crossing(
        step, limit, low, enters, (positions[1:], positions[:-1]), (heights[1:], heights[:-1])
    )
    leave = _crossing(
        step, limit, low, leaves, (positions[:-1], positions[1:]), (heights[:-1], heights[1:])
    )
    whole = jnp.sum(jnp.where(within[:-1] & within[1:], times[1:] - times[:-1], 0))
    inward = _first(enters, times[1:]) - step.time(entry)
    outward = step.time(leave) - _first(leaves, times[:-1])
    spent = whole + jnp.where(jnp.any(enters), inward, 0) + jnp.where(jnp.any(leaves), outward, 0)
    entry = jnp.where(jnp.any(enters), entry, jnp.nan)
    return spent, jnp.where(within[0], 0, entry)


def _with_one_more(
    grid: Float[Array, " k"], values: Float[Array, " k"], position: Float[Array, ""], value: Array
) -> Float[Array, " k+1"]:
    """Values at the nodes, with the value at a further position inserted in order."""
    before = jnp.concatenate([grid <= position, jnp.zeros(1, bool)])
    behind = jnp.concatenate([jnp.zeros(1, bool), grid > position])
    kept = jnp.where(before, jnp.concatenate([values, values[-1:]]), value)
    return jnp.where(behind, jnp.concatenate([values[:1], values]), kept)


def _first(which: Bool[Array, " m"], values: Float[Array, " m"]) -> Float[Array, ""]:
    """The first marked value; the last one if none is marked."""
    chosen = values[-1]
    for index in reversed(range(values.size - 1)):
        chosen = jnp.where(which[index], values[index], chosen)
    return chosen


def _crossing(
    step: _Step,
    limit: Float[Array, ""],
    low: Float[Array, ""],
    which: Bool[Array, " m"],
    positions: tuple[Float[Array, " m"], Float[Array, " m"]],
    heights: tuple[Float[Array, " m"], Float[Array, " m"]],
) -> Float[Array, ""]:
    """The position at which the squared distance crosses `limit`, in the first marked interval.

    `positions` and `heights` hold the inner ends of the intervals, then the outer ends. The initial
    guess takes the squared distance to grow linearly from the inner end, or quadratically if the
    inner end is the point of closest approach (`low`).
    """
    inside, outside = (_first(which, ends) for ends in positions)
    depth, height = (_first(which, ends) for ends in heights)
    fraction = -depth / jnp.where(height > depth, height - depth, 1)
    fraction = jnp.clip(jnp.where(inside == low, jnp.sqrt(jnp.abs(fraction)), fraction), 0, 1)
    position = inside + fraction * (outside - inside)
    left, right = jnp.minimum(inside, outside), jnp.maximum(inside, outside)

    def nearer(position: Float[Array, ""]) -> Float[Array, ""]:
        square, slope, _ = step.square(position)
        newton = position - (square - limit) / jnp.where(slope == 0, 1, slope)
        return jnp.clip(newton, left, right)

    return _iterated(nearer, position)
