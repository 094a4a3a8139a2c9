"""Conclusions from all verdicts: statements about DPO itself, and about coordinates of states.

Every list and every number comes from the verdicts and the runs; `conclusions.html` has the words.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowlab._pages import joined, share
from flowlab.study.claims import Claim, Verdict
from flowlab.study.data import GEOMETRIES, ResponseLine

__all__ = ["conclusions"]

_FALLS = "share_of_starts_where_the_chosen_falls_at_the_start"
_FALLEN = "share_of_starts_where_the_chosen_has_fallen_at_the_loss_level"
_RULE_HOLDS = "share_of_starts_where_it_falls_just_where_k_wl_exceeds_k_ww"
_LARGEST_COUPLING = "largest_k_wl_over_k_ww"
_ABOUT_A_SLOW_RISE = ("C3", "C12")  # claims of how slowly the chosen response rises
_OWN = ("ratio_plane", "box")  # the paper's plane, free and with its bounds
_TITLES = {geometry.name: geometry.title for geometry in GEOMETRIES}
_RATIO_PLANES = ("ratio_plane", "box", "simplex")
_FAMILIES = (
    ("the three ratio planes", _RATIO_PLANES),
    ("both softmax policies", ("tabular_softmax", "tabular_softmax_pairs")),
    ("all coupled kernels", ("coupled_0", "coupled_0.5", "coupled_0.9", "coupled_1.1")),
)
_COORDINATES = "the coordinates"
_DIFFERENCES = (
    (_COORDINATES, ("ratio_plane", "log_ratio_plane")),
    ("walls", ("ratio_plane", "box")),
    ("the simplex (its wall, or its smaller set of starts)", ("ratio_plane", "simplex")),
    ("the coupling of the pair", ("coupled_0", "coupled_0.5", "coupled_0.9", "coupled_1.1")),
    ("other responses", ("log_ratio_plane", "tabular_softmax")),
    ("other pairs", ("tabular_softmax", "tabular_softmax_pairs")),
    ("trained features", ("log_ratio_plane", "feature_model")),
)
"""Differences, each with geometries between which nothing else differs."""
_KERNEL = "coupled kernel "


def conclusions(
    claims: Sequence[Claim], line: ResponseLine, likeness: Sequence[tuple[int, float]]
) -> dict[str, Any]:
    """The variables of the template `conclusions.html`.

    Args:
        claims: The claims with their verdicts.
        line: The flow line of the feature model.
        likeness: Pairs of a number of differing tokens and the ratio k_wl/k_ww.
    """
    falls, rule_holds = _evidence(claims, _FALLS), _evidence(claims, _RULE_HOLDS)
    mostly_falling = [name for name, value in falls.items() if value > 0.5]
    own = [falls[name] for name in _OWN if name in falls]
    right = [name for name, value in rule_holds.items() if value == 1]
    told_apart = [name for name in right if 0 < falls.get(name, 0) < 1]
    return {
        **_grouped(claims),
        "claims": claims,
        "line": line,
        "likeness": likeness,
        "geometries": GEOMETRIES,
        "about_a_slow_rise": _ABOUT_A_SLOW_RISE,
        "slow_because_falling": [
            claim.id
            for claim in claims
            if claim.id in _ABOUT_A_SLOW_RISE
            and any(_verdict(claim, name) == "holds" for name in mostly_falling)
        ],
        "errors": [(claim, *found) for claim in claims for found in _errors(claim)],
        "falls": falls,
        "fallen": _evidence(claims, _FALLEN),
        "mostly_falling": mostly_falling,
        "never_on_plane": bool(own) and not any(own),
        "rule_holds": rule_holds,
        "told_apart": told_apart,
        "told_alike": [name for name in right if name not in told_apart],
        "largest_coupling": _evidence(claims, _LARGEST_COUPLING),
        "alike": _alike,
        "by_verdict": _by_verdict,
        "applicable": _applicable,
        "differences": _differences,
        "places": _places,
        "share_range": _share_range,
    }


def _grouped(claims: Sequence[Claim]) -> dict[str, Any]:
    """The claims in groups by verdict, with counts that compare the groups."""
    names = ("holds", "fails", "holds_in_part", "true_on_plane", "untrue_on_plane", "not_on_plane")
    groups: dict[str, list[Claim]] = {name: [] for name in names}
    for claim in claims:
        groups[_group(claim)].append(claim)
    varying = [claim for name in names[3:] for claim in groups[name]]
    return {
        "groups": groups,
        "varying": len(varying),
        "with_coordinates": sum(_COORDINATES in _differences(claim) for claim in varying),
        "only_in_ratios": [
            claim.id
            for claim in groups["true_on_plane"]
            if set(_by_verdict(claim)["holds"]) <= set(_RATIO_PLANES)
        ],
    }


def _group(claim: Claim) -> str:
    """The common verdict of all geometries to which a claim applies; else a group.

    The group depends on the verdict on the free ratio plane.
    """
    found = {(v.verdict, *v.kinds) for v in map(claim.verdicts.get, _applicable(claim)) if v}
    if len(found) == 1:
        return found.pop()[0]
    on_plane = {"holds": "true_on_plane", "not_applicable": "not_on_plane"}
    return on_plane.get(_verdict(claim, "ratio_plane"), "untrue_on_plane")


def _differences(claim: Claim) -> list[str]:
    """The entries of `_DIFFERENCES` whose geometries disagree on a claim or on a part of it."""
    found = []
    for difference, names in _DIFFERENCES:
        verdicts = [claim.verdicts[name] for name in names if name in _applicable(claim)]
        if len({(v.verdict, *v.kinds) for v in verdicts}) > 1:
            found.append(difference)
    return found


def _by_verdict(claim: Claim) -> dict[str, list[str]]:
    """The names of the geometries, by verdict."""
    kinds = ("holds", "holds_in_part", "fails", "not_applicable")
    return {k: [name for name, v in claim.verdicts.items() if v.verdict == k] for k in kinds}


def _applicable(claim: Claim) -> list[str]:
    return [name for name, v in claim.verdicts.items() if v.verdict != "not_applicable"]


def _verdict(claim: Claim, name: str) -> str:
    return claim.verdicts[name].verdict if name in claim.verdicts else "not_applicable"


def _evidence(claims: Sequence[Claim], key: str) -> dict[str, float]:
    """One measured number for each geometry that has it, by name."""
    verdicts = [pair for claim in claims for pair in claim.verdicts.items()]
    return {name: v.evidence[key] for name, v in verdicts if key in v.evidence}


def _errors(claim: Claim) -> list[tuple[str, Verdict]]:
    """The plane of the paper's statement, with its verdict, if the statement does not hold."""
    found = [name for name in _OWN if _verdict(claim, name) in ("fails", "holds_in_part")]
    return [(name, claim.verdicts[name]) for name in found[:1]]


