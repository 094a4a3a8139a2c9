"""Maps of the fall of the chosen log-probability of one pair, over starts and couplings.

n: starts; v: ratios k_wl/k_ww.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from flowlab import _checks as checks
from flowlab import _tables, measures, until
from flowlab._arrays import jsonable
from flowlab.ensemble import sweep
from flowlab.flow import PreferenceFlow, preference_flow
from flowlab.losses import AbstractLoss
from flowlab.policies import CoupledKernel, LogRatioPlane
from flowlab.solve import compiled, operations_at
from flowlab.until import Outcome, counted

if TYPE_CHECKING:
    import xarray

__all__ = [
    "MARGINS",
    "REJECTED",
    "Displacement",
    "boundary",
    "boundary_of_slopes",
    "default_margins",
    "default_ratios",
    "displacement",
    "table",
    "to_json",
    "typical_boundary",
]

REJECTED = 1.5  # k_ll/k_ww unless given: ratios up to 1.22 are possible, past the boundary of DPO
MARGINS = (-20.0, 20.0)  # nats, of the starts unless given
_RATIOS = (-0.4, 1.2)
_CELLS = (61, 32)  # margins, ratios: every 2/3 of a nat, every 0.05
_ROUNDING = 64.0  # units in the last place that the parts of a rate lose
_CHANGE = 6  # index of the change at the end among the cells of a row
_OFFSET = 1.0  # nats, of the pair, for losses that use one; as on a card
# Few starts share a step, since lines that run into a kink or a pole hold up all.
_SWEPT: dict[str, Any] = {"max_steps": 5000, "block_size": 8, "optimise": False}
_WHOLE = (Outcome.reached, Outcome.at_critical_point)  # lines of which everything is known
_VALUES = (
    *("rate", "dip_depth", "dip_time", "recovery_time"),
    *("change_chosen", "change_margin", "end_time"),
)


def boundary(loss: AbstractLoss, starts: Float[ArrayLike, "n 2"]) -> Float[np.ndarray, " n"]:
    """The value of k_wl/k_ww at which the chosen log-probability of one pair does not move.

    r* = −(∂L/∂u_w)/(∂L/∂u_l), which is 1 for every loss that depends only on the margin. If the
    loss pushes the rejected response down (∂L/∂u_l > 0), the chosen one falls for larger ratios; if
    it pushes it up, for smaller ones. Infinite if ∂L/∂u_l = 0, and NaN if both derivatives are 0 or
    the loss is not defined.

    Args:
        loss: A loss of one pair.
        starts: (u_chosen, u_rejected), shape (n, 2), nats.

    Raises:
        ValueError: If `loss` does not apply to a single pair, or the starts have another shape.
    """
    points = checks.array("starts", starts, ("n", 2))
    return boundary_of_slopes(*_slopes(loss, points).T)


@dataclass(frozen=True)
class Displacement:
    """Falls of the chosen log-probability of one pair, over starts and couplings.

    Missing values are NaN: times of events that do not happen, and everything for a start without a
    flow line. If a line ends early (`ends_early`; `outcome` says why: the loss may not be defined
    further on), the values are those up to its end.

    Attributes:
        loss: The loss.
        starts: (u_chosen, u_rejected), shape (n, 2), nats.
        ratios: k_wl/k_ww, shape (v,).
        rejected: k_ll/k_ww.
        time: Flow time for which every line is followed, at k_ww = 1.
        boundary: r* of every start, shape (n,); see `boundary`.
        rate: u_w' at the start, nats per unit of flow time, shape (v, n).
        dip_depth: Largest fall of the chosen log-probability below its start, nats, shape (v, n).
        dip_time: Flow time of its lowest point, shape (v, n).
        recovery_time: Flow time at which it is back at its start, shape (v, n); NaN if it is not by
            `time`.
        change_chosen: Its change by the end, nats, shape (v, n).
        change_margin: The change of the margin by the end, shape (v, n).
        end_time: Flow time at which the line ends, shape (v, n); `time` unless it ends early.
        outcome: A code of `until.Outcome`, shape (v, n).
    """

    loss: AbstractLoss
    starts: Float[np.ndarray, "n 2"]
    ratios: Float[np.ndarray, " v"]
    rejected: float
    time: float
    boundary: Float[np.ndarray, " n"]
    rate: Float[np.ndarray, "v n"]
    dip_depth: Float[np.ndarray, "v n"]
    dip_time: Float[np.ndarray, "v n"]
    recovery_time: Float[np.ndarray, "v n"]
    change_chosen: Float[np.ndarray, "v n"]
    change_margin: Float[np.ndarray, "v n"]
    end_time: Float[np.ndarray, "v n"]
    outcome: Int[np.ndarray, "v n"]

    def __repr__(self) -> str:
        """The loss, the size, and how deep the chosen one falls, on one line."""
        size = f"{len(self.starts)} starts at {len(self.ratios)} ratios k_wl/k_ww"
        fall = f"falls by {np.nanmax(self.dip_depth):.4g} nats at most" if self.known.any() else ""
        return f"Displacement({self.loss!r}: {size}, {fall or 'no flow line'})"

    def table(self) -> str:
        """The falls as plain text, with rows for the ratios; see `displacement.table`."""
        return table({type(self.loss).__name__: self})

    @property
    def margins(self) -> Float[np.ndarray, " n"]:
        """The margin u_chosen − u_rejected of every start, nats."""
        return self.starts[:, 0] - self.starts[:, 1]

    @property
    def known(self) -> Bool[np.ndarray, "v n"]:
        """Mask of the starts that have a flow line."""
        return np.isfinite(self.dip_depth)

    @property
    def ends_early(self) -> Bool[np.ndarray, "v n"]:
        """Mask of the lines that end before `time`, except those at rest from the start."""
        return self.known & ~np.isin(self.outcome, _WHOLE)

    @property
    def shares(self) -> dict[str, Float[np.ndarray, " v"]]:
        """Fractions of the starts with a flow line, for each ratio.

        `falls_at_start`: the rate at the start is negative. `falls`: the depth is positive, beyond
        rounding. `recovers`: the chosen log-probability is back at its start by the end.
        """
        count = np.where(self.known.any(axis=1), self.known.sum(axis=1), np.nan)
        held = {
            "falls_at_start": self.rate < 0,
            "falls": self.dip_depth > 0,
            "recovers": np.isfinite(self.recovery_time),
        }
        return {name: (mask & self.known).sum(axis=1) / count for name, mask in held.items()}

    def counts(self) -> dict[str, int]:
        """Number of lines with each outcome, by name; outcomes that did not occur are left out."""
        return counted(self.outcome)

    def to_xarray(self) -> "xarray.Dataset":
        """Everything as an xarray Dataset with the dimensions `ratio` and `start`."""
        import xarray

        variables: dict[str, Any] = {
            name: (("ratio", "start"), getattr(self, name)) for name in (*_VALUES, "outcome")
        }
        variables["boundary"] = ("start", self.boundary)
        coordinates = {
            "ratio": self.ratios,
            "u_chosen": ("start", self.starts[:, 0]),
            "u_rejected": ("start", self.starts[:, 1]),
            "margin": ("start", self.margins),
        }
        attributes = {"loss": repr(self.loss), "rejected": self.rejected, "time": self.time}
        return xarray.Dataset(variables, coordinates, attributes)


def displacement(
    loss: AbstractLoss,
    *,
    ratios: Sequence[float] | Float[np.ndarray, " v"] | None = None,
    margins: Sequence[float] | Float[np.ndarray, " n"] | None = None,
    starts: Float[ArrayLike, "n 2"] | None = None,
    rejected: float = REJECTED,
    time: float | None = None,
    rtol: float = 1e-6,
    progress: bool | None = False,
) -> Displacement:
    """Map the fall of the chosen log-probability of one pair over starts and coupling.

    The flow of the loss on the log-ratio plane under K = [[1, r], [r, s]], r = k_wl/k_ww and s =
    k_ll/k_ww, is followed from every start, for every r. A kernel with another k_ww has the same
    lines in 1/k_ww of the time. References are −20 nats and lengths 20 tokens, as on a card.

    Args:
        loss: A loss of one pair, any.
        ratios: Values of r, increasing, each with r² at most s; None for `default_ratios` about the
            boundary of the loss.
        margins: Margins h of the starts, nats, which are then (h/2, −h/2); None for
            `default_margins`.
        starts: Starts (u_chosen, u_rejected) instead of margins, shape (n, 2), nats.
        rejected: s, positive.
        time: Flow time for which lines are followed. None for the range of the margins divided by
            the median slope of the loss over the starts: 40 nats / 0.05 = 800 for DPO with β = 0.1.
            This scales with the loss, so that maps of losses with different units of time are
            comparable.
        rtol: Relative tolerance.
        progress: Whether to show a progress bar; None where it takes long, on a terminal.

    Raises:
        ValueError: If `loss` does not apply to a single pair; ratios, margins or starts are not as
            above; both margins and starts are given; or the loss is flat at every start and `time`
            is None.

    Accuracy: `rtol` per step.
    """
    points, rejected = _starts(margins, starts), checks.positive("rejected", rejected)
    slopes = _slopes(loss, points)
    couplings = _checked_ratios(ratios, rejected, boundary_of_slopes(*slopes.T))
    time = _horizon(slopes, points) if time is None else checks.positive("time", time)
    runs = sweep(
        _flow(loss, CoupledKernel(couplings[0], rejected)),
        points,
        until=until.time(time),
        over={"ratio": couplings.tolist()},
        measures=[measures.dip(), measures.change("u")],
        rtol=rtol,
        progress=progress,
        **_SWEPT,
    )
    chosen, other = (runs.measures.pop(f"change_{name}_u") for name in ("chosen", "rejected"))
    return Displacement(
        loss=loss,
        starts=points,
        ratios=couplings,
        rejected=rejected,
        time=time,
        boundary=boundary_of_slopes(*slopes.T),
        rate=_total(-slopes[:, 0], -couplings[:, None] * slopes[:, 1]),
        change_chosen=chosen,
        change_margin=chosen - other,
        end_time=runs.end_time,
        outcome=runs.outcome,
        **runs.measures,
    )


def default_margins(
    low: float = MARGINS[0], high: float = MARGINS[1], count: int = _CELLS[0]
) -> Float[np.ndarray, " n"]:
    """Equally spaced margins, nats: by default 61 from −20 to 20."""
    return np.linspace(low, high, count)


def default_ratios(
    rejected: float = REJECTED, count: int = _CELLS[1], *, boundary: float = 1.0
) -> Float[np.ndarray, " v"]:
    """Equally spaced ratios k_wl/k_ww around the boundary of a loss.

    They are the centres of cells that extend as far below the boundary as the largest possible
    ratio, √s, lies above it: 0.775 to 1.225 for a loss that depends only on the margin, with the
    boundary between two cells. If s does not allow the boundary itself, the cells extend from −0.4
    to 1.2, as far as s allows.

    Args:
        rejected: s = k_ll/k_ww.
        count: The number of ratios.
        boundary: r*, as `typical_boundary` gives it.
    """
    largest = np.sqrt(rejected)
    low, high = max(_RATIOS[0], -largest), min(_RATIOS[1], largest)
    if abs(boundary) < largest:
        reach = largest - abs(boundary)
        low, high = boundary - reach, boundary + reach
    return low + (high - low) * (np.arange(count) + 0.5) / count


def typical_boundary(loss: AbstractLoss, margins: Float[ArrayLike, " n"]) -> float:
    """The median of `boundary` over the margins at which it is finite; NaN if there are none.

    Raises:
        ValueError: As `boundary` does.
    """
    return _median(boundary(loss, _starts(margins, None)))


def _median(boundaries: Float[np.ndarray, " n"]) -> float:
    known = boundaries[np.isfinite(boundaries)]
    return float(np.median(known)) if known.size else float("nan")


def table(found: Mapping[str, Displacement]) -> str:
    """Displacements by name, as plain text: a line for each, and rows for their ratios.

    Neighbouring ratios that only differ in the change at the end share a row.
    """
    told = [f"{name}: {_summary(one)}" for name, one in found.items()]
    header = ("loss", "k_wl/k_ww", "falls at once", "falls", "recovers", "deepest", "median dip")
    header += ("latest dip", "chosen at the end", "ends early", "no line")
    rows = [header, *(row for name, one in found.items() for row in _rows(name, one))]
    notes = (
        "Shares are of the starts with a flow line. Dips in nats; times in flow time where k_ww is "
        "1. Median dip: of the starts that fall. Chosen at the end: median change, nats.\n"
        "Ends early: lines that stop before their time, where the loss is not defined (outcome "
        "non_finite) or has a kink that the flow would slide on (step_limit); their values are "
        "those up to there."
    )
    return "\n".join([*told, "", _tables.table(rows, "lr"), "", notes])


def to_json(found: Mapping[str, Displacement]) -> list[dict[str, Any]]:
    """Displacements as JSON-ready dictionaries, with None for missing values; arrays as (v, n)."""
    return [{"name": name, **_record(one)} for name, one in found.items()]


def _record(one: Displacement) -> dict[str, Any]:
    names = ("starts", "margins", "ratios", "rejected", "time", "boundary", *_VALUES)
    record = {"loss": repr(one.loss), **{name: jsonable(getattr(one, name)) for name in names}}
    record["outcome"] = [[Outcome(code).name for code in row] for row in one.outcome]
    return record | {"shares": {name: jsonable(values) for name, values in one.shares.items()}}


def _summary(one: Displacement) -> str:
    ends = ", ".join(f"{number} {name}" for name, number in one.counts().items())
    known = one.boundary[~np.isnan(one.boundary)]
    where = "has none" if not known.size else f"{known.min():.4g} to {known.max():.4g}"
    return (
        f"{one.loss!r}, {len(one.starts)} starts with margins {one.margins.min():.4g} to "
        f"{one.margins.max():.4g}, k_ll/k_ww {one.rejected:.4g}, flow time {one.time:.4g}; "
        f"boundary r* {where}; lines: {ends}"
    )


def _rows(name: str, one: Displacement) -> list[tuple[str, ...]]:
    """A row for each run of neighbouring ratios that only differ in the change at the end."""
    single = [(f"{r:.4g}", *cells) for r, cells in zip(one.ratios, _cells(one), strict=True)]
    change = 1 + _CHANGE
    found = []
    for _, run in groupby(single, key=lambda row: row[1:change] + row[change + 1 :]):
        rows = list(run)
        merged = [_from_to(rows[0][i], rows[-1][i]) for i in range(len(rows[0]))]
        found.append((name, *merged))
    return found


def _from_to(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _cells(one: Displacement) -> list[tuple[str, ...]]:
    found = []
    for index in range(len(one.ratios)):
        depth, known = one.dip_depth[index], one.known[index]
        falls = depth > 0
        shares = [f"{values[index]:.1%}" if known.any() else "—" for values in one.shares.values()]
        dips = [_cell(depth[falls], np.max), _cell(depth[falls], np.median)]
        latest = _cell(one.dip_time[index][falls], np.max)
        change = _cell(one.change_chosen[index][known], np.median)
        missing = (str(int(np.sum(mask[index]))) for mask in (one.ends_early, ~one.known))
        found.append((*shares, *dips, latest, change, *missing))
    return found


def _cell(values: np.ndarray, of: Any) -> str:
    return f"{of(values):.4g}" if values.size else "—"


def boundary_of_slopes(slope_chosen: np.ndarray, slope_rejected: np.ndarray) -> np.ndarray:
    """r* = −(∂L/∂u_w)/(∂L/∂u_l), infinite or NaN without a slope of the rejected response."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -slope_chosen / slope_rejected


