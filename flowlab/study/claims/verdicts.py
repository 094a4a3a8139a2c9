"""Claims, verdicts, and the rule that derives a verdict from measured shares of starts."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import Bool

from flowlab.study.claims.observables import EVERYWHERE, Observables, Region
from flowlab.study.data import SLOW_SHARE

__all__ = [
    "HOLDS_FROM",
    "MINOR",
    "NEAR_ZERO",
    "RAPID",
    "ROUNDING",
    "Claim",
    "Statement",
    "Verdict",
    "drop_nan",
    "not_applicable",
    "share",
    "states",
    "verdict_from",
]

# A statement about a region is still a fair one if one start in twenty contradicts it.
HOLDS_FROM = 0.95
CLOSE = 0.005  # to where a verdict turns: another grid of starts could turn it
RAPID = 1 / SLOW_SHARE  # rapid: this many times the median or more; slow is its inverse
MINOR = 0.25  # hardly changes: at this part of the other's rate or less
NEAR_ZERO = 0.01  # vanishes: below this part of the median speed
ROUNDING = 1e-10  # far above the rounding of some float64 operations
RULE = "every one >= value: holds; every one <= 1 - value: fails; otherwise: holds_in_part"


@dataclass(frozen=True)
class Verdict:
    """Verdict of the runs on one statement in one geometry.

    Attributes:
        verdict: `holds`, `holds_in_part`, `fails` or `not_applicable`.
        evidence: Measured numbers, by name.
        threshold: The rule that decides: `quantity` (names in the evidence), `relation` and
            `value`.
    """

    verdict: str
    evidence: dict[str, float] = field(default_factory=dict)
    threshold: dict[str, Any] = field(default_factory=dict)

    @property
    def deciding(self) -> dict[str, float]:
        """The shares that decide the verdict, by name; empty if the statement does not apply."""
        if self.verdict == "not_applicable":
            return {}
        names = str(self.threshold.get("quantity", "")).split(", ")
        return {name: self.evidence[name] for name in names if name in self.evidence}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The verdicts on the single parts of the statement."""
        return tuple(_kind([value]) for value in self.deciding.values())

    @property
    def close(self) -> bool:
        """True if a share is so close to a threshold that another grid could change the verdict."""
        ends = np.array([HOLDS_FROM, 1 - HOLDS_FROM])
        return any(np.min(np.abs(ends - value)) <= CLOSE for value in self.deciding.values())


@dataclass(frozen=True)
class Claim:
    """A statement of the paper with its verdicts.

    Attributes:
        id: C1 to C17.
        statement: The statement, in our own words.
        where: The passage of the paper.
        measured: A description of the measurement.
        verdicts: The verdict for each geometry, by name.
    """

    id: str
    statement: str
    where: str
    measured: str
    verdicts: dict[str, Verdict]


@dataclass(frozen=True)
class Statement:
    """A statement of the paper, and the function that judges it.

    Attributes:
        where: The passage of the paper.
        text: The statement, in our own words.
        region: The region of starts to which it refers.
        judge: Function from the observables of these starts to a verdict; its docstring describes
            the measurement.
    """

    where: str
    text: str
    region: Region
    judge: Callable[[Observables], Verdict]

    def __call__(self, observables: Observables) -> Verdict:
        """The verdict in one geometry."""
        here = observables.within(self.region)
        return self.judge(here) if here.count else not_applicable()

    def claim(self, observed: Mapping[str, Observables]) -> Claim:
        """The claim with its verdicts, from the observables of each geometry."""
        measured = " ".join((inspect.getdoc(self.judge) or "").split())
        verdicts = {name: self(observables) for name, observables in observed.items()}
        return Claim(self.judge.__name__.upper(), self.text, self.where, measured, verdicts)


def states(
    where: str, text: str, region: Region = EVERYWHERE
) -> Callable[[Callable[[Observables], Verdict]], Statement]:
    """Decorator for a function that judges a statement; the function's name is the claim's id."""
    return partial(Statement, where, text, region)


def verdict_from(evidence: Mapping[str, SupportsFloat], deciding: Sequence[str]) -> Verdict:
    """The verdict on a statement, from the shares of starts for which its parts are true.

    The statement holds if every share is at least `HOLDS_FROM`, fails if every share is at most 1 −
    `HOLDS_FROM`, and holds in part otherwise.

    Args:
        evidence: Measured numbers, by name.
        deciding: The names of the shares that decide, one for each part of the statement.
    """
    threshold = {"quantity": ", ".join(deciding), "relation": RULE, "value": HOLDS_FROM}
    numbers = {name: float(value) for name, value in evidence.items()}
    return Verdict(_kind([numbers[name] for name in deciding]), numbers, threshold)


def not_applicable() -> Verdict:
    """The verdict on a statement if no start lies in its region."""
    threshold = {"quantity": "starts_in_the_region", "relation": ">=", "value": 1.0}
    return Verdict("not_applicable", {"starts_in_the_region": 0.0}, threshold)


def _kind(shares: Sequence[float]) -> str:
    if all(value >= HOLDS_FROM for value in shares):
        return "holds"
    return "fails" if all(value <= 1 - HOLDS_FROM for value in shares) else "holds_in_part"


def drop_nan(**measured: float) -> dict[str, float]:
    """Measured numbers by name, without NaN, which stands for numbers that were not measured."""
    return {name: float(value) for name, value in measured.items() if not np.isnan(value)}


def share(true: Bool[np.ndarray, " n"]) -> float:
    """The share of true entries in a mask."""
    return float(np.mean(true))
