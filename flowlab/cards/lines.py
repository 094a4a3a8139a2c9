"""Flow lines for a card: their long-run behaviour, traps, and crossings of margins.

Starts are the reference point, rings around it and a 13 × 13 grid on the square. The unit of time
is one over the larger of curvature and speed at the reference point. States are saved from 1e-3 to
1e6 units. If a line stops early, the field around its end shows why: a kink (velocities on the two
sides are opposite), the edge of the loss's domain, or a blow-up in finite time. A trap is a start
whose line ends at, or tends to, a negative margin: the rejected response stays ahead.

n: starts; a point is (u_chosen, u_rejected).
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from flowlab import measures, until
from flowlab._names import FormerName
from flowlab.cards.approach import UNCLEAR, Approach, Kind, classify
from flowlab.cards.plane import Plane, circle
from flowlab.critical.derivatives import root_step
from flowlab.critical.flat_regions import is_flat
from flowlab.critical.tolerances import ROOT_STEP
from flowlab.ensemble import Runs, sweep
from flowlab.until import Outcome

__all__ = [
    "DECADES",
    "MARGINS",
    "RTOL",
    "Crossing",
    "Lines",
    "Traps",
    "approaches",
    "crossings",
    "follow",
    "only_approached",
    "time_unit",
    "traps",
]

MARGINS = (1.0, 5.0, 20.0)  # at which lines are compared, in nats
_STARTS_A_SIDE = 13  # starts of the grid on the square, per side
_RINGS = (0.01, 0.03, 0.1, 0.3)  # radii of the rings of starts, as parts of the reach
_DIRECTIONS = 8  # starts of a ring
DECADES = (-3, 6)  # decades of the unit of time, from the first to the last saved state
_PER_DECADE = 10  # moments
RTOL = 1e-8  # of the line from the reference point
_ROUGH_RTOL = 1e-6  # of lines of which only the ends count; its solver compiles in half the time
_BLOCK_STEPS = 5000  # of a block: enough for decay at a thousandth of the fastest rate
_BLOCK = 32  # lines that share a step, so that fast lines do not slow down the others
_SUDDEN = 1e-8  # of the elapsed time: a line that doubles its distance in less blows up
_OUTGROWN = 1e100  # nats: a line that ends beyond has overflowed, and is not at an edge
_AHEAD = 1e-3  # relative to 1 + |u|: the distance ahead at which an edge is looked for
_KINK = 1e-4  # relative to 1 + |u|: the distance of points on the two sides of a kink
_ENOUGH = 1e-3  # of the last time: lines that ended before have an unclear long-run behaviour
_AT_REST = 1e-3  # of the reach: a line with a shorter Newton step has arrived


@dataclass(frozen=True)
class Lines:
    """Flow lines from the reference point, and from rings and a grid around it.

    Attributes:
        reference: The line from the reference point, saved at geometrically spaced times.
        starts: The other starts, shape (n, 2).
        ends: The final states of the lines from `starts`, shape (n, 2).
        gridded: Mask of the starts that belong to the grid, shape (n,).
    """

    reference: Runs
    starts: Float[np.ndarray, "n 2"]
    ends: Float[np.ndarray, "n 2"]
    gridded: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Crossing:
    """The first crossing of a margin by the flow line from the reference point.

    Attributes:
        margin: The margin u_chosen − u_rejected, nats.
        time: The flow time of the crossing; NaN if the line does not reach the margin.
        u_chosen: The chosen log-ratio at the crossing.
        u_rejected: The rejected log-ratio at the crossing.
    """

    margin: float
    time: float
    u_chosen: float
    u_rejected: float


@dataclass(frozen=True)
class Traps:
    """Traps: starts whose margin has the wrong sign (negative) at the end of the integration.

    Attributes:
        reference: Whether the reference point is a trap.
        fraction: The fraction of the square's starts that are traps.
        reference_margin: The final margin of the line from the reference point.
        stuck: The fraction of the square's starts whose margin is negative at the end but still
            growing, on a plateau; they do not count as traps.
    """

    reference: bool
    fraction: float
    reference_margin: float
    stuck: float

    share = FormerName("fraction")


def follow(plane: Plane) -> Lines:
    """Integrate flow lines over nine decades of time, from 1e-3 to 1e6 units of time."""
    unit = time_unit(plane)
    end = unit * 10.0 ** DECADES[1]
    count = (DECADES[1] - DECADES[0]) * _PER_DECADE + 1
    reference = _swept(
        plane,
        np.zeros((1, 2)),
        end,
        RTOL,
        save_at=np.geomspace(unit * 10.0 ** DECADES[0], end, count),
        measures=[measures.margin_at(margin) for margin in MARGINS],
    )
    starts = _starts(plane)
    runs = _swept(plane, starts, end, _ROUGH_RTOL, block_size=_BLOCK)
    ends = runs.end
    held_up = (runs.outcome == Outcome.step_limit) & (ends[:, 0] < ends[:, 1])
    if held_up.any():
        ends[held_up] = _swept(plane, starts[held_up], end, _ROUGH_RTOL, block_size=1).end
    gridded = np.arange(len(starts)) >= len(starts) - _STARTS_A_SIDE**2
    return Lines(reference, starts, ends, gridded)


def approaches(plane: Plane, lines: Lines) -> dict[str, Approach]:
    """The long-run behaviour of "chosen", "rejected" and "margin" from the reference point."""
    line = lines.reference
    ending = _ending(plane, line)
    if ending is not None:
        return _ended(line, ending)
    assert line.saved is not None
    seen = np.all(np.isfinite(line.saved[0]), axis=1)
    times, states = line.save_at[seen], line.saved[0][seen]
    short = line.end_time[0] < _ENOUGH * line.save_at[-1] and np.max(np.abs(line.end)) < _OUTGROWN
    if line.outcome[0] == Outcome.step_limit and short:
        return dict.fromkeys(("chosen", "rejected", "margin"), UNCLEAR)
    rates = plane.field(states).velocity
    if line.outcome[0] == Outcome.at_critical_point:
        times, states, rates = _resting(line, times, states, rates)
    size = float(np.max(np.ptp(states, axis=0), initial=0.0))
    columns = {
        "chosen": (states[:, 0], rates[:, 0]),
        "rejected": (states[:, 1], rates[:, 1]),
        "margin": (states[:, 0] - states[:, 1], rates[:, 0] - rates[:, 1]),
    }
    return {name: classify(times, *column, size) for name, column in columns.items()}


def crossings(plane: Plane, lines: Lines) -> tuple[Crossing, ...]:
    """The first crossing of each of `MARGINS` by the line from the reference point."""
    found = []
    for margin in MARGINS:
        time = lines.reference.measures[f"margin_{margin:g}_time"][0]
        state = lines.reference.measures[f"margin_{margin:g}_state"][0]
        if only_approached(plane, state):
            time, state = np.nan, np.full(2, np.nan)
        found.append(Crossing(margin, float(time), float(state[0]), float(state[1])))
    return tuple(found)


def only_approached(plane: Plane, crossed: Float[np.ndarray, " 2"]) -> bool:
    """True if a margin is that of a critical point, which the line only approaches.

    Rounding alone then makes the line cross it.
    """
    if not np.all(np.isfinite(crossed)):
        return False
    there = plane.field(crossed[None])
    size = 1 + float(np.linalg.norm(crossed))
    left = root_step(there.gradient, there.hessian, size)[1][0]
    return bool(left < ROOT_STEP * size and np.any(there.hessian))


def traps(plane: Plane, lines: Lines) -> Traps:
    """The traps among the starts, and the lines that are stuck on a plateau."""
    ends = np.concatenate([lines.reference.end, lines.ends])
    field = plane.field(ends)
    margin = ends[:, 0] - ends[:, 1]
    growth = field.velocity[:, 0] - field.velocity[:, 1]
    with np.errstate(all="ignore"):
        step = np.linalg.norm(root_step(field.gradient, field.hessian, plane.reach)[0], axis=1)
        resting = is_flat(field) | ((step > 0) & (step < _AT_REST * plane.reach))
        wrong = margin < -_AT_REST * plane.reach
        trapped = wrong & (resting | ~(growth > 0))
        stuck = wrong & ~trapped
    grid = np.concatenate([[False], lines.gridded])
    return Traps(
        reference=bool(trapped[0]),
        fraction=float(np.mean(trapped[grid])),
        reference_margin=float(margin[0]),
        stuck=float(np.mean(stuck[grid])),
    )


def _swept(
    plane: Plane, starts: Float[np.ndarray, "n 2"], end: float, rtol: float, **options: Any
) -> Runs:
    return sweep(
        plane.flow,
        starts,
        until=until.time(end),
        clock="time",
        rtol=rtol,
        max_steps=_BLOCK_STEPS,
        optimise=False,
        progress=False,
        devices=jax.local_devices()[:1],  # each device compiles by itself, which takes longest
        **options,
    )


def time_unit(plane: Plane) -> float:
    """The unit of time: one over the larger of curvature and speed at the reference point."""
    field = plane.reference
    curvature = np.max(np.abs(np.linalg.eigvals(plane.kernel @ field.hessian[0])))
    fastest = max(float(curvature), float(field.speed[0]))
    return 1 / fastest if fastest > 0 else 1 / plane.scale


def _starts(plane: Plane) -> Float[np.ndarray, "n 2"]:
    rings = [radius * plane.reach * circle(_DIRECTIONS) for radius in _RINGS]
    return np.concatenate([*rings, plane.square(_STARTS_A_SIDE)])


def _ending(plane: Plane, line: Runs) -> Kind | None:
    """The kind of end of a line that stopped early; None if the field at the end does not tell."""
    if line.outcome[0] not in (Outcome.non_finite, Outcome.step_limit):
        return None
    end = line.end[:1]
    velocity = plane.field(end).velocity
    speed = float(np.hypot(*velocity[0]))
    left = np.hypot(*end[0]) / speed if speed > 0 else np.inf
    if not left > _SUDDEN * line.end_time[0]:
        return "blow-up"
    if np.max(np.abs(end)) > _OUTGROWN:
        return None
    ahead = velocity / speed if speed > 0 else np.zeros((1, 2))
    size = 1 + np.hypot(*end[0])
    if not np.isfinite(plane.field(end + _AHEAD * size * ahead).value[0]):
        return "edge"
    return "finite time" if _sticks(plane, end, ahead, _KINK * size) else None


def _sticks(
    plane: Plane, end: Float[np.ndarray, "1 2"], ahead: Float[np.ndarray, "1 2"], apart: float
) -> bool:
    """True if velocities on the two sides of a point are opposite at ever smaller distances."""
    wide, near = (
        plane.field(end + np.array([[-1.0], [1.0]]) * far * ahead).velocity
        for far in (apart, apart / 10)
    )
    size = np.linalg.norm(near, axis=1)
    opposite = np.linalg.norm(near.sum(axis=0)) < 1e-2 * size.max()
    return bool(opposite and np.all(size > 0.5 * np.linalg.norm(wide, axis=1)))


def _ended(line: Runs, kind: Kind) -> dict[str, Approach]:
    """The approach of a line that ended in finite time."""
    time, end = float(line.end_time[0]), line.end[0]
    positions = {"chosen": end[0], "rejected": end[1], "margin": end[0] - end[1]}
    if kind == "blow-up":
        positions = {name: np.copysign(np.inf, position) for name, position in positions.items()}
    return {name: Approach(kind, time, float(position)) for name, position in positions.items()}


def _resting(
    line: Runs, times: np.ndarray, states: np.ndarray, rates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The saved states of a line, with the final state repeated if the line came to rest early."""
    left = line.save_at[line.save_at > line.end_time[0]]
    still = np.repeat(line.end[:1], len(left), axis=0)
    return (
        np.concatenate([times, left]),
        np.concatenate([states, still]),
        np.concatenate([rates, np.zeros_like(still)]),
    )
