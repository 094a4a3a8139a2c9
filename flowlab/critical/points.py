"""Where a flow rests: critical points, lines of them, and what a wall or an edge holds.

n: points; d: components.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optimistix
from jaxtyping import Array, Bool, Float

from flowlab import starts as starts_module
from flowlab.critical.edges import Held, edges, faces
from flowlab.critical.families import family
from flowlab.critical.local import (
    Local,
    capped,
    checked_region,
    diagonal,
    local,
    newton_step,
    rates_of,
    spectrum,
)
from flowlab.flow import AbstractFlow
from flowlab.solve import compiled

__all__ = ["CriticalPoint", "CriticalPoints", "Kind", "critical_points", "refined"]

Kind = Literal["minimum", "saddle", "maximum", "degenerate"]

_SEED = 2404_04626
_SEARCH_STEPS = 64  # of Levenberg and Marquardt's method, from each start
_NEWTON_STEPS = 60  # beyond; at a degenerate point each halves the distance
_ROOT_STEP = 1e-7  # of the region: Newton's last step at a root
_ROOT_GRADIENT = 1e-7  # of the typical gradient: what is left of it at a root
_SAME = 1e-5  # of the region: roots that are so close are one
_FLAT = 1e-6  # of the curvature beside a point: less is none
_BESIDE = 1e-2  # of the region


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """A point where the flow rests, or one of a line or manifold of such.

    Attributes:
        place: The state, shape (d,). Of a line, its point nearest to the middle of the region.
        kind: "minimum", "saddle", "maximum", or "degenerate" (curvature does not tell). Along a
            line or manifold, and on walls, the directions that are left decide.
        index: Directions in which the potential curves down.
        value: The potential there.
        gradient_norm: |∇L| there, without its part across the walls it is held by.
        spectrum: Eigenvalues of the Hessian, ascending; on walls, of the Hessian along them.
        rates: Eigenvalues of M·Hessian, ascending, per unit of flow time: small deviations from the
            point die out as e^{−rate·t}, and grow where a rate is negative.
        dimension: 0 for an isolated point, 1 for a line of equilibria, 2 and more for a manifold.
        path: Points along a line, to the sides of the region or all round, shape (k, d).
        on: The walls or edges that hold it, such as "x_rejected = 0".
    """

    place: Float[np.ndarray, " d"]
    kind: Kind
    index: int
    value: float
    gradient_norm: float
    spectrum: Float[np.ndarray, " d"]
    rates: Float[np.ndarray, " d"]
    dimension: int = 0
    path: Float[np.ndarray, "k d"] | None = field(default=None, repr=False)
    on: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Words for what it is: "saddle of index 1", "line of minima on x_rejected = 0"."""
        words: dict[str, tuple[str, str]] = {
            "minimum": ("minimum", "minima"),
            "saddle": (f"saddle of index {self.index}", f"saddles of index {self.index}"),
            "maximum": ("maximum", "maxima"),
            "degenerate": ("degenerate point", "degenerate points"),
        }
        one, many = words[self.kind]
        families = {0: one, 1: f"line of {many}"}
        name = families.get(self.dimension, f"{self.dimension}-dimensional manifold of {many}")
        return f"{name} on {' and '.join(self.on)}" if self.on else name


