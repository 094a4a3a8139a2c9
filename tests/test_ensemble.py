"""Sweeps: blocks, neighbours, devices, outcomes, hyper-parameters, audit, and bad input."""

from typing import Any

import diffrax
import jax
import numpy as np
import pytest
from grids import thinned
from scipy.integrate import solve_ivp
from scipy.special import expit

import flowlab as fl
from flowlab import exact, measures, starts, until
from flowlab.domains import Box, Simplex
from flowlab.until import Outcome

SQUARE = starts.uniform(1000, (0.01, 0.01), (1.0, 1.0), seed=3)
FLOW = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
TARGET = until.loss_below(0.1)


def quadratic(curvature):
    return fl.Flow(lambda y: 0.5 * curvature * (y**2).sum())


@pytest.fixture(scope="module")
def reference():
    return fl.sweep(FLOW, SQUARE, until=TARGET, block_size=256)


def test_identical_blocks_give_identical_bits(reference):
    again = fl.sweep(FLOW, SQUARE, until=TARGET, block_size=256)
    assert np.array_equal(again.time, reference.time)
    assert np.array_equal(again.end, reference.end)


@pytest.mark.parametrize("size", thinned([1, 7, 1000], {7}))
def test_results_do_not_depend_on_the_block_size(reference, size):
    some = SQUARE[:40] if size == 1 else SQUARE
    runs = fl.sweep(FLOW, some, until=TARGET, block_size=size)
    np.testing.assert_allclose(runs.time, reference.time[: len(some)], rtol=5e-6)
    np.testing.assert_allclose(runs.end, reference.end[: len(some)], rtol=2e-5)


def test_results_do_not_depend_on_the_order_of_the_starts(reference):
    shuffled = np.random.default_rng(0).permutation(len(SQUARE))
    runs = fl.sweep(FLOW, SQUARE[shuffled], until=TARGET, block_size=256)
    np.testing.assert_allclose(runs.time, reference.time[shuffled], rtol=5e-6)


@pytest.mark.usefixtures("sweeps_on_two_devices")
def test_results_do_not_depend_on_the_devices(reference):
    assert len(jax.local_devices()) == 2
    two = fl.sweep(FLOW, SQUARE, until=TARGET, block_size=256)
    assert np.array_equal(two.time, reference.time)


def test_bad_starts_among_a_thousand_change_no_other_result(reference):
    spoilt = SQUARE.copy()
    bad = {3: [np.nan, 0.5], 200: [np.inf, 0.5], 501: [-0.1, 0.5], 777: [0.0, 0.5], 999: [1, 1e-9]}
    for index, start in bad.items():
        spoilt[index] = start
    runs = fl.sweep(FLOW, spoilt, until=TARGET, block_size=256)
    good = np.setdiff1d(np.arange(1000), list(bad))
    np.testing.assert_allclose(runs.time[good], reference.time[good], rtol=5e-6)
    assert [Outcome(runs.outcome[i]).name for i in bad] == [
        "non_finite",
        "non_finite",
        "outside_domain",
        "outside_domain",
        "started_past_target",
    ]
    assert np.all(np.isnan(runs.time[list(bad)]))
    assert repr(runs).endswith("; the domain is positive components)")
    assert runs.end_time[999] == 0
    np.testing.assert_allclose(runs.end[999], [1, 1e-9], rtol=1e-14)


def test_a_start_at_a_critical_point_has_that_outcome_and_moves_nowhere():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    flow = fl.Flow(lambda y: y[0] ** 3 / 3 - y[0] + y[1] ** 2)
    runs = fl.sweep(flow, points, until=until.speed_below(0.5))
    assert [Outcome(code).name for code in runs.outcome] == [
        "reached",
        "started_past_target",
        "reached",
    ]
    runs = fl.sweep(flow, points, until=until.loss_below(-10.0))
    assert runs.outcome[1] == Outcome.at_critical_point
    assert runs.end_time[1] == 0


