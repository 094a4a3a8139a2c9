"""Critical points on walls of the domain, and on absorbing edges.

On a wall, a sliding flow is at rest at Karush–Kuhn–Tucker points: the gradient along the wall is
zero, and −∇L is a combination of outward normals with positive multipliers. Each set of walls with
linearly independent normals is a face, on which all walls of the set meet. On each face, Newton's
method runs with gradient and Hessian restricted to an orthonormal basis of the face; roots with
positive multipliers are kept. Rates are eigenvalues of the Hessian along the face, in the metric of
the sliding flow, M − M Nᵀ (N M Nᵀ)⁻¹ N M, with the normals as the rows of N.

An absorbing edge x = 0 does not belong to the domain, so the field is evaluated beside it, at two
distances that are as small as float64 permits. If ∇L along the edge tends to zero as a power of the
distance, and the flow leads onto the edge everywhere, the whole edge is critical. Otherwise both
distances are searched like walls, and points that agree are critical points on the edge.

n: points; m: walls; d: components; k: components along a face.

Source: Nocedal and Wright, Numerical Optimization (2006), chapter 12.
"""

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import null_space

from flowlab.critical.critical_sets import CriticalSet, critical_set, distance_to
from flowlab.critical.derivatives import (
    Derivatives,
    curvatures,
    derivatives_at,
    first_of_each,
    newton,
    rates_of,
    restricted,
)
from flowlab.critical.tolerances import FAINT, NUMBERS, ROOT_STEP, ROOTS_APART
from flowlab.critical.types import CriticalPoint, kind_of
from flowlab.flow import AbstractFlow

__all__ = ["Face", "Search", "absorbing_edges", "faces", "is_at", "settled"]

_ROOT_PART = 1e-3  # of each component: the largest step at a root, if states must be positive
_PRESSING = 1e-13  # of the largest slope in the region: a smaller slope exerts no pressure
_DEEP = (1e-120, 1e-60, 1e-30, 1e-15, 1e-8, 1e-4, 1e-2)  # of the upper end: distances to an edge
_CORNER = 1e-20  # of the upper end: the distance from other edges at which an edge is searched
_VANISHES_AS = 1e-3  # the smallest power of the distance that counts as vanishing
_ALONG = 33  # points along an edge


