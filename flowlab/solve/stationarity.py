"""The test for lanes at rest, which distinguishes a critical point nearby from slow motion.

A small velocity does not show that a line has arrived: a plateau and the bed of a stiff valley are
slow too. A lane is at rest if the remaining distance to a critical point is below ten tolerances of
the state. This distance is estimated in two ways.

1. After every step, except under the clocks of loss and margin and if the target is a time, from p,
   the velocity of the coordinates, and p', its derivative along the flow line. If the line decays
   at a single rate, the remaining displacement is p·|p|²/(−p·p'). In a stiff valley p is dominated
   by the motion across the valley, and the estimate can be far too small.
2. For lanes that pass the first test, by Newton's step to the critical point. It is computed by up
   to eight conjugate gradient steps, preconditioned with the metric of the flow, and the last of
   them counts; the first equals the estimate above if the metric is a constant multiple of the
   identity in the coordinates. A direction with negative or no curvature means that there is no
   critical point nearby.

Neither displacement may pass the target. Neither estimate needs the Hessian as a matrix. At a
detected critical point, the error of the state is at most the tolerance times the condition number
of the Hessian.

Source: Nocedal and Wright, Numerical Optimization (2006), section 7.1 (Newton's method with
conjugate gradients).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from flowlab.flow import inner, largest
from flowlab.solve.field import velocity_of_coordinates
from flowlab.solve.problem import Lanes, Problem, lanewise
from flowlab.solve.walls import along_walls
from flowlab.until import Outcome

__all__ = ["is_stationary", "rested"]

_NEAR = 10.0  # tolerances: a line with a shorter remaining distance is at rest
_LONGEST_TIME = 0.97  # of the largest exponent: longer flow times end a line before they overflow
_MOST_STEPS = 8  # of conjugate gradients: about one per scale of curvature
_FLAT = 0.6  # power of the machine epsilon: the relative curvature that counts as zero


def rested(problem: Problem, lanes: Lanes) -> Lanes:
    """The lanes, with an outcome for lanes at rest and lanes whose time is about to overflow."""
    lanes_now = lax.stop_gradient(lanes)
    still_lanes, seems = lanewise(lambda lane: _first_look(problem, lane))(lanes_now)
    seems = seems & lanes.active

    def look_again(lanes: Lanes) -> Bool[Array, " n"]:
        return lanewise(lambda lane: _second_look(problem, lane))(lanes)

    def leave(lanes: Lanes) -> Bool[Array, " n"]:
        return lanes.evicted

    near = lax.cond(jnp.any(seems), look_again, leave, lanes_now)
    return lanewise(_with_outcome)(lanes, (seems & near) | still_lanes)


def is_stationary(velocity: PyTree[Array]) -> Bool[Array, ""]:
    """True if a velocity is exactly zero."""
    return jnp.all(jnp.stack([jnp.all(leaf == 0) for leaf in jax.tree.leaves(velocity)]))


def _with_outcome(lane: Lanes, resting: Bool[Array, ""]) -> Lanes:
    on_wall = jnp.any(lane.walls)
    code = jnp.where(on_wall, jnp.int32(Outcome.at_wall), jnp.int32(Outcome.at_critical_point))
    late = lane.point.time > jnp.finfo(lane.point.time.dtype).max ** _LONGEST_TIME
    ended = jnp.where(late, jnp.int32(Outcome.step_limit), lane.outcome)
    ended = jnp.where(resting, code, ended)
    outcome = jnp.where(lane.outcome == 0, ended, lane.outcome)
    return eqx.tree_at(lambda x: x.outcome, lane, outcome)


def _first_look(problem: Problem, lane: Lanes) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Two flags for a lane: its velocity is zero; it is near rest by the first estimate.

    With p the velocity of the coordinates and p' its derivative along the flow line, the remaining
    displacement is estimated as p·τ, τ = −|p|²/(p·p'), which is exact for a single rate of decay.
    On a plateau p changes slowly, so that the estimate is long.
    """
    velocity, here = velocity_of_coordinates(problem, lane), lane.point.coordinates
    now = velocity(here)
    size = largest(now)
    unit = jax.tree.map(lambda leaf: leaf / jnp.where(size > 0, size, 1), now)
    _, change = jax.jvp(velocity, (here,), (unit,))
    slowing = -inner(unit, change)
    left = inner(unit, unit) / jnp.where(slowing > 0, slowing, 1)
    to_go = jax.tree.map(lambda leaf: left * leaf, now)
    return is_stationary(now), (slowing > 0) & _near(problem, lane, to_go)


