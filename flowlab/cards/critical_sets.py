"""Critical points, lines and regions of the flow of a loss, as a card describes them.

The package `critical` finds these sets. This module adds, for each set, its point nearest to the
reference point (on a line by the secant method along the tangent), its stability from the signs of
the rates, its margin if that is constant along the set, and whether a line is straight.

n: points; a point is (u_chosen, u_rejected).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from flowlab._names import FormerName
from flowlab.cards.plane import Plane
from flowlab.critical.derivatives import diagonal, root_step, spectrum
from flowlab.critical.flat_regions import beside_flat, flat_around, rims
from flowlab.critical.points import described, distinct, refined
from flowlab.critical.tolerances import EXACT_STEP, NEWTON_STEPS
from flowlab.critical.types import CriticalPoint, Kind

__all__ = ["BALL", "CriticalSet", "find"]

Stability = Literal["stable", "unstable", "saddle", "neutral"]

_STABILITY: dict[Kind, Stability] = {
    "minimum": "stable",
    "maximum": "unstable",
    "saddle": "saddle",
    "degenerate": "neutral",
}
BALL = 1e-4  # of the reach: the distance of neighbours that must be flat too
_FRACTIONS = (0.1, 10.0)  # of the remaining tangential distance: the shortest and the longest step
_STRAIGHT = 1e-6  # of the reach: the largest deviation of a straight line; also of its direction


@dataclass(frozen=True)
class CriticalSet:
    """A point, a line or a region where the velocity vanishes.

    Attributes:
        kind: "point", "line" (perhaps curved) or "region".
        position: The point of the set nearest to the reference point, as (u_chosen, u_rejected).
        stability: "stable", "unstable", "saddle", or "neutral" (all rates are 0).
        rates: Eigenvalues of K·Hessian at `position`, ascending, per unit of flow time: small
            deviations decay as e^{−rate·t}. 0 along a line and in a region.
        margin: The margin u_chosen − u_rejected if it is constant along the set; else None.
        straight: Whether a line is straight; True for a point or region.
        path: Successive points along a line: a closed curve, or up to the edge of the square.
    """

    kind: Literal["point", "line", "region"]
    position: tuple[float, float]
    stability: Stability
    rates: tuple[float, float]
    margin: float | None
    straight: bool = True
    path: Float[np.ndarray, "k 2"] | None = field(default=None, compare=False, repr=False)

    place = FormerName("position")

    @property
    def rate(self) -> float:
        """The smallest positive one of the `rates`; NaN if none is positive."""
        dying = [rate for rate in self.rates if rate > 0]
        return min(dying, default=float("nan"))


def find(plane: Plane, guesses: Float[np.ndarray, "n 2"]) -> tuple[CriticalSet, ...]:
    """The critical points and lines on the square, and the nearest flat region.

    A tail, on which the gradient only tends to zero at infinity, is not taken for a critical set:
    Newton's iteration does not converge on it. Minima at a kink of the loss are not found; a line
    that ends at a kink has the approach `finite time`.
    """
    width, ball = diagonal(plane.region), BALL * plane.reach
    roots, _, proper = refined(plane.flow, guesses, plane.scale, width)
    within = proper & np.all(np.abs(roots) <= plane.reach, axis=1)
    flat = flat_around(plane.flow, guesses, ball)
    if flat.any():
        within[within] = ~beside_flat(plane.flow, roots[within], ball)
    points = distinct(plane.flow, roots[within], plane.region, width, plane.scale)
    found = [_in_words(plane, point) for point in points if point.dimension < 2]
    found += _regions(plane, guesses[flat], guesses[~flat])
    return tuple(sorted(found, key=_from_reference))


def _from_reference(found: CriticalSet) -> tuple[float, float, float]:
    """A sort key: the distance from the reference point, then the position."""
    return round(float(np.hypot(*found.position)), 9), *found.position


def _in_words(plane: Plane, point: CriticalPoint) -> CriticalSet:
    """The `CriticalSet` of a critical point or of a line of critical points."""
    margin: float | None = float(point.position[0] - point.position[1])
    straight, path = True, point.path
    if path is not None:
        chord = path[-1] - path[0]
        along = chord / max(float(np.hypot(*chord)), 1e-300)
        bend = np.abs((path - path[0]) @ np.array([-along[1], along[0]]))
        straight = bool(np.any(chord)) and float(bend.max()) < _STRAIGHT * plane.reach
        position = _nearest(plane, path)
        point = described(plane.flow, position, diagonal(plane.region), 1, path)
        level = straight and abs(along[0] - along[1]) < _STRAIGHT
        margin = float(position[0] - position[1]) if level else None
    (chosen, rejected), (least, most) = map(np.ndarray.tolist, (point.position, point.rates))
    kind: Literal["point", "line"] = "point" if path is None else "line"
    stability = _STABILITY[point.kind]
    return CriticalSet(kind, (chosen, rejected), stability, (least, most), margin, straight, path)


def _nearest(plane: Plane, path: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, " 2"]:
    """The point of a line that is nearest to the reference point.

    At the nearest point, the direction to the reference point is orthogonal to the tangent. The
    secant method finds the point at which the tangential component is 0, with a projection onto the
    line after each step.
    """
    first = int(np.argmin(np.linalg.norm(path, axis=1)))
    position, direction = path[first], path[min(first + 1, len(path) - 1)] - path[max(first - 1, 0)]
    fraction, before = 1.0, np.nan
    for _ in range(NEWTON_STEPS):
        values, vectors = spectrum(plane.field(position[None]).hessian)
        tangent = vectors[0][:, np.argmin(np.abs(values[0]))]
        tangent = tangent * np.sign(tangent @ direction)
        left = float(position @ tangent)
        if abs(left) <= EXACT_STEP * plane.reach:
            break
        if np.isfinite(before) and before != left:
            fraction = float(np.clip(fraction * before / (before - left), *_FRACTIONS))
        before = left
        position = position - fraction * left * tangent
        there = plane.field(position[None])
        step = root_step(there.gradient, there.hessian, diagonal(plane.region))[0][0]
        position = position + np.where(np.isfinite(step), step, 0)
    return position


def _regions(
    plane: Plane, flat: Float[np.ndarray, "n 2"], outer: Float[np.ndarray, "m 2"]
) -> list[CriticalSet]:
    """The flat region nearest to the reference point, from points inside and outside the region."""
    if not len(flat):
        return []
    if not len(outer):
        return [CriticalSet("region", (0.0, 0.0), "neutral", (0.0, 0.0), None)]
    anchor = np.broadcast_to(outer[np.argmin(np.linalg.norm(outer, axis=1))], flat.shape)
    inside, outside, jumps = rims(plane.flow, flat, anchor, plane.scale)
    if not jumps.any():
        return []
    nearest = np.flatnonzero(jumps)[np.argmin(np.linalg.norm(inside[jumps], axis=1))]
    into = (inside - outside)[nearest] @ plane.field(outside[[nearest]]).velocity[0]
    chosen, rejected = inside[nearest].tolist()
    stability: Stability = "stable" if into > 0 else "unstable"
    return [CriticalSet("region", (chosen, rejected), stability, (0.0, 0.0), None)]
