"""The dynamics card of a loss, and its formats: text, tables, JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from flowlab import _tables
from flowlab._names import FormerName
from flowlab.cards.approach import Approach
from flowlab.cards.critical_sets import CriticalSet
from flowlab.cards.lines import Crossing, Traps
from flowlab.cards.regions import Bound, Fall, Plateau
from flowlab.losses import AbstractLoss
from flowlab.policies import LogRatioPlane

__all__ = ["COLUMNS", "Card", "description", "row", "table", "to_json"]

COLUMNS = (
    "loss",
    "L(0)",
    "speed(0)",
    "rests at",
    "margin from (0, 0)",
    "wrong side",
    "chosen falls",
    "conserved",
    "bounded",
)

_KINDS = {
    "constant": "does not move",
    "finite time": "reaches {limit} at t = {number}",
    "exponential": "→ {limit} as e^(−{number}·t)",
    "algebraic": "→ {limit} as t^−{number}",
    "slower than algebraic": "→ slower than algebraically; {limit} when last seen",
    "logarithmic": "{number}·log t",
    "slower than logarithmic": "slower than log t; {limit} when last seen, {number} per log t",
    "power law": "→ {limit} as t^{number}",
    "linear": "{number}·t",
    "accelerating": "→ {limit} faster than t; velocity {number} when last seen",
    "blow-up": "→ {limit} at t = {number}",
    "edge": "ends at {limit} at t = {number}, where the loss is no longer defined",
    "unclear": "unclear",
}


_BOUNDED = {True: "below", False: "no", None: "not told"}


@dataclass(frozen=True)
class Card:
    """A dynamics card: facts about the flow of a loss on the log-ratio plane, u' = −K ∇L.

    Attributes:
        loss: The loss.
        plane: The plane, with its references, lengths and kernel.
        reach: Half the side of the square around the reference point that was searched, nats.
        value: The loss at the reference point.
        gradient: (∂L/∂u_w, ∂L/∂u_l) at the reference point.
        speed: The Euclidean speed at the reference point, in nats per unit of flow time.
        critical_sets: Critical points, lines and regions on the square, the nearest to the
            reference point first.
        approach: Long-run behaviour of the line from the reference point, for "chosen", "rejected"
            and "margin".
        plateau: The slow region where the margin is negative.
        traps: Starts whose margin ends negative.
        fall: The region in which the flow lowers the chosen log-ratio.
        conserved: A quantity that is constant along every flow line, as a formula in u_w and u_l;
            "" if none was found.
        bound: The lower bound of the loss.
        crossings: Crossings of margins 1, 5 and 20 by the line from the reference point.
    """

    loss: AbstractLoss
    plane: LogRatioPlane
    reach: float
    value: float
    gradient: tuple[float, float]
    speed: float
    critical_sets: tuple[CriticalSet, ...]
    approach: dict[str, Approach]
    plateau: Plateau
    traps: Traps
    fall: Fall
    conserved: str
    bound: Bound
    crossings: tuple[Crossing, ...]

    equilibria = FormerName("critical_sets")

    def __repr__(self) -> str:
        """The loss and its plane, on one line."""
        return f"Card({self.loss}, on {self.plane}, within {self.reach:g} nats)"

    def _repr_html_(self) -> str:
        return _tables.html(repr(self), facts(self))

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the phase portrait of the flow; see `flowlab.plots.portrait`.

        Args:
            ax: The matplotlib Axes to draw on; None for new ones.
        """
        from flowlab import plots

        return plots.portrait(self, ax=ax)


def row(name: str, card: Card) -> tuple[str, ...]:
    """A card as one row of a table with the header `COLUMNS`."""
    return (
        name,
        f"{card.value:.4g}",
        f"{card.speed:.4g}",
        "; ".join(map(_short, card.critical_sets)) or "nowhere",
        _long_run(card.approach["margin"]),
        _wrong_side(card),
        _falls(card),
        card.conserved or "—",
        _BOUNDED[card.bound.below],
    )


def table(cards: Mapping[str, Card]) -> str:
    """A table of cards as plain text, with one row per card."""
    return _tables.table([COLUMNS, *(row(name, card) for name, card in cards.items())])


def description(card: Card) -> str:
    """A card as plain text, with one fact per line."""
    return _tables.table(facts(card))


def facts(card: Card) -> list[tuple[str, str]]:
    """A card as pairs of a name and a fact, both as text."""
    return [
        ("loss", repr(card.loss)),
        ("plane", _stated(card)),
        ("at u = (0, 0)", _reference(card)),
        ("rests at", "; ".join(map(_long, card.critical_sets)) or "nowhere within reach"),
        *((f"{name}, long run", _long_run(card.approach[name])) for name in card.approach),
        ("plateaus", _plateaus(card)),
        ("traps", _traps(card)),
        ("chosen falls", _falls(card)),
        ("conserved", card.conserved or "nothing found"),
        ("bounded below", _bounded(card)),
        *((f"at margin {c.margin:g}", _crossed(c.time, c.u_chosen)) for c in card.crossings),
    ]


