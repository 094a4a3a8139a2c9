"""Classical potentials: published critical points against roots found with 30 digits."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import flowlab as fl
from flowlab import potentials
from flowlab.exact import bowl_state
from flowlab.potentials import (
    Bowl,
    DoubleWell,
    Himmelblau,
    MonkeySaddle,
    MuellerBrown,
    Rosenbrock,
    Saddle,
)

CASES = {
    "bowl": Bowl(2.0),
    "saddle": Saddle(stable=2.0, unstable=0.5),
    "Müller–Brown": MuellerBrown(),
    "Himmelblau": Himmelblau(),
    "Rosenbrock": Rosenbrock(),
    "another Rosenbrock": Rosenbrock(a=-2.5, b=10.0),
    "monkey saddle": MonkeySaddle(),
    "double well": DoubleWell(barrier=3.0, distance=1.5),
    "double well in space": DoubleWell(barrier=3.0, distance=1.5, curvature=2.0, dimension=3),
}
# How far a published place may be from the root, and a published value from the value there.
PLACES = {"Müller–Brown": 0.5e-3, "Himmelblau": 0.6e-6}
EXACT = 1e-14
TEXT: Any = "2"


def mueller_brown(x, y):
    """As in the paper, parameter by parameter."""
    A, a, b, c = (-200, -100, -170, 15), (-1, -1, -6.5, 0.7), (0, 0, 11, 0.6), (-10, -10, -6.5, 0.7)
    at_x, at_y = (1, 0, -0.5, -1), (0, 0.5, 1.5, 1)
    squares = [
        (a[k] * (x - at_x[k]) ** 2, b[k] * (x - at_x[k]) * (y - at_y[k]), c[k] * (y - at_y[k]) ** 2)
        for k in range(4)
    ]
    return sum(A[k] * mpmath.exp(sum(squares[k])) for k in range(4))


# The same functions, written once more, for mpmath.
ORACLES = {
    "bowl": lambda x, y: x**2 + y**2,
    "saddle": lambda x, y: y**2 - x**2 / 4,
    "Müller–Brown": mueller_brown,
    "Himmelblau": lambda x, y: (x * x + y - 11) ** 2 + (x + y * y - 7) ** 2,
    "Rosenbrock": lambda x, y: (1 - x) ** 2 + 100 * (y - x * x) ** 2,
    "another Rosenbrock": lambda x, y: (x + 2.5) ** 2 + 10 * (y - x * x) ** 2,
    "monkey saddle": lambda x, y: x**3 - 3 * x * y * y,
    "double well": lambda x: 3 * (1 - 16 * x * x / 9) ** 2,
    "double well in space": lambda x, y, z: 3 * (1 - 16 * x * x / 9) ** 2 + y**2 + z**2,
}
POINTS = [(name, point) for name, held in CASES.items() for point in held.critical_points]
ROOTS = [(name, point) for name, point in POINTS if point.kind != "degenerate"]


@pytest.mark.parametrize(("name", "point"), ROOTS, ids=[f"{n} {p.position}" for n, p in ROOTS])
def test_a_published_point_is_a_root_of_the_gradient_to_its_digits(name, point):
    root, value = polished(ORACLES[name], point.position)
    np.testing.assert_allclose(point.position, root, rtol=0, atol=PLACES.get(name, EXACT))
    np.testing.assert_allclose(point.value, value, rtol=0, atol=PLACES.get(name, EXACT))
    _, gradient, hessian = calculus(name)(root)
    steepness = np.linalg.norm(hessian) * (1 + np.linalg.norm(root))
    assert np.linalg.norm(gradient) < EXACT * steepness


def test_the_gradient_and_the_hessian_of_the_monkey_saddle_vanish_at_its_point():
    (point,) = MonkeySaddle().critical_points
    _, gradient, hessian = calculus("monkey saddle")(np.array(point.position))
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(hessian, 0)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_formula(name):
    position = (0.3, -0.7, 0.2)[: len(CASES[name].region)]
    value, gradient, _ = calculus(name)(np.array(position))
    orders = np.eye(len(position), dtype=int).tolist()
    with mpmath.workdps(30):
        wanted = ORACLES[name](*map(mpmath.mpf, position))
        slopes = [mpmath.diff(ORACLES[name], position, tuple(order)) for order in orders]
    np.testing.assert_allclose(value, float(wanted), rtol=1e-13)
    np.testing.assert_allclose(gradient, np.array(slopes, float), rtol=1e-12)


@pytest.mark.parametrize(("name", "point"), POINTS, ids=[f"{n} {p.position}" for n, p in POINTS])
def test_the_eigenvalues_of_the_hessian_have_the_signs_of_the_kind(name, point):
    _, _, hessian = calculus(name)(np.array(point.position))
    assert kind_of(np.linalg.eigvalsh(hessian)) == point.kind


@pytest.mark.parametrize("name", CASES)
def test_the_region_holds_every_known_point(name):
    low, high = np.transpose(CASES[name].region)
    positions = np.array([point.position for point in CASES[name].critical_points])
    assert positions.shape[1:] == low.shape
    assert np.all((positions > low) & (positions < high))


def test_a_critical_point_of_himmelblau_is_one_of_the_nine_at_which_two_cubics_meet():
    # The places at x: eliminate y from both derivatives, and look for roots of the resultant.
    known = sorted(point.position[0] for point in Himmelblau().critical_points)
    roots = [root.real for root in resultant().roots() if abs(root.imag) < 1e-8]
    np.testing.assert_allclose(sorted(roots), known, atol=1e-6)


def test_the_wells_have_the_barrier_distance_and_curvatures_that_are_documented():
    left, right, top = CASES["double well"].critical_points
    assert right.position[0] - left.position[0] == 1.5
    assert top.value - left.value == top.value - right.value == 3.0
    _, _, in_the_well = calculus("double well")(np.array(right.position))
    _, _, on_the_barrier = calculus("double well")(np.array(top.position))
    np.testing.assert_allclose(in_the_well, [[32 * 3 / 1.5**2]], rtol=1e-14)
    np.testing.assert_allclose(on_the_barrier, [[-16 * 3 / 1.5**2]], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_the_precision_of_the_state_is_that_of_value_and_gradient(name, dtype):
    state = jnp.full(len(CASES[name].region), 0.25, dtype)
    value, gradient = jax.jit(jax.value_and_grad(CASES[name]))(state)
    assert value.dtype == gradient.dtype == dtype
    assert value.shape == () and not value.weak_type


@pytest.mark.parametrize("components", [1, 3])
def test_a_bowl_has_any_number_of_components(components):
    flow = fl.Flow(Bowl(2.0))
    start = np.linspace(0.5, 1, components)
    end = fl.flow_line(flow, start, until=fl.until.time(1.0), rtol=1e-9).end
    np.testing.assert_allclose(end, bowl_state(1.0, start, 2.0), rtol=1e-7)


def test_many_starts_flow_to_the_published_minima_of_himmelblau():
    axis = np.linspace(-4.5, 4.5, 6)
    starts = np.array(list(itertools.product(axis, axis)))
    runs = fl.sweep(fl.Flow(Himmelblau()), starts, until=fl.until.time(5.0))
    minima = np.array([p.position for p in Himmelblau().critical_points if p.kind == "minimum"])
    away = np.linalg.norm(runs.end[:, None] - minima, axis=-1)
    assert np.max(np.min(away, axis=1)) < 1e-5
    assert set(np.argmin(away, axis=1)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("potential", "name"),
    [
        (Bowl(), "curvature"),
        (Saddle(), "unstable"),
        (Rosenbrock(), "b"),
        (DoubleWell(), "barrier"),
        (DoubleWell(dimension=2), "curvature"),
    ],
    ids=lambda held: str(held),
)
def test_a_flow_replaces_a_hyper_parameter_and_checks_it(potential, name):
    flow = fl.Flow(potential).with_parameter(name, 2.5)
    assert getattr(flow.function, name) == 2.5
    assert type(flow.function) is type(potential)
    with pytest.raises(ValueError, match=f"Argument `{name}` must be positive and finite"):
        fl.Flow(potential).with_parameter(name, -1.0)


def test_a_potential_shows_its_hyper_parameters():
    assert repr(DoubleWell(3.0)) == "DoubleWell(barrier=3.0, distance=2.0, dimension=1)"
    assert repr(Himmelblau()) == "Himmelblau()"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Bowl(0.0), "`curvature` must be positive and finite"),
        (lambda: Bowl(np.nan), "`curvature` must be positive and finite"),
        (lambda: Bowl(np.ones(2)), "`curvature` must be a single number"),
        (lambda: Saddle(stable=-1.0), "`stable` must be positive and finite"),
        (lambda: Rosenbrock(a=np.inf), "`a` must be finite"),
        (lambda: Rosenbrock(b=0.0), "`b` must be positive and finite"),
        (lambda: DoubleWell(barrier=0.0), "`barrier` must be positive and finite"),
        (lambda: DoubleWell(distance=TEXT), "`distance` must be positive and finite"),
        (lambda: DoubleWell(curvature=1.0), "`curvature` must be None in one dimension"),
        (lambda: DoubleWell(curvature=0.0, dimension=2), "`curvature` must be positive"),
        (
            lambda: DoubleWell(curvature=np.ones(1), dimension=2),
            "`curvature` must be a single number",
        ),
        (lambda: DoubleWell(dimension=0), "`dimension` must be a positive int"),
        (lambda: DoubleWell(dimension=True), "`dimension` must be a positive int"),
    ],
)
def test_a_bad_hyper_parameter_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"bowl"}))
def test_a_state_of_another_shape_is_refused(name):
    with pytest.raises(ValueError, match=r"Argument `state` must have shape .* but has shape \(4,"):
        CASES[name](jnp.zeros(4))


def test_every_potential_is_tested_here():
    abstract = {"AbstractPotential", "KnownPoint"}
    assert {type(held).__name__ for held in CASES.values()} == {*potentials.__all__} - abstract


@functools.cache
def calculus(name):
    """The function that gives value, gradient and Hessian of a potential, compiled once."""
    potential = CASES[name]
    return jax.jit(lambda y: (potential(y), jax.grad(potential)(y), jax.hessian(potential)(y)))


def polished(function, position):
    """The root of the gradient near a place, and the value there, found with 30 digits."""
    orders = np.eye(len(position), dtype=int).tolist()

    def gradient(*at):
        return [mpmath.diff(function, at, tuple(order)) for order in orders]

    with mpmath.workdps(30):
        found = mpmath.findroot(gradient, tuple(map(mpmath.mpf, position)))
        root = [found[i] for i in range(len(position))]
        return np.array(root, float), float(function(*root))


def kind_of(curvatures):
    """The kind of a critical point, from the eigenvalues of its Hessian."""
    if np.any(np.abs(curvatures) < 1e-9):
        return "degenerate"
    if np.all(curvatures > 0):
        return "minimum"
    return "maximum" if np.all(curvatures < 0) else "saddle"


def resultant() -> Any:
    """The polynomial in x whose roots are the x at which both derivatives of Himmelblau vanish.

    ∂/∂x: 2x³ − 21x + 2xy + y² − 7 = 0, and ∂/∂y: x² − 11 + 2xy − 13y + 2y³ = 0, over 2.
    As polynomials in y their Sylvester determinant vanishes where they share a root.
    """
    x = np.polynomial.Polynomial([0, 1])
    first = [1 + 0 * x, 2 * x, 2 * x**3 - 21 * x - 7]
    second = [2 + 0 * x, 0 * x, 2 * x - 13, x**2 - 11]
    rows = [[0 * x] * i + first + [0 * x] * (2 - i) for i in range(3)]
    rows += [[0 * x] * i + second + [0 * x] * (1 - i) for i in range(2)]
    return determinant(rows)


def determinant(rows):
    """The determinant, by cofactors along the first column."""
    if not rows:
        return 1
    minors = [[row[1:] for j, row in enumerate(rows) if j != i] for i in range(len(rows))]
    return sum((-1) ** i * rows[i][0] * determinant(minors[i]) for i in range(len(rows)))
