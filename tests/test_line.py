"""Single flow lines: dense output, tracing, reversal, and bad input."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned
from scipy.integrate import solve_ivp

import flowlab as fl
from flowlab import exact, until
from flowlab.domains import Box, Simplex
from flowlab.losses import AbstractLoss
from flowlab.solve.compilation import compiled
from flowlab.until import Outcome

FLOW = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
START = np.array([0.1, 0.9])
TARGET = until.loss_below(0.1)
quickly = partial(compiled, optimise=False)  # as `jax.jit`, in half of its time


def test_the_numbers_of_the_paper_plane_come_out_to_ten_digits():
    for start, wanted in (
        ((0.1, 0.9), 2.761094812646),
        ((0.5, 0.5), 0.938402579780),
        ((0.95, 0.95), 3.387633313007),
    ):
        line = fl.flow_line(FLOW, np.array(start), until=TARGET, rtol=1e-11)
        assert line.time == pytest.approx(wanted, rel=2e-11)


@pytest.mark.exhaustive
def test_a_line_in_the_box_reaches_the_wall_and_slides_to_the_known_time():
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Box(1, 1), wall="slide"))
    line = fl.flow_line(flow, np.array([0.9, 0.8]), until=TARGET, rtol=1e-10)
    assert line.time == pytest.approx(2.40325281957, rel=1e-9)
    on_wall = line.times > 0.658631448134
    np.testing.assert_allclose(line.states[on_wall, 0], 1.0, rtol=1e-13)
    assert np.any(np.abs(line.times - 0.658631448134) < 1e-9)


@pytest.mark.exhaustive
def test_a_line_in_the_simplex_is_released_in_the_middle_of_the_wall():
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Simplex(), wall="slide"))
    line = fl.flow_line(flow, START, until=TARGET, rtol=1e-10)
    assert line.time == pytest.approx(0.945426588449 + 0.938402579780, rel=1e-9)
    released = np.argmin(np.abs(line.times - 0.945426588449))
    np.testing.assert_allclose(line.states[released], [0.5, 0.5], atol=1e-9)
    np.testing.assert_allclose(line.states[: released + 1].sum(axis=1), 1.0, rtol=1e-9)


def test_dense_output_agrees_with_scipy_between_the_steps():
    def velocity(_, x):
        weight = 0.3 / (1 + (x[0] / x[1]) ** 0.3)
        return [weight / x[0], -weight / x[1]]

    line = fl.flow_line(FLOW, START, until=until.time(2.0), rtol=1e-8)
    times = np.linspace(0, 2, 57)
    wanted = solve_ivp(
        velocity, (0, 2), START, method="DOP853", t_eval=times, rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(line.at(times), wanted.y.T, rtol=1e-7)
    np.testing.assert_allclose(line.at(1.0), wanted.y.T[28], rtol=1e-7)
    assert line.at(np.zeros((2, 3))).shape == (2, 3, 2)


def test_a_line_starts_at_its_start_and_ends_at_its_end():
    line = fl.flow_line(FLOW, START, until=TARGET)
    assert line.times[0] == 0
    np.testing.assert_array_equal(line.states[0], START)
    assert line.times[-1] == line.time == line.end_time
    np.testing.assert_allclose(line.states[-1], line.end, rtol=1e-14)
    assert np.all(np.diff(line.times) > 0)


def test_following_a_line_backwards_leads_to_its_start():
    there = fl.flow_line(FLOW, START, until=until.time(1.5), rtol=1e-9)
    back = fl.flow_line(FLOW, there.end, until=until.time(1.5), rtol=1e-9, reverse=True)
    np.testing.assert_allclose(back.end, START, rtol=1e-7)


@pytest.mark.exhaustive
def test_lines_can_be_mapped_and_jitted():
    points = jnp.asarray([[0.1, 0.9], [0.5, 0.5], [0.9, 0.2]])

    def time(start):
        return fl.flow_line(FLOW, start, until=TARGET, rtol=1e-8).time

    found = jax.jit(jax.vmap(time))(points)
    wanted = exact.ratio_plane_time(np.asarray(points), 0.3, level=0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.exhaustive
def test_a_traced_line_gives_its_dense_output_too():
    @quickly
    def states(start):
        line = fl.flow_line(FLOW, start, until=until.time(1.0), rtol=1e-8, max_steps=64)
        return line.at(jnp.asarray([0.0, 0.4, 1.0]))

    line = fl.flow_line(FLOW, START, until=until.time(1.0), rtol=1e-8)
    np.testing.assert_allclose(
        states(jnp.asarray(START)), line.at(np.array([0, 0.4, 1.0])), rtol=1e-8
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("clock", ["arc_length", "loss"])
def test_the_derivative_of_the_arrival_time_is_that_of_the_closed_form(clock):
    def time(start):
        return fl.flow_line(FLOW, start, until=TARGET, rtol=1e-9, clock=clock).time

    found = quickly(jax.jacfwd(time))(jnp.asarray(START))
    step = 1e-6
    shifted = START + step * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    times = exact.ratio_plane_time(shifted, 0.3, level=0.1)
    wanted = [(times[0] - times[1]) / (2 * step), (times[2] - times[3]) / (2 * step)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.exhaustive
def test_the_derivative_through_a_wall_is_that_of_the_closed_form():
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Simplex(), wall="slide"))
    start = np.array([0.2, 0.7])

    def time(start):
        return fl.flow_line(flow, start, until=TARGET, rtol=1e-9).time

    found = quickly(jax.jacfwd(time))(jnp.asarray(start))
    step = 1e-6
    shifted = start + step * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    times = exact.simplex_time(shifted, 0.3, level=0.1).total
    wanted = [(times[0] - times[1]) / (2 * step), (times[2] - times[3]) / (2 * step)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.exhaustive
def test_the_line_to_extinction_includes_the_stretch_that_is_added():
    flow = fl.preference_flow(fl.DPO(1.9), fl.RatioPlane())
    line = fl.flow_line(flow, np.array([0.6, 0.8]), until=until.boundary(), rtol=1e-9)
    wanted = exact.ratio_plane_time(np.array([0.6, 0.8]), 1.9, ratio=0.0)
    assert line.end_time == pytest.approx(wanted, rel=1e-8)
    assert line.times[-1] < 0.97 * wanted
    np.testing.assert_allclose(line.end, [1.0, 0.0], atol=1e-8)
    np.testing.assert_allclose(line.at(float(line.end_time)), line.end)


@pytest.mark.parametrize("solver", thinned([diffrax.Dopri5, diffrax.Bosh3], {diffrax.Bosh3}))
def test_any_diffrax_solver_with_an_error_estimate_will_do(solver):
    line = fl.flow_line(FLOW, START, until=TARGET, rtol=1e-7, solver=solver())
    assert line.time == pytest.approx(2.761094812646, rel=1e-5)


def test_a_solver_without_an_error_estimate_or_with_equations_to_solve_is_refused():
    for solver in (diffrax.Euler(), diffrax.Kvaerno5()):
        with pytest.raises(ValueError, match="must be an explicit"):
            fl.flow_line(FLOW, START, until=TARGET, solver=solver)


def test_a_line_says_what_it_is_in_a_line():
    line = fl.flow_line(FLOW, (0.1, 0.9), until=TARGET)
    assert repr(line).startswith("Line(reached: end_time=2.761")
    assert "\n" not in repr(line)


@pytest.mark.exhaustive
def test_a_line_says_that_the_boundary_absorbed_it_and_what_measures_that():
    line = fl.flow_line(FLOW, START, until=until.time(100.0))
    told = f"; 1 absorbed by the boundary (x_rejected = 0) at time {float(line.end_time):.4g}, "
    assert told in repr(line) and "until.boundary()" in repr(line) and "\n" not in repr(line)
    assert "absorbed" not in repr(fl.flow_line(FLOW, START, until=until.boundary()))


@pytest.mark.parametrize("reverse", thinned([jax.grad, jax.jacrev], {jax.grad}))
def test_reverse_mode_is_refused_in_a_sentence_that_names_forward_mode(reverse):
    bowl = fl.Flow(lambda y: 0.5 * y @ y)

    def time(start):
        return fl.flow_line(bowl, start, until=TARGET, max_steps=64).time

    with pytest.raises(RuntimeError, match=r"forward mode alone: use jax\.jvp or jax\.jacfwd"):
        jax.jit(reverse(time))(jnp.asarray(START))


def test_a_target_that_is_none_is_refused():
    with pytest.raises(ValueError, match="Argument `until` must be a target"):
        fl.flow_line(FLOW, START, until=0.1)  # type: ignore[arg-type]


@pytest.mark.exhaustive
def test_float32_starts_give_float32_lines_without_touching_the_configuration():
    line = fl.flow_line(FLOW, START.astype(np.float32), until=TARGET, rtol=1e-4)
    assert line.states.dtype == np.float32
    assert line.time == pytest.approx(2.761094812646, rel=1e-3)


class ToAPower(AbstractLoss):
    """(margin − 1) to a power that is a whole number of Python's."""

    order: int = 2

    def __call__(self, pairs):
        return (pairs.margin - 1.0) ** self.order


