"""Common parts of stabilised explicit methods for stiff flows: stages, and spectral radius.

An explicit method with s stages is stable if h·λ lies in an interval [−ℓ, 0], λ the eigenvalues of
the Jacobian. For standard methods ℓ grows like s. Stabilised methods have a low order, and
stability polynomials for which ℓ grows like s² (about 0.65·s² for RKC2, 0.35·s² for ROCK4). They
need real λ, as gradient flows have. A step h with fastest rate ρ then costs about √(h·ρ)
evaluations of the field. No linear system is solved and no matrix is computed: ρ is estimated by a
power iteration on the field, and the number of stages follows from h·ρ. All lanes that share a step
use the number of stages that the most demanding lane needs.

The estimate of ρ, which is a lower bound, is multiplied by 1.2 and, while it grows by more than 5
per cent, by its last growth (at most 4). It is renewed after rejections, events and at most 25
accepted steps. Rounding or the largest number of stages limits h·ρ: a longer step is rejected, and
the next step is kept below the limit.

n: lanes.

Source: Hairer and Wanner, Solving Ordinary Differential Equations II (1996), section IV.2; and the
papers that `chebyshev` and `rock` cite.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from diffrax import RESULTS, AbstractLocalInterpolation
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

__all__ = ["AbstractStabilised", "Cubic", "OfLanes", "Radius", "spectral_radius", "spread"]

_SAFETY = 1.2  # times the radius from the power iteration, which is a lower bound; as in RKC
_SETTLED = (
    0.01  # relative change of the radius in an iteration at which it counts as found; as in RKC
)
_MOST_ITERATIONS = 50  # of the power iteration; as in RKC
_FRESH = 25  # the most accepted steps for which a radius is trusted; as in RKC
_STEADY = 0.05  # relative change of the radius up to which it is trusted for longer
_MOST_GROWTH = 4.0  # the largest growth of the radius that is expected in a step
_USUAL_RTOL = 1e-6  # the rtol assumed within diffrax, which does not pass its own
_ROUNDINGS = 8  # units in the last place
_SEED = 0  # seed of the first vector, which must contain the fastest direction

Slope = Callable[[Float[Array, "*n"], PyTree[Array]], PyTree[Array]]
"""The field at a part, in [0, 1], of the step of each lane, and at a point."""


class Cubic(AbstractLocalInterpolation):
    """An interpolant: the cubic y0 + θ(y1 − y0) + θ(θ − 1)(bend + θ·twist), θ in [0, 1].

    It uses values and not the slopes at the ends, in which errors of the values are multiplied by
    the fastest rate.
    """

    t0: Any
    t1: Any
    y0: PyTree[Array]
    y1: PyTree[Array]
    bend: PyTree[Array]
    twist: PyTree[Array]

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> PyTree[Array]:
        if t1 is not None:
            later, earlier = self.evaluate(t1), self.evaluate(t0)
            return jax.tree.map(jnp.subtract, later, earlier)
        del left
        node = (t0 - self.t0) / jnp.where(self.t1 == self.t0, 1, self.t1 - self.t0)

        def at(y0: Array, y1: Array, bend: Array, twist: Array) -> Array:
            part = jnp.asarray(node, y0.dtype)
            return y0 + part * ((y1 - y0) + (part - 1) * (bend + part * twist))

        return jax.tree.map(at, self.y0, self.y1, self.bend, self.twist)


class Radius(eqx.Module):
    """An estimate of the spectral radius of the field's Jacobian.

    Attributes:
        value: The radius, with a margin for safety and for its growth in a step.
        found: The last estimate of the radius, without this margin.
        vector: The vector from which the next power iteration starts.
        age: Number of accepted steps since the last estimate.
        trust: Number of accepted steps after which the radius is estimated again.
        stages: Number of stages of the last step.
    """

    value: Float[Array, "*n"]
    found: Float[Array, "*n"]
    vector: PyTree[Array]
    age: Int[Array, ""]
    trust: Int[Array, ""]
    stages: Int[Array, ""]


class AbstractStabilised(diffrax.AbstractAdaptiveSolver):
    """A stabilised explicit solver for a field whose Jacobian has a real spectrum.

    It is a solver of diffrax, and also works in `diffrax.diffeqsolve`, on any PyTree.
    """

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = Cubic

    @abstractmethod
    def stages(self, reach: Float[Array, ""]) -> Int[Array, ""]:
        """The number of stages needed for a product of step and spectral radius."""

    @abstractmethod
    def longest(self, dtype: Any, rtol: Any) -> Any:
        """The largest product of step and spectral radius for which rounding stays below `rtol`."""

    @abstractmethod
    def stepped(
        self, slope: Slope, y0: PyTree[Array], part: Float[Array, "*n"], stages: Int[Array, ""]
    ) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array], PyTree[Array]]:
        """The end of a step, its error, and the bend and the twist of its `Cubic`.

        Args:
            slope: The field, as a function of the fraction of the step and of the state.
            y0: The state at the start of the step; leaves of shape (..., *n).
            part: The length of each lane's step.
            stages: The number of stages.
        """

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Radius:
        del terms, args
        return unknown_radius(y0, jnp.asarray(t1 - t0))

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Any, Any, dict[str, Any], Any, RESULTS]:
        part = jnp.asarray(t1 - t0)

        def slope(node: Float[Array, ""], y: PyTree[Array]) -> PyTree[Array]:
            return terms.vf(t0 + node * part, y, args)

        longest = self.longest(part.dtype, _USUAL_RTOL)
        y1, error, dense, radius = taken(self, slope, y0, part, (solver_state, made_jump), longest)
        return y1, error, dense, radius, RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)


class OfLanes(eqx.Module):
    """A stabilised solver for lanes that each take the fraction `args.fraction` of a shared step.

    All lanes use the number of stages that the most demanding lane needs.
    """

    method: AbstractStabilised
    rtol: Float[Array, ""]

    stages: ClassVar[int] = (
        2  # copies of the state that the interpolant of a step keeps beside ends
    )

    @property
    def interpolation_cls(self) -> Callable[..., Any]:
        return self.method.interpolation_cls

    def room(self, y: PyTree[Array], steps: int) -> dict[str, PyTree[Array]]:
        """A zero buffer for the interpolants of a number of steps."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), y)
        return dict.fromkeys(("y0", "y1", "bend", "twist"), zeros)

    def order(self, terms: Any) -> float | None:
        """The power of the step with which the error estimate scales."""
        return self.method.error_order(terms)  # type: ignore[return-value]

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Radius:
        del terms, t0, t1
        return unknown_radius(y0, args.fraction)

    def blank(self, y0: PyTree[Array]) -> Radius:
        """The initial solver state, with an unknown radius."""
        return unknown_radius(y0, jax.tree.leaves(y0.time)[0])

    def again(self, radius: Radius) -> Radius:
        """The solver state after a rejected step: the radius is estimated again."""
        return eqx.tree_at(lambda r: r.trust, radius, jnp.zeros_like(radius.trust))

    def longest_step(self, radius: Radius, lanes: Any) -> Float[Array, ""]:
        """The longest step that the active lanes can share."""
        largest = jnp.max(jnp.where(lanes.active, radius.value, 0))
        # A little shorter, lest its product with the radius be rounded to more than the longest.
        least = 1 - _ROUNDINGS * float(jnp.finfo(largest.dtype).eps)
        return least * self.method.longest(largest.dtype, self.rtol) / largest

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Any, Any, dict[str, Any], Any, RESULTS]:
        slope, part = self._slope(terms, t0, t1, args)
        longest = self.method.longest(part.dtype, self.rtol)
        y1, error, dense, radius = taken(
            self.method, slope, y0, part, (solver_state, made_jump), longest
        )
        return y1, error, dense, radius, RESULTS.successful

    def shortened(
        self, terms: Any, step: Array, y0: Any, args: Any, stages: Int[Array, ""]
    ) -> tuple[Any, dict[str, Any]]:
        """The end of a step with a given number of stages, and the data of its interpolant."""
        slope, part = self._slope(terms, jnp.zeros_like(step), step, args)
        y1, _, bend, twist = self.method.stepped(slope, y0, part, stages)
        return y1, {"y0": y0, "y1": y1, "bend": bend, "twist": twist}

    def _slope(self, terms: Any, t0: Any, t1: Any, args: Any) -> tuple[Slope, Float[Array, " n"]]:
        whole = t1 - t0

        def slope(node: Float[Array, ""], y: PyTree[Array]) -> PyTree[Array]:
            return terms.vf(t0 + node * whole, y, args)

        return slope, whole * args.fraction


