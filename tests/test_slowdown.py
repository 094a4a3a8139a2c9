"""Slowdown beside saddles, and plateaus, against closed forms."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

import flowlab as fl
from flowlab import exact, losses, potentials, until
from flowlab.critical import critical_points
from flowlab.critical.plateaus import plateaus
from flowlab.critical.slowdown import slowdown

STABLE, UNSTABLE, RADIUS = 1.3, 0.7, 0.5
SADDLE = potentials.Saddle(stable=STABLE, unstable=UNSTABLE)
OFFSETS = np.logspace(-1, -12, 12)
TURN = np.array([[0.8, -0.6], [0.6, 0.8]])  # columns: where the unstable and stable axes go


@pytest.fixture(scope="module")
def beside():
    """Lines beside a saddle that is turned, in a metric that is not the identity."""
    metric = np.array([[2.0, 0.3], [0.3, 1.0]])
    flow = fl.Flow(
        lambda y: SADDLE(jnp.asarray(TURN.T, y.dtype) @ y),
        metric=lambda _, covector: jnp.asarray(metric, covector.dtype) @ covector,
    )
    # Since NumPy 2.5 its eigenvalues are complex, whether or not they are real.
    of = metric @ TURN @ np.diag([-UNSTABLE, STABLE]) @ TURN.T
    rates, axes = map(np.real, np.linalg.eig(of))
    order = np.argsort(rates)
    begin = np.stack([OFFSETS, np.ones(12)], axis=1) @ axes[:, order].T
    found = slowdown(
        flow, begin, [[0.0, 0.0]], radius=RADIUS, until=until.time(60.0), below=0.1, rtol=1e-10
    )
    return found, -rates[order[0]], rates[order[1]]


def test_the_unstable_rate_is_that_of_metric_times_hessian(beside):
    found, unstable, _ = beside
    np.testing.assert_allclose(found.rate[:, 0], unstable, rtol=1e-12)


def test_the_offset_is_the_distance_from_the_stable_manifold_on_entry(beside):
    found, unstable, _ = beside
    wanted = OFFSETS * np.exp(unstable * found.entry_time[:, 0])
    seen = OFFSETS > 1e-9  # the saddle's axes are turned: below, rounding of the start is seen
    np.testing.assert_allclose(found.offset[seen, 0], wanted[seen], rtol=1e-6)
    np.testing.assert_allclose(found.entry_offset[seen, 0], wanted[seen], rtol=1e-6)


def test_the_time_beside_a_saddle_has_slope_one_over_the_unstable_rate(beside):
    found, unstable, _ = beside
    assert found.left.all()
    deep = OFFSETS < 1e-5  # above, what is left of the stable coordinate tells
    np.testing.assert_allclose(found.spent[deep, 0], found.predicted[deep, 0], rtol=1e-6)
    slope = np.polyfit(np.log(1 / found.offset[deep, 0]), found.spent[deep, 0], 1)[0]
    assert slope == pytest.approx(1 / unstable, rel=1e-6)
    assert found.spent[-1, 0] > 20


def test_dwell_below_a_speed_grows_with_the_time_beside_the_saddle(beside):
    found, unstable, _ = beside
    assert found.dwell is not None and found.dwell_share is not None
    steps = np.diff(found.dwell[6:10]) / np.diff(np.log(1 / OFFSETS[6:10]))
    np.testing.assert_allclose(steps, 1 / unstable, rtol=1e-5)
    np.testing.assert_allclose(found.dwell_share, found.dwell / 60, rtol=1e-9)


def test_a_slowdown_becomes_a_dataset_and_words(beside):
    found, _, _ = beside
    data = found.to_xarray()
    assert data["spent"].dims == data["predicted"].dims == ("start", "point")
    assert data["entry_state"].dims == ("start", "point", "component")
    assert not [name for name in data if str(name).startswith("near_")]
    np.testing.assert_array_equal(data["offset"], found.offset)
    assert "12 of 12 lines within 0.5, 12 passed it" in str(found)


@pytest.mark.exhaustive
def test_beside_a_curved_saddle_the_slope_is_that_of_its_rate():
    potential = potentials.Himmelblau()
    flow = fl.Flow(potential)
    found = critical_points(flow, potential.region)
    saddle = found.of("saddle")[0]
    low, high = saddle.position + [[0.6, -0.22], [0.6, 0.38]]
    for _ in range(7):  # the stable manifold crosses between two starts that part
        row = np.linspace(low, high, 33)
        ends = fl.sweep(flow, row, until=until.time(3.0), rtol=1e-11).end
        last = np.argmax(np.linalg.norm(np.diff(ends, axis=0), axis=1))
        low, high = row[last], row[last + 1]
    offsets = 10.0 ** np.linspace(-1, -6, 11)
    begin = low + np.outer(offsets, [0.0, 1.0])
    points = [found[0], saddle]
    found = slowdown(flow, begin, points, radius=0.2, until=until.time(3.0), rtol=1e-11)
    assert found.names == ("minimum", "saddle of index 1")
    spent, predicted = found.spent[:, 1], found.predicted[:, 1]
    assert found.left[:, 1].all() and np.isfinite(found.entry_time[:, 1]).all()
    slopes = np.diff(spent) / np.diff(np.log(1 / offsets))
    assert slopes[-1] == pytest.approx(-1 / saddle.rates[0], rel=1e-3)
    # What is curved costs a time of the order of radius / rate, and the same for all.
    gap = (spent - predicted)[4:]
    assert np.all(np.abs(gap) < 0.2 * 0.2 / -saddle.rates[0])
    assert np.ptp(gap) < 1e-3 * np.ptp(spent)
    # The tangent is no stable manifold: δ is not what it reads at the entry.
    assert np.all(found.entry_offset[-3:, 1] > 10 * found.offset[-3:, 1])
    assert np.isnan(found.predicted[:, 0]).all()


def test_points_and_radii_that_do_not_fit_are_refused():
    flow = fl.Flow(SADDLE)
    options = dict(until=until.time(1.0))
    with pytest.raises(ValueError, match="Argument `points` must be critical points, or positions"):
        slowdown(flow, [[1.0, 1.0]], [0.0, 0.0], radius=1.0, **options)  # type: ignore[arg-type]
    for radius in (0.0, [1.0, 2.0], np.nan):
        with pytest.raises(ValueError, match="Argument `radius` must be positive and finite"):
            slowdown(flow, [[1.0, 1.0]], [[0.0, 0.0]], radius=radius, **options)  # type: ignore[arg-type]


def test_complex_starts_are_refused():
    with pytest.raises(ValueError, match="`starts` must hold real numbers, but is"):
        slowdown(fl.Flow(SADDLE), [[1j, 1]], [[0.0, 0.0]], radius=1.0, until=until.time(1.0))


WIDE = ((-100.0, 100.0), (-100.0, 100.0))


@pytest.fixture(scope="module")
def steps():
    """Two hills without slope to speak of: tanh falls in x, on one side, and nothing in y."""
    shelf = 4.0  # L = −tanh(x) · weight(y): slow where |x| is large

    def potential(y):
        return -jnp.tanh(y[0]) + 0.5e-3 * y[1] ** 2

    target = until.loss_below(0.5, time_limit=1e6)
    return plateaus(
        fl.Flow(potential), ((-shelf, shelf), (-1.0, 1.0)), below=0.07, until=target, cells=(64, 16)
    )


def test_a_plateau_has_the_area_and_the_residence_of_its_closed_form(steps):
    # speed ≈ sech² x: below 0.07 for x < −x₀; past the target for x > −artanh ½
    edge = np.arccosh(1 / np.sqrt(0.07))
    (plateau,) = steps
    assert plateau.area == pytest.approx(2 * (4 - edge), abs=2 * 8 / 64)
    assert plateau.at_side and not plateau.holds_rest
    np.testing.assert_allclose(plateau.centre, [-(4 + edge) / 2, 0], atol=8 / 64)

    def passed(x):  # x' = sech² x: ∫ cosh² x dx
        return x / 2 + np.sinh(2 * x) / 4

    middle = np.median(steps.axes[0][steps.axes[0] < -edge])
    assert plateau.residence == pytest.approx(passed(-edge) - passed(middle), rel=0.02)
    arrival = passed(-np.arctanh(0.5)) - passed(middle)
    assert plateau.arrival == pytest.approx(arrival, rel=0.02)
    assert plateau.outcomes == {"reached": plateau.cells}
    ring = steps.axes[0][steps.axes[0] > -edge][0]
    around = passed(-np.arctanh(0.5)) - passed(ring)
    assert plateau.arrival_around == pytest.approx(around, rel=0.02)
    assert plateau.later == pytest.approx(plateau.arrival - plateau.arrival_around)
    assert plateau.later_ratio == pytest.approx(plateau.arrival / plateau.arrival_around)


def test_cells_past_the_target_are_in_no_plateau(steps):
    slow = steps.speed < 0.07
    assert np.any(slow & steps.past)
    assert not np.any(steps.labels[steps.past])
    assert np.array_equal(steps.labels > 0, slow & ~steps.past)


@pytest.mark.exhaustive
def test_a_plateau_is_never_reported_as_arrival():
    # EXO's gradient vanishes far on the wrong side: most lines from there have not arrived at the
    # end, and those from around it have.
    flow = fl.preference_flow(losses.named("exo"), fl.LogRatioPlane())
    target = until.margin_above(1.0, time_limit=1e4)
    (plateau,) = plateaus(flow, WIDE, below=2.4e-3, until=target, cells=24)
    assert set(plateau.outcomes) == {"reached", "time_limit"}
    assert sum(plateau.outcomes.values()) == plateau.cells
    assert 0 < plateau.reached < 0.3
    assert plateau.arrival == plateau.later == plateau.later_ratio == np.inf
    assert plateau.arrival_around < 1e4
    assert plateau.residence == pytest.approx(1e4, rel=1e-6)
    assert not plateau.holds_rest


@pytest.mark.exhaustive
def test_the_surroundings_of_a_minimum_are_told_from_a_plateau():
    flow = fl.Flow(potentials.Bowl(1.0))
    target = until.loss_below(-1.0, time_limit=1e3)
    found = plateaus(flow, ((-1.0, 1.0), (-1.0, 1.0)), below=0.4, until=target, cells=16)
    (around,) = found
    assert around.holds_rest
    assert around.outcomes == {"at_critical_point": around.cells}
    assert around.area == pytest.approx(np.pi * 0.4**2, rel=0.1)
    assert np.isnan(around.later)
    assert str(found).startswith("slow region around a critical point")


@pytest.mark.exhaustive
def test_a_line_at_rest_where_no_gradient_vanishes_is_unresolved(monkeypatch):
    # Newton's method is what tells a rest from a crawl: without a root there is none.
    def no_roots(flow, positions, scale, width):
        return positions, None, np.zeros(len(positions), bool)

    monkeypatch.setattr(sys.modules[plateaus.__module__], "refined", no_roots)
    flow = fl.Flow(potentials.Bowl(1.0))
    target = until.loss_below(-1.0, time_limit=1e3)
    (around,) = plateaus(flow, ((-1.0, 1.0), (-1.0, 1.0)), below=0.4, until=target, cells=15)
    assert set(around.outcomes) <= {"unresolved", "at_critical_point"}
    assert around.outcomes["unresolved"] >= around.cells - 1


def test_no_plateau_is_an_answer_with_the_smallest_speed():
    flow = fl.preference_flow(fl.DPO(0.1), fl.RatioPlane())
    target = until.loss_below(0.1)
    found = plateaus(flow, ((0.0, 1.0), (0.0, 1.0)), below=0.01, until=target, cells=16)
    assert len(found) == 0 and found.fraction == 0
    assert "no plateau: the speed is at least" in str(found)
    assert found.smallest_speed == np.nanmin(found.speed) > 0.01
    assert found.components == ("x_chosen", "x_rejected")


def test_regions_and_cells_that_make_no_grid_are_refused():
    options = dict(below=0.1, until=until.time(1.0))
    with pytest.raises(ValueError, match="Argument `region` must give the ends of two components"):
        plateaus(fl.Flow(potentials.Bowl(1.0)), [(0, 1)] * 3, **options)  # type: ignore[arg-type]
    for cells in (1, (4, 1), 2.5):
        with pytest.raises(ValueError, match="Argument `cells` must be at least 2"):
            plateaus(fl.Flow(SADDLE), [(0, 1)] * 2, cells=cells, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Argument `below` must be positive and finite"):
        plateaus(fl.Flow(SADDLE), [(0, 1)] * 2, below=0.0, until=until.time(1.0))


@pytest.mark.exhaustive
def test_a_bowl_slows_a_line_as_long_as_its_closed_form_says():
    start = np.array([[0.6, 0.8]])
    flow = fl.Flow(potentials.Bowl(1.5))
    for level in 10.0 ** -np.arange(1.0, 13.0):
        # The tolerance has to lie far below what is left of the way.
        runs = fl.sweep(flow, start, until=until.speed_below(level), rtol=1e-6, atol=1e-22)
        exit_time = exact.bowl_time(start, 1.5, gradient_norm=level)
        np.testing.assert_allclose(runs.time, exit_time, rtol=1e-6)
