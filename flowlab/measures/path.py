"""Measures of the way itself: its length, its slow parts, the margins it crosses, its ends.

k: nodes of a step.
"""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from flowlab._checks import number, positive
from flowlab.flow import AbstractFlow, norm
from flowlab.measures.base import (
    AbstractMeasure,
    Ends,
    Nodes,
    Space,
    check_pair_space,
    check_space,
    check_space_of,
    motion,
    position,
)
from flowlab.measures.steps import at, first_root, lowest_place, time_below

__all__ = [
    "change",
    "dwell",
    "margin_at",
    "margin_zero",
    "path_length",
    "rate_ratio",
    "slowest",
]


class _PathLength(AbstractMeasure):
    of: Space = eqx.field(static=True)

    @property
    def names(self) -> tuple[str, ...]:
        return ("path_length" if self.of == "state" else f"path_length_{self.of}",)

    def check(self, flow: AbstractFlow) -> None:
        check_space_of(flow, self.of)

    def rate(
        self, flow: AbstractFlow, state: PyTree[Array], velocity: PyTree[Array]
    ) -> Float[Array, ""]:
        return norm(motion(flow, state, velocity, self.of))

    def results(
        self,
        flow: AbstractFlow,
        integral: Float[Array, ""] | None,
        carry: PyTree[Array],
        ends: Ends,
    ) -> dict[str, Array]:
        del flow, carry, ends
        assert integral is not None
        return {self.names[0]: integral}


class _Dwell(AbstractMeasure):
    below: Float[ArrayLike, ""]
    of: Space = eqx.field(static=True)

    @property
    def names(self) -> tuple[str, ...]:
        suffix = "" if self.of == "state" else f"_{self.of}"
        return (f"dwell{suffix}", f"dwell_share{suffix}")

    def check(self, flow: AbstractFlow) -> None:
        check_space_of(flow, self.of)

    def begin(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, ""]:
        del flow
        return jnp.zeros((), jax.tree.leaves(state)[0].dtype)

    def fold(self, flow: AbstractFlow, carry: PyTree[Array], nodes: Nodes) -> PyTree[Array]:
        threshold = jnp.log(jnp.asarray(self.below, nodes.time.dtype))
        return carry + time_below(_log_speeds(flow, nodes, self.of) - threshold, nodes.time)

    def results(
        self,
        flow: AbstractFlow,
        integral: Float[Array, ""] | None,
        carry: PyTree[Array],
        ends: Ends,
    ) -> dict[str, Array]:
        del integral
        speed = norm(motion(flow, ends.last, ends.last_velocity, self.of))
        slow = speed < jnp.asarray(self.below, carry.dtype)
        spent = carry + jnp.where(slow, ends.tail, 0)
        share = jnp.where(ends.time > 0, spent / jnp.where(ends.time > 0, ends.time, 1), 0)
        return dict(zip(self.names, (spent, share), strict=True))


class _Slowest(AbstractMeasure):
    of: Space = eqx.field(static=True)

    @property
    def names(self) -> tuple[str, ...]:
        suffix = "" if self.of == "state" else f"_{self.of}"
        return (f"slowest_speed{suffix}", f"slowest_time{suffix}", f"slowest_state{suffix}")

    def check(self, flow: AbstractFlow) -> None:
        check_space_of(flow, self.of)

    def begin(self, flow: AbstractFlow, state: PyTree[Array]) -> PyTree[Array]:
        del flow
        zero = jnp.zeros((), jax.tree.leaves(state)[0].dtype)
        return zero + jnp.inf, zero, state

    def fold(self, flow: AbstractFlow, carry: PyTree[Array], nodes: Nodes) -> PyTree[Array]:
        log_speeds = _log_speeds(flow, nodes, self.of)
        place = lowest_place(log_speeds)
        speed = jnp.exp(at(log_speeds, place))
        found = speed, at(nodes.time, place), at(nodes.state, place)
        return jax.tree.map(lambda new, old: jnp.where(speed < carry[0], new, old), found, carry)

    def results(
        self,
        flow: AbstractFlow,
        integral: Float[Array, ""] | None,
        carry: PyTree[Array],
        ends: Ends,
    ) -> dict[str, Array]:
        del flow, integral, ends
        return dict(zip(self.names, carry, strict=True))


class _MarginAt(AbstractMeasure):
    level: Float[ArrayLike, ""]
    label: str = eqx.field(static=True)

    @property
    def names(self) -> tuple[str, ...]:
        return (f"margin_{self.label}_time", f"margin_{self.label}_state")

    def check(self, flow: AbstractFlow) -> None:
        check_space_of(flow, "u")

    def begin(self, flow: AbstractFlow, state: PyTree[Array]) -> PyTree[Array]:
        del flow
        nothing = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state)
        return jnp.asarray(jnp.nan, jax.tree.leaves(state)[0].dtype), nothing

    def fold(self, flow: AbstractFlow, carry: PyTree[Array], nodes: Nodes) -> PyTree[Array]:
        margins = jax.vmap(lambda state: jnp.mean(flow.pairs(state).margin))(nodes.state)  # type: ignore[attr-defined]
        crossed, place = first_root(margins - jnp.asarray(self.level, margins.dtype))
        found = at(nodes.time, place), at(nodes.state, place)
        new = crossed & jnp.isnan(carry[0])
        return jax.tree.map(lambda a, b: jnp.where(new, a, b), found, carry)

    def results(
        self,
        flow: AbstractFlow,
        integral: Float[Array, ""] | None,
        carry: PyTree[Array],
        ends: Ends,
    ) -> dict[str, Array]:
        del flow, integral, ends
        return dict(zip(self.names, carry, strict=True))


