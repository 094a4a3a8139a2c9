"""Sensitivity to the start: closed forms, relations, and what has no derivative."""

import importlib
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import flowlab as fl
from flowlab import exact, starts, until
from flowlab.critical.sensitivity import lyapunov, sensitivity
from flowlab.domains import Box
from flowlab.potentials import Himmelblau
from flowlab.until import Outcome

BETA, LEVEL, DURATION = 0.3, 0.4, 2.0
SQUARE = starts.uniform(60, (0.1, 0.3), (0.6, 0.9), seed=3)
PLANE = fl.preference_flow(fl.DPO(BETA), fl.RatioPlane())
POINTS = starts.uniform(40, (-3.0,) * 3, (3.0,) * 3, seed=4)
LOG_RATIOS = starts.uniform(40, (-3.0, -3.0), (3.0, 3.0), seed=4)
LOG_PLANE = fl.preference_flow(fl.DPO(BETA), fl.LogRatioPlane())
IDENTITY = np.eye(2)
# The function has the name of its module, which it hides.
sensitivities = importlib.import_module("flowlab.critical.sensitivity")


class Quadratic(eqx.Module):
    rates: np.ndarray

    def __call__(self, y):
        return 0.5 * jnp.sum(self.rates * y**2)


def quadratic(*rates):
    return fl.Flow(Quadratic(np.array(rates)))


def matrices(first, second):
    return np.einsum("ni,nj->nij", first, second)


def central(function, points, step=1e-5):
    """The gradients of a function of points, by central differences."""
    shifts = step * np.eye(points.shape[1])
    return np.stack([(function(points + s) - function(points - s)) / (2 * step) for s in shifts], 1)


# Linear flows ---------------------------------------------------------------------------------


def test_a_bowl_draws_neighbours_together_at_its_rate_from_every_start():
    moved = sensitivity(quadratic(1.5, 1.5, 1.5), POINTS, until=until.time(DURATION))
    wanted = np.broadcast_to(np.exp(-1.5 * DURATION) * np.eye(3), (40, 3, 3))
    np.testing.assert_allclose(moved.jacobian, wanted, rtol=3e-5, atol=1e-12)
    np.testing.assert_array_equal(moved.time_gradient, 0)
    assert moved.undefined == 0
    found = lyapunov(quadratic(1.5, 1.5, 1.5), POINTS, time=DURATION)
    np.testing.assert_allclose(np.asarray(found), -1.5, rtol=1e-5)


def test_a_bowl_draws_neighbours_together_at_its_rate_long_after_its_lines_have_come_to_rest():
    moved = sensitivity(quadratic(1.5, 1.5, 1.5), POINTS, until=until.time(30.0))
    wanted = np.broadcast_to(np.exp(-45.0) * np.eye(3), (40, 3, 3))
    np.testing.assert_allclose(moved.jacobian, wanted, rtol=3e-4, atol=0)
    assert moved.undefined == 0


def test_an_exponent_is_undefined_where_neighbours_are_nearer_than_numbers_can_say():
    found = lyapunov(quadratic(1.5, 1.5, 1.5), POINTS, time=600.0, max_steps=40_000)
    assert np.all(found.outcome == Outcome.reached)
    assert found.undefined == 40


@pytest.mark.exhaustive
def test_the_exponent_near_a_minimum_falls_to_the_least_eigenvalue_of_its_hessian():
    points = starts.uniform(12, (2.9, 1.9), (3.1, 2.1), seed=5)
    flow = fl.Flow(Himmelblau())
    once, twice = (np.asarray(lyapunov(flow, points, time=time)) for time in (1.0, 2.0))
    least = 54 - 20 * np.sqrt(2)  # of the Hessian at (3, 2), [[74, 20], [20, 34]]
    np.testing.assert_allclose(2 * twice - once, -least, rtol=1e-5)
    np.testing.assert_allclose(twice, -least, rtol=1e-2)


