"""Domains: sets of states, their walls, and the coordinates of the integration.

d: components of a state; m: walls.
"""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, PyTree

from flowlab._arrays import all_finite, like
from flowlab._checks import positive

__all__ = ["AbstractDomain", "Box", "Enclosure", "Quadrant", "Simplex", "WholeSpace"]

_ON_THE_WALL = 16.0  # machine epsilons, relative to the terms of a sum: so close is on a wall


class AbstractDomain(eqx.Module):
    """A set of states with flat walls.

    A domain also defines the coordinates of the integration. On a positive orthant these are the
    logarithms of the components. No step can then leave the orthant, and a component can fall by
    any number of decades at constant relative accuracy. The boundary, which a flow can reach in
    finite time at infinite speed, lies at infinity in these coordinates.
    """

    absorbing: ClassVar[bool]

    @property
    def described(self) -> str:
        """A short description of the set, for messages."""
        return repr(self)

    @abstractmethod
    def contains(self, state: PyTree[Array]) -> Bool[Array, ""]:
        """True if a state lies in the set, which contains its walls but not the axes."""

    @abstractmethod
    def coordinates(self, state: PyTree[Array]) -> PyTree[Array]:
        """The coordinates of a state."""

    @abstractmethod
    def state(self, coordinates: PyTree[Array]) -> PyTree[Array]:
        """The state with the given coordinates: the inverse of `coordinates`."""

    @abstractmethod
    def pushforward(self, state: PyTree[Array], velocity: PyTree[Array]) -> PyTree[Array]:
        """The time derivative of the coordinates, from the velocity of the state."""

    @abstractmethod
    def error_scale(
        self,
        coordinates: PyTree[Array],
        rtol: Float[Array, ""],
        atol: Float[Array, ""] | None,
    ) -> PyTree[Array]:
        """The allowed error of each coordinate, from the tolerances for the state."""

    @abstractmethod
    def default_atol(self, state: PyTree[Array], rtol: Float[Array, ""]) -> Float[Array, ""] | None:
        """The default absolute tolerance of the state; None for no absolute tolerance."""

    @abstractmethod
    def walls(self) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, " m"]]:
        """The outward normals and offsets of the walls: inside, `normals @ state <= offsets`."""

    def within_walls(self, state: Float[Array, " d"]) -> Bool[Array, ""]:
        """True if a state lies on the inner side of every wall, or on the wall up to rounding."""
        if not len(self.walls()[1]):
            return jnp.asarray(True)
        return jnp.all(self.distances(state) >= -self.rounding(state))

    def walls_like(
        self, state: Float[Array, " d"]
    ) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
        """The walls as arrays in the dtype of a state."""
        normals, offsets = self.walls()
        return like(normals, state), like(offsets, state)

    def distances(self, state: Float[Array, " d"]) -> Float[Array, " m"]:
        """The slack `offsets - normals @ state` of each wall: positive inside, zero on the wall."""
        normals, offsets = self.walls_like(state)
        return offsets - normals @ state

    def rounding(self, state: Float[Array, " d"]) -> Float[Array, " m"]:
        """The slack of each wall below which a state counts as on the wall: sixteen roundings."""
        normals, offsets = self.walls_like(state)
        terms = jnp.abs(offsets) + jnp.abs(normals) @ jnp.abs(state)
        return _ON_THE_WALL * jnp.finfo(state.dtype).eps * terms


