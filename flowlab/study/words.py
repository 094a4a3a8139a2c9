"""One page in words: what of the paper is about DPO, and what is about its coordinates.

Every list and every number is read off the verdicts and the runs; no sentence is there without
them.
"""

import html
from collections.abc import Iterable, Sequence

import numpy as np

from flowlab.study.claims import Claim, Verdict
from flowlab.study.data import GEOMETRIES, ResponseLine

__all__ = ["FALLS", "RISES", "conclusions", "falling", "number", "shares"]

FALLS = "share_of_starts_where_the_chosen_falls_at_the_start"
RISES = ("C3", "C12")  # claims of how slowly the chosen response rises
_AGREES = "share_of_starts_where_it_falls_just_where_k_wl_exceeds_k_ww"
_LARGEST = "largest_k_wl_over_k_ww"
_FALLS_LATER = "share_of_starts_where_the_chosen_has_fallen_at_the_loss_level"
_OWN = ("ratio_plane", "box")  # the paper's plane, free and with its bounds
_TITLES = {geometry.name: geometry.title for geometry in GEOMETRIES}
_FAMILIES = (
    ("the three ratio planes", ("ratio_plane", "box", "simplex")),
    ("both tables of softmax", ("tabular_softmax", "tabular_softmax_pairs")),
    ("all coupled kernels", ("coupled_0", "coupled_0.5", "coupled_0.9", "coupled_1.1")),
)
_CAUSES = (
    ("the coordinates", "ratio_plane", ("log_ratio_plane",)),
    ("walls", "ratio_plane", ("box",)),
    ("the simplex (its wall, or the starts inside it)", "ratio_plane", ("simplex",)),
    ("the coupling of the pair", "coupled_0", ("coupled_0.5", "coupled_0.9", "coupled_1.1")),
    ("other responses", "log_ratio_plane", ("tabular_softmax",)),
    ("other pairs", "tabular_softmax", ("tabular_softmax_pairs",)),
    ("trained features", "log_ratio_plane", ("feature_model",)),
)
"""What differs between a geometry and those after it."""
_KERNEL = "coupled kernel "
_VERBS = {"holds": "holds on", "holds_in_part": "in part on", "fails": "fails on"}
_WHOLE = {
    "holds": "True of DPO, in every geometry",
    "fails": "False in every geometry",
    "holds_in_part": "True in part, in every geometry",
}


def conclusions(
    claims: Sequence[Claim], line: ResponseLine, edits: Sequence[tuple[int, float]]
) -> list[str]:
    """The page as parts of HTML.

    Args:
        claims: The claims with their verdicts.
        line: The flow line of the feature model.
        edits: Numbers of differing tokens, and k_wl/k_ww of such a pair.
    """
    groups: dict[str, list[Claim]] = {name: [] for name in (*_WHOLE, "turns")}
    for claim in claims:
        groups[_one_verdict(claim)].append(claim)
    parts = ["<h2 id='coordinates'>What is about DPO, and what about its coordinates</h2>"]
    parts.append(_introduction(claims, groups))
    for name, title in _WHOLE.items():
        parts += _list(title, [_everywhere(claim) for claim in groups[name]])
    turned = groups["turns"]
    on_own = [c for c in turned if _verdict(c, _OWN[0]) == "holds"]
    elsewhere = [c for c in turned if _verdict(c, _OWN[0]) in ("holds_in_part", "fails")]
    silent = [c for c in turned if _verdict(c, _OWN[0]) == "not_applicable"]
    title = "It depends: true on the paper’s free plane, and not everywhere"
    parts += _list(title, [_by_geometry(claim) for claim in on_own])
    parts += _only_in_ratios(on_own)
    title = "It depends: not, or only in part, true on the paper’s free plane"
    parts += _list(title, [_by_geometry(claim) for claim in elsewhere])
    parts += _because_it_falls(claims)
    title = "It depends: the paper’s free plane has nothing to say of it"
    parts += _list(title, [_by_geometry(claim) for claim in silent])
    parts += _list("Where the paper slips on its own plane, and by which shares", [*_slips(claims)])
    parts.append("<h3>Why do my chosen log-probabilities fall?</h3>")
    parts += [f"<p>{sentence}</p>" for sentence in _why_the_chosen_falls(claims, line, edits)]
    return parts


