"""Closed forms: against known numbers, 60-digit arithmetic, SciPy's solver, and relations."""

import subprocess
import sys
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import special
from scipy.integrate import solve_ivp

from flowlab import exact

BETAS = [0.05, 0.1, 0.3, 0.5, 1.0, 1.9]
UNIT = 1.1e-16
TIGHT: dict[str, Any] = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-18}


@pytest.fixture(autouse=True)
def sixty_digits():
    with mpmath.workdps(60):
        yield


def random_starts(count, seed=0):
    return np.random.default_rng(seed).uniform(0.01, 1.0, (count, 2))


def circle_time(start, beta, log_ratio):
    """The G formula in 60 digits; the target's log-ratio is an mpf, -inf at extinction."""
    (x1, x2), b = map(mpmath.mpf, start), mpmath.mpf(beta)
    squared = x1**2 + x2**2
    target = 1 / (1 + mpmath.exp(-2 * log_ratio))
    return squared / (2 * b) * (grown(b, x2**2 / squared) - grown(b, target))


def grown(b, s):
    return s + (mpmath.betainc(1 - b / 2, 1 + b / 2, 0, s) if s else 0)


def level_log_ratio(level, beta):
    return mpmath.log(mpmath.expm1(mpmath.mpf(level))) / mpmath.mpf(beta)


def gradient(x, beta):
    share = beta / (1 + (x[0] / x[1]) ** beta)
    return share * np.array([-1 / x[0], 1 / x[1]])


def loss(x, beta):
    return np.log1p((x[1] / x[0]) ** beta)


def solved(field, time, start):
    return solve_ivp(field, (0, time), start, **TIGHT).y[:, -1]


def projected_times(start, beta, level, normal):
    """Arrival, release, total of the flow projected on normal . x <= 1, by DOP853 in phases."""
    normal = np.asarray(normal, dtype=float)

    def outward(x):
        return -gradient(x, beta) @ normal

    def sliding(t, x):
        return -gradient(x, beta) - normal * outward(x) / (normal @ normal)

    def ends(condition, direction):
        condition.terminal, condition.direction = True, direction
        return condition

    arrived = ends(lambda t, x: loss(x, beta) - level, -1)
    met = ends(lambda t, x: normal @ x - 1, 1)
    freed = ends(lambda t, x: outward(x), -1)
    now, x, bound, times = 0.0, np.array(start), normal @ start >= 1, [np.nan, np.nan]
    for _ in range(4):
        held = bound and outward(x) > 0
        if held:
            times[0] = now
        field, other = (sliding, freed) if held else (lambda t, x: -gradient(x, beta), met)
        run = solve_ivp(field, (now, now + 1e3), x, events=[arrived, other], **TIGHT)
        now, x, bound = run.t[-1], run.y[:, -1], not held
        if len(run.t_events[0]):
            return [*times, now]
        if held:
            times[1], bound = now, False
            x = x * (1 - 1e-15) / (normal @ x)
    raise AssertionError("the level was not reached")


@pytest.mark.parametrize(("beta", "time"), [(0.1, 6.574324), (0.5, 1.514271), (1.0, 1.023648)])
def test_times_to_extinction_are_the_known_ones(beta, time):
    assert abs(exact.ratio_plane_time((0.6, 0.8), beta, ratio=0) - time) < 5.1e-7


def test_times_to_a_level_are_the_known_ones():
    times = exact.ratio_plane_time([(0.1, 0.9), (0.5, 0.5), (0.95, 0.95)], 0.3, level=0.1)
    assert_allclose(times, [2.761094812646, 0.938402579780, 3.387633313007], rtol=0, atol=5.1e-13)


def test_the_ratio_at_a_level_is_the_known_one():
    assert abs(exact.ratio_plane_ratio_at(0.1, 0.05) - 2.7e-20) < 0.05e-20


def test_box_times_are_the_known_ones():
    times = exact.box_time((0.9, 0.8), 0.3, wall=1, level=0.1)
    assert_allclose(times, [0.658631448134, 2.403252819572], rtol=0, atol=5.1e-13)


