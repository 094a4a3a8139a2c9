"""SciPy's `solve_ivp`, RK45, one start at a time in flow time, ended by events.

Processes share the starts out, one for each core. They import this module and the libraries below
alone.
"""

import atexit
import functools
import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from . import Peer, Solved
from .problems import BETA, KERNEL, LEVEL, PROBLEMS, Problem, Wall

__all__ = ["peers"]

STARTS = 128
AT_ROOT = 1e-7  # of a signal: what a root may leave
TINY = 1e-9  # below every ratio on the way, 5.5e-6 and more

Velocity = Callable[[np.ndarray], np.ndarray]
Signal = Callable[[np.ndarray], float]


def peers(problem: Problem, cores: int) -> dict[str, Peer]:
    """RK45 in flow time; the planes alone."""
    if problem.clock is None:
        return {}

    def solve(points: np.ndarray, rtol: float) -> Solved:
        parts = np.array_split(points, cores)
        each = functools.partial(_times, problem.name, rtol)
        return Solved(np.concatenate(list(_pool(cores).map(each, parts))))

    return {"SciPy solve_ivp, event": Peer({"RK45": solve}, STARTS)}


@functools.cache
def _pool(cores: int) -> ProcessPoolExecutor:
    # A process that JAX has threads in must not be forked.
    pool = ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn"))
    atexit.register(pool.shutdown)
    return pool


def _times(name: str, rtol: float, points: np.ndarray) -> np.ndarray:
    problem = PROBLEMS[name]
    of_kernel = problem.clock is not None and problem.clock.field == "kernel"
    velocity, margin = (_on_log_ratios, _margin) if of_kernel else (_on_ratios, _log_quotient)

    def above(state: np.ndarray) -> float:
        return math.log1p(math.exp(-BETA * margin(state))) - LEVEL

    return np.array([_time(problem, start, velocity, above, rtol) for start in points])


def _time(
    problem: Problem, start: np.ndarray, velocity: Velocity, above: Signal, rtol: float
) -> float:
    atol = 1e-3 * rtol * start.min() if problem.positive else rtol
    follow = functools.partial(_followed, latest=problem.latest, rtol=rtol, atol=atol)
    if problem.wall is None:
        return follow(start, velocity, [above])[1]
    return _time_along_wall(problem.wall, start, velocity, above, follow)


def _time_along_wall(
    wall: Wall, start: np.ndarray, velocity: Velocity, above: Signal, follow: Any
) -> float:
    """Freely to the level, the wall or the release, along the wall to the release, and freely."""

    def pressure(state: np.ndarray) -> float:
        return wall.outward(velocity(state))

    def inside(state: np.ndarray) -> float:
        return min(wall.room(state), pressure(state))

    stretches = (
        (velocity, [above, inside]),
        (lambda x: wall.along(velocity(x)), [above, pressure]),
    )
    state, time = start, 0.0
    for move, signals in stretches:
        if pressure(state) > AT_ROOT:
            state, more, met = follow(state, move, signals)
            time += more
            if met == 0:
                return time
    return time + follow(state, velocity, [above])[1]


def _followed(
    start: np.ndarray,
    velocity: Velocity,
    signals: list[Signal],
    *,
    latest: float,
    rtol: float,
    atol: float,
) -> tuple[np.ndarray, float, int]:
    """State and time where the first signal falls to 0, and which one it is; NaN where none."""
    events = [_event(signal) for signal in signals]
    solved = solve_ivp(
        lambda t, x: velocity(x), (0, latest), start, rtol=rtol, atol=atol, events=events
    )
    for place, times in enumerate(solved.t_events):
        if times.size:
            return solved.y_events[place][0], float(times[0]), place
    return start, math.nan, -1


def _event(signal: Signal) -> Any:
    def event(t: float, state: np.ndarray) -> float:
        del t
        return signal(state)

    event.terminal = True  # type: ignore[attr-defined]
    return event


def _on_ratios(state: np.ndarray) -> np.ndarray:
    # A step that is too long leaves the quadrant before it is rejected.
    chosen, rejected = max(float(state[0]), TINY), max(float(state[1]), TINY)
    pull = BETA / (1 + (chosen / rejected) ** BETA)
    return np.array([pull / chosen, -pull / rejected])


def _log_quotient(state: np.ndarray) -> float:
    return math.log(max(float(state[0]), TINY) / max(float(state[1]), TINY))


def _on_log_ratios(state: np.ndarray) -> np.ndarray:
    pull = BETA / (1 + math.exp(BETA * _margin(state)))
    return pull * (KERNEL @ [1.0, -1.0])


def _margin(state: np.ndarray) -> float:
    return float(state[0] - state[1])
