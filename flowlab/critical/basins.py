"""Basins of attraction: the minimum to which each start flows, or another outcome.

Each line is followed until its speed is below 1e-3 of the median speed at the starts and, if its
outcome is not clear by then, below 1e-9. A line belongs to a minimum if Newton's method leads from
its end to this minimum, over a distance of less than a thousandth of the region. A slow line is
`saddle` if Newton's method leads in this way to another critical point, and else `unresolved`. A
minimum on a wall or an edge counts only for lines that came to rest or became slow there. A line
that is more than five widths of the region outside of the region is a `runaway`.

n: starts; d: components.

Source: Daza, Wagemakers, Georgeot, Guéry-Odelin and Sanjuán, Scientific Reports 6 (2016), for
the basin entropy.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Int

from flowlab import _tables, until
from flowlab.critical.critical_sets import distance_to
from flowlab.critical.derivatives import checked_region, derivatives_at, diagonal, real_starts
from flowlab.critical.points import critical_points, refined
from flowlab.critical.tolerances import ON_POINT
from flowlab.critical.types import CriticalPoint, CriticalPoints, check_points, coordinates
from flowlab.ensemble import sweep
from flowlab.flow import AbstractFlow
from flowlab.solve import one_call
from flowlab.starts import grid_sides
from flowlab.until import Clock, Outcome

__all__ = [
    "BOUNDARY",
    "RUNAWAY",
    "SADDLE",
    "UNRESOLVED",
    "BasinEntropy",
    "Basins",
    "basins",
]

RUNAWAY, BOUNDARY, SADDLE, UNRESOLVED = -1, -2, -3, -4
_NAMES = {
    RUNAWAY: "runaway",
    BOUNDARY: "boundary",
    SADDLE: "saddle",
    UNRESOLVED: "unresolved",
}
_RUN_AWAY = 5.0  # widths: a line so far outside the region has run away
_CAPTURE = 1e-3  # of the region: the largest distance between the end of a line and its minimum
_SLOW, _SLOWEST = 1e-3, 1e-9  # of the typical speed: the speeds at which lines are stopped
_ON_MANIFOLD = 1e-7  # of the typical change of the potential: values so close are equal
_RESTED = (  # outcomes of lines that came to rest on a wall or edge, not at a limit
    Outcome.reached,
    Outcome.started_past_target,
    Outcome.at_critical_point,
    Outcome.at_wall,
)
_FRACTAL = float(np.log(2))  # a boundary entropy above it cannot come from smooth boundaries


class BasinEntropy(NamedTuple):
    """The basin entropy: the uncertainty of the outcome of a start within a box of starts.

    Attributes:
        basin: Mean Gibbs entropy of the boxes, in nats.
        boundary: Mean Gibbs entropy of the boxes with more than one outcome, in nats; NaN if there
            are no such boxes.
        boxes: Number of boxes.
        mixed: Number of boxes with more than one outcome.

    Source: Daza, Wagemakers, Georgeot, Guéry-Odelin and Sanjuán, Scientific Reports 6, 31416
        (2016): `boundary` above log 2 shows that a boundary is fractal.
    """

    basin: float
    boundary: float
    boxes: int
    mixed: int

    @property
    def fractal(self) -> bool:
        """True if the boundary entropy exceeds log 2, which only a fractal boundary can have."""
        return self.boundary > _FRACTAL


@dataclass(frozen=True)
class Basins:
    """The basins of attraction of many starts.

    Attributes:
        starts: The starts, shape (n, d).
        labels: The outcome of each start, shape (n,): an index into `minima`, or `RUNAWAY` (-1: the
            line went far outside the region), `BOUNDARY` (-2: absorbed by an edge that is not a
            line of critical points, or stopped at a wall without a minimum there), `SADDLE` (-3: at
            rest at a critical point that is not a minimum, as on a separatrix), or `UNRESOLVED`
            (-4: not at rest within the limits, perhaps on a plateau).
        minima: The minima, and lines of minima, to which starts can flow.
        end: The final states of the lines, shape (n, d).
        shape: The shape of the grid that the starts form, with the last component fastest; None if
            they form no grid.
    """

    starts: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    minima: tuple[CriticalPoint, ...]
    end: Float[np.ndarray, "n d"] = field(repr=False)
    shape: tuple[int, ...] | None = None

    @property
    def fractions(self) -> dict[str, tuple[float, float]]:
        """Fraction p of the n starts with each outcome, and its standard error √(p(1−p)/n).

        The key is the name of the outcome. The standard error is that of random starts. It is too
        large for a grid or a Sobol set, whose error decreases faster than 1/√n.
        """
        count = len(self.labels)
        found: dict[str, tuple[float, float]] = {}
        for label in np.unique(self.labels)[::-1]:
            fraction = float(np.mean(self.labels == label))
            error = float(np.sqrt(fraction * (1 - fraction) / count))
            found[self.name(int(label))] = fraction, error
        return found

    def __repr__(self) -> str:
        """The fraction of the starts with each outcome, on one line."""
        shares = ", ".join(f"{name} {share:.1%}" for name, (share, _) in self.fractions.items())
        return f"Basins({len(self.labels):,} starts: {shares})"

    def _repr_html_(self) -> str:
        rows = [(n, f"{p:.3f}", f"± {error:.3f}") for n, (p, error) in self.fractions.items()]
        title = f"Basins of {len(self.labels):,} starts"
        return _tables.html(title, [("end", "share", "standard error"), *rows], "lrr")

    def plot(self, *, colors: Any = None, ax: Any = None) -> Any:
        """Draw the basins on their plane; see `flowlab.plots.basins`.

        Args:
            colors: Colours of the basins, in the order of `minima` or by name; None for the
                default.
            ax: The matplotlib Axes to draw on; None for new ones.

        Raises:
            ValueError: If the starts form no grid on a plane.
        """
        from flowlab import plots

        return plots.basins(self, colors=colors, ax=ax)

    def name(self, label: int) -> str:
        """The name of a label, such as "minimum at (1, 0)" or "runaway"."""
        if label < 0:
            return _NAMES[label]
        return f"{self.minima[label].name} at {coordinates(self.minima[label].position)}"

    @property
    def map(self) -> Int[np.ndarray, "..."]:
        """The labels in the shape of the grid.

        Raises:
            ValueError: If the starts form no grid.
        """
        if self.shape is None:
            raise ValueError(
                "Argument `starts` must form a grid for a map of basins, such as that of "
                "starts.grid(32, low, high), but does not."
            )
        return self.labels.reshape(self.shape)

    def entropy(self, box: int = 5) -> BasinEntropy:
        """The basin entropy in nats, from boxes of the grid of starts.

        The entropy is a mean over boxes, and depends on the spacing of the grid and on `box`.

        Args:
            box: Number of starts along the side of a box. Starts at the end of a row that do not
                fill a box are left out.

        Raises:
            ValueError: If the starts form no grid, or `box` is not between 2 and the shortest side
                of the grid.
        """
        labels = self.map
        if not 2 <= box <= min(labels.shape):
            raise ValueError(
                f"Argument `box` must be between 2 and {min(labels.shape)}, but is {box!r}."
            )
        counts = [side // box for side in labels.shape]
        cut = labels[tuple(slice(count * box) for count in counts)]
        split = [size for count in counts for size in (count, box)]
        axes = [*range(0, 2 * len(counts), 2), *range(1, 2 * len(counts), 2)]
        boxes = cut.reshape(split).transpose(axes).reshape(int(np.prod(counts)), -1)
        entropies = np.array([_entropy(one) for one in boxes])
        mixed = entropies > 0
        boundary = float(np.mean(entropies[mixed])) if mixed.any() else float("nan")
        return BasinEntropy(float(np.mean(entropies)), boundary, len(boxes), int(mixed.sum()))


@one_call()
def basins(
    flow: AbstractFlow,
    starts: npt.ArrayLike,
    points: CriticalPoints | None = None,
    *,
    region: npt.ArrayLike | None = None,
    time_limit: float = np.inf,
    rtol: float = 1e-6,
) -> Basins:
    """The basins of attraction: for each start, the minimum to which it flows, or another outcome.

    Each flow line is followed until it is at rest. It belongs to a minimum only if Newton's method
    leads from its end to this minimum (or line of minima), over a distance of less than a
    thousandth of the region. A line that is merely slow, as on a plateau, is `unresolved`. A
    minimum on a wall or an edge counts only for lines that came to rest there, or that the wall
    stopped within 1e-4 of the region from the minimum.

    Args:
        flow: The flow.
        starts: Starts, shape (n, d). For a grid, shape (..., d): arrays from `numpy.meshgrid`,
            stacked on the last axis. Starts from `starts.grid` on a plane are also recognised as a
            grid.
        points: Critical points of a region, from `critical_points`; None to search for them.
        region: The region to search; None for the smallest rectangle around the starts.
        time_limit: Flow time at which to give up. If it is finite, lines that are slow but not at
            rest are followed again from their starts, so that the limit holds for the whole line.
        rtol: Relative tolerance.

    Raises:
        ValueError: If the starts are not real or have the wrong shape, or `points` and `region` are
            both given.

    Accuracy: a start within about `rtol` of a separatrix can be assigned to either side.
    """
    given = real_starts(starts)
    if given.ndim < 2 or given.size == 0:
        raise ValueError(
            f"Argument `starts` must have shape (n, d) or (..., d), but has shape {given.shape}."
        )
    flat = given.reshape(-1, given.shape[-1])
    shape = given.shape[:-1] if given.ndim > 2 else _grid_shape(flat)
    if points is None:
        around = np.stack([flat.min(axis=0), flat.max(axis=0)], axis=1)
        points = critical_points(flow, around if region is None else region)
    elif region is not None:
        raise ValueError("Argument `region` must be None if `points` are given, but is not.")
    check_points(points)
    checked_region(points.region, flow)
    here = derivatives_at(flow, flat)
    scale = _median(here.steepness)
    typical = _median(np.linalg.norm(np.einsum("nij,nj->ni", here.metric, here.gradient), axis=1))
    labels, end = np.full(len(flat), UNRESOLVED), flat.copy()
    going = np.arange(len(flat))
    clock: Clock = "arc_length" if flow.domain.absorbing else "time"
    for fraction in (_SLOW, _SLOWEST):
        target = until.speed_below(max(fraction * typical, 1e-300), time_limit=time_limit)
        begin = end if np.isinf(time_limit) else flat  # so that the limit holds for the whole line
        runs = sweep(flow, begin[going], until=target, rtol=rtol, clock=clock)
        end[going] = runs.end
        labels[going] = _labelled(flow, points, runs.outcome, runs.end, scale)
        going = going[(labels[going] == UNRESOLVED) | (labels[going] == SADDLE)]
        going = going[np.all(np.isfinite(end[going]), axis=1)]
        if not len(going):
            break
    return Basins(flat, labels, _attracting(points), end, shape)


def _grid_shape(flat: Float[np.ndarray, "n d"]) -> tuple[int, ...] | None:
    sides = grid_sides(flat)
    return None if sides is None else tuple(map(len, sides))


def _median(values: Float[np.ndarray, " n"]) -> float:
    fit = values[np.isfinite(values)]
    return float(np.median(fit)) if len(fit) else 1.0


def _attracting(points: CriticalPoints) -> tuple[CriticalPoint, ...]:
    return points.of("minimum")


def _labelled(
    flow: AbstractFlow,
    points: CriticalPoints,
    outcome: Int[np.ndarray, " n"],
    end: Float[np.ndarray, "n d"],
    scale: float,
) -> Int[np.ndarray, " n"]:
    width = diagonal(points.region)
    labels = np.full(len(outcome), UNRESOLVED)
    known = np.all(np.isfinite(end), axis=1)
    stopped = np.any(end == 0, axis=1) | (flow.wall == "stop")
    labels[known & (outcome == Outcome.at_wall) & stopped] = BOUNDARY
    labels[_far(end, points.region)] = RUNAWAY
    positions = np.flatnonzero(known & (labels != RUNAWAY))
    rested = np.isin(outcome[positions], _RESTED)
    matched = _matched(flow, points, end[positions], rested, width, scale)
    labels[positions] = np.where(matched != UNRESOLVED, matched, labels[positions])
    return labels


def _far(states: Float[np.ndarray, "n d"], region: Float[np.ndarray, "d 2"]) -> np.ndarray:
    room = _RUN_AWAY * (region[:, 1] - region[:, 0])
    return np.any((states < region[:, 0] - room) | (states > region[:, 1] + room), axis=1)


def _matched(
    flow: AbstractFlow,
    points: CriticalPoints,
    ends: Float[np.ndarray, "n d"],
    rested: Bool[np.ndarray, " n"],
    width: float,
    scale: float,
) -> Int[np.ndarray, " n"]:
    """The label of the critical point that Newton's method finds near each end, or `UNRESOLVED`."""
    labels = np.full(len(ends), UNRESOLVED)
    if not len(ends):
        return labels
    attracting = _attracting(points)
    with np.errstate(all="ignore"):
        roots, _, rooted = refined(flow, ends, scale, width)
    near = rooted & (np.linalg.norm(roots - ends, axis=1) < _CAPTURE * width)
    positions = np.where(near[:, None], roots, ends)
    for point in sorted(points.points, key=lambda point: point.dimension):
        slides = flow.wall == "slide" or _is_edge(flow, point)
        there = rested if point.on else near
        apart = _CAPTURE if point.on and slides else ON_POINT
        on_it = there & (_distance(flow, point, positions, width, scale) < apart * width)
        label = attracting.index(point) if point in attracting else SADDLE
        labels[on_it & (labels == UNRESOLVED)] = label
    return labels


def _is_edge(flow: AbstractFlow, point: CriticalPoint) -> bool:
    """True for a critical point on an absorbing edge of the domain, False on a wall or inside."""
    return bool(flow.domain.absorbing and point.on and np.any(point.position == 0))


def _distance(
    flow: AbstractFlow,
    point: CriticalPoint,
    positions: Float[np.ndarray, "n d"],
    width: float,
    scale: float,
) -> Float[np.ndarray, " n"]:
    if point.dimension and _is_edge(flow, point):  # which extends beyond the region
        return np.max(np.abs(positions[:, point.position == 0]), axis=1)
    if point.dimension > 1:
        value = derivatives_at(flow, positions).value
        return np.where(np.abs(value - point.value) <= _ON_MANIFOLD * scale * width, 0.0, np.inf)
    return distance_to(point, positions)


def _entropy(labels: Int[np.ndarray, " k"]) -> float:
    parts = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-np.sum(parts * np.log(parts)))
