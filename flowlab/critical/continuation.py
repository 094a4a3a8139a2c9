"""Continuation: critical points move, appear, vanish and change over a parameter.

m: values of the parameter; k: values along a branch; d: components.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from flowlab.critical.branch_tracking import BranchSegment, Follower
from flowlab.critical.derivatives import checked_region
from flowlab.critical.points import critical_points
from flowlab.critical.types import CriticalPoint
from flowlab.flow import AbstractFlow
from flowlab.solve import one_call

__all__ = ["Branch", "Continuation", "Event", "continuation"]

_FARTHEST = 0.1  # of the region: how far a degenerate point may move from one value to the next
_SHARP = 1e-6  # of the range of values: what an event is known to without a word about it

What = Literal["appears", "vanishes", "changes index", "is lost"]


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
        """The place at each value, shape (k, d)."""
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
        what: "appears" or "vanishes" (in the order of rising values), where the Hessian is singular
            or a wall is met; "changes index"; or "is lost": the point could not be followed any
            further down (`before` is "") or up, and neither was the case.
        place: Where, shape (d,).
        branch: Index of the branch.
        before: Name of the point below the value; "" for one that is not there.
        after: Name of the point above the value; "" for one that is not there.
        within: How far off the value may be, as far as it was searched for.
    """

    value: float
    what: What
    place: Float[np.ndarray, " d"]
    branch: int
    before: str
    after: str
    within: float = 0.0


