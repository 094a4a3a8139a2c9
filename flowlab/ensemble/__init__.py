"""Flow lines from many starts: the function `sweep`, and its result `Runs`."""

from flowlab.ensemble.audit import Deviations, audited, chosen_for_audit, joined
from flowlab.ensemble.backends import default_backend
from flowlab.ensemble.blocks import worth_optimising
from flowlab.ensemble.driver import checked_over, sweep
from flowlab.ensemble.runs import Audit, Runs

__all__ = [
    "Audit",
    "Deviations",
    "Runs",
    "audited",
    "checked_over",
    "chosen_for_audit",
    "default_backend",
    "joined",
    "sweep",
    "worth_optimising",
]
