"""One critical point, and all of a region, as they are found and told.

d: components.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from flowlab import _tables

__all__ = ["CriticalPoint", "CriticalPoints", "Kind", "check_points", "kind_of"]

Kind = Literal["minimum", "saddle", "maximum", "degenerate"]

_NONE = "no critical point in the region"
_ROUNDING = 1e-12  # of a coordinate: what is smaller is shown as 0
_SHOWN_AS_ZERO = 1e-12  # of the largest rate at a point: what is smaller is shown as 0


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """A point where the flow rests, or one of a line or manifold of such.

    Attributes:
        place: The state, shape (d,). Of a line, its point nearest to the middle of the region; of
            a manifold, one of its points.
        kind: "minimum", "saddle", "maximum", or "degenerate" (curvature does not tell). Along a
            line or manifold, and on walls, the directions that are left decide.
        index: Directions in which the potential curves down.
        value: The potential there.
        gradient_norm: |∇L| there, without its part across the walls it is held by.
        spectrum: Eigenvalues of the Hessian, ascending, 0 where rounding hides them; on walls, of
            the Hessian along them.
        rates: Eigenvalues of M·Hessian, ascending, per unit of flow time, as many of them 0 as of
            the spectrum: small deviations from the point die out as e^{−rate·t}, and grow where a
            rate is negative. On walls, those of a flow that slides along them, with the metric that
            has the normals taken out.
        dimension: 0 for an isolated point, 1 for a line of such, 2 and more for a manifold.
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
        shapes = {0: one, 1: f"line of {many}"}
        name = shapes.get(self.dimension, f"{self.dimension}-dimensional manifold of {many}")
        return f"{name} on {' and '.join(self.on)}" if self.on else name


@dataclass(frozen=True)
class CriticalPoints:
    """The critical points of a region; "none" is an answer, and comes with what was seen instead.

    Attributes:
        points: The critical points, by their potential; by their place where that is the same.
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

    def __getitem__(self, index: int) -> CriticalPoint:
        return self.points[index]

    def of(self, kind: Kind) -> tuple[CriticalPoint, ...]:
        """The points of a kind."""
        return tuple(point for point in self.points if point.kind == kind)

    @property
    def inner(self) -> tuple[CriticalPoint, ...]:
        """The points that no wall and no edge holds."""
        return tuple(point for point in self.points if not point.on)

    def __str__(self) -> str:
        """A line for each point, or a sentence that there is none; and the smallest gradient."""
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
            ax: The matplotlib Axes to draw on; None for one of a new Figure.

        Raises:
            ValueError: If the states are on no plane.
        """
        from flowlab import plots

        return plots.critical_points(self, ax=ax)

    def _elsewhere(self) -> str:
        return (
            f"elsewhere the gradient is at least {self.smallest_gradient:.3g}, at "
            f"{coordinates(self.smallest_at)} ({self.searched} starts)"
        )


def coordinates(place: Float[np.ndarray, " d"], digits: int = 4) -> str:
    """The words for a place, "(1, 0.5)", in which what is zero but for rounding is 0."""
    shown = (0.0 if abs(at) < _ROUNDING else at for at in map(float, place))
    return f"({', '.join(f'{at:.{digits}g}' for at in shown)})"


def kind_of(values: Float[np.ndarray, " d"], dimension: int) -> Kind:
    """The kind of a point by the eigenvalues of its Hessian, of which a set has zeros."""
    up, down, none = (int(np.sum(sign)) for sign in (values > 0, values < 0, values == 0))
    if none > dimension or up + down == 0:
        return "degenerate"
    if up and down:
        return "saddle"
    return "minimum" if up else "maximum"


def check_points(points: Any) -> None:
    """Refuse what was not found by `critical_points`.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(points, CriticalPoints):
        raise ValueError(
            "Argument `points` must be what critical.critical_points(flow, region) gives, but is "
            f"{points!r}."
        )


def _line(point: CriticalPoint) -> str:
    name, where, value, slope, rates = _cells(point)
    norm = "|∇L| along it" if point.on else "|∇L|"
    words = f"{name} at {where}: L = {value}, {norm} = {slope}"
    return f"{words}, rates {rates} per unit of flow time"


def _cells(point: CriticalPoint) -> tuple[str, ...]:
    """The name of a point, where it is, the potential, its slope and the rates, as text."""
    where = coordinates(point.place, 6)
    largest = np.max(np.abs(point.rates), initial=0.0)
    known = np.where(np.abs(point.rates) > _SHOWN_AS_ZERO * largest, point.rates, 0.0)
    rates = np.array2string(known, precision=4, separator=", ")
    return point.name, where, f"{point.value:.6g}", f"{point.gradient_norm:.1e}", rates
