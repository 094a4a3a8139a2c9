"""Maps of likelihood displacement, the fall of the chosen log-probability.

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

_SHALLOWEST = 0.01  # nats: all smaller falls have the same colour
_DEEPEST = 10.0  # nats: the end of the colour scale, unless falls are deeper
_STILL = "#dde8f1"
_NO_LINE = "0.75"
_BOUNDARY = "#0072b2"
_TITLE = 52  # letters per line
_NAMES = (
    "margin of the start, $h = u_w - u_l$ (nats)",
    r"coupling of rejected to chosen, $k_{wl}/k_{ww}$",
)
_EARLY = {
    Outcome.non_finite: "line ends where the loss\nis no longer defined",
    Outcome.step_limit: "line ends at a kink, along\nwhich the flow would slide",
}


def displacement(
    displacement: Displacement,
    *,
    limit: float | None = None,
    color_bar: bool = True,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a map of the fall of the chosen log-probability, over initial margin and coupling.

    The colour is the depth of the fall on a logarithmic scale, light if there is no fall. Two kinds
    of start are hatched: the chosen log-probability recovers by the end, or the line ends early.
    One curve is k_wl = k_ww, the boundary of displacement for every loss that depends only on the
    margin. The other is the boundary r* of this loss, on which the initial rate of the chosen
    log-probability is zero.

    Args:
        displacement: The result of `displacement.displacement`.
        limit: Depth at the end of the colour scale, in nats; None for 10, or for the deepest fall
            if that is deeper.
        color_bar: Whether to add a colour bar.
        legend: Whether to add a legend to the right of the Axes.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If the margins of the starts do not increase, or there are fewer than two starts
            or ratios.
    """
    _check_grid(displacement)
    ax = target_axes(ax, size=WITH_LEGEND)
    edges = cell_edges(displacement.margins), cell_edges(displacement.ratios)
    # The lightest colours of the map would look like starts without a fall.
    colors = ListedColormap(colormaps["inferno_r"](np.linspace(0.12, 1, 256)))
    deepest = _deepest(displacement) if limit is None else limit
    image = ax.pcolormesh(
        *edges,
        np.where(displacement.dip_depth > 0, displacement.dip_depth, np.nan),
        cmap=colors,
        norm=LogNorm(_SHALLOWEST, deepest),
        zorder=0.5,
        rasterized=True,
    )
    _shade_starts(ax, displacement, edges)
    _draw_boundaries(ax, displacement)
    ax.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]])
    name_axes(ax, _NAMES)
    ax.set_title(_title(displacement), fontsize="medium")
    if color_bar:
        label = "depth of the dip of the chosen log-probability (nats)"
        ax.figure.colorbar(image, ax=ax, label=label, extend="both")
    if legend:
        style: dict[str, Any] = dict(loc="outside right upper", frameon=False, fontsize="small")
        ax.figure.legend(*ax.get_legend_handles_labels(), **style)
    return ax


