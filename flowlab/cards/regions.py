"""Facts of a card that come from the field: plateaus, falls, conserved quantities, bounds.

On a plateau the speed is below a hundredth of the speed at the reference point, away from critical
points; a grid is searched for such points. The chosen log-ratio falls where its component of the
velocity v = −K ∇L is negative. If the margin h, u_w or u_l alone decides where that holds, the
region is described by an interval of this variable, with ends from bisection. a·u_w + b·u_l is
conserved if all velocities on the grid are parallel (by a singular value decomposition);
a·e^{c·u_w} + b·e^{c·u_l} is conserved if log(−v_w/v_l) is linear in u_w − u_l. The loss is bounded
below if its decrease per decade of the radius tends to 0 along each of 65 rays.

n: points; a point is (u_chosen, u_rejected).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from flowlab._names import FormerName
from flowlab.cards.critical_sets import BALL, CriticalSet
from flowlab.cards.plane import Plane
from flowlab.critical.critical_sets import distance_to_path
from flowlab.critical.flat_regions import flat_around
from flowlab.critical.tolerances import NUMBERS, UNDERFLOWN

__all__ = ["Bound", "Fall", "Plateau", "bound", "conserved", "fall", "plateau"]

SLOW = 0.01  # of the speed at the reference point: slower is a plateau
_POINTS_A_SIDE = 81  # points of the grid per side
_CLEAR = 0.05  # of the reach: states closer to a critical point are slow because of it
_EXPONENTIAL = 1e-6  # residual of a fit that counts as exact
_RADII = 10  # decades of radii, from the reach on
_ENDLESS = 0.99  # of the decrease in one decade: the least in the next on an unbounded ray
_SETTLING = 0.5  # of the decrease in one decade: the most in the next on a bounded ray
_FINER = 20  # levels per level of the grid, of a variable that decides where the chosen falls
_OFFSETS = 9  # offsets in the other coordinate, at which a bound is computed
_OPEN = ""  # an end at infinity
_VARIABLES: dict[str, Float[np.ndarray, " 2"]] = {
    "h": np.array([1.0, -1.0]),
    "u_w": np.array([1.0, 0.0]),
    "u_l": np.array([0.0, 1.0]),
}


@dataclass(frozen=True)
class Plateau:
    """The slow region with a negative margin, away from critical points.

    Slow means a speed below a hundredth of the speed at the reference point.

    Attributes:
        fraction: Area of the region as a fraction of the part of the square with a negative margin.
        distance: Distance of the region from the reference point, nats; NaN if it is empty.
    """

    fraction: float
    distance: float

    share = FormerName("fraction")


@dataclass(frozen=True)
class Fall:
    """The region of the plane in which the flow lowers the chosen log-ratio.

    If the kernel is the identity, the two responses are not coupled, and the chosen log-ratio falls
    where ∂L/∂u_chosen > 0.

    Attributes:
        fraction: Area of the region as a fraction of the square.
        reference: Whether the reference point lies in the region.
        where: A condition on the margin h, on u_w or on u_l that describes the region, such as
            "h > 100"; "" if the region is empty, "no simple condition" if there is none. A bound
            that depends on the other coordinate is stated as a range, as in "u_w > 5…6".
    """

    fraction: float
    reference: bool
    where: str

    share = FormerName("fraction")


@dataclass(frozen=True)
class Bound:
    """The lower bound of a loss, as far as rays from the reference point can tell.

    Attributes:
        below: Whether the loss is bounded below; None if the loss falls too slowly to decide.
        lowest: The lowest value found, out to 1e9 times the reach; −inf if the loss is unbounded.
    """

    below: bool | None
    lowest: float


def plateau(plane: Plane, critical_sets: Sequence[CriticalSet]) -> Plateau:
    """The slow region with a negative margin, away from critical points."""
    points = plane.square(_POINTS_A_SIDE)
    points = points[points[:, 0] < points[:, 1]]
    field = plane.field(points)
    reference = float(plane.reference.speed[0])
    typical = reference if reference > 0 else plane.scale * np.linalg.norm(plane.kernel, 2)
    with np.errstate(invalid="ignore"):
        slow = (field.speed < SLOW * typical) & _away(plane, points, critical_sets)
    if not slow.any():
        return Plateau(0.0, float("nan"))
    nearest = np.linalg.norm(points[slow], axis=1).min()
    return Plateau(float(np.mean(slow)), float(nearest))


def fall(plane: Plane) -> Fall:
    """The region in which the flow, under the kernel of the plane, lowers the chosen log-ratio."""
    points = plane.square(_POINTS_A_SIDE)
    falling = _descent(plane, points) > 0
    at_reference = bool(_descent(plane, np.zeros((1, 2)))[0] > 0)
    if not falling.any():
        return Fall(0.0, at_reference, "")
    return Fall(float(np.mean(falling)), at_reference, _condition(plane, points, falling))


def conserved(plane: Plane) -> str:
    """A quantity constant along every flow line, as a formula in u_w and u_l; "" if none is found.

    Two forms are tried: a·u_w + b·u_l and a·e^{c·u_w} + b·e^{c·u_l}, a sum of powers of the
    probability ratios.
    """
    field = plane.field(plane.square(_POINTS_A_SIDE))
    velocity = field.velocity[np.all(np.isfinite(field.velocity), axis=1)]
    # Velocities that have nearly underflowed have lost their direction.
    velocity = velocity[np.linalg.norm(velocity, axis=1) > NUMBERS]
    if not len(velocity):
        return ""
    linear = _linear(velocity / np.linalg.norm(velocity, axis=1, keepdims=True))
    return linear or _powers(plane)


def bound(
    plane: Plane, critical_sets: Sequence[CriticalSet], end: Float[np.ndarray, " 2"]
) -> Bound:
    """The lower bound of the loss, from its values along rays out to 1e9 times the reach.

    There are 64 rays in all directions, and one to the end of the line from the reference point.
    The loss is unbounded on a ray if it decreases by at least as much in each decade of the radius
    as in the decade before. It is bounded on the ray if it decreases by clearly less in each decade
    than in the decade before. Otherwise `below` is None.
    """
    size = np.max(np.abs(end))
    far = end / size if np.isfinite(size) and size > 0 else np.array([1.0, 0.0])
    rays = np.concatenate([_rays(), far[None]])
    radii = plane.reach * 10.0 ** np.arange(_RADII)
    values = plane.field((radii[:, None, None] * rays).reshape(-1, 2)).value
    values = values.reshape(_RADII, -1)
    # Far out, rounding displaces points across the last ray, but not across the others.
    least = np.r_[np.full(len(rays) - 1, 1e-9), 1e-9 * radii[-1] * plane.scale]
    positions = np.array([rest.position for rest in critical_sets]).reshape(-1, 2)
    inner = plane.field(np.concatenate([plane.square(_POINTS_A_SIDE), positions])).value
    if np.any(np.isneginf(values)) or np.any(np.isneginf(inner)):
        return Bound(False, float("-inf"))
    floor = float(np.nanmin(inner))
    with np.errstate(invalid="ignore"):
        drops = -np.diff(values[-3:], axis=0)
        falling = np.all(drops > least * (1 + abs(floor)), axis=0)
        endless = falling & (drops[1] > _ENDLESS * drops[0])
        slowing = falling & ~endless & (drops[1] > _SETTLING * drops[0])
    if endless.any():
        return Bound(False, float("-inf"))
    lowest = min(floor, float(np.nanmin(values)))
    return Bound(None if slowing.any() else True, lowest)


def _rays() -> Float[np.ndarray, "n 2"]:
    """Directions of rays: points on the edge of a square, with short binary coordinates."""
    side = np.arange(-8, 8) / 8
    edge = np.stack([side, np.ones(16)], axis=1)
    turned = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([edge @ np.linalg.matrix_power(turned, k) for k in range(4)])


def _away(
    plane: Plane, points: Float[np.ndarray, "n 2"], critical_sets: Sequence[CriticalSet]
) -> Bool[np.ndarray, " n"]:
    """A mask of the points that are far from all critical sets."""
    away = np.ones(len(points), bool)
    for rest in critical_sets:
        if rest.kind == "region":
            away &= ~flat_around(plane.flow, points, BALL * plane.reach)
            continue
        path = np.asarray([rest.position]) if rest.path is None else rest.path
        away &= distance_to_path(points, path) > _CLEAR * plane.reach
    return away


def _condition(
    plane: Plane, points: Float[np.ndarray, "n 2"], falling: Bool[np.ndarray, " n"]
) -> str:
    """A condition on h, u_w or u_l that describes a set of points; see `Fall.where`."""
    for name, direction in _VARIABLES.items():
        value = np.round(points @ direction, 9)
        levels, index = np.unique(value, return_inverse=True)
        inside = np.bincount(index, falling) / np.bincount(index)
        if np.all((inside == 0) | (inside == 1)):
            finer = np.linspace(levels[0], levels[-1], _FINER * (len(levels) - 1) + 1)
            along = direction / (direction @ direction)
            there = _descent(plane, finer[:, None] * along) > 0
            # Strips between two levels of the grid need finer levels; an end that depends on the
            # other coordinate needs the larger distance of coarse levels.
            if _flips(there) > _flips(inside == 1):
                return " or ".join(_intervals(plane, name, finer, there))
            return " or ".join(_intervals(plane, name, levels, inside == 1))
    return "no simple condition"


def _flips(inside: Bool[np.ndarray, " m"]) -> int:
    return int(np.sum(inside[1:] != inside[:-1]))


def _intervals(
    plane: Plane, name: str, levels: Float[np.ndarray, " m"], inside: Bool[np.ndarray, " m"]
) -> list[str]:
    """The intervals of a variable on which the chosen log-ratio falls, with ends by bisection."""
    flips = np.flatnonzero(inside[1:] != inside[:-1])
    ends = [_end(plane, name, *levels[[i, i + 1]], falling=bool(inside[i])) for i in flips]
    lower, upper = [_OPEN, *ends], [*ends, _OPEN]
    kept = range(0 if inside[0] else 1, len(lower), 2)
    return [_interval(name, lower[i], upper[i]) for i in kept]


def _interval(name: str, low: str, high: str) -> str:
    if low and high:
        return f"{low} < {name} < {high}"
    if low or high:
        return f"{name} > {low}" if low else f"{name} < {high}"
    return "everywhere"


def _end(plane: Plane, name: str, low: float, high: float, *, falling: bool) -> str:
    """The value or range between two levels at which the chosen's velocity changes sign."""
    direction = _VARIABLES[name]
    along = direction / (direction @ direction)
    across = np.array([[1.0, 1.0]]) if name == "h" else 1 - np.abs(direction[None])
    room = plane.reach - max(abs(low), abs(high)) * np.abs(along).max() * (name == "h")
    offsets = max(room, 0.0) * np.linspace(-1, 1, _OFFSETS)[:, None] * across
    below, above = np.full((_OFFSETS, 1), low), np.full((_OFFSETS, 1), high)
    for _ in range(60):
        middle = (below + above) / 2
        same = (_descent(plane, middle * along + offsets) > 0)[:, None] == falling
        below, above = np.where(same, middle, below), np.where(same, above, middle)
    rate = _descent(plane, (below if falling else above) * along + offsets)
    if np.all(rate < UNDERFLOWN * plane.scale):
        return _OPEN
    first, last = _rounded(below.min()), _rounded(below.max())
    return first if first == last else f"{first}…{last}"


