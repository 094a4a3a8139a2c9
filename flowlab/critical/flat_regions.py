"""Flat regions of a potential: neither gradient nor curvature, up to a rim.

A hinge is flat beyond its threshold: all of its gradient and Hessian are exactly 0. So they are
where a gradient has underflowed, which is no critical region. The two are told apart on the way out
of the region: bisection finds the last point without gradient; at the rim of a flat region the
gradient jumps to a number of the usual size, while an underflowed one rises from 1e-300.

n: positions; d: components.
"""

import numpy as np
from jaxtyping import Bool, Float

from flowlab.critical.derivatives import Derivatives, derivatives_at
from flowlab.critical.tolerances import UNDERFLOWN
from flowlab.flow import AbstractFlow

__all__ = ["beside_flat", "flat_around", "is_flat", "rims"]

_HALVINGS = 60  # of the way to a rim: to rounding


def is_flat(there: Derivatives) -> Bool[np.ndarray, " n"]:
    """States of the domain with neither gradient nor curvature, and with a finite value."""
    still = np.all(there.gradient == 0, axis=1) & np.all(there.hessian == 0, axis=(1, 2))
    return still & there.inside & np.isfinite(there.value)


def flat_around(
    flow: AbstractFlow, positions: Float[np.ndarray, "n d"], radius: float
) -> Bool[np.ndarray, " n"]:
    """Places that are flat, and whose neighbours along every axis are."""
    flat = is_flat(derivatives_at(flow, positions))
    around = _neighbours(positions[flat], radius)
    beside = is_flat(derivatives_at(flow, around.reshape(-1, positions.shape[1])))
    flat[flat] = np.all(beside.reshape(around.shape[:2]), axis=1)
    return flat


def beside_flat(
    flow: AbstractFlow, positions: Float[np.ndarray, "n d"], radius: float
) -> Bool[np.ndarray, " n"]:
    """Places beside which, along some axis, the flow is flat: inside of a region or on its rim."""
    around = _neighbours(positions, radius)
    flat = flat_around(flow, around.reshape(-1, positions.shape[1]), radius / 2)
    return np.any(flat.reshape(around.shape[:2]), axis=1)


def _neighbours(positions: Float[np.ndarray, "n d"], radius: float) -> Float[np.ndarray, "n m d"]:
    """Places at a distance from each, both ways along every axis."""
    axes = np.eye(positions.shape[1])
    return positions[:, None] + radius * np.concatenate([axes, -axes])


def rims(
    flow: AbstractFlow,
    inside: Float[np.ndarray, "n d"],
    outside: Float[np.ndarray, "n d"],
    scale: float,
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
    """The ends of flat regions, on straight ways from flat places to others.

    A gradient that has underflowed is zero too, but falls to it through ever smaller values, while
    that of a flat region jumps to zero at its rim.

    Args:
        flow: The flow.
        inside: Flat places.
        outside: For each a place that is not flat.
        scale: A typical |∇L|.

    Returns:
        On each way the last place without gradient, the first with one, and whether it jumps there.
    """
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        flat = (derivatives_at(flow, middle).steepness == 0)[:, None]
        inside, outside = np.where(flat, middle, inside), np.where(flat, outside, middle)
    return inside, outside, derivatives_at(flow, outside).steepness > UNDERFLOWN * scale
