"""The walk of continuation: branches and events, taken from one value of the parameter to the next.

m: values of the parameter; d: components.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from flowlab.critical.branch_tracking import BranchSegment, Follower
from flowlab.critical.types import CriticalPoint

__all__ = ["FARTHEST_LINK", "Event", "OpenBranch", "Walk", "is_linked", "sort_of"]

FARTHEST_LINK = 0.1  # of the region: how far a degenerate point may move from one value to the next

What = Literal["appears", "vanishes", "changes index", "is lost"]


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


@dataclass
class OpenBranch:
    """A branch that is still being followed."""

    values: list[float]
    points: list[CriticalPoint]
    closed: bool = False
    enters: bool = False
    leaves: bool = False


class Walk:
    """The branches and events so far, taken from one value to the next."""

    def __init__(self, follow: Follower, values: Float[np.ndarray, " m"]) -> None:
        self.follow, self.values = follow, values
        self.branches: list[OpenBranch] = []
        self.events: list[Event] = []

    def to(self, step: int, found: list[CriticalPoint]) -> None:
        """Go on to a value at which points were found."""
        value = float(self.values[step])
        if not step:
            self.branches = [OpenBranch([value], [point]) for point in found]
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

    def _ongoing(self, value: float) -> list[tuple[int, OpenBranch]]:
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
                branch.closed = branch.leaves = True
                self.note_index_changes(number, segment)
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
        for sort in {sort_of(point) for _, point in old if is_linked(point)}:
            mine = [(n, point) for n, point in old if sort_of(point) == sort]
            theirs = [point for point in new if sort_of(point) == sort]
            gaps = np.array(
                [[np.linalg.norm(p.place - q.place) for q in theirs] for _, p in mine]
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
        self.note_index_changes(number, segment)

    def note_index_changes(
        self, number: int, segment: BranchSegment, before: float | None = None
    ) -> None:
        """Note where along a segment the index changes, if not at its end at a degenerate point."""
        for change in segment.index_changes():
            if before is not None and segment.is_at(change.value, before):
                continue
            self._note(
                number, "changes index", change.value, change.place, change.names, change.within
            )

    def note_stop(self, number: int, segment: BranchSegment, rises: bool) -> None:
        """Note where a segment stops, and with it a branch, for rising values or for falling."""
        what: What = "vanishes" if rises else "appears"
        names = (segment.name, "") if rises else ("", segment.name)
        kept = what if segment.reached or segment.ends else "is lost"
        end = segment.values[-1], segment.places[-1]
        self._note(number, kept, *end, names, segment.within)

    def note_between(
        self, number: int, point: CriticalPoint, value: float, other: float, rises: bool
    ) -> None:
        """Note that a point which cannot be followed is there at a value, and not at another."""
        vague, gap = point.dimension > 0, abs(other - value)
        at, within = (0.5 * (value + other), 0.5 * gap) if vague else (value, gap)
        names = (point.name, "") if rises else ("", point.name)
        self._note(number, "vanishes" if rises else "appears", at, point.place, names, within)

    def _end(self, number: int, segment: BranchSegment | None, before: float, value: float) -> None:
        """Note where a branch ends that nothing goes on."""
        if segment is None:
            self.note_between(number, self.branches[number].points[-1], before, value, rises=True)
            return
        self.note_index_changes(number, segment)
        self.note_stop(number, segment, rises=True)

    def _begin(self, point: CriticalPoint, segment: BranchSegment | None, step: int) -> None:
        """A new branch, taken back to where it comes from, and a note of that."""
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
            if not self.follow.inside(segment.places[-1]):
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
        elif not names[1]:
            self.branches[number].leaves = True
        elif not names[0]:
            self.branches[number].enters = True


def _misfit(segment: BranchSegment, point: CriticalPoint) -> tuple[bool, float]:
    """The misfit of a segment and the point that it leads to, to be compared."""
    gap = float(np.linalg.norm(segment.places[-1] - point.place))
    return segment.point.index != point.index, gap


def is_linked(point: CriticalPoint) -> bool:
    """True for a line, a manifold or a degenerate point: what is not followed, but linked."""
    return point.dimension > 0 or point.kind == "degenerate"


def sort_of(point: CriticalPoint) -> tuple[bool, int, tuple[str, ...]]:
    """The properties that two points must share to be linked without being followed."""
    return is_linked(point), point.dimension, point.on
