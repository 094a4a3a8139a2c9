"""Stiff starts, integrated again with solvers for stiff flows.

Starts may be stiff if their lanes have used up their steps, and if the steps of one of them were
near the bound of stability in the mean. Each of these lanes then takes some further steps alone. If
the mean length of these is that at which the fastest rate limits stability, the start is stiff. All
stiff starts are integrated once more, from the beginning, in blocks of their own, under the clock
of time (arc length if the boundary absorbs). This happens only if the user names no solver
(`solve.stiffness` gives the test and the order of the solvers). Other starts cost nothing more.

n: starts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from flowlab.ensemble.drawing import whole
from flowlab.solve import (
    Method,
    Problem,
    bounded_rates,
    filled,
    make_method,
    steady,
    steps_alone,
    stiff_solvers,
)
from flowlab.starts import DrawnStarts
from flowlab.until import Outcome

__all__ = ["SOLVERS", "solved_by_choice"]

SOLVERS = ("Rodas5P", "ROCK4", "RKC2")
"""The solvers for stiff starts, with the codes 1, 2 and 3; code 0 is the solver of other starts."""

_SHORT = 0.1  # of the steps at the bound of stability, in the mean of all that a lane has taken
_TOGETHER = 4096  # lanes that are looked at together, so that they fit in memory


def solved_by_choice(
    solve: Any,
    problem: Problem,
    method: Method,
    starts: PyTree[np.ndarray] | DrawnStarts,
    *,
    progress: Callable[[int], Any] = lambda n: None,
) -> dict[str, Any]:
    """The results of a backend, in which stiff starts are integrated again by stiff solvers.

    The entry `solved_by` of the results is the code of each start's solver.

    Args:
        solve: The backend, from `ensemble.backends.worker`.
        problem: The problem.
        method: The method for starts that are not stiff.
        starts: Leaves of shape (n, ...), or `DrawnStarts`.
        progress: Called with the number of starts that have ended since the last call.
    """
    results = solve(problem, method, starts, progress=progress)
    results["solved_by"] = np.zeros(len(results["outcome"]), np.int8)
    if not np.any(results["outcome"] == Outcome.step_limit):
        return results
    given = whole(starts)
    left, rate = _stiff(problem, method, given, results)
    if not len(left):
        return results
    one = jax.tree.map(lambda x: x[0], given)
    for solver in stiff_solvers(problem, one, rate=rate, max_steps=solve.max_steps):
        again = make_method(solver, rtol=float(problem.rtol))
        found = solve.again(steady(problem), again, _at(left, given))
        found["solved_by"] = np.full(len(left), 1 + SOLVERS.index(again.name), np.int8)
        ended = ~np.isin(found["outcome"], (Outcome.step_limit, Outcome.non_finite))
        jax.tree.map(partial(_put, left[ended], ended), results, found)
        left = left[~ended]
        if not len(left):
            break
    return results


def _stiff(
    problem: Problem, method: Method, starts: PyTree[np.ndarray], results: dict[str, Any]
) -> tuple[Int[np.ndarray, " n"], float]:
    """The indices of the stiff starts among those with the outcome `step_limit`, and the top rate.

    If the steps of one start, shared ones too, came near the bound in the mean, all take further
    steps alone: a start whose steps were shorter may have shared those of a stiff one.
    """
    left = np.flatnonzero(results["outcome"] == Outcome.step_limit)
    ends, steps = results["end"], results["end_time"] / np.maximum(results["steps"], 1)

    def may_be(some: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        return bounded_rates(problem, _at(some, ends), steps[some], part=_SHORT)

    def are(some: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        alone = steps_alone(problem, method, _at(some, starts), _at(some, ends))
        return bounded_rates(problem, *alone)

    if not np.any(_in_parts(may_be, left) > 0):
        return left[:0], 0.0
    rates = _in_parts(are, left)
    return left[rates > 0], float(np.max(rates, initial=0.0))


def _in_parts(
    rates_of: Callable[[Int[np.ndarray, " m"]], Float[np.ndarray, " m"]],
    starts: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """The rates of starts, in parts whose sizes are powers of two, so that few are compiled."""
    rates = np.zeros(len(starts))
    for i in range(0, len(starts), _TOGETHER):
        part = starts[i : i + _TOGETHER]
        rates[i : i + _TOGETHER] = rates_of(filled(part, 1 << int(len(part) - 1).bit_length()))[
            : len(part)
        ]
    return rates


def _at(indices: Int[np.ndarray, " m"], tree: PyTree[np.ndarray]) -> PyTree[np.ndarray]:
    return jax.tree.map(partial(np.take, indices=indices, axis=0), tree)


def _put(
    places: Int[np.ndarray, " m"],
    chosen: Bool[np.ndarray, " n"],
    all_: np.ndarray,
    some: np.ndarray,
) -> None:
    all_[places] = some[chosen]
