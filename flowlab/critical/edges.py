"""What walls and absorbing edges hold: points of Karush, Kuhn and Tucker, and edges of equilibria.

n: points; m: walls; d: components.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import null_space

from flowlab.critical.local import Local, capped, local, newton_step
from flowlab.flow import AbstractFlow

__all__ = ["Held", "edges", "faces"]

_NEWTON_STEPS = 60
_ROOT_STEP = 1e-7  # of the region
_ROOT_GRADIENT = 1e-7  # of the typical gradient
_SAME = 1e-5  # of the region
_DEEP = (1e-60, 1e-120)  # of the upper end: so near to an edge its limit is read off
_VANISHES_AS = 1e-3  # the least power of the distance that counts as vanishing
_ALONG = 33  # points along an edge


@dataclass(frozen=True)
class Held:
    """A point or an edge at which walls or the boundary hold the flow.

    Attributes:
        place: Shape (d,).
        on: The walls or the edge, in words.
        value: The potential there.
        gradient_norm: |∇L| along what holds it.
        hessian: Second derivatives along what holds it.
        metric: The metric along what holds it.
        dimension: 0 for a point.
        path: Points along an edge that is a line.
    """

    place: Float[np.ndarray, " d"]
    on: tuple[str, ...]
    value: float
    gradient_norm: float
    hessian: Float[np.ndarray, "k k"]
    metric: Float[np.ndarray, "k k"]
    dimension: int = 0
    path: Float[np.ndarray, "p d"] | None = None


def faces(
    flow: AbstractFlow,
    ends: Float[np.ndarray, "d 2"],
    guesses: Float[np.ndarray, "n d"],
    scale: float,
    width: float,
) -> list[Held]:
    """The points on walls, and where several of them meet, at which the projected flow rests."""
    normals, offsets = flow.domain.walls()
    found: list[Held] = []
    for count in range(1, min(len(normals), len(ends)) + 1):
        for chosen in itertools.combinations(range(len(normals)), count):
            walls = normals[list(chosen)], offsets[list(chosen)]
            if np.linalg.matrix_rank(walls[0]) == count:
                words = tuple(_words(flow, n, b) for n, b in zip(*walls, strict=True))
                found += _on_face(flow, ends, guesses, scale, width, walls, words)
    return found


def _on_face(
    flow: AbstractFlow,
    ends: np.ndarray,
    guesses: np.ndarray,
    scale: float,
    width: float,
    walls: tuple[np.ndarray, np.ndarray],
    words: tuple[str, ...],
) -> list[Held]:
    normals, offsets = walls
    along = null_space(normals)
    onto = np.linalg.pinv(normals)
    places = guesses - (guesses @ normals.T - offsets) @ onto.T
    there, slope, bend, step, length = _newton(flow, places, along)
    for _ in range(_NEWTON_STEPS if along.shape[1] else 0):
        places = places + capped(step, 0.1 * width) @ along.T
        there, slope, bend, step, length = _newton(flow, places, along)
    steep = np.linalg.norm(slope, axis=1)
    pressing = np.all(-there.gradient @ onto > 0, axis=1)
    within = np.all((places >= ends[:, 0]) & (places <= ends[:, 1]), axis=1)
    rooted = (length < _ROOT_STEP * width) & (steep < _ROOT_GRADIENT * scale)
    found: list[Held] = []
    for i in np.flatnonzero(rooted & pressing & within & _inside(flow, places, normals)):
        if all(np.linalg.norm(places[i] - held.place) > _SAME * width for held in found):
            metric = along.T @ there.metric[i] @ along
            value = float(there.value[i])
            found.append(Held(places[i], words, value, float(steep[i]), bend[i], metric))
    return found


def _newton(
    flow: AbstractFlow, places: Float[np.ndarray, "n d"], along: Float[np.ndarray, "d k"]
) -> tuple[Local, Any, Any, Any, Any]:
    """What is there, slope and curvature along a face, Newton's step on it, and its length."""
    there = local(flow, places)
    slope = there.gradient @ along
    bend = np.einsum("ik,nij,jl->nkl", along, there.hessian, along)
    step = newton_step(slope, bend) if along.shape[1] else np.zeros_like(slope)
    length = np.linalg.norm(np.where(np.isfinite(step), step, np.inf), axis=1)
    return there, slope, bend, step, length


def _inside(flow: AbstractFlow, places: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Which places lie within the other walls and off the edges."""
    normals, offsets = flow.domain.walls()
    slack = 1e-9 * (1 + np.abs(offsets))
    within = np.all(places @ normals.T <= offsets + slack, axis=1)
    nudged = places - 1e-9 * np.sum(held, axis=0) * np.max(np.abs(places), axis=1, keepdims=True)
    return within & local(flow, nudged).inside


def edges(
    flow: AbstractFlow, ends: Float[np.ndarray, "d 2"], guesses: np.ndarray, scale: float
) -> list[Held]:
    """The edges where one component is 0 that absorb the flow and along which nothing moves.

    Along an edge the gradient is to vanish as a power of the distance from it (read off at two
    tiny distances, so that a power as small as the β of a loss is seen), and the flow is to lead
    onto it, at every point of the region that lies on it.
    """
    if not flow.domain.absorbing:
        return []
    found = [_edge(flow, ends, guesses, scale, i) for i in range(len(ends)) if ends[i, 0] <= 0]
    return [edge for edge in found if edge is not None]


def _edge(
    flow: AbstractFlow, ends: np.ndarray, guesses: np.ndarray, scale: float, component: int
) -> Held | None:
    near, deep = (_beside(flow, ends, guesses, component, part) for part in _DEEP)
    others = np.arange(len(ends)) != component
    first, last = (np.linalg.norm(at.gradient[:, others], axis=1) for at in (near, deep))
    fit = near.inside & deep.inside
    if not fit.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.log(first / last) / np.log(_DEEP[0] / _DEEP[1])
    still = (last == 0) | (power > _VANISHES_AS)
    onto = deep.gradient[:, component] > 0
    finite = np.isfinite(deep.value) & (np.abs(deep.value - near.value) <= scale * np.ptp(ends))
    if not np.all((still & onto & finite)[fit]):
        return None
    path = None
    if len(ends) == 2:
        low, high = ends[others][0]
        path = np.outer(np.linspace(low, high, _ALONG), others.astype(float))
    place = np.where(others, ends.mean(axis=1), 0.0)
    nothing = np.zeros((len(ends) - 1,) * 2)
    name = flow.components[component] if flow.components else f"component {component}"
    value = float(np.median(deep.value[fit]))
    slope = float(np.max(last[fit]))
    words = (f"{name} = 0",)
    return Held(place, words, value, slope, nothing, np.eye(len(nothing)), len(nothing), path)


def _beside(
    flow: AbstractFlow, ends: np.ndarray, guesses: np.ndarray, component: int, part: float
) -> Local:
    places = guesses.copy()
    places[:, component] = part * ends[component, 1]
    return local(flow, places)


def _words(flow: AbstractFlow, normal: Float[np.ndarray, " d"], offset: float) -> str:
    """A wall as an equation, "x_chosen + x_rejected = 1"."""
    names = flow.components or tuple(f"y{i}" for i in range(len(normal)))
    parts = [
        name if factor == 1 else f"{factor:g}·{name}"
        for factor, name in zip(normal, names, strict=True)
        if factor != 0
    ]
    return f"{' + '.join(parts)} = {offset:g}"
