"""Flow lines of losses side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from flowlab.cards import Comparison
from flowlab.plots.canvas import name_axes, panels, shared_legend

__all__ = ["comparison"]

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00")
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (10, 3)),
)
_TICKS = (-1000, -100, -10, -1, 0, 1, 10, 100, 1000)  # nats


def comparison(comparison: Comparison, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Draw flow lines of several losses from the reference point, in three panels.

    The panels show the margin over flow time, the chosen log-ratio over flow time, and the chosen
    log-ratio over the margin, with dots at `comparison.margins`. A cross marks a line that ends
    before the last time, at rest or where its loss is no longer defined.

    Args:
        comparison: The result of `cards.compare`.
        axes: Three Axes; None for a new Figure, with one legend below.

    Raises:
        ValueError: If `axes` does not hold three Axes.
    """
    if axes is not None and len(axes) != 3:
        raise ValueError(f"Argument `axes` must hold three Axes, but holds {len(axes)}.")
    count = len(comparison.names)
    tall = 3.5 + 0.22 * -(-(count + 1) // 5)
    drawn = panels(1, 3, size=(4.3, tall))[1] if axes is None else list(axes)
    chosen = comparison.states[:, :, 0]
    margin = chosen - comparison.states[:, :, 1]
    for index, name in enumerate(comparison.names):
        style: dict[str, Any] = dict(
            color=_COLORS[index % len(_COLORS)], linestyle=_DASHES[index % len(_DASHES)], label=name
        )
        # If lines coincide, the wider lines remain visible under the others.
        style["linewidth"] = 1.3 + 2.0 * (1 - (index + 1) / count)
        _compared(drawn[0], comparison.times, margin[index], style)
        _compared(drawn[1], comparison.times, chosen[index], style)
        _compared(drawn[2], margin[index], chosen[index], style)
        dots = comparison.margins, comparison.margin_states[index, :, 0]
        drawn[2].plot(*dots, linestyle="none", marker="o", markersize=4, color=style["color"])
    if np.isnan(chosen[:, -1]).any():
        style = dict(linestyle="none", marker="x", color="0.2")
        drawn[0].plot([], [], label="line ends (at rest, or not defined beyond)", **style)
    _name_panels(drawn, comparison, margin, chosen)
    if axes is None:
        shared_legend(drawn, columns=min(5, count + 1))
    else:
        drawn[0].legend(fontsize="small", frameon=False)
    return drawn


def _compared(
    ax: Axes, x: Float[np.ndarray, " k"], y: Float[np.ndarray, " k"], style: dict[str, Any]
) -> None:
    """Draw one line, with a cross at its end if it ends before the last time."""
    ax.plot(x, y, **style)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(known) and known[-1] < len(y) - 1:
        end = x[known[-1]], y[known[-1]]
        ax.plot(*end, linestyle="none", marker="x", markersize=6, color=style["color"])


def _name_panels(
    axes: Sequence[Axes],
    comparison: Comparison,
    margin: Float[np.ndarray, "l k"],
    chosen: Float[np.ndarray, "l k"],
) -> None:
    names = ("flow time $t$", r"margin $h = u_\mathrm{chosen} - u_\mathrm{rejected}$ (nats)")
    name_axes(axes[0], names)
    name_axes(axes[1], (names[0], r"chosen log-ratio $u_\mathrm{chosen}$ (nats)"))
    name_axes(axes[2], (names[1], r"chosen log-ratio $u_\mathrm{chosen}$ (nats)"))
    for ax, title in zip(axes, ("at equal time", "at equal time", "at equal margin"), strict=True):
        ax.set_title(ax.get_title() or title, fontsize="medium")
        ax.grid(color="0.92", linewidth=0.6)
        ax.set_axisbelow(True)
    for ax in axes[:2]:
        ax.set_xscale("log")
        ax.set_yscale("asinh", linear_width=1.0)
        ax.yaxis.set(major_locator=FixedLocator(_TICKS), major_formatter="{x:g}")
        ax.yaxis.set_minor_locator(FixedLocator([]))
    top = 1.2 * float(np.max(np.abs(comparison.margins), initial=1.0))
    low = max(float(np.nanmin(margin, initial=0.0)), -top)
    axes[2].set_xlim(low - 0.03 * (top - low), top)
    seen = chosen[(margin >= low) & (margin <= top)]
    ends = np.concatenate([seen, comparison.margin_states[..., 0].ravel(), [0.0]])
    ends = ends[np.isfinite(ends)]
    room = 0.05 * max(float(np.ptp(ends)), 1.0)
    axes[2].set_ylim(ends.min() - room, ends.max() + room)
