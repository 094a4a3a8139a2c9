"""Gradient flows of preference losses, integrated from very many starting points and measured.

The most common functions and classes are here; everything else is in the public submodules
(`domains`, `losses`, `policies`, `potentials`, `flow`, `exact`, `until`, `measures`, `logs`,
`starts`, `store`, `plans`, `models`, `data`, `critical`, `cards`, `displacement`, `descent`,
`replay`, `plots`, `study`). Submodules are imported when they are first used, so that the import
itself stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowlab._lazy import on_demand

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

# Modules whose names are looked for here by mistake; others than these take long to import.
_NEARBY = (
    *("losses", "policies", "potentials", "domains", "until", "starts", "measures"),
    *("critical", "displacement", "plots", "solve"),
)


def _hint(name: str) -> str:
    """An addition to the error on an unknown name: the names that it may be a misspelling of."""
    from importlib import import_module

    from flowlab._names import did_you_mean, meant

    where = {each: each for each in __dir__()}
    for module in _NEARBY:
        for each in import_module(f"{__name__}.{module}").__all__:
            where.setdefault(each, f"{__name__}.{module}.{each}")
    same = meant(name, where)
    return did_you_mean(name, where, where) if same is None else f"; did you mean {where[same]}?"


__getattr__, __dir__ = on_demand(
    __name__,
    {
        "ensemble": ("Runs", "sweep"),
        "flow": ("Flow", "preference_flow"),
        "losses": ("DPO", "Pair"),
        "policies": ("LogRatioPlane", "Policy", "ProbabilityPlane", "RatioPlane", "TabularSoftmax"),
        "solve": ("flow_line",),
    },
    submodules=(
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
        "solve",
        "starts",
        "store",
        "study",
        "until",
    ),
    hint=_hint,
)
