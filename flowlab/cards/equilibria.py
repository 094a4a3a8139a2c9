"""Where the flow of a loss rests: points, lines and regions, found by Newton's method.

n: points; a point is (u_chosen, u_rejected).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from flowlab.cards.plane import Field, Plane, circle
from flowlab.critical import local

__all__ = ["Equilibrium", "distance", "find", "flat_around", "newton_step", "settled"]

_ITERATIONS = 60
_SINGULAR = 1e-9  # eigenvalues below this part of the larger one count as zero
_ROOT_STEP = 1e-8  # Newton's last step, relative to 1 + |u|, from which on a point is a root
_ROOT_GRADIENT = 1e-7  # and the gradient there, relative to its typical size
_NEIGHBOUR = 1e-4  # relative to 1 + |u|: how far off a root its two sides are looked at
_SAME = 1e-5  # roots closer than this part of the reach are one
_STRAIGHT = 1e-6  # of the reach, by which a straight line may bend
_STEPS = (0.02, 0.005, 0.001)  # of the reach, with which a line is traced: the longest that holds
_LONGEST_TRACE = 400  # such steps
_MOST_LINES = 12  # that are traced
_BESIDE = 0.01  # of the reach: roots so near to a traced line belong to it
_BALL = 1e-4  # of the reach: a flat point is flat so far around
_DEGENERATE = 1e-6  # curvature at a root, relative to that beside it, which is none


@dataclass(frozen=True)
class Equilibrium:
    """A point, a line or a region where the velocity vanishes.

    Attributes:
        kind: "point", "line" (perhaps curved) or "region".
        place: Its point nearest to the reference point, as (u_chosen, u_rejected).
        stability: "stable", "unstable", "saddle", or "neutral" (no curvature tells).
        rates: Eigenvalues of K·Hessian at `place`, ascending, per unit of flow time: small
            deviations die out as e^{−rate·t}. 0 along a line and in a region.
        margin: The margin u_chosen − u_rejected, where it is the same all along; else None.
        straight: Whether a line is straight; True for a point or region.
        path: Points along a line, one after the other, to the edge of the square or all round.
    """

    kind: Literal["point", "line", "region"]
    place: tuple[float, float]
    stability: Literal["stable", "unstable", "saddle", "neutral"]
    rates: tuple[float, float]
    margin: float | None
    straight: bool = True
    path: Float[np.ndarray, "k 2"] | None = field(default=None, compare=False, repr=False)

    @property
    def rate(self) -> float:
        """The slowest rate at which deviations die out; NaN where none does."""
        dying = [rate for rate in self.rates if rate > 0]
        return min(dying, default=float("nan"))


def find(plane: Plane, guesses: Float[np.ndarray, "n 2"]) -> tuple[Equilibrium, ...]:
    """The equilibria within reach that Newton's method finds from many guesses.

    A tail along which the gradient falls to zero has none: there Newton's step does not shrink.
    Kinks are not found: what a line does that comes to rest at one, its approach tells.
    """
    points = _refined(plane, guesses)
    found_field = plane.field(points)
    rank = np.sum(_curved(found_field.hessian), axis=1)
    within = np.max(np.abs(points), axis=1) <= plane.reach
    rooted = settled(plane, points, found_field) & within
    found = [*_points(plane, points[rooted & (rank == 2)])]
    found += _lines(plane, points[rooted & (rank == 1)])
    found += _regions(plane, guesses)
    return tuple(sorted(found, key=lambda e: float(np.hypot(*e.place))))


def newton_step(field: Field) -> Float[np.ndarray, "n 2"]:
    """Newton's step to a zero of the gradient, of least length where the Hessian is singular."""
    return local.newton_step(field.gradient, field.hessian)


def settled(plane: Plane, points: Float[np.ndarray, "n 2"], field: Field) -> Bool[np.ndarray, " n"]:
    """Which points are roots of the gradient, and neither tails nor flat.

    On both sides of a root, along every axis of curvature, the slope has opposite signs; in a tail,
    however steep, it has one.
    """
    size = 1 + np.linalg.norm(points, axis=1)
    with np.errstate(over="ignore"):
        near = np.linalg.norm(newton_step(field), axis=1) < _ROOT_STEP * size
        small = np.linalg.norm(field.gradient, axis=1) < _ROOT_GRADIENT * plane.scale
    root = near & small & np.any(_curved(field.hessian), axis=1)
    root[root] = _turns(plane, points[root], field.hessian[root])
    return root