@pytest.mark.exhaustive
def test_lines_that_come_to_rest_short_of_their_target_end_at_a_critical_point():
    points = starts.grid(6, (-2.0, -2.0), (2.0, 2.0))
    runs = fl.sweep(quadratic(2.0), points, until=until.loss_below(-1.0))
    assert set(runs.counts()) == {"at_critical_point"}
    assert np.max(np.abs(runs.end)) < 1e-5
    positive = fl.Flow(lambda y: 1 + (y**2).sum())
    runs = fl.sweep(positive, points, until=until.loss_below(0.5))
    assert set(runs.counts()) == {"at_critical_point"}
    assert np.max(np.abs(runs.end)) < 1e-3


def test_lanes_evicted_from_a_block_do_not_disturb_those_that_arrive():
    def two_floors(y):
        return (y**2).sum() + 0.3 * (1 + jax.numpy.tanh(20 * y[1]))

    # Above the step the valley floor is 0.6, and the target is never met.
    points = np.array([[x, y] for x in np.linspace(-1, 1, 30) for y in (-0.9, 0.9)])
    flow = fl.Flow(two_floors)
    runs = fl.sweep(flow, points, until=until.loss_below(0.45), block_size=60)
    alone = fl.sweep(flow, points[::2], until=until.loss_below(0.45), block_size=30)
    np.testing.assert_allclose(runs.time[::2], alone.time, rtol=1e-5)
    assert np.array_equal(runs.outcome[::2], alone.outcome)


KERNEL = np.array([[1.0, 1.2], [1.2, 1.5]])


class WithBend(fl.losses.AbstractLoss):
    """softplus(1 − h) + relu(−u_w)², whose slope has a kink at u_w = 0."""

    def __call__(self, pairs):
        return jax.nn.softplus(1 - pairs.margin) + jax.nn.relu(-pairs.u_chosen) ** 2


