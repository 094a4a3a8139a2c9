"""Clocks: the possible independent variables of the integration of a lane.

With a clock s, time and state obey dt/ds = g and dy/ds = g·v(y), v the velocity and g > 0 the
*pace*. The flow line is the same for every clock; the steps differ:

- `time`: g is constant. Lanes can end exactly at given times.
- `arc_length`: g = 1/√(1 + |v|²), with v in the coordinates of the domain, so that s is the length
  of the graph of the line. This clock is regular on plateaus, and if the speed tends to infinity in
  finite time.
- `loss`: s is the decrease of log L (of L if a level is not positive), so that g is one over the
  rate at which log L or L decreases. Lanes can end exactly at levels of the loss. This clock is
  singular where ∇L vanishes.
- `margin`: s is the increase of the margin of the single pair, otherwise as for `loss`.

Each target has a default clock. For positive levels of the loss it is `margin`, or `loss` if the
loss is not a decreasing function of the margin of a single pair; for other levels of the loss, for
a speed and for the boundary it is `arc_length`. For a margin it is `margin` if the loss is a
decreasing function of it, else `arc_length`. For a time it is `time`, or `arc_length` if the
boundary absorbs. For a single line, or with times to save at, `arc_length` takes the place of
`loss` and `margin`; for a reversed flow these two are not possible at all. The default of stiff
solvers is `time`, or `arc_length` if the boundary absorbs.

The last two clocks, and time if the target is a time, are scaled such that s runs from 0 at the
start to 1 at the last level. When a clock of loss or margin arrives at a level, `engine` compares
the loss or margin of the state with the level. The names are those of `flowlab.until.Clock`.

k: levels of the target.

Source: Hirota and Ozawa, J. Comput. Appl. Math. 193 (2006) 614–637, for arc length with solutions
that diverge in finite time.
"""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from flowlab._arrays import like
from flowlab.flow import AbstractFlow, inner, largest
from flowlab.until import AbstractTarget, Clock

__all__ = ["ARC_LENGTH", "AbstractClock", "AbstractLevelClock", "Hand", "Moving", "clock_named"]

Number = Float[Array, ""]
Levels = Float[ArrayLike, " k"]
Rates = tuple[Number, PyTree[Array]]

_AT_LEVEL = 10.0  # tolerances, relative to a level, within which a clock has reached it


class Hand(NamedTuple):
    """State of a lane's clock: reading at the start, length of the span, progress so far."""

    began: Number
    span: Number
    progress: Number


class Moving(NamedTuple):
    """A state, its gradient, its velocity along the walls, and the velocity of its coordinates."""

    state: PyTree[Array]
    gradient: PyTree[Array]
    velocity: PyTree[Array]
    push: PyTree[Array]


