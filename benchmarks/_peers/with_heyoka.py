"""heyoka: Taylor integrators, compiled for a tolerance, many starts in a batch.

Its own `ensemble_propagate_until_batch` copies an integrator for every batch, which costs ten times
the integration here: one integrator for each core goes from batch to batch instead. Each lane of a
batch has its own step, and a batch waits for its last lane, so the starts are sorted by the length
of their way.
"""

import copy
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from . import Peer, Solved, Way, library
from .problems import PROBLEMS, Clock, Problem

__all__ = ["peers"]

BATCH = 32  # of 8 to 128, the fastest or close to it at both tolerances


def peers(problem: Problem, cores: int) -> dict[str, Peer]:
    """The margin clock.

    Raises:
        MissingError: If heyoka is not installed.
    """
    if problem.clock is None or problem.wall is not None:
        return {}
    library("heyoka")
    method = _way(problem.name, problem.clock, cores)
    return {"heyoka, margin clock": Peer({"Taylor": method}, 2**20)}


def _way(name: str, clock: Clock, cores: int) -> Way:
    def solve(points: np.ndarray, rtol: float) -> Solved:
        log_ratios = clock.enter(points)
        span = clock.span(log_ratios)
        order = _padded(np.argsort(span))
        state, span = np.ascontiguousarray(log_ratios[order].T), span[order]
        sorted_times = np.empty(len(order))
        firsts = iter(range(0, len(order), BATCH))  # shared: next() of it is atomic

        def work(integrator: Any) -> None:
            for first in firsts:
                lanes = slice(first, first + BATCH)
                integrator.set_time(0.0)
                integrator.state[:2], integrator.state[2] = state[:, lanes], 0.0
                integrator.pars[0] = span[lanes]
                integrator.propagate_until(1.0)
                sorted_times[lanes] = integrator.state[2]

        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(work, _integrators(name, rtol, cores)))
        times = np.empty(len(points))
        times[order] = sorted_times
        return Solved(times)

    return solve


def _padded(order: np.ndarray) -> np.ndarray:
    missing = -len(order) % BATCH
    return np.concatenate([order, np.repeat(order[-1:], missing)])


@functools.cache
def _integrators(name: str, rtol: float, cores: int) -> list[Any]:
    heyoka, clock = library("heyoka"), PROBLEMS[name].clock
    assert clock is not None
    variables = heyoka.make_vars("u_chosen", "u_rejected", "t")
    rates = clock.rates(variables[0], variables[1], heyoka.exp)
    first = heyoka.taylor_adaptive_batch(
        [(v, rate * heyoka.par[0]) for v, rate in zip(variables, rates, strict=True)],
        np.zeros((3, BATCH)),
        pars=np.zeros((1, BATCH)),
        tol=rtol,
        fast_math=True,
    )
    return [first, *(copy.deepcopy(first) for _ in range(cores - 1))]
