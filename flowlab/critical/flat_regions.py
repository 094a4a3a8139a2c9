"""Flat regions of a potential, in which gradient and Hessian are exactly zero.

A hinge loss is flat beyond its threshold. Gradient and Hessian are also zero where they have
underflowed, but this is not a critical region. The rim of the region distinguishes the two cases.
Bisection on a segment out of the region locates the last point without gradient: at the rim of a
flat region the gradient jumps to a typical size, while an underflowed gradient rises from 1e-300.

n: positions; d: components.
"""

import numpy as np
from jaxtyping import Bool, Float

from flowlab.critical.derivatives import Derivatives, derivatives_at
from flowlab.critical.tolerances import UNDERFLOWN
from flowlab.flow import AbstractFlow

__all__ = ["beside_flat", "flat_around", "is_flat", "rims"]

_HALVINGS = 60  # bisections that locate a rim to rounding


def is_flat(there: Derivatives) -> Bool[np.ndarray, " n"]:
    """Mask of states in the domain with a finite value, zero gradient and zero Hessian."""
    still = np.all(there.gradient == 0, axis=1) & np.all(there.hessian == 0, axis=(1, 2))
    return still & there.inside & np.isfinite(there.value)


def flat_around(
    flow: AbstractFlow, positions: Float[np.ndarray, "n d"], radius: float
) -> Bool[np.ndarray, " n"]:
    """Mask of positions that are flat together with their neighbours along every axis."""
    flat = is_flat(derivatives_at(flow, positions))
    around = _neighbours(positions[flat], radius)
    beside = is_flat(derivatives_at(flow, around.reshape(-1, positions.shape[1])))
    flat[flat] = np.all(beside.reshape(around.shape[:2]), axis=1)
    return flat


def beside_flat(
    flow: AbstractFlow, positions: Float[np.ndarray, "n d"], radius: float
) -> Bool[np.ndarray, " n"]:
    """Mask of positions in a flat region or on its rim: a neighbour along an axis is flat."""
    around = _neighbours(positions, radius)
    flat = flat_around(flow, around.reshape(-1, positions.shape[1]), radius / 2)
    return np.any(flat.reshape(around.shape[:2]), axis=1)


def _neighbours(positions: Float[np.ndarray, "n d"], radius: float) -> Float[np.ndarray, "n m d"]:
    """The neighbours of positions at a distance, in both directions along every axis."""
    axes = np.eye(positions.shape[1])
    return positions[:, None] + radius * np.concatenate([axes, -axes])


def rims(
    flow: AbstractFlow,
    inside: Float[np.ndarray, "n d"],
    outside: Float[np.ndarray, "n d"],
    scale: float,
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
    """The rims of flat regions, on straight segments from flat positions to positions outside.

    At the rim of a flat region the gradient jumps. Where a gradient underflows it does not: it
    decreases through ever smaller values to zero.

    Args:
        flow: The flow.
        inside: Flat positions.
        outside: For each flat position, a position that is not flat.
        scale: A typical |∇L|.

    Returns:
        On each segment, the last position without gradient, the first position with a gradient,
            and whether the gradient jumps between them.
    """
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        flat = (derivatives_at(flow, middle).steepness == 0)[:, None]
        inside, outside = np.where(flat, middle, inside), np.where(flat, outside, middle)
    return inside, outside, derivatives_at(flow, outside).steepness > UNDERFLOWN * scale
