"""flowlab itself, through its public interface."""

import numpy as np

import flowlab
from flowlab import until

from . import Solved, Way
from .problems import LEVEL, Problem

__all__ = ["way"]


def way(problem: Problem) -> Way:
    """`flowlab.sweep`, with nothing set but the tolerance."""
    flow, target = problem.flow(), until.loss_below(LEVEL)

    def solve(points: np.ndarray, rtol: float) -> Solved:
        runs = flowlab.sweep(flow, points, until=target, rtol=rtol, progress=False)
        return Solved(runs.time, float(np.mean(runs.steps)))

    return solve
