"""Continuation of critical points: how they move, appear, vanish or change with a parameter.

At each of the parameter's values, all critical points of the region are searched for (`points`).
Between two values each point is followed by a predictor–corrector method (`branch_tracking`).
`branch_walk` links the followed points to those of the search, and `momentary` handles values at
which points meet.

m: values of the parameter; k: values along a branch; d: components.
"""

from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from tqdm import tqdm

from flowlab._names import FormerName
from flowlab.critical.branch_tracking import Follower
from flowlab.critical.branch_walk import Event, Walk
from flowlab.critical.derivatives import checked_region
from flowlab.critical.momentary import fill, is_momentary
from flowlab.critical.points import critical_points
from flowlab.critical.types import CriticalPoint, coordinates
from flowlab.flow import AbstractFlow
from flowlab.solve import one_call
from flowlab.solve.progress import bar_options

__all__ = ["Branch", "Continuation", "Event", "continuation"]

_SHARP = 1e-6  # of the range of values: a smaller uncertainty of an event is not printed


@dataclass(frozen=True)
class Branch:
    """A critical point, or a line of critical points, as a function of the parameter.

    Attributes:
        values: The values of the parameter, ascending, shape (k,).
        points: The critical point at each value.
        enters: Whether the point enters the region from outside before the first value.
        leaves: Whether the point leaves the region after the last value.
    """

    values: Float[np.ndarray, " k"]
    points: tuple[CriticalPoint, ...] = field(repr=False)
    enters: bool = False
    leaves: bool = False

    places = FormerName("positions")

    @property
    def positions(self) -> Float[np.ndarray, "k d"]:
        """The position at each value, shape (k, d)."""
        return np.array([point.position for point in self.points])

    @property
    def index(self) -> Int[np.ndarray, " k"]:
        """The index at each value: the number of directions of negative curvature, shape (k,)."""
        return np.array([point.index for point in self.points])

    @property
    def kind(self) -> tuple[str, ...]:
        """The kind of the critical point at each value."""
        return tuple(point.kind for point in self.points)

    @property
    def stretches(self) -> tuple[tuple[str, float, float], ...]:
        """Name, first and last value for each stretch of values with the same name."""
        named = zip((point.name for point in self.points), self.values.tolist(), strict=True)
        runs = [(name, [v for _, v in run]) for name, run in groupby(named, itemgetter(0))]
        return tuple((name, run[0], run[-1]) for name, run in runs)


@dataclass(frozen=True)
class Continuation:
    """Critical points as functions of a parameter.

    Attributes:
        parameter: The name of the parameter.
        values: The values at which all points were searched for, ascending, shape (m,).
        branches: The branches of critical points.
        events: Events in the order of their values: a point appears, vanishes, changes its index or
            is lost. If a point enters or leaves the region, its branch says so; this is no event.
        components: Names of the components of a state; None if they have none.
    """

    parameter: str
    values: Float[np.ndarray, " m"]
    branches: tuple[Branch, ...]
    events: tuple[Event, ...]
    components: tuple[str, ...] | None = None

    def to_rows(self) -> list[dict[str, Any]]:
        """One row for each branch and value: parameter, position, kind, index, potential, rates."""
        names = self.components or tuple(f"component_{i}" for i in range(self._width))
        return [
            {
                self.parameter: float(value),
                "branch": number,
                **dict(zip(names, map(float, point.position), strict=True)),
                "name": point.name,
                "index": point.index,
                "value": point.value,
                "rates": point.rates.tolist(),
            }
            for number, branch in enumerate(self.branches)
            for value, point in zip(branch.values, branch.points, strict=True)
        ]

    def __str__(self) -> str:
        """A text with one line for each branch and each event."""
        lines = [
            f"branch {number}: {self._told(branch)}" for number, branch in enumerate(self.branches)
        ] or ["no critical point at any value"]
        for event in self.events:
            where = coordinates(event.position)
            words = f"{event.before} becomes {event.after}"
            if not (event.before and event.after):
                words = f"{event.before or event.after} {event.what}"
            vague = event.within > _SHARP * float(np.ptp(self.values))
            about = f" ± {event.within:.2g}" if vague else ""
            lines.append(f"{self.parameter} = {event.value:.6g}{about}: {words} at {where}")
        return "\n".join(lines)

    def _told(self, branch: Branch) -> str:
        """A description of a branch: its kind, and the range of its values."""
        parts = []
        for name, first, last in branch.stretches:
            span = f"{first:.6g}" if first == last else f"{first:.6g} to {last:.6g}"
            parts.append(f"{name}, {self.parameter} {span}")
        crossed = ["enters the region"] * branch.enters + ["leaves the region"] * branch.leaves
        return "; ".join([*parts, *crossed])

    @property
    def _width(self) -> int:
        return len(self.branches[0].points[0].position) if self.branches else 0


