"""The first event of a lane within a step, located in the step's interpolant.

A signal (`signals`) is positive until its event. Let m(θ), θ in [0, 1] along the step, be the
smallest of the signals that are positive at θ = 0. If m(1) ≤ 0 there is an event. The Illinois
method, with bisections if the bracket shrinks too slowly, locates the root of m to four roundings
of θ. A signal that can fall below zero and rise again within a step (a margin or a speed that turns
back, the pressure on a wall) is also evaluated at nine interior points. Excursions of these signals
that are shorter than a tenth of a step are missed, and a wall that a lane recedes from, crosses and
leaves again within one step.

A lane that begins a step on a wall, as after its release, has no positive distance from the wall.
If no event is located in the step, and the lane ends it beyond the wall and moving outwards, it
reaches the wall at the end of the step.

An interpolant is less accurate than the step's end. For Runge–Kutta methods and Rodas5P the lane
continues from the interpolated point. The interpolants of stabilised methods are poor in fast
directions: for these methods the step is repeated with the shorter length, which Newton's method
corrects until the step ends at the event. Derivatives of the event's position with respect to the
start follow from the implicit function theorem at the located point.

m: signals; n: lanes.

Source: Shampine and Thompson, Computers and Mathematics with Applications 39 (2000) 43–54 (events);
Dowell and Jarratt, BIT 11 (1971) 168–174 (Illinois method).
"""

from functools import reduce
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from flowlab.solve.method import Method, terms
from flowlab.solve.problem import Lanes, Point, Problem, lanewise, select
from flowlab.solve.runge_kutta import RungeKutta
from flowlab.solve.signals import kinds, locates_levels, signals
from flowlab.solve.stabilised import OfLanes, Radius
from flowlab.solve.walls import slides, wall_count

__all__ = ["first_crossing", "followed", "implicit", "interpolated", "root", "shortened"]

_ROOT_STEPS = 60
_SHORTER = 12  # attempted steps to end at an event: each is about a thousand times closer
_NEAR_ENOUGH = 1e-3  # of rtol: the change of a step's fraction at which these end
_FOLLOWING = RungeKutta(diffrax.Tsit5())  # exact for derivatives up to order five
_LOOKS = 10  # parts of a step, at whose ends signals that may turn back are evaluated
_STAGES = 16  # at least the number of stages of any method, stored side by side


def interpolated(method: Method, dense: PyTree[Array], place: Float[Array, " n"]) -> Point:
    """The points of all lanes within a step, each lane at its own position in [0, 1]."""

    def of_lane(information: Any, at: Float[Array, ""]) -> Point:
        return _interpolant(method, information, at).evaluate(at)

    return lanewise(of_lane, longest=_STAGES)(dense, place)


def _interpolant(method: Method, information: Any, at: Float[Array, ""]) -> Any:
    """The interpolant of one lane's step, over positions in [0, 1]."""
    cls = method.solver.interpolation_cls
    return cls(t0=jnp.zeros_like(at), t1=jnp.ones_like(at), **information)


def first_crossing(
    problem: Problem, method: Method, lanes: Lanes, after: Point, dense: PyTree[Array]
) -> tuple[Bool[Array, " n"], Float[Array, " n"], Int[Array, " n"]]:
    """The first event of each lane in a step: whether there is one, its position, its index.

    Positions are fractions of the step, 1 for lanes without event. The index is that of the signal
    in `kinds`.
    """
    live = lanes.signals > 0

    def values(point: Point, lanes: Lanes = lanes) -> Float[Array, "m n"]:
        return lanewise(lambda lane, here: signals(problem, lane, here))(lanes, point)

    def smallest(found: Float[Array, "m n"]) -> Float[Array, " n"]:
        return reduce(jnp.minimum, list(jnp.where(live, found, jnp.inf)))

    frozen, resting = lax.stop_gradient((dense, lanes))
    at_end = values(lax.stop_gradient(after), resting)
    first, last = smallest(resting.signals), smallest(at_end)
    ones = jnp.ones_like(first)

    def ahead(at: Float[Array, " n"]) -> Float[Array, "m n"]:
        return values(interpolated(method, frozen, at), resting)

    turn = _first_turn(problem, method, resting, frozen, live)
    turning = lanes.active & (turn < 1)
    past = lax.cond(jnp.any(turning), lambda at: smallest(ahead(at)), lambda _: last, turn)
    turning = turning & (past <= 0)
    turn, past = jnp.where(turning, turn, 1), jnp.where(turning, past, last)
    crossed = lanes.active & (past <= 0)

    def search(_: None) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
        place = turn * root(lambda at: smallest(ahead(at * turn)), first, past, crossed)
        place = jnp.where(crossed, place, ones)
        return place, _lowest(jnp.where(live, ahead(place), jnp.inf))

    nothing = ones, jnp.zeros(first.shape, jnp.int32)
    end, fired = lax.cond(jnp.any(crossed), search, lambda _: nothing, None)
    end = lax.stop_gradient(end)
    missed = lanewise(lambda lane, found: _missed_wall(problem, lane, found))(lanes, at_end)
    return crossed, end, jnp.where(crossed, fired, missed)


