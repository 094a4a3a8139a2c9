"""Basins against SciPy's own integration, their fractions and entropy, and separatrices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from flowlab import DPO, Flow, LogRatioPlane, RatioPlane, preference_flow
from flowlab.critical import (
    BOUNDARY,
    RUNAWAY,
    UNRESOLVED,
    Basins,
    basins,
    critical_points,
    separatrices,
)
from flowlab.domains import Box
from flowlab.losses import IPO
from flowlab.potentials import AbstractPotential, Himmelblau, MonkeySaddle, MuellerBrown, Saddle
from flowlab.starts import grid

SIDE = 20
SLOWEST = {Himmelblau: 14.0, MuellerBrown: 200.0}  # rates of decay and of escape, rounded down


def ends_by_scipy(potential: AbstractPotential, starts: np.ndarray) -> np.ndarray:
    """Where SciPy's RK45 takes all starts as one system, the gradient by JAX."""
    gradient: Callable[..., jax.Array] = jax.jit(jax.vmap(jax.grad(potential)))

    def downhill(_: float, states: np.ndarray) -> np.ndarray:
        return -np.asarray(gradient(states.reshape(starts.shape))).ravel()

    duration = 60 / SLOWEST[type(potential)]
    solved = solve_ivp(downhill, (0, duration), starts.ravel(), rtol=1e-8, atol=1e-10)
    return solved.y[:, -1].reshape(starts.shape)


@pytest.mark.parametrize(
    "potential", [Himmelblau(), pytest.param(MuellerBrown(), marks=pytest.mark.exhaustive)]
)
def test_basins_are_those_of_a_brute_force_integration(potential: AbstractPotential) -> None:
    low, high = np.array(potential.region, float).T
    starts = grid(SIDE, low, high)
    flow = Flow(potential)
    found = basins(flow, starts, critical_points(flow, potential.region))
    assert np.all(found.labels >= 0)
    assert np.array_equal(found.map, found.labels.reshape(SIDE, SIDE))
    positions = np.array([point.position for point in found.minima])
    ends = ends_by_scipy(potential, starts)
    nearest = np.argmin(np.linalg.norm(ends[:, None] - positions, axis=-1), axis=1)
    assert np.max(np.linalg.norm(ends - positions[nearest], axis=1)) < 1e-3
    assert np.array_equal(found.labels, nearest)


@pytest.mark.exhaustive
def test_what_leaves_the_surroundings_has_run_away() -> None:
    flow = Flow(MonkeySaddle())
    starts = np.random.default_rng(1).uniform(-2, 2, (64, 2))
    found = basins(flow, starts, critical_points(flow, [(-2, 2), (-2, 2)]))
    assert np.all(found.labels == RUNAWAY)
    assert found.fractions == {"runaway": (1.0, 0.0)}


@pytest.mark.exhaustive
def test_the_paper_s_plane_leads_to_the_edge_where_the_rejected_is_extinct() -> None:
    flow = preference_flow(DPO(0.3), RatioPlane())
    points = critical_points(flow, [(0, 1), (0, 1)])
    starts = np.random.default_rng(2).uniform(0.01, 1, (64, 2))
    found = basins(flow, starts, points)
    assert list(found.fractions) == [found.name(0)]
    assert "line of minima on x_rejected = 0" in found.name(0)
    without = critical_points(flow, [(0.01, 1), (0.01, 1)])
    assert np.all(basins(flow, starts, without).labels == BOUNDARY)


@pytest.mark.exhaustive
def test_a_line_that_a_wall_stops_ends_on_the_boundary() -> None:
    flow = preference_flow(DPO(0.3), RatioPlane(Box(1, 1)))
    points = critical_points(flow, [(0, 1), (0, 1)])
    found = basins(flow, np.array([[0.9, 0.8], [0.2, 0.1]]), points)
    assert found.labels[0] == BOUNDARY
    assert found.end[0, 0] == pytest.approx(1)
    assert found.name(int(found.labels[1])).startswith("line of minima on x_rejected = 0")


@pytest.mark.exhaustive
def test_a_line_that_slides_ends_on_the_line_of_minima_of_its_wall() -> None:
    flow = Flow(lambda y: -y[0], domain=Box(1, 1), wall="slide")
    found = basins(flow, np.array([[0.3, 0.8], [0.9, 0.1]]), region=[(0, 1), (0, 1)])
    assert np.all(found.labels == 0)
    assert found.minima[0].name == "line of minima on y0 = 1"


@pytest.mark.exhaustive
def test_a_time_limit_holds_for_the_whole_way_and_what_it_ends_has_not_arrived() -> None:
    flow = preference_flow(DPO(0.3), RatioPlane())
    points = critical_points(flow, [(0, 1), (0, 1)])
    close = np.array([[0.5, 1e-3]])  # 0.0023 before its extinction
    assert basins(flow, close, points, time_limit=1e-6).labels[0] == UNRESOLVED
    assert basins(flow, close, points, time_limit=1.0).labels[0] == 0
    # On y⁴/4 the way down is (1 + 2t)^(−1/2), and slow long before the limit.
    quartic = Flow(lambda y: 0.25 * y[0] ** 4)
    found = basins(quartic, np.ones((1, 1)), critical_points(quartic, [(-1, 1)]), time_limit=60.0)
    assert found.labels[0] == UNRESOLVED
    assert found.end[0, 0] == pytest.approx(121**-0.5, rel=1e-4)


