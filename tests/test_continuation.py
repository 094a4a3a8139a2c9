"""Critical points over a parameter: normal forms of bifurcations, and a loss's own target."""

import importlib
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from flowlab import Flow, LogRatioPlane, preference_flow
from flowlab.critical import Continuation, continuation, critical_points
from flowlab.critical.branch_tracking import Follower
from flowlab.domains import Box
from flowlab.losses import IPO

VALUES = np.linspace(-1.05, 1, 9)  # none of them 0, where things happen
REGION = [(-2.0, 2.0), (-1.0, 1.0)]
SHARP = 1e-9  # how well a value is known


class Polynomial(eqx.Module):
    """Σ_k (fixed_k + λ moving_k) y0^k / k + stiffness y1²/2: one compiled program for all of these.

    λ is called strength. Where side·λ is beyond the jump the sum is y0 alone.
    """

    fixed: np.ndarray
    moving: np.ndarray
    stiffness: np.ndarray = eqx.field(default=1.0, converter=np.asarray)
    jump: np.ndarray = eqx.field(default=np.inf, converter=np.asarray)
    side: np.ndarray = eqx.field(default=1.0, converter=np.asarray)
    strength: np.ndarray = eqx.field(default=0.0, converter=np.asarray)

    def __call__(self, state: Float[Array, " 2"]) -> Float[Array, ""]:
        x, y = state
        factors = jnp.asarray(self.fixed) + self.strength * jnp.asarray(self.moving)
        powers = (x, x**2 / 2, x**3 / 3, x**4 / 4)
        curve = sum(factors[k] * power for k, power in enumerate(powers))
        curve = jnp.where(self.side * self.strength > self.jump, x, curve)
        return curve + self.stiffness * y**2 / 2


def polynomial(fixed: tuple[float, ...], moving: tuple[float, ...], **changes: float) -> Flow:
    return Flow(Polynomial(np.array(fixed, float), np.array(moving, float), **changes))


PITCHFORK = polynomial((0, 0, 0, 1), (0, -1, 0, 0))  # a minimum, from 0 on two at ±√λ and a saddle
FOLD = polynomial((0, 0, 1, 0), (-1, 0, 0, 0))  # nothing, from 0 on a minimum and a saddle at ±√λ

MOVING = polynomial((0, 1, 0, 0), (-1, 0, 0, 0))  # a minimum at λ


def followed(flow: Flow, values: np.ndarray = VALUES) -> Continuation:
    return continuation(flow, "strength", values, REGION, starts=64)


@pytest.fixture(scope="module")
def pitchfork() -> Continuation:
    return followed(PITCHFORK)


@pytest.fixture(scope="module")
def fold() -> Continuation:
    return followed(FOLD)


def told(found: Continuation) -> list[tuple[str, str, str]]:
    return sorted((event.what, event.before, event.after) for event in found.events)


def check_values(found: Continuation, value: float, room: float = SHARP) -> None:
    """That all happens at a value, as near as is said, and that this is near."""
    for event in found.events:
        assert abs(event.value - value) <= max(event.within, 1e-11)
        assert event.within < room


def test_a_pitchfork_changes_the_index_of_one_point_and_makes_two(pitchfork: Continuation) -> None:
    assert len(pitchfork.branches) == 3
    assert told(pitchfork) == [
        ("appears", "", "minimum"),
        ("appears", "", "minimum"),
        ("changes index", "minimum", "saddle of index 1"),
    ]
    check_values(pitchfork, 0)


@pytest.mark.exhaustive
def test_a_pitchfork_the_other_way_keeps_the_middle_and_ends_the_sides() -> None:
    found = followed(polynomial((0, 0, 0, 1), (0, 1, 0, 0)))
    assert told(found) == [
        ("changes index", "saddle of index 1", "minimum"),
        ("vanishes", "minimum", ""),
        ("vanishes", "minimum", ""),
    ]
    check_values(found, 0)
    (middle,) = [branch for branch in found.branches if len(branch.values) == len(VALUES)]
    assert np.allclose(middle.positions, 0, atol=1e-12)


