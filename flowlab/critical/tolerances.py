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

NEWTON_STEPS = 60  # at a degenerate point each halves the distance: so many take it to rounding
ROOT_STEP = 1e-7  # of the region: Newton's last step at a root. Rounding leaves less where there is
# curvature, and a tail along which the gradient only falls has steps that do not shrink
EXACT_STEP = 1e-14  # of the region: a step that is rounding alone
ROOTS_APART = 1e-5  # of the region: roots that are closer are one. Degenerate ones end so far apart
ON_POINT = 1e-4  # of the region: as far from a point as on it, where it is known by an integration
# or by a path in pieces
AROUND = 1e-2  # of the region: how far off a root its surroundings are looked at
FAINT = 1e-60  # of the typical curvature: less is a tail that has run out of numbers
UNDERFLOWN = 1e-100  # of the typical gradient: what falls below has underflowed, and not ended
NUMBERS = 1e-290  # slopes and curvatures below it have lost digits, or are lost
