"""The ratio plane under DPO, with walls: circles, slides along a wall, release from it.

The flow is projected: at a wall, only the outward component of the velocity is dropped.
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
    """Times since the start: `arrival` at the wall (NaN: never met) and `total` to the level."""

    arrival: Values
    total: Values


class SimplexTimes(NamedTuple):
    """Times since the start: `arrival` at the wall, `release` from it (NaN: not so), `total`."""

    arrival: Values
    release: Values
    total: Values


@quiet
def box_time(start: ArrayLike, beta: ArrayLike, *, wall: ArrayLike, level: ArrayLike) -> BoxTimes:
    """Times to the wall x1 = `wall` and to a loss level, under DPO's flow projected on x1 <= wall.

    The circle is followed to the wall. There the outward component is dropped, and
    x2' = -beta x2^(beta-1) / (wall^beta + x2^beta) is integrated down to the level.

    Args:
        start: (..., 2), not negative, not both 0, x1 at most `wall`.
        beta: DPO's beta, positive.
        wall: largest x1 allowed, positive.
        level: value of the loss that ends the time; 0 is extinction.

    Returns:
        `arrival` at the wall, 0 for starts on it, NaN where the level comes first or at once; and
        `total`, as `ratio_plane_time` gives it.

    Raises:
        ValueError: if an argument is not as above.

    Accuracy:
        As `ratio_plane_time`, but for starts whose radius exceeds `wall` by little: there, rounding
        of the start decides where the wall is met.
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
    metric of x. It follows the circle to the wall, slides along while x2/x1 > p2/p1, leaves at
    (p1, p2) / (p1^2 + p2^2), where a circle is tangent to the wall, and follows that circle. A
    circle that would leave the simplex and return slides from its first crossing. On the wall
    x1' = beta s p2 / ((p1^2 + p2^2) x1 x2), s the pair's weight, so a slide from y0 to y1 takes

        (1/p1^2 + 1/p2^2) / beta  integral (1 + e^(-beta y)) e^(2v) / (1 + e^v)^4 dy,

    y = log(x2/x1), v = y - log(p1/p2). For p1 = p2 = 1 and x1 = p at the start of the slide this is
    [F(1/2) - F(p)] / beta with F(x) = x^2 - 2/3 x^3 + 2 B_x(2 + beta, 2 - beta).

    Args:
        start: (..., 2), not negative, not both 0, p1 x1 + p2 x2 at most 1 but for rounding.
        beta: DPO's beta, positive.
        level: value of the loss that ends the time; 0 is extinction.
        ref_prob_chosen: p1, in (0, 1].
        ref_prob_rejected: p2, in (0, 1]. Both 1: 1 is a unit of scale.

    Returns:
        `arrival` at the wall, 0 for starts that it holds back at once, NaN where it is not met
        before the level; `release`, NaN too where the level is reached on the wall; `total`, as
        `ratio_plane_time` gives it.

    Raises:
        ValueError: if an argument is not as above.

    Accuracy:
        1e-12, relative, for `total`; for `arrival` less where the circle all but grazes the wall,
        since rounding of the start then decides where it is met.
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
    """log(x2/x1) where the circle first meets p1 x1 + p2 x2 = 1; NaN where it never does.

    The circle's direction of closest approach is (p1, p2), and `opening` is the tangent of the
    angle from there to either crossing.
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
    """Time on the wall from log(x2/x1) = here down to there, see `simplex_time`."""
    shift = log_quotient(p2, p1)
    low, high = there + shift, here + shift
    integral = beta_between(2, np.zeros(()), low, high)
    integral = integral + (p2 / p1) ** beta * beta_between(2, beta, low, high)
    return np.asarray((1 / p1**2 + 1 / p2**2) / beta * integral)
