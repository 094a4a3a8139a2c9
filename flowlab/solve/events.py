"""The effects of events on a lane: it reaches a level, a time to save at, or a wall.

At a level the flow time is recorded; at the last level the lane has reached its target. At a wall a
lane ends if the flow has `wall="stop"`. If the flow slides, the lane is first put exactly onto the
wall. All walls n·y ≤ b that it then touches, within 0.16·rtol·(|b| + |n|·|y|), are candidates for
active constraints; |n| and |y| hold the absolute values of the components. `walls` solves the
complementarity problem that decides which of them hold the lane. The lane continues along these
walls, or ends if they leave it no velocity. The same problem is solved when the pressure on a wall
falls to zero, so that a lane is released from a wall at the point at which its free velocity turns
inward.

n: lanes.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flowlab.solve.field import motion
from flowlab.solve.problem import Lanes, Problem, lanewise, split
from flowlab.solve.signals import kinds, locates_levels
from flowlab.solve.walls import holding, onto_walls, stands_still, wall_count
from flowlab.until import Outcome

__all__ = ["apply_clock_event", "apply_event"]

_AT_ONCE = 0.01  # tolerances: walls closer than this are reached at once


def apply_event(problem: Problem, lanes: Lanes, fired: Int[Array, " n"]) -> Lanes:
    """Apply to each lane the event with index `fired`, -1 for none."""
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
    for index, name in enumerate(kinds(problem)):
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


def apply_clock_event(problem: Problem, lane: Lanes, due: Bool[Array, ""]) -> Lanes:
    """Apply to a lane the level or time to save at that its clock has reached, if `due`."""
    due = due & (lane.outcome == 0)
    lane = _save_met(problem, lane, due)
    return lane if locates_levels(problem) else _level_met(problem, lane, due)


def _ended(lane: Lanes, here: Bool[Array, ""], outcome: Outcome) -> Lanes:
    code = jnp.where(here & (lane.outcome == 0), jnp.int32(outcome), lane.outcome)
    return eqx.tree_at(lambda x: x.outcome, lane, code)


def _level_met(problem: Problem, lane: Lanes, here: Bool[Array, ""]) -> Lanes:
    """The lane with the time of its level recorded; at the last level its outcome is `reached`."""
    if problem.clock.keeps_time and problem.target.moments is not None:
        last = jnp.asarray(problem.target.levels, lane.point.time.dtype)[lane.level]
        here = here & (_time_by_clock(problem, lane) >= last * (1 - 16 * jnp.finfo(last.dtype).eps))
    met = here & (jnp.arange(problem.levels, dtype=jnp.int32) == lane.level)
    times = jnp.where(met, lane.point.time, lane.level_times)
    done = here & (lane.level == problem.levels - 1)
    level = jnp.minimum(lane.level + here.astype(jnp.int32), problem.levels - 1)
    lane = eqx.tree_at(lambda x: (x.level_times, x.level), lane, (times, level))
    return _ended(lane, done, Outcome.reached)


def _time_by_clock(problem: Problem, lane: Lanes) -> Float[Array, ""]:
    return lane.progress * lane.span if problem.clock.keeps_time else lane.point.time


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

    saved = lane.saved
    if saved is not None:
        saved = jax.tree.map(put, saved, lane.point.coordinates)
    count = lane.next_save + here.astype(jnp.int32)
    return dataclasses.replace(lane, saved=saved, next_save=count)


def _at_wall(problem: Problem, lane: Lanes, kind: Int[Array, ""]) -> Lanes:
    """The lane after it has reached a wall, or after the pressure on a wall has fallen to zero.

    The lane stops, or continues along the walls that hold it. If these leave it no direction to
    move in, as in a corner, it stops as well.
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
        return eqx.tree_at(lambda x: x.point.packed_coordinates, lane, split(coordinates))

    if flow.wall == "stop":
        return _ended(placed(lane, onto), here & jnp.any(hit), Outcome.at_wall)
    state = domain.state(onto)
    free = motion(problem, state, lane.walls).free
    # Walls within the tolerance of each other are reached at once.
    epsilon = jnp.finfo(state.dtype).eps
    close = flow.domain.rounding(state) * jnp.maximum(1, _AT_ONCE * problem.rtol / epsilon)
    touched = hit | lane.walls | (flow.domain.distances(state) <= close)
    held = holding(flow, state, free, touched & ~left)
    onto = onto_walls(flow, onto, held)
    along = motion(problem, domain.state(onto), held).velocity
    lane = placed(lane, onto)
    lane = eqx.tree_at(lambda x: x.walls, lane, jnp.where(here, held, lane.walls))
    return _ended(lane, here & stands_still(along, free), Outcome.at_wall)
