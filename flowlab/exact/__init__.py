"""Closed-form solutions of flows, without a solver.

They use only NumPy and SciPy, in float64, and none of the code that is tested against them. A start
is an array whose last axis holds the two components. The other arguments broadcast against the
leading axes of the start, and results have the broadcast shape. Times are flow times: learning rate
times number of plain gradient-descent steps, in the limit of small steps.
"""

from flowlab.exact.classical import (
    bowl_state,
    bowl_time,
    saddle_exit_time,
    saddle_state,
)
from flowlab.exact.kernels import (
    dpo_margin_at,
    ipo_margin,
    kernel_contraction,
    kernel_margin,
    kernel_state,
    kernel_time,
)
from flowlab.exact.ratio_plane import (
    ratio_plane_change_ratio,
    ratio_plane_hessian_determinant,
    ratio_plane_log_ratio_at,
    ratio_plane_ratio_at,
    ratio_plane_speed,
    ratio_plane_state,
    ratio_plane_time,
    ratio_plane_total_change,
)
from flowlab.exact.walls import (
    BoxTimes,
    SimplexTimes,
    box_time,
    simplex_time,
)

__all__ = [
    "BoxTimes",
    "SimplexTimes",
    "bowl_state",
    "bowl_time",
    "box_time",
    "dpo_margin_at",
    "ipo_margin",
    "kernel_contraction",
    "kernel_margin",
    "kernel_state",
    "kernel_time",
    "ratio_plane_change_ratio",
    "ratio_plane_hessian_determinant",
    "ratio_plane_log_ratio_at",
    "ratio_plane_ratio_at",
    "ratio_plane_speed",
    "ratio_plane_state",
    "ratio_plane_time",
    "ratio_plane_total_change",
    "saddle_exit_time",
    "saddle_state",
    "simplex_time",
]