def taken(
    method: AbstractStabilised,
    slope: Slope,
    y0: PyTree[Array],
    part: Float[Array, "*n"],
    known: tuple[Radius, Any],
    longest: Any,
) -> tuple[PyTree[Array], PyTree[Array], dict[str, Any], Radius]:
    """The end of a step, its error, the data of its interpolant, and the radius that was used.

    The radius determines the number of stages. `known` holds the radius before the step, and
    whether the field has changed discontinuously since.
    """
    at_start = partial(slope, jnp.zeros((), part.dtype))
    radius = _known_radius(at_start, lax.stop_gradient(y0), part, *known)
    reaches = jnp.where(jnp.isfinite(radius.value), jnp.abs(part) * radius.value, 0)
    reach = jnp.max(reaches)
    stages = lax.stop_gradient(method.stages(jnp.minimum(reach, longest)))
    y1, error, bend, twist = method.stepped(slope, y0, part, stages)
    # A step that is too long for the largest number of stages is rejected.
    error = jax.tree.map(lambda e: jnp.where(reach <= longest, e, jnp.inf), error)
    dense = {"y0": y0, "y1": y1, "bend": bend, "twist": twist}
    return y1, error, dense, eqx.tree_at(lambda r: r.stages, radius, stages)


def spectral_radius(
    field: Callable[[PyTree[Array]], PyTree[Array]], y: PyTree[Array]
) -> Float[Array, ""]:
    """The spectral radius of the Jacobian of a field at a point, with a margin for safety."""
    one = jnp.ones((), jax.tree.leaves(y)[0].dtype)
    return _known_radius(field, y, one, unknown_radius(y, one), True).value