def test_simplex_times_are_the_known_ones():
    arrival, release, total = exact.simplex_time((0.1, 0.9), 0.3, level=0.1)
    assert arrival == 0
    assert_allclose([release, total - release], [0.945426588449, 0.938402579780], atol=5.1e-13)


def test_at_beta_1_9_a_twentieth_of_the_time_is_spent_beyond_log_ratio_minus_30():
    late = exact.ratio_plane_time((1.0, np.exp(-30)), 1.9, ratio=0)
    assert_allclose(late, np.exp(-3) / (1.9 * 0.1), rtol=1e-12)
    assert abs(late / exact.ratio_plane_time((0.6, 0.8), 1.9, ratio=0) - 0.05) < 0.005


@pytest.mark.parametrize("beta", BETAS)
def test_ratio_plane_times_agree_with_sixty_digits(beta):
    starts, level = random_starts(12), 0.1
    times = exact.ratio_plane_time(starts, beta, level=level)
    extinct = exact.ratio_plane_time(starts, beta, level=0)
    target = level_log_ratio(level, beta)
    for start, time, end in zip(starts, times, extinct, strict=True):
        if np.isnan(time):
            assert loss(start, beta) < level
            continue
        floor = 1e-3 * (start @ start) / beta
        for found, where in [(time, target), (end, mpmath.mpf("-inf"))]:
            right = circle_time(start, beta, where)
            assert abs(found - right) < 1e-13 * max(right, floor)


@pytest.mark.parametrize("beta", [*BETAS, 1.9999])
@pytest.mark.parametrize("ratio", [1e-200, 1e-9, 0.03, 0.9, 1.0, 3.0, 1e6])
@pytest.mark.parametrize("gap", [1e-12, 1e-6, 0.1, 2.0])
def test_short_ways_lose_no_digits(beta, ratio, gap):
    start = (1.0, ratio * (1 + gap))
    right = circle_time(start, beta, mpmath.log(mpmath.mpf(ratio)))
    unit = (1 + start[1] ** 2) / beta
    allowed = 1e-12 * max(right, 1e-3 * unit) + 2 * UNIT * abs(np.log(ratio)) * unit
    assert abs(exact.ratio_plane_time(start, beta, ratio=ratio) - right) < allowed


@pytest.mark.parametrize("beta", [1.999, 2.0, 2.001, 3.0, 4.0, 20.0])
def test_times_for_large_beta_agree_with_quadrature(beta):
    start, ratio = (0.3, 0.7), 0.04
    ends = [mpmath.log(mpmath.mpf(q)) for q in (ratio, 0.5, 1)]
    ends.append(mpmath.log(mpmath.mpf(start[1]) / mpmath.mpf(start[0])))
    integrand = lambda y: (1 + mpmath.exp(-beta * y)) / mpmath.cosh(y) ** 2  # noqa: E731
    squared = mpmath.mpf(start[0]) ** 2 + mpmath.mpf(start[1]) ** 2
    right = squared / (4 * mpmath.mpf(beta)) * mpmath.quad(integrand, ends)
    assert abs(exact.ratio_plane_time(start, beta, ratio=ratio) / right - 1) < 1e-13


def test_extinction_takes_for_ever_from_beta_2_on():
    times = exact.ratio_plane_time((0.6, 0.8), [1.9999, 2.0, 3.0], level=0)
    assert np.isfinite(times[0])
    assert np.isposinf(times[1:]).all()


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 3.0])
def test_ratio_plane_times_agree_with_a_solver(beta):
    for start in random_starts(3, seed=1):
        level = loss(start, beta) / 2
        _, _, time = projected_times(start, beta, level, (0.0, 0.0))
        assert_allclose(exact.ratio_plane_time(start, beta, level=level), time, rtol=1e-10)


def test_a_solver_meets_the_exact_states():
    start, beta = np.array([0.2, 0.7]), 0.3
    time = exact.ratio_plane_time(start, beta, ratio=0.4)
    end = solved(lambda t, x: -gradient(x, beta), time, start)
    assert_allclose(exact.ratio_plane_state(start, ratio=0.4), end, rtol=1e-10)


