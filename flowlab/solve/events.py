"""Signals of a lane, where they change sign within a step, and what happens there.

A signal is positive until its event. The first event of a step is where the smallest of the
signals that were positive at the beginning of the step meets zero, found in the step's interpolant.
Beside each wall stands the rate at which the lane approaches it: its change of sign is where the
distance is least, so that a line which leaves the domain and comes back within one step is seen.

m: signals; n: lanes.
"""

from functools import reduce
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from flowlab.solve.field import motion, terms, velocity_of_coordinates
from flowlab.solve.problem import Lanes, Point, Problem, lanewise, select, split
from flowlab.solve.runge_kutta import RungeKutta
from flowlab.solve.walls import (
    holding,
    onto_walls,
    slides,
    stands_still,
    wall_count,
)
from flowlab.until import Outcome

__all__ = [
    "absorbs",
    "absorption_tail",
    "first_crossing",
    "followed",
    "implicit",
    "interpolated",
    "land",
    "met_by_clock",
    "root",
    "signals",
    "signals_after",
]

_BOUNDARY_DECADES = 12.0  # below the start, where the boundary counts as met if it is the target
_DEEP_DECADES = {8: 145.0, 4: 14.0}  # the same where it is not, by the bytes of a number: as deep
# as the velocity of the logarithm, which grows like x^(β−2), stays a number
_ROOT_STEPS = 60
_FOLLOWING = RungeKutta(diffrax.Tsit5())  # exact for derivatives up to the fifth
_LOOKS = 10  # parts of a step at whose ends a signal that may turn back is looked at
_AT_ONCE = 0.01  # tolerances between walls that count as met at once
_STAGES = 16  # at least as many as the methods have, whose values at a step stand side by side


def signals(problem: Problem, lane: Lanes, point: Point) -> Float[Array, " m"]:
    """The signals of one lane at a point, in the order of `_kinds`."""
    state = problem.flow.domain.state(point.coordinates)
    parts = _wall_signals(problem, lane, state)
    if absorbs(problem):
        parts.append(_above_the_boundary(problem, lane, point))
    if _locates_levels(problem):
        ahead = problem.target.signal(problem.flow, state, point.time)
        parts.append(ahead[lane.level])
    if _locates_saves(problem):
        size = problem.save_at.size
        ahead = problem.save_at[jnp.minimum(lane.next_save, size - 1)] - point.time
        parts.append(jnp.where(lane.next_save < size, ahead, 1))
    if problem.timed:
        parts.append(jnp.asarray(problem.target.time_limit, point.time.dtype) - point.time)
    return jnp.stack(parts) if parts else jnp.zeros(0, point.time.dtype)


def signals_after(problem: Problem, lane: Lanes, fired: Int[Array, ""]) -> Float[Array, " m"]:
    """The signals of a lane to which an event of a given index has just happened (-1 for none).

    What has happened at a wall is over: rounding must not make it happen again, at no distance.
    """
    fresh = signals(problem, lane, lane.point)
    count = wall_count(problem.flow)
    if count == 0:
        return fresh
    walls = jnp.arange(2 * count, dtype=jnp.int32)
    apart = walls % 2 == 0
    over = (walls == fired) & ~(apart & jnp.repeat(lane.walls, 2))
    past = jnp.where(over, jnp.minimum(fresh[: 2 * count], 0), fresh[: 2 * count])
    return jnp.concatenate([past, fresh[2 * count :]])


def interpolated(problem: Problem, dense: PyTree[Array], place: Float[Array, " n"]) -> Point:
    """The points of all lanes at places in [0, 1] of the step, one for each lane."""
    cls = problem.solver.interpolation_cls

    def of_lane(information: Any, at: Float[Array, ""]) -> Point:
        return cls(t0=jnp.zeros_like(at), t1=jnp.ones_like(at), **information).evaluate(at)

    return lanewise(of_lane, longest=_STAGES)(dense, place)