def _alike(values: dict[str, float]) -> dict[str, list[str]]:
    """The names with each share, by the share as it is printed, lowest first."""
    written = {share(value): [] for value in sorted(values.values())}
    for name, value in values.items():
        written[share(value)].append(name)
    return written


def _places(names: Sequence[str]) -> str:
    """The titles of geometries as a phrase; a complete family has a title of its own."""
    left, told = list(names), []
    for title, family in _FAMILIES:
        if set(family) <= set(left):
            told.append(title)
            left = [name for name in left if name not in family]
    titles = [_TITLES.get(name, name) for name in left]
    kernels = [title.removeprefix(_KERNEL) for title in titles if title.startswith(_KERNEL)]
    told += [f"the {title}" for title in titles if not title.startswith(_KERNEL)]
    if kernels:
        told.append(f"the coupled kernel{'s' * (len(kernels) > 1)} {joined(kernels)}")
    return joined(told)


def _share_range(claim: Claim, names: Sequence[str]) -> str:
    """The lowest and the highest share of each part of a statement over some geometries."""
    table = np.array([list(claim.verdicts[name].deciding.values()) for name in names])
    return " / ".join(map(_from_to, table.min(0), table.max(0)))


def _from_to(low: float, high: float) -> str:
    ends = share(low), share(high)
    if ends == ("0", "<0.01"):
        return ends[1]
    if ends[0] == ends[1] or ends == (">0.99", "1"):
        return ends[0]
    return "–".join(ends)
