"""Lines and manifolds of equilibria: roots that go on along the directions without curvature.

k: points of a path; d: components.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from flowlab.critical.local import diagonal, local, newton_step, spectrum
from flowlab.flow import AbstractFlow

__all__ = ["Family", "family", "gaps"]

_STEP = 5e-3  # of the region, with which a line is traced
_LONGEST = 800  # such steps each way
_CORRECTIONS = 4  # of Newton's method, at each
_STRAYED = 0.3  # of a step: a correction so long has gone elsewhere
_ROOT = 1e-6  # of the typical gradient: what is left of it on a line
_BESIDE = 1e-2  # of the region: roots so near to a traced line belong to it
_LEVEL = 1e-7  # of the typical change of the potential: manifolds so close in value are one


@dataclass(frozen=True)
class Family:
    """Equilibria without a gap between them.

    Attributes:
        place: The one nearest to the middle of the region.
        dimension: 1 for a line.
        path: Points along a line; None for more dimensions.
        value: The potential, the same all along.
        width: Typical distance in the region.
        scale: Typical change of the potential in the region.
    """

    place: Float[np.ndarray, " d"]
    dimension: int
    path: Float[np.ndarray, "k d"] | None
    value: float
    width: float
    scale: float

    def holds(self, flow: AbstractFlow, points: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
        """Which roots belong to it: by their distance from a line, by their value otherwise."""
        if self.path is not None:
            return gaps(points, self.path) < _BESIDE * self.width
        return np.abs(local(flow, points).value - self.value) <= _LEVEL * self.scale


def family(
    flow: AbstractFlow,
    root: Float[np.ndarray, " d"],
    flat: Float[np.ndarray, "d k"],
    ends: Float[np.ndarray, "d 2"],
    scale: float,
) -> Family | None:
    """The family that a root belongs to; None if it goes on in none of its flat directions.

    Args:
        flow: The flow.
        root: One of its equilibria.
        flat: The directions there without curvature, as columns.
        ends: The region.
        scale: A typical |∇L|.
    """
    width = diagonal(ends)
    step = 0.2 * _STEP * width
    both = [[_corrected(flow, root + s * step * way) for s in (-1, 1)] for way in flat.T]
    goes_on = [all(_on_it(flow, there, root, step, scale) for there in pair) for pair in both]
    dimension = int(np.sum(goes_on))
    if not dimension:
        return None
    value = float(local(flow, root[None]).value[0])
    if dimension > 1:
        return Family(root, dimension, None, value, width, scale * width)
    path = _traced(flow, root, flat[:, int(np.argmax(goes_on))], ends, scale)
    place = path[np.argmin(np.linalg.norm(path - ends.mean(axis=1), axis=1))]
    return Family(place, 1, path, value, width, scale * width)


def gaps(
    points: Float[np.ndarray, "n d"], path: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, " n"]:
    """Distance of points from a path, as that from the nearest of its pieces."""
    if len(path) == 1:
        return np.linalg.norm(points - path[0], axis=1)
    starts, pieces = path[:-1], np.diff(path, axis=0)
    apart = points[:, None] - starts
    lengths = np.maximum(np.sum(pieces**2, axis=1), 1e-300)
    share = np.clip(np.sum(apart * pieces, axis=2) / lengths, 0, 1)
    return np.min(np.linalg.norm(apart - share[..., None] * pieces, axis=2), axis=1)


def _corrected(flow: AbstractFlow, place: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
    for _ in range(_CORRECTIONS):
        here = local(flow, place[None])
        step = newton_step(here.gradient, here.hessian)[0]
        if not np.all(np.isfinite(step)):
            break
        place = place + step
    return place


def _on_it(
    flow: AbstractFlow, there: np.ndarray, root: np.ndarray, step: float, scale: float
) -> bool:
    steep = local(flow, there[None]).steepness[0]
    moved = float(np.linalg.norm(there - root))
    return bool(steep < _ROOT * scale and 0.5 * step < moved < 2 * step)


def _traced(
    flow: AbstractFlow,
    root: Float[np.ndarray, " d"],
    way: Float[np.ndarray, " d"],
    ends: Float[np.ndarray, "d 2"],
    scale: float,
) -> Float[np.ndarray, "k d"]:
    """A line through a root, both ways to the sides of the region, or all round."""
    first, closed = _half(flow, root, way, ends, scale)
    if closed:
        return first
    second, _ = _half(flow, root, -way, ends, scale)
    return np.concatenate([second[:0:-1], first])


def _half(
    flow: AbstractFlow, root: np.ndarray, way: np.ndarray, ends: np.ndarray, scale: float
) -> tuple[Float[np.ndarray, "k d"], bool]:
    step = _STEP * diagonal(ends)
    path = [root]
    for _ in range(_LONGEST):
        ahead = path[-1] + step * way
        place = _corrected(flow, ahead)
        here = local(flow, place[None])
        strayed = np.linalg.norm(place - ahead) > _STRAYED * step
        if strayed or here.steepness[0] > _ROOT * scale:
            break
        if np.any((place < ends[:, 0]) | (place > ends[:, 1])):
            path.append(_cut(path[-1], place, ends))
            break
        path.append(place)
        if len(path) > 3 and np.linalg.norm(place - root) < step:
            return np.array([*path, root]), True
        values, vectors = spectrum(here.hessian)
        tangent = vectors[0][:, np.argmin(np.abs(values[0]))]
        way = tangent * np.sign(tangent @ way)
    return np.array(path), False


def _cut(inside: np.ndarray, outside: np.ndarray, ends: np.ndarray) -> Float[np.ndarray, " d"]:
    """Where the way from a point inside to one outside leaves the region."""
    way = outside - inside
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(
            way > 0,
            (ends[:, 1] - inside) / way,
            np.where(way < 0, (ends[:, 0] - inside) / way, np.inf),
        )
    return inside + min(1.0, float(shares.min())) * way
