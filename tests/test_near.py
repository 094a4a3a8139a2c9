"""The neighbourhood of a point against closed forms and SciPy."""

import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

import flowlab as fl
from flowlab import exact, measures, potentials, until

STABLE, UNSTABLE, RADIUS = 1.3, 0.7, 0.5
SADDLE = fl.Flow(potentials.Saddle(stable=STABLE, unstable=UNSTABLE))
OFFSETS = np.logspace(-1, -12, 12)
BESIDE = np.stack([OFFSETS, np.ones(12)], axis=1)


def beside_the_saddle(rtol):
    """Lines that pass the saddle, until |x| = 2 where y is gone: the potential is that of x."""
    target = until.loss_below(-0.5 * UNSTABLE * 2.0**2, time_limit=100.0)
    near = measures.near([0.0, 0.0], RADIUS, label="saddle")
    return fl.sweep(SADDLE, BESIDE, until=target, clock="arc_length", measures=[near], rtol=rtol)


@pytest.fixture(scope="module")
def runs():
    return beside_the_saddle(1e-10)


def passage(offset):
    """Entry, time inside, closest approach and its time, to 30 digits."""
    with mpmath.workdps(30):
        x, fast, slow = mpmath.mpf(float(offset)), mpmath.mpf(STABLE), mpmath.mpf(UNSTABLE)

        def square(t):
            return x**2 * mpmath.exp(2 * slow * t) + mpmath.exp(-2 * fast * t)

        lowest = mpmath.log(fast / (slow * x**2)) / (2 * (slow + fast))

        def crossing(low, high):
            return mpmath.findroot(
                lambda t: square(t) - mpmath.mpf(RADIUS) ** 2, (low, high), solver="anderson"
            )

        enter = crossing(mpmath.mpf(0), lowest)
        leave = crossing(lowest, mpmath.log(1 / x) / slow)
        return [float(v) for v in (enter, leave - enter, mpmath.sqrt(square(lowest)), lowest)]


def test_the_time_beside_a_saddle_is_right_at_every_distance_from_its_stable_manifold(runs):
    entry, inside, distance, when = np.array([passage(x) for x in OFFSETS]).T
    found = runs.measures
    np.testing.assert_allclose(found["near_saddle_time"], inside, rtol=1e-8)
    np.testing.assert_allclose(found["near_saddle_entry_time"], entry, rtol=1e-8)
    np.testing.assert_allclose(found["near_saddle_distance"], distance, rtol=2e-8)
    np.testing.assert_allclose(found["near_saddle_distance_time"], when, rtol=2e-8)
    states = exact.saddle_state(entry, BESIDE, unstable=UNSTABLE, stable=STABLE)
    np.testing.assert_allclose(found["near_saddle_entry_state"], states, rtol=1e-8)
    states = exact.saddle_state(when, BESIDE, unstable=UNSTABLE, stable=STABLE)
    np.testing.assert_allclose(found["near_saddle_distance_state"], states, rtol=1e-7)


def test_the_exit_from_a_saddle_is_that_of_the_closed_form_over_eleven_decades(runs):
    # The unstable coordinate at the entry is δ, and at the exit it is the radius, less what is left
    # of the stable one.
    entry, inside = (runs.measures[f"near_saddle_{n}"] for n in ("entry_time", "time"))
    offset = runs.measures["near_saddle_entry_state"][:, 0]
    left = np.exp(-STABLE * (entry + inside))
    wanted = exact.saddle_exit_time(offset, np.sqrt(RADIUS**2 - left**2), UNSTABLE)
    np.testing.assert_allclose(inside, wanted, rtol=1e-8)
    # To |x| = 2, where y adds to the potential: 1e-6 all the way, and so at the default tolerance.
    small = OFFSETS < 1e-2
    wanted = exact.saddle_exit_time(OFFSETS[small], 2.0, UNSTABLE)
    np.testing.assert_allclose(runs.time[small], wanted, rtol=1e-8)


@pytest.mark.exhaustive
def test_default_tolerances_give_the_time_beside_a_saddle_to_a_millionth():
    found = beside_the_saddle(1e-6).measures
    entry, inside, distance, _ = np.array([passage(x) for x in OFFSETS]).T
    np.testing.assert_allclose(found["near_saddle_time"], inside, rtol=1e-6)
    np.testing.assert_allclose(found["near_saddle_entry_time"], entry, rtol=1e-6)
    np.testing.assert_allclose(found["near_saddle_distance"], distance, rtol=5e-6)


@pytest.fixture(scope="module")
def bowl():
    """A line into the minimum, one that starts there, one that stays away, one that grazes."""
    point = np.array([0.6, 0.0])
    graze = np.sqrt(0.3**2 - 1e-6)  # of a disc with radius 0.3, from a line through the centre
    angle = np.arcsin(graze / 0.6)
    begin = np.array(
        [[2.0, 0.0], [0.7, 0.1], [-1.0, 0.0], 2 * np.array([np.cos(angle), np.sin(angle)])]
    )
    near = [
        measures.near(point, 0.3, label="aside"),
        measures.near([0.0, 0.0], 0.1, label="rest"),
    ]
    flow = fl.Flow(potentials.Bowl(1.0))
    return begin, fl.sweep(flow, begin, until=until.time(9.0), measures=near, rtol=1e-10)


