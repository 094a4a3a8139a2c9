"""The margin at which a loss stops raising it, and the forecast of a run with its present coupling.

With a constant coupling, the flow of a loss that depends only on the margin h is a straight line in
(u_w, u_l). The margin solves h' = κ·s(h), where s = −dL/dh is the slope of the loss and κ a
constant. A change of the margin therefore takes the time T with κ·T = ∫ dh/s(h), which is computed
by quadrature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flowlab.logs.slopes import MOST_POINTS, push
from flowlab.logs.windows import Windows
from flowlab.losses import AbstractLoss

__all__ = [
    "FEWEST_WINDOWS",
    "BackTest",
    "Forecast",
    "Slope",
    "back_test",
    "forecast",
    "pulls_back",
    "rest",
    "slope_of",
]

Slope = Callable[[Float[np.ndarray, " m"]], Float[np.ndarray, " m"]]

_FARTHEST = 40.0  # β·margin beyond which a logistic slope is below rounding
_REFINEMENTS = 3  # each divides the interval by 511: from 80 to 6e-7 in β·margin
_BEYOND = 1e-2  # of β·margin: far above the error of a resting point, far below any loss's scale
FEWEST_WINDOWS = 4  # so that each half has two


@dataclass(frozen=True)
class Forecast:
    """The straight line on which a run would continue.

    Attributes:
        begin: (u_w, u_l) at the beginning, which is the mean of a window.
        end: (u_w, u_l) at the end.
        time: The flow time that the line covers, or the number of steps if the learning rate is not
            known.
        bounded: True if the line ends early, because a log-probability reaches 0.
    """

    begin: Float[np.ndarray, " 2"]
    end: Float[np.ndarray, " 2"]
    time: float
    bounded: bool


@dataclass(frozen=True)
class BackTest:
    """A forecast from the middle of a run, with the end that was measured.

    Attributes:
        forecast: The forecast from the rows up to the middle.
        measured: (u_w, u_l) of the last window.
    """

    forecast: Forecast
    measured: Float[np.ndarray, " 2"]

    @property
    def error(self) -> Float[np.ndarray, " 3"]:
        """Errors of the changes of u_w, of u_l and of the margin: forecast less measured, nats."""
        miss = self.forecast.end - self.measured
        return np.array([*miss, miss[0] - miss[1]])

    @property
    def margins(self) -> tuple[float, float, float]:
        """The margin in the middle, the forecast for the end, and the margin at the end."""
        points = self.forecast.begin, self.forecast.end, self.measured
        begin, end, measured = (float(point[0] - point[1]) for point in points)
        return begin, end, measured

    @property
    def margin_share(self) -> float:
        """The error of the forecast change of the margin, as a fraction of the measured change."""
        moved = self.measured - self.forecast.begin
        return float(abs(self.error[2]) / abs(moved[0] - moved[1]))


def slope_of(loss: AbstractLoss) -> Slope:
    """The function that gives the slope −dL/dh at each margin h, for a loss of the margin alone."""

    def slope(margin: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        points = np.stack([margin, np.zeros_like(margin)], axis=1)
        return push({"": loss}, points, None)[""].chosen[: len(margin)]

    return slope


def rest(slope: Slope, margin: float, beta: float) -> float | None:
    """The first margin, downhill from a given one, at which the slope of a loss vanishes; or None.

    If the slope vanishes at the given margin, the search begins at the margin 0 instead: a hinge is
    flat from 1/β on, and the result is then 1/β. None if no such margin is found.

    Args:
        slope: The slope of the loss.
        margin: The present margin.
        beta: β, which sets the range of the search.
    """
    here = float(slope(np.full(MOST_POINTS, margin))[0])
    if here == 0:
        margin, here = 0.0, float(slope(np.zeros(MOST_POINTS))[0])
    if here == 0:
        return margin
    toward = 1.0 if here > 0 else -1.0
    low, high = margin, toward * max(_FARTHEST / beta, 2 * abs(margin))
    for _ in range(_REFINEMENTS):
        grid = np.linspace(low, high, MOST_POINTS)
        passed = np.flatnonzero(toward * slope(grid) <= 0)
        if not passed.size:
            return None
        low, high = grid[passed[0] - 1], grid[passed[0]]
    return float(high)


def pulls_back(slope: Slope, rest: float, beta: float) -> bool:
    """True if the loss lowers a margin slightly above its minimiser.

    Args:
        slope: The slope −dL/dh of the loss.
        rest: The margin that minimises the loss.
        beta: β; "slightly" means by 0.01/β.
    """
    return bool(slope(np.full(MOST_POINTS, rest + _BEYOND / beta))[0] < 0)


def forecast(
    windows: Windows,
    slope: Slope,
    bounds: Float[np.ndarray, " 2"],
    *,
    fitted_to: int = -1,
    time: float,
) -> Forecast | None:
    """The line on which a run continues if it keeps its direction and its pace.

    Args:
        windows: The windows of the run.
        slope: The slope of its loss.
        bounds: The largest (u_w, u_l), which belong to probabilities of 1.
        fitted_to: The index of the window at which the forecast starts. Direction and pace are
            fitted to the windows up to this one.
        time: The length of the forecast, in the time of the windows.

    Returns:
        The line. None if no pace can be fitted, because the loss does not drive the margin in the
        observed direction all the way; the margin may have passed the minimiser of the loss.
    """
    begin = windows.mean[fitted_to]
    moved, elapsed = windows.change(0, fitted_to).value, windows.time[fitted_to] - windows.time[0]
    moved_apart = moved[0] - moved[1]
    margins = windows.mean[[0, fitted_to]] @ np.array([1.0, -1.0])
    passed = _needed(slope, *margins)
    if passed is None or not elapsed > 0:
        return None
    gained = _gained(slope, margins[1], passed / elapsed * time, np.sign(moved_apart))
    step = moved / moved_apart * gained
    share = 1.0
    for now, change, bound in zip(begin, step, bounds, strict=True):
        if now + change > bound and change > 0:
            share = min(share, max(0.0, (bound - now) / change))
    return Forecast(begin, begin + share * step, time, share < 1)


def back_test(windows: Windows, slope: Slope, bounds: Float[np.ndarray, " 2"]) -> BackTest | None:
    """A forecast of the second half of a run from the first half, with the measured end."""
    middle = (len(windows) - 1) // 2
    if len(windows) < FEWEST_WINDOWS:
        return None
    span = float(windows.time[-1] - windows.time[middle])
    made = forecast(windows, slope, bounds, fitted_to=middle, time=span)
    return None if made is None else BackTest(made, windows.mean[-1])


def _needed(slope: Slope, begin: float, end: float) -> float | None:
    """The time ∫ dh/s(h) from one margin to another at κ = 1; or None.

    None if the slope changes sign between the margins, where 1/s has a pole.
    """
    grid = np.linspace(begin, end, MOST_POINTS)
    along = np.sign(end - begin) * slope(grid)
    if not np.all(along > 0):
        return None
    passed = float(np.trapezoid(1 / along, np.abs(grid - begin)))
    return passed if np.isfinite(passed) else None


def _gained(slope: Slope, begin: float, time: float, toward: float) -> float:
    """The change of the margin in a time at κ = 1; it ends where the slope vanishes."""
    here = abs(float(slope(np.full(MOST_POINTS, begin))[0]))
    reach = here * time
    for _ in range(2):  # the slope may be steeper farther on
        grid = begin + toward * np.linspace(0, reach, MOST_POINTS)
        steepest = float(np.max(toward * slope(grid)))
        reach = max(reach, steepest * time)
    grid = begin + toward * np.linspace(0, reach, MOST_POINTS)
    along = toward * slope(grid)
    ends = np.flatnonzero(along <= 0)
    stop = int(ends[0]) if ends.size else len(grid)
    if stop == 0:
        return 0.0
    pace = 1 / along[:stop]
    spacing = reach / (MOST_POINTS - 1)
    spent = np.concatenate([[0.0], np.cumsum((pace[1:] + pace[:-1]) / 2 * spacing)])
    return toward * float(np.interp(time, spent, np.arange(stop) * spacing))
