"""Lines and manifolds of critical points, traced from one of their points.

A root at which the Hessian has a null vector may belong to a line of roots. A predictor–corrector
method traces this line in both directions, until it reaches a side of the region or closes: a step
of 0.005 of the region's diagonal along the null vector, then Newton's method back to a root. If the
corrector fails or returns to the first root, or if the path is shorter than 0.1 of the diagonal,
neither closes nor ends at sides, and is no tail, the root is an isolated degenerate point. A path
can also be a tail of the potential: the slope along it is hidden by rounding of the curvature
across it, but has one sign and decreases monotonically. A path is cut where the number of positive
or negative curvatures across it changes. A manifold of higher dimension is represented by one of
its points; other roots belong to it if a walk along flat directions leads from them to this point.

k: points of a path; d: components.

Source: Allgower and Georg, Numerical Continuation Methods (1990), chapter 2, for predictors and
correctors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from flowlab.critical.derivatives import (
    derivatives_at,
    diagonal,
    restricted,
    root_step,
    spectrum,
)
from flowlab.critical.tolerances import AROUND, EXACT_STEP, ROOT_STEP, ROOTS_APART
from flowlab.critical.types import CriticalPoint
from flowlab.flow import AbstractFlow

__all__ = ["CriticalSet", "critical_set", "distance_to", "distance_to_path"]

_STEP = 5e-3  # of the region: the step along a line
_LONGEST = 800  # steps in each direction
_CORRECTIONS = 4  # steps of Newton's method at each point
_STRAYED = 0.3  # of a step: a longer correction has left the line
_ALIGNED = 0.9  # the smallest cosine between a tangent and the step before it
_SETTLED = 2e-2  # of a step: the largest final step of Newton's method
_NO_SLOPE = 1e-13  # of the typical gradient: a smaller slope is rounding
_SHORT = 0.1  # of the region: a shorter path inside it is a very flat point
_TOLD = 10  # the number of slopes along a path from which a tail is recognised
_BESIDE_LINE = 1e-2  # of the region: roots so close to a traced line belong to it
_LEVEL = 1e-6  # of the largest curvature: a direction with less may belong to a manifold
_WALK, _WALKS = 0.05, 100  # of the region: the step of a walk on a manifold; the number of steps
_TELLING = 1e-8  # of the largest curvature nearby: a smaller one does not decide the kind


@dataclass(frozen=True)
class CriticalSet:
    """A connected set of critical points: a line or a manifold.

    Attributes:
        position: The point nearest to the middle of the region.
        dimension: 1 for a line, 2 or more for a manifold.
        path: Points along a line; None for a manifold.
        pieces: The path, cut where the signs of the curvatures across the line change.
        width: A typical distance in the region.
        tail: Whether the path is not a critical set but a tail of the potential: the slope along it
            has one sign and decreases monotonically, although rounding hides it.
    """

    position: Float[np.ndarray, " d"]
    dimension: int
    path: Float[np.ndarray, "k d"] | None
    pieces: tuple[Float[np.ndarray, "k d"], ...]
    width: float
    tail: bool = False

    def holds(self, flow: AbstractFlow, points: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
        """Mask of the roots that belong to the set: close to its line, or connected by a walk.

        A root close to the line whose largest curvature has the opposite sign belongs to another
        line.
        """
        if self.path is None:
            return _walked(flow, points, self.position, self.dimension, self.width)
        apart = distance_to_path(points, self.path)
        nearest = np.argmin(np.linalg.norm(points[:, None] - self.path, axis=2), axis=1)
        alike = _signs(flow, points) * _signs(flow, self.path)[nearest] >= 0
        return (apart < ROOTS_APART * self.width) | (alike & (apart < _BESIDE_LINE * self.width))


@dataclass(frozen=True)
class _Tracer:
    """A predictor–corrector method for lines of critical points, with the data that it needs.

    Attributes:
        flow: The flow.
        ends: The region: lower and upper ends.
        width: The length of the region's diagonal.
        scale: A typical |∇L|.
        along: Directions of the face that the line lies on, as columns.
        admits: A further condition on roots.
    """

    flow: AbstractFlow
    ends: Float[np.ndarray, "d 2"]
    width: float
    scale: float
    along: Float[np.ndarray, "d k"]
    admits: Callable[[Float[np.ndarray, " d"]], bool]

    @property
    def sides(self) -> tuple[Float[np.ndarray, "s d"], Float[np.ndarray, " s"]]:
        """Outward unit normals and offsets of the region and of the walls of the domain."""
        normals, offsets = self.flow.domain.walls()
        lengths = np.linalg.norm(normals, axis=1)
        one = np.eye(len(self.ends))
        walls = normals.reshape(-1, len(one)) / lengths[:, None]
        known = np.concatenate([self.ends[:, 1], -self.ends[:, 0], offsets / lengths])
        return np.concatenate([one, -one, walls]), known

    def seen(self, position: Float[np.ndarray, " d"]) -> tuple[Any, Any, Any]:
        """Slope and Hessian along the face at a position, and the scale of rounding or None."""
        return restricted(derivatives_at(self.flow, position[None]), self.along, self.width)

    def corrected(
        self, position: Float[np.ndarray, " d"]
    ) -> tuple[Float[np.ndarray, " d"], float, Float[np.ndarray, "1 k k"]]:
        """The root near a position, the length of the next Newton step, and the Hessian there."""
        left = np.inf
        for _ in range(_CORRECTIONS):
            slope, bend, floor = self.seen(position)
            if np.linalg.norm(slope) <= _NO_SLOPE * self.scale:
                return position, 0.0, bend
            steps, lengths = root_step(slope, bend, self.width, floor)
            left = float(lengths[0])
            if not np.all(np.isfinite(steps)) or left > self.width:
                return position, np.inf, bend
            position = position + self.along @ steps[0]
            if left <= EXACT_STEP * self.width:
                return position, left, bend
        return position, left, self.seen(position)[1]

    def goes_on(self, root: Float[np.ndarray, " d"], step: Float[np.ndarray, " d"]) -> bool:
        """True if Newton's method, started one step from a root, finds another root about there."""
        there, left, _ = self.corrected(root + step)
        length = float(np.linalg.norm(step))
        moved = float(np.linalg.norm(there - root))
        settled = left < _SETTLED * length and 0.8 * length < moved < 1.25 * length
        return settled and self.admits(there)

    def traced(
        self, root: Float[np.ndarray, " d"], direction: Float[np.ndarray, " d"]
    ) -> tuple[Float[np.ndarray, "k d"], bool]:
        """The line through a root in both directions, and whether it is complete.

        A complete line closes or ends at sides of the region.
        """
        first, whole = self.half(root, direction)
        if whole and len(first) > 1 and np.all(first[0] == first[-1]):
            return first, True
        second, other = self.half(root, -direction)
        return np.concatenate([second[:0:-1], first]), whole and other

    def half(
        self, root: Float[np.ndarray, " d"], direction: Float[np.ndarray, " d"]
    ) -> tuple[Float[np.ndarray, "k d"], bool]:
        """The line from a root in one direction, and whether it is complete (see `traced`)."""
        step = _STEP * self.width
        normals, offsets = self.sides
        path = [root]
        for _ in range(_LONGEST):
            ahead = path[-1] + step * direction
            position, left, bend = self.corrected(ahead)
            if np.any(normals @ position > offsets + ROOT_STEP * self.width):
                path.append(_cut(path[-1], position, normals, offsets))
                return np.array(path), True
            strayed = np.linalg.norm(position - ahead) > _STRAYED * step
            if left > _SETTLED * step or strayed or not self.admits(position):
                break
            path.append(position)
            if len(path) > 3 and np.linalg.norm(position - root) < step:
                return np.array([*path, root]), True
            values, vectors = spectrum(bend)
            tangent = self.along @ vectors[0][:, np.argmin(np.abs(values[0]))]
            moved = position - path[-2]
            # Without curvature across the line, its tangent is not determined.
            known = abs(tangent @ moved) > _ALIGNED * np.linalg.norm(moved)
            direction = (
                tangent * np.sign(tangent @ direction) if known else moved / np.linalg.norm(moved)
            )
        return np.array(path), False


