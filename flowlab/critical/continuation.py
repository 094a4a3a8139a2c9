"""How critical points move, appear, vanish and change over a parameter.

m: values of the parameter; k: values along a branch; d: components.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from flowlab.critical.local import checked_region, diagonal, local
from flowlab.critical.points import (
    CriticalPoint,
    critical_points,
    described,
    refined,
)
from flowlab.flow import AbstractFlow

__all__ = ["Branch", "Continuation", "Event", "continuation"]

_BISECTIONS = 40
_FARTHEST = 0.1  # of the region: how far a point may move from one value to the next
_SAME = 1e-4  # of the region: points that are so close are one


@dataclass(frozen=True)
class Branch:
    """One critical point, or line of such, followed over the parameter.

    Attributes:
        values: The parameter, ascending, shape (k,).
        points: What it is at each value.
    """

    values: Float[np.ndarray, " k"]
    points: tuple[CriticalPoint, ...] = field(repr=False)

    @property
    def places(self) -> Float[np.ndarray, "k d"]:
        """Where it is at each value."""
        return np.array([point.place for point in self.points])

    @property
    def index(self) -> Int[np.ndarray, " k"]:
        """Directions in which the potential curves down, at each value."""
        return np.array([point.index for point in self.points])

    @property
    def kind(self) -> tuple[str, ...]:
        """The kind at each value."""
        return tuple(point.kind for point in self.points)


@dataclass(frozen=True)
class Event:
    """A change in what there is.

    Attributes:
        value: The parameter at which it happens.
        what: "appears" or "vanishes" (in the order of rising values), or "changes index".
        place: Where, shape (d,).
        branch: Index of the branch.
        before: Name of the point below the value; "" for one that appears.
        after: Name of the point above the value; "" for one that vanishes.
    """

    value: float
    what: Literal["appears", "vanishes", "changes index"]
    place: Float[np.ndarray, " d"]
    branch: int
    before: str
    after: str


@dataclass(frozen=True)
class Continuation:
    """Critical points over a parameter.

    Attributes:
        parameter: Its name.
        values: Where all points were searched for, ascending, shape (m,).
        branches: The points, followed.
        events: Where one appears, vanishes or changes its index, by the parameter. A point that
            enters or leaves the region is none.
        components: Names of the components of a state, where they have such.
    """

    parameter: str
    values: Float[np.ndarray, " m"]
    branches: tuple[Branch, ...]
    events: tuple[Event, ...]
    components: tuple[str, ...] | None = None

    def to_rows(self) -> list[dict[str, Any]]:
        """One row for each branch and value: parameter, place, kind, index, potential, rates."""
        names = self.components or tuple(f"component_{i}" for i in range(self._width))
        return [
            {
                self.parameter: float(value),
                "branch": number,
                **dict(zip(names, map(float, point.place), strict=True)),
                "name": point.name,
                "index": point.index,
                "value": point.value,
                "rates": point.rates.tolist(),
            }
            for number, branch in enumerate(self.branches)
            for value, point in zip(branch.values, branch.points, strict=True)
        ]

    def __str__(self) -> str:
        """A line for each branch and for each event."""
        lines = [
            f"branch {number}: {branch.points[0].name}, {self.parameter} "
            f"{branch.values[0]:.6g} to {branch.values[-1]:.6g}"
            for number, branch in enumerate(self.branches)
        ] or ["no critical point at any value"]
        for event in self.events:
            where = np.array2string(event.place, precision=4, separator=", ", suppress_small=True)
            words = f"{event.before} becomes {event.after}"
            if not (event.before and event.after):
                words = f"{event.before or event.after} {event.what}"
            lines.append(f"{self.parameter} = {event.value:.6g}: {words} at {where}")
        return "\n".join(lines)

    @property
    def _width(self) -> int:
        return len(self.branches[0].points[0].place) if self.branches else 0


@dataclass
class _Open:
    """A branch that is still being followed."""

    values: list[float]
    points: list[CriticalPoint]
    closed: bool = False


def continuation(
    flow: AbstractFlow,
    parameter: str,
    values: npt.ArrayLike,
    region: npt.ArrayLike,
    *,
    starts: int = 128,
) -> Continuation:
    """Critical points followed over a hyper-parameter of a flow, with what happens on the way.

    At every value all points of the region are searched for; a branch goes on where Newton's method
    leads its last point. Between two values, where a point appears, vanishes, or changes its index,
    the value is found by bisection.

    Args:
        flow: A flow whose states are vectors.
        parameter: Name of a hyper-parameter, as of `sweep(over=...)`.
        values: Increasing values, at least two.
        region: Lower and upper end of every component, shape (d, 2).
        starts: Starts of each search.

    Raises:
        ValueError: If the values do not increase, the flow has no such hyper-parameter, or the
            region does not fit the flow.

    Accuracy: the values of events are located to 1e-12 of the distance between two values where
        Newton's method decides without doubt; close to a fold, where two points meet, to about the
        square of 1e-5 of the region. A pair that appears and vanishes between two values is missed.
    """
    listed = np.asarray(values, dtype=float)
    if listed.ndim != 1 or len(listed) < 2 or not np.all(np.diff(listed) > 0):
        raise ValueError(
            f"Argument `values` must hold increasing numbers, at least two, but is {values!r}."
        )
    ends = checked_region(region, flow)
    flows = [flow.with_parameter(parameter, float(value)) for value in listed]
    follow = _Follower(flow, parameter, ends)
    branches: list[_Open] = []
    events: list[Event] = []
    for step, (value, at_value) in enumerate(zip(listed, flows, strict=True)):
        all_found = tuple(critical_points(at_value, ends, starts=starts))
        found = list(all_found)
        present = [branch.points[-1] for branch in branches if not branch.closed]
        for number, branch in enumerate(branches):
            if not branch.closed:
                events += _gone_on(follow, branch, number, float(value), found, present)
        for point in found:
            branches.append(_Open([float(value)], [point]))
            if step:
                before = float(listed[step - 1])
                events += _appeared(follow, branches[-1], len(branches) - 1, before, all_found)
    return Continuation(
        parameter,
        listed,
        tuple(Branch(np.array(b.values), tuple(b.points)) for b in branches),
        tuple(sorted(events, key=lambda event: event.value)),
        flow.components,
    )


class _Follower:
    """Where a point is at another value of the parameter."""

    def __init__(self, flow: AbstractFlow, parameter: str, ends: np.ndarray) -> None:
        self.flow, self.parameter, self.ends = flow, parameter, ends
        self.width = diagonal(ends)

    def at(self, value: float, point: CriticalPoint) -> CriticalPoint | None:
        """The point at a value that Newton's method leads to; None if there is none near."""
        flow = self.flow.with_parameter(self.parameter, value)
        if point.on:
            return None
        around = point.place + 0.05 * self.width * np.concatenate(
            [np.eye(len(self.ends)), -np.eye(len(self.ends))]
        )
        scale = float(np.median(local(flow, around).steepness))
        places, _, roots = refined(flow, point.place[None], scale, self.width)
        near = np.linalg.norm(places[0] - point.place) < _FARTHEST * self.width
        if not (roots[0] and near):
            return None
        return described(flow, places[0], self.width, point.dimension)

    def apart(self, point: CriticalPoint, others: Sequence[CriticalPoint | None]) -> bool:
        """Whether a point is none of others."""
        gaps = [np.linalg.norm(point.place - other.place) for other in others if other is not None]
        return bool(min(gaps, default=np.inf) > _SAME * self.width)

    def inside(self, point: CriticalPoint) -> bool:
        """Whether a point lies in the region."""
        return bool(np.all((point.place >= self.ends[:, 0]) & (point.place <= self.ends[:, 1])))