def _lowest(values: Float[Array, "m n"]) -> Int[Array, " n"]:
    """The index of the smallest signal of each lane."""
    lowest, index = values[0], jnp.zeros(values.shape[1:], jnp.int32)
    for row in range(1, len(values)):
        index = jnp.where(values[row] < lowest, jnp.int32(row), index)
        lowest = jnp.minimum(values[row], lowest)
    return index


def _first_turn(
    problem: Problem, method: Method, lanes: Lanes, dense: PyTree[Array], live: Bool[Array, "m n"]
) -> Float[Array, " n"]:
    """The first grid position at which a signal that may turn back is negative; else 1."""
    turn = jnp.ones_like(lanes.progress)
    if locates_levels(problem) and problem.target.may_turn_back(problem.flow):
        turn = _first_dip(problem, method, lanes, dense, live[kinds(problem).index("level")])
    if slides(problem.flow):
        turn = jnp.minimum(turn, _first_release(method, lanes, dense))
    return turn


def _first_dip(
    problem: Problem, method: Method, lanes: Lanes, dense: PyTree[Array], live: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """The first grid position in a step at which a lane is past its level; else 1.

    Grid positions are a tenth of the step apart.
    """
    target, flow = problem.target, problem.flow

    def past(at: Float[Array, ""]) -> Bool[Array, " n"]:
        points = interpolated(method, dense, jnp.full_like(lanes.progress, at))

        def of_lane(lane: Lanes, point: Point) -> Bool[Array, ""]:
            state = flow.domain.state(point.coordinates)
            return target.signal(flow, state, point.time)[lane.level] <= 0

        return lanewise(of_lane)(lanes, points)

    places = jnp.linspace(0, 1, _LOOKS, endpoint=False, dtype=lanes.progress.dtype)[1:]
    found = jax.vmap(lambda at: past(at) & live)(places)
    first = places[jnp.argmax(found, axis=0)]
    return jnp.where(jnp.any(found, axis=0), first, 1)


def _first_release(method: Method, lanes: Lanes, dense: PyTree[Array]) -> Float[Array, " n"]:
    """The first grid position in a step at which a lane seems to leave a wall; else 1.

    The sign of the pressure comes from the interpolant of its integral, without an evaluation.
    """
    along = {name: part.pressure for name, part in dense.items()}

    def pressed(information: Any, at: Float[Array, ""]) -> Float[Array, ""]:
        step = _interpolant(method, information, at)
        return jax.jvp(step.evaluate, (at,), (jnp.ones_like(at),))[1]

    places = jnp.linspace(0, 1, _LOOKS, endpoint=False, dtype=lanes.progress.dtype)[1:]
    held = reduce(jnp.logical_or, list(lanes.walls))
    found = jax.vmap(lambda at: jax.vmap(pressed, (-1, None), -1)(along, at))(places) < 0
    first = places[jnp.argmax(found, axis=0)]
    return jnp.where(held & jnp.any(found, axis=0), first, 1)


def _missed_wall(problem: Problem, lane: Lanes, found: Float[Array, " m"]) -> Int[Array, ""]:
    """The index of the signal of a wall that a step begins on and crosses unnoticed; -1 if none."""
    past = (lane.signals <= 0) & (found < 0) & lane.active
    first = jnp.full((), -1, jnp.int32)
    for wall in reversed(range(wall_count(problem.flow))):
        apart, press = 2 * wall, 2 * wall + 1
        first = jnp.where(past[press] & lane.walls[wall], jnp.int32(press), first)
        met = past[apart] & (found[press] > 0) & ~lane.walls[wall]
        first = jnp.where(met, jnp.int32(apart), first)
    return first


def root(
    function: Any,
    first: Float[Array, " n"],
    last: Float[Array, " n"],
    wanted: Bool[Array, " n"],
) -> Float[Array, " n"]:
    """Roots of functions that fall from positive to non-positive on [0, 1].

    Computed by the Illinois method. To bound the work, every third step is a bisection as long as
    two steps shrink the bracket by less than half.
    """
    narrow = _narrow(first)
    zero, one = jnp.zeros_like(first), jnp.ones_like(first)

    def going(carry: Any) -> Bool[Array, ""]:
        low, high, _, at_high, _, count = carry
        open_ = wanted & (high - low > narrow * high) & (at_high != 0)
        return jnp.any(open_) & (count < _ROOT_STEPS)

    def narrowed(carry: Any) -> Any:
        low, high, at_low, at_high, side, count = carry
        at = _between(low, high, at_low, at_high, count)
        value = function(at)
        past = value <= 0
        again = jnp.where(past, side == 1, side == -1)
        at_low_next = jnp.where(past, jnp.where(again, at_low / 2, at_low), value)
        at_high_next = jnp.where(past, value, jnp.where(again, at_high / 2, at_high))
        return (
            jnp.where(past, low, at),
            jnp.where(past, at, high),
            at_low_next,
            at_high_next,
            jnp.where(past, 1, -1).astype(side.dtype),
            count + 1,
        )

    first = jnp.where(jnp.isfinite(first), first, 1)
    last = jnp.where(wanted, last, -1)
    side = jnp.zeros(first.shape, jnp.int32)
    carry = (zero, one, first, last, side, jnp.zeros((), jnp.int32))
    return lax.while_loop(going, narrowed, carry)[1]


def _narrow(values: Float[Array, " n"]) -> float:
    """The relative width at which an interval counts as a point."""
    return 4 * float(jnp.finfo(values.dtype).eps)


def _between(low: Array, high: Array, at_low: Array, at_high: Array, count: Array) -> Array:
    """The next positions to evaluate, inside the brackets of the roots."""
    # From the nearer side, so that a root close to 0 keeps its digits.
    from_low = low + at_low * (high - low) / (at_low - at_high)
    from_high = high - at_high * (high - low) / (at_high - at_low)
    inner = jnp.where(at_low < -at_high, from_low, from_high)
    slow = high - low > 0.5 ** (count.astype(low.dtype) / 2)
    bisect = (slow & (count % 3 == 2)) | ~((inner > low) & (inner < high))
    # A point just past the converged end brings the other end close as well.
    least = _narrow(high) * high / 2
    clipped = jnp.clip(inner, low + least, high - least)
    return jnp.where(bisect, (low + high) / 2, clipped)


def shortened(
    problem: Problem,
    solver: OfLanes,
    lanes: Lanes,
    event: tuple[Bool[Array, " n"], Float[Array, " n"], Int[Array, " n"]],
    step: tuple[Float[Array, ""], Point, PyTree[Array], Radius],
) -> tuple[Float[Array, " n"], Point, PyTree[Array]]:
    """Repeat a step so that it ends at located events.

    The interpolant of a long stabilised step is inaccurate in fast directions, on which a signal
    may depend. The event is therefore located again by shorter steps with the same number of
    stages: Newton's method on the signal at their ends, with the slope of the interpolant.

    Args:
        problem: The problem.
        solver: The stabilised solver.
        lanes: The lanes before the step.
        event: The result of `first_crossing`.
        step: Of the whole step, its length, the points after it, the data of its interpolant, and
            the state of the solver.

    Returns:
        The fraction of the step that each lane takes, the points at the ends of the shorter steps,
        and the data of their interpolants.
    """
    (crossed, end, fired), (length, after, dense, radius) = event, step
    frozen, tolerance = lax.stop_gradient((lanes, dense)), _NEAR_ENOUGH * problem.rtol
    method = Method(solver, diffrax.ConstantStepSize(), None)

    def signal(point: Point) -> Float[Array, " n"]:
        found = lanewise(lambda lane, here: signals(problem, lane, here))(frozen[0], point)
        return reduce(jnp.add, [jnp.where(fired == i, x, 0) for i, x in enumerate(found)])

    def taken(part: Float[Array, " n"]) -> tuple[Point, PyTree[Array]]:
        cut = eqx.tree_at(lambda x: x.fraction, lanes, lanes.fraction * part)
        return solver.shortened(terms(problem), length, lanes.point, cut, radius.stages)

    def slope(part: Float[Array, " n"]) -> Float[Array, " n"]:
        inside = lambda at: signal(interpolated(method, frozen[1], at))  # noqa: E731
        return jax.jvp(inside, (part,), (jnp.ones_like(part),))[1]

    def going(carry: Any) -> Bool[Array, ""]:
        part, before, count, _ = carry
        return jnp.any(crossed & (jnp.abs(part - before) > tolerance)) & (count < _SHORTER)

    def improve(carry: Any) -> Any:
        part, _, count, _ = carry
        point, inside = taken(part)
        falls = slope(part)
        off = jnp.where(falls != 0, signal(point) / jnp.where(falls != 0, falls, 1), 0)
        nearer = lax.stop_gradient(jnp.where(crossed, jnp.clip(part - off, 0, 1), part))
        return nearer, part, count + 1, (point, inside)

    first = jnp.where(crossed, end - 2, end)  # as far off as no place can be
    carry = (end, first, jnp.zeros((), jnp.int32), (after, dense))
    _, part, _, (point, inside) = lax.while_loop(going, improve, carry)
    return jnp.where(crossed, part, end), point, inside


def followed(
    problem: Problem,
    lanes: Lanes,
    event: tuple[Bool[Array, " n"], Float[Array, " n"], Int[Array, " n"]],
    point: Point,
    step: Float[Array, ""],
) -> tuple[Point, Float[Array, " n"]]:
    """The points at located events, and their positions in the step, both with derivatives.

    The position of an event is an implicit function of the lane's state. A step of length 0 along
    the field is taken from the located point. It does not change the point, but gives it the exact
    derivatives of the flow, of which the interpolant has only the first.
    """
    crossed, end, fired = event
    length = jnp.where(crossed, lanes.fraction * step, 1)
    there = eqx.tree_at(lambda x: x.progress, lanes, lanes.progress + end * length)

    def along(shift: Float[Array, " n"]) -> Point:
        moving = eqx.tree_at(lambda x: x.fraction, there, shift)
        zero, one, field = jnp.zeros_like(step), jnp.ones_like(step), terms(problem)
        first = _FOLLOWING.init(field, zero, one, point, moving)
        return _FOLLOWING.step(field, zero, one, point, moving, first, False)[0]

    def value(shift: Float[Array, " n"]) -> Float[Array, " n"]:
        found = lanewise(lambda lane, here: signals(problem, lane, here))(lanes, along(shift))
        return reduce(jnp.add, [jnp.where(fired == i, x, 0) for i, x in enumerate(found)])

    def moved(_: None) -> tuple[Point, Float[Array, " n"]]:
        shift = jnp.where(crossed, implicit(value, jnp.zeros_like(end)), 0)
        return select(crossed, along(shift), point), end + shift / length

    return lax.cond(jnp.any(crossed), moved, lambda _: (point, end), None)


def implicit(function: Any, at: Float[Array, " n"]) -> Float[Array, " n"]:
    """Located roots, as implicit functions of the variables that a function closes over.

    The values of the roots are unchanged, and have derivatives of every order. A root at which the
    slope of the function is zero has derivative 0.
    """

    def divided(slope_along: Any, value: Float[Array, " n"]) -> Float[Array, " n"]:
        slope = slope_along(jnp.ones_like(value))
        return value / jnp.where(slope != 0, slope, jnp.inf)

    return lax.custom_root(function, at, lambda _, found: found, divided)
