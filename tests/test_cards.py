"""The cards of the whole catalogue, held against algebra and against SciPy.

The losses are written here once more, from their papers, with β, ε, τ and so on as numbers, both
references −20 nats and 20 tokens; their gradients come from complex steps, exact to rounding.
"""

import numpy as np
import pytest
from grids import thinned
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq

from flowlab import cards
from flowlab.cards.lines import MARGINS
from flowlab.losses import CATALOGUE, AbstractBatchLoss

TOKENS = 20
NAMES = [n for n, loss in CATALOGUE.items() if not isinstance(loss, AbstractBatchLoss)]
STEP = 1e-30
INF = np.inf


# A loss that falls for ever and rests nowhere, one with a line of minima and a plateau, and one
# without a bound: what else a card can tell is left to the exhaustive run.
KEPT = {"dpo", "exo", "sft"}


class Catalogue(dict[str, cards.Card]):
    """The cards of the catalogue, each made when it is first asked for."""

    def __missing__(self, name: str) -> cards.Card:
        return self.setdefault(name, cards.card(CATALOGUE[name]))


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue()


def sig(z):
    e = np.exp(np.where(z.real > 0, -z, z))
    return np.where(z.real > 0, 1, e) / (1 + e)


def nls(z):
    return np.where(z.real > 0, 0, -z) + np.log1p(np.exp(np.where(z.real > 0, -z, z)))


def relu(x):
    return np.where(x.real > 0, x, 0)


def discopop(h):
    z = 0.05 * h
    return sig(-z / 0.05) * nls(z) + sig(z / 0.05) * np.exp(-z)


def exo(h, eps=1e-3):
    z = 0.1 * h
    return sig(z) * (-nls(z) - np.log(1 - eps)) + sig(-z) * (-nls(-z) - np.log(eps))


def log_odds(u):
    q = (u - 20) / TOKENS
    return np.where(q.real < 0, q - np.log(1 - np.exp(q)), np.nan)


def alpha_reward(u):
    return (1 - np.exp(-0.25 * (u - 20) / TOKENS)) / 0.25


def nll(w):
    return (20 - w) / TOKENS


LOSSES = {
    "dpo": lambda w, v: nls(0.1 * (w - v)),
    "dpo_forward_kl": lambda w, v: nls(0.1 * (np.exp(-v) - np.exp(-w))),
    "dpo_jensen_shannon": lambda w, v: nls(0.1 * (nls(v) - nls(w))),
    "dpo_alpha": lambda w, v: nls(0.1 * 2 * (np.exp(-v / 2) - np.exp(-w / 2))),
    "conservative_dpo": lambda w, v: 0.9 * nls(0.1 * (w - v)) + 0.1 * nls(-0.1 * (w - v)),
    "robust_dpo": lambda w, v: (0.9 * nls(0.1 * (w - v)) - 0.1 * nls(-0.1 * (w - v))) / 0.8,
    "ipo": lambda w, v: ((w - v) / TOKENS - 5) ** 2,
    "summed_ipo": lambda w, v: (w - v - 5) ** 2,
    "hinge": lambda w, v: relu(1 - 0.1 * (w - v)),
    "exo": lambda w, v: exo(w - v),
    "discopop": lambda w, v: discopop(w - v),
    "length_normalised_dpo": lambda w, v: nls(0.1 * (w - v) / TOKENS),
    "dpo_shift": lambda w, v: nls(0.1 * (w - 0.95 * v)),
    "odpo": lambda w, v: nls(0.1 * (w - v) - 1),
    "dpop": lambda w, v: nls(0.3 * (w - v - 50 * relu(-w))),
    "dpop_outside": lambda w, v: nls(0.3 * (w - v)) + 50 * relu(-w),
    "sppo": lambda w, v: (w - 5) ** 2 + (v + 5) ** 2,
    "nca": lambda w, v: nls(0.1 * w) + nls(-0.1 * w) / 2 + nls(-0.1 * v) / 2,
    "bco": lambda w, v: nls(0.1 * w) + nls(-0.1 * v),
    "apo_zero": lambda w, v: sig(-0.1 * w) + sig(0.1 * v),
    "apo_down": lambda w, v: sig(0.1 * w) + sig(-0.1 * (w - v)),
    "kto": lambda w, v: sig(-0.1 * w) + sig(0.1 * v),
    "sft": lambda w, v: nll(w),
    "cal_dpo": lambda w, v: nls(w - v) + ((w - 5) ** 2 + (v + 5) ** 2) / 2,
    "cpo": lambda w, v: nls(0.1 * (w - v)) + nll(w),
    "cpo_hinge": lambda w, v: relu(1 - 0.1 * (w - v)) + nll(w),
    "cpo_ipo": lambda w, v: ((w - v) / TOKENS - 5) ** 2 + nll(w),
    "simpo": lambda w, v: nls(2 * (w - v) / TOKENS - 0.5),
    "alphapo": lambda w, v: nls(2 * (alpha_reward(w) - alpha_reward(v)) - 0.5),
    "orpo": lambda w, v: nll(w) + 0.1 * nls(log_odds(w) - log_odds(v)),
}


