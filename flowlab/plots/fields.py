"""The loss and the velocity of a flow on a plane: evaluation on a grid, and figures.

m: points of a side of the grid.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from flowlab import _checks as checks
from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.plots.canvas import (
    Span,
    check_plane,
    finish,
    name_axes,
    names_for,
    target_axes,
)
from flowlab.solve import compiled, operations_at

__all__ = ["SampledFlow", "draw_field", "evaluate", "field", "loss_surface", "sample"]

_CELLS = 119  # per side: an odd number of them has a centre for each of 7 or 17 arrows
_MOST_ARROWS = 39
_INSET = 1e-9  # of the width: a side of the axes may lie outside the domain, but not beside it
_CELL_FILLED = 0.95  # the longest arrow, in cells
_SHORTEST = 0.4  # the shortest arrow, in lengths of the longest
_ZOOM = 0.82  # matplotlib lays a 3-D box out without its labels: leave room for them
_PAD = 8  # points
# Without the bright end of the map, which does not show on white.
_SPEED_COLORS = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.85, 256)))
_LEGEND_POINTS = 22.0  # the longest arrow of the legend, in points
_ARROW = Path([(-1, 0), (1, 0), (0.45, 0.4), (1, 0), (0.45, -0.4)], [1, 2, 1, 2, 2])


@dataclass(frozen=True)
class SampledFlow:
    """A flow evaluated on a grid over the axes, once for all layers of a figure.

    Values outside the domain are NaN. The first axis of arrays is that of x.

    Attributes:
        flow: The flow.
        axes: The coordinates of the grid points along x and y, shape (m,) each.
        loss: The potential, shape (m, m).
        gradient: The gradient of the potential, shape (m, m, 2).
        velocity: The velocity, shape (m, m, 2).
    """

    flow: AbstractFlow
    axes: tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]
    loss: Float[np.ndarray, "m m"]
    gradient: Float[np.ndarray, "m m 2"]
    velocity: Float[np.ndarray, "m m 2"]

    @property
    def centres(self) -> "SampledFlow":
        """The flow at every other grid point, at the centres of cells that fill the axes."""
        x, y = (axis[1::2] for axis in self.axes)
        arrays = (self.loss, self.gradient, self.velocity)
        return SampledFlow(self.flow, (x, y), *(array[1::2, 1::2] for array in arrays))

    @property
    def states(self) -> Float[np.ndarray, "m m 2"]:
        """The points of the grid."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1)

    @property
    def speed(self) -> Float[np.ndarray, "m m"]:
        """The length of the velocity."""
        return np.hypot(self.velocity[..., 0], self.velocity[..., 1])


def sample(flow: AbstractFlow, x: Span, y: Span) -> SampledFlow:
    """Evaluate a flow on a grid of 239 × 239 points.

    Raises:
        ValueError: If the flow is not on a plane, or a range is not (lower, upper).
    """
    check_plane(flow)
    spans = checks.span("x", x), checks.span("y", y)
    side = 2 * _CELLS + 1
    across, up = (np.linspace(*span, side) for span in spans)
    inner = [np.mean(axis) + (axis - np.mean(axis)) * (1 - _INSET) for axis in (across, up)]
    states = np.stack(np.meshgrid(*inner, indexing="ij"), axis=-1)
    return SampledFlow(flow, (across, up), *evaluate(flow, states))


def evaluate(
    flow: AbstractFlow, states: Float[np.ndarray, "*m 2"]
) -> tuple[Float[np.ndarray, "*m"], Float[np.ndarray, "*m 2"], Float[np.ndarray, "*m 2"]]:
    """Potential, gradient and velocity at states, in float64; NaN outside the domain."""
    with jax.enable_x64(True):
        rows = np.reshape(states, (-1, np.shape(states)[-1]))
        values = _values(flow, states, operations=operations_at(flow, rows))
        loss, gradient, velocity = map(np.asarray, values)
    return loss, gradient, velocity


@compiled
def _values(flow: AbstractFlow, states: Float[ArrayLike, "*m 2"]) -> tuple[Array, Array, Array]:
    def at(state: Array) -> tuple[Array, Array, Array]:
        inside = flow.domain.contains(state)
        values = flow.potential(state), flow.gradient(state), flow.velocity(state)
        return jax.tree.map(lambda value: jnp.where(inside, value, jnp.nan), values)

    return jnp.vectorize(at, signature="(d)->(),(d),(d)")(jnp.asarray(states))


def loss_surface(
    flow: AbstractFlow, *, x: Span = (0.0, 1.0), y: Span = (0.0, 1.0), ax: Axes | None = None
) -> Axes:
    """Draw the loss as a surface over the plane of states, coloured by height.

    Args:
        flow: A flow on a plane.
        x: Range of the first component.
        y: Range of the second component.
        ax: A 3-D Axes (`projection="3d"`); None for a new one.

    Raises:
        ValueError: If the flow is not on a plane, a range is not (lower, upper), or `ax` is not
            three-dimensional.

    Source: arXiv 2404.04626, figure 1(a), which has the default ranges.
    """
    grid = sample(flow, x, y).centres
    canvas: Any = target_axes(ax, projection="3d")
    if canvas.name != "3d":
        raise ValueError('Argument `ax` must have projection="3d", but is flat.')
    style: dict[str, Any] = dict(cmap="viridis", rcount=60, ccount=60, linewidth=0)
    surface = canvas.plot_surface(*np.moveaxis(grid.states, -1, 0), grid.loss, **style)
    surface.set_rasterized(True)
    canvas.view_init(elev=28, azim=-125)
    canvas.set_box_aspect((4, 4, 3), zoom=_ZOOM)
    name_axes(canvas, names_for(flow))
    canvas.set_zlabel("loss $L$ (nats)")
    for axis in (canvas.xaxis, canvas.yaxis):
        axis.labelpad = _PAD
    return canvas


