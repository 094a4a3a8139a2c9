"""Cases at the edges: walls at the start, corners, ties of events, lanes that leave their block."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned

import flowlab as fl
from flowlab import exact, measures, starts, until
from flowlab.domains import Box, Quadrant, Simplex
from flowlab.losses import SFT, Hinge
from flowlab.solve import compiled
from flowlab.until import Outcome

FLOW = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
SQUARE = starts.uniform(640, (0.1, 0.1), (1.0, 1.0), seed=4)


quickly = partial(compiled, optimise=False)  # as `jax.jit`, in half of its time


def change(function, place, tangent):
    """The derivative of a function along a tangent."""
    return quickly(lambda *at: jax.jvp(function, at[:1], at[1:])[1])(place, tangent)


def outward(y):
    return -y[0] - y[1]


@pytest.mark.exhaustive
def test_lanes_evicted_from_a_later_pass_are_finished_too():
    runs = fl.sweep(FLOW, SQUARE, until=until.time(20.0), clock="time", block_size=16)
    assert set(runs.counts()) == {"at_wall"}
    wanted = exact.ratio_plane_time(SQUARE, 0.3, ratio=0.0)
    np.testing.assert_allclose(runs.end_time, wanted, rtol=1e-5)


@pytest.mark.exhaustive
def test_lanes_that_never_arrive_do_not_use_up_the_steps_of_those_that_do():
    flow = fl.Flow(lambda y: (y[0] ** 2 - 1) ** 2 + 0.2 * y[0] + 2 + 0.5 * y[1] ** 2)
    points = starts.uniform(256, (-2.0, -2.0), (2.0, 2.0), seed=0)
    runs = fl.sweep(flow, points, until=until.loss_below(1.9))
    safe = fl.sweep(flow, points, until=until.loss_below(1.9), clock="arc_length")
    assert np.array_equal(runs.outcome, safe.outcome)
    assert runs.counts()["reached"] > 100
    assert runs.counts()["at_critical_point"] > 100
    np.testing.assert_allclose(runs.time, safe.time, rtol=1e-5)


@pytest.mark.exhaustive
def test_a_start_on_a_wall_that_stops_is_stopped_at_once():
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Box(1, 1)))
    runs = fl.sweep(flow, np.array([[1.0, 0.8], [0.5, 0.5]]), until=until.loss_below(0.1))
    assert runs.outcome[0] == Outcome.at_wall
    assert runs.end_time[0] == 0
    np.testing.assert_allclose(runs.end[0], [1.0, 0.8], rtol=1e-14)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("start", "time"), [((0.5, 0.5), 0.5), ((0.3, 0.3), 0.7), ((1, 1), 0.0)])
def test_a_corner_met_at_once_ends_the_line(start, time):
    flow = fl.Flow(outward, domain=Box(1, 1), wall="slide")
    runs = fl.sweep(flow, np.array([start], float), until=until.loss_below(-5.0))
    assert runs.outcome[0] == Outcome.at_wall
    assert runs.end_time[0] == pytest.approx(time, abs=1e-5)
    np.testing.assert_allclose(runs.end[0], [1, 1], rtol=1e-6)


@pytest.mark.exhaustive
def test_starts_all_along_the_wall_of_the_simplex_slide_from_there():
    first = np.linspace(0.01, 0.99, 99)
    points = np.stack([first, 1 - first], axis=1)
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Simplex(), wall="slide"))
    runs = fl.sweep(flow, points, until=until.loss_below(0.1), rtol=1e-8)
    wanted = exact.simplex_time(points, 0.3, level=0.1).total
    np.testing.assert_allclose(runs.time, wanted, rtol=1e-6)


def test_a_line_slides_into_a_corner_and_ends_there():
    flow = fl.Flow(outward, domain=Box(1, 1), wall="slide")
    runs = fl.sweep(flow, np.array([[0.5, 0.2]]), until=until.loss_below(-5.0))
    assert runs.outcome[0] == Outcome.at_wall
    assert runs.end_time[0] == pytest.approx(0.8, rel=1e-5)


def test_a_line_slides_along_a_wall_in_the_metric_of_its_flow():
    metric = np.array([[2.0, 1.0], [1.0, 2.0]])
    flow = fl.Flow(
        lambda y: -y[0] - 0.2 * y[1], metric=lambda y, p: metric @ p, domain=Box(), wall="slide"
    )
    line = fl.flow_line(flow, np.array([0.5, 0.2]), until=until.time(1.0), rtol=1e-9)
    # The velocity is (2.2, 1.4) up to the wall. There M n = (2, 1) times 2.2/2 is taken from it.
    met = 0.5 / 2.2
    wanted = [1.0, 0.2 + 1.4 * met + 0.3 * (1 - met)]
    np.testing.assert_allclose(line.end, wanted, rtol=1e-8)


@pytest.mark.exhaustive
def test_a_line_leaves_one_wall_for_another_where_the_flow_turns():
    def bent(y):
        return -y[0] + 2 * (y[1] - 0.3) ** 2

    flow = fl.Flow(bent, domain=Box(1, 1), wall="slide")
    runs = fl.sweep(flow, np.array([[0.5, 1.0]]), until=until.time(30.0))
    np.testing.assert_allclose(runs.end[0], [1.0, 0.3], atol=1e-5)


@pytest.mark.exhaustive
def test_a_state_is_saved_at_the_time_of_the_target_too():
    times = np.linspace(0.05, 0.2, 4)
    runs = fl.sweep(FLOW, SQUARE[200:300], until=until.time(0.2), save_at=times)
    assert runs.saved is not None
    alive = runs.outcome == Outcome.reached
    assert np.mean(alive) > 0.5
    np.testing.assert_allclose(runs.saved[alive, -1], runs.end[alive], rtol=1e-9)


def test_very_many_saves_do_not_spoil_the_step():
    flow = fl.preference_flow(fl.DPO(0.5), fl.LogRatioPlane())
    times = np.linspace(0, 1, 401)[1:]
    runs = fl.sweep(flow, np.array([[0.3, 0.1]]), until=until.time(1.0), save_at=times)
    assert runs.outcome[0] == Outcome.reached
    assert runs.saved is not None
    wanted = exact.kernel_state(times, np.array([0.3, 0.1]), 0.5, np.eye(2))
    np.testing.assert_allclose(runs.saved[0], wanted, rtol=1e-5)


@pytest.mark.exhaustive
def test_a_line_without_steps_knows_its_start():
    line = fl.flow_line(FLOW, np.array([2.0, 1e-9]), until=until.loss_below(0.1))
    np.testing.assert_allclose(line.at(0.0), [2.0, 1e-9])


@pytest.mark.parametrize("clock", thinned(["loss", "arc_length"], ()))
def test_derivatives_of_all_levels_pass_through_a_wall(clock):
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Box(1, 1), wall="slide"))
    start = np.array([0.9, 0.8])

    def times(x):
        target = until.loss_below(0.4, 0.1)
        return fl.flow_line(flow, x, until=target, rtol=1e-9, clock=clock).level_times

    found = change(times, jnp.asarray(start), jnp.asarray([0.0, 1.0]))
    step = np.array([0.0, 1e-5])
    for index, level in enumerate((0.4, 0.1)):
        after, before = (
            exact.box_time(start + sign * step, 0.3, wall=1.0, level=level).total
            for sign in (1, -1)
        )
        assert found[index] == pytest.approx((after - before) / 2e-5, rel=1e-5)


@pytest.mark.exhaustive
def test_the_derivative_of_a_state_at_a_time_passes_through_a_wall_in_the_time_clock():
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Box(1, 1), wall="slide"))

    def end(second):
        start = jnp.stack([jnp.asarray(0.9), second])
        return fl.flow_line(flow, start, until=until.time(1.5), rtol=1e-10, clock="time").end[1]

    found = change(end, jnp.asarray(0.8), jnp.asarray(1.0))
    quick = quickly(end)
    ends = [float(quick(jnp.asarray(0.8 + sign * 1e-5))) for sign in (1, -1)]
    assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


@pytest.mark.exhaustive
def test_slow_decay_towards_an_axis_is_not_taken_for_arrival():
    flow = fl.Flow(lambda y: 0.5 * (y**2).sum(), domain=Quadrant())
    runs = fl.sweep(flow, np.array([[0.5, 0.7]]), until=until.time(300.0), rtol=1e-9)
    assert runs.outcome[0] == Outcome.reached
    np.testing.assert_allclose(runs.end[0], np.array([0.5, 0.7]) * np.exp(-300.0), rtol=1e-5)


@pytest.mark.exhaustive
def test_a_time_limit_within_the_last_stretch_is_kept():
    flow = fl.preference_flow(fl.DPO(1.9), fl.RatioPlane())
    start = np.array([[0.6, 0.8]])
    whole = float(exact.ratio_plane_time(start, 1.9, ratio=0.0)[0])
    runs = fl.sweep(flow, start, until=until.boundary(time_limit=0.97 * whole))
    assert runs.outcome[0] == Outcome.time_limit
    assert runs.end_time[0] == pytest.approx(0.97 * whole, rel=1e-12)


def test_measures_include_the_last_stretch():
    flow = fl.preference_flow(fl.DPO(1.9), fl.RatioPlane())
    start = np.array([[0.6, 0.8]])
    measured = (measures.dwell(1e-2), measures.change("u"), measures.change("x"))
    runs = fl.sweep(flow, start, until=until.boundary(), measures=measured, rtol=1e-9)
    # The speed is β q^(β−1)/r near the axis: below 0.01 from q on.
    q = (1e-2 / 1.9) ** (1 / 0.9)
    wanted = runs.time - exact.ratio_plane_time(start, 1.9, ratio=q)
    np.testing.assert_allclose(runs.measures["dwell"], wanted, rtol=1e-3)
    assert runs.measures["change_rejected_u"][0] == -np.inf
    assert runs.measures["change_rejected_x"][0] == pytest.approx(-0.8, rel=1e-14)


@pytest.mark.exhaustive
def test_a_level_close_above_a_minimum_is_reached_under_every_clock():
    flow = fl.Flow(lambda y: 0.5 * ((y - 1000.0) ** 2).sum())
    for clock in ("loss", "arc_length"):
        runs = fl.sweep(flow, np.array([[0.0], [990.0]]), until=until.loss_below(1e-5), clock=clock)
        assert set(runs.counts()) == {"reached"}


@pytest.mark.exhaustive
def test_an_audit_counts_what_it_solved_again():
    unfit = np.array([[np.nan, 1.0], [-1.0, 1.0]])
    runs = fl.sweep(FLOW, unfit, until=until.loss_below(0.1), audit=1.0)
    assert runs.audit is not None
    assert runs.audit.count == 2
    assert np.isnan(runs.audit.time_largest)


@pytest.mark.exhaustive
def test_a_plateau_is_not_taken_for_rest():
    flow = fl.Flow(lambda y: -1e-7 * y[0] - 0.5 * jnp.tanh(y[0] - 30.0))
    runs = fl.sweep(flow, np.array([[0.0]]), until=until.loss_below(0.3))
    assert runs.outcome[0] == Outcome.reached
    assert runs.time[0] > 1e6


@pytest.mark.parametrize("clock", thinned(["time", "arc_length"], {"arc_length"}))
@pytest.mark.parametrize(("loss", "speed", "rest"), [(SFT(), 0.05, np.inf), (Hinge(), 0.1, 5.0)])
def test_many_times_to_save_at_within_one_step_are_all_met(loss, speed, rest, clock):
    # A field without curvature, or at rest, has no error, and lets the step grow without end.
    flow = fl.preference_flow(loss, fl.LogRatioPlane())
    times = np.geomspace(0.01, 1e4, 121)
    runs = fl.sweep(
        flow, np.zeros((1, 2)), until=until.time(1e4), save_at=times, clock=clock, rtol=1e-8
    )
    np.testing.assert_allclose(runs.end_time, 1e4, rtol=1e-12)
    assert runs.saved is not None
    wanted = np.minimum(speed * times, rest)
    np.testing.assert_allclose(runs.saved[0, :, 0], wanted, rtol=1e-6, atol=1e-12)
