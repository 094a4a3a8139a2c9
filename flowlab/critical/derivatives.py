"""Gradient, Hessian and metric of a flow at many states, and Newton's step, in float64.

Derivatives are exact, by automatic differentiation (Hessians forward over reverse), and evaluated
for many states by one program. `root_step` is Newton's step −H⁻¹∇L in the eigenbasis of the Hessian
H. Consider a direction whose curvature is below rounding of the largest curvature: if its slope is
also within rounding, the direction is left out; if not, the step is long. `curvatures` sets an
eigenvalue to 0 if it is below 1e-12 of the largest curvature nearby, or if it changes by half
within the uncertainty of the root.

n: states; d: components.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float

from flowlab._checks import real
from flowlab._tracing import ImproperFunctionError
from flowlab.critical.tolerances import AROUND, NEWTON_STEPS
from flowlab.domains import AbstractDomain, Enclosure
from flowlab.flow import AbstractFlow, metric_matrix
from flowlab.policies import WallRule
from flowlab.solve import Program, check_potential, operations_at

__all__ = [
    "Enclosed",
    "Derivatives",
    "capped",
    "checked_region",
    "curvatures",
    "diagonal",
    "enclosed",
    "enclosure",
    "first_of_each",
    "newton",
    "derivatives_at",
    "onto_walls",
    "rates_of",
    "real_starts",
    "restricted",
    "root_step",
    "spectrum",
]

_HIDDEN = 1e-13  # of the largest eigenvalue: eigenvalues and slopes that may be rounding
_ROUNDED = 1e-15  # of the largest eigenvalue: slopes that are rounding
_NO_CURVATURE = 1e-12  # of the largest eigenvalue around a root: smaller ones are zero
_WEAK = 1e-6  # likewise: smaller ones must be constant nearby
_ENDED = (1e-15, 1e3)  # of the region: steps that are rounding alone, and steps that diverge
_LONGEST_STEP = 0.1  # of the region: a longer step may jump over a root
_AT_ONCE = 512  # states: evaluated as fast as one on a plane, with little memory


class Derivatives(NamedTuple):
    """Potential, gradient, Hessian and metric at each of many states.

    Attributes:
        value: The potential, shape (n,).
        gradient: ∇L, shape (n, d).
        hessian: The Hessian of L, shape (n, d, d).
        metric: The metric M as a matrix, shape (n, d, d).
        inside: Whether the state lies in the domain, shape (n,).
    """

    value: Float[np.ndarray, " n"]
    gradient: Float[np.ndarray, "n d"]
    hessian: Float[np.ndarray, "n d d"]
    metric: Float[np.ndarray, "n d d"]
    inside: Bool[np.ndarray, " n"]

    @property
    def steepness(self) -> Float[np.ndarray, " n"]:
        """The norm |∇L|, infinite if it is not a number."""
        return _length(self.gradient)

    @property
    def velocity(self) -> Float[np.ndarray, "n d"]:
        """The free velocity −M∇L, which takes no account of walls."""
        with np.errstate(all="ignore"):
            return -np.einsum("nij,nj->ni", self.metric, self.gradient)

    @property
    def speed(self) -> Float[np.ndarray, " n"]:
        """The Euclidean length of the free velocity."""
        with np.errstate(all="ignore"):
            return np.linalg.norm(self.velocity, axis=1)

    def at(self, mask: Bool[np.ndarray, " n"]) -> "Derivatives":
        """The derivatives at a subset of the states."""
        return Derivatives(*(leaf[mask] for leaf in self))


def derivatives_at(flow: AbstractFlow, states: npt.ArrayLike) -> Derivatives:
    """Potential, gradient, Hessian and metric of a flow at states, shape (n, d), in float64."""
    points = np.asarray(states, dtype=float)
    count, size = points.shape
    lanes = _lanes(count, size)
    filled = np.zeros((-(-max(count, 1) // lanes) * lanes, size))
    filled[:count] = points
    filled[count:] = points[0] if count else 0
    with jax.enable_x64(True):
        operations = operations_at(flow, filled)
        program = Program(_derivatives, flow, optimise=False, operations=operations)
        parts = [program(chunk) for chunk in filled.reshape(-1, lanes, size)]
    leaves = zip(*parts, strict=True)
    return Derivatives(*(np.concatenate(list(map(np.asarray, leaf)))[:count] for leaf in leaves))


def _lanes(count: int, size: int) -> int:
    """The number of states that one call evaluates: one of a few numbers, to limit compilations.

    In a plane the number is always the same, since superfluous evaluations cost less than a call.
    With more components Hessians cost more, and batches are padded to 2, 8, 32, 128 or 512 states.
    """
    cheap = 4 * _AT_ONCE // size**2
    wanted = min(max(count, cheap, 1), _AT_ONCE)
    return 1 << ((wanted - 1).bit_length() | 1)


def _derivatives(flow: AbstractFlow, states: Float[Array, "n d"]) -> tuple[Array, ...]:
    def at(state: Float[Array, " d"]) -> tuple[Array, ...]:
        potential, gradient = flow.potential, jax.grad(flow.potential)
        metric = metric_matrix(flow, state)
        hessian = jax.jacfwd(gradient)(state)
        return potential(state), gradient(state), hessian, metric, flow.domain.contains(state)

    return jax.vmap(at)(jnp.asarray(states))


def root_step(
    gradient: Float[np.ndarray, "n d"],
    hessian: Float[np.ndarray, "n d d"],
    size: float | Float[np.ndarray, " n"],
    floor: Float[np.ndarray, " n"] | None = None,
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
    """Newton's step to a zero of the gradient, and its length without the part due to rounding.

    A direction is left out only if both its curvature and its slope are within rounding. A slope
    without curvature gives a step that is long or not finite. Directions whose slope may be
    rounding alone do not count in the length, so that a length near zero means a root.

    Args:
        gradient: Gradients, shape (n, d).
        hessian: Hessians, shape (n, d, d).
        size: The magnitude of coordinates, which determines the size of rounding errors.
        floor: A lower bound on the largest curvature in estimates of rounding; None for none.
    """
    values, vectors = spectrum(hessian)
    largest = np.max(np.abs(values), axis=1, keepdims=True, initial=0)
    if floor is not None:
        largest = np.maximum(largest, floor[:, None])
    length = np.broadcast_to(size, len(values))[:, None]
    with np.errstate(all="ignore"):
        along = np.einsum("nij,ni->nj", vectors, gradient)
        bent = np.abs(values) > _HIDDEN * largest
        parts = -along / np.where(bent, values, _HIDDEN * largest)
        left_out = ~bent & (np.abs(along) <= _HIDDEN * largest * length)
        rounded = left_out | (np.abs(along) <= _ROUNDED * largest * length)
        step = np.einsum("nij,nj->ni", vectors, np.where(left_out, 0, parts))
        leads = np.linalg.norm(np.where(rounded, 0, parts), axis=1)
    return step, np.where(np.isfinite(leads), leads, np.inf)


def curvatures(
    flow: AbstractFlow,
    position: Float[np.ndarray, " d"],
    width: float,
    along: Float[np.ndarray, "d k"] | None = None,
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k k"]]:
    """Eigenvalues of the Hessian at a root, ascending, and its eigenvectors as columns.

    An eigenvalue is set to 0 if it is below rounding: 1e-12 of the largest eigenvalue within a
    hundredth of the region. It is also set to 0 if it is not constant over the uncertainty of the
    root: four Newton steps in the eigenvalue's direction, rounding of the slope included.

    Args:
        flow: The flow.
        position: The root.
        width: A typical distance.
        along: Directions, as columns, to which the Hessian is restricted; None for all.
    """
    face = np.eye(len(position)) if along is None else along
    if not face.shape[1]:
        return np.zeros(0), np.zeros((0, 0))

    def at(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = spectrum(restricted(derivatives_at(flow, state[None]), face, width)[1])
        return values[0], vectors[0]

    steps = AROUND * width * np.concatenate([np.eye(len(position)), -np.eye(len(position))])
    there = derivatives_at(flow, np.concatenate([position[None], position + steps]))
    largest = float(np.max(np.abs(spectrum(there.hessian)[0])))
    if along is not None:
        largest = max(largest, float(np.linalg.norm(there.gradient[0])) / width)
    values, vectors = at(position)
    for i in np.flatnonzero(np.abs(values) <= _WEAK * largest):
        slope = abs(there.gradient[0] @ face @ vectors[:, i])
        rounding = _ROUNDED * np.max(np.abs(values)) * (width + np.linalg.norm(position))
        with np.errstate(over="ignore"):
            off = 4 * (slope + rounding) / max(abs(values[i]), 1e-300)
        offset = min(off, AROUND * width) * (face @ vectors[:, i])
        beside = [at(position + s * offset)[0][i] for s in (-1, 1)]
        same = np.max(np.abs(beside - values[i])) <= 0.5 * abs(values[i])
        if abs(values[i]) <= _NO_CURVATURE * largest or not same:
            values[i] = 0.0
    return values, vectors


def restricted(
    there: Derivatives, along: Float[np.ndarray, "d k"], width: float
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k k"], Float[np.ndarray, " n"] | None]:
    """Slopes and Hessians along a face, and the argument `floor` of `root_step`.

    On a wall, rounding of the slope that presses against the wall determines `floor`. It is None
    without walls.
    """
    with np.errstate(all="ignore"):
        slope = there.gradient @ along
        bend = np.einsum("ik,nij,jl->nkl", along, there.hessian, along)
    if along.shape[0] == along.shape[1]:
        return slope, bend, None
    bent = np.max(np.abs(spectrum(there.hessian)[0]), axis=1, initial=0)
    with np.errstate(all="ignore"):
        floor = np.maximum(bent, there.steepness / width)
    return slope, bend, np.where(np.isfinite(floor), floor, 0)


def newton(
    flow: AbstractFlow,
    positions: Float[np.ndarray, "n d"],
    width: float,
    along: Float[np.ndarray, "d k"] | None = None,
) -> tuple[
    Float[np.ndarray, "n d"], Derivatives, Float[np.ndarray, "n d"], Float[np.ndarray, " n"]
]:
    """Newton's method for zeros of the gradient, from many positions at once.

    Args:
        flow: The flow.
        positions: The initial positions.
        width: A typical distance.
        along: Directions, as columns, to which gradient and steps are restricted; None for all.

    Returns:
        The final positions, the derivatives there, the next step, and the length of this step
            without the part due to rounding.
    """
    there = derivatives_at(flow, positions)
    step, sure = _newton_step(there, width, along)
    for _ in range(NEWTON_STEPS):
        with np.errstate(all="ignore"):
            length = np.linalg.norm(np.where(np.isfinite(step), step, np.inf), axis=1) / width
        if np.all((length < _ENDED[0]) | (length > _ENDED[1])):
            break
        positions = positions + capped(step, _LONGEST_STEP * width)
        there = derivatives_at(flow, positions)
        step, sure = _newton_step(there, width, along)
    return positions, there, step, sure


def _newton_step(
    there: Derivatives, width: float, along: Float[np.ndarray, "d k"] | None
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
    """The step of `root_step` at each state, and its length without the part due to rounding."""
    if along is None:
        return root_step(there.gradient, there.hessian, width)
    if not along.shape[1]:
        return np.zeros_like(there.gradient), np.zeros(len(there.value))
    slope, bend, floor = restricted(there, along, width)
    step, sure = root_step(slope, bend, width, floor)
    with np.errstate(all="ignore"):
        return step @ along.T, sure


def onto_walls(
    flow: AbstractFlow, positions: Float[np.ndarray, "n d"], slack: float
) -> Float[np.ndarray, "n d"]:
    """Positions, of which those at most `slack` beyond a wall are put onto the wall."""
    for normal, offset in zip(*flow.domain.walls(), strict=True):
        length = float(np.linalg.norm(normal))
        beyond = (positions @ normal - offset) / length
        beyond = np.where((beyond > 0) & (beyond <= slack), beyond, 0)
        positions = positions - beyond[:, None] * normal / length
    return positions


def first_of_each(points: Float[np.ndarray, "n d"], apart: float) -> Float[np.ndarray, "m d"]:
    """The points without those that are closer than `apart` to an earlier point."""
    kept, left = [], points
    while len(left):
        kept.append(left[0])
        left = left[np.linalg.norm(left - left[0], axis=1) > apart]
    return np.reshape(kept, (-1, points.shape[1]))


def capped(step: Float[np.ndarray, "n d"], longest: float) -> Float[np.ndarray, "n d"]:
    """Steps, shortened to at most the length `longest`; 0 if they are not finite."""
    with np.errstate(all="ignore"):
        length = np.linalg.norm(step, axis=1, keepdims=True)
        step = np.where(length > longest, step * (longest / length), step)
    return np.where(np.isfinite(step), step, 0)


def diagonal(region: Float[np.ndarray, "d 2"]) -> float:
    """The length of the diagonal of a region, the unit of distances in it."""
    return float(np.linalg.norm(region[:, 1] - region[:, 0]))


def spectrum(matrices: Float[np.ndarray, "n d d"]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices; zero for a matrix of NaN."""
    finite = np.all(np.isfinite(matrices), axis=(1, 2))
    return np.linalg.eigh(np.where(finite[:, None, None], matrices, 0))