class WholeSpace(AbstractDomain):
    """The domain of all finite states, of any PyTree structure, without change of coordinates."""

    absorbing: ClassVar[bool] = False

    @property
    def described(self) -> str:
        return "all finite numbers"

    def contains(self, state: PyTree[Array]) -> Bool[Array, ""]:
        return all_finite(state)

    def coordinates(self, state: PyTree[Array]) -> PyTree[Array]:
        return state

    def state(self, coordinates: PyTree[Array]) -> PyTree[Array]:
        return coordinates

    def pushforward(self, state: PyTree[Array], velocity: PyTree[Array]) -> PyTree[Array]:
        del state
        return velocity

    def error_scale(
        self,
        coordinates: PyTree[Array],
        rtol: Float[Array, ""],
        atol: Float[Array, ""] | None,
    ) -> PyTree[Array]:
        floor = jnp.zeros_like(rtol) if atol is None else atol
        return jax.tree.map(lambda leaf: floor + rtol * jnp.abs(leaf), coordinates)

    def default_atol(self, state: PyTree[Array], rtol: Float[Array, ""]) -> Float[Array, ""]:
        """The product rtol × 1e-3 × smallest nonzero component, or rtol × 1e-3 if all are zero.

        To escape from a saddle at the right time, a line needs an absolute tolerance far below its
        distance from the saddle.
        """
        sizes = jnp.concatenate([jnp.abs(jnp.ravel(leaf)) for leaf in jax.tree.leaves(state)])
        smallest = jnp.min(jnp.where(sizes > 0, sizes, jnp.inf))
        return rtol * 1e-3 * jnp.where(jnp.isfinite(smallest), smallest, 1)

    def walls(self) -> tuple[Float[np.ndarray, "0 0"], Float[np.ndarray, " 0"]]:
        return np.zeros((0, 0)), np.zeros(0)