def test_a_saddle_parts_neighbours_at_its_unstable_rate_also_at_the_saddle_itself():
    points = np.concatenate([POINTS[:39], np.zeros((1, 3))])
    rates = np.array([-0.7, 1.5, 0.4])
    moved = sensitivity(quadratic(*rates), points, until=until.time(DURATION))
    assert Outcome(moved.outcome[-1]) is Outcome.at_critical_point
    wanted = np.broadcast_to(np.diag(np.exp(-DURATION * rates)), (40, 3, 3))
    np.testing.assert_allclose(moved.jacobian, wanted, rtol=3e-5, atol=1e-12)
    found = lyapunov(quadratic(*rates), points, time=DURATION)
    np.testing.assert_allclose(found.values, 0.7, rtol=1e-5)
    assert found.undefined == 0


def test_derivatives_do_not_depend_on_the_blocks_beyond_the_tolerance():
    whole, small = (
        sensitivity(quadratic(-0.7, 1.5, 0.4), POINTS, until=until.time(DURATION), block_size=size)
        for size in (40, 7)
    )
    np.testing.assert_allclose(small.jacobian, whole.jacobian, rtol=3e-5, atol=1e-12)
    assert not np.array_equal(small.jacobian, whole.jacobian)


@pytest.mark.exhaustive
def test_lanes_left_behind_by_their_block_keep_their_derivatives(monkeypatch):
    # Beside the stable manifold the loss all but rests, and as a clock it stops: those lines hold
    # up their block, and end under another clock. Others end later than most.
    points = np.stack([np.logspace(-9, -1, 40), np.linspace(0.3, 0.8, 40)], axis=1)
    later, before = [], sensitivities._PASSES

    def noted(*arguments):
        later.append(arguments[0][0].clock.name)
        return before.later(*arguments)

    monkeypatch.setattr(sensitivities, "_PASSES", before._replace(later=noted, enough_blocks=1))
    options = {"until": until.loss_below(-0.5), "clock": "loss", "rtol": 1e-9, "block_size": 32}
    moved = sensitivity(quadratic(-1.0, 2.0), points, **options)
    assert "arc_length" in later
    gradient = saddle_time_gradient(points, moved.time)
    size = np.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose(moved.time_gradient / size, gradient / size, rtol=0, atol=1e-7)
    x, y = moved.end.T
    fallen = np.stack([np.zeros(40), np.exp(-2 * moved.time)], axis=1) - 2 * y[:, None] * gradient
    # What is left of growth by up to 1e9 that cancels.
    np.testing.assert_allclose(moved.jacobian[:, 1], fallen, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(
        moved.jacobian[:, 0], (2 * y / x)[:, None] * fallen, rtol=1e-5, atol=1e-4
    )


def saddle_time_gradient(points, time):
    """Of the time at which -x^2/2 + y^2, x growing at rate 1 and y falling at 2, has a level."""
    grown, fallen = np.exp(2 * time), np.exp(-4 * time)
    by_start = np.stack([-points[:, 0] * grown, 2 * points[:, 1] * fallen], axis=1)
    by_time = -(points[:, 0] ** 2) * grown - 4 * points[:, 1] ** 2 * fallen
    return -by_start / by_time[:, None]


# One pair on the log-ratio plane --------------------------------------------------------------


def test_margins_on_the_log_ratio_plane_part_as_the_closed_form_says():
    moved = sensitivity(LOG_PLANE, LOG_RATIOS, until=until.time(DURATION))
    before = LOG_RATIOS[:, 0] - LOG_RATIOS[:, 1]
    after = exact.kernel_margin(DURATION, before, BETA, IDENTITY)
    gain = (1 + np.exp(BETA * before)) / (1 + np.exp(BETA * after)) - 1
    wanted = IDENTITY + gain[:, None, None] / 2 * np.array([[1, -1], [-1, 1]])
    np.testing.assert_allclose(moved.jacobian, wanted, rtol=0, atol=1e-5)


def test_time_to_a_level_on_the_log_ratio_plane_has_the_gradient_of_the_closed_form():
    moved = sensitivity(LOG_PLANE, LOG_RATIOS - [4, 0], until=until.loss_below(LEVEL))
    before = LOG_RATIOS[:, 0] - 4 - LOG_RATIOS[:, 1]
    slope = -(1 + np.exp(BETA * before)) / (2 * BETA)
    wanted = slope[:, None] * np.array([1, -1])
    np.testing.assert_allclose(moved.time_gradient, wanted, rtol=1e-5)
    np.testing.assert_allclose(moved.jacobian, 0.5, rtol=1e-5)


# The ratio plane ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def at_level():
    return sensitivity(PLANE, SQUARE, until=until.loss_below(LEVEL), rtol=1e-8)


@pytest.mark.exhaustive
def test_ends_at_a_level_move_along_their_ray_as_the_radius_of_the_start(at_level):
    radius = np.linalg.norm(SQUARE, axis=1, keepdims=True)
    wanted = matrices(at_level.end / radius, SQUARE / radius)
    np.testing.assert_allclose(at_level.jacobian, wanted, rtol=0, atol=1e-6)


def test_times_to_a_level_obey_eulers_relation_since_they_scale_as_the_square(at_level):
    along = np.sum(SQUARE * at_level.time_gradient, axis=1)
    np.testing.assert_allclose(along, 2 * at_level.time, rtol=1e-6)


def test_the_gradient_of_the_time_to_a_level_is_that_of_the_closed_form(at_level):
    wanted = central(lambda x: exact.ratio_plane_time(x, BETA, level=LEVEL), SQUARE)
    np.testing.assert_allclose(at_level.time_gradient, wanted, rtol=1e-6, atol=1e-7)


def test_log_ratios_at_a_level_weigh_those_of_the_sft_point_by_squared_ratios():
    moved = sensitivity(PLANE, SQUARE, until=until.loss_below(LEVEL), of="u", rtol=1e-8)
    weights = SQUARE**2 / np.sum(SQUARE**2, axis=1, keepdims=True)
    wanted = np.stack([weights, weights], axis=1)
    np.testing.assert_allclose(moved.jacobian, wanted, rtol=1e-6)
    np.testing.assert_allclose(moved.time_gradient.sum(axis=1), 2 * moved.time, rtol=1e-6)
    np.testing.assert_allclose(
        moved.end[:, 1] - moved.end[:, 0], exact.ratio_plane_log_ratio_at(LEVEL, BETA), rtol=1e-6
    )


@pytest.fixture(scope="module")
def at_time():
    """To a fixed time, before which some starts are absorbed."""
    duration = 0.5
    return duration, sensitivity(PLANE, SQUARE, until=until.time(duration), rtol=1e-8)


@pytest.mark.exhaustive
def test_starts_absorbed_before_a_fixed_time_have_no_derivative_and_are_counted(at_time):
    duration, moved = at_time
    lasting = exact.ratio_plane_time(SQUARE, BETA, level=0.0) > duration
    assert 0 < np.sum(lasting) < 60
    np.testing.assert_array_equal(moved.defined, lasting)
    assert moved.undefined == 60 - np.sum(lasting)
    assert np.all(np.isnan(moved.jacobian[~lasting]))
    assert np.all(np.isnan(moved.time_gradient[~lasting]))
    found = lyapunov(PLANE, SQUARE, time=duration, rtol=1e-8)
    np.testing.assert_array_equal(np.isfinite(found.values), lasting)
    assert found.undefined == moved.undefined


@pytest.mark.exhaustive
def test_the_flow_map_at_a_fixed_time_carries_velocities_and_rays_as_it_must(at_time):
    duration, moved = at_time
    some = moved.defined
    first, last = (velocities(points[some]) for points in (SQUARE, moved.end))
    jacobian, end = moved.jacobian[some], moved.end[some]
    size = np.linalg.norm(last, axis=1, keepdims=True)
    carried = np.einsum("nij,nj->ni", jacobian, first)
    np.testing.assert_allclose(carried / size, last / size, rtol=0, atol=1e-5)
    # Times scale as the square of the distance from the origin, at which lines are alike.
    scaled = np.einsum("nij,nj->ni", jacobian, SQUARE[some])
    np.testing.assert_allclose(scaled / size, (end - 2 * duration * last) / size, rtol=0, atol=1e-5)


def velocities(points):
    """Along the circles about the origin, towards the chosen response."""
    turned = np.stack([points[:, 1], -points[:, 0]], axis=1)
    size = exact.ratio_plane_speed(points, BETA) / np.linalg.norm(points, axis=1)
    return size[:, None] * turned


# Walls ----------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_slide_brings_neighbours_together_and_keeps_the_gradient_of_the_time():
    points = np.array([[0.5, 0.95], [0.8, 0.9], [0.2, 0.8], [0.7, 0.3]])
    flow = fl.preference_flow(fl.DPO(BETA), fl.RatioPlane(Box(1.0, 1.0), wall="slide"))
    moved = sensitivity(flow, points, until=until.loss_below(LEVEL), clock="arc_length", rtol=1e-8)
    slid = np.isfinite(exact.box_time(points, BETA, wall=1.0, level=LEVEL).arrival)
    assert list(slid) == [True, True, False, False]
    np.testing.assert_allclose(moved.jacobian[slid], 0, atol=1e-6)
    wanted = central(lambda x: exact.box_time(x, BETA, wall=1.0, level=LEVEL).total, points)
    np.testing.assert_allclose(moved.time_gradient, wanted, rtol=2e-6, atol=1e-7)


# Misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"starts": [0.1, 0.2]}, "`starts` must have shape"),
        ({"of": "v"}, '`of` must be "state", "x", "u" or "probability", but is'),
        ({"block_size": 0}, "`block_size` must be a positive int, but is 0"),
        ({"max_steps": 0}, "`max_steps` must be an int from 1 to 2147483647, but is 0"),
        ({"until": 3}, "`until` must be a target"),
        ({"rtol": 2.0}, "`rtol` must lie between"),
        ({"clock": "loss"}, "`clock` must be one of"),
    ],
)
def test_misuse_of_sensitivity_is_told_in_a_sentence(change, sentence):
    options = {"starts": SQUARE, "until": until.time(1.0), **change}
    with pytest.raises(ValueError, match=sentence):
        sensitivity(PLANE, options.pop("starts"), **options)


