"""Names that have changed are answered with the new ones, for one release."""

import dataclasses

import pytest

from flowlab import cards, displacement, measures, starts
from flowlab.cards import Card, CriticalSet, Fall, Plateau, Traps
from flowlab.critical import Branch, CriticalPoint, Event, Plateaus, Slowdown
from flowlab.potentials import KnownPoint


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (cards, "Equilibrium", "CriticalSet"),
        (displacement, "rates", "explain"),
        (measures, "AbstractMeasure", "Measure"),
        (starts, "latin_hypercube", "latin"),
    ],
)
def test_the_old_name_of_a_function_or_class_is_answered_with_the_new_one(module, old, new):
    assert new in module.__all__
    with pytest.raises(AttributeError, match=rf"{module.__name__}\.{old} is now .*\.{new}$"):
        getattr(module, old)
    with pytest.raises(AttributeError, match="has no attribute 'never_there'"):
        _ = module.never_there


@pytest.mark.parametrize(
    ("owner", "old", "new"),
    [
        (Branch, "places", "positions"),
        (Card, "equilibria", "critical_sets"),
        (CriticalPoint, "place", "position"),
        (CriticalSet, "place", "position"),
        (Event, "place", "position"),
        (Fall, "share", "fraction"),
        (KnownPoint, "place", "position"),
        (Plateau, "share", "fraction"),
        (Plateaus, "share", "fraction"),
        (Slowdown, "places", "positions"),
        (Traps, "share", "fraction"),
    ],
)
def test_the_old_name_of_an_attribute_is_answered_with_the_new_one(owner, old, new):
    names = {field.name for field in dataclasses.fields(owner)}
    assert old not in names
    assert new in names or isinstance(getattr(owner, new), property)
    with pytest.raises(AttributeError, match=rf"^{owner.__name__}\.{old} is now .*\.{new}$"):
        getattr(object.__new__(owner), old)
