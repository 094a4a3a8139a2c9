"""Flow lines of large states, without a record of their steps.

The steps are those of any line, but only the two ends and the states asked for are saved. A call
needs memory for 13 states on the device: the stages, both ends of a step, and the arguments and
results of the call. Progress bar, Ctrl-C and checkpoints are handled between calls.

k: saved times; n: pairs.
"""

import os
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree
from tqdm import tqdm

from flowlab import _checks as checks
from flowlab.flow import PreferenceFlow
from flowlab.solve.checkpoint import Checkpoint, History, identity_of
from flowlab.solve.clocks import AbstractLevelClock
from flowlab.solve.compilation import compiled
from flowlab.solve.engine import Errors, Loop, first_loop, go_on
from flowlab.solve.errors import lane_errors
from flowlab.solve.lane_lifecycle import begin, finish
from flowlab.solve.method import Method
from flowlab.solve.problem import Lanes, Point, Problem, lanewise
from flowlab.solve.progress import CALL, SAVED_EVERY, bar_options
from flowlab.solve.watched import checked_watch, watched_at
from flowlab.until import Outcome

__all__ = ["refuse_thin", "thin_line"]

Solved = tuple[Problem, Method]


def refuse_thin(**asked: Any) -> None:
    """Refuse options that have no effect on a line that records its steps."""
    for name in [name for name, value in asked.items() if not _is_default(value)]:
        raise ValueError(
            f"Argument `{name}` must not be given with dense=True, where it has no effect: a dense "
            "line has all its states in `Line.at`."
        )


def thin_line(
    solved: Solved,
    start: PyTree[np.ndarray],
    max_steps: int,
    *,
    traced: bool,
    watch: Any,
    u_atol: float | None,
    progress: bool | None,
    checkpoint: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """The attributes of a `Line` without a record of its steps, as NumPy arrays.

    Its states are those at the times to save at and at the two ends.

    Args:
        solved: The problem and the method.
        start: The start.
        max_steps: Largest number of attempted steps.
        traced: Whether the line is traced, which is an error.
        watch: The quantities to save with the states, as for `flow_line`.
        u_atol: Tolerance of each log-ratio per step, as for `flow_line`.
        progress: Whether to show a progress bar, as for `flow_line`.
        checkpoint: The file that the line is resumed from; None for none.
    """
    problem, method = solved
    _check(problem, traced=traced)
    watched, in_u = checked_watch(watch, problem.flow), _in_u(u_atol, problem)
    place = None
    if checkpoint is not None:
        told = identity_of(problem, method.name, start, max_steps, watched, in_u)
        place = Checkpoint(Path(checkpoint), told)
        place.check()
    loop, history = _begun(solved, start), History([], [], [])
    if place is not None:
        loop, history = place.read(loop) or (loop, history)
    if not history.numbers:
        _record(problem, loop, watched, history)
    with tqdm(unit="step", **bar_options(progress)) as drawn:
        loop = _carried_out(solved, loop, history, (max_steps, watched, in_u), place, drawn)
    results = jax.tree.map(np.asarray, _finished(solved, loop))
    if history.numbers[-1][-1] < results["end_time"]:
        _record(problem, loop, watched, history)
    seen = history.joined()
    shape = jax.eval_shape(lambda: _looked(problem, loop, watched))
    rows = jax.tree.unflatten(jax.tree.structure(shape), seen.rows[0])
    return {**results, "times": seen.numbers[0], "states": rows.pop("state"), "watched": rows}


def _is_default(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, tuple) and not value)


def _check(problem: Problem, *, traced: bool) -> None:
    """Refuse a line that is traced, and a clock under which a line may have to start again."""
    if traced:
        raise ValueError("Argument `dense` must be True for a line that is traced, but is False.")
    if isinstance(problem.clock, AbstractLevelClock):
        raise ValueError(
            'Argument `clock` must be "time" or "arc_length" with dense=False, but is '
            f'"{problem.clock.name}".'
        )


def _in_u(u_atol: float | None, problem: Problem) -> Float[Array, ""] | None:
    """The tolerance of log-ratios per step; None for no such tolerance."""
    has_pairs = isinstance(problem.flow, PreferenceFlow)
    if u_atol is None:
        return problem.rtol if has_pairs else None
    if not has_pairs:
        raise ValueError(
            f"Argument `u_atol` must be None for a flow without pairs, but is {u_atol!r}."
        )
    tolerance = float(checks.within("u_atol", u_atol, "(0, inf]"))
    return None if np.isinf(tolerance) else jnp.asarray(tolerance, problem.rtol.dtype)


