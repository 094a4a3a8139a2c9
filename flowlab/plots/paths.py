"""Figures of flow lines, of walls, and of the path of a training run."""

from collections.abc import Sequence
from typing import Any, Protocol

import matplotlib.patheffects as effects
import numpy as np
from jaxtyping import ArrayLike, Bool, Float
from matplotlib.axes import Axes

from flowlab import _checks as checks
from flowlab.domains import AbstractDomain
from flowlab.flow import AbstractFlow
from flowlab.plots.canvas import (
    LOG_RATIOS,
    Span,
    checked_states,
    draw_line,
    finish,
    names_for,
    target_axes,
)
from flowlab.solve import Line, flow_line
from flowlab.until import AbstractTarget

__all__ = ["FINE_RTOL", "LoggedRun", "lines", "log_path", "walls"]

FINE_RTOL = 3e-8  # so small that steps are short, and the polygon looks smooth
_ON_WALL = 1e-5
_SLIDE_COLOR = "#d55e00"  # vermilion and blue of Okabe and Ito's colours for the colour-blind


class LoggedRun(Protocol):
    """A protocol for the columns of a training log, as of `flowlab.logs.TrainingLog`."""

    @property
    def step(self) -> Float[np.ndarray, " row"]:
        """The step of each row."""
        ...

    @property
    def u_chosen(self) -> Float[np.ndarray, " row"]:
        """The log-ratio of the chosen response."""
        ...

    @property
    def u_rejected(self) -> Float[np.ndarray, " row"]:
        """The log-ratio of the rejected response."""
        ...

    @property
    def points(self) -> Float[np.ndarray, "n 2"]:
        """The points (u_chosen, u_rejected) of the rows that have both."""
        ...


def lines(
    of: Sequence[Line | Float[ArrayLike, "k 2"]] | Float[ArrayLike, "n 2"],
    *,
    flow: AbstractFlow | None = None,
    until: AbstractTarget | None = None,
    domain: AbstractDomain | None = None,
    names: tuple[str, str] | None = None,
    color: str = "black",
    label: str = "flow line",
    ax: Axes | None = None,
) -> Axes:
    """Draw flow lines on a plane, each with a dot at the start and an arrowhead halfway.

    Args:
        of: Flow lines: `Line` objects or arrays of successive states, shape (k, 2). Or, with `flow`
            and `until`, an array of starts, shape (n, 2).
        flow: The flow whose lines are integrated from the starts.
        until: The target of these lines.
        domain: A domain with walls; parts of lines along a wall are marked. None for the domain of
            the flow, if the flow slides.
        names: Labels of the axes; None for those of the flow, or of the first `Line`.
        color: Colour of the lines.
        label: The legend entry.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If only one of `flow` and `until` is given, or a line or the array of starts has
            the wrong shape.
    """
    if (flow is None) != (until is None):
        raise ValueError(
            "Arguments `flow` and `until` must both be given, to follow starts, or neither."
        )
    if flow is not None and until is not None:
        starts = checked_states("of", of)  # type: ignore[arg-type]
        of = [flow_line(flow, start, until=until, rtol=FINE_RTOL) for start in starts]
        domain = flow.domain if domain is None and flow.wall == "slide" else domain
    ax = target_axes(ax)
    listed: Any = of
    paths = [checked_states("of", one.states if isinstance(one, Line) else one) for one in listed]
    for path in paths:
        draw_line(ax, path, color)
    ax.plot([], [], color=color, marker="o", markersize=3.5, label=f"{label} (dot: start)")
    slides = [part for path in paths for part in _sliding_parts(path, domain)]
    for part in slides:
        ax.plot(*part.T, color=_SLIDE_COLOR, linewidth=3.5, zorder=4, solid_capstyle="butt")
    if slides:
        ax.plot([], [], color=_SLIDE_COLOR, linewidth=3.5, label="slides along the wall")
    named = next((one for one in listed if isinstance(one, Line)), None)
    return finish(ax, names or names_for(flow or named))


