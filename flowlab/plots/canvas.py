"""Helpers of all figures: figures without pyplot, labels of axes, legends, shading."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from flowlab.flow import AbstractFlow
from flowlab.solve import check_potential

__all__ = [
    "LOG_RATIOS",
    "RATIOS",
    "WITH_LEGEND",
    "Named",
    "Span",
    "axis_name",
    "cell_edges",
    "check_plane",
    "checked_states",
    "draw_line",
    "finish",
    "legend_beside",
    "name_axes",
    "name_outer_axes",
    "names_for",
    "panels",
    "patch_entry",
    "save",
    "shade",
    "shade_cells",
    "shared_legend",
    "sheet",
    "target_axes",
]

RATIOS = (
    r"$x_1 = \pi(y_w)\,/\,\pi_\mathrm{ref}(y_w)$, chosen ratio",
    r"$x_2 = \pi(y_l)\,/\,\pi_\mathrm{ref}(y_l)$, rejected ratio",
)
LOG_RATIOS = (r"$u_\mathrm{chosen} = \log x_1$ (nats)", r"$u_\mathrm{rejected} = \log x_2$ (nats)")
WITH_LEGEND = (7.8, 4.8)  # inches, of one Axes with a legend to its right
_ALONE = (5.0, 4.5)
_PANEL = (3.5, 3.5)
_NAMES = {
    **dict(zip(("x_chosen", "x_rejected"), RATIOS, strict=True)),
    **dict(zip(("u_chosen", "u_rejected"), LOG_RATIOS, strict=True)),
    "probability_chosen": r"$\pi(y_w)$, chosen probability",
    "probability_rejected": r"$\pi(y_l)$, rejected probability",
}

Span = tuple[float, float]


class Named(Protocol):
    """A protocol for objects with names of the state's components, such as a flow or its runs."""

    @property
    def components(self) -> tuple[str, ...] | None:
        """Names of the components of a state; None if they have none."""
        ...


def panels(
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float] = _PANEL,
    share: bool = False,
    projection: str | None = None,
) -> tuple[Figure, list[Axes]]:
    """A new Figure that is not registered with pyplot, and its Axes, row by row.

    Args:
        rows: Number of rows of Axes.
        columns: Number of columns of Axes.
        size: Width and height of one Axes with its labels, in inches.
        share: Whether all Axes have the same ranges.
        projection: A matplotlib projection such as `"3d"`.
    """
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=share,
        sharey=share,
        subplot_kw={"projection": projection},
    )
    return figure, list(axes.flat)


