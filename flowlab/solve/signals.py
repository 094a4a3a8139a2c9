"""Signals of one lane: functions that are positive until an event, and zero at the event.

Each wall has two signals: the distance from the wall, and the rate of approach to it or, while the
wall holds the lane, the pressure on it. Further signals are the distance in log x from the depth at
which an absorbing boundary counts as reached, the distance from the next level of the target, and
the times that remain until the next time to save at and until the time limit. The rate of approach
detects a line that crosses a wall and comes back within one step: the rate changes its sign where
the distance is least. `crossings` locates the first zero.

An absorbing boundary x = 0 lies at log x = −∞. A lane ends far below its start, 145 decades in
float64 and 14 in float32, or 12 if the boundary is the target. The remaining time is added in
closed form: near the boundary the speed of log x is a power of x, and `absorption_tail` estimates
the exponent.

m: signals.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from flowlab.solve.field import motion, velocity_of_coordinates
from flowlab.solve.problem import Lanes, Point, Problem
from flowlab.solve.walls import wall_count

__all__ = [
    "absorbs",
    "absorption_tail",
    "kinds",
    "locates_levels",
    "locates_saves",
    "signals",
    "signals_after",
]

_BOUNDARY_DECADES = 12.0  # decades below the start: the boundary is reached, if it is the target
_DEEP_DECADES = {8: 145.0, 4: 14.0}  # if it is not the target, by bytes of a number: so deep
# that the velocity of the logarithm, which grows like x^(β−2), does not overflow


def signals(problem: Problem, lane: Lanes, point: Point) -> Float[Array, " m"]:
    """The signals of one lane at a point, in the order of `kinds`."""
    state = problem.flow.domain.state(point.coordinates)
    parts = _wall_signals(problem, lane, state)
    if absorbs(problem):
        parts.append(_above_the_boundary(problem, lane, point))
    if locates_levels(problem):
        ahead = problem.target.signal(problem.flow, state, point.time)
        parts.append(ahead[lane.level])
    if locates_saves(problem):
        size = problem.save_at.size
        ahead = problem.save_at[jnp.minimum(lane.next_save, size - 1)] - point.time
        parts.append(jnp.where(lane.next_save < size, ahead, 1))
    if problem.timed:
        parts.append(jnp.asarray(problem.target.time_limit, point.time.dtype) - point.time)
    return jnp.stack(parts) if parts else jnp.zeros(0, point.time.dtype)


def signals_after(problem: Problem, lane: Lanes, fired: Int[Array, ""]) -> Float[Array, " m"]:
    """The signals of a lane just after an event with index `fired`, -1 for none.

    The signal of an event at a wall is set to at most 0, so that rounding does not trigger the
    event again at once.
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


def absorbs(problem: Problem) -> bool:
    """True if the boundary can absorb a lane; False if lanes end at a level before the boundary."""
    return problem.flow.domain.absorbing and not problem.ends_on_level


def absorption_tail(problem: Problem, lane: Lanes) -> Float[Array, ""]:
    """The remaining time of a lane to the boundary; infinite if it never reaches the boundary.

    Near the boundary the remaining time is C·x^p. It equals κ/p, with κ = 1/|d log x/dt| and
    p = d log|d log x/dt| / d(−log x) from the field. The relative error is O(x^β).
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


def kinds(problem: Problem) -> list[str]:
    """The names of the signals, in their order; two for each wall."""
    kinds = []
    for wall in range(wall_count(problem.flow)):
        kinds += [f"wall {wall}", f"press {wall}"]
    kinds += ["absorb"] if absorbs(problem) else []
    kinds += ["level"] if locates_levels(problem) else []
    kinds += ["save"] if locates_saves(problem) else []
    return kinds + (["limit"] if problem.timed else [])


def locates_levels(problem: Problem) -> bool:
    """True if levels are located by a signal; False if steps end at levels by the clock."""
    target = problem.target
    return not target.by_absorption and not problem.clock.ends_on(target)


def locates_saves(problem: Problem) -> bool:
    """True if times to save at are located by a signal; False if steps end at them by the clock."""
    return problem.save_at.size > 0 and not problem.clock.keeps_time


def _wall_signals(problem: Problem, lane: Lanes, state: PyTree[Array]) -> list[Array]:
    """Two signals per wall: distance, 1 if it holds the lane; rate of approach, or pressure."""
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
    if problem.target.by_absorption:
        decades = _BOUNDARY_DECADES
    floor = lane.start - decades * jnp.log(jnp.asarray(10.0, point.time.dtype))
    lowest = 0.9 * jnp.log(number.tiny)
    return jnp.min(point.coordinates - jnp.maximum(floor, lowest))
