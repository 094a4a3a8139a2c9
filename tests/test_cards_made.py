"""Cards of losses, planes and hyper-parameters that are not those of the catalogue; their texts."""

import json
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import wrightomega

import flowlab
from flowlab import cards, until
from flowlab.cards.critical_sets import find
from flowlab.cards.plane import Plane
from flowlab.cards.regions import bound, fall
from flowlab.losses import (
    AOT,
    DPO,
    EXO,
    IPO,
    NCA,
    SFT,
    AbstractLoss,
    ConservativeDPO,
    DiscoPOP,
    Hinge,
    SummedIPO,
    WeightedSum,
)
from flowlab.policies import CoupledKernel, LogRatioPlane, RatioPlane


class Hyperbola(AbstractLoss):
    """√(1 + h²) − h, whose slope tends to −½h⁻² on the right side and to −2 on the wrong one."""

    def __call__(self, pairs):
        return jnp.sqrt(1 + pairs.margin**2) - pairs.margin


class Saddle(AbstractLoss):
    """½(u_w − 3)² − ½·4·(u_l − 2)²: one isolated saddle, no bound."""

    def __call__(self, pairs):
        return (pairs.u_chosen - 3) ** 2 / 2 - 2 * (pairs.u_rejected - 2) ** 2


class Fourth(AbstractLoss):
    """(h − 5)⁴, with a degenerate minimum."""

    def __call__(self, pairs):
        return (pairs.margin - 5) ** 4


class Ramp(AbstractLoss):
    """A ramp from h = −5 to 5 between two flats, one of them on the wrong side."""

    def __call__(self, pairs):
        return -jnp.clip(pairs.margin, -5, 5)


class Bowl(AbstractLoss):
    """½k(u_w² + u_l²): rests at the reference point itself."""

    k: float

    def __call__(self, pairs):
        return (
            jnp.asarray(self.k, pairs.chosen.dtype) * (pairs.u_chosen**2 + pairs.u_rejected**2) / 2
        )


def plane(loss, reach=cards.REACH, space=None):
    """What the parts of a card look at that follow no line."""
    return Plane(flowlab.preference_flow(loss, space or LogRatioPlane()), reach)


def rests(loss, reach=cards.REACH, space=None):
    """Where a flow rests, as a card finds it, but without the ends of lines as guesses."""
    searched = plane(loss, reach, space)
    return find(searched, np.concatenate([searched.rings(), searched.square(25)]))


@pytest.fixture(scope="module")
def hyperbola():
    return cards.card(Hyperbola())


def test_a_loss_written_by_a_user_gets_value_flow_sweep_and_card(hyperbola):
    flow = flowlab.preference_flow(Hyperbola(), LogRatioPlane())
    start = np.array([[0.3, -0.4]])
    np.testing.assert_allclose(flow.potential(start[0]), np.sqrt(1.49) - 0.7, rtol=1e-12)
    runs = flowlab.sweep(flow, start, until=until.time(2.0), rtol=1e-9, progress=False)
    np.testing.assert_allclose(runs.end[0].sum(), -0.1, rtol=1e-8)
    assert (hyperbola.value, hyperbola.gradient) == (1, (-1, 1))
    assert hyperbola.critical_sets == ()
    assert hyperbola.conserved == "u_w + u_l"
    # h' ~ h⁻², so that h ~ (3t)^{1/3}.
    assert hyperbola.approach["margin"].kind == "power law"
    np.testing.assert_allclose(hyperbola.approach["margin"].number, 1 / 3, rtol=0.01)
    assert hyperbola.fall.where == ""
    assert hyperbola.bound.below
    assert (hyperbola.plateau.fraction, hyperbola.traps.fraction) == (0, 0)


@pytest.mark.exhaustive
def test_an_isolated_saddle_is_found_and_called_one():
    found = cards.card(Saddle(), reach=10)
    (rest,) = found.critical_sets
    assert (rest.kind, rest.stability) == ("point", "saddle")
    np.testing.assert_allclose(rest.position, (3, 2), rtol=1e-9)
    np.testing.assert_allclose(rest.rates, (-4, 1), rtol=1e-9)
    assert rest.rate == pytest.approx(1)
    assert not found.bound.below
    assert found.fall.where == "u_w > 3"
    # u_l = 2 − 2e^{4t} leaves, as far as there are numbers; u_w = 3 − 3e^{−t} stays.
    assert found.approach["rejected"].kind == "accelerating"
    np.testing.assert_allclose(found.approach["chosen"].limit, 3, rtol=1e-6)


