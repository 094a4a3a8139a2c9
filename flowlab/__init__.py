"""Gradient flows of preference losses, integrated from very many starting points and measured.

The verbs and nouns most people need are here; everything else is in the public submodules
(`domains`, `losses`, `policies`, `potentials`, `flow`, `exact`, `until`, `measures`, `logs`,
`starts`, `store`, `plans`, `models`, `data`, `critical`, `cards`, `displacement`, `descent`,
`replay`, `plots`, `study`). Submodules are imported when they are first used, so that the import
itself stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flowlab.ensemble import Runs, sweep
    from flowlab.flow import Flow, preference_flow
    from flowlab.losses import DPO, Pair
    from flowlab.policies import (
        LogRatioPlane,
        Policy,
        ProbabilityPlane,
        RatioPlane,
        TabularSoftmax,
    )
    from flowlab.solve import flow_line

__all__ = [
    "DPO",
    "Flow",
    "LogRatioPlane",
    "Pair",
    "Policy",
    "ProbabilityPlane",
    "RatioPlane",
    "Runs",
    "TabularSoftmax",
    "__version__",
    "flow_line",
    "preference_flow",
    "sweep",
]

_HOME = {
    "DPO": "losses",
    "Flow": "flow",
    "LogRatioPlane": "policies",
    "Pair": "losses",
    "Policy": "policies",
    "ProbabilityPlane": "policies",
    "RatioPlane": "policies",
    "Runs": "ensemble",
    "TabularSoftmax": "policies",
    "flow_line": "solve",
    "preference_flow": "flow",
    "sweep": "ensemble",
}
_SUBMODULES = frozenset(
    {
        "cards",
        "cli",
        "critical",
        "data",
        "descent",
        "displacement",
        "domains",
        "ensemble",
        "exact",
        "flow",
        "logs",
        "losses",
        "measures",
        "models",
        "plans",
        "plots",
        "policies",
        "potentials",
        "replay",
    }
    | {"solve", "starts", "store", "study", "until"}
)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"flowlab.{_HOME[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"flowlab.{name}")
    raise AttributeError(f"module 'flowlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})
