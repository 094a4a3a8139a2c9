"""The phase portrait of a flow on a plane, and its layers: nullclines, slow regions.

m: points of a side of the grid on which the flow is evaluated.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from flowlab import _checks as checks
from flowlab import critical, starts
from flowlab._parameters import short
from flowlab.critical import CriticalPoints
from flowlab.flow import AbstractFlow, Flow, PreferenceFlow
from flowlab.losses import AbstractLoss
from flowlab.plots import critical as drawn
from flowlab.plots.canvas import (
    WITH_LEGEND,
    Span,
    finish,
    legend_beside,
    name_axes,
    names_for,
    shade,
    target_axes,
)
from flowlab.plots.fields import SampledFlow, draw_field, sample
from flowlab.plots.paths import walls
from flowlab.plots.spaced_lines import draw_flow_lines
from flowlab.policies import AbstractPolicy, CoupledKernel, LogRatioPlane, RatioPlane
from flowlab.potentials import AbstractPotential

__all__ = [
    "DOTTED",
    "LAYERS",
    "SHAPES",
    "draw_arrows",
    "frame",
    "loss_title",
    "nullclines",
    "phase_portrait",
    "slow_regions",
    "slowness",
    "title_of",
    "typical_speed",
]

LAYERS = ("slow_regions", "flow_lines", "nullclines", "separatrices", "critical_points")
_ALL = ("basins", "field", *LAYERS)
_FOUND = {"basins", "separatrices", "critical_points"}  # layers that need the critical points
_CELLS = 64
_SLOW = 0.1  # of the median speed over the axes
_NULLCLINES: tuple[tuple[str, Any], ...] = (("#0072b2", "-"), ("#882255", (0, (3, 1.5))))
SHAPES = (0.25, 4.0)  # height over width of axes whose two scales are equal
_ROOM = 0.04  # of the width: room beyond a side of the axes with critical points
_TITLE = 44  # letters per line
DOTTED: dict[str, Any] = dict(hatch="....", edge="0.45")  # the style of slow regions


def nullclines(
    flow: AbstractFlow, *, x: Span = (0.0, 1.0), y: Span = (0.0, 1.0), ax: Axes | None = None
) -> Axes:
    """Draw the nullclines of a flow: lines on which a component of the velocity changes sign.

    A region in which a component is zero is shaded. Nothing is drawn outside the domain.

    Args:
        flow: A flow on a plane.
        x: Range of the first component.
        y: Range of the second component.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If the flow is not on a plane, or a range is not (lower, upper).

    Accuracy: computed on a grid of 239 × 239 points with linear interpolation. A jump from one sign
        to the other, at a kink or pole, is also drawn; a zero without a change of sign is not.
    """
    grid = sample(flow, x, y)
    ax = target_axes(ax)
    _draw_nullclines(ax, grid)
    return finish(ax, names_for(flow), (x, y))


def slow_regions(
    flow: AbstractFlow,
    *,
    x: Span = (0.0, 1.0),
    y: Span = (0.0, 1.0),
    below: float,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the region in which the speed is below a level, dotted; it includes critical points.

    Args:
        flow: A flow on a plane.
        x: Range of the first component.
        y: Range of the second component.
        below: The level of the speed |−M∇L|, per unit of flow time.
        label: Legend entry; None for "speed below" and the level.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If `below` is not positive and finite, the flow is not on a plane, or a range is
            not (lower, upper).

    Accuracy: as of `nullclines`.
    """
    checks.positive("below", below)
    grid = sample(flow, x, y)
    ax = target_axes(ax)
    _draw_slow_regions(ax, grid, below, f"speed below {below:.3g}" if label is None else label)
    return finish(ax, names_for(flow), (x, y))


