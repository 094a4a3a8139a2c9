"""The paper's plane, measured: sweeps, figures, claims and a report in one folder."""

from flowlab.study.claims import Claim, Verdict, evaluate
from flowlab.study.data import GEOMETRIES, Geometry, Settings, StudyData, collect
from flowlab.study.report import Study, run

__all__ = [
    "GEOMETRIES",
    "Claim",
    "Geometry",
    "Settings",
    "Study",
    "StudyData",
    "Verdict",
    "collect",
    "evaluate",
    "run",
]