def test_times_scale_with_the_square_of_the_radius():
    starts = random_starts(50) + [0, 0.01]
    once = exact.ratio_plane_time(starts, 0.3, ratio=1e-3)
    assert_allclose(exact.ratio_plane_time(3 * starts, 0.3, ratio=1e-3), 9 * once, rtol=1e-13)


@pytest.mark.parametrize("beta", [0.05, 0.7, 1.9, 2.0, 5.0])
def test_times_add_up_along_a_flow_line(beta):
    starts = random_starts(50)
    middle = starts[:, 1] / starts[:, 0] * 0.3
    first = exact.ratio_plane_time(starts, beta, ratio=middle)
    states = exact.ratio_plane_state(starts, ratio=middle)
    second = exact.ratio_plane_time(states, beta, ratio=middle * 1e-3)
    whole = exact.ratio_plane_time(starts, beta, ratio=middle * 1e-3)
    assert_allclose(first + second, whole, rtol=1e-12)


def test_level_and_ratio_name_the_same_target():
    starts, betas = random_starts(20), np.linspace(0.2, 3, 20)
    ratio = exact.ratio_plane_ratio_at(0.2, betas)
    assert_allclose(np.log1p(ratio**betas), 0.2, rtol=1e-13)
    by_ratio = exact.ratio_plane_time(starts, betas, ratio=ratio)
    assert_allclose(by_ratio, exact.ratio_plane_time(starts, betas, level=0.2), rtol=1e-12)


def test_a_start_on_the_target_takes_no_time_and_one_past_it_has_none():
    starts = [(0.5, 0.5), (0.5, 0.6), (0.5, 0.4), (0.5, 0.0), (np.nan, 0.5)]
    times = exact.ratio_plane_time(starts, 0.3, ratio=1)
    assert times[0] == 0 and times[1] > 0 and np.isnan(times[2:]).all()
    assert exact.ratio_plane_time((0.5, 0.0), 0.3, ratio=0) == 0


def test_a_start_on_the_axis_of_the_rejected_moves_away_in_finite_time():
    on_axis = exact.ratio_plane_time((0.0, 0.8), 0.3, level=0.1)
    assert_allclose(exact.ratio_plane_time((1e-9, 0.8), 0.3, level=0.1), on_axis, rtol=1e-14)


def test_betas_broadcast_against_starts_and_arrays_come_back():
    starts = random_starts(5)
    times = exact.ratio_plane_time(starts, np.array(BETAS)[:, None], level=0)
    assert times.shape == (6, 5) and times.dtype == np.float64
    assert times[4, 3] == exact.ratio_plane_time(starts[3], BETAS[4], level=0)
    single = exact.ratio_plane_time(starts[0], 0.3, level=0), exact.ratio_plane_speed(starts[0], 1)
    assert all(isinstance(value, np.ndarray) for value in single)


@pytest.mark.parametrize("level", [1e-12, 0.1, 0.69, 0.693147180559945, 0.7, 3.0, 800.0])
def test_log_ratios_at_a_level_agree_with_sixty_digits(level):
    right = level_log_ratio(level, 0.05)
    found = exact.ratio_plane_log_ratio_at(level, 0.05)
    assert abs(found - right) <= 8 * UNIT * abs(right)
    assert exact.dpo_margin_at(level, 0.05) == -found


def test_states_stay_on_the_circle_and_have_the_ratio():
    starts, ratios = random_starts(40), np.geomspace(1e-30, 1e30, 40)
    states = exact.ratio_plane_state(starts, ratio=ratios)
    assert_allclose(np.hypot(*states.T), np.hypot(*starts.T), rtol=4e-16)
    assert_allclose(states[:, 1] / states[:, 0], ratios, rtol=1e-15)
    assert_allclose(exact.ratio_plane_state((3, 4), ratio=0), [5, 0])
    assert_allclose(exact.ratio_plane_state((3, 4), ratio=np.inf), [0, 5])


