"""Times of sweeps against closed forms, at the tolerances that the README promises."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned

import flowlab as fl
from flowlab import exact, starts, until
from flowlab.domains import Box, Simplex
from flowlab.solve import advance, begin, finish, make_method, make_problem

pytestmark = pytest.mark.usefixtures("as_elsewhere")

BETAS = (0.05, 0.1, 0.3, 0.5, 1.0, 1.9)
COUNT = 10_000
SQUARE = starts.uniform(COUNT, (0.01, 0.01), (1.0, 1.0), seed=0)
KERNELS = {
    "identity": np.eye(2),
    "coupled": np.array([[1.0, 0.5], [0.5, 2.0]]),
    "falling chosen": np.array([[1.0, 1.1], [1.1, 2.0]]),
}


def errors_over_rtol(found, wanted, points, beta, rtol):
    radius = np.sum(points**2, axis=1)
    return np.abs(found - wanted) / np.maximum(wanted, 1e-3 * radius / beta) / rtol


def assert_within_the_promise(found, wanted, points, beta, rtol):
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    errors = errors_over_rtol(found, wanted, points, beta, rtol)
    assert np.nanmedian(errors) <= 10
    assert np.nanmax(errors) <= 100


def past_is_nan(times):
    return np.where(times > 0, times, np.nan)


@pytest.fixture(scope="module")
def square(request):
    """The starts, a part of them by default: each is solved for six values of β."""
    return SQUARE if request.config.getoption("--exhaustive") else SQUARE[: COUNT // 5]


@pytest.fixture(scope="module")
def few(request):
    """The starts, by default so few of them that their program is not optimised."""
    return SQUARE if request.config.getoption("--exhaustive") else SQUARE[: COUNT // 16]


# Every case compiles programs of its own: of each geometry, both targets and both tolerances.
TARGETS = [(0.1, 1e-6), (0.1, 1e-9), (0.0, 1e-6), (0.0, 1e-9)]


@pytest.mark.parametrize(("level", "rtol"), thinned(TARGETS, [(0.1, 1e-9)]))
def test_times_on_the_free_ratio_plane_agree_with_the_incomplete_beta_function(square, level, rtol):
    target = until.loss_below(level) if level else until.boundary()
    flow = fl.preference_flow(fl.DPO(0.1), fl.RatioPlane())
    runs = fl.sweep(flow, square, until=target, rtol=rtol, over={"beta": BETAS})
    for beta, found in zip(BETAS, runs.time, strict=True):
        place = {"level": level} if level else {"ratio": 0.0}
        wanted = past_is_nan(exact.ratio_plane_time(square, beta, **place))
        assert_within_the_promise(found, wanted, square, beta, rtol)


@pytest.mark.parametrize(
    ("domain", "level", "rtol"),
    thinned(
        [(domain, *target) for domain in ("box", "simplex") for target in TARGETS],
        [("box", 0.0, 1e-6)],
    ),
)
def test_times_along_walls_agree_with_the_closed_forms(few, domain, level, rtol):
    target = until.loss_below(level) if level else until.boundary()
    boxed = domain == "box"
    points = few if boxed else few[few.sum(axis=1) <= 1]
    walls = Box(1, 1) if boxed else Simplex()
    flow = fl.preference_flow(fl.DPO(0.1), fl.RatioPlane(walls, wall="slide"))
    runs = fl.sweep(flow, points, until=target, rtol=rtol, over={"beta": BETAS})
    for beta, found in zip(BETAS, runs.time, strict=True):
        if boxed:
            wanted = exact.box_time(points, beta, wall=1.0, level=level).total
        else:
            wanted = exact.simplex_time(points, beta, level=level).total
        assert_within_the_promise(found, past_is_nan(wanted), points, beta, rtol)


@pytest.mark.parametrize("rtol", thinned([1e-6, 1e-9], [1e-6]))
def test_times_in_a_simplex_of_unequal_references_agree_with_the_closed_form(rtol):
    points = starts.uniform(4000, (0.05, 0.05), (1.4, 2.5), seed=1)
    points = points[points @ [0.7, 0.4] <= 1]
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane(Simplex(0.7, 0.4), wall="slide"))
    runs = fl.sweep(flow, points, until=until.loss_below(0.1), rtol=rtol)
    wanted = exact.simplex_time(points, 0.3, level=0.1, ref_prob_chosen=0.7, ref_prob_rejected=0.4)
    assert np.mean(np.isfinite(wanted.release)) > 0.1
    assert_within_the_promise(runs.time, past_is_nan(wanted.total), points, 0.3, rtol)


@pytest.mark.parametrize("rtol", thinned([1e-6, 1e-9], [1e-6]))
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_times_under_a_constant_kernel_agree_with_the_wright_omega_law(kernel, rtol):
    points = starts.uniform(COUNT, (-5.0, -5.0), (5.0, 5.0), seed=2)
    flow = fl.preference_flow(fl.DPO(0.1), fl.LogRatioPlane(kernel))
    runs = fl.sweep(flow, points, until=until.loss_below(0.1), rtol=rtol, over={"beta": BETAS})
    margins = points[:, 0] - points[:, 1]
    for beta, found in zip(BETAS, runs.time, strict=True):
        target = exact.dpo_margin_at(0.1, beta)
        wanted = past_is_nan(exact.kernel_time(margins, target, beta, kernel))
        assert np.array_equal(np.isnan(found), np.isnan(wanted))
        errors = np.abs(found - wanted) / wanted / rtol
        assert np.nanmedian(errors) <= 10
        assert np.nanmax(errors) <= 100


@pytest.mark.parametrize("clock", thinned(["loss", "arc_length", "time"], {"arc_length"}))
@pytest.mark.parametrize("beta", [0.3, 1.9])
def test_flow_lines_keep_their_radius_to_1e_8(clock, beta):
    flow = fl.preference_flow(fl.DPO(beta), fl.RatioPlane())
    for start in SQUARE[:5]:
        line = fl.flow_line(flow, start, until=until.loss_below(0.05), clock=clock, rtol=1e-9)
        radius = np.sum(line.states**2, axis=1)
        assert np.ptp(radius) < 1e-8


def test_flow_lines_on_the_log_ratio_plane_are_straight_and_follow_the_margin_law():
    kernel = KERNELS["coupled"]
    flow = fl.preference_flow(fl.DPO(0.4), fl.LogRatioPlane(kernel))
    line = fl.flow_line(flow, np.array([-1.0, 2.0]), until=until.time(50.0), rtol=1e-10)
    asked = np.linspace(0, 50, 41)
    wanted = exact.kernel_state(asked, np.array([-1.0, 2.0]), 0.4, kernel)
    np.testing.assert_allclose(line.at(asked), wanted, rtol=0, atol=3e-8)


@pytest.mark.parametrize(
    ("solver", "duration", "steps"),
    [
        pytest.param(diffrax.Heun(), 2.0, (64, 128), marks=pytest.mark.exhaustive),
        pytest.param(diffrax.Bosh3(), 2.0, (64, 128), marks=pytest.mark.exhaustive),
        (diffrax.Tsit5(), 2.0, (64, 128)),
        (diffrax.Dopri8(), 4.0, (16, 32)),
    ],
    ids=["Heun", "Bosh3", "Tsit5", "Dopri8"],
)
def test_solvers_have_the_order_of_their_name(solver, duration, steps):
    flow = fl.Flow(lambda y: 0.5 * (2 * y[1] ** 2 - y[0] ** 2))
    start = np.array([[0.1], [1.0]])
    wanted = exact.saddle_state(duration, start[:, 0], unstable=1.0, stable=2.0)

    def solve(problem, method, start):
        lanes, _, _ = advance(problem, method, begin(problem, start), max_steps=1000)
        return finish(problem, lanes)

    def error(count):
        problem = make_problem(
            flow,
            until=until.time(duration),
            dtype=np.float64,
            clock="time",
        )
        method = make_method(solver, rtol=1e-6, constant_step=jnp.asarray(1 / count))
        found = eqx.filter_jit(solve)(problem, method, start)
        assert int(found["steps"][0]) == count
        return np.linalg.norm(found["end"][:, 0] - wanted)

    order = np.log2(error(steps[0]) / error(steps[1]))
    assert abs(order - solver.order(None)) < 0.2


def test_float32_runs_agree_with_the_closed_form_to_their_tolerance():
    points = SQUARE[:1000].astype(np.float32)
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
    runs = fl.sweep(flow, points, until=until.loss_below(0.1), rtol=1e-4)
    assert runs.time.dtype == np.float32
    wanted = exact.ratio_plane_time(points.astype(float), 0.3, level=0.1)
    assert_within_the_promise(runs.time, wanted, points.astype(float), 0.3, 1e-4)


@pytest.mark.exhaustive
def test_tightening_the_tolerance_brings_the_error_down_with_it():
    flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
    wanted = exact.ratio_plane_time(SQUARE[:500], 0.3, level=0.1)
    errors = []
    for rtol in (1e-4, 1e-6):
        solver = diffrax.Tsit5()
        runs = fl.sweep(flow, SQUARE[:500], until=until.loss_below(0.1), rtol=rtol, solver=solver)
        errors.append(np.median(np.abs(runs.time / wanted - 1)))
    assert 20 < errors[0] / errors[1] < 500


def test_the_library_leaves_the_global_configuration_alone():
    with jax.enable_x64(False):
        flow = fl.preference_flow(fl.DPO(0.3), fl.RatioPlane())
        runs = fl.sweep(flow, SQUARE[:64], until=until.loss_below(0.1), rtol=1e-9)
        assert runs.time.dtype == np.float64
        assert not jax.config.read("jax_enable_x64")
        wanted = exact.ratio_plane_time(SQUARE[:64], 0.3, level=0.1)
    assert_within_the_promise(runs.time, wanted, SQUARE[:64], 0.3, 1e-9)