@dataclass(frozen=True)
class CriticalPoints:
    """The critical points of a region; "none" is an answer, and comes with what was seen instead.

    Attributes:
        points: The critical points, by their potential.
        region: Lower and upper ends, shape (d, 2).
        smallest_gradient: The smallest |∇L| met in the region away from the points: at the starts
            of the search and where it ended without a root.
        smallest_at: The state there.
        searched: Starts of the search.
        components: Names of the components of a state, where they have such.
    """

    points: tuple[CriticalPoint, ...]
    region: Float[np.ndarray, "d 2"]
    smallest_gradient: float
    smallest_at: Float[np.ndarray, " d"]
    searched: int
    components: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[CriticalPoint]:
        return iter(self.points)

    def __getitem__(self, place: int) -> CriticalPoint:
        return self.points[place]

    def of(self, kind: Kind) -> tuple[CriticalPoint, ...]:
        """The points of a kind."""
        return tuple(point for point in self.points if point.kind == kind)

    @property
    def inner(self) -> tuple[CriticalPoint, ...]:
        """The points that no wall and no edge holds."""
        return tuple(point for point in self.points if not point.on)

    def __str__(self) -> str:
        """A line for each point, or a sentence that there is none; and the smallest gradient."""
        lines = [_line(point) for point in self.points] or ["no critical point in the region"]
        where = np.array2string(self.smallest_at, precision=4, separator=", ")
        lines.append(
            f"elsewhere the gradient is at least {self.smallest_gradient:.3g}, at {where} "
            f"({self.searched} starts)"
        )
        return "\n".join(lines)


def critical_points(
    flow: AbstractFlow, region: npt.ArrayLike, *, starts: int = 256
) -> CriticalPoints:
    """All critical points of a flow that a search from many starts finds in a region.

    A point counts as critical where the gradient is a zero of Newton's method: small beside the
    typical gradient of the region, with a last step small beside its width. A tail along which the
    gradient only falls towards zero has none, for there Newton's step does not shrink. Roots that
    go on to both sides along a direction without curvature are one line, or manifold, of them.

    On walls of the domain the points are those of Karush, Kuhn and Tucker: the gradient along the
    wall is zero, and the flow presses outward. On an edge that absorbs (an axis of a quadrant) they
    are the points towards which the flow leads where the gradient along the edge tends to zero.

    Args:
        flow: A flow whose states are vectors.
        region: Lower and upper end of every component, shape (d, 2), finite.
        starts: Starts of the search, in a Sobol set over the region and on its sides.

    Raises:
        ValueError: If the states of the flow are no vectors of the region's length, a range is not
            (lower, upper), or the domain of the flow has no point in the region.

    Accuracy: places of isolated points with curvature are good to rounding, times the condition of
        the Hessian; of degenerate ones to 1e-7 of the region. That nothing was missed is as certain
        as the starts are dense: a basin of Newton's method smaller than 1/`starts` of the region
        can be.

    Source: Levenberg and Marquardt's method on the gradient, by optimistix, then Newton's.
    """
    ends = checked_region(region, flow)
    guesses, here = _fit_guesses(flow, ends, starts)
    scale = float(np.median(here.steepness))
    width = diagonal(ends)
    ended = _searched(flow, guesses)
    places, there, roots = refined(flow, ended, scale, width)
    within = np.all((places >= ends[:, 0]) & (places <= ends[:, 1]), axis=1) & there.inside
    found = _distinct(flow, places[roots & within], ends, width, scale)
    held = [*faces(flow, ends, guesses, scale, width), *edges(flow, ends, guesses, scale)]
    points = [*found, *(_held(flow, one) for one in held)]
    smallest, where = _smallest(guesses, here, places[within & ~roots], found, flow, width)
    return CriticalPoints(
        tuple(sorted(points, key=lambda point: point.value)),
        ends,
        smallest,
        where,
        len(guesses),
        flow.components,
    )


def refined(
    flow: AbstractFlow, places: Float[np.ndarray, "n d"], scale: float, width: float
) -> tuple[Float[np.ndarray, "n d"], Local, Bool[np.ndarray, " n"]]:
    """Places brought to the roots beside them by Newton's method, and which are roots.

    Args:
        flow: The flow.
        places: Where to begin.
        scale: A typical |∇L|.
        width: A typical distance.
    """
    there, step, length = _newton(flow, places)
    for _ in range(_NEWTON_STEPS):
        if np.all((length < 1e-15 * width) | (length > 1e3 * width)):
            break
        places = places + capped(step, 0.1 * width)
        there, step, length = _newton(flow, places)
    roots = (length < _ROOT_STEP * width) & (there.steepness < _ROOT_GRADIENT * scale)
    return places, there, roots & there.inside


