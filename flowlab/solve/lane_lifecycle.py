"""The beginning and the end of a lane: its initial data, and its results after the last step.

A start has an outcome before any step if it is not finite, lies outside the domain, is past the
target, or has zero velocity. A start on walls is held by the walls that solve the complementarity
problem of `walls`, and by walls towards which its velocity turns. At the end, the time and state of
a lane that the boundary absorbs are completed by the closed form in `signals`. Times of targets
that were not reached are NaN. Measures are evaluated from their integrals, folds and ends.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from flowlab._arrays import all_finite
from flowlab.domains import AbstractDomain
from flowlab.measures import Ends
from flowlab.solve.field import motion
from flowlab.solve.problem import Lanes, Point, Problem, lanewise
from flowlab.solve.signals import absorbs, absorption_tail, signals
from flowlab.solve.stationarity import is_stationary
from flowlab.solve.walls import (
    along_walls,
    holding,
    slides,
    stands_still,
    wall_count,
)
from flowlab.until import Outcome

__all__ = ["begin", "finish", "potentials"]


def begin(problem: Problem, starts: PyTree[Float[Array, "*d n"]]) -> Lanes:
    """The lanes of a block before their first step; some starts already have an outcome."""
    return lanewise(lambda start: _begin_lane(problem, start))(starts)


def finish(problem: Problem, lanes: Lanes) -> dict[str, Any]:
    """The results of every lane (outcome, times, end, measures), with lanes on the last axis."""
    return lanewise(lambda lane: _finish_lane(problem, lane))(lanes)


def potentials(problem: Problem, starts: PyTree[Float[Array, "*d n"]]) -> Float[Array, " n"]:
    """The potential at each start; lanes are on the last axis of `starts`."""
    return lanewise(problem.flow.potential)(starts)


def _begin_lane(problem: Problem, start: PyTree[Array]) -> Lanes:
    flow, domain = problem.flow, problem.flow.domain
    zero, no, never = _zeros(jax.tree.leaves(start)[0].dtype)
    finite, inside, coordinates = _first_coordinates(domain, start)
    state = domain.state(coordinates)
    walls, velocity, free = _first_walls(problem, state)
    value = flow.potential(state)
    level, outcome = _first_outcome(problem, state, value, (velocity, free), (finite, inside))
    atol = domain.default_atol(state, problem.rtol) if problem.atol is None else problem.atol
    began = problem.clock.reading(flow, state, value)
    levels = problem.clock.levels(flow, problem.target)
    lane = Lanes(
        point=_first_point(problem, coordinates, state, free),
        progress=zero,
        fraction=zero + 1,
        walls=walls,
        level=jnp.minimum(level, problem.levels - 1),
        level_times=_not_yet(zero, problem.levels),
        saved=jax.tree.map(lambda x: _not_yet(x, problem.save_at.size), coordinates),
        next_save=no,
        folds=tuple(m.begin(flow, state) for m in problem.measures),
        outcome=outcome,
        evicted=never,
        strayed=never,
        absorbed=never,
        steps=no,
        signals=zero,
        start=coordinates,
        start_velocity=velocity if problem.measures else None,
        start_value=began,
        span=problem.clock.span(levels, began),
        atol=None if atol is None else jnp.asarray(atol, zero.dtype),
    )
    return eqx.tree_at(lambda lane: lane.signals, lane, signals(problem, lane, lane.point))


def _zeros(dtype: Any) -> tuple[Array, Array, Array]:
    """A time of 0, a count of 0, and False."""
    return jnp.zeros((), dtype), jnp.zeros((), jnp.int32), jnp.zeros((), bool)


def _not_yet(like: Float[Array, "..."], times: int) -> Float[Array, "t ..."]:
    return jnp.full((times, *like.shape), jnp.nan, like.dtype)


def _first_coordinates(
    domain: AbstractDomain, start: PyTree[Array]
) -> tuple[Bool[Array, ""], Bool[Array, ""], PyTree[Array]]:
    """Two flags, that a start is finite and in the domain, and its coordinates (0 if it is not)."""
    finite = all_finite(start)
    inside = finite & domain.contains(start)
    somewhere = domain.coordinates(jax.tree.map(lambda x: jnp.where(inside, x, 1), start))
    return finite, inside, jax.tree.map(lambda x: jnp.where(inside, x, 0), somewhere)


def _first_outcome(
    problem: Problem,
    state: PyTree[Array],
    value: Float[Array, ""],
    velocities: tuple[PyTree[Array], PyTree[Array]],
    fit: tuple[Bool[Array, ""], Bool[Array, ""]],
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The number of levels that a start has passed, and its outcome before any step; 0 for none.

    `velocities` holds the velocity along the walls and the free velocity, `fit` the flags that the
    start is finite and in the domain.
    """
    (velocity, free), (finite, inside) = velocities, fit
    ahead = problem.target.signal(problem.flow, state, jnp.zeros((), value.dtype))
    level = jnp.sum(ahead <= 0).astype(jnp.int32)
    defined = jnp.isfinite(value) & all_finite(free) & all_finite(ahead)
    codes = (
        (~finite, Outcome.non_finite),
        (~inside, Outcome.outside_domain),
        (~defined, Outcome.non_finite),
        (level >= problem.levels, Outcome.started_past_target),
        (is_stationary(free), Outcome.at_critical_point),
        (is_stationary(velocity), Outcome.at_wall),
    )
    running = jnp.zeros((), jnp.int32)
    return level, jnp.select([c for c, _ in codes], [jnp.int32(o) for _, o in codes], running)


