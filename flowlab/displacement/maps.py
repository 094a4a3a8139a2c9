"""Maps of the fall of the chosen log-probability of one pair, over starts and couplings.

Letters in shapes: n starts, v ratios k_wl/k_ww.
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
# Few starts share a step, since a line that runs into a kink or a pole slows down the whole block.
_SWEPT: dict[str, Any] = {"max_steps": 5000, "block_size": 8, "optimise": False}
_WHOLE = (Outcome.reached, Outcome.at_critical_point)  # lines of which everything is known
_VALUES = (
    *("rate", "dip_depth", "dip_time", "recovery_time"),
    *("change_chosen", "change_margin", "end_time"),
)


def boundary(loss: AbstractLoss, starts: Float[ArrayLike, "n 2"]) -> Float[np.ndarray, " n"]:
    """The ratio r* of k_wl/k_ww at which the chosen log-probability of one pair does not move.

    It is r* = −(∂L/∂u_w)/(∂L/∂u_l), which is 1 for every loss of the margin alone. If the loss
    lowers the rejected response (∂L/∂u_l > 0), the chosen response falls for k_wl/k_ww > r*; if the
    loss raises it, the chosen response falls for k_wl/k_ww < r*. r* is infinite if ∂L/∂u_l = 0, and
    NaN if both derivatives are 0 or the loss is not defined.

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
    """The falls of the chosen log-probability of one pair, over starts and couplings.

    Missing values are NaN: the times of events that do not happen, and all values of a start
    without a flow line. If a line ends before `time` (`ends_early`), the values are those at its
    end, and `outcome` gives the reason; for example, the loss may be undefined beyond this point.

    Attributes:
        loss: The loss.
        starts: (u_chosen, u_rejected), shape (n, 2), nats.
        ratios: Values of k_wl/k_ww, shape (v,).
        rejected: The value of k_ll/k_ww.
        time: Flow time over which every line is followed, at k_ww = 1.
        boundary: r* of every start, shape (n,); see `boundary`.
        rate: u_w' at the start, nats per unit of flow time, shape (v, n).
        dip_depth: Largest fall of the chosen log-probability below its value at the start, nats,
            shape (v, n).
        dip_time: Flow time of the largest fall, shape (v, n).
        recovery_time: Flow time at which the chosen log-probability has its initial value again,
            shape (v, n); NaN if it does not by `time`.
        change_chosen: The change of the chosen log-probability at the end, nats, shape (v, n).
        change_margin: The change of the margin at the end, nats, shape (v, n).
        end_time: Flow time at which the line ends, shape (v, n); `time` unless it ends early.
        outcome: The outcome of each line, a code of `until.Outcome`, shape (v, n).
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
        """The loss, the numbers of ratios and starts, and the largest fall, on one line."""
        size = f"{len(self.starts)} starts at {len(self.ratios)} ratios k_wl/k_ww"
        fall = f"falls by {np.nanmax(self.dip_depth):.4g} nats at most" if self.known.any() else ""
        return f"Displacement({self.loss!r}: {size}, {fall or 'no flow line'})"

    def table(self) -> str:
        """The falls as plain text, a row for each range of ratios; see `displacement.table`."""
        return table({type(self.loss).__name__: self})

    @property
    def margins(self) -> Float[np.ndarray, " n"]:
        """The margin u_chosen − u_rejected of every start, nats."""
        return self.starts[:, 0] - self.starts[:, 1]

    @property
    def known(self) -> Bool[np.ndarray, "v n"]:
        """A mask of the starts that have a flow line."""
        return np.isfinite(self.dip_depth)

    @property
    def ends_early(self) -> Bool[np.ndarray, "v n"]:
        """A mask of the lines that end before `time`, except those from critical points."""
        return self.known & ~np.isin(self.outcome, _WHOLE)

    @property
    def shares(self) -> dict[str, Float[np.ndarray, " v"]]:
        """Fractions of the starts with a flow line, for each ratio, by name.

        `falls_at_start` counts starts with a negative rate at the start; `falls` counts starts
        whose `dip_depth` is positive beyond rounding; `recovers` counts starts at which the chosen
        log-probability has its initial value again before the end.
        """
        count = np.where(self.known.any(axis=1), self.known.sum(axis=1), np.nan)
        held = {
            "falls_at_start": self.rate < 0,
            "falls": self.dip_depth > 0,
            "recovers": np.isfinite(self.recovery_time),
        }
        return {name: (mask & self.known).sum(axis=1) / count for name, mask in held.items()}

    def counts(self) -> dict[str, int]:
        """The number of lines with each outcome, by name, without outcomes that did not occur."""
        return counted(self.outcome)

    def to_xarray(self) -> "xarray.Dataset":
        """All arrays as an xarray Dataset with the dimensions `ratio` and `start`."""
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
    """Map the fall of the chosen log-probability of one pair over starts and couplings.

    The flow of the loss on the log-ratio plane has the kernel K = [[1, r], [r, s]], with r =
    k_wl/k_ww and s = k_ll/k_ww. It is followed from every start, for every r. A kernel with another
    k_ww has the same flow lines, with flow times divided by k_ww. References are −20 nats and
    lengths 20 tokens, as on a card.

    Args:
        loss: A loss of one pair.
        ratios: Values of r, increasing, with r² at most s; None for `default_ratios` around the
            boundary of the loss.
        margins: Margins h of the starts (h/2, −h/2), nats; None for `default_margins`.
        starts: Starts (u_chosen, u_rejected) instead of margins, shape (n, 2), nats.
        rejected: s, positive.
        time: Flow time over which lines are followed. None for the range of the margins divided by
            the median slope of the loss over the starts, which is 40 nats / 0.05 = 800 for DPO with
            β = 0.1. This time is proportional to the time scale of the loss, so that maps of
            different losses are comparable.
        rtol: Relative tolerance.
        progress: Whether to show a progress bar; None to show it for long runs in a terminal.

    Raises:
        ValueError: If `loss` does not apply to a single pair; if ratios, margins or starts are not
            as described; if both margins and starts are given; or if the loss is flat at every
            start and `time` is None.

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

    They are the centres of cells. The cells extend above the boundary up to the largest possible
    ratio, √s, and equally far below the boundary: from 0.775 to 1.225 for a loss that depends only
    on the margin, with the boundary between two cells. If s does not allow the boundary, the cells
    extend from −0.4 to 1.2, or as far as s allows.

    Args:
        rejected: s = k_ll/k_ww.
        count: The number of ratios.
        boundary: r*, such as the result of `typical_boundary`.
    """
    largest = np.sqrt(rejected)
    low, high = max(_RATIOS[0], -largest), min(_RATIOS[1], largest)
    if abs(boundary) < largest:
        reach = largest - abs(boundary)
        low, high = boundary - reach, boundary + reach
    return low + (high - low) * (np.arange(count) + 0.5) / count


def typical_boundary(loss: AbstractLoss, margins: Float[ArrayLike, " n"]) -> float:
    """The median of `boundary` over margins, ignoring infinite values; NaN if no value is finite.

    Raises:
        ValueError: For the reasons that `boundary` gives.
    """
    return _median(boundary(loss, _starts(margins, None)))


def _median(boundaries: Float[np.ndarray, " n"]) -> float:
    known = boundaries[np.isfinite(boundaries)]
    return float(np.median(known)) if known.size else float("nan")


def table(found: Mapping[str, Displacement]) -> str:
    """Displacements by name as plain text: a summary of each, and rows for its ratios.

    Neighbouring ratios whose rows differ only in the change at the end share a row.
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
    """Displacements as JSON-ready dictionaries, with None for missing values."""
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
    """One row for each range of neighbouring ratios that differ only in the change at the end."""
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
    """The ratio r* = −(∂L/∂u_w)/(∂L/∂u_l); infinite or NaN if ∂L/∂u_l = 0."""
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
    """The derivatives ∂L/∂u_w and ∂L/∂u_l at each point, which do not depend on the kernel."""
    with jax.enable_x64(True):
        flow = _flow(loss, CoupledKernel())
        operations = operations_at(flow, points)
        return np.asarray(_gradients(flow, jnp.asarray(points), operations=operations))


def _flow(loss: AbstractLoss, kernel: CoupledKernel) -> PreferenceFlow:
    return preference_flow(loss, LogRatioPlane(kernel, offset=_OFFSET))


def _horizon(slopes: Float[np.ndarray, "n 2"], points: Float[np.ndarray, "n 2"]) -> float:
    """The range of the margins divided by the median slope, as default of `time`."""
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
        raise ValueError("Argument `margins` must be None if `starts` are given, but is not.")
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
