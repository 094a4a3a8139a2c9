"""Plateaus, the slow regions of a plane: their sizes, and the time that flow lines spend on them.

The speed is evaluated at the centres of a grid of cells. Cells with a speed below a threshold, and
before the target, form plateaus: connected components of cells that share a side. Flow lines start
at every cell of a plateau and of the ring of cells around it. The results are medians of the
residence (flow time below the threshold) and of the arrival time at the target.

a, b: cells along the two components; n: cells in a list.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage

from flowlab import measures
from flowlab._names import FormerName
from flowlab.critical.derivatives import checked_region, derivatives_at, diagonal
from flowlab.critical.points import refined
from flowlab.critical.tolerances import ON_POINT
from flowlab.ensemble import Runs, sweep
from flowlab.flow import AbstractFlow
from flowlab.solve import compiled, one_call, operations_at
from flowlab.until import AbstractTarget, Outcome

__all__ = ["Plateau", "Plateaus", "plateaus"]


@dataclass(frozen=True, eq=False)
class Plateau:
    """A plateau: a connected region of states before the target in which a flow is slow.

    Attributes:
        label: The number of the plateau in `Plateaus.labels`.
        cells: Number of cells.
        area: Area within the region that was searched, in the state's coordinates.
        centre: Mean of the cells' centres, shape (2,).
        at_side: Whether the plateau reaches a side of the region, and may extend beyond it.
        smallest_speed: The smallest speed of a cell.
        smallest_at: The centre of the cell with the smallest speed, shape (2,).
        residence: Median flow time that lines from the plateau's cells spend below the threshold; a
            lower bound if most of these lines end at a limit.
        arrival: Median flow time from the plateau's cells to the target; infinite if at least half
            of the lines do not reach it.
        arrival_around: Median flow time from the ring of cells around the plateau to the target;
            NaN if there are no such cells.
        outcomes: Number of lines from the plateau with each outcome, by the names of
            `until.Outcome`. Lines that came to rest, or nearly, but not at a critical point, count
            as `unresolved`.
        holds_rest: Whether lines from the plateau end at a critical point inside it. The plateau is
            then a neighbourhood of this point, which is slow in every flow.
    """

    label: int
    cells: int
    area: float
    centre: Float[np.ndarray, " 2"]
    at_side: bool
    smallest_speed: float
    smallest_at: Float[np.ndarray, " 2"]
    residence: float
    arrival: float
    arrival_around: float
    outcomes: dict[str, int]
    holds_rest: bool

    @property
    def later(self) -> float:
        """`arrival` less `arrival_around`; NaN if both are infinite."""
        with np.errstate(invalid="ignore"):
            return float(np.subtract(self.arrival, self.arrival_around))

    @property
    def later_ratio(self) -> float:
        """`arrival` divided by `arrival_around`; NaN if both are infinite."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.divide(self.arrival, self.arrival_around))

    @property
    def reached(self) -> float:
        """The fraction of the lines from the plateau that reach the target."""
        return self.outcomes.get("reached", 0) / self.cells

    def __str__(self) -> str:
        """A description of the plateau on one line."""
        what = "slow region around a critical point" if self.holds_rest else "plateau"
        beyond = ", to the side of the region" if self.at_side else ""
        around = f"{self.arrival:.4g} against {self.arrival_around:.4g} around it"
        return (
            f"{what} of area {self.area:.4g} about {np.round(self.centre, 3).tolist()}{beyond}: "
            f"speed down to {self.smallest_speed:.3g}, residence {self.residence:.4g}, "
            f"arrival {around}, {self.outcomes}"
        )


@dataclass(frozen=True, eq=False)
class Plateaus:
    """The plateaus of a plane, and the grid of speeds from which they were found.

    Attributes:
        plateaus: The plateaus, the largest first; empty if there are none.
        region: Lower and upper ends, shape (2, 2).
        below: The speed below which a cell is slow.
        axes: Centres of the cells along each component, shapes (a,) and (b,).
        speed: Speed at the centres, NaN outside the domain, shape (a, b).
        past: Mask of the cells whose centre is past the target; these belong to no plateau, shape
            (a, b).
        labels: The label of each cell's plateau, 0 for none, shape (a, b).
        components: Names of the components of a state; None if they have none.
    """

    plateaus: tuple[Plateau, ...]
    region: Float[np.ndarray, "2 2"]
    below: float
    axes: tuple[Float[np.ndarray, " a"], Float[np.ndarray, " b"]]
    speed: Float[np.ndarray, "a b"]
    past: Bool[np.ndarray, "a b"]
    labels: Int[np.ndarray, "a b"]
    components: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.plateaus)

    def __iter__(self) -> Iterator[Plateau]:
        return iter(self.plateaus)

    def __getitem__(self, index: int) -> Plateau:
        return self.plateaus[index]

    share = FormerName("fraction")

    @property
    def fraction(self) -> float:
        """The fraction of the cells in the domain that belong to a plateau."""
        return float(np.sum(self.labels > 0) / max(1, np.sum(np.isfinite(self.speed))))

    @property
    def smallest_speed(self) -> float:
        """The smallest speed of a cell that is not past the target; NaN if there is none."""
        ahead = np.where(self.past, np.nan, self.speed)
        return float(np.nanmin(ahead)) if np.isfinite(ahead).any() else float("nan")

    def __str__(self) -> str:
        """A text with one line for each plateau, or a sentence that there is none."""
        none = f"no plateau: the speed is at least {self.smallest_speed:.4g}, not {self.below:g}"
        return "\n".join(map(str, self.plateaus)) or none