@one_call()
def continuation(
    flow: AbstractFlow,
    parameter: str,
    values: npt.ArrayLike,
    region: npt.ArrayLike,
    *,
    starts: int = 128,
    progress: bool | None = None,
) -> Continuation:
    """Follow critical points over a hyper-parameter of a flow, and record events.

    At each value of the parameter λ, all critical points of the region are searched for. Each point
    is followed from one value to the next: the tangent −H⁻¹ ∂∇L/∂λ, H the Hessian, predicts the
    next position, and Newton's method corrects it. A step is accepted if the correction is small
    compared with the step, and if a step back returns to the beginning; otherwise it is shortened.
    If even the shortest step fails, the Hessian is singular (two points meet), the point reaches or
    leaves a wall, or the point is lost. Points on walls are followed along the walls. Points linked
    in this way form a branch; branches share a point only where they meet.

    If points meet at one of `values`, the search finds a single degenerate point or a line at this
    value. Branches are then followed from the value before to the value after, and branches that
    meet share the point. Lines and manifolds, and points that are degenerate at every value, cannot
    be followed, and are linked to the nearest of their kind.

    Args:
        flow: A flow whose states are vectors.
        parameter: Name of a hyper-parameter, as for `sweep(over=...)`.
        values: Increasing values of the parameter, at least two.
        region: Lower and upper end of every component, shape (d, 2).
        starts: Number of starts of each search.
        progress: Whether to show a progress bar; None shows one on a terminal if the work takes
            long.

    Raises:
        ValueError: If the values do not increase, the flow has no such hyper-parameter, or the
            region does not fit the flow.

    Accuracy: events are located to 1e-10 of the distance between two values, unless rounding hides
        the difference of two points that are about to meet. Events of lines and manifolds are
        located to half the distance between two values, those of degenerate points to the whole
        distance. `Event.within` states the uncertainty. A pair of points that appears and vanishes
        between two values is missed, as is an index that changes and changes back. Index changes
        within 1e-4 of the distance between two values are reported as one.

    Source: Allgower and Georg, Numerical Continuation Methods (Springer 1990), chapter 2.
    """
    listed = np.asarray(values, dtype=float)
    if listed.ndim != 1 or len(listed) < 2 or not np.all(np.diff(listed) > 0):
        raise ValueError(
            f"Argument `values` must hold increasing numbers, at least two, but is {values!r}."
        )
    ends = checked_region(region, flow)
    known = list(map(float, listed))
    try:
        for value in known:
            flow.with_parameter(parameter, value)
    except ValueError as error:
        raise ValueError(str(error).replace("Argument `over`", "Argument `parameter`")) from None
    follow = Follower(flow, parameter, ends)
    with tqdm(known, desc="values", **bar_options(progress)) as shown:
        found = [list(critical_points(follow.flow_at(v), ends, starts=starts)) for v in shown]
    passed = [is_momentary(found, at, follow.width) for at in range(len(listed))]
    followed = [at for at, momentary in enumerate(passed) if not momentary or all(passed)]
    walk = Walk(follow, listed[followed])
    for step, at in enumerate(followed):
        walk.to(step, list(found[at]))
    fill(walk, listed, found)
    return Continuation(
        parameter,
        listed,
        tuple(
            Branch(np.array(b.values), tuple(b.points), b.enters, b.leaves) for b in walk.branches
        ),
        tuple(sorted(walk.events, key=lambda event: event.value)),
        flow.components,
    )
