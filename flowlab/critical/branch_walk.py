"""The assembly of branches and events, from one value of the parameter to the next.

The critical points at a value are linked to those at the previous value. Each branch is followed
forward (`branch_tracking`) and linked to the critical point at which it arrives. If the search has
missed that point, it is added. Points at which no branch arrived are followed backward to their
origin. Lines, manifolds and degenerate points cannot be followed; they are linked to the nearest
of their kind. Beginnings and ends of branches and changes of the index are recorded as events.

m: values of the parameter; d: components.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from flowlab._names import FormerName
from flowlab.critical.branch_tracking import BranchSegment, Follower
from flowlab.critical.types import CriticalPoint

__all__ = ["FARTHEST_LINK", "Event", "OpenBranch", "Walk", "is_linked", "sort_of"]

FARTHEST_LINK = 0.1  # of the region: the largest move of a degenerate point between two values

What = Literal["appears", "vanishes", "changes index", "is lost"]


@dataclass(frozen=True)
class Event:
    """A change of the set of critical points.

    Attributes:
        value: The value of the parameter at which the event happens.
        what: "appears" or "vanishes", for increasing values of the parameter: the Hessian is
            singular, or the point reaches or leaves a wall. "changes index". "is lost": the point
            could not be followed any further for an unknown reason, towards larger values or, if
            `before` is "", towards smaller ones.
        position: The position of the point at the event, shape (d,).
        branch: Index of the branch.
        before: Name of the point below the value; "" if it does not exist there.
        after: Name of the point above the value; "" if it does not exist there.
        within: The uncertainty of the value.
    """

    value: float
    what: What
    position: Float[np.ndarray, " d"]
    branch: int
    before: str
    after: str
    within: float = 0.0

    place = FormerName("position")


@dataclass
class OpenBranch:
    """A branch under construction: values, points, and whether it has ended.

    `enters` and `leaves` say whether it comes from or goes outside the region.
    """

    values: list[float]
    points: list[CriticalPoint]
    closed: bool = False
    enters: bool = False
    leaves: bool = False


class Walk:
    """The branches and events up to a value of the parameter, extended value by value."""

    def __init__(self, follow: Follower, values: Float[np.ndarray, " m"]) -> None:
        self.follow, self.values = follow, values
        self.branches: list[OpenBranch] = []
        self.events: list[Event] = []

    def to(self, step: int, points: list[CriticalPoint]) -> None:
        """Extend the branches to `values[step]`, with the critical points found at that value."""
        value = float(self.values[step])
        if not step:
            self.branches = [OpenBranch([value], [point]) for point in points]
            return
        before = float(self.values[step - 1])
        ahead = self._forward(before, value, points)
        behind = self._backward(before, value, points, ahead)
        self._nearest(before, value, points)
        for number, branch in self._ongoing(value):
            branch.closed = True
            self._end(number, ahead.get(number), before, value)
        for index, point in enumerate(points):
            if not any(branch.points[-1] is point for branch in self.branches):
                self._begin(point, behind.get(index), step)

    def _ongoing(self, value: float) -> list[tuple[int, OpenBranch]]:
        """The open branches that have no point at `value` yet, with their indices."""
        numbered = enumerate(self.branches)
        return [(n, b) for n, b in numbered if not b.closed and b.values[-1] < value]

    def _forward(
        self, before: float, value: float, points: list[CriticalPoint]
    ) -> dict[int, BranchSegment]:
        """Follow branches forward, link those that arrive, and return the other segments.

        A point that the search has missed, and at which a segment arrives, is added to `points`.
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
            at = self.follow.nearest(segment.positions[-1], branch.points[-1], points)
            if at is None and not self.follow.inside(segment.positions[-1]):
                branch.closed = branch.leaves = True
                self.note_index_changes(number, segment)
                continue
            if at is None:
                at = len(points)
                points.append(segment.described(-1))
            led.setdefault(at, []).append(number)
        for at, numbers in led.items():
            misfits = [_misfit(segments[number], points[at]) for number in numbers]
            first = numbers[misfits.index(min(misfits))]
            self._link(first, value, points[at], segments.pop(first))
        return segments

    def _backward(
        self,
        before: float,
        value: float,
        points: list[CriticalPoint],
        ahead: dict[int, BranchSegment],
    ) -> dict[int, BranchSegment]:
        """Follow unlinked points backward, link those that reach a branch; the other segments."""
        segments: dict[int, BranchSegment] = {}
        taken = [branch.points[-1] for branch in self.branches if branch.values[-1] == value]
        for index, point in enumerate(points):
            if any(point is other for other in taken):
                continue
            segment = self.follow.segment(value, point, before)
            if segment is None:
                continue
            segments[index] = segment
            left = self._ongoing(value)
            if segment.reached and left:
                last = [branch.points[-1] for _, branch in left]
                at = self.follow.nearest(segment.positions[-1], point, last)
                if at is not None:
                    number = left[at][0]
                    ahead.pop(number, None)
                    self._link(number, value, point, segments.pop(index))
        return segments

    def _nearest(self, before: float, value: float, points: list[CriticalPoint]) -> None:
        """Link lines, manifolds and degenerate points to the nearest of their kind."""
        linked = [branch.points[-1] for branch in self.branches if branch.values[-1] == value]
        old = [(n, b.points[-1]) for n, b in self._ongoing(value)]
        new = [point for point in points if not any(point is other for other in linked)]
        for sort in {sort_of(point) for _, point in old if is_linked(point)}:
            mine = [(n, point) for n, point in old if sort_of(point) == sort]
            theirs = [point for point in new if sort_of(point) == sort]
            gaps = np.array(
                [[np.linalg.norm(p.position - q.position) for q in theirs] for _, p in mine]
            ).reshape(len(mine), len(theirs))
            for i, j in zip(*linear_sum_assignment(gaps), strict=True):
                (number, last), point = mine[i], theirs[j]
                if not last.dimension and gaps[i, j] > FARTHEST_LINK * self.follow.width:
                    continue
                self.branches[number].values.append(value)
                self.branches[number].points.append(point)
                if point.index != last.index:
                    self._note(
                        number,
                        "changes index",
                        0.5 * (before + value),
                        point.position,
                        (last.name, point.name),
                        0.5 * (value - before),
                    )

    def _link(
        self, number: int, value: float, point: CriticalPoint, segment: BranchSegment
    ) -> None:
        """Extend a branch to a point at `value`, along a segment in either direction."""
        self.branches[number].values.append(value)
        self.branches[number].points.append(point)
        self.note_index_changes(number, segment)

    def note_index_changes(
        self, number: int, segment: BranchSegment, before: float | None = None
    ) -> None:
        """Record the index changes along a segment, except those at the value `before`."""
        for change in segment.index_changes():
            if before is not None and segment.is_at(change.value, before):
                continue
            self._note(
                number, "changes index", change.value, change.position, change.names, change.within
            )

    def note_stop(self, number: int, segment: BranchSegment, rises: bool) -> None:
        """Record that a branch ends at the end of a segment.

        `rises` says whether the segment runs towards larger values of the parameter.
        """
        what: What = "vanishes" if rises else "appears"
        names = (segment.name, "") if rises else ("", segment.name)
        kept = what if segment.reached or segment.ends else "is lost"
        end = segment.values[-1], segment.positions[-1]
        self._note(number, kept, *end, names, segment.within)

    def note_between(
        self, number: int, point: CriticalPoint, value: float, other: float, rises: bool
    ) -> None:
        """Record that a point that cannot be followed exists at `value`, but not at `other`."""
        vague, gap = point.dimension > 0, abs(other - value)
        at, within = (0.5 * (value + other), 0.5 * gap) if vague else (value, gap)
        names = (point.name, "") if rises else ("", point.name)
        self._note(number, "vanishes" if rises else "appears", at, point.position, names, within)

    def _end(self, number: int, segment: BranchSegment | None, before: float, value: float) -> None:
        """Record the end of a branch that has no continuation."""
        if segment is None:
            self.note_between(number, self.branches[number].points[-1], before, value, rises=True)
            return
        self.note_index_changes(number, segment)
        self.note_stop(number, segment, rises=True)

    def _begin(self, point: CriticalPoint, segment: BranchSegment | None, step: int) -> None:
        """Begin a branch at a point, follow it back to its origin, and record the events."""
        value, before = float(self.values[step]), float(self.values[step - 1])
        number = len(self.branches)
        branch = OpenBranch([value], [point])
        self.branches.append(branch)
        if segment is None:
            self.note_between(number, point, value, before, rises=False)
            return
        while True:
            self.note_index_changes(number, segment)
            if not segment.reached:
                break
            if not self.follow.inside(segment.positions[-1]):
                branch.enters = True
                return
            if self._passes(segment):
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
        self.note_stop(number, segment, rises=False)

    def _passes(self, segment: BranchSegment) -> bool:
        """True for a segment that ends on an existing branch."""
        there = [
            p
            for b in self.branches
            for v, p in zip(b.values, b.points, strict=True)
            if v == segment.values[-1]
        ]
        return self.follow.nearest(segment.positions[-1], segment.point, there) is not None

    def _note(
        self,
        number: int,
        what: What,
        value: float,
        position: Float[np.ndarray, " d"],
        names: tuple[str, str],
        within: float,
    ) -> None:
        if self.follow.inside(position):
            self.events.append(Event(float(value), what, position, number, *names, float(within)))
        elif not names[1]:
            self.branches[number].leaves = True
        elif not names[0]:
            self.branches[number].enters = True


def _misfit(segment: BranchSegment, point: CriticalPoint) -> tuple[bool, float]:
    """The sort key of a link from a segment to a point: index changed, distance from its end."""
    gap = float(np.linalg.norm(segment.positions[-1] - point.position))
    return segment.point.index != point.index, gap


def is_linked(point: CriticalPoint) -> bool:
    """True for a line, a manifold or a degenerate point, which cannot be followed."""
    return point.dimension > 0 or point.kind == "degenerate"


def sort_of(point: CriticalPoint) -> tuple[bool, int, tuple[str, ...]]:
    """The properties that two points must share to be linked as of one kind."""
    return is_linked(point), point.dimension, point.on