@pytest.mark.exhaustive
def test_a_minimum_of_fourth_order_is_approached_algebraically():
    found = cards.card(Fourth())
    (rest,) = found.critical_sets
    assert rest.kind == "line"
    assert rest.margin == pytest.approx(5, rel=1e-6)
    # (h − 5)' = −8(h − 5)³, so that h − 5 ~ (16t)^{−1/2}.
    approach = found.approach["margin"]
    assert approach.kind == "algebraic"
    np.testing.assert_allclose(approach.number, 0.5, rtol=1e-3)
    np.testing.assert_allclose(approach.limit, 5, rtol=1e-4)


@pytest.mark.exhaustive
def test_a_flat_wrong_side_is_a_trap_of_zero_gradient():
    found = cards.card(Ramp())
    assert found.traps.fraction == pytest.approx(np.mean(_margins(13) < -5))
    assert not found.traps.reference
    assert found.approach["margin"].kind == "finite time"
    assert (found.approach["margin"].number, found.approach["margin"].limit) == pytest.approx(
        (2.5, 5)
    )
    assert "region" in {rest.kind for rest in found.critical_sets}


@pytest.mark.exhaustive
def test_a_loss_that_rests_at_the_reference_point_does_not_move_from_there():
    found = cards.card(Bowl(3.0))
    (rest,) = found.critical_sets
    assert (rest.kind, rest.stability, rest.position) == ("point", "stable", pytest.approx((0, 0)))
    assert rest.rates == pytest.approx((3, 3))
    assert {approach.kind for approach in found.approach.values()} == {"constant"}
    assert found.speed == 0
    assert all(np.isnan(crossing.time) for crossing in found.crossings)
    assert found.plateau.fraction == 0


@pytest.mark.parametrize("beta", [0.003, 0.5, 5.0])
def test_the_card_of_dpo_scales_with_beta(beta):
    found = cards.card(DPO(beta))
    assert found.critical_sets == ()
    assert found.approach["margin"].kind == "logarithmic"
    np.testing.assert_allclose(found.approach["margin"].number, 1 / beta, rtol=5e-3)
    followed = 1e6 / max(beta**2 / 2, beta / np.sqrt(2))
    for crossing in found.crossings:
        time = _time(beta, crossing.margin)
        np.testing.assert_allclose(crossing.time, time if time < followed else np.nan, rtol=1e-6)
    assert (found.conserved, found.fall.where, found.bound.below) == ("u_w + u_l", "", True)
    assert (found.plateau.fraction, found.traps.fraction) == (0, 0)


@pytest.mark.parametrize(
    ("loss", "margin", "rate"),
    [
        (ConservativeDPO(5.0), np.log(9) / 5, 2 * 25 * 0.09),
        (EXO(5.0), np.log(999) / 5, 2 * 25 * 1e-3 * (1 - 1e-3)),
        (SummedIPO(5.0), 0.1, 4),
    ],
    ids=["cdpo", "exo", "ipo"],
)
def test_a_large_beta_is_not_taken_for_a_region_or_an_end_of_falling(loss, margin, rate):
    (rest,) = rests(loss)
    assert rest.margin == pytest.approx(margin, rel=1e-8)
    np.testing.assert_allclose(rest.rates, (0, rate), rtol=1e-6, atol=1e-12)
    assert fall(plane(loss)).where == f"h > {margin:.4g}"


def test_a_target_beyond_reach_is_not_reported():
    assert rests(ConservativeDPO(0.003), reach=100) == ()
    (rest,) = rests(ConservativeDPO(0.003), reach=400)
    assert rest.margin == pytest.approx(np.log(9) / 0.003)


@pytest.mark.exhaustive
def test_lengths_of_a_pair_tilt_the_line_of_ipo():
    # L = (u_w/7 − u_l/31 − 5)², K = 1: the normal is (1/7, −1/31), the rate 2|normal|².
    found = cards.card(IPO(), plane=LogRatioPlane(chosen_length=7, rejected_length=31))
    normal = np.array([1 / 7, -1 / 31])
    (rest,) = found.critical_sets
    assert (rest.kind, rest.margin, rest.straight) == ("line", None, True)
    np.testing.assert_allclose(rest.position, 5 * normal / (normal @ normal), rtol=1e-8)
    np.testing.assert_allclose(rest.rates, (0, float(2 * normal @ normal)), rtol=1e-8, atol=1e-15)
    assert found.conserved == "0.2258·u_w + u_l"  # 7/31
    np.testing.assert_allclose(found.approach["chosen"].number, 2 * normal @ normal, rtol=1e-3)
    np.testing.assert_allclose(found.approach["chosen"].limit, rest.position[0], rtol=1e-6)


