"""The loss and its negative gradient over a plane."""

from typing import Any

import equinox as eqx
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

__all__ = ["field", "loss_surface", "seen"]

_FINE = 119  # cells per side on which loss and velocity are evaluated
_CELL_FILLED = 0.95  # the longest arrow, in cells
_SHORTEST = 0.4  # the shortest arrow, in lengths of the longest
_ZOOM = 0.82  # matplotlib lays a 3-D box out without its labels: leave room for them
_PAD = 8  # points
# Without the bright end of the map, which does not show on white.
_SPEED_COLORS = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0, 0.85, 256)))
_LEGEND_POINTS = 22.0  # the longest arrow of the legend, in points
_ARROW = Path([(-1, 0), (1, 0), (0.45, 0.4), (1, 0), (0.45, -0.4)], [1, 2, 1, 2, 2])


def loss_surface(
    flow: AbstractFlow, *, x: Span = (0.0, 1.0), y: Span = (0.0, 1.0), ax: Axes | None = None
) -> Axes:
    """The loss as a surface over the plane of states, coloured by its height.

    Args:
        flow: A flow on a plane.
        x: Range of the first component.
        y: Range of the second component.
        ax: A 3-D Axes (`projection="3d"`); None for a new one.

    Raises:
        ValueError: If the flow is not one on a plane, a range is not (lower, upper), or `ax` is not
            three-dimensional.

    Source: arXiv 2404.04626, figure 1(a), is this at the ranges given here.
    """
    states, loss, _ = _on_grid(flow, x, y)
    canvas: Any = target_axes(ax, projection="3d")
    if canvas.name != "3d":
        raise ValueError('Argument `ax` must be made with projection="3d", but is flat.')
    surface = canvas.plot_surface(
        states[..., 0], states[..., 1], loss, cmap="viridis", rcount=60, ccount=60, linewidth=0
    )
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
    """Arrows of the velocity −M∇L, the negative gradient, over level lines of the loss.

    The length of an arrow grows with the logarithm of the speed, from two fifths of the longest
    up; the legend gives three speeds. Its colour gives the speed too, unless `color` is set.

    Args:
        flow: A flow on a plane. States outside of its domain have no arrow and no level.
        x: Range of the first component.
        y: Range of the second component.
        arrows: Arrows per side, an odd number from 3 to 39 serves best.
        levels: About how many level lines; 0 for none.
        color: One colour for all arrows; None colours them by speed and adds a colour bar.
        legend: Whether the legend says what the lengths of arrows mean.
        ax: Where to draw; None for a new Figure.

    Raises:
        ValueError: If the flow is not one on a plane, a range is not (lower, upper), or `arrows` is
            not between 2 and 39.

    Source: arXiv 2404.04626, figure 1(b).
    """
    checks.integer("arrows", arrows, 2, most=_FINE // 3)
    states, loss, velocity = _on_grid(flow, x, y)
    ax = target_axes(ax)
    if levels:
        of = "loss (nats)" if isinstance(flow, PreferenceFlow) else "potential"
        _level_lines(ax, states, loss, levels, f"levels of the {of}")
    every = np.rint((np.arange(arrows) + 0.5) * _FINE / arrows - 0.5).astype(int)
    chosen = np.ix_(every, every)
    drawn = states[chosen].reshape(-1, 2), velocity[chosen].reshape(-1, 2)
    shown = _arrows(ax, *drawn, color, arrows)
    if legend:
        _explain(ax, shown, color)
    ax.set_xlim(*x)
    ax.set_ylim(*y)
    ax.set_aspect("equal" if np.isclose(x[1] - x[0], y[1] - y[0]) else "auto")
    return finish(ax, names_for(flow))


def _level_lines(ax: Axes, states: np.ndarray, loss: np.ndarray, levels: int, label: str) -> None:
    known = loss[np.isfinite(loss)]
    if known.size == 0 or known.min() == known.max():
        return
    # A loss may tend to infinity at an edge; its bulk is what the levels are for.
    values = MaxNLocator(levels).tick_values(*np.quantile(known, (0.01, 0.99)))
    drawn = ax.contour(
        states[..., 0], states[..., 1], loss, values, colors="0.6", linewidths=0.8, zorder=1
    )
    ax.clabel(drawn, fontsize="x-small", colors="0.3")
    ax.plot([], [], color="0.6", linewidth=0.8, label=label)


def _arrows(
    ax: Axes, states: np.ndarray, velocity: np.ndarray, color: str | None, across: int
) -> Span | None:
    """Draw the arrows; the lowest and the highest speed among them, None if nothing moves."""
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
    """Entries in the legend for the shortest, a middle and the longest arrow."""
    if speeds is None:
        return
    lowest, highest = speeds
    shown = (lowest, np.sqrt(lowest * highest), highest) if highest > 1.05 * lowest else (highest,)
    if color is None:  # the colour bar tells the speeds
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
    place = np.log(speed / lowest) / np.log(highest / lowest)
    return _SHORTEST + (1 - _SHORTEST) * place


def _on_grid(
    flow: AbstractFlow, x: Span, y: Span
) -> tuple[Float[np.ndarray, "m m 2"], Float[np.ndarray, "m m"], Float[np.ndarray, "m m 2"]]:
    """States at the centres of cells, loss and velocity there; NaN outside of the domain."""
    check_plane(flow)
    ends = checks.span("x", x), checks.span("y", y)
    centres = [low + (high - low) * (np.arange(_FINE) + 0.5) / _FINE for low, high in ends]
    states = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1)
    loss, velocity = seen(flow, states.reshape(-1, 2))
    return states, loss.reshape(_FINE, _FINE), velocity.reshape(states.shape)


def seen(
    flow: AbstractFlow, states: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 2"]]:
    """Loss and velocity at states, in float64; NaN outside of the domain."""
    with jax.enable_x64(True):
        loss, velocity, inside = jax.tree.map(np.array, _values(flow, states))
    loss[~inside], velocity[~inside] = np.nan, np.nan
    return loss, velocity


@eqx.filter_jit
def _values(flow: AbstractFlow, states: Float[ArrayLike, "n 2"]) -> tuple[Array, Array, Array]:
    def at(state: Array) -> tuple[Array, Array, Array]:
        return flow.potential(state), flow.velocity(state), flow.domain.contains(state)

    return jax.vmap(at)(jnp.asarray(states))
