"""Displacement: where the chosen log-probability falls, how far and for how long.

Why do my chosen log-probabilities fall? Because of the rejected responses, and not of the loss
alone. One step on a pair moves the log-probability of its chosen response by

    u_w' = −(k_ww ∂L/∂u_w + k_wl ∂L/∂u_l),

with k_ww the squared length of the gradient of log π(y_w) by the parameters, and k_wl its inner
product with the gradient of log π(y_l). For a loss that depends only on the margin h = u_w − u_l,
such as DPO, this is −L'(h)·(k_ww − k_wl): as long as the loss pushes the margin up, L' < 0, the
chosen response falls exactly if k_wl > k_ww. Its gradient is then so similar to that of the
rejected one, and shorter (k_wl² ≤ k_ww k_ll, so that k_ll > k_ww), that pushing the rejected
response down drags the chosen one along. The margin grows nevertheless, since the rejected response
falls further. The probability goes to responses outside the pair; `measures.mass()` shows which.

For one pair on the ratio plane, the log-ratio plane, or under a softmax table this cannot happen:
there k_wl ≤ k_ww everywhere. It requires shared parameters (overlapping features of chosen and
rejected), or several pairs that share responses. For a loss past its target, L' > 0, the reverse is
true: the chosen falls if k_wl < k_ww. Losses that are not a function of the margin have their own
boundary k_wl/k_ww = r* at every point, which `boundary` gives.

With many pairs, most of the motion of a pair is caused by the others, so that its own k_ww and k_wl
are misleading. `explain(flow, state)` measures, for any policy, how much of each motion the pair's
own responses cause and how much those of other pairs, the kernel of the mean log-ratios, and which
pairs lower the chosen responses most. Remedies are a smaller k_wl/k_ww (pairs that differ more), or
a loss with a higher boundary (with SFT, or a weight on the chosen response, it is above 1).

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
