"""Derivative rules: second derivatives, hyper-parameters, kinks, and logarithms they do without."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from grids import thinned
from loss_formulas import LOG_RATIOS, logistic, pairs_of
from mpmath import mpf

from flowlab import losses
from flowlab._arrays import floats
from flowlab.losses import functions

OF_A_BATCH = (losses.AOT, losses.AOTUnpaired)


def logistic_term(z):
    """Second derivative of −log σ."""
    return logistic(z) * logistic(-z)


def sigmoid_term(z):
    """Second derivative of σ."""
    return logistic(z) * logistic(-z) * (logistic(-z) - logistic(z))


# Weight, term, and the coefficients of u_w, u_l and 1 in its argument.
SIGMOID_SUMS = [
    (losses.DPO(0.7), [(1, logistic_term, 0.7, -0.7, 0)]),
    (losses.ConservativeDPO(0.7, 0.2), [(1, logistic_term, 0.7, -0.7, 0)]),
    (losses.RobustDPO(0.7, 0.2), [(1, logistic_term, 0.7, -0.7, 0)]),
    (losses.NCA(0.7), [(1.5, logistic_term, 0.7, 0, 0), (0.5, logistic_term, 0, 0.7, 0)]),
    (losses.BCO(0.7, 2.0), [(1, logistic_term, 0.7, 0, -2), (1, logistic_term, 0, 0.7, -2)]),
    (losses.APOZero(0.7), [(1, sigmoid_term, -0.7, 0, 0), (1, sigmoid_term, 0, 0.7, 0)]),
    (losses.APODown(0.7), [(1, sigmoid_term, 0.7, 0, 0), (1, sigmoid_term, -0.7, 0.7, 0)]),
    (
        losses.KTO(0.5, 2.0, 3.0, 4.0),
        [(2, sigmoid_term, -0.5, 0, 2), (3, sigmoid_term, 0, 0.5, -2)],
    ),
    (losses.DPOShift(0.5, 0.25), [(1, logistic_term, 0.5, -0.125, 0)]),
    (losses.ODPO(0.7, 2.0), [(1, logistic_term, 0.7, -0.7, "offset")]),
]


@pytest.mark.parametrize(("loss", "sums"), SIGMOID_SUMS)
def test_second_derivatives_are_those_of_the_formula_to_fifty_digits(loss, sums):
    pairs = pairs_of(losses.DPO, LOG_RATIOS["float64"], "float64")

    def slopes(chosen, rejected):
        moved = dataclasses.replace(pairs, chosen=chosen, rejected=rejected)
        gradient = jax.grad(lambda p: jnp.sum(loss(p)))(moved)
        return gradient.chosen, gradient.rejected

    @jax.jit
    def bends(chosen, rejected):
        one, nothing = jnp.ones_like(chosen), jnp.zeros_like(chosen)
        _, by_chosen = jax.jvp(slopes, (chosen, rejected), (one, nothing))
        _, by_rejected = jax.jvp(slopes, (chosen, rejected), (nothing, one))
        return *by_chosen, by_rejected[1]

    got = np.array(bends(pairs.chosen, pairs.rejected))
    wanted, terms = np.zeros(got.shape), np.zeros(got.shape)
    offsets = np.asarray(pairs.offset)
    log_ratios = zip(*map(np.asarray, (pairs.u_chosen, pairs.u_rejected)), strict=True)
    with mpmath.workdps(60):
        for k, (u_w, u_l) in enumerate(log_ratios):
            for weight, term, a, b, c in sums:
                shift = -2 * mpf(float(offsets[k])) if c == "offset" else c
                z = mpf(a) * mpf(u_w) + mpf(b) * mpf(u_l) + shift
                products = np.array([a * a, a * b, b * b])
                wanted[:, k] += float(weight * term(z)) * products
                # That of σ is itself a difference of two, each at most that of −log σ.
                largest = float(weight * logistic_term(z)) * np.abs(products)
                terms[:, k] = np.maximum(terms[:, k], largest)
    error = np.maximum(np.abs(got - wanted) - 3 * np.finfo(float).tiny, 0)
    assert np.max(error / np.maximum(terms, np.finfo(float).tiny)) <= 1e-9


def plain_smoothed(z, wrong):
    return (1 - wrong) * jnp.log1p(jnp.exp(-z)) + wrong * jnp.log1p(jnp.exp(z))


def plain_exchanged(z, smoothing):
    right = 1 / (1 + jnp.exp(-z))
    return right * jnp.log(right / (1 - smoothing)) + (1 - right) * jnp.log((1 - right) / smoothing)


def plain_discovered(z, tau):
    m = 1 / (1 + jnp.exp(-z / tau))
    return (1 - m) * jnp.log1p(jnp.exp(-z)) + m * jnp.exp(-z)


def plain_power(v, a):
    return (jnp.exp(a * v) - 1) / a


def plain_odds(chosen, rejected):
    odds = chosen - rejected - jnp.log((1 - jnp.exp(chosen)) / (1 - jnp.exp(rejected)))
    return jnp.log1p(jnp.exp(-odds))


ANY, BELOW = np.linspace(-4.3, 4.1, 29), np.linspace(-5, -0.1, 29)
RULES = [
    (functions.sigmoid, lambda z: 1 / (1 + jnp.exp(-z)), (ANY,)),
    (functions.negative_log_sigmoid, lambda z: jnp.log1p(jnp.exp(-z)), (ANY,)),
    *((functions.smoothed, plain_smoothed, (ANY, e)) for e in (-0.4, 0.1, 0.49)),
    *((functions.exchanged, plain_exchanged, (ANY, e)) for e in (1e-3, 0.3, 0.9)),
    *((functions.discovered, plain_discovered, (ANY, tau)) for tau in (0.3, 1.0, 4.0)),
    *((functions.power_reward, plain_power, (ANY, a)) for a in (-1.0, -0.3, 0.25, 2.0)),
    (functions.log_odds_loss, plain_odds, (BELOW, BELOW[::-1].copy())),
    (lambda a, b: functions.difference(a, b, a - b), lambda a, b: a - b, (ANY, BELOW)),
]


@pytest.mark.parametrize(("rule", "plain", "arguments"), RULES)
def test_rules_are_those_of_autodiff_up_to_the_second_derivative(rule, plain, arguments):
    inputs = tuple(jnp.asarray(x) for x in arguments)
    every = tuple(range(len(inputs)))

    def of(function):
        def slope(*x):
            return jax.grad(lambda *y: jnp.sum(function(*y)), every)(*x)

        def along(*x):
            return sum(jnp.sum(jnp.cos(part)) for part in slope(*x))

        forward = jax.jvp(function, inputs, tuple(map(jnp.ones_like, inputs)))
        return (*forward, *slope(*inputs), *jax.grad(along, every)(*inputs))

    for got, wanted in zip(jax.jit(lambda: of(rule))(), jax.jit(lambda: of(plain))(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("power", [0.0, 1e-300, 1e-8, -1.4e-5, 1.45e-5, -0.014, 0.3, -1.0])
def test_the_derivative_by_the_shape_of_a_reward_stays_exact_where_it_vanishes(power):
    v = np.array([-700, -30, -0.5, 0, 0.125, 7, 680.0])
    slope = jax.jit(jax.jacfwd(functions.power_reward, 1))(v, jnp.asarray(power))
    with mpmath.workdps(80):
        a = mpf(power)
        for got, w in zip(slope, map(mpf, v), strict=True):
            wanted = w**2 / 2 if abs(a * w) < mpf(10) ** -20 else None
            if wanted is None:
                wanted = (w * mpmath.exp(a * w) - mpmath.expm1(a * w) / a) / a
            assert abs(got - float(wanted)) <= 1e-12 * abs(float(wanted))


def test_the_derivative_by_the_shape_of_a_reward_is_infinite_where_it_overflows():
    slopes = jax.jacfwd(functions.power_reward, 1)(np.array([-1e4, 1e4]), jnp.asarray(1.0))
    np.testing.assert_array_equal(slopes, [1, np.inf])


def compiled(loss):
    pairs = jax.tree.map(lambda x: x[:8], pairs_of(type(loss), LOG_RATIOS["float64"], "float64"))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(loss(p))))
    return str(gradient.lower(pairs).compile().as_text())


def logarithms(text):
    return re.findall(r"= \S+ (log\w*|log-plus-one)\(", text)


# DiscoPOP's derivative holds the logistic loss itself, since the mixture that multiplies it moves;
# the slope at a Jensen–Shannon score is read at log σ(u). No other needs a logarithm.
WITH_LOGARITHM = {"discopop", "dpo_jensen_shannon"}


@pytest.mark.parametrize("name", thinned(losses.CATALOGUE, {"dpo", "kto", *WITH_LOGARITHM}))
def test_the_compiled_gradient_has_a_logarithm_only_where_it_needs_one(name):
    assert bool(logarithms(compiled(losses.CATALOGUE[name]))) == (name in WITH_LOGARITHM)


def slope_at(loss, u_w, u_l):
    pair = losses.Pair(*map(jnp.asarray, (u_w, u_l, 0.0, 0.0, 1.0, 1.0)))
    gradient = jax.grad(loss)(pair)
    return float(gradient.chosen), float(gradient.rejected)


@pytest.mark.parametrize("loss", [losses.Hinge(0.5), losses.CPOHinge(0.5, 0.0)])
def test_at_the_kink_of_a_hinge_the_derivative_is_that_of_the_flat_side(loss):
    assert slope_at(loss, 1.5, -0.5) == (0, 0)
    assert slope_at(loss, 1.25, -0.5) == (-0.5, 0.5)


@pytest.mark.parametrize("kind", [losses.DPOP, losses.DPOPOutside])
def test_at_the_kink_of_the_penalty_the_derivative_is_that_without_it(kind):
    assert slope_at(kind(0.5, 50.0), 0.0, 1.0) == slope_at(losses.DPO(0.5), 0.0, 1.0)
    assert slope_at(kind(0.5, 50.0), -1e-9, 1.0) != slope_at(losses.DPO(0.5), -1e-9, 1.0)


def test_apo_zero_is_flat_in_the_response_that_is_far_out_and_in_no_other():
    for far in (-1e4, 1e4):
        assert slope_at(losses.APOZero(0.5), far, 0.0) == (0, 0.125)
        assert slope_at(losses.APOZero(0.5), 0.0, far) == (-0.125, 0)


def test_apo_down_pushes_the_chosen_down_only_where_the_margin_exceeds_its_log_ratio():
    assert slope_at(losses.APODown(0.5), 0.0, 0.0) == (0, 0.125)
    for u_w, u_l in np.random.default_rng(2).uniform(-6, 6, (40, 2)):
        by_chosen, by_rejected = slope_at(losses.APODown(0.5), u_w, u_l)
        assert np.sign(by_chosen) == np.sign(abs(u_w - u_l) - abs(u_w))
        assert by_rejected > 0


def test_discopop_rises_at_the_reference_below_a_temperature_and_not_above_it():
    edge = (1 - np.log(2)) / 3
    assert slope_at(losses.DiscoPOP(0.5, 0.999 * edge), 0.0, 0.0)[0] > 0
    assert slope_at(losses.DiscoPOP(0.5, 1.001 * edge), 0.0, 0.0)[0] < 0


def test_robust_dpo_has_no_lower_bound_unless_no_label_is_wrong():
    slope = slope_at(losses.RobustDPO(1.0, 0.1), 1e3, 0.0)[0]
    np.testing.assert_allclose(slope, -0.1 / 0.8, rtol=1e-13)
    far = losses.Pair(*map(jnp.asarray, (1e3, 0.0, 0.0, 0.0, 1.0, 1.0)))
    assert losses.RobustDPO(1.0, 0.1)(far) < -100
    assert losses.RobustDPO(1.0, 0.0)(far) == 0


def test_near_a_zero_the_loss_of_exo_is_accurate_to_its_terms_and_not_to_itself():
    places = np.log(999.0) * (1 + 1e-6 * np.arange(1, 9))
    got = functions.exchanged(jnp.asarray(places), jnp.asarray(1e-3))
    with mpmath.workdps(60):
        e, right = mpf(1e-3), [logistic(mpf(z)) for z in places]
        wanted = [s * mpmath.log(s / (1 - e)) + (1 - s) * mpmath.log((1 - s) / e) for s in right]
        largest = max(-(1 - s) * mpmath.log(1 - s) for s in right)
    error = np.abs(np.asarray(got) - np.array(wanted, float))
    assert np.max(error) <= 4 * np.finfo(float).eps * float(largest)
    assert np.max(error / np.array(wanted, float)) > 1e-9


def test_the_hinge_of_cpo_is_that_of_slic_over_its_margin():
    delta, lam, length = 4.0, 0.3, 5.0
    for chosen, rejected in [(-7.0, -8.0), (-7.0, -30.0)]:
        pair = losses.Pair(*map(jnp.asarray, (chosen, rejected, 0.0, 0.0, length, 6.0)))
        slic = max(0, delta - (chosen - rejected)) - lam * chosen / length
        got = losses.CPOHinge(1 / delta, lam / delta)(pair)
        np.testing.assert_allclose(got, slic / delta, rtol=1e-14)


class Halved(losses.AbstractDivergence):
    """A divergence of one's own: half a log-ratio."""

    def score(self, log_ratio):
        return log_ratio / 2


