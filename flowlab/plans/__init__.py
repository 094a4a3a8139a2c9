"""Sweeps that survive interruptions: plans, carried out block by block, and resumed."""

from flowlab.plans.estimate import Estimate, duration, estimate
from flowlab.plans.plan import Plan
from flowlab.plans.recipes import from_json, from_recipe, from_toml
from flowlab.plans.running import (
    DoesNotFitError,
    Interrupted,
    Status,
    read_recipe,
    resume_hint,
    run,
    status,
)
from flowlab.starts import DrawnStarts

__all__ = [
    "DoesNotFitError",
    "DrawnStarts",
    "Estimate",
    "Interrupted",
    "Plan",
    "Status",
    "duration",
    "estimate",
    "from_json",
    "from_recipe",
    "from_toml",
    "read_recipe",
    "resume_hint",
    "run",
    "status",
]
