"""Phase portraits of losses: what their cards say, drawn.

n: points; a point is (u_chosen, u_rejected).
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowlab import _checks as checks
from flowlab import until
from flowlab.cards import Card, Equilibrium
from flowlab.cards.equilibria import newton_step
from flowlab.cards.plane import Plane
from flowlab.flow import preference_flow
from flowlab.plots.canvas import (
    LOG_RATIOS,
    WITH_LEGEND,
    Span,
    legend_beside,
    name_outer_axes,
    patch_entry,
    shared_legend,
    sheet,
    target_axes,
)
from flowlab.plots.fields import field
from flowlab.solve import flow_line

__all__ = ["portrait", "portraits"]

_SIDE = 161  # points per side of the grid that is shaded
_SLOW = 0.01  # of the speed at the reference point: slower is a plateau, as on a card
_CLEAR = 0.03  # of the width: what is closer to an equilibrium is slow because of it
_RING = 0.9  # of the axes, from their middle: where flow lines start
_OFFSET = 0.31  # of a gap: lines that cross the whole plane then do not end on another's start
_FINE_RTOL = 3e-8  # the smallest for which the steps are still so short that a polygon looks round
_LONG = 1e4  # times what the way across takes at the speed of the reference point
_TRACE_STEP = 0.005  # of the width: steps along a curved line of equilibria
_TRACE_STEPS = 2000
_TITLE = 44  # letters on a line
_REST = "#d55e00"  # vermilion, blue and so on: Okabe and Ito's colours for the colour-blind
_REFERENCE = "#0072b2"
_FALL = "#f3e3b3"
_PLATEAU = "wrong side, and speed below\n1 % of that at (0, 0)"
_REGION = "stable region of equilibria"
_LINE_STYLES = {"stable": "-", "unstable": (0, (4, 2)), "saddle": "-.", "neutral": ":"}
_MARKERS = {"stable": "o", "unstable": "o", "saddle": "X", "neutral": "s"}

Spans = tuple[Span, Span]


def portrait(
    card: Card,
    *,
    x: Span = (-20.0, 20.0),
    y: Span = (-20.0, 20.0),
    lines: int = 14,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """The phase portrait of one loss on the log-ratio plane.

    Arrows of the velocity (their length grows with the logarithm of the speed), flow lines from a
    ring of starts and from the reference point, and what the card says: equilibria within the axes
    by kind and stability, those outside in words. Shaded are the part where the chosen log-ratio
    falls under a kernel without coupling, plateaus (a wrong margin, and a speed below 1 % of that
    at the reference point), and where the loss is not defined.

    Args:
        card: The card of a loss, from `cards.card`.
        x: Range of the chosen log-ratio, nats.
        y: Range of the rejected log-ratio, nats.
        lines: Flow lines besides that of the reference point.
        legend: Whether to write a legend to the right of the Axes.
        ax: Where to draw; None for a new Figure.

    Raises:
        ValueError: If a range is not (lower, upper), or `lines` is negative.

    Accuracy: shades are read off a grid of 161 × 161 points; equilibria are as good as the card's.
        Of a curved line of equilibria the part that runs through the card's place is drawn.
    """
    spans = checks.span("x", x), checks.span("y", y)
    checks.integer("lines", lines, 0)
    flow = preference_flow(card.loss, card.plane)
    space = Plane(flow, card.reach)
    ax = target_axes(ax, size=WITH_LEGEND)
    rests = [(rest, _rest_line(space, rest, spans)) for rest in card.equilibria]
    _shades(ax, space, spans, rests)
    field(flow, x=x, y=y, arrows=13, levels=0, color="0.72", legend=False, ax=ax)
    arrow: dict[str, Any] = dict(color="0.6", marker=r"$\rightarrow$", linestyle="none")
    ax.plot([], [], label="velocity (length: log)", **arrow)
    diagonal = _across(np.zeros(2), np.ones(2), spans)
    if diagonal is not None:
        ax.plot(*diagonal.T, ":", color="0.35", linewidth=0.9, zorder=2, label="margin 0")
    _flow_lines(ax, space, spans, lines)
    outside = [rest for rest, path in rests if not _mark(ax, rest, path, spans)]
    _tell(ax, outside)
    ax.set_xlim(*spans[0])
    ax.set_ylim(*spans[1])
    ax.set_title(_title(card), fontsize="medium")
    legend_beside(ax, legend)
    return ax


def portraits(
    cards: Mapping[str, Card],
    *,
    x: Span = (-20.0, 20.0),
    y: Span = (-20.0, 20.0),
    columns: int = 4,
) -> tuple[Figure, list[Axes]]:
    """Phase portraits side by side, on the same axes and under one legend.

    Args:
        cards: Cards by the names to write above them.
        x: Range of the chosen log-ratio, nats.
        y: Range of the rejected log-ratio, nats.
        columns: Portraits in a row.

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
        ax.set_title(f"{name}\n{_title(one)}", fontsize="small")
    name_outer_axes(axes, columns, LOG_RATIOS)
    for ax in axes:
        ax.tick_params(labelbottom=bool(ax.get_xlabel()))
    shared_legend(axes, columns=min(4, columns))
    return figure, axes


