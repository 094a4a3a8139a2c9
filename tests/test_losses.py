"""DPO against fifty digits and against TRL; pairs, batches, weights, and bad strengths."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import flowlab as fl
from flowlab.losses import negative_log_sigmoid

TRL = json.loads((Path(__file__).parent / "data" / "trl_dpo.json").read_text())["cases"]
BETAS = (0.003, 0.1, 1.0, 7.0)
SCALED = np.concatenate([np.linspace(-700, 700, 41), np.linspace(-3, 3, 13), [1e-9, -1e-9]])


def pair_at(margin) -> fl.Pair:
    """A pair whose margin is exactly the one given."""
    chosen = jnp.asarray(margin)
    nothing, one = jnp.zeros_like(chosen), jnp.ones_like(chosen)
    return fl.Pair(chosen, nothing, nothing, nothing, one, one)


def summed(beta, margins):
    return jnp.sum(fl.DPO(beta)(pair_at(margins)))


@jax.jit
def of_margins(beta, margins):
    """Values of the loss, and its first two derivatives by the margin."""
    first = jax.grad(summed, 1)
    _, second = jax.jvp(lambda m: first(beta, m), (margins,), (jnp.ones_like(margins),))
    return fl.DPO(beta)(pair_at(margins)), first(beta, margins), second


def to_fifty_digits(beta, margins):
    with mpmath.workdps(50):
        strength = mpmath.mpf(float(beta))
        scaled = [strength * mpmath.mpf(float(margin)) for margin in margins]
        values = [mpmath.log1p(mpmath.exp(-z)) for z in scaled]
        slopes = [-strength / (1 + mpmath.exp(z)) for z in scaled]
        bends = [strength**2 / ((1 + mpmath.exp(z)) * (1 + mpmath.exp(-z))) for z in scaled]
        return tuple(np.array([float(x) for x in row]) for row in (values, slopes, bends))


@pytest.mark.parametrize("beta", BETAS)
def test_values_and_gradients_agree_with_fifty_digits(beta):
    margins = SCALED / beta
    value, slope, _ = of_margins(jnp.asarray(beta), jnp.asarray(margins))
    wanted_value, wanted_slope, _ = to_fifty_digits(beta, margins)
    np.testing.assert_allclose(value, wanted_value, rtol=1e-12)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_second_derivatives_are_finite_and_right(beta):
    margins = SCALED / beta
    _, _, bend = of_margins(jnp.asarray(beta), jnp.asarray(margins))
    np.testing.assert_allclose(
        bend, to_fifty_digits(beta, margins)[2], rtol=1e-12, atol=1e-15 * beta**2
    )


def test_far_margins_give_zeros_of_the_right_sign_and_no_nan():
    margins = jnp.asarray([1e4, 1e300, -1e4, -1e300])
    value, slope, bend = of_margins(jnp.asarray(1.0), margins)
    np.testing.assert_array_equal(value, [0, 0, 1e4, 1e300])
    np.testing.assert_array_equal(slope, [0, 0, -1, -1])
    np.testing.assert_array_equal(bend, 0)
    assert not np.any(np.signbit(value))
    assert np.all(np.signbit(slope))


def test_single_precision_stays_single_and_keeps_its_digits():
    margins = (np.linspace(-80, 80, 33) / 0.3).astype(np.float32)
    value, slope, bend = of_margins(np.float32(0.3), jnp.asarray(margins))
    assert value.dtype == slope.dtype == bend.dtype == jnp.float32
    wanted_value, wanted_slope, _ = to_fifty_digits(np.float32(0.3), margins)
    np.testing.assert_allclose(value, wanted_value, rtol=2e-5)
    np.testing.assert_allclose(slope, wanted_slope, rtol=2e-5)
    # A strength given in double precision does not raise the precision of the work.
    assert fl.DPO(0.3)(pair_at(margins)).dtype == jnp.float32


@pytest.mark.parametrize("numbers", [int, float, np.int32])
def test_integers_and_plain_numbers_are_pairs_too(numbers):
    pair = fl.Pair(*(numbers(value) for value in (-5, -7, -5, -9, 3, 4)))
    assert pair.margin == -2
    np.testing.assert_allclose(fl.DPO(0.1)(pair), np.log1p(np.exp(0.2)), rtol=1e-14)


@pytest.mark.parametrize("case", TRL, ids=lambda case: f"beta-{case['beta']}")
def test_values_and_gradients_are_those_of_trl(case):
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    names += ("chosen_len", "rejected_len")
    pairs = fl.Pair(*(jnp.asarray(case[name], float) for name in names))
    loss, gradient = jax.jit(jax.value_and_grad(fl.DPO(case["beta"]).mean))(pairs)
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-10)
    np.testing.assert_allclose(gradient.chosen, case["grad_chosen"], rtol=1e-10)
    np.testing.assert_allclose(gradient.rejected, case["grad_rejected"], rtol=1e-10)


def test_log_ratios_and_margin_are_those_of_the_definition():
    pair = fl.Pair(*(jnp.asarray([value]) for value in (-3.0, -7.0, -4.0, -5.0, 11.0, 13.0)))
    assert (pair.u_chosen[0], pair.u_rejected[0], pair.margin[0]) == (1, -2, 3)


def test_a_batch_has_one_value_per_pair_and_their_mean():
    margins = np.random.default_rng(0).normal(size=(2, 3))
    values = fl.DPO(0.7)(pair_at(margins))
    assert values.shape == (2, 3)
    np.testing.assert_allclose(values, np.log1p(np.exp(-0.7 * margins)), rtol=1e-13)
    np.testing.assert_allclose(fl.DPO(0.7).mean(pair_at(margins)), np.mean(values), rtol=1e-14)


def test_weights_are_those_of_a_weighted_mean_whatever_their_sum():
    pairs, weights = pair_at(np.asarray([-1.0, 0.5, 2.0, 9.0])), np.asarray([3.0, 0.0, 1.0, 4.0])
    wanted = np.average(fl.DPO(0.7)(pairs), weights=weights)
    np.testing.assert_allclose(fl.DPO(0.7).mean(pairs, weights), wanted, rtol=1e-14)
    np.testing.assert_allclose(fl.DPO(0.7).mean(pairs, 9 * weights), wanted, rtol=1e-14)


def test_a_strength_may_be_given_for_each_pair():
    margins, betas = np.asarray([-1.0, 0.5, 2.0]), np.asarray([0.1, 0.5, 3.0])
    wanted = np.log1p(np.exp(-betas * margins))
    np.testing.assert_allclose(fl.DPO(betas)(pair_at(margins)), wanted, rtol=1e-14)


def test_the_strength_is_a_leaf_with_a_derivative():
    assert len(jax.tree.leaves(fl.DPO(0.2))) == 1
    slope = jax.grad(lambda beta: fl.DPO(beta)(pair_at(3.0)))(0.2)
    np.testing.assert_allclose(slope, -3 / (1 + np.exp(0.6)), rtol=1e-13)


def test_the_gradient_needs_no_logarithm():
    assert "log" in str(jax.make_jaxpr(negative_log_sigmoid)(1.0))
    gradient = jax.jit(jax.grad(negative_log_sigmoid)).lower(1.0).compile()
    assert "log-plus-one" not in str(gradient.as_text())


@pytest.mark.parametrize("beta", [0, -1, np.nan, np.inf, "strong", None, [0.1, -0.1], [0.1, 1j]])
def test_a_strength_that_is_not_positive_and_finite_is_refused(beta):
    with pytest.raises(ValueError) as caught:
        fl.DPO(beta)
    assert str(caught.value) == f"Argument `beta` must be positive and finite, but is {beta!r}."
