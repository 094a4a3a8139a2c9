"""Analysis of flows: critical points, basins, slow regions, sensitivity, continuation.

This includes lines and manifolds of critical points, separatrices, the time that lines spend near
saddles, and the motion of critical points with a parameter.
"""

from flowlab.critical.basins import (
    BOUNDARY,
    RUNAWAY,
    SADDLE,
    UNRESOLVED,
    BasinEntropy,
    Basins,
    basins,
)
from flowlab.critical.continuation import Branch, Continuation, Event, continuation
from flowlab.critical.plateaus import Plateau, Plateaus, plateaus
from flowlab.critical.points import critical_points
from flowlab.critical.sensitivity import Exponents, Sensitivity, lyapunov, sensitivity
from flowlab.critical.separatrices import Separatrix, separatrices
from flowlab.critical.slowdown import Slowdown, slowdown
from flowlab.critical.types import CriticalPoint, CriticalPoints

__all__ = [
    "BOUNDARY",
    "RUNAWAY",
    "SADDLE",
    "UNRESOLVED",
    "BasinEntropy",
    "Basins",
    "Branch",
    "Continuation",
    "CriticalPoint",
    "CriticalPoints",
    "Event",
    "Exponents",
    "Plateau",
    "Plateaus",
    "Sensitivity",
    "Separatrix",
    "Slowdown",
    "basins",
    "continuation",
    "critical_points",
    "lyapunov",
    "plateaus",
    "sensitivity",
    "separatrices",
    "slowdown",
]
