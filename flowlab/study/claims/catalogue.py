"""The seventeen statements of the paper, their evaluation, and a table of their verdicts."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flowlab import _tables
from flowlab.study.claims import field, limits
from flowlab.study.claims.observables import Observables, observe
from flowlab.study.claims.verdicts import Claim, Verdict
from flowlab.study.data import GEOMETRIES, Geometry, StudyData, alike

__all__ = ["evaluate", "table", "to_json"]

_SIGNS = {"holds": "+", "holds_in_part": "~", "fails": "-", "not_applicable": "."}


def evaluate(data: StudyData) -> list[Claim]:
    """All seventeen claims in order, with verdicts for every geometry."""
    observed = _observed(data)
    return [one.claim(observed) for one in (*field.STATEMENTS, *limits.STATEMENTS)]


def to_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The claims as JSON-ready dictionaries, with None for numbers that are not finite."""
    return [
        {
            "id": claim.id,
            "statement": claim.statement,
            "where": claim.where,
            "measured": claim.measured,
            "verdicts": {name: _plain(verdict) for name, verdict in claim.verdicts.items()},
        }
        for claim in claims
    ]


def table(claims: Sequence[Claim]) -> str:
    """The verdicts as plain text, with a row for each geometry and a column for each claim."""
    names = list(claims[0].verdicts) if claims else []
    rows = [["", *(claim.id for claim in claims)]]
    rows += [[n, *(_SIGNS[claim.verdicts[n].verdict] for claim in claims)] for n in names]
    legend = ", ".join(f"{sign} {name.replace('_', ' ')}" for name, sign in _SIGNS.items())
    return f"{_tables.table(rows, gap=1)}\n{legend}"


def _observed(data: StudyData) -> dict[str, Observables]:
    """The observables of each geometry, by name.

    Two groups of geometries are processed at a time, since most of the time is compilation.
    """

    def work(group: list[Geometry]) -> list[Observables]:
        return [observe(data, geometry) for geometry in group]

    with ThreadPoolExecutor(2) as pool:
        found = [observables for group in pool.map(work, alike()) for observables in group]
    seen = dict(zip([g.name for group in alike() for g in group], found, strict=True))
    return {geometry.name: seen[geometry.name] for geometry in GEOMETRIES}


def _plain(verdict: Verdict) -> dict[str, Any]:
    evidence = {
        name: float(value) if math.isfinite(value) else None
        for name, value in verdict.evidence.items()
    }
    return {
        "verdict": verdict.verdict,
        "close": verdict.close,
        "evidence": evidence,
        "threshold": dict(verdict.threshold),
    }