def test_total_changes_follow_the_half_angle_law():
    starts = np.vstack([random_starts(40), [(1.0, 1e-12)]])
    rise, fall = exact.ratio_plane_total_change(starts)
    half_angle = np.arctan2(starts[:, 1], starts[:, 0]) / 2
    assert_allclose(rise / fall, np.tan(half_angle), rtol=1e-14)
    assert_allclose(exact.ratio_plane_change_ratio(starts), np.tan(half_angle), rtol=1e-14)
    assert_allclose(starts[:, 0] + rise, np.hypot(*starts.T), rtol=1e-15)
    assert_allclose(starts[:, 1] - fall, 0, atol=0)


def test_speed_and_hessian_determinant_are_those_of_the_loss():
    beta = 0.3
    potential = lambda a, b: mpmath.log1p((b / a) ** mpmath.mpf(beta))  # noqa: E731
    for state in random_starts(3):
        aa, ab, bb = (mpmath.diff(potential, state, order) for order in [(2, 0), (1, 1), (0, 2)])
        found = exact.ratio_plane_hessian_determinant(state, beta)
        assert_allclose(found, float(aa * bb - ab**2), rtol=1e-13)
        speed = np.linalg.norm(gradient(state, beta))
        assert_allclose(exact.ratio_plane_speed(state, beta), speed, rtol=1e-14)


def test_extinction_is_approached_infinitely_fast_only_below_beta_1():
    assert exact.ratio_plane_speed((0.5, 0.0), [0.9, 1.0, 1.1]).tolist() == [np.inf, 2.0, 0.0]
    assert_allclose(exact.ratio_plane_speed((0.5, 1e-20), 1.0), 2.0, rtol=1e-12)


@pytest.mark.parametrize("start", [(0.9, 0.8), (0.2, 0.99), (1.0, 0.5), (0.3, 0.4), (0.05, 1.3)])
@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0, 2.5])
def test_box_times_agree_with_a_solver(start, beta):
    level = loss(np.array(start), beta) * 0.6
    arrival, _, total = projected_times(start, beta, level, (1.0, 0.0))
    times = exact.box_time(start, beta, wall=1.0, level=level)
    assert_allclose(times, (arrival, total), rtol=1e-9)


def test_box_extinction_is_the_closed_form():
    p, wall, beta = 0.5, 0.8, 0.7
    slide = (wall**beta * p ** (2 - beta) / (2 - beta) + p**2 / 2) / beta
    arrival, total = exact.box_time((wall, p), beta, wall=wall, level=0)
    assert arrival == 0
    assert_allclose(total, slide, rtol=1e-14)
    assert exact.box_time((wall, p), 2.0, wall=wall, level=0).total == np.inf
    assert exact.box_time((wall, 1e-170), beta, wall=wall, level=0).arrival == 0


def test_a_wall_that_is_not_met_changes_nothing():
    starts = random_starts(30) * 0.7
    free = exact.ratio_plane_time(starts, 0.3, level=0.1)
    arrival, total = exact.box_time(starts, 0.3, wall=1.0, level=0.1)
    assert np.isnan(arrival).all()
    assert_allclose(total, free, rtol=0, atol=0)


def test_a_start_past_the_target_has_no_box_and_no_simplex_times():
    assert np.isnan(exact.box_time((1.0, 0.01), 0.5, wall=1.0, level=0.5)).all()
    assert np.isnan(exact.simplex_time((0.99, 0.01), 0.5, level=0.5)).all()


SIMPLEX_CASES = [
    ((0.05, 0.9), (1.0, 1.0)),
    ((0.4, 0.59), (1.0, 1.0)),  # outside only between two crossings that lie close together
    ((0.7, 0.2), (1.0, 1.0)),
    ((0.75, 0.25), (1.0, 1.0)),  # on the wall, where the flow leads inward
    ((0.3, 0.3), (1.0, 1.0)),
    ((0.5, 1.5), (0.6, 0.3)),
    ((0.1, 3.0), (0.5, 0.2)),
    ((2.0, 0.1), (0.4, 0.9)),
    ((0.25, 1.0), (0.8, 0.8)),
]