def phase_portrait(
    flow: AbstractFlow,
    *,
    x: Span = (0.0, 1.0),
    y: Span = (0.0, 1.0),
    layers: Sequence[str] = LAYERS,
    points: CriticalPoints | None = None,
    below: float | None = None,
    cells: int | None = None,
    colors: drawn.Colors | None = None,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the phase portrait of a flow on a plane, with the results of `flowlab.critical`.

    There is also a function for each layer. Further layers, such as `plots.lines`, can be drawn on
    the same Axes.

    Args:
        flow: A flow on a plane.
        x: Range of the first component.
        y: Range of the second component.
        layers: The layers to draw, from "basins", "slow_regions", "field", "flow_lines",
            "nullclines", "separatrices" and "critical_points"; by default all except the basins,
            which take longest, and the field of arrows.
        points: The critical points, from `critical.critical_points` on this region; None to search
            for them.
        below: Level of the speed for the slow regions, per unit of flow time; None for a tenth of
            the median over the axes.
        cells: Number of cells per side of the map of basins; None for 64.
        colors: Colours of the basins, as for `plots.basins`; None for the default colours.
        legend: Whether to add a legend to the right of the Axes.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If the flow is not on a plane, a range is not (lower, upper), a layer is
            unknown, there is no layer, or an option has no effect on any of the layers.

    Accuracy: as of the functions of the layers, and of `critical.critical_points`, `separatrices`
        and `basins`.
    """
    spans = checks.span("x", x), checks.span("y", y)
    _check_layers(layers, below=below, cells=cells, colors=colors, points=points)
    grid = sample(flow, x, y)
    ax = target_axes(ax, size=WITH_LEGEND)
    name_axes(ax, names_for(flow))
    if points is None and _FOUND & {*layers}:
        points = critical.critical_points(flow, spans)
    if points is not None and "basins" in layers:
        _draw_basins(ax, flow, points, spans, _CELLS if cells is None else cells, colors)
    if "slow_regions" in layers:
        _draw_slowest(ax, grid, below)
    if "field" in layers:
        draw_arrows(ax, grid, color="0.4" if "basins" in layers else "0.6")
    if "flow_lines" in layers:
        draw_flow_lines(ax, flow, spans)
    if "nullclines" in layers:
        _draw_nullclines(ax, grid)
    if len(flow.domain.walls()[1]):
        walls(flow.domain, x=x, y=y, color="0.25", ax=ax)
    if points is not None and "separatrices" in layers:
        drawn.separatrices(critical.separatrices(flow, points, spans), ax=ax)
    if points is not None and "critical_points" in layers:
        drawn.critical_points(points, ax=ax)
    frame(ax, spans, points if "critical_points" in layers else None)
    ax.set_title(ax.get_title() or title_of(flow), fontsize="medium")
    legend_beside(ax, legend)
    return ax


def _draw_basins(
    ax: Axes,
    flow: AbstractFlow,
    points: CriticalPoints,
    spans: tuple[Span, Span],
    side: int,
    colors: drawn.Colors | None,
) -> None:
    grid = starts.grid(side, *np.transpose(spans)).reshape(side, side, 2)
    drawn.basins(critical.basins(flow, grid, points), colors=colors, ax=ax)


def _draw_slowest(ax: Axes, grid: SampledFlow, below: float | None) -> None:
    level = _SLOW * typical_speed(grid) if below is None else below
    words = f"\n({_SLOW:g} of the median)" if below is None else ""
    _draw_slow_regions(ax, grid, level, f"speed below {level:.3g}{words}")


def _draw_slow_regions(ax: Axes, grid: SampledFlow, below: float, label: str) -> None:
    shade(ax, grid.axes, slowness(grid, below), label, **DOTTED)


def slowness(grid: SampledFlow, below: float) -> Float[np.ndarray, "m m"]:
    """The relative difference (below − speed)/below: 1 at rest, 0 at the level, at least −1."""
    # Far above the level the value does not matter; the speed may be infinite there.
    return 1 - np.minimum(grid.speed / below, 2.0)


def draw_arrows(ax: Axes, grid: SampledFlow, *, color: str, **options: int) -> None:
    """Draw arrows of the velocity in one colour, without a legend of their lengths."""
    draw_field(ax, grid, color=color, **options)
    style: dict[str, Any] = dict(color=color, marker=r"$\rightarrow$", linestyle="none")
    ax.plot([], [], label="velocity (length: log)", **style)


def _draw_nullclines(ax: Axes, grid: SampledFlow) -> None:
    for component, name in enumerate(_rates(grid.flow)):
        rate = grid.velocity[..., component]
        color, dashes = _NULLCLINES[component]
        still = _throughout(rate == 0)
        shade(ax, grid.axes, still, f"${name} = 0$ throughout", face=to_rgba(color, 0.2))
        rate = np.where(still, np.nan, rate)
        style: dict[str, Any] = dict(color=color, linestyle=dashes, linewidth=1.5)
        if np.any(rate > 0) and np.any(rate < 0):
            lines: dict[str, Any] = dict(colors=color, linestyles=[dashes], linewidths=1.5)
            ax.contour(*grid.axes, rate.T, levels=[0.0], zorder=2.6, **lines)
            ax.plot([], [], label=f"nullcline ${name} = 0$", **style)


def _rates(flow: AbstractFlow) -> tuple[str, str]:
    """The labels of the rates of the two components, as formulas."""
    policy = flow.policy if isinstance(flow, PreferenceFlow) else None
    if isinstance(policy, LogRatioPlane):
        return r"\dot{u}_\mathrm{chosen}", r"\dot{u}_\mathrm{rejected}"
    letter = "x" if isinstance(policy, RatioPlane) else "y"
    return rf"\dot{{{letter}}}_1", rf"\dot{{{letter}}}_2"


def _throughout(mask: Bool[np.ndarray, "m m"]) -> Bool[np.ndarray, "m m"]:
    """Mask of the corners of cells that lie entirely in a mask, so that isolated lines vanish."""
    cells = mask[1:, 1:] & mask[1:, :-1] & mask[:-1, 1:] & mask[:-1, :-1]
    corners = np.zeros_like(mask)
    for i in (slice(1, None), slice(None, -1)):
        for j in (slice(1, None), slice(None, -1)):
            corners[i, j] |= cells
    return corners


def _check_layers(layers: Sequence[str], **options: Any) -> None:
    unknown = [name for name in layers if name not in _ALL]
    if unknown or not layers or isinstance(layers, str):
        raise ValueError(
            f"Argument `layers` must name some of {', '.join(_ALL)}, but is {layers!r}."
        )
    needed = {"below": {"slow_regions"}, "points": _FOUND}
    needed |= {"cells": {"basins"}, "colors": {"basins"}}
    for name, some in needed.items():
        if options[name] is not None and not some & {*layers}:
            raise ValueError(
                f"Argument `{name}` must come with a layer that it has an effect on "
                f"({', '.join(sorted(some))}), but `layers` is {tuple(layers)}."
            )


def typical_speed(grid: SampledFlow) -> float:
    """The median of the nonzero speeds on the grid; 1 if there are none."""
    moving = grid.speed[np.isfinite(grid.speed) & (grid.speed > 0)]
    return float(np.median(moving)) if moving.size else 1.0


def frame(ax: Axes, spans: tuple[Span, Span], points: CriticalPoints | None = None) -> None:
    """Set the ranges, with room for critical points on a side, and equal scales if possible."""
    widths = [high - low for low, high in spans]
    for axis, limit in enumerate((ax.set_xlim, ax.set_ylim)):
        room = _ROOM * widths[axis]
        along = [
            any(_lies_along(p, axis, end, room / 4) for p in points or ()) for end in spans[axis]
        ]
        limit(spans[axis][0] - room * along[0], spans[axis][1] + room * along[1])
    shape = widths[1] / widths[0]
    ax.set_aspect("equal" if SHAPES[0] <= shape <= SHAPES[1] else "auto")


def _lies_along(point: critical.CriticalPoint, axis: int, end: float, near: float) -> bool:
    """True if a critical point, or most of a critical line, lies on a side of the axes."""
    positions = np.atleast_2d(point.position if point.path is None else point.path)
    return bool(np.mean(np.abs(positions[:, axis] - end) < near) > 0.5)


def title_of(flow: AbstractFlow) -> str:
    """The title of a flow: the loss with its kernel, or the potential; "" for other functions."""
    if isinstance(flow, PreferenceFlow):
        return loss_title(flow.loss, flow.policy)
    if isinstance(flow, Flow) and isinstance(flow.function, AbstractPotential):
        return textwrap.fill(repr(flow.function), _TITLE)
    return ""


def loss_title(loss: AbstractLoss, policy: AbstractPolicy) -> str:
    """The title of a loss, with the kernel of a log-ratio plane unless it is the identity."""
    words = textwrap.fill(repr(loss), _TITLE)
    kernel = policy.matrix if isinstance(policy, LogRatioPlane) else np.eye(2)
    if isinstance(kernel, CoupledKernel):
        kernel = np.asarray(kernel(jnp.zeros(2)))
    if callable(kernel):
        return f"{words}\nkernel {short(kernel)}"
    if np.array_equal(kernel, np.eye(2)):
        return words
    (chosen, both), (_, rejected) = np.asarray(kernel).tolist()
    return f"{words}\nkernel k_ww = {chosen:g}, k_wl = {both:g}, k_ll = {rejected:g}"
