"""Targets, at which flow lines end, and the outcomes of starts."""

from abc import abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from flowlab._arrays import floats
from flowlab._checks import choice, positive
from flowlab.domains import AbstractDomain
from flowlab.flow import AbstractFlow, PreferenceFlow

__all__ = [
    "AbstractTarget",
    "Clock",
    "Outcome",
    "absorption",
    "boundary",
    "checked_limit",
    "counted",
    "loss_below",
    "margin_above",
    "speed_below",
    "time",
    "told_of_domain",
]

RATIOS = ("x_chosen", "x_rejected")  # components of the ratio plane
_ROUNDING = 4 * np.finfo(float).eps  # relative: a level may equal the bound up to rounding

Clock = Literal["time", "arc_length", "loss", "margin"]
"""What the independent variable of an integration is; the result does not depend on it.

- `"time"`: flow time. Ends exactly on a given time; one scale of time for a whole block.
- `"arc_length"`: length of the graph of the flow line in time and in the coordinates of the
  domain. Regular everywhere: beside saddles, on plateaus, and where the flow runs into a boundary
  at infinite speed. Targets are located in the interpolant of the step that crosses them.
- `"loss"`: the loss itself, on a logarithmic scale where all levels are positive. Ends exactly on
  a loss level, in few steps; needs a level above every critical value on the way.
- `"margin"`: the margin of the one pair, for losses that are a falling function of it (DPO). As the
  loss, at less cost.
"""


class Outcome(IntEnum):
    """The outcome of a start.

    `reached`: the line reached the target. `started_past_target`: the start is past the target.
    `at_critical_point`: the line starts at, or came to rest near, a point where the velocity
    vanishes. `at_wall`: the line stopped at a wall or was absorbed by the boundary, at `end_time`.
    `outside_domain`: the start lies outside the domain. `left_domain`: a step of training led out
    of the domain. `step_limit`: the limit on the number of steps was reached, or the steps became
    too small, as happens where the flow would slide along a kink of the loss (DPOP, hinge) or runs
    into a pole. `time_limit`: the time limit of the target passed. `non_finite`: the start, or the
    field along the line, is NaN or infinite.
    """

    running = 0
    reached = 1
    started_past_target = 2
    at_critical_point = 3
    at_wall = 4
    outside_domain = 5
    step_limit = 6
    time_limit = 7
    non_finite = 8
    left_domain = 9


def counted(outcomes: npt.ArrayLike) -> dict[str, int]:
    """The number of starts with each outcome, by its name, without outcomes that do not occur."""
    codes, numbers = np.unique(np.asarray(outcomes), return_counts=True)
    return {Outcome(code).name: int(n) for code, n in zip(codes, numbers, strict=True)}


def told_of_domain(
    domain: AbstractDomain | None,
    outcomes: Int[np.ndarray, "*n"],
    ends: PyTree[np.ndarray],
    times: Float[np.ndarray, "*n"],
    names: Sequence[str] | None,
) -> str:
    """The end of a message on lines that were absorbed by the boundary or start outside the domain.

    Args:
        domain: The domain; None if it is not known.
        outcomes: Codes of `Outcome`.
        ends: The states at the ends of the lines; an absorbed component is 0.
        times: The flow times at the ends of the lines.
        names: Names of the components of a state; None if they have none.

    Returns:
        The text, each part with a semicolon before it; "" if there are no such lines.
    """
    if domain is None:
        return ""
    said = ""
    if domain.absorbing:
        met = (np.asarray(outcomes) == Outcome.at_wall)[..., None] & (ends == 0)
        said = absorption(met.reshape(-1, met.shape[-1]), np.ravel(times), names)
    outside = np.any(np.asarray(outcomes) == Outcome.outside_domain)
    said = f"; {said}" if said else ""
    return said + (f"; the domain is {domain.described}" if outside else "")


def absorption(
    absorbed: Bool[np.ndarray, "n d"], times: Float[np.ndarray, " n"], names: Sequence[str] | None
) -> str:
    """A sentence on lines that were absorbed before their target; "" if there are none.

    Args:
        absorbed: Mask of the components that were absorbed, for each line.
        times: Flow times at the ends of the lines.
        names: Names of the components of a state; None if they have none.
    """
    lines = np.any(absorbed, axis=1)
    if not np.any(lines):
        return ""
    axes = np.flatnonzero(np.any(absorbed, axis=0)).tolist()
    shown = " or ".join(f"{names[i] if names else f'component {i + 1}'} = 0" for i in axes)
    first, last = (float(end(times[lines])) for end in (np.min, np.max))
    between = f"time {first:.4g}" if first == last else f"times {first:.4g} to {last:.4g}"
    cure = ", or take LogRatioPlane(), where it does not happen" if names == RATIOS else ""
    return (
        f"{np.sum(lines):,} absorbed by the boundary ({shown}) at {between}, before the target: "
        "that is what this flow does; measure it by until.boundary()" + cure
    )


