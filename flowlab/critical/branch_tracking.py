"""Continuation of a single critical point over a parameter λ.

From a root y at λ, Newton's step −H⁻¹∇L, with the Hessian H at λ and the gradient at the next λ,
predicts the root (to first order it is the step along the tangent), and Newton's method corrects
it. A step is accepted if the correction stays within a quarter of the predicted displacement, and
if the same step backwards returns to the root, so that a step cannot jump from one branch to
another. A rejected step is shortened to 0.45 of its length; from the second accepted step in a row
on, each doubles the next. On a wall all computations are restricted to the face, and multipliers
must stay positive.

A segment ends before its goal if even very short steps are rejected: because H becomes singular
(two points meet: a fold or a pitchfork), because the point reaches or leaves a wall, or for an
unknown reason. H counts as singular if its smallest curvature, in size, has fallen to 1e-2 of that
at the start of the segment. Folds and pitchforks are not told apart: at both, points appear or
vanish, and at a pitchfork the branch that continues changes its index. If the index changes between
two steps, bisection locates the change.

d: components; k: directions in which a point can move; v: values of the parameter along a segment.

Source: Allgower and Georg, Numerical Continuation Methods (1990), chapter 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from flowlab.critical.boundary import Face
from flowlab.critical.critical_sets import distance_to
from flowlab.critical.derivatives import derivatives_at, diagonal, rates_of, root_step
from flowlab.critical.points import described
from flowlab.critical.tolerances import EXACT_STEP, ON_POINT
from flowlab.critical.types import CriticalPoint, kind_of
from flowlab.flow import AbstractFlow
from flowlab.solve.problem import cast

__all__ = ["BranchSegment", "Follower", "IndexChange"]

_SHAKY = 1e-8  # of the region: the largest error of a position
_BENT = 0.25  # of a step: the largest correction
_SHORTEST = 2.0**-34  # of the distance to the next value: the shortest step
_CORRECTOR_STEPS = 20  # steps of Newton's method: from a good prediction it needs a few
_BISECTIONS = 50  # of a step, to locate an index change to rounding
_SINGULAR = 1e-2  # of the smallest initial curvature: a smaller final one means that points meet
_ONWARD = 1e-6  # of the distance to the goal: the step that tests for a wall ahead
_SHORTER = 0.45  # of a rejected step; halving could land exactly on a meeting point
_AT_VALUE = 1e-6  # of the distance to the goal: values so close are equal
_APART = 1e-4  # of the distance to the goal: index changes so close are one
_MEETING = 1e-2  # of the region: the distance within which points meet. They separate by a root
# of the parameter's distance, and a degenerate point is known to a root of rounding


At = tuple[float, Float[np.ndarray, " d"]]  # a value of the parameter, and a position


class _Seen(NamedTuple):
    """Slope and Hessian along a face at a state, and whether a root there would be critical.

    `held` is True if the flow presses against the walls of the face and no other wall is violated.
    """

    slope: Float[np.ndarray, " k"]
    bend: Float[np.ndarray, "k k"]
    held: bool


class IndexChange(NamedTuple):
    """A change of the index of a critical point.

    Attributes:
        value: The value of the parameter at the change.
        position: The position of the critical point at the change, shape (d,).
        names: The names of the critical point below and above the value.
        within: The uncertainty of the value.
    """

    value: float
    position: Float[np.ndarray, " d"]
    names: tuple[str, str]
    within: float


@dataclass
class BranchSegment:
    """The path of a critical point from one value of a parameter (the start) to another (the goal).

    Attributes:
        follow: The follower.
        point: The critical point at the start.
        face: The face on which the point can move.
        values: The values of the parameter, from the start towards the goal, shape (v,).
        positions: The positions of the point at `values`.
        toward: The goal less the start.
        reached: Whether the goal was reached.
        short: If the goal was not reached, the length of the last attempted step.
    """

    follow: "Follower"
    point: CriticalPoint
    face: Face
    values: list[float]
    positions: list[Float[np.ndarray, " d"]]
    toward: float
    reached: bool = False
    short: float = 0.0

    def described(self, at: int) -> CriticalPoint:
        """The critical point at `values[at]`."""
        return self.follow.described(self.values[at], self.positions[at], self.point, self.face)

    @property
    def name(self) -> str:
        """The name of the critical point at the end of the segment.

        It is that of the first position with the same index as the last, at which the index is
        clearer.
        """
        index = [self._index(at) for at in range(len(self.values))]
        same = [at for at, value in enumerate(index) if value == index[-1]]
        return self.point.name if index[0] == index[-1] else self.described(same[0]).name

    @property
    def ends(self) -> bool:
        """True if the segment ends at a singular Hessian or at a wall."""
        first, last = self._curvatures(0), self._curvatures(-1)
        if not len(last):
            return True  # in a corner the walls are the only possible reason
        return bool(
            np.min(np.abs(last)) <= _SINGULAR * np.min(np.abs(first))
            or not self.follow.held_beyond(self)
        )

    @property
    def within(self) -> float:
        """The uncertainty of the value at which the segment ends.

        Near a meeting of two points, the smallest curvature decreases at least in proportion to the
        distance in the parameter. Linear extrapolation of the curvature to zero therefore bounds
        the remaining distance.
        """
        if len(self.values) < 2 or not len(self._curvatures(-1)):
            return self.short
        before, last = (float(np.min(np.abs(self._curvatures(at)))) for at in (-2, -1))
        gone = abs(self.values[-1] - self.values[-2])
        left = gone * last / (before - last) if before > last else 0.0
        return max(self.short, left) + float(np.spacing(np.max(np.abs(self.values))))

    def is_at(self, value: float, other: float) -> bool:
        """True if two values of the parameter are equal on the scale of this segment."""
        return abs(value - other) <= _AT_VALUE * abs(self.toward)

    def index_changes(self) -> list[IndexChange]:
        """All changes of the index along the segment."""
        index = [self._index(at) for at in range(len(self.values))]
        return [
            change
            for at in range(len(index) - 1)
            if index[at] != index[at + 1]
            for change in self._changes_between(at, at + 1)
        ]

    def _changes_between(self, one: int, other: int) -> list[IndexChange]:
        """The index changes between two values; several if the index changes by more than one."""
        low, high = sorted((one, other), key=lambda i: self.values[i])
        here = self.values[low], self.positions[low]
        goal = self.values[high], self.positions[high]
        changes: list[IndexChange] = []
        while not changes or here is not goal:
            value, position, within = self.follow.index_change_between(self.face, here, goal)
            beyond = self._beyond(here, (value, position), goal)
            names = self._name_at(here), self._name_at(beyond)
            changes.append(IndexChange(value, position, names, within))
            here = beyond
        return changes

    def _beyond(self, before: At, change: At, goal: At) -> At:
        """A value just beyond a change, with an index in between; the goal if there is none."""
        first, last = (self.follow.index(*at, self.face) for at in (before, goal))
        ahead = change[0] + _APART * abs(self.toward)
        if abs(first - last) < 2 or ahead >= goal[0]:
            return goal
        part = (ahead - change[0]) / (goal[0] - change[0])
        guess = change[1] + part * (goal[1] - change[1])
        there = self.follow.root(ahead, guess, self.face, _MEETING * self.follow.width)
        if there is None or self.follow.index(ahead, there, self.face) in (first, last):
            return goal
        return ahead, there

    def _name_at(self, at: At) -> str:
        return self.follow.described(*at, self.point, self.face).name

    def _curvatures(self, at: int) -> Float[np.ndarray, " k"]:
        return self.follow.curvatures(self.values[at], self.positions[at], self.face)

    def _index(self, at: int) -> int:
        return self.follow.index(self.values[at], self.positions[at], self.face)


class Follower:
    """A predictor–corrector method that follows critical points of a flow over a parameter."""

    def __init__(self, flow: AbstractFlow, parameter: str, ends: Float[np.ndarray, "d 2"]) -> None:
        self.ends, self.width = ends, diagonal(ends)
        self.walls = flow.domain.walls()
        as_held = _in_arrays if _takes_arrays(flow, len(ends)) else _as_it_is
        self.flow_at = lru_cache(maxsize=8)(
            lambda value: as_held(flow.with_parameter(parameter, value))
        )
        self._derivatives = lru_cache(maxsize=64)(
            lambda value, *at: derivatives_at(self.flow_at(value), at)
        )

    def inside(self, position: Float[np.ndarray, " d"]) -> bool:
        """True for a position in the region or on one of its sides."""
        over = np.maximum(self.ends[:, 0] - position, position - self.ends[:, 1])
        return bool(np.all(over <= _SHAKY * self.width))

    def nearest(
        self,
        position: Float[np.ndarray, " d"],
        point: CriticalPoint,
        others: Sequence[CriticalPoint],
    ) -> int | None:
        """The index in `others` of the point at `position`; None if there is none.

        It must be on the same walls as `point`, and have the same dimension.
        """
        gaps = [float(np.linalg.norm(other.position - position)) for other in others]
        alike = [
            number
            for number, other in enumerate(others)
            if (other.on, other.dimension) == (point.on, point.dimension)
            and gaps[number] <= ON_POINT * self.width
        ]
        return min(alike, key=gaps.__getitem__, default=None)

    def segment(self, value: float, point: CriticalPoint, goal: float) -> BranchSegment | None:
        """Follow a critical point from `value` towards `goal`; None if it cannot be followed."""
        face = self._face(point)
        if face is None:
            return None
        position = self.root(value, point.position, face, ON_POINT * self.width)
        position = point.position if position is None else position
        segment = BranchSegment(self, point, face, [float(value)], [position], float(goal - value))
        step, sure = goal - value, 0
        while segment.values[-1] != goal:
            last = segment.values[-1]
            ahead = goal if abs(step) >= abs(goal - last) else last + step
            there = self._stepped(last, segment.positions[-1], ahead, face)
            if there is not None:
                segment.values.append(float(ahead))
                segment.positions.append(there)
                sure += 1
                step *= 2 if sure > 1 else 1
            elif abs(ahead - last) <= _SHORTEST * abs(segment.toward) or ahead == last:
                segment.short = abs(ahead - last)
                return segment
            else:
                step, sure = _SHORTER * (ahead - last), 0
        segment.reached = True
        return segment

    def described(
        self, value: float, position: Float[np.ndarray, " d"], point: CriticalPoint, face: Face
    ) -> CriticalPoint:
        """The critical point at another value and position, with its new kind and spectrum."""
        flow = self.flow_at(value)
        if not point.on:
            return described(flow, position, self.width)
        here, seen = derivatives_at(flow, position[None]), self._seen(value, position, face)
        curvatures = np.linalg.eigvalsh(seen.bend)
        return replace(
            point,
            position=position,
            kind=kind_of(curvatures, 0) if len(curvatures) else "minimum",
            index=int(np.sum(curvatures < 0)),
            value=float(here.value[0]),
            gradient_norm=float(np.linalg.norm(seen.slope)),
            spectrum=curvatures,
            rates=rates_of(face.metric(here.metric[0]), seen.bend)[0],
        )

    def curvatures(
        self, value: float, position: Float[np.ndarray, " d"], face: Face
    ) -> Float[np.ndarray, " k"]:
        """The eigenvalues of the Hessian along a face, ascending."""
        return np.linalg.eigvalsh(self._seen(value, position, face).bend)

    def index(self, value: float, position: Float[np.ndarray, " d"], face: Face) -> int:
        """The index along a face: the number of negative eigenvalues of the Hessian."""
        return int(np.sum(self.curvatures(value, position, face) < 0))

    def is_meeting(self, point: CriticalPoint, position: Float[np.ndarray, " d"]) -> bool:
        """True if a position is so close to a degenerate point or line that it meets a branch."""
        return float(distance_to(point, position[None])[0]) <= _MEETING * self.width

    def met(
        self, segment: BranchSegment, value: float, points: Sequence[CriticalPoint]
    ) -> CriticalPoint | None:
        """The critical point of `points`, all at `value`, at which a segment ends; None if none."""
        position, last = segment.positions[-1], segment.point
        if not segment.is_at(segment.values[-1], value):
            return None
        at = self.nearest(position, last, [] if not segment.reached else points)
        if at is not None:
            return points[at]
        meeting = [
            point
            for point in points
            if (point.dimension or point.kind == "degenerate")
            and point.on == last.on
            and self.is_meeting(point, position)
        ]
        return min(meeting, key=lambda one: distance_to(one, position[None])[0], default=None)

    def held_beyond(self, segment: BranchSegment) -> bool:
        """True unless the point would reach or leave a wall just beyond the end of a segment."""
        onward = segment.values[-1] + _ONWARD * segment.toward
        ahead = self._predicted(segment.values[-1], segment.positions[-1], onward, segment.face)
        return ahead is not None and self._seen(onward, ahead, segment.face).held

    def index_change_between(
        self,
        face: Face,
        low: At,
        high: At,
    ) -> tuple[float, Float[np.ndarray, " d"], float]:
        """The value at which the index changes, the position there, and the value's uncertainty.

        `low` and `high` are pairs of a value and a position on either side of the change.
        """
        index = self.index(*low, face)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low[0] + high[0])
            if middle in (low[0], high[0]):
                break
            room = float(np.linalg.norm(high[1] - low[1])) + _SHAKY * self.width
            position = self.root(middle, 0.5 * (low[1] + high[1]), face, room)
            if position is None:
                break
            same = self.index(middle, position, face) == index
            low, high = ((middle, position), high) if same else (low, (middle, position))
        return 0.5 * (low[0] + high[0]), 0.5 * (low[1] + high[1]), 0.5 * (high[0] - low[0])

    def _face(self, point: CriticalPoint) -> Face | None:
        """The face on which a critical point can move; None if it cannot be followed.

        Lines, manifolds and degenerate points cannot be followed.
        """
        size = len(point.position)
        if point.dimension or point.kind == "degenerate":
            return None
        if not point.on:
            return Face.everywhere(size)
        normals, offsets = self.walls
        if len(offsets) < len(point.on):
            return None
        gaps = np.abs(normals @ point.position - offsets)
        chosen = np.argsort(gaps)[: len(point.on)]
        if np.any(gaps[chosen] > _SHAKY * self.width):
            return None
        return Face.wall(normals[chosen], offsets[chosen], point.on)

    def _stepped(
        self, value: float, position: Float[np.ndarray, " d"], goal: float, face: Face
    ) -> Float[np.ndarray, " d"] | None:
        """The position of a critical point at `goal`, by one step; None if it is rejected."""
        shaky = _SHAKY * self.width
        ahead = self._predicted(value, position, goal, face)
        if ahead is None:
            return None
        moved = float(np.linalg.norm(ahead - position))
        there = self.root(goal, ahead, face, _BENT * moved + shaky)
        if there is None or not self._seen(goal, there, face).held:
            return None
        behind = self._predicted(goal, there, value, face)
        back = None if behind is None else self.root(value, behind, face, moved + shaky)
        if back is None or np.linalg.norm(back - position) > shaky:
            return None
        return there

    def _predicted(
        self, value: float, position: Float[np.ndarray, " d"], goal: float, face: Face
    ) -> Float[np.ndarray, " d"] | None:
        """The predicted position at `goal`: a Newton step with slope there and Hessian here."""
        here, there = self._seen(value, position, face), self._seen(goal, position, face)
        step = _newton(there.slope, here.bend, self.width)
        if step is None or np.linalg.norm(step) > self.width:
            return None
        return position + face.along @ step

    def root(
        self, value: float, guess: Float[np.ndarray, " d"], face: Face, room: float
    ) -> Float[np.ndarray, " d"] | None:
        """The root that Newton's method finds within a distance `room` of a guess, or None."""
        position, length = guess, np.inf
        for _ in range(_CORRECTOR_STEPS):
            seen = self._seen(value, position, face)
            step = _newton(seen.slope, seen.bend, self.width)
            if step is None:
                return None
            position, length = position + face.along @ step, float(np.linalg.norm(step))
            if np.linalg.norm(position - guess) > room:
                return None
            if length <= EXACT_STEP * self.width:
                break
        return position if length <= _SHAKY * self.width else None

    def _seen(self, value: float, position: Float[np.ndarray, " d"], face: Face) -> _Seen:
        inner = position - _SHAKY * self.width * np.sum(face.pseudo_inverse, axis=1)
        here = self._derivatives(value, *map(tuple, (position, inner)))
        slope = face.along.T @ here.gradient[0]
        bend = face.along.T @ here.hessian[0] @ face.along
        presses = bool(np.all(-here.gradient[0] @ face.pseudo_inverse > 0))
        return _Seen(slope, bend, presses and bool(here.inside[1]))


def _newton(
    slope: Float[np.ndarray, " k"], bend: Float[np.ndarray, "k k"], width: float
) -> Float[np.ndarray, " k"] | None:
    """Newton's step; None if it is not finite."""
    if not len(slope):
        return slope
    step = root_step(slope[None], bend[None], width)[0][0]
    return step if np.all(np.isfinite(step)) else None


def _in_arrays(flow: AbstractFlow) -> AbstractFlow:
    """A flow with its numbers as arrays, so that one compiled program serves for all values."""
    with jax.enable_x64(True):
        return cast(flow, np.float64)


def _as_it_is(flow: AbstractFlow) -> AbstractFlow:
    return flow


def _takes_arrays(flow: AbstractFlow, size: int) -> bool:
    """False if the flow needs a number as a Python value, for example in an `if`."""
    state = jax.ShapeDtypeStruct((size,), np.float64)
    with jax.enable_x64(True):
        try:
            eqx.filter_eval_shape(lambda held, y: held.potential(y), _in_arrays(flow), state)
        except TypeError:
            return False
    return True
