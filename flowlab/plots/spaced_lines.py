"""Evenly spaced flow lines over a plane.

k: points of a line; n: positions.
"""

from collections import deque
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from scipy.interpolate import CubicSpline
from scipy.spatial import KDTree

from flowlab import _checks as checks
from flowlab import until
from flowlab.critical.derivatives import enclosed
from flowlab.critical.separatrices import ROOM
from flowlab.flow import AbstractFlow
from flowlab.plots.canvas import (
    Span,
    check_plane,
    draw_line,
    finish,
    names_for,
    target_axes,
)
from flowlab.plots.fields import evaluate
from flowlab.plots.paths import FINE_RTOL
from flowlab.solve import flow_line, one_call

__all__ = ["draw_flow_lines", "flow_lines"]

_SPACING = 1 / 13  # of the axes; wide enough to see other layers
_TEST = 0.5  # of the spacing: a line that comes so close to another ends, as in the paper
_NEARLY = 0.99  # of the spacing: positions exactly at the spacing are far enough
_SHORTEST = 2.0  # spacings: a shorter line shows no direction
_FINE = 0.1  # of the spacing, between the points of a line
_INSET = 0.01  # from the sides, where a flow may be singular
_GRID = 8  # positions per side at which lines may begin, besides those beside lines
_FAR = 1e3  # times the time to cross the axes at the local or the typical speed
_COLOR = "0.45"

Path = Float[np.ndarray, "k 2"]


def flow_lines(
    flow: AbstractFlow,
    *,
    x: Span = (0.0, 1.0),
    y: Span = (0.0, 1.0),
    spacing: float = _SPACING,
    ax: Axes | None = None,
) -> Axes:
    """Draw evenly spaced flow lines over a plane; each ends where it comes close to another.

    Args:
        flow: A flow on a plane.
        x: Range of the first component.
        y: Range of the second component.
        spacing: Initial distance between lines, as a fraction of the sides of the axes.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If the flow is not on a plane, a range is not (lower, upper), or `spacing` is
            not between 0.01 and 0.5.

    Source: Jobard and Lefer, Visualization in Scientific Computing '97, 43–55, for the placement.

    Accuracy: flow lines have a relative tolerance of 3e-8. The cubic splines between their steps
        deviate by less than the drawn width of a line.
    """
    check_plane(flow)
    spans = checks.span("x", x), checks.span("y", y)
    checks.between("spacing", spacing, 0.01, 0.5)
    ax = target_axes(ax)
    draw_flow_lines(ax, flow, spans, spacing=spacing)
    return finish(ax, names_for(flow), spans)


def draw_flow_lines(
    ax: Axes,
    flow: AbstractFlow,
    spans: tuple[Span, Span],
    *,
    spacing: float = _SPACING,
    color: str = _COLOR,
) -> None:
    """Draw evenly spaced flow lines, with one entry in the legend."""
    low, high = np.transpose(spans)
    for path in _spaced(flow, spans, spacing):
        draw_line(ax, low + path * (high - low), color, width=0.8, order=2.4, dot=False)
    style: dict[str, Any] = dict(color=color, linewidth=0.8, marker=">", markersize=4)
    ax.plot([], [], label="flow lines", **style)


@one_call()
def _spaced(flow: AbstractFlow, spans: tuple[Span, Span], apart: float) -> list[Path]:
    """The lines, on the unit square; each begins at a distance `apart` from all earlier lines."""
    inside = enclosed(
        flow, np.asarray(spans, float), ROOM
    )  # as for separatrices, to share their program
    follow = partial(_whole_line, inside, spans, _FINE * apart, _typical_speed(inside, spans))
    found: list[Path] = []
    drawn = np.empty((0, 2))
    left = deque(_first_places())
    while left:
        position = left.popleft()
        if not _is_free(drawn, position[None], _NEARLY * apart)[0]:
            continue
        path, at = follow(position)
        path = _kept(path, at, drawn, _TEST * apart)
        if _length(path) < _SHORTEST * apart:
            continue
        drawn = np.concatenate([drawn, path])
        left.extendleft(_beside(path, apart)[::-1])  # before the remaining positions of the grid
        found.append(path)
    return found


