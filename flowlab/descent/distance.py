"""The distance of a training run from a flow line.

Letters in shapes: k steps that were kept, including the start, m points of the line.
"""

import numpy as np
from jaxtyping import Float

from flowlab import _checks as checks
from flowlab.descent.training import Descent
from flowlab.solve import Line
from flowlab.solve.paths import vectors

__all__ = ["distance"]

_BETWEEN = 8  # points of a flow line looked at in each of its steps


def distance(
    path: Descent, line: Line, *, learning_rate: float | None = None
) -> Float[np.ndarray, " k"]:
    """The Euclidean distance of a training run from a flow line, after each step that was kept.

    Distances are in the coordinates of the state.

    Args:
        path: The run.
        line: A flow line of the same flow, not traced.
        learning_rate: The learning rate η, to compare the state after n steps with the flow line at
            the time n·η. None to compare with the nearest point of the flow line, as for optimisers
            whose steps do not correspond to flow time.

    Returns:
        Distances, shape (k,); NaN if the flow line ends before the time of a step.

    Raises:
        ValueError: If `learning_rate` is not positive, if the run kept no states, or if the states
            of run and line have different shapes.

    Accuracy: that of the flow line. The distance of plain gradient descent is of first order in the
        learning rate. The nearest point is searched for on the straight segments between eight
        points of each step. The line should be longer than the run: beyond its end, the nearest
        point is the end.
    """
    if learning_rate is not None:
        checks.positive("learning_rate", learning_rate)
    if path.states is None:
        raise ValueError("Argument `path` must have states, but was made with keep_states=False.")
    points, corners = vectors(path.states), vectors(line.at(_moments(line)))
    if corners.shape[1] != points.shape[1]:
        raise ValueError(
            f"Argument `line` must have states of {points.shape[1]} numbers, like `path`, but they "
            f"have {corners.shape[1]}."
        )
    if learning_rate is None:
        return np.array([_to_polygon(point, corners) for point in points])
    times = path.steps * learning_rate
    there = line.covers(times)
    beside = np.full_like(points, np.nan)
    beside[there] = vectors(line.at(times[there]))
    return np.linalg.norm(points - beside, axis=1)


def _moments(line: Line) -> Float[np.ndarray, " m"]:
    """Times along a line, several within each of its steps."""
    times = np.asarray(line.times)
    fractions = np.arange(_BETWEEN) / _BETWEEN
    fine = times[:-1, None] + np.diff(times)[:, None] * fractions
    return np.append(fine.ravel(), times[-1])


def _to_polygon(point: Float[np.ndarray, " d"], corners: Float[np.ndarray, "m d"]) -> float:
    """The distance of a point from the nearest segment of a polygonal line."""
    first, along = corners[:-1], np.diff(corners, axis=0)
    square = np.sum(along**2, axis=1)
    fraction = np.sum((point - first) * along, axis=1) / np.where(square > 0, square, 1)
    nearest = first + np.clip(fraction, 0, 1)[:, None] * along
    return float(np.min(np.linalg.norm(point - nearest, axis=1)))
