"""Figures of training runs: on the log-ratio plane, and over the steps."""

from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from scipy.special import fdtri, stdtrit

from flowlab.plots.canvas import Span, draw_line, finish, target_axes

__all__ = ["training_run", "training_steps"]

_SIZE = (5.2, 4.8)  # inches: readable on a phone
_BLUE, _VERMILION, _GREEN, _PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
_RUNS = (_BLUE, _VERMILION, _GREEN, _PURPLE, "#e69f00", "#56b4e9")  # Okabe and Ito
_WEIGHTS, _COLORS = ((1.0, 0.0), (0.0, 1.0), (1.0, -1.0)), (_BLUE, _VERMILION, "black")
# In words, since readers of a report may not know the symbols of the plane.
_NAMES = ("chosen log-ratio (nats)", "rejected log-ratio (nats)")
_STYLES = ("-", "--", ":")  # of the chosen, the rejected response and the margin
_HELD = 0.95  # the coverage of ellipses and bands
_GRID = 61  # points per side, for the level lines of the loss
_LEVELS = 8
_MARGIN = 0.06  # of the range: a margin
_NARROWEST = 0.1  # nats: the smallest range
_FARTHEST = 0.6  # of the range of the rows: lines that reach further are not in view


class _Run(Protocol):
    """A protocol for the attributes of a `flowlab.logs.Diagnosis` that are drawn."""

    @property
    def title(self) -> str: ...

    @property
    def drawable(self) -> bool: ...

    @property
    def reference_free(self) -> bool: ...

    @property
    def per_token(self) -> bool: ...

    @property
    def step(self) -> Float[np.ndarray, " row"]: ...

    @property
    def points(self) -> Float[np.ndarray, "row 2"]: ...

    @property
    def windows(self) -> Any: ...

    @property
    def bounds(self) -> Float[np.ndarray, " 2"]: ...

    @property
    def rest(self) -> float | None: ...

    @property
    def coupled(self) -> Float[np.ndarray, "k 2"] | None: ...

    @property
    def uncoupled(self) -> Float[np.ndarray, "2 2"] | None: ...

    def loss_at(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"] | None: ...


def training_run(*runs: _Run, ax: Axes | None = None) -> Axes:
    """Draw training runs on the log-ratio plane: rows, and means of windows with their noise.

    An ellipse around the mean of a window shows its noise. The background shows level lines of the
    loss of the first run. For each run there is a flow line with the fitted coupling, dashed where
    it is a forecast, and a thin flow line without coupling. Lines end where a probability reaches
    1.

    Args:
        runs: Results of `flowlab.logs.diagnose`, at least one.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If there is no run, or a run has no log-ratios in its training rows.
    """
    if not runs or not all(run.drawable for run in runs):
        lacking = ", ".join(run.title for run in runs if not run.drawable) or "there is none"
        raise ValueError(
            "Argument `runs` must hold runs with log-ratios in training rows, but lacks them in: "
            f"{lacking}; see `training_steps`."
        )
    ax = target_axes(ax, size=_SIZE)
    spans = _spans(runs)
    _draw_levels(ax, runs[0], spans)
    several = len(runs) > 1
    for color, run in zip(_RUNS * len(runs), runs, strict=False):
        _draw_run(ax, run, color if several else _BLUE, named=several)
    # Each run has a bound of its own, as its responses have under its reference.
    bounds = [run.bounds[0] for run in runs]
    inside = [spans[0][0] < bound < spans[0][1] for bound in bounds]
    for color, bound, seen in zip(_RUNS * len(runs), bounds, inside, strict=False):
        if seen:
            ax.axvline(
                bound, color=color if several else "0.3", linewidth=1.2, linestyle=(0, (1, 1))
            )
    if any(inside):
        ax.plot([], [], color="0.3", linestyle=":", label="ceiling: probability 1")
    return finish(ax, _NAMES, spans, columns=2 if len(runs) == 1 else 1)


def training_steps(*runs: _Run, ax: Axes | None = None) -> Axes:
    """Draw both log-ratios and the margin over the steps, with bands of their noise.

    For a loss without a reference, log-probabilities replace the log-ratios. Bands are 95 %
    confidence intervals of the window means.

    Args:
        runs: Results of `flowlab.logs.diagnose`, at least one.
        ax: The Axes to draw on; None for a new Figure.

    Raises:
        ValueError: If there is no run, or some have a reference and some have none.
    """
    if len({run.reference_free for run in runs}) != 1:
        raise ValueError(
            "Argument `runs` must hold runs that all have a reference or all have none, but "
            f"holds {len(runs)} of which {sum(run.reference_free for run in runs)} have none."
        )
    ax = target_axes(ax, size=_SIZE)
    kind = "log-probability" if runs[0].reference_free else "log-ratio"
    names = (f"chosen {kind}", f"rejected {kind}", "margin")
    alone = len(runs) == 1
    for run, run_color in zip(runs, _RUNS * len(runs), strict=False):
        for name, weights, color, style in zip(names, _WEIGHTS, _COLORS, _STYLES, strict=True):
            look = (color, "-") if alone else (run_color, style)
            _draw_quantity(ax, run, np.array(weights), *look, name if alone else "")
        if not alone:
            ax.plot([], [], color=run_color, linewidth=3, label=run.title)
        elif run.rest is not None and not run.per_token:
            ax.axhline(run.rest, color="black", linewidth=0.8, linestyle=":")
            ax.plot([], [], color="black", linestyle=":", label="where the loss rests")
    for name, style in zip(names, () if alone else _STYLES, strict=False):
        ax.plot([], [], color="0.3", linestyle=style, label=name)
    ax.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    return finish(ax, ("optimiser step", "nats"), columns=2 if alone else 1)


def _draw_run(ax: Axes, run: _Run, color: str, *, named: bool) -> None:
    seen = run.windows
    ax.plot(*run.points.T, ".", color=color, alpha=0.25, markersize=3, zorder=2, linewidth=0)
    if not named:
        ax.plot([], [], ".", color=color, alpha=0.4, label="single rows of the log")
    label = run.title if named else "averages (ellipse: 95 %)"
    ax.plot(*seen.mean.T, "o-", color=color, markersize=3.5, linewidth=1.2, zorder=5, label=label)
    for mean, covariance, freedom in zip(seen.mean, seen.covariance, seen.freedom, strict=True):
        _draw_ellipse(ax, mean, covariance, freedom, color)
    ax.plot(*seen.mean[0], "s", color="white", markeredgecolor=color, markersize=6, zorder=6)
    if not named:
        ax.plot([], [], "s", color="white", markeredgecolor=color, label="first average")
    if run.coupled is not None:
        dark = "black" if not named else color
        draw_line(ax, run.coupled[:2], dark, width=1.6, order=4, dot=False)
        ax.plot(*run.coupled[1:].T, color=dark, linewidth=1.4, linestyle="--", zorder=4)
        if not named:
            ax.plot([], [], color=dark, label="straight path (dashed: forecast)")
    if run.uncoupled is not None and not named:
        ax.plot(*run.uncoupled.T, color="0.35", linewidth=0.8, zorder=3)
        ax.plot([], [], color="0.35", linewidth=0.8, label="path without coupling")


def _draw_ellipse(
    ax: Axes,
    mean: Float[np.ndarray, " 2"],
    covariance: Float[np.ndarray, "2 2"],
    freedom: float,
    color: str,
) -> None:
    """Draw the 95 % confidence region of the mean, if the noise is known.

    It uses Hotelling's T², since the noise is estimated from few rows; normal quantiles would give
    too small a region.
    """
    if not (np.all(np.isfinite(covariance)) and freedom > 1):
        return
    values, vectors = np.linalg.eigh(covariance)
    square = 2 * freedom / (freedom - 1) * fdtri(2, freedom - 1, _HELD)
    width, height = 2 * np.sqrt(square * np.maximum(values, 0.0))
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    style: dict[str, Any] = dict(facecolor=color, edgecolor=color, alpha=0.18, zorder=3)
    ax.add_patch(Ellipse((float(mean[0]), float(mean[1])), width, height, angle=angle, **style))


def _draw_levels(ax: Axes, run: _Run, spans: tuple[Span, Span]) -> None:
    axes = [np.linspace(*span, _GRID) for span in spans]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    values = run.loss_at(points)
    if values is None or not np.all(np.isfinite(values)) or np.ptp(values) == 0:
        return
    grid = values.reshape(_GRID, _GRID).T
    # By quantiles of the values, since the levels of a logistic loss crowd at one end.
    levels = np.unique(np.quantile(values, np.linspace(0, 1, _LEVELS + 2)[1:-1]))
    drawn = ax.contour(*axes, grid, levels=levels, colors="0.82", linewidths=0.8, zorder=0.5)
    ax.clabel(drawn, fontsize="x-small", colors="0.5", fmt=lambda value: f"{value:.3g}")
    ax.plot([], [], color="0.75", linewidth=0.8, label="equal loss")


def _draw_quantity(
    ax: Axes,
    run: _Run,
    weights: Float[np.ndarray, " 2"],
    color: str,
    style: str,
    label: str,
) -> None:
    """Draw a weighted sum of chosen and rejected over the steps, and its rows if it has a label."""
    values = run.points[:, weights != 0] @ weights[weights != 0]
    whole = np.isfinite(values)
    if label:
        ax.plot(run.step[whole], values[whole], ".", color=color, alpha=0.3, markersize=3)
    seen = run.windows
    if len(seen.mean) < 2:
        ax.plot(run.step[whole], values[whole], style, color=color, label=label or None)
        return
    middle, mean = (seen.first_step + seen.last_step) / 2, seen.mean @ weights
    noise = np.einsum("i,wij,j->w", weights, seen.covariance, weights)
    band = stdtrit(seen.freedom, (1 + _HELD) / 2) * np.sqrt(np.maximum(noise, 0.0))
    if np.all(np.isfinite(band)):
        ax.fill_between(middle, mean - band, mean + band, color=color, alpha=0.2, linewidth=0)
    ax.plot(middle, mean, style, marker="o", markersize=2.5, color=color, label=label or None)


def _spans(runs: tuple[_Run, ...]) -> tuple[Span, Span]:
    """Ranges of the axes that include all rows, and also the lines unless they are much longer."""
    rows = np.concatenate([run.points[np.all(np.isfinite(run.points), axis=1)] for run in runs])
    low, high = rows.min(axis=0), rows.max(axis=0)
    reach = _FARTHEST * np.maximum(high - low, (high - low).max() / 4)
    lines = [run.coupled for run in runs if run.coupled is not None]
    lines += [run.uncoupled for run in runs if run.uncoupled is not None and len(runs) == 1]
    for line in lines:
        low = np.minimum(low, np.maximum(line.min(axis=0), low - reach))
        high = np.maximum(high, np.minimum(line.max(axis=0), high + reach))
    room = _MARGIN * np.maximum(high - low, _NARROWEST)
    (left, bottom), (right, top) = low - room, high + room
    return (float(left), float(right)), (float(bottom), float(top))
