"""Starts that stability held up, solved again by solvers of stiff flows.

Lanes that have used up their steps are looked at, each alone, for some more: those that take them,
in the mean, as long as the fastest rate lets them be stable are solved once more, in blocks of
their own. Other starts are left alone, and cost nothing more.

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
"""The solvers that are chosen for stiff starts: codes 1, 2 and 3, where 0 is that of the others."""

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
    """Results as a backend gives them, with those of stiff starts solved again; and `solved_by`.

    Args:
        solve: The backend, as `ensemble.backends.worker` gives it.
        problem: What to solve.
        method: What solves it where it is not stiff.
        starts: Leaves of shape (n, ...), or how they are drawn.
        progress: Called with the number of starts that have ended since.
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
    """The starts whose lanes only stability holds up where they stand, and their fastest rate.

    Those are looked at whose steps, shared ones too, were not much too short for that in the mean.
    """
    left = np.flatnonzero(results["outcome"] == Outcome.step_limit)
    ends, steps = results["end"], results["end_time"] / np.maximum(results["steps"], 1)

    def may_be(some: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        return bounded_rates(problem, _at(some, ends), steps[some], part=_SHORT)

    def are(some: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        alone = steps_alone(problem, method, _at(some, starts), _at(some, ends))
        return bounded_rates(problem, *alone)

    left = left[_in_parts(may_be, left) > 0]
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
