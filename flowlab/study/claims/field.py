"""C1 to C8: the derivatives of the loss, and the paper's statements about its gradient field."""

import numpy as np
from jaxtyping import Bool

from flowlab.study.claims.observables import LEFT, LOW, LOWER, UPPER_LEFT, UPPER_RIGHT, Observables
from flowlab.study.claims.verdicts import (
    MINOR,
    NEAR_ZERO,
    RAPID,
    ROUNDING,
    Verdict,
    drop_nan,
    not_applicable,
    share,
    states,
    verdict_from,
)
from flowlab.study.data import SLOW_SHARE

__all__ = ["STATEMENTS", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "chosen_falls"]

SAME = 1e-4  # far above the error of runs at rtol 1e-6, far below any difference that matters


@states(
    "Theorem 1",
    "The partial derivatives of the DPO loss by x1 and x2 are "
    "-β x2^β / (x1 (x1^β + x2^β)) and β x2^(β-1) / (x1^β + x2^β).",
)
def c1(observables: Observables) -> Verdict:
    """Gradients by automatic differentiation, compared with the formulas of Theorem 1.

    At every start the relative difference must be at most 1e-10. The formulas are derivatives with
    respect to x1 and x2. The chain rule turns them into derivatives with respect to the state, and
    with several pairs their mean is taken. The loss is the same function in every geometry.
    """
    evidence = {
        "share_of_starts_where_the_formulas_agree": share(
            observables.field.theorem_error <= ROUNDING
        ),
        "largest_relative_deviation": np.max(observables.field.theorem_error),
    }
    return verdict_from(evidence, ["share_of_starts_where_the_formulas_agree"])


@states("Corollary 1", "The chosen ratio rises x2/x1 times as fast as the rejected ratio falls.")
def c2(observables: Observables) -> Verdict:
    """The ratio of the two rates, x1' / −x2', compared with x2/x1 along the whole flow line.

    At the start the two ratios must agree to 1e-4, with x1 rising and x2 falling, and they must
    continue to agree. They do so if and only if x1² + x2² is conserved. The sum at the loss level
    must therefore equal the sum at the start, to 1e-4. The flow is that with walls. The
    statement is about rates during training: as a relation between the partial derivatives of the
    loss it is part of C1. On the log-ratio plane the ratio of the rates is x1/x2 instead.
    """
    claimed = observables.start[:, 1] / observables.start[:, 0]
    deviation = np.abs(observables.rise_over_fall / claimed - 1)
    inverse = np.abs(observables.rise_over_fall * claimed - 1)
    radius = np.hypot(*observables.lines.end.T) / np.hypot(*observables.start.T)
    kept = np.abs(radius - 1) <= SAME
    at_start = deviation <= SAME
    evidence = {
        "share_of_starts_where_it_is_true_all_the_way": share(at_start & kept),
        "share_of_starts_where_it_is_true_at_the_start": share(at_start),
        "share_of_starts_where_the_ratio_is_x1_over_x2_at_the_start": share(inverse <= SAME),
        "median_relative_deviation_at_the_start": np.median(deviation),
        "largest_relative_deviation_at_the_start": np.max(deviation),
        "largest_relative_change_of_the_radius": np.max(np.abs(radius - 1)),
    }
    return verdict_from(evidence, ["share_of_starts_where_it_is_true_all_the_way"])


@states(
    "Remark 1 and abstract",
    "The loss lowers the probability of the rejected response faster than it raises that of the "
    "chosen one.",
)
def c3(observables: Observables) -> Verdict:
    """Two comparisons: −x2' > x1' at the start, and −Δx2 > Δx1 on the way to the loss level.

    All starts count. A chosen response that falls counts as rising more slowly than the rejected
    one falls; a rejected response that rises does not count as falling. By C2, the first comparison
    is true on the ratio plane if and only if x1 > x2. Two numbers are reported but not used for the
    verdict: the share of starts at which log x2 changes faster than log x1, and the share at which
    the chosen response becomes less probable, which cannot happen on the paper's plane.
    """
    falls, fallen = observables.rate[:, 1] < 0, observables.change[:, 1] < 0
    change = np.abs(observables.change)
    in_logs = observables.rise_over_fall * observables.start[:, 1] / observables.start[:, 0]
    evidence = {
        "share_of_starts_where_the_rejected_is_faster_at_the_start": share(
            falls & (observables.rise_over_fall < 1 - SAME)
        ),
        "share_of_starts_where_the_rejected_changes_more_on_the_way": share(
            fallen & (-observables.change[:, 1] > observables.change[:, 0])
        ),
        "share_of_starts_where_the_rejected_is_faster_at_the_loss_level": share(
            observables.lines.end_rate_ratio < 1 - SAME
        ),
        "median_change_of_chosen_over_change_of_rejected": np.median(change[:, 0] / change[:, 1]),
        "share_of_starts_where_log_x2_is_faster_than_log_x1_at_the_start": share(
            falls & (in_logs < 1 - SAME)
        ),
        **chosen_falls(observables),
    }
    return verdict_from(evidence, list(evidence)[:2])


