"""The statements of the paper, each with a verdict per geometry, computed from flow lines."""

from flowlab.study.claims.catalogue import evaluate, table, to_json
from flowlab.study.claims.limits import likeness
from flowlab.study.claims.verdicts import HOLDS_FROM, Claim, Verdict

__all__ = ["HOLDS_FROM", "Claim", "Verdict", "evaluate", "likeness", "table", "to_json"]