@pytest.mark.exhaustive
def test_a_pitchfork_with_a_stiff_direction_beside_it_turns_at_the_same_value() -> None:
    found = followed(polynomial((0, 0, 0, 1), (0, -1, 0, 0), stiffness=1e5))
    assert [what for what, _, _ in told(found)] == ["appears", "appears", "changes index"]
    check_values(found, 0, room=1e-7)  # rounding is that of the stiff direction


@pytest.mark.exhaustive
def test_a_pitchfork_at_a_value_of_the_list_happens_there() -> None:
    found = followed(PITCHFORK, np.linspace(-1, 1, 5))
    assert [what for what, _, _ in told(found)] == ["appears", "appears", "changes index"]
    check_values(found, 0)


@pytest.mark.exhaustive
def test_a_tilted_pitchfork_keeps_its_minimum_and_adds_a_fold_beside_it() -> None:
    tilt = 0.01
    found = followed(polynomial((tilt, 0, 0, 1), (0, -1, 0, 0)))
    assert told(found) == [("appears", "", "minimum"), ("appears", "", "saddle of index 1")]
    check_values(found, 3 * (tilt / 2) ** (2 / 3))
    whole = [branch for branch in found.branches if len(branch.values) == len(VALUES)]
    assert [set(branch.kind) for branch in whole] == [{"minimum"}]


def test_two_points_that_cross_exchange_their_indices() -> None:
    found = followed(polynomial((0, 0, 1, 0), (0, -1, 0, 0)))  # at 0 and at λ
    assert told(found) == [
        ("changes index", "minimum", "saddle of index 1"),
        ("changes index", "saddle of index 1", "minimum"),
    ]
    check_values(found, 0)
    ends = sorted(tuple(branch.positions[[0, -1], 0].round(9)) for branch in found.branches)
    assert ends == [(-1.05, 1.0), (0.0, 0.0)]


def test_a_point_that_moves_far_from_value_to_value_stays_one_branch() -> None:
    found = followed(MOVING, np.array([-1.5, -0.5, 0.5, 1.5]))
    (branch,) = found.branches
    assert found.events == ()
    assert np.allclose(branch.positions[:, 0], branch.values, atol=1e-12)


@pytest.mark.exhaustive
def test_a_point_that_leaves_the_region_or_enters_it_makes_no_event() -> None:
    found = followed(MOVING, np.array([-3.0, -1.0, 1.0, 3.0]))
    (branch,) = found.branches
    assert found.events == ()
    assert list(branch.values) == [-1.0, 1.0]
    assert (branch.enters, branch.leaves) == (True, True)
    assert str(found).endswith("-1 to 1; enters the region; leaves the region")
    far = followed(polynomial((0, -6, 1, 0), (-1, 0, 0, 0)), np.array([-10.0, -5.0, 0.0]))
    (branch,) = far.branches  # at 3 - √(9 + λ), from a fold at 3 on, and back
    assert far.events == ()
    assert (branch.enters, branch.leaves) == (True, False)
    assert np.allclose(branch.positions[:, 0], [1, 0], atol=1e-12)


def test_a_point_that_a_search_misses_stays_on_its_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("flowlab.critical.continuation")
    search = module.critical_points

    def blind(flow: Any, *rest: Any, **options: Any) -> Any:
        return () if flow.function.strength in (-1.5, 0.5) else search(flow, *rest, **options)

    monkeypatch.setattr(module, "critical_points", blind)
    found = followed(MOVING, np.array([-1.5, -0.5, 0.5, 1.5]))
    (branch,) = found.branches
    assert found.events == ()
    assert np.allclose(branch.positions[:, 0], [-1.5, -0.5, 0.5, 1.5], atol=1e-12)


def test_a_point_that_ends_without_a_reason_is_lost() -> None:
    found = followed(polynomial((0, 1, 0, 0), (0, 0, 0, 0), jump=0.0), VALUES[3:6])
    assert told(found) == [("is lost", "minimum", "")]
    check_values(found, 0)
    back = polynomial((0, 1, 0, 0), (0, 0, 0, 0), jump=0.0, side=-1.0)
    assert told(followed(back, VALUES[3:6])) == [("is lost", "", "minimum")]