def chosen_falls(observables: Observables) -> dict[str, float]:
    """Shares of cases in which the chosen response becomes less probable, by name.

    They are four shares: of the starts at which the chosen response falls in the free field; of the
    starts at which k_wl > k_ww predicts this correctly; of the starts from which it has fallen at
    the loss level; and of the values of β at which it falls at the reference state.
    """
    falls = observables.rate[:, 0] < 0
    return {
        "share_of_starts_where_the_chosen_falls_at_the_start": share(falls),
        "share_of_starts_where_it_falls_just_where_k_wl_exceeds_k_ww": share(
            falls == (observables.coupling > 1)
        ),
        "share_of_starts_where_the_chosen_has_fallen_at_the_loss_level": share(
            observables.change[:, 0] < 0
        ),
        "share_of_betas_where_the_chosen_falls_at_the_reference": float(
            np.mean([share(part.field.reference_rate[:, 0] < 0) for part in observables.by_beta()])
        ),
    }


@states(
    "Section 3.2",
    "The gradient field vanishes near low x1, pointing away from it, and near low x2, pointing "
    "towards it.",
)
def c4(observables: Observables) -> Verdict:
    """Four parts: the field vanishes at low x1 and at low x2, leads away from one and to the other.

    For a start with x1 < 0.2, x1 is lowered to 1e-100, and x2 is kept. The field vanishes at low x1
    if the speed there is below a hundredth of the median speed of all starts. The part about
    low x2 is measured in the same way, for starts with x2 < 0.2. The field leads away from low x1
    if x1 rises from a start with x1 < 0.2. It leads to low x2 if x2 has fallen below 0.2 at the
    loss level, from any start; for small β the level alone nearly implies this. Speeds are speeds
    of the field without walls, in the coordinates of the geometry; in the feature model, the
    features are those of the reference.
    """
    left, lower = observables.within(LEFT), observables.within(LOWER)
    if not (left.count and lower.count):
        return not_applicable()
    evidence = {
        "share_of_starts_at_low_x1_where_the_field_vanishes_as_x1_goes_to_0": share(
            left.relative.edge_speed[:, 0] < NEAR_ZERO
        ),
        "share_of_starts_at_low_x1_from_which_x1_rises": share(left.change[:, 0] > 0),
        "share_of_starts_that_end_at_low_x2": share(
            (observables.change[:, 1] < 0) & (observables.lines.end[:, 1] < LOW)
        ),
        "share_of_starts_at_low_x2_where_the_field_vanishes_as_x2_goes_to_0": share(
            lower.relative.edge_speed[:, 1] < NEAR_ZERO
        ),
        "median_speed_at_low_x1_over_median_speed": np.median(left.relative.speed),
        "median_speed_at_low_x2_over_median_speed": np.median(lower.relative.speed),
    }
    return verdict_from(evidence, list(evidence)[:4])


@states(
    "Section 3.2, first case",
    "Where x1 is very small and x2 very large, x1 rises rapidly and x2 hardly changes.",
    UPPER_LEFT,
)
def c5(here: Observables) -> Verdict:
    """Two parts, at starts with x1 < 0.2 and x2 > 0.8: x1 rises rapidly, and x2 hardly changes.

    Rapidly: x1 rises at no less than twice the median of |x1'| over all starts. Hardly: |x2'| is at
    most a quarter of |x1'| at the start, walls included. The statement is taken to be about the
    corner alone: on the whole way to the loss level x2 changes more than x1, as the last two
    numbers show.
    """
    change = np.abs(here.change)
    evidence = {
        "share_of_starts_where_x1_rises_rapidly": share(
            (here.rate[:, 0] > 0) & (here.relative.rate[:, 0] >= RAPID)
        ),
        "share_of_starts_where_x2_hardly_changes": share(here.lines.start_rate_ratio >= 1 / MINOR),
        "median_rate_of_x1_over_its_median_everywhere": np.median(here.relative.rate[:, 0]),
        "median_rate_of_x2_over_rate_of_x1": np.median(1 / here.lines.start_rate_ratio),
        "share_of_starts_where_x2_changes_more_than_x1_on_the_way": share(
            change[:, 1] > change[:, 0]
        ),
        "median_change_of_x2_over_change_of_x1_on_the_way": np.median(change[:, 1] / change[:, 0]),
    }
    return verdict_from(evidence, list(evidence)[:2])


