"""Critical points, slow regions and sensitivities to the start, for one geometry of the study.

n: number of starts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from flowlab import until
from flowlab.critical import (
    CriticalPoints,
    Plateaus,
    Sensitivity,
    critical_points,
    plateaus,
    sensitivity,
)
from flowlab.flow import AbstractFlow

__all__ = ["Instruments", "instruments"]

_SEARCHES = 64  # starts of the search for critical points
_CELLS = 24  # of the plateau census, per side
_SENSED = 256  # starts of which the derivative of the arrival is taken


@dataclass(frozen=True, eq=False)
class Instruments:
    """Results of the instruments of `critical` for a geometry at one β.

    Attributes:
        points: Critical points in the smallest box around the starts; None if states are not
            vectors.
        slow: Slow regions in this box, on the free ratio plane; elsewhere None.
        sensed: Derivatives of the arrival time with respect to some of the starts, on the free
            ratio plane; elsewhere None.
    """

    points: CriticalPoints | None = None
    slow: Plateaus | None = None
    sensed: Sensitivity | None = None

    def count(self, kind: Any, above: float = -np.inf) -> float:
        """Number of critical points of a kind with a loss above a level; NaN without a search."""
        if self.points is None:
            return float("nan")
        return float(sum(p.value > above for p in self.points.of(kind)))

    @property
    def smallest_gradient(self) -> float:
        """The smallest |∇L| of the search away from critical points; NaN without a search."""
        return float("nan") if self.points is None else self.points.smallest_gradient

    def lateness(self, states: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """The arrival time from the slow region of a state over the one from the cells around it.

        It is 1 if the state lies in no slow region, and NaN if regions were not mapped.
        """
        if self.slow is None:
            return np.full(len(states), np.nan)
        cells = [np.argmin(np.abs(states[:, i, None] - self.slow.axes[i]), axis=1) for i in (0, 1)]
        ratios = np.ones(len(self.slow) + 1)
        for plateau in self.slow:
            ratios[plateau.label] = plateau.later_ratio
        return ratios[self.slow.labels[cells[0], cells[1]]]

    @property
    def elasticity(self) -> float:
        """The median relative change of the arrival time T per relative change of the start y.

        It is the median of |(y1 ∂T/∂y1, y2 ∂T/∂y2)| / T over the starts at which T has a
        derivative.
        """
        if self.sensed is None:
            return float("nan")
        by_log = self.sensed.time_gradient * self.sensed.starts / self.sensed.time[:, None]
        return float(np.nanmedian(np.linalg.norm(by_log, axis=1)))


def instruments(
    flow: AbstractFlow, states: Any, *, slow: float, level: float, paper: bool
) -> Instruments:
    """The results of the instruments for a flow, in the smallest box around its starts.

    Args:
        flow: The flow of a geometry.
        states: The starts.
        slow: The speed below which a state is slow.
        level: The loss level.
        paper: Whether this is the paper's own plane, on which slow regions and derivatives are
            computed.
    """
    if not (isinstance(states, np.ndarray) and states.ndim == 2):
        return Instruments()
    wide = states.astype(float)
    box = _box(wide)
    points = critical_points(flow, box, starts=_SEARCHES)
    if not paper:
        return Instruments(points)
    target = until.loss_below(level)
    few = wide[:: max(1, len(wide) // _SENSED)]
    return Instruments(
        points,
        plateaus(flow, box, below=slow, until=target, cells=_CELLS),
        sensitivity(flow, few, until=target),
    )


def _box(states: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d 2"]:
    """The smallest box around states; a constant component gets the largest width of the others."""
    low, high = states.min(axis=0), states.max(axis=0)
    width = np.where(high > low, 0.0, 0.5 * np.max(high - low))
    return np.stack([low - width, high + width], axis=1)
