"""Values of a parameter at which critical points meet: pitchforks, folds and crossings.

If the search runs at exactly such a value, it finds a degenerate point or a line. No step can lead
to or from it, since the Hessian is singular. Branches are therefore followed past such a value,
from the value before to the value after, and the point that they pass through is added to them.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from flowlab.critical.branch_tracking import BranchSegment
from flowlab.critical.branch_walk import FARTHEST_LINK, OpenBranch, Walk, is_linked, sort_of
from flowlab.critical.types import CriticalPoint

__all__ = ["fill", "is_momentary"]

PointsAt = Sequence[Sequence[CriticalPoint]]


def is_momentary(points_at: PointsAt, at: int, width: float) -> bool:
    """True if there is a degenerate point or line at a value, but not at neighbouring values.

    Args:
        points_at: The critical points at each value of the parameter.
        at: The index of the value.
        width: A typical distance in the region.
    """
    beside = [point for i in (at - 1, at + 1) if 0 <= i < len(points_at) for point in points_at[i]]
    return any(
        is_linked(point)
        and not any(
            sort_of(point) == sort_of(other)
            and (point.dimension or _gap(point, other) <= FARTHEST_LINK * width)
            for other in beside
        )
        for point in points_at[at]
    )


def fill(walk: Walk, values: Float[np.ndarray, " m"], points_at: PointsAt) -> None:
    """Add to the branches of a walk the critical points at values that the walk has skipped.

    Args:
        walk: A complete walk over some of the values.
        values: All values of the parameter, ascending.
        points_at: The critical points at each value.
    """
    followed = set(walk.values.tolist())
    for at, value in enumerate(map(float, values)):
        if value not in followed:
            _Passed(walk, values, at, list(points_at[at])).fill()


class _Passed:
    """A value of the parameter that a walk has skipped, with the critical points at this value."""

    def __init__(
        self,
        walk: Walk,
        values: Float[np.ndarray, " m"],
        at: int,
        points_at: list[CriticalPoint],
    ) -> None:
        self.walk, self.points_at, self.value = walk, points_at, float(values[at])
        self.at_end = at in (0, len(values) - 1)
        self.beside = [float(values[i]) for i in (at - 1, at + 1) if 0 <= i < len(values)]
        followed = walk.values
        below, above = followed[followed < self.value], followed[followed > self.value]
        self.ends = (below[-1] if len(below) else np.inf, above[0] if len(above) else -np.inf)

    def fill(self) -> None:
        """Link branches that pass, begin or end at the value; begin branches for other points."""
        taken = [self._linked(number) for number in range(len(self.walk.branches))]
        taken = [point for point in taken if point is not None]
        for point in self.points_at:
            if not any(point is other or self._is_same(point, other) for other in taken):
                taken.append(point)
                self._alone(point)

    def _linked(self, number: int) -> CriticalPoint | None:
        """Add to a branch its critical point at the value, and return it; None if there is none."""
        branch = self.walk.branches[number]
        position = int(np.searchsorted(branch.values, self.value))
        if position == 0 and branch.values[0] != self.ends[1]:
            return None
        if position == len(branch.values) and branch.values[-1] != self.ends[0]:
            return None
        origin = max(position - 1, 0)
        start, last = branch.values[origin], branch.points[origin]
        segment = self.walk.follow.segment(start, last, self.value)
        if self.at_end:
            self._note_end(number, segment, last, start)
        point = self._nearest_alike(last) if segment is None else self._at(segment)
        if point is not None:
            branch.values.insert(position, self.value)
            branch.points.insert(position, point)
        return point

    def _at(self, segment: BranchSegment) -> CriticalPoint | None:
        """The critical point at the value at which a segment arrives; None if there is none."""
        point = self.walk.follow.met(segment, self.value, self.points_at)
        inside = self.walk.follow.inside(segment.positions[-1])
        return segment.described(-1) if point is None and segment.reached and inside else point

    def _nearest_alike(self, last: CriticalPoint) -> CriticalPoint | None:
        """The nearest critical point at the value of the same kind as `last`; None if none."""
        alike = [point for point in self.points_at if sort_of(point) == sort_of(last)]
        return min(alike, key=lambda point: _gap(point, last), default=None)

    def _note_end(
        self, number: int, segment: BranchSegment | None, last: CriticalPoint, start: float
    ) -> None:
        """Record the events of a branch between its last point and this first or last value."""
        rises = self.value > start
        if segment is None:
            if self._nearest_alike(last) is None:
                self.walk.note_between(number, last, start, self.value, rises)
            return
        self.walk.note_index_changes(number, segment, before=self.value)
        if not segment.reached:
            self.walk.note_stop(number, segment, rises)

    def _alone(self, point: CriticalPoint) -> None:
        """Begin a branch of a single value, and record how its point appears and vanishes."""
        number = len(self.walk.branches)
        self.walk.branches.append(OpenBranch([self.value], [point], closed=True))
        for goal in self.beside:
            rises = goal > self.value
            segment = self.walk.follow.segment(self.value, point, goal)
            if segment is None:
                self.walk.note_between(number, point, self.value, goal, rises)
            elif not segment.reached:
                self.walk.note_stop(number, segment, rises)

    def _is_same(self, point: CriticalPoint, other: CriticalPoint) -> bool:
        """True if two degenerate points of one kind are equal up to rounding."""
        both = is_linked(point) and sort_of(point) == sort_of(other) and not point.dimension
        return both and self.walk.follow.is_meeting(point, other.position)


def _gap(point: CriticalPoint, other: CriticalPoint) -> float:
    return float(np.linalg.norm(point.position - other.position))