def _total(*parts: np.ndarray) -> np.ndarray:
    """The sum of the parts of a rate; 0 if it is within the rounding of its parts."""
    total, size = sum(parts), sum(map(np.abs, parts))
    return np.where(np.abs(total) <= _ROUNDING * np.finfo(float).eps * size, 0.0, total)


@compiled
def _gradients(flow: PreferenceFlow, points: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    return jax.vmap(flow.gradient)(points)


def _slopes(loss: AbstractLoss, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """∂L/∂u of chosen and rejected, which no kernel changes."""
    with jax.enable_x64(True):
        flow = _flow(loss, CoupledKernel())
        operations = operations_at(flow, points)
        return np.asarray(_gradients(flow, jnp.asarray(points), operations=operations))


def _flow(loss: AbstractLoss, kernel: CoupledKernel) -> PreferenceFlow:
    return preference_flow(loss, LogRatioPlane(kernel, offset=_OFFSET))


def _horizon(slopes: Float[np.ndarray, "n 2"], points: Float[np.ndarray, "n 2"]) -> float:
    """The time that a log-ratio takes at the median slope across the range of the margins."""
    sizes = np.max(np.abs(slopes), axis=1)
    steep = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not steep.size:
        raise ValueError(
            "Argument `time` must be given for a loss that is flat or not defined at every start."
        )
    margins = points[:, 0] - points[:, 1]
    width = float(np.ptp(margins)) or MARGINS[1] - MARGINS[0]
    return width / float(np.median(steep))


def _starts(margins: Any, starts: Any) -> Float[np.ndarray, "n 2"]:
    if starts is not None and margins is not None:
        raise ValueError("Argument `margins` must be None where `starts` are given, but is not.")
    if starts is not None:
        return checks.array("starts", starts, ("n", 2))
    held = checks.array("margins", default_margins() if margins is None else margins, ("n",))
    return np.stack([held / 2, -held / 2], axis=1)


def _checked_ratios(
    ratios: Any, rejected: float, boundaries: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " v"]:
    if ratios is None:
        ratios = default_ratios(rejected, boundary=_median(boundaries))
    held = checks.array("ratios", ratios, ("n",))
    if np.any(np.diff(held) <= 0):
        raise ValueError(f"Argument `ratios` must increase, but is {held.tolist()}.")
    largest = float(np.max(np.abs(held)))
    if largest**2 > rejected * (1 + 1e-6):
        raise ValueError(
            "Argument `ratios` must be at most the square root of `rejected`, "
            f"{np.sqrt(rejected):.4g}, in absolute value, for the kernel to be positive "
            f"semidefinite, but holds {largest:g}."
        )
    return held
