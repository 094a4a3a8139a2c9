"""The effective coupling of a run: the motion of the chosen response per motion of the rejected.

With a constant kernel K, u' = K·(α, −γ) for a loss that pushes the chosen response up with α and
the rejected one down with γ. A run along a direction v = (a, b) therefore determines K up to one
free number and a scale:

    K = v·vᵀ/(aα − bγ) + p·w·wᵀ,    w = (γ, α),  p ≥ 0,

since w is orthogonal to (α, −γ), and K is symmetric and positive semidefinite exactly if p is not
negative. The velocity of the chosen response under another loss is linear in p, so that its sign is
known for all kernels if it is the same at p = 0 and for p → ∞. For a loss that depends only on the
margin, α = γ, and −1 ≤ ρ < 0 these are the kernels with k_wl/k_ww in [1, 1/|ρ|].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from flowlab.logs.slopes import Slopes
from flowlab.logs.windows import Change, student

__all__ = [
    "Coupling",
    "Effect",
    "effective_coupling",
    "effects",
    "kernel_range",
    "likelihood_that_holds",
    "shift_that_holds",
]

Effect = Literal["lowers", "raises", "either", "still"]

_ROUNDING = 1e-9  # of the pushes: what is smaller comes from rounding


@dataclass(frozen=True)
class Coupling:
    """The effective coupling ρ = Δu_w/|Δu_l|, the direction in which a run moves, with an interval.

    Attributes:
        value: ρ; NaN if it is undetermined.
        low: The lower end of Fieller's interval.
        high: The upper end.
        rejected_rises: Whether the rejected response rose.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    rejected_rises: bool = False

    @property
    def known(self) -> bool:
        """True if the interval is bounded."""
        return math.isfinite(self.value)

    @property
    def kernel(self) -> Float[np.ndarray, "2 2"] | None:
        """A kernel under which a loss of the margin moves as the run does, of trace 2.

        K ∝ v·vᵀ with v = (ρ, ∓1), shape (2, 2): of the kernels that the run leaves possible the one
        without a part across the run, of which a log of one loss tells nothing. For a flow to lay
        the run over, `LogRatioPlane(kernel)`. None where ρ is not known, or the margin fell.
        """
        across = 1.0 if self.rejected_rises else -1.0
        if not self.known or self.value - across <= 0:
            return None
        moved = np.array([self.value, across])
        return 2 * np.outer(moved, moved) / (moved @ moved)


def effective_coupling(change: Change) -> Coupling:
    """The effective coupling ρ with Fieller's 95 % interval, from a change between two windows.

    It is undetermined if the rejected response moved by no more than its noise, or if the noise is
    not known.

    Args:
        change: The change of (u_w, u_l) between two windows.

    Source: Fieller (1954), "Some problems in interval estimation"; the degrees of freedom are those
        of Welch and Satterthwaite.
    Accuracy: with normal noise about a straight line, the interval covers ρ in 95 % of runs,
        however the noise of u_w and u_l is correlated; with fewer than 10 rows it is wider than
        necessary.
    """
    rises = bool(change.value[1] > 0)
    sign = 1.0 if rises else -1.0
    chosen, moved = change.value[0], sign * change.value[1]
    noise = change.covariance * np.array([[1.0, sign], [sign, 1.0]])
    if not (np.all(np.isfinite(noise)) and moved > 0):
        return Coupling(rejected_rises=rises)
    ratio = chosen / moved
    square = student(change.freedom(np.array([1.0, -sign * ratio]))) ** 2
    a = moved**2 - square * noise[1, 1]
    b = chosen * moved - square * noise[0, 1]
    c = chosen**2 - square * noise[0, 0]
    if a <= 0:
        return Coupling(rejected_rises=rises)
    half = math.sqrt(max(0.0, b * b - a * c))
    return Coupling(float(ratio), float((b - half) / a), float((b + half) / a), rises)