class AbstractClock(eqx.Module):
    """An independent variable of the integration.

    Attributes:
        name: The name that users pass as `clock`.
        first_step: The length of the first step to try.
        keeps_time: Whether the clock is flow time up to a constant factor; steps then end exactly
            at times to save at.
        regular: Whether the clock is regular everywhere. Lanes that fail under another clock
            continue under the regular one.
        linear: Whether the reading is a linear function of the coordinates. The tolerance of the
            coordinates then also bounds the error of the reading.
    """

    name: ClassVar[Clock]
    first_step: ClassVar[float]
    keeps_time: ClassVar[bool] = False
    regular: ClassVar[bool] = False
    linear: ClassVar[bool] = False

    @classmethod
    def towards(cls, target: AbstractTarget) -> "AbstractClock":
        """The clock of this class for a target."""
        del target
        return cls()

    def ends_on(self, target: AbstractTarget) -> bool:
        """True if steps under this clock end exactly at the levels of a target."""
        del target
        return False

    def levels(self, flow: AbstractFlow, target: AbstractTarget) -> Levels | None:
        """The readings of the clock at the levels of a target; None if no step ends at levels."""
        del flow, target
        return None

    def reading(self, flow: AbstractFlow, state: PyTree[Array], potential: Number) -> Number:
        """The clock's reading at a state, from the value of the potential at the state."""
        del flow, state
        return jnp.zeros_like(potential)

    def difference(self, first: Number, last: Number) -> Number:
        """The difference of two readings, in the clock's unit."""
        return last - first

    @abstractmethod
    def rates(self, flow: AbstractFlow, hand: Hand, at: Moving) -> Rates:
        """The derivatives of flow time and of the coordinates with respect to the clock."""

    def span(self, levels: Levels | None, began: Number) -> Number:
        """The difference of readings from the start to the last level; 1 if there are no levels."""
        if levels is None:
            return jnp.ones_like(began)
        span = self.difference(began, like(levels, began)[-1])
        return jnp.where(jnp.isfinite(span) & (span > 0), span, 1)

    def goal(self, hand: Hand, levels: Levels | None, index: Int[Array, ""]) -> Number:
        """The clock's value at level number `index`; infinite if no step ends at levels."""
        if levels is None:
            return jnp.full_like(hand.progress, jnp.inf)
        last = np.shape(levels)[0] - 1
        if last == 0:
            return jnp.ones_like(hand.progress)
        difference = self.difference(hand.began, like(levels, hand.progress)[index])
        return jnp.where(index == last, 1, difference / hand.span)

    def watched(self, flow: AbstractFlow, target: AbstractTarget) -> tuple[Any, ...]:
        """The arrays that the clock computes besides the field and the signals of the target."""
        del flow, target
        return ()


class AbstractLevelClock(AbstractClock):
    """A clock that is the loss or the margin itself, so that steps can end exactly at a level.

    The solver integrates the rate of the loss or margin, with an error. On arrival at a level, the
    clock is therefore compared with the loss or margin of the state.
    """

    def ends_on(self, target: AbstractTarget) -> bool:
        del target
        return True

    def arrival(
        self, hand: Hand, reading: Number, level: Number, rtol: Number
    ) -> tuple[Number, Bool[Array, ""], Bool[Array, ""]]:
        """The progress at a reading, and two flags: at the level; before the level."""
        ahead, slack = self.ahead(reading, level), self.slack(level, hand.began, rtol)
        return (
            self.difference(hand.began, reading) / hand.span,
            jnp.abs(ahead) <= slack,
            ahead > slack,
        )

    @abstractmethod
    def ahead(self, reading: Number, level: Number) -> Number:
        """The distance from a reading to a level; negative past the level."""

    @abstractmethod
    def slack(self, level: Number, began: Number, rtol: Number) -> Number:
        """The distance from a level within which a lane counts as having reached the level."""


class _Time(AbstractClock):
    name: ClassVar[Clock] = "time"
    first_step: ClassVar[float] = 0.02
    keeps_time: ClassVar[bool] = True

    def ends_on(self, target: AbstractTarget) -> bool:
        return target.moments is not None

    def levels(self, flow: AbstractFlow, target: AbstractTarget) -> Levels | None:
        del flow
        return target.moments

    def rates(self, flow: AbstractFlow, hand: Hand, at: Moving) -> Rates:
        del flow
        return _at_pace(hand.span, at)


class _ArcLength(AbstractClock):
    name: ClassVar[Clock] = "arc_length"
    first_step: ClassVar[float] = 0.01
    regular: ClassVar[bool] = True

    def rates(self, flow: AbstractFlow, hand: Hand, at: Moving) -> Rates:
        """The derivatives with respect to the length of the graph (t, coordinates).

        Scaled so that large velocities do not overflow.
        """
        del flow, hand
        scale = 1 / jnp.maximum(1, largest(at.push))
        small = _times(at.push, scale)
        length = jnp.sqrt(scale**2 + inner(small, small))
        return scale / length, _times(small, 1 / length)