def test_a_degenerate_point_and_a_line_are_linked_to_the_nearest_of_their_kind() -> None:
    point = followed(polynomial((0, 0, 0, 1), (0, 0, 0, 0)), VALUES[:3])
    assert [set(branch.kind) for branch in point.branches] == [{"degenerate"}]
    assert point.events == ()
    line = followed(polynomial((0, 0, 0, 0), (0, 0, 0, 0), jump=0.0), VALUES[3:6])
    assert told(line) == [("vanishes", "line of minima", "")]
    (event,) = line.events
    assert event.value == pytest.approx((VALUES[4] + VALUES[5]) / 2)
    assert event.within == pytest.approx((VALUES[5] - VALUES[4]) / 2)
    assert "strength = 0.103125 ± 0.13: line of minima vanishes" in str(line)


def test_branches_follow_the_closed_form(pitchfork: Continuation, fold: Continuation) -> None:
    for found in (pitchfork, fold):
        for branch in found.branches:
            moving = np.abs(branch.positions[:, 0]) > 1e-6
            exact = np.sqrt(np.maximum(branch.values[moving], 0))
            assert np.allclose(np.abs(branch.positions[moving, 0]), exact, atol=1e-12)
            assert np.allclose(branch.positions[:, 1], 0, atol=1e-12)


def test_a_fold_makes_a_minimum_and_a_saddle_at_one_value(fold: Continuation) -> None:
    assert told(fold) == [("appears", "", "minimum"), ("appears", "", "saddle of index 1")]
    check_values(fold, 0)
    for event in fold.events:
        assert np.allclose(event.position, 0, atol=1e-4)


@pytest.mark.exhaustive
def test_a_fold_the_other_way_vanishes() -> None:
    found = followed(polynomial((0, 0, 1, 0), (1, 0, 0, 0)))
    assert [event.what for event in found.events] == ["vanishes", "vanishes"]
    check_values(found, 0)


class Walled(eqx.Module):
    """A pitchfork along the wall y0 = 1 at λ = 0, a minimum at λ beside it, or a slope to a corner.

    The last leads to the corner (1, 1) where λ is positive.
    """

    shares: np.ndarray
    strength: np.ndarray = eqx.field(default=0.0, converter=np.asarray)

    def __call__(self, state: Float[Array, " 2"]) -> Float[Array, ""]:
        y = state[1] - 0.5
        kinds = (
            y**4 / 4 - self.strength * y**2 / 2 - state[0],
            (state[0] - self.strength) ** 2 / 2 + y**2 / 2,
            -state[0] - self.strength * state[1],
        )
        return sum(jnp.asarray(self.shares)[k] * kind for k, kind in enumerate(kinds))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        pytest.param(
            0,
            0.0,
            [
                ("appears", "", "minimum on y0 = 1"),
                ("appears", "", "minimum on y0 = 1"),
                ("changes index", "minimum on y0 = 1", "maximum on y0 = 1"),
            ],
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            *(1, 1.0, [("appears", "", "minimum on y0 = 1"), ("vanishes", "minimum", "")]),
            marks=pytest.mark.exhaustive,
        ),
        (2, 0.0, [("appears", "", "minimum on y0 = 1 and y1 = 1")]),
    ],
)
def test_what_happens_on_a_wall_and_at_it_is_located_too(
    kind: int, value: float, wanted: list[tuple[str, str, str]]
) -> None:
    flow = Flow(Walled(np.eye(3)[kind]), domain=Box(1.0, 1.0))
    values = value + np.array([-0.4, -0.15, 0.11, 0.2])
    found = continuation(flow, "strength", values, [(0.01, 1.0), (0.01, 1.0)], starts=64)
    assert told(found) == wanted
    check_values(found, value)


@pytest.mark.exhaustive
def test_a_point_on_a_wall_has_the_rates_of_the_search_wherever_it_was_followed_to() -> None:
    metric = np.array([[1.0, 0.5], [0.5, 1.0]])
    flow = Flow(
        Walled(np.eye(3)[0]), domain=Box(1.0, 1.0), wall="slide", metric=lambda y, p: metric @ p
    )
    region = np.array([(0.01, 1.0), (0.01, 1.0)])
    at = {
        v: critical_points(flow.with_parameter("strength", v), region).points for v in (-0.3, -0.2)
    }
    (first,), (second,) = at.values()
    segment = Follower(flow, "strength", region).segment(-0.3, first, -0.2)
    assert segment is not None
    assert first.on
    assert segment.described(-1).rates == pytest.approx(second.rates)


