"""Training logs: readers for all common formats, and diagnoses of the logged runs."""

from flowlab.logs.diagnosis import Diagnosis, diagnose
from flowlab.logs.series import TrainingLog, read

__all__ = ["Diagnosis", "TrainingLog", "diagnose", "read"]
