"""The field that a block's solver sees: the derivative of a lane's unknowns by its clock.

For a state y the velocity is v = −M(y)∇L(y), projected on the walls that hold the lane (`walls`),
and pushed forward to the coordinates of the domain. The clock multiplies it by its pace, which is
also the derivative of flow time; integrals of measures grow at their rates times the pace.

Beside them the least pressure on the walls that hold a lane is integrated. A wall's push has no
trace in the state, so that a step would not notice that it changes its sign; as an unknown it is
held to a tolerance, and its sign is read off the interpolant.
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
    """The gradient, the free velocity, the velocity along the walls, and the pressure on each wall.

    `pressure`, shape (m,), is 0 for walls that the lane is not pressed against; None where no lane
    slides.
    """

    gradient: PyTree[Array]
    free: PyTree[Array]
    velocity: PyTree[Array]
    pressure: Float[Array, " m"] | None


def motion(problem: Problem, state: PyTree[Array], held: Bool[Array, " m"]) -> Motion:
    """The motion of one lane at a state."""
    flow = problem.flow
    gradient = flow.gradient(state)
    sign = 1 if problem.reverse else -1
    free = jax.tree.map(lambda leaf: sign * leaf, flow.metric(state, gradient))
    return Motion(gradient, free, *along_walls(flow, state, free, held))


def vector_field(problem: Problem, lane: Lanes, offset: Float[Array, ""], point: Point) -> Point:
    """The derivative of one lane's unknowns by its clock, at an `offset` into the shared step."""
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
    """The velocity of a lane's coordinates as a function of them, along the walls that hold it."""
    domain = problem.flow.domain

    def velocity(coordinates: PyTree[Array]) -> PyTree[Array]:
        state = domain.state(coordinates)
        return domain.pushforward(state, motion(problem, state, lane.walls).velocity)

    return velocity
