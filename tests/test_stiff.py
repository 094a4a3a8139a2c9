"""Stiff flows by the solvers made for them: exact quadratics, SciPy, orders, refusals."""

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import assert_refused
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

import flowlab as fl
from flowlab import plans, solve, store, until
from flowlab.ensemble import kernel
from flowlab.solve import RKC2, ROCK4, Rodas5P
from flowlab.solve.stiffness import bounded_rates, steps_alone, stiff_solvers
from flowlab.until import Outcome

SOLVERS = pytest.mark.parametrize("solver", [RKC2(), ROCK4()], ids=["RKC2", "ROCK4"])
DEAR = pytest.mark.exhaustive
ONE_AND_ALL = pytest.mark.parametrize(
    "solver",
    [RKC2(), pytest.param(ROCK4(), marks=DEAR), pytest.param(Rodas5P(), marks=DEAR)],
    ids=["RKC2", "ROCK4", "Rodas5P"],
)


class Quadratic:
    """½ yᵀAy with A = QΛQᵀ, and what is known of its flow."""

    def __init__(self, dimensions: int, condition: float) -> None:
        numbers = np.random.default_rng(0).standard_normal((dimensions, dimensions))
        self.axes, self.rates = np.linalg.qr(numbers)[0], np.geomspace(1, condition, dimensions)
        self.matrix = self.axes @ np.diag(self.rates) @ self.axes.T
        self.start = self.axes @ np.ones(dimensions)
        self.flow = fl.Flow(self)

    def __call__(self, y: Any) -> Any:
        return 0.5 * y @ (jnp.asarray(self.matrix, y.dtype) @ y)

    def at(self, time: float) -> np.ndarray:
        """The state at a flow time, from `start`."""
        return self.axes @ np.exp(-self.rates * time)

    def level(self, time: float) -> float:
        """The potential there."""
        return 0.5 * float(np.sum(self.rates * np.exp(-2 * self.rates * time)))


@cache
def quadratic(dimensions: int = 8, condition: float = 1e4) -> Quadratic:
    return Quadratic(dimensions, condition)


@pytest.mark.parametrize(
    ("solver", "order", "slack"),
    [(RKC2(), 2, 0.2), (ROCK4(), 4, 0.3), (Rodas5P(), 5, 0.4)],
    ids=["RKC2", "ROCK4", "Rodas5P"],
)
def test_the_order_that_is_observed_is_the_one_that_is_told(solver, order, slack):
    def field(time, y, _):
        return -jnp.sinh(y) * jnp.array([1.0, 3.0]) + jnp.sin(3 * time)

    def reference(time, y):
        return -np.sinh(y) * np.array([1.0, 3.0]) + np.sin(3 * time)

    start = np.array([1.0, 0.5])
    times = np.array([0.03, 0.37, 0.71, 0.97, 1.0])
    options: Any = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-15, "t_eval": times}
    exact = solve_ivp(reference, (0, 1), start, **options).y.T

    @jax.jit
    def states(step):
        options: Any = {"stepsize_controller": diffrax.ConstantStepSize(), "max_steps": 100}
        field_, kept = diffrax.ODETerm(field), diffrax.SaveAt(ts=jnp.asarray(times))
        solution = diffrax.diffeqsolve(
            field_, solver, 0.0, 1.0, step, start, saveat=kept, **options
        )
        assert solution.ys is not None
        return solution.ys

    counts = np.array([12, 24, 48])
    errors = np.array([np.abs(states(jnp.asarray(1 / n)) - exact).max(-1) for n in counts])
    observed = -np.polyfit(np.log(counts), np.log(errors[:, -1]), 1)[0]
    assert observed == pytest.approx(order, abs=slack)
    inside = -np.polyfit(np.log(counts), np.log(errors.max(-1)), 1)[0]
    assert inside > order - 1 - slack
    assert solver.order(None) == order


