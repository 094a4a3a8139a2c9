"""Errors of a step relative to their tolerances, from which the next step is chosen.

The embedded method gives an estimate e of the error of each unknown. The tolerance is rtol·|q| +
atol for a coordinate q, with the larger of |q| before and after the step; for log x on a positive
domain it is rtol + atol/x, an absolute error of log x, with the larger x. For flow time and the
integrals of measures it is purely relative; for the integral of the pressure it is 1e-4 of the flow
time (rtol if that is larger). The error of a lane is the largest quotient of error and tolerance.

In a stiff valley this test is not enough: an error e that is within tolerance across the valley can
exceed what is left of the loss, or change the velocity altogether. After the first 32 steps of a
lane, two more quantities are therefore evaluated both at y and at y − e: the quantity of the target
(a loss, a margin, a speed) and, if there are measures, the velocity. The change of the first must
be within rtol times the sum of the sizes of level and value (at least one nat for a margin), and
that of the velocity within ten times rtol, relative to its largest component. The first test is
omitted for the clock of margin, for levels of zero unless the target is a margin, and for targets
of time and for the boundary.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from flowlab.flow import largest
from flowlab.solve.field import velocity_of_coordinates
from flowlab.solve.problem import Lanes, Point, Problem, lanewise

__all__ = ["lane_errors"]

_ROUNDINGS = 4.0  # of a coordinate: smaller errors are ignored, as no step has fewer
_PRESSURE = 1e-4  # of the time: the tolerance of the integral of the pressure
_SPEED = 10.0  # times rtol: the relative tolerance of the velocity, for measures
_LATE = 32  # steps of a lane before it may be stiff; most other lanes have arrived by then


def lane_errors(problem: Problem, lanes: Lanes, after: Point, error: Any) -> Float[Array, " n"]:
    """The largest error of each lane relative to its tolerance; infinite if it is not finite."""

    def of_lane(lane: Lanes, after: Point, error: Point) -> Float[Array, ""]:
        domain, before = problem.flow.domain, lane.point
        larger = jax.tree.map(lambda a, b: jnp.maximum(jnp.abs(a), jnp.abs(b)), before, after)
        # The scale of logarithmic coordinates decreases as they increase: take the smaller.
        place = jax.tree.map(jnp.maximum, before, after) if domain.absorbing else larger
        allowed = domain.error_scale(place.coordinates, problem.rtol, lane.atol)
        tiny = jnp.finfo(after.time.dtype).tiny
        rest = jax.tree.map(lambda x: problem.rtol * x + tiny, larger)
        coarse = jnp.maximum(problem.rtol, _PRESSURE)
        pressure = None if larger.pressure is None else coarse * larger.time + tiny
        allowed = Point.of(allowed, rest.time, rest.integrals, pressure)
        shares = jax.tree.leaves(jax.tree.map(lambda e, s: jnp.abs(e) / s, error, allowed))
        largest = reduce(jnp.maximum, [jnp.max(share) for share in shares])
        sound = jnp.isfinite(reduce(jnp.add, [jnp.sum(x) for x in jax.tree.leaves(after)]))
        return jnp.where(lane.active, jnp.where(sound & (largest >= 0), largest, jnp.inf), 0)

    given = lax.stop_gradient((lanes, after, error))
    errors = lanewise(of_lane)(*given)
    checks = [_signal_error] if problem.target.of_state and not problem.clock.linear else []
    checks += [_velocity_error] if problem.measures else []
    if not checks:
        return errors

    def look(lanes: Lanes, after: Point, error: Point) -> Float[Array, " n"]:
        def of_lane(*at: Any) -> Float[Array, ""]:
            return reduce(jnp.maximum, [check(problem, *at) for check in checks])

        return lanewise(of_lane)(lanes, after, error)

    late = lanes.active & (lanes.steps >= _LATE)
    seen = lax.cond(jnp.any(late), look, lambda *_: jnp.zeros_like(errors), *given)
    larger = jnp.where(seen >= 0, jnp.maximum(errors, seen), jnp.inf)
    return jnp.where(late, larger, errors)


def _signal_error(problem: Problem, lane: Lanes, after: Point, error: Point) -> Float[Array, ""]:
    """The error in the quantity of the target, relative to its tolerance.

    0 at a level of zero, unless the target has a size below which tolerances are absolute.
    """

    def signal(coordinates: PyTree[Array]) -> Float[Array, ""]:
        state = problem.flow.domain.state(coordinates)
        return problem.target.signal(problem.flow, state, after.time)[lane.level]

    value, change = _change_by_error(signal, after, error)
    level = jnp.asarray(problem.target.levels, value.dtype)[lane.level]
    size = jnp.maximum(jnp.abs(level) + jnp.abs(value), problem.target.absolute_below)
    sizeless = (level == 0) & (problem.target.absolute_below == 0)
    return jnp.where(sizeless, 0, change / jnp.where(sizeless, 1, problem.rtol * size))


def _velocity_error(problem: Problem, lane: Lanes, after: Point, error: Point) -> Float[Array, ""]:
    """The error of the velocity, relative to its tolerance."""
    value, change = _change_by_error(velocity_of_coordinates(problem, lane), after, error)
    speed = largest(value)
    return jnp.where(speed > 0, largest(change) / (_SPEED * problem.rtol * speed), 0)


def _change_by_error(
    function: Callable[[PyTree[Array]], PyTree[Array]], after: Point, error: Point
) -> tuple[PyTree[Array], PyTree[Array]]:
    """A function's value after a step, and its change when the step's error is subtracted.

    The change is 0 if the function is not defined at the changed point, for example beyond a wall.
    """

    def without(x: Float[Array, "..."], error: Float[Array, "..."]) -> Float[Array, "..."]:
        rounded = jnp.abs(error) <= _ROUNDINGS * jnp.finfo(x.dtype).eps * jnp.abs(x)
        return jnp.where(rounded, x, x - error)

    value = function(after.coordinates)
    other = function(jax.tree.map(without, after.coordinates, error.coordinates))
    apart = jax.tree.map(lambda x, y: jnp.abs(x - y), value, other)
    return value, jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), apart)