def _first_point(
    problem: Problem, coordinates: PyTree[Array], state: PyTree[Array], free: PyTree[Array]
) -> Point:
    zero = jnp.zeros((), jax.tree.leaves(coordinates)[0].dtype)
    rates = (measure.rate(problem.flow, state, free) for measure in problem.measures)
    integrals = tuple(zero for rate in rates if rate is not None)
    return Point.of(coordinates, zero, integrals, zero if slides(problem.flow) else None)


def _first_walls(problem: Problem, state: PyTree[Array]) -> tuple[Array, Any, Any]:
    """A mask of the walls that hold a start, its velocity along them, and its free velocity."""
    flow = problem.flow
    walls = jnp.zeros(wall_count(flow), bool)
    _, free, velocity, _ = motion(problem, state, walls)
    if not wall_count(flow):
        return walls, velocity, free
    touched = flow.domain.distances(state) <= flow.domain.rounding(state)
    if flow.wall == "stop":
        pressing = touched & (flow.domain.walls_like(state)[0] @ free > 0)
        return walls, jnp.where(jnp.any(pressing), 0, free), free
    walls = holding(flow, state, free, touched)
    walls = walls | (touched & _turning_to(problem, state, walls))
    velocity, _ = along_walls(flow, state, free, walls)
    return walls, jnp.where(stands_still(velocity, free), 0, velocity), free


def _turning_to(
    problem: Problem, state: Float[Array, " d"], walls: Bool[Array, " m"]
) -> Bool[Array, " m"]:
    """The walls that a lane moves along and, to second order in time, moves towards."""
    normals, _ = problem.flow.domain.walls_like(state)

    def velocity(state: Array) -> Array:
        return motion(problem, state, walls).velocity

    now = velocity(state)
    _, change = jax.jvp(velocity, (state,), (now,))
    nothing = 16 * jnp.finfo(now.dtype).eps * (jnp.abs(normals) @ jnp.abs(now))
    return (jnp.abs(normals @ now) <= nothing) & (normals @ change > 0)


def _finish_lane(problem: Problem, lane: Lanes) -> dict[str, Any]:
    domain = problem.flow.domain
    kept = problem.save_at.size and lane.saved is not None
    outcome, end_time, arrived = _settlement(problem, lane)
    unfit = (lane.outcome == Outcome.outside_domain) | (lane.outcome == Outcome.non_finite)
    started = ~unfit | (lane.steps > 0)
    reached = outcome == Outcome.reached
    last = domain.state(lane.point.coordinates)
    end = _settled(lane, last, arrived)
    results = _measured(problem, lane, end, end_time)
    nan = jnp.asarray(jnp.nan, end_time.dtype)
    time = jnp.where(reached, end_time, nan)
    end, results = jax.tree.map(lambda x: jnp.where(started, x, nan), (end, results))
    return {
        "outcome": outcome,
        "time": time,
        "end_time": jnp.where(started, end_time, nan),
        "level_times": jnp.concatenate([lane.level_times[:-1], time[None]]),
        "end": end,
        "saved": jax.vmap(domain.state)(lane.saved) if kept else None,
        "measures": results,
        "steps": lane.steps,
    }


def _measured(
    problem: Problem, lane: Lanes, end: PyTree[Array], time: Float[Array, ""]
) -> dict[str, Array]:
    """The results of all measures, by name."""
    if not problem.measures:
        return {}
    ends = _ends(problem, lane, end, time)
    results: dict[str, Array] = {}
    integrals = iter(lane.point.integrals)
    for measure, carry in zip(problem.measures, lane.folds, strict=True):
        rated = measure.rate(problem.flow, ends.start, ends.start_velocity) is not None
        integral = next(integrals) if rated else None
        results |= measure.results(problem.flow, integral, carry, ends)
    return results


def _settlement(problem: Problem, lane: Lanes) -> tuple[Array, Array, Array]:
    """Outcome, end time, and a flag that the boundary was reached, with the last stretch added.

    The last stretch to the boundary is not integrated but takes time. A time limit, or a target
    that is a time, may lie within it.
    """
    target = problem.target
    if not absorbs(problem):
        return lane.outcome, lane.point.time, jnp.zeros((), bool)
    tail = absorption_tail(problem, lane)
    arrived = lane.absorbed & jnp.isfinite(tail)
    code = jnp.int32(Outcome.reached if target.by_absorption else Outcome.at_wall)
    outcome = jnp.where(arrived, code, jnp.int32(Outcome.at_critical_point))
    outcome = jnp.where(lane.absorbed, outcome, lane.outcome)
    end_time = lane.point.time + jnp.where(arrived, tail, 0)
    if target.moments is not None or problem.timed:
        limit, first = target.deadline
        limit = jnp.asarray(limit, end_time.dtype)
        earlier = lane.absorbed & (lane.point.time + tail > limit)
        arrived = arrived & ~earlier
        outcome = jnp.where(earlier, jnp.int32(first), outcome)
        end_time = jnp.where(earlier, limit, end_time)
    return outcome, end_time, arrived


def _settled(lane: Lanes, end: PyTree[Array], arrived: Bool[Array, ""]) -> PyTree[Array]:
    """The end of a lane, with an absorbed component set to zero."""
    if not isinstance(end, jax.Array) or end.ndim != 1:
        return end
    falling = jnp.argmin(lane.point.coordinates - lane.start).astype(jnp.int32)
    return jnp.where(arrived & (jnp.arange(end.size, dtype=jnp.int32) == falling), 0, end)


def _ends(problem: Problem, lane: Lanes, end: PyTree[Array], time: Float[Array, ""]) -> Ends:
    domain = problem.flow.domain
    start, last = domain.state(lane.start), domain.state(lane.point.coordinates)
    last_velocity = motion(problem, last, lane.walls).velocity
    return Ends(start, lane.start_velocity, last, last_velocity, end, time, time - lane.point.time)