def time_across_the_bend(start, margin):
    """Flow time to a margin under `WithBend`, by SciPy, one smooth piece after the other."""
    state, time, bent = start, 0.0, start[0] < 0
    while True:

        def velocity(_, u, bent=bent):
            pull = expit(1 - (u[0] - u[1]))
            return KERNEL @ [pull - (2 * u[0] if bent else 0), -pull]

        def bend(_, u):
            return u[0]

        def goal(_, u):
            return u[0] - u[1] - margin

        events: Any = (bend, goal)
        for event, direction in zip(events, (1 if bent else -1, 1), strict=True):
            event.terminal, event.direction = True, direction
        options: Any = {"events": events, "method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
        piece = solve_ivp(velocity, (time, 1e4), state, **options)
        time, state = piece.t[-1], piece.y[:, -1]
        if len(piece.t_events[1]):
            return time
        assert len(piece.t_events[0])
        bent = not bent


def test_lanes_that_run_out_of_shared_steps_go_on_in_small_blocks():
    flow = fl.preference_flow(WithBend(), fl.LogRatioPlane(kernel=KERNEL))
    side = np.linspace(-10, 10, 24)
    points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    runs = fl.sweep(flow, points, until=until.margin_above(2.0), max_steps=600)
    going = points[:, 0] - points[:, 1] < 2
    assert runs.counts() == {"reached": going.sum(), "started_past_target": (~going).sum()}
    assert np.all(runs.solved_by == 0)
    some = np.flatnonzero(going)[::30]
    wanted = [time_across_the_bend(point, 2.0) for point in points[some]]
    np.testing.assert_allclose(runs.time[some], wanted, rtol=1e-5)


def test_lanes_that_are_hopeless_alone_too_cost_only_a_sample_of_small_blocks():
    points = np.linspace(1, 2, 80)[:, None]
    options = {"until": until.time(1e9), "max_steps": 20, "solver": diffrax.Tsit5()}
    runs = fl.sweep(quadratic(1.0), points, **options)
    assert runs.counts() == {"step_limit": 80}
    assert np.sum(runs.steps > 20) == 16


@pytest.mark.exhaustive
def test_the_bowl_takes_the_time_of_its_closed_form():
    points = starts.uniform(200, (-3.0, -3.0), (3.0, 3.0), seed=1)
    runs = fl.sweep(quadratic(1.7), points, until=until.speed_below(1e-3), rtol=1e-8)
    wanted = exact.bowl_time(points, 1.7, gradient_norm=1e-3)
    np.testing.assert_allclose(runs.time, wanted, rtol=1e-6)


@pytest.mark.exhaustive
def test_escape_from_a_saddle_takes_the_time_of_its_closed_form():
    distances = np.logspace(-12, -1, 12)
    points = np.stack([distances, np.full(12, 0.5)], axis=1)
    flow = fl.Flow(lambda y: 0.5 * (2.0 * y[1] ** 2 - y[0] ** 2))
    runs = fl.sweep(flow, points, until=until.loss_below(-0.5), rtol=1e-9)
    states = exact.saddle_state(runs.time[:, None].T[0], points, unstable=1.0, stable=2.0)
    np.testing.assert_allclose(runs.end, states, rtol=1e-6)
    assert np.all(runs.outcome == Outcome.reached)


def test_a_target_past_extinction_ends_at_the_wall_with_the_time_of_extinction():
    runs = fl.sweep(FLOW, SQUARE[:100], until=until.speed_below(1e-3), rtol=1e-8)
    assert set(runs.counts()) == {"at_wall"}
    first, last = np.min(runs.end_time), np.max(runs.end_time)
    told = (
        f"100 absorbed by the boundary (x_rejected = 0) at times {first:.4g} to {last:.4g}, before"
    )
    assert told in repr(runs) and "until.boundary()" in repr(runs) and "LogRatio" in repr(runs)
    wanted = exact.ratio_plane_time(SQUARE[:100], 0.3, ratio=0.0)
    np.testing.assert_allclose(runs.end_time, wanted, rtol=1e-6)
    assert np.all(runs.end[:, 1] == 0)
    radius = np.hypot(*SQUARE[:100].T)
    np.testing.assert_allclose(runs.end[:, 0], radius, rtol=1e-7)


@pytest.mark.exhaustive
def test_a_time_past_extinction_ends_at_the_wall_and_one_before_it_is_reached():
    times = exact.ratio_plane_time(SQUARE[:100], 0.3, ratio=0.0)
    middle = float(np.median(times))
    runs = fl.sweep(FLOW, SQUARE[:100], until=until.time(middle))
    assert np.array_equal(runs.outcome == Outcome.reached, times > middle)
    assert np.array_equal(runs.outcome == Outcome.at_wall, times <= middle)


@pytest.mark.exhaustive
def test_a_boundary_out_of_reach_is_not_reached():
    flow = fl.preference_flow(fl.DPO(2.5), fl.RatioPlane())
    runs = fl.sweep(flow, SQUARE[:20], until=until.boundary())
    assert set(runs.counts()) == {"at_critical_point"}
    assert np.all(np.isnan(runs.time))


@pytest.mark.exhaustive
def test_walls_stop_where_they_are_to_stop():
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Box(1, 1)))
    runs = fl.sweep(flow, SQUARE, until=TARGET, rtol=1e-8)
    wanted = exact.box_time(SQUARE, 0.3, wall=1.0, level=0.1).arrival
    stopped = np.isfinite(wanted)
    assert np.array_equal(runs.outcome == Outcome.at_wall, stopped)
    np.testing.assert_allclose(runs.end_time[stopped], wanted[stopped], rtol=1e-6)
    np.testing.assert_allclose(runs.end[stopped, 0], 1.0, rtol=1e-12)


@pytest.mark.exhaustive
def test_lines_that_graze_the_wall_of_the_simplex_slide_along_it():
    radius = np.sqrt(0.5) * (1 + np.logspace(-9, -3, 25))
    angle = np.deg2rad(60)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Simplex(), wall="slide"))
    points = points[points.sum(axis=1) <= 1]
    for rtol in (1e-6, 1e-9):
        runs = fl.sweep(flow, points, until=TARGET, rtol=rtol)
        wanted = exact.simplex_time(points, 0.3, level=0.1).total
        assert np.max(np.abs(runs.time / wanted - 1)) < 20 * rtol


def test_several_levels_are_timed_in_one_pass():
    levels = (0.6, 0.4, 0.2, 0.1)
    runs = fl.sweep(FLOW, SQUARE[:200], until=until.loss_below(*levels), rtol=1e-8)
    for index, level in enumerate(levels):
        wanted = exact.ratio_plane_time(SQUARE[:200], 0.3, level=level)
        wanted = np.where(wanted > 0, wanted, np.nan)
        np.testing.assert_allclose(runs.level_times[:, index], wanted, rtol=1e-6)
    assert np.array_equal(runs.time, runs.level_times[:, -1])


