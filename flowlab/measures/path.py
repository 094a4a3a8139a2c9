"""Measures of a whole flow line: length, slow parts, margins crossed, total changes.

k: nodes of a step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from equinox import Partial
from jaxtyping import Array, Float, PyTree

from flowlab._checks import choice, number, positive
from flowlab.flow import AbstractFlow, norm
from flowlab.measures.base import (
    Ends,
    Measure,
    Nodes,
    Space,
    check_space,
    motion,
    needs_space,
    position,
)
from flowlab.measures.steps import argmin, at, first_root, time_below

__all__ = [
    "change",
    "dwell",
    "margin_at",
    "margin_zero",
    "path_length",
    "rate_ratio",
    "slowest",
]

_PAIR_SPACES = ("x", "u", "probability")


def path_length(of: Space = "state") -> Measure:
    """Length of the flow line: the result `path_length`, or `path_length_x` for `of="x"`.

    Args:
        of: The space in which the length is Euclidean: the state's own coordinates, the ratios x,
            the log-ratios u (comparable between policies), or the probabilities of the two
            responses.

    Accuracy: the length is integrated with the flow line, to the same tolerance. A line that ends
        on the absorbing boundary is integrated until a component is 1e-12 of its initial value;
        its length in u, which is infinite, is cut off there.
    """
    of = check_space(of)
    name = f"path_length{_suffix(of)}"
    return Measure((name,), check=needs_space(of), rate=Partial(_speed, of=of))


def dwell(below: float, *, of: Space = "state") -> Measure:
    """Flow time spent below a speed, `dwell`, and as a fraction of the whole, `dwell_share`.

    Args:
        below: The speed, positive, in units of the space per unit of flow time.
        of: The space in which the speed is Euclidean, as for `path_length`.

    Raises:
        ValueError: If `below` is not positive and finite.

    Accuracy: crossings of the speed are located in a polynomial through seven points of each step.
        The error is at most 1e-5 of the total time at rtol 1e-6.
    """
    of = check_space(of)
    slow = {"below": np.asarray(positive("below", below)), "of": of}
    return Measure(
        (f"dwell{_suffix(of)}", f"dwell_share{_suffix(of)}"),
        check=needs_space(of),
        begin=_no_time,
        fold=Partial(_add_time_below, **slow),
        at_end=Partial(_time_and_share, **slow),
    )


def slowest(of: Space = "state") -> Measure:
    """The slowest point of a line: `slowest_speed`, `slowest_time`, `slowest_state`.

    Args:
        of: The space in which the speed is Euclidean, as for `path_length`.
    """
    of = check_space(of)
    return Measure(
        tuple(f"slowest_{what}{_suffix(of)}" for what in ("speed", "time", "state")),
        check=needs_space(of),
        begin=_infinitely_fast,
        fold=Partial(_slower, of=of),
    )


def margin_zero() -> Measure:
    """First time and state at which the mean margin crosses 0; NaN if it never does.

    The results are `margin_zero_time` and `margin_zero_state`.

    A line that starts at margin 0 does not cross it at its start.
    """
    return _margin(np.zeros(()), "zero")


def margin_at(level: float) -> Measure:
    """First time and state at which the mean margin crosses a level; NaN if it never does.

    The results are `margin_5_time` and `margin_5_state` for level 5. A line that starts at the
    level does not cross it at its start. To compare flow lines at several equal margins, pass
    several of these measures to one call.

    Args:
        level: The margin u_chosen − u_rejected, in nats, without β.

    Raises:
        ValueError: If `level` is not a finite number.
    """
    margin = number("level", level)
    return _margin(np.asarray(margin), f"{margin:g}")


def change(of: Space = "x") -> Measure:
    """Final less initial values of both responses: `change_chosen_x`, `change_rejected_x`.

    Args:
        of: The values: ratios x, log-ratios u, or probabilities. It is the suffix of the names.
    """
    of = choice("of", of, *_PAIR_SPACES)
    return Measure(
        (f"change_chosen_{of}", f"change_rejected_{of}"),
        check=needs_space(of),
        at_end=Partial(_change, of=of),
        axis="pair",
    )


def rate_ratio(of: Space = "x") -> Measure:
    """|rate of chosen| / |rate of rejected| at both ends, and the ratio of the total changes.

    The results are `rate_ratio_x_start`, `rate_ratio_x_end` and `rate_ratio_x_total` for `of="x"`.
    On the paper's plane the ratio of the rates is x2/x1 (Corollary 1).

    Args:
        of: Rates of the ratios x, the log-ratios u, or the probabilities.
    """
    of = choice("of", of, *_PAIR_SPACES)
    return Measure(
        tuple(f"rate_ratio_{of}_{when}" for when in ("start", "end", "total")),
        check=needs_space(of),
        at_end=Partial(_rate_ratios, of=of),
        axis="pair",
    )


def _suffix(of: Space) -> str:
    """The suffix of a result's name for a space."""
    return "" if of == "state" else f"_{of}"