class _Loss(AbstractLevelClock):
    """The loss as the clock; its logarithm if all levels are positive."""

    name: ClassVar[Clock] = "loss"
    first_step: ClassVar[float] = 0.05
    logarithmic: bool = eqx.field(static=True)

    @classmethod
    def towards(cls, target: AbstractTarget) -> "AbstractClock":
        return cls(logarithmic=bool(np.min(target.levels) > 0))

    def levels(self, flow: AbstractFlow, target: AbstractTarget) -> Levels | None:
        del flow
        return target.levels

    def reading(self, flow: AbstractFlow, state: PyTree[Array], potential: Number) -> Number:
        del flow, state
        return potential

    def difference(self, first: Number, last: Number) -> Number:
        return jnp.log(first / last) if self.logarithmic else first - last

    def ahead(self, reading: Number, level: Number) -> Number:
        return reading - level

    def slack(self, level: Number, began: Number, rtol: Number) -> Number:
        # A logarithmic clock has no difference of losses that could lose digits.
        size = jnp.abs(level)
        return _slack(size, size if self.logarithmic else size + jnp.abs(began), rtol)

    def rates(self, flow: AbstractFlow, hand: Hand, at: Moving) -> Rates:
        del flow
        if not self.logarithmic:
            return _at_pace(-hand.span / inner(at.gradient, at.velocity), at)
        # Relative to the loss at the start, no product over- or underflows.
        falls = -inner(jax.tree.map(lambda leaf: leaf / hand.began, at.gradient), at.velocity)
        return _at_pace(hand.span * jnp.exp(-hand.span * hand.progress) / falls, at)


class _Margin(AbstractLevelClock):
    name: ClassVar[Clock] = "margin"
    first_step: ClassVar[float] = 0.05
    linear: ClassVar[bool] = True

    def levels(self, flow: AbstractFlow, target: AbstractTarget) -> Levels | None:
        return target.margins(flow)

    def reading(self, flow: AbstractFlow, state: PyTree[Array], potential: Number) -> Number:
        del potential
        return _margin(flow, state)

    def ahead(self, reading: Number, level: Number) -> Number:
        return level - reading

    def slack(self, level: Number, began: Number, rtol: Number) -> Number:
        # Losses have a relative tolerance, margins below a nat an absolute one.
        return _slack(jnp.maximum(jnp.abs(level), 1), jnp.abs(level) + jnp.abs(began), rtol)

    def rates(self, flow: AbstractFlow, hand: Hand, at: Moving) -> Rates:
        """The derivatives with respect to the margin; NaN if it moves away from the levels."""
        _, rate = jax.jvp(lambda y: _margin(flow, y), (at.state,), (at.velocity,))
        pace = hand.span / rate
        return _at_pace(jnp.where(pace > 0, pace, jnp.nan), at)

    def watched(self, flow: AbstractFlow, target: AbstractTarget) -> tuple[Any, ...]:
        return (target.margins(flow),)


ARC_LENGTH = _ArcLength()
"""The clock that is regular everywhere."""
_CLOCKS: dict[str, type[AbstractClock]] = {
    kind.name: kind for kind in (_Time, _ArcLength, _Loss, _Margin)
}


def clock_named(name: str) -> type[AbstractClock]:
    """The class of a clock, by its name in `flowlab.until.Clock`."""
    return _CLOCKS[name]


def _margin(flow: AbstractFlow, state: PyTree[Array]) -> Number:
    """The margin of a preference flow with a single pair."""
    return flow.pairs(state).margin  # type: ignore[attr-defined]


def _at_pace(pace: Number, at: Moving) -> Rates:
    return pace, _times(at.push, pace)


def _times(tree: PyTree[Array], factor: Number) -> PyTree[Array]:
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def _slack(size: Number, whole: Number, rtol: Number) -> Number:
    """The tolerance for arrival at a level of size `size`, rounding of `whole` included."""
    return _AT_LEVEL * rtol * size + 64 * jnp.finfo(size.dtype).eps * whole
