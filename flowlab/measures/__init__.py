"""Measures of flow lines.

A measure consists of any of three parts: a smooth rate, integrated with the flow line as a further
component of the state; a fold over the accepted steps, which sees their interpolants; and values
at the end of the line. Each function here returns a `Measure`; construct a `Measure` for one of
your own.
"""

from flowlab._names import former_names
from flowlab.measures.base import Ends, Measure, Nodes
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
    "Ends",
    "Measure",
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

__getattr__ = former_names(__name__, {"AbstractMeasure": "Measure"})
