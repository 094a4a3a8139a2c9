"""Higher derivatives of flow lines, through events of every kind, against closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned

import flowlab as fl
from flowlab import exact, measures, until
from flowlab.domains import Enclosure, Simplex, WholeSpace
from flowlab.solve.compilation import compiled

BETA = 0.3
BOWL = fl.Flow(lambda y: (y @ y) / 2)
QUARTIC = fl.Flow(lambda y: jnp.sum(y**4) / 4)
PLANE = fl.preference_flow(fl.DPO(BETA), fl.RatioPlane())
SLIDING = fl.preference_flow(fl.DPO(BETA), fl.RatioPlane(Simplex(), wall="slide"))
HELD = fl.Flow(
    lambda y: ((y - jnp.asarray([2.0, 1.0])) ** 2).sum() / 2,
    domain=Enclosure(WholeSpace(), [-np.inf, -np.inf], [1.0, np.inf]),
)
LEVEL = until.loss_below(0.1)


def derivatives(function, order):
    """A function of a number with its derivatives up to an order, by forward mode in itself."""
    if order == 0:
        return lambda at: (function(at),)
    lower = derivatives(function, order - 1)

    def all_of(at):
        values, changes = jax.jvp(lower, (at,), (jnp.ones_like(at),))
        return (*values, changes[-1])

    return all_of


def quotients(function, at, step=2e-3):
    """The same of a closed form up to the second, by differences of the fourth order."""
    values = [np.asarray(function(at + k * step)) for k in (-2, -1, 0, 1, 2)]
    first = np.tensordot([1, -8, 0, 8, -1], values, 1) / (12 * step)
    second = np.tensordot([-1, 16, -30, 16, -1], values, 1) / (12 * step**2)
    return values[2], first, second


def along_a_ray(length):
    return jnp.stack([0.6 * length, 0.8 * length])


def beside(chosen):
    return lambda rejected: jnp.stack([jnp.full_like(rejected, chosen), rejected])


def solved(flow, target, start, told, **options):
    """What is told of a line, as a function of the number that its start depends on."""

    def of(at):
        return told(fl.flow_line(flow, start(at), until=target, max_steps=128, **options))

    return of


def time_of(line):
    return line.time


CASES = {
    "level, arc length": (
        solved(PLANE, LEVEL, beside(0.3), time_of, rtol=1e-11, clock="arc_length"),
        lambda at: exact.ratio_plane_time(np.array([0.3, at]), BETA, level=0.1),
        0.6,
    ),
    "level, margin": (
        solved(PLANE, LEVEL, beside(0.3), time_of, rtol=1e-11, clock="margin"),
        lambda at: exact.ratio_plane_time(np.array([0.3, at]), BETA, level=0.1),
        0.6,
    ),
    "slide and release": (
        solved(SLIDING, LEVEL, beside(0.2), time_of, rtol=1e-11),
        lambda at: exact.simplex_time(np.array([0.2, at]), BETA, level=0.1).total,
        0.7,
    ),
    "boundary": (
        solved(PLANE, until.boundary(), beside(0.6), time_of, rtol=1e-11),
        lambda at: exact.ratio_plane_time(np.array([0.6, at]), BETA, ratio=0.0),
        0.8,
    ),
    "wall that stops": (
        solved(
            HELD,
            until.loss_below(0.01),
            lambda at: jnp.stack([at, jnp.full_like(at, -0.5)]),
            lambda line: jnp.stack([line.end_time, line.end[1]]),
            rtol=1e-11,
        ),
        lambda at: np.array([np.log(2 - at), 1 - 1.5 / (2 - at)]),
        0.3,
    ),
    "time limit": (
        solved(
            QUARTIC,
            until.loss_below(1e-6, time_limit=1.0),
            along_a_ray,
            lambda line: line.end[0],
            rtol=1e-11,
        ),
        lambda at: 0.6 * at / np.sqrt(1 + 2 * (0.6 * at) ** 2),
        1.2,
    ),
    "time": (
        solved(QUARTIC, until.time(1.0), along_a_ray, lambda line: line.end[0], rtol=1e-11),
        lambda at: 0.6 * at / np.sqrt(1 + 2 * (0.6 * at) ** 2),
        1.2,
    ),
    "a measure, and between steps": (
        solved(
            QUARTIC,
            until.loss_below(0.02),
            lambda at: jnp.stack([at, jnp.zeros_like(at)]),
            lambda line: jnp.stack(
                [line.measures["path_length"], line.at(jnp.asarray(0.7))[0], line.time]
            ),
            rtol=1e-11,
            measures=[measures.path_length()],
        ),
        lambda at: np.array(
            [at - 0.08**0.25, at / np.sqrt(1 + 1.4 * at**2), (0.08**-0.5 - at**-2.0) / 2]
        ),
        1.2,
    ),
}


@pytest.mark.parametrize("name", thinned(CASES, {"level, margin", "time"}))
def test_second_derivatives_through_an_event_are_those_of_the_closed_form(name):
    function, closed_form, at = CASES[name]
    found = partial(compiled, optimise=False)(derivatives(function, 2))(jnp.asarray(at))
    # Two events in one line, met and left: what their interpolants lack counts twice.
    for got, wanted in zip(found, quotients(closed_form, at), strict=True):
        # A release follows upon a slide: two events in one line.
        rtol = 1e-5 if name == "slide and release" else 1e-6
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=1e-7)


@pytest.mark.exhaustive
def test_third_derivatives_are_those_of_the_closed_form():
    time = solved(BOWL, until.loss_below(0.02), along_a_ray, time_of, rtol=1e-12)
    found = partial(compiled, optimise=False)(derivatives(time, 3))(jnp.asarray(5.0))
    np.testing.assert_allclose(found, [np.log(25), 1 / 5, -1 / 25, 2 / 125], rtol=1e-6)