def test_lines_through_a_disc_spend_the_time_between_its_edges(bowl):
    found = bowl[1].measures
    # y = 2 e^−t along the axis: in at 0.9, out at 0.3
    assert found["near_aside_time"][0] == pytest.approx(np.log(0.9 / 0.3), rel=1e-8)
    assert found["near_aside_entry_time"][0] == pytest.approx(np.log(2 / 0.9), rel=1e-8)
    assert found["near_aside_distance"][0] == pytest.approx(0, abs=1e-8)
    assert found["near_aside_distance_time"][0] == pytest.approx(np.log(2 / 0.6), rel=1e-6)


def test_a_start_inside_enters_at_once_where_it_stands(bowl):
    begin, runs = bowl
    found = runs.measures
    assert found["near_aside_entry_time"][1] == 0
    np.testing.assert_array_equal(found["near_aside_entry_state"][1], begin[1])
    reach = np.array([0.7, 0.1])

    def gap(time):
        return np.linalg.norm(reach * np.exp(-time) - [0.6, 0]) - 0.3

    assert found["near_aside_time"][1] == pytest.approx(brentq(gap, 0, 5), rel=1e-8)  # pyright: ignore[reportArgumentType]


def test_a_line_that_never_comes_near_has_no_entry_but_a_closest_approach(bowl):
    found = bowl[1].measures
    assert found["near_aside_time"][2] == 0
    assert np.isnan(found["near_aside_entry_time"][2])
    assert np.all(np.isnan(found["near_aside_entry_state"][2]))
    assert found["near_aside_distance"][2] == pytest.approx(0.6 + np.exp(-9.0), rel=1e-9)
    assert found["near_aside_distance_time"][2] == pytest.approx(9.0, rel=1e-9)


def test_a_grazed_disc_is_seen_within_one_step(bowl):
    # The chord has half the length 1e-3 at a distance of √(0.36 − graze²) from the rest.
    found = bowl[1].measures
    along = np.sqrt(0.6**2 - (0.3**2 - 1e-6))
    inside = np.log((along + 1e-3) / (along - 1e-3))
    assert bowl[1].steps[3] < 200
    assert found["near_aside_time"][3] == pytest.approx(inside, rel=1e-4)
    assert found["near_aside_entry_time"][3] == pytest.approx(np.log(2 / (along + 1e-3)), rel=1e-7)


def test_a_line_that_comes_to_rest_inside_stays_until_the_end(bowl):
    found = bowl[1].measures
    np.testing.assert_allclose(found["near_rest_time"][[0, 2]], 9 - np.log([20.0, 10.0]), rtol=1e-8)
    np.testing.assert_allclose(found["near_rest_distance_time"], 9.0, rtol=1e-9)


@pytest.mark.exhaustive
def test_a_curved_line_spends_the_time_that_scipy_finds():
    potential = potentials.Himmelblau()
    saddle, begin = np.array([3.38515418, 0.07385188]), np.array([[4.1, 0.17]])
    near = measures.near(saddle, 0.4, label="saddle")
    flow = fl.Flow(potential)
    runs = fl.sweep(flow, begin, until=until.time(0.5), measures=[near], rtol=1e-10)

    def field(t, y):
        a, b = y[0] ** 2 + y[1] - 11, y[0] + y[1] ** 2 - 7
        return -np.array([4 * y[0] * a + 2 * b, 2 * a + 4 * y[1] * b])

    def edge(t, y):
        return np.linalg.norm(y - saddle) - 0.4

    found = solve_ivp(
        field, (0, 0.5), begin[0], method="DOP853", rtol=1e-12, atol=1e-13, events=edge
    )
    enter, leave = found.t_events[0]
    assert runs.measures["near_saddle_entry_time"][0] == pytest.approx(enter, rel=1e-7)
    assert runs.measures["near_saddle_time"][0] == pytest.approx(leave - enter, rel=1e-7)


@pytest.mark.exhaustive
def test_a_point_on_the_boundary_is_reached_where_the_line_is_absorbed():
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
    begin = np.array([[0.6, 0.8], [0.1, 0.9]])
    ends = np.stack([np.hypot(*begin.T), np.zeros(2)], axis=1)
    near = measures.near(ends[0], 0.2, label="edge")
    runs = fl.sweep(flow, begin[:1], until=until.boundary(), measures=[near], rtol=1e-10)
    # On the unit circle, within 0.2 of (1, 0) from the angle 2·arcsin(0.1) on.
    enter = exact.ratio_plane_time(begin[0], 0.3, ratio=np.tan(2 * np.arcsin(0.1)))
    assert runs.measures["near_edge_entry_time"][0] == pytest.approx(float(enter), rel=1e-7)
    assert runs.measures["near_edge_time"][0] == pytest.approx(runs.time[0] - enter, rel=1e-7)
    assert runs.measures["near_edge_distance"][0] == pytest.approx(0, abs=1e-10)
    assert runs.measures["near_edge_distance_time"][0] == runs.time[0]


def test_points_and_radii_that_are_none_are_refused():
    with pytest.raises(ValueError, match="Argument `point` must hold finite numbers"):
        measures.near([0.0, np.nan], 1.0, label="a")
    for radius in (0.0, -1.0, np.inf, [1.0, 2.0]):
        with pytest.raises(ValueError, match="Argument `radius` must be positive and finite"):
            measures.near([0.0, 0.0], radius, label="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Argument `label` must be a word"):
        measures.near([0.0, 0.0], 1.0, label="two words")
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
    with pytest.raises(ValueError, match=r"Argument `point` must be a state of the flow"):
        fl.sweep(
            flow,
            np.ones((1, 2)),
            until=until.time(1.0),
            measures=[measures.near([0.0, 0.0, 0.0], 1.0, label="a")],
        )