def walls(
    domain: AbstractDomain,
    *,
    x: Span = (0.0, 1.0),
    y: Span = (0.0, 1.0),
    color: str = "#0072b2",
    ax: Axes | None = None,
) -> Axes:
    """Draw the walls of a domain in a plane, with ticks on their outer side.

    Args:
        domain: A domain with walls, such as `Box(1, 1)` or `Simplex()`.
        x: Range of the first component within which walls are drawn.
        y: Range of the second component.
        color: Colour of the walls.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If the domain has no walls in a plane, or a range is not (lower, upper).
    """
    normals, offsets = domain.walls()
    if normals.shape[1:] != (2,) or len(offsets) == 0:
        raise ValueError(
            "Argument `domain` must have walls in a plane, such as Box() or Simplex(), "
            f"but is {type(domain).__name__}()."
        )
    spans = checks.span("x", x), checks.span("y", y)
    ax = target_axes(ax)
    for wall in range(len(offsets)):
        ends = _wall_ends(normals, offsets, wall, spans)
        if ends is not None:
            ticks = effects.withTickedStroke(angle=60, length=0.6, spacing=6)
            ax.plot(*ends.T, color=color, linewidth=1.4, path_effects=[ticks], zorder=3)
    ax.plot([], [], color=color, linewidth=1.4, label="wall (ticks: closed side)")
    return finish(ax, names_for(None))


def log_path(log: LoggedRun, *, ax: Axes | None = None) -> Axes:
    """Draw the points (u_chosen, u_rejected) of a training log, coloured by optimiser step.

    Args:
        log: A training log, as from `flowlab.logs.read`. Rows without both log-ratios are left out.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If no row has both log-ratios, as in a log of a loss without a reference model.
    """
    whole = np.isfinite(log.u_chosen) & np.isfinite(log.u_rejected)
    if not np.any(whole):
        raise ValueError(
            "Argument `log` must have training rows with both log-ratios, but has none."
        )
    ax = target_axes(ax)
    ax.plot(*log.points.T, color="0.25", linewidth=0.6, zorder=4)
    steps = log.step[whole]
    drawn = ax.scatter(*log.points.T, c=steps, cmap="viridis", s=14, zorder=5, linewidths=0)
    ax.plot([], [], "o-", color="0.25", linewidth=0.6, markersize=4, label="training run")
    first: dict[str, Any] = dict(
        marker="s", markersize=7, markerfacecolor="white", markeredgecolor="black"
    )
    ax.plot(*log.points[0], linestyle="none", zorder=6, label="its first point", **first)
    ax.figure.colorbar(drawn, ax=ax, label="optimiser step")
    return finish(ax, LOG_RATIOS)


def _sliding_parts(
    path: Float[np.ndarray, "k 2"], domain: AbstractDomain | None
) -> list[Float[np.ndarray, "m 2"]]:
    """The parts of a line along a single wall, each of at least two points."""
    if domain is None:
        return []
    normals, offsets = domain.walls()
    on = np.abs(path @ normals.T - offsets) < _ON_WALL * np.abs(offsets)
    return [path[start:stop] for wall in on.T for start, stop in _stretches(wall)]


def _stretches(mask: Bool[np.ndarray, " k"]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a > 1]


def _wall_ends(
    normals: np.ndarray, offsets: np.ndarray, wall: int, spans: tuple[Span, Span]
) -> Float[np.ndarray, "2 2"] | None:
    """The ends of the visible part of a wall, inside all other walls; None if nothing is visible.

    From the first to the second end, the outer side of the wall is on the left.
    """
    normal = normals[wall]
    base, along = normal * offsets[wall] / (normal @ normal), np.array([normal[1], -normal[0]])
    sides = np.concatenate([np.eye(2), -np.eye(2), np.delete(normals, wall, axis=0)])
    (left, right), (low, high) = spans
    bounds = np.concatenate([[right, high, -left, -low], np.delete(offsets, wall)])
    rate, room = sides @ along, bounds - sides @ base
    if np.any(room[rate == 0] < 0):
        return None
    last = np.min(room[rate > 0] / rate[rate > 0], initial=np.inf)
    first = np.max(room[rate < 0] / rate[rate < 0], initial=-np.inf)
    return base + np.array([[first], [last]]) * along if last > first else None
