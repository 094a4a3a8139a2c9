"""C9 to C17: the two limitations that the paper derives from the field, and further statements."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from flowlab.policies import Autoregressive
from flowlab.study.claims.observables import LEFT, LOWER_LEFT, LOWER_RIGHT, UPPER_RIGHT, Observables
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

__all__ = ["STATEMENTS", "c9", "c10", "c11", "c12", "c13", "c14", "c15", "c16", "c17", "likeness"]

TENDS_TO_ZERO = 0.05  # of its unit of scale 1: what has fallen this far goes to 0
VERY_SMALL = 0.1  # small is half of the median; very small is an order of magnitude
SPREAD = 2.0  # a significant impact: the slow start takes this many times as long as the fast one
KEPT = 0.5  # a significant impact: the states have kept this part of the spread of the starts
TIE = 1e-9  # far above the rounding of a ratio of two rates
HALVED = 0.5  # learnt less: this part of its speed, or less, is left
TAILS = (5.0, 95.0)  # percentiles, so that no single start makes a spread


@states(
    "Section 3.3.1",
    "On the way x2/x1 tends to 0, and then x2 is driven to 0 with hardly a change of x1.",
)
def c9(observables: Observables) -> Verdict:
    """Two parts, at the loss level: x2 is near 0, and x1 hardly changes any more.

    Near 0: at most 0.05. Hardly: |x1'| is at most a quarter of |x2'| at the loss level, because the
    paper speaks of the time when x2/x1 has become small. A start from which the level is not
    reached counts against both parts. Two results are reported but not used for the verdict: that
    x2/x1 becomes small, which the loss level of a single pair implies, and the changes of x1 and x2
    on the whole way.
    """
    change = np.abs(observables.change)
    evidence = {
        "share_of_starts_where_x2_over_x1_is_near_0_at_the_loss_level": share(
            observables.lines.reached
            & (observables.lines.end[:, 1] <= TENDS_TO_ZERO * observables.lines.end[:, 0])
        ),
        "share_of_starts_where_x2_is_near_0_at_the_loss_level": share(
            observables.lines.reached & (observables.lines.end[:, 1] <= TENDS_TO_ZERO)
        ),
        "share_of_starts_where_x1_hardly_changes_at_the_loss_level": share(
            observables.lines.reached & (observables.lines.end_rate_ratio <= MINOR)
        ),
        "median_rate_of_x1_over_rate_of_x2_at_the_loss_level": np.median(
            observables.lines.end_rate_ratio
        ),
        "median_change_of_x1_over_change_of_x2_on_the_way": np.median(change[:, 0] / change[:, 1]),
        "median_x1_at_the_loss_level": np.median(observables.lines.end[:, 0]),
    }
    return verdict_from(evidence, list(evidence)[1:3])


@states(
    "Section 3.3.1",
    "If the two responses are nearly the same text, their gradients counteract each other and "
    "the chosen one is learnt less.",
)
def c10(observables: Observables) -> Verdict:
    """Two parts, from the kernel at every start: the gradients counteract, and learning is halved.

    A chosen response that is trained together with its rejected one moves at u_w' = −L'(h)(k_ww −
    k_wl); alone it would move at −L'(h) k_ww. In the pair a fraction 1 − k_wl/k_ww of its speed
    therefore remains. The gradients counteract if k_wl > 0. Learning is halved if at most half of
    the speed remains. With several pairs the kernel is that of the first pair. If k_wl = 0 at every
    start, the geometry cannot represent similar texts, and the statement does not apply. The
    coupled kernels assume a coupling, so that the verdict only repeats the assumption. In a
    softmax, k_wl comes from what all responses share. The effect of similar texts is measured on
    sequences of tokens, in the table below the claims.
    """
    left = 1 - observables.coupling
    evidence = {
        "share_of_starts_where_the_gradients_counteract": share(observables.field.kernel[:, 1] > 0),
        "share_of_starts_where_the_chosen_is_learnt_at_most_half_as_fast": share(left <= HALVED),
        "median_of_k_wl_over_k_ww": np.median(observables.coupling),
        "largest_k_wl_over_k_ww": np.max(observables.coupling),
        "median_part_of_the_speed_that_is_left_to_the_chosen": np.median(left),
    }
    if not np.any(observables.coupling):
        threshold = {"quantity": "largest_k_wl_over_k_ww", "relation": "!=", "value": 0.0}
        return Verdict("not_applicable", evidence, threshold)
    return verdict_from(evidence, list(evidence)[:2])


def likeness(edits: Sequence[int] = (1, 2, 4, 8, 12)) -> list[tuple[int, float]]:
    """The ratio k_wl/k_ww for sequences of twelve tokens, by the number of tokens that differ.

    Chosen and rejected sequence differ in their last tokens. The policy is
    `Autoregressive.with_edits` at its reference, a uniform table with a row for each prefix. All
    pairs are in one policy, whose kernel is compiled once.

    Args:
        edits: The numbers of tokens that differ.
    """
    made = [Autoregressive.with_edits(number) for number in edits]
    responses = [tokens for policy in made for tokens in policy.responses]
    places = [(2 * i, 2 * i + 1) for i in range(len(made))]
    policy = Autoregressive(responses, made[0].vocabulary, places)
    with jax.enable_x64(True):
        kernel = np.asarray(jax.jit(lambda state: policy.kernel(state))(policy.reference_state))
    own = [kernel[i, :, i, :] for i in range(len(made))]
    return [(n, float(k[0, 1] / k[0, 0])) for n, k in zip(edits, own, strict=True)]


@states(
    "Section 3.3.2",
    "From a start at the lower right, the rejected response loses its probability rapidly.",
)
def c11(observables: Observables) -> Verdict:
    """Two parts, at starts with x1 > 0.8 and x2 < 0.2: x2 falls rapidly, absolutely and relatively.

    Absolutely: x2 falls at no less than twice the median of |x2'| over all starts. Relatively:
    |x2'|/x2 is no less than twice its median. The time to the loss level is reported but not used
    for the verdict, since these starts are close to the level in every geometry.
    """
    here = observables.within(LOWER_RIGHT)
    if not here.count:
        return not_applicable()
    falls = here.rate[:, 1] < 0
    for_its_size = _relative_to_size(observables)[LOWER_RIGHT.contains(observables.start)]
    evidence = {
        "share_of_starts_where_x2_falls_rapidly": share(
            falls & (here.relative.rate[:, 1] >= RAPID)
        ),
        "share_of_starts_where_x2_falls_rapidly_for_its_size": share(
            falls & (for_its_size >= RAPID)
        ),
        "median_rate_of_x2_over_its_median_everywhere": np.median(here.relative.rate[:, 1]),
        "median_rate_of_log_x2_over_its_median_everywhere": np.median(for_its_size),
        "median_arrival_over_median_arrival_everywhere": np.median(here.relative.arrival),
    }
    return verdict_from(evidence, list(evidence)[:2])


@states(
    "Section 3.3.2",
    "From a start on the left, the chosen response gains probability slowly, because the "
    "gradient favours x2.",
    LEFT,
)
def c12(here: Observables) -> Verdict:
    """At starts with x1 < 0.2: x1 does not rise swiftly, and the reason is that x2 is favoured.

    Not swiftly: x1 falls, or rises at no more than the median of |x1'| over all starts. Favoured:
    |x2'| > |x1'| at the start, walls included. The paper gives the second as the reason for the
    first, so that a start counts only if both are true. Where the regions of C5 and C12 overlap,
    the two statements contradict each other.
    """
    slow = (here.rate[:, 0] < 0) | (here.relative.rate[:, 0] <= 1)
    favoured = here.lines.start_rate_ratio < 1
    evidence = {
        "share_of_starts_where_x1_is_not_swift_and_x2_is_favoured": share(slow & favoured),
        "share_of_starts_where_x1_does_not_rise_swiftly": share(slow),
        "share_of_starts_where_x2_is_favoured": share(favoured),
        "median_rate_of_x1_over_its_median_everywhere": np.median(here.relative.rate[:, 0]),
        "median_rate_of_x1_over_rate_of_x2": np.median(here.lines.start_rate_ratio),
    }
    return verdict_from(evidence, list(evidence)[:1])


@states(
    "Section 3.3.2",
    "From a start at the lower left, the direction does not give the chosen response priority.",
    LOWER_LEFT,
)
def c13(here: Observables) -> Verdict:
    """At starts with x1 < 0.2 and x2 < 0.2: x1 does not change faster than x2, |x1'| ≤ |x2'|.

    A start at which both rates are equal, up to rounding, counts half; these are the starts on the
    diagonal of the plane. The paper's words are "does not entirely prioritise". A weaker reading,
    that x2 changes at more than a quarter of the rate of x1, is reported but not used for the
    verdict.
    """
    evidence = {
        "share_of_starts_where_x1_is_not_the_faster": share(here.lines.start_rate_ratio < 1 - TIE)
        + share(np.abs(here.lines.start_rate_ratio - 1) <= TIE) / 2,
        "share_of_starts_where_x2_moves_at_more_than_a_quarter_of_the_rate_of_x1": share(
            here.lines.start_rate_ratio < 1 / MINOR
        ),
        "median_rate_of_x1_over_rate_of_x2": np.median(here.lines.start_rate_ratio),
    }
    return verdict_from(evidence, list(evidence)[:1])


@states(
    "Section 3.3.2",
    "From a start at the upper right, gradients are very small and convergence is sluggish.",
    UPPER_RIGHT,
)
def c14(here: Observables) -> Verdict:
    """Two parts, at starts with x1 > 0.8 and x2 > 0.8: very small gradients, and slow convergence.

    Very small: the speed at the start, in the coordinates of the geometry, is at most a tenth of
    the median over all starts. Slow: the loss level is reached no earlier than after twice the
    median time. On the free ratio plane the slow regions are mapped too, with the delay of their
    starts compared with the neighbouring starts.
    """
    evidence = {
        "share_of_starts_with_very_small_gradients": share(here.relative.speed <= VERY_SMALL),
        "share_of_starts_that_arrive_late": share(here.relative.arrival >= RAPID),
        "median_speed_over_median_speed_everywhere": np.median(here.relative.speed),
        "median_arrival_over_median_arrival_everywhere": np.median(here.relative.arrival),
        **drop_nan(
            median_arrival_of_the_slow_region_over_that_around_it=np.median(here.lateness),
        ),
    }
    return verdict_from(evidence, list(evidence)[:2])


@states("Section 3.3.2", "From a start at the upper right, local minima are hard to escape.")
def c15(observables: Observables) -> Verdict:
    """Flow lines from x1 > 0.8 and x2 > 0.8 that a local minimum keeps from the loss level.

    A local minimum above the loss level keeps a flow line from reaching it. If a line only passes
    close to a minimum, its speed is very low there. A start therefore counts if the level is not
    reached from it, or if the speed falls below a hundredth of the median somewhere on the way.
    """
    here = observables.within(UPPER_RIGHT)
    if not here.count:
        return not_applicable()
    caught = ~here.lines.reached | (here.relative.slowest_speed < NEAR_ZERO)
    evidence = {
        "share_of_starts_that_are_caught": share(caught),
        "share_of_starts_that_reach_the_loss_level": share(here.lines.reached),
        "smallest_speed_on_the_way_over_median_speed": np.min(here.relative.slowest_speed),
        "smallest_gradient_at_any_start": np.min(observables.field.speed),
        **drop_nan(
            minima_above_the_loss_level_in_the_box_around_the_starts=np.max(
                observables.searches.traps
            )
        ),
    }
    return verdict_from(evidence, list(evidence)[:1])


@states("Section 3.3.2", "Where a run starts matters much for its final result.")
def c16(observables: Observables) -> Verdict:
    """Two parts, for each β: the time to a given loss, and the state at a given flow time.

    The shares are shares of the values of β, not of the starts. Time: among the starts that reach
    the loss level, the 95th percentile of the times is at least twice the 5th. State: at the median
    of these times, the range of the chosen response from its 5th to its 95th percentile is at least
    half of the range at the starts. The chosen response is x1 if a state is (x1, x2), and u_w
    elsewhere.

    For the free ratio plane the sensitivity of the time to the start is reported too: the norm of
    the two relative derivatives (elasticities), whose sum is 2 on this plane. In one sense the
    start does not matter if the level is reached from all starts; the share of the starts that
    reach it is therefore reported as well.
    """
    parts = observables.by_beta()
    arrivals = np.array([_lateness(part.lines.arrival[part.lines.reached]) for part in parts])
    kept = np.array([_span(part.own[:, 1]) / _span(part.own[:, 0]) for part in parts])
    evidence = {
        "share_of_betas_where_late_arrivals_take_twice_the_time_of_early_ones": share(
            arrivals >= SPREAD
        ),
        "share_of_betas_where_states_keep_half_the_spread_of_the_starts": share(kept >= KEPT),
        "smallest_95th_over_5th_percentile_of_arrival": np.min(arrivals),
        "smallest_spread_at_the_common_time_over_spread_of_the_starts": np.min(kept),
        **_losses(observables),
        **drop_nan(
            relative_change_of_arrival_per_relative_change_of_the_start=np.median(
                observables.searches.elasticity
            ),
        ),
        "spread_of_x1_at_the_loss_level": _span(observables.lines.end[:, 0]),
        "share_of_starts_that_reach_the_loss_level": share(observables.lines.reached),
    }
    return verdict_from(evidence, list(evidence)[:2])


@states(
    "Not in the paper: a derivation for parametrised policies",
    "For every parametrised policy the gradient of the loss is minus the mean of "
    "β σ(-z) (∇π_w/π_w - ∇π_l/π_l).",
)
def c17(observables: Observables) -> Verdict:
    """The gradient of the loss by automatic differentiation, compared with the identity.

    In the identity, the gradients of the probabilities are gradients of exp(log-probability), also
    by automatic differentiation, and the mean is over pairs. At every start the relative difference
    must be at most 1e-10.
    """
    evidence = {
        "share_of_starts_where_the_identity_agrees": share(
            observables.field.identity_error <= ROUNDING
        ),
        "largest_relative_deviation": np.max(observables.field.identity_error),
    }
    return verdict_from(evidence, ["share_of_starts_where_the_identity_agrees"])


def _relative_to_size(observables: Observables) -> Float[np.ndarray, " n"]:
    """|x2'|/x2 at the start, divided by its median over the starts with the same β."""
    rates = np.abs(observables.rate[:, 1]) / observables.start[:, 1]
    medians = {
        beta: np.median(rates[observables.beta == beta]) for beta in np.unique(observables.beta)
    }
    return rates / np.array([medians[beta] for beta in observables.beta])


def _losses(observables: Observables) -> dict[str, float]:
    chosen, rejected = observables.lines.later.T
    low, high = np.percentile(np.log1p((rejected / chosen) ** observables.beta), TAILS)
    return {
        "5th_percentile_of_the_loss_at_the_common_time": float(low),
        "95th_percentile_of_the_loss_at_the_common_time": float(high),
    }


def _span(values: Float[np.ndarray, " n"]) -> float:
    low, high = np.percentile(values, TAILS)
    return float(high - low)


def _lateness(arrival: Float[np.ndarray, " n"]) -> float:
    """The ratio of late to early arrivals; NaN if no start arrives."""
    if not arrival.size:
        return float("nan")
    early, late = np.percentile(arrival, TAILS)
    return float(late / early)


STATEMENTS = (c9, c10, c11, c12, c13, c14, c15, c16, c17)
