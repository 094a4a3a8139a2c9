"""Classical potentials with known flows and critical points, to test numerical methods on.

Each potential is a function of one state and can be passed to `Flow`. Hyper-parameters are array
leaves, checked at construction.

d: components of a state.
"""

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowlab._arrays import floats, like
from flowlab._checks import integer
from flowlab._names import FormerName
from flowlab._parameters import parameter, positive

__all__ = [
    "AbstractPotential",
    "Bowl",
    "DoubleWell",
    "Himmelblau",
    "KnownPoint",
    "MonkeySaddle",
    "MuellerBrown",
    "Rosenbrock",
    "Saddle",
]

Kind = Literal["minimum", "saddle", "maximum", "degenerate"]
Region = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class KnownPoint:
    """A critical point that is known in closed form or from the literature.

    Attributes:
        position: The state, to the published digits.
        kind: The kind; `degenerate` if the Hessian is singular.
        value: The potential at the point, to the published digits.
    """

    position: tuple[float, ...]
    kind: Kind
    value: float

    place = FormerName("position")


class AbstractPotential(eqx.Module):
    """A scalar function of a state, with its known critical points and a standard region."""

    @property
    @abstractmethod
    def critical_points(self) -> tuple[KnownPoint, ...]:
        """The critical points, minima first: all, or those in the region if there are more."""

    @property
    @abstractmethod
    def region(self) -> Region:
        """The rectangle in which the potential is usually studied: (low, high) per component."""

    @abstractmethod
    def __call__(self, state: Float[Array, " d"]) -> Float[Array, ""]:
        """The value at one state."""

    def __repr__(self) -> str:
        held = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        shown = ", ".join(f"{name}={value}" for name, value in held if value is not None)
        return f"{type(self).__name__}({shown})"


class Bowl(AbstractPotential):
    """The bowl ½ λ |y|², for any d; flow lines are y e^(−λt).

    `critical_points` and `region` describe the bowl with d = 2.

    Args:
        curvature: λ, positive.

    Raises:
        ValueError: If `curvature` is not positive and finite.
    """

    curvature: Float[ArrayLike, ""] = positive(1.0, "curvature", single=True)

    @property
    def critical_points(self) -> tuple[KnownPoint, ...]:
        return (KnownPoint((0.0, 0.0), "minimum", 0.0),)

    @property
    def region(self) -> Region:
        return ((-1.0, 1.0), (-1.0, 1.0))

    def __call__(self, state: Float[Array, " d"]) -> Float[Array, ""]:
        state = floats(state)
        return 0.5 * like(self.curvature, state) * jnp.sum(state**2)


class Saddle(AbstractPotential):
    """The saddle ½ (stable y² − unstable x²) of states (x, y), as in `flowlab.exact`.

    Args:
        stable: Rate at which y decays, positive.
        unstable: Rate at which x grows, positive.

    Raises:
        ValueError: If a rate is not positive and finite.
    """

    stable: Float[ArrayLike, ""] = positive(1.0, "stable", single=True)
    unstable: Float[ArrayLike, ""] = positive(1.0, "unstable", single=True)

    @property
    def critical_points(self) -> tuple[KnownPoint, ...]:
        return (KnownPoint((0.0, 0.0), "saddle", 0.0),)

    @property
    def region(self) -> Region:
        return ((-1.0, 1.0), (-1.0, 1.0))

    def __call__(self, state: Float[Array, " 2"]) -> Float[Array, ""]:
        x, y = _components(self, state, 2)
        return 0.5 * (like(self.stable, y) * y**2 - like(self.unstable, x) * x**2)


