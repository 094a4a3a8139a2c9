"""Measures of displacement: how far the chosen response falls on the way, and who gains instead.

k: nodes of a step; p: pairs, none for a single one; r: responses.
"""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.measures.base import AbstractMeasure, Ends, Nodes, check_space_of
from flowlab.measures.steps import at, first_rise, lowest_place
from flowlab.policies import AbstractResponses

__all__ = ["dip", "mass"]

_ROUNDING = 64.0  # units in the last place: what logits and softmax make of a log-probability


class _Fall(eqx.Module):
    """What a dip carries; every leaf has shape (*p,).

    Attributes:
        start: The chosen log-probability at the start.
        lowest: Its lowest value so far, less `start`; at most 0.
        time: When it was lowest.
        recovery: When it was first back at the start since, or NaN.
    """

    start: Float[Array, "*p"]
    lowest: Float[Array, "*p"]
    time: Float[Array, "*p"]
    recovery: Float[Array, "*p"]


class _Dip(AbstractMeasure):
    @property
    def names(self) -> tuple[str, ...]:
        return ("dip_depth", "dip_time", "recovery_time")

    @property
    def axes(self) -> Mapping[str, str]:
        return dict.fromkeys(self.names, "pair")

    def check(self, flow: AbstractFlow) -> None:
        check_space_of(flow, "u")

    def begin(self, flow: AbstractFlow, state: PyTree[Array]) -> _Fall:
        start = _chosen(flow, state)
        never = jnp.full_like(start, jnp.nan)
        return _Fall(start, jnp.zeros_like(start), never, never)

    def fold(self, flow: AbstractFlow, carry: _Fall, nodes: Nodes) -> _Fall:
        def seen(state: PyTree[Array], velocity: PyTree[Array]) -> tuple[Array, Array]:
            return jax.jvp(lambda y: _chosen(flow, y), (state,), (velocity,))

        values, rates = jax.vmap(seen)(nodes.state, nodes.velocity)
        if carry.start.ndim == 0:
            return _fallen(carry, values, rates, nodes.time)
        return jax.vmap(_fallen, (0, 1, 1, None))(carry, values, rates, nodes.time)

    def results(
        self,
        flow: AbstractFlow,
        integral: Float[Array, ""] | None,
        carry: _Fall,
        ends: Ends,
    ) -> dict[str, Array]:
        del flow, integral, ends
        falls = -carry.lowest > _rounding(carry.start)
        depth = jnp.where(falls, -carry.lowest, 0)
        depth = jnp.where(jnp.isfinite(carry.start), depth, jnp.nan)
        times = (jnp.where(falls, time, jnp.nan) for time in (carry.time, carry.recovery))
        return dict(zip(self.names, (depth, *times), strict=True))


class _Peak(eqx.Module):
    """What mass carries: the highest log-probabilities so far and when; shape (r,)."""

    highest: Float[Array, " r"]
    time: Float[Array, " r"]


class _Mass(AbstractMeasure):
    @property
    def names(self) -> tuple[str, ...]:
        return (
            "mass_gained",
            "mass_peak",
            "mass_peak_time",
            "mass_gained_others",
            "mass_gainer",
        )

    @property
    def axes(self) -> Mapping[str, str]:
        return dict.fromkeys(self.names[:3], "response")

    def check(self, flow: AbstractFlow) -> None:
        policy = flow.policy if isinstance(flow, PreferenceFlow) else None
        if not isinstance(policy, AbstractResponses):
            raise ValueError(
                "Argument `measures` must hold mass() only for a policy over a list of responses, "
                f"such as TabularSoftmax, but here the policy is {type(policy).__name__}."
            )

    def begin(self, flow: AbstractFlow, state: PyTree[Array]) -> _Peak:
        logs = _log_probs(flow, state)
        return _Peak(logs, jnp.zeros_like(logs))

    def fold(self, flow: AbstractFlow, carry: _Peak, nodes: Nodes) -> _Peak:
        logs = jax.vmap(lambda state: _log_probs(flow, state))(nodes.state)
        return jax.vmap(_risen, (0, 1, None))(carry, logs, nodes.time)

    def results(
        self,
        flow: AbstractFlow,
        integral: Float[Array, ""] | None,
        carry: _Peak,
        ends: Ends,
    ) -> dict[str, Array]:
        del integral
        before, after = (jnp.exp(_log_probs(flow, state)) for state in (ends.start, ends.end))
        gained, paired = after - before, _paired(flow)
        # What no listed response holds counts with the others: a prompt's probabilities sum to 1.
        others = -jnp.sum(jnp.where(paired, gained, 0))
        outside = jnp.where(paired, -jnp.inf, gained)
        grown = jnp.max(outside) > _rounding(jnp.ones_like(outside[0]))
        gainer = jnp.where(grown, jnp.argmax(outside), -1).astype(gained.dtype)
        peaks = (jnp.exp(carry.highest), carry.time)
        return dict(zip(self.names, (gained, *peaks, others, gainer), strict=True))