def number(value: float) -> str:
    """A share in two digits, such that only 0 is "0" and only 1 is "1"; may hold a "<" or ">"."""
    if value in (0.0, 1.0):
        return f"{value:.0f}"
    if 0 < value < 0.005:
        return "<0.01"
    return ">0.99" if 0.995 < value < 1 else f"{value:.2f}"


def falling(claims: Sequence[Claim]) -> list[str]:
    """The geometries in which the chosen response falls at more than half of the starts."""
    told = [_evidence(claim, FALLS) for claim in claims]
    return [name for found in told for name, value in found.items() if value > 0.5]


def shares(verdict: Verdict) -> str:
    """The shares that decide, one for each part of the statement."""
    return " / ".join(number(value) for value in verdict.deciding.values())


def _introduction(claims: Sequence[Claim], groups: dict[str, list[Claim]]) -> str:
    geometries = len(claims[0].verdicts) if claims else 0
    counts = {name: len(group) for name, group in groups.items()}
    return (
        "<p>The loss sees the margin alone, and its gradient pushes the log-ratio of the chosen "
        "response up as hard as that of the rejected one down. What the push does, which of the "
        "two moves more, where it is slow, is said by what a state is and by what the responses "
        f"share. So a statement of which every part is judged alike in all {geometries} geometries "
        "is about DPO, and one that turns is about what it turns with: the coordinates of the "
        "state, walls, the coupling of the pair, other responses and pairs, or features that are "
        f"trained. Of {len(claims)} statements: hold everywhere {counts['holds']}; fail everywhere "
        f"{counts['fails']}; are true in part everywhere {counts['holds_in_part']}; turn "
        f"{counts['turns']}, of which with the coordinates "
        f"{sum(_CAUSES[0][0] in _causes(claim) for claim in groups['turns'])}. "
        "Numbers in brackets are shares of the starts (of C16: of the values of β), one for each "
        "part of a statement, from the lowest to the highest over the geometries named.</p>"
    )


def _list(title: str, entries: Iterable[str]) -> list[str]:
    items = "".join(f"<li>{entry}</li>" for entry in entries)
    return [f"<h3>{title}</h3>", f"<ul>{items or '<li>None.</li>'}</ul>"]


def _one_verdict(claim: Claim) -> str:
    """The verdict of all geometries that have one, or that it turns, as a whole or in a part."""
    found = {_judged(v) for v in claim.verdicts.values() if v.verdict != "not_applicable"}
    return found.pop()[0] if len(found) == 1 else "turns"


def _judged(verdict: Verdict) -> tuple[str, ...]:
    return verdict.verdict, *verdict.kinds


def _causes(claim: Claim) -> list[str]:
    """With what a claim, or a part of it, turns."""
    found = []
    for cause, name, others in _CAUSES:
        known = [claim.verdicts[n] for n in (name, *others) if n in claim.verdicts]
        known = [v for v in known if v.verdict != "not_applicable"]
        if len({_judged(v) for v in known}) > 1:
            found.append(cause)
    return found


def _verdict(claim: Claim, name: str) -> str:
    return claim.verdicts[name].verdict if name in claim.verdicts else "not_applicable"


def _named(claim: Claim) -> str:
    return f"<a href='#{claim.id}'>{claim.id}</a> {html.escape(claim.statement)}"


def _everywhere(claim: Claim) -> str:
    names = [n for n, v in claim.verdicts.items() if v.verdict != "not_applicable"]
    return f"{_named(claim)} ({html.escape(_range(claim, names))}){_missing(claim)}"


def _by_geometry(claim: Claim) -> str:
    told = []
    for kind, verb in _VERBS.items():
        names = [name for name, v in claim.verdicts.items() if v.verdict == kind]
        if names:
            told.append(f"{verb} {_places(names)} ({_range(claim, names)})")
    causes = _causes(claim)
    turns = f" Turns with {_joined(causes)}."
    if not causes:
        turns = " Turns only between geometries that differ in more than one thing."
    return f"{_named(claim)} <i>{html.escape('; '.join(told))}.</i>{turns}{_missing(claim)}"