@pytest.mark.parametrize(("start", "refs"), SIMPLEX_CASES)
@pytest.mark.parametrize(("beta", "part"), [(0.3, 0.9), (0.3, 0.2), (2.2, 0.3)])
def test_simplex_times_agree_with_a_solver(start, refs, beta, part):
    level = loss(np.array(start), beta) * part
    expected = projected_times(start, beta, level, refs)
    p1, p2 = refs
    times = exact.simplex_time(start, beta, level=level, ref_prob_chosen=p1, ref_prob_rejected=p2)
    assert_allclose(times, expected, rtol=1e-8)


@pytest.mark.parametrize("beta", [0.1, 0.3, 1.0, 1.9])
def test_the_slide_in_unit_scales_is_the_closed_form(beta):
    filled = lambda x: (  # noqa: E731
        x**2 - 2 * x**3 / 3
        + 2 * special.beta(2 + beta, 2 - beta) * special.betainc(2 + beta, 2 - beta, x)
    )  # fmt: skip
    chosen = np.array([0.01, 0.1, 0.25, 0.45])
    _, release, _ = exact.simplex_time(np.stack([chosen, 1 - chosen], -1), beta, level=0)
    assert_allclose(release, (filled(0.5) - filled(chosen)) / beta, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.3, 1.9, 3.0])
def test_simplex_times_agree_with_sixty_digits(beta):
    start, (p1, p2), level = (0.1, 3.0), (0.5, 0.2), 0.05
    a, c, b = mpmath.mpf(p1), mpmath.mpf(p2), mpmath.mpf(beta)
    x1, x2 = map(mpmath.mpf, start)
    squared, norm = x1**2 + x2**2, a**2 + c**2
    hit = (a - c * mpmath.sqrt(norm * squared - 1)) / norm
    rate = lambda x: (1 + (c * x / (1 - a * x)) ** b) * x * (1 - a * x)  # noqa: E731
    circle = lambda y: (1 + mpmath.exp(-b * y)) / (4 * mpmath.cosh(y) ** 2) / b  # noqa: E731
    met, free_at = mpmath.log((1 - a * hit) / (c * hit)), mpmath.log(c / a)
    arrival = squared * mpmath.quad(circle, [met, mpmath.log(x2 / x1)])
    release = arrival + norm / (b * c**2) * mpmath.quad(rate, [hit, (hit + a / norm) / 2, a / norm])
    last = level_log_ratio(level, beta)
    ends = [last, *(y for y in (-60, -20, -5, -2) if y > last), free_at]
    total = release + mpmath.quad(circle, ends) / norm
    times = exact.simplex_time(start, beta, level=level, ref_prob_chosen=p1, ref_prob_rejected=p2)
    assert_allclose(times, [float(arrival), float(release), float(total)], rtol=1e-13)


def test_the_flow_is_released_where_the_ratio_is_that_of_the_references():
    p1, p2, beta = 0.6, 0.3, 0.4
    just_before, just_after = (np.log1p((p2 / p1 * c) ** beta) for c in (1 + 1e-6, 1 - 1e-6))
    refs = {"ref_prob_chosen": p1, "ref_prob_rejected": p2}
    assert np.isnan(exact.simplex_time((0.5, 1.5), beta, level=just_before, **refs).release)
    _, release, total = exact.simplex_time((0.5, 1.5), beta, level=just_after, **refs)
    assert 0 < total - release < 1e-5
    rest = exact.ratio_plane_time(np.array([p1, p2]) / (p1**2 + p2**2), beta, level=0.1)
    _, release, total = exact.simplex_time((0.5, 1.5), beta, level=0.1, **refs)
    assert_allclose(total - release, rest, rtol=1e-12)