@pytest.mark.parametrize("dtype", thinned([np.float32, np.float64], {np.float32}))
def test_a_whole_number_in_a_loss_goes_with_both_precisions(dtype):
    flow = fl.preference_flow(ToAPower(), fl.LogRatioPlane())
    line = fl.flow_line(flow, np.zeros(2, dtype), until=until.time(0.25))
    assert line.end.dtype == dtype
    # The margin goes to 1 with the rate 4.
    np.testing.assert_allclose(line.end[0] - line.end[1], 1 - np.exp(-1), rtol=1e-4)


def test_a_target_already_passed_is_an_outcome():
    line = fl.flow_line(FLOW, np.array([1.0, 1e-9]), until=TARGET)
    assert line.outcome == Outcome.started_past_target
    assert np.isnan(line.time)
    assert line.end_time == 0


BAD_STARTS = {
    "must have shape (2,), but has shape (3,)": np.ones(3),
    "must lie in the domain of the flow, positive components, but": np.array([-0.1, 0.5]),
    "must be finite": np.array([np.nan, 0.5]),
    "must hold real numbers": np.array(["a", "b"]),
}


@pytest.mark.parametrize("sentence", BAD_STARTS)
def test_a_bad_start_is_a_sentence(sentence):
    with pytest.raises(ValueError, match="Argument `start`") as caught:
        fl.flow_line(FLOW, BAD_STARTS[sentence], until=TARGET)
    assert sentence in str(caught.value)


