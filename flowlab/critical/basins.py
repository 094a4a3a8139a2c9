"""Basins of attraction: the minimum, or the runaway, at which every start ends.

Each start is followed until its speed is below 1e-3 of the typical one, and, if its end is not
clear then, below 1e-9. An end is given to a minimum if Newton's method moves it by less than a
thousandth of the region, and to a minimum that was found; a slow end of which that is not true is
`unresolved`. Ends on walls and edges count if the line rested there. A line five widths of the
region outside of it is a runaway.

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
_RUN_AWAY = 5.0  # widths of the region around it, beyond which a line has run away
_CAPTURE = 1e-3  # of the region: how near to a critical point a line has to have come to rest
_SLOW, _SLOWEST = 1e-3, 1e-9  # of the typical speed: where a line is looked at, and looked at again
_ON_MANIFOLD = 1e-7  # of the typical change of the potential: as far from a manifold in it as on it
_RESTED = (  # what an end on a wall or edge comes of; not of a limit
    Outcome.reached,
    Outcome.started_past_target,
    Outcome.at_critical_point,
    Outcome.at_wall,
)
_FRACTAL = float(np.log(2))  # a boundary entropy above it cannot come from smooth boundaries


class BasinEntropy(NamedTuple):
    """The uncertainty of the end of a start within a box of starts.

    Attributes:
        basin: Mean Gibbs entropy of the boxes, in nats.
        boundary: The same over boxes with more than one end; NaN without any.
        boxes: Number of boxes.
        mixed: Boxes with more than one end.

    Source: Daza, Wagemakers, Georgeot, Guéry-Odelin and Sanjuán, Scientific Reports 6, 31416
        (2016): `boundary` above log 2 shows that a boundary is fractal.
    """

    basin: float
    boundary: float
    boxes: int
    mixed: int

    @property
    def fractal(self) -> bool:
        """True if the boundary entropy is one that only a fractal boundary has."""
        return self.boundary > _FRACTAL


@dataclass(frozen=True)
class Basins:
    """The basins of attraction of many starts.

    Attributes:
        starts: shape (n, d).
        labels: Index into `minima`, shape (n,), or one of `RUNAWAY` (-1: left the surroundings of
            the region), `BOUNDARY` (-2: absorbed by an edge that is not a line of critical points,
            or stopped at a wall without a minimum there), `SADDLE` (-3: at rest at a point that is
            no minimum, as on a separatrix), `UNRESOLVED` (-4: not at rest within the limits,
            perhaps on a plateau).
        minima: The minima, and lines of minima, in which starts can end.
        end: The states where the flow lines ended, shape (n, d).
        shape: Of the grid that the starts form, rows of the last component fastest; None if none.
    """

    starts: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    minima: tuple[CriticalPoint, ...]
    end: Float[np.ndarray, "n d"] = field(repr=False)
    shape: tuple[int, ...] | None = None

    @property
    def fractions(self) -> dict[str, tuple[float, float]]:
        """Share of the starts and its standard error, √(p(1−p)/n), by the name of the end.

        The error is that of starts drawn at random; for a grid or a Sobol set it is too large,
        since their error falls faster than with the root of their number.
        """
        count = len(self.labels)
        found: dict[str, tuple[float, float]] = {}
        for label in np.unique(self.labels)[::-1]:
            fraction = float(np.mean(self.labels == label))
            error = float(np.sqrt(fraction * (1 - fraction) / count))
            found[self.name(int(label))] = fraction, error
        return found

    def __repr__(self) -> str:
        """The share of each end, on one line."""
        shares = ", ".join(f"{name} {share:.1%}" for name, (share, _) in self.fractions.items())
        return f"Basins({len(self.labels):,} starts: {shares})"

    def _repr_html_(self) -> str:
        rows = [(n, f"{p:.3f}", f"± {error:.3f}") for n, (p, error) in self.fractions.items()]
        title = f"Basins of {len(self.labels):,} starts"
        return _tables.html(title, [("end", "share", "standard error"), *rows], "lrr")

    def plot(self, *, colors: Any = None, ax: Any = None) -> Any:
        """Draw the basins on their plane; see `flowlab.plots.basins`.

        Args:
            colors: Colours of the basins, in the order of `minima` or by name; None for ours.
            ax: The matplotlib Axes to draw on; None for one of a new Figure.

        Raises:
            ValueError: If the starts form no grid on a plane.
        """
        from flowlab import plots

        return plots.basins(self, colors=colors, ax=ax)

    def name(self, label: int) -> str:
        """The name of a label."""
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

        It is a mean over boxes, so that it depends on how fine the grid is, and on `box`.

        Args:
            box: Starts along the side of a box. Starts at the ends of a row that fill no box are
                left out.

        Raises:
            ValueError: If the starts form no grid, or `box` is not between 2 and its shortest side.
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
    """The basins of attraction: for each start, the minimum in which it ends, or that it runs away.

    Each flow line is followed until it is at rest. It counts as having ended in a minimum only if
    Newton's method leads from its end, within a thousandth of the region, to a minimum (or a line
    of minima) that was found; if it has merely become slow on a plateau it is `unresolved`. A
    critical point on a wall or an edge is the end only of lines that came to rest there, or were
    stopped by the wall within 1e-4 of the region of it.

    Args:
        flow: The flow.
        starts: shape (n, d), or (..., d) for a grid, as `numpy.meshgrid` makes it, stacked on the
            last axis. Those of `starts.grid` on a plane are known as a grid as they are.
        points: Critical points of a region, from `critical_points`; None to search for them.
        region: Where to search; None for the smallest rectangle around the starts.
        time_limit: Flow time at which to give up. If it is finite, lines that are slow but not at
            rest are followed again from their starts.
        rtol: Relative tolerance.

    Raises:
        ValueError: If the starts are not real or have the wrong shape, or `points` and `region` are
            both given.

    Accuracy: a start within about `rtol` of a separatrix can fall to either side.
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
        raise ValueError("Argument `region` must be None where `points` are given, but is not.")
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
        begin = end if np.isinf(time_limit) else flat  # so that the limit holds for the whole way
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
    """The label of the critical point that Newton's method finds near each end, if there is one."""
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
    """True for a point on an absorbing edge of the domain, and not for one on a wall."""
    return bool(flow.domain.absorbing and point.on and np.any(point.position == 0))


def _distance(
    flow: AbstractFlow,
    point: CriticalPoint,
    positions: Float[np.ndarray, "n d"],
    width: float,
    scale: float,
) -> Float[np.ndarray, " n"]:
    if point.dimension and _is_edge(flow, point):  # which goes on beyond the region
        return np.max(np.abs(positions[:, point.position == 0]), axis=1)
    if point.dimension > 1:
        value = derivatives_at(flow, positions).value
        return np.where(np.abs(value - point.value) <= _ON_MANIFOLD * scale * width, 0.0, np.inf)
    return distance_to(point, positions)


def _entropy(labels: Int[np.ndarray, " k"]) -> float:
    parts = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-np.sum(parts * np.log(parts)))