def _speed(
    flow: AbstractFlow, state: PyTree[Array], velocity: PyTree[Array], *, of: Space
) -> Float[Array, ""]:
    return norm(motion(flow, state, velocity, of))


def _no_time(_flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, ""]:
    return jnp.zeros((), jax.tree.leaves(state)[0].dtype)


def _add_time_below(
    flow: AbstractFlow,
    spent: Float[Array, ""],
    nodes: Nodes,
    *,
    below: Float[Array, ""],
    of: Space,
) -> Float[Array, ""]:
    threshold = jnp.log(jnp.asarray(below, nodes.time.dtype))
    return spent + time_below(_log_speeds(flow, nodes, of) - threshold, nodes.time)


def _time_and_share(
    flow: AbstractFlow, ends: Ends, spent: Float[Array, ""], *, below: Float[Array, ""], of: Space
) -> tuple[Array, Array]:
    slow = _speed(flow, ends.last, ends.last_velocity, of=of) < jnp.asarray(below, spent.dtype)
    spent = spent + jnp.where(slow, ends.tail, 0)
    share = jnp.where(ends.time > 0, spent / jnp.where(ends.time > 0, ends.time, 1), 0)
    return spent, share


def _infinitely_fast(flow: AbstractFlow, state: PyTree[Array]) -> tuple[Any, ...]:
    zero = _no_time(flow, state)
    return zero + jnp.inf, zero, state


def _slower(
    flow: AbstractFlow, slowest: tuple[Any, ...], nodes: Nodes, *, of: Space
) -> tuple[Any, ...]:
    log_speeds = _log_speeds(flow, nodes, of)
    lowest = argmin(log_speeds)
    speed = jnp.exp(at(log_speeds, lowest))
    here = speed, at(nodes.time, lowest), at(nodes.state, lowest)
    return jax.tree.map(lambda new, old: jnp.where(speed < slowest[0], new, old), here, slowest)


def _margin(level: np.ndarray, label: str) -> Measure:
    return Measure(
        (f"margin_{label}_time", f"margin_{label}_state"),
        check=needs_space("u"),
        begin=_no_crossing,
        fold=Partial(_first_crossing, level=level),
    )


def _no_crossing(_flow: AbstractFlow, state: PyTree[Array]) -> tuple[Any, ...]:
    nothing = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state)
    return jnp.asarray(jnp.nan, jax.tree.leaves(state)[0].dtype), nothing


def _first_crossing(
    flow: Any, first: tuple[Any, ...], nodes: Nodes, *, level: Float[Array, ""]
) -> tuple[Any, ...]:
    margins = jax.vmap(lambda state: jnp.mean(flow.pairs(state).margin))(nodes.state)
    crossed, crossing = first_root(margins - jnp.asarray(level, margins.dtype))
    here = at(nodes.time, crossing), at(nodes.state, crossing)
    new = crossed & jnp.isnan(first[0])
    return jax.tree.map(lambda a, b: jnp.where(new, a, b), here, first)


def _change(flow: AbstractFlow, ends: Ends, *, of: Space) -> tuple[Array, Array]:
    before, after = (position(flow, state, of) for state in (ends.start, ends.end))
    return after[0] - before[0], after[1] - before[1]


def _rate_ratios(flow: AbstractFlow, ends: Ends, *, of: Space) -> tuple[Array, ...]:
    total = position(flow, ends.end, of) - position(flow, ends.start, of)
    moves = (
        motion(flow, ends.start, ends.start_velocity, of),
        motion(flow, ends.last, ends.last_velocity, of),
        total,
    )
    return tuple(jnp.abs(move[0] / move[1]) for move in moves)


def _log_speeds(flow: AbstractFlow, nodes: Nodes, of: Space) -> Float[Array, " k"]:
    def log_speed(state: PyTree[Array], velocity: PyTree[Array]) -> Float[Array, ""]:
        speed = norm(motion(flow, state, velocity, of))
        return jnp.log(jnp.maximum(speed, jnp.finfo(speed.dtype).tiny))

    return jax.vmap(log_speed)(nodes.state, nodes.velocity)
