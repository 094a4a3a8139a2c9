"""Walls: which of them hold a lane, and where it goes along them, compared with SciPy."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, nnls

import flowlab as fl
from flowlab import until
from flowlab.domains import Box, Enclosure, Simplex, WholeSpace
from flowlab.solve.walls import along_walls, holding
from flowlab.until import Outcome


def test_the_walls_that_hold_are_those_of_nonnegative_least_squares():
    # v is the velocity nearest to the free one, in the inverse of the metric, that leaves no wall:
    # its multipliers are the non-negative least squares of Lᵀ Nᵀ μ = L⁻¹ f, with M = L Lᵀ.
    rng = np.random.default_rng(3)
    size, walls = 4, 6
    normals = rng.normal(size=(walls, size))
    flow = with_walls(normals, np.zeros(walls), lambda y, p: metric_at(y) @ p)

    @jax.jit
    @jax.vmap
    def projected(state, free, touched):
        held = holding(flow, state, free, touched)
        return held, along_walls(flow, state, free, held)[0]

    states, free = rng.normal(size=(2, 200, size))
    touched = rng.random((200, walls)) < 0.7
    held, velocity = map(np.asarray, projected(states, free, touched))
    assert set(np.sum(held, axis=1)) >= {0, 1, 2, 3}
    for state, f, near, on, v in zip(states, free, touched, held, velocity, strict=True):
        lower = np.linalg.cholesky(np.asarray(metric_at(jnp.asarray(state))))
        pressed = np.zeros(0)
        if near.any():
            pressed = nnls(lower.T @ normals[near].T, np.linalg.solve(lower, f))[0]
        wanted = f - lower @ (lower.T @ normals[near].T @ pressed)
        if np.sum(on) < size:  # where more walls meet, several multipliers leave no way to go
            np.testing.assert_array_equal(np.flatnonzero(near)[pressed > 1e-12], np.flatnonzero(on))
        np.testing.assert_allclose(v, wanted, atol=1e-10)


@pytest.mark.exhaustive
def test_a_wall_that_is_there_twice_holds_once():
    twice = Enclosure(Box(1, 1), (-np.inf, -np.inf), (1, np.inf))
    flow = fl.Flow(lambda y: -y[0] - y[1], domain=twice, wall="slide")
    runs = fl.sweep(flow, np.array([[0.5, 0.2]]), until=until.time(0.75))
    np.testing.assert_allclose(runs.end, [[1.0, 0.95]], rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "curved"),
    thinned(
        [*((size, False) for size in (2, 3, 6, 10)), *((size, True) for size in (2, 3, 6))],
        [(2, False)],
    ),
)
def test_a_line_in_a_box_goes_as_the_projected_flow_solved_piece_by_piece(size, curved):
    rng = np.random.default_rng(size)
    root = rng.normal(size=(size, size)) / np.sqrt(size)
    bend, centre = (
        root @ root.T + 0.3 * np.eye(size),
        rng.choice([-1, 1], size) * rng.uniform(2, 4, size),
    )
    box = Enclosure(WholeSpace(), -np.ones(size), np.ones(size))
    metric = (lambda y, p: metric_at(y) @ p) if curved else None
    flow = fl.Flow(
        lambda y: (y - centre) @ bend @ (y - centre) / 2, metric=metric, domain=box, wall="slide"
    )
    starts = rng.uniform(-0.9, 0.9, (4, size))
    runs = fl.sweep(flow, starts, until=until.time(2.0), rtol=1e-8)

    def free(y):
        slope = bend @ (y - centre)
        return -(np.asarray(metric_at(jnp.asarray(y))) @ slope if curved else slope)

    def matrix(y):
        return np.asarray(metric_at(jnp.asarray(y))) if curved else np.eye(size)

    held = []
    for start, end in zip(starts, runs.end, strict=True):
        wanted, most = piecewise(free, matrix, start, 2.0, box.walls())
        held.append(most)
        np.testing.assert_allclose(end, wanted, atol=1e-6)
    assert max(held) >= min(size - 1, 2)


@pytest.mark.exhaustive
def test_a_wall_that_lets_go_within_a_step_is_left():
    # Along y1 = 0 the velocity is 1, and steps could be long; the pressure 0.9 + cos 3 y0 falls
    # below 0 every 2 π / 3, where the line leaves the wall for a while.
    half_plane = Enclosure(WholeSpace(), (-99, 0), (99, 99))
    flow = fl.Flow(
        lambda y: -y[0] + y[1] * (0.9 + jnp.cos(3 * y[0])) + y[1] ** 2 / 2,
        domain=half_plane,
        wall="slide",
    )
    starts = np.array([[0.1, 0.0], [-0.7, 0.3]])
    runs = fl.sweep(flow, starts, until=until.time(6.0))

    def free(_, y):
        return [1 + 3 * y[1] * np.sin(3 * y[0]), -(0.9 + np.cos(3 * y[0])) - y[1]]

    for start, end in zip(starts, runs.end, strict=True):
        wanted = on_and_off(free, lambda x: 0.9 + np.cos(3 * x), start, 6.0)
        np.testing.assert_allclose(end, wanted, atol=1e-5)
        assert np.linalg.norm(end - [start[0] + 6, 0]) > 1e-3


@pytest.mark.exhaustive
def test_a_start_that_moves_along_a_wall_is_held_where_its_velocity_turns_to_it():
    # dy1/dt = sin y0 on the wall y1 = 0, from above which nothing is allowed: towards it from 0 to
    # π, and away from it afterwards.
    half_plane = Enclosure(WholeSpace(), (-99, -99), (99, 0))
    flow = fl.Flow(lambda y: -y[0] - y[1] * jnp.sin(y[0]), domain=half_plane, wall="slide")
    starts = np.array([[0.0, 0.0], [3.5, 0.0]])
    runs = fl.sweep(flow, starts, until=until.time(5.0))

    def free(_, y):
        return [1 + y[1] * np.cos(y[0]), np.sin(y[0])]

    for start, end in zip(starts, runs.end, strict=True):
        left = max(np.pi, start[0])
        after = (0, 5.0 - (left - start[0]))
        wanted = solve_ivp(free, after, [left, 0.0], rtol=1e-11, atol=1e-13).y[:, -1]
        np.testing.assert_allclose(end, wanted, atol=1e-6)


def on_and_off(free, pressure, start, duration):
    """A line by SciPy: at speed 1 along y1 = 0 while pressed onto it, and freely if not."""
    time, state, held = 0.0, np.array(start), False
    while time < duration:
        if held:
            along = np.linspace(state[0], state[0] + duration - time, 100_000)
            lets_go = np.flatnonzero(pressure(along) < 0)
            if not len(lets_go):
                return np.array([state[0] + duration - time, 0.0])
            left = cast(
                float, brentq(pressure, *along[lets_go[0] - 1 : lets_go[0] + 1], xtol=1e-14)
            )
            time, state, held = time + left - state[0], np.array([left, 0.0]), False
        else:

            def height(t, y, since=time):
                return y[1] if t > since + 1e-3 else 1.0

            event: Any = height
            event.terminal, event.direction = True, -1
            options = {"rtol": 1e-11, "atol": 1e-13, "max_step": 0.01, "events": event}
            solution = solve_ivp(free, (time, duration), state, **options)
            time, state, held = solution.t[-1], solution.y[:, -1], solution.status == 1
            state[1] = 0.0 if held else state[1]
    return state


@pytest.mark.parametrize("offset", thinned([-1e9, -3.0, -1e-9, 0.0, 1e-9, 3.0, 1e9], [-1e9]))
@pytest.mark.parametrize("rule", ["slide", "stop"])
def test_a_wall_may_lie_anywhere(offset, rule):
    # Both from a start on y0 = offset and from inside, at a speed of 2 across and of 1 along it.
    size = max(1.0, abs(offset))
    box = Enclosure(WholeSpace(), (offset, -9 * size), (offset + 9 * size, 9 * size))
    flow = fl.Flow(lambda y: 2 * y[0] + y[1], domain=box, wall=rule)
    starts = np.array([[offset, 2.0], [offset + size, 2.0]])
    runs = fl.sweep(flow, starts, until=until.time(0.75 * size))
    if rule == "stop":
        assert runs.counts() == {"at_wall": 2}
        np.testing.assert_allclose(runs.end_time, [0, size / 2], atol=1e-6 * size)
    else:
        assert runs.counts() == {"reached": 2}
        np.testing.assert_allclose(runs.end[:, 0], offset, atol=1e-6 * size)
        np.testing.assert_allclose(runs.end[:, 1], 2 - 0.75 * size, atol=1e-6 * size)


@pytest.mark.exhaustive
def test_a_line_on_an_edge_of_a_cube_goes_on_along_it():
    centre = np.array([3.0, -4.0, 0.3])
    cube = Enclosure(WholeSpace(), [-1.0] * 3, [1.0] * 3)
    flow = fl.Flow(lambda y: jnp.sum((y - centre) ** 2) / 2, domain=cube, wall="slide")
    starts = np.array([[0.5, -0.5, -0.9], [1.0, -1.0, 0.9], [1.0, 0.2, -0.4]])
    runs = fl.sweep(flow, starts, until=until.time(1.5))
    assert runs.counts() == {"reached": 3}
    along = 0.3 + (starts[:, 2] - 0.3) * np.exp(-1.5)
    np.testing.assert_allclose(runs.end, np.c_[np.ones(3), -np.ones(3), along], atol=1e-6)


@pytest.mark.exhaustive
def test_a_line_ends_in_the_corner_of_a_cube_that_holds_it():
    cube = Enclosure(WholeSpace(), [1.0] * 3, [9.0] * 3)
    flow = fl.Flow(lambda y: y[0] + 2 * y[1] + 4 * y[2], domain=cube, wall="slide")
    runs = fl.sweep(flow, np.array([[1.5, 2.5, 4.0], [3.0, 3.0, 1.0]]), until=until.time(9.0))
    assert [Outcome(code).name for code in runs.outcome] == ["at_wall"] * 2
    np.testing.assert_allclose(runs.end_time, [0.75, 2.0], rtol=1e-5)
    np.testing.assert_allclose(runs.end, np.ones((2, 3)), rtol=1e-9)


@pytest.mark.exhaustive
def test_walls_in_a_simplex_and_a_cuboid_let_go_where_the_flow_turns():
    # The free velocity turns with y1: the line meets y0 = 1, slides, and leaves it again.
    cuboid = Enclosure(WholeSpace(), (-1.0, -9.0, -9.0), (1.0, 9.0, 9.0))
    flow = fl.Flow(lambda y: -y[0] * (1 - y[1]) - y[1] - 0.1 * y[2], domain=cuboid, wall="slide")
    start = np.array([0.9, 0.5, 0.0])

    def free(y):
        return np.array([1 - y[1], 1 - y[0], 0.1])

    wanted, most = piecewise(free, lambda y: np.eye(3), start, 20.0, cuboid.walls())
    assert most == 1
    runs = fl.sweep(flow, start[None], until=until.time(20.0), rtol=1e-8)
    np.testing.assert_allclose(runs.end[0], wanted, rtol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_small_components_move_on_along_the_wall_of_a_simplex(kind):
    # At unit speed x1 comes to the wall. x2 falls at a rate of 1e-3 until then and of 1.001 along
    # it, wherever it is: M n = (1, x2), so that x2' = −1e-3·x2 − x2 where x2 is small.
    rng = np.random.default_rng(0)
    starts = np.c_[rng.uniform(0.2, 0.9, 60), 10.0 ** rng.uniform(-25, -12, 60)].astype(kind)
    flow = fl.Flow(
        lambda y: -y[0] + 1e-3 * y[1],
        metric=lambda y, p: jnp.stack([p[0], y[1] * p[1]]),
        domain=Simplex(),
        wall="slide",
    )
    runs = fl.sweep(flow, starts, until=until.time(2.0))
    assert runs.counts() == {"reached": 60}
    rtol = 1e-5 if kind == np.float64 else 1e-3
    np.testing.assert_allclose(runs.end[:, 0], 1, rtol=rtol)
    met = 1 - starts[:, 0].astype(float)
    fallen = np.log(runs.end[:, 1].astype(float) / starts[:, 1])
    np.testing.assert_allclose(fallen, -1e-3 * met - 1.001 * (2 - met), rtol=rtol)


def test_starts_a_rounding_beyond_a_wall_of_either_sign_lie_on_it():
    for offset in (-1e9, -1.0, 1.0, 1e9):
        box = Enclosure(WholeSpace(), (offset, -1.0), (offset + abs(offset), 1.0))
        beyond = np.nextafter(offset, -np.inf)
        assert box.contains(jnp.asarray([beyond, 0.0]))
        assert not box.contains(jnp.asarray([offset - 1e-6 * abs(offset), 0.0]))
    assert Simplex().contains(jnp.asarray([0.1 + 0.2, 0.7]))


def metric_at(state):
    """A metric that depends on the state, positive definite everywhere."""
    size = state.shape[0]
    places = jnp.arange(size, dtype=state.dtype)
    bent = jnp.sin(jnp.outer(places, state) + 2 * jnp.outer(state, jnp.ones_like(places)))
    return jnp.eye(size, dtype=state.dtype) + 0.2 * bent @ bent.T


def with_walls(normals, offsets, metric):
    """A flow that slides along any flat walls."""

    class Walled(WholeSpace):
        def walls(self):
            return normals, offsets

    return fl.Flow(lambda y: jnp.sum(y), metric=metric, domain=Walled(), wall="slide")


def piecewise(free, matrix, start, duration, walls):
    """A projected flow by SciPy, one phase after the other, and the most walls held at once.

    A phase is a linear combination of constraints; it ends where a wall is met, or where one of
    those that hold lets go. Which hold then is told by non-negative least squares.
    """
    normals, offsets = walls
    time, state, most = 0.0, np.array(start), 0

    def pressed(y, among):
        found = np.zeros(len(offsets))
        if not len(among):
            return found
        lower = np.linalg.cholesky(matrix(y))
        found[among] = nnls(lower.T @ normals[among].T, np.linalg.solve(lower, free(y)))[0]
        return found

    def held_by(held):
        def multiplier(y):
            lifted = matrix(y) @ normals[held].T
            return np.linalg.solve(normals[held] @ lifted, normals[held] @ free(y)), lifted

        return multiplier

    def along(held, multiplier):
        if not len(held):
            return lambda _, y: free(y)

        def velocity(_, y):
            found, lifted = multiplier(y)
            return free(y) - lifted @ found

        return velocity

    while time < duration:
        touched = offsets - normals @ state <= 1e-9
        held = np.flatnonzero(pressed(state, np.flatnonzero(touched)) > 1e-9)
        most = max(most, len(held))
        solved = held_by(held)

        events = []
        for wall in np.flatnonzero(~touched):
            events.append(lambda _, y, wall=wall: offsets[wall] - normals[wall] @ y)
        for place in range(len(held)):
            events.append(lambda _, y, place=place, solved=solved: solved(y)[0][place])
        for event in events:
            event.terminal, event.direction = True, -1
        piece = solve_ivp(
            along(held, solved),
            (time, duration),
            state,
            rtol=1e-10,
            atol=1e-12,
            events=events or None,
        )
        time, state = piece.t[-1], piece.y[:, -1]
    return state, most