class MuellerBrown(AbstractPotential):
    """The Müller–Brown surface: three minima on a bent valley, and the two saddles between them.

        Σ_k A_k exp(a_k (x − x_k)² + b_k (x − x_k)(y − y_k) + c_k (y − y_k)²),   k = 1 … 4

    Its curvatures reach some thousands, so flows on it are stiff.

    Source: K. Müller and L. D. Brown, Theoretica Chimica Acta 53, 75–93 (1979), as it is quoted;
        the critical points are the roots of the gradient to the digits commonly published.
    """

    @property
    def critical_points(self) -> tuple[KnownPoint, ...]:
        return (
            KnownPoint((-0.558, 1.442), "minimum", -146.700),
            KnownPoint((0.623, 0.028), "minimum", -108.167),
            KnownPoint((-0.050, 0.467), "minimum", -80.768),
            KnownPoint((-0.822, 0.624), "saddle", -40.665),
            KnownPoint((0.212, 0.293), "saddle", -72.249),
        )

    @property
    def region(self) -> Region:
        return ((-1.5, 1.2), (-0.2, 2.0))

    def __call__(self, state: Float[Array, " 2"]) -> Float[Array, ""]:
        x, y = _components(self, state, 2)
        terms = [
            depth * jnp.exp(a * (x - x0) ** 2 + b * (x - x0) * (y - y0) + c * (y - y0) ** 2)
            for depth, a, b, c, x0, y0 in _MUELLER_BROWN
        ]
        return terms[0] + terms[1] + terms[2] + terms[3]


