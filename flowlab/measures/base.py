"""The class of measures, the data they get of a flow line, and the spaces they can measure in.

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
    """One step of a flow line, at k nodes equally spaced in the independent variable.

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
        start_velocity: Velocity at the start.
        last: The last state that was integrated.
        last_velocity: Velocity at `last`.
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

    The functions of a measure are traced by JAX, and handle one flow line at a time. Bind further
    values to them with `equinox.Partial`, numbers as arrays: measures that differ only in such
    numbers then share a compiled program. As an example, the height that a line climbs:

        def climb(flow, state, velocity):
            return jnp.maximum(velocity[1], 0)

        measures.Measure(("climb",), rate=climb)

    Args:
        names: Names of the results.
        rate: `rate(flow, state, velocity)` returns a number, the rate of change per unit of flow
            time. It is integrated with the flow line.
        begin: `begin(flow, state)` returns the carry of the fold before the first step: a PyTree of
            arrays.
        fold: `fold(flow, carry, nodes)` returns the carry after one more step, from its `Nodes`.
        at_end: `at_end(flow, ends, ...)` returns the results as a tuple in the order of `names`.
            After the `Ends` of the line it gets the integral of the rate, if there is a rate, and
            the carry, if there is a fold. By default these are the results.
        check: `check(flow)` raises a ValueError if the measure is not defined for the flow.
        axis: `pair` or `response` if the results have one value for each of them; None if the axis
            of the results is that of the state.

    Raises:
        ValueError: If `names` is not a tuple of strings, if none of `rate`, `fold` and `at_end` is
            given, or only one of `begin` and `fold`.
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
            raise ValueError(f"Argument `names` must be a tuple of strings, but is {self.names!r}.")
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
        """The results by name, from the integral of the rate, the carry, and the line's `Ends`.

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
        state: A state of the flow, or its shape and dtype.
    """

    def found(at: PyTree[Array]) -> dict[str, Array]:
        velocity, nothing = flow.velocity(at), jnp.zeros(())
        ends = Ends(at, velocity, at, velocity, at, nothing, nothing)
        integral, carry = measure.rate(flow, at, velocity), measure.begin(flow, at)
        return measure.results(flow, integral, carry, ends)

    with jax.enable_x64(True):
        return {name: value.shape for name, value in jax.eval_shape(found, state).items()}


def check_space(of: str) -> Any:
    """The name of a space, unchanged.

    Raises:
        ValueError: If `of` is not the name of a space.
    """
    return choice("of", of, "state", "x", "u", "probability")


def needs_space(of: Space) -> Callable[[AbstractFlow], None]:
    """A `check` for a `Measure`: every space except `"state"` needs a flow with pairs."""
    return eqx.Partial(_check_space_of, of=of)


def _check_space_of(flow: AbstractFlow, *, of: Space) -> None:
    if of != "state" and not isinstance(flow, PreferenceFlow):
        raise ValueError(
            "Argument `measures` must be measures of the state alone for a flow without pairs, "
            f"but one needs {of!r}."
        )


def position(flow: Any, state: PyTree[Array], of: Space) -> PyTree[Array]:
    """A state in the coordinates of a space; other than `"state"`, they begin with an axis of two.

    The axis of two holds the chosen and the rejected response.
    """
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
