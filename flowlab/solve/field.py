"""The field that a block's solver sees: the derivative of a lane's point by its clock."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from flowlab.flow import inner, largest, norm
from flowlab.solve.problem import Lanes, Point, Problem
from flowlab.solve.walls import along_walls

__all__ = ["Motion", "margin", "motion", "vector_field", "velocity_of_coordinates"]


class Motion(NamedTuple):
    """How one lane moves: without walls, with those that hold it, and the pressure on these.

    `pressure`, shape (m,), is 0 for walls that do not hold the lane; None where no lane slides.
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
    """The derivative of one lane's point by its clock, `offset` into the shared step."""
    domain = problem.flow.domain
    state = domain.state(point.coordinates)
    gradient, free, velocity, pressure = motion(problem, state, lane.walls)
    push = domain.pushforward(state, velocity)
    if problem.clock == "time":
        pace, scaled = lane.span, _times(push, lane.span)
    elif problem.clock == "arc_length":
        pace, scaled = _along_the_graph(push)
    elif problem.clock == "margin":
        pace = _by_the_margin(problem, lane, state, velocity)
        scaled = _times(push, pace)
    else:
        pace = _by_the_loss(problem, lane, offset, gradient, velocity)
        scaled = _times(push, pace)
    integrals = (m.rate(problem.flow, state, velocity) for m in problem.measures)
    pressed = None if pressure is None else pace * _least(pressure, lane.walls, free)
    return Point.of(scaled, pace, tuple(pace * i for i in integrals if i is not None), pressed)


def _least(
    pressure: Float[Array, " m"], held: Bool[Array, " m"], free: Float[Array, " d"]
) -> Float[Array, ""]:
    """The least pressure on the walls that hold a lane, over the size of its free velocity."""
    weakest = jnp.min(jnp.where(held, pressure, jnp.inf))
    size = norm(free)
    return jnp.where(jnp.any(held) & (size > 0), weakest / jnp.where(size > 0, size, 1), 0)


def _along_the_graph(push: PyTree[Array]) -> tuple[Array, PyTree[Array]]:
    """Time and coordinates per unit of the length of the graph, without overflow."""
    scale = 1 / jnp.maximum(1, largest(push))
    small = _times(push, scale)
    length = jnp.sqrt(scale**2 + inner(small, small))
    return scale / length, _times(small, 1 / length)


def _by_the_loss(
    problem: Problem,
    lane: Lanes,
    offset: Float[Array, ""],
    gradient: PyTree[Array],
    velocity: PyTree[Array],
) -> Float[Array, ""]:
    """Time per unit of the loss clock, which runs from 0 at the start to 1 at the last level."""
    if not problem.logarithmic:
        return -lane.span / inner(gradient, velocity)
    # Relative to the loss at the start, no product leaves the range of numbers.
    falls = -inner(jax.tree.map(lambda leaf: leaf / lane.start_value, gradient), velocity)
    progress = lane.progress + lane.fraction * offset
    return lane.span * jnp.exp(-lane.span * progress) / falls


def _by_the_margin(
    problem: Problem, lane: Lanes, state: PyTree[Array], velocity: PyTree[Array]
) -> Float[Array, ""]:
    """Time per unit of the margin clock; NaN where the margin does not go towards its goal."""
    _, rate = jax.jvp(lambda y: margin(problem, y), (state,), (velocity,))
    pace = lane.span / rate
    return jnp.where(pace > 0, pace, jnp.nan)


def velocity_of_coordinates(
    problem: Problem, lane: Lanes
) -> Callable[[PyTree[Array]], PyTree[Array]]:
    """The velocity of the coordinates of a lane as a function of them, along the walls it is on."""
    domain = problem.flow.domain

    def velocity(coordinates: PyTree[Array]) -> PyTree[Array]:
        state = domain.state(coordinates)
        return domain.pushforward(state, motion(problem, state, lane.walls).velocity)

    return velocity


def margin(problem: Problem, state: PyTree[Array]) -> Float[Array, ""]:
    """The margin of the one pair of a preference flow."""
    return problem.flow.pairs(state).margin  # type: ignore[attr-defined]


def _times(tree: PyTree[Array], factor: Float[Array, ""]) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: factor * leaf, tree)
