"""Separatrices: the curves that separate the basins of a flow on a plane.

They are the stable manifolds of the saddles. Each half is a flow line followed backwards in time.
It starts near the saddle, at a distance of 1e-5 of the region's diagonal, in the direction of the
eigenvector of M·Hessian (M the metric) with the positive eigenvalue. Backwards in time the flow
contracts neighbours onto the manifold, so that the error of the start decreases along the curve. A
curve ends where it leaves the region, widened by 2 per cent on each side, or after 40 time
constants of the slowest rate of the saddle, as near a maximum.

k: points of a curve.

Source: Krauskopf and others, International Journal of Bifurcation and Chaos 15 (2005) 763–791.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from flowlab import until
from flowlab.critical.derivatives import (
    checked_region,
    derivatives_at,
    diagonal,
    enclosed,
    rates_of,
)
from flowlab.critical.types import CriticalPoint, CriticalPoints, check_points
from flowlab.flow import AbstractFlow
from flowlab.solve import flow_line, one_call

__all__ = ["Separatrix", "separatrices"]

_OFF = 1e-5  # of the region: the distance of a start from the saddle; its error is the square
ROOM = 0.02  # of the region: the distance outside the region at which curves are cut
_RATES = 40.0  # time constants of the slowest nonzero rate: a distance falls to e^−40


@dataclass(frozen=True)
class Separatrix:
    """One half of the stable manifold of a saddle, traced backwards in time.

    Attributes:
        saddle: The saddle.
        path: Points along the curve, the saddle first, shape (k, 2).
    """

    saddle: CriticalPoint
    path: Float[np.ndarray, "k 2"] = field(repr=False)


@one_call()
def separatrices(
    flow: AbstractFlow,
    points: CriticalPoints,
    region: npt.ArrayLike | None = None,
    *,
    rtol: float = 1e-8,
) -> tuple[Separatrix, ...]:
    """Trace the stable manifolds of the saddles of a flow on a plane, each in two halves.

    Each half is followed backwards in time from the saddle, along its stable direction, until it
    leaves the region or comes close to a maximum.

    Args:
        flow: A flow on a plane.
        points: The critical points of the flow, from `critical_points`.
        region: The region in which to follow the manifolds; None for the region of the points.
        rtol: Relative tolerance.

    Raises:
        ValueError: If the states are not vectors of two components, or `points` has another type.

    Accuracy: a curve starts on the tangent, at a distance of 1e-5 of the region from the saddle.
        Backwards in time the flow attracts neighbours to the curve, so that the initial error
        decreases.
    """
    check_points(points)
    ends = checked_region(points.region if region is None else region, flow)
    if len(ends) != 2:
        raise ValueError(
            f"Argument `flow` must be on a plane, but its states have {len(ends)} components."
        )
    inside = enclosed(flow, ends, ROOM)
    found: list[Separatrix] = []
    for point in points.points:
        if point.kind != "saddle" or point.dimension or point.on:
            continue
        direction = _stable_direction(flow, point)
        rates = np.abs(point.rates)
        duration = _RATES / float(rates[rates > 1e-9 * rates.max()].min())
        for sign in (1, -1):
            off = _OFF * diagonal(ends)
            start = point.position + sign * off * direction
            line = flow_line(
                inside,
                start,
                until=until.time(duration),
                clock="arc_length",
                reverse=True,
                rtol=rtol,
            )
            states = np.asarray(line.states)
            path = np.concatenate(
                [point.position[None], states[np.all(np.isfinite(states), axis=1)]]
            )
            found.append(Separatrix(point, path))
    return tuple(found)


def _stable_direction(flow: AbstractFlow, point: CriticalPoint) -> Float[np.ndarray, " 2"]:
    """The stable direction of a saddle, as a unit vector."""
    here = derivatives_at(flow, point.position[None])
    direction = rates_of(here.metric[0], here.hessian[0])[1][:, -1]
    return direction / np.linalg.norm(direction)
