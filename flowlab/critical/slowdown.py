"""The time that flow lines spend near critical points, measured and predicted.

A measure along each line gives the flow time within a radius r of each point. The prediction is the
time of passage of a saddle in the linearised flow. Let μ be the rate at which the unstable
coordinate grows; a line that enters with the unstable coordinate δ leaves after (1/μ) log(r/δ). The
unstable coordinate is computed with the left eigenvector of M·Hessian (M the metric) at the line's
closest approach, and extrapolated back to the entry by e^(−μt), since the stable manifold of the
full flow bends away from its tangent further out.

n: starts; p: points; d: components.

Source: Hirsch, Smale and Devaney, Differential Equations, Dynamical Systems, and an Introduction to
Chaos (2004), chapter 8, for the linearisation at a saddle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float

from flowlab import measures
from flowlab._names import FormerName
from flowlab.critical.derivatives import derivatives_at, rates_of, real_starts
from flowlab.critical.types import CriticalPoint, CriticalPoints, coordinates
from flowlab.ensemble import Runs, sweep
from flowlab.flow import AbstractFlow
from flowlab.solve import one_call
from flowlab.until import AbstractTarget

if TYPE_CHECKING:
    import xarray

__all__ = ["Slowdown", "slowdown"]

_SADDLE_RTOL = 1e-10  # errors grow exponentially near a saddle
_NO_RATE = 1e-6  # of the largest rate: a smaller rate counts as zero, without a prediction


@dataclass(frozen=True, eq=False)
class Slowdown:
    """Times spent near critical points, as measured and as the linearisation predicts them.

    Attributes:
        runs: The runs from all starts; their measures include the slowest state of each line.
        positions: The critical points, shape (p, d).
        names: The name of each point, such as "saddle of index 1".
        radius: Radius of the neighbourhood of each point, shape (p,).
        spent: Flow time within the neighbourhood, shape (n, p).
        entry_time: Flow time at which a line first enters the neighbourhood, shape (n, p); NaN if
            it never does.
        entry_state: The state at the entry, shape (n, p, d).
        approach: The smallest distance from the point, shape (n, p).
        approach_time: Flow time of the smallest distance, shape (n, p).
        left: Whether the line ended outside the neighbourhood, so that its whole stay was measured,
            shape (n, p).
        approach_state: The state at the smallest distance, shape (n, p, d).
        entry_offset: The unstable coordinate of the linearised flow at the entry, shape (n, p). It
            equals δ if the stable manifold is straight.
        offset: δ, the distance from the stable manifold at the entry, shape (n, p): the unstable
            coordinate at the smallest distance, extrapolated back to the entry by e^(−μt). NaN
            without an entry or an unstable direction.
        rate: μ, the rate at which the unstable coordinate grows, per unit of flow time, shape
            (n, p).
        predicted: The predicted time, (1/μ) log(radius/δ), shape (n, p).
        below: The speed threshold of `dwell`; None if there is none.
        dwell: Flow time with a speed below the threshold, shape (n,); None without a threshold.
        dwell_share: `dwell` as a fraction of the line's time, shape (n,); None without a threshold.
    """

    runs: Runs
    positions: Float[np.ndarray, "p d"]
    names: tuple[str, ...]
    radius: Float[np.ndarray, " p"]
    spent: Float[np.ndarray, "n p"]
    entry_time: Float[np.ndarray, "n p"]
    entry_state: Float[np.ndarray, "n p d"]
    approach: Float[np.ndarray, "n p"]
    approach_time: Float[np.ndarray, "n p"]
    approach_state: Float[np.ndarray, "n p d"]
    left: Bool[np.ndarray, "n p"]
    entry_offset: Float[np.ndarray, "n p"]
    offset: Float[np.ndarray, "n p"]
    rate: Float[np.ndarray, "n p"]
    predicted: Float[np.ndarray, "n p"]
    below: float | None = None
    dwell: Float[np.ndarray, " n"] | None = None
    dwell_share: Float[np.ndarray, " n"] | None = None

    places = FormerName("positions")

    def to_xarray(self) -> "xarray.Dataset":
        """The runs as an xarray Dataset (`Runs.to_xarray`), with the attributes of each point.

        The attributes of points have a dimension `point`.
        """
        data = self.runs.to_xarray(grid=False)
        stale = [name for name in data.data_vars if str(name).startswith("near_")]
        names = ("spent", "entry_time", "approach", "approach_time", "left")
        names += ("entry_offset", "offset", "rate", "predicted")
        states = ("entry_state", "approach_state")
        return data.drop_vars(stale).assign(
            {name: (("start", "point"), getattr(self, name)) for name in names}
            | {name: (("start", "point", "component"), getattr(self, name)) for name in states}
            | {
                "position": (("point", "component"), self.positions),
                "radius": ("point", self.radius),
                "name": ("point", np.array(self.names)),
            }
        )

    def __str__(self) -> str:
        """A text with one line for each point, and one for the time below the speed threshold."""
        lines = [self._line(index) for index in range(len(self.names))]
        if self.dwell is not None and self.dwell_share is not None:
            slow, share = (float(np.nanmedian(x)) for x in (self.dwell, self.dwell_share))
            lines.append(
                f"below speed {self.below:g}, at whatever point, the end included: {slow:.4g} of "
                f"flow time in the median, {share:.1%}"
            )
        return "\n".join(lines) or "no critical points to be slowed by"

    def _line(self, index: int) -> str:
        position = coordinates(self.positions[index])
        came = np.isfinite(self.entry_time[:, index])
        told = f"{self.names[index]} at {position}: {came.sum()} of {len(came)} lines within "
        told += f"{self.radius[index]:.3g}"
        passed = came & self.left[:, index]
        if not passed.any():
            return told
        spent, predicted = self.spent[passed, index], self.predicted[passed, index]
        told += f", {passed.sum()} passed it in {np.median(spent):.4g} (median)"
        if np.isfinite(predicted).any():
            told += f", {np.nanmedian(predicted):.4g} by its rates"
        slowest = np.flatnonzero(passed)[np.argmax(spent)]
        start = coordinates(np.asarray(self.runs.starts)[slowest])
        return f"{told}; the slowest, from {start}, in {spent.max():.4g}"


@one_call()
def slowdown(
    flow: AbstractFlow,
    starts: npt.ArrayLike,
    points: CriticalPoints | Sequence[CriticalPoint] | npt.ArrayLike,
    *,
    radius: float | Sequence[float],
    until: AbstractTarget,
    below: float | None = None,
    rtol: float = _SADDLE_RTOL,
    **options: Any,
) -> Slowdown:
    """Times that flow lines spend near each critical point, measured and predicted.

    Consider a line that enters the neighbourhood of a saddle at a distance δ from the stable
    manifold. In the linearised flow it leaves when the unstable coordinate has grown from δ to the
    radius: after (1/μ) log(radius/δ), where −μ is the negative eigenvalue of M·Hessian, M the
    metric. The unstable coordinate is computed with the left eigenvector, so that it vanishes on
    the tangent of the stable manifold, and is scaled to lengths along the unstable direction. At
    the entry, a curved stable manifold may be further from its tangent than the line is from the
    manifold. The coordinate is therefore computed at the closest approach and extrapolated back to
    the entry. If there are several unstable directions, the one whose coordinate reaches the radius
    first counts.

    The measured time is that of all visits; the prediction is for the first visit.

    Args:
        flow: A flow whose states are vectors.
        starts: Starts, shape (n, d); lines are integrated in float64.
        points: Critical points (lines and manifolds are left out), or positions, shape (p, d).
        radius: Radius of the neighbourhoods, in the state's coordinates: one for all points, or one
            for each.
        until: The target at which lines end, from `flowlab.until`, with a time limit, since a line
            may never reach it.
        below: A speed threshold; the time with a speed below it is also measured. None for none.
        rtol: Relative tolerance.
        options: Further options of `sweep`, such as `atol` or `progress`.

    Raises:
        ValueError: If the starts are not real, the points are not states of the flow, or a radius
            is not positive.

    Accuracy: see `measures.near` for the measured times. The prediction neglects the nonlinearity
        of the flow up to the exit, an error of the order of radius/μ that does not depend on δ. It
        also neglects the remaining stable coordinate, an error of relative order
        (δ/radius)^(2·stable/unstable), with the stable and the unstable rate.
    """
    positions, names, free = _places(points)
    sizes = _radii(radius, len(positions))
    begin = real_starts(starts)
    runs = sweep(
        flow,
        begin,
        until=until,
        measures=_measures(positions, sizes, below),
        rtol=rtol,
        **{"clock": "arc_length", **options},
    )
    seen = _gathered(runs, len(positions), begin.shape)
    ends = np.linalg.norm(runs.end[:, None] - positions, axis=2)
    told = _predictions(flow, positions, free, sizes, seen)
    return Slowdown(
        runs=runs,
        positions=positions,
        names=names,
        radius=sizes,
        left=ends > sizes,
        below=below,
        dwell=runs.measures.get("dwell"),
        dwell_share=runs.measures.get("dwell_share"),
        **seen,
        **told,
    )


def _places(points: Any) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Positions and names of points, and a mask of the points that are on no wall or edge."""
    listed = list(points)
    if listed and all(isinstance(point, CriticalPoint) for point in listed):
        single = [point for point in listed if point.dimension == 0]
        positions = np.array([point.position for point in single])
        free = np.array([not point.on for point in single], bool)
        return positions.reshape(len(single), -1), tuple(point.name for point in single), free
    try:
        positions = np.asarray(listed, dtype=np.float64)
    except (TypeError, ValueError):
        positions = np.zeros(0)
    if listed and positions.ndim != 2:
        raise ValueError(
            "Argument `points` must be critical points, or positions, shape (p, d), but is "
            f"{points!r}."
        )
    positions = positions.reshape(len(listed), -1)
    return positions, tuple("point" for _ in listed), np.ones(len(listed), bool)


