"""A loss on the log-ratio plane, evaluated at many points at once.

n: points; a point is (u_chosen, u_rejected).
"""

from functools import cached_property

import numpy as np
from jaxtyping import Float

from flowlab.critical.derivatives import Derivatives, derivatives_at
from flowlab.flow import PreferenceFlow

__all__ = ["Plane", "circle"]


class Plane:
    """A flow on the log-ratio plane, and the square of the plane that a card describes.

    Args:
        flow: The flow, of a loss under a `LogRatioPlane`.
        reach: Half the side of the square, in nats, around the reference point (0, 0).
    """

    def __init__(self, flow: PreferenceFlow, reach: float) -> None:
        self.flow = flow
        self.reach = reach

    def field(self, points: Float[np.ndarray, "n 2"]) -> Derivatives:
        """The loss, its derivatives and the velocity at points, in double precision."""
        return derivatives_at(self.flow, points)

    @cached_property
    def reference(self) -> Derivatives:
        """The loss, its derivatives and the velocity at the reference point."""
        return self.field(np.zeros((1, 2)))

    @cached_property
    def kernel(self) -> Float[np.ndarray, "2 2"]:
        """The kernel K of the flow, u' = −K ∇L."""
        return np.asarray(self.flow.policy.matrix)  # type: ignore[attr-defined]

    @cached_property
    def scale(self) -> float:
        """A typical gradient norm: the median of nonzero norms around the reference point."""
        near = np.concatenate([r * self.reach * circle(16) for r in (1e-3, 1e-2, 0.1, 0.3)])
        sizes = self.field(near).steepness
        known = sizes[np.isfinite(sizes) & (sizes > 0)]
        return float(np.median(known)) if known.size else 1.0

    @cached_property
    def region(self) -> Float[np.ndarray, "2 2"]:
        """The lower and upper end of the square in each component."""
        return self.reach * np.array([[-1.0, 1.0], [-1.0, 1.0]])

    def rings(self) -> Float[np.ndarray, "n 2"]:
        """Points on rings around the reference point, of radius 1e-5 to 1e-2 of the reach."""
        return np.concatenate([r * self.reach * circle(8) for r in np.geomspace(1e-5, 1e-2, 10)])

    def square(self, side: int) -> Float[np.ndarray, "n 2"]:
        """The points of a side × side grid on the square, in 'ij' order."""
        axis = np.linspace(-self.reach, self.reach, side)
        return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def circle(count: int) -> Float[np.ndarray, "n 2"]:
    """Points at equal angles on the unit circle, beginning at (1, 0)."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)
