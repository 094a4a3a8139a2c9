"""Starts that stability held up, solved again by solvers of stiff flows.

A block, or a lane, that has used up its steps is looked at: where these were as long as the fastest
rate lets them be stable, its starts are solved once more, in blocks of their own. Starts that have
arrived are left alone, and cost nothing more.

n: starts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, PyTree

from flowlab.ensemble.drawing import whole
from flowlab.solve import Method, Problem, bounded_rate, filled, make_method, steady, stiff_solvers
from flowlab.starts import DrawnStarts
from flowlab.until import Outcome

__all__ = ["SOLVERS", "solved_by_choice"]

SOLVERS = ("Rodas5P", "ROCK4", "RKC2")
"""The solvers for stiff starts, with the codes 1, 2 and 3; code 0 is the solver of other starts."""


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
    left = np.flatnonzero(results["outcome"] == Outcome.step_limit)
    rate = _bounded_rate(problem, results, left) if len(left) else None
    if rate is None:
        return results
    given = whole(starts)
    one = jax.tree.map(lambda x: x[0], given)
    for solver in stiff_solvers(problem, one, rate=rate, max_steps=solve.max_steps):
        again = make_method(solver, rtol=float(problem.rtol))
        part = jax.tree.map(partial(np.take, indices=left, axis=0), given)
        found = solve.again(steady(problem), again, part)
        found["solved_by"] = np.full(len(left), 1 + SOLVERS.index(again.name), np.int8)
        ended = ~np.isin(found["outcome"], (Outcome.step_limit, Outcome.non_finite))
        jax.tree.map(partial(_put, left[ended], ended), results, found)
        left = left[~ended]
        if not len(left):
            break
    return results


def _bounded_rate(
    problem: Problem, results: dict[str, Any], left: Int[np.ndarray, " n"]
) -> float | None:
    """The fastest rate, if steps of some starts were, in the mean, as long as theirs allows."""
    # A number of states that is a power of two, so that few programs are compiled.
    some = filled(left, 1 << int(len(left) - 1).bit_length())
    ends = jax.tree.map(lambda x: x[some], results["end"])
    steps = np.maximum(results["steps"][some], 1)
    return bounded_rate(problem, ends, results["end_time"][some] / steps)


def _put(
    places: Int[np.ndarray, " m"],
    chosen: Bool[np.ndarray, " n"],
    all_: np.ndarray,
    some: np.ndarray,
) -> None:
    all_[places] = some[chosen]