@one_call()
def plateaus(
    flow: AbstractFlow,
    region: npt.ArrayLike,
    *,
    below: float,
    until: AbstractTarget,
    cells: int | tuple[int, int] = 128,
    **options: Any,
) -> Plateaus:
    """Find the plateaus of a plane: connected regions in which the speed is below a threshold.

    Cells that are past the target belong to no plateau. Lines from a plateau may never reach the
    target, so `until` should have a time limit.

    Args:
        flow: A flow whose states are vectors of two components.
        region: Lower and upper end of both components, shape (2, 2).
        below: The threshold, positive, in the state's coordinates per unit of flow time.
        until: The target, with a time limit.
        cells: Number of cells along each component; lines start at their centres.
        options: Further options of `sweep`, such as `rtol` or `progress`.

    Raises:
        ValueError: If the states of the flow are not vectors of two components, the region is
            invalid, `below` is not positive and finite, or `cells` is below 2.

    Accuracy: areas are accurate to the cells on the edge of a plateau, and regions narrower than a
        cell are missed; see `measures.dwell` for the residence.
    """
    ends = checked_region(region, flow)
    shape = _checked_cells(cells, ends)
    slow = measures.dwell(below)  # checks the speed
    axes = _centres(ends[0], shape[0]), _centres(ends[1], shape[1])
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    speed, past = _seen(flow, until, centres.reshape(-1, 2))
    speed, past = speed.reshape(shape), past.reshape(shape)
    labelled: Any = ndimage.label((speed < below) & ~past)
    labels, count = labelled
    masks = [labels == label for label in range(1, count + 1)]
    rings = [_ring(mask, (labels == 0) & ~past & np.isfinite(speed)) for mask in masks]
    followed = np.any([np.zeros(shape, bool), *masks, *rings], axis=0)
    found: list[Plateau] = []
    if count:
        options = {"clock": "arc_length", **options}
        runs = sweep(flow, centres[followed], until=until, measures=[slow], **options)
        lines = _OnGrid.of(flow, runs, followed, ends)
        for label, (mask, ring) in enumerate(zip(masks, rings, strict=True), 1):
            found.append(_plateau(label, mask, ring, centres, speed, lines, ends))
    found.sort(key=lambda plateau: -plateau.cells)
    return Plateaus(tuple(found), ends, float(below), axes, speed, past, labels, flow.components)


@dataclass(frozen=True)
class _OnGrid:
    """The results of the lines from the cells, arranged on the grid; shapes (a, b).

    Attributes:
        dwell: Flow time below the threshold.
        arrival: Flow time to the target, infinite if it was not reached.
        word: The name of the outcome.
        ends: The cell in which a line ends, shape (2, a, b).
    """

    dwell: Float[np.ndarray, "a b"]
    arrival: Float[np.ndarray, "a b"]
    word: np.ndarray
    ends: Int[np.ndarray, "2 a b"]

    @classmethod
    def of(
        cls,
        flow: AbstractFlow,
        runs: Runs,
        followed: Bool[np.ndarray, "a b"],
        region: Float[np.ndarray, "2 2"],
    ) -> "_OnGrid":
        def spread(values: np.ndarray, filler: Any) -> np.ndarray:
            grid = np.full(followed.shape, filler, dtype=values.dtype)
            grid[followed] = values
            return grid

        low, high = region.T
        finite = np.where(np.isfinite(runs.end), runs.end, low - (high - low))
        shares = np.clip((finite - low) / (high - low), -1, 2)
        cells = np.floor(shares * followed.shape).astype(int)
        arrival = np.where(runs.outcome == Outcome.reached, runs.time, np.inf)
        words = _outcome_names(flow, runs, region)
        return cls(
            spread(runs.measures["dwell"], np.nan),
            spread(arrival, np.nan),
            spread(words, ""),
            np.stack([spread(cells[:, i], -1) for i in (0, 1)]),
        )


