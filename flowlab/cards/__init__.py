"""Dynamics cards: numerical summaries of the flow of a loss."""

from flowlab._names import former_names
from flowlab.cards.approach import Approach
from flowlab.cards.card import REACH, card
from flowlab.cards.comparison import Comparison, compare
from flowlab.cards.critical_sets import CriticalSet
from flowlab.cards.formats import COLUMNS, Card, description, row, table, to_json
from flowlab.cards.lines import Crossing, Traps
from flowlab.cards.regions import Bound, Fall, Plateau

__all__ = [
    "COLUMNS",
    "REACH",
    "Approach",
    "Bound",
    "Card",
    "Comparison",
    "Crossing",
    "CriticalSet",
    "Fall",
    "Plateau",
    "Traps",
    "card",
    "compare",
    "description",
    "row",
    "table",
    "to_json",
]

__getattr__ = former_names(__name__, {"Equilibrium": "CriticalSet"})