@pytest.mark.exhaustive
def test_a_plateau_is_never_reported_as_arrival() -> None:
    # Beyond y = 6 the slope is below 1e-15 of what it is in the middle, but nowhere zero.
    flow = Flow(lambda y: jnp.exp(-(y[0] ** 2)) + 0.5 * y[1] ** 2)
    starts = np.stack([np.linspace(2.0, 4.0, 9), np.ones(9)], axis=1)
    for far in (8, 4):
        points = critical_points(flow, [(-far, far), (-1, 1)])
        assert [point.name for point in points] == ["saddle of index 1"]
    found = basins(flow, starts, points, time_limit=1e4)
    assert np.all(found.labels == UNRESOLVED)


@pytest.mark.exhaustive
def test_a_start_ends_on_a_line_of_minima() -> None:
    flow = preference_flow(IPO(2.0), LogRatioPlane())
    points = critical_points(flow, [(-20, 20), (-20, 20)])
    starts = np.random.default_rng(3).uniform(-5, 5, (32, 2))
    found = basins(flow, starts, points)
    assert np.all(found.labels == 0)
    assert found.minima[0].name == "line of minima"


def test_fractions_carry_their_standard_error() -> None:
    labels = np.array([0] * 30 + [RUNAWAY] * 70)
    minima = critical_points(Flow(Himmelblau()), [(2, 4), (1, 3)], starts=32).of("minimum")
    found = Basins(np.zeros((100, 2)), labels, minima, np.zeros((100, 2)))
    error = np.sqrt(0.3 * 0.7 / 100)
    assert found.fractions[found.name(0)] == pytest.approx((0.3, error))
    assert found.fractions["runaway"] == pytest.approx((0.7, error))


def test_basin_entropy_is_that_of_a_straight_boundary() -> None:
    # Boxes of 4 × 4 starts, parted by a boundary through the middle of each box of one column:
    # the entropy of a mixed box is log 2, and one box in five is mixed.
    labels = np.zeros((20, 20), int)
    labels[10:] = 1
    found = Basins(np.zeros((400, 2)), labels.ravel(), (), np.zeros((400, 2)), (20, 20)).entropy(4)
    assert found.boundary == pytest.approx(np.log(2))
    assert found.basin == pytest.approx(np.log(2) / 5)
    assert (found.boxes, found.mixed) == (25, 5)
    assert not found.fractal


def test_entropy_needs_a_grid_and_a_box_that_fits() -> None:
    scattered = Basins(np.zeros((9, 2)), np.zeros(9, int), (), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="must form a grid for a map"):
        scattered.entropy()
    grid = Basins(np.zeros((9, 2)), np.zeros(9, int), (), np.zeros((9, 2)), (3, 3))
    with pytest.raises(ValueError, match="`box` must be between 2 and 3"):
        grid.entropy(4)


def test_bad_arguments_of_basins_are_refused() -> None:
    flow = Flow(Himmelblau())
    points = critical_points(flow, [(2, 4), (1, 3)], starts=32)
    with pytest.raises(ValueError, match="`starts` must have shape"):
        basins(flow, np.zeros(2), points)
    with pytest.raises(ValueError, match="`starts` must hold real numbers"):
        basins(flow, np.full((1, 2), 1j), points)
    with pytest.raises(ValueError, match="`region` must be None if `points` are given"):
        basins(flow, np.zeros((1, 2)), points, region=[(2, 4), (1, 3)])


def test_the_separatrices_of_a_linear_saddle_are_its_stable_axis() -> None:
    flow = Flow(Saddle(1.0, 2.0))
    halves = separatrices(flow, critical_points(flow, [(-1, 1), (-1, 1)]))
    assert len(halves) == 2
    for half in halves:
        assert np.max(np.abs(half.path[:, 0])) < 1e-9
        assert np.max(np.abs(half.path[:, 1])) == pytest.approx(1.04, rel=1e-3)
        assert half.saddle.kind == "saddle"


@pytest.mark.exhaustive
def test_basins_differ_on_the_two_sides_of_every_separatrix() -> None:
    flow = Flow(MuellerBrown())
    points = critical_points(flow, MuellerBrown().region)
    for half in separatrices(flow, points):
        inside = half.path[np.all((half.path > [-1.5, -0.2]) & (half.path < [1.2, 2]), axis=1)]
        steps = np.linalg.norm(np.diff(inside, axis=0), axis=1)
        position = int(np.searchsorted(np.cumsum(steps), 0.3 * steps.sum())) + 1
        way = inside[position + 1] - inside[position - 1]
        across = np.array([-way[1], way[0]]) / np.linalg.norm(way)
        sides = inside[position] + 0.01 * np.array([[1], [-1]]) * across
        labels = basins(flow, sides, points).labels
        assert labels[0] != labels[1]


@pytest.mark.parametrize("points", [[], "saddle", np.zeros((1, 2))], ids=["none", "text", "places"])
def test_what_is_no_set_of_critical_points_is_refused(points: object) -> None:
    flow = Flow(Himmelblau())
    with pytest.raises(ValueError, match=r"^Argument `points` must be a result of critical\."):
        separatrices(flow, points)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Argument `points` must be a result of critical\."):
        basins(flow, np.zeros((3, 2)), points)  # type: ignore[arg-type]