def unknown_radius(y0: PyTree[Array], part: Float[Array, "*n"]) -> Radius:
    """An unknown radius with a random vector, from which it is estimated before its first use."""
    leaves, structure = jax.tree.flatten(y0)
    keys = jax.random.split(jax.random.key(_SEED), len(leaves))

    def drawn(key: Array, leaf: Array) -> Array:
        shape = leaf.shape[: leaf.ndim - part.ndim]  # all lanes begin with the same vector
        numbers = jax.random.normal(key, shape, leaf.dtype)
        return jnp.broadcast_to(jnp.reshape(numbers, shape + (1,) * part.ndim), leaf.shape)

    vector = [drawn(key, jnp.asarray(leaf)) for key, leaf in zip(keys, leaves, strict=True)]
    none, count = jnp.zeros_like(part), jnp.zeros((), jnp.int32)
    return Radius(none, none, jax.tree.unflatten(structure, vector), count, count, count)


def _known_radius(
    slope: Callable[[PyTree[Array]], PyTree[Array]],
    y: PyTree[Array],
    part: Float[Array, "*n"],
    radius: Radius,
    made_jump: Any,
) -> Radius:
    """The radius at a point: the last estimate if it is recent, otherwise a new estimate."""

    def find(radius: Radius) -> Radius:
        def going(carry: Any) -> Bool[Array, ""]:
            _, _, moving, count = carry
            return jnp.any(moving) & (count < _MOST_ITERATIONS)

        def improve(carry: Any) -> Any:
            vector, before, _, count = carry
            _, image = jax.jvp(slope, (y,), (vector,))
            size = _length(image, part.ndim)
            sound = jnp.isfinite(size) & (size > 0)
            length = jnp.where(sound, size, 1)
            shorter = jax.tree.map(lambda i: i / spread(length, i), image)
            vector = jax.tree.map(lambda i, v: jnp.where(spread(sound, i), i, v), shorter, vector)
            moving = sound & (part != 0) & (jnp.abs(size - before) > _SETTLED * size)
            return vector, jnp.where(sound, size, 0), moving, count + 1

        length = _length(radius.vector, part.ndim)
        length = jnp.where(length > 0, length, 1)
        vector = jax.tree.map(lambda v: v / spread(length, v), radius.vector)
        carry = (vector, jnp.zeros_like(part), part != 0, jnp.zeros((), jnp.int32))
        vector, found, _, _ = lax.while_loop(going, improve, carry)
        return _updated(radius, vector, found)

    def keep(radius: Radius) -> Radius:
        return eqx.tree_at(lambda r: r.age, radius, radius.age + 1)

    stale = jnp.asarray(made_jump) | (radius.age >= radius.trust)
    return lax.stop_gradient(lax.cond(stale, find, keep, lax.stop_gradient(radius)))


def _updated(radius: Radius, vector: PyTree[Array], found: Float[Array, "*n"]) -> Radius:
    """The radius with a new estimate, trusted for one step if it has changed, otherwise for longer.

    Under the arc-length clock the radius grows while a line slows down. `value` then allows for as
    much growth as since the previous estimate.
    """
    known = radius.found > 0
    growth = jnp.where(known, found / jnp.where(known, radius.found, 1), 1)
    steady = jnp.all(jnp.where(known, jnp.abs(growth - 1) <= _STEADY, found == 0))
    longer = jnp.clip(2 * radius.trust, 2, _FRESH)
    trust = jnp.where(steady, longer, 1).astype(jnp.int32)
    ahead = jnp.where(steady, 1, jnp.clip(growth, 1, _MOST_GROWTH))
    age = jnp.ones_like(radius.age)
    return Radius(_SAFETY * ahead * found, found, vector, age, trust, radius.stages)


def spread(lanes: Array, leaf: Array) -> Array:
    """One number per lane, reshaped to broadcast against a leaf whose last axes are the lanes."""
    return jnp.reshape(lanes, (1,) * (leaf.ndim - lanes.ndim) + lanes.shape)


def _length(vector: PyTree[Array], lanes: int) -> Float[Array, "*n"]:
    """The Euclidean length of each lane's vector, over all leaves; lanes on the last axes."""

    def square(leaf: ArrayLike) -> Array:
        array = jnp.asarray(leaf)
        return jnp.sum(array**2, axis=tuple(range(array.ndim - lanes)))

    squares = [square(leaf) for leaf in jax.tree.leaves(vector)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))