@SOLVERS
@pytest.mark.parametrize("stages", [5, 13, 206])
def test_a_step_is_stable_as_far_as_it_says_and_follows_the_exponential(solver, stages):
    reaches, taken = stages_by_reach(solver)
    stages = taken[taken <= stages][-1]
    longest = reaches[taken <= stages][-1]
    z = np.concatenate([-np.linspace(0, longest, 4998), [-0.02, -0.01]])
    values = end_of_step(solver)(jnp.asarray(z), jnp.int32(stages))[0]
    assert np.all(np.abs(values[z < -3]) < 0.97)
    assert np.all(np.abs(values) <= 1 + 1e-12)
    lacking = np.abs(values[-2:] - np.exp(z[-2:]))
    # What is lacking falls with the power of the step that the order says.
    assert np.log2(lacking[0] / lacking[1]) == pytest.approx(solver.order(None) + 1, abs=0.2)


@SOLVERS
def test_the_inside_of_a_step_is_interpolated_from_its_values_to_its_order(solver):
    z = jnp.asarray(np.where(np.arange(5000) % 2, -0.1, -0.2))  # as many as in the test above
    y1, _, bend, twist = end_of_step(solver)(z, jnp.int32(13))
    zero, one = jnp.zeros(()), jnp.ones(())
    inside = solver.interpolation_cls(
        t0=zero, t1=one, y0=jnp.ones_like(z), y1=y1, bend=bend, twist=twist
    )
    np.testing.assert_array_equal(inside.evaluate(zero), 1)
    np.testing.assert_array_equal(inside.evaluate(one), y1)
    for part in (0.2, 0.5, 0.9):
        lacking = np.abs(inside.evaluate(jnp.asarray(part)) - np.exp(part * z))
        assert lacking[1] < 1e-4
        wanted = 3 if isinstance(solver, RKC2) else 4
        assert np.log2(lacking[0] / lacking[1]) > wanted - 0.4