def test_a_start_on_the_axis_lies_outside_of_the_domain():
    with pytest.raises(ValueError, match="domain"):
        fl.flow_line(FLOW, np.array([0.5, 0.0]), until=TARGET)


def test_reversal_and_targets_down_the_flow_do_not_go_together():
    with pytest.raises(ValueError, match="Argument `reverse`"):
        fl.flow_line(FLOW, START, until=TARGET, reverse=True)


def test_times_off_the_line_are_refused():
    line = fl.flow_line(FLOW, START, until=until.time(1.0))
    with pytest.raises(ValueError, match="Argument `time`"):
        line.at([0.5, 1.5])
    with pytest.raises(ValueError, match="Argument `time`"):
        line.at(-0.1)


def test_products_keep_the_precision_of_their_dtype_on_every_device():
    seen = []

    def potential(y):
        seen.append(jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]
        return 0.5 * y @ y

    bowl, start = fl.Flow(potential), np.ones(2, np.float32)
    jax.eval_shape(lambda y: fl.flow_line(bowl, y, until=until.time(0.1)).end, start)
    traced = len(seen)
    fl.flow_line(bowl, start, until=until.time(0.1))
    fl.sweep(bowl, start[None], until=until.time(0.1), optimise=False)
    assert seen.count("highest") > 10 and seen[:traced].count("highest") > 3
    # What is evaluated elsewhere is the check of the shapes of a potential, which makes no product.
    assert set(seen) <= {"highest", None}


@pytest.mark.parametrize("time", ["x", None, 1j, [[0.1], [0.2, 0.3]]])
def test_a_time_that_is_no_number_is_refused(time):
    line = fl.flow_line(
        fl.preference_flow(fl.DPO(0.3), fl.RatioPlane()), np.ones(2) / 2, until=until.time(0.1)
    )
    with pytest.raises(ValueError, match="^Argument `time` must hold real numbers, but is "):
        line.at(time)