def _descent(plane: Plane, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """The rate at which the chosen log-ratio falls; 0 where it is not known."""
    rate = -plane.field(points).velocity[:, 0]
    return np.where(np.isfinite(rate), rate, 0.0)


def _rounded(number: float) -> str:
    return f"{0.0 if abs(number) < 1e-9 else number:.4g}"


def _linear(directions: Float[np.ndarray, "n 2"]) -> str:
    """The linear form that is constant along all directions; "" if there is none."""
    # Repeated, so that there are at least two rows; the full left factor would have as many
    # elements as the number of points, squared.
    _, sizes, axes = np.linalg.svd(np.tile(directions, (2, 1)), full_matrices=False)
    if sizes[1] > 1e-9 * sizes[0]:
        return ""
    chosen, rejected = axes[1] / axes[1][np.argmax(np.abs(axes[1]))]
    if chosen < 0 and rejected <= 0:
        chosen, rejected = -chosen, -rejected
    return _form([(chosen, "u_w"), (rejected, "u_l")])


def _powers(plane: Plane) -> str:
    """The sum of powers of the ratios that the flow conserves; "" if there is none.

    a·e^{c·u_w} + b·e^{c·u_l} is conserved if v_w/v_l = −(b/a)·e^{c(u_l − u_w)}, v the velocity. The
    logarithm of −v_w/v_l is then a linear function of u_w − u_l.
    """
    points = plane.square(_POINTS_A_SIDE) * min(1.0, 30 / plane.reach)
    velocity = plane.field(points).velocity
    with np.errstate(all="ignore"):
        ratio = np.log(-velocity[:, 0] / velocity[:, 1])
    tiny = np.min(np.abs(velocity), axis=1) < NUMBERS
    known = np.isfinite(ratio) & ~tiny
    one_alone = np.any(velocity == 0, axis=1) & (np.max(np.abs(velocity), axis=1) > 1e-200)
    if np.sum(known) < 10 or one_alone.any():
        return ""
    margin = (points[:, 0] - points[:, 1])[known]
    slope, level = np.polyfit(margin, ratio[known], 1)
    residual = np.max(np.abs(ratio[known] - slope * margin - level))
    # A slope within the residual means a function that is nearly constant.
    clear = abs(slope) * np.ptp(margin) > 1e4 * residual and abs(slope) > 1e-6
    if residual > _EXPONENTIAL * (1 + np.max(np.abs(ratio[known]))) or not clear:
        return ""
    power, weight = -slope, np.exp(-level)
    exponent = "" if abs(power - 1) < 1e-9 else f"{power:.4g}·"
    return _form([(weight, f"e^{{{exponent}u_w}}"), (1.0, f"e^{{{exponent}u_l}}")])


def _form(terms: Sequence[tuple[float, str]]) -> str:
    """A linear form as text, without terms whose coefficient is 0."""
    text = ""
    for weight, name in terms:
        if abs(weight) < 1e-9:
            continue
        size = "" if abs(abs(weight) - 1) < 1e-9 else f"{abs(weight):.4g}·"
        sign = ("−" if weight < 0 else "") if not text else (" − " if weight < 0 else " + ")
        text += f"{sign}{size}{name}"
    return text