def critical_set(
    flow: AbstractFlow,
    root: Float[np.ndarray, " d"],
    flat: Float[np.ndarray, "d k"],
    ends: Float[np.ndarray, "d 2"],
    scale: float,
    *,
    along: Float[np.ndarray, "d k"] | None = None,
    admits: Callable[[Float[np.ndarray, " d"]], bool] = lambda position: True,
) -> CriticalSet | None:
    """The critical set that a root belongs to; None if the root is isolated.

    Args:
        flow: The flow.
        root: A critical point of the flow.
        flat: The directions without curvature at the root, as columns.
        ends: The region: lower and upper ends.
        scale: A typical |∇L|.
        along: The directions of the face on which the root lies, as columns; None for all.
        admits: A further condition on the roots of the set.
    """
    width = diagonal(ends)
    face = np.eye(len(root)) if along is None else along
    tracer = _Tracer(flow, ends, width, scale, face, admits)
    step = 0.2 * _STEP * width
    ways = [
        direction
        for direction in flat.T
        if any(tracer.goes_on(root, s * step * direction) for s in (-1, 1))
    ]
    if not ways:
        return None
    if len(ways) > 1:
        return CriticalSet(root, len(ways), None, (), width)
    path, whole = tracer.traced(root, ways[0])
    tail = _falls(flow, path)
    short = np.sum(np.linalg.norm(np.diff(path, axis=0), axis=1)) < _SHORT * width
    if short and not (whole or tail):
        return None
    path = np.clip(path, ends[:, 0], ends[:, 1])
    position = path[np.argmin(np.linalg.norm(path - ends.mean(axis=1), axis=1))]
    return CriticalSet(position, 1, path, _pieces(tracer, path, position), width, tail)