def test_a_flow_without_pairs_has_only_its_state():
    with pytest.raises(ValueError, match='`of` must be "state" for a flow without pairs'):
        sensitivity(quadratic(1.0, 1.0), SQUARE, until=until.time(1.0), of="u")


def test_log_ratios_of_a_pair_do_not_say_which_logits_are_meant():
    flow = fl.preference_flow(fl.DPO(BETA), fl.TabularSoftmax([0.5, 0.3, 0.2]))
    with pytest.raises(ValueError, match="the 2 coordinates of the pairs do not determine a"):
        sensitivity(flow, POINTS, until=until.time(1.0), of="u")


def test_a_state_that_is_no_vector_has_no_jacobian():
    flow = fl.Flow(lambda tree: jnp.sum(tree["y"] ** 2))
    trees: Any = {"y": SQUARE}
    with pytest.raises(ValueError, match="`starts` must have shape .n, d., since derivatives"):
        sensitivity(flow, trees, until=until.time(1.0))


@pytest.mark.parametrize("time", [0.0, -1.0, np.inf, np.nan, "1"])
def test_a_lyapunov_exponent_needs_a_positive_time(time):
    with pytest.raises(ValueError, match="`time` must be positive and finite, but is"):
        lyapunov(quadratic(1.0, 1.0), SQUARE, time=time)