def test_simplex_times_scale_with_the_square_of_the_radius():
    starts = random_starts(50) / 2
    refs = {"ref_prob_chosen": 0.7, "ref_prob_rejected": 0.9}
    once = exact.simplex_time(starts, 0.3, level=0.1, **refs)
    halves = {name: probability / 2 for name, probability in refs.items()}
    twice = exact.simplex_time(2 * starts, 0.3, level=0.1, **halves)
    assert_allclose(twice, 4 * np.array(once), rtol=1e-10)


def test_with_a_rejected_response_of_hardly_any_weight_the_simplex_is_the_box():
    arrival, _, total = exact.simplex_time((0.9, 0.8), 0.3, level=0.1, ref_prob_rejected=1e-9)
    assert_allclose((arrival, total), exact.box_time((0.9, 0.8), 0.3, wall=1, level=0.1), rtol=1e-7)


def test_walls_never_shorten_the_way_of_any_start():
    starts = random_starts(500)
    starts = starts[starts.sum(axis=1) <= 1]
    free = exact.ratio_plane_time(starts, 0.3, level=0.1)
    arrival, release, total = exact.simplex_time(starts, 0.3, level=0.1)
    held = ~np.isnan(arrival)
    assert 10 < held.sum() < len(starts) - 10
    assert_allclose(total[~held], free[~held], rtol=0, atol=0)
    assert (total[held] < free[held]).all()
    assert (arrival[held] < release[held]).all() and (release[held] < total[held]).all()


KERNEL = np.array([[2.0, 1.4], [1.4, 1.2]])


@pytest.mark.parametrize("margin", [-9000.0, -30.0, -1.0, 0.0, 2.0, 300.0, 390.0, 450.0, 8000.0])
@pytest.mark.parametrize("time", [0.0, 1e-9, 1.0, 1e6, 1e200])
def test_kernel_margins_agree_with_sixty_digits(margin, time):
    beta = 0.1
    b, c = mpmath.mpf(beta), sum(map(mpmath.mpf, [2.0, 1.2, -1.4, -1.4]))
    first = b * mpmath.mpf(margin)
    with mpmath.workdps(500):
        total = first + mpmath.exp(first) + b**2 * c * mpmath.mpf(time)
        right = (total - mpmath.lambertw(mpmath.exp(total)).real) / b if total < 1e4 else None
        if right is None:
            last = mpmath.log(total)
            for _ in range(8):
                last = mpmath.log(total - last)
            right = last / b
    found = exact.kernel_margin(time, margin, beta, KERNEL)
    assert abs(found - right) <= 16 * UNIT * max(abs(right), abs(margin), 1 / beta)


@pytest.mark.parametrize(
    ("margin", "target"), [(-5.0, 3.0), (0.0, 1e-9), (-9000.0, -8999.0), (-8e3, 6e3), (6e3, 7e3)]
)
def test_kernel_times_agree_with_sixty_digits(margin, target):
    b, c = mpmath.mpf(0.1), sum(map(mpmath.mpf, [2.0, 1.2, -1.4, -1.4]))
    first, last = b * margin, b * target
    with mpmath.workdps(500):
        right = (last - first + mpmath.exp(last) - mpmath.exp(first)) / (b**2 * c)
    found = exact.kernel_time(margin, target, 0.1, KERNEL)
    # z is rounded before e^z is taken, and c from rounded entries.
    assert abs(found / right - 1) < 1e-15 * (8 + abs(last))


def test_margins_and_times_of_a_kernel_invert_each_other():
    margins, targets = np.meshgrid([-80.0, -1.0, 0.0, 5.0], [10.0, 40.0, 90.0], indexing="ij")
    times = exact.kernel_time(margins, targets, 0.3, KERNEL)
    assert_allclose(exact.kernel_margin(times, margins, 0.3, KERNEL), targets, rtol=1e-13)


def test_a_solver_meets_the_exact_log_ratios():
    start, beta, time = np.array([0.4, 1.1]), 0.5, 20.0
    push = np.array([1.0, -1.0])
    field = lambda t, u: KERNEL @ push * beta * special.expit(-beta * (u @ push))  # noqa: E731
    state = exact.kernel_state(time, start, beta, KERNEL)
    assert_allclose(state, solved(field, time, start), rtol=1e-11)
    assert_allclose(exact.kernel_margin(time, -0.7, beta, KERNEL), state @ push, rtol=1e-13)


