"""Displacement: falls of the chosen log-probability, their depth and their duration.

Why do my chosen log-probabilities fall? Because of the rejected responses, and not of the loss
alone. One step on a pair changes the log-probability of its chosen response at the rate

    u_w' = −(k_ww ∂L/∂u_w + k_wl ∂L/∂u_l).

Here k_ww is the squared length of the gradient of log π(y_w) with respect to the parameters, and
k_wl is its inner product with the gradient of log π(y_l). For a loss that depends only on the
margin h = u_w − u_l, such as DPO, the rate is −L'(h)·(k_ww − k_wl). As long as the loss raises the
margin, L' < 0, the chosen response falls if and only if k_wl > k_ww. The two gradients are then so
similar, and the chosen one so much shorter (k_wl² ≤ k_ww k_ll implies k_ll > k_ww), that lowering
the rejected response lowers the chosen response too. The margin increases nevertheless, since the
rejected response falls further. The probability moves to responses outside the pair;
`measures.mass()` shows to which.

For one pair on the ratio plane, on the log-ratio plane with the identity kernel, or under a softmax
table this cannot happen, since k_wl ≤ k_ww everywhere. It requires shared parameters (overlapping
features of chosen and rejected response), or several pairs that share responses. For a loss past
its minimum, L' > 0, the reverse is true: the chosen response falls if k_wl < k_ww. Any other loss
has a boundary of its own at every point, k_wl/k_ww = r*, which `boundary` computes.

With many pairs, most of the motion of a pair is caused by other pairs, so that its own k_ww and
k_wl are misleading. `explain(flow, state)` measures, for any policy, how much of each motion the
pair's own responses cause and how much the responses of other pairs, the kernel of the mean
log-ratios, and which pairs lower the chosen responses most. Remedies are a smaller k_wl/k_ww (pairs
that differ more), or a loss with a higher boundary (which is above 1 with SFT, or with a weight on
the chosen response).

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
