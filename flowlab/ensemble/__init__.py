"""Flow lines from many starts: the verb `sweep`, and `Runs`, what comes back."""

from flowlab.ensemble.driver import sweep
from flowlab.ensemble.runs import Audit, Runs

__all__ = ["Audit", "Runs", "sweep"]
