"""Critical points: all that are published and no others, lines of them, walls, and none."""

from typing import Any

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from flowlab import DPO, Flow, LogRatioPlane, RatioPlane, TabularSoftmax, preference_flow
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

PAPER = [(0.0, 1.0), (0.0, 1.0)]


@pytest.fixture(scope="module")
def paper() -> CriticalPoints:
    return critical_points(preference_flow(DPO(0.3), RatioPlane()), PAPER)


@pytest.mark.parametrize("potential", [MuellerBrown(), Himmelblau(), Rosenbrock(), MonkeySaddle()])
def test_every_published_point_is_found_with_its_name_and_no_others(
    potential: AbstractPotential,
) -> None:
    found = critical_points(Flow(potential), potential.region)
    assert len(found) == len(potential.critical_points)
    left = list(found)
    for known in potential.critical_points:
        nearest = min(left, key=lambda point: float(np.linalg.norm(point.place - known.place)))
        left.remove(nearest)
        assert np.linalg.norm(nearest.place - known.place) < 1e-3
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
            exact = mpmath.findroot(slopes, tuple(map(float, point.place)))
        assert np.allclose(point.place, [float(x) for x in exact], rtol=0, atol=1e-13)


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
    found = critical_points(
        Flow(lambda y: (y[0] ** 2 + y[1] ** 2 - 1) ** 2), [(-2, 2), (-2, 2)], starts=128
    )
    assert [point.name for point in found] == ["line of minima", "maximum"]
    path = found[0].path
    assert path is not None
    assert np.allclose(np.hypot(*path.T), 1)
    assert np.all(path[0] == path[-1])
    assert np.sum(np.hypot(*np.diff(path, axis=0).T)) == pytest.approx(2 * np.pi, rel=1e-3)


def test_the_logits_of_a_softmax_have_manifolds_of_minima() -> None:
    flow = preference_flow(IPO(2.0), TabularSoftmax([0.1, 0.05, 0.8, 0.05]))
    found = critical_points(flow, [(-40, 40)] * 4, starts=64)
    assert [(point.kind, point.dimension) for point in found] == [("minimum", 3)]


def test_a_wall_holds_the_point_nearest_to_a_minimum_behind_it() -> None:
    flow = Flow(lambda y: (y[0] - 2) ** 2 + 3 * (y[1] - 0.25) ** 2, domain=Box(1, 1), wall="slide")
    (point,) = critical_points(flow, [(0.1, 1), (0.1, 1)]).points
    assert np.allclose(point.place, [1, 0.25])
    assert point.name == "minimum on y0 = 1"
    assert point.rates == pytest.approx([6.0])
    assert point.gradient_norm == pytest.approx(0, abs=1e-12)


def test_two_walls_hold_a_corner_and_a_wall_that_is_not_pressed_holds_nothing() -> None:
    corner = Flow(lambda y: (y[0] - 2) ** 2 + (y[1] - 3) ** 2, domain=Box(1, 1), wall="slide")
    (point,) = critical_points(corner, [(0.1, 1), (0.1, 1)]).points
    assert np.allclose(point.place, [1, 1])
    assert point.on == ("y0 = 1", "y1 = 1")
    inner = Flow(lambda y: (y[0] - 0.5) ** 2 + (y[1] - 0.5) ** 2, domain=Box(1, 1), wall="slide")
    (point,) = critical_points(inner, [(0.1, 1), (0.1, 1)]).points
    assert point.on == ()


def test_rates_are_those_of_the_metric() -> None:
    flow = Flow(Bowl(2.0), metric=lambda y, p: 3.0 * p)
    (point,) = critical_points(flow, [(-1, 1), (-1, 1)]).points
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