def _turns(
    plane: Plane, points: Float[np.ndarray, "n 2"], hessian: Float[np.ndarray, "n 2 2"]
) -> Bool[np.ndarray, " n"]:
    """Whether the slope changes its sign at points, along every axis of curvature."""
    curved, axes = _curved(hessian), local.spectrum(hessian)[1]
    apart = _NEIGHBOUR * (1 + np.linalg.norm(points, axis=1, keepdims=True))
    turns = np.ones(len(points), bool)
    for k in (0, 1):
        axis = axes[:, :, k]
        before, after = (plane.field(points + s * apart * axis).gradient for s in (-1, 1))
        signs = np.sign(np.sum(axis * before, axis=1)) * np.sign(np.sum(axis * after, axis=1))
        turns &= ~curved[:, k] | (signs < 0)
    return turns


def _curved(hessian: Float[np.ndarray, "n 2 2"]) -> Bool[np.ndarray, "n 2"]:
    """Which eigenvalues of the Hessians count as not zero."""
    return local.curved(local.spectrum(hessian)[0])


def _refined(plane: Plane, guesses: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    points = np.array(guesses, float)
    for _ in range(_ITERATIONS):
        points = points + local.capped(newton_step(plane.field(points)), 0.1 * plane.reach)
    return points


def _points(plane: Plane, roots: Float[np.ndarray, "n 2"]) -> list[Equilibrium]:
    found: list[Equilibrium] = []
    for root in sorted(roots, key=lambda u: float(np.hypot(*u))):
        if all(np.hypot(*(root - e.place)) > _SAME * plane.reach for e in found):
            found.append(_described(plane, "point", root, float(root[0] - root[1])))
    return found


def _lines(plane: Plane, roots: Float[np.ndarray, "n 2"]) -> list[Equilibrium]:
    """The lines that roots lie on, each traced; roots that go on nowhere are those of a tail."""
    found: list[Equilibrium] = []
    left = roots
    for _ in range(_MOST_LINES):
        if not len(left):
            break
        path, whole = _traced(plane, left[0])
        if whole:
            found.append(_line(plane, path))
        beside = distance(left[1:], path) < _BESIDE * plane.reach
        alike = _signs(plane, left[1:]) == _signs(plane, left[:1])
        left = left[1:][~(beside & alike)]
    return found


def _signs(plane: Plane, roots: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """The sign of the larger curvature at roots."""
    values = local.spectrum(plane.field(roots).hessian)[0]
    return np.sign(values[np.arange(len(values)), np.argmax(np.abs(values), axis=1)])


def _line(plane: Plane, path: Float[np.ndarray, "k 2"]) -> Equilibrium:
    chord = path[-1] - path[0]
    length = float(np.hypot(*chord))
    along = chord / length if length > 0 else np.zeros(2)
    bend = np.abs((path - path[0]) @ np.array([-along[1], along[0]]))
    straight = length > 0 and float(bend.max()) < _STRAIGHT * plane.reach
    place = path[np.argmin(np.linalg.norm(path, axis=1))]
    for _ in range(_ITERATIONS):
        way = _tangent(plane, place)
        moved = place - 0.5 * (place @ way) * way
        place = moved + newton_step(plane.field(moved[None]))[0]
    level = straight and abs(along[0] - along[1]) < 1e-6
    margin = float(place[0] - place[1]) if level else None
    return _described(plane, "line", place, margin, straight, path)


def _tangent(plane: Plane, place: Float[np.ndarray, " 2"]) -> Float[np.ndarray, " 2"]:
    """The direction without curvature."""
    values, vectors = local.spectrum(plane.field(place[None]).hessian)
    return vectors[0][:, np.argmin(np.abs(values[0]))]


def _traced(plane: Plane, root: Float[np.ndarray, " 2"]) -> tuple[Float[np.ndarray, "k 2"], bool]:
    """The line of roots through a root, both ways to the edge of the square, or all round.

    It is not whole where the roots end inside the square, as they do in a tail whose gradient has
    become small in one direction sooner than in the other.
    """
    path = root[None]
    for part in _STEPS:
        first, ending = _half(plane, root, 1, part * plane.reach)
        if ending == "closed":
            return first, True
        second, other = _half(plane, root, -1, part * plane.reach)
        path = np.concatenate([second[:0:-1], first])
        if ending == other == "left":
            return path, True
        if "steep" in (ending, other):
            break
    return path, False


def _half(
    plane: Plane, root: Float[np.ndarray, " 2"], sign: int, step: float
) -> tuple[Float[np.ndarray, "k 2"], Literal["left", "closed", "steep", "lost"]]:
    """A line of roots followed one way, and how that ended.

    It left the square, or closed on itself; or there was no root ahead: the gradient is too steep,
    or the correction went elsewhere.
    """
    path, way = [root], sign * _tangent(plane, root)
    for _ in range(_LONGEST_TRACE):
        ahead = path[-1] + step * way
        place = ahead
        for _ in range(2):
            place = place + newton_step(plane.field(place[None]))[0]
        there = plane.field(place[None])
        if not np.linalg.norm(there.gradient[0]) < _ROOT_GRADIENT * plane.scale:
            return np.array(path), "steep"
        moved = place - path[-1]
        if np.hypot(*(place - ahead)) > 0.3 * step:
            return np.array(path), "lost"
        if np.max(np.abs(place)) > plane.reach:
            return np.array(path), "left"
        way = moved / np.hypot(*moved)
        if len(path) > 2 and np.hypot(*(place - root)) < step:
            return np.array([*path, root]), "closed"
        path.append(place)
    return np.array(path), "lost"


def distance(
    points: Float[np.ndarray, "n 2"], path: Float[np.ndarray, "k 2"]
) -> Float[np.ndarray, " n"]:
    """Distance of points from a path, and from its last pieces drawn on beyond its ends."""
    starts, pieces = path[:-1], np.diff(path, axis=0)
    if not len(pieces):
        return np.linalg.norm(points - path[0], axis=1)
    apart = points[:, None] - starts
    share = np.sum(apart * pieces, axis=2) / np.sum(pieces**2, axis=1)
    low, high = np.zeros(len(pieces)), np.ones(len(pieces))
    low[0], high[-1] = -np.inf, np.inf
    nearest = np.clip(share, low, high)[..., None] * pieces
    return np.min(np.linalg.norm(apart - nearest, axis=2), axis=1)


def _regions(plane: Plane, points: Float[np.ndarray, "n 2"]) -> list[Equilibrium]:
    """The nearest flat region, if there is one: its gradient is zero and jumps to it at an edge.

    A gradient that has underflowed is zero too, but falls to it through ever smaller values.
    """
    flat = flat_around(plane, points)
    if not flat.any():
        return []
    if flat.all():
        return [Equilibrium("region", (0.0, 0.0), "neutral", (0.0, 0.0), None)]
    outer = points[~flat]
    anchor = outer[np.argmin(np.linalg.norm(outer, axis=1))]
    inside, outside = _edges(plane, points[flat], anchor)
    there = plane.field(outside)
    steep = np.linalg.norm(there.gradient, axis=1) > 1e-100 * plane.scale
    if not steep.any():
        return []
    nearest = np.flatnonzero(steep)[np.argmin(np.linalg.norm(inside[steep], axis=1))]
    into = (inside - outside)[nearest] @ there.velocity[nearest]
    place = (float(inside[nearest, 0]), float(inside[nearest, 1]))
    stability: Literal["stable", "unstable"] = "stable" if into > 0 else "unstable"
    return [Equilibrium("region", place, stability, (0.0, 0.0), None)]


def flat_around(plane: Plane, points: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Which points have no gradient and no curvature, nor have their neighbours all round."""
    ring = _BALL * plane.reach * circle(8)
    flat = _flat(plane, points)
    around = (points[flat][:, None] + ring).reshape(-1, 2)
    flat[flat] = np.all(_flat(plane, around).reshape(-1, 8), axis=1)
    return flat


def _flat(plane: Plane, points: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    there = plane.field(points)
    still = np.all(there.gradient == 0, axis=1)
    return still & np.all(there.hessian == 0, axis=(1, 2)) & np.isfinite(there.value)


def _edges(
    plane: Plane, points: Float[np.ndarray, "n 2"], anchor: Float[np.ndarray, " 2"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Where a flat region ends on the ways from its points to one outside: the last and the first.

    The point outside is as near to the reference point as there is one.
    """
    inside, outside = points, np.broadcast_to(anchor, points.shape)
    for _ in range(60):
        middle = (inside + outside) / 2
        flat = _flat(plane, middle)[:, None]
        inside, outside = np.where(flat, middle, inside), np.where(flat, outside, middle)
    return inside, outside


def _described(
    plane: Plane,
    kind: Literal["point", "line"],
    place: Float[np.ndarray, " 2"],
    margin: float | None,
    straight: bool = True,
    path: Float[np.ndarray, "k 2"] | None = None,
) -> Equilibrium:
    hessian = plane.field(place[None]).hessian[0]
    rates = np.sort(np.linalg.eigvals(plane.kernel @ hessian).real)
    size = np.abs(rates).max()
    rates = np.where(np.abs(rates) < _SINGULAR * size, 0, rates)
    beside = plane.field(place + 0.01 * plane.reach * np.array([[1.0, 0.0], [0.0, 1.0]])).hessian
    if size < _DEGENERATE * np.linalg.norm(plane.kernel @ beside, axis=(1, 2)).max():
        rates = np.zeros(2)
    least, most = float(rates[0]), float(rates[1])
    stability: Literal["stable", "unstable", "saddle", "neutral"] = "neutral"
    if least >= 0 and most > 0:
        stability = "stable"
    elif most <= 0 and least < 0:
        stability = "unstable"
    elif least < 0 < most:
        stability = "saddle"
    where = (float(place[0]), float(place[1]))
    return Equilibrium(kind, where, stability, (least, most), margin, straight, path)
