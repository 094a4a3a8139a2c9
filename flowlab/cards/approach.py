"""The long-run behaviour of a quantity along a flow line: its kind, and its rate or exponent.

The quantity z(t) and its velocity z' are known at times evenly spaced in log t, over several
decades. If z barely moves in the last decade, it has a limit. It reaches the limit in finite time
if z' jumps to zero, and exponentially if |z'|/|limit − z| is constant near the limit. If the slope
of log|z'| against log t is the same −(1+p), p > 0, in each of the last two decades, z tends to a
limit algebraically, as t^−p. Otherwise z diverges: logarithmically if t·z' is constant, linearly if
z' is constant, or as a power of t. If none of these cases applies, the slope in the last decade
decides whether z is slower than algebraic, slower than logarithmic, or unclear.

k: times along a line.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

__all__ = ["UNCLEAR", "Approach", "Kind", "classify"]

Kind = Literal[
    "constant",
    "finite time",
    "exponential",
    "algebraic",
    "slower than algebraic",
    "logarithmic",
    "slower than logarithmic",
    "power law",
    "linear",
    "accelerating",
    "blow-up",
    "edge",
    "unclear",
]
"""Kinds of long-run behaviour of a quantity.

`constant`: the quantity does not move. With a limit: it reaches the limit in `finite time`, or
tends to it `exponential`ly, `algebraic`ally (as t^−p), or `slower than algebraic`, as a power of
1/log t. Without a limit: it diverges `linear`ly in t, as a `power law` t^p with 0 < p < 1,
`logarithmic`ally (as log t), `slower than logarithmic`, or `accelerating`. `blow-up`: it diverges
in finite time. `edge`: the line ends where the domain of the loss ends.