def _outcome_names(flow: AbstractFlow, runs: Runs, region: Float[np.ndarray, "2 2"]) -> np.ndarray:
    """The names of the outcomes; `unresolved` for lines at rest where the gradient is not zero."""
    words = np.array([Outcome(code).name for code in runs.outcome], dtype=object)
    resting = np.flatnonzero(runs.outcome == Outcome.at_critical_point)
    if len(resting):
        width = diagonal(region)
        positions = runs.end[resting]
        scale = float(np.median(derivatives_at(flow, runs.starts).steepness))
        roots, there, proper = refined(flow, positions, scale, width)
        near = np.linalg.norm(roots - positions, axis=1) < ON_POINT * width
        flat = derivatives_at(flow, positions).steepness == 0
        words[resting[~(flat | (proper & near))]] = "unresolved"
    return words


def _plateau(
    label: int,
    mask: Bool[np.ndarray, "a b"],
    ring: Bool[np.ndarray, "a b"],
    centres: Float[np.ndarray, "a b 2"],
    speed: Float[np.ndarray, "a b"],
    lines: _OnGrid,
    region: Float[np.ndarray, "2 2"],
) -> Plateau:
    cells = int(mask.sum())
    inside, slowest = centres[mask], np.argmin(speed[mask])
    edge = np.ones_like(mask)
    edge[1:-1, 1:-1] = False
    resting = mask & (lines.word == "at_critical_point")
    ends = lines.ends[:, resting]
    on_grid = np.all((ends >= 0) & (ends < np.array(mask.shape)[:, None]), axis=0)
    return Plateau(
        label=label,
        cells=cells,
        area=cells * float(np.prod(region[:, 1] - region[:, 0])) / mask.size,
        centre=inside.mean(axis=0),
        at_side=bool(np.any(mask & edge)),
        smallest_speed=float(speed[mask][slowest]),
        smallest_at=inside[slowest],
        residence=_median(lines.dwell[mask]),
        arrival=_median(lines.arrival[mask]),
        arrival_around=_median(lines.arrival[ring]),
        outcomes=dict(Counter(map(str, lines.word[mask]))),
        holds_rest=bool(np.any(mask[tuple(ends[:, on_grid])])),
    )


def _median(values: np.ndarray) -> float:
    """The median of numbers that may be infinite; NaN for an empty array."""
    ordered = np.sort(values)
    if not len(ordered):
        return float("nan")
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(high if np.isinf(high) else (low + high) / 2)


def _ring(mask: Bool[np.ndarray, "a b"], free: Bool[np.ndarray, "a b"]) -> Bool[np.ndarray, "a b"]:
    """The cells around a plateau, corners included, that belong to no other plateau."""
    around = ndimage.binary_dilation(mask, np.ones((3, 3), bool))
    return around & ~mask & free


def _checked_cells(
    cells: int | tuple[int, int], region: Float[np.ndarray, "d 2"]
) -> tuple[int, int]:
    if len(region) != 2:
        raise ValueError(
            "Argument `region` must give the ends of two components, since plateaus are regions of "
            f"a plane, but gives those of {len(region)}."
        )
    shape = np.asarray(cells)
    if shape.shape not in ((), (2,)) or shape.dtype.kind not in "iu" or np.any(shape < 2):
        raise ValueError(f"Argument `cells` must be at least 2 per component, but is {cells!r}.")
    first, second = np.broadcast_to(shape, 2)
    return int(first), int(second)


def _centres(ends: Float[np.ndarray, " 2"], count: int) -> Float[np.ndarray, " a"]:
    return ends[0] + (ends[1] - ends[0]) * (np.arange(count) + 0.5) / count


def _seen(
    flow: AbstractFlow, target: AbstractTarget, states: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The speed at states, NaN outside the domain, and a mask of the states past the target."""
    with jax.enable_x64(True):
        found = _looked_at(flow, target, states, operations=operations_at(flow, states))
        speed, past = map(np.asarray, found)
    return speed, past


@partial(compiled, optimise=False)
def _looked_at(
    flow: AbstractFlow, target: AbstractTarget, states: Float[Array, "n 2"]
) -> tuple[Array, Array]:
    def at(state: Float[Array, " 2"]) -> tuple[Array, Array]:
        ahead = target.signal(flow, state, jnp.zeros((), state.dtype))
        speed = jnp.where(flow.domain.contains(state), flow.speed(state), jnp.nan)
        return speed, jnp.all(ahead <= 0)

    return jax.vmap(at)(jnp.asarray(states))