def _first_places() -> Float[np.ndarray, "n 2"]:
    """Positions on a grid over the unit square, ordered by their distance from its centre."""
    middle = (np.arange(_GRID) + 0.5) / _GRID
    positions = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1).reshape(-1, 2)
    return positions[np.argsort(np.linalg.norm(positions - 0.5, axis=1), kind="stable")]


def _typical_speed(flow: AbstractFlow, spans: tuple[Span, Span]) -> float:
    """The median of the nonzero speeds on the unit square; infinite if all speeds are zero."""
    low, high = np.transpose(spans)
    velocity = evaluate(flow, low + _first_places() * (high - low))[2]
    speeds = np.linalg.norm(velocity / (high - low), axis=-1)
    moving = speeds[np.isfinite(speeds) & (speeds > 0)]
    return float(np.median(moving)) if moving.size else np.inf


def _whole_line(
    inside: AbstractFlow,
    spans: tuple[Span, Span],
    fine: float,
    typical: float,
    position: Float[np.ndarray, " 2"],
) -> tuple[Path, int]:
    """The flow line through a position, in both directions, and the index of the position."""
    low, high = np.transpose(spans)
    state = low + position * (high - low)
    speed = np.linalg.norm(evaluate(inside, state)[2] / (high - low))
    if not (np.isfinite(speed) and speed > 0):
        return position[None], 0
    options: dict[str, Any] = dict(
        until=until.time(_FAR / min(float(speed), typical)), clock="arc_length", rtol=FINE_RTOL
    )
    halves = []
    for reverse in (True, False):
        states = np.asarray(flow_line(inside, state, reverse=reverse, **options).states)
        known = np.all(np.isfinite(states), axis=1)
        halves.append(_even((states[known] - low) / (high - low), fine))
    return np.concatenate([halves[0][:0:-1], halves[1]]), len(halves[0]) - 1


def _even(steps: Path, fine: float) -> Path:
    """Equidistant points of a line, by cubic splines through the ends of its steps."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(steps, axis=0).T))])
    moved = np.concatenate([[True], np.diff(along) > 0])
    steps, along = steps[moved], along[moved]
    if len(steps) < 2:
        return steps
    count = max(2, int(np.ceil(along[-1] / fine)) + 1)
    path = CubicSpline(along, steps)(np.linspace(0, along[-1], count))
    beyond = np.any((path < -fine) | (path > 1 + fine), axis=1)
    return path[: int(np.argmax(beyond))] if beyond.any() else path


def _kept(path: Path, at: int, drawn: Float[np.ndarray, "n 2"], near: float) -> Path:
    """The part of a line around its point `at` that is not close to another line."""
    free = _is_free(drawn, path, near)
    before, after = np.flatnonzero(~free[:at]), np.flatnonzero(~free[at:])
    first = before[-1] + 1 if before.size else 0
    return path[first : at + after[0] if after.size else len(path)]


def _beside(path: Path, apart: float) -> Float[np.ndarray, "n 2"]:
    """Positions on both sides of a line, within the unit square, at which new lines may begin."""
    thinned = path[:: round(1 / _FINE)]
    ways = np.gradient(path, axis=0)[:: round(1 / _FINE)]
    lengths = np.linalg.norm(ways, axis=1, keepdims=True)
    normals = np.stack([-ways[:, 1], ways[:, 0]], axis=1) / np.where(lengths > 0, lengths, 1.0)
    positions = np.concatenate([thinned + apart * normals, thinned - apart * normals])
    return positions[np.all((positions > _INSET) & (positions < 1 - _INSET), axis=1)]


def _is_free(
    drawn: Float[np.ndarray, "n 2"], positions: Float[np.ndarray, "k 2"], near: float
) -> Bool[np.ndarray, " k"]:
    """Mask of the positions that are far from all points of the lines `drawn`."""
    if not len(drawn):
        return np.ones(len(positions), bool)
    return KDTree(drawn).query(positions)[0] >= near


def _length(path: Path) -> float:
    return float(np.sum(np.hypot(*np.diff(path, axis=0).T))) if len(path) > 1 else 0.0