def gradient(name, w, v):
    w, v = np.asarray(w, complex), np.asarray(v, complex)
    loss = LOSSES[name]
    with np.errstate(all="ignore"):
        return np.array([loss(w + 1j * STEP, v).imag, loss(w, v + 1j * STEP).imag]) / STEP


def velocity(name):
    return lambda t, u: -gradient(name, *u)


def slope(name, h):
    """The derivative by the margin, of a loss of the margin alone."""
    return gradient(name, h, 0.0)[0]


def bend(name, h):
    return (slope(name, h + 1e-4) - slope(name, h - 1e-4)) / 2e-4


def grid(side):
    axis = np.linspace(-100, 100, side)
    return np.meshgrid(axis, axis, indexing="ij")


def root(function, low, high) -> float:
    return float(brentq(function, low, high, xtol=1e-13))  # type: ignore[arg-type]


# Roots of DiscoPOP's slope on either side of its hump, and of Cal-DPO's on its line of symmetry.
VALLEY = root(lambda h: slope("discopop", h), -4, -1)
CREST = root(lambda h: slope("discopop", h), 0, 3)
CAL = root(lambda x: x - 5 - sig(np.asarray(-2 * x)), 5, 6)
CAL_BEND = float(sig(np.asarray(2 * CAL)) * sig(np.asarray(-2 * CAL)))


def line(margin, rate):
    rates, stability = ((0, rate), "stable") if rate > 0 else ((rate, 0), "unstable")
    return ("line", (margin / 2, -margin / 2), margin, stability, rates)


# L' = 0 with K = 1: a loss f(h) rests on lines, with the rate |∇h|² f″ = 2 f″ across them.
RESTS = {
    "conservative_dpo": [line(10 * np.log(9), 2 * 0.1**2 * 0.1 * 0.9)],
    "ipo": [line(TOKENS * 5, 4 / TOKENS**2)],
    "summed_ipo": [line(5, 4)],
    "exo": [line(10 * np.log(999), 2 * 0.1**2 * 1e-3 * (1 - 1e-3))],
    "discopop": [
        line(CREST, 2 * bend("discopop", CREST)),
        line(VALLEY, 2 * bend("discopop", VALLEY)),
    ],
    "hinge": [("region", (5, -5), None, "stable", (0, 0))],
    "sppo": [("point", (5, -5), 10, "stable", (2, 2))],
    "cal_dpo": [("point", (CAL, -CAL), 2 * CAL, "stable", (1, 1 + 2 * CAL_BEND))],
}


def log(gain):
    return ("logarithmic", gain, np.copysign(INF, gain))


def linear(speed):
    return ("linear", speed, np.copysign(INF, speed))


def exponential(limit, rate):
    return ("exponential", rate, limit)


def to_margin(margin, rate):
    return [exponential(part * margin, rate) for part in (0.5, -0.5, 1)]


