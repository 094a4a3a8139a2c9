"""The choice of a solver for lines that stability, and not accuracy, holds up.

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
from flowlab.solve.problem import Problem, steady_clock
from flowlab.solve.rock import ROCK4
from flowlab.solve.rosenbrock import Rodas5P
from flowlab.solve.spectrum import metric_is_constant
from flowlab.solve.stabilised import spectral_radius

__all__ = ["bounded_rates", "steady", "steps_alone", "stiff_solvers"]

_UNSTABLE = 1.0  # steps over the fastest rate: usual methods are stable up to some 3 to 6, and
# where accuracy limits a step the fastest rate is no matter, or all rates are alike
_LOOKED_AT = 64  # steps that a line takes alone: some until they are as long as they can be, and as
# many as make these few in their mean
_LOOSE = 1e-5  # rtol from which on order 2 is tried before order 4, which gains little there
_SMALL = 32  # components up to which the matrix of a state costs little beside what it saves


def steps_alone(
    problem: Problem,
    method: Method,
    starts: PyTree[Float[np.ndarray, "n ..."]],
    states: PyTree[Float[np.ndarray, "n ..."]],
) -> tuple[PyTree[Float[np.ndarray, "n ..."]], Float[np.ndarray, " n"]]:
    """The states to which some steps lead that no line shares, and the mean length of these.

    Args:
        problem: What to solve.
        method: What makes and chooses the steps.
        starts: Where the lines began, from which their tolerances follow.
        states: Where they stand.
    """
    return jax.tree.map(np.asarray, _steps_alone((problem, method), starts, states))


def bounded_rates(
    problem: Problem,
    states: PyTree[Float[np.ndarray, "n ..."]],
    steps: Float[np.ndarray, " n"],
    *,
    part: float = 1.0,
) -> Float[np.ndarray, " n"]:
    """The fastest rates at states whose steps are as long as these let them be stable; else 0.

    Args:
        problem: What to solve.
        states: Where the steps are taken.
        steps: Their lengths in flow time.
        part: Of the length at which they count as so long.
    """
    rates = np.asarray(_radii(problem, states))
    with np.errstate(invalid="ignore"):  # where there is no rate, it bounds nothing
        return np.where(rates * steps >= part * _UNSTABLE, rates, 0.0)


def stiff_solvers(
    problem: Problem, state: PyTree[np.ndarray], *, rate: float, max_steps: int
) -> list[diffrax.AbstractSolver]:
    """Solvers that stiff lines may be followed by, the most promising first.

    ROCK4, whose last stages multiply rounding, cannot take steps as long as it wants at a small
    tolerance: where so many do not lead to the last moment, RKC2 is taken.

    Args:
        problem: What to solve.
        state: One state, of which shapes and dtypes count.
        rate: The fastest rate.
        max_steps: Steps that are tried.
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
    """The same problem under the clock that suits solvers of stiff flows, whatever its own is.

    The clock is no matter to the result, and most of those that can be asked for are of no use to
    these solvers.
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
        lanes, _, _ = advance(problem, method, lanes, max_steps=_LOOKED_AT)
        found = jax.tree.map(lambda leaf: leaf[..., 0], finish(problem, lanes))
        return found["end"], found["end_time"] / like(
            jnp.maximum(found["steps"], 1), found["end_time"]
        )

    return jax.vmap(of_line)(*jax.tree.map(jnp.asarray, (starts, states)))


@partial(compiled, optimise=False)
def _radii(problem: Problem, states: PyTree[Array]) -> Float[Array, " n"]:
    """The fastest rate of the free flow at each state, per flow time."""
    radius = partial(spectral_radius, problem.flow.velocity)
    return jax.vmap(radius)(jax.tree.map(jnp.asarray, states))
