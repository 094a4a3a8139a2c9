"""What is measured along a flow line.

A measure gives any of: a smooth rate, integrated with the flow line as a further component of its
state; a fold over the accepted steps, read from their interpolants; values at the end.
"""

from flowlab.measures.base import AbstractMeasure, Ends, Nodes
from flowlab.measures.displacement import dip, mass
from flowlab.measures.neighbourhood import near
from flowlab.measures.path import (
    change,
    dwell,
    margin_at,
    margin_zero,
    path_length,
    rate_ratio,
    slowest,
)
from flowlab.measures.steps import NODES

__all__ = [
    "NODES",
    "AbstractMeasure",
    "Ends",
    "Nodes",
    "change",
    "dip",
    "dwell",
    "margin_at",
    "margin_zero",
    "mass",
    "near",
    "path_length",
    "rate_ratio",
    "slowest",
]