# Chosen, rejected, margin. Of a logistic tail, with v' = g·e^{−βv}·β: v = log(t)/β.
SHIFTED = 10 / (1 + 0.95**2)
APPROACHES = {
    "dpo": [log(5), log(-5), log(10)],
    "conservative_dpo": to_margin(10 * np.log(9), 2 * 0.1**2 * 0.1 * 0.9),
    "robust_dpo": [linear(k * 0.1 * 0.1 / 0.8) for k in (1, -1, 2)],
    "ipo": to_margin(100, 4 / TOKENS**2),
    "summed_ipo": to_margin(5, 4),
    "hinge": [("finite time", 50, limit) for limit in (5, -5, 10)],
    "exo": to_margin(10 * np.log(999), 2 * 0.1**2 * 1e-3 * (1 - 1e-3)),
    "discopop": to_margin(VALLEY, 2 * bend("discopop", VALLEY)),
    "length_normalised_dpo": [log(100), log(-100), log(200)],
    "dpo_shift": [log(SHIFTED), log(-0.95 * SHIFTED), log(1.95 * SHIFTED)],
    "odpo": [log(5), log(-5), log(10)],
    "dpop": [log(5 / 3), log(-5 / 3), log(10 / 3)],
    "dpop_outside": [log(5 / 3), log(-5 / 3), log(10 / 3)],
    "sppo": [exponential(5, 2), exponential(-5, 2), exponential(10, 2)],
    # u_w alone: −βσ(−βu) + ½βσ(βu) = 0 at σ(βu) = 2/3, with the slope 3/2·β²·2/9 there.
    "nca": [exponential(10 * np.log(2), 0.1**2 / 3), log(-10), log(10)],
    "bco": [log(10), log(-10), log(20)],
    "apo_zero": [log(10), log(-10), log(20)],
    # With e^{−βh} = A/t and e^{βu_w} = B/t: β²(B − A) = 1 and β²(2A − B) = 1.
    "apo_down": [log(-10), log(-20), log(10)],
    "kto": [log(10), log(-10), log(20)],
    "sft": [linear(1 / TOKENS), ("constant", 0, 0), linear(1 / TOKENS)],
    "cal_dpo": [exponential(x, 1 + 2 * CAL_BEND) for x in (CAL, -CAL, 2 * CAL)],
    # h' = 1/N + 2βσ(−βh) and u_l' = −βσ(−βh): u_l = −∫ dz / (1/N + 2β + e^z/N).
    "cpo": [linear(0.05), exponential(-np.log(1 + 0.25 / 0.05) / 0.25, 0.1 / 20), linear(0.05)],
    # h' = 2β + 1/N until h = 1/β, at t = 40.
    "cpo_hinge": [linear(0.05), ("finite time", 40, -4), linear(0.05)],
    # h' = −4/N (h/N − 5) + 1/N, and u_l' = 2/N (h/N − 5).
    "cpo_ipo": [linear(0.025), linear(0.025), exponential(TOKENS * 5.25, 4 / TOKENS**2)],
    "simpo": [log(5), log(-5), log(10)],
}

FALLS = {
    "conservative_dpo": f"h > {10 * np.log(9):.4g}",
    "ipo": "h > 100",
    "summed_ipo": "h > 5",
    "exo": f"h > {10 * np.log(999):.4g}",
    "discopop": f"{VALLEY:.4g} < h < {CREST:.4g}",
    "sppo": "u_w > 5",
    "nca": f"u_w > {10 * np.log(2):.4g}",
    "apo_down": "no simple condition",  # |u_w| < |h|
    "cal_dpo": "u_w > 5…6",  # u_w > 5 + σ(−h)
    "cpo_ipo": "h > 110",  # −2/N (h/N − 5) + 1/N < 0
}

MARGIN_SUM = (lambda w, v: (1, 1), "u_w + u_l")
CONSERVED = {
    name: MARGIN_SUM
    for name in (
        "dpo",
        "conservative_dpo",
        "robust_dpo",
        "ipo",
        "summed_ipo",
        "hinge",
        "exo",
        "discopop",
        "length_normalised_dpo",
        "odpo",
        "simpo",
    )
} | {
    "dpo_shift": (lambda w, v: (0.95, 1), "0.95·u_w + u_l"),
    "dpo_forward_kl": (lambda w, v: (np.exp(w), np.exp(v)), "e^{u_w} + e^{u_l}"),
    "dpo_alpha": (lambda w, v: (np.exp(w / 2), np.exp(v / 2)), "e^{0.5·u_w} + e^{0.5·u_l}"),
    "alphapo": (
        lambda w, v: (np.exp(w / 80), np.exp(v / 80)),
        "e^{0.0125·u_w} + e^{0.0125·u_l}",
    ),
    "sft": (lambda w, v: (0, 1), "u_l"),
}

UNBOUNDED = {"robust_dpo", "sft", "cpo", "cpo_hinge", "cpo_ipo"}
# Infima that are not 0: the entropy of the label, 3/2·log 3 − log 2, and Cal-DPO's own minimum.
INFIMA = {
    "conservative_dpo": -0.1 * np.log(0.1) - 0.9 * np.log(0.9),
    "nca": 1.5 * np.log(3) - np.log(2),
    "cal_dpo": np.log1p(np.exp(-2 * CAL)) + (CAL - 5) ** 2,
}

