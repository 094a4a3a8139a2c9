"""Thresholds that several modules share, each with its unit and its reason.

A threshold of a single module is defined in that module, under a unique name.
"""

__all__ = [
    "AROUND",
    "EXACT_STEP",
    "FAINT",
    "NEWTON_STEPS",
    "NUMBERS",
    "ON_POINT",
    "ROOTS_APART",
    "ROOT_STEP",
    "UNDERFLOWN",
]

NEWTON_STEPS = 60  # each halves the distance from a degenerate point: enough for rounding
ROOT_STEP = 1e-7  # of the region: the largest last step at a root. It is far smaller at a root
# with curvature, and far larger on a tail, where steps do not become small
EXACT_STEP = 1e-14  # of the region: a shorter step is rounding alone
ROOTS_APART = 1e-5  # of the region: closer roots are one; degenerate roots are known no better
ON_POINT = 1e-4  # of the region: states so close to a critical point are on it, if its position
# comes from an integration or from a path of straight pieces
AROUND = 1e-2  # of the region: the radius of the surroundings of a root
FAINT = 1e-60  # of the typical curvature: a smaller one is a tail that has underflowed
UNDERFLOWN = 1e-100  # of the typical gradient: a smaller one has underflowed, and is no edge
NUMBERS = 1e-290  # smaller slopes and curvatures have lost digits by underflow
