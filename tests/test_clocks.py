"""Clocks: pace, span and goal against flows whose lines are known."""

from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
import pytest

import flowlab as fl
from flowlab import until
from flowlab.solve.clocks import AbstractLevelClock, Hand, Moving, clock_named

# y' = −y, so that L = |y|²/2 falls as e^(−2t).
BOWL = fl.Flow(lambda y: 0.5 * (y**2).sum())
STATE = jnp.asarray([3.0, 4.0])
LOSS = 12.5
# Its margin h = u1 − u2 rises at 2β·σ(−βh).
BETA = 0.3
LINES = fl.preference_flow(fl.DPO(BETA), fl.LogRatioPlane())
PLACE = jnp.asarray([0.2, -0.3])


def hand_of(clock: Any, flow: Any, target: Any, state: Any) -> tuple[Hand, Any]:
    """The hand of a clock at a start, and the readings at which it ends."""
    began = clock.reading(flow, state, flow.potential(state))
    levels = clock.levels(flow, target)
    return Hand(began, clock.span(levels, began), jnp.asarray(0.0)), levels


def rates(clock: Any, flow: Any, hand: Hand, state: Any) -> Any:
    gradient, velocity = flow.gradient(state), flow.velocity(state)
    return clock.rates(flow, hand, Moving(state, gradient, velocity, velocity))


@pytest.mark.parametrize(
    ("name", "target", "span", "pace"),
    [
        ("time", until.time(2.0), 2.0, 2.0),
        ("time", until.loss_below(0.1), 1.0, 1.0),
        ("arc_length", until.loss_below(0.1), 1.0, 1 / np.sqrt(26)),
        ("loss", until.loss_below(5.0, 0.5), np.log(25), np.log(25) / 2),
        ("loss", until.loss_below(-1.5), 14.0, 14.0 / 25),
    ],
)
def test_a_clock_goes_at_the_pace_of_its_reading(name, target, span, pace):
    clock = clock_named(name).towards(target)
    hand, _ = hand_of(clock, BOWL, target, STATE)
    assert hand.span == pytest.approx(span, rel=1e-12)
    found, change = rates(clock, BOWL, hand, STATE)
    assert found == pytest.approx(pace, rel=1e-12)
    np.testing.assert_allclose(change, -pace * STATE, rtol=1e-12)


def test_the_margin_clock_goes_at_the_pace_of_the_margin():
    target = until.margin_above(1.5)
    clock = clock_named("margin").towards(target)
    hand, levels = hand_of(clock, LINES, target, PLACE)
    assert hand.span == pytest.approx(1.5 - 0.5)
    assert clock.goal(hand, levels, jnp.asarray(0)) == 1
    found, _ = rates(clock, LINES, hand, PLACE)
    speed = 2 * BETA / (1 + np.exp(BETA * 0.5))
    assert found == pytest.approx(1 / speed, rel=1e-12)


def test_a_clock_says_where_each_level_lies_on_its_way():
    target = until.loss_below(5.0, 0.5)
    clock = clock_named("loss").towards(target)
    hand, levels = hand_of(clock, BOWL, target, STATE)
    goals = [clock.goal(hand, levels, jnp.asarray(i)) for i in range(2)]
    np.testing.assert_allclose(goals, [np.log(LOSS / 5) / np.log(25), 1], rtol=1e-12)


def test_a_level_is_met_within_ten_tolerances_of_it():
    clock = clock_named("loss").towards(until.loss_below(0.5))
    assert isinstance(clock, AbstractLevelClock)
    hand = Hand(jnp.asarray(LOSS), jnp.asarray(np.log(25)), jnp.asarray(1.0))
    level, rtol = jnp.asarray(0.5), jnp.asarray(1e-6)
    for reading, there, before in (
        (0.5, True, False),
        (0.5 + 4e-6, True, False),
        (0.5 - 4e-6, True, False),
        (0.5 + 6e-6, False, True),
        (0.5 - 6e-6, False, False),
    ):
        progress, *found = clock.arrival(hand, jnp.asarray(reading), level, rtol)
        assert tuple(map(bool, found)) == (there, before)
        assert progress == pytest.approx(np.log(LOSS / reading) / np.log(25), rel=1e-12)


def test_every_clock_that_users_can_name_is_one():
    for name in get_args(until.Clock):
        assert clock_named(name).name == name