PLATEAUS = {
    "dpo_forward_kl",
    "dpo_jensen_shannon",
    "dpo_alpha",
    "exo",
    "apo_zero",
    "apo_down",
    "kto",
}

# Margins beyond where the line from (0, 0) leads.
NEVER = {
    "dpo_forward_kl": {20},  # h ~ log log t
    "dpo_alpha": {20},
    "summed_ipo": {5, 20},  # 5 is its limit
    "hinge": {20},
    "discopop": {1, 5, 20},
    "sppo": {20},
    "cal_dpo": {20},
}


def omega(t, beta):
    """t at which z + e^z = 1 + 2β²t."""
    return lambda h: (beta * h + np.expm1(beta * h)) / (2 * beta**2 * t)


CLOSED_TIMES = {
    "dpo": omega(1, 0.1),
    "length_normalised_dpo": omega(1, 0.1 / TOKENS),
    "dpop": omega(1, 0.3),
    "dpop_outside": omega(1, 0.3),
    "ipo": lambda h: -np.log(1 - h / 100) / 0.01,
    "summed_ipo": lambda h: -np.log(1 - h / 5) / 4,
    "hinge": lambda h: h / 0.2,
    "sft": lambda h: h * TOKENS,
    "sppo": lambda h: -np.log(1 - h / 10) / 2,
    "bco": lambda h: (0.1 * h / 2 + np.expm1(0.1 * h / 2)) / 0.1**2,
}


def test_the_catalogue_of_this_file_is_that_of_the_library():
    assert set(NAMES) == set(LOSSES)


@pytest.mark.parametrize("name", thinned(NAMES, KEPT))
def test_value_gradient_and_speed_at_the_reference_point_are_those_of_the_formula(catalogue, name):
    zero = np.asarray(0j)
    found, by_u = catalogue[name], gradient(name, 0, 0)
    np.testing.assert_allclose(found.value, LOSSES[name](zero, zero).real, rtol=1e-12)
    np.testing.assert_allclose(found.gradient, by_u, rtol=1e-12, atol=1e-17)
    np.testing.assert_allclose(found.speed, np.hypot(*by_u), rtol=1e-12)


@pytest.mark.parametrize("name", thinned(NAMES, KEPT))
def test_the_flow_rests_where_algebra_says(catalogue, name):
    found = catalogue[name].critical_sets
    expected = RESTS.get(name, [])
    assert [e.kind for e in found] == [kind for kind, *_ in expected]
    for rest, (_, position, margin, stability, rates) in zip(found, expected, strict=True):
        np.testing.assert_allclose(rest.position, position, rtol=1e-8)
        assert (rest.margin is None) == (margin is None)
        if margin is not None:
            np.testing.assert_allclose(rest.margin, margin, rtol=1e-8)
        assert rest.stability == stability
        assert rest.straight
        np.testing.assert_allclose(rest.rates, rates, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("name", thinned(APPROACHES, KEPT))
def test_the_long_run_from_the_reference_point_is_that_of_algebra(catalogue, name):
    parts = ("chosen", "rejected", "margin")
    for part, (kind, number, limit) in zip(parts, APPROACHES[name], strict=True):
        found = catalogue[name].approach[part]
        assert found.kind == kind, part
        np.testing.assert_allclose(found.number, number, rtol=2e-3, atol=1e-15, err_msg=part)
        np.testing.assert_allclose(found.limit, limit, rtol=1e-5, atol=1e-12, err_msg=part)


EXPONENTIAL_SCORES = [("dpo_forward_kl", 1), ("dpo_alpha", 0.5)]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "power"), EXPONENTIAL_SCORES)
def test_a_divergence_with_an_exponential_score_moves_like_an_iterated_logarithm(
    catalogue, name, power
):
    # e^{pu_w} + e^{pu_l} = 2 is kept, so u_w → log(2)/p; e^{−pu_l} grows like log t.
    chosen, rejected, margin = catalogue[name].approach.values()
    assert (chosen.kind, rejected.kind) == ("slower than algebraic", "slower than logarithmic")
    last = catalogue[name].traps.reference_margin
    w = np.log(2 / (1 + np.exp(-power * last))) / power
    np.testing.assert_allclose(chosen.limit, w, rtol=1e-4)
    assert w < np.log(2) / power < 1.02 * w
    assert margin.kind == "slower than logarithmic"
    # Nine decades do not tell that these have no limit: they are given as they were last seen.
    assert margin.limit == pytest.approx(last)
    assert rejected.limit == pytest.approx(chosen.limit - last)
    np.testing.assert_allclose(margin.number, -rejected.number, rtol=0.01)