def rates_of(
    metric: Float[np.ndarray, "d d"], hessian: Float[np.ndarray, "d d"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Eigenvalues of M·Hessian, ascending, and its eigenvectors as columns.

    The eigenvalues are real, since the metric is symmetric and positive semidefinite.
    """
    if not hessian.size:
        return np.zeros(0), np.zeros((0, 0))
    values, vectors = map(np.real, np.linalg.eig(metric @ hessian))
    order = np.argsort(values)
    return values[order], vectors[:, order]


def real_starts(starts: npt.ArrayLike) -> Float[np.ndarray, "..."]:
    """Starts in float64.

    Raises:
        ValueError: If `starts` does not hold real numbers.
    """
    return real("starts", starts).astype(np.float64)


def checked_region(region: npt.ArrayLike, flow: AbstractFlow) -> np.ndarray:
    """A region as an array of lower and upper ends.

    Raises:
        ValueError: If `region` does not have shape (d, 2), or the states of the flow are not
            vectors of length d.
    """
    try:
        ends = np.asarray(region, dtype=float)
    except (TypeError, ValueError):
        ends = np.zeros(0)
    sound = ends.ndim == 2 and ends.shape[1:] == (2,) and len(ends) and np.all(np.isfinite(ends))
    if not (sound and np.all(ends[:, 0] < ends[:, 1])):
        raise ValueError(
            "Argument `region` must give a lower and an upper end for every component, as "
            f"[(0, 1), (0, 1)] does, but is {region!r}."
        )
    _check_vectors(flow, len(ends))
    return ends


def enclosed(flow: AbstractFlow, region: Float[np.ndarray, "d 2"], margin: float) -> AbstractFlow:
    """A flow whose lines stop at the sides of a region that is widened by a fraction `margin`."""
    return Enclosed(flow=flow, domain=enclosure(flow, region, margin), wall="stop")


def enclosure(flow: AbstractFlow, region: Float[np.ndarray, "d 2"], margin: float) -> Enclosure:
    """The domain of a flow, with walls at the sides of a region widened by a fraction `margin`."""
    room = margin * (region[:, 1] - region[:, 0])
    lower, upper = region[:, 0] - room, region[:, 1] + room
    if flow.domain.absorbing:
        lower = np.where(lower > 0, lower, -np.inf)
    return Enclosure(flow.domain, lower, upper)


class Enclosed(AbstractFlow):
    """A flow restricted to a part of its domain."""

    flow: AbstractFlow
    domain: AbstractDomain
    wall: WallRule = eqx.field(static=True)

    def potential(self, state: Array) -> Float[Array, ""]:
        return self.flow.potential(state)

    def metric(self, state: Array, covector: Array) -> Array:
        return self.flow.metric(state, covector)

    def with_parameter(self, name: str, value: Any) -> "Enclosed":
        flow = self.flow.with_parameter(name, value)
        return Enclosed(flow=flow, domain=self.domain, wall=self.wall)


def _check_vectors(flow: AbstractFlow, count: int) -> None:
    shape, cause = flow.state_shape, None
    if shape is None and flow.reference_state is not None:
        shape = np.shape(flow.reference_state)
    fits = shape in (None, (count,))
    if shape is None:
        try:
            check_potential(flow, jax.ShapeDtypeStruct((count,), np.float64))
        except ImproperFunctionError:
            raise
        except (TypeError, ValueError, IndexError) as error:  # as of a vector of another length
            fits, cause = False, error
    if not fits:
        raise ValueError(
            "Argument `flow` must have states that are vectors with as many components as `region` "
            f"has ranges, but {flow!r} takes no vectors of length {count}."
        ) from cause


def _length(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    with np.errstate(all="ignore"):
        length = np.linalg.norm(vectors, axis=1)
    return np.where(np.isfinite(length), length, np.inf)