def first_crossing(
    problem: Problem, lanes: Lanes, after: Point, dense: PyTree[Array]
) -> tuple[Bool[Array, " n"], Float[Array, " n"], Int[Array, " n"]]:
    """Whether a lane has an event in its step, where in [0, 1], and which; else False, 1, -1."""
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
        return values(interpolated(problem, frozen, at), resting)

    turn = ones  # where a signal that may turn back is past its level
    if _locates_levels(problem) and problem.target.may_turn_back(problem.flow):
        turn = _first_dip(problem, resting, frozen, live[_kinds(problem).index("level")])
    if slides(problem.flow):
        turn = jnp.minimum(turn, _first_release(problem, resting, frozen))
    turning = lanes.active & (turn < 1)
    past = lax.cond(jnp.any(turning), lambda at: smallest(ahead(at)), lambda _: last, turn)
    turning = turning & (past <= 0)
    turn, past = jnp.where(turning, turn, 1), jnp.where(turning, past, last)
    crossed = lanes.active & (past <= 0)

    def search(_: None) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
        place = turn * root(lambda at: smallest(ahead(at * turn)), first, past, crossed)
        place = jnp.where(crossed, place, ones)
        there = list(jnp.where(live, ahead(place), jnp.inf))
        lowest, fired = there[0], jnp.zeros(first.shape, jnp.int32)
        for index, signal in enumerate(there[1:], 1):
            fired = jnp.where(signal < lowest, jnp.int32(index), fired)
            lowest = jnp.minimum(signal, lowest)
        return place, fired

    def nothing(_: None) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
        return ones, jnp.zeros(first.shape, jnp.int32)

    end, fired = lax.cond(jnp.any(crossed), search, nothing, None)
    end = lax.stop_gradient(end)
    missed = lanewise(lambda lane, found: _missed_wall(problem, lane, found))(lanes, at_end)
    return crossed, end, jnp.where(crossed, fired, missed)


