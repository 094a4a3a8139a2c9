"""C1 to C8: the loss's derivatives and what the paper reads off its gradient field."""

import numpy as np
from jaxtyping import Bool, Float

from flowlab.study.claims.sight import (
    LEFT,
    LOW,
    LOWER,
    UPPER_LEFT,
    UPPER_RIGHT,
    Sight,
    gradients,
    look,
    velocities,
)
from flowlab.study.claims.verdicts import (
    MINOR,
    NEAR_ZERO,
    RAPID,
    Verdict,
    judged,
    not_applicable,
    share,
)
from flowlab.study.data import SLOW_SHARE, Geometry, StudyData

__all__ = ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"]

SAME = 1e-4  # far above the error of runs at rtol 1e-6, far below any difference that matters
ROUNDING = 1e-10  # far above the rounding of a few float64 operations
DEPTH = 1e-100  # a ratio so close to 0 that any power of it that vanishes has vanished


def c1(data: StudyData, geometry: Geometry) -> Verdict:
    """The gradient of the loss by automatic differentiation, against the formulas of Theorem 1.

    At every start: |difference| / |formulas|, to be at most 1e-10. The loss is the same function in
    every geometry; where the state is (u_w, u_l), its gradient is brought to x by the chain rule.
    """
    deviations = []
    for beta in data.settings.betas:
        states = np.asarray(data.to_level[geometry.name, beta].starts, float)
        found = gradients(geometry, beta, states)
        chosen, rejected = geometry.ratios(states).T
        total = chosen**beta + rejected**beta
        theorem = np.stack(
            [
                -beta * rejected**beta / (chosen * total),
                beta * rejected ** (beta - 1) / total,
            ],
            axis=1,
        )
        deviations.append(np.hypot(*(found - theorem).T) / np.hypot(*theorem.T))
    relative = np.concatenate(deviations)
    evidence = {
        "share_of_starts_where_the_formulas_agree": share(relative <= ROUNDING),
        "largest_relative_deviation": float(np.max(relative)),
    }
    return judged(evidence, ["share_of_starts_where_the_formulas_agree"])


def c2(data: StudyData, geometry: Geometry) -> Verdict:
    """Whether |x1'| / |x2'| = x2/x1 along the whole flow line, walls included.

    With x1 rising and x2 falling this says d(x1² + x2²)/dt = 0, so it is true all the way where it
    is true at the start (to 1e-4) and x1² + x2² is the same at the loss level (to 1e-4). It is
    about the rates of x1 and x2 in training; as a relation between the partial derivatives of the
    loss it is part of C1. On the log-ratio plane the rates of x have the ratio x1/x2 instead.
    """
    sight = look(data, geometry)
    claimed = sight.start[:, 1] / sight.start[:, 0]
    deviation = np.abs(sight.start_rate_ratio / claimed - 1)
    inverse = np.abs(sight.start_rate_ratio * claimed - 1)
    radius = np.hypot(*sight.end.T) / np.hypot(*sight.start.T)
    kept = np.abs(radius - 1) <= SAME
    at_start = deviation <= SAME
    evidence = {
        "share_of_starts_where_it_is_true_all_the_way": share(at_start & kept),
        "share_of_starts_where_it_is_true_at_the_start": share(at_start),
        "share_of_starts_where_the_ratio_is_x1_over_x2_at_the_start": share(inverse <= SAME),
        "median_relative_deviation_at_the_start": float(np.median(deviation)),
        "largest_relative_deviation_at_the_start": float(np.max(deviation)),
        "largest_relative_change_of_the_radius": float(np.max(np.abs(radius - 1))),
    }
    return judged(evidence, ["share_of_starts_where_it_is_true_all_the_way"])


