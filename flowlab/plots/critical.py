"""Figures of the results of `flowlab.critical`: critical points, separatrices, basins, branches.

n: starts; k: points of a path, or values of a parameter; m: cells of a side.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, is_color_like

from flowlab._names import did_you_mean
from flowlab.critical import (
    BOUNDARY,
    RUNAWAY,
    SADDLE,
    UNRESOLVED,
    Basins,
    Branch,
    Continuation,
    CriticalPoints,
    Event,
    Separatrix,
)
from flowlab.plots.canvas import (
    WITH_LEGEND,
    axis_name,
    cell_edges,
    finish,
    legend_beside,
    names_for,
    patch_entry,
    shade_cells,
    target_axes,
)

__all__ = [
    "POINT_COLOR",
    "Colors",
    "basins",
    "branches",
    "critical_points",
    "draw_line_of_points",
    "draw_point",
    "separatrices",
]

Colors = Sequence[Any] | Mapping[str, Any]  # of basins, as colours of matplotlib
POINT_COLOR = "#d55e00"  # vermilion, blue and so on: Okabe and Ito's colours for the colour-blind
_ON_WALL = "#0072b2"
_HALO = effects.withStroke(linewidth=3.5, foreground="white")
_HOLLOW = ("maximum", "degenerate")
_MARKERS = {"minimum": "o", "saddle": "X", "maximum": "o", "degenerate": "s"}
_LINE_STYLES = {"minimum": "-", "saddle": "-.", "maximum": (0, (4, 2)), "degenerate": ":"}
# The light colours of Paul Tol's qualitative schemes: fills that the colour-blind distinguish, and
# on which black lines and marks are visible.
_FILLS = ("#77aadd", "#eedd88", "#ffaabb", "#44bb99", "#99ddff", "#bbcc33", "#ee8866", "#aaaa00")
_NEUTRAL: dict[int, tuple[str, str, str | None]] = {
    RUNAWAY: ("runs away", "0.95", "///"),
    BOUNDARY: ("ends on the boundary", "0.82", None),
    SADDLE: ("ends at a saddle", "0.66", None),
    UNRESOLVED: ("unresolved", "0.45", "xxx"),
}
_HATCH_EDGE = "0.6"
_BRANCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "minimum": ("minimum (stable)", dict(color="#0072b2", linestyle="-")),
    "saddle": ("saddle (unstable)", dict(color="#d55e00", linestyle=(0, (5, 2)))),
    "maximum": ("maximum (unstable)", dict(color="#cc79a7", linestyle=(0, (2, 1.5)))),
    "degenerate": ("degenerate", dict(color="0.4", linestyle="-.")),
}
_EVENTS = {
    "appears": {"marker": ">", "markersize": 6},
    "vanishes": {"marker": "X", "markersize": 6},
    "changes index": {"marker": "s", "markersize": 13, "zorder": 4},  # around other marks
    "is lost": {"marker": "d", "markersize": 6},
}


def critical_points(points: CriticalPoints, *, ax: Axes | None = None) -> Axes:
    """Draw critical points, marked by kind, and lines of critical points.

    A minimum is a filled circle, a saddle a cross, a maximum an open circle, a degenerate point an
    open square. Points on a wall or edge have a blue rim, and the legend names the wall. If there
    are no points, the legend says so.

    Args:
        points: The result of `critical.critical_points`.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If a point does not lie on a plane.
    """
    for point in points:
        _check_plane("points", point.position)
    ax = target_axes(ax)
    for point in points:
        if point.path is None:
            rim = _ON_WALL if point.on else POINT_COLOR
            draw_point(ax, point.position, point.kind, point.name, rim=rim)
        else:
            draw_line_of_points(ax, point.path, point.kind, point.name)
    if not len(points):
        ax.plot([], [], linestyle="none", label="no critical point in the region")
    return finish(ax, names_for(points))


def separatrices(
    separatrices: Sequence[Separatrix],
    *,
    names: tuple[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw separatrices: the flow lines that end at a saddle, and separate the basins.

    Args:
        separatrices: The result of `critical.separatrices`.
        names: Labels of the axes.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If a separatrix does not lie on a plane.
    """
    for one in separatrices:
        _check_plane("separatrices", one.path)
    ax = target_axes(ax)
    for one in separatrices:
        style: dict[str, Any] = dict(color="black", linewidth=1.7, path_effects=[_HALO], zorder=3.2)
        ax.plot(*one.path.T, label="separatrix (ends at a saddle)", **style)
    return finish(ax, names or names_for(None))