def test_the_chosen_falls_where_the_cross_term_exceeds_its_own():
    falling = np.array([[1.0, 1.5], [1.5, 4.0]])
    states = exact.kernel_state(3.0, (0.0, 0.0), 0.1, np.stack([KERNEL, falling]))
    assert states[0, 0] > 0 > states[1, 0]


def test_under_a_kernel_that_moves_both_alike_nothing_changes():
    alike = np.full((2, 2), 0.3)
    assert exact.kernel_contraction(alike) == 0
    assert exact.kernel_margin(1e9, 0.123, 0.1, alike) == 0.123
    assert exact.kernel_state(1e9, (0.5, 0.2), 0.1, alike).tolist() == [0.5, 0.2]
    assert exact.ipo_margin(1e9, 0.123, 0.1, 0.0) == 0.123
    times = exact.kernel_time(0.5, [1.0, 0.5, 0.0], 0.1, alike)
    assert_allclose(times, [np.inf, 0, np.nan])


def test_a_kernel_time_ends_at_once_on_the_target_and_never_past_it():
    times = exact.kernel_time(0.5, [0.5, 0.4, np.inf], 0.1, KERNEL)
    assert_allclose(times, [0, np.nan, np.inf])


def test_one_pair_under_tabular_softmax_contracts_at_2_whatever_the_probabilities():
    some = np.random.default_rng(0).dirichlet(np.ones(4), size=6)
    pair = some[:, :2]
    softmax = np.eye(2) - pair[:, :, None] - pair[:, None, :] + (some**2).sum(1)[:, None, None]
    fisher = np.eye(2) / pair[:, None, :] - 1
    assert_allclose(exact.kernel_contraction(softmax), 2, rtol=1e-14)
    assert_allclose(exact.kernel_contraction(fisher), (1 / pair).sum(1), rtol=1e-14)


def test_ipo_margins_agree_with_a_solver():
    tau, contraction = 0.2, 1.3
    field = lambda t, h: -contraction * 2 * (h - 1 / (2 * tau))  # noqa: E731
    end = solved(field, 0.8, [-1.0])
    assert_allclose(exact.ipo_margin(0.8, -1.0, tau, contraction), end[0], rtol=1e-11)
    assert_allclose(exact.ipo_margin(1e9, -1.0, tau, contraction), 2.5, rtol=1e-15)


def test_a_bowl_shrinks_the_gradient_to_its_target_in_the_exact_time():
    starts = np.random.default_rng(0).normal(size=(7, 3))
    time = exact.bowl_time(starts, 0.4, gradient_norm=1e-6)
    ends = exact.bowl_state(time, starts, 0.4)
    assert_allclose(0.4 * np.linalg.norm(ends, axis=-1), 1e-6, rtol=1e-13)
    assert np.isnan(exact.bowl_time((1e-9, 0.0), 0.4, gradient_norm=1e-6))
    end = solved(lambda t, y: -0.4 * y, 2, starts[0])
    assert_allclose(exact.bowl_state(2.0, starts[0], 0.4), end, rtol=1e-11)


def test_a_saddle_is_left_at_the_exact_time_and_dwell_has_the_known_slope():
    unstable, distances = 0.7, np.array([1e-3, 1e-9])
    times = exact.saddle_exit_time(distances, 2.0, unstable)
    starts = np.stack([distances, np.ones(2)], -1)
    ends = exact.saddle_state(times, starts, unstable=unstable, stable=1.5)
    assert_allclose(ends[:, 0], 2.0, rtol=1e-13)
    assert_allclose(ends[:, 1], np.exp(-1.5 * times), rtol=1e-13)
    assert_allclose(np.diff(times) / np.diff(-np.log(distances)), 1 / unstable, rtol=1e-14)
    assert_allclose(exact.saddle_exit_time([0.0, 3.0], 2.0, unstable), [np.inf, np.nan])


