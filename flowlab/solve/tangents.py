"""Derivatives of ends and arrival times with respect to the start, in forward mode, by blocks.

Step sizes are treated as constants, and the sequence of steps is differentiated. This amounts to
the variational equation, integrated by the same method with the same steps. Lanes influence each
other only through the choice of the step, so that their derivatives do not mix. The errors of the
derivatives take part in the step-size control. A block contains d copies of each start, d the
number of components, and each copy has one tangent: one forward pass of the block then gives all d
columns of the derivative. No steps are recorded.

d: components of a state; n: lanes, each with d copies; b: blocks.

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
_LOOSER = 10.0  # times rtol: the tolerance of derivatives, relative to the largest of the lane


class TangentLanes(eqx.Module):
    """The state of the lanes of a block, and its derivatives with respect to their starts.

    Attributes:
        lanes: The state of the lanes, with one copy of each.
        tangents: The derivatives of the lanes' unknowns with respect to each component of the
            start, on a first axis of length d.
        agreed: Whether all copies of a lane have the same outcome and number of steps.
    """

    lanes: Lanes
    tangents: dict[str, PyTree[Float[Array, "d ..."]]]
    agreed: Bool[Array, "*n"]

    @property
    def outcome(self) -> Int[Array, "*n"]:
        """The code of `Outcome` of each lane; 0 while it runs."""
        return self.lanes.outcome

    @property
    def evicted(self) -> Bool[Array, "*n"]:
        """True for a lane that slowed down its block, and must be continued elsewhere."""
        return self.lanes.evicted

    @property
    def strayed(self) -> Bool[Array, "*n"]:
        """True for a lane that went wrong under its clock, and must start again."""
        return self.lanes.strayed


def first_with_tangents(
    solved: tuple[Problem, Method], starts: Float[Array, "b d n"], keep: Array, max_steps: Array
) -> tuple[Any, TangentLanes, Int[Array, " b"]]:
    """The first pass of several blocks: results, lanes, and the number of attempted steps.

    The results are those of `finish` and three more. `by_start` is the derivative of the end, shape
    (d, d, n), with the components of the start on the second axis. `time_by_start` is the
    derivative of the time at the end, shape (d, n). `defined` is a mask of the lanes for which the
    derivatives exist.
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
    """A later pass of one block, which continues lanes with their tangents."""
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
    """One pass of a block from its lanes and tangents: results, lanes, and attempted steps."""

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
    """The results, with the mask `defined` of lanes whose derivatives at the end exist.

    They exist if the lane reached its target and was not absorbed by the boundary before, and if
    all its copies agree.
    """
    absorbed = after.lanes.absorbed & (not problem.target.by_absorption)
    reached = results["outcome"] == Outcome.reached
    return {**results, "defined": reached & ~absorbed & after.agreed}


def _errors(
    size: int, problem: Problem, lanes: Lanes, after: Point, error: Any
) -> Float[Array, " dn"]:
    """The error of each lane relative to its tolerance, the larger for point and derivatives.

    The error of the point alone is not enough. Near a minimum it is small for any stable step, and
    the derivatives would then stop decaying.
    """
    of_points = lane_errors(problem, lanes, after, error)
    allowed = jnp.broadcast_to(_LOOSER * problem.rtol, of_points.shape)
    moving = (lanes.point.packed_coordinates, after.packed_coordinates, error.packed_coordinates)
    return lax.stop_gradient(_larger(size, of_points, lax.stop_gradient(allowed), *moving))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _larger(
    size: int, of_points: Float[Array, " dn"], allowed: Float[Array, " dn"], *moving: PyTree[Array]
) -> Float[Array, " dn"]:
    """The errors of points, or of their derivatives if these exist and are larger.

    Derivatives are only known inside a derivative rule, so that this function has one, which also
    changes the value.
    """
    del size, allowed, moving
    return of_points


@_larger.defjvp
def _(size: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    of_points, allowed = primals[:2]
    before, after, error = (_largest(size, tangent) for tangent in tangents[2:])
    shares = error / (allowed * jnp.maximum(before, after))
    # Derivatives that are not finite do not affect the step, and are reported as undefined.
    larger = jnp.maximum(of_points, jnp.where(jnp.isfinite(shares), shares, 0))
    return larger, jnp.zeros_like(larger)


def _largest(size: int, tangent: PyTree[Float[Array, "*k dn"]]) -> Float[Array, " dn"]:
    """The largest derivative of each lane, repeated for each of its copies."""
    apart = [jnp.abs(_apart(size, leaf)) for leaf in jax.tree.leaves(tangent)]
    largest = [jnp.max(leaf, axis=tuple(range(leaf.ndim - 1))) for leaf in apart]
    return jnp.tile(reduce(jnp.maximum, largest), size)


def _moving(lanes: Lanes) -> dict[str, Any]:
    return {name: getattr(lanes, name) for name in _MOVING}


def _held(lanes: Lanes) -> Lanes:
    """The lanes, with derivatives of their unknowns only."""
    return dataclasses.replace(lax.stop_gradient(lanes), **_moving(lanes))


def _apart(size: int, array: Float[Array, "*k dn"]) -> Float[Array, "d *k n"]:
    """The last axis split into copies and lanes, with the copies moved to a new first axis."""
    *lead, last = array.shape
    return jnp.moveaxis(jnp.reshape(array, (*lead, size, last // size)), -2, 0)
