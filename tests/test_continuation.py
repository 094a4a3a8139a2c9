"""Critical points over a parameter: normal forms of bifurcations, and a loss's own target."""

import equinox as eqx
import numpy as np
import pytest
from jaxtyping import Array, ArrayLike, Float

from flowlab import Flow, LogRatioPlane, preference_flow
from flowlab.critical import Continuation, continuation
from flowlab.losses import IPO

VALUES = np.linspace(-1.05, 1, 9)  # none of them 0, where things happen
REGION = [(-2.0, 2.0), (-1.0, 1.0)]


class Pitchfork(eqx.Module):
    """y0⁴/4 − λ y0²/2 + y1²/2: one minimum at 0 until λ = 0, two at ±√λ and a saddle beyond."""

    strength: Float[ArrayLike, ""]

    def __init__(self, strength: float = 0.0) -> None:
        self.strength = np.asarray(strength, float)

    def __call__(self, state: Float[Array, " 2"]) -> Float[Array, ""]:
        return state[0] ** 4 / 4 - self.strength * state[0] ** 2 / 2 + state[1] ** 2 / 2


class Fold(eqx.Module):
    """y0³/3 − λ y0 + y1²/2: nothing until λ = 0, a minimum and a saddle at ±√λ beyond."""

    strength: Float[ArrayLike, ""]

    def __init__(self, strength: float = 0.0) -> None:
        self.strength = np.asarray(strength, float)

    def __call__(self, state: Float[Array, " 2"]) -> Float[Array, ""]:
        return state[0] ** 3 / 3 - self.strength * state[0] + state[1] ** 2 / 2


@pytest.fixture(scope="module")
def pitchfork() -> Continuation:
    return continuation(Flow(Pitchfork()), "strength", VALUES, REGION)


@pytest.fixture(scope="module")
def fold() -> Continuation:
    return continuation(Flow(Fold()), "strength", VALUES, REGION)


def test_a_pitchfork_changes_the_index_of_one_point_and_makes_two(pitchfork: Continuation) -> None:
    assert len(pitchfork.branches) == 3
    assert sorted(event.what for event in pitchfork.events) == [
        "appears",
        "appears",
        "changes index",
    ]
    (turning,) = [event for event in pitchfork.events if event.what == "changes index"]
    assert (turning.before, turning.after) == ("minimum", "saddle of index 1")
    assert turning.value == pytest.approx(0, abs=1e-4)
    for event in pitchfork.events:
        assert event.value == pytest.approx(0, abs=1e-4)


def test_branches_follow_the_closed_form(pitchfork: Continuation, fold: Continuation) -> None:
    for found in (pitchfork, fold):
        for branch in found.branches:
            moving = np.abs(branch.places[:, 0]) > 1e-6
            exact = np.sqrt(np.maximum(branch.values[moving], 0))
            assert np.allclose(np.abs(branch.places[moving, 0]), exact, atol=1e-12)
            assert np.allclose(branch.places[:, 1], 0, atol=1e-12)


def test_a_fold_makes_a_minimum_and_a_saddle_at_one_value(fold: Continuation) -> None:
    assert [event.what for event in fold.events] == ["appears", "appears"]
    assert sorted(event.after for event in fold.events) == ["minimum", "saddle of index 1"]
    for event in fold.events:
        assert event.value == pytest.approx(0, abs=1e-4)
        assert np.allclose(event.place, 0, atol=1e-2)


def test_a_fold_the_other_way_vanishes() -> None:
    class Back(Fold):
        def __call__(self, state: Float[Array, " 2"]) -> Float[Array, ""]:
            return state[0] ** 3 / 3 + self.strength * state[0] + state[1] ** 2 / 2

    found = continuation(Flow(Back(0.0)), "strength", VALUES, REGION)
    assert [event.what for event in found.events] == ["vanishes", "vanishes"]
    assert all(event.value == pytest.approx(0, abs=1e-4) for event in found.events)


def test_the_line_of_minima_of_ipo_moves_with_its_target() -> None:
    flow = preference_flow(IPO(1.0), LogRatioPlane())
    found = continuation(flow, "beta", [0.25, 0.5, 1.0, 2.0], [(-80, 80), (-80, 80)], starts=64)
    (branch,) = found.branches
    assert found.events == ()
    margins = branch.places[:, 0] - branch.places[:, 1]
    assert np.allclose(margins * branch.values, margins[-1] * branch.values[-1])


def test_rows_and_words_tell_of_every_branch(fold: Continuation) -> None:
    rows = fold.to_rows()
    assert len(rows) == sum(len(branch.values) for branch in fold.branches)
    assert {"strength", "branch", "component_0", "name", "index", "rates"} <= set(rows[0])
    assert "appears" in str(fold)


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [[1.0, 2.0]]])
def test_values_must_increase(values: list[float]) -> None:
    with pytest.raises(ValueError, match="`values` must hold increasing numbers"):
        continuation(Flow(Fold()), "strength", values, REGION)


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(ValueError, match="strength"):
        continuation(Flow(Fold()), "slope", VALUES, REGION)