class _Orthant(AbstractDomain):
    absorbing: ClassVar[bool] = True

    @property
    def described(self) -> str:
        return "positive components"

    def contains(self, state: Float[Array, " d"]) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(state) & (state > 0)) & self.within_walls(state)

    def coordinates(self, state: Float[Array, " d"]) -> Float[Array, " d"]:
        return jnp.log(state)

    def state(self, coordinates: Float[Array, " d"]) -> Float[Array, " d"]:
        return jnp.exp(coordinates)

    def pushforward(
        self, state: Float[Array, " d"], velocity: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        return velocity / state

    def error_scale(
        self, coordinates: Float[Array, " d"], rtol: Float[Array, ""], atol: Float[Array, ""] | None
    ) -> Float[Array, " d"]:
        if atol is None:
            return jnp.broadcast_to(rtol, coordinates.shape)
        return rtol + atol * jnp.exp(-coordinates)

    def default_atol(self, state: Float[Array, " d"], rtol: Float[Array, ""]) -> None:
        """None: components can become very small, and keep a constant relative error."""
        del state, rtol


class Quadrant(_Orthant):
    """The open quadrant (or orthant): every component is positive, and there are no walls.

    The axes absorb: a flow line that reaches one ends there.
    """

    def walls(self) -> tuple[Float[np.ndarray, "0 0"], Float[np.ndarray, " 0"]]:
        return np.zeros((0, 0)), np.zeros(0)


class Box(_Orthant):
    """The paper's box (0, `chosen`] × (0, `rejected`], with walls at the upper ends.

    Args:
        chosen: Upper end of the chosen ratio (the paper's a), positive.
        rejected: Upper end of the rejected ratio (the paper's b), positive.

    Raises:
        ValueError: If an end is not positive and finite.

    Source: arXiv 2404.04626, section 3.1.
    """

    chosen: float = eqx.field(static=True)
    rejected: float = eqx.field(static=True)

    def __init__(self, chosen: float = 1.0, rejected: float = 1.0) -> None:
        self.chosen = positive("chosen", chosen)
        self.rejected = positive("rejected", rejected)

    @property
    def described(self) -> str:
        return f"the box (0, {self.chosen:g}] × (0, {self.rejected:g}]"

    def walls(self) -> tuple[Float[np.ndarray, "2 2"], Float[np.ndarray, " 2"]]:
        return np.eye(2), np.array([self.chosen, self.rejected])


class Simplex(_Orthant):
    """The domain of the ratios of two responses to one prompt: x1·p_chosen + x2·p_rejected ≤ 1.

    Args:
        ref_prob_chosen: Reference probability of the chosen response, positive. 1 is the paper's
            unit of scale (two probabilities cannot both be 1).
        ref_prob_rejected: Reference probability of the rejected response, positive.

    Raises:
        ValueError: If a probability is not positive and finite.
    """

    ref_prob_chosen: float = eqx.field(static=True)
    ref_prob_rejected: float = eqx.field(static=True)

    def __init__(self, ref_prob_chosen: float = 1.0, ref_prob_rejected: float = 1.0) -> None:
        self.ref_prob_chosen = positive("ref_prob_chosen", ref_prob_chosen)
        self.ref_prob_rejected = positive("ref_prob_rejected", ref_prob_rejected)

    @property
    def described(self) -> str:
        shares = f"({self.ref_prob_chosen:g}, {self.ref_prob_rejected:g})"
        return f"the simplex x1·p_chosen + x2·p_rejected ≤ 1 of positive x, with p = {shares}"

    def walls(self) -> tuple[Float[np.ndarray, "1 2"], Float[np.ndarray, " 1"]]:
        return np.array([[self.ref_prob_chosen, self.ref_prob_rejected]]), np.ones(1)


class Enclosure(AbstractDomain):
    """A domain with additional walls at the sides of a rectangle (or cuboid).

    With the wall rule `"stop"` a flow line ends where it leaves the rectangle.

    Args:
        domain: The domain.
        lower: Lower ends, shape (d,); -inf for no wall.
        upper: Upper ends, shape (d,), above the lower ones; inf for no wall.

    Raises:
        ValueError: If an upper end is not above its lower end, or their shapes differ.
    """

    domain: AbstractDomain
    lower: tuple[float, ...] = eqx.field(static=True)
    upper: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, domain: AbstractDomain, lower: npt.ArrayLike, upper: npt.ArrayLike) -> None:
        ends = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
        if ends[0].ndim != 1 or ends[0].shape != ends[1].shape or not np.all(ends[0] < ends[1]):
            raise ValueError(
                "Argument `upper` must lie above `lower` in every component, "
                f"but they are {upper!r} and {lower!r}."
            )
        self.domain = domain
        self.lower, self.upper = (tuple(map(float, side)) for side in ends)

    @property
    def absorbing(self) -> bool:  # type: ignore[override]
        """True if the axes of the inner domain absorb flow lines."""
        return self.domain.absorbing

    @property
    def described(self) -> str:
        sides = f"between {list(self.lower)} and {list(self.upper)}"
        return f"{self.domain.described}, {sides}"

    def contains(self, state: Float[Array, " d"]) -> Bool[Array, ""]:
        return self.domain.contains(state) & self.within_walls(state)

    def coordinates(self, state: PyTree[Array]) -> PyTree[Array]:
        return self.domain.coordinates(state)

    def state(self, coordinates: PyTree[Array]) -> PyTree[Array]:
        return self.domain.state(coordinates)

    def pushforward(self, state: PyTree[Array], velocity: PyTree[Array]) -> PyTree[Array]:
        return self.domain.pushforward(state, velocity)

    def error_scale(
        self,
        coordinates: PyTree[Array],
        rtol: Float[Array, ""],
        atol: Float[Array, ""] | None,
    ) -> PyTree[Array]:
        return self.domain.error_scale(coordinates, rtol, atol)

    def default_atol(self, state: PyTree[Array], rtol: Float[Array, ""]) -> Float[Array, ""] | None:
        return self.domain.default_atol(state, rtol)

    def walls(self) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, " m"]]:
        inner, offsets = self.domain.walls()
        sides = np.eye(len(self.lower))
        normals = np.concatenate([inner.reshape(-1, len(sides)), sides, -sides])
        ends = np.concatenate([offsets, self.upper, np.negative(self.lower)])
        known = np.isfinite(ends)
        return normals[known], ends[known]