class Search(NamedTuple):
    """The data of a search: the flow, the region and the starts.

    Attributes:
        flow: The flow.
        ends: The region: lower and upper ends, shape (d, 2).
        guesses: Starts of the search, shape (n, d).
        scale: A typical |∇L|.
        width: The length of the region's diagonal.
    """

    flow: AbstractFlow
    ends: Float[np.ndarray, "d 2"]
    guesses: Float[np.ndarray, "n d"]
    scale: float
    width: float

    def holds(self, positions: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
        """Mask of the positions in the region, or on its sides up to rounding."""
        slack = ROOT_STEP * self.width
        low, high = self.ends.T
        return np.all((positions >= low - slack) & (positions <= high + slack), axis=1)

    def clipped(self, positions: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Positions, of which those on a side of the region up to rounding are put onto it."""
        inner = np.clip(positions, self.ends[:, 0], self.ends[:, 1])
        return np.where(self.holds(positions)[:, None], inner, positions)


class Face(NamedTuple):
    """A face: the intersection of some walls, and the directions along it.

    Attributes:
        normals: Outward normals of the walls, shape (m, d).
        offsets: Offsets of the walls, shape (m,).
        along: Orthonormal directions along all walls, as columns, shape (d, k).
        pseudo_inverse: The pseudo-inverse of the normals, shape (d, m).
        words: The equations of the walls, as text.
        least: The fraction of the largest slope in the region above which a slope counts as a
            pressure on a wall; 0 beside an edge.
    """

    normals: Float[np.ndarray, "m d"]
    offsets: Float[np.ndarray, " m"]
    along: Float[np.ndarray, "d k"]
    pseudo_inverse: Float[np.ndarray, "d m"]
    words: tuple[str, ...]
    least: float

    @classmethod
    def wall(cls, normals: np.ndarray, offsets: np.ndarray, words: tuple[str, ...]) -> "Face":
        """The face on which several walls with linearly independent normals meet."""
        pseudo_inverse = np.linalg.pinv(normals)
        return cls(normals, offsets, null_space(normals), pseudo_inverse, words, _PRESSING)

    @classmethod
    def everywhere(cls, count: int) -> "Face":
        """The face of no walls: the whole space, with all directions free."""
        return cls(np.zeros((0, count)), np.zeros(0), np.eye(count), np.zeros((count, 0)), (), 0.0)

    @classmethod
    def edge(cls, component: int, count: int, depth: float, word: str) -> "Face":
        """The face parallel to the absorbing edge of a component, at distance `depth`."""
        axes = np.eye(count)
        normal = -axes[[component]]
        along = np.delete(axes, component, axis=1)
        return cls(normal, np.array([-depth]), along, normal.T, (word,), 0.0)

    def projected(self, positions: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Positions, projected orthogonally onto the face."""
        return positions @ self.along @ self.along.T + self.pseudo_inverse @ self.offsets

    def pressing(self, there: Derivatives, width: float) -> Bool[np.ndarray, " n"]:
        """Mask of the states at which the flow presses against all walls, beyond rounding."""
        size = np.max(np.abs(there.hessian), axis=(1, 2)) * width
        with np.errstate(invalid="ignore"):
            force = -there.gradient @ self.pseudo_inverse * np.linalg.norm(self.normals, axis=1)
            least = self.least * np.maximum(size, there.steepness)
            return np.all(force > least[:, None], axis=1)

    def metric(self, metric: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "k k"]:
        """The metric of the flow that slides along the walls: M − M Nᵀ (N M Nᵀ)⁻¹ N M."""
        lifted = metric @ self.normals.T
        across = np.linalg.pinv(self.normals @ lifted)
        return self.along.T @ (metric - lifted @ across @ lifted.T) @ self.along


def faces(search: Search) -> list[CriticalPoint]:
    """The critical points of the projected flow on all walls and intersections of walls."""
    normals, offsets = search.flow.domain.walls()
    found: list[CriticalPoint] = []
    for count in range(1, min(len(normals), len(search.ends)) + 1):
        for chosen in itertools.combinations(range(len(normals)), count):
            walls = normals[list(chosen)], offsets[list(chosen)]
            if np.linalg.matrix_rank(walls[0]) == count:
                words = tuple(_equation(search.flow, n, b) for n, b in zip(*walls, strict=True))
                here = _on_face(search, Face.wall(*walls, words))
                apart = ROOTS_APART * search.width
                found += [
                    one for one in here if not any(is_at(one, other, apart) for other in found)
                ]
    return found


def _on_face(search: Search, face: Face) -> list[CriticalPoint]:
    """The critical points and lines on a face at which the flow presses against its walls."""
    flow, width = search.flow, search.width
    start = face.projected(search.guesses)
    positions, there, step, sure = newton(flow, start, width, face.along)
    steepest = np.max(np.abs(there.hessian), axis=(1, 2)) * width
    some = np.maximum(steepest, there.steepness) > FAINT * search.scale
    rooted = (sure < ROOT_STEP * width) & some & settled(flow, positions, step)
    inside = search.holds(positions) & _inside(flow, positions, face.normals)
    left = positions[rooted & face.pressing(there, width) & inside]
    left = first_of_each(search.clipped(left), ROOTS_APART * width)
    found: list[CriticalPoint] = []
    while len(left):
        position, left = left[0], left[1:]
        values, vectors = curvatures(flow, position, width, face.along)
        flat = face.along @ vectors[:, values == 0]
        whole = _set_on_face(search, face, position, flat) if flat.shape[1] else None
        if whole is None or not whole.tail:
            found.append(_held(search, face, position, whole))
        if whole is not None and len(left):
            left = left[~whole.holds(flow, left)]
    return found


def settled(
    flow: AbstractFlow, positions: Float[np.ndarray, "n d"], step: Float[np.ndarray, "n d"]
) -> Bool[np.ndarray, " n"]:
    """Mask of steps that are small relative to each component of a state that must be positive.

    All True if states may be negative.
    """
    if not flow.domain.absorbing:
        return np.ones(len(positions), bool)
    return np.all(np.abs(step) <= _ROOT_PART * np.abs(positions), axis=1)


def _set_on_face(
    search: Search, face: Face, position: np.ndarray, flat: Float[np.ndarray, "d k"]
) -> CriticalSet | None:
    def admits(state: Float[np.ndarray, " d"]) -> bool:
        return bool(face.pressing(derivatives_at(search.flow, state[None]), search.width)[0])

    flow, ends, scale = search.flow, search.ends, search.scale
    return critical_set(flow, position, flat, ends, scale, along=face.along, admits=admits)


def _held(
    search: Search, face: Face, position: np.ndarray, whole: CriticalSet | None
) -> CriticalPoint:
    """The `CriticalPoint` at a root on a face, with its kind, spectrum and rates."""
    dimension, path = 0, None
    if whole is not None:
        position, dimension, path = whole.position, whole.dimension, whole.path
    there = derivatives_at(search.flow, position[None])
    slope, bend, _ = restricted(there, face.along, search.width)
    return _constrained(
        position=position,
        on=face.words,
        value=float(there.value[0]),
        gradient_norm=float(np.linalg.norm(slope[0])),
        spectrum=curvatures(search.flow, position, search.width, face.along)[0],
        rates=rates_of(face.metric(there.metric[0]), bend[0])[0],
        dimension=dimension,
        path=path,
    )


def _inside(flow: AbstractFlow, positions: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Mask of the positions on a face that are inside all other walls and not on an edge."""
    normals, offsets = flow.domain.walls()
    slack = 1e-9 * (1 + np.abs(offsets))
    within = np.all(
        positions @ normals.reshape(-1, positions.shape[1]).T <= offsets + slack, axis=1
    )
    nudged = positions - 1e-9 * np.sum(held, axis=0) * np.max(
        np.abs(positions), axis=1, keepdims=True
    )
    return within & derivatives_at(flow, nudged).inside


def _constrained(spectrum: Float[np.ndarray, " k"], dimension: int, **facts: Any) -> CriticalPoint:
    """A critical point, line or edge on the boundary, classified by the curvatures along it."""
    kind = kind_of(spectrum, dimension)
    if dimension == len(spectrum):
        kind = "minimum"  # the only direction is onto the wall or edge
    index = int(np.sum(spectrum < 0))
    return CriticalPoint(kind=kind, index=index, spectrum=spectrum, dimension=dimension, **facts)


def is_at(one: CriticalPoint, other: CriticalPoint, apart: float) -> bool:
    """True if a critical point lies within a distance of another one, or of the other's line."""
    return bool(distance_to(other, one.position[None])[0] < apart)


def absorbing_edges(search: Search) -> list[CriticalPoint]:
    """The critical points on absorbing edges, and edges that are critical as a whole.

    An edge is critical as a whole if, at all its points in the region, the flow leads onto the edge
    and the gradient along it vanishes as a power of the distance from it. The power is estimated at
    two tiny distances, so that a power as small as the β of a loss is detected. On other edges, the
    critical points are those at which the gradient along the edge is zero and the flow leads onto
    it.
    """
    if not search.flow.domain.absorbing:
        return []
    found: list[CriticalPoint] = []
    for component in map(int, np.flatnonzero(search.ends[:, 0] <= 0)):
        whole = _edge(search, component)
        found += _on_edge(search, component) if whole is None else [whole]
    return found


def _edge(search: Search, component: int) -> CriticalPoint | None:
    """The edge of a component, if it is critical as a whole; None if not, or if undecidable."""
    flow, ends = search.flow, search.ends
    depth = _depth(search, component)
    if depth is None:
        return None
    near, deep = (_beside(search, component, fraction) for fraction in depth)
    fit = near.inside & deep.inside
    others = np.arange(len(ends)) != component
    first, last = (np.linalg.norm(at.gradient[:, others], axis=1) for at in (near, deep))
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.log(first / last) / np.log(depth[0] / depth[1])
    still = (last == 0) | (power > _VANISHES_AS)
    onto = deep.gradient[:, component] > 0
    room = search.scale * np.ptp(ends)
    finite = np.isfinite(deep.value) & (np.abs(deep.value - near.value) <= room)
    if not np.all((still & onto & finite)[fit]):
        return None
    path = None
    if len(ends) == 2:
        low, high = ends[others][0]
        path = np.outer(np.linspace(low, high, _ALONG), others.astype(float))
    nothing = np.zeros(len(ends) - 1)
    return _constrained(
        position=np.where(others, ends.mean(axis=1), 0.0),
        on=(_name(flow, component),),
        value=float(np.median(deep.value[fit])),
        gradient_norm=float(np.max(last[fit])),
        spectrum=nothing,
        rates=nothing,
        dimension=len(nothing),
        path=path,
    )


def _depth(search: Search, component: int) -> tuple[float, float] | None:
    """The two smallest distances from an edge at which the slope across it does not underflow."""
    for deep, near in itertools.pairwise(_DEEP):
        there = _beside(search, component, deep)
        across = np.abs(there.gradient[there.inside, component])
        if len(across) and np.all(np.isfinite(across) & (across > NUMBERS)):
            return near, deep
    return None


def _beside(search: Search, component: int, fraction: float) -> Derivatives:
    """Derivatives at positions beside an edge that are closer to it than to any other edge."""
    others = np.arange(len(search.ends)) != component
    high = search.ends[:, 1]
    shares = np.min(search.guesses[:, others] / high[others], axis=1, initial=1.0)
    shares = shares if fraction > _CORNER else 1.0
    positions = search.guesses.copy()
    positions[:, component] = fraction * high[component] * shares
    return derivatives_at(search.flow, positions)


def _on_edge(search: Search, component: int) -> list[CriticalPoint]:
    """The points of an edge at which the gradient along it is zero and the flow leads onto it.

    The search runs beside the edge, as on a wall, at two distances. A point found at the same
    position at both distances is a critical point of the edge.
    """
    depth = _depth(search, component)
    if depth is None:
        return []
    others = np.arange(len(search.ends)) != component
    count, high, word = len(others), search.ends[component, 1], _name(search.flow, component)
    first, last = (
        _on_face(search, Face.edge(component, count, fraction * high, word)) for fraction in depth
    )
    found: list[CriticalPoint] = []
    for one in last:
        gap = [np.abs(one.position - other.position)[others] for other in first]
        if np.isfinite(one.value) and any(np.all(g <= 1e-3 * one.position[others]) for g in gap):
            path = None if one.path is None else np.where(others, one.path, 0.0)
            position = np.where(others, one.position, 0.0)
            found.append(replace(one, position=position, path=path))
    return found


def _name(flow: AbstractFlow, component: int) -> str:
    name = flow.components[component] if flow.components else f"component {component}"
    return f"{name} = 0"


def _equation(flow: AbstractFlow, normal: Float[np.ndarray, " d"], offset: float) -> str:
    """A wall as an equation, "x_chosen + x_rejected = 1"."""
    names = flow.components or tuple(f"y{i}" for i in range(len(normal)))
    parts = [
        name if factor == 1 else f"{factor:g}·{name}"
        for factor, name in zip(normal, names, strict=True)
        if factor != 0
    ]
    return f"{' + '.join(parts)} = {offset:g}"