@pytest.mark.exhaustive
def test_jensen_shannon_holds_the_chosen_back(catalogue):
    # u + e^u of both keeps its sum 2, so that e^{u_w} ~ −u_l ~ log(t)/β.
    found = catalogue["dpo_jensen_shannon"]
    assert found.approach["chosen"].kind == "slower than logarithmic"
    assert found.approach["rejected"].kind == "logarithmic"
    np.testing.assert_allclose(found.approach["rejected"].number, -10, rtol=0.01)
    for crossing in found.crossings:
        kept = sum(u + np.exp(u) for u in (crossing.u_chosen, crossing.u_rejected))
        np.testing.assert_allclose(kept, 2, rtol=1e-6)


@pytest.mark.exhaustive
def test_alphapo_moves_slower_than_a_logarithm(catalogue):
    kinds = {approach.kind for approach in catalogue["alphapo"].approach.values()}
    assert kinds == {"slower than logarithmic"}


@pytest.mark.exhaustive
def test_orpo_ends_where_the_chosen_has_all_the_probability(catalogue):
    def certain(t, u):
        return u[0] - (20 - 1e-7)

    certain.terminal = True  # type: ignore[attr-defined]
    flown = solve_ivp(velocity("orpo"), (0, 1e3), [0, 0], events=certain, rtol=1e-10, atol=1e-12)
    found = catalogue["orpo"].approach
    assert {approach.kind for approach in found.values()} == {"edge"}
    np.testing.assert_allclose(found["chosen"].limit, 20, rtol=1e-6)
    np.testing.assert_allclose(found["chosen"].number, flown.t_events[0][0], rtol=1e-5)
    np.testing.assert_allclose(found["rejected"].limit, flown.y_events[0][0][1], rtol=1e-4)


@pytest.mark.parametrize("name", thinned(NAMES, KEPT))
def test_the_chosen_falls_where_the_formula_says(catalogue, name):
    found = catalogue[name].fall
    with np.errstate(invalid="ignore"):
        falling = gradient(name, *grid(81))[0] > 0
    assert found.where == FALLS.get(name, "")
    np.testing.assert_allclose(found.fraction, falling.mean(), atol=0.015)
    assert found.reference == (name == "discopop")


@pytest.mark.parametrize("name", thinned(NAMES, KEPT))
def test_what_is_conserved_is_what_no_velocity_changes(catalogue, name):
    form, text = CONSERVED.get(name, (None, ""))
    assert catalogue[name].conserved == text
    if form is not None:
        w, v = np.random.default_rng(0).uniform(-8, 8, (2, 50))
        change = np.stack([f * g for f, g in zip(form(w, v), gradient(name, w, v), strict=True)])
        np.testing.assert_allclose(change.sum(0), 0, atol=1e-9 * np.abs(change).max())