class _Change(AbstractMeasure):
    of: Space = eqx.field(static=True)

    @property
    def names(self) -> tuple[str, ...]:
        return (f"change_chosen_{self.of}", f"change_rejected_{self.of}")

    @property
    def axes(self) -> Mapping[str, str]:
        return dict.fromkeys(self.names, "pair")

    def check(self, flow: AbstractFlow) -> None:
        check_space_of(flow, self.of)

    def results(
        self,
        flow: AbstractFlow,
        integral: Float[Array, ""] | None,
        carry: PyTree[Array],
        ends: Ends,
    ) -> dict[str, Array]:
        del integral, carry
        before, after = (position(flow, state, self.of) for state in (ends.start, ends.end))
        return {name: after[i] - before[i] for i, name in enumerate(self.names)}


class _RateRatio(AbstractMeasure):
    of: Space = eqx.field(static=True)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"rate_ratio_{self.of}_{when}" for when in ("start", "end", "total"))

    @property
    def axes(self) -> Mapping[str, str]:
        return dict.fromkeys(self.names, "pair")

    def check(self, flow: AbstractFlow) -> None:
        check_space_of(flow, self.of)

    def results(
        self,
        flow: AbstractFlow,
        integral: Float[Array, ""] | None,
        carry: PyTree[Array],
        ends: Ends,
    ) -> dict[str, Array]:
        del integral, carry
        total = position(flow, ends.end, self.of) - position(flow, ends.start, self.of)
        moves = (
            motion(flow, ends.start, ends.start_velocity, self.of),
            motion(flow, ends.last, ends.last_velocity, self.of),
            total,
        )
        ratios = [jnp.abs(move[0] / move[1]) for move in moves]
        return dict(zip(self.names, ratios, strict=True))


def path_length(of: Space = "state") -> AbstractMeasure:
    """Length of the flow line, as `path_length`, or `path_length_x`, `_u`, `_probability`.

    Args:
        of: Euclidean in the state's own coordinates, in the ratios x, in the log-ratios u (the one
            that can be compared between policies), or in the probabilities of the two responses.

    Accuracy: integrated with the flow line, to the same tolerance. A line that ends in the boundary
        is integrated to 1e-12 of its start, which is where its length in u, infinite, is cut off.
    """
    return _PathLength(check_space(of))


def dwell(below: float, *, of: Space = "state") -> AbstractMeasure:
    """Flow time spent below a speed, and its share of the whole, as `dwell` and `dwell_share`.

    Args:
        below: The speed, positive, in units of `of` per unit of flow time.
        of: As for `path_length`.

    Raises:
        ValueError: If `below` is not positive and finite.

    Accuracy: the crossings of the speed are located in a polynomial through seven points of each
        step; 1e-5 of the total time or better at rtol 1e-6.
    """
    return _Dwell(np.asarray(positive("below", below)), check_space(of))


def slowest(of: Space = "state") -> AbstractMeasure:
    """The slowest point: `slowest_speed`, `slowest_time`, `slowest_state`."""
    return _Slowest(check_space(of))


def margin_zero() -> AbstractMeasure:
    """Where the mean margin first crosses 0: `margin_zero_time`, `margin_zero_state`; NaN if never.

    A line that starts on the line margin = 0 does not cross it.
    """
    return _MarginAt(np.zeros(()), "zero")


def margin_at(level: float) -> AbstractMeasure:
    """Where the mean margin first crosses a level: `margin_5_time`, `margin_5_state` for level 5.

    NaN where it never does; a line that starts on the level does not cross it. Several of these
    compare flow lines at equal margins in one pass.

    Args:
        level: The margin u_chosen − u_rejected, in nats, without β.

    Raises:
        ValueError: If `level` is not a finite number.
    """
    margin = number("level", level)
    return _MarginAt(np.asarray(margin), f"{margin:g}")


def change(of: Space = "x") -> AbstractMeasure:
    """Change of chosen and rejected, end less start: `change_chosen_x`, `change_rejected_x`, ...

    Args:
        of: Ratios x, log-ratios u, or probabilities.
    """
    return _Change(check_pair_space(of))


def rate_ratio(of: Space = "x") -> AbstractMeasure:
    """|rate of chosen| / |rate of rejected|: `rate_ratio_x_start`, `_end`, and `_total`.

    `_total` is the ratio of the total changes. On the paper's plane the ratio of the rates is x2/x1
    (Corollary 1).

    Args:
        of: Rates of the ratios x, the log-ratios u, or the probabilities.
    """
    return _RateRatio(check_pair_space(of))


def _log_speeds(flow: AbstractFlow, nodes: Nodes, of: Space) -> Float[Array, " k"]:
    def log_speed(state: PyTree[Array], velocity: PyTree[Array]) -> Float[Array, ""]:
        speed = norm(motion(flow, state, velocity, of))
        return jnp.log(jnp.maximum(speed, jnp.finfo(speed.dtype).tiny))

    return jax.vmap(log_speed)(nodes.state, nodes.velocity)