def _shades(
    ax: Axes,
    space: Plane,
    spans: Spans,
    rests: Sequence[tuple[Equilibrium, Float[np.ndarray, "k 2"] | None]],
) -> None:
    """What holds on parts of the plane, each told by a colour or a pattern of its own."""
    axes = [np.linspace(*span, _SIDE) for span in spans]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    # What is not defined from an edge of the axes on is not seen.
    middle = np.mean(np.asarray(spans), axis=1)
    found = space.field(middle + (points - middle) * (1 - 1e-9))
    undefined = ~np.all(np.isfinite(found.gradient), axis=1)
    speed = float(space.reference.speed[0])
    typical = speed if np.isfinite(speed) and speed > 0 else space.scale
    flat = np.all(found.gradient == 0, axis=1) & np.all(found.hessian == 0, axis=(1, 2))
    flat &= any(rest.kind == "region" for rest, _ in rests)
    with np.errstate(invalid="ignore"):
        falls = found.gradient[:, 0] > 0
        slow = (points[:, 0] < points[:, 1]) & (found.speed < _SLOW * typical)
    slow &= ~flat & ~_beside(points, rests, _CLEAR * _width(spans))
    shown = {
        "chosen log-ratio falls\nwithout coupling": (falls, dict(face=_FALL)),
        _PLATEAU: (slow, dict(hatch="....", edge="0.45")),
        _REGION: (flat, dict(hatch="///", edge=_REST)),
        "loss not defined": (undefined, dict(face="0.88", hatch="xx", edge="0.6")),
    }
    for label, (mask, style) in shown.items():
        if mask.any():
            _shade(ax, axes, mask.reshape(_SIDE, _SIDE), label, **style)


def _shade(
    ax: Axes,
    axes: Sequence[Float[np.ndarray, " m"]],
    mask: Bool[np.ndarray, "m m"],
    label: str,
    *,
    face: str = "none",
    hatch: str | None = None,
    edge: str = "none",
) -> None:
    drawn = ax.contourf(
        *axes, mask.T.astype(float), levels=[0.5, 1.5], colors=[face], hatches=[hatch], zorder=0.5
    )
    drawn.set(edgecolor=edge, linewidth=0)
    patch_entry(ax, label, facecolor=face, hatch=hatch, edgecolor=edge)


def _beside(
    points: Float[np.ndarray, "n 2"],
    rests: Sequence[tuple[Equilibrium, Float[np.ndarray, "k 2"] | None]],
    distance: float,
) -> Bool[np.ndarray, " n"]:
    """Which points lie close to a point or a line of equilibria."""
    near = np.zeros(len(points), bool)
    for rest, path in rests:
        if rest.kind == "point":
            near |= np.linalg.norm(points - rest.place, axis=1) < distance
        elif path is not None and rest.straight:
            along = (path[1] - path[0]) / np.linalg.norm(path[1] - path[0])
            near |= np.abs((points - path[0]) @ (along[1], -along[0])) < distance
        elif path is not None:
            gaps = np.linalg.norm(points[:, None] - path[None, ::4], axis=-1)
            near |= gaps.min(axis=1) < distance
    return near


