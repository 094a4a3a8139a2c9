"""The search for all critical points of a flow in a region.

A critical point is a zero of ∇L; it does not depend on the metric. The search has four stages.

1. Candidates. From a Sobol set of starts in the region and on its sides, the Levenberg–Marquardt
   method minimises |∇L|², or the gradient with respect to log x if states must be positive. From
   the same starts, 64 downhill steps on L are taken, each at most 0.02 of the region (Newton's,
   with the absolute values of the curvatures). These find narrow wells, from whose surroundings
   |∇L|² decreases outwards.
2. Roots. Newton's method on ∇L starts at every candidate. A root is accepted if the last step is
   below 1e-7 of the region's diagonal and, if states must be positive, below 1e-3 of each
   component. On a tail, ∇L only tends to zero at infinity. Newton's step then does not become small
   (for e^−y it is always 1), so that tails are not mistaken for roots. Directions in which rounding
   hides both slope and curvature are left out of the step.
3. Merging. Roots closer to each other than 1e-5 of the region's diagonal are identified, and roots
   closer than 0.05 of it to an isolated degenerate root if the midpoint is a root too. A root with
   directions of zero curvature may belong to a line or a manifold of roots, and is continued along
   these directions (`critical_sets`).
4. Classification by the signs of the eigenvalues of the Hessian. An eigenvalue counts as 0 if
   rounding or the uncertainty of the root hides its sign. Rates are the eigenvalues of M·Hessian, M
   the metric.

Points on walls and on absorbing edges are searched for in the same way along each face
(`boundary`). No search from finitely many starts is exhaustive: the docstring of `critical_points`
says, under Accuracy, which points can be missed.

n: points; d: components.

Source: Nocedal and Wright, Numerical Optimization (2006), sections 10.3 (Levenberg–Marquardt) and
3.4 (Newton's method with modified curvatures).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optimistix
from jaxtyping import Array, Bool, Float

from flowlab import starts as starts_module
from flowlab.critical.boundary import Search, absorbing_edges, faces, is_at, settled
from flowlab.critical.critical_sets import CriticalSet, critical_set, distance_to_path
from flowlab.critical.derivatives import (
    Derivatives,
    capped,
    checked_region,
    curvatures,
    derivatives_at,
    diagonal,
    first_of_each,
    newton,
    onto_walls,
    rates_of,
    root_step,
    spectrum,
)
from flowlab.critical.flat_regions import is_flat, rims
from flowlab.critical.tolerances import (
    FAINT,
    NUMBERS,
    ON_POINT,
    ROOT_STEP,
    ROOTS_APART,
)
from flowlab.critical.types import CriticalPoint, CriticalPoints, kind_of
from flowlab.flow import AbstractFlow
from flowlab.solve import compiled, one_call, operations_at

__all__ = ["critical_points", "described", "distinct", "refined"]

_SEED = 2404_04626
_SEARCH_STEPS = 64  # of the Levenberg–Marquardt method, from each start
_MILD = 1e-2  # of the typical gradient: the unit of gradients, as the damping begins at 1
_STEEPEST = 1e-8  # of the largest gradient: a lower bound on the typical one
_DESCENT_STEPS = 64  # downhill, from each start
_DESCENT_STEP = 0.02  # of the region: the longest step downhill
_LONGER = 4.0  # times Newton's step: if the curvature along the gradient is negative
_ALIKE = 1e-12  # of the typical change of the potential: values so close are equal
_NEAR = 5e-2  # of the region: states so close to a critical point are not away from it
_BLURRED = 5e-2  # of the region: the largest distance of roots that are one degenerate root


@one_call()
def critical_points(
    flow: AbstractFlow, region: npt.ArrayLike, *, starts: int = 256
) -> CriticalPoints:
    """Find the critical points of a flow in a region, by a search from many starts.

    A point is critical if Newton's method on the gradient converges to it: the last step must be
    small compared with the width of the region and, if states must be positive, with each
    component. A tail, on which the gradient only tends to zero at infinity, has no critical point,
    since Newton's step does not become small. If the curvature across a tail is so large that
    rounding hides the slope along it, the tail is still distinguished from a line of critical
    points: its slope has one sign and decreases monotonically. Roots that are connected along
    directions without curvature form a line or a manifold. A line along which the kind changes
    counts once for each kind.

    On walls of the domain the critical points are Karush–Kuhn–Tucker points: the gradient along the
    wall is zero, and the flow presses outward. An absorbing edge (an axis of a quadrant) is
    critical as a whole if the flow leads onto it and the gradient along it tends to zero. Otherwise
    its critical points are the points at which the gradient along the edge is zero and the flow
    leads onto it. An edge has no critical points if the slope across it underflows at every
    distance.

    Args:
        flow: A flow whose states are vectors.
        region: Lower and upper end of every component, shape (d, 2), finite.
        starts: Number of starts of the search, a Sobol set in the region and on its sides.

    Raises:
        ValueError: If the states of the flow are not vectors of the region's length, a range is not
            (lower, upper), or the domain of the flow has no point in the region.

    Accuracy: isolated non-degenerate points are accurate to rounding times the condition number of
        the Hessian. Degenerate points are accurate to the distance at which rounding hides the
        slope: 2e-6 for y0⁴ + 100 y1² on a square of side 2, and more for flatter potentials.
        Curvature is resolved down to 1e-12 of the largest curvature nearby. Points within 1e-7 of
        the region's width from a side are put onto the side. Points can be missed if their basin of
        attraction under Newton's method is smaller than 1/`starts` of the region, or if they lie in
        a well narrower than 1/50 of the region.

    Source: the Levenberg–Marquardt method on the gradient, by optimistix, and downhill steps; then
        Newton's method.
    """
    ends = checked_region(region, flow)
    guesses, here = _fit_guesses(flow, ends, starts)
    scale = float(np.median(here.steepness))
    width = diagonal(ends)
    search = Search(flow, ends, guesses, scale, width)
    searched = _searched(flow, guesses, here.steepness, width)
    ended = np.concatenate([searched, _descended(flow, guesses, width)])
    positions, there, roots = refined(flow, ended, scale, width)
    roots |= _plains(flow, positions, there, guesses[here.steepness > 0])
    within = search.holds(positions) & there.inside
    found = distinct(flow, search.clipped(positions[roots & within]), ends, width, scale)
    held = [
        one for one in [*faces(search), *absorbing_edges(search)] if not _among(one, found, width)
    ]
    points = [*found, *held]
    smallest, where = _smallest(guesses, here, positions[within & ~roots], found, flow, width)
    return CriticalPoints(
        _ordered(points, scale * width),
        ends,
        smallest,
        where,
        len(guesses),
        flow.components,
    )


def _ordered(points: list[CriticalPoint], scale: float) -> tuple[CriticalPoint, ...]:
    """Points ordered by potential, and by position if potentials are equal up to rounding."""
    level = _ALIKE * scale or 1.0
    return tuple(sorted(points, key=lambda p: (np.round(p.value / level), *p.position)))


def refined(
    flow: AbstractFlow, positions: Float[np.ndarray, "n d"], scale: float, width: float
) -> tuple[Float[np.ndarray, "n d"], Derivatives, Bool[np.ndarray, " n"]]:
    """Positions after Newton's method, the derivatives there, and a mask of the roots among them.

    Args:
        flow: The flow.
        positions: The initial positions.
        scale: A typical |∇L|.
        width: A typical distance.
    """
    positions, _, step, sure = newton(flow, positions, width)
    positions = onto_walls(flow, positions, ROOT_STEP * width)
    there = derivatives_at(flow, positions)
    bent = np.max(np.abs(there.hessian), axis=(1, 2))
    roots = (sure < ROOT_STEP * width) & (bent > np.maximum(FAINT * scale / width, NUMBERS))
    return positions, there, roots & there.inside & settled(flow, positions, step)


def _fit_guesses(
    flow: AbstractFlow, ends: np.ndarray, count: int
) -> tuple[Float[np.ndarray, "n d"], Derivatives]:
    """The starts of the search at which the flow is defined, and the derivatives there."""
    guesses = _guesses(flow, ends, count)
    here = derivatives_at(flow, guesses)
    fit = here.inside & np.isfinite(here.steepness)
    if not fit.any():
        raise ValueError(
            "Argument `region` must hold states at which the flow is defined, but it is defined at "
            f"none of {len(guesses)} starts in {ends.tolist()}."
        )
    return guesses[fit], here.at(fit)


def _guesses(flow: AbstractFlow, ends: np.ndarray, count: int) -> Float[np.ndarray, "n d"]:
    """The starts of the search: Sobol sets in the region and on each of its sides."""
    low, high = ends.T
    if flow.domain.absorbing and np.all(high > 0):  # a state on an edge is not in the domain
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


def _searched(
    flow: AbstractFlow,
    guesses: Float[np.ndarray, "n d"],
    steepness: Float[np.ndarray, " n"],
    width: float,
) -> Float[np.ndarray, "n d"]:
    """The final positions of the Levenberg–Marquardt method on the gradient, from each guess.

    Unknowns and gradients are scaled by the region and by typical gradients, since the initial
    damping of the method is absolute.
    """
    slope = _MILD * max(float(np.median(steepness)), _STEEPEST * float(np.max(steepness))) or 1.0
    unit = 1.0 if flow.domain.absorbing else width  # logarithms have the unit 1
    with jax.enable_x64(True):
        units = np.float64(slope), np.float64(unit)
        operations = operations_at(flow, guesses)
        return np.asarray(_least_squares(flow, guesses, *units, operations=operations))


@partial(compiled, optimise=False)
def _least_squares(
    flow: AbstractFlow,
    guesses: Float[Array, "n d"],
    slope: Float[Array, ""],
    unit: Float[Array, ""],
) -> Float[Array, "n d"]:
    solver = optimistix.LevenbergMarquardt(rtol=1e-12, atol=1e-12)
    domain = flow.domain

    def steepness(coordinates: Array, _: None) -> Array:
        return jax.grad(lambda q: flow.potential(domain.state(q * unit)))(coordinates) / slope

    def from_guess(guess: Array) -> Array:
        found = optimistix.least_squares(
            steepness,
            solver,
            domain.coordinates(guess) / unit,
            max_steps=_SEARCH_STEPS,
            throw=False,
        )
        return domain.state(found.value * unit)

    return jax.vmap(from_guess)(jnp.asarray(guesses))


def _descended(
    flow: AbstractFlow, guesses: Float[np.ndarray, "n d"], width: float
) -> Float[np.ndarray, "n d"]:
    """The final positions of a number of downhill steps from each guess.

    They find minima in narrow wells, which a search for small gradients misses: beyond the
    inflection of a well, the gradient decreases outwards. The steps are Newton's with the absolute
    values of the curvatures, and four times as long if the curvature along the gradient is
    negative.
    """
    positions = guesses
    for _ in range(_DESCENT_STEPS):
        there = derivatives_at(flow, positions)
        values, vectors = spectrum(there.hessian)
        with np.errstate(all="ignore"):
            along = np.einsum("nij,ni->nj", vectors, there.gradient)
            bend = np.einsum("nj,nj,nj->n", along, values, along)
            longer = np.where(bend < 0, _LONGER, 1.0)[:, None]
            step = -np.einsum("nij,nj->ni", vectors, along / np.abs(values)) * longer
        step = capped(step, _DESCENT_STEP * width)
        after = positions + step
        positions = np.maximum(after, 0.5 * positions) if flow.domain.absorbing else after
    return positions


def distinct(
    flow: AbstractFlow,
    roots: Float[np.ndarray, "n d"],
    ends: np.ndarray,
    width: float,
    scale: float,
) -> list[CriticalPoint]:
    """The isolated points and critical sets among roots, without repetition."""
    found: list[CriticalPoint] = []
    paths: list[np.ndarray] = []
    left = first_of_each(roots, ROOTS_APART * width)
    while len(left):
        root, left = left[0], left[1:]
        values, vectors = curvatures(flow, root, width)
        flat = vectors[:, values == 0]
        whole = critical_set(flow, root, flat, ends, scale) if flat.shape[1] else None
        if whole is None:
            found.append(described(flow, root, width))
        elif not whole.tail:
            found += _members(flow, whole, ends, width)
            paths += [] if whole.path is None else [whole.path]
        if len(left) and flat.shape[1]:
            one = whole.holds(flow, left) if whole else _blurred(flow, root, left, width)
            left = left[~one]
    return [point for point in found if not _lies_on(point, paths, width)]


def _members(
    flow: AbstractFlow, whole: CriticalSet, ends: np.ndarray, width: float
) -> list[CriticalPoint]:
    """The critical points that represent a critical set: one for each kind along a line."""
    if len(whole.pieces) < 2:
        return [described(flow, whole.position, width, whole.dimension, whole.path)]
    points: list[CriticalPoint] = []
    for piece in whole.pieces:
        within = piece[1:-1] if len(piece) > 2 else piece
        nearest = np.argmin(np.linalg.norm(within - ends.mean(axis=1), axis=1))
        points.append(described(flow, within[nearest], width, 1, piece))
    return points


def _lies_on(point: CriticalPoint, paths: list[np.ndarray], width: float) -> bool:
    """True for a degenerate point that lies on one of the lines in `paths`."""
    if point.dimension or point.kind != "degenerate":
        return False
    return any(distance_to_path(point.position[None], path)[0] < ON_POINT * width for path in paths)


def _blurred(
    flow: AbstractFlow, root: Float[np.ndarray, " d"], others: np.ndarray, width: float
) -> Bool[np.ndarray, " n"]:
    """Mask of the roots that equal a degenerate root: the midpoint of both is also a root."""
    close = np.linalg.norm(others - root, axis=1) < _BLURRED * width
    middle = derivatives_at(flow, (others + root) / 2)
    sure = root_step(middle.gradient, middle.hessian, width)[1]
    return close & (sure < ROOT_STEP * width)


def described(
    flow: AbstractFlow,
    position: Float[np.ndarray, " d"],
    width: float,
    dimension: int = 0,
    path: Float[np.ndarray, "k d"] | None = None,
) -> CriticalPoint:
    """The `CriticalPoint` at a root, with its kind, spectrum and rates."""
    here = derivatives_at(flow, position[None])
    values = curvatures(flow, position, width)[0]
    rates = rates_of(here.metric[0], here.hessian[0])[0]
    rates[np.argsort(np.abs(rates))[: np.sum(values == 0)]] = 0  # as many as of the Hessian
    return CriticalPoint(
        position=position,
        kind=kind_of(values, dimension),
        index=int(np.sum(values < 0)),
        value=float(here.value[0]),
        gradient_norm=float(here.steepness[0]),
        spectrum=values,
        rates=rates,
        dimension=dimension,
        path=path,
    )


def _among(held: CriticalPoint, found: list[CriticalPoint], width: float) -> bool:
    """True for a point on a wall that is critical even without the wall, and is among `found`."""
    return held.dimension == 0 and any(
        is_at(held, point, (ROOTS_APART if point.path is None else ON_POINT) * width)
        for point in found
    )


def _plains(
    flow: AbstractFlow,
    positions: Float[np.ndarray, "n d"],
    there: Derivatives,
    steep: Float[np.ndarray, "m d"],
) -> Bool[np.ndarray, " n"]:
    """Mask of positions in a flat region; its rim is located towards the nearest steep guess."""
    flat = is_flat(there)
    if not (flat.any() and len(steep)):
        return np.zeros(len(positions), bool)
    apart = np.linalg.norm(positions[flat][:, None] - steep, axis=2)
    steepest = float(np.max(derivatives_at(flow, steep).steepness))
    flat[flat] = rims(flow, positions[flat], steep[np.argmin(apart, axis=1)], steepest)[2]
    return flat


def _smallest(
    guesses: Float[np.ndarray, "n d"],
    here: Derivatives,
    ended: Float[np.ndarray, "m d"],
    found: list[CriticalPoint],
    flow: AbstractFlow,
    width: float,
) -> tuple[float, Float[np.ndarray, " d"]]:
    """The smallest gradient norm away from the critical points, and its position."""
    states, steepness = guesses, here.steepness
    if len(ended):
        states = np.concatenate([states, ended])
        steepness = np.concatenate([steepness, derivatives_at(flow, ended).steepness])
    near = np.zeros(len(states), bool)
    for point in found:
        positions = point.position[None] if point.path is None else point.path
        gaps = np.linalg.norm(states[:, None] - positions, axis=-1).min(axis=1)
        near |= gaps < _NEAR * width
    if np.all(near):
        near[:] = False
    first = np.argmin(np.where(near, np.inf, steepness))
    return float(steepness[first]), states[first]