def displacements(
    displacements: Mapping[str, Displacement], *, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """Draw maps of displacement side by side, with the same colour scale and one legend.

    Args:
        displacements: Displacements, by the title of their map.
        columns: Number of maps in a row.

    Returns:
        The Figure, and one Axes for each map.

    Raises:
        ValueError: If there is no displacement, `columns` is below 1, or a displacement cannot be
            drawn.
    """
    if not displacements:
        raise ValueError(
            "Argument `displacements` must hold at least one displacement, but is empty."
        )
    checks.integer("columns", columns)
    if len(displacements) == 1:
        ((name, one),) = displacements.items()
        figure, axes = sheet(1, 1, size=WITH_LEGEND)
        displacement(one, ax=axes[0]).set_title(f"{name}\n{_title(one)}", fontsize="medium")
        return figure, axes
    columns = min(columns, len(displacements))
    figure, axes = sheet(len(displacements), columns, size=(4.3, 4.2))
    limit = max(_deepest(one) for one in displacements.values())
    for (name, one), ax in zip(displacements.items(), axes, strict=True):
        displacement(one, limit=limit, color_bar=False, legend=False, ax=ax)
        ax.set_title(f"{name}\n{_title(one)}", fontsize="small")
    name_outer_axes(axes, columns, _NAMES)
    label = "depth of the dip of the chosen\nlog-probability (nats)"
    figure.colorbar(axes[0].collections[0], ax=axes, label=label, extend="both", shrink=0.7)
    shared_legend(axes, columns=max(2, columns))
    return figure, axes


def _shade_starts(
    ax: Axes,
    displacement: Displacement,
    edges: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " v"]],
) -> None:
    """Shade three kinds of start: without a fall, with a recovery, with a line that ends early."""
    still = displacement.known & ~(displacement.dip_depth > 0)
    shade_cells(ax, edges, still, "never below its start", face=_STILL)
    shade_cells(
        ax, edges, ~displacement.known, "no flow line: the loss\nis not defined", face=_NO_LINE
    )
    recovers = np.isfinite(displacement.recovery_time)
    shade_cells(ax, edges, recovers, "falls, and recovers", hatch="////", edge="0.25")
    for code in np.unique(displacement.outcome[displacement.ends_early]):
        ends = displacement.ends_early & (displacement.outcome == code)
        label = _EARLY.get(code, f"line ends early:\n{Outcome(code).name}")
        hatch = "...." if code == Outcome.step_limit else "xx"
        shade_cells(ax, edges, ends, label, hatch=hatch, edge="0.5")


def _draw_boundaries(ax: Axes, displacement: Displacement) -> None:
    """Draw the line k_wl = k_ww, and the boundary r* of the loss."""
    style: dict[str, Any] = dict(color="black", linestyle=(0, (5, 3)), linewidth=1.1, zorder=3)
    ax.axhline(1.0, label="$k_{wl} = k_{ww}$", **style)
    shown = np.isfinite(displacement.boundary)
    # The boundary is cut off at the axes, so that its poles do not draw lines across.
    low, high = displacement.ratios[[0, -1]]
    margin = high - low
    inside = (
        shown & (displacement.boundary > low - margin) & (displacement.boundary < high + margin)
    )
    line = np.where(inside, displacement.boundary, np.nan)
    if np.any(inside & (displacement.boundary >= low) & (displacement.boundary <= high)):
        label = "$r^*$: on it, the chosen is\nat rest at the start"
        ax.plot(displacement.margins, line, color=_BOUNDARY, linewidth=2.2, zorder=2.9, label=label)
        return
    known = displacement.boundary[~np.isnan(displacement.boundary)]
    ends = f": {known.min():.3g} to {known.max():.3g}" if known.size else ""
    look: dict[str, Any] = dict(transform=ax.transAxes, ha="left", va="bottom", fontsize="small")
    look["bbox"] = dict(facecolor="white", edgecolor="none", alpha=0.9, pad=2)
    ax.text(0.02, 0.02, f"$r^*$ outside of the axes{ends}", color=_BOUNDARY, zorder=4, **look)


def _deepest(displacement: Displacement) -> float:
    return max(_DEEPEST, float(np.nanmax(displacement.dip_depth, initial=0.0)))


def _title(displacement: Displacement) -> str:
    loss = textwrap.fill(repr(displacement.loss), _TITLE)
    ratio = f"$k_{{ll}}/k_{{ww}}$ = {displacement.rejected:g}"
    return f"{loss}\nflow time {displacement.time:.4g}, {ratio}"


def _check_grid(displacement: Displacement) -> None:
    if len(displacement.starts) < 2 or len(displacement.ratios) < 2:
        raise ValueError(
            "Argument `displacement` must have at least two starts and two ratios, but has "
            f"{len(displacement.starts)} and {len(displacement.ratios)}."
        )
    if np.any(np.diff(displacement.margins) <= 0):
        raise ValueError(
            "Argument `displacement` must have starts of increasing margins to be drawn."
        )
