"""Phase portraits of losses, with the results of their cards.

n: points; a point is (u_chosen, u_rejected).
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.interpolate import CubicSpline
from scipy.spatial import KDTree

from flowlab import _checks as checks
from flowlab import until
from flowlab.cards import Card, CriticalSet
from flowlab.flow import AbstractFlow, preference_flow
from flowlab.plots.canvas import (
    LOG_RATIOS,
    WITH_LEGEND,
    Span,
    draw_line,
    legend_beside,
    name_axes,
    name_outer_axes,
    shade,
    shared_legend,
    sheet,
    target_axes,
)
from flowlab.plots.critical import POINT_COLOR, draw_line_of_points, draw_point
from flowlab.plots.fields import SampledFlow, evaluate, sample
from flowlab.plots.paths import FINE_RTOL
from flowlab.plots.phase import (
    DOTTED,
    draw_arrows,
    frame,
    slowness,
    title_of,
    typical_speed,
)
from flowlab.solve import flow_line

__all__ = ["portrait", "portraits"]

_SLOW = 0.01  # of the speed at the reference point: a lower speed is a plateau, as on a card
_CLEAR = 0.03  # of the width: states closer to a critical point are slow because of it
_RING = 0.9  # of the axes: the distance of the ring of starts from the middle
_OFFSET = 0.31  # of a gap: an offset, so that lines do not end on the start of another line
_LONG = 1e4  # times the time to cross the axes at the speed of the reference point
_SHORTEST = 0.04  # of the width: a shorter line has no arrowhead
_SPACING = 0.003  # of the width, between the points drawn along a line of critical points
_OUTSIDE = 44  # letters per line of the list of points outside the axes
_REFERENCE = "#0072b2"
_FALL = "#f3e3b3"
_PLATEAU = "wrong side, and speed below\n1 % of that at (0, 0)"
_KINDS = {"stable": "minimum", "unstable": "maximum", "saddle": "saddle", "neutral": "degenerate"}

Spans = tuple[Span, Span]
# Critical points, lines and regions of a card, each with the points to draw.
CriticalSets = Sequence[tuple[CriticalSet, Float[np.ndarray, "k 2"]]]


def portrait(
    card: Card,
    *,
    x: Span = (-20.0, 20.0),
    y: Span = (-20.0, 20.0),
    lines: int = 14,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the phase portrait of a loss on the log-ratio plane.

    The portrait shows arrows of the velocity (their length grows with the logarithm of the speed),
    flow lines from a ring of starts and from the reference point, and the critical points of the
    card with kind and stability. Critical points outside the axes are listed. Three regions are
    shaded: where the flow lowers the chosen log-ratio; plateaus (negative margin, and a
    speed below 1 % of the speed at the reference point); and where the loss is not defined.

    Args:
        card: The card of a loss, from `cards.card`.
        x: Range of the chosen log-ratio, in nats.
        y: Range of the rejected log-ratio, in nats.
        lines: Number of flow lines from the ring.
        legend: Whether to add a legend to the right of the Axes.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If a range is not (lower, upper), or `lines` is negative.

    Accuracy: shaded regions are computed on a grid of 239 × 239 points. Lines of critical points
        are cubic splines through the points of the card.
    """
    spans = checks.span("x", x), checks.span("y", y)
    checks.integer("lines", lines, 0)
    flow = preference_flow(card.loss, card.plane)
    grid = sample(flow, x, y)
    speed = card.speed or typical_speed(grid)
    spacing = _SPACING * _width(spans)
    critical_sets = [(critical, _points_of(critical, spacing)) for critical in card.critical_sets]
    ax = target_axes(ax, size=WITH_LEGEND)
    name_axes(ax, LOG_RATIOS)
    _shade_parts(ax, grid, _SLOW * speed, critical_sets)
    draw_arrows(ax, grid, arrows=13, levels=0, color="0.7")
    _draw_margin_zero(ax, spans)
    _draw_flow_lines(ax, flow, spans, lines, _LONG * _width(spans) / speed)
    _draw_critical_points(ax, critical_sets, spans)
    frame(ax, spans)
    ax.set_title(title_of(flow), fontsize="medium")
    legend_beside(ax, legend)
    return ax