@pytest.mark.exhaustive
def test_the_line_of_minima_of_ipo_moves_with_its_target() -> None:
    flow = preference_flow(IPO(1.0), LogRatioPlane())
    found = continuation(flow, "beta", [0.25, 0.5, 1.0, 2.0], [(-80, 80), (-80, 80)], starts=64)
    (branch,) = found.branches
    assert found.events == ()
    margins = branch.positions[:, 0] - branch.positions[:, 1]
    assert np.allclose(margins * branch.values, margins[-1] * branch.values[-1])


def test_rows_and_words_tell_of_every_branch(fold: Continuation) -> None:
    rows = fold.to_rows()
    assert len(rows) == sum(len(branch.values) for branch in fold.branches)
    assert {"strength", "branch", "component_0", "name", "index", "rates"} <= set(rows[0])
    assert "appears" in str(fold)


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [[1.0, 2.0]]])
def test_values_must_increase(values: list[float]) -> None:
    with pytest.raises(ValueError, match="`values` must hold increasing numbers"):
        continuation(FOLD, "strength", values, REGION)


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(ValueError, match="^Argument `parameter` must name .*`strength`"):
        continuation(FOLD, "slope", VALUES, REGION)


class Turned(eqx.Module):
    """A normal form of a bifurcation at λ = 0, in coordinates that are turned, shifted and scaled.

    The state is origin + scale · R z; the forms are of z, of which the first two components take
    part: a pitchfork (λ z0² / 2 + z0⁴ / 4), a crossing (z0³ / 3 − λ z0² / 2), a fold
    (z0³ / 3 − λ z0), both curvatures through 0 at once (λ (z0² + z1²) / 2), the second 0.1 later,
    a parabola λ z0² / 2, which is a line of minima at 0, and z0³ / 3 + λ² z0, a point at 0 alone.
    """

    shares: np.ndarray
    turn: np.ndarray
    origin: np.ndarray
    scale: np.ndarray
    strength: np.ndarray = eqx.field(default=0.0, converter=np.asarray)

    def __call__(self, state: Float[Array, " d"]) -> Float[Array, ""]:
        z = jnp.asarray(self.turn).T @ (state - jnp.asarray(self.origin)) / self.scale
        a, b, strength = z[0], z[1], self.strength
        forms = (
            strength * a**2 / 2 + a**4 / 4 + b**2 / 2,
            a**3 / 3 - strength * a**2 / 2 + b**2 / 2,
            a**3 / 3 - strength * a + b**2 / 2,
            strength * (a**2 + b**2) / 2,
            (strength * a**2 + (strength - 0.1) * b**2) / 2,
            strength * a**2 / 2 + b**2 / 2,
            a**3 / 3 + strength**2 * a + b**2 / 2,
        )
        return jnp.asarray(self.shares) @ jnp.stack(forms) + jnp.sum(z[2:] ** 2) / 2


FORMS = ("pitchfork", "crossing", "fold", "both", "two", "line", "moment")
SAMPLED = np.array([-0.6, -0.3, 0.0, 0.45, 0.6])  # 0, where it happens, is one of them


def normal_form(name: str, values: np.ndarray = SAMPLED, size: int = 2) -> Continuation:
    angle = 0.7
    turn = np.eye(size)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    if size > 2:
        turn = turn @ np.array([[0.0, 0, 1], [0.6, 0.8, 0], [-0.8, 0.6, 0]])
    origin = np.array([31.0, -17.0, 5.0])[:size]
    shares = np.array([float(form == name) for form in FORMS])
    flow = Flow(Turned(shares, turn, origin, np.asarray(10.0)))
    region = np.stack([origin - 20.5, origin + 19.5], axis=1)
    return continuation(flow, "strength", values, region, starts=64)


def kinds(found: Continuation) -> list[list[str]]:
    return sorted([name for name, _, _ in branch.stretches] for branch in found.branches)