def sheet(
    count: int, columns: int, *, size: tuple[float, float], share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A new Figure with a number of Axes, row by row, without empty ones.

    Args:
        count: Number of Axes.
        columns: Number of Axes in a row.
        size: Width and height of one Axes with its labels, in inches.
        share: Whether all Axes have the same ranges.
    """
    figure, axes = panels(-(-count // columns), columns, size=size, share=share)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def name_outer_axes(axes: Sequence[Axes], columns: int, names: tuple[str, str]) -> None:
    """Label the axes of a sheet only at its left side and below the last Axes of each column."""
    for index, ax in enumerate(axes):
        ax.set_xlabel(names[0] if index + columns >= len(axes) else "")
        ax.set_ylabel(names[1] if index % columns == 0 else "")


def shared_legend(axes: Sequence[Axes], *, columns: int = 4) -> None:
    """Replace the legends of the Axes by one legend below the figure.

    Entries with the same label are shown once.
    """
    handles, labels = _gathered(axes)
    if labels:
        figure = axes[0].get_figure(root=True)
        assert figure is not None
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def save(figure: Figure, stem: Path, *, dpi: int = 150) -> tuple[Path, Path]:
    """Write a figure as PNG and as SVG with the same layout, and return their paths.

    Args:
        figure: The figure.
        stem: The path of both files, without `.png` and `.svg`.
        dpi: Pixels per inch.
    """
    files = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    figure.savefig(files[0], dpi=dpi)
    figure.set_layout_engine("none")  # the second file keeps the layout of the first
    figure.savefig(files[1], dpi=dpi)
    return files


def target_axes(
    ax: Axes | None, *, size: tuple[float, float] = _ALONE, projection: str | None = None
) -> Axes:
    """The Axes `ax`, or new ones in a new Figure if it is None."""
    return panels(size=size, projection=projection)[1][0] if ax is None else ax


def finish(
    ax: Axes,
    names: tuple[str, str],
    spans: tuple[Span, Span] | None = None,
    *,
    columns: int = 2,
) -> Axes:
    """Label the axes, set their ranges, add a legend above, and return the Axes.

    Args:
        ax: The Axes.
        names: Labels of the axes; existing labels are kept.
        spans: Ranges of the axes; None to leave them unchanged.
        columns: Number of columns of the legend.
    """
    name_axes(ax, names)
    if spans is not None:
        ax.set(xlim=spans[0], ylim=spans[1])
    handles, labels = _gathered([ax])
    if labels:
        position: dict[str, Any] = dict(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
        style: dict[str, Any] = dict(frameon=False, fontsize="small", columnspacing=1.0)
        ax.legend(handles, labels, ncols=columns, **style, **position)
        _raise_title(ax)
    return ax


class _AtLegend:
    """A locator of matplotlib that puts Axes where the legend of other Axes is."""

    def __init__(self, ax: Axes) -> None:
        self.ax = ax

    def __call__(self, beside: Any, renderer: Any) -> Bbox:
        """The bounding box of the legend, in fractions of the figure."""
        del beside
        legend, figure = self.ax.get_legend(), self.ax.get_figure(root=True)
        assert figure is not None
        held = self.ax.bbox if legend is None else legend.get_window_extent(renderer)
        return held.transformed(figure.transFigure.inverted())


def _raise_title(ax: Axes) -> None:
    """Keep a title that is set later above the legend, by invisible inset Axes at the legend."""
    if any(isinstance(child.get_axes_locator(), _AtLegend) for child in ax.child_axes):
        return
    inset = ax.inset_axes((0.0, 1.0, 1.0, 0.0))
    inset.set_axes_locator(_AtLegend(ax))
    inset.set_axis_off()
    inset.set_in_layout(False)


def legend_beside(ax: Axes, wanted: bool = True) -> None:
    """Put the legend to the right of the Axes, or remove it."""
    handles, labels = _gathered([ax])
    if wanted:
        position: dict[str, Any] = dict(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
        ax.legend(handles, labels, frameon=False, fontsize="small", **position)


def _gathered(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Remove the legends of Axes, and return their entries without repetition."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
    return list(entries.values()), list(entries)


def draw_line(
    ax: Axes,
    path: Float[np.ndarray, "k 2"],
    color: str,
    *,
    width: float = 1.1,
    order: float = 3,
    dot: bool = True,
    spans: tuple[Span, Span] = ((-np.inf, np.inf), (-np.inf, np.inf)),
    shortest: float = 0.0,
) -> None:
    """Draw one flow line, with an arrowhead halfway along its visible part.

    Args:
        ax: The Axes to draw on.
        path: Successive states, shape (k, 2).
        color: Colour of the line.
        width: Width of the line, in points.
        order: Drawing order, matplotlib's `zorder`.
        dot: Whether to mark the start with a dot.
        spans: Ranges of the axes.
        shortest: Length of the visible part below which there is no arrowhead.
    """
    ax.plot(*path.T, color=color, linewidth=width, zorder=order)
    if dot:
        ax.plot(*path[0], color=color, marker="o", markersize=3.5, zorder=order + 0.2)
    low, high = np.transpose(spans)
    seen = np.all((low <= path) & (path <= high), axis=1)
    lengths = np.hypot(*np.diff(path, axis=0).T) * (seen[1:] & seen[:-1])
    if lengths.sum() <= shortest:
        return
    half = int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2))
    style = dict(arrowstyle="-|>", color=color, linewidth=width, shrinkA=0, shrinkB=0)
    ax.annotate("", tuple(path[half + 1]), tuple(path[half]), arrowprops=style, zorder=order)


def cell_edges(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """The edges of cells around values: halfway between neighbouring values."""
    if len(values) == 1:
        return values[0] + np.array([-0.5, 0.5])
    middle = (values[1:] + values[:-1]) / 2
    return np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])


def shade(
    ax: Axes,
    axes: Sequence[Float[np.ndarray, " m"]],
    part: Shaped[np.ndarray, "m k"],
    label: str,
    *,
    face: str | tuple[float, ...] = "none",
    hatch: str | None = None,
    edge: str = "none",
    order: float = 0.6,
) -> bool:
    """Shade a region of a plane, with a legend entry, and return False if the region is empty.

    Args:
        ax: The Axes to draw on.
        axes: Coordinates of a grid along x, shape (m,), and along y, shape (k,).
        part: A mask of the grid points in the region; or the values of a function, at most 1, that
            is positive inside, so that its zero line is the outline.
        label: The legend entry.
        face: Colour.
        hatch: Pattern.
        edge: Colour of the pattern.
        order: Drawing order, matplotlib's `zorder`.
    """
    height = np.where(part, 0.5, -0.5) if part.dtype == bool else part
    if not np.any(height > 0):
        return False
    style: dict[str, Any] = dict(levels=[0.0, 1.0], colors=[face], hatches=[hatch], zorder=order)
    drawn = ax.contourf(*axes, height.T, **style)
    drawn.set(edgecolor=edge, linewidth=0)
    patch_entry(ax, label, facecolor=face, hatch=hatch, edgecolor=edge)
    return True


def shade_cells(
    ax: Axes,
    edges: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " v"]],
    mask: Bool[np.ndarray, "v n"],
    label: str,
    **look: Any,
) -> None:
    """Shade the cells of a mask up to their edges, in the style of `shade`."""
    # Two points per cell, so that an area ends at the edges of its cells.
    axes = [np.sort(np.concatenate([e[:-1] + 1e-9, e[1:] - 1e-9])) for e in edges]
    shade(ax, axes, np.repeat(np.repeat(mask.T, 2, axis=0), 2, axis=1), label, **look)


def patch_entry(ax: Axes, label: str, **look: Any) -> None:
    """Add a legend entry for a colour or pattern."""
    nothing = np.full(3, np.nan)
    ax.fill(nothing, nothing, linewidth=0, label=label, **look)


def check_plane(flow: AbstractFlow) -> None:
    """Refuse a flow that is not on a plane, or whose potential does not give a single number."""
    if flow.state_shape not in (None, (2,)):
        raise ValueError(
            f"Argument `flow` must be on a plane, but its states have shape {flow.state_shape}."
        )
    if flow.state_shape is None:
        check_potential(flow, jax.ShapeDtypeStruct((2,), np.float64))


def name_axes(ax: Axes, names: tuple[str, str]) -> None:
    """Label the two axes; existing labels are kept."""
    ax.set_xlabel(ax.get_xlabel() or names[0])
    ax.set_ylabel(ax.get_ylabel() or names[1])


def names_for(named: Named | None) -> tuple[str, str]:
    """The labels of the two axes of a plane of states."""
    return axis_name(named, 0), axis_name(named, 1)


def axis_name(named: Named | None, component: int) -> str:
    """The axis label of a component: its name, or its index if it has no name."""
    components = None if named is None else named.components
    name = f"$y_{{{component + 1}}}$" if components is None else components[component]
    return _NAMES.get(name, name)


def checked_states(name: str, states: ArrayLike) -> Float[np.ndarray, "n 2"]:
    """States on a plane as an array of shape (n, 2).

    Raises:
        ValueError: If `states` has another shape.
    """
    array = np.asarray(states, dtype=float)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"Argument `{name}` must have shape (n, 2), but has shape {array.shape}.")
    return array