def _radii(radius: float | Sequence[float], count: int) -> Float[np.ndarray, " p"]:
    sizes = np.asarray(radius, dtype=np.float64)
    if sizes.shape not in ((), (count,)) or not np.all(np.isfinite(sizes) & (sizes > 0)):
        raise ValueError(
            "Argument `radius` must be positive and finite, one for all points or one for each of "
            f"{count}, but is {radius!r}."
        )
    return np.broadcast_to(sizes, count).copy()


def _measures(
    positions: Float[np.ndarray, "p d"], radius: Float[np.ndarray, " p"], below: float | None
) -> list[measures.Measure]:
    """The measures: time near each position, slowest state, and time below the speed."""
    slow = [] if below is None else [measures.dwell(below)]
    beside = zip(positions, radius, strict=True)
    wanted = [measures.near(at, float(size), label=str(i)) for i, (at, size) in enumerate(beside)]
    return [*slow, measures.slowest(), *wanted]


def _gathered(runs: Runs, count: int, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The results of the measures `near`, stacked with the points on the second axis."""
    words = {
        "spent": "time",
        "entry_time": "entry_time",
        "entry_state": "entry_state",
        "approach": "distance",
        "approach_time": "distance_time",
        "approach_state": "distance_state",
    }

    def stacked(word: str, extra: tuple[int, ...]) -> np.ndarray:
        columns = [runs.measures[f"near_{index}_{word}"] for index in range(count)]
        return np.stack(columns, axis=1) if columns else np.zeros((shape[0], 0, *extra))

    return {
        name: stacked(word, shape[1:] if word.endswith("_state") else ())
        for name, word in words.items()
    }


def _predictions(
    flow: AbstractFlow,
    positions: Float[np.ndarray, "p d"],
    free: Bool[np.ndarray, " p"],
    radius: Float[np.ndarray, " p"],
    seen: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The predictions of the linearised flow by name, arrays of shape (n, p)."""
    names = ("entry_offset", "offset", "rate", "predicted")
    told = {name: np.full(seen["spent"].shape, np.nan) for name in names}
    around = derivatives_at(flow, positions) if len(positions) else None
    for index in np.flatnonzero(free):
        assert around is not None
        rates, directions = rates_of(around.metric[index], around.hessian[index])
        unstable = np.flatnonzero(rates < -_NO_RATE * np.max(np.abs(rates)))
        if not len(unstable):
            continue
        # Rows of the inverse give the coordinates along the eigenvectors, which have length 1.
        readers, growth = np.linalg.inv(directions)[unstable], -rates[unstable]
        at_entry, closest = (
            np.abs((seen[name][:, index] - positions[index]) @ readers.T)
            for name in ("entry_state", "approach_state")
        )
        since = seen["approach_time"][:, index] - seen["entry_time"][:, index]
        with np.errstate(divide="ignore"):
            times = since[:, None] + np.log(radius[index] / closest) / growth
        rows, first = np.arange(len(times)), np.argmin(times, axis=1)
        rate = np.where(np.isfinite(since), growth[first], np.nan)
        told["entry_offset"][:, index] = at_entry[rows, first]
        told["offset"][:, index] = closest[rows, first] * np.exp(-rate * since)
        told["rate"][:, index] = rate
        told["predicted"][:, index] = times[rows, first]
    return told
