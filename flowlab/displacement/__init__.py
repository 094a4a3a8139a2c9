"""Displacement: where the chosen log-probability falls, how far and for how long.

Why do my chosen log-probabilities fall? Because of the rejected ones, not of the loss alone. One
step on a pair moves the log-probability of its chosen response by

    u_w' = −(k_ww ∂L/∂u_w + k_wl ∂L/∂u_l),

k_ww the squared length of the gradient of log π(y_w) by the parameters, and k_wl its inner product
with that of log π(y_l). For a loss of the margin h = u_w − u_l, such as DPO, this is −L'(h)·(k_ww −
k_wl): while the loss wants a larger margin, L' < 0, the chosen falls exactly where k_wl > k_ww. The
two responses are then so alike, and the rejected one moves the model so much more easily (k_wl² ≤
k_ww k_ll, so k_ll > k_ww), that pushing it down drags the chosen one along. DPO keeps its word all
the same: the margin grows, since the rejected falls further. The probability goes to responses
outside the pair; `measures.mass()` says which.

For one pair on the ratio plane, the log-ratio plane, or under a softmax table this cannot happen:
there k_wl ≤ k_ww everywhere. It takes shared parameters (features of chosen and rejected that
overlap), or several pairs that share responses. Losses past their target, L' > 0, do the reverse:
the chosen falls where k_wl < k_ww. Losses that are none of the margin have a boundary of their own
at every point, k_wl/k_ww = r*, which `boundary` gives.

With many pairs, most of the motion of a pair comes from the others, so that its own k_ww and k_wl
mislead: `explain(flow, state)` measures, for any policy, how much of each motion comes from the
pair's own responses and how much from those of others, the kernel of the mean log-ratios, and which
pairs lower the chosen responses most. Against the fall helps what lowers k_wl/k_ww (pairs that
differ more), or a loss with a higher boundary (with SFT, or a weight on the chosen response, it
lies above 1).

Source: arXiv 2410.08847 for the inner products; the closed form is the gradient flow of one pair.
"""

from flowlab._names import former_names
from flowlab.displacement.explanation import Explanation, StepChange, explain
from flowlab.displacement.maps import (
    MARGINS,
    REJECTED,
    Displacement,
    boundary,
    default_margins,
    default_ratios,
    displacement,
    table,
    to_json,
    typical_boundary,
)

__all__ = [
    "MARGINS",
    "REJECTED",
    "Displacement",
    "Explanation",
    "StepChange",
    "boundary",
    "default_margins",
    "default_ratios",
    "displacement",
    "explain",
    "table",
    "to_json",
    "typical_boundary",
]

__getattr__ = former_names(__name__, {"rates": "explain", "Rates": "Explanation"})