def portraits(
    cards: Mapping[str, Card],
    *,
    x: Span = (-20.0, 20.0),
    y: Span = (-20.0, 20.0),
    columns: int = 4,
) -> tuple[Figure, list[Axes]]:
    """Draw phase portraits side by side, with the same ranges and one legend.

    Args:
        cards: Cards, by the title of their portrait.
        x: Range of the chosen log-ratio, in nats.
        y: Range of the rejected log-ratio, in nats.
        columns: Number of portraits in a row.

    Returns:
        The Figure, and one Axes for each card.

    Raises:
        ValueError: If there is no card, a range is not (lower, upper), or `columns` is below 1.
    """
    if not cards:
        raise ValueError("Argument `cards` must hold at least one card, but is empty.")
    columns = min(checks.integer("columns", columns), len(cards))
    figure, axes = sheet(len(cards), columns, size=(3.4, 3.6), share=True)
    for (name, one), ax in zip(cards.items(), axes, strict=True):
        portrait(one, x=x, y=y, legend=False, ax=ax)
        ax.set_title(f"{name}\n{ax.get_title()}", fontsize="small")
    name_outer_axes(axes, columns, LOG_RATIOS)
    for ax in axes:
        ax.tick_params(labelbottom=bool(ax.get_xlabel()))
    shared_legend(axes, columns=min(4, columns))
    return figure, axes


def _points_of(critical: CriticalSet, spacing: float) -> Float[np.ndarray, "k 2"]:
    """The position of a critical point, or points along a spline through a critical line."""
    path = np.array([critical.position]) if critical.path is None else critical.path
    lengths = np.hypot(*np.diff(path, axis=0).T)
    path = path[np.append(True, lengths > 0)]
    if len(path) == 1:
        return path
    along = np.append(0.0, np.cumsum(lengths[lengths > 0]))
    ends = "periodic" if np.all(path[0] == path[-1]) else "not-a-knot"
    fine = np.append(np.arange(0, along[-1], spacing), along[-1])
    return CubicSpline(along, path, bc_type=ends)(fine)


def _shade_parts(ax: Axes, grid: SampledFlow, slow: float, critical_sets: CriticalSets) -> None:
    """Shade regions: a falling chosen log-ratio, plateaus, flat regions, undefined regions."""
    defined = np.all(np.isfinite(grid.gradient), axis=-1)
    region = next((critical for critical, _ in critical_sets if critical.kind == "region"), None)
    flat = np.all(grid.gradient == 0, axis=-1) & (region is not None)
    wrong = grid.states[..., 0] < grid.states[..., 1]
    apart = ~_beside(grid, critical_sets) & ~flat
    plateau = np.where(wrong & apart, slowness(grid, slow), -1.0)
    falls = "chosen log-ratio falls"
    shade(ax, grid.axes, grid.velocity[..., 0] < 0, falls, face=_FALL)
    shade(ax, grid.axes, plateau, _PLATEAU, **DOTTED)
    if region is not None:
        shade(ax, grid.axes, flat, _name_of(region), hatch="///", edge=POINT_COLOR)
    shade(ax, grid.axes, ~defined, "loss not defined", face="0.88", hatch="xx", edge="0.6")


def _beside(grid: SampledFlow, critical_sets: CriticalSets) -> Bool[np.ndarray, "m m"]:
    """Mask of the grid points close to a critical point or line."""
    states = grid.states
    positions = [points for critical, points in critical_sets if critical.kind != "region"]
    if not positions:
        return np.zeros(states.shape[:2], bool)
    near = _CLEAR * float(np.max(np.ptp(states, axis=(0, 1))))
    return KDTree(np.concatenate(positions)).query(states)[0] < near


def _draw_margin_zero(ax: Axes, spans: Spans) -> None:
    """Draw the line u_chosen = u_rejected, if it crosses the axes."""
    (left, right), (low, high) = spans
    if max(left, low) < min(right, high):
        style: dict[str, Any] = dict(linestyle=":", color="0.35", linewidth=0.9, zorder=2)
        ax.axline((0, 0), slope=1, label="margin 0", **style)


