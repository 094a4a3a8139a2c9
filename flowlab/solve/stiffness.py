"""The choice of a solver for stiff lines, whose steps stability limits, and not accuracy.

A line is stiff if the mean length of its last steps in flow time times the fastest rate is at least
1. The last steps are the latter half of 128 further steps in a sweep, and 24 steps in `flow_line`;
the rate is from a power iteration, with the factor 1.2 of `stabilised`. The solvers are tried in
turn: Rodas5P for up to 32 numbers in a state; then, if the metric is constant, ROCK4 and RKC2. RKC2
comes first if rtol is 1e-5 or more, or if ROCK4's longest steps cannot reach the last time within
the step limit.

n: lanes.
"""

import dataclasses
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from flowlab._arrays import like
from flowlab.solve.chebyshev import RKC2
from flowlab.solve.clocks import clock_named
from flowlab.solve.compilation import compiled
from flowlab.solve.engine import advance
from flowlab.solve.lane_lifecycle import begin, finish
from flowlab.solve.method import Method
from flowlab.solve.problem import Lanes, Problem, steady_clock
from flowlab.solve.rock import ROCK4
from flowlab.solve.rosenbrock import Rodas5P
from flowlab.solve.spectrum import metric_is_constant
from flowlab.solve.stabilised import spectral_radius

__all__ = ["bounded_rates", "steady", "steps_alone", "stiff_solvers"]

_UNSTABLE = 1.0  # step times fastest rate: standard methods are stable up to about 3 to 6. It is
# smaller if accuracy limits the steps, unless all rates are similar
_LOOKED_AT = 64  # steps that a line takes alone, and again as many whose mean length is taken: the
# first ones are still growing, or are those of a fast mode that decays
_LOOSE = 1e-5  # rtol from which order 2 is tried before order 4, which gains little there
_SMALL = 32  # components up to which the matrix of a state costs little compared with its use


def steps_alone(
    problem: Problem,
    method: Method,
    starts: PyTree[Float[np.ndarray, "n ..."]],
    states: PyTree[Float[np.ndarray, "n ..."]],
) -> tuple[PyTree[Float[np.ndarray, "n ..."]], Float[np.ndarray, " n"]]:
    """Take further steps of each line alone; the states after them, the mean length of the last.

    Args:
        problem: The problem.
        method: The solver and its step-size controller.
        starts: The starts of the lines, which determine their tolerances.
        states: The present states of the lines.
    """
    return jax.tree.map(np.asarray, _steps_alone((problem, method), starts, states))


def bounded_rates(
    problem: Problem,
    states: PyTree[Float[np.ndarray, "n ..."]],
    steps: Float[np.ndarray, " n"],
    *,
    part: float = 1.0,
) -> Float[np.ndarray, " n"]:
    """The fastest rate at each state if it limits the steps by stability; 0 if it does not.

    Args:
        problem: The problem.
        states: States at which steps were taken; leaves of shape (n, ...).
        steps: The lengths of the steps in flow time.
        part: Fraction of the bound of stability from which a step counts as at the bound.
    """
    rates = np.asarray(_radii(problem, states))
    with np.errstate(invalid="ignore"):  # a rate of NaN limits nothing
        return np.where(rates * steps >= part * _UNSTABLE, rates, 0.0)


def stiff_solvers(
    problem: Problem, state: PyTree[np.ndarray], *, rate: float, max_steps: int
) -> list[diffrax.AbstractSolver]:
    """Solvers for stiff lines, the most promising first.

    The last stages of ROCK4 amplify rounding, which limits its steps at a small tolerance. If
    `max_steps` such steps do not suffice to reach the last time, RKC2 replaces it.

    Args:
        problem: The problem.
        state: One state; only shapes and dtypes matter.
        rate: The fastest rate.
        max_steps: Largest number of attempted steps.
    """
    small = sum(leaf.size for leaf in jax.tree.leaves(state)) <= _SMALL
    chosen: list[diffrax.AbstractSolver] = [Rodas5P()] if small else []
    if metric_is_constant(problem.flow, state):
        moments = problem.target.moments
        reach = 0.0 if moments is None else rate * float(np.asarray(moments)[-1])
        longest = float(ROCK4().longest(problem.rtol.dtype, float(problem.rtol)))
        second = float(problem.rtol) >= _LOOSE or reach > longest * max_steps
        chosen += [RKC2(), ROCK4()] if second else [ROCK4(), RKC2()]
    return chosen


def steady(problem: Problem) -> Problem:
    """The same problem under the clock that suits solvers for stiff flows.

    It replaces the clock that was asked for, since these solvers do not work under most clocks, and
    the results do not depend on the clock.
    """
    clock = clock_named(steady_clock(problem.flow)).towards(problem.target)
    return dataclasses.replace(problem, clock=clock)


@partial(compiled, optimise=False)
def _steps_alone(
    solved: tuple[Problem, Method], starts: PyTree[Array], states: PyTree[Array]
) -> tuple[PyTree[Array], Float[Array, " n"]]:
    problem, method = solved

    def of_line(start: PyTree[Array], state: PyTree[Array]) -> Any:
        first, lanes = (
            begin(problem, jax.tree.map(lambda leaf: leaf[..., None], at)) for at in (start, state)
        )
        lanes = dataclasses.replace(lanes, atol=first.atol)
        _, found = jax.lax.scan(further, lanes, length=2)
        times, steps = found["end_time"][:, 0], found["steps"][:, 0]
        end = jax.tree.map(lambda leaf: leaf[1, ..., 0], found["end"])
        return end, (times[1] - times[0]) / like(jnp.maximum(steps[1] - steps[0], 1), times)

    def further(lanes: Lanes, _: None) -> tuple[Lanes, dict[str, Any]]:
        lanes = advance(problem, method, lanes, max_steps=_LOOKED_AT)[0]
        found = finish(problem, lanes)
        return lanes, {name: found[name] for name in ("end", "end_time", "steps")}

    return jax.vmap(of_line)(*jax.tree.map(jnp.asarray, (starts, states)))


@partial(compiled, optimise=False)
def _radii(problem: Problem, states: PyTree[Array]) -> Float[Array, " n"]:
    """The fastest rate of the free flow at each state, per unit of flow time."""
    radius = partial(spectral_radius, problem.flow.velocity)
    return jax.vmap(radius)(jax.tree.map(jnp.asarray, states))
