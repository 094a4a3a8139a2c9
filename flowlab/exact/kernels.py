"""Flows with a constant kernel on the log-ratio plane, under DPO and IPO.

The log-ratios u = (u_w, u_l) obey u' = -K L'(h) (1, -1), K the kernel and L the loss as a function
of the margin h = u_w - u_l. So h' = -c L'(h) with c = k_ww + k_ll - 2 k_wl, and u moves on a
straight line.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from flowlab._checks import within
from flowlab.exact._arguments import Points, Values, pairs, quiet, values
from flowlab.exact.ratio_plane import ratio_plane_log_ratio_at

__all__ = [
    "dpo_margin_at",
    "ipo_margin",
    "kernel_contraction",
    "kernel_margin",
    "kernel_state",
    "kernel_time",
]

# Kernels made of float32 inner products miss semi-definiteness by their rounding.
KERNEL_ROUNDING = 1e-6
# Above this z, a float64 cannot tell z + e^z from e^z.
LARGE_Z = 40.0


def dpo_margin_at(level: ArrayLike, beta: ArrayLike) -> Values:
    """Margin h = u_w - u_l at which the DPO loss log(1 + e^(-beta h)) equals `level`.

    Args:
        level: value of the loss, not negative; 0 gives inf.
        beta: DPO's beta, positive.

    Raises:
        ValueError: if `level` is negative or `beta` is not positive.
    """
    return np.asarray(-ratio_plane_log_ratio_at(level, beta))


def kernel_contraction(kernel: ArrayLike) -> Values:
    """Factor c = k_ww + k_ll - 2 k_wl in the equation of the margin, h' = -c L'(h).

    c is 2 on the log-ratio plane and for one pair under tabular softmax, and 0 if both
    log-probabilities have the same gradient. Under the mean loss of n pairs with separate prompts,
    the margin of each pair has c/n in place of c.

    Args:
        kernel: (..., 2, 2), symmetric and positive semi-definite, in the order chosen, rejected.

    Raises:
        ValueError: if `kernel` has another shape, or is not symmetric and positive semi-definite.
    """
    held = values("kernel", kernel)
    if held.shape[-2:] != (2, 2):
        raise ValueError(
            f"Argument `kernel` must have shape (..., 2, 2), but has shape {held.shape}."
        )
    own = held[..., 0, 0] * held[..., 1, 1]
    cross, other = held[..., 0, 1], held[..., 1, 0]
    symmetric = np.all(np.abs(cross - other) <= KERNEL_ROUNDING * np.sqrt(np.abs(own)))
    trace = held[..., 0, 0] + held[..., 1, 1]
    definite = np.all(cross * other <= own * (1 + KERNEL_ROUNDING)) and np.all(trace >= 0)
    if not (symmetric and definite):
        raise ValueError(
            "Argument `kernel` must be symmetric and positive semi-definite, "
            f"but is {held.tolist()}."
        )
    return np.asarray(np.maximum(trace - cross - other, 0.0))


@quiet
def kernel_margin(time: ArrayLike, margin: ArrayLike, beta: ArrayLike, kernel: ArrayLike) -> Values:
    """Margin at `time`, from the margin at time 0, under DPO with a constant kernel.

    Let z = beta h, h the margin, and c as in `kernel_contraction`. Then z + e^z grows at the
    constant rate beta^2 c, so z = log omega(z0 + e^z0 + beta^2 c t), omega the Wright omega
    function.

    Args:
        time: not negative.
        margin: h at time 0, of either sign.
        beta: DPO's beta, positive.
        kernel: (..., 2, 2), see `kernel_contraction`; if c = 0 the margin does not change.

    Raises:
        ValueError: if `time` is negative, `beta` is not positive, or `kernel` is not valid.

    Accuracy:
        A few units in the last place of the larger of |z0|, z and 1, without overflow.
    """
    elapsed, scale = within("time", time, "[0, inf]"), within("beta", beta, "(0, inf)")
    first = scale * values("margin", margin)
    gained = scale**2 * kernel_contraction(kernel) * elapsed
    total = first + np.exp(first) + gained
    omega = special.wrightomega(total)
    moved = np.where(total < 1, total - omega, np.log(omega))
    moved = np.where(first > LARGE_Z, np.logaddexp(first, np.log(gained)), moved)
    return np.asarray(np.where(gained == 0, first, moved) / scale)


@quiet
def kernel_time(
    margin: ArrayLike, target_margin: ArrayLike, beta: ArrayLike, kernel: ArrayLike
) -> Values:
    """Time from `margin` to `target_margin`, under DPO with a constant kernel.

    t = (z1 - z0 + e^z1 - e^z0) / (beta^2 c) with z = beta h, h the margin, from z0 to z1; c is as
    in `kernel_contraction`. For large z1 the time grows like e^z1.

    Args:
        margin: h at the start, of either sign.
        target_margin: h at the end; `dpo_margin_at` converts a value of the loss.
        beta: DPO's beta, positive.
        kernel: (..., 2, 2), see `kernel_contraction`; if c = 0 no other margin is reached: inf.

    Returns:
        Times; 0 where the start is on the target, NaN where it is past the target.

    Raises:
        ValueError: if `beta` is not positive or `kernel` is not valid.

    Accuracy:
        |z1| times a few units in the last place; differences are computed without cancellation.
    """
    scale = within("beta", beta, "(0, inf)")
    rate = scale**2 * kernel_contraction(kernel)
    first, last = values("margin", margin), values("target_margin", target_margin)
    gain = scale * (last - first)
    time = gain / rate - np.exp(scale * last - np.log(rate)) * np.expm1(-gain)
    return np.asarray(np.where(gain == 0, 0.0, np.where(gain > 0, time, np.nan)))


@quiet
def kernel_state(time: ArrayLike, start: ArrayLike, beta: ArrayLike, kernel: ArrayLike) -> Points:
    """Log-ratios (u_w, u_l) at `time`, on a straight line, under DPO with a constant kernel.

    u = u0 + (h - h0) / c (k_ww - k_wl, k_wl - k_ll), with h from `kernel_margin` and c from
    `kernel_contraction`. The chosen log-ratio falls if and only if k_wl > k_ww.

    Args:
        time: not negative, shape (...).
        start: (..., 2), log-ratios at time 0, of either sign.
        beta: DPO's beta, positive.
        kernel: (..., 2, 2), see `kernel_contraction`; if c = 0 the log-ratios do not change.

    Raises:
        ValueError: if `time` is negative, `start` is not a pair, `beta` is not positive, or
            `kernel` is not valid.
    """
    points, held = pairs(start, "start"), values("kernel", kernel)
    contraction, margin = kernel_contraction(kernel), points[..., 0] - points[..., 1]
    gain = kernel_margin(time, margin, beta, kernel) - margin
    per_gain = np.where(contraction == 0, 0.0, gain / contraction)[..., None]
    return np.asarray(points + per_gain * (held[..., 0] - held[..., 1]))


def ipo_margin(
    time: ArrayLike, margin: ArrayLike, tau: ArrayLike, contraction: ArrayLike
) -> Values:
    """Margin at `time` under IPO with a constant kernel: h* + (h0 - h*) e^(-2 c t), h* = 1/(2 tau).

    Args:
        time: not negative.
        margin: h0, of either sign.
        tau: IPO's tau, positive; the loss is (h - 1/(2 tau))^2.
        contraction: c, see `kernel_contraction`, not negative; if 0 the margin does not change.

    Raises:
        ValueError: if `time` or `contraction` is negative, or `tau` is not positive.
    """
    first, wanted = values("margin", margin), 0.5 / within("tau", tau, "(0, inf)")
    decay = within("contraction", contraction, "[0, inf]") * within("time", time, "[0, inf]")
    return np.asarray(first + (first - wanted) * np.expm1(-2 * decay))
