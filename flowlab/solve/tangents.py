"""Derivatives of ends and arrival times by the start, in forward mode, a block at a time.

The steps of the block are held fixed, and the sequence of steps is differentiated: this is the
variational equation, integrated by the same method with the same steps. Lanes influence each other
only through the choice of the step, so that their derivatives do not mix. The errors of the
derivatives take part in that choice. A start with d components is held d times, side by side, each
copy with one tangent: one forward pass of the whole block then gives all d columns. Nothing is
recorded on the way.

d: components of a state; n: lanes, each held d times; b: blocks.

Source: Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I (1993), section I.14
(variational equation).
"""

import dataclasses
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from flowlab.solve.engine import advance, resume
from flowlab.solve.errors import lane_errors
from flowlab.solve.lane_lifecycle import begin, finish
from flowlab.solve.method import Method
from flowlab.solve.problem import Lanes, Point, Problem
from flowlab.until import Outcome

__all__ = ["TangentLanes", "first_with_tangents", "later_with_tangents"]

_MOVING = ("point", "progress", "start", "start_value", "span")
"""The parts of lanes whose derivatives matter for what is to come."""
_LOOSER = 10.0  # than the state's: the tolerance of a derivative, relative to all those of its lane


class TangentLanes(eqx.Module):
    """State of the lanes of a block, and its derivatives with respect to their starts.

    Attributes:
        lanes: Where they are.
        tangents: The derivatives of their unknowns by each component of the start, on a first axis
            of length d.
        agreed: Whether all copies of a lane have gone the same way.
    """

    lanes: Lanes
    tangents: dict[str, PyTree[Float[Array, "d ..."]]]
    agreed: Bool[Array, "*n"]

    @property
    def outcome(self) -> Int[Array, "*n"]:
        """Code of `Outcome`; 0 while a lane runs."""
        return self.lanes.outcome

    @property
    def evicted(self) -> Bool[Array, "*n"]:
        """True for a lane that held up its block, and is to be continued elsewhere."""
        return self.lanes.evicted

    @property
    def strayed(self) -> Bool[Array, "*n"]:
        """True where a lane's clock has led it astray, so that it must begin again."""
        return self.lanes.strayed


def first_with_tangents(
    solved: tuple[Problem, Method], starts: Float[Array, "b d n"], keep: Array, max_steps: Array
) -> tuple[Any, TangentLanes, Int[Array, " b"]]:
    """The first pass of blocks, one after the other: results, lanes, and the steps tried.

    Beside the results of `finish` there are `by_start`, the derivative of the end, shape (d, d, n)
    with the components of the start second; `time_by_start`, that of the time at the end, shape (d,
    n); and `defined`, whether the derivatives exist.
    """

    def of_block(block: Float[Array, "d n"]) -> tuple[Any, TangentLanes, Int[Array, ""]]:
        size, count = block.shape
        seeds = jnp.repeat(jnp.eye(size, dtype=block.dtype), count, axis=1)
        side_by_side = jnp.tile(block, (1, size))
        results, after, tries = _gone(
            solved, partial(begin, solved[0]), (side_by_side, seeds), size, keep, max_steps
        )
        return _told(solved[0], results, after), after, tries

    return lax.map(of_block, starts)


def later_with_tangents(
    solved: tuple[Problem, Method], before: TangentLanes, keep: Array, max_steps: Array
) -> tuple[Any, TangentLanes, Int[Array, ""]]:
    """A later pass of one block, whose lanes are continued with their tangents."""
    size = jax.tree.leaves(before.tangents)[0].shape[0]
    lanes = jax.tree.map(lambda x: jnp.concatenate([x] * size, axis=-1), before.lanes)
    seeds = jax.tree.map(lambda x: jnp.concatenate(list(x), axis=-1), before.tangents)

    def ready(moving: dict[str, Any]) -> Lanes:
        return resume(solved[0], dataclasses.replace(lanes, **moving))

    results, after, tries = _gone(solved, ready, (_moving(lanes), seeds), size, keep, max_steps)
    after = dataclasses.replace(after, agreed=after.agreed & before.agreed)
    return _told(solved[0], results, after), after, tries


