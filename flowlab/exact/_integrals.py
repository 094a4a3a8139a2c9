"""The integrals behind the times on the ratio plane, computed as differences.

With y = log(x2/x1) they are all integrals of e^(-tilt v) (s (1 - s))^order dv, with v linear in y
and s = 1 / (1 + e^-v). Such an integral is a difference of two incomplete beta functions. Computing
the two functions separately would lose digits if the limits are close, if s underflows, or if
order - tilt is small, and they are not defined if order - tilt is negative. The integral is
therefore computed as a whole: by a binomial series for |v| > 2 and by a Gauss-Legendre rule in
between.
"""

from math import comb

import numpy as np
from scipy import special

from flowlab.exact._arguments import Values

# SERIES_TERMS of the series leave 1e-17 beyond +-SERIES_FROM. Between, the nearest pole is pi from
# the axis, and the rule leaves less.
SERIES_FROM = 2.0
SERIES_TERMS = 26
NODES = np.polynomial.legendre.leggauss(32)


def log_quotient(above: Values, below: Values) -> Values:
    """log(above / below), or log(above) - log(below) if the quotient over- or underflows."""
    quotient = above / below
    normal = (quotient > 1e-300) & (quotient < 1e300)
    return np.where(normal, np.log(quotient), np.log(above) - np.log(below))


def circle_time(squared_radius: Values, beta: Values, here: Values, there: Values) -> Values:
    """Time on a circle about the origin, while log(x2/x1) falls from `here` to `there`.

    NaN if `there` is above `here`.
    """
    share = special.expit(2 * here) * special.expit(-2 * there) * -np.expm1(2 * (there - here))
    weighted = beta_between(1, beta / 2, 2 * there, 2 * here)
    time = squared_radius / (2 * beta) * (share + weighted)
    time = np.where(here > there, time, np.nan)
    return np.where(here == there, 0.0, time)


def beta_between(order: int, tilt: Values, low: Values, high: Values) -> Values:
    """Integral over [low, high] of e^(-tilt v) (s (1 - s))^order dv, with s = 1 / (1 + e^-v).

    This is the difference of B_s(order - tilt, order + tilt) between the two limits, computed for
    every tilt and without cancellation: its relative accuracy does not suffer from a short
    interval.
    """
    left = np.minimum(low, -SERIES_FROM), np.minimum(high, -SERIES_FROM)
    right = np.maximum(low, SERIES_FROM), np.maximum(high, SERIES_FROM)
    total = _middle(order, tilt, low, high)
    for term in range(SERIES_TERMS):
        factor = (-1) ** term * comb(term + 2 * order - 1, term)
        total = total + factor * exponential_between(order - tilt + term, *left)
        total = total + factor * exponential_between(-order - tilt - term, *right)
    return total


def exponential_between(rate: Values | float, low: Values, high: Values) -> Values:
    """Integral of e^(rate v) dv over [low, high], either end possibly infinite."""
    size, span = np.abs(rate), high - low
    peak = np.exp(np.maximum(rate * low, rate * high))
    integral = np.where(size == 0, span, peak * -np.expm1(-size * span) / size)
    return np.where(span == 0, 0.0, integral)


def _middle(order: int, tilt: Values, low: Values, high: Values) -> Values:
    """The part of `beta_between` over |v| <= SERIES_FROM, by the Gauss-Legendre rule."""
    low, high = (np.clip(end, -SERIES_FROM, SERIES_FROM) for end in (low, high))
    half, centre = (high - low) / 2, (high + low) / 2
    total = np.zeros(())
    for node, weight in zip(*NODES, strict=True):
        at = centre + half * node
        bump = special.expit(at) * special.expit(-at)
        total = total + weight * bump**order * np.exp(-tilt * at)
    return np.asarray(total * half)