def c3(data: StudyData, geometry: Geometry) -> Verdict:
    """Faster at the start, |x2'| > |x1'|; and over the whole way to the loss level, |Δx2| > |Δx1|.

    Both are about the ratios x, over all starts of the paper's square. By C2 the first is true on
    the ratio plane just where x1 > x2. In the log-ratio plane's own coordinates both log-ratios
    move equally fast at all times, so there neither is faster (the last number).
    """
    sight = look(data, geometry)
    change = np.abs(sight.change)
    in_logs = sight.start_rate_ratio * sight.start[:, 1] / sight.start[:, 0]
    evidence = {
        "share_of_starts_where_the_rejected_is_faster_at_the_start": share(
            sight.start_rate_ratio < 1 - SAME
        ),
        "share_of_starts_where_the_rejected_changes_more_on_the_way": share(
            change[:, 1] > change[:, 0]
        ),
        "share_of_starts_where_the_rejected_is_faster_at_the_loss_level": share(
            sight.end_rate_ratio < 1 - SAME
        ),
        "median_change_of_chosen_over_change_of_rejected": float(
            np.median(change[:, 0] / change[:, 1])
        ),
        "share_of_starts_where_log_x2_is_faster_than_log_x1_at_the_start": share(
            in_logs < 1 - SAME
        ),
    }
    return judged(evidence, list(evidence)[:2])


def c4(data: StudyData, geometry: Geometry) -> Verdict:
    """Four parts: two ends where the field vanishes, and two movements.

    The field vanishes at low x1 if, with x1 taken to 1e-100 at a start's x2, the speed is less than
    a hundredth of the median over the starts (starts with x1 < 0.2); at low x2 likewise (starts
    with x2 < 0.2). It moves away from low x1 if x1 rises from a start with x1 < 0.2. It converges
    towards low x2 if x2 has fallen to less than 0.2 at the loss level, from any start. Speeds are
    those of the free field in the coordinates of the geometry.
    """
    sight = look(data, geometry)
    left, lower = sight.within(LEFT), sight.within(LOWER)
    if not (left.count and lower.count):
        return not_applicable()
    evidence = {
        "share_of_starts_at_low_x1_where_the_field_vanishes_as_x1_goes_to_0": share(
            _speed_at_the_edge(left, geometry, 0) < NEAR_ZERO
        ),
        "share_of_starts_at_low_x1_from_which_x1_rises": share(left.change[:, 0] > 0),
        "share_of_starts_that_end_at_low_x2": share(
            (sight.change[:, 1] < 0) & (sight.end[:, 1] < LOW)
        ),
        "share_of_starts_at_low_x2_where_the_field_vanishes_as_x2_goes_to_0": share(
            _speed_at_the_edge(lower, geometry, 1) < NEAR_ZERO
        ),
        "median_speed_at_low_x1_over_median_speed": float(np.median(left.relative_speed)),
        "median_speed_at_low_x2_over_median_speed": float(np.median(lower.relative_speed)),
    }
    return judged(evidence, list(evidence)[:4])


def c5(data: StudyData, geometry: Geometry) -> Verdict:
    """Two parts, at starts with x1 < 0.2 and x2 > 0.8: x1 rapid, x2 nearly still.

    Rapid: x1 rises at twice the median |x1'| over all starts or more. Nearly still: |x2'| is at
    most a quarter of |x1'| at the start (walls included). The statement is read as one about the
    corner: over the whole way to the loss level x2 changes more than x1, which the last two numbers
    tell.
    """
    here = look(data, geometry).within(UPPER_LEFT)
    if not here.count:
        return not_applicable()
    change = np.abs(here.change)
    evidence = {
        "share_of_starts_where_x1_rises_rapidly": share(
            (here.rate[:, 0] > 0) & (here.relative_rate[:, 0] >= RAPID)
        ),
        "share_of_starts_where_x2_hardly_changes": share(here.start_rate_ratio >= 1 / MINOR),
        "median_rate_of_x1_over_its_median_everywhere": float(np.median(here.relative_rate[:, 0])),
        "median_rate_of_x2_over_rate_of_x1": float(np.median(1 / here.start_rate_ratio)),
        "share_of_starts_where_x2_changes_more_than_x1_on_the_way": share(
            change[:, 1] > change[:, 0]
        ),
        "median_change_of_x2_over_change_of_x1_on_the_way": float(
            np.median(change[:, 1] / change[:, 0])
        ),
    }
    return judged(evidence, list(evidence)[:2])


