"""The ratio plane under DPO: L = log(1 + (x2/x1)^beta), Euclidean in x, without walls.

L is homogeneous of degree 0, so flow lines are circles about the origin. With y = log(x2/x1) and r
the radius,

    dt = -(r^2 / beta) (1 + e^(-beta y)) / (4 cosh^2 y) dy,

which for beta < 2 integrates to r^2 / (2 beta) [G(s0) - G(s1)] with s = x2^2 / r^2 and
G(s) = B_s(1 - beta/2, 1 + beta/2) + s, B_s the incomplete beta function. The difference is formed
as one integral, which loses no digits and holds for every beta > 0.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from flowlab._checks import within
from flowlab.exact._arguments import Points, Values, quiet, ratios
from flowlab.exact._integrals import circle_time, log_quotient

__all__ = [
    "ratio_plane_change_ratio",
    "ratio_plane_hessian_determinant",
    "ratio_plane_log_ratio_at",
    "ratio_plane_ratio_at",
    "ratio_plane_speed",
    "ratio_plane_state",
    "ratio_plane_time",
    "ratio_plane_total_change",
]

# log 2 = LOG_2 + LOG_2_REST to twice the precision of a float64.
LOG_2 = 0.6931471805599453
LOG_2_REST = 2.3190468138462996e-17


@quiet
def ratio_plane_log_ratio_at(level: ArrayLike, beta: ArrayLike) -> Values:
    """log(x2/x1) at a value of the DPO loss: log(e^level - 1) / beta.

    Args:
        level: value of the loss, not negative; 0 gives -inf (extinction).
        beta: DPO's beta, positive.

    Raises:
        ValueError: if `level` is negative or `beta` is not positive.

    Accuracy:
        Four units in the last place, also near level = log 2, where the result is 0.
    """
    loss, scale = within("level", level, "[0, inf]"), within("beta", beta, "(0, inf)")
    from_middle = (loss - LOG_2) - LOG_2_REST
    log_odds = np.where(
        np.abs(from_middle) < 0.3,
        np.log1p(2 * np.expm1(from_middle)),
        loss + np.log(-np.expm1(-loss)),
    )
    return np.asarray(log_odds / scale)


@quiet
def ratio_plane_ratio_at(level: ArrayLike, beta: ArrayLike) -> Values:
    """Ratio x2/x1 at a value of the DPO loss: (e^level - 1)^(1/beta).

    For small beta the ratio underflows to 0 or overflows to inf; its logarithm,
    `ratio_plane_log_ratio_at`, does not.

    Args:
        level: value of the loss, not negative.
        beta: DPO's beta, positive.

    Raises:
        ValueError: if `level` is negative or `beta` is not positive.
    """
    return np.asarray(np.exp(ratio_plane_log_ratio_at(level, beta)))


@quiet
def ratio_plane_time(
    start: ArrayLike,
    beta: ArrayLike,
    *,
    level: ArrayLike | None = None,
    ratio: ArrayLike | None = None,
) -> Values:
    """Time from `start` to a loss level or to a ratio, on the ratio plane without walls, under DPO.

    T = r^2 / (2 beta) [G(s0) - G(s1)], see the module's docstring. Level 0, or ratio 0, is
    extinction (x2 = 0). It is reached in finite time for beta < 2 and never (inf) for beta >= 2.

    Args:
        start: (..., 2), the ratios x1 (chosen) and x2 (rejected), not negative, not both 0.
        beta: DPO's beta, positive.
        level: value of the loss at the end; either this or `ratio` must be given.
        ratio: value of x2/x1 at the end; for a value of 1e-308 or less, give `level` instead.

    Returns:
        Times; 0 where the start is on the target, NaN where it is past the target.

    Raises:
        ValueError: if `start` or `beta` is out of range, if both `level` and `ratio` are given or
            neither is, or if the given one is negative.

    Source:
        Integrated from the gradient in arXiv 2404.04626, Theorem 1.

    Accuracy:
        For beta from 0.05 to 1.9, the error is 1e-13 of T or of 1e-3 r^2/beta, whichever is larger;
        for longer times and beta up to 20, it is 1e-13 of T. If start and target nearly coincide,
        it is 1e-16 max(1, |y|) |dt/dy|, with y and dt/dy as in the module's docstring, from
        rounding of y.
    """
    chosen, rejected = ratios(start)
    scale = within("beta", beta, "(0, inf)")
    here = log_quotient(rejected, chosen)
    there = _target_log_ratio(scale, level, ratio)
    return np.asarray(circle_time(chosen**2 + rejected**2, scale, here, there))


@quiet
def ratio_plane_state(start: ArrayLike, *, ratio: ArrayLike) -> Points:
    """The point (x1, x2) at which the flow line of `start` has x2/x1 = `ratio`.

    The point is r (1, q) / sqrt(1 + q^2) with q = `ratio` and r = |start|: for every beta, and
    every loss that depends on the margin alone, the flow line is an arc of the circle of radius r.
    A ratio above the start's gives a point in the past of the flow line.

    Args:
        start: (..., 2), not negative, not both 0.
        ratio: x2/x1, not negative, shape (...).

    Raises:
        ValueError: if `start` or `ratio` is out of range.
    """
    radius, wanted = np.hypot(*ratios(start)), within("ratio", ratio, "[0, inf]")
    chosen = radius / np.hypot(1.0, wanted)
    rejected = np.where(wanted <= 1, chosen * wanted, radius / np.hypot(1.0, 1 / wanted))
    return np.stack([chosen, rejected], axis=-1)


def ratio_plane_total_change(start: ArrayLike) -> tuple[Values, Values]:
    """Rise of x1 and fall of x2 from `start` to extinction: r - x1 and x2, where r = |start|.

    Args:
        start: (..., 2), not negative, not both 0.

    Raises:
        ValueError: if `start` is out of range.

    Accuracy:
        A few units in the last place; r - x1 is computed as x2^2 / (r + x1).
    """
    chosen, rejected = ratios(start)
    rise = rejected * (rejected / (np.hypot(chosen, rejected) + chosen))
    return np.asarray(rise), rejected


def ratio_plane_change_ratio(start: ArrayLike) -> Values:
    """Total rise of x1 divided by total fall of x2, up to extinction: tan(theta0 / 2), at most 1.

    theta0 is the polar angle of the start: tan theta0 = x2/x1. A start at extinction has the limit,
    0.

    Args:
        start: (..., 2), not negative, not both 0.

    Raises:
        ValueError: if `start` is out of range.
    """
    chosen, rejected = ratios(start)
    return np.asarray(rejected / (np.hypot(chosen, rejected) + chosen))


@quiet
def ratio_plane_speed(state: ArrayLike, beta: ArrayLike) -> Values:
    """Euclidean speed of the DPO flow at `state`: beta s r / (x1 x2).

    s = q^beta / (1 + q^beta) is the pair's weight, with q = x2/x1; r is the norm of the state.

    Args:
        state: (..., 2), not negative, not both 0; on an axis the result is the limit.
        beta: DPO's beta, positive.

    Raises:
        ValueError: if `state` or `beta` is out of range.
    """
    chosen, rejected = ratios(state, "state")
    scale = within("beta", beta, "(0, inf)")
    log_ratio = log_quotient(rejected, chosen)
    # beta s / (x1 x2) = (beta / r^2) s (q + 1/q); the last two factors are taken in logarithms.
    log_weight = special.log_expit(scale * log_ratio) + np.logaddexp(log_ratio, -log_ratio)
    at_extinction = np.where(scale < 1, np.inf, np.where(scale == 1, 1.0, 0.0))
    factor = np.where(rejected == 0, at_extinction, np.exp(log_weight))
    return np.asarray(scale * factor / np.hypot(chosen, rejected))


def ratio_plane_hessian_determinant(state: ArrayLike, beta: ArrayLike) -> Values:
    """Determinant of the Hessian of the DPO loss at `state`: -|gradient|^2 / r^2, r = |state|.

    Args:
        state: (..., 2), not negative, not both 0.
        beta: DPO's beta, positive.

    Raises:
        ValueError: if `state` or `beta` is out of range.
    """
    radius = np.hypot(*ratios(state, "state"))
    return np.asarray(-((ratio_plane_speed(state, beta) / radius) ** 2))


def _target_log_ratio(beta: Values, level: ArrayLike | None, ratio: ArrayLike | None) -> Values:
    if level is not None and ratio is not None:
        raise ValueError("Argument `level` must not be given with `ratio`, but both are; drop one.")
    if level is not None:
        return ratio_plane_log_ratio_at(level, beta)
    if ratio is not None:
        return np.asarray(np.log(within("ratio", ratio, "[0, inf]")))
    raise ValueError("Argument `level` or `ratio` must be given, but neither is.")