def _carried_out(
    solved: Solved,
    loop: Loop,
    history: History,
    asked: tuple[int, tuple[str, ...], Any],
    place: Checkpoint | None,
    drawn: Any,
) -> Loop:
    """Integrate to the end of the line, and add saved states to `history`; the final loop state."""
    max_steps, watch, u_atol = asked
    saved, calls = time.monotonic(), 1
    limit = jnp.asarray(max_steps, jnp.int32)
    while bool(loop.lanes.active[0]) and int(loop.tries) < max_steps:
        began, before = time.monotonic(), int(loop.tries)
        due = int(loop.lanes.next_save[0])
        loop = _advanced(solved, loop, jnp.asarray(calls, jnp.int32), limit, u_atol)
        drawn.update(max(int(loop.tries) - before, 0))
        if int(loop.lanes.next_save[0]) > due:
            _record(solved[0], loop, watch, history)
        calls = calls * 2 if time.monotonic() - began < CALL else max(1, calls // 2)
        ended = not bool(loop.lanes.active[0]) or int(loop.tries) >= max_steps
        if place is not None and (ended or time.monotonic() - saved >= SAVED_EVERY):
            place.write(loop, history)
            saved = time.monotonic()
    return loop


def _record(problem: Problem, loop: Loop, watch: tuple[str, ...], history: History) -> None:
    """Add the present time, state and watched quantities to the history, on the host."""
    row = _looked_compiled(problem, loop, watch)
    history.numbers.append(np.asarray(loop.lanes.point.time))  # of one lane, shape (1,)
    history.rows.append([np.asarray(leaf)[None] for leaf in jax.tree.leaves(row)])
    history.steps.append(np.zeros(0))


def _looked(problem: Problem, loop: Loop, watch: tuple[str, ...]) -> dict[str, Any]:
    coordinates = jax.tree.map(lambda x: x[..., 0], loop.lanes.point.coordinates)
    return watched_at(problem.flow, ("state", *watch), problem.flow.domain.state(coordinates))


_looked_compiled = compiled(_looked)


@compiled
def _begun(solved: Solved, start: PyTree[Array]) -> Loop:
    problem, method = solved
    lanes = begin(problem, jax.tree.map(lambda x: jnp.asarray(x)[..., None], start))
    lanes = eqx.tree_at(lambda x: x.saved, lanes, None, is_leaf=lambda x: x is lanes.saved)
    return first_loop(problem, method, lanes)


@compiled
def _advanced(
    solved: Solved,
    loop: Loop,
    count: Int[Array, ""],
    max_steps: Int[Array, ""],
    u_atol: Float[Array, ""] | None,
) -> Loop:
    """The loop state after `count` attempted steps, or earlier at a time to save at or the end."""
    problem, method = solved
    last, due = jnp.minimum(loop.tries + count, max_steps), loop.lanes.next_save

    def going(now: Loop) -> Bool[Array, ""]:
        under_way = now.lanes.active & (now.lanes.next_save == due)
        return under_way[0] & (now.tries < last)

    return go_on(
        problem, method, loop, going, lane_errors if u_atol is None else _errors_in_u(u_atol)
    )


@compiled
def _finished(solved: Solved, loop: Loop) -> dict[str, Any]:
    problem, _ = solved
    lanes = loop.lanes
    code = jnp.where(lanes.outcome == 0, jnp.int32(Outcome.step_limit), lanes.outcome)
    lanes = eqx.tree_at(lambda x: x.outcome, lanes, code)
    results = jax.tree.map(lambda x: x[..., 0], finish(problem, lanes))
    del results["saved"]
    return results


def _errors_in_u(tolerance: Float[Array, ""]) -> Errors:
    """The errors of steps relative to their tolerances, including the log-ratios of all pairs.

    If there are many parameters, errors within the tolerance of each can add up to many nats. The
    error of a log-ratio is, to first order, its derivative in the direction of the state's error. A
    difference of two values would be lost in rounding, and undefined if one value is not finite.
    """

    def errors(problem: Problem, lanes: Lanes, after: Point, error: Any) -> Float[Array, " n"]:
        flow = problem.flow
        assert isinstance(flow, PreferenceFlow)

        def ratios(coordinates: PyTree[Array]) -> Float[Array, "n 2"]:
            pairs = flow.pairs(flow.domain.state(coordinates))
            return jnp.stack([pairs.u_chosen, pairs.u_rejected], axis=-1)

        def of_lane(lane: Lanes, after: Point, error: Point) -> Float[Array, ""]:
            _, change = jax.jvp(ratios, (after.coordinates,), (error.coordinates,))
            share = jnp.max(jnp.abs(change)) / tolerance
            return jnp.where(lane.active, jnp.where(share >= 0, share, jnp.inf), 0)

        return jnp.maximum(
            lane_errors(problem, lanes, after, error), lanewise(of_lane)(lanes, after, error)
        )

    return errors