S, K = (0.5, 0.5), np.eye(2)
REFUSED = [
    (lambda: exact.ratio_plane_time((-0.1, 0.5), 0.1, level=0), "`start` must be finite and not"),
    (lambda: exact.ratio_plane_time((np.inf, 0.5), 0.1, level=0), "`start` must be finite and not"),
    (lambda: exact.ratio_plane_time((0, 0), 0.1, level=0), "`start` must not be the origin"),
    (lambda: exact.ratio_plane_time((1, 2, 3), 0.1, level=0), r"`start` must have shape \(..., 2"),
    (lambda: exact.ratio_plane_time(0.5, 0.1, level=0), r"but has shape \(\)"),
    (lambda: exact.ratio_plane_time(S, 0.0, level=0), "`beta` must be positive and finite"),
    (lambda: exact.ratio_plane_time(S, [1, -2], level=0), "`beta` must be .* but has -2.0"),
    (lambda: exact.ratio_plane_time(S, np.nan, level=0), "`beta` must be positive and finite"),
    (lambda: exact.ratio_plane_time(S, 0.1), "`level` or `ratio` must be given, but neither is"),
    (lambda: exact.ratio_plane_time(S, 0.1, level=0, ratio=0), "must not be given with `ratio`"),
    (lambda: exact.ratio_plane_time(S, 0.1, level=-1), "`level` must not be negative, but is -1"),
    (lambda: exact.ratio_plane_time(S, 0.1, ratio=-1), "`ratio` must not be negative"),
    (lambda: exact.ratio_plane_state(S, ratio=-1), "`ratio` must not be negative"),
    (lambda: exact.ratio_plane_total_change((-1, 1)), "`start` must be finite and not negative"),
    (lambda: exact.ratio_plane_speed((-1, 1), 0.1), "`state` must be finite and not negative"),
    (lambda: exact.box_time((1.1, 0.5), 0.1, wall=1, level=0), "`start` must have x1 at most"),
    (lambda: exact.box_time(S, 0.1, wall=0, level=0), "`wall` must be positive"),
    (lambda: exact.simplex_time((0.6, 0.5), 0.1, level=0), "must satisfy .* has a sum of 1.1"),
    (lambda: exact.simplex_time(S, 1, level=0, ref_prob_chosen=2), r"_chosen` must lie in \(0, 1"),
    (lambda: exact.kernel_margin(-1, 0, 0.1, K), "`time` must not be negative"),
    (lambda: exact.kernel_time(0, 1, 0.0, K), "`beta` must be positive"),
    (lambda: exact.kernel_contraction(np.eye(3)), r"`kernel` must have shape \(..., 2, 2\)"),
    (lambda: exact.kernel_contraction([[1, 0.5], [0, 1]]), "`kernel` must be symmetric"),
    (lambda: exact.kernel_contraction([[1, 2], [2, 1]]), "and positive semi-definite"),
    (lambda: exact.kernel_contraction([[-1, 0], [0, -1]]), "and positive semi-definite"),
    (lambda: exact.kernel_state(1, (1, 2, 3), 0.1, K), r"`start` must have shape \(..., 2"),
    (lambda: exact.ipo_margin(1, 0, 0, 1), "`tau` must be positive"),
    (lambda: exact.ipo_margin(1, 0, 0.1, -1), "`contraction` must not be negative"),
    (lambda: exact.bowl_time(S, 1, gradient_norm=0), "`gradient_norm` must be positive"),
    (lambda: exact.bowl_state(1, S, -1), "`curvature` must be positive"),
    (lambda: exact.saddle_state(1, S, unstable=0, stable=1), "`unstable` must be positive"),
    (lambda: exact.saddle_exit_time(-1, 1, 1), "`distance` must not be negative"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED)
def test_misuse_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=r"^Argument .*\.$") as refusal:
        call()
    assert refusal.match(sentence)


def test_the_oracle_needs_no_jax():
    program = "import sys, flowlab.exact; print(sorted({'jax', 'diffrax'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
