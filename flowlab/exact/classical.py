"""Bowl and saddle: linear flows, whose times depend logarithmically on the start."""

import numpy as np
from numpy.typing import ArrayLike

from flowlab._checks import within
from flowlab.exact._arguments import Points, Values, pairs, quiet, values

__all__ = [
    "bowl_state",
    "bowl_time",
    "saddle_exit_time",
    "saddle_state",
]


def bowl_state(time: ArrayLike, start: ArrayLike, curvature: ArrayLike) -> Values:
    """State at `time` of the flow in the bowl curvature/2 |y|^2: start e^(-curvature time).

    Args:
        time: shape (...), of either sign.
        start: (..., d), any d.
        curvature: positive.

    Raises:
        ValueError: if `curvature` is not positive.
    """
    decay = -within("curvature", curvature, "(0, inf)") * values("time", time)
    return np.asarray(values("start", start) * np.exp(decay)[..., None])


@quiet
def bowl_time(start: ArrayLike, curvature: ArrayLike, *, gradient_norm: ArrayLike) -> Values:
    """Time until the gradient of a bowl has a given norm.

    T = log(curvature |start| / gradient_norm) / curvature

    Args:
        start: (..., d), any d.
        curvature: positive.
        gradient_norm: Euclidean norm of the gradient at the end, positive.

    Returns:
        Times; NaN where the start is past the target.

    Raises:
        ValueError: if `curvature` or `gradient_norm` is not positive.
    """
    curve = within("curvature", curvature, "(0, inf)")
    wanted = within("gradient_norm", gradient_norm, "(0, inf)")
    steepness = curve * np.linalg.norm(values("start", start), axis=-1)
    return np.asarray(np.where(steepness >= wanted, np.log(steepness / wanted) / curve, np.nan))


def saddle_state(
    time: ArrayLike, start: ArrayLike, *, unstable: ArrayLike, stable: ArrayLike
) -> Points:
    """State (x, y) at `time` of the flow on the saddle (stable y^2 - unstable x^2)/2.

    Args:
        time: shape (...), of either sign.
        start: (..., 2): x along the unstable axis, y along the stable one.
        unstable: rate at which x grows, positive.
        stable: rate at which y decays, positive.

    Raises:
        ValueError: if `start` is not a pair, or a rate is not positive.
    """
    points, elapsed = pairs(start, "start"), values("time", time)
    along = points[..., 0] * np.exp(within("unstable", unstable, "(0, inf)") * elapsed)
    across = points[..., 1] * np.exp(-within("stable", stable, "(0, inf)") * elapsed)
    return np.stack(np.broadcast_arrays(along, across), axis=-1)


@quiet
def saddle_exit_time(distance: ArrayLike, radius: ArrayLike, unstable: ArrayLike) -> Values:
    """Time from |x| = `distance` to |x| = `radius` beside a saddle: log(radius/distance)/unstable.

    As a function of log(1/distance), the time is a straight line of slope 1/unstable.

    Args:
        distance: |x| on entry: the distance from the stable manifold, not the closest approach to
            the saddle; not negative. At 0 the line never leaves: the time is inf.
        radius: |x| at the exit, positive.
        unstable: rate at which x grows, positive.

    Returns:
        Times; NaN where `distance` exceeds `radius`.

    Raises:
        ValueError: if an argument is negative, or `radius` or `unstable` is 0.
    """
    entry, leave = within("distance", distance, "[0, inf]"), within("radius", radius, "(0, inf)")
    time = (np.log(leave) - np.log(entry)) / within("unstable", unstable, "(0, inf)")
    return np.asarray(np.where(entry <= leave, time, np.nan))