@pytest.mark.exhaustive
def test_a_coupled_kernel_slows_the_margin():
    # c = 1 + 1 − 2·½ = 1 in z + e^z = 1 + β²ct.
    coupled = LogRatioPlane([[1, 0.5], [0.5, 1]])
    found = cards.card(DPO(0.1), plane=coupled)
    for crossing in found.crossings:
        z = np.log(wrightomega(1 + 0.01 * crossing.time))
        np.testing.assert_allclose(z, 0.1 * crossing.margin, rtol=1e-6)
    assert rests(SummedIPO(0.1), space=coupled)[0].rates == pytest.approx((0, 2))


@pytest.mark.exhaustive
def test_a_weighted_sum_has_a_card():
    # u_w' = βσ(−z) + ½/N, u_l' = −βσ(−z).
    found = cards.card(WeightedSum((DPO(), SFT()), (1.0, 0.5)))
    np.testing.assert_allclose(found.value, np.log(2) + 0.5, rtol=1e-12)
    assert found.approach["chosen"].kind == "linear"
    np.testing.assert_allclose(found.approach["chosen"].number, 0.025, rtol=1e-4)
    limit = -np.log(1 + 0.225 / 0.025) / 0.225
    np.testing.assert_allclose(found.approach["rejected"].limit, limit, rtol=1e-6)
    assert not found.bound.below


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": AOT()}, "`loss` must be a loss of one pair, but the value of AOT"),
        ({"loss": DPO(), "plane": RatioPlane()}, "`plane` must be a LogRatioPlane"),
        ({"loss": DPO(), "reach": 0.0}, "`reach` must be positive and finite, but is 0.0"),
        ({"loss": DPO(), "reach": np.inf}, "`reach` must be positive and finite"),
        ({"loss": DPO(), "reach": [1.0, 2.0]}, "`reach` must be positive and finite"),
        ({"loss": "dpo"}, "`loss` must be a loss"),
    ],
)
def test_a_card_that_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cards.card(**arguments)


def test_the_chosen_falls_under_a_kernel_where_its_velocity_says():
    # u_w' = −(k_ww ∂_w L + k_wl ∂_l L) = (1 − 1.2) σ(−0.1 h)/10, and nowhere without the kernel.
    coupled = LogRatioPlane([[1.0, 1.2], [1.2, 1.5]])
    assert fall(plane(DPO())).where == ""
    found = fall(plane(DPO(), space=coupled))
    assert (found.where, found.fraction, found.reference) == ("everywhere", 1.0, True)


def test_margins_are_reached_after_the_last_of_the_times():
    found = cards.compare({"dpo": DPO(0.1)}, margins=(1.0, 20.0), times=(1.0, 2.0))
    np.testing.assert_allclose(found.margin_times[0], _time(0.1, found.margins), rtol=1e-6)
    assert str(found) == found.summary()