def _second_look(problem: Problem, lane: Lanes) -> Bool[Array, ""]:
    """True if Newton's step, computed by conjugate gradients, is short as well."""
    here = lane.point.coordinates
    slope, lifted = _slope_and_metric(problem, lane)
    steepest = slope(here)
    size = largest(steepest)
    epsilon = jnp.finfo(size.dtype).eps
    residual = jax.tree.map(lambda leaf: -leaf / jnp.where(size > 0, size, 1), steepest)
    first = lifted(residual)
    beginning = inner(residual, first)

    def going(at: _Search) -> Bool[Array, ""]:
        return at.going & (at.steps < _MOST_STEPS)

    def step(at: _Search) -> _Search:
        _, bent = jax.jvp(slope, (here,), (at.direction,))
        curvature = inner(at.direction, bent)
        length = at.size / curvature
        curved = (curvature > 0) & (length * epsilon**_FLAT < at.shortest)
        length = jnp.where(curved, length, 0)
        to_go = jax.tree.map(lambda w, d: w + length * size * d, at.to_go, at.direction)
        residual = jax.tree.map(lambda r, b: r - length * b, at.residual, bent)
        next_ = lifted(residual)
        left = inner(residual, next_)
        direction = jax.tree.map(lambda n, d: n + left / at.size * d, next_, at.direction)
        more = curved & (left > (64 * epsilon) ** 2 * beginning) & _near(problem, lane, to_go)
        shortest = jnp.minimum(at.shortest, jnp.where(curved, length, jnp.inf))
        return _Search(to_go, residual, direction, left, shortest, at.steps + 1, more, ~curved)

    nowhere, unknown = jax.tree.map(jnp.zeros_like, here), jnp.full_like(size, jnp.inf)
    none, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    start = _Search(nowhere, residual, first, beginning, unknown, none, beginning > 0, no)
    found = lax.while_loop(going, step, start)
    return ~found.endless & _near(problem, lane, found.to_go)


def _slope_and_metric(
    problem: Problem, lane: Lanes
) -> tuple[Callable[[PyTree[Array]], PyTree[Array]], Callable[[PyTree[Array]], PyTree[Array]]]:
    """Two functions: the gradient of the potential in coordinates; the metric at a lane's point."""
    flow, domain, here = problem.flow, problem.flow.domain, lane.point.coordinates
    sign = -1 if problem.reverse else 1
    state = domain.state(here)
    _, covector_of = jax.vjp(domain.coordinates, state)

    def slope(coordinates: PyTree[Array]) -> PyTree[Array]:
        state, pull_back = jax.vjp(domain.state, coordinates)
        return pull_back(jax.tree.map(lambda leaf: sign * leaf, flow.gradient(state)))[0]

    def lifted(residual: PyTree[Array]) -> PyTree[Array]:
        free = flow.metric(state, covector_of(residual)[0])
        return domain.pushforward(state, along_walls(flow, state, free, lane.walls)[0])

    return slope, lifted


class _Search(NamedTuple):
    """State of the conjugate gradient iteration: Newton's step so far, residual, direction."""

    to_go: PyTree[Array]
    residual: PyTree[Array]
    direction: PyTree[Array]
    size: Float[Array, ""]
    shortest: Float[Array, ""]
    steps: Any
    going: Bool[Array, ""]
    endless: Bool[Array, ""]  # there is a slope along a direction without curvature


def _near(problem: Problem, lane: Lanes, to_go: PyTree[Array]) -> Bool[Array, ""]:
    """True if a displacement is below ten tolerances, and does not pass the target."""
    here, domain = lane.point.coordinates, problem.flow.domain
    allowed = domain.error_scale(here, problem.rtol, lane.atol)
    parts = jax.tree.map(lambda w, a: jnp.max(jnp.abs(w) / a), to_go, allowed)
    end = domain.state(jax.tree.map(jnp.add, here, to_go))
    ahead = problem.target.signal(problem.flow, end, lane.point.time)
    return (jnp.max(jnp.stack(jax.tree.leaves(parts))) < _NEAR) & ~(ahead[lane.level] <= 0)
