"""Targets: their signals, levels and clocks, and bad input."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from refusals import assert_refused

import flowlab as fl
from flowlab import losses, until
from flowlab.domains import AbstractDomain, Quadrant, WholeSpace
from flowlab.flow import AbstractFlow
from flowlab.policies import AbstractPolicy, WallRule

BOWL = fl.Flow(lambda y: 0.5 * (y**2).sum())
PLANE = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
LINES = fl.preference_flow(fl.DPO(0.3), fl.LogRatioPlane())
HINGED = fl.preference_flow(losses.Hinge(0.3), fl.LogRatioPlane())
STATE = jnp.asarray([3.0, 4.0])
START = jnp.asarray(0.0)


class Margins(AbstractPolicy):
    """A policy whose state is the margins of its pairs."""

    domain: AbstractDomain = WholeSpace()
    wall: WallRule = eqx.field(static=True, default="stop")

    def pairs(self, state: Array) -> fl.Pair:
        return fl.Pair(state, *([jnp.zeros_like(state)] * 3), *([jnp.ones_like(state)] * 2))


def test_the_signal_of_a_loss_is_what_is_left_to_each_level():
    target = until.loss_below(20.0, 12.5, 1.0)
    np.testing.assert_array_equal(target.signal(BOWL, STATE, START), [-7.5, 0.0, 11.5])


def test_the_signal_of_a_speed_is_what_is_left_to_it():
    np.testing.assert_array_equal(until.speed_below(2.0).signal(BOWL, STATE, START), [3.0])
    np.testing.assert_array_equal(until.speed_below(5.0).signal(BOWL, STATE, START), [0.0])


def test_the_signal_of_a_time_is_what_is_left_to_it():
    for at, left in ((0.0, 2.0), (2.0, 0.0), (3.0, -1.0)):
        np.testing.assert_array_equal(until.time(2.0).signal(BOWL, STATE, jnp.asarray(at)), [left])


def test_the_signal_of_a_margin_is_what_is_missing_of_the_mean_or_of_the_smallest():
    flow = fl.preference_flow(fl.DPO(0.3), Margins())
    margins = jnp.asarray([1.0, 2.0, 6.0])
    np.testing.assert_array_equal(until.margin_above(5.0).signal(flow, margins, START), [2.0])
    smallest = until.margin_above(5.0, of="min")
    np.testing.assert_array_equal(smallest.signal(flow, margins, START), [4.0])
    np.testing.assert_array_equal(until.margin_above(-9.0).signal(LINES, STATE, START), [-8.0])


def test_the_boundary_lies_ahead_of_every_state():
    assert until.boundary().signal(PLANE, STATE, START) == 1


@pytest.mark.parametrize(
    ("target", "flow"),
    [
        (until.loss_below(0.5, 0.1), PLANE),
        (until.speed_below(0.5), PLANE),
        (until.margin_above(0.5), PLANE),
        (until.time(0.5), PLANE),
        (until.boundary(), PLANE),
    ],
    ids=["loss", "speed", "margin", "time", "boundary"],
)
def test_signals_have_the_precision_of_the_state(target, flow):
    signal = target.signal(flow, STATE.astype(jnp.float32), START.astype(jnp.float32))
    assert signal.dtype == jnp.float32
    assert signal.shape == target.levels.shape


class LooksAtLevels(fl.DPO):
    """DPO that looks at the numbers to tell whether they have margins."""

    def margin_at(self, level: Any) -> Any:
        return None if np.max(level) > 5 else super().margin_at(level)


CLOCKS = [
    (until.loss_below(0.5, 0.1), PLANE, ("margin", "loss", "arc_length", "time")),
    (until.loss_below(0.5, 0.1), BOWL, ("loss", "arc_length", "time")),
    (until.loss_below(0.5, 0.0), PLANE, ("arc_length", "loss", "time")),
    (until.loss_below(-2.0), BOWL, ("arc_length", "loss", "time")),
    (
        until.loss_below(0.5),
        fl.preference_flow(LooksAtLevels(0.3), fl.RatioPlane()),
        ("loss", "arc_length", "time"),
    ),
    (until.margin_above(1.0), LINES, ("margin", "arc_length", "time")),
    (until.speed_below(1.0), BOWL, ("arc_length", "time")),
    (until.time(1.0), BOWL, ("time", "arc_length")),
    (until.time(1.0), PLANE, ("arc_length", "time")),
    (until.boundary(), PLANE, ("arc_length",)),
]


@pytest.mark.parametrize(("target", "flow", "clocks"), CLOCKS)
def test_the_first_clock_is_the_one_that_suits_the_target(target, flow, clocks):
    assert target.clocks(flow) == clocks


@pytest.mark.parametrize("target", [until.loss_below, until.margin_above, until.speed_below])
def test_a_level_is_met_on_the_way_down_and_never_given_up_unasked(target):
    made = target(1.0)
    assert made.of_state and made.moments is None
    assert made.deadline == (np.inf, until.Outcome.time_limit)


def test_a_time_and_the_boundary_are_no_levels_of_a_state():
    assert not until.time(1.5).of_state and not until.boundary().of_state
    assert until.time(1.5).moments == [1.5]
    assert until.time(1.5).deadline == (1.5, until.Outcome.reached)
    assert until.boundary().by_absorption


class Within(until.AbstractTarget):
    """A distance from the origin."""

    def signal(self, flow: AbstractFlow, state: Array, at: Array) -> Array:
        return jnp.sqrt(jnp.sum(state**2)) - jnp.asarray(self.levels, state.dtype)

    def clocks(self, flow: AbstractFlow) -> tuple[until.Clock, ...]:
        return ("arc_length", "time")


def test_a_target_of_ones_own_is_one_class():
    target = Within(np.asarray([2.0, 1.0]), np.asarray(np.inf))
    line = fl.flow_line(BOWL, np.asarray([3.0, 4.0]), until=target)
    np.testing.assert_allclose(line.level_times, np.log([5 / 2, 5 / 1]), rtol=1e-5)


@pytest.mark.parametrize(
    "target",
    [
        until.loss_below(1.0, time_limit=2.0),
        until.margin_above(1.0, time_limit=2.0),
        until.speed_below(1.0, time_limit=2.0),
        until.boundary(time_limit=2.0),
    ],
)
def test_a_time_limit_is_kept(target):
    assert target.time_limit == 2


FINITE = "must be a finite number, but is"
MISUSES: list[tuple[Callable[[], Any], str]] = [
    (lambda: until.loss_below(), f"`levels` {FINITE} []."),
    (lambda: until.loss_below(np.nan), f"`levels` {FINITE} nan."),
    (lambda: until.loss_below(0.5, np.inf), f"`levels` {FINITE} [0.5, inf]."),
    (lambda: until.loss_below("low"), f"`levels` {FINITE} 'low'."),  # pyright: ignore
    (lambda: until.loss_below([0.5, 0.1]), f"`levels` {FINITE} [0.5, 0.1]."),  # pyright: ignore
    (
        lambda: until.loss_below(0.1, 0.5),
        "`levels` must be strictly decreasing, but is [0.1, 0.5].",
    ),
    (
        lambda: until.loss_below(0.5, 0.1, 0.1),
        "`levels` must be strictly decreasing, but is [0.5, 0.1, 0.1].",
    ),
    (
        lambda: until.loss_below(0.3, 0.0).check(PLANE),
        "`until` must hold losses above 0, the lower bound of DPO(beta=0.3), which is not reached "
        "in finite time, but is loss_below(0).",
    ),
    (
        lambda: until.loss_below(-0.5).check(HINGED),
        "`until` must hold losses of at least 0, the lower bound of Hinge(beta=0.3), "
        "but is loss_below(-0.5).",
    ),
    (lambda: until.margin_above(np.inf), f"`margin` {FINITE} inf."),
    (
        lambda: until.margin_above(1.0, of="median"),  # pyright: ignore
        '`of` must be "mean" or "min", but is \'median\'; did you mean mean or min?',
    ),
    (lambda: until.speed_below(0.0), "`speed` must be positive and finite, but is 0.0."),
    (lambda: until.speed_below(-1.0), "`speed` must be positive and finite, but is -1.0."),
    (lambda: until.speed_below(np.nan), "`speed` must be positive and finite, but is nan."),
    (lambda: until.time(0.0), "`duration` must be positive and finite, but is 0.0."),
    (lambda: until.time(-2.0), "`duration` must be positive and finite, but is -2.0."),
    (lambda: until.time(np.inf), "`duration` must be positive and finite, but is inf."),
    (lambda: until.boundary(time_limit=0.0), "`time_limit` must be positive, but is 0.0."),
    (
        lambda: until.loss_below(1.0, time_limit=np.nan),
        "`time_limit` must be positive, but is nan.",
    ),
    (
        lambda: until.margin_above(1.0).signal(BOWL, STATE, START),
        "`until` must not be a margin for a flow without pairs, but is margin_above(...); "
        "build the flow with preference_flow.",
    ),
    (
        lambda: until.boundary().signal(LINES, STATE, START),
        "`until` must not be boundary() on a domain whose boundary cannot be reached, "
        "but the domain is WholeSpace().",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), MISUSES, ids=[s[:40] for _, s in MISUSES])
def test_misuse_is_a_sentence_that_names_the_argument(call, sentence):
    assert_refused(call, f"Argument {sentence}")


BOUNDS = {
    name: bound
    for name, loss in losses.CATALOGUE.items()
    if (bound := loss.lower_bound()) is not None
}


@pytest.mark.parametrize("name", BOUNDS)
def test_no_loss_comes_below_its_bound_and_all_but_one_come_close(name):
    loss, bound = losses.CATALOGUE[name], BOUNDS[name]
    small = np.logspace(-4, 0, 9)
    ratios = np.concatenate([np.linspace(-1000, 1000, 801), small, -small])
    chosen, rejected = (axis.ravel() for axis in np.meshgrid(ratios, ratios))
    if loss.of_batch:  # whose numbers belong to ranks
        chosen, rejected = np.sort(chosen), np.zeros_like(chosen)
    zero, one = jnp.zeros_like(chosen), jnp.ones_like(chosen)
    pairs = fl.Pair(jnp.asarray(chosen), jnp.asarray(rejected), zero, zero, one, one, zero)
    values = np.asarray(loss(pairs))
    assert np.min(values) >= bound.value * (1 - 1e-12)
    # What calibrated DPO comes down to has no closed form.
    assert name == "cal_dpo" or np.min(values) <= bound.value + 0.01


@pytest.mark.parametrize("name", BOUNDS)
def test_levels_at_a_bound_are_reached_by_nothing_but_a_hinge(name):
    flow, bound = fl.preference_flow(losses.CATALOGUE[name], Margins()), BOUNDS[name]
    assert bound.reached == (name == "hinge")
    until.loss_below(bound.value + 1e-3).check(flow)
    for level in (bound.value - 1e-3, bound.value):
        if level < bound.value or not bound.reached:
            with pytest.raises(
                ValueError, match="^Argument `until` must hold losses (above|of at least)"
            ):
                until.loss_below(level).check(flow)
    if bound.reached:
        until.loss_below(bound.value).check(flow)


def test_bounds_are_those_of_the_hyper_parameters():
    assert losses.CPO().lower_bound() is None
    assert losses.CPO(nll_weight=0).lower_bound() == (0.0, False)
    assert losses.CPOHinge(nll_weight=0).lower_bound() == (0.0, True)
    assert losses.RobustDPO(label_smoothing=0).lower_bound() == (0.0, False)
    assert losses.RobustDPO().lower_bound() is None
    half = losses.ConservativeDPO(label_smoothing=0.25).lower_bound()
    assert half is not None and half.value == pytest.approx(np.log(4) - 0.75 * np.log(3))
    summed = losses.WeightedSum((losses.NCA(), losses.DPO(), losses.SFT()), (2.0, 1.0, 0.0))
    bound = summed.lower_bound()
    assert bound is not None and bound.value == pytest.approx(3 * np.log(3) - 2 * np.log(2))
    for weights in ((1.0, -1.0, 0.0), (1.0, 1.0, 1.0)):
        assert losses.WeightedSum(summed.losses, weights).lower_bound() is None


@pytest.mark.parametrize("run", [fl.flow_line, fl.sweep], ids=["flow_line", "sweep"])
def test_a_level_that_cannot_be_reached_is_refused_before_anything_is_solved(run):
    start = np.array([0.3, 0.6]) if run is fl.flow_line else np.array([[0.3, 0.6]])
    with pytest.raises(ValueError, match="above 0, the lower bound of DPO"):
        run(PLANE, start, until=until.loss_below(0.5, 0.0))
    smoothed = fl.preference_flow(losses.ConservativeDPO(0.3), fl.RatioPlane())
    with pytest.raises(ValueError, match=r"above 0\.610864, the lower bound of ConservativeDPO"):
        levels = {"label_smoothing": [0.1, 0.3]}
        fl.sweep(smoothed, np.ones((1, 2)), until=until.loss_below(0.4), over=levels)


def test_a_hinge_comes_down_to_zero_in_finite_time():
    # Both log-ratios move at speed β: h = 2βt, and the loss is 0 from its kink, h = 1/β, on.
    line = fl.flow_line(HINGED, np.zeros(2), until=until.loss_below(0.0))
    assert line.time == pytest.approx(1 / (2 * 0.3**2), rel=1e-3)


def test_a_flow_without_pairs_has_a_boundary_all_the_same():
    flow = fl.Flow(lambda y: y.sum(), domain=Quadrant())
    assert until.boundary().signal(flow, STATE, START) == 1