def _missing(claim: Claim) -> str:
    names = [name for name, v in claim.verdicts.items() if v.verdict == "not_applicable"]
    return f" Nothing to judge on {html.escape(_places(names))}." if names else ""


def _because_it_falls(claims: Sequence[Claim]) -> list[str]:
    """Where claims of how slowly the chosen response rises hold since it falls."""
    names = falling(claims)
    slow = [claim for claim in claims if claim.id in RISES]
    told = [c.id for c in slow if any(_verdict(c, name) == "holds" for name in names)]
    if not told:
        return []
    return [
        f"<p>On {html.escape(_places(names))} the chosen response falls at more than half of the "
        f"starts: where {_joined(told)} hold{'s' * (len(told) == 1)} there, that says "
        "little, since a response that falls does not rise fast.</p>"
    ]


def _only_in_ratios(claims: Sequence[Claim]) -> list[str]:
    """Those that hold where a state is (x1, x2), and nowhere else."""
    family = _FAMILIES[0][1]
    only = [
        claim.id
        for claim in claims
        if all(v.verdict != "holds" for n, v in claim.verdicts.items() if n not in family)
    ]
    if not only:
        return []
    verb = "hold" if len(only) > 1 else "holds"
    return [f"<p>Outside of the ratio planes {_joined(only)} {verb} nowhere.</p>"]


def _places(names: Sequence[str]) -> str:
    """Titles of geometries, whole families by one word."""
    left, told = list(names), []
    for title, family in _FAMILIES:
        if set(family) <= set(left):
            told.append(title)
            left = [name for name in left if name not in family]
    titles = [_TITLES.get(name, name) for name in left]
    kernels = [title.removeprefix(_KERNEL) for title in titles if title.startswith(_KERNEL)]
    told += [f"the {title}" for title in titles if not title.startswith(_KERNEL)]
    if kernels:
        told.append(f"the coupled kernel{'s' * (len(kernels) > 1)} {_joined(kernels)}")
    return _joined(told)


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _range(claim: Claim, names: Sequence[str]) -> str:
    """For each part of a statement its lowest and highest share over some geometries."""
    table = np.array([list(claim.verdicts[name].deciding.values()) for name in names])
    return " / ".join(map(_from_to, table.min(0), table.max(0)))


def _from_to(low: float, high: float) -> str:
    ends = number(low), number(high)
    if ends == ("0", "<0.01"):
        return ends[1]
    if ends[0] == ends[1] or ends == (">0.99", "1"):
        return ends[0]
    return "–".join(ends)


def _slips(claims: Sequence[Claim]) -> Iterable[str]:
    """Statements that do not hold on the plane they were made on, with what decides."""
    for claim in claims:
        own = [name for name in _OWN if _verdict(claim, name) in ("fails", "holds_in_part")]
        if not own:
            continue
        verdict = claim.verdicts[own[0]]
        said = "false" if verdict.verdict == "fails" else "true in part"
        parts = "; ".join(
            f"{name.removeprefix('share_of_').replace('_', ' ')}: {number(value)}"
            for name, value in verdict.deciding.items()
        )
        told = html.escape(f"{said} on {_places(own[:1])}: {parts}.")
        yield f"<a href='#{claim.id}'>{claim.id}</a> {told}"


def _why_the_chosen_falls(
    claims: Sequence[Claim], line: ResponseLine, edits: Sequence[tuple[int, float]]
) -> list[str]:
    told = {name: value for claim in claims for name, value in _evidence(claim, FALLS).items()}
    later = {n: v for claim in claims for n, v in _evidence(claim, _FALLS_LATER).items()}
    sentences = [_where_it_falls(told), _by_the_kernel(claims, told)]
    sentences += [_features(told, later, line), _likeness(edits)]
    return [sentence for sentence in sentences if sentence]


def _evidence(claim: Claim, key: str) -> dict[str, float]:
    return {name: v.evidence[key] for name, v in claim.verdicts.items() if key in v.evidence}