def basins(
    basins: Basins,
    *,
    names: tuple[str, str] | None = None,
    colors: Colors | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the basin of each start: a map for starts on a grid, otherwise one dot per start.

    Basins of minima have colours. Starts are grey if they run away, end on the boundary or at a
    saddle, or are unresolved. The legend states the fraction of each outcome, for scattered starts
    with its standard error.

    Args:
        basins: The result of `critical.basins`.
        names: Labels of the axes.
        colors: Colours of matplotlib: either one for each of `basins.minima`, in their order; or a
            mapping from names of outcomes, as in `basins.fractions` (such as "runaway"), to their
            colours. None for the default colours.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If the starts do not lie on a plane, or `colors` holds an unknown name, an
            invalid colour, or a wrong number of colours.
    """
    _check_plane("basins", basins.starts)
    own = _own_colors(basins, colors)
    alone = ax is None
    ax = target_axes(ax, size=WITH_LEGEND)
    present = sorted(set(basins.labels.tolist()), key=lambda label: (label < 0, abs(label)))
    looks = [_look(basins, label, own) for label in present]
    if basins.shape is None:
        for label, (name, face, hatch) in zip(present, looks, strict=True):
            style: dict[str, Any] = dict(linestyle="none", markersize=3.5, zorder=2)
            style |= dict(
                marker="D" if hatch else "o",
                color=face,
                markeredgecolor="0.25",
                markeredgewidth=0.4,
            )
            ax.plot(*basins.starts[basins.labels == label].T, label=name, **style)
    else:
        _fill(ax, basins, present, looks)
    finish(ax, names or names_for(None))
    if alone:
        legend_beside(ax)
    return ax


def branches(continuation: Continuation, *, component: int = 0, ax: Axes | None = None) -> Axes:
    """Draw a bifurcation diagram: one component of the critical points over a parameter.

    Minima, which are stable, are solid lines; all other points are dashed lines. Marks show where a
    critical point appears, vanishes, changes its index, or could not be followed any further.

    Args:
        continuation: The result of `critical.continuation`.
        component: Index of the component of the state to draw, counted from 0.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If there is no such component.
    """
    size = {len(branch.positions[0]) for branch in continuation.branches}
    size |= {len(event.position) for event in continuation.events}
    if size and not 0 <= component < min(size):
        raise ValueError(
            f"Argument `component` must be from 0 to {min(size) - 1}, but is {component!r}."
        )
    ax = target_axes(ax)
    for number, branch in enumerate(continuation.branches):
        events = [event for event in continuation.events if event.branch == number]
        for kind, x, y in _stretches(branch, events, component):
            name, look = _BRANCHES[kind]
            ax.plot(x, y, linewidth=1.8, label=name, **look)
    for event in continuation.events:
        style: dict[str, Any] = {"linestyle": "none", "zorder": 5, **_EVENTS[event.what]}
        style |= dict(markerfacecolor="white", markeredgecolor="black", markeredgewidth=1.2)
        ax.plot(event.value, event.position[component], label=event.what, **style)
    if not continuation.branches:
        ax.plot([], [], linestyle="none", label="no critical point at any value")
    ax.set_xlim(np.min(continuation.values), np.max(continuation.values))
    height = axis_name(continuation, component)
    return finish(ax, (f"parameter {continuation.parameter}", height))


def draw_point(
    ax: Axes, position: Float[np.ndarray, "*k 2"], kind: str, label: str, *, rim: str = POINT_COLOR
) -> None:
    """Draw the marker of a critical point, by its kind."""
    face = "white" if kind in _HOLLOW else POINT_COLOR
    style: dict[str, Any] = dict(marker=_MARKERS[kind], markersize=9, linestyle="none")
    style |= dict(markerfacecolor=face, markeredgecolor=rim, markeredgewidth=1.6, zorder=6)
    ax.plot(*position.T, label=label, path_effects=[_HALO], **style)


def draw_line_of_points(
    ax: Axes, path: Float[np.ndarray, "k 2"], kind: str, label: str, *, width: float = 5.0
) -> None:
    """Draw a line of critical points, by default so broad that nullclines on it remain visible."""
    style: dict[str, Any] = dict(linestyle=_LINE_STYLES[kind], linewidth=width, zorder=2.4)
    style |= dict(color=POINT_COLOR, alpha=0.75, solid_capstyle="butt")
    ax.plot(*path.T, label=label, **style)


def _own_colors(basins: Basins, colors: Colors | None) -> dict[str, Any]:
    """The user's colours of basins, by the names of the outcomes."""
    if colors is None:
        return {}
    if isinstance(colors, Mapping):
        own, known = dict(colors), {basins.name(label) for label in _labels(basins)}
        strangers = [name for name in own if name not in known]
        if strangers:
            raise ValueError(
                f"Argument `colors` must name some of {', '.join(sorted(known))}, but names "
                f"{strangers[0]!r}{did_you_mean(str(strangers[0]), known) or '.'}"
            )
    elif isinstance(colors, str) or len(colors) != len(basins.minima):
        count = repr(colors) if isinstance(colors, str) else f"has {len(colors)}"
        raise ValueError(
            f"Argument `colors` must have one colour for each of the {len(basins.minima)} minima, "
            f"but {'is ' if isinstance(colors, str) else ''}{count}."
        )
    else:
        own = {basins.name(index): color for index, color in enumerate(colors)}
    for color in own.values():
        if not is_color_like(color):
            raise ValueError(
                f"Argument `colors` must have colours of matplotlib such as 'tab:blue' or "
                f"'#77aadd', but has {color!r}."
            )
    return own


def _labels(basins: Basins) -> list[int]:
    """All labels that starts can have, those of minima first."""
    return [*range(len(basins.minima)), *_NEUTRAL]


def _look(basins: Basins, label: int, own: Mapping[str, Any]) -> tuple[str, Any, str | None]:
    """The legend entry, colour and pattern of a label of `basins`."""
    fraction, error = basins.fractions[basins.name(label)]
    # On a grid the standard error of random starts has no meaning.
    within = "" if basins.shape else f" ± {100 * error:.1f}"
    percent = f"{100 * fraction:.1f}{within} %"
    if label < 0:
        name, face, hatch = _NEUTRAL[label]
        return f"{name}: {percent}", own.get(basins.name(label), face), hatch
    minimum = basins.minima[label]
    rounding = 1e-9 * float(np.ptp(basins.starts))
    position = ", ".join(f"{0 if abs(at) < rounding else at:.3g}" for at in minimum.position)
    name = f"the {minimum.name}" if minimum.dimension else f"({position})"
    given = own.get(basins.name(label))
    hatch = None if label < len(_FILLS) or given is not None else "\\\\"
    face = _FILLS[label % len(_FILLS)] if given is None else given
    return f"basin of {name}: {percent}", face, hatch


def _fill(
    ax: Axes,
    basins: Basins,
    present: Sequence[int],
    looks: Sequence[tuple[str, Any, str | None]],
) -> None:
    """Fill the cells of a grid with the colours and patterns of their labels."""
    shape = basins.shape
    assert shape is not None
    states = basins.starts.reshape(*shape, 2)
    edges = cell_edges(states[:, 0, 0]), cell_edges(states[0, :, 1])
    numbers = np.zeros(len(basins.labels), int)
    for number, label in enumerate(present):
        numbers[basins.labels == label] = number
    cells = numbers.reshape(shape).T
    colors = ListedColormap([face for _, face, _ in looks])
    limits: dict[str, Any] = dict(vmin=-0.5, vmax=len(present) - 0.5)
    ax.pcolormesh(*edges, cells, cmap=colors, zorder=0.3, rasterized=True, **limits)
    for number, (name, face, hatch) in enumerate(looks):
        if hatch is not None:
            style: dict[str, Any] = dict(hatch=hatch, edge=_HATCH_EDGE, order=0.4)
            shade_cells(ax, edges, cells == number, "_" + name, **style)
        patch_entry(ax, name, facecolor=face, hatch=hatch, edgecolor=_HATCH_EDGE)


def _stretches(
    branch: Branch, events: Sequence[Event], component: int
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Kind, x and y of each stretch of a branch with one kind, with the events at its ends."""
    samples = list(zip(branch.values, branch.positions[:, component], strict=True))
    marks = [(event.value, event.position[component]) for event in events]
    changes = [k for k in range(1, len(branch.kind)) if branch.kind[k] != branch.kind[k - 1]]
    for first, last in zip([0, *changes], [*changes, len(samples)], strict=True):
        lowest = samples[first - 1][0] if first else -np.inf
        highest = samples[last][0] if last < len(samples) else np.inf
        ahead = [mark for mark in marks if lowest <= mark[0] < samples[first][0]]
        behind = [mark for mark in marks if samples[last - 1][0] < mark[0] <= highest]
        if first and not ahead:  # no gap where the kind changes without an event
            ahead = [samples[first - 1]]
        x, y = zip(*ahead, *samples[first:last], *behind, strict=True)
        yield branch.kind[first], list(x), list(y)


def _check_plane(name: str, states: Float[np.ndarray, "*k d"]) -> None:
    if np.shape(states)[-1] != 2:
        raise ValueError(
            f"Argument `{name}` must hold states on a plane, but they have {np.shape(states)[-1]} "
            "components."
        )