def _gone_on(
    follow: _Follower,
    branch: _Open,
    number: int,
    value: float,
    found: list[CriticalPoint],
    present: Sequence[CriticalPoint],
) -> list[Event]:
    """A branch at the next value, taken from what was found there; what happened on the way."""
    last, before = branch.points[-1], branch.values[-1]
    match = _nearest(follow, last, value, found)
    if match is None:
        branch.closed = True
        ahead = follow.at(value, last)
        if ahead is not None and not follow.inside(ahead):
            return []
        at, there = _last_seen(follow, last, before, value, present)
        return [Event(at, "vanishes", there.place, number, there.name, "")]
    found.remove(match)
    branch.values.append(value)
    branch.points.append(match)
    if match.index == last.index or match.on:
        return []
    at, there = _turning(follow, last, before, match, value)
    return [Event(at, "changes index", there.place, number, last.name, match.name)]


def _nearest(
    follow: _Follower, last: CriticalPoint, value: float, found: list[CriticalPoint]
) -> CriticalPoint | None:
    """What a point has become among what was found: where Newton's method leads, or the nearest."""
    alike = [p for p in found if p.dimension == last.dimension and p.on == last.on]
    if not alike:
        return None
    if last.on or last.dimension:
        return min(alike, key=lambda p: float(np.linalg.norm(p.place - last.place)))
    ahead = follow.at(value, last)
    if ahead is None:
        return None
    nearest = min(alike, key=lambda p: float(np.linalg.norm(p.place - ahead.place)))
    return None if follow.apart(nearest, [ahead]) else nearest


def _appeared(
    follow: _Follower,
    branch: _Open,
    number: int,
    before: float,
    present: Sequence[CriticalPoint],
) -> list[Event]:
    """Where a point that was not there at the value before has come from."""
    point, value = branch.points[0], branch.values[0]
    if point.on:
        return [Event(value, "appears", point.place, number, "", point.name)]
    behind = follow.at(before, point)
    if behind is not None and not follow.inside(behind):
        return []
    at, there = _last_seen(follow, point, value, before, present)
    return [Event(at, "appears", there.place, number, "", point.name)]


def _last_seen(
    follow: _Follower,
    point: CriticalPoint,
    seen: float,
    gone: float,
    present: Sequence[CriticalPoint],
) -> tuple[float, CriticalPoint]:
    """The value between one at which a point is there and one at which it is not any more.

    It is not there any more either where it has become one with another that was `present`.
    """
    others = [other for other in present if other is not point and not other.on]
    for _ in range(_BISECTIONS):
        middle = 0.5 * (seen + gone)
        there = follow.at(middle, point)
        moved = [follow.at(middle, other) for other in others]
        if there is not None and there.index == point.index and follow.apart(there, moved):
            seen, point = middle, there
            others = [new or old for new, old in zip(moved, others, strict=True)]
        else:
            gone = middle
    return 0.5 * (seen + gone), point


def _turning(
    follow: _Follower, first: CriticalPoint, low: float, last: CriticalPoint, high: float
) -> tuple[float, CriticalPoint]:
    """The value between two at which a point has another index."""
    point = first
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        share = (middle - low) / (high - low)
        guess = replace(first, place=(1 - share) * first.place + share * last.place)
        there = follow.at(middle, guess)
        if there is None:
            break
        point = there
        if there.index == first.index:
            low, first = middle, there
        else:
            high, last = middle, there
    return 0.5 * (low + high), point