SADDLE, POINT = "saddle of index 1", "degenerate point"
WANTED: dict[str, tuple[list[tuple[str, str, str]], list[list[str]]]] = {
    "pitchfork": (
        [
            ("changes index", SADDLE, "minimum"),
            ("vanishes", "minimum", ""),
            ("vanishes", "minimum", ""),
        ],
        [["minimum", POINT], ["minimum", POINT], [SADDLE, POINT, "minimum"]],
    ),
    "crossing": (
        [("changes index", "minimum", SADDLE), ("changes index", SADDLE, "minimum")],
        [["minimum", POINT, SADDLE], [SADDLE, POINT, "minimum"]],
    ),
    "fold": (
        [("appears", "", "minimum"), ("appears", "", SADDLE)],
        [[POINT, "minimum"], [POINT, SADDLE]],
    ),
    "line": (
        [("changes index", SADDLE, "minimum")],
        [[SADDLE, "line of minima", "minimum"]],
    ),
    "moment": ([("appears", "", POINT), ("vanishes", POINT, "")], [[POINT]]),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", WANTED)
def test_what_happens_at_a_value_of_the_list_happens_as_between_two(name: str) -> None:
    found = normal_form(name)
    events, stretches = WANTED[name]
    assert told(found) == events
    assert kinds(found) == stretches
    # Nothing leads to a point of one value alone: how near is told by the values beside it.
    check_values(found, 0, 0.5 if name == "moment" else SHARP)


@pytest.mark.exhaustive
def test_two_curvatures_that_vanish_at_once_are_one_change_and_those_apart_are_two() -> None:
    found = {name: normal_form(name, np.array([-0.13, 0.2]), size=3) for name in ("both", "two")}
    (at_once,) = found["both"].events
    assert (at_once.before, at_once.after) == ("saddle of index 2", "minimum")
    assert abs(at_once.value) < SHARP
    assert [(event.before, event.after) for event in found["two"].events] == [
        ("saddle of index 2", SADDLE),
        (SADDLE, "minimum"),
    ]
    assert np.allclose([event.value for event in found["two"].events], [0, 0.1], atol=SHARP)


@pytest.mark.exhaustive
def test_what_happens_at_the_first_or_last_value_is_told_of() -> None:
    first = normal_form("pitchfork", np.array([0.0, 0.5]))
    assert first.events == ()
    assert kinds(first) == [[POINT, "minimum"]]
    last = normal_form("pitchfork", np.array([-0.5, 0.0]))
    assert told(last) == [("vanishes", "minimum", "")] * 2
    assert kinds(last) == [["minimum", POINT], ["minimum", POINT], [SADDLE, POINT]]
    check_values(last, 0)


def test_words_give_a_branch_a_kind_for_each_stretch(pitchfork: Continuation) -> None:
    assert "minimum, strength -1.05 to -0.025; saddle of index 1, strength 0.23125 to 1" in str(
        pitchfork
    )


class Branching(eqx.Module):
    """λ y0 to the second, or the fourth, of which Python chooses by λ."""

    strength: float = 1.0

    def __call__(self, state: Float[Array, " 1"]) -> Float[Array, ""]:
        return state[0] ** 2 if self.strength < 5 else state[0] ** 4 - state[0] ** 2


@pytest.mark.exhaustive
def test_a_potential_in_which_python_looks_at_the_parameter_is_followed_too() -> None:
    found = continuation(Flow(Branching()), "strength", [1.0, 2.0], [(-2.0, 2.1)], starts=8)
    assert kinds(found) == [["minimum"]]


class Bowl(eqx.Module):
    """λ y0² / 2, with a count of how often it is traced."""

    strength: float = 1.0
    traced: ClassVar[list[int]] = []

    def __call__(self, state: Float[Array, " 1"]) -> Float[Array, ""]:
        self.traced.append(1)
        return self.strength * state[0] ** 2 / 2


def test_no_program_is_compiled_for_another_value_of_the_parameter() -> None:
    options: dict[str, Any] = dict(region=[(-2.0, 2.1)], starts=8)
    continuation(Flow(Bowl()), "strength", [1.0, 2.0], **options)
    cold = len(Bowl.traced)
    continuation(Flow(Bowl()), "strength", [1.1, 1.5, 2.2, 3.1], **options)
    # What is left are looks at shapes, when arguments are checked, and one at what it computes now.
    assert len(Bowl.traced) - cold <= 7 < cold