def _draw_flow_lines(
    ax: Axes, flow: AbstractFlow, spans: Spans, count: int, duration: float
) -> None:
    """Draw thin flow lines from a ring, and a thick line from the reference point over them."""
    options: dict[str, Any] = dict(until=until.time(duration), clock="arc_length", rtol=FINE_RTOL)
    look: dict[str, Any] = dict(spans=spans, shortest=_SHORTEST * _width(spans))
    starts = _ring(spans, count)
    fit = np.all(np.isfinite(evaluate(flow, starts)[2]), axis=1)
    for start in starts[fit]:
        path = flow_line(flow, start, **options).states
        if np.any(path != start):
            draw_line(ax, path, "0.15", width=0.9, **look)
    if count:
        style: dict[str, Any] = dict(color="0.15", linewidth=0.9, marker="o", markersize=3)
        ax.plot([], [], label="flow line (dot: start)", **style)
    if not np.any(_inside(np.zeros((1, 2)), spans)):
        return
    path = flow_line(flow, np.zeros(2), **options).states
    draw_line(ax, path, _REFERENCE, width=2.4, order=3.5, dot=False, **look)
    style = dict(marker="s", markersize=5, markerfacecolor="white", markeredgecolor="black")
    ax.plot([], [], color=_REFERENCE, linewidth=2.4, label="flow line from (0, 0)")
    ax.plot(0, 0, linestyle="none", zorder=6, label="reference point (0, 0)", **style)


def _ring(spans: Spans, count: int) -> Float[np.ndarray, "n 2"]:
    """Starts along the sides of a rectangle within the axes."""
    side = 4 * (np.arange(count) + _OFFSET) / max(count, 1)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * _RING
    ring = [np.interp(side, np.arange(5), corner) for corner in corners.T]
    (left, right), (low, high) = spans
    middle = np.array([left + right, low + high]) / 2
    return middle + np.stack(ring, axis=1) * np.array([right - left, high - low]) / 2


def _draw_critical_points(ax: Axes, critical_sets: CriticalSets, spans: Spans) -> None:
    """Mark critical points within the axes, and list those outside in the lower left corner.

    Flat regions are not marked, since they are shaded.
    """
    outside = []
    for critical, points in critical_sets:
        if critical.kind == "region":
            seen = _name_of(critical) in ax.get_legend_handles_labels()[1]
        else:
            seen = bool(np.any(_inside(points, spans)))
        if not seen:
            outside.append(critical)
        elif critical.kind == "point":
            draw_point(ax, points, _KINDS[critical.stability], _name_of(critical))
        elif critical.kind == "line":
            kind = _KINDS[critical.stability]
            draw_line_of_points(ax, points, kind, _name_of(critical), width=2.4)
    if not outside:
        return
    words = "outside: " + "; ".join(map(_legend_entry, outside[:2]))
    words += f"; {len(outside) - 2} more" if len(outside) > 2 else ""
    box: dict[str, Any] = dict(boxstyle="round,pad=0.25", facecolor="white", edgecolor="0.7")
    style: dict[str, Any] = dict(fontsize="x-small", va="bottom", bbox=box, zorder=7)
    ax.text(0.02, 0.02, textwrap.fill(words, _OUTSIDE), transform=ax.transAxes, **style)


def _name_of(critical: CriticalSet) -> str:
    """The legend entry of a critical point."""
    if critical.kind != "point":
        return f"{critical.stability} {critical.kind} of critical points"
    return "saddle" if critical.stability == "saddle" else f"{critical.stability} critical point"


def _legend_entry(critical: CriticalSet) -> str:
    """The text that lists a critical point outside the axes: kind and position."""
    at = f"({critical.position[0]:.4g}, {critical.position[1]:.4g})"
    if critical.kind == "line" and critical.margin is not None:
        at = f"at margin {critical.margin:.4g}"
    if critical.kind == "region":
        at = f"from {at}"
    return f"{critical.stability} {critical.kind} {at}"


def _inside(points: Float[np.ndarray, "k 2"], spans: Spans) -> Bool[np.ndarray, " k"]:
    low, high = np.transpose(spans)
    return np.all((low <= points) & (points <= high), axis=1)


def _width(spans: Spans) -> float:
    return max(high - low for low, high in spans)