def _signs(flow: AbstractFlow, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """The sign, at each point, of the curvature of largest magnitude."""
    values = spectrum(derivatives_at(flow, points).hessian)[0]
    return np.sign(values[np.arange(len(values)), np.argmax(np.abs(values), axis=1)])


def _falls(flow: AbstractFlow, path: Float[np.ndarray, "k d"]) -> bool:
    """True for a path along which the slope of the potential has one sign and is monotonic."""
    inner = path[1:-1]
    slope = np.sum(derivatives_at(flow, inner).gradient * (path[2:] - path[:-2]), axis=1)
    told = slope[slope != 0]
    if len(told) < _TOLD or np.any(np.sign(told) != np.sign(told[0])):
        return False
    steps = np.diff(np.abs(slope))
    return bool(np.all(steps <= 0) or np.all(steps >= 0)) and len(np.unique(told)) >= _TOLD


def _pieces(
    tracer: _Tracer, path: Float[np.ndarray, "k d"], position: Float[np.ndarray, " d"]
) -> tuple[Float[np.ndarray, "k d"], ...]:
    """A path, cut where the signs of the curvatures across it change."""
    bend = restricted(derivatives_at(tracer.flow, path), tracer.along, tracer.width)[1]
    values = spectrum(bend)[0]
    steps = AROUND * tracer.width * tracer.along.T
    around = derivatives_at(
        tracer.flow, np.concatenate([position + steps, position - steps])
    ).hessian
    least = _TELLING * np.max(np.abs(spectrum(around)[0]))
    flattest = np.argmin(np.abs(values), axis=1)
    values[np.arange(len(values)), flattest] = 0
    signs = np.stack([np.sum(values > least, axis=1), np.sum(values < -least, axis=1)], axis=1)
    told = np.any(signs != 0, axis=1)
    if not told.any():
        return (path,)
    # Points too close to a change to decide belong to the piece before, or to the first.
    last = np.maximum.accumulate(np.where(told, np.arange(len(path)), -1))
    signs = signs[np.where(last < 0, np.argmax(told), last)]
    cuts = 1 + np.flatnonzero(np.any(np.diff(signs, axis=0) != 0, axis=1))
    pieces = np.split(path, cuts)
    closed = len(path) > 2 and np.all(path[0] == path[-1])
    if closed and len(pieces) > 1 and np.all(signs[0] == signs[-1]):
        pieces = [np.concatenate([pieces[-1], pieces[0][1:]]), *pieces[1:-1]]
    return tuple(pieces)


def distance_to_path(
    points: Float[np.ndarray, "n d"], path: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, " n"]:
    """The distance of each point from a polygonal path."""
    if len(path) == 1:
        return np.linalg.norm(points - path[0], axis=1)
    starts, pieces = path[:-1], np.diff(path, axis=0)
    apart = points[:, None] - starts
    lengths = np.maximum(np.sum(pieces**2, axis=1), 1e-300)
    share = np.clip(np.sum(apart * pieces, axis=2) / lengths, 0, 1)
    return np.min(np.linalg.norm(apart - share[..., None] * pieces, axis=2), axis=1)


def distance_to(
    point: CriticalPoint, positions: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """The distance of each position from a critical point, or from its line."""
    return distance_to_path(positions, point.position[None] if point.path is None else point.path)


def _walked(
    flow: AbstractFlow,
    points: Float[np.ndarray, "n d"],
    goal: Float[np.ndarray, " d"],
    dimension: int,
    width: float,
) -> Bool[np.ndarray, " n"]:
    """Mask of the roots from which a walk on a manifold of roots leads to a goal.

    Each step goes towards the goal, within the flattest directions, and is followed by Newton's
    method back to a root.
    """
    here, step = np.array(points, float), _WALK * width
    sizes = np.sort(np.abs(spectrum(derivatives_at(flow, here).hessian)[0]), axis=1)
    member = sizes[:, dimension - 1] <= _LEVEL * sizes[:, -1]
    arrived = np.zeros(len(here), bool)
    for _ in range(_WALKS):
        gap = goal - here
        apart = np.linalg.norm(gap, axis=1)
        arrived |= apart < step
        if arrived.all():
            break
        values, vectors = spectrum(derivatives_at(flow, here).hessian)
        order = np.argsort(np.abs(values), axis=1)[:, None, :dimension]
        flat = np.take_along_axis(vectors, order, axis=2)
        move = np.einsum("nij,nkj,nk->ni", flat, flat, gap)
        length = np.linalg.norm(move, axis=1, keepdims=True)
        move = np.where(length > step, move * (step / np.maximum(length, 1e-300)), move)
        after = here + np.where(arrived[:, None], 0, move)
        for _ in range(2):
            there = derivatives_at(flow, after)
            back, _ = root_step(there.gradient, there.hessian, width)
            fits = np.isfinite(back).all(axis=1) & (np.linalg.norm(back, axis=1) < step)
            after = after + np.where(fits[:, None], back, 0)
        stuck = np.linalg.norm(after - here, axis=1) < 1e-3 * step
        here = after
        if np.all(arrived | stuck):
            break
    return arrived & member


def _cut(
    inside: np.ndarray, outside: np.ndarray, normals: np.ndarray, offsets: np.ndarray
) -> Float[np.ndarray, " d"]:
    """The point at which a segment, from a point inside to a point outside, leaves the region."""
    direction = outside - inside
    rises, room = normals @ direction, offsets - normals @ inside
    leaves = rises > 1e-9 * np.linalg.norm(direction)
    shares = room[leaves] / rises[leaves]
    return inside + float(np.clip(np.min(shares, initial=1.0), 0, 1)) * direction
