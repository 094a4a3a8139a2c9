"""Studies with a report in a folder: measurements on the paper's plane, comparisons of losses."""

from flowlab.study.claims import Claim, Verdict, evaluate
from flowlab.study.data import GEOMETRIES, Geometry, Settings, StudyData, collect
from flowlab.study.losses import LossStudy, compare_losses, computed
from flowlab.study.report import Study, run

__all__ = [
    "GEOMETRIES",
    "Claim",
    "Geometry",
    "LossStudy",
    "Settings",
    "Study",
    "StudyData",
    "Verdict",
    "collect",
    "compare_losses",
    "computed",
    "evaluate",
    "run",
]