def field(
    flow: AbstractFlow,
    *,
    x: Span = (0.0, 1.0),
    y: Span = (0.0, 1.0),
    arrows: int = 17,
    levels: int = 6,
    color: str | None = None,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw arrows of the velocity −M∇L (M the metric) over level lines of the loss L.

    The length of an arrow grows with the logarithm of the speed; the shortest arrow has two fifths
    of the length of the longest. The legend shows three speeds. The colour also shows the speed,
    unless `color` is set.

    Args:
        flow: A flow on a plane. Outside its domain there are no arrows and level lines.
        x: Range of the first component.
        y: Range of the second component.
        arrows: Number of arrows per side, 2 to 39; odd numbers work best.
        levels: Approximate number of level lines; 0 for none.
        color: One colour for all arrows; None colours them by speed and adds a colour bar.
        legend: Whether the legend explains the lengths of arrows.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If the flow is not on a plane, a range is not (lower, upper), or `arrows` is not
            between 2 and 39.

    Source: arXiv 2404.04626, figure 1(b).
    """
    checks.integer("arrows", arrows, 2, most=_MOST_ARROWS)
    grid = sample(flow, x, y)
    ax = target_axes(ax)
    speeds = draw_field(ax, grid, arrows=arrows, levels=levels, color=color)
    if legend:
        _explain(ax, speeds, color)
    ax.set_aspect("equal" if np.isclose(x[1] - x[0], y[1] - y[0]) else "auto")
    return finish(ax, names_for(flow), (x, y))


def draw_field(
    ax: Axes, grid: SampledFlow, *, arrows: int = 17, levels: int = 6, color: str | None = None
) -> Span | None:
    """Draw arrows over level lines, and return the lowest and highest speed, None if all are 0."""
    cells = grid.centres
    if levels:
        of = "loss (nats)" if isinstance(grid.flow, PreferenceFlow) else "potential"
        _level_lines(ax, cells, levels, f"levels of the {of}")
    every = np.rint((np.arange(arrows) + 0.5) * _CELLS / arrows - 0.5).astype(int)
    chosen = np.ix_(every, every)
    ends = cells.states[chosen].reshape(-1, 2), cells.velocity[chosen].reshape(-1, 2)
    return _arrows(ax, *ends, color, arrows)


def _level_lines(ax: Axes, grid: SampledFlow, levels: int, label: str) -> None:
    known = grid.loss[np.isfinite(grid.loss)]
    if known.size == 0 or known.min() == known.max():
        return
    # A loss may tend to infinity at an edge; the levels are for most of its values.
    values = MaxNLocator(levels).tick_values(*np.quantile(known, (0.01, 0.99)))
    drawn = ax.contour(*grid.axes, grid.loss.T, values, colors="0.6", linewidths=0.8, zorder=1)
    ax.clabel(drawn, fontsize="x-small", colors="0.3")
    ax.plot([], [], color="0.6", linewidth=0.8, label=label)


def _arrows(
    ax: Axes, states: np.ndarray, velocity: np.ndarray, color: str | None, across: int
) -> Span | None:
    """Draw arrows, and return the lowest and highest speed, None if all are 0."""
    speed = np.hypot(*velocity.T)
    fit = np.isfinite(speed) & (speed > 0)
    if not fit.any():
        return None
    states, velocity, speed = states[fit], velocity[fit], speed[fit]
    lowest, highest = float(speed.min()), float(speed.max())
    ends = velocity / speed[:, None] * _length(speed, lowest, highest)[:, None]
    style: dict[str, Any] = dict(
        angles="xy", scale_units="width", scale=across / _CELL_FILLED, pivot="mid", zorder=2
    )
    shape: dict[str, Any] = dict(width=0.0035, headwidth=4.5, headlength=5, headaxislength=4.5)
    if color is not None:
        ax.quiver(*states.T, *ends.T, color=color, **style, **shape)
    else:
        norm = LogNorm(lowest, highest if highest > lowest else lowest * 1.01)
        drawn = ax.quiver(
            *states.T, *ends.T, speed, cmap=_SPEED_COLORS, norm=norm, **style, **shape
        )
        label = r"speed $|{-M\nabla L}|$ (per unit of flow time)"
        ax.figure.colorbar(drawn, ax=ax, label=label, shrink=0.85)
    return lowest, highest


def _explain(ax: Axes, speeds: Span | None, color: str | None) -> None:
    """Add legend entries for the shortest, a medium and the longest arrow."""
    if speeds is None:
        return
    lowest, highest = speeds
    shown = (lowest, np.sqrt(lowest * highest), highest) if highest > 1.05 * lowest else (highest,)
    if color is None:  # the colour bar shows the speeds
        shown = shown[-1:]
    for value in shown:
        style: dict[str, Any] = dict(marker=_ARROW, markerfacecolor="none")
        size = _LEGEND_POINTS * float(_length(value, lowest, highest))
        label = f"speed {value:.2g}" + (" (length: log)" if value == highest else "")
        label = "log of speed" if color is None else label
        style |= dict(markersize=size, markeredgecolor=color or "0.2", linestyle="none")
        ax.plot([], [], label=label, **style)


def _length(speed: Any, lowest: float, highest: float) -> Any:
    if highest <= 1.05 * lowest:
        return np.ones_like(speed)
    fraction = np.log(speed / lowest) / np.log(highest / lowest)
    return _SHORTEST + (1 - _SHORTEST) * fraction
