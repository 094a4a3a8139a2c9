"""Training logs: read from whatever file they are in, and what they say of their runs."""

from flowlab.logs.diagnosis import Diagnosis, diagnose
from flowlab.logs.series import TrainingLog, read

__all__ = ["Diagnosis", "TrainingLog", "diagnose", "read"]
