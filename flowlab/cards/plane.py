"""A loss on the log-ratio plane, evaluated at many points at once.

n: points; a point is (u_chosen, u_rejected).
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowlab.flow import PreferenceFlow
from flowlab.solve import compiled

__all__ = ["Field", "Plane", "circle"]

_CHUNK = 512  # points evaluated at once, padded, so that there is one shape to compile for


@dataclass(frozen=True)
class Field:
    """Value, gradient and Hessian of a loss, and the velocity of its flow, at n points.

    Attributes:
        value: Shape (n,).
        gradient: Shape (n, 2).
        hessian: Shape (n, 2, 2).
        velocity: Shape (n, 2).
    """

    value: Float[np.ndarray, " n"]
    gradient: Float[np.ndarray, "n 2"]
    hessian: Float[np.ndarray, "n 2 2"]
    velocity: Float[np.ndarray, "n 2"]

    @property
    def speed(self) -> Float[np.ndarray, " n"]:
        """Euclidean length of the velocity."""
        return np.hypot(*self.velocity.T)


class Plane:
    """A flow on the log-ratio plane, and the square of it that a card looks at.

    Args:
        flow: The flow, of a loss under a `LogRatioPlane`.
        reach: Half the side of the square, in nats, around the reference point (0, 0).
    """

    def __init__(self, flow: PreferenceFlow, reach: float) -> None:
        self.flow = flow
        self.reach = reach

    def field(self, points: Float[np.ndarray, "n 2"]) -> Field:
        """The loss and its flow at points, in double precision."""
        count = len(points)
        padded = np.zeros((-(-max(count, 1) // _CHUNK) * _CHUNK, 2))
        padded[:count] = points
        with jax.enable_x64(True):
            parts = [_evaluate(self.flow, chunk) for chunk in padded.reshape(-1, _CHUNK, 2)]
        return Field(*(np.concatenate(part)[:count] for part in zip(*parts, strict=True)))

    @cached_property
    def reference(self) -> Field:
        """The loss and its flow at the reference point alone."""
        return self.field(np.zeros((1, 2)))

    @cached_property
    def kernel(self) -> Float[np.ndarray, "2 2"]:
        """The kernel K of the flow, u' = −K ∇L."""
        return np.asarray(self.flow.policy.matrix)  # type: ignore[attr-defined]

    @cached_property
    def scale(self) -> float:
        """A typical length of the gradient: the median near the reference point, not counting 0."""
        near = np.concatenate([r * self.reach * circle(16) for r in (1e-3, 1e-2, 0.1, 0.3)])
        sizes = np.linalg.norm(self.field(near).gradient, axis=1)
        known = sizes[np.isfinite(sizes) & (sizes > 0)]
        return float(np.median(known)) if known.size else 1.0

    def rings(self) -> Float[np.ndarray, "n 2"]:
        """Points around the reference point, from a hundred-thousandth of the reach on."""
        return np.concatenate([r * self.reach * circle(8) for r in np.geomspace(1e-5, 1e-2, 10)])

    def square(self, side: int) -> Float[np.ndarray, "n 2"]:
        """Points of a grid of side × side on the square, 'ij' order."""
        axis = np.linspace(-self.reach, self.reach, side)
        return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def circle(count: int) -> Float[np.ndarray, "n 2"]:
    """Points at equal angles around the unit circle, from (1, 0) on."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@partial(compiled, optimise=False)
def _evaluate(flow: PreferenceFlow, points: Float[ArrayLike, "n 2"]) -> Any:
    def at(point: Float[Array, " 2"]) -> tuple[Array, Array, Array, Array]:
        value, gradient = jax.value_and_grad(flow.potential)(point)
        hessian = jax.jacfwd(jax.grad(flow.potential))(point)
        return value, gradient, hessian, -flow.metric(point, gradient)

    return jax.vmap(at)(jnp.asarray(points))