class AbstractTarget(eqx.Module):
    """A target: one or several levels that a flow line reaches one after the other.

    Attributes:
        levels: The levels; a target without levels has a single unused one.
        time_limit: Flow time at which to give up, infinite for never.
        by_absorption: Whether a line reaches the target when the boundary of its domain absorbs it.
        absolute_below: The size of a level below which its tolerance is absolute, not relative.
    """

    levels: Float[ArrayLike, " k"]
    time_limit: Float[ArrayLike, ""]
    by_absorption: ClassVar[bool] = False
    absolute_below: ClassVar[float] = 0.0

    @property
    def moments(self) -> Float[ArrayLike, " k"] | None:
        """The flow times at which a line reaches the levels, if they are times; else None."""
        return None

    @property
    def of_state(self) -> bool:
        """True if the levels are values of a function of the state."""
        return self.moments is None and not self.by_absorption

    @property
    def deadline(self) -> tuple[Float[ArrayLike, ""], Outcome]:
        """The flow time at which a line ends at the latest, and the outcome of such a line."""
        return self.time_limit, Outcome.time_limit

    @abstractmethod
    def signal(
        self, flow: AbstractFlow, state: PyTree[Array], at: Float[Array, ""]
    ) -> Float[Array, " k"]:
        """The function whose zeros are the levels: positive before a level, negative past it.

        `at` is the flow time of the state.
        """

    @abstractmethod
    def clocks(self, flow: AbstractFlow) -> tuple[Clock, ...]:
        """The possible clocks (independent variables) for lines to this target, default first."""

    def check(self, flow: AbstractFlow) -> None:
        """Raise a `ValueError` if no line of a flow can ever reach the target."""

    def margins(self, flow: AbstractFlow) -> Float[Array, " k"] | None:
        """The margins of the single pair at the levels; None if margin cannot be the clock."""
        del flow

    def may_turn_back(self, flow: AbstractFlow) -> bool:
        """True if a flow line can cross a level and later cross it back."""
        del flow
        return False


class _LossBelow(AbstractTarget):
    def signal(
        self, flow: AbstractFlow, state: PyTree[Array], at: Float[Array, ""]
    ) -> Float[Array, " k"]:
        del at
        value = flow.potential(state)
        return value - jnp.asarray(self.levels, value.dtype)

    def clocks(self, flow: AbstractFlow) -> tuple[Clock, ...]:
        if np.min(self.levels) <= 0:
            return ("arc_length", "loss", "time")
        others: tuple[Clock, ...] = ("loss", "arc_length", "time")
        return ("margin", *others) if _falls_with_the_margin(flow, self.levels) else others

    def check(self, flow: AbstractFlow) -> None:
        bound = flow.lower_bound()
        if bound is None or isinstance(self.levels, Tracer):
            return
        lowest, rounding = float(np.min(self.levels)), _ROUNDING * abs(bound.value)
        if lowest < bound.value - rounding or (
            lowest <= bound.value + rounding and not bound.reached
        ):
            loss = getattr(flow, "loss", flow)
            where = "of at least" if bound.reached else "above"
            why = "" if bound.reached else ", which is not reached in finite time"
            raise ValueError(
                f"Argument `until` must hold losses {where} {bound.value:.6g}, the lower bound of "
                f"{loss!r}{why}, but is loss_below({lowest:.6g})."
            )

    def margins(self, flow: AbstractFlow) -> Float[Array, " k"] | None:
        return flow.margin_at(self.levels)


class _MarginAbove(AbstractTarget):
    absolute_below: ClassVar[float] = 1.0  # nat
    of: Literal["mean", "min"] = eqx.field(static=True)

    def signal(
        self, flow: AbstractFlow, state: PyTree[Array], at: Float[Array, ""]
    ) -> Float[Array, " k"]:
        del at
        if not isinstance(flow, PreferenceFlow):
            raise ValueError(
                "Argument `until` must not be a margin for a flow without pairs, "
                "but is margin_above(...); build the flow with preference_flow."
            )
        margins = flow.pairs(state).margin
        value = jnp.mean(margins) if self.of == "mean" else jnp.min(margins)
        return jnp.asarray(self.levels, value.dtype) - value

    def clocks(self, flow: AbstractFlow) -> tuple[Clock, ...]:
        others: tuple[Clock, ...] = ("arc_length", "time")
        return ("margin", *others) if _falls_with_the_margin(flow, np.ones(1)) else others

    def margins(self, flow: AbstractFlow) -> Float[Array, " k"] | None:
        return None if flow.margin_at(np.ones(1)) is None else floats(self.levels)

    def may_turn_back(self, flow: AbstractFlow) -> bool:
        return not _falls_with_the_margin(flow, np.ones(1))


class _SpeedBelow(AbstractTarget):
    def signal(
        self, flow: AbstractFlow, state: PyTree[Array], at: Float[Array, ""]
    ) -> Float[Array, " k"]:
        del at
        speed = flow.speed(state)
        return speed - jnp.asarray(self.levels, speed.dtype)

    def clocks(self, flow: AbstractFlow) -> tuple[Clock, ...]:
        del flow
        return ("arc_length", "time")

    def may_turn_back(self, flow: AbstractFlow) -> bool:
        del flow
        return True