def _where_it_falls(told: dict[str, float]) -> str:
    never = [name for name, value in told.items() if value == 0]
    always = [name for name, value in told.items() if value == 1]
    between = {name: value for name, value in told.items() if 0 < value < 1}
    parts = []
    if never:
        parts.append(f"at none of the starts on {_places(never)}")
    if always:
        parts.append(f"at every start on {_places(always)}")
    parts += [f"at {number(v)} of the starts on {_places([n])}" for n, v in between.items()]
    if not parts:
        return ""
    own = [told[name] for name in _OWN if name in told]
    plane = "On the paper’s plane the question does not come up. " if own and not any(own) else ""
    return html.escape(
        f"{plane}At the start the log-probability of the chosen response falls {'; '.join(parts)}."
    )


def _by_the_kernel(claims: Sequence[Claim], told: dict[str, float]) -> str:
    """Whether it falls just where k_wl > k_ww, and what else moves it where not."""
    agrees = {n: v for claim in claims for n, v in _evidence(claim, _AGREES).items()}
    largest = {n: v for claim in claims for n, v in _evidence(claim, _LARGEST).items()}
    exact = [name for name, value in agrees.items() if value == 1]
    sentences = []
    varied = [name for name in exact if 0 < told.get(name, 0) < 1]
    alike = [name for name in exact if name not in varied]
    if agrees:
        sentences.append(
            "For one pair there is a rule: the chosen response falls just where k_wl, which tells "
            "how far a push on the rejected response moves the chosen one, is larger than k_ww, "
            "which tells how far its own push moves it."
        )
    if varied:
        sentences.append(
            f"On {_places(varied)}, where the chosen falls at some starts and not at others, the "
            "rule is right at every one."
        )
    if alike:
        sentences.append(f"On {_places(alike)} it says the same of all starts, and rightly.")
    for name, value in agrees.items():
        if value == 1:
            continue
        sentence = f"On {_places([name])} the rule is right at {number(value)} of the starts"
        if largest.get(name, np.inf) < 1 and told.get(name, 0) > 0:
            sentence += (
                f": k_wl/k_ww of the pair itself is at most {largest[name]:.2f}, and the chosen "
                f"falls at {number(told[name])} of the starts all the same, moved by the other "
                "pairs of the same responses"
            )
        sentences.append(sentence + ".")
    return html.escape(" ".join(sentences))


def _features(told: dict[str, float], later: dict[str, float], line: ResponseLine) -> str:
    name = "feature_model"
    if name not in told:
        return ""
    sentence = (
        "In the feature model, where read-out and features are both trained, the chosen falls at "
        f"{number(told[name])} of the starts"
    )
    if name in later:
        sentence += (
            f", and at {number(later[name])} of them it is lower at the loss level than it began"
        )
    sentence += "."
    dip = line.dip
    if dip.depth <= 0:
        return sentence + f" From its reference state (β = {line.beta:g}) it does not fall."
    sentence += (
        f" From its reference state (β = {line.beta:g}) it falls by {dip.depth:.2f} nats until "
        f"t = {dip.time:.1f}, while the third response, of which no preference speaks, goes up to "
        f"a probability of {dip.third:.2f}"
    )
    back = "." if np.isnan(dip.recovery) else f"; at t = {dip.recovery:.1f} it is back."
    return html.escape(sentence + back)


def _likeness(edits: Sequence[tuple[int, float]]) -> str:
    if not edits:
        return ""
    (few, close), (many, far) = min(edits), max(edits)
    reaches = max(ratio for _, ratio in edits)
    sentence = (
        f"Likeness of text by itself: two sequences that differ in {few} token{'s' * (few > 1)} "
        f"have k_wl/k_ww = {close:.2f} at a uniform table of tokens, and the chosen is learnt at "
        f"{1 - close:.2f} of the speed that it has alone; with {many} tokens that differ it is "
        f"{far:.2f}.".replace("-", "−")
    )
    if reaches < 1:
        sentence += " There likeness slows the chosen response, and does not make it fall."
    return html.escape(sentence)
