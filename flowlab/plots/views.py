"""The views of an interactive portrait, one for each value of its slider.

m: points of a side of the grid; k: points of a line.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from flowlab import critical, measures, starts, until
from flowlab.critical import CriticalPoints
from flowlab.critical.derivatives import enclosure
from flowlab.critical.separatrices import ROOM
from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.measures import Measure
from flowlab.plots.canvas import Span
from flowlab.plots.fields import SampledFlow, evaluate, sample
from flowlab.plots.paths import FINE_RTOL
from flowlab.plots.phase import typical_speed
from flowlab.solve import Line, flow_line, one_call
from flowlab.until import AbstractTarget, Outcome

__all__ = ["FollowedLine", "View", "views"]

_LONG = 1e3  # times the time to cross the axes at the typical speed: lines end by then
_FINE = 0.004  # of the axes, between the points of a line: two pixels or so
_MOST_POINTS = 150  # of a line, so that a page stays small
_EVERY = 2  # every other centre of the grid's cells: 60 per side
_SMALL = 1e-9  # of the axes: a line so close to a side is on it
_NEAR = 1e-3  # of the axes, half a pixel: a line so close to a critical point has reached it
_AT_MOST = 3  # the most numbers of a result that are written out


@dataclass(frozen=True)
class FollowedLine:
    """A flow line for an interactive portrait.

    Attributes:
        times: Flow times of the points, shape (k,).
        path: Points of the line, at ends of steps, shape (k, 2).
        facts: Facts about the line, as pairs of a name and a text.
    """

    times: Float[np.ndarray, " k"]
    path: Float[np.ndarray, "k 2"]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class View:
    """A portrait at one value of the slider.

    Attributes:
        value: The value of the hyper-parameter; None if there is no slider.
        flow: The flow at this value.
        grid: The flow on a grid.
        points: The critical points of the flow.
        lines: Flow lines from a grid of starts, without starts that do not move.
    """

    value: float | None
    flow: AbstractFlow
    grid: SampledFlow
    points: CriticalPoints
    lines: tuple[FollowedLine, ...]


@one_call()
def views(
    flow: AbstractFlow,
    spans: tuple[Span, Span],
    over: Mapping[str, Sequence[float]],
    *,
    side: int,
    target: AbstractTarget | None,
    measured: Sequence[Measure],
) -> tuple[View, ...]:
    """The views of a flow: one for each value of a hyper-parameter, or a single one.

    Args:
        flow: A flow on a plane.
        spans: The ranges of the axes.
        over: The hyper-parameter, by name, with its values; empty for none.
        side: Number of starts per side of their grid.
        target: The target at which lines end; None to end them at the sides of the axes.
        measured: Measures of the lines besides the usual ones.
    """
    values: Sequence[Any] = next(iter(over.values()), [None])
    usual = [measures.path_length()]
    if isinstance(flow, PreferenceFlow):
        usual += [measures.change("u"), measures.dip()]
    return tuple(
        _view(
            flow if value is None else flow.with_parameter(next(iter(over)), float(value)),
            spans,
            value,
            side,
            target,
            (*usual, *measured),
        )
        for value in values
    )


def _view(
    flow: AbstractFlow,
    spans: tuple[Span, Span],
    value: float | None,
    side: int,
    target: AbstractTarget | None,
    measured: Sequence[Measure],
) -> View:
    grid = sample(flow, *spans)
    points = critical.critical_points(flow, spans)
    lines = tuple(_lines(grid, points, spans, side, target, measured))
    centres = grid.centres
    keep = slice(None, None, _EVERY)
    shown = SampledFlow(
        flow,
        (centres.axes[0][keep], centres.axes[1][keep]),
        *(array[keep, keep] for array in (centres.loss, centres.gradient, centres.velocity)),
    )
    return View(value, flow, shown, points, lines)


def _lines(
    grid: SampledFlow,
    points: CriticalPoints,
    spans: tuple[Span, Span],
    side: int,
    target: AbstractTarget | None,
    measured: Sequence[Measure],
) -> Iterator[FollowedLine]:
    low, high = np.transpose(spans)
    flow, clock = grid.flow, None
    if target is None:
        flow, clock = _within(flow, spans), "arc_length"
        target = until.time(_LONG * float(np.max(high - low)) / typical_speed(grid))
    options: dict[str, Any] = dict(until=target, clock=clock, measures=measured)
    begin = starts.grid(side, low, high)
    moves = np.all(np.isfinite(evaluate(flow, begin)[2]), axis=-1)
    for start in begin[moves]:
        line = flow_line(flow, start, rtol=FINE_RTOL, **options)
        if int(line.steps):
            seen = _seen(line, spans)
            facts = tuple(_facts(line, flow, start, spans, points if clock else None))
            yield FollowedLine(line.times[seen], line.states[seen], facts)


def _within(flow: AbstractFlow, spans: tuple[Span, Span]) -> AbstractFlow:
    """A flow whose lines stop at the sides of the axes; a flow that slides is unchanged."""
    if flow.wall == "slide":
        return flow
    domain = enclosure(flow, np.asarray(spans, float), ROOM)
    return eqx.tree_at(lambda held: held.domain, flow, domain)


def _seen(line: Line, spans: tuple[Span, Span]) -> Int[np.ndarray, " k"]:
    """The indices of enough ends of steps to draw a line smoothly, up to where it leaves the axes.

    Ends that cannot be distinguished on a screen are left out, and their number is limited.
    """
    low, high = np.transpose(spans)
    known = np.isfinite(line.times) & np.all(np.isfinite(line.states), axis=1)
    states = (line.states[known] - low) / (high - low)
    inside = np.flatnonzero(np.all((states >= -ROOM) & (states <= 1 + ROOM), axis=1))
    states = states[: inside[-1] + 2] if inside.size else states
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(states, axis=0).T))])
    apart = max(_FINE, along[-1] / _MOST_POINTS)
    # The last point in each piece of this length, and both ends.
    last = np.flatnonzero(np.diff(np.floor(along / apart)) > 0)
    return np.unique(np.concatenate([[0], last, [len(states) - 1]]))


def _facts(
    line: Line,
    flow: AbstractFlow,
    start: Float[np.ndarray, " 2"],
    spans: tuple[Span, Span],
    points: CriticalPoints | None,
) -> Iterator[tuple[str, str]]:
    """The facts about a line for display: its ends, its times, its measures.

    `points` are the critical points for a line that is followed until it leaves the axes or comes
    to rest, and None for a line with a target.
    """
    end = np.asarray(line.end)
    yield "start", told(start)
    yield "end", told(end)
    yield "the line", _ending(line, spans, points)
    yield "flow time at the end", told(line.end_time)
    if points is None:
        yield "flow time to the target", told(line.time)
    of = "loss" if isinstance(flow, PreferenceFlow) else "potential"
    begun, ended = evaluate(flow, np.stack([start, end]))[0]
    yield f"{of} at the start", told(begun)
    if np.isfinite(ended):  # a loss may have no value on the boundary
        yield f"{of} at the end", told(ended)
    held = {name: line.measures[name] for name in _WORDS if name in line.measures}
    for name, value in {**held, **line.measures}.items():
        if not np.all(np.isnan(value)):  # for example the time of a fall, if there is no fall
            yield _WORDS.get(name, name.replace("_", " ")), told(value)


def _ending(line: Line, spans: tuple[Span, Span], points: CriticalPoints | None) -> str:
    """The outcome of a line in words."""
    outcome, end = Outcome(int(line.outcome)), np.asarray(line.end)
    low, high = np.transpose(spans)
    room = (ROOM - _SMALL) * (high - low)
    if outcome is Outcome.at_wall and np.any(end == 0):
        return "ends on the boundary, where a ratio is 0"
    if points is not None and np.any((end < low - room) | (end > high + room)):
        return "leaves the axes"
    # Near a critical point, steps in arc length may become too small before the last time.
    if points is not None and outcome in (Outcome.reached, Outcome.step_limit):
        there = _approached(end, high - low, points)
        if there or outcome is Outcome.reached:
            return f"has come to the {there}" if there else "is still on its way then, slowly"
    return _ENDINGS.get(outcome, outcome.name.replace("_", " "))


def _approached(
    end: Float[np.ndarray, " 2"], widths: Float[np.ndarray, " 2"], points: CriticalPoints
) -> str:
    """The name of the critical point that the end of a line is close to; "" if there is none."""
    for point in points:
        path = np.atleast_2d(point.position if point.path is None else point.path)
        if np.min(np.max(np.abs(path - end) / widths, axis=1)) < _NEAR:
            return point.name
    return ""


def told(value: Any) -> str:
    """A number, or the first few of several, as text with four digits."""
    held = np.asarray(value, float)
    if held.ndim == 0:
        return f"{held + 0.0:.4g}".replace("-", "−").replace("inf", "∞").replace("nan", "none")
    few = ", ".join(map(told, held.ravel()[:_AT_MOST]))
    return f"({few}{', …' if held.size > _AT_MOST else ''})"


_ENDINGS = {
    Outcome.reached: "reaches the target",
    Outcome.at_critical_point: "comes to rest at a critical point",
    Outcome.at_wall: "ends at a wall",
    Outcome.step_limit: "ends where steps become too small",
    Outcome.started_past_target: "starts past the target",
    Outcome.time_limit: "does not reach the target in time",
}
_WORDS = {
    "path_length": "path length",
    "change_chosen_u": "chosen log-probability, change (nats)",
    "change_rejected_u": "rejected log-probability, change (nats)",
    "dip_depth": "deepest fall of the chosen (nats)",
    "dip_time": "flow time of that",
    "recovery_time": "flow time at which it is back",
}