class HalvedAtOnce(Halved):
    """The same, with its own way to subtract."""

    def margin(self, chosen, rejected):
        return (chosen - rejected) / 2


@pytest.mark.parametrize("divergence", [Halved(), HalvedAtOnce()])
def test_a_divergence_subtracts_its_scores_in_its_own_way(divergence):
    pairs = pairs_of(losses.DPO, LOG_RATIOS["float64"], "float64")
    np.testing.assert_array_equal(losses.DPO(0.5, divergence)(pairs), losses.DPO(0.25)(pairs))
    one, far = jnp.ones(()), jnp.full((), np.inf)
    certain = losses.Pair(far, far, 0 * one, 0 * one, one, one)
    assert np.isnan(losses.DPO(0.5, divergence)(certain)) == isinstance(divergence, HalvedAtOnce)
    assert "select" not in compiled(losses.DPO())
    assert "select" in compiled(losses.DPO(divergence=Halved()))


def test_alphapo_keeps_its_shape_as_any_kind_of_number():
    pairs = pairs_of(losses.DPO, [-3.0, -0.5, 0.0], "float64")
    moved = jax.tree.map(lambda leaf: leaf * 1.0, losses.AlphaPO(alpha=2.0))
    assert isinstance(moved.alpha, float)
    np.testing.assert_array_equal(moved(pairs), losses.AlphaPO(alpha=2.0)(pairs))
    np.testing.assert_allclose(losses.SimPO()(pairs), losses.AlphaPO(alpha=0.0)(pairs), rtol=1e-14)


@pytest.mark.parametrize("kind", OF_A_BATCH)
def test_where_pairs_tie_the_derivative_is_that_of_their_order_in_the_batch(kind):
    chosen, rejected = np.array([2.0, 2.0, -1.0]), np.zeros(3)
    reference = np.array([0.5, 0.0, 1.0])
    columns = (chosen, rejected, rejected, reference, np.ones(3), np.ones(3))

    def gradient(nudge):
        pairs = losses.Pair(*map(jnp.asarray, (chosen + nudge, *columns[1:])))
        return np.array(jax.grad(lambda p: jnp.sum(kind(0.7)(p)))(pairs).chosen)

    np.testing.assert_allclose(gradient(0), gradient(np.array([0, 1e-12, 0])), rtol=1e-9)
    assert not np.allclose(gradient(0), gradient(np.array([1e-12, 0, 0])), rtol=1e-9)


def test_what_was_traced_in_64_bits_is_not_remembered_in_32():
    levels = np.array([0.37])

    @jax.jit
    def scaled(x):
        with jax.enable_x64(True):
            return x * floats(levels)

    scaled(jnp.ones(1))
    with jax.enable_x64(False):
        assert floats(levels).dtype == np.float32