@states(
    "Section 3.2, second case",
    "Where both are very large, x1 rises and x2 falls, but little.",
    UPPER_RIGHT,
)
def c6(here: Observables) -> Verdict:
    """Two parts, at starts with x1 > 0.8 and x2 > 0.8: both change slowly, and both change little.

    In both parts x1 must rise and x2 fall at the start. Slowly: the speed at the start is at most
    half of the median over all starts. Little: within a flow time that all starts have in common
    (the median time to the loss level), the state moves at most half as far as the median over all
    starts. Speeds and distances are in the coordinates of the geometry. On the free ratio plane the
    slow regions, below half the median speed, are mapped as well.
    """
    both = (here.rate[:, 0] > 0) & (here.rate[:, 1] < 0)
    evidence = {
        "share_of_starts_where_both_change_slowly": share(
            both & (here.relative.speed <= SLOW_SHARE)
        ),
        "share_of_starts_where_both_change_little_in_the_common_time": share(
            both & (here.relative.moved <= SLOW_SHARE)
        ),
        "share_of_starts_where_x1_rises_and_x2_falls": share(both),
        "median_speed_over_median_speed_everywhere": np.median(here.relative.speed),
        "median_distance_moved_over_median_distance_everywhere": np.median(here.relative.moved),
        **drop_nan(share_of_starts_in_a_slow_region_of_the_census=_in_a_slow_region(here)),
    }
    return verdict_from(evidence, list(evidence)[:2])


@states(
    "Section 3.2, second case",
    "Where both are very large, saddle points are hard to escape.",
    UPPER_RIGHT,
)
def c7(here: Observables) -> Verdict:
    """Flow lines from x1 > 0.8 and x2 > 0.8 that pass a saddle point closely enough to be delayed.

    The gradient vanishes at a saddle point, so that a flow line passes it at very low speed. On the
    way to the loss level, walls included, the speed must therefore fall below a hundredth of the
    median over the starts. Slow flow lines without a saddle point are the subject of C6 and C14. If
    the states are vectors, and not the parameters of a model, the box around all starts is also
    searched for critical points. This search
    covers only the beginning of the way; it is reported but not used for the verdict.
    """
    evidence = {
        "share_of_starts_that_pass_a_point_of_nearly_no_speed": share(
            here.relative.slowest_speed < NEAR_ZERO
        ),
        "smallest_speed_on_the_way_over_median_speed": np.min(here.relative.slowest_speed),
        "smallest_gradient_at_the_starts": np.min(here.field.speed),
        "share_of_starts_that_reach_the_loss_level": share(here.lines.reached),
        "median_part_of_the_time_below_half_the_median_speed": np.median(here.lines.dwell_share),
        **drop_nan(
            saddle_points_in_the_box_around_the_starts=np.max(here.searches.saddles),
            smallest_gradient_in_that_box=np.min(here.searches.smallest_gradient),
        ),
    }
    return verdict_from(evidence, list(evidence)[:1])


@states(
    "Section 3.2, third case",
    "Where x2 is very small, x2 falls rapidly and x1 hardly changes.",
    LOWER,
)
def c8(here: Observables) -> Verdict:
    """Two parts, at starts with x2 < 0.2 and any x1: x2 falls rapidly, and x1 hardly changes.

    Rapidly: x2 falls at no less than twice the median of |x2'| over all starts. Hardly: |x1'| is at
    most a quarter of |x2'| at the start, walls included. The paper speaks both of "the lower part
    of the figure" and of "both responses improbable". The verdict follows the first reading.
    Numbers for the second, in which x1 < 0.2 too, are reported but not used for the verdict.
    """
    corner = here.within(LEFT)
    evidence = {
        "share_of_starts_where_x2_falls_rapidly": share(_falls_rapidly(here)),
        "share_of_starts_where_x1_hardly_changes": share(here.lines.start_rate_ratio <= MINOR),
        "median_rate_of_x2_over_its_median_everywhere": np.median(here.relative.rate[:, 1]),
        "median_rate_of_x1_over_rate_of_x2": np.median(here.lines.start_rate_ratio),
        "share_where_x2_falls_rapidly_with_x1_low_too": share(_falls_rapidly(corner)),
        "share_where_x1_hardly_changes_with_x1_low_too": share(
            corner.lines.start_rate_ratio <= MINOR
        ),
    }
    return verdict_from(evidence, list(evidence)[:2])


def _in_a_slow_region(observables: Observables) -> float:
    """The share of the starts in slow regions; NaN if regions were not mapped."""
    return (
        float("nan") if np.isnan(observables.lateness).all() else share(observables.lateness != 1)
    )


def _falls_rapidly(observables: Observables) -> Bool[np.ndarray, " n"]:
    return (observables.rate[:, 1] < 0) & (observables.relative.rate[:, 1] >= RAPID)


STATEMENTS = (c1, c2, c3, c4, c5, c6, c7, c8)
