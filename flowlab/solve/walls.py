"""The walls that hold a lane, and its velocity along them: a projected dynamical system.

A domain has linear walls N y ≤ b, with the outward normals as the rows of N. At a state on walls, N
stands for the normals of these walls. The velocity v is the free velocity f = −M∇L, M the metric of
the flow, minus a part that the walls take away. The multipliers μ of the walls solve a linear
complementarity problem:

    v = f − M Nᵀ μ,    μ ≥ 0,    N v ≤ 0,    μ · N v = 0.

This v is the projection of f onto the cone of admissible directions, in the norm of M⁻¹. The walls
with μ > 0 hold the lane. The set of these walls changes only at events: the lane reaches a wall, or
a multiplier falls to zero and the wall releases the lane. At an event, principal pivots (least
index first) determine the set. Between events it is fixed, and μ solves (N M Nᵀ) μ = N f for the
walls that hold, by elimination. If normals are linearly dependent, redundant ones get the
multiplier 0.

d: components of a state; m: walls.

Source: projected dynamical systems: Nagurney and Zhang, Projected Dynamical Systems and Variational
Inequalities (1996); principal pivots, which end for every positive definite matrix: Murty, Opsearch
11 (1974) 123–130.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from flowlab.flow import AbstractFlow

__all__ = [
    "along_walls",
    "holding",
    "onto_walls",
    "slides",
    "stands_still",
    "wall_count",
]

_WRITTEN_OUT = 4  # the most walls for which elimination is written out
_DEPENDENT = 1e3  # machine epsilons: with a smaller pivot, a normal depends on earlier normals
_STOPPED = 1e2  # machine epsilons: a smaller rest of a component counts as zero
_PIVOTS = 8  # per wall: far more than needed, but finite in spite of rounding


class _Pressure(NamedTuple):
    """The data of the complementarity problem at a state: (M Nᵀ)ᵀ, N M Nᵀ, and N f."""

    lifted: Float[Array, "m d"]
    matrix: Float[Array, "m m"]
    outward: Float[Array, " m"]


def wall_count(flow: AbstractFlow) -> int:
    """The number of walls of a flow's domain."""
    return len(flow.domain.walls()[1])


def slides(flow: AbstractFlow) -> bool:
    """True if the flow has walls, and lines slide along them."""
    return wall_count(flow) > 0 and flow.wall == "slide"


def along_walls(
    flow: AbstractFlow, state: PyTree[Array], free: PyTree[Array], held: Bool[Array, " m"]
) -> tuple[PyTree[Array], Float[Array, " m"] | None]:
    """The velocity of a lane that is held by the walls in a mask, and its pressure on each wall.

    The pressure on a wall is the normal component of velocity that this wall takes away; it has the
    sign of the wall's multiplier. For one wall, or two in a plane (which leave no direction), no
    linear system has to be solved.
    """
    if not slides(flow):
        return free, None
    if _hold_one_by_one(flow):
        normals, _ = flow.domain.walls_like(state)
        return _along_one(flow, state, free, held), jnp.where(held, normals @ free, 0)
    pressure = _pressure(flow, state, free)
    found = _multipliers_of(pressure, held)
    return free - found @ pressure.lifted, found * jnp.diagonal(pressure.matrix)


