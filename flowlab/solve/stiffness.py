"""The choice of a solver for stiff lines, whose steps stability limits, and not accuracy.

n: lanes.
"""

import dataclasses
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from flowlab.solve.chebyshev import RKC2
from flowlab.solve.clocks import clock_named
from flowlab.solve.compilation import compiled
from flowlab.solve.problem import Problem, steady_clock
from flowlab.solve.rock import ROCK4
from flowlab.solve.rosenbrock import Rodas5P
from flowlab.solve.spectrum import metric_is_constant
from flowlab.solve.stabilised import spectral_radius

__all__ = ["bounded_rate", "steady", "stiff_solvers"]

_UNSTABLE = 1.0  # steps over the fastest rate: usual methods are stable up to some 3 to 6, and
# where accuracy limits a step the fastest rate is no matter, or all rates are alike
_LOOSE = 1e-5  # rtol from which on order 2 is tried before order 4, which gains little there
_SMALL = 32  # components up to which the matrix of a state costs little beside what it saves


def bounded_rate(
    problem: Problem, states: PyTree[np.ndarray], steps: Float[np.ndarray, " n"]
) -> float | None:
    """The fastest rate among states, if steps are as long as their rate lets them be stable.

    None if no step is, so that accuracy bounds them all.

    Args:
        problem: What to solve.
        states: Where the steps are taken; leaves of shape (n, ...).
        steps: Their lengths.
    """
    with np.errstate(invalid="ignore"):  # where there is no rate, it bounds nothing
        rates = np.asarray(_radii(problem, states))
        return float(np.nanmax(rates)) if np.any(rates * steps >= _UNSTABLE) else None


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
    """The same problem under the clock that suits solvers of stiff flows."""
    clock = clock_named(steady_clock(problem.flow)).towards(problem.target)
    return dataclasses.replace(problem, clock=clock)


@partial(compiled, optimise=False)
def _radii(problem: Problem, states: PyTree[Array]) -> Float[Array, " n"]:
    """The fastest rate of the free flow at each state, per unit of flow time."""
    radius = partial(spectral_radius, problem.flow.velocity)
    return jax.vmap(radius)(jax.tree.map(jnp.asarray, states))