@pytest.mark.exhaustive
@pytest.mark.parametrize("clock", ["loss", "arc_length", "time"])
def test_the_clock_does_not_change_the_result(clock):
    flow = fl.preference_flow(fl.DPO(0.4), fl.LogRatioPlane([[1.0, 0.5], [0.5, 2.0]]))
    points = starts.uniform(100, (-2.0, -2.0), (2.0, 2.0), seed=5)
    runs = fl.sweep(flow, points, until=until.loss_below(0.4), clock=clock, rtol=1e-8)
    kernel = np.array([[1.0, 0.5], [0.5, 2.0]])
    margins = points[:, 0] - points[:, 1]
    wanted = exact.kernel_time(margins, exact.dpo_margin_at(0.4, 0.4), 0.4, kernel)
    np.testing.assert_allclose(runs.time, np.where(wanted > 0, wanted, np.nan), rtol=1e-6)


def test_states_are_saved_at_given_times():
    kernel = np.array([[1.0, 0.2], [0.2, 1.0]])
    flow = fl.preference_flow(fl.DPO(0.5), fl.LogRatioPlane(kernel))
    points = starts.uniform(50, (-1.0, -1.0), (1.0, 1.0), seed=6)
    times = [0.5, 2.0, 7.0]
    runs = fl.sweep(flow, points, until=until.time(10.0), save_at=times, rtol=1e-9)
    assert runs.saved is not None
    for index, time in enumerate(times):
        wanted = np.stack([exact.kernel_state(time, p, 0.5, kernel) for p in points])
        np.testing.assert_allclose(runs.saved[:, index], wanted, rtol=1e-7, atol=1e-8)
    early = fl.sweep(FLOW, SQUARE[:50], until=TARGET, save_at=[0.1, 50.0], rtol=1e-8)
    assert early.saved is not None
    extinct = exact.ratio_plane_time(SQUARE[:50], 0.3, level=0.1) < 0.1
    assert np.array_equal(np.isnan(early.saved[:, 0, 0]), extinct)
    assert np.all(np.isnan(early.saved[:, 1]))


@pytest.mark.exhaustive
def test_margins_are_a_target():
    flow = fl.preference_flow(fl.DPO(0.5), fl.LogRatioPlane())
    points = starts.uniform(50, (-1.0, -1.0), (1.0, 1.0), seed=6)
    runs = fl.sweep(flow, points, until=until.margin_above(3.0), rtol=1e-8)
    wanted = exact.kernel_time(points[:, 0] - points[:, 1], 3.0, 0.5, np.eye(2))
    np.testing.assert_allclose(runs.time, wanted, rtol=1e-6)
    np.testing.assert_allclose(runs.end[:, 0] - runs.end[:, 1], 3.0, rtol=1e-9)


def test_a_swept_hyper_parameter_is_a_labelled_leading_axis():
    betas = [0.1, 0.3]
    runs = fl.sweep(FLOW, SQUARE[:20], until=TARGET, over={"beta": betas})
    assert runs.time.shape == (2, 20)
    for beta, time in zip(betas, runs.time, strict=True):
        single = fl.sweep(
            fl.preference_flow(fl.DPO(beta), fl.RatioPlane()), SQUARE[:20], until=TARGET
        )
        assert np.array_equal(single.time, time)
    dataset = runs.to_xarray()
    assert dataset["time"].dims == ("beta", "start")
    assert list(dataset["beta"].values) == betas


def test_the_audit_says_how_far_tighter_tolerances_lead_away():
    runs = fl.sweep(FLOW, SQUARE, until=TARGET, rtol=1e-4, audit=0.1)
    assert runs.audit is not None
    assert runs.audit.count == 100
    assert runs.audit.rtol == pytest.approx(1e-6)
    assert runs.audit.outcomes_differ == 0
    wanted = exact.ratio_plane_time(SQUARE, 0.3, level=0.1)
    worst = np.max(np.abs(runs.time / wanted - 1))
    assert 0.05 * worst < runs.audit.time_largest < 1.1 * worst


