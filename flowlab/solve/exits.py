"""Sets that paths with noise leave, as targets of `noisy_runs`.

A set is the region in which m functions, its gaps, are all positive. A gap is the distance of a
loss or margin from a level, of a state from a wall, or of a component from an end of an interval.

m: boundaries.
"""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, PyTree

from flowlab._arrays import like
from flowlab._checks import integer, numbers
from flowlab.flow import AbstractFlow
from flowlab.until import AbstractTarget, checked_limit

__all__ = ["AbstractExit", "exit_at_level", "exit_from", "exit_from_interval"]


class AbstractExit(eqx.Module):
    """A set to leave; `exit_from` and `exit_from_interval` construct one."""

    time_limit: eqx.AbstractVar[float]

    @abstractmethod
    def gaps(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, " m"]:
        """The gaps at a state: all positive inside the set, one of them zero on its boundary."""


class _Inside(AbstractExit):
    inside: Callable[[PyTree[Array]], Float[Array, ""]]
    time_limit: float = eqx.field(static=True)

    def gaps(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, " 1"]:
        del flow
        value = jnp.asarray(self.inside(state))
        if value.shape != ():
            raise ValueError(
                "Argument `inside` must give one number for a state, but gives shape "
                f"{value.shape}."
            )
        return value[None]


class _Interval(AbstractExit):
    low: Float[ArrayLike, ""] | None
    high: Float[ArrayLike, ""] | None
    component: int = eqx.field(static=True)
    time_limit: float = eqx.field(static=True)

    def gaps(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, " m"]:
        del flow
        vector, _ = ravel_pytree(state)
        if self.component >= vector.size:
            raise ValueError(
                f"Argument `component` must be less than {vector.size}, the size of a state, "
                f"but is {self.component}."
            )
        position = vector[self.component]
        above = [] if self.low is None else [position - like(self.low, position)]
        below = [] if self.high is None else [like(self.high, position) - position]
        return jnp.stack([*above, *below])


class _Before(AbstractExit):
    target: AbstractTarget
    time_limit: float = eqx.field(static=True)

    def gaps(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, " 1"]:
        vector, _ = ravel_pytree(state)
        return self.target.signal(flow, state, jnp.zeros((), vector.dtype))


def exit_from(
    inside: Callable[[PyTree[Array]], Float[Array, ""]], *, time_limit: float | None = None
) -> AbstractExit:
    """A target: exit from the set in which a function of the state is positive.

    Args:
        inside: A smooth function of the state that is positive inside, negative outside, and zero
            on the boundary with a nonzero slope: `lambda y: 1 - y @ y` for the unit ball.
        time_limit: Flow time at which to give up; None for never.

    Raises:
        ValueError: If `inside` cannot be called or `time_limit` is not positive.
    """
    if not callable(inside):
        raise ValueError(f"Argument `inside` must be a function of a state, but is {inside!r}.")
    return _Inside(inside=inside, time_limit=float(checked_limit(time_limit)))


def exit_from_interval(
    low: float | None = None,
    high: float | None = None,
    *,
    component: int = 0,
    time_limit: float | None = None,
) -> AbstractExit:
    """A target: exit of one component of the state from an interval.

    Args:
        low: Lower end; None for −∞.
        high: Upper end; None for ∞.
        component: Index of the component in the flattened state, counted from 0.
        time_limit: Flow time at which to give up; None for never.

    Raises:
        ValueError: If both ends are None, an end is not finite, the ends are not in order, or
            `time_limit` is not positive.
    """
    ends = numbers([-np.inf if low is None else low, np.inf if high is None else high])
    given = (low is not None, high is not None)
    if not any(given) or not np.all(np.isfinite(ends) == given) or not np.all(ends[0] < ends[-1]):
        raise ValueError(
            "Arguments `low` and `high` must be finite with low < high, or one of them must be "
            f"None, but they are {low!r} and {high!r}."
        )
    return _Interval(
        low=None if low is None else ends[0],
        high=None if high is None else ends[1],
        component=integer("component", component, 0),
        time_limit=float(checked_limit(time_limit)),
    )


def exit_at_level(target: AbstractTarget) -> AbstractExit:
    """A target: exit from the set of states that are before the level of another target.

    Raises:
        ValueError: If the level is not a value of a function of the state, or there are several
            levels.
    """
    if not target.of_state or np.shape(target.levels) != (1,):
        raise ValueError(
            "Argument `until` must be a time, a single level or an exit if the flow has noise, "
            f"but is {target!r}."
        )
    return _Before(target=target, time_limit=float(np.asarray(target.time_limit)))
