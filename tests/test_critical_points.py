"""Critical points: all that are published and no others, lines of them, walls, and none."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from grids import thinned
from scipy.integrate import solve_ivp

from flowlab import (
    DPO,
    Flow,
    LogRatioPlane,
    RatioPlane,
    TabularSoftmax,
    preference_flow,
)
from flowlab.critical import CriticalPoints, critical_points
from flowlab.domains import Box, Enclosure, Quadrant
from flowlab.losses import IPO
from flowlab.potentials import (
    AbstractPotential,
    Bowl,
    Himmelblau,
    MonkeySaddle,
    MuellerBrown,
    Rosenbrock,
)
from flowlab.solve.walls import along_walls

PAPER = [(0.0, 1.0), (0.0, 1.0)]
SQUARE = [(-1.0, 1.0), (-1.0, 1.0)]


class Polynomial(eqx.Module):
    """Σ c_ij y0^i y1^j: one function to compile for many tests."""

    table: np.ndarray

    def __call__(self, state: jax.Array) -> jax.Array:
        powers = [jnp.ones_like(state)]
        for _ in range(len(self.table) - 1):
            powers.append(powers[-1] * state)
        first, second = jnp.stack(powers).T
        return first @ jnp.asarray(self.table) @ second


def polynomial(terms: dict[tuple[int, int], float], **options: Any) -> Flow:
    """The flow of a sum of factor · y0^i · y1^j, with (i, j): factor."""
    table = np.zeros((7, 7))
    for powers, factor in terms.items():
        table[powers] = factor
    return Flow(Polynomial(table), **options)


def found_in(flow: Flow, region: Any) -> CriticalPoints:
    """Critical points, from so many starts that all searches share what is compiled."""
    return critical_points(flow, region, starts=128)


@pytest.fixture(scope="module")
def paper() -> CriticalPoints:
    return critical_points(preference_flow(DPO(0.3), RatioPlane()), PAPER)


PUBLISHED = [MuellerBrown(), Himmelblau(), Rosenbrock(), MonkeySaddle()]


@pytest.mark.parametrize("potential", thinned(PUBLISHED, PUBLISHED[:2]))
def test_every_published_point_is_found_with_its_name_and_no_others(
    potential: AbstractPotential,
) -> None:
    found = critical_points(Flow(potential), potential.region)
    assert len(found) == len(potential.critical_points)
    left = list(found)
    for known in potential.critical_points:
        nearest = min(
            left, key=lambda point: float(np.linalg.norm(point.position - known.position))
        )
        left.remove(nearest)
        assert np.linalg.norm(nearest.position - known.position) < 1e-3
        assert nearest.kind == known.kind


def test_places_are_good_to_rounding() -> None:
    def slopes(x: Any, y: Any) -> list[Any]:
        return [
            4 * x * (x**2 + y - 11) + 2 * (x + y**2 - 7),
            2 * (x**2 + y - 11) + 4 * y * (x + y**2 - 7),
        ]

    found = critical_points(Flow(Himmelblau()), Himmelblau().region)
    for point in found:
        with mpmath.workdps(30):
            exact = mpmath.findroot(slopes, tuple(map(float, point.position)))
        assert np.allclose(point.position, [float(x) for x in exact], rtol=0, atol=1e-13)


def test_the_open_quadrant_of_the_paper_has_no_critical_point(paper: CriticalPoints) -> None:
    assert paper.inner == ()
    # |∇L| = β s √(x1² + x2²)/(x1 x2), s = q^β/(1 + q^β): smallest at a corner, looked up on a grid.
    x = np.stack(np.meshgrid(*[np.linspace(1e-3, 1, 1001)] * 2), axis=-1)
    weight = x[..., 1] ** 0.3 / (x[..., 0] ** 0.3 + x[..., 1] ** 0.3)
    smallest = np.min(0.3 * weight * np.hypot(x[..., 0], x[..., 1]) / (x[..., 0] * x[..., 1]))
    assert 0.999 * smallest < paper.smallest_gradient < 1.02 * smallest


def test_the_edge_where_the_rejected_is_extinct_is_a_line_of_minima(paper: CriticalPoints) -> None:
    (edge,) = paper.points
    assert edge.name == "line of minima on x_rejected = 0"
    assert edge.dimension == 1
    assert edge.path is not None
    assert np.all(edge.path[:, 1] == 0)
    assert np.ptp(edge.path[:, 0]) == 1
    assert 0 <= edge.value < 1e-15


def test_an_edge_of_small_beta_is_seen_although_the_gradient_falls_slowly() -> None:
    found = critical_points(preference_flow(DPO(0.05), RatioPlane()), PAPER)
    assert [point.name for point in found] == ["line of minima on x_rejected = 0"]


@pytest.mark.parametrize("beta", [2.5, 3.0, 20.0])
def test_an_edge_of_large_beta_is_all_that_is_found(beta: float) -> None:
    # |∇L| is positive in the open quadrant, and falls towards the edge as a power of β − 1.
    found = critical_points(preference_flow(DPO(beta), RatioPlane()), PAPER)
    assert [point.name for point in found] == ["line of minima on x_rejected = 0"]


def test_none_is_an_answer_and_says_how_small_the_gradient_became() -> None:
    found = critical_points(preference_flow(DPO(0.3), RatioPlane()), [(0.01, 1), (0.01, 1)])
    assert len(found) == 0
    assert str(found).startswith("no critical point in the region\nelsewhere the gradient is")


def test_a_tail_is_no_critical_point() -> None:
    found = critical_points(preference_flow(DPO(3.0), LogRatioPlane()), [(-20, 20), (-20, 20)])
    assert len(found) == 0
    assert found.smallest_gradient < 1e-40


def test_a_target_margin_is_a_line_of_minima() -> None:
    found = critical_points(preference_flow(IPO(0.5), LogRatioPlane()), [(-80, 80), (-80, 80)])
    (line,) = found.points
    assert (line.name, line.dimension) == ("line of minima", 1)
    assert line.path is not None
    margins = line.path[:, 0] - line.path[:, 1]
    assert np.ptp(margins) < 1e-9
    assert np.max(line.path) == pytest.approx(80)
    # The Hessian of (h − h*)² has the eigenvalue 4 along the margin, per length squared.
    assert line.rates[0] == pytest.approx(0, abs=1e-9)
    assert line.rates[1] > 0


def test_a_circle_of_minima_is_one_line_and_closes() -> None:
    # (y0² + y1² − 1)²
    ring = {(4, 0): 1.0, (2, 2): 2.0, (0, 4): 1.0, (2, 0): -2.0, (0, 2): -2.0, (0, 0): 1.0}
    found = found_in(polynomial(ring), [(-2, 2), (-2, 2)])
    assert [point.name for point in found] == ["line of minima", "maximum"]
    path = found[0].path
    assert path is not None
    assert np.allclose(np.hypot(*path.T), 1)
    assert np.all(path[0] == path[-1])
    assert np.sum(np.hypot(*np.diff(path, axis=0).T)) == pytest.approx(2 * np.pi, rel=1e-3)


@pytest.mark.parametrize("stiff", [2e6, 1e10])
def test_a_steep_bowl_is_a_minimum_whatever_its_condition(stiff: float) -> None:
    (point,) = found_in(polynomial({(2, 0): 0.5, (0, 2): stiff / 2}), SQUARE)
    assert (point.name, point.dimension) == ("minimum", 0)
    assert point.spectrum == pytest.approx([1, stiff], rel=1e-12)
    assert np.allclose(point.position, 0, atol=1e-12)


@pytest.mark.parametrize("b", [1e5, 1e8])
def test_a_steep_bent_valley_has_one_minimum(b: float) -> None:
    (point,) = critical_points(Flow(Rosenbrock(b=b)), Rosenbrock().region)
    assert point.name == "minimum"
    assert np.allclose(point.position, 1, rtol=0, atol=1e-9)
    # The Hessian at (1, 1) has the determinant 4b and the trace 2 + 10b.
    assert point.spectrum == pytest.approx([4 * b / (2 + 10 * b), 2 + 10 * b], rel=1e-5)


@pytest.mark.parametrize("power", [4, 6])
def test_a_flat_bottom_with_a_steep_direction_is_one_degenerate_point(power: int) -> None:
    (point,) = found_in(polynomial({(power, 0): 1.0, (0, 2): 100.0}), SQUARE)
    assert (point.name, point.dimension) == ("degenerate point", 0)
    assert np.allclose(point.position, 0, atol=1e-2 if power == 6 else 1e-5)


def test_a_line_across_which_curvature_does_not_tell_is_one_of_degenerate_points() -> None:
    # (y0 − y1)⁴
    quartic = {(4, 0): 1.0, (3, 1): -4.0, (2, 2): 6.0, (1, 3): -4.0, (0, 4): 1.0}
    (line,) = found_in(polynomial(quartic), SQUARE)
    assert line.name == "line of degenerate points"
    assert line.path is not None
    assert np.ptp(line.path[:, 0]) > 1.99
    assert np.max(np.abs(line.path[:, 0] - line.path[:, 1])) < 1e-3


def test_a_line_whose_kind_changes_is_one_line_of_each_kind() -> None:
    # y0 y1²: the curvature across y1 = 0 is 2 y0.
    maxima, minima = found_in(polynomial({(1, 2): 1.0}), [(-1, 3), (-1, 1)])
    assert (maxima.name, minima.name) == ("line of maxima", "line of minima")
    assert maxima.path is not None and minima.path is not None
    assert (maxima.path[:, 0].min(), minima.path[:, 0].max()) == (-1, 3)
    assert maxima.path[:, 0].max() == pytest.approx(0, abs=0.03)
    assert minima.path[:, 0].min() == pytest.approx(0, abs=0.03)
    assert maxima.spectrum == pytest.approx([2 * maxima.position[0], 0])
    assert minima.spectrum == pytest.approx([0, 2 * minima.position[0]])


@pytest.mark.exhaustive
def test_two_lines_that_lie_close_are_both_found() -> None:
    # u³/3 − c²u with u = y0 − y1: a maximum across u = −c, a minimum across u = c.
    found = critical_points(
        Flow(lambda y: (y[0] - y[1]) ** 3 / 3 - 1e-4 * (y[0] - y[1])), [(-2, 2), (-2, 2)], starts=64
    )
    assert sorted(point.name for point in found) == ["line of maxima", "line of minima"]


@pytest.mark.exhaustive
def test_the_unit_of_the_potential_changes_nothing() -> None:
    factor = 1e-8
    ring = {(4, 0): factor, (2, 2): 2 * factor, (0, 4): factor}
    ring |= {(2, 0): -2 * factor, (0, 2): -2 * factor, (0, 0): factor}
    found = found_in(polynomial(ring), [(-2, 2), (-2, 2)])
    assert [point.name for point in found] == ["line of minima", "maximum"]
    two_wells = {(4, 0): factor, (2, 0): -2 * factor, (1, 0): 0.1 * factor, (0, 2): factor}
    found = found_in(polynomial(two_wells), [(-2, 2), (-2, 2)])
    assert [point.name for point in found] == ["minimum", "minimum", "saddle of index 1"]
    assert np.allclose(4 * found[0].position[0] * (found[0].position[0] ** 2 - 1), -0.1, atol=1e-12)


@pytest.mark.exhaustive
def test_wells_that_are_small_beside_the_region_are_found() -> None:
    def wells(y: jax.Array) -> jax.Array:
        first, second = ((y[0] - 1) ** 2 + y[1] ** 2, (y[0] + 1) ** 2 + y[1] ** 2)
        return -jnp.exp(-first) - jnp.exp(-second)

    found = critical_points(Flow(wells), [(-20, 20), (-20, 20)])
    assert [point.name for point in found] == ["minimum", "minimum", "saddle of index 1"]
    # On the axis, (y0 − 1) e^{2 y0} + (y0 + 1) e^{−2 y0} = 0, so that y0 = tanh 2y0.
    position = abs(found[0].position[0])
    assert position == pytest.approx(np.tanh(2 * position), rel=1e-12)


@pytest.mark.exhaustive
def test_a_level_that_an_isolated_minimum_shares_with_a_sphere_of_them_hides_neither() -> None:
    def sphere_and_point(y: jax.Array) -> jax.Array:
        return (jnp.sum(y**2) - 1) ** 2 * jnp.sum((y - jnp.array([3.0, 0.0, 0.0])) ** 2)

    found = critical_points(Flow(sphere_and_point), [(-4, 4)] * 3)
    names = ["2-dimensional manifold of minima", "minimum", "saddle of index 1", "maximum"]
    assert sorted(point.name for point in found) == sorted(names)
    assert [point.dimension for point in found.of("minimum")].count(0) == 1
    (lone,) = (point for point in found.of("minimum") if not point.dimension)
    assert np.allclose(lone.position, [3, 0, 0], atol=1e-9)


def test_points_on_the_sides_of_the_region_are_in_it() -> None:
    bowl = polynomial({(2, 0): 1.0, (1, 0): -2.0, (0, 2): 1.0, (0, 1): 2 / 3})
    (point,) = found_in(bowl, [(0, np.nextafter(1, 0)), (-1 / 3 * (1 - 1e-15), 1)])
    assert point.name == "minimum"
    assert np.allclose(point.position, [1, -1 / 3], rtol=0, atol=1e-14)
    # y1², along one side.
    (line,) = found_in(polynomial({(0, 2): 1.0}), [(-1, 1), (0, 1)])
    assert line.name == "line of minima"
    assert line.path is not None
    assert np.ptp(line.path[:, 0]) == 2
    assert np.all(line.path[:, 1] >= 0)


@pytest.mark.exhaustive
def test_the_logits_of_a_softmax_have_manifolds_of_minima() -> None:
    flow = preference_flow(IPO(2.0), TabularSoftmax([0.1, 0.05, 0.8, 0.05]))
    found = critical_points(flow, [(-40, 40)] * 4, starts=64)
    assert [(point.kind, point.dimension) for point in found] == [("minimum", 3)]


BESIDE_A_WALL = {(2, 0): 1.0, (1, 0): -4.0, (0, 2): 3.0, (0, 1): -1.5}
# (y0 − 2)² + 3 (y1 − 1/4)², but for a constant


def boxed(terms: dict[tuple[int, int], float], **options: Any) -> Flow:
    return polynomial(terms, domain=Box(1, 1), wall="slide", **options)


def test_a_wall_holds_the_point_nearest_to_a_minimum_behind_it() -> None:
    (point,) = found_in(boxed(BESIDE_A_WALL), [(0.1, 1), (0.1, 1)])
    assert np.allclose(point.position, [1, 0.25])
    assert point.name == "minimum on y0 = 1"
    assert point.rates == pytest.approx([6.0])
    assert point.gradient_norm == pytest.approx(0, abs=1e-12)


@pytest.mark.exhaustive
def test_rates_on_a_wall_are_those_with_which_a_line_that_slides_comes_to_rest() -> None:
    metric = np.array([[1.0, 0.5], [0.5, 1.0]])
    flow = boxed(BESIDE_A_WALL, metric=lambda y, p: metric @ p)
    (point,) = found_in(flow, [(0.1, 1), (0.1, 1)])
    # Along the wall the metric is the Schur complement, 1 − 1/4, and the curvature 6.
    assert point.rates == pytest.approx([4.5])
    upper = jnp.array([True, False])
    sliding = jax.jit(lambda y: along_walls(flow, y, flow.velocity(y), upper)[0])
    line = solve_ivp(lambda _, y: np.asarray(sliding(y)), (0, 1), [1.0, 0.5], rtol=1e-9, atol=1e-12)
    assert np.all(line.y[0] == 1)
    assert np.log(0.25 / (line.y[1, -1] - 0.25)) == pytest.approx(point.rates[0], rel=1e-6)


def test_two_walls_hold_a_corner_and_a_wall_that_is_not_pressed_holds_nothing() -> None:
    corner = {(2, 0): 1.0, (1, 0): -4.0, (0, 2): 1.0, (0, 1): -6.0}  # (y0 − 2)² + (y1 − 3)²
    (point,) = found_in(boxed(corner), [(0.1, 1), (0.1, 1)])
    assert np.allclose(point.position, [1, 1])
    assert point.on == ("y0 = 1", "y1 = 1")
    inner = {(2, 0): 1.0, (1, 0): -1.0, (0, 2): 1.0, (0, 1): -1.0}
    (point,) = found_in(boxed(inner), [(0.1, 1), (0.1, 1)])
    assert point.on == ()


def test_a_minimum_just_on_a_wall_is_found_once() -> None:
    # (y0 − 1)² + (y0 − 1)(y1 − 0.7) + 3 (y1 − 0.7)²: rounding decides whether the wall is pressed.
    touching = {(2, 0): 1.0, (1, 1): 1.0, (0, 2): 3.0, (1, 0): -2.7, (0, 1): -5.2}
    (point,) = found_in(boxed(touching), [(0.1, 1), (0.1, 1)])
    assert np.allclose(point.position, [1, 0.7])
    assert point.kind == "minimum"


def test_a_wall_along_which_nothing_moves_is_one_line_of_minima() -> None:
    (line,) = found_in(boxed({(1, 0): -1.0}), [(0, 1), (0, 1)])
    assert (line.name, line.dimension) == ("line of minima on y0 = 1", 1)
    assert line.path is not None
    assert np.all(line.path[:, 0] == 1)
    assert np.ptp(line.path[:, 1]) == 1
    assert line.rates == pytest.approx([0], abs=1e-15)


def test_a_line_on_a_wall_ends_where_the_flow_no_longer_presses() -> None:
    # (y0 − 1)(y1 − 1/2) presses where y1 < 1/2, and has no slope along y0 = 1.
    (line,) = (
        point
        for point in found_in(
            boxed({(1, 1): 1.0, (1, 0): -0.5, (0, 1): -1.0}), [(0.1, 1), (0.1, 1)]
        )
        if point.on
    )
    assert line.name == "line of minima on y0 = 1"
    assert line.path is not None
    assert line.path[:, 1].min() == pytest.approx(0.1)
    assert line.path[:, 1].max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.exhaustive
def test_a_point_on_an_edge_is_found_where_the_edge_is_not_one_of_critical_points() -> None:
    bowl = {(2, 0): 1.0, (1, 0): -1.0, (0, 2): 1.0}  # (y0 − 1/2)² + y1²
    (point,) = found_in(polynomial(bowl, domain=Quadrant()), [(0, 1), (0, 1)])
    assert point.name == "minimum on component 1 = 0"
    assert np.allclose(point.position, [0.5, 0], rtol=0, atol=1e-12)
    assert point.rates == pytest.approx([2])
    hill = {(2, 0): 1.0, (1, 0): -1.0, (0, 2): -1.0}
    assert len(found_in(polynomial(hill, domain=Quadrant()), [(0, 1), (0, 1)])) == 0


def test_rates_are_those_of_the_metric() -> None:
    flow = Flow(Bowl(2.0), metric=lambda y, p: 3.0 * p)
    (point,) = critical_points(flow, SQUARE).points
    assert point.spectrum == pytest.approx([2, 2])
    assert point.rates == pytest.approx([6, 6])


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ([(1, 0), (0, 1)], "`region` must give a lower and an upper end"),
        ([0, 1], "`region` must give a lower and an upper end"),
        ("all", "`region` must give a lower and an upper end"),
        ([(0, np.inf), (0, 1)], "`region` must give a lower and an upper end"),
        ([(0, 1)] * 3, "`flow` must have states that are vectors"),
        ([(-2, -1), (-2, -1)], "`region` must hold states at which the flow is defined"),
    ],
)
def test_a_region_that_does_not_fit_is_refused(region: object, words: str) -> None:
    flow = preference_flow(DPO(0.3), RatioPlane())
    with pytest.raises(ValueError, match=words):
        critical_points(flow, region)  # type: ignore[arg-type]


def test_an_enclosure_has_the_walls_of_its_domain_and_its_own() -> None:
    enclosed = Enclosure(Box(1, 2), [-np.inf, 0.5], [np.inf, 3])
    normals, offsets = enclosed.walls()
    assert normals.tolist() == [[1, 0], [0, 1], [0, 1], [0, -1]]
    assert offsets.tolist() == [1, 2, 3, -0.5]
    assert enclosed.absorbing
    assert bool(enclosed.contains(jnp.array([0.5, 1.0])))
    assert not bool(enclosed.contains(jnp.array([0.5, 0.4])))
    with pytest.raises(ValueError, match="`upper` must lie above `lower`"):
        Enclosure(Quadrant(), [0, 1], [1, 1])
