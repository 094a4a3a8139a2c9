"""Maps of results over the starts, and total changes of the two ratios."""

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from jaxtyping import ArrayLike, Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from flowlab import _checks as checks
from flowlab.plots.canvas import (
    Named,
    Span,
    cell_edges,
    finish,
    names_for,
    patch_entry,
    target_axes,
)
from flowlab.starts import grid_sides

__all__ = ["changes", "map_of"]

_MISSING_COLOR = "0.8"
_ANGLES = (30, 60)  # degrees; at 90 the law is the line of equal change


def map_of(
    values: Float[ArrayLike, "m k"],
    *,
    label: str,
    x: Span | None = None,
    y: Span | None = None,
    scale: Literal["linear", "log"] = "linear",
    limits: Span | None = None,
    center: float | None = None,
    levels: Sequence[float] = (),
    missing: str = "no value",
    of: Named | None = None,
    names: tuple[str, str] | None = None,
    color_bar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a map of one value per start, over a grid of starts.

    Args:
        values: One value per cell, shape (m, k), with the first index along x, like an array over
            `starts.grid((m, k), …)` reshaped to (m, k). NaN has a colour and a legend entry of its
            own.
        label: Name and unit of the values, for the colour bar.
        x: Range of the first component, between the outer edges of the cells. None for the range of
            the starts if `of` is a result of `sweep`, otherwise for (0, 1).
        y: Range of the second component, likewise.
        scale: `"linear"`, or `"log"` for positive values that span decades.
        limits: Values at the ends of the colour map; None for the smallest and largest value.
        center: The middle value of a diverging colour map, symmetric about it (in ratios, for
            `"log"`); None for a sequential colour map.
        levels: Values at which to draw level lines, increasing.
        missing: Legend entry of NaN.
        of: The runs or the flow that the values belong to. They provide the labels of the axes, and
            runs also the ranges.
        names: Labels of the axes, instead of those of `of`.
        color_bar: Whether to add a colour bar.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If `values` is not two-dimensional, has no finite value, or holds a value that
            is not positive for a logarithmic scale; `scale` is unknown; a range is not (lower,
            upper); or no ranges are given and the starts of `of` do not form a regular grid of the
            shape of `values`.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 2:
        raise ValueError(f"Argument `values` must have shape (m, k), but has shape {array.shape}.")
    x, y = _ranges(x, y, of, array.shape)
    norm = _norm(array, scale, limits, center)
    colors, ink = ("viridis", "white") if center is None else ("PuOr", "black")
    where: dict[str, Any] = dict(origin="lower", extent=(*x, *y))
    ax = target_axes(ax)
    image = ax.imshow(
        np.ma.masked_invalid(array.T),
        cmap=matplotlib.colormaps[colors].with_extremes(bad=_MISSING_COLOR),
        norm=norm,
        aspect="equal" if np.isclose(x[1] - x[0], y[1] - y[0]) else "auto",
        interpolation="nearest",
        **where,
    )
    if len(levels):
        drawn = ax.contour(array.T, levels, colors=ink, linewidths=0.7, **where)
        ax.clabel(drawn, fontsize="x-small", fmt="%g")
    if np.isnan(array).any():
        patch_entry(ax, missing, facecolor=_MISSING_COLOR)
    if color_bar:
        ax.figure.colorbar(image, ax=ax, label=label, extend=_extend(array, norm), shrink=0.85)
    return finish(ax, names or names_for(of))


def changes(
    chosen: Float[ArrayLike, " n"],
    rejected: Float[ArrayLike, " n"],
    *,
    angle: Float[ArrayLike, " n"],
    color_bar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the total rise of the chosen ratio against the total fall of the rejected ratio.

    There is one dot per start, coloured by the polar angle θ₀ of the start, tan θ₀ = x2/x1. Lines
    show equal changes and, for two angles, the exact relation Δx1 = tan(θ₀/2)·|Δx2| on the ratio
    plane without walls, up to extinction.

    Args:
        chosen: Change of the chosen ratio, final less initial, shape (n,).
        rejected: Change of the rejected ratio, final less initial, shape (n,).
        angle: Angle of the start in degrees, shape (n,).
        color_bar: Whether to add a colour bar.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If the three arrays do not have the same shape (n,).

    Source: without walls, flow lines on the ratio plane are circles about the origin, for every β.
    """
    rise, fall, degrees = (np.asarray(v, dtype=float) for v in (chosen, rejected, angle))
    if not (rise.ndim == 1 and rise.shape == fall.shape == degrees.shape):
        raise ValueError(
            "Arguments `chosen`, `rejected` and `angle` must have one shape (n,), "
            f"but have shapes {rise.shape}, {fall.shape} and {degrees.shape}."
        )
    ax = target_axes(ax)
    drawn = ax.scatter(
        -fall, rise, c=degrees, cmap="cividis", s=5, linewidths=0, vmin=0, vmax=90, rasterized=True
    )
    reach = float(np.nanmax(np.concatenate([-fall, rise]), initial=0.0)) * 1.05 or 1.0
    ax.plot([0, reach], [0, reach], color="black", linewidth=1.2, label="equal change")
    for theta in _ANGLES:
        slope = np.tan(np.radians(theta) / 2)
        ax.plot([0, reach], [0, slope * reach], "--", color="#d55e00", linewidth=1.0)
        turn: dict[str, Any] = dict(rotation=np.degrees(np.arctan(slope)), rotation_mode="anchor")
        at = (0.97 * reach, slope * 0.97 * reach)
        ax.text(*at, f"$\\theta_0={theta}°$", ha="right", va="bottom", fontsize="small", **turn)
    law = r"exact law, $\Delta x_1 = \tan(\theta_0/2)\,|\Delta x_2|$"
    ax.plot([], [], "--", color="#d55e00", linewidth=1.0, label=law)
    ax.set(xlim=(0, reach), ylim=(0, reach), aspect="equal")
    if color_bar:
        ax.figure.colorbar(drawn, ax=ax, label=r"angle $\theta_0$ of the start (degrees)")
    return finish(ax, (r"fall of rejected, $|\Delta x_2|$", r"rise of chosen, $\Delta x_1$"))


def _ranges(x: Any, y: Any, of: Any, shape: tuple[int, ...]) -> tuple[Span, Span]:
    """The ranges of the axes: as given, else those of the grid of starts, else (0, 1)."""
    first, last = (x, y) if None not in (x, y) else _of_grid(of, shape)
    return checks.span("x", first if x is None else x), checks.span("y", last if y is None else y)


def _of_grid(of: Any, shape: tuple[int, ...]) -> tuple[Span, Span]:
    if not hasattr(of, "starts"):
        return (0.0, 1.0), (0.0, 1.0)
    sides = grid_sides(of.starts)
    if sides is None or tuple(map(len, sides)) != shape or not all(map(_is_regular, sides)):
        raise ValueError(
            f"Argument `of` must have starts on a regular grid of shape {shape}, as starts.grid "
            "makes them, or `x` and `y` must be given."
        )
    first, last = (cell_edges(side) for side in sides)
    return (float(first[0]), float(first[-1])), (float(last[0]), float(last[-1]))


def _is_regular(side: np.ndarray) -> bool:
    steps = np.diff(side)
    return np.allclose(steps, steps[:1], rtol=1e-3)  # also for float32


def _norm(array: np.ndarray, scale: str, limits: Span | None, center: float | None) -> Normalize:
    if scale not in ("linear", "log"):
        raise ValueError(f'Argument `scale` must be "linear" or "log", but is {scale!r}.')
    known = array[np.isfinite(array)]
    if known.size == 0:
        raise ValueError("Argument `values` must hold a finite value, but holds none.")
    if scale == "log" and known.min() <= 0:
        raise ValueError(
            f"Argument `values` must be positive on a logarithmic scale, but holds {known.min():g}."
        )
    low, high = checks.span("limits", limits) if limits else (known.min(), known.max())
    if center is not None:
        low, high = _around(center, low, high, scale)
    return LogNorm(low, high) if scale == "log" else Normalize(low, high)


def _around(center: float, low: float, high: float, scale: str) -> Span:
    if scale == "log":
        reach = max(high / center, center / low)
        return center / reach, center * reach
    reach = max(high - center, center - low)
    return center - reach, center + reach


def _extend(array: np.ndarray, norm: Normalize) -> Literal["neither", "both", "min", "max"]:
    below = bool(np.nanmin(array) < norm.vmin) if norm.vmin is not None else False
    above = bool(np.nanmax(array) > norm.vmax) if norm.vmax is not None else False
    return ("both" if above else "min") if below else ("max" if above else "neither")
