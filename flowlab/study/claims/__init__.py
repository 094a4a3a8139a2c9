"""The statements of the paper, each with a verdict per geometry that is computed from runs."""

from flowlab.study.claims.catalogue import LATER_GEOMETRIES, evaluate, table, to_json
from flowlab.study.claims.verdicts import HOLDS_FROM, Claim, Verdict

__all__ = ["HOLDS_FROM", "LATER_GEOMETRIES", "Claim", "Verdict", "evaluate", "table", "to_json"]
