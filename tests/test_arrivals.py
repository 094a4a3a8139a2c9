"""Arrivals: ends that are at their level, rest and crawling, levels that are crossed in a step."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned
from scipy import optimize

import flowlab as fl
from flowlab import measures, until
from flowlab.domains import AbstractDomain, WholeSpace
from flowlab.policies import AbstractPolicy, WallRule

LEVEL = 1e-2
RTOL = 1e-6


class Valley(eqx.Module):
    """V = s·Σ λ (y − c)²/2, whose lines and times are known; its numbers compile nothing anew."""

    rates: Any
    centre: Any
    scale: Any

    def __call__(self, state):
        return self.scale * jnp.sum(self.rates * (state - self.centre) ** 2) / 2

    def time_to(self, level, start):
        """The time to a level of the potential at scale 1."""
        way = np.asarray(start - self.centre)

        def above(time):
            return np.sum(self.rates * (way * np.exp(-self.rates * time)) ** 2) / 2 - level

        return root(above, 0, 40)


def root(function, low, high) -> float:
    return optimize.root_scalar(function, bracket=(low, high), xtol=1e-14, rtol=1e-14).root


class Slope(eqx.Module):
    """A stiff valley that falls along its floor for ever."""

    drift: np.ndarray

    def __call__(self, y):
        return 5e3 * y[0] ** 2 - self.drift * y[1]


def valley(condition, centre=0.0, scale=1.0, size=2):
    rates = np.geomspace(1.0, condition, size)
    return Valley(rates, np.full(size, float(centre)), np.asarray(float(scale)))


def starts_around(potential):
    away = np.array([[1.3, 0.7], [-0.4, 1.5], [0.9, -0.2]])
    return potential.centre + away


@pytest.mark.parametrize(
    "condition", [1.0, 1e2, 1e4, pytest.param(1e6, marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("centre", [0.0, 1.0, -30.0])
def test_a_level_of_the_loss_is_reached_in_time_however_stiff_the_valley(condition, centre):
    potential = valley(condition, centre)
    starts = starts_around(potential)
    runs = fl.sweep(
        fl.Flow(potential), starts, until=until.loss_below(LEVEL), rtol=RTOL, max_steps=10**7
    )
    assert runs.counts() == {"reached": 3}
    wanted = [potential.time_to(LEVEL, start) for start in starts]
    np.testing.assert_allclose(runs.time, wanted, rtol=100 * RTOL)
    ends = [float(potential(end)) for end in runs.end]
    np.testing.assert_allclose(ends, LEVEL, rtol=20 * RTOL)


@pytest.mark.parametrize("condition", [1e3, pytest.param(1e5, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("centre", [1.0, -30.0])
def test_a_speed_is_reached_in_time_however_stiff_the_valley(condition, centre):
    # Across the valley an error within the tolerance of the state moves as fast as the level.
    potential = valley(condition, centre)
    starts, level = starts_around(potential), 0.1
    runs = fl.sweep(
        fl.Flow(potential), starts, until=until.speed_below(level), rtol=RTOL, max_steps=10**6
    )

    def time_to(start):
        def above(time):
            decayed = np.exp(-potential.rates * time)
            return np.linalg.norm(potential.rates * (start - centre) * decayed) - level

        return root(above, 0, 40)

    assert runs.counts() == {"reached": 3}
    np.testing.assert_allclose(runs.time, [time_to(start) for start in starts], rtol=10 * RTOL)


@pytest.mark.parametrize("condition", [1e4, pytest.param(1e5, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("centre", [1.0, -30.0])
def test_what_is_measured_of_speeds_holds_however_stiff_the_valley(condition, centre):
    potential = valley(condition, centre)
    starts, last, slow = starts_around(potential), 3.0, 0.1
    runs = fl.sweep(
        fl.Flow(potential),
        starts,
        until=until.time(last),
        rtol=RTOL,
        max_steps=10**6,
        measures=[measures.dwell(slow), measures.slowest(), measures.path_length()],
    )
    grid = np.concatenate([[0], np.geomspace(1e-4 / condition, last, 4000)])
    nodes, weights = np.polynomial.legendre.leggauss(6)
    half = np.diff(grid) / 2
    times = grid[:-1, None] + half[:, None] * (1 + nodes)
    for i, start in enumerate(starts):
        way = potential.rates * (start - centre)

        def speed(time, way=way):
            decayed = way * np.exp(-potential.rates * np.asarray(time)[..., None])
            return np.linalg.norm(decayed, axis=-1)

        length = np.sum(half[:, None] * weights * speed(times))
        dwelt = last - root(lambda time, speed=speed: speed(time) - slow, 0, last)
        found = [runs.measures[name][i] for name in ("dwell", "slowest_speed", "path_length")]
        np.testing.assert_allclose(found, [dwelt, speed(last), length], rtol=100 * RTOL)


@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_a_stiff_valley_far_from_zero_is_followed_to_its_level_in_single_precision(condition):
    # One lane of 1e2 is evicted past its level; at 1e4 the slope along the valley is 7e-4 of all.
    potential = valley(condition, -30.0)
    starts = starts_around(potential).astype(np.float32)
    single = jax.tree.map(np.float32, potential)
    runs = fl.sweep(
        fl.Flow(single), starts, until=until.loss_below(LEVEL), rtol=1e-3, max_steps=10**6
    )
    assert runs.counts() == {"reached": 3}
    wanted = [potential.time_to(LEVEL, start) for start in starts.astype(float)]
    np.testing.assert_allclose(runs.time, wanted, rtol=1e-2)


@pytest.mark.parametrize("clock", ["loss", "arc_length", "time"])
def test_what_the_steps_do_not_suffice_for_is_said_to_be_so(clock):
    potential = valley(1e5, 1.0)
    runs = fl.sweep(
        fl.Flow(potential),
        starts_around(potential),
        until=until.loss_below(LEVEL),
        clock=clock,
        solver=diffrax.Tsit5(),
        max_steps=2000,
    )
    assert runs.counts() == {"step_limit": 3}


@pytest.mark.parametrize("level", [LEVEL, -1.0], ids=["reached", "too low"])
@pytest.mark.parametrize("clock", ["arc_length", "time"])
def test_a_line_that_crawls_along_a_valley_is_not_at_rest(clock, level):
    # Across the valley the velocity is noise of the solver, κ·rtol·|y|, as large as that along it.
    potential = valley(1e4, 1.0)
    starts = starts_around(potential)
    runs = fl.sweep(
        fl.Flow(potential), starts, until=until.loss_below(level), clock=clock, max_steps=10**6
    )
    if level == LEVEL:
        assert runs.counts() == {"reached": 3}
        wanted = [potential.time_to(LEVEL, start) for start in starts]
        np.testing.assert_allclose(runs.time, wanted, rtol=100 * RTOL)
    else:
        assert runs.counts() == {"at_critical_point": 3}
        np.testing.assert_allclose(runs.end, 1.0, atol=30 * RTOL)


@pytest.mark.parametrize("drift", [1e-3, 1e-9])
def test_a_slope_without_a_minimum_is_not_rest_however_small_beside_a_stiff_valley(drift):
    flow = fl.Flow(Slope(np.asarray(drift)))
    options = {"until": until.loss_below(-1.0), "clock": "arc_length", "max_steps": 500}
    starts = np.array([[1.0, 0.0], [-0.4, 1.5]])
    runs = fl.sweep(flow, starts, solver=diffrax.Tsit5(), **options)
    assert runs.counts() == {"step_limit": 2}
    # By choice Rodas5P goes all the way, until y₁ = 1/drift, at the speed of the drift.
    runs = fl.sweep(flow, starts, **options)
    assert runs.counts() == {"reached": 2}
    np.testing.assert_allclose(runs.time, (1 / drift - starts[:, 1]) / drift, rtol=100 * RTOL)


@pytest.mark.parametrize("power", [-170, -60, 60, 170])
def test_a_potential_of_any_scale_is_followed_to_its_minimum(power):
    scale = 10.0**power
    potential = valley(4.0, 0.0, scale)
    starts = starts_around(potential)
    line = fl.sweep(fl.Flow(potential), starts, until=until.loss_below(LEVEL * scale))
    wanted = [potential.time_to(LEVEL, start) / scale for start in starts]
    assert line.counts() == {"reached": 3}
    np.testing.assert_allclose(line.time, wanted, rtol=100 * RTOL)


class Bumps(AbstractPolicy):
    """Two pairs, of which one has the state's margin, and the other that of a narrow bump in it.

    The second has no weight in the loss, so that no step is made smaller for it.
    """

    place: Any = 0.0
    width: Any = 1.0
    domain: AbstractDomain = WholeSpace()
    wall: WallRule = eqx.field(static=True, default="stop")

    def pairs(self, state):
        place, width = (jnp.asarray(part, state.dtype) for part in (self.place, self.width))
        bump = 100 * jnp.exp(-(((state[0] - place) / width) ** 2))
        margins = jnp.stack([state[0], bump])
        none = jnp.zeros_like(margins)
        tokens = jnp.full_like(margins, 20)
        return fl.Pair(margins, none, none, none, tokens, tokens)

    def metric(self, state, covector):
        return covector


@pytest.mark.parametrize(
    ("clock", "kind"),
    thinned(
        [(clock, kind) for clock in ("arc_length", "time") for kind in (np.float64, np.float32)],
        [("arc_length", np.float64)],
    ),
)
def test_a_margin_that_is_reached_and_lost_within_a_step_is_found(clock, kind):
    # With β = 1 and one weight, y' = σ(−y): y + e^y grows like the time.
    policy = Bumps(place=np.asarray(2.0), width=np.asarray(0.05))
    flow = fl.preference_flow(fl.DPO(1.0), policy, weights=np.array([1.0, 0.0]))
    starts = np.linspace(-1.0, 1.0, 40)[:, None].astype(kind)
    runs = fl.sweep(flow, starts, until=until.margin_above(20.0, time_limit=50.0), clock=clock)
    assert runs.counts() == {"reached": 40}
    place = root(lambda y: y + 100 * np.exp(-(((y - 2) / 0.05) ** 2)) - 40, 1.5, 2.0)
    np.testing.assert_allclose(runs.end[:, 0], place, rtol=1e-5 if kind == np.float64 else 1e-3)
    wanted = place - starts[:, 0] + np.exp(place) - np.exp(starts[:, 0])
    np.testing.assert_allclose(runs.time, wanted, rtol=1e-4 if kind == np.float64 else 1e-2)
