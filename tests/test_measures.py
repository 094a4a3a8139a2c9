"""Measures against closed forms and independent quadrature."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq, minimize_scalar

import flowlab as fl
from flowlab import exact, measures, policies, starts, store, until

BETA = 0.3
FLOW = fl.preference_flow(fl.DPO(BETA), fl.RatioPlane())
SQUARE = starts.uniform(300, (0.05, 0.05), (1.0, 1.0), seed=8)
TARGET = until.loss_below(0.1)
LOG_FLOW = fl.preference_flow(fl.DPO(BETA), fl.LogRatioPlane())
LOG_SQUARE = starts.uniform(200, (-2.0, -2.0), (2.0, 2.0), seed=8)


@pytest.fixture(scope="module")
def runs():
    every = (
        measures.path_length(),
        measures.path_length("u"),
        measures.change("x"),
        measures.change("u"),
        measures.change("probability"),
        measures.rate_ratio("x"),
        measures.margin_zero(),
        measures.margin_at(-0.5),
        measures.margin_at(1.5),
        measures.slowest(),
        measures.dwell(0.4),
    )
    return fl.sweep(FLOW, SQUARE, until=TARGET, measures=every, rtol=1e-8)


def angles(points):
    return np.arctan2(points[:, 1], points[:, 0])


def test_the_length_of_a_circular_line_is_radius_times_angle(runs):
    radius = np.hypot(*SQUARE.T)
    wanted = radius * (angles(SQUARE) - angles(runs.end))
    np.testing.assert_allclose(runs.measures["path_length"], wanted, rtol=1e-6)


def test_lengths_in_log_ratios_agree_with_quadrature(runs):
    first, last = angles(SQUARE), angles(runs.end)
    for index in range(5):
        wanted, _ = quad(
            lambda a: np.hypot(np.tan(a), 1 / np.tan(a)), last[index], first[index], epsrel=1e-11
        )
        assert runs.measures["path_length_u"][index] == pytest.approx(wanted, rel=1e-6)


def test_changes_are_end_less_start_in_each_space(runs):
    for name, place in (("x", lambda x: x), ("u", np.log), ("probability", lambda x: x)):
        wanted = place(runs.end) - place(SQUARE)
        np.testing.assert_allclose(runs.measures[f"change_chosen_{name}"], wanted[:, 0], rtol=1e-9)
        np.testing.assert_allclose(
            runs.measures[f"change_rejected_{name}"], wanted[:, 1], rtol=1e-9
        )


@pytest.mark.exhaustive
def test_probabilities_are_ratios_times_the_reference():
    policy = fl.RatioPlane(ref_chosen=np.log(0.25), ref_rejected=np.log(0.5))
    flow = fl.preference_flow(fl.DPO(BETA), policy)
    found = fl.sweep(
        flow, SQUARE[:9], until=TARGET, measures=(measures.change("probability"),), rtol=1e-8
    )
    wanted = (found.end - SQUARE[:9]) * [0.25, 0.5]
    np.testing.assert_allclose(found.measures["change_chosen_probability"], wanted[:, 0], rtol=1e-9)
    np.testing.assert_allclose(
        found.measures["change_rejected_probability"], wanted[:, 1], rtol=1e-9
    )


def test_the_ratio_of_rates_is_that_of_corollary_1(runs):
    start, end = SQUARE, runs.end
    np.testing.assert_allclose(
        runs.measures["rate_ratio_x_start"], start[:, 1] / start[:, 0], rtol=1e-12
    )
    np.testing.assert_allclose(runs.measures["rate_ratio_x_end"], end[:, 1] / end[:, 0], rtol=1e-9)
    total = np.abs((end - start)[:, 0] / (end - start)[:, 1])
    np.testing.assert_allclose(runs.measures["rate_ratio_x_total"], total, rtol=1e-9)


def test_the_margin_crosses_zero_on_the_diagonal_at_the_known_time(runs):
    above = SQUARE[:, 1] > SQUARE[:, 0]
    times = runs.measures["margin_zero_time"]
    assert np.array_equal(np.isnan(times), ~above)
    wanted = exact.ratio_plane_time(SQUARE[above], BETA, ratio=1.0)
    assert np.max(np.abs(times[above] - wanted) / runs.time[above]) < 1e-7
    radius = np.hypot(*SQUARE[above].T)
    places = runs.measures["margin_zero_state"][above]
    np.testing.assert_allclose(places, (radius / np.sqrt(2))[:, None] * [1, 1], rtol=1e-5)


def test_margins_are_crossed_where_the_closed_form_has_them(runs):
    lower, upper = np.exp(-1.5), np.exp(0.5)
    ratio = SQUARE[:, 1] / SQUARE[:, 0]
    for level, bound in ((-0.5, upper), (1.5, lower)):
        times = runs.measures[f"margin_{level:g}_time"]
        crossing = (ratio > bound) & (runs.end[:, 1] / runs.end[:, 0] < bound)
        assert np.sum(crossing) > 50
        assert np.array_equal(np.isnan(times), ~crossing)
        wanted = exact.ratio_plane_time(SQUARE[crossing], BETA, ratio=bound)
        assert np.max(np.abs(times[crossing] - wanted) / runs.time[crossing]) < 1e-7
        places = runs.measures[f"margin_{level:g}_state"][crossing]
        np.testing.assert_allclose(places[:, 1] / places[:, 0], bound, rtol=1e-6)


def test_a_margin_at_nought_has_another_name_than_the_zero_of_the_margin():
    assert measures.margin_at(0).names == ("margin_0_time", "margin_0_state")
    assert measures.margin_zero().names == ("margin_zero_time", "margin_zero_state")


@pytest.mark.parametrize("level", [np.nan, np.inf, [1.0, 2.0]])
def test_a_margin_that_is_no_finite_number_is_refused(level):
    with pytest.raises(ValueError, match="Argument `level` must be a finite number"):
        measures.margin_at(level)


def circle_speed(radius, angle):
    x = radius * np.stack([np.cos(angle), np.sin(angle)])
    return BETA / (1 + (x[0] / x[1]) ** BETA) * np.hypot(1 / x[0], 1 / x[1])


def test_the_slowest_point_is_the_minimum_along_the_circle(runs):
    for index in range(40):
        radius = np.hypot(*SQUARE[index])
        fine = np.linspace(angles(runs.end)[index], angles(SQUARE)[index], 20001)
        wanted = circle_speed(radius, fine)
        lowest = np.argmin(wanted)
        assert runs.measures["slowest_speed"][index] == pytest.approx(wanted[lowest], rel=1e-6)
        place = runs.measures["slowest_state"][index]
        assert np.arctan2(place[1], place[0]) == pytest.approx(fine[lowest], abs=2e-3)


def test_dwell_is_the_time_between_the_crossings_of_the_speed():
    points = np.array([[0.1, 0.9], [0.3, 0.8], [0.6, 0.7], [0.9, 0.3]])
    for rtol, accuracy in ((1e-6, 1e-5), (1e-9, 1e-7)):
        runs = fl.sweep(FLOW, points, until=TARGET, measures=(measures.dwell(0.4),), rtol=rtol)
        for index, start in enumerate(points):
            wanted = exact_dwell(start, runs.end[index], 0.4)
            assert abs(runs.measures["dwell"][index] - wanted) <= accuracy * runs.time[index]
        share = runs.measures["dwell"] / runs.time
        np.testing.assert_allclose(runs.measures["dwell_share"], share, rtol=1e-12)


def exact_dwell(start, end, speed):
    """Time below a speed on a circle, from its crossings and the closed form of times."""
    radius = np.hypot(*start)
    fine = np.linspace(np.arctan2(end[1], end[0]), np.arctan2(start[1], start[0]), 4001)[::-1]
    gap = circle_speed(radius, fine) - speed
    edges = [fine[0]]
    for i in np.flatnonzero(np.sign(gap[1:]) != np.sign(gap[:-1])):
        edges.append(brentq(lambda a: circle_speed(radius, a) - speed, fine[i + 1], fine[i]))
    edges.append(fine[-1])
    total = 0.0
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        if circle_speed(radius, (first + last) / 2) < speed:
            begin = radius * np.array([np.cos(first), np.sin(first)])
            total += float(exact.ratio_plane_time(begin, BETA, ratio=np.tan(last)))
    return total


@pytest.mark.exhaustive
def test_speed_on_the_log_ratio_plane_falls_so_that_dwell_ends_the_line():
    threshold = 0.1
    runs = fl.sweep(
        LOG_FLOW, LOG_SQUARE, until=TARGET, measures=(measures.dwell(threshold),), rtol=1e-8
    )
    # speed = √2·β·σ(−z) falls along every line, below the threshold once z is large enough
    z = np.log(np.sqrt(2) * BETA / threshold - 1)
    margins = LOG_SQUARE[:, 0] - LOG_SQUARE[:, 1]
    crossing = exact.kernel_time(margins, z / BETA, BETA, np.eye(2))
    wanted = runs.time - np.where(margins < z / BETA, crossing, 0)
    np.testing.assert_allclose(runs.measures["dwell"], wanted, rtol=2e-6)


def test_measures_of_pairs_need_a_flow_with_pairs():
    flow = fl.Flow(lambda y: (y**2).sum())
    for measure in (measures.change("u"), measures.margin_zero(), measures.path_length("u")):
        with pytest.raises(ValueError, match="Argument `measures`"):
            fl.sweep(flow, SQUARE[:3], until=until.time(1.0), measures=(measure,))


def test_unknown_spaces_and_speeds_are_refused():
    with pytest.raises(ValueError, match="Argument `of`"):
        measures.path_length("y")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Argument `of`"):
        measures.change("state")
    for below in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="Argument `below`"):
            measures.dwell(below)


def test_a_measure_of_ones_own_is_a_rate_a_fold_or_what_its_ends_are():
    def second(flow, state, velocity):
        return velocity[1]

    def lowest(flow, carry, nodes):
        return jnp.minimum(carry, jnp.min(nodes.state[:, 1]))

    def start(flow, state):
        return state[1]

    def all_three(flow, ends, integral, carry):
        return integral, carry, ends.end[1] - ends.start[1]

    own = [
        measures.Measure(("integral",), rate=second),
        measures.Measure(("lowest",), begin=start, fold=lowest),
        measures.Measure(("a", "b", "c"), rate=second, begin=start, fold=lowest, at_end=all_three),
    ]
    runs = fl.sweep(FLOW, SQUARE[:9], until=until.time(0.05), measures=own, rtol=1e-9)
    fall = runs.end[:, 1] - SQUARE[:9, 1]
    found = runs.measures
    for name, wanted in (("integral", fall), ("lowest", runs.end[:, 1]), ("c", fall)):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-8)
    np.testing.assert_array_equal(found["a"], found["integral"])
    np.testing.assert_array_equal(found["b"], found["lowest"])


@pytest.mark.exhaustive
def test_measures_that_differ_in_numbers_alone_share_a_program():
    traced = []

    def scaled(flow, state, velocity, *, factor):
        traced.append(factor)
        return factor * velocity[1]

    counts = []
    for number in (1.0, 2.0):
        own = measures.Measure(("own",), rate=eqx.Partial(scaled, factor=np.asarray(number)))
        near = measures.near([number, 0.5], number, label="point")
        every = [own, measures.dwell(number), near, measures.change("u")]
        runs = fl.sweep(FLOW, SQUARE[:9], until=until.time(0.05), measures=every)
        wanted = number * (runs.end[:, 1] - SQUARE[:9, 1])
        np.testing.assert_allclose(runs.measures["own"], wanted, rtol=1e-5)
        counts.append(len(traced))
    # A second sweep looks at what the measure computes now, and compiles nothing.
    assert counts[1] - counts[0] <= 1 < counts[0]


def nothing(*_):
    return ()


@pytest.mark.parametrize(
    ("message", "names", "functions"),
    [
        ("Argument `names` must be a tuple of strings", "length", dict(rate=nothing)),
        ("Argument `rate`, `fold` or `at_end` must be given", ("length",), {}),
        ("Arguments `begin` and `fold` must be given together", ("length",), dict(fold=nothing)),
    ],
)
def test_a_measure_that_measures_nothing_is_refused(message, names, functions):
    with pytest.raises(ValueError, match=message):
        measures.Measure(names, **functions)


def test_a_measure_gives_one_result_for_each_of_its_names():
    none = measures.Measure(("length",), at_end=nothing)
    with pytest.raises(ValueError, match="`at_end` must give one result for each of"):
        fl.sweep(FLOW, SQUARE[:9], until=until.time(0.05), measures=[none])


READOUT, FEATURES = np.array([[1.0, 0.5], [1.0, -0.5], [0.0, 3.0]]), np.array([0.3, 0.0])


def feature_logs(state):
    logits = state[:6].reshape(3, 2) @ state[6:]
    return logits - np.log(np.exp(logits).sum())


@pytest.fixture(scope="module")
def featured():
    """A feature model in which the chosen falls and recovers: as we measure it, and as SciPy."""
    policy = policies.FeatureModel(READOUT, FEATURES)
    state = {"readout": READOUT[None], "features": FEATURES[None]}
    flow = fl.preference_flow(fl.DPO(0.1), policy)
    every = [measures.dip(), measures.mass()]
    runs = fl.sweep(flow, state, until=until.time(60.0), measures=every, rtol=1e-10, optimise=False)
    begin = np.concatenate([READOUT.ravel(), FEATURES])
    reference, pull = feature_logs(begin), np.array([1.0, -1.0, 0.0])

    def field(t, y):
        margin = (feature_logs(y) - reference)[:2] @ [1, -1]
        slope = 0.1 / (1 + np.exp(0.1 * margin))
        return slope * np.concatenate([np.outer(pull, y[6:]).ravel(), pull @ y[:6].reshape(3, 2)])

    options: dict[str, Any] = dict(method="DOP853", rtol=1e-11, atol=1e-12, dense_output=True)
    return runs.measures, solve_ivp(field, (0, 60.0), begin, **options).sol


@pytest.mark.exhaustive
def test_a_feature_model_dips_and_recovers_when_scipy_says(featured):
    found, solved = featured

    def chosen(time):
        return feature_logs(solved(time))[0] - feature_logs(solved(0.0))[0]

    lowest: Any = minimize_scalar(
        chosen, bounds=(15, 30), method="bounded", options={"xatol": 1e-9}
    )
    assert found["dip_depth"][0] == pytest.approx(-lowest.fun, rel=1e-8)
    assert found["dip_time"][0] == pytest.approx(lowest.x, abs=1e-4)
    assert found["recovery_time"][0] == pytest.approx(brentq(chosen, 30, 50), rel=1e-7)
    assert found["dip_depth"][0] == pytest.approx(0.88, abs=0.01)


def test_the_response_outside_the_pair_peaks_when_scipy_says(featured):
    found, solved = featured

    def third(time):
        return np.exp(feature_logs(solved(time))[2])

    highest: Any = minimize_scalar(
        lambda t: -third(t), bounds=(15, 30), method="bounded", options={"xatol": 1e-9}
    )
    assert found["mass_peak"][0, 2] == pytest.approx(-highest.fun, rel=1e-8)
    assert found["mass_peak_time"][0, 2] == pytest.approx(highest.x, abs=1e-4)
    assert found["mass_peak_time"][0, 1] == 0
    gained = np.exp(feature_logs(solved(60.0))) - np.exp(feature_logs(solved(0.0)))
    np.testing.assert_allclose(found["mass_gained"][0], gained, rtol=1e-7)
    np.testing.assert_allclose(found["mass_gained_others"][0], gained[2], rtol=1e-7)
    assert found["mass_gainer"][0] == -1  # it has lost in the end


def test_measures_of_pairs_and_responses_keep_their_axes_in_a_store(tmp_path):
    policy = fl.TabularSoftmax([0.1, 0.05, 0.8, 0.05], [(0, 1), (2, 3), (2, 1)])
    flow = fl.preference_flow(fl.DPO(0.5), policy)
    every = [measures.dip(), measures.mass(), measures.change("u"), measures.slowest()]
    state = np.asarray(policy.ref_log_probs)[None]
    runs = fl.sweep(
        flow,
        state,
        until=until.time(5.0),
        measures=every,
        over={"beta": [0.5, 1.0]},
        optimise=False,
    )
    store.write(runs, tmp_path / "runs")
    kept = store.read(tmp_path / "runs")
    lead = ("beta", "start")
    assert kept["dip_depth"].dims == kept["change_chosen_u"].dims == (*lead, "pair")
    assert kept["mass_gained"].dims == kept["mass_peak_time"].dims == (*lead, "response")
    assert kept["mass_gainer"].dims == lead
    assert kept["slowest_state"].dims == (*lead, "component")
    np.testing.assert_array_equal(kept["pair"], [0, 1, 2])
    np.testing.assert_array_equal(kept["response"], [0, 1, 2, 3])
    np.testing.assert_array_equal(kept["dip_depth"], runs.measures["dip_depth"])


def test_mass_needs_a_list_of_responses_and_a_dip_pairs():
    for flow in (FLOW, fl.Flow(lambda y: (y**2).sum())):
        with pytest.raises(ValueError, match=r"Argument `measures` must hold mass\(\) only"):
            fl.sweep(flow, SQUARE[:3], until=until.time(1.0), measures=[measures.mass()])
    with pytest.raises(ValueError, match="Argument `measures`"):
        fl.sweep(flow, SQUARE[:3], until=until.time(1.0), measures=[measures.dip()])


def dipped(*steps, start=0.0, rates=None):
    """The dip of a chosen log-ratio that is a polynomial of the time in each step.

    A step is (its first time, its last, the polynomial).
    """
    dip = measures.dip()
    flow = fl.preference_flow(fl.DPO(), fl.LogRatioPlane(ref_chosen=0.0))

    def states(values):
        return np.stack([values, np.zeros_like(values)], axis=-1)

    carry = dip.begin(flow, states(np.asarray(start)))
    for first, last, chosen in steps:
        times = np.linspace(first, last, measures.NODES)
        speeds = chosen.deriv()(times) if rates is None else np.full(measures.NODES, rates)
        carry = dip.fold(flow, carry, measures.Nodes(times, states(chosen(times)), states(speeds)))
    return [float(value) for value in dip.at_end(flow, None, carry)]


def test_a_dip_and_its_recovery_within_one_step_are_found():
    parabola = np.polynomial.Polynomial([0.0, -2.0, 1.0])  # lowest at 1, back at 2
    np.testing.assert_allclose(dipped((0.0, 9.0, parabola)), [1, 1, 2], rtol=1e-9)
    halves = [(0.0, 1.5, parabola), (1.5, 9.0, parabola)]
    np.testing.assert_allclose(dipped(*halves), [1, 1, 2], rtol=1e-9)
    np.testing.assert_allclose(dipped((0.0, 1.9, parabola)), [1, 1, np.nan], rtol=1e-9)
    later = np.polynomial.Polynomial.fromroots([0.0, 1.0, 3.0])  # rises before it falls
    lowest = (4 + np.sqrt(7)) / 3
    wanted = [-later(lowest), lowest, 3]
    np.testing.assert_allclose(dipped((0.0, 4.0, later)), wanted, rtol=1e-9)


def test_a_second_deeper_dip_takes_the_place_of_the_first_and_a_shallower_one_does_not():
    def dip(depth, time):
        return depth * np.polynomial.Polynomial.fromroots([time, time + 2])

    first, rest = (0.0, 3.0, dip(1.0, 0.0)), dip(2.0, 4.0)
    np.testing.assert_allclose(dipped(first, (4.0, 7.0, rest)), [2, 5, 6], rtol=1e-9)
    np.testing.assert_allclose(dipped(first, (4.0, 7.0, rest / 4)), [1, 1, 2], rtol=1e-9)
    np.testing.assert_allclose(dipped(first, (4.0, 5.5, rest)), [2, 5, np.nan], rtol=1e-9)


def test_what_the_solver_loses_while_the_chosen_rises_is_no_dip():
    error = np.polynomial.Polynomial([0.0, -1e-6, 1e-6])
    np.testing.assert_array_equal(dipped((0.0, 1.0, error), rates=1e-9), [0, np.nan, np.nan])
    assert dipped((0.0, 1.0, error), rates=-1e-9)[0] == pytest.approx(2.5e-7)


def test_a_fall_within_rounding_is_no_dip():
    for start, depth, falls in ((-20.0, 1e-13, 0), (-20.0, 1e-12, 1), (-2000.0, 1e-12, 0)):
        slope = np.polynomial.Polynomial([start, -depth])
        assert (dipped((0.0, 1.0, slope), start=start)[0] > 0) == falls