def c6(data: StudyData, geometry: Geometry) -> Verdict:
    """Two parts, at starts with x1 > 0.8 and x2 > 0.8: both change, but slowly; and but little.

    Both change: x1 rises and x2 falls at the start. Slowly: the speed at the start is at most half
    the median over all starts. Little: within the flow time that all starts have in common (the
    median arrival at the loss level) the state moves at most half as far as the median start.
    Speeds and distances in the coordinates of the geometry.
    """
    here = look(data, geometry).within(UPPER_RIGHT)
    if not here.count:
        return not_applicable()
    both = (here.rate[:, 0] > 0) & (here.rate[:, 1] < 0)
    evidence = {
        "share_of_starts_where_both_change_slowly": share(
            both & (here.relative_speed <= SLOW_SHARE)
        ),
        "share_of_starts_where_both_change_little_in_the_common_time": share(
            both & (here.moved <= SLOW_SHARE)
        ),
        "share_of_starts_where_x1_rises_and_x2_falls": share(both),
        "median_speed_over_median_speed_everywhere": float(np.median(here.relative_speed)),
        "median_distance_moved_over_median_distance_everywhere": float(np.median(here.moved)),
    }
    return judged(evidence, list(evidence)[:2])


def c7(data: StudyData, geometry: Geometry) -> Verdict:
    """Whether lines from x1 > 0.8, x2 > 0.8 meet a saddle point that they find hard to leave.

    At a saddle point the gradient vanishes, so a line that has difficulty with one passes where the
    speed is near zero: its slowest point on the way to the loss level, walls included, is to have
    less than a hundredth of the median speed. Slow travel without such a point is C6 and C14.
    """
    here = look(data, geometry).within(UPPER_RIGHT)
    if not here.count:
        return not_applicable()
    evidence = {
        "share_of_starts_that_pass_a_point_of_nearly_no_speed": share(
            here.relative_slowest < NEAR_ZERO
        ),
        "smallest_speed_on_the_way_over_median_speed": float(np.min(here.relative_slowest)),
        "smallest_gradient_at_the_starts": float(np.min(here.relative_speed * here.median_speed)),
        "share_of_starts_that_reach_the_loss_level": share(here.reached),
        "median_part_of_the_time_below_half_the_median_speed": float(np.median(here.dwell_share)),
    }
    return judged(evidence, list(evidence)[:1])


def c8(data: StudyData, geometry: Geometry) -> Verdict:
    """Two parts, at starts with x2 < 0.2 and any x1: x2 rapid, x1 nearly still.

    Rapid: x2 falls at twice the median |x2'| over all starts or more. Nearly still: |x1'| is at
    most a quarter of |x2'| at the start (walls included). The paper's sentence says both "the lower
    part of the figure" and "both responses improbable"; the first is taken, and the numbers of the
    second (x1 < 0.2 too) are beside it.
    """
    here = look(data, geometry).within(LOWER)
    if not here.count:
        return not_applicable()
    corner = here.within(LEFT)
    evidence = {
        "share_of_starts_where_x2_falls_rapidly": share(_falls_rapidly(here)),
        "share_of_starts_where_x1_hardly_changes": share(here.start_rate_ratio <= MINOR),
        "median_rate_of_x2_over_its_median_everywhere": float(np.median(here.relative_rate[:, 1])),
        "median_rate_of_x1_over_rate_of_x2": float(np.median(here.start_rate_ratio)),
        "share_where_x2_falls_rapidly_with_x1_low_too": share(_falls_rapidly(corner)),
        "share_where_x1_hardly_changes_with_x1_low_too": share(corner.start_rate_ratio <= MINOR),
    }
    return judged(evidence, list(evidence)[:2])


def _falls_rapidly(sight: Sight) -> Bool[np.ndarray, " n"]:
    return (sight.rate[:, 1] < 0) & (sight.relative_rate[:, 1] >= RAPID)


def _speed_at_the_edge(sight: Sight, geometry: Geometry, component: int) -> Float[np.ndarray, " n"]:
    """Speed with one ratio next to 0 and the other as at the start, over the median speed."""
    edge = sight.start.copy()
    edge[:, component] = DEPTH
    speeds = np.empty(sight.count)
    for beta in np.unique(sight.beta):
        here = sight.beta == beta
        states = geometry.states(edge[here])
        speeds[here] = np.hypot(*velocities(geometry, float(beta), states).T)
    return speeds / sight.median_speed
