"""The result types of a search: a critical point, and the critical points of a region.

d: components.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from flowlab import _tables
from flowlab._names import FormerName

__all__ = ["CriticalPoint", "CriticalPoints", "Kind", "check_points", "kind_of"]

Kind = Literal["minimum", "saddle", "maximum", "degenerate"]

_NONE = "no critical point in the region"
_ROUNDING = 1e-12  # of a coordinate: smaller numbers are shown as 0
_SHOWN_AS_ZERO = 1e-12  # of the largest rate at a point: smaller rates are shown as 0


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """A critical point of a flow, or one point of a line or manifold of critical points.

    Attributes:
        position: The state, shape (d,). For a line, its point nearest to the middle of the region;
            for a manifold, one of its points.
        kind: "minimum", "saddle", "maximum", or "degenerate" (some curvature is zero). Directions
            along a line or manifold, and across walls, do not count.
        index: Number of directions of negative curvature.
        value: The potential at the point.
        gradient_norm: |∇L| at the point, without the component across walls that hold the point.
        spectrum: Eigenvalues of the Hessian, ascending, with 0 for those that rounding hides. On
            walls, eigenvalues of the Hessian along the walls.
        rates: Eigenvalues of M·Hessian (M the metric), ascending, per unit of flow time, with as
            many zeros as the spectrum. Small deviations from the point decay as e^{−rate·t}, or
            grow if the rate is negative. On walls, the rates of the flow that slides along them.
        dimension: 0 for an isolated point, 1 for a line, 2 or more for a manifold.
        path: Points along a line, which is closed or ends at sides of the region, shape (k, d);
            None for a point or manifold.
        on: Equations of the walls or edges that hold the point, such as "x_rejected = 0".
    """

    position: Float[np.ndarray, " d"]
    kind: Kind
    index: int
    value: float
    gradient_norm: float
    spectrum: Float[np.ndarray, " d"]
    rates: Float[np.ndarray, " d"]
    dimension: int = 0
    path: Float[np.ndarray, "k d"] | None = field(default=None, repr=False)
    on: tuple[str, ...] = ()

    place = FormerName("position")

    @property
    def name(self) -> str:
        """A description such as "saddle of index 1" or "line of minima on x_rejected = 0"."""
        words: dict[str, tuple[str, str]] = {
            "minimum": ("minimum", "minima"),
            "saddle": (f"saddle of index {self.index}", f"saddles of index {self.index}"),
            "maximum": ("maximum", "maxima"),
            "degenerate": ("degenerate point", "degenerate points"),
        }
        one, many = words[self.kind]
        shapes = {0: one, 1: f"line of {many}"}
        name = shapes.get(self.dimension, f"{self.dimension}-dimensional manifold of {many}")
        return f"{name} on {' and '.join(self.on)}" if self.on else name


@dataclass(frozen=True)
class CriticalPoints:
    """The critical points of a region, and the smallest gradient away from them.

    Attributes:
        points: The critical points, ordered by potential, and by position if potentials are equal;
            empty if there are none.
        region: Lower and upper ends, shape (d, 2).
        smallest_gradient: The smallest |∇L| that the search found in the region away from the
            points: at its starts, and at its ends that are not roots.
        smallest_at: The state with the smallest gradient.
        searched: Number of starts of the search.
        components: Names of the components of a state; None if they have none.
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

    def __getitem__(self, index: int) -> CriticalPoint:
        return self.points[index]

    def of(self, kind: Kind) -> tuple[CriticalPoint, ...]:
        """The points of a kind, such as "minimum"."""
        return tuple(point for point in self.points if point.kind == kind)

    @property
    def inner(self) -> tuple[CriticalPoint, ...]:
        """The points that are on no wall and no edge."""
        return tuple(point for point in self.points if not point.on)

    def __str__(self) -> str:
        """A text with one line for each point, and a line with the smallest gradient."""
        lines = [_line(point) for point in self.points] or [_NONE]
        return "\n".join([*lines, self._elsewhere()])

    def __repr__(self) -> str:
        """The number of points of each kind, on one line."""
        counts = Counter(point.name for point in self.points)
        told = ", ".join(f"{count} × {name}" for name, count in counts.items()) or "none"
        region = " × ".join(f"[{low:g}, {high:g}]" for low, high in self.region)
        return f"CriticalPoints({told}, in {region})"

    def _repr_html_(self) -> str:
        header = ("critical point", "at", "L", "|∇L|", "rates per unit of flow time")
        rows = [header, *map(_cells, self.points)] if self.points else [(_NONE,)]
        return _tables.html(repr(self), [*rows, (self._elsewhere(),)])

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the points on their plane; see `flowlab.plots.critical_points`.

        Args:
            ax: The matplotlib Axes to draw on; None for new ones.

        Raises:
            ValueError: If the states do not have two components.
        """
        from flowlab import plots

        return plots.critical_points(self, ax=ax)

    def _elsewhere(self) -> str:
        return (
            f"elsewhere the gradient is at least {self.smallest_gradient:.3g}, at "
            f"{coordinates(self.smallest_at)} ({self.searched} starts)"
        )


def coordinates(position: Float[np.ndarray, " d"], digits: int = 4) -> str:
    """A position as text, "(1, 0.5)", with 0 for components that are zero up to rounding."""
    shown = (0.0 if abs(at) < _ROUNDING else at for at in map(float, position))
    return f"({', '.join(f'{at:.{digits}g}' for at in shown)})"


def kind_of(values: Float[np.ndarray, " d"], dimension: int) -> Kind:
    """The kind of a critical point, from the eigenvalues of its Hessian.

    For a set of dimension `dimension`, as many zero eigenvalues do not count.
    """
    up, down, none = (int(np.sum(sign)) for sign in (values > 0, values < 0, values == 0))
    if none > dimension or up + down == 0:
        return "degenerate"
    if up and down:
        return "saddle"
    return "minimum" if up else "maximum"


def check_points(points: Any) -> None:
    """Refuse an argument `points` that is not a result of `critical_points`.

    Raises:
        ValueError: If `points` is not a `CriticalPoints`.
    """
    if not isinstance(points, CriticalPoints):
        raise ValueError(
            "Argument `points` must be a result of critical.critical_points(flow, region), but is "
            f"{points!r}."
        )


def _line(point: CriticalPoint) -> str:
    name, where, value, slope, rates = _cells(point)
    norm = "|∇L| along it" if point.on else "|∇L|"
    words = f"{name} at {where}: L = {value}, {norm} = {slope}"
    return f"{words}, rates {rates} per unit of flow time"


def _cells(point: CriticalPoint) -> tuple[str, ...]:
    """The name, position, potential, gradient norm and rates of a point, as text."""
    where = coordinates(point.position, 6)
    largest = np.max(np.abs(point.rates), initial=0.0)
    known = np.where(np.abs(point.rates) > _SHOWN_AS_ZERO * largest, point.rates, 0.0)
    rates = np.array2string(known, precision=4, separator=", ")
    return point.name, where, f"{point.value:.6g}", f"{point.gradient_norm:.1e}", rates
