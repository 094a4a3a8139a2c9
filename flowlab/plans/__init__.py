"""Sweeps that outlive the machine: plans, carried out block by block, and gone on with."""

from flowlab.plans.estimate import Estimate, duration, estimate
from flowlab.plans.plan import DrawnStarts, Plan
from flowlab.plans.recipes import from_json, from_recipe, from_toml
from flowlab.plans.running import (
    DoesNotFitError,
    Interrupted,
    Status,
    how_to_go_on,
    recipe_of,
    run,
    status,
)

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
    "how_to_go_on",
    "recipe_of",
    "run",
    "status",
]