@pytest.mark.exhaustive
def test_time_limits_and_step_limits_are_outcomes():
    short = fl.sweep(FLOW, SQUARE[:50], until=until.loss_below(0.1, time_limit=0.3))
    wanted = exact.ratio_plane_time(SQUARE[:50], 0.3, level=0.1)
    assert np.array_equal(short.outcome == Outcome.time_limit, wanted > 0.3)
    np.testing.assert_allclose(short.end_time[wanted > 0.3], 0.3, rtol=1e-10)
    few = fl.sweep(FLOW, SQUARE[:50], until=TARGET, max_steps=3)
    assert set(few.counts()) == {"step_limit"}


def test_states_may_be_pytrees():
    flow = fl.Flow(lambda y: (y["a"] ** 2).sum() + 2 * y["b"] ** 2)
    points = {"a": np.ones((5, 3)), "b": np.linspace(1, 2, 5)}
    runs = fl.sweep(flow, points, until=until.time(0.7), rtol=1e-9)
    np.testing.assert_allclose(runs.end["a"], points["a"] * np.exp(-1.4), rtol=1e-7)
    np.testing.assert_allclose(runs.end["b"], points["b"] * np.exp(-2.8), rtol=1e-7)


def test_runs_say_what_they_are_in_a_line(reference):
    assert repr(reference) == "Runs(1,000 starts: {'reached': 1000})"


def test_components_of_the_starts_are_coordinates_of_the_dataset(reference):
    dataset = reference.to_xarray()
    np.testing.assert_array_equal(dataset["x_chosen"], SQUARE[:, 0])
    reached = dataset["time"].where(dataset["outcome"] == Outcome.reached)
    assert int(reached.notnull().sum()) == 1000


@pytest.mark.exhaustive
def test_float32_starts_need_no_tolerance_of_their_own():
    runs = fl.sweep(FLOW, SQUARE[:10].astype(np.float32), until=TARGET)
    assert runs.rtol == 1e-4


def test_outcomes_of_a_dataset_carry_their_names(reference):
    dataset = reference.to_xarray()
    meanings = dataset["outcome"].attrs["flag_meanings"].split()
    codes = dataset["outcome"].attrs["flag_values"]
    assert {Outcome(code).name for code in codes} == set(meanings)
    assert meanings[list(codes).index(1)] == "reached"
    assert dataset["end"].dims == ("start", "component")


BAD_CALLS = {
    "shape (n, 2), but has shape (10, 3)": dict(starts=np.ones((10, 3))),
    "shape (n, 2), but has shape (2,)": dict(starts=np.ones(2)),
    "at least one start": dict(starts=np.ones((0, 2))),
    "real numbers": dict(starts=np.array([["a", "b"]])),
    "Argument `rtol` must lie between": dict(rtol=1e-17),
    "the least for float32": dict(starts=np.ones((2, 2), np.float32), rtol=1e-8),
    "Argument `atol` must be non-negative": dict(atol=-1.0),
    "Argument `until` must be a target": dict(until=0.1),
    "must be one of": dict(clock="loss", until=until.time(1.0)),
    "Argument `save_at` must hold positive": dict(save_at=[2.0, 1.0]),
    "Argument `audit` must lie": dict(audit=2.0),
    "Argument `block_size` must be": dict(block_size=0),
    "Argument `max_steps` must be": dict(max_steps=0),
    "Argument `over` must name": dict(over={"gamma": [1.0]}),
    "Argument `over` must give a list": dict(over={"beta": []}),
    "Argument `beta` must be positive": dict(over={"beta": [0.1, -1.0]}),
    "Argument `measures` must hold": dict(measures=["path_length"]),
    "Argument `measures` must be a list": dict(measures="path_length"),
    "Argument `starts` must hold numbers": dict(starts=None),
    "Argument `over` must map": dict(over=["beta"]),
    "must not give one name twice": dict(measures=[measures.dwell(0.1), measures.dwell(0.2)]),
    "Argument `solver` must be": dict(solver="Tsit5"),
    "Argument `flow` must be": dict(flow=fl.DPO(0.1)),
}


@pytest.mark.parametrize("sentence", BAD_CALLS, ids=lambda s: s[:40])
def test_misuse_is_a_sentence_that_names_the_argument(sentence):
    call = dict(flow=FLOW, starts=SQUARE[:4], until=TARGET) | BAD_CALLS[sentence]
    with pytest.raises(ValueError) as caught:
        fl.sweep(call.pop("flow"), call.pop("starts"), **call)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