def to_json(cards: Mapping[str, Card]) -> list[dict[str, Any]]:
    """Cards as JSON-ready dictionaries, with None for missing values."""
    return [{"name": name, **_jsonable(_record(card))} for name, card in cards.items()]


def _record(card: Card) -> dict[str, Any]:
    parts = ("critical_sets", "approach", "plateau", "traps", "fall", "bound", "crossings")
    plane = {
        f.metadata.get("argument", f.name): np.asarray(getattr(card.plane, f.name)).tolist()
        for f in fields(card.plane)
        if f.name not in ("domain", "wall")
    }
    record: dict[str, Any] = {"loss": repr(card.loss), "plane": plane, "reach": card.reach}
    record |= {name: getattr(card, name) for name in ("value", "gradient", "speed", "conserved")}
    for name in parts:
        part = getattr(card, name)
        if isinstance(part, dict):
            record[name] = {key: asdict(item) for key, item in part.items()}
        elif isinstance(part, tuple):
            record[name] = [
                {key: value for key, value in asdict(item).items() if key != "path"}
                for item in part
            ]
        else:
            record[name] = asdict(part)
    return record


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _stated(card: Card) -> str:
    plane = card.plane
    kernel = np.asarray(plane.matrix).tolist()
    chosen, rejected, chosen_length, rejected_length = (
        f"{np.asarray(value):g}"
        for value in (
            plane.ref_chosen,
            plane.ref_rejected,
            plane.chosen_length,
            plane.rejected_length,
        )
    )
    offset = "" if plane.offset is None else f", offset {np.asarray(plane.offset):g}"
    return (
        f"log-ratio plane, kernel {kernel}, references {chosen} and {rejected} nats, lengths "
        f"{chosen_length} and {rejected_length} tokens{offset}, |u_w|, |u_l| ≤ {card.reach:g}"
    )


def _reference(card: Card) -> str:
    chosen, rejected = card.gradient
    return (
        f"L = {card.value:.6g}, ∂L/∂u_w = {chosen:.6g}, ∂L/∂u_l = {rejected:.6g}, "
        f"speed {card.speed:.6g}"
    )


def _short(rest: CriticalSet) -> str:
    return f"{rest.stability} {rest.kind} {_place(rest)}"


def _long(rest: CriticalSet) -> str:
    rates = "" if rest.kind == "region" else f", rates {rest.rates[0]:.4g} and {rest.rates[1]:.4g}"
    return f"{_short(rest)}{rates}"


def _place(rest: CriticalSet) -> str:
    chosen, rejected = rest.position
    if rest.kind == "line" and rest.margin is not None:
        return f"h = {rest.margin:.4g}"
    point = f"({chosen:.4g}, {rejected:.4g})"
    return point if rest.kind == "point" else f"from {point}"


def _long_run(approach: Approach) -> str:
    number, limit = f"{approach.number:.4g}", f"{approach.limit:.4g}"
    return _KINDS[approach.kind].format(number=number, limit=limit)


def _wrong_side(card: Card) -> str:
    parts = []
    if card.traps.reference:
        parts.append(f"trap from (0, 0), h → {card.traps.reference_margin:.3g}")
    elif card.traps.fraction > 0:
        parts.append(f"trap, {card.traps.fraction:.0%}")
    if card.plateau.fraction > 0:
        parts.append(f"plateau from {card.plateau.distance:.0f} nats")
    return "; ".join(parts) or "—"


def _plateaus(card: Card) -> str:
    if card.plateau.fraction == 0:
        return "none on the wrong side"
    return (
        f"{card.plateau.fraction:.0%} of the wrong side, from {card.plateau.distance:.3g} nats on; "
        f"{card.traps.stuck:.0%} of the starts were still on it when last seen"
    )


def _traps(card: Card) -> str:
    if card.traps.reference:
        return (
            f"(0, 0) itself, which goes to h = {card.traps.reference_margin:.4g}; "
            f"{card.traps.fraction:.0%} of the starts"
        )
    return f"{card.traps.fraction:.0%} of the starts, not (0, 0)" if card.traps.fraction else "none"


def _falls(card: Card) -> str:
    if not card.fall.where:
        return "nowhere"
    return f"{card.fall.where} ({card.fall.fraction:.0%})"


def _bounded(card: Card) -> str:
    if card.bound.below is False:
        return "no"
    answer = "yes" if card.bound.below else "not told"
    return f"{answer}, lowest value seen {card.bound.lowest:.4g}"


def _crossed(time: float, chosen: float) -> str:
    return "not reached" if math.isnan(time) else f"t = {time:.6g}, u_w = {chosen:.6g}"