Nine decades of time do not tell whether a quantity that is `slower than algebraic` or `slower than
logarithmic` has a limit. The two kinds differ only in how much it still moves in the last decade.
"""

_CONSTANT = 1e-12  # of the size of the line: a component that moves less is constant
_LIMIT = 1e-3  # of the total change: a quantity with a limit changes less in the last decade
_WINDOW = (1e-5, 1e-2)  # of the total change: distances from the limit at which a rate is fitted
_ABRUPT = 1e-3  # of the largest velocity: a jump to zero from above means arrival in finite time
_CREEPING = 0.2  # a power of t below which a decay counts as slower than algebraic
_STEADY = 0.1  # spread of a rate, or of a slope between decades, that counts as constant


@dataclass(frozen=True)
class Approach:
    """The long-run behaviour of one quantity along a flow line.

    Attributes:
        kind: One of `Kind`.
        number: A number whose meaning depends on the kind. `finite time`, `edge` and `blow-up`: the
            flow time of arrival. `exponential`: the rate per unit of flow time. `algebraic` and
            `power law`: the exponent p. `logarithmic` and `slower than logarithmic`: the (last)
            gain per unit of log t. `linear` and `accelerating`: the (last) velocity. 0 for
            `constant`, NaN for `unclear` and `slower than algebraic`.
        limit: The limit; ±inf if the quantity diverges, the last value for `slower than algebraic`
            and `slower than logarithmic`, NaN for `unclear`.
    """

    kind: Kind
    number: float
    limit: float


UNCLEAR = Approach("unclear", float("nan"), float("nan"))


def classify(
    times: Float[np.ndarray, " k"],
    values: Float[np.ndarray, " k"],
    rates: Float[np.ndarray, " k"],
    size: float,
) -> Approach:
    """The long-run behaviour of a quantity.

    Args:
        times: Positive flow times, ascending, geometrically spaced over several decades.
        values: Values of the quantity at `times`.
        rates: Time derivatives of the quantity at `times`.
        size: The total distance that the line moves; a quantity that changes by less than 1e-12 of
            it is constant.
    """
    total = np.ptp(values)
    if total <= _CONSTANT * size and np.all(
        np.abs(rates) <= _CONSTANT * np.max(np.abs(rates), initial=1)
    ):
        return Approach("constant", 0.0, float(values[-1]))
    late = times >= times[-1] / 10
    if np.ptp(values[late]) < _LIMIT * total or rates[-1] == 0:
        return _with_limit(times, values, rates)
    return _algebraic(times, values, rates) or _runaway(times, values, rates)


def _with_limit(times: np.ndarray, values: np.ndarray, rates: np.ndarray) -> Approach:
    limit = float(values[-1])
    distance = np.abs(limit - values)
    total = distance.max()
    moving = np.abs(rates) > 0
    last = int(np.flatnonzero(moving)[-1])
    if not moving[-1] and abs(rates[last]) > _ABRUPT * np.abs(rates).max():
        arrival = times[last] + distance[last] / abs(rates[last])
        return Approach("finite time", float(arrival), limit)
    seen = moving & (distance > _WINDOW[0] * total) & (distance < _WINDOW[1] * total)
    if np.sum(seen) < 2:
        return UNCLEAR
    rate = np.abs(rates[seen]) / distance[seen]
    if np.ptp(rate) < _STEADY * rate.max():
        # Extrapolated to the limit: the rate deviates in proportion to the distance, and rounding
        # adds an error in inverse proportion.
        _, at_limit = np.polyfit(distance[seen], rate, 1, w=distance[seen])
        return Approach("exponential", float(at_limit), limit)
    if algebraic := _algebraic(times, values, rates):
        return algebraic
    if moving[-1] and -_CREEPING < _slopes(times, rates)[-1] + 1 < 0:
        return Approach("slower than algebraic", float("nan"), limit)
    return UNCLEAR


def _algebraic(times: np.ndarray, values: np.ndarray, rates: np.ndarray) -> Approach | None:
    """An approach to a limit as t^−p, fitted to the last two decades; None if it does not fit.

    The velocity decays as t^−(1+p), so the distance that remains to the limit is t·velocity/p.
    """
    slopes = _slopes(times, rates)
    power = -1 - slopes[-1]
    if not (power > _CREEPING and abs(slopes[-1] - slopes[0]) < _STEADY):
        return None
    left = times[-1] * rates[-1] / power
    return Approach("algebraic", float(power), float(values[-1] + left))


def _runaway(times: np.ndarray, values: np.ndarray, rates: np.ndarray) -> Approach:
    limit = float(np.copysign(np.inf, values[-1] - values[0]))
    ends = _decades(times)
    velocity, gain = np.abs(rates[ends]), np.abs(rates[ends]) * times[ends]
    if not np.all(velocity > 0):
        return UNCLEAR
    slopes = _slopes(times, rates)
    speed, per_log = np.copysign(velocity[-1], limit), np.copysign(gain[-1], limit)
    if abs(slopes[-1]) < _STEADY / 10:
        return Approach("linear", float(speed), limit)
    if slopes[-1] > 0:
        return Approach("accelerating", float(speed), limit)
    if abs(gain[-1] / gain[0] - 1) < _STEADY:
        return Approach("logarithmic", float(per_log), limit)
    if -1 - _CREEPING < slopes[-1] < -1 and gain[-1] < gain[0]:
        return Approach("slower than logarithmic", float(per_log), float(values[-1]))
    if -1 < slopes[-1] < 0 and abs(slopes[-1] - slopes[0]) < _STEADY:
        return Approach("power law", float(1 + slopes[-1]), limit)
    return UNCLEAR


def _decades(times: np.ndarray) -> np.ndarray:
    """The indices of three times: two decades before the last, one decade before it, the last."""
    positions = np.searchsorted(times, times[-1] / np.array([100.0, 10.0, 1.0]) * (1 - 1e-9))
    return np.minimum(positions, len(times) - 1)


def _slopes(times: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The slopes of log |velocity| against log t over each of the last two decades."""
    ends = _decades(times)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.diff(np.log(np.abs(rates[ends]))) / np.diff(np.log(times[ends]))