def _flow_lines(ax: Axes, space: Plane, spans: Spans, count: int) -> None:
    """Flow lines from the ring, thin, and over them the one from the reference point."""
    starts = np.concatenate([_ring(spans, count), np.zeros((1, 2))])
    velocity = space.field(starts).velocity
    fit = np.all(np.isfinite(velocity), axis=1)
    typical = float(space.reference.speed[0])
    typical = typical if np.isfinite(typical) and typical > 0 else space.scale
    end = until.time(_LONG * _width(spans) / typical)
    for place, start in enumerate(starts):
        if not (fit[place] and _inside(start, spans)):
            continue
        line = flow_line(space.flow, start, until=end, clock="arc_length", rtol=_FINE_RTOL)
        path = _cut(line.states, spans)
        main = place == count
        _flow_line(ax, path, spans, *((_REFERENCE, 2.4, 3.5) if main else ("0.15", 0.9, 3)))
    if count:
        style: dict[str, Any] = dict(color="0.15", linewidth=0.9, marker="o", markersize=3)
        ax.plot([], [], label="flow line (dot: start)", **style)
    if _inside(np.zeros(2), spans):
        style = dict(marker="s", markersize=5, markerfacecolor="white", markeredgecolor="black")
        ax.plot([], [], color=_REFERENCE, linewidth=2.4, label="flow line from (0, 0)")
        ax.plot(0, 0, linestyle="none", zorder=6, label="reference point (0, 0)", **style)


def _ring(spans: Spans, count: int) -> Float[np.ndarray, "n 2"]:
    """Starts all along a rectangle within the axes."""
    side = 4 * (np.arange(count) + _OFFSET) / max(count, 1)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * _RING
    places = [np.interp(side, np.arange(5), corner) for corner in corners.T]
    (left, right), (low, high) = spans
    middle = np.array([left + right, low + high]) / 2
    return middle + np.stack(places, axis=1) * np.array([right - left, high - low]) / 2


def _flow_line(
    ax: Axes, path: Float[np.ndarray, "k 2"], spans: Spans, color: str, width: float, order: float
) -> None:
    if np.all(path == path[0]):
        return
    ax.plot(*path.T, color=color, linewidth=width, zorder=order)
    if order == 3:
        ax.plot(*path[0], color=color, marker="o", markersize=3, zorder=order)
    seen = np.array([_inside(point, spans) for point in path])
    lengths = np.hypot(*np.diff(path, axis=0).T) * (seen[1:] & seen[:-1])
    if lengths.sum() < 0.04 * _width(spans):
        return
    middle = int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2))
    style = dict(arrowstyle="-|>", color=color, linewidth=width, shrinkA=0, shrinkB=0)
    ax.annotate("", tuple(path[middle + 1]), tuple(path[middle]), arrowprops=style, zorder=order)


def _cut(path: Float[np.ndarray, "k 2"], spans: Spans) -> Float[np.ndarray, "m 2"]:
    """A path up to where it is far outside of the axes."""
    middle = np.mean(np.asarray(spans), axis=1)
    far = np.flatnonzero(np.max(np.abs(path - middle), axis=1) > 2 * _width(spans))
    if not len(far):
        return path
    last = far[0]
    way = path[last] - path[last - 1]
    way *= min(1, 2 * _width(spans) / np.max(np.abs(way)))
    return np.concatenate([path[:last], [path[last - 1] + way]])


def _rest_line(space: Plane, rest: Equilibrium, spans: Spans) -> Float[np.ndarray, "k 2"] | None:
    """A line of equilibria as a path within the axes; None for another kind, or if outside."""
    place = np.asarray(rest.place)
    if rest.kind != "line":
        return None
    if rest.straight:
        along = np.ones(2) if rest.margin is not None else _along(space, place)
        return _across(place, along, spans)
    path = _traced(space, place, spans)
    return path if any(_inside(point, spans) for point in path) else None