def holding(
    flow: AbstractFlow,
    state: Float[Array, " d"],
    free: Float[Array, " d"],
    touched: Bool[Array, " m"],
) -> Bool[Array, " m"]:
    """Mask of the walls that hold a lane, among the walls that it touches.

    The walls are those with a positive multiplier in the complementarity problem.
    """
    pressure = _pressure(flow, state, free)
    count = touched.shape[0]
    # If more walls meet than there are dimensions, a small diagonal makes the matrix definite.
    more = _DEPENDENT * jnp.finfo(state.dtype).eps * jnp.diagonal(pressure.matrix)
    pressure = pressure._replace(matrix=pressure.matrix + 4 * jnp.diag(more))
    normals, _ = flow.domain.walls_like(state)
    scale = jnp.abs(normals) @ jnp.abs(free)
    nothing = 16 * jnp.finfo(state.dtype).eps * scale

    def going(carry: tuple[Array, Array, Array]) -> Bool[Array, ""]:
        return carry[2] < _PIVOTS * count

    def pivot(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        held, _, pivots = carry
        found = _multipliers_of(pressure, held)
        outward = pressure.outward - pressure.matrix @ found
        amiss = jnp.where(held, found < 0, touched & (outward > nothing))
        least = jnp.arange(count, dtype=jnp.int32) == jnp.argmax(amiss).astype(jnp.int32)
        pivots = jnp.where(jnp.any(amiss), pivots + 1, _PIVOTS * count)
        return held ^ (least & amiss), held & (found > 0), pivots

    first = touched & (pressure.outward > nothing)
    if count == 1:
        return first
    return lax.while_loop(going, pivot, (first, first, jnp.zeros((), jnp.int32)))[1]


def onto_walls(
    flow: AbstractFlow, coordinates: Float[Array, " d"], walls: Bool[Array, " m"]
) -> Float[Array, " d"]:
    """The coordinates of the nearest state that lies on several walls at once, by one Newton step.

    Distance is measured in the coordinates, so that components of a positive orthant stay positive.
    """
    state, pull_back = jax.vjp(flow.domain.state, coordinates)
    normals, offsets = flow.domain.walls_like(state)
    across = jax.vmap(lambda normal: pull_back(normal)[0])(normals)
    plain = _Pressure(across, across @ across.T, normals @ state - offsets)
    return coordinates - _multipliers_of(plain, walls) @ across


def stands_still(velocity: Float[Array, " d"], free: Float[Array, " d"]) -> Bool[Array, ""]:
    """True if the velocity along walls is zero up to rounding of the free velocity."""
    size = jnp.abs(free) + jnp.abs(free - velocity)
    return jnp.all(jnp.abs(velocity) <= _STOPPED * jnp.finfo(size.dtype).eps * size)


def _hold_one_by_one(flow: AbstractFlow) -> bool:
    """True for domains on which two walls that hold a lane leave it no direction to move in."""
    normals, _ = flow.domain.walls()
    return len(normals) == 1 or (normals.shape == (2, 2) and bool(np.linalg.det(normals)))


def _along_one(
    flow: AbstractFlow, state: Float[Array, " d"], free: Float[Array, " d"], held: Bool[Array, " m"]
) -> Float[Array, " d"]:
    normals, _ = flow.domain.walls_like(state)
    chosen = held.astype(state.dtype)
    normal = chosen @ normals
    lifted = flow.metric(state, normal)
    across = normal @ lifted
    slid = free - lifted * ((normal @ free) / jnp.where(across > 0, across, 1))
    return slid if len(normals) == 1 else jnp.where(jnp.sum(chosen) > 1, 0, slid)


def _pressure(flow: AbstractFlow, state: Float[Array, " d"], free: Float[Array, " d"]) -> _Pressure:
    normals, _ = flow.domain.walls_like(state)
    lifted = jax.vmap(lambda normal: flow.metric(state, normal))(normals)
    return _Pressure(lifted, normals @ lifted.T, normals @ free)


def _multipliers_of(pressure: _Pressure, held: Bool[Array, " m"]) -> Float[Array, " m"]:
    """The multipliers of the walls that hold a lane, by elimination; 0 for the others.

    A normal that depends linearly on earlier ones gets the multiplier 0.
    """
    count = held.shape[0]
    chosen = held.astype(pressure.matrix.dtype)
    both = jnp.outer(chosen, chosen)
    augmented = jnp.column_stack([both * pressure.matrix, chosen * pressure.outward])
    sizes = jnp.diagonal(pressure.matrix)
    least = _DEPENDENT * jnp.finfo(sizes.dtype).eps * sizes

    def eliminate(k: int | Array, rows: Float[Array, "m c"]) -> Float[Array, "m c"]:
        pivot = rows[k, k]
        usable = pivot > least[k]
        row = jnp.where(usable, rows[k] / jnp.where(usable, pivot, 1), 0)
        others = jnp.where(np.arange(count) == k, 0, rows[:, k])
        rows = rows - jnp.outer(others, row)
        return rows.at[k].set(row)

    if count <= _WRITTEN_OUT:
        for k in range(count):
            augmented = eliminate(k, augmented)
    else:
        augmented = lax.fori_loop(0, count, eliminate, augmented)
    return augmented[:, -1]