def _gone(
    solved: tuple[Problem, Method],
    ready: Callable[[Any], Lanes],
    origin: tuple[Any, Any],
    size: int,
    keep: Array,
    max_steps: Array,
) -> tuple[dict[str, Any], TangentLanes, Int[Array, ""]]:
    """One pass of a block, from its lanes and their tangents: results, lanes, steps tried."""

    def run(place: Any) -> tuple[Any, Any]:
        lanes, tries, _ = advance(
            *solved,
            _held(ready(place)),
            max_steps=max_steps,
            keep=size * keep,
            errors=partial(_errors, size),
        )
        results = finish(solved[0], lanes)
        moved = (results["end"], results["end_time"], _moving(lanes))
        return moved, (results, lanes, tries)

    _, changes, (results, lanes, tries) = jax.jvp(run, (origin[0],), (origin[1],), has_aux=True)
    by_start, time_by_start, tangents = jax.tree.map(partial(_apart, size), changes)
    ways = (lanes.outcome, lanes.evicted, lanes.steps)
    same = [jnp.all(way == way[:1], axis=0) for way in map(partial(_apart, size), ways)]
    results, lanes = jax.tree.map(lambda x: _apart(size, x)[0], (results, lanes))
    results["by_start"] = jnp.moveaxis(by_start, 0, 1)
    results["time_by_start"] = time_by_start
    return results, TangentLanes(lanes, tangents, same[0] & same[1] & same[2]), tries


def _told(problem: Problem, results: dict[str, Any], after: TangentLanes) -> dict[str, Any]:
    """The results, and whether the derivatives at the end of a line exist.

    They do not where a line is absorbed before a fixed time, or nearly so.
    """
    absorbed = after.lanes.absorbed & (not problem.target.by_absorption)
    reached = results["outcome"] == Outcome.reached
    return {**results, "defined": reached & ~absorbed & after.agreed}


def _errors(
    size: int, problem: Problem, lanes: Lanes, after: Point, error: Any
) -> Float[Array, " dn"]:
    """The error of each lane relative to its tolerance: that of its point or of its derivatives.

    The point alone would not suffice: near a minimum its error is small at any stable step, while
    the derivatives, which should keep falling, would stop falling.
    """
    of_points = lane_errors(problem, lanes, after, error)
    allowed = jnp.broadcast_to(_LOOSER * problem.rtol, of_points.shape)
    moving = (lanes.point.packed_coordinates, after.packed_coordinates, error.packed_coordinates)
    return lax.stop_gradient(_larger(size, of_points, lax.stop_gradient(allowed), *moving))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _larger(
    size: int, of_points: Float[Array, " dn"], allowed: Float[Array, " dn"], *moving: PyTree[Array]
) -> Float[Array, " dn"]:
    """The errors of points, or of their derivatives where these exist and are larger.

    Only the derivative rule of a function sees the derivatives of its arguments; it changes the
    value too.
    """
    del size, allowed, moving
    return of_points


@_larger.defjvp
def _(size: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    of_points, allowed = primals[:2]
    before, after, error = (_largest(size, tangent) for tangent in tangents[2:])
    shares = error / (allowed * jnp.maximum(before, after))
    # Derivatives that are no numbers do not choose the step, and are told as undefined.
    larger = jnp.maximum(of_points, jnp.where(jnp.isfinite(shares), shares, 0))
    return larger, jnp.zeros_like(larger)


def _largest(size: int, tangent: PyTree[Float[Array, "*k dn"]]) -> Float[Array, " dn"]:
    """The largest of all derivatives of each lane, repeated for each of its copies."""
    apart = [jnp.abs(_apart(size, leaf)) for leaf in jax.tree.leaves(tangent)]
    largest = [jnp.max(leaf, axis=tuple(range(leaf.ndim - 1))) for leaf in apart]
    return jnp.tile(reduce(jnp.maximum, largest), size)


def _moving(lanes: Lanes) -> dict[str, Any]:
    return {name: getattr(lanes, name) for name in _MOVING}


def _held(lanes: Lanes) -> Lanes:
    """The same lanes, with derivatives in their unknowns only."""
    return dataclasses.replace(lax.stop_gradient(lanes), **_moving(lanes))


def _apart(size: int, array: Float[Array, "*k dn"]) -> Float[Array, "d *k n"]:
    """Blocks of the last axis, moved to a new first axis."""
    *lead, last = array.shape
    return jnp.moveaxis(jnp.reshape(array, (*lead, size, last // size)), -2, 0)
