"""The effective coupling of a run: the change of u_w divided by the absolute change of u_l.

Consider a loss with the slopes α = −∂L/∂u_w and γ = ∂L/∂u_l, and a constant kernel K. The flow is
u' = K·(α, −γ). A run in the direction v = (a, b) therefore determines K up to a scale and one free
number p:

    K = v·vᵀ/(aα − bγ) + p·w·wᵀ,    w = (γ, α),  p ≥ 0,

Here w is orthogonal to (α, −γ), and K is positive semidefinite if and only if p ≥ 0. The velocity
of the chosen response under another loss is linear in p. Its sign is therefore the same for all
these kernels if it is the same at p = 0 and for p → ∞. If the loss depends only on the margin (α =
γ) and −1 ≤ ρ < 0, these kernels are those with k_wl/k_ww in [1, 1/|ρ|].
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
    """The effective coupling ρ = Δu_w/|Δu_l| of a run, with its 95 % interval.

    (ρ, ±1) is the direction in which the run moves.

    Attributes:
        value: ρ; NaN if it is undetermined.
        low: The lower end of Fieller's interval.
        high: The upper end.
        rejected_rises: True if the log-ratio of the rejected response rose.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    rejected_rises: bool = False

    @property
    def known(self) -> bool:
        """True if ρ is determined, so that its interval is bounded."""
        return math.isfinite(self.value)

    @property
    def kernel(self) -> Float[np.ndarray, "2 2"] | None:
        """The kernel of rank one and trace 2 under which any loss of the margin moves like the run.

        It is proportional to v·vᵀ with the direction v = (ρ, −1) of the run, or (ρ, 1) if the
        rejected response rose. Other kernels that are consistent with the run have a second term of
        rank one, which the log of one loss does not determine. `LogRatioPlane(kernel)` gives the
        flow to draw behind the run. None if ρ is not known or the margin did not rise.
        """
        across = 1.0 if self.rejected_rises else -1.0
        if not self.known or self.value - across <= 0:
            return None
        moved = np.array([self.value, across])
        return 2 * np.outer(moved, moved) / (moved @ moved)


def effective_coupling(change: Change) -> Coupling:
    """The effective coupling ρ with Fieller's 95 % interval, from a change between two windows.

    ρ is undetermined if the rejected response moved by no more than its noise, or if this noise is
    not known.

    Args:
        change: The change of (u_w, u_l) between two windows.

    Source: Fieller (1954), "Some problems in interval estimation"; the degrees of freedom are those
        of Welch and Satterthwaite.
    Accuracy: if the run is a straight line with normal noise, the interval contains ρ in 95 % of
        runs, whatever the correlation of the noise of u_w and u_l. With fewer than 10 rows the
        interval is wider than necessary.
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

    For each ρ the possible values of k_wl/k_ww form an interval with the ends 1 and −1/ρ, or 1 and
    1/ρ if the rejected response rises. The range is therefore unbounded on one side if the interval
    of ρ ends at 0, and on both sides if it contains 0. None if ρ is not known, or if the margin did
    not rise, which no kernel explains.
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
    """The effect of each loss on the chosen response, under every kernel consistent with the run.

    `"lowers"` and `"raises"` are certain: they are true for every ρ in the interval, every kernel,
    every point at which slopes were computed, and both lengths. `"still"` means that the loss does
    not move the chosen response. Otherwise the effect is `"either"`.

    Args:
        coupling: ρ of the run.
        own: The slopes of the loss of the run.
        others: The slopes of the losses whose effects are wanted, by name.

    Returns:
        The effects by name; None if ρ is not known or no kernel explains it.
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
    # At p = 0 the velocity is proportional to a(aα − bγ), a parabola in ρ; its extremum may lie
    # between the ends of the interval.
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
    """The largest λ at which DPO-Shift certainly does not lower the chosen response.

    It is the smallest |ρ| in the interval of ρ; None unless the whole interval is negative.
    """
    return -coupling.high if coupling.known and coupling.high < 0 else None


def likelihood_that_holds(coupling: Coupling, slope: float) -> float | None:
    """The smallest weight of an added −log π(chosen) at which the chosen response does not fall.

    A loss that depends only on the margin, with slope s, and the term with weight w pull with (s +
    w, −s) on (u_w, u_l). The chosen response does not fall if w ≥ s·(1/|ρ| − 1). The smallest |ρ|
    in the interval of ρ is taken; None unless the whole interval is negative.

    Args:
        coupling: ρ with its interval.
        slope: s, per nat of the margin.
    """
    held = shift_that_holds(coupling)
    return None if held is None else max(0.0, slope * (1 / held - 1))