_MUELLER_BROWN = (  # A, a, b, c, x, y of each term
    (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
    (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
    (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
    (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
)


class Himmelblau(AbstractPotential):
    """Himmelblau's function (x² + y − 11)² + (x + y² − 7)²: four minima, all of value 0.

    The two components of its gradient are cubics, whose zero sets meet in at most nine points: four
    minima, four saddles and one maximum are therefore all critical points.

    Source: D. M. Himmelblau, Applied Nonlinear Programming (McGraw-Hill, 1972). Minima and maximum
        to the six digits commonly published; the saddles to as many, computed from the cubics.
    """

    @property
    def critical_points(self) -> tuple[KnownPoint, ...]:
        return (
            KnownPoint((3.0, 2.0), "minimum", 0.0),
            KnownPoint((-2.805118, 3.131312), "minimum", 0.0),
            KnownPoint((-3.779310, -3.283186), "minimum", 0.0),
            KnownPoint((3.584428, -1.848126), "minimum", 0.0),
            KnownPoint((0.086678, 2.884255), "saddle", 67.719150),
            KnownPoint((-3.073026, -0.081353), "saddle", 104.015163),
            KnownPoint((3.385154, 0.073852), "saddle", 13.311926),
            KnownPoint((-0.127961, -1.953715), "saddle", 178.337239),
            KnownPoint((-0.270845, -0.923039), "maximum", 181.616522),
        )

    @property
    def region(self) -> Region:
        return ((-5.0, 5.0), (-5.0, 5.0))

    def __call__(self, state: Float[Array, " 2"]) -> Float[Array, ""]:
        x, y = _components(self, state, 2)
        return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


class Rosenbrock(AbstractPotential):
    """Rosenbrock's banana (a − x)² + b (y − x²)²: one minimum, (a, a²), in a bent flat valley.

    Args:
        a: The x-coordinate of the minimum, finite.
        b: The steepness of the sides of the valley, positive.

    Raises:
        ValueError: If `a` is not finite, or `b` not positive and finite.

    Source: H. H. Rosenbrock, The Computer Journal 3, 175–184 (1960). The region is the usual one,
        widened if the minimum would otherwise lie outside.
    """

    a: Float[ArrayLike, ""] = parameter(1.0, "a", "(-inf, inf)")
    b: Float[ArrayLike, ""] = positive(100.0, "b", single=True)

    @property
    def critical_points(self) -> tuple[KnownPoint, ...]:
        a = _number(self.a)
        return (KnownPoint((a, a**2), "minimum", 0.0),)

    @property
    def region(self) -> Region:
        a = _number(self.a)
        return ((min(-2.0, a - 1), max(2.0, a + 1)), (-1.0, max(3.0, a**2 + 1)))

    def __call__(self, state: Float[Array, " 2"]) -> Float[Array, ""]:
        x, y = _components(self, state, 2)
        return (like(self.a, x) - x) ** 2 + like(self.b, x) * (y - x**2) ** 2


class MonkeySaddle(AbstractPotential):
    """The monkey saddle x³ − 3xy²: three valleys meet in a point whose Hessian is zero."""

    @property
    def critical_points(self) -> tuple[KnownPoint, ...]:
        return (KnownPoint((0.0, 0.0), "degenerate", 0.0),)

    @property
    def region(self) -> Region:
        return ((-1.0, 1.0), (-1.0, 1.0))

    def __call__(self, state: Float[Array, " 2"]) -> Float[Array, ""]:
        x, y = _components(self, state, 2)
        return x**3 - 3 * x * y**2


class DoubleWell(AbstractPotential):
    """A quartic double well along the first component, and a bowl in any further components.

        h (1 − (2x/D)²)² + ½ λ (y_2² + … + y_d²)

    Two minima of value 0 at x = ±D/2, and a barrier of height h between them at the origin: a
    maximum where d = 1, a saddle of index 1 otherwise. The curvatures along x are 32h/D² in the
    wells and −16h/D² on the barrier.

    Args:
        barrier: h, the height of the barrier, positive.
        distance: D, the distance between the wells, positive.
        curvature: λ, positive; None for 1. Must be None if d = 1.
        dimension: d, at least 1.

    Raises:
        ValueError: If a number is out of its range, or `curvature` is not None although d = 1.
    """

    barrier: Float[ArrayLike, ""] = positive(1.0, "barrier", single=True)
    distance: Float[ArrayLike, ""] = positive(2.0, "distance", single=True)
    curvature: Float[ArrayLike, ""] | None = parameter(None, "curvature", "(0, inf)")
    dimension: int = eqx.field(static=True, default=1)

    def __init__(
        self,
        barrier: Float[ArrayLike, ""] = 1.0,
        distance: Float[ArrayLike, ""] = 2.0,
        curvature: Float[ArrayLike, ""] | None = None,
        dimension: int = 1,
    ) -> None:
        dimension = integer("dimension", dimension)
        if dimension == 1 and curvature is not None:
            raise ValueError(
                "Argument `curvature` must be None in one dimension, where it has no effect, "
                f"but is {curvature!r}."
            )
        self.barrier = barrier
        self.distance = distance
        self.curvature = 1.0 if dimension > 1 and curvature is None else curvature
        self.dimension = dimension

    @property
    def critical_points(self) -> tuple[KnownPoint, ...]:
        rest = (0.0,) * (self.dimension - 1)
        half = _number(self.distance) / 2
        between: Kind = "maximum" if self.dimension == 1 else "saddle"
        return (
            KnownPoint((-half, *rest), "minimum", 0.0),
            KnownPoint((half, *rest), "minimum", 0.0),
            KnownPoint((0.0, *rest), between, _number(self.barrier)),
        )

    @property
    def region(self) -> Region:
        """The interval from −D to D in each component."""
        return ((-_number(self.distance), _number(self.distance)),) * self.dimension

    def __call__(self, state: Float[Array, " d"]) -> Float[Array, ""]:
        x, *others = _components(self, state, self.dimension)
        well = like(self.barrier, x) * (1 - (2 * x / like(self.distance, x)) ** 2) ** 2
        if not others or self.curvature is None:
            return well
        return well + 0.5 * like(self.curvature, x) * jnp.sum(jnp.stack(others) ** 2)


def _components(
    potential: AbstractPotential, state: Float[Array, " d"], dimension: int
) -> list[Float[Array, ""]]:
    """The components of a state; a wrong number of components is an error."""
    values = floats(state)
    if values.shape != (dimension,):
        raise ValueError(
            f"Argument `state` must have shape ({dimension},) for {type(potential).__name__}, "
            f"but has shape {values.shape}."
        )
    return [values[i] for i in range(dimension)]


def _number(value: ArrayLike) -> float:
    return float(np.asarray(value))