def kernel_range(coupling: Coupling) -> tuple[float, float] | None:
    """The range of k_wl/k_ww that the interval of ρ allows, if the loss depends only on the margin.

    Each ρ allows all kernels between two extremes of rank one, and the ratio of one of them is
    unbounded as ρ tends to 0. The range is therefore unbounded on one side if the interval ends at
    0, and on both if 0 is inside. None if ρ is not known, or if no kernel gives its value because
    the margin did not rise.
    """
    across = 1.0 if coupling.rejected_rises else -1.0
    if not coupling.known or coupling.value - across <= 0:
        return None
    low, high = max(coupling.low, across), coupling.high
    if low < 0 < high:
        return -math.inf, math.inf
    ends = [
        across / rho if rho else across * side * math.inf for rho, side in ((low, 1), (high, -1))
    ]
    return min(1.0, *ends), max(1.0, *ends)


def effects(
    coupling: Coupling, own: Slopes, others: Mapping[str, Slopes]
) -> dict[str, Effect] | None:
    """Effects of each loss on the chosen response, under every kernel consistent with the run.

    `"lowers"` and `"raises"` are certain: they hold for every ρ in the interval, every kernel,
    every point at which slopes were taken, and both lengths. Otherwise the effect is `"either"`;
    `"still"` is a loss with no slope at all.

    Args:
        coupling: ρ of the run.
        own: The slopes of the loss of the run.
        others: The slopes of the losses to judge, by name.

    Returns:
        The effects by name; None if ρ is not known or no kernel gives it.
    """
    forces = float(np.mean(own.chosen)), float(np.mean(own.rejected))
    across = 1.0 if coupling.rejected_rises else -1.0
    downhill = [rho * forces[0] - across * forces[1] for rho in (coupling.low, coupling.high)]
    if not coupling.known or min(downhill) <= 0:
        return None
    return {name: _effect(coupling, across, forces, slopes) for name, slopes in others.items()}


def _effect(coupling: Coupling, across: float, own: tuple[float, float], slopes: Slopes) -> Effect:
    size = np.abs(slopes.chosen) + np.abs(slopes.rejected)
    if not np.all(np.isfinite(size)):
        return "either"
    if not np.any(size):
        return "still"
    rhos = [coupling.low, coupling.high]
    if coupling.low < 0 < coupling.high:
        rhos.append(0.0)
    # The velocity at p = 0 is that of a(aα − bγ): a parabola in ρ, whose extremum may lie inside.
    with np.errstate(divide="ignore", invalid="ignore"):
        extrema = across * slopes.rejected / (2 * slopes.chosen)
    rhos += [float(e) for e in extrema if coupling.low < e < coupling.high]
    first = [rho * (rho * slopes.chosen - across * slopes.rejected) for rho in rhos]
    last = (
        own[1] * (own[1] * slopes.chosen - own[0] * slopes.rejected) / (own[0] ** 2 + own[1] ** 2)
    )
    ends = np.stack([*first, last])
    ends = np.where(np.abs(ends) <= _ROUNDING * size, 0.0, ends)
    if np.all(ends <= 0) and np.any(ends < 0):
        return "lowers"
    if np.all(ends >= 0) and np.any(ends > 0):
        return "raises"
    return "still" if not np.any(ends) else "either"


def shift_that_holds(coupling: Coupling) -> float | None:
    """The largest λ with which DPO-Shift surely does not lower the chosen response: |ρ|.

    |ρ| is taken at the end of the interval where it is smallest; None if ρ may be 0 or positive.
    """
    return -coupling.high if coupling.known and coupling.high < 0 else None


def likelihood_that_holds(coupling: Coupling, slope: float) -> float | None:
    """The smallest weight of −log π(chosen), added to a loss, at which the chosen does not fall.

    For a loss that depends only on the margin, with slope s, the slopes of both sides are (s + w,
    −s), so that w ≥ s·(1/|ρ| − 1).

    Args:
        coupling: ρ; the end of its interval with the smallest |ρ| decides.
        slope: s, per nat of the margin.
    """
    held = shift_that_holds(coupling)
    return None if held is None else max(0.0, slope * (1 / held - 1))
