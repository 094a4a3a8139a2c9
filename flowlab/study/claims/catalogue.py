"""The seventeen statements, and how they are evaluated and written down."""

import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from flowlab.study.claims import field, limits
from flowlab.study.claims.observables import Observables, observe
from flowlab.study.claims.verdicts import Claim, Verdict
from flowlab.study.data import GEOMETRIES, Geometry, StudyData, alike

__all__ = ["evaluate", "table", "to_json"]

_SIGNS = {"holds": "+", "holds_in_part": "~", "fails": "-", "not_applicable": "."}


@dataclass(frozen=True)
class _Statement:
    id: str
    statement: str
    where: str
    verdict: Callable[[Observables], Verdict]


_STATEMENTS = (
    _Statement(
        "C1",
        "The partial derivatives of the DPO loss by x1 and x2 are "
        "-β x2^β / (x1 (x1^β + x2^β)) and β x2^(β-1) / (x1^β + x2^β).",
        "Theorem 1",
        field.c1,
    ),
    _Statement(
        "C2",
        "The chosen ratio rises x2/x1 times as fast as the rejected ratio falls.",
        "Corollary 1",
        field.c2,
    ),
    _Statement(
        "C3",
        "The loss makes the rejected response less probable faster than the chosen one more so.",
        "Remark 1 and abstract",
        field.c3,
    ),
    _Statement(
        "C4",
        "The gradient field vanishes at low x1 and leads away from there; it leads to low x2 and "
        "vanishes there.",
        "Section 3.2",
        field.c4,
    ),
    _Statement(
        "C5",
        "Where x1 is very small and x2 very large, x1 rises rapidly and x2 hardly changes.",
        "Section 3.2, first case",
        field.c5,
    ),
    _Statement(
        "C6",
        "Where both are very large, x1 rises and x2 falls, but little.",
        "Section 3.2, second case",
        field.c6,
    ),
    _Statement(
        "C7",
        "Where both are very large, saddle points are hard to escape.",
        "Section 3.2, second case",
        field.c7,
    ),
    _Statement(
        "C8",
        "Where x2 is very small, x2 falls rapidly and x1 hardly changes.",
        "Section 3.2, third case",
        field.c8,
    ),
    _Statement(
        "C9",
        "On the way x2/x1 tends to 0, and then x2 is driven to 0 with hardly a change of x1.",
        "Section 3.3.1",
        limits.c9,
    ),
    _Statement(
        "C10",
        "If the two responses are nearly the same text, their gradients counteract each other and "
        "the chosen one is learnt less.",
        "Section 3.3.1",
        limits.c10,
    ),
    _Statement(
        "C11",
        "From a start at the lower right, the rejected response loses its probability rapidly.",
        "Section 3.3.2",
        limits.c11,
    ),
    _Statement(
        "C12",
        "From a start on the left, the chosen response gains probability slowly, because the "
        "gradient favours x2.",
        "Section 3.3.2",
        limits.c12,
    ),
    _Statement(
        "C13",
        "From a start at the lower left, the direction does not give the chosen response priority.",
        "Section 3.3.2",
        limits.c13,
    ),
    _Statement(
        "C14",
        "From a start at the upper right, gradients are very small and convergence is sluggish.",
        "Section 3.3.2",
        limits.c14,
    ),
    _Statement(
        "C15",
        "From a start at the upper right, local minima are hard to escape.",
        "Section 3.3.2",
        limits.c15,
    ),
    _Statement(
        "C16",
        "Where a run starts matters much for its final result.",
        "Section 3.3.2",
        limits.c16,
    ),
    _Statement(
        "C17",
        "For every parametrised policy the gradient of the loss is minus the mean of "
        "β σ(-z) (∇π_w/π_w - ∇π_l/π_l).",
        "A derivation for parametrised policies, beside the paper",
        limits.c17,
    ),
)


def evaluate(data: StudyData) -> list[Claim]:
    """All seventeen claims in their order, judged in every geometry from the runs alone."""
    observed = _observed(data)
    return [_claim(entry, observed) for entry in _STATEMENTS]


def to_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The claims as what `json.dump` takes; a number that is not finite becomes None."""
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
    """The verdicts as text, a line for each geometry and a column for each claim."""
    names = list(claims[0].verdicts) if claims else []
    rows = [["", *(claim.id for claim in claims)]]
    rows += [[n, *(_SIGNS[claim.verdicts[n].verdict] for claim in claims)] for n in names]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [" ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]
    legend = ", ".join(f"{sign} {name.replace('_', ' ')}" for name, sign in _SIGNS.items())
    return "\n".join([*(line.rstrip() for line in lines), legend])


def _observed(data: StudyData) -> dict[str, Observables]:
    """What is seen in each geometry; two are worked on at a time, since most is compilation."""

    def work(group: list[Geometry]) -> list[Observables]:
        return [observe(data, geometry) for geometry in group]

    with ThreadPoolExecutor(2) as pool:
        found = [observables for group in pool.map(work, alike()) for observables in group]
    seen = dict(zip([g.name for group in alike() for g in group], found, strict=True))
    return {geometry.name: seen[geometry.name] for geometry in GEOMETRIES}


def _claim(entry: _Statement, observed: dict[str, Observables]) -> Claim:
    verdicts = {name: entry.verdict(observables) for name, observables in observed.items()}
    measured = " ".join((inspect.getdoc(entry.verdict) or "").split())
    return Claim(entry.id, entry.statement, entry.where, measured, verdicts)


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