@dataclass(frozen=True)
class Continuation:
    """Critical points over a parameter.

    Attributes:
        parameter: Its name.
        values: Where all points were searched for, ascending, shape (m,).
        branches: The points, followed.
        events: Where one appears, vanishes, changes its index or is lost, by the parameter. A point
            that enters or leaves the region is none.
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
            vague = event.within > _SHARP * float(np.ptp(self.values))
            about = f" ± {event.within:.2g}" if vague else ""
            lines.append(f"{self.parameter} = {event.value:.6g}{about}: {words} at {where}")
        return "\n".join(lines)

    @property
    def _width(self) -> int:
        return len(self.branches[0].points[0].place) if self.branches else 0


@one_call()
def continuation(
    flow: AbstractFlow,
    parameter: str,
    values: npt.ArrayLike,
    region: npt.ArrayLike,
    *,
    starts: int = 128,
) -> Continuation:
    """Critical points followed over a hyper-parameter of a flow, with what happens on the way.

    At every value all points of the region are searched for. A point is followed from one value to
    the next: the tangent −H⁻¹ ∂∇L/∂λ predicts, Newton's method corrects, and a step counts if the
    correction is small beside it and the way back leads to where it began; else it is halved. Where
    no step counts, however short, the Hessian is singular (two points meet), or a wall is met, or
    the point is lost. Points on walls are followed along them. Branches are what is linked so, and
    none takes a point from another.

    Lines and manifolds of points, and points that are degenerate at a value, are not followed but
    linked to the nearest of their kind.

    Args:
        flow: A flow whose states are vectors.
        parameter: Name of a hyper-parameter, as of `sweep(over=...)`.
        values: Increasing values, at least two.
        region: Lower and upper end of every component, shape (d, 2).
        starts: Starts of each search.

    Raises:
        ValueError: If the values do not increase, the flow has no such hyper-parameter, or the
            region does not fit the flow.

    Accuracy: the values of events are located to 1e-10 of the distance between two values, where
        rounding lets two points be told apart that are so close to meeting; those of lines and
        manifolds to half that distance, and those of degenerate points to the distance. `within`
        says which. A pair that appears and vanishes between two values is missed, and so is an
        index that changes and changes back.

    Source: Allgower and Georg, Numerical Continuation Methods (Springer 1990), chapter 2.
    """
    listed = np.asarray(values, dtype=float)
    if listed.ndim != 1 or len(listed) < 2 or not np.all(np.diff(listed) > 0):
        raise ValueError(
            f"Argument `values` must hold increasing numbers, at least two, but is {values!r}."
        )
    ends = checked_region(region, flow)
    try:
        flows = [flow.with_parameter(parameter, float(value)) for value in listed]
    except ValueError as error:
        raise ValueError(str(error).replace("Argument `over`", "Argument `parameter`")) from None
    walk = _Walk(Follower(flow, parameter, ends), listed)
    for step, at_value in enumerate(flows):
        walk.to(step, list(critical_points(at_value, ends, starts=starts)))
    return Continuation(
        parameter,
        listed,
        tuple(Branch(np.array(b.values), tuple(b.points)) for b in walk.branches),
        tuple(sorted(walk.events, key=lambda event: event.value)),
        flow.components,
    )


@dataclass
class _Open:
    """A branch that is still being followed."""

    values: list[float]
    points: list[CriticalPoint]
    closed: bool = False


class _Walk:
    """The branches and events so far, taken from one value to the next."""

    def __init__(self, follow: Follower, values: Float[np.ndarray, " m"]) -> None:
        self.follow, self.values = follow, values
        self.branches: list[_Open] = []
        self.events: list[Event] = []

    def to(self, step: int, found: list[CriticalPoint]) -> None:
        """Go on to a value at which points were found."""
        value = float(self.values[step])
        if not step:
            self.branches = [_Open([value], [point]) for point in found]
            return
        before = float(self.values[step - 1])
        ahead = self._forward(before, value, found)
        behind = self._backward(before, value, found, ahead)
        self._nearest(before, value, found)
        for number, branch in self._ongoing(value):
            branch.closed = True
            self._end(number, ahead.get(number), before, value)
        for index, point in enumerate(found):
            if not any(branch.points[-1] is point for branch in self.branches):
                self._begin(point, behind.get(index), step)

    def _ongoing(self, value: float) -> list[tuple[int, _Open]]:
        """Branches that are open and have no point yet at a value."""
        numbered = enumerate(self.branches)
        return [(n, b) for n, b in numbered if not b.closed and b.values[-1] < value]

    def _forward(
        self, before: float, value: float, found: list[CriticalPoint]
    ) -> dict[int, BranchSegment]:
        """Link what leads from the last points to points that were found; the segments of others.

        A point to which a segment leads and that the search has missed is put among those found.
        """
        segments: dict[int, BranchSegment] = {}
        led: dict[int, list[int]] = {}
        for number, branch in self._ongoing(value):
            segment = self.follow.segment(before, branch.points[-1], value)
            if segment is None:
                continue
            segments[number] = segment
            if not segment.reached:
                continue
            at = self.follow.nearest(segment.places[-1], branch.points[-1], found)
            if at is None and not self.follow.inside(segment.places[-1]):
                branch.closed = True
                self._note_index_changes(number, segment)
                continue
            if at is None:
                at = len(found)
                found.append(segment.described(-1))
            led.setdefault(at, []).append(number)
        for at, numbers in led.items():
            misfits = [_misfit(segments[number], found[at]) for number in numbers]
            first = numbers[misfits.index(min(misfits))]
            self._link(first, value, found[at], segments.pop(first))
        return segments

    def _backward(
        self,
        before: float,
        value: float,
        found: list[CriticalPoint],
        ahead: dict[int, BranchSegment],
    ) -> dict[int, BranchSegment]:
        """Link what leads back from points that nothing led to; the segments of others."""
        segments: dict[int, BranchSegment] = {}
        taken = [branch.points[-1] for branch in self.branches if branch.values[-1] == value]
        for index, point in enumerate(found):
            if any(point is other for other in taken):
                continue
            segment = self.follow.segment(value, point, before)
            if segment is None:
                continue
            segments[index] = segment
            left = self._ongoing(value)
            if segment.reached and left:
                last = [branch.points[-1] for _, branch in left]
                at = self.follow.nearest(segment.places[-1], point, last)
                if at is not None:
                    number = left[at][0]
                    ahead.pop(number, None)
                    self._link(number, value, point, segments.pop(index))
        return segments

    def _nearest(self, before: float, value: float, found: list[CriticalPoint]) -> None:
        """Link what is not followed to the nearest of its kind."""
        linked = [branch.points[-1] for branch in self.branches if branch.values[-1] == value]
        old = [(n, b.points[-1]) for n, b in self._ongoing(value)]
        new = [point for point in found if not any(point is other for other in linked)]
        for sort in {_sort(point) for _, point in old} - {None}:
            mine = [(n, point) for n, point in old if _sort(point) == sort]
            theirs = [point for point in new if _sort(point) == sort]
            gaps = np.array(
                [[np.linalg.norm(p.place - q.place) for q in theirs] for _, p in mine]
            ).reshape(len(mine), len(theirs))
            for i, j in zip(*linear_sum_assignment(gaps), strict=True):
                (number, last), point = mine[i], theirs[j]
                if not last.dimension and gaps[i, j] > _FARTHEST * self.follow.width:
                    continue
                self.branches[number].values.append(value)
                self.branches[number].points.append(point)
                if point.index != last.index:
                    self._note(
                        number,
                        "changes index",
                        0.5 * (before + value),
                        point.place,
                        (last.name, point.name),
                        0.5 * (value - before),
                    )

    def _link(
        self, number: int, value: float, point: CriticalPoint, segment: BranchSegment
    ) -> None:
        """A branch goes on to a point, along a segment in either direction."""
        self.branches[number].values.append(value)
        self.branches[number].points.append(point)
        self._note_index_changes(number, segment)

    def _note_index_changes(self, number: int, segment: BranchSegment) -> None:
        """Note where along a segment the index changes."""
        for change in segment.index_changes():
            self._note(
                number, "changes index", change.value, change.place, change.names, change.within
            )

    def _end(self, number: int, segment: BranchSegment | None, before: float, value: float) -> None:
        """Note where a branch ends that nothing goes on."""
        last = self.branches[number].points[-1]
        if segment is None:
            vague = last.dimension > 0
            at = 0.5 * (before + value) if vague else before
            within = 0.5 * (value - before) if vague else value - before
            self._note(number, "vanishes", at, last.place, (last.name, ""), within)
            return
        self._note_index_changes(number, segment)
        what = "vanishes" if segment.reached or segment.ends else "is lost"
        self._note(
            number, what, segment.values[-1], segment.places[-1], (segment.name, ""), segment.within
        )

    def _begin(self, point: CriticalPoint, segment: BranchSegment | None, step: int) -> None:
        """A new branch, taken back to where it comes from, and a note of that."""
        value, before = float(self.values[step]), float(self.values[step - 1])
        number = len(self.branches)
        branch = _Open([value], [point])
        self.branches.append(branch)
        if segment is None:
            vague = point.dimension > 0
            at = 0.5 * (before + value) if vague else value
            within = 0.5 * (value - before) if vague else value - before
            self._note(number, "appears", at, point.place, ("", point.name), within)
            return
        while True:
            self._note_index_changes(number, segment)
            if not segment.reached:
                what = "appears" if segment.ends else "is lost"
                break
            if not self.follow.inside(segment.places[-1]):
                return
            if self._passes(segment):
                what = "appears"
                break
            branch.values.insert(0, segment.values[-1])
            branch.points.insert(0, segment.described(-1))
            step -= 1
            if not step:
                return
            back = self.follow.segment(segment.values[-1], branch.points[0], self.values[step - 1])
            if back is None:
                return
            segment = back
        self._note(
            number, what, segment.values[-1], segment.places[-1], ("", segment.name), segment.within
        )

    def _passes(self, segment: BranchSegment) -> bool:
        """True for a segment that ends on a branch."""
        there = [
            p
            for b in self.branches
            for v, p in zip(b.values, b.points, strict=True)
            if v == segment.values[-1]
        ]
        return self.follow.nearest(segment.places[-1], segment.point, there) is not None

    def _note(
        self,
        number: int,
        what: What,
        value: float,
        place: Float[np.ndarray, " d"],
        names: tuple[str, str],
        within: float,
    ) -> None:
        if self.follow.inside(place):
            self.events.append(Event(float(value), what, place, number, *names, float(within)))


def _misfit(segment: BranchSegment, point: CriticalPoint) -> tuple[bool, float]:
    """The misfit of a segment and the point that it leads to, to be compared."""
    gap = float(np.linalg.norm(segment.places[-1] - point.place))
    return segment.point.index != point.index, gap


def _sort(point: CriticalPoint) -> tuple[int, tuple[str, ...]] | None:
    """The sort of a point that is not followed but linked; None for one that is."""
    if not point.dimension and point.kind != "degenerate":
        return None
    return point.dimension, point.on
