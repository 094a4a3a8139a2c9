"""Gradient, Hessian and metric of a flow at many states at once, in float64.

n: states; d: components.
"""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float

from flowlab.domains import AbstractDomain, Enclosure
from flowlab.flow import AbstractFlow, metric_matrix
from flowlab.policies import WallRule
from flowlab.solve import compiled

__all__ = [
    "Enclosed",
    "Local",
    "capped",
    "checked_region",
    "curved",
    "diagonal",
    "enclosed",
    "local",
    "newton_step",
    "rates_of",
    "spectrum",
]

_SINGULAR = 1e-9  # eigenvalues below this part of the largest count as zero in a Newton step


class Local(NamedTuple):
    """What a flow is near each of many states.

    Attributes:
        value: The potential, shape (n,).
        gradient: ∇L, shape (n, d).
        hessian: shape (n, d, d).
        metric: M as a matrix, shape (n, d, d).
        inside: Whether the state lies in the domain, shape (n,).
    """

    value: Float[np.ndarray, " n"]
    gradient: Float[np.ndarray, "n d"]
    hessian: Float[np.ndarray, "n d d"]
    metric: Float[np.ndarray, "n d d"]
    inside: Bool[np.ndarray, " n"]

    @property
    def steepness(self) -> Float[np.ndarray, " n"]:
        """|∇L|, infinite where it is not a number."""
        return _length(self.gradient)


def local(flow: AbstractFlow, states: npt.ArrayLike) -> Local:
    """What a flow is near each of many states."""
    points = np.asarray(states, dtype=float)
    with jax.enable_x64(True):
        return Local(*(np.asarray(leaf) for leaf in _local(flow, points)))


@partial(compiled, optimise=False)
def _local(flow: AbstractFlow, states: Float[Array, "n d"]) -> tuple[Array, ...]:
    def at(state: Float[Array, " d"]) -> tuple[Array, ...]:
        potential, gradient = flow.potential, jax.grad(flow.potential)
        metric = metric_matrix(flow, state)
        hessian = jax.jacfwd(gradient)(state)
        return potential(state), gradient(state), hessian, metric, flow.domain.contains(state)

    return jax.vmap(at)(jnp.asarray(states))


def newton_step(
    gradient: Float[np.ndarray, "n d"], hessian: Float[np.ndarray, "n d d"]
) -> Float[np.ndarray, "n d"]:
    """Newton's step to a zero of the gradient, of least length where the Hessian is singular."""
    values, vectors = spectrum(hessian)
    bent = curved(values)
    with np.errstate(all="ignore"):
        along = np.einsum("nij,ni->nj", vectors, gradient)
        steps = np.where(bent, -along / np.where(bent, values, 1), 0)
        return np.einsum("nij,nj->ni", vectors, steps)


def curved(values: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, "n d"]:
    """Which eigenvalues of Hessians count as not zero, beside the largest of each."""
    sizes = np.abs(values)
    largest = np.max(sizes, axis=1, keepdims=True, initial=0)
    return sizes > np.maximum(_SINGULAR * largest, 1e-300)


def capped(step: Float[np.ndarray, "n d"], longest: float) -> Float[np.ndarray, "n d"]:
    """Steps cut to a length; none where they are not finite."""
    with np.errstate(all="ignore"):
        length = np.linalg.norm(step, axis=1, keepdims=True)
        step = np.where(length > longest, step * (longest / length), step)
    return np.where(np.isfinite(step), step, 0)


def diagonal(region: Float[np.ndarray, "d 2"]) -> float:
    """The length of the diagonal of a region, which is the unit of the distances in it."""
    return float(np.linalg.norm(region[:, 1] - region[:, 0]))


def spectrum(matrices: Float[np.ndarray, "n d d"]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices; zero for a matrix of NaN."""
    finite = np.all(np.isfinite(matrices), axis=(1, 2))
    return np.linalg.eigh(np.where(finite[:, None, None], matrices, 0))


def rates_of(
    metric: Float[np.ndarray, "d d"], hessian: Float[np.ndarray, "d d"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Eigenvalues of M·Hessian, ascending, and its eigenvectors as columns.

    They are real, since the metric is symmetric and positive semidefinite.
    """
    if not hessian.size:
        return np.zeros(0), np.zeros((0, 0))
    values, vectors = map(np.real, np.linalg.eig(metric @ hessian))
    order = np.argsort(values)
    return values[order], vectors[:, order]


def checked_region(region: npt.ArrayLike, flow: AbstractFlow) -> np.ndarray:
    """A region as an array of lower and upper ends.

    Raises:
        ValueError: If it is no such thing, or the states of the flow are not vectors of its length.
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
    if not _takes_vectors(flow, len(ends)):
        raise ValueError(
            "Argument `flow` must have states that are vectors with as many components as `region` "
            f"has ranges, {len(ends)}, but has {type(flow).__name__} states of shape "
            f"{flow.state_shape}."
        )
    return ends


def enclosed(flow: AbstractFlow, region: Float[np.ndarray, "d 2"], margin: float) -> AbstractFlow:
    """A flow whose lines stop at the sides of a region widened by a part of its width."""
    room = margin * (region[:, 1] - region[:, 0])
    lower, upper = region[:, 0] - room, region[:, 1] + room
    if flow.domain.absorbing:
        lower = np.where(lower > 0, lower, -np.inf)
    return Enclosed(flow=flow, domain=Enclosure(flow.domain, lower, upper), wall="stop")


class Enclosed(AbstractFlow):
    """A flow on another domain than its own."""

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


def _takes_vectors(flow: AbstractFlow, count: int) -> bool:
    if flow.state_shape is not None:
        return flow.state_shape == (count,)
    if flow.reference_state is not None:
        return np.shape(flow.reference_state) == (count,)
    try:
        with jax.enable_x64(True):
            value = jax.eval_shape(flow.potential, jax.ShapeDtypeStruct((count,), np.float64))
    except (TypeError, ValueError, IndexError):
        return False
    return getattr(value, "shape", None) == ()


def _length(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.linalg.norm(vectors, axis=1)
    return np.where(np.isfinite(length), length, np.inf)
