"""Figures of replays of training runs: comparison with the log, and all pairs."""

from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowlab.plots.canvas import finish, panels, target_axes

__all__ = ["replay", "replay_deviation", "replay_pairs", "replay_spread", "replay_steps"]

_SIZE = (5.2, 4.4)  # inches
_COLORS = {"chosen": "#0072b2", "rejected": "#d55e00"}  # Okabe and Ito
_BANDS = ((0.05, 0.95), (0.25, 0.75))


class _Run(Protocol):
    """A protocol for the attributes of a run that are drawn."""

    @property
    def u_chosen(self) -> Float[np.ndarray, " s"]: ...

    @property
    def u_rejected(self) -> Float[np.ndarray, " s"]: ...

    @property
    def kept(self) -> Int[np.ndarray, " k"]: ...

    @property
    def u(self) -> Float[np.ndarray, "k n 2"]: ...


class _Compared(Protocol):
    """A protocol for the attributes of a `flowlab.replay.Comparison` that are drawn."""

    @property
    def log(self) -> Any: ...

    @property
    def run(self) -> Any: ...

    @property
    def deviation(self) -> Float[np.ndarray, "k 2"]: ...

    @property
    def noise(self) -> Float[np.ndarray, "k 2"]: ...


def replay(comparison: _Compared) -> Figure:
    """Draw a replay compared with its log, in four panels: steps, deviation, and two of all pairs.

    Args:
        comparison: The result of `flowlab.replay.compare`, for a replay with `keep_every`.
    """
    figure, axes = panels(2, 2, size=_SIZE)
    for draw, ax in zip(
        (replay_steps, replay_deviation, replay_spread, replay_pairs), axes, strict=True
    ):
        draw(comparison, ax=ax)
    return figure


def replay_steps(comparison: _Compared, *, ax: Axes | None = None) -> Axes:
    """Draw log-ratios over the steps: of the log as dots, and of its replay as lines.

    Args:
        comparison: The result of `flowlab.replay.compare`.
        ax: The Axes to draw on; None for a new Figure.
    """
    ax = target_axes(ax, size=_SIZE)
    run: _Run = comparison.run
    for side, color in _COLORS.items():
        mine, logged = getattr(run, f"u_{side}"), getattr(comparison.log, f"u_{side}")
        ax.plot(comparison.log.step, logged, ".", color=color, alpha=0.4)
        label = f"{side}: replay, log (dots)"
        ax.plot(np.arange(1, mine.size + 1), mine, color=color, linewidth=0.9, label=label)
    ax.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    return finish(ax, ("optimiser step", "log-ratio, mean of a batch (nats)"), columns=2)


def replay_deviation(comparison: _Compared, *, ax: Axes | None = None) -> Axes:
    """Draw the deviation of a replay from its log at each row, on a logarithmic scale.

    The dashed line is the standard error of a row. Two runs with different orders of samples differ
    by √2 standard errors.

    Args:
        comparison: The result of `flowlab.replay.compare`.
        ax: The Axes to draw on; None for a new Figure.
    """
    ax = target_axes(ax, size=_SIZE)
    for column, (side, color) in enumerate(_COLORS.items()):
        away = np.abs(comparison.deviation[:, column])
        away = np.where(away > 0, away, np.nan)  # as at the reference, where both are 0
        ax.plot(
            comparison.log.step, away, ".-", color=color, linewidth=0.5, markersize=3, label=side
        )
        noise = comparison.noise[:, column]
        if np.any(noise > 0):
            label = "standard error of a row" if column else None
            ax.plot(comparison.log.step, noise, "--", color=color, linewidth=1, label=label)
    ax.set_yscale("log")
    return finish(ax, ("optimiser step", "|replay − log| (nats)"), columns=3)


def replay_spread(comparison: _Compared, *, ax: Axes | None = None) -> Axes:
    """Draw the log-ratios of all pairs over the steps: medians, and bands of 50 % and 90 %.

    Args:
        comparison: The result of `flowlab.replay.compare`, for a replay with `keep_every`.
        ax: The Axes to draw on; None for a new Figure.
    """
    ax = target_axes(ax, size=_SIZE)
    steps, u = _looked_at(comparison)
    for column, (side, color) in enumerate(_COLORS.items()):
        for low, high in _BANDS:
            band = np.quantile(u[..., column], (low, high), axis=1)
            ax.fill_between(steps, *band, color=color, alpha=0.18, linewidth=0)
        ax.plot(steps, np.median(u[..., column], axis=1), color=color, label=f"{side}, median")
        ax.plot(steps, u[..., column].mean(axis=1), ":", color=color, label="mean")
    ax.axhline(0.0, color="0.6", linewidth=0.8, zorder=0)
    return finish(ax, ("optimiser step", "log-ratio of all pairs (nats)"), columns=4)


def replay_pairs(comparison: _Compared, *, ax: Axes | None = None) -> Axes:
    """Draw all pairs on the log-ratio plane at the end; left of 0, the chosen response fell.

    Args:
        comparison: The result of `flowlab.replay.compare`, for a replay with `keep_every`.
        ax: The Axes to draw on; None for a new Figure.
    """
    ax = target_axes(ax, size=_SIZE)
    steps, u = _looked_at(comparison)
    fell = u[-1, :, 0] < 0
    for part, color, what in (
        (fell, "#d55e00", "chosen fell"),
        (~fell, "#0072b2", "chosen rose"),
    ):
        label = f"{what}: {part.mean():.0%} of {part.size} pairs"
        ax.plot(*u[-1, part].T, ".", color=color, alpha=0.5, markersize=4, label=label)
    ax.plot(*u.mean(axis=1).T, "-", color="black", linewidth=1.4, label="mean, over the steps")
    ax.plot(*u[-1].mean(axis=0), "o", color="black", markersize=5)
    ax.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    ax.axvline(0.0, color="0.8", linewidth=0.8, zorder=0)
    x, y = (f"{side} log-ratio after step {steps[-1]} (nats)" for side in _COLORS)
    return finish(ax, (x, y), columns=2)


def _looked_at(comparison: _Compared) -> tuple[np.ndarray, np.ndarray]:
    run: _Run = comparison.run
    if not run.u.size:
        raise ValueError(
            "Argument `comparison` must be of a replay that recorded all pairs, but is not; "
            "replay with keep_every=…."
        )
    return run.kept, run.u.astype(float)