def _newton(flow: AbstractFlow, places: Float[np.ndarray, "n d"]) -> tuple[Local, Any, Any]:
    there = local(flow, places)
    step = newton_step(there.gradient, there.hessian)
    return there, step, np.linalg.norm(np.where(np.isfinite(step), step, np.inf), axis=1)


def _fit_guesses(
    flow: AbstractFlow, ends: np.ndarray, count: int
) -> tuple[Float[np.ndarray, "n d"], Local]:
    """The starts of the search at which the flow is defined, and what it is there."""
    guesses = _guesses(flow, ends, count)
    here = local(flow, guesses)
    fit = here.inside & np.isfinite(here.steepness)
    if not fit.any():
        raise ValueError(
            "Argument `region` must hold states at which the flow is defined, but none of "
            f"{len(guesses)} starts in {ends.tolist()} is one."
        )
    return guesses[fit], Local(*(leaf[fit] for leaf in here))


def _guesses(flow: AbstractFlow, ends: np.ndarray, count: int) -> Float[np.ndarray, "n d"]:
    """Starts of the search all over the region, and on each of its sides."""
    low, high = ends.T
    if flow.domain.absorbing and np.all(high > 0):  # an edge of the domain is no state
        low = np.maximum(low, 1e-9 * high)
    inner = starts_module.sobol(count, low, high, seed=_SEED)
    few = inner[: max(1, count // (4 * len(ends)))]
    sides = []
    for component in range(len(ends)):
        for end in (low, high):
            side = few.copy()
            side[:, component] = end[component]
            sides.append(side)
    return np.concatenate([inner, *sides])


def _searched(flow: AbstractFlow, guesses: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Where Levenberg and Marquardt's method on the gradient ends from each guess."""
    with jax.enable_x64(True):
        return np.asarray(_least_squares(flow, guesses))


@partial(compiled, optimise=False)
def _least_squares(flow: AbstractFlow, guesses: Float[Array, "n d"]) -> Float[Array, "n d"]:
    solver = optimistix.LevenbergMarquardt(rtol=1e-12, atol=1e-12)
    domain = flow.domain

    def steepness(coordinates: Array, _: None) -> Array:
        return jax.grad(lambda q: flow.potential(domain.state(q)))(coordinates)

    def from_guess(guess: Array) -> Array:
        found = optimistix.least_squares(
            steepness,
            solver,
            domain.coordinates(guess),
            max_steps=_SEARCH_STEPS,
            throw=False,
        )
        return domain.state(found.value)

    return jax.vmap(from_guess)(jnp.asarray(guesses))


def _distinct(
    flow: AbstractFlow,
    roots: Float[np.ndarray, "n d"],
    ends: np.ndarray,
    width: float,
    scale: float,
) -> list[CriticalPoint]:
    """Isolated points and families among roots, each once."""
    found: list[CriticalPoint] = []
    left = _first_of_each(roots, _SAME * width)
    while len(left):
        root, left = left[0], left[1:]
        point = described(flow, root, width)
        flat = _flat_directions(flow, root, width)
        if flat.shape[1]:
            whole = family(flow, root, flat, ends, scale)
            if whole is not None:
                point = described(flow, whole.place, width, whole.dimension, whole.path)
                left = left[~whole.holds(flow, left)] if len(left) else left
        found.append(point)
    return found


def _first_of_each(points: Float[np.ndarray, "n d"], apart: float) -> Float[np.ndarray, "m d"]:
    kept: list[np.ndarray] = []
    for point in points:
        if all(np.linalg.norm(point - other) > apart for other in kept):
            kept.append(point)
    return np.reshape(kept, (-1, points.shape[1]))


def _flat_directions(
    flow: AbstractFlow, place: Float[np.ndarray, " d"], width: float
) -> Float[np.ndarray, "d k"]:
    """The directions at a root in which there is no curvature, beside what there is around it."""
    values, vectors = spectrum(local(flow, place[None]).hessian)
    return vectors[0][:, np.abs(values[0]) <= _no_curvature(flow, place, width)]


def _no_curvature(flow: AbstractFlow, place: Float[np.ndarray, " d"], width: float) -> float:
    """Below this an eigenvalue of the Hessian counts as zero."""
    steps = _BESIDE * width * np.concatenate([np.eye(len(place)), -np.eye(len(place))])
    around = spectrum(local(flow, np.concatenate([place[None], place + steps])).hessian)[0]
    return _FLAT * float(np.max(np.abs(around)))


def described(
    flow: AbstractFlow,
    place: Float[np.ndarray, " d"],
    width: float,
    dimension: int = 0,
    path: Float[np.ndarray, "k d"] | None = None,
) -> CriticalPoint:
    """What a root is."""
    here = local(flow, place[None])
    values = spectrum(here.hessian)[0][0]
    least = _no_curvature(flow, place, width)
    values = np.where(np.abs(values) <= least, 0, values)
    return CriticalPoint(
        place=place,
        kind=kind_of(values, dimension),
        index=int(np.sum(values < 0)),
        value=float(here.value[0]),
        gradient_norm=float(here.steepness[0]),
        spectrum=values,
        rates=rates_of(here.metric[0], here.hessian[0])[0],
        dimension=dimension,
        path=path,
    )


def kind_of(values: Float[np.ndarray, " d"], dimension: int) -> Kind:
    """The kind of a point by the eigenvalues of its Hessian, of which a family has zeros."""
    up, down, none = (int(np.sum(sign)) for sign in (values > 0, values < 0, values == 0))
    if none > dimension or up + down == 0:
        return "degenerate"
    if up and down:
        return "saddle"
    return "minimum" if up else "maximum"


def _held(flow: AbstractFlow, held: Held) -> CriticalPoint:
    """A point that walls or an edge hold, as a critical point."""
    values = np.linalg.eigvalsh(held.hessian) if held.hessian.size else np.zeros(0)
    kind = "minimum" if not len(values) else kind_of(values, held.dimension)
    if held.dimension and held.dimension == len(values):
        kind = "minimum"  # the edge itself has no other direction, and the flow leads onto it
    return CriticalPoint(
        place=held.place,
        kind=kind,
        index=int(np.sum(values < 0)),
        value=held.value,
        gradient_norm=held.gradient_norm,
        spectrum=values,
        rates=rates_of(held.metric, held.hessian)[0],
        dimension=held.dimension,
        path=held.path,
        on=held.on,
    )


def _smallest(
    guesses: Float[np.ndarray, "n d"],
    here: Local,
    ended: Float[np.ndarray, "m d"],
    found: list[CriticalPoint],
    flow: AbstractFlow,
    width: float,
) -> tuple[float, Float[np.ndarray, " d"]]:
    """The smallest gradient that was met away from the points that were found, and where."""
    states, steepness = guesses, here.steepness
    if len(ended):
        states = np.concatenate([states, ended])
        steepness = np.concatenate([steepness, local(flow, ended).steepness])
    near = np.zeros(len(states), bool)
    for point in found:
        places = point.place[None] if point.path is None else point.path
        gaps = np.linalg.norm(states[:, None] - places, axis=-1).min(axis=1)
        near |= gaps < 5 * _BESIDE * width
    if np.all(near):
        near[:] = False
    first = np.argmin(np.where(near, np.inf, steepness))
    return float(steepness[first]), states[first]


def _line(point: CriticalPoint) -> str:
    where = np.array2string(point.place, precision=6, separator=", ", suppress_small=True)
    rates = np.array2string(point.rates, precision=4, separator=", ")
    words = f"{point.name} at {where}: L = {point.value:.6g}, |∇L| = {point.gradient_norm:.1e}"
    return f"{words}, rates {rates} per unit of flow time"
