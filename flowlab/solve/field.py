"""The field that the solver integrates: the derivatives of a lane's unknowns by its clock.

The velocity at a state y is v = −M(y)∇L(y), projected onto the walls that hold the lane (`walls`),
and pushed forward to the coordinates of the domain. The derivatives with respect to the clock are
this velocity times the pace of the clock, the pace itself for flow time, and rates of measures
times the pace for their integrals.

The least pressure on the walls that hold a lane is integrated as a further unknown. The state does
not depend on the pressure, so that a step would not resolve a change of its sign. As an unknown,
its integral has a tolerance, and the interpolant of the integral shows the sign.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from flowlab.flow import norm
from flowlab.solve.clocks import Hand, Moving
from flowlab.solve.problem import Lanes, Point, Problem
from flowlab.solve.walls import along_walls

__all__ = ["Motion", "motion", "vector_field", "velocity_of_coordinates"]


class Motion(NamedTuple):
    """Gradient, free velocity, velocity along the walls, and pressure on each wall, at a state.

    `pressure` has shape (m,), and is 0 for walls that do not hold the lane; it is None for flows
    that do not slide.
    """

    gradient: PyTree[Array]
    free: PyTree[Array]
    velocity: PyTree[Array]
    pressure: Float[Array, " m"] | None


def motion(problem: Problem, state: PyTree[Array], held: Bool[Array, " m"]) -> Motion:
    """The `Motion` of one lane at a state, on the walls that hold it."""
    flow = problem.flow
    gradient = flow.gradient(state)
    sign = 1 if problem.reverse else -1
    free = jax.tree.map(lambda leaf: sign * leaf, flow.metric(state, gradient))
    return Motion(gradient, free, *along_walls(flow, state, free, held))


def vector_field(problem: Problem, lane: Lanes, offset: Float[Array, ""], point: Point) -> Point:
    """The derivatives of a lane's unknowns by its clock, at `offset` from the start of the step."""
    domain = problem.flow.domain
    state = domain.state(point.coordinates)
    gradient, free, velocity, pressure = motion(problem, state, lane.walls)
    push = domain.pushforward(state, velocity)
    hand = Hand(lane.start_value, lane.span, lane.progress + lane.fraction * offset)
    moving = Moving(state, gradient, velocity, push)
    pace, scaled = problem.clock.rates(problem.flow, hand, moving)
    integrals = (m.rate(problem.flow, state, velocity) for m in problem.measures)
    pressed = None if pressure is None else pace * _least(pressure, lane.walls, free)
    return Point.of(scaled, pace, tuple(pace * i for i in integrals if i is not None), pressed)


def _least(
    pressure: Float[Array, " m"], held: Bool[Array, " m"], free: Float[Array, " d"]
) -> Float[Array, ""]:
    """The least pressure on the walls that hold a lane, relative to its free speed."""
    weakest = jnp.min(jnp.where(held, pressure, jnp.inf))
    size = norm(free)
    return jnp.where(jnp.any(held) & (size > 0), weakest / jnp.where(size > 0, size, 1), 0)


def velocity_of_coordinates(
    problem: Problem, lane: Lanes
) -> Callable[[PyTree[Array]], PyTree[Array]]:
    """A function from a lane's coordinates to their velocity along the walls that hold the lane."""
    domain = problem.flow.domain

    def velocity(coordinates: PyTree[Array]) -> PyTree[Array]:
        state = domain.state(coordinates)
        return domain.pushforward(state, motion(problem, state, lane.walls).velocity)

    return velocity
