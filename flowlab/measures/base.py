"""What a measure is, what it sees of a flow line, and the spaces it can measure in.

d: components of a state; k: nodes of a step.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from flowlab._checks import choice
from flowlab.flow import AbstractFlow, PreferenceFlow

__all__ = [
    "AbstractMeasure",
    "Ends",
    "Nodes",
    "Space",
    "check_pair_space",
    "check_space",
    "check_space_of",
    "motion",
    "position",
]

Space = Literal["state", "x", "u", "probability"]


class Nodes(eqx.Module):
    """A step of one flow line, seen at equally spaced points of the independent variable.

    Attributes:
        time: Flow times, shape (k,).
        state: States; every leaf has a leading axis of k.
        velocity: Velocities along the flow line (walls included), shaped as `state`.
    """

    time: Float[Array, " k"]
    state: PyTree[Float[Array, "k ..."]]
    velocity: PyTree[Float[Array, "k ..."]]


class AbstractMeasure(eqx.Module):
    """Something measured along a flow line; the names of its results are its keys."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The keys of the results."""

    @property
    def axes(self) -> Mapping[str, str]:
        """What the extra axis of a result is, `pair` or `response`; a state's if not named here."""
        return {}

    def check(self, flow: AbstractFlow) -> None:
        """Raise a ValueError where the measure has no meaning for a flow."""
        del flow

    def rate(
        self, flow: AbstractFlow, state: PyTree[Array], velocity: PyTree[Array]
    ) -> Float[Array, ""] | None:
        """The rate of change of what is integrated, per unit of flow time, or None."""
        del flow, state, velocity
        return None

    def begin(self, flow: AbstractFlow, state: PyTree[Array]) -> PyTree[Array]:
        """What the fold carries before the first step."""
        del flow, state
        return ()

    def fold(self, flow: AbstractFlow, carry: PyTree[Array], nodes: Nodes) -> PyTree[Array]:
        """What the fold carries after one more step."""
        del flow, nodes
        return carry

    @abstractmethod
    def results(
        self, flow: AbstractFlow, integral: Float[Array, ""] | None, carry: PyTree[Array], ends: Any
    ) -> dict[str, Array]:
        """The results, from the integral of the rate, the carry, and the two `Ends`."""


class Ends(eqx.Module):
    """The two ends of a flow line.

    Attributes:
        start: State at the start.
        start_velocity: Velocity there.
        last: The last state that was integrated.
        last_velocity: Velocity there.
        end: State at the end: `last`, or a point of the boundary that has absorbed the line.
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


def check_space(of: str) -> Any:
    """The name of a space, checked.

    Raises:
        ValueError: If it is none.
    """
    return choice("of", of, "state", "x", "u", "probability")


def check_pair_space(of: str) -> Any:
    """The name of a space of chosen and rejected, checked.

    Raises:
        ValueError: If it is none.
    """
    if check_space(of) == "state":
        raise ValueError('Argument `of` must be "x", "u" or "probability", but is "state".')
    return of


def check_space_of(flow: AbstractFlow, of: str) -> None:
    """Raise a ValueError where a flow has no such space, since it has no pairs."""
    if of != "state" and not isinstance(flow, PreferenceFlow):
        raise ValueError(
            "Argument `measures` must hold measures of the state alone for a flow without pairs, "
            f"but one is of {of!r}."
        )


def position(flow: Any, state: PyTree[Array], of: Space) -> PyTree[Array]:
    """A state in the coordinates of a space, (chosen, rejected) on the first axis for a pair's."""
    if of == "state":
        return state
    pairs = flow.pairs(state)
    logs = (
        (pairs.chosen, pairs.rejected)
        if of == "probability"
        else (pairs.u_chosen, pairs.u_rejected)
    )
    place = jnp.stack(logs)
    return place if of == "u" else jnp.exp(place)


def motion(
    flow: AbstractFlow, state: PyTree[Array], velocity: PyTree[Array], of: Space
) -> PyTree[Array]:
    """A velocity in the coordinates of a space."""
    if of == "state":
        return velocity
    return jax.jvp(lambda y: position(flow, y, of), (state,), (velocity,))[1]