def _first_dip(
    problem: Problem, lanes: Lanes, dense: PyTree[Array], live: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """The first of some places in a step at which a lane is past its level, or 1 for none.

    They are so close that what is missed takes less than a tenth of the step.
    """
    target, flow = problem.target, problem.flow

    def past(at: Float[Array, ""]) -> Bool[Array, " n"]:
        points = interpolated(problem, dense, jnp.full_like(lanes.progress, at))

        def of_lane(lane: Lanes, point: Point) -> Bool[Array, ""]:
            state = flow.domain.state(point.coordinates)
            return target.signal(flow, state, point.time)[lane.level] <= 0

        return lanewise(of_lane)(lanes, points)

    places = jnp.linspace(0, 1, _LOOKS, endpoint=False, dtype=lanes.progress.dtype)[1:]
    found = jax.vmap(lambda at: past(at) & live)(places)
    first = places[jnp.argmax(found, axis=0)]
    return jnp.where(jnp.any(found, axis=0), first, 1)


def _first_release(problem: Problem, lanes: Lanes, dense: PyTree[Array]) -> Float[Array, " n"]:
    """The first of some places in a step at which a lane seems to leave a wall, or 1 for none.

    The interpolant of the pressure's integral tells, so that nothing is evaluated.
    """
    along = {name: part.pressure for name, part in dense.items()}
    cls = problem.solver.interpolation_cls

    def pressed(information: Any, at: Float[Array, ""]) -> Float[Array, ""]:
        step = cls(t0=jnp.zeros_like(at), t1=jnp.ones_like(at), **information)
        return jax.jvp(step.evaluate, (at,), (jnp.ones_like(at),))[1]

    places = jnp.linspace(0, 1, _LOOKS, endpoint=False, dtype=lanes.progress.dtype)[1:]
    held = reduce(jnp.logical_or, list(lanes.walls))
    found = jax.vmap(lambda at: jax.vmap(pressed, (-1, None), -1)(along, at))(places) < 0
    first = places[jnp.argmax(found, axis=0)]
    return jnp.where(held & jnp.any(found, axis=0), first, 1)


def land(problem: Problem, lanes: Lanes, fired: Int[Array, " n"]) -> Lanes:
    """Lanes after the events of given indices (-1 for none) have happened to them."""
    count = 2 * wall_count(problem.flow)
    if count:
        at_walls = lanes.active & (fired >= 0) & (fired < count)
        lanes = lax.cond(
            jnp.any(at_walls),
            lambda x: lanewise(lambda lane, kind: _at_wall(problem, lane, kind))(x, fired),
            lambda x: x,
            lanes,
        )
    return lanewise(lambda lane, kind: _landed(problem, lane, kind))(lanes, fired)


def _landed(problem: Problem, lane: Lanes, kind: Int[Array, ""]) -> Lanes:
    for index, name in enumerate(_kinds(problem)):
        here = kind == index
        if name == "level":
            lane = _save_met(problem, _level_met(problem, lane, here), here)
        elif name == "save":
            lane = _save_met(problem, lane, here)
        elif name == "limit":
            lane = _ended(lane, here, Outcome.time_limit)
        elif name == "absorb":
            lane = _ended(lane, here, Outcome.at_wall)
            lane = eqx.tree_at(lambda x: x.absorbed, lane, lane.absorbed | here)
    return lane


def met_by_clock(problem: Problem, lane: Lanes, due: Bool[Array, ""]) -> Lanes:
    """A lane whose clock says that its next level or time to save at is met."""
    due = due & (lane.outcome == 0)
    lane = _save_met(problem, lane, due)
    return lane if _locates_levels(problem) else _level_met(problem, lane, due)


def _missed_wall(problem: Problem, lane: Lanes, found: Float[Array, " m"]) -> Int[Array, ""]:
    """What a lane began its step on and is past at the end: a wall met, or one left; or -1."""
    past = (lane.signals <= 0) & (found < 0) & lane.active
    first = jnp.full((), -1, jnp.int32)
    for wall in reversed(range(wall_count(problem.flow))):
        apart, press = 2 * wall, 2 * wall + 1
        first = jnp.where(past[press] & lane.walls[wall], jnp.int32(press), first)
        met = past[apart] & (found[press] > 0) & ~lane.walls[wall]
        first = jnp.where(met, jnp.int32(apart), first)
    return first


def absorbs(problem: Problem) -> bool:
    """Whether a lane can end on the boundary of its domain, rather than on a level before it."""
    return problem.flow.domain.absorbing and not problem.ends_on_level


def absorption_tail(problem: Problem, lane: Lanes) -> Float[Array, ""]:
    """The time from where a lane stands to the boundary; infinite where it is never met.

    Near the boundary the time to go is C·x^p. With κ = 1/|d log x/dt|, that is κ/p, and
    p = d log|d log x/dt| / d(−log x) is read from the field. The relative error is O(x^β).
    """
    push = velocity_of_coordinates(problem, lane)
    coordinates = lane.point.coordinates
    falling = jnp.argmin(coordinates - lane.start)
    along = push(coordinates)
    rate = jnp.abs(along[falling])
    here, change = jax.jvp(push, (coordinates,), (along / rate,))
    power = change[falling] / here[falling]
    tail = 1 / (rate * power)
    return jnp.where((power > 1e-6) & (tail >= 0), tail, jnp.inf)


def _kinds(problem: Problem) -> list[str]:
    kinds = []
    for wall in range(wall_count(problem.flow)):
        kinds += [f"wall {wall}", f"press {wall}"]
    kinds += ["absorb"] if absorbs(problem) else []
    kinds += ["level"] if _locates_levels(problem) else []
    kinds += ["save"] if _locates_saves(problem) else []
    return kinds + (["limit"] if problem.timed else [])


def _is_boundary(problem: Problem) -> bool:
    return problem.target.kind == "boundary"


def _locates_levels(problem: Problem) -> bool:
    if _is_boundary(problem) or problem.ends_on_level:
        return False
    return problem.clock == "arc_length" or problem.target.kind != "time"


def _locates_saves(problem: Problem) -> bool:
    return problem.save_at.size > 0 and problem.clock != "time"


def _wall_signals(problem: Problem, lane: Lanes, state: PyTree[Array]) -> list[Array]:
    """Of each wall the distance (1 on it), and how fast it is approached, or how hard pressed."""
    flow = problem.flow
    if not wall_count(flow):
        return []
    _, _, velocity, pressure = motion(problem, state, lane.walls)
    normals, _ = flow.domain.walls_like(state)
    apart = jnp.where(lane.walls, 1, flow.domain.distances(state))
    approach = normals @ velocity
    if pressure is not None:
        approach = jnp.where(lane.walls, pressure, approach)
    return [part for wall in range(len(normals)) for part in (apart[wall], approach[wall])]


def _above_the_boundary(problem: Problem, lane: Lanes, point: Point) -> Float[Array, ""]:
    number = jnp.finfo(point.time.dtype)
    decades = _DEEP_DECADES[number.dtype.itemsize]
    if _is_boundary(problem):
        decades = _BOUNDARY_DECADES
    floor = lane.start - decades * jnp.log(jnp.asarray(10.0, point.time.dtype))
    lowest = 0.9 * jnp.log(number.tiny)
    return jnp.min(point.coordinates - jnp.maximum(floor, lowest))


def root(
    function: Any,
    first: Float[Array, " n"],
    last: Float[Array, " n"],
    wanted: Bool[Array, " n"],
) -> Float[Array, " n"]:
    """Where functions that fall from positive to non-positive on [0, 1] change sign.

    The Illinois method, with a bisection in a third step where the interval shrinks more slowly
    than by halves in two steps, to bound the work.
    """
    narrow = 4 * jnp.finfo(first.dtype).eps
    zero, one = jnp.zeros_like(first), jnp.ones_like(first)

    def going(carry: Any) -> Bool[Array, ""]:
        low, high, _, at_high, _, count = carry
        open_ = wanted & (high - low > narrow * high) & (at_high != 0)
        return jnp.any(open_) & (count < _ROOT_STEPS)

    def halve(carry: Any) -> Any:
        low, high, at_low, at_high, side, count = carry
        # From the side that is nearer, so that a root close to 0 keeps its digits.
        from_low = low + at_low * (high - low) / (at_low - at_high)
        from_high = high - at_high * (high - low) / (at_high - at_low)
        inner = jnp.where(at_low < -at_high, from_low, from_high)
        middle = (low + high) / 2
        slow = high - low > 0.5 ** (count.astype(low.dtype) / 2)
        bisect = (slow & (count % 3 == 2)) | ~((inner > low) & (inner < high))
        # A step just past the end that has converged brings the other end there too.
        least = narrow * high / 2
        place = jnp.where(bisect, middle, jnp.clip(inner, low + least, high - least))
        value = function(place)
        past = value <= 0
        again = jnp.where(past, side == 1, side == -1)
        at_low_next = jnp.where(past, jnp.where(again, at_low / 2, at_low), value)
        at_high_next = jnp.where(past, value, jnp.where(again, at_high / 2, at_high))
        return (
            jnp.where(past, low, place),
            jnp.where(past, place, high),
            at_low_next,
            at_high_next,
            jnp.where(past, 1, -1).astype(side.dtype),
            count + 1,
        )

    first = jnp.where(jnp.isfinite(first), first, 1)
    last = jnp.where(wanted, last, -1)
    side = jnp.zeros(first.shape, jnp.int32)
    carry = (zero, one, first, last, side, jnp.zeros((), jnp.int32))
    return lax.while_loop(going, halve, carry)[1]


def followed(
    problem: Problem,
    lanes: Lanes,
    event: tuple[Bool[Array, " n"], Float[Array, " n"], Int[Array, " n"]],
    place: Point,
    step: Float[Array, ""],
) -> tuple[Point, Float[Array, " n"]]:
    """Points at located events, and where in the step they lie, both with their derivatives.

    An event is an implicit function of all else. From where it was found, it moves along the field
    by a step of length 0, whose derivatives are those of the flow: those of the interpolant, from
    the second on, are less exact. Numbers stay as they are, to the last bit.
    """
    crossed, end, fired = event
    length = jnp.where(crossed, lanes.fraction * step, 1)
    there = eqx.tree_at(lambda x: x.progress, lanes, lanes.progress + end * length)

    def along(shift: Float[Array, " n"]) -> Point:
        moving = eqx.tree_at(lambda x: x.fraction, there, shift)
        zero, one, field = jnp.zeros_like(step), jnp.ones_like(step), terms(problem)
        first = _FOLLOWING.init(field, zero, one, place, moving)
        return _FOLLOWING.step(field, zero, one, place, moving, first, False)[0]

    def value(shift: Float[Array, " n"]) -> Float[Array, " n"]:
        found = lanewise(lambda lane, here: signals(problem, lane, here))(lanes, along(shift))
        return reduce(jnp.add, [jnp.where(fired == i, x, 0) for i, x in enumerate(found)])

    def moved(_: None) -> tuple[Point, Float[Array, " n"]]:
        shift = jnp.where(crossed, implicit(value, jnp.zeros_like(end)), 0)
        return select(crossed, along(shift), place), end + shift / length

    return lax.cond(jnp.any(crossed), moved, lambda _: (place, end), None)


def implicit(function: Any, place: Float[Array, " n"]) -> Float[Array, " n"]:
    """Located roots, each of one number, as the implicit functions of what a function closes over.

    The places stay as they are, to the last bit; their derivatives follow, of every order. A root
    at which the function has no slope keeps its place.
    """

    def divided(slope_along: Any, value: Float[Array, " n"]) -> Float[Array, " n"]:
        slope = slope_along(jnp.ones_like(value))
        return value / jnp.where(slope != 0, slope, jnp.inf)

    return lax.custom_root(function, place, lambda _, found: found, divided)


def _ended(lane: Lanes, here: Bool[Array, ""], outcome: Outcome) -> Lanes:
    code = jnp.where(here & (lane.outcome == 0), jnp.int32(outcome), lane.outcome)
    return eqx.tree_at(lambda x: x.outcome, lane, code)


def _level_met(problem: Problem, lane: Lanes, here: Bool[Array, ""]) -> Lanes:
    """Every level that is due now counts as met at once."""
    if problem.clock == "time" and problem.target.kind == "time":
        last = jnp.asarray(problem.target.levels, lane.point.time.dtype)[lane.level]
        here = here & (_time_by_clock(problem, lane) >= last * (1 - 16 * jnp.finfo(last.dtype).eps))
    met = here & (jnp.arange(problem.levels, dtype=jnp.int32) == lane.level)
    times = jnp.where(met, lane.point.time, lane.level_times)
    done = here & (lane.level == problem.levels - 1)
    level = jnp.minimum(lane.level + here.astype(jnp.int32), problem.levels - 1)
    lane = eqx.tree_at(lambda x: (x.level_times, x.level), lane, (times, level))
    return _ended(lane, done, Outcome.reached)


def _time_by_clock(problem: Problem, lane: Lanes) -> Float[Array, ""]:
    return lane.progress * lane.span if problem.clock == "time" else lane.point.time


def _save_met(problem: Problem, lane: Lanes, here: Bool[Array, ""]) -> Lanes:
    size = problem.save_at.size
    if size == 0:
        return lane
    due = problem.save_at[jnp.minimum(lane.next_save, size - 1)]
    close = 16 * jnp.finfo(due.dtype).eps
    here = here & (lane.next_save < size) & (_time_by_clock(problem, lane) >= due * (1 - close))
    now = here & (jnp.arange(size, dtype=jnp.int32) == lane.next_save)

    def put(all_: Array, one: Array) -> Array:
        return jnp.where(jnp.reshape(now, (size, *(1,) * one.ndim)), one, all_)

    saved = jax.tree.map(put, lane.saved, lane.point.coordinates)
    count = lane.next_save + here.astype(jnp.int32)
    return eqx.tree_at(lambda x: (x.saved, x.next_save), lane, (saved, count))


def _at_wall(problem: Problem, lane: Lanes, kind: Int[Array, ""]) -> Lanes:
    """A lane that has met a wall, or has ceased to press against one that held it.

    It stops, or goes on along those of all the walls there that hold it; where they leave it no way
    at all, as in a corner, it stops there.
    """
    flow, domain = problem.flow, problem.flow.domain
    count = wall_count(flow)
    here = lane.active & (kind >= 0) & (kind < 2 * count)
    named = jnp.arange(count, dtype=jnp.int32) == kind // 2
    hit, left = named & (kind % 2 == 0), named & (kind % 2 == 1) & lane.walls
    here = here & jnp.any(hit | left)
    onto = onto_walls(flow, lane.point.coordinates, hit | (lane.walls & ~left))

    def placed(lane: Lanes, coordinates: Array) -> Lanes:
        coordinates = jnp.where(here, coordinates, lane.point.coordinates)
        return eqx.tree_at(lambda x: x.point.held, lane, split(coordinates))

    if flow.wall == "stop":
        return _ended(placed(lane, onto), here & jnp.any(hit), Outcome.at_wall)
    state = domain.state(onto)
    free = motion(problem, state, lane.walls).free
    # Walls that are met within the tolerance of each other are met at once.
    epsilon = jnp.finfo(state.dtype).eps
    close = flow.domain.rounding(state) * jnp.maximum(1, _AT_ONCE * problem.rtol / epsilon)
    touched = hit | lane.walls | (flow.domain.distances(state) <= close)
    held = holding(flow, state, free, touched & ~left)
    onto = onto_walls(flow, onto, held)
    along = motion(problem, domain.state(onto), held).velocity
    lane = placed(lane, onto)
    lane = eqx.tree_at(lambda x: x.walls, lane, jnp.where(here, held, lane.walls))
    return _ended(lane, here & stands_still(along, free), Outcome.at_wall)