def dip() -> AbstractMeasure:
    """How far and how long the chosen log-probability falls, as `dip_depth`, `dip_time`, ...

    - `dip_depth`: its value at the start less its lowest value on the way, nats, at least 0;
    - `dip_time`: the flow time of its lowest point; NaN where it never falls below the start;
    - `recovery_time`: the first flow time after its lowest point at which it is back at the value
      of the start; NaN if it is not until the end, or never falls.

    One value for each pair: shape (p,) for p pairs, () for a single one. Where the start has no
    finite log-probability the depth is NaN.

    A step counts only where the rate of the chosen log-probability, that of the flow itself, is
    negative at one of its seven nodes, so that errors of the solver make no dip where the flow has
    none. A depth of up to 64 units in the last place of the log-probability (or of 1 nat, if that
    is larger) is rounding, and counts as none: 3e-13 nats at −20 nats in float64, 2e-4 in float32.

    Accuracy: the lowest point and the way back are read from a polynomial through seven points of
        each step, as good as the tolerance of the flow line.
    """
    return _Dip()


def mass() -> AbstractMeasure:
    """What each response gains of the probability, who peaks on the way, and where the rest goes.

    - `mass_gained`: probability at the end less that at the start, shape (r,);
    - `mass_peak`: the highest probability on the way, shape (r,), the ends included;
    - `mass_peak_time`: the flow time of that; 0 for a response that never rises above its start;
    - `mass_gained_others`: what all responses outside the pairs gained together, those that the
      policy does not list included: less the sum of `mass_gained` over the responses in pairs,
      since the probabilities of a prompt sum to 1;
    - `mass_gainer`: which listed response outside the pairs gained most, counted from 0, as a
      float; −1 where there is none, or none of them gained. Gains within the tolerance of the flow
      line mean nothing here.

    For policies over a list of different responses. A response counts as in a pair if any pair
    names it. With several prompts responses are counted on from one to the next, and
    `mass_gained_others` is the sum over prompts.

    Accuracy: as for `dip`; the gains are differences of the two ends.
    """
    return _Mass()


def _chosen(flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, "*p"]:
    return flow.pairs(state).chosen  # type: ignore[attr-defined]


def _log_probs(flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, " r"]:
    return flow.policy.log_probs(state)  # type: ignore[attr-defined]


def _paired(flow: AbstractFlow) -> Bool[np.ndarray, " r"]:
    """Which of the responses are in a pair."""
    policy = flow.policy  # type: ignore[attr-defined]
    return np.isin(np.arange(np.shape(policy.ref_log_probs)[0]), policy.places)


def _rounding(values: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """What rounding can make of log-probabilities that do not change."""
    return _ROUNDING * jnp.finfo(values.dtype).eps * jnp.maximum(1, jnp.abs(values))


def _fallen(
    fall: _Fall, values: Float[Array, " k"], rates: Float[Array, " k"], time: Float[Array, " k"]
) -> _Fall:
    """The fall of one pair after one more step."""
    moved = values - fall.start
    place = lowest_place(moved)
    low = at(moved, place)
    lower = (low < fall.lowest) & jnp.any(rates < 0)
    back, where = first_rise(moved, jnp.where(lower, place, 0))
    recovery = jnp.where(lower, jnp.nan, fall.recovery)
    back = back & jnp.isnan(recovery) & (lower | (fall.lowest < 0))
    return _Fall(
        fall.start,
        jnp.where(lower, low, fall.lowest),
        jnp.where(lower, at(time, place), fall.time),
        jnp.where(back, at(time, where), recovery),
    )


def _risen(peak: _Peak, logs: Float[Array, " k"], time: Float[Array, " k"]) -> _Peak:
    """The peak of one response after one more step."""
    place = lowest_place(-logs)
    high = at(logs, place)
    higher = high > peak.highest + _rounding(peak.highest)
    return _Peak(
        jnp.where(higher, high, peak.highest), jnp.where(higher, at(time, place), peak.time)
    )
