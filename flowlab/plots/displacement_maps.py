"""Maps of likelihood displacement: where, and how far, the chosen log-probability falls.

n: starts; v: ratios k_wl/k_ww.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

from flowlab import _checks as checks
from flowlab.displacement import Displacement
from flowlab.plots.canvas import (
    WITH_LEGEND,
    cell_edges,
    name_axes,
    name_outer_axes,
    shade_cells,
    shared_legend,
    sheet,
    target_axes,
)
from flowlab.until import Outcome

__all__ = ["displacement", "displacements"]

_SHALLOWEST = 0.01  # nats: the colour of all dips up to here
_DEEPEST = 10.0  # nats: the end of the colours, unless dips are deeper
_STILL = "#dde8f1"
_NO_LINE = "0.75"
_BOUNDARY = "#0072b2"
_TITLE = 52  # letters on a line
_NAMES = (
    "margin of the start, $h = u_w - u_l$ (nats)",
    r"coupling of rejected to chosen, $k_{wl}/k_{ww}$",
)
_EARLY = {
    Outcome.non_finite: "line ends where the loss\nis no longer defined",
    Outcome.step_limit: "line ends at a kink, along\nwhich the flow would slide",
}


def displacement(
    found: Displacement,
    *,
    limit: float | None = None,
    color_bar: bool = True,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """The fall of the chosen log-probability, over the margin of the start and the coupling.

    The colour is the depth of the dip on a logarithmic scale; where it is light, nothing falls.
    Hatched are starts from which it has recovered by the end, and those whose line ends early.
    Drawn over it are k_wl = k_ww, the boundary of every loss of the margin, and that of this loss,
    r*: on it the chosen response does not move at the start.

    Args:
        found: What `displacement.displacement` gives.
        limit: Depth at the end of the colours, nats; None for 10, or the deepest dip beyond it.
        color_bar: Whether to add a colour bar.
        legend: Whether to write a legend to the right of the Axes.
        ax: Where to draw; None for a new Figure.

    Raises:
        ValueError: If the margins of the starts do not increase, or there are fewer than two starts
            or ratios.
    """
    _check_grid(found)
    ax = target_axes(ax, size=WITH_LEGEND)
    edges = cell_edges(found.margins), cell_edges(found.ratios)
    # The lightest colours of the map would pass for those of starts from which nothing falls.
    colors = ListedColormap(colormaps["inferno_r"](np.linspace(0.12, 1, 256)))
    deepest = _deepest(found) if limit is None else limit
    image = ax.pcolormesh(
        *edges,
        np.where(found.dip_depth > 0, found.dip_depth, np.nan),
        cmap=colors,
        norm=LogNorm(_SHALLOWEST, deepest),
        zorder=0.5,
        rasterized=True,
    )
    _shade_starts(ax, found, edges)
    _draw_boundaries(ax, found)
    ax.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]])
    name_axes(ax, _NAMES)
    ax.set_title(_title(found), fontsize="medium")
    if color_bar:
        label = "depth of the dip of the chosen log-probability (nats)"
        ax.figure.colorbar(image, ax=ax, label=label, extend="both")
    if legend:
        style: dict[str, Any] = dict(loc="outside right upper", frameon=False, fontsize="small")
        ax.figure.legend(*ax.get_legend_handles_labels(), **style)
    return ax


def displacements(
    found: Mapping[str, Displacement], *, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """Maps of displacement side by side, in the same colours and under one legend.

    Args:
        found: Displacements by the names to write above them.
        columns: Maps in a row.

    Returns:
        The Figure, and one Axes for each map.

    Raises:
        ValueError: If there is no displacement, `columns` is below 1, or one cannot be drawn.
    """
    if not found:
        raise ValueError("Argument `found` must hold at least one displacement, but is empty.")
    checks.integer("columns", columns)
    if len(found) == 1:
        ((name, one),) = found.items()
        figure, axes = sheet(1, 1, size=WITH_LEGEND)
        displacement(one, ax=axes[0]).set_title(f"{name}\n{_title(one)}", fontsize="medium")
        return figure, axes
    columns = min(columns, len(found))
    figure, axes = sheet(len(found), columns, size=(4.3, 4.2))
    limit = max(_deepest(one) for one in found.values())
    for (name, one), ax in zip(found.items(), axes, strict=True):
        displacement(one, limit=limit, color_bar=False, legend=False, ax=ax)
        ax.set_title(f"{name}\n{_title(one)}", fontsize="small")
    name_outer_axes(axes, columns, _NAMES)
    label = "depth of the dip of the chosen\nlog-probability (nats)"
    figure.colorbar(axes[0].collections[0], ax=axes, label=label, extend="both", shrink=0.7)
    shared_legend(axes, columns=max(2, columns))
    return figure, axes


def _shade_starts(
    ax: Axes, found: Displacement, edges: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " v"]]
) -> None:
    """Shade the starts from which nothing falls, or falls and recovers, or whose line is short."""
    still = found.known & ~(found.dip_depth > 0)
    shade_cells(ax, edges, still, "never below its start", face=_STILL)
    shade_cells(ax, edges, ~found.known, "no flow line: the loss\nis not defined", face=_NO_LINE)
    recovers = np.isfinite(found.recovery_time)
    shade_cells(ax, edges, recovers, "falls, and recovers", hatch="////", edge="0.25")
    for code in np.unique(found.outcome[found.ends_early]):
        ends = found.ends_early & (found.outcome == code)
        label = _EARLY.get(code, f"line ends early:\n{Outcome(code).name}")
        hatch = "...." if code == Outcome.step_limit else "xx"
        shade_cells(ax, edges, ends, label, hatch=hatch, edge="0.5")


def _draw_boundaries(ax: Axes, found: Displacement) -> None:
    """The line k_wl = k_ww, and where the chosen response does not move at the start."""
    style: dict[str, Any] = dict(color="black", linestyle=(0, (5, 3)), linewidth=1.1, zorder=3)
    ax.axhline(1.0, label="$k_{wl} = k_{ww}$", **style)
    shown = np.isfinite(found.boundary)
    # Beyond the axes the boundary is cut off, so that poles of it make no line across them.
    low, high = found.ratios[[0, -1]]
    margin = high - low
    inside = shown & (found.boundary > low - margin) & (found.boundary < high + margin)
    line = np.where(inside, found.boundary, np.nan)
    if np.any(inside & (found.boundary >= low) & (found.boundary <= high)):
        label = "$r^*$: on it, the chosen is\nat rest at the start"
        ax.plot(found.margins, line, color=_BOUNDARY, linewidth=2.2, zorder=2.9, label=label)
        return
    known = found.boundary[~np.isnan(found.boundary)]
    ends = f": {known.min():.3g} to {known.max():.3g}" if known.size else ""
    look: dict[str, Any] = dict(transform=ax.transAxes, ha="left", va="bottom", fontsize="small")
    look["bbox"] = dict(facecolor="white", edgecolor="none", alpha=0.9, pad=2)
    ax.text(0.02, 0.02, f"$r^*$ outside of the axes{ends}", color=_BOUNDARY, zorder=4, **look)


def _deepest(found: Displacement) -> float:
    return max(_DEEPEST, float(np.nanmax(found.dip_depth, initial=0.0)))


def _title(found: Displacement) -> str:
    loss = textwrap.fill(repr(found.loss), _TITLE)
    return f"{loss}\nflow time {found.time:.4g}, $k_{{ll}}/k_{{ww}}$ = {found.rejected:g}"


def _check_grid(found: Displacement) -> None:
    if len(found.starts) < 2 or len(found.ratios) < 2:
        raise ValueError(
            "Argument `found` must have at least two starts and two ratios to be drawn, but has "
            f"{len(found.starts)} and {len(found.ratios)}."
        )
    if np.any(np.diff(found.margins) <= 0):
        raise ValueError("Argument `found` must have starts of increasing margins to be drawn.")