@pytest.mark.parametrize("name", thinned(NAMES, KEPT))
def test_a_loss_is_bounded_below_unless_a_tail_falls_for_ever(catalogue, name):
    found = catalogue[name].bound
    assert found.below == (name not in UNBOUNDED)
    if name in UNBOUNDED:
        assert found.lowest == -INF
    else:
        np.testing.assert_allclose(found.lowest, INFIMA.get(name, 0), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("name", thinned(sorted(set(NAMES) - PLATEAUS), KEPT))
def test_most_losses_have_no_plateau_on_the_wrong_side(catalogue, name):
    found = catalogue[name].plateau
    assert (found.fraction, np.isnan(found.distance)) == (0, True)


@pytest.mark.parametrize("name", thinned(sorted(PLATEAUS), KEPT))
def test_plateaus_are_the_slow_part_of_the_wrong_side(catalogue, name):
    found = catalogue[name].plateau
    w, v = grid(81)
    wrong = w < v
    speed = np.linalg.norm(gradient(name, w, v), axis=0)
    slow = speed[wrong] < 0.01 * np.linalg.norm(gradient(name, 0, 0))
    np.testing.assert_allclose(found.fraction, slow.mean(), atol=2e-3)
    np.testing.assert_allclose(found.distance, np.hypot(w, v)[wrong][slow].min(), rtol=1e-9)


@pytest.mark.exhaustive
def test_the_reference_point_of_discopop_is_a_trap_and_that_of_dpo_is_none(catalogue):
    found = catalogue["discopop"].traps
    assert found.reference
    np.testing.assert_allclose(found.reference_margin, VALLEY, rtol=1e-6)
    w, v = grid(13)
    np.testing.assert_allclose(found.fraction, np.mean(w - v < CREST))
    assert (catalogue["dpo"].traps.reference, catalogue["dpo"].traps.fraction) == (False, 0)


@pytest.mark.exhaustive
def test_of_all_reference_points_only_that_of_discopop_is_a_trap(catalogue):
    assert [name for name in NAMES if catalogue[name].traps.reference] == ["discopop"]
    shares = {name: catalogue[name].traps.fraction for name in NAMES}
    assert {name for name, fraction in shares.items() if fraction > 0} == {"discopop", "apo_down"}


@pytest.mark.exhaustive
def test_starts_that_apo_down_pushes_the_wrong_way_are_those_that_scipy_finds(catalogue):
    # 1/speed at (0, 0) is 40; a card looks up to a million times that.
    def ends_wrong(start):
        flown = solve_ivp(velocity("apo_down"), (0, 4e7), start, "LSODA", rtol=1e-9, atol=1e-9)
        w, v = flown.y[:, -1]
        rise = gradient("apo_down", w, v)
        return w - v < -0.1 and rise[0] - rise[1] >= 0

    w, v = (u.ravel() for u in grid(13))
    wrong = w < v  # right margins stay right: at h = 0 the margin grows while u_w is not 0
    trapped = [ends_wrong(start) for start in np.stack([w, v], axis=1)[wrong]]
    assert catalogue["apo_down"].traps.fraction == pytest.approx(sum(trapped) / 169)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "power"), EXPONENTIAL_SCORES)
def test_lines_that_a_plateau_holds_up_are_counted(catalogue, name, power):
    # The fastest of forward KL, α and Jensen–Shannon with u_l fixed high: e^{pu_w} < pβt + const,
    # so those are stuck whose u_l is above log(pβT)/p, of 13 columns of the grid.
    w, v = grid(13)
    last = 1e6 / np.hypot(0.05, 0.05)
    stuck = (w < v) & (v > np.log(power * 0.1 * last / 2) / power)
    assert catalogue[name].traps.stuck == pytest.approx(stuck.mean())


def test_lines_of_exo_that_its_plateau_holds_up_are_counted(catalogue):
    # One margin after another, each with its own time to 0.
    w, v = grid(13)
    unit = 1 / max(np.hypot(*gradient("exo", 0, 0)), 2 * bend("exo", 0))
    times = {
        h: quad(lambda x: -0.5 / slope("exo", x), h, -0.1)[0] for h in np.unique((w - v)[w < v])
    }
    held = [times[h] > 1e6 * unit for h in (w - v)[w < v]]
    assert catalogue["exo"].traps.stuck == pytest.approx(sum(held) / 169)


@pytest.mark.parametrize("name", thinned(sorted(set(NAMES) - PLATEAUS), KEPT))
def test_no_other_line_is_held_up(catalogue, name):
    assert catalogue[name].traps.stuck == 0


@pytest.mark.parametrize("name", thinned(NAMES, KEPT))
def test_the_line_from_the_reference_point_crosses_margins_when_scipy_does(catalogue, name):
    reached = [h for h in MARGINS if h not in NEVER.get(name, ())]
    found = catalogue[name].crossings
    assert [c.margin for c in found if not np.isnan(c.time)] == reached
    events = [lambda t, u, h=h: u[0] - u[1] - h for h in reached or MARGINS]
    events[-1].terminal = True  # type: ignore[attr-defined]
    options = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
    flown = solve_ivp(velocity(name), (0, 5000), [0, 0], events=events, **options)
    for k, crossing in enumerate(found[: len(reached)]):
        np.testing.assert_allclose(crossing.time, flown.t_events[k][0], rtol=1e-6)
        position = (crossing.u_chosen, crossing.u_rejected)
        np.testing.assert_allclose(position, flown.y_events[k][0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", thinned(CLOSED_TIMES, KEPT))
def test_margins_are_crossed_at_the_times_of_the_closed_form(catalogue, name):
    for crossing in catalogue[name].crossings:
        if crossing.margin not in NEVER.get(name, ()):
            expected = CLOSED_TIMES[name](crossing.margin)
            np.testing.assert_allclose(crossing.time, expected, rtol=1e-7)