@pytest.mark.parametrize(
    ("solver", "clock"),
    [
        (ROCK4(), "time"),
        pytest.param(Rodas5P(), "time", marks=DEAR),
        pytest.param(Rodas5P(), "arc_length", marks=DEAR),
        pytest.param(RKC2(), "arc_length", marks=DEAR),
        pytest.param(RKC2(), "time", marks=DEAR),
        pytest.param(ROCK4(), "arc_length", marks=DEAR),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_a_rotated_quadratic_is_followed_to_a_time_a_level_and_between(solver, clock):
    problem, rtol = quadratic(), 1e-5
    options: Any = {"clock": clock, "solver": solver, "rtol": rtol}
    line = fl.flow_line(problem.flow, problem.start, until=until.time(2.0), **options)
    assert line.solver == type(solver).__name__
    np.testing.assert_allclose(line.end, problem.at(2.0), atol=100 * rtol * np.exp(-2.0))
    for time in (1e-4, 1e-2, 1.0):
        exact = problem.at(time)
        np.testing.assert_allclose(line.at(time), exact, atol=100 * rtol * np.max(np.abs(exact)))
    # An explicit Runge–Kutta method is not stable with steps over 7 of the fastest rate.
    assert line.steps < 2.0 * problem.rates[-1] / 7 / 4
    level = until.loss_below(problem.level(1.0))
    reached = fl.flow_line(problem.flow, problem.start, until=level, **options)
    assert reached.time == pytest.approx(1.0, abs=100 * rtol)
    value = float(problem(jnp.asarray(reached.end)))
    assert value == pytest.approx(problem.level(1.0), rel=1e-8)
    np.testing.assert_allclose(reached.states[-1], reached.end, rtol=1e-12)


@ONE_AND_ALL
def test_a_sweep_takes_lanes_of_all_kinds_to_their_level(solver):
    problem, rtol = quadratic(), 1e-4
    scales = np.array([0.03, 0.3, 1.0, 3.0])
    starts = scales[:, None] * problem.start
    level = problem.level(1.0)
    runs = fl.sweep(problem.flow, starts, until=until.loss_below(level), solver=solver, rtol=rtol)
    assert runs.solver == type(solver).__name__
    assert runs.counts() == {"reached": 4}
    wanted: Any = [
        brentq(lambda time, c=scale: c**2 * problem.level(time) / level - 1, 0, 9)
        for scale in scales
    ]
    np.testing.assert_allclose(runs.time, wanted, rtol=100 * rtol)


def test_a_sweep_solves_again_what_stability_held_up_and_leaves_the_others_alone():
    problem, rtol = quadratic(3, 1e5), 1e-4
    level = problem.level(1.0)
    # Along the fastest axis alone the loss falls to the level within some steps.
    starts = np.stack([problem.start, 3 * problem.axes[:, -1], 2 * problem.start])
    options: Any = {"until": until.loss_below(level), "clock": "time", "rtol": rtol}
    options |= {"block_size": 1, "max_steps": 300}
    runs = fl.sweep(problem.flow, starts, **options)
    assert runs.counts() == {"reached": 3}
    assert runs.solved_by is not None
    assert [runs.solvers[code] for code in runs.solved_by] == ["Rodas5P", "Tsit5", "Rodas5P"]
    assert repr(runs).endswith(", 2 by Rodas5P)")
    at: Any = brentq(lambda time: 4 * problem.level(time) / level - 1, 0, 9)
    np.testing.assert_allclose(runs.time[[0, 2]], [1.0, at], rtol=100 * rtol)
    asked = fl.sweep(problem.flow, starts, solver=diffrax.Tsit5(), **options)
    assert [Outcome(code).name for code in asked.outcome] == ["step_limit", "reached", "step_limit"]
    assert asked.solved_by is None
    np.testing.assert_array_equal(asked.end[1], runs.end[1])
    told = runs.to_xarray().solved_by
    assert told.attrs["flag_meanings"] == "Tsit5 Rodas5P ROCK4 RKC2"
    assert "whatever was asked for" in told.attrs["comment"]
    np.testing.assert_array_equal(told, [1, 0, 1])


@DEAR
def test_a_store_says_what_solved_its_runs_and_is_resumed_to_the_same_bits(tmp_path):
    flow = fl.Flow(lambda y: 0.5 * jnp.sum(jnp.geomspace(1, 1e5, 3) * y**2))
    starts = fl.starts.DrawnStarts("uniform", 8, (0.5,) * 3, (1.0,) * 3)
    plan = plans.Plan(starts, flow=flow, until=until.time(1.0), block=4)
    whole = plans.run(plan, tmp_path / "whole", progress=False).load()
    assert set(np.unique(whole.solved_by)) == {1}
    plans.run(plan, tmp_path / "torn", progress=False)
    torn = store.BlockStore.open(tmp_path / "torn")
    torn.forget(list(torn.layout.blocks())[1])
    again = plans.run(plan, tmp_path / "torn", progress=False).load()
    for name in ("solved_by", "end", "steps"):
        np.testing.assert_array_equal(again[name], whole[name])


def test_a_valley_of_rosenbrock_agrees_with_the_implicit_method_of_scipy():
    def potential(y):
        return (1 - y[0]) ** 2 + 1e3 * (y[1] - y[0] ** 2) ** 2

    def velocity(_, y):
        across = y[1] - y[0] ** 2
        return [2 * (1 - y[0]) + 4e3 * y[0] * across, -2e3 * across]

    start = np.array([-0.5, 1.0])
    options: Any = {"until": until.time(2.0), "rtol": 1e-6}
    line = fl.flow_line(fl.Flow(potential), start, solver=ROCK4(), **options)
    exact = solve_ivp(velocity, (0, 2.0), start, method="Radau", rtol=1e-10, atol=1e-13).y[:, -1]
    np.testing.assert_allclose(line.end, exact, rtol=1e-4)
    assert line.steps < 1500  # stability would keep those of Tsit5 to some 6,000


def test_a_state_may_be_any_tree_of_arrays():
    rates = {"fast": np.geomspace(10, 1e4, 6).reshape(2, 3), "slow": (np.array([1.0, 3.0]),)}
    start = jax.tree.map(np.ones_like, rates)

    def potential(y):
        parts = jax.tree.map(lambda leaf, rate: jnp.sum(rate * leaf**2), y, rates)
        return jnp.asarray(0.5 * sum(jax.tree.leaves(parts)))

    line = fl.flow_line(fl.Flow(potential), start, until=until.time(1.0), solver=ROCK4())
    exact = jax.tree.map(lambda rate: np.exp(-rate), rates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), line.end, exact)


@DEAR
@SOLVERS
def test_a_time_of_arrival_has_derivatives_in_forward_mode(solver):
    problem = quadratic(3, 1e3)
    level = until.loss_below(problem.level(1.0))

    def time(scale):
        start = scale * jnp.asarray(problem.start)
        return fl.flow_line(problem.flow, start, until=level, solver=solver, max_steps=800).time

    value, slope = jax.jit(lambda s: jax.jvp(time, (s,), (jnp.ones_like(s),)))(jnp.asarray(1.0))
    # The level is met where c²·L(t) is the level: dt/dc = −2L/L'.
    rates, left = problem.rates, np.exp(-2 * problem.rates)
    assert value == pytest.approx(1.0, abs=1e-4)
    assert slope == pytest.approx(np.sum(rates * left) / np.sum(rates**2 * left), rel=1e-3)


def test_a_line_that_only_stability_holds_up_is_followed_by_a_method_of_stiff_flows():
    problem = quadratic(8, 1e4)
    options: Any = {"until": until.time(2.0), "rtol": 1e-5, "max_steps": 400}
    line = fl.flow_line(problem.flow, problem.start, **options)
    assert (line.outcome, line.solver) == (Outcome.reached, "Rodas5P")
    assert line.steps < 64  # of Tsit5 as many at the bound of stability are waited for
    assert "by Rodas5P" in repr(line)
    np.testing.assert_allclose(line.end, problem.at(2.0), atol=1e-3 * np.exp(-2.0))
    asked = fl.flow_line(problem.flow, problem.start, solver=diffrax.Tsit5(), **options)
    assert (asked.outcome, asked.solver) == (Outcome.step_limit, "Tsit5")


@DEAR
def test_a_large_state_is_followed_without_a_matrix_by_choice():
    problem = quadratic(40, 1e4)
    line = fl.flow_line(problem.flow, problem.start, until=until.time(2.0), rtol=1e-4)
    assert (line.outcome, line.solver) == (Outcome.reached, "RKC2")
    np.testing.assert_allclose(line.end, problem.at(2.0), atol=1e-2 * np.exp(-2.0))


@SOLVERS
def test_the_longest_step_is_one_that_the_stages_can_bear_whatever_the_rounding(solver):
    method: Any = solve.make_method(solver, rtol=1e-6).solver
    longest = float(solver.longest(np.float64, 1e-6))

    def reach(radius):
        state = SimpleNamespace(value=radius[None])
        lanes = SimpleNamespace(active=jnp.ones(1, bool))
        return method.longest_step(state, lanes) * radius

    reaches = jax.vmap(reach)(jnp.asarray(np.random.default_rng(0).uniform(1e3, 1e6, 1000)))
    np.testing.assert_array_less(reaches, longest)
    np.testing.assert_allclose(reaches, longest, rtol=1e-14)


def test_small_states_are_solved_with_a_matrix_and_large_ones_without():
    def names(size: int, metric: Any = None, rtol: float = 1e-6, rate: float = 1e4) -> list[str]:
        state, flow = np.ones(size), fl.Flow(lambda y: y @ y, metric=metric)
        options: Any = {"until": until.time(1.0), "rtol": rtol}
        made = solve.problem_for(None, flow, np.float64, state, **options)
        chosen = stiff_solvers(made, state, rate=rate, max_steps=4096)
        return [type(solver).__name__ for solver in chosen]

    assert names(32) == ["Rodas5P", "ROCK4", "RKC2"]
    assert names(33) == ["ROCK4", "RKC2"]
    assert names(33, rtol=1e-4) == ["RKC2", "ROCK4"]
    # 4,096 steps of some 640 of the fastest rate do not lead to time 1.
    assert names(33, rate=1e7) == ["RKC2", "ROCK4"]
    assert names(2, lambda y, p: y * p) == ["Rodas5P"]
    assert names(33, lambda y, p: y * p) == []


def test_each_line_is_told_stiff_by_the_steps_that_it_takes_alone_from_where_it_stands():
    def potential(y):
        return y[0] ** 4 / 4 + 5e4 * y[2] * y[1] ** 2

    # The last component stays, and says whether the second one decays at a rate of 1e5.
    flow = fl.Flow(potential, metric=lambda y, p: p * np.array([1.0, 1.0, 0.0]))
    states = np.array([[10.0, 1e-7, 1], [10, 1, 0], [1e6, 1, 1], [10, np.nan, 1], [1, 1e-7, 1]])
    problem = solve.problem_for(None, flow, np.float64, states[0], until=until.time(1.0))
    found = steps_alone(problem, solve.make_method(rtol=1e-6), np.ones((5, 3)), states)
    rates = bounded_rates(problem, *found)
    # At 1e6 the first one falls at 3e12, along a power of time, which accuracy bounds.
    np.testing.assert_array_equal(rates > 0, [True, False, False, False, True])
    np.testing.assert_allclose(rates[[0, 4]], 1.2e5, rtol=0.05)  # with a margin of a fifth


@DEAR
def test_a_stiff_flow_whose_metric_depends_on_the_state_follows_the_logistic_curve():
    rates = np.array([1.0, 1e4])
    flow = fl.Flow(lambda y: 0.5 * jnp.sum(rates * (y - 1) ** 2), metric=lambda y, p: y * p)
    line = fl.flow_line(flow, np.array([0.1, 0.2]), until=until.time(5.0))
    assert line.solver == "Rodas5P"
    # y' = k·y·(1 − y) has the logistic curve for its solution.
    odds = np.array([0.1, 0.2]) / np.array([0.9, 0.8]) * np.exp(np.minimum(rates * 5.0, 700))
    np.testing.assert_allclose(line.end, odds / (1 + odds), rtol=1e-4)


def test_a_line_that_accuracy_holds_up_stays_what_it_is():
    flow = fl.Flow(lambda y: jnp.sum(y**4) / 4)
    options: Any = {"until": until.time(1e6), "rtol": 1e-11, "max_steps": 70}
    line = fl.flow_line(flow, np.array([1.0, 1.1]), **options)
    assert (line.outcome, line.solver) == (Outcome.step_limit, "Dopri8")


def test_solvers_are_refused_where_the_spectrum_need_not_be_real():
    plane = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
    target, start = until.loss_below(0.1), np.array([0.1, 0.9])
    assert_refused(
        fl.flow_line,
        'Argument `clock` must be "arc_length" or "time" with the solver RKC2, which needs a '
        'Jacobian with a real spectrum, but is "margin".',
        *(plane, start),
        until=target,
        clock="margin",
        solver=RKC2(),
    )
    assert_refused(
        fl.flow_line,
        'Argument `clock` must be "arc_length" or "time" with the solver Rodas5P, which needs a '
        'field that does not depend on its clock, but is "margin".',
        *(plane, start),
        until=target,
        clock="margin",
        solver=Rodas5P(),
    )
    curved = fl.Flow(lambda y: y @ y, metric=lambda y, p: (1 + y @ y) * p)
    for verb, states in ((fl.flow_line, start), (fl.sweep, start[None])):
        assert_refused(
            verb,
            "Argument `solver` must be another one, such as diffrax.Tsit5(), for a flow whose "
            "metric depends on the state, but is ROCK4, which needs a Jacobian with a real "
            "spectrum.",
            *(curved, states),
            until=target,
            solver=ROCK4(),
        )
    assert_refused(
        solve.make_method,
        "Argument `solver` must be an explicit Runge–Kutta solver of diffrax such as "
        "diffrax.Dopri5(), or solve.Rodas5P() or solve.RKC2() for stiff flows, but is "
        f"{diffrax.Kvaerno5()!r}.",
        diffrax.Kvaerno5(),
        rtol=1e-6,
    )


def test_no_kernel_is_made_of_lanes_that_share_their_stages():
    problem = quadratic(3, 1e3)
    made = solve.problem_for(RKC2(), problem.flow, np.float64, problem.start, until=until.time(1.0))
    method = solve.make_method(RKC2(), rtol=1e-6)
    with pytest.raises(kernel.RefusedError, match="the lanes of RKC2 share their number of stages"):
        kernel.solved(
            made,
            method,
            problem.start[None],
            devices=jax.devices()[:1],
            max_steps=10,
            elsewhere=lambda *_, **__: {},
            interpret=True,
        )


def test_a_constant_metric_is_told_from_one_that_depends_on_the_state():
    from flowlab.solve.spectrum import metric_is_constant

    matrix, state = np.diag([1.0, 5.0]), np.ones(2)

    def potential(y: Any) -> Any:
        return y @ y

    constant: list[Callable[..., Any]] = [lambda y, p: matrix @ p, lambda y, p: p * jnp.exp(p * 0)]
    moving: list[Callable[..., Any]] = [lambda y, p: y * p, lambda y, p: jax.jit(jnp.dot)(y, p) * p]
    assert all(metric_is_constant(fl.Flow(potential, metric=m), state) for m in constant)
    assert not any(metric_is_constant(fl.Flow(potential, metric=m), state) for m in moving)
    assert metric_is_constant(fl.preference_flow(fl.DPO(0.3), fl.RatioPlane()), state)


@cache
def stages_by_reach(solver: Any) -> tuple[np.ndarray, np.ndarray]:
    """Products of step and rate, and the stages that are taken for them."""
    reaches = np.geomspace(1, 1e5, 40_000)
    return reaches, np.asarray(solver.stages(jnp.asarray(reaches)))


@cache
def end_of_step(solver: Any) -> Callable[..., Any]:
    """A step of length 1 from 1 along y' = z·y, compiled for any number of stages."""

    @jax.jit
    def step(z, stages):
        field = lambda place, y: z * y  # noqa: E731
        return solver.stepped(field, jnp.ones_like(z), jnp.ones(()), stages)

    return step


def test_a_stiff_saddle_is_left_when_it_must_be():
    """Along b the loss is b⁴/4 − b²/2, so that b = δ·eᵗ/√(1 + δ²e²ᵗ) but for terms of δ²."""
    axes = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
    offset = 1e-9

    def valley(y):
        across, along = (y - 1) @ axes
        return 5e3 * across**2 - along**2 / 2 + along**4 / 4

    leaves = np.log(1 / np.sqrt(3) / offset)  # when b = 1/2
    start = 1 + axes @ np.array([1e-3, offset])
    for rtol in (1e-4, 1e-6):
        line = fl.flow_line(fl.Flow(valley), start, until=until.time(40.0), rtol=rtol)
        assert line.solver == "Rodas5P"
        along = (line.at(np.array([leaves, 40.0])) - 1) @ axes[:, 1]
        np.testing.assert_allclose(along, [0.5, 1.0], atol=2e-3)