class _AtTime(AbstractTarget):
    @property
    def moments(self) -> Float[ArrayLike, " k"] | None:
        return self.levels

    @property
    def deadline(self) -> tuple[Float[ArrayLike, ""], Outcome]:
        return self.levels[-1], Outcome.reached  # type: ignore[index]

    def signal(
        self, flow: AbstractFlow, state: PyTree[Array], at: Float[Array, ""]
    ) -> Float[Array, " k"]:
        del flow, state
        return jnp.asarray(self.levels, at.dtype) - at

    def clocks(self, flow: AbstractFlow) -> tuple[Clock, ...]:
        return ("arc_length", "time") if flow.domain.absorbing else ("time", "arc_length")


class _Boundary(AbstractTarget):
    by_absorption: ClassVar[bool] = True

    def signal(
        self, flow: AbstractFlow, state: PyTree[Array], at: Float[Array, ""]
    ) -> Float[Array, " k"]:
        del state
        if not flow.domain.absorbing:
            raise ValueError(
                "Argument `until` must not be boundary() on a domain whose boundary cannot be "
                f"reached, but the domain is {type(flow.domain).__name__}()."
            )
        return jnp.ones(1, at.dtype)

    def clocks(self, flow: AbstractFlow) -> tuple[Clock, ...]:
        del flow
        return ("arc_length",)


def loss_below(*levels: float, time_limit: float | None = None) -> AbstractTarget:
    """A target: the potential falls to a level, or to several levels one after the other.

    Args:
        levels: Values of the potential, finite, strictly decreasing.
        time_limit: Flow time at which to give up; None for never.

    Raises:
        ValueError: If there is no level, a level is not finite, or the levels do not decrease.
    """
    array = _levels("levels", levels)
    if np.any(np.diff(array) >= 0):
        raise ValueError(f"Argument `levels` must be strictly decreasing, but is {array.tolist()}.")
    return _LossBelow(array, checked_limit(time_limit))


def margin_above(
    margin: float, *, of: Literal["mean", "min"] = "mean", time_limit: float | None = None
) -> AbstractTarget:
    """A target: the margin u_chosen − u_rejected, without the factor β, reaches a value in nats.

    Args:
        margin: The margin to reach.
        of: For several pairs, whether their mean or their smallest margin has to reach the value.
        time_limit: Flow time at which to give up; None for never.

    Raises:
        ValueError: If `margin` is not finite or `of` is unknown.
    """
    over = choice("of", of, "mean", "min")
    return _MarginAbove(_levels("margin", (margin,)), checked_limit(time_limit), over)


def speed_below(speed: float, *, time_limit: float | None = None) -> AbstractTarget:
    """A target: the speed of the free flow falls to a value, in the state's units per flow time.

    A line stops on a plateau as well as near a minimum: the target is a measurement, not a test of
    convergence. A dip below `speed` is detected if it lasts at least a tenth of a solver step. For
    speeds below about 1e-5 of the initial speed, set `atol` well below the remaining distance to
    the minimum. Otherwise the error is comparable to that distance, or the line ends earlier with
    the outcome `at_critical_point`.

    Raises:
        ValueError: If `speed` is not positive and finite.
    """
    return _SpeedBelow(np.asarray([positive("speed", speed)]), checked_limit(time_limit))


def time(duration: float) -> AbstractTarget:
    """A target: a flow time.

    Raises:
        ValueError: If `duration` is not positive and finite.
    """
    return _AtTime(np.asarray([positive("duration", duration)]), checked_limit(None))


def boundary(*, time_limit: float | None = None) -> AbstractTarget:
    """A target: absorption by the boundary, x2 = 0 on the ratio plane.

    Once a component x is below 1e-12 of its initial value, the remaining time is added in closed
    form: near the boundary it is C·x^p, with C and p estimated from the field. If p ≤ 0 the line
    never reaches the boundary: the outcome is `at_critical_point`, and `end_time` is the time at
    which the integration stopped.
    """
    return _Boundary(np.zeros(1), checked_limit(time_limit))


def _falls_with_the_margin(flow: AbstractFlow, levels: Float[ArrayLike, " k"]) -> bool:
    """True if the potential of a flow is known to be a decreasing function of the margin.

    Some losses need the values of their hyper-parameters to decide. In a compiled program these
    values are not known, and the answer is False.
    """
    try:
        return jax.eval_shape(flow.margin_at, np.asarray(levels)) is not None
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return False


def _levels(name: str, values: tuple[float, ...]) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        array = np.asarray([np.nan])
    if array.ndim != 1 or array.size == 0 or not np.all(np.isfinite(array)):
        shown = values[0] if len(values) == 1 else list(values)
        raise ValueError(f"Argument `{name}` must be a finite number, but is {shown!r}.")
    return array


def checked_limit(time_limit: float | None) -> np.ndarray:
    """A time limit as a number, infinite for None.

    Raises:
        ValueError: If it is not positive.
    """
    limit = np.inf if time_limit is None else float(time_limit)
    if not limit > 0:
        raise ValueError(f"Argument `time_limit` must be positive, but is {time_limit!r}.")
    return np.asarray(limit)
