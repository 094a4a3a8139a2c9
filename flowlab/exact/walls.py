"""Closed-form times on the ratio plane with walls, under DPO.

Flow lines are circular arcs inside the domain. The flow is projected: at a wall, only the outward
component of the velocity is dropped, and a line slides along the wall until it is released.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flowlab._checks import within
from flowlab.exact._arguments import Values, quiet, ratios
from flowlab.exact._integrals import beta_between, circle_time, exponential_between, log_quotient
from flowlab.exact.ratio_plane import ratio_plane_log_ratio_at

__all__ = [
    "BoxTimes",
    "SimplexTimes",
    "box_time",
    "simplex_time",
]

# Starts meant to lie on a wall miss it by the rounding of their coordinates.
ON_WALL = 8 * np.finfo(np.float64).eps


class BoxTimes(NamedTuple):
    """Times since the start: of arrival at the wall, NaN if none, and of arrival at the level."""

    arrival: Values
    total: Values


class SimplexTimes(NamedTuple):
    """Times since the start: of arrival at the wall, release from the wall, arrival at the level.

    The first two are NaN if they do not happen.
    """

    arrival: Values
    release: Values
    total: Values


@quiet
def box_time(start: ArrayLike, beta: ArrayLike, *, wall: ArrayLike, level: ArrayLike) -> BoxTimes:
    """Times to the wall x1 = `wall` and to a loss level, under DPO's flow projected on x1 <= wall.

    The flow line is a circular arc up to the wall. On the wall the outward component of the
    velocity is dropped, and x2' = -beta x2^(beta-1) / (wall^beta + x2^beta) down to the level.

    Args:
        start: (..., 2), not negative, not both 0, x1 at most `wall`.
        beta: DPO's beta, positive.
        wall: largest x1 allowed, positive.
        level: value of the loss at the end; 0 is extinction.

    Returns:
        `arrival`, the time to the wall: 0 for starts on the wall, NaN if the level is reached
        before or at the same time; and `total`, the time to the level, as in `ratio_plane_time`.

    Raises:
        ValueError: if an argument is out of range.

    Accuracy:
        As of `ratio_plane_time`, except for starts whose radius exceeds `wall` by little: their
        point of arrival at the wall is sensitive to rounding of the start.
    """
    chosen, rejected = ratios(start)
    scale, limit = within("beta", beta, "(0, inf)"), within("wall", wall, "(0, inf)")
    _check_in_box(chosen, limit)
    here, there = log_quotient(rejected, chosen), ratio_plane_log_ratio_at(level, scale)
    at_wall = np.sqrt(np.maximum(rejected**2 - (limit - chosen) * (limit + chosen), 0))
    hit = np.minimum(np.where(chosen == limit, here, log_quotient(at_wall, limit)), here)

    squared_radius = chosen**2 + rejected**2
    arrival = np.where(hit > there, circle_time(squared_radius, scale, here, hit), np.nan)
    slide = exponential_between(2 - scale, there, hit) + exponential_between(2.0, there, hit)
    free = circle_time(squared_radius, scale, here, there)
    total = np.where(hit > there, arrival + limit**2 / scale * slide, free)
    return BoxTimes(arrival, total)


@quiet
def simplex_time(
    start: ArrayLike,
    beta: ArrayLike,
    *,
    level: ArrayLike,
    ref_prob_chosen: ArrayLike = 1.0,
    ref_prob_rejected: ArrayLike = 1.0,
) -> SimplexTimes:
    """Times to the wall p1 x1 + p2 x2 = 1, to the release from it, and to a loss level, under DPO.

    The flow is projected on the simplex (p1, p2 the reference probabilities), in the Euclidean
    metric of x. A line follows a circle about the origin to the wall and slides along the wall
    while x2/x1 > p2/p1. It leaves the wall at (p1, p2) / (p1^2 + p2^2), where a circle is tangent
    to the wall, and follows that circle. If a circle leaves the simplex and enters it again, the
    line follows it only to its first crossing of the wall. On the wall
    x1' = beta s p2 / ((p1^2 + p2^2) x1 x2), with the pair's weight
    s = x2^beta / (x1^beta + x2^beta), so a slide from y0 to y1 takes

        (1/p1^2 + 1/p2^2) / beta  integral (1 + e^(-beta y)) e^(2v) / (1 + e^v)^4 dy,

    y = log(x2/x1), v = y - log(p1/p2). For p1 = p2 = 1 and x1 = p at the start of the slide this is
    [F(1/2) - F(p)] / beta with F(x) = x^2 - 2/3 x^3 + 2 B_x(2 + beta, 2 - beta).

    Args:
        start: (..., 2), not negative, not both 0, p1 x1 + p2 x2 at most 1 up to rounding.
        beta: DPO's beta, positive.
        level: value of the loss at the end; 0 is extinction.
        ref_prob_chosen: p1, in (0, 1].
        ref_prob_rejected: p2, in (0, 1]. Both may be 1, as in the paper, where ratios are in units
            of the wall.

    Returns:
        `arrival`, the time to the wall: 0 for starts that slide at once, NaN if the line does not
        reach the wall before the level; `release`, the time at which the line leaves the wall: NaN
        if it never slides, or slides until the level; `total`, the time to the level, as in
        `ratio_plane_time`.

    Raises:
        ValueError: if an argument is out of range.

    Accuracy:
        The relative error of `total` is 1e-12. That of `arrival` is larger if the circle almost
        grazes the wall, since the crossing is then sensitive to rounding of the start.
    """
    chosen, rejected = ratios(start)
    scale = within("beta", beta, "(0, inf)")
    p1 = within("ref_prob_chosen", ref_prob_chosen, "(0, 1]")
    p2 = within("ref_prob_rejected", ref_prob_rejected, "(0, 1]")
    _check_in_simplex(p1 * chosen + p2 * rejected)
    here, there = log_quotient(rejected, chosen), ratio_plane_log_ratio_at(level, scale)
    hit, free_at = _simplex_hit(chosen, rejected, p1, p2), log_quotient(p2, p1)
    meets, leaves = hit > there, (hit > there) & (free_at > there)

    squared_radius = chosen**2 + rejected**2
    arrival = np.where(meets, circle_time(squared_radius, scale, here, hit), np.nan)
    slide_end = arrival + _simplex_slide(scale, p1, p2, hit, np.maximum(free_at, there))
    after = circle_time(1 / (p1**2 + p2**2), scale, free_at, there)
    total = np.where(meets, slide_end, circle_time(squared_radius, scale, here, there))
    total = np.where(leaves, slide_end + after, total)
    return SimplexTimes(arrival, np.where(leaves, slide_end, np.nan), total)


def _check_in_box(chosen: Values, wall: Values) -> None:
    if np.any(chosen > wall):
        raise ValueError(
            f"Argument `start` must have x1 at most `wall`, but has x1 = {np.nanmax(chosen)}."
        )


def _check_in_simplex(mass: Values) -> None:
    if np.any(mass > 1 + ON_WALL):
        raise ValueError(
            "Argument `start` must satisfy ref_prob_chosen * x1 + ref_prob_rejected * x2 <= 1, "
            f"but has a sum of {np.nanmax(mass)}."
        )


def _simplex_hit(chosen: Values, rejected: Values, p1: Values, p2: Values) -> Values:
    """log(x2/x1) at the circle's first crossing of p1 x1 + p2 x2 = 1; NaN if there is none.

    Seen from the origin, the wall is closest in the direction (p1, p2). `opening` is the tangent of
    the angle between this direction and either crossing.
    """
    mass, lead = p1 * chosen + p2 * rejected, p1 * rejected - p2 * chosen
    squared = lead**2 - (1 - mass) * (1 + mass)
    opening = np.sqrt(np.maximum(squared, 0))
    room = (1 - p2 * rejected) * (1 + p2 * rejected) - (p2 * chosen) ** 2
    chosen_at = np.maximum(room, 0) / (p1 + p2 * opening)
    rejected_at = (p2 + p1 * opening) / (p1**2 + p2**2)
    here = log_quotient(rejected, chosen)
    hit = np.minimum(log_quotient(rejected_at, chosen_at), here)
    hit = np.where(np.abs(mass - 1) <= ON_WALL, here, hit)
    return np.where((lead > 0) & (squared > 0), hit, np.nan)


def _simplex_slide(beta: Values, p1: Values, p2: Values, here: Values, there: Values) -> Values:
    """Time on the wall while log(x2/x1) falls from `here` to `there`, see `simplex_time`."""
    shift = log_quotient(p2, p1)
    low, high = there + shift, here + shift
    integral = beta_between(2, np.zeros(()), low, high)
    integral = integral + (p2 / p1) ** beta * beta_between(2, beta, low, high)
    return np.asarray((1 / p1**2 + 1 / p2**2) / beta * integral)
