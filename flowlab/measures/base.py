"""Measures, what they see of a flow line, and the spaces in which they can measure.

d: components of a state; k: nodes of a step.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from flowlab._checks import choice
from flowlab.flow import AbstractFlow, PreferenceFlow

__all__ = [
    "Ends",
    "Measure",
    "Nodes",
    "Space",
    "check_space",
    "motion",
    "needs_space",
    "position",
    "shapes",
]

Space = Literal["state", "x", "u", "probability"]


class Nodes(eqx.Module):
    """A step of one flow line at equally spaced values of the independent variable.

    Attributes:
        time: Flow times, shape (k,).
        state: States; every leaf has a leading axis of k.
        velocity: Velocities along the flow line (walls included), shaped as `state`.
    """

    time: Float[Array, " k"]
    state: PyTree[Float[Array, "k ..."]]
    velocity: PyTree[Float[Array, "k ..."]]


class Ends(eqx.Module):
    """The two ends of a flow line.

    Attributes:
        start: State at the start.
        start_velocity: Velocity there.
        last: The last state that was integrated.
        last_velocity: Velocity there.
        end: State at the end: `last`, or the point at which the boundary absorbed the line.
        time: Flow time between start and end.
        tail: Flow time between `last` and `end`.
    """

    start: PyTree[Array]
    start_velocity: PyTree[Array]
    last: PyTree[Array]
    last_velocity: PyTree[Array]
    end: PyTree[Array]
    time: Float[Array, ""]
    tail: Float[Array, ""]


def _nothing(*_: Any) -> None:
    """None, as a stand-in for a function that a measure does not have."""


def _unchanged(_flow: AbstractFlow, carry: PyTree[Array], _nodes: Nodes) -> PyTree[Array]:
    return carry


def _as_found(_flow: AbstractFlow, _ends: Ends, *found: Any) -> tuple[Array, ...]:
    """The integral and the carry of the fold, unchanged."""
    return tuple(value for one in found for value in (one if isinstance(one, tuple) else (one,)))


class Measure(eqx.Module):
    """A measure along a flow line: a rate, a fold over its steps, or values at its end.

    Its functions are traced, for one flow line at a time. Bind further values to them by
    `equinox.Partial`, numbers as arrays: measures with the same functions then share a compiled
    program for all numbers. The height that a line climbs, for instance:

        def climb(flow, state, velocity):
            return jnp.maximum(velocity[1], 0)

        measures.Measure(("climb",), rate=climb)

    Args:
        names: Names of the results.
        rate: `rate(flow, state, velocity)`, the rate of change per unit of flow time, a number. It
            is integrated with the flow line.
        begin: `begin(flow, state)`, the carry of the fold before the first step: a PyTree of
            arrays, or a tuple if it holds several results.
        fold: `fold(flow, carry, nodes)`, the carry after one more step, given at `Nodes`.
        at_end: `at_end(flow, ends, ...)`, the results in the order of `names`, from the two `Ends`,
            followed by the integral of the rate and the carry of the fold, if there are any. By
            default, the results are the integral and the carry.
        check: `check(flow)` raises a ValueError if the measure is not defined for a flow.
        axis: `pair` or `response`, for results with one value for each; None for results with the
            axis of the state.

    Raises:
        ValueError: If `names` is not made of texts, there is nothing to measure, or only one of
            `begin` and `fold` is given.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    _: KW_ONLY
    rate: Callable[..., Float[Array, ""] | None] = _nothing
    begin: Callable[..., PyTree[Array]] = _nothing
    fold: Callable[..., PyTree[Array]] = _unchanged
    at_end: Callable[..., tuple[Array, ...]] = _as_found
    check: Callable[[AbstractFlow], None] = _nothing
    axis: str | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if not (isinstance(self.names, tuple) and all(isinstance(n, str) for n in self.names)):
            raise ValueError(f"Argument `names` must be a tuple of texts, but is {self.names!r}.")
        if (self.begin is _nothing) != (self.fold is _unchanged):
            raise ValueError("Arguments `begin` and `fold` must be given together or not at all.")
        if self.rate is _nothing and self.fold is _unchanged and self.at_end is _as_found:
            raise ValueError("Argument `rate`, `fold` or `at_end` must be given, but none is.")

    def results(
        self,
        flow: AbstractFlow,
        integral: Float[Array, ""] | None,
        carry: PyTree[Array] | None,
        ends: Ends,
    ) -> dict[str, Array]:
        """The results by name, from the integral of the rate, the carry, and the two ends.

        Raises:
            ValueError: If there is not one result for each name.
        """
        found = [one for one in (integral, carry) if one is not None]
        values = tuple(self.at_end(flow, ends, *found))
        if len(values) != len(self.names):
            raise ValueError(
                f"Argument `at_end` must give one result for each of {self.names}, but gives "
                f"{len(values)}."
            )
        return dict(zip(self.names, values, strict=True))


def shapes(measure: Measure, flow: AbstractFlow, state: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each result of a measure, by name.

    Args:
        measure: The measure.
        flow: A flow.
        state: One of its states, or its shape and dtype.
    """

    def found(at: PyTree[Array]) -> dict[str, Array]:
        velocity, nothing = flow.velocity(at), jnp.zeros(())
        ends = Ends(at, velocity, at, velocity, at, nothing, nothing)
        integral, carry = measure.rate(flow, at, velocity), measure.begin(flow, at)
        return measure.results(flow, integral, carry, ends)

    with jax.enable_x64(True):
        return {name: value.shape for name, value in jax.eval_shape(found, state).items()}


def check_space(of: str) -> Any:
    """The name of a space, checked.

    Raises:
        ValueError: If it is not valid.
    """
    return choice("of", of, "state", "x", "u", "probability")


def needs_space(of: Space) -> Callable[[AbstractFlow], None]:
    """The check that a flow has a space: all spaces except that of the state need pairs."""
    return eqx.Partial(_check_space_of, of=of)


def _check_space_of(flow: AbstractFlow, *, of: Space) -> None:
    if of != "state" and not isinstance(flow, PreferenceFlow):
        raise ValueError(
            "Argument `measures` must be measures of the state alone for a flow without pairs, "
            f"but one needs {of!r}."
        )


def position(flow: Any, state: PyTree[Array], of: Space) -> PyTree[Array]:
    """A state in the coordinates of a space; for a pair, (chosen, rejected) on the first axis."""
    if of == "state":
        return state
    pairs = flow.pairs(state)
    logs = (
        (pairs.chosen, pairs.rejected)
        if of == "probability"
        else (pairs.u_chosen, pairs.u_rejected)
    )
    logs = jnp.stack(logs)
    return logs if of == "u" else jnp.exp(logs)


def motion(
    flow: AbstractFlow, state: PyTree[Array], velocity: PyTree[Array], of: Space
) -> PyTree[Array]:
    """A velocity in the coordinates of a space."""
    if of == "state":
        return velocity
    return jax.jvp(lambda y: position(flow, y, of), (state,), (velocity,))[1]
