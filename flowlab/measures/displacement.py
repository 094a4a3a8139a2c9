"""Measures of displacement: the fall of the chosen response, and the responses that gain instead.

k: nodes of a step; p: pairs, an axis that a single pair does not have; r: responses.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.measures.base import Ends, Measure, Nodes, needs_space
from flowlab.measures.steps import argmin, at, first_rise
from flowlab.policies import AbstractResponses

__all__ = ["dip", "mass"]

_ROUNDING = 64.0  # units in the last place: the error of a log-probability by logits and softmax


def dip() -> Measure:
    """Depth and times of a fall of the chosen log-probability.

    - `dip_depth`: initial less lowest chosen log-probability, in nats, at least 0;
    - `dip_time`: the flow time of the lowest value; NaN if it never falls below the initial one;
    - `recovery_time`: the first flow time after the lowest value at which the initial value is
      regained; NaN if it never falls, or is not regained before the end.

    Each result has one value per pair: shape (p,) for p pairs, () for a single pair. The depth is
    NaN if the log-probability is not finite at the start.

    A step counts only if the rate of the chosen log-probability, computed from the flow, is
    negative at one of its seven nodes, so that errors of the solver do not appear as dips. A depth
    of up to 64 units in the last place of the log-probability (or of 1 nat, if that is larger)
    counts as rounding: 3e-13 nats at −20 nats in float64, 2e-4 in float32.

    Accuracy: the lowest value and the recovery are computed from a polynomial through seven points
        of each step, to about the tolerance of the flow line.
    """
    return Measure(
        ("dip_depth", "dip_time", "recovery_time"),
        check=needs_space("u"),
        begin=_not_fallen,
        fold=_further_fallen,
        at_end=_depth_and_times,
        axis="pair",
    )


def mass() -> Measure:
    """Gains and peaks of the probability of each response, and the largest gain outside the pairs.

    - `mass_gained`: final less initial probability, shape (r,);
    - `mass_peak`: highest probability along the line, ends included, shape (r,);
    - `mass_peak_time`: flow time of the peak, shape (r,); 0 if the probability never exceeds its
      initial value;
    - `mass_gained_others`: total gain of all responses outside the pairs, including responses that
      the policy does not list. It equals minus the sum of `mass_gained` over the responses in
      pairs, since the probabilities of a prompt sum to 1;
    - `mass_gainer`: index, as a float, of the listed response outside the pairs with the largest
      gain, counted from 0; −1 if no such response gains. It has no meaning if that gain is within
      the tolerance of the flow line.

    The measure needs a policy over a list of different responses. A response is in a pair if any
    pair names it. With several prompts, the indices of responses run on from one prompt to the
    next, and `mass_gained_others` is the sum over prompts.

    Accuracy: as for `dip`; the gains are differences of probabilities at the two ends.
    """
    return Measure(
        ("mass_gained", "mass_peak", "mass_peak_time", "mass_gained_others", "mass_gainer"),
        check=_check_responses,
        begin=_first_peak,
        fold=_higher_peak,
        at_end=_gains,
        axis="response",
    )


class _Fall(eqx.Module):
    """The fall of each chosen log-probability so far; every leaf has shape (*p,).

    Attributes:
        start: The chosen log-probability at the start.
        lowest: The lowest chosen log-probability so far, less `start`; at most 0.
        time: The flow time of the lowest value.
        recovery: The first flow time after `time` at which `start` was regained; NaN if none.
    """

    start: Float[Array, "*p"]
    lowest: Float[Array, "*p"]
    time: Float[Array, "*p"]
    recovery: Float[Array, "*p"]


def _not_fallen(flow: Any, state: PyTree[Array]) -> _Fall:
    start = flow.pairs(state).chosen
    never = jnp.full_like(start, jnp.nan)
    return _Fall(start, jnp.zeros_like(start), never, never)


def _further_fallen(flow: Any, carry: _Fall, nodes: Nodes) -> _Fall:
    def seen(state: PyTree[Array], velocity: PyTree[Array]) -> tuple[Array, Array]:
        return jax.jvp(lambda y: flow.pairs(y).chosen, (state,), (velocity,))

    values, rates = jax.vmap(seen)(nodes.state, nodes.velocity)
    if carry.start.ndim == 0:
        return _fallen(carry, values, rates, nodes.time)
    return jax.vmap(_fallen, (0, 1, 1, None))(carry, values, rates, nodes.time)


def _depth_and_times(_flow: Any, _ends: Ends, carry: _Fall) -> tuple[Array, Array, Array]:
    falls = -carry.lowest > _rounding(carry.start)
    depth = jnp.where(falls, -carry.lowest, 0)
    depth = jnp.where(jnp.isfinite(carry.start), depth, jnp.nan)
    time, recovery = (jnp.where(falls, time, jnp.nan) for time in (carry.time, carry.recovery))
    return depth, time, recovery


class _Peak(eqx.Module):
    """The highest log-probability of each response so far, and its flow time; shape (r,)."""

    highest: Float[Array, " r"]
    time: Float[Array, " r"]


def _check_responses(flow: AbstractFlow) -> None:
    policy = flow.policy if isinstance(flow, PreferenceFlow) else None
    if not isinstance(policy, AbstractResponses):
        raise ValueError(
            "Argument `measures` must hold mass() only for a policy over a list of responses, "
            f"such as TabularSoftmax, but here the policy is {type(policy).__name__}."
        )


def _first_peak(flow: Any, state: PyTree[Array]) -> _Peak:
    logs = flow.policy.log_probs(state)
    return _Peak(logs, jnp.zeros_like(logs))


def _higher_peak(flow: Any, carry: _Peak, nodes: Nodes) -> _Peak:
    logs = jax.vmap(flow.policy.log_probs)(nodes.state)
    return jax.vmap(_risen, (0, 1, None))(carry, logs, nodes.time)


def _gains(flow: Any, ends: Ends, carry: _Peak) -> tuple[Array, ...]:
    before, after = (jnp.exp(flow.policy.log_probs(state)) for state in (ends.start, ends.end))
    gained = after - before
    paired = np.isin(np.arange(len(gained)), flow.policy.indices)
    # Unlisted responses count as others: the probabilities of a prompt sum to 1.
    others = -jnp.sum(jnp.where(paired, gained, 0))
    outside = jnp.where(paired, -jnp.inf, gained)
    grown = jnp.max(outside) > _rounding(jnp.ones_like(outside[0]))
    gainer = jnp.where(grown, jnp.argmax(outside), -1).astype(gained.dtype)
    return gained, jnp.exp(carry.highest), carry.time, others, gainer


def _rounding(values: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """The magnitude of rounding errors in log-probabilities."""
    return _ROUNDING * jnp.finfo(values.dtype).eps * jnp.maximum(1, jnp.abs(values))


def _fallen(
    fall: _Fall, values: Float[Array, " k"], rates: Float[Array, " k"], time: Float[Array, " k"]
) -> _Fall:
    """The fall of one pair after one more step."""
    moved = values - fall.start
    position = argmin(moved)
    low = at(moved, position)
    lower = (low < fall.lowest) & jnp.any(rates < 0)
    back, rise = first_rise(moved, jnp.where(lower, position, 0))
    recovery = jnp.where(lower, jnp.nan, fall.recovery)
    back = back & jnp.isnan(recovery) & (lower | (fall.lowest < 0))
    return _Fall(
        fall.start,
        jnp.where(lower, low, fall.lowest),
        jnp.where(lower, at(time, position), fall.time),
        jnp.where(back, at(time, rise), recovery),
    )


def _risen(peak: _Peak, logs: Float[Array, " k"], time: Float[Array, " k"]) -> _Peak:
    """The peak of one response after one more step."""
    position = argmin(-logs)
    high = at(logs, position)
    higher = high > peak.highest + _rounding(peak.highest)
    return _Peak(
        jnp.where(higher, high, peak.highest), jnp.where(higher, at(time, position), peak.time)
    )