@pytest.mark.exhaustive
def test_lines_are_compared_at_equal_margin_and_at_equal_time():
    losses = {"dpo": DPO(0.1), "hinge": Hinge(0.1), "ipo": SummedIPO(0.1), "sft": SFT()}
    found = cards.compare(losses, margins=(1.0, 5.0, 7.0), times=(1.0, 100.0))
    np.testing.assert_allclose(found.margin_times[0], _time(0.1, found.margins), rtol=1e-6)
    np.testing.assert_allclose(found.margin_times[1, :2], (5, 25), rtol=1e-6)
    np.testing.assert_allclose(found.margin_times[2], (-np.log(0.8) / 4, np.nan, np.nan), rtol=1e-6)
    np.testing.assert_allclose(found.margin_times[3, 0], 20, rtol=1e-6)
    h = np.log(wrightomega(1 + 0.02 * found.times)) / 0.1
    np.testing.assert_allclose(found.states[0], np.stack([h, -h], 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(found.states[3], [[0.05, 0], [5, 0]], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.margin_states[0, 0], (0.5, -0.5), rtol=1e-6)
    text = found.summary().splitlines()
    assert "t(h = 1)" in text[0]
    assert "u_w(h = 7)" in text[0]
    assert text[2].split()[:3] == ["hinge", "5", "25"]
    assert text[3].split()[2] == "—"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": {}}, "`losses` must hold at least one loss"),
        ({"losses": {"aot": AOT()}}, "`losses` must hold losses of one pair, but 'aot' is AOT"),
        ({"losses": {"x": 3}}, "`losses` must hold losses of one pair, but 'x' is 3"),
        ({"losses": {"dpo": DPO()}, "margins": (0.0, 1.0)}, "`margins` must hold finite"),
        ({"losses": {"dpo": DPO()}, "margins": (np.nan,)}, "`margins` must hold finite"),
        ({"losses": {"dpo": DPO()}, "times": (2.0, 1.0)}, "`times` must hold positive"),
        ({"losses": {"dpo": DPO()}, "times": ()}, "`times` must hold positive"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cards.compare(**arguments)


@pytest.mark.exhaustive
def test_the_texts_of_a_card_say_what_it_holds(hyperbola):
    found = {"hyperbola": hyperbola, "exo": cards.card(EXO(5.0)), "ipo": cards.card(SummedIPO(0.1))}
    rows = cards.table(found).splitlines()
    assert [row.split()[0] for row in rows] == ["loss", *found]
    assert "stable line h = 5" in rows[3]
    assert "h > 5 (47%)" in rows[3]
    text = cards.description(found["ipo"])
    for part in ("SummedIPO(beta=0.1)", "stable line h = 5, rates 0 and 4", "→ 5 as e^(−4·t)"):
        assert part in text
    assert "at margin 5" in text
    assert "not reached" in text
    assert "t^0.33" in cards.description(hyperbola)


@pytest.mark.exhaustive
def test_cards_as_json_are_strict_json():
    found = {"sft": cards.card(SFT()), "ipo": cards.card(SummedIPO(0.1))}
    text = json.dumps(cards.to_json(found), allow_nan=False)
    sft, ipo = json.loads(text)
    assert (sft["name"], sft["loss"], sft["value"]) == ("sft", "SFT()", 1.0)
    assert sft["gradient"] == [-0.05, 0.0]
    assert sft["bound"] == {"below": False, "lowest": "-inf"}
    assert sft["approach"]["chosen"]["limit"] == "inf"
    assert sft["plateau"]["distance"] is None
    assert ipo["critical_sets"][0]["margin"] == pytest.approx(5)
    assert ipo["crossings"][1]["time"] is None


def _time(beta, margin):
    """t at which z + e^z = 1 + 2β²t."""
    z = beta * margin
    return (z + np.expm1(z)) / (2 * beta**2)


def _margins(side):
    axis = np.linspace(-100, 100, side)
    return (axis[:, None] - axis).ravel()


class Made(AbstractLoss):
    """Any function of the two log-ratios."""

    function: Callable = eqx.field(static=True)

    def __call__(self, pairs):
        return self.function(pairs.u_chosen, pairs.u_rejected)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("loss", "kind", "number", "limit"),
    [
        (lambda w, v: jnp.abs(w - v - 5), "finite time", 2.5, 5.0),
        pytest.param(
            *(lambda w, v: jnp.hypot(w - 3.3, v + 3.1), "finite time", np.hypot(3.3, 3.1), 6.4),
            marks=pytest.mark.exhaustive,
        ),
        (lambda w, v: -jnp.exp(w - v), "blow-up", 0.5, np.inf),
    ],
    ids=["kink", "cone", "blow-up"],
)
def test_a_line_that_ends_before_its_time_says_how(loss, kind, number, limit):
    found = cards.card(Made(loss)).approach["margin"]
    assert found.kind == kind
    np.testing.assert_allclose([found.number, found.limit], [number, limit], rtol=1e-4)


@pytest.mark.exhaustive
def test_a_ring_of_critical_points_is_one_line_around_its_centre():
    centre, ring = rests(Made(lambda w, v: ((w - 10) ** 2 + v**2 - 900) ** 2 / 1e4))
    assert (centre.kind, centre.stability, ring.kind, ring.stability) == (
        *("point", "unstable"),
        *("line", "stable"),
    )
    assert not ring.straight
    np.testing.assert_allclose(centre.position, (10, 0), atol=1e-8)
    np.testing.assert_allclose(ring.position, (-20, 0), atol=1e-4)
    assert ring.path is not None
    np.testing.assert_allclose(np.hypot(*(ring.path - [10, 0]).T), 30, rtol=1e-6)


def test_a_tail_is_no_line_of_critical_points():
    # ∂L/∂u_l = ½βσ(βu_l) > 0: the smaller u_l, the nearer to 0, but nowhere 0.
    assert rests(NCA(5.0)) == ()
    assert rests(NCA(), reach=400.0) == ()


def test_critical_points_beside_the_reference_point_are_found():
    first, second = rests(DiscoPOP(5.0))
    assert (first.stability, second.stability) == ("unstable", "stable")
    assert (first.margin, second.margin) == pytest.approx((0.0144012, -0.0237140), rel=1e-5)


@pytest.mark.exhaustive
def test_a_flat_point_is_no_flat_region():
    for reach in (100.0, 20.0):
        (rest,) = rests(Made(lambda w, v: (w - v) ** 4), reach)
        assert (rest.kind, rest.stability) == ("line", "neutral")
    (rest,) = rests(Made(lambda w, v: w**3 - 3 * w * v**2))
    assert (rest.kind, rest.stability, rest.rates) == ("point", "neutral", (0, 0))


def test_a_minimum_that_is_flat_along_one_direction_is_found():
    (rest,) = rests(Made(lambda w, v: w**4 + 100 * v**2))
    assert (rest.kind, rest.stability, rest.rates) == ("point", "neutral", pytest.approx((0, 200)))
    np.testing.assert_allclose(rest.position, (0, 0), atol=1e-3)


def test_the_smooth_rim_of_a_flat_disc_is_no_line_of_critical_points():
    (rest,) = rests(Made(lambda w, v: jnp.maximum(w**2 + v**2 - 900, 0) ** 2))
    assert (rest.kind, rest.stability) == ("region", "stable")
    np.testing.assert_allclose(np.hypot(*rest.position), 30, rtol=1e-9)


@pytest.mark.parametrize(
    ("loss", "below"),
    [
        (lambda w, v: jnp.abs(w - v - 5), True),
        (lambda w, v: jnp.log1p(jnp.exp(-1e-5 * (w - v))), True),
        pytest.param(lambda w, v: -jnp.log1p((w - v) ** 2), False, marks=pytest.mark.exhaustive),
        (lambda w, v: (w - v - 5000) ** 2 - w / 500, False),
        (lambda w, v: 1 / (1 + jnp.log1p(jnp.logaddexp(0.0, w - v))), None),
    ],
    ids=["kink", "slow decay", "logarithm", "valley", "slower than can be told"],
)
def test_bounds_are_told_as_far_as_rays_tell(loss, below):
    last = np.array([50.0, -50.0])  # as a line that runs away is seen last
    assert bound(plane(Made(loss)), rests(Made(loss)), last).below is below


def test_a_singular_kernel_and_one_that_is_a_function_are_refused():
    with pytest.raises(ValueError, match="must have a constant kernel, given as an array, but has"):
        cards.card(DPO(), plane=LogRatioPlane(CoupledKernel()))
    with pytest.raises(ValueError, match="must have a positive definite kernel, but a kernel of"):
        cards.card(DPO(), plane=LogRatioPlane(np.ones((2, 2))))


def test_a_strength_per_pair_is_refused():
    with pytest.raises(ValueError, match="must have one value for one pair, but has an array"):
        cards.card(DPO(np.array([0.1, 1.0])))


def test_a_loss_that_is_not_finite_at_the_reference_point_is_refused():
    with pytest.raises(ValueError, match="must have a finite value and gradient"):
        cards.card(Made(lambda w, v: jnp.log(w - v)))


@pytest.mark.exhaustive
def test_a_strip_between_two_points_of_the_grid_is_told():
    found = fall(plane(Made(lambda w, v: (w**2 - 4) ** 2 + (v**2 - 4) ** 2)))
    assert found.where == "-2 < u_w < 0 or u_w > 2"


def test_losses_to_compare_have_names():
    with pytest.raises(ValueError, match="must be a mapping from names to losses"):
        cards.compare([DPO()])  # type: ignore[arg-type]