def _across(
    place: Float[np.ndarray, " 2"], along: Float[np.ndarray, " 2"], spans: Spans
) -> Float[np.ndarray, "2 2"] | None:
    """The two ends of a straight line within the axes; None if it does not cross them."""
    first, last = -np.inf, np.inf
    for at, rate, (low, high) in zip(place, along, spans, strict=True):
        if abs(rate) < 1e-12:
            if not low <= at <= high:
                return None
            continue
        ends = sorted(((low - at) / rate, (high - at) / rate))
        first, last = max(first, ends[0]), min(last, ends[1])
    return place + np.array([[first], [last]]) * along if last > first else None


def _along(space: Plane, place: Float[np.ndarray, " 2"]) -> Float[np.ndarray, " 2"]:
    """The direction of a line of equilibria at a place of it: that without curvature."""
    values, vectors = np.linalg.eigh(space.field(place[None]).hessian[0])
    return vectors[:, np.argmin(np.abs(values))]


def _traced(space: Plane, place: Float[np.ndarray, " 2"], spans: Spans) -> Float[np.ndarray, "k 2"]:
    """A curved line of equilibria through a place, until it leaves the axes or comes back."""
    step = _TRACE_STEP * _width(spans)
    halves = []
    for sign in (1, -1):
        point, way = place, sign * _along(space, place)
        half = [place]
        for count in range(_TRACE_STEPS):
            ahead = point + step * way
            found = ahead + newton_step(space.field(ahead[None]))[0]
            moved = found - point
            if not 0.2 * step < np.linalg.norm(moved) < 2 * step or not _inside(found, spans):
                break
            half.append(found)
            point, way = found, moved / np.linalg.norm(moved)
            if count > 2 and np.linalg.norm(found - place) < step:
                return np.array([*half, place])
        halves.append(half)
    return np.array([*halves[1][:0:-1], *halves[0]])


def _mark(ax: Axes, rest: Equilibrium, path: Float[np.ndarray, "k 2"] | None, spans: Spans) -> bool:
    """Mark an equilibrium, unless it is shaded already; whether it lies within the axes."""
    if rest.kind == "region":
        return _REGION in ax.get_legend_handles_labels()[1]
    if rest.kind == "line":
        if path is None:
            return False
        style: dict[str, Any] = dict(linestyle=_LINE_STYLES[rest.stability], linewidth=2.4)
        name = f"{rest.stability} line of equilibria"
        ax.plot(*path.T, color=_REST, zorder=4, label=name, **style)
        return True
    if not _inside(np.asarray(rest.place), spans):
        return False
    hollow = rest.stability in ("unstable", "neutral")
    style = dict(marker=_MARKERS[rest.stability], markersize=9, markeredgewidth=1.6)
    style |= dict(markerfacecolor="white" if hollow else _REST, markeredgecolor=_REST)
    name = "saddle" if rest.stability == "saddle" else f"{rest.stability} equilibrium"
    ax.plot(*rest.place, linestyle="none", zorder=5, label=name, **style)
    return True


def _tell(ax: Axes, outside: Sequence[Equilibrium]) -> None:
    """Say what rests outside of the axes, in their lower left corner."""
    if not outside:
        return
    words = "outside: " + "; ".join(map(_words, outside[:2]))
    words += f"; {len(outside) - 2} more" if len(outside) > 2 else ""
    box: dict[str, Any] = dict(boxstyle="round,pad=0.25", facecolor="white", edgecolor="0.7")
    style: dict[str, Any] = dict(fontsize="x-small", va="bottom", bbox=box, zorder=7)
    ax.text(0.02, 0.02, textwrap.fill(words, _TITLE), transform=ax.transAxes, **style)


def _words(rest: Equilibrium) -> str:
    at = f"({rest.place[0]:.4g}, {rest.place[1]:.4g})"
    if rest.kind == "line" and rest.margin is not None:
        at = f"at margin {rest.margin:.4g}"
    return f"{rest.stability} {rest.kind} {at if rest.kind != 'region' else f'from {at}'}"


def _title(card: Card) -> str:
    return textwrap.fill(repr(card.loss), _TITLE)


def _inside(point: Float[np.ndarray, " 2"], spans: Spans) -> bool:
    return all(low <= at <= high for at, (low, high) in zip(point, spans, strict=True))


def _width(spans: Spans) -> float:
    return max(high - low for low, high in spans)
