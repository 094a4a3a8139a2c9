"""Elementwise functions of which the losses are composed, with derivative rules.

Each rule avoids one of three faults of automatic differentiation: a logarithm that remains in the
gradient, where it costs several times as much as the sigmoid; a subtraction from one, in which a
small derivative loses all its digits; a NaN from 0·∞ at large arguments.

Accuracy: a few units in the last place of the largest term, for every finite argument. If terms
cancel, as at the zero of `exchanged`, the value has fewer correct digits. A result below the
smallest normal number becomes a zero of the same sign, even if it is then multiplied by a large
number. If a power overflows, reverse mode gives infinities of the right sign, and forward mode may
give NaN.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

__all__ = [
    "difference",
    "discovered",
    "exchanged",
    "log_odds_loss",
    "negative_log_sigmoid",
    "power_reward",
    "relu",
    "sigmoid",
    "smoothed",
    "weighted",
]


@jax.custom_jvp
def sigmoid(z: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """The sigmoid σ(z), with the derivative rule σ(z)σ(−z).

    The rule of `jax.nn.sigmoid`, σ(z)(1 − σ(z)), is 0 from z = 37 on.
    """
    return jax.nn.sigmoid(z)


@sigmoid.defjvp
def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    (z,), (tangent,) = primals, tangents
    return sigmoid(z), sigmoid(z) * sigmoid(-z) * tangent


@jax.custom_jvp
def negative_log_sigmoid(z: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """The logistic loss −log σ(z), with the derivative rule −σ(−z).

    The rule of `jax.nn.log_sigmoid` would leave a needless logarithm in the compiled derivative.
    """
    return jax.nn.softplus(-z)


@negative_log_sigmoid.defjvp
def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    (z,), (tangent,) = primals, tangents
    return negative_log_sigmoid(z), -sigmoid(-z) * tangent


def relu(x: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """max(x, 0); at the kink the derivative is 0, the left-hand derivative, as in PyTorch."""
    return jax.nn.relu(x)


@jax.custom_jvp
def smoothed(z: Float[Array, "*p"], wrong: Float[Array, "..."]) -> Float[Array, "*p"]:
    """−(1−w) log σ(z) − w log σ(−z): a logistic loss with smoothed labels.

    For 0 ≤ w < ½ a fraction w of the labels is taken to be flipped; w may also be negative, as for
    robust DPO. The derivative with respect to z is w − σ(−z), which needs only one sigmoid. If w is
    0, the second term is 0 even if z has overflowed.
    """
    other = jnp.where(wrong == 0, 0, wrong * negative_log_sigmoid(-z))
    return (1 - wrong) * negative_log_sigmoid(z) + other


@smoothed.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (z, wrong), (by_z, by_wrong) = primals, tangents
    return smoothed(z, wrong), -(sigmoid(-z) - wrong) * by_z + _finite(z) * by_wrong


@jax.custom_jvp
def exchanged(z: Float[Array, "*p"], smoothing: Float[Array, "..."]) -> Float[Array, "*p"]:
    """KL divergence of (σ(z), σ(−z)) from (1−ε, ε), the loss of EXO for two responses.

    Its derivative with respect to z is σ(z)σ(−z)(z − log((1−ε)/ε)), which needs no logarithm of a
    function of z.
    """
    z = _finite(z)
    right, wrong = _log_odds_of_label(smoothing)
    return sigmoid(-z) * (-negative_log_sigmoid(-z) - wrong) + sigmoid(z) * (
        -negative_log_sigmoid(z) - right
    )


@exchanged.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (z, smoothing), (by_z, by_smoothing) = primals, tangents
    right, wrong = _log_odds_of_label(smoothing)
    slope = sigmoid(z) * sigmoid(-z) * (_finite(z) - (right - wrong))
    bend = sigmoid(z) / (1 - smoothing) - sigmoid(-z) / smoothing
    return exchanged(z, smoothing), slope * by_z + bend * by_smoothing


def _log_odds_of_label(smoothing: Float[Array, "..."]) -> tuple[Array, Array]:
    return jnp.log1p(-smoothing), jnp.log(smoothing)


@jax.custom_jvp
def discovered(z: Float[Array, "*p"], tau: Float[Array, "..."]) -> Float[Array, "*p"]:
    """(1−m)(−log σ(z)) + m·e^{−z} with m = σ(z/τ), the loss of DiscoPOP.

    m·e^{−z} is computed as one exponential, since e^{−z} alone can overflow even if the product is
    tiny. The derivative rule collects the factors of this term; autodiff would subtract them as inf
    − inf where they overflow.
    """
    return sigmoid(-z / tau) * negative_log_sigmoid(z) + _mixed_exponential(z, tau)


@functools.partial(discovered.defjvp, symbolic_zeros=True)
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (z, tau), (by_z, by_tau) = primals, tangents
    left, right = sigmoid(-z / tau), sigmoid(z / tau)
    logistic, exponential = negative_log_sigmoid(_finite(z)), _mixed_exponential(z, tau)
    tangent = jnp.zeros_like(z)
    if not isinstance(by_z, SymbolicZero):
        slope = exponential * (left / tau - 1) - left * (sigmoid(-z) + right * logistic / tau)
        tangent = slope * by_z
    if not isinstance(by_tau, SymbolicZero):
        by_mixture = left * exponential - left * right * logistic
        tangent = tangent - by_mixture * _finite(z) / tau**2 * by_tau
    return discovered(z, tau), tangent


def _mixed_exponential(z: Float[Array, "*p"], tau: Float[Array, "..."]) -> Float[Array, "*p"]:
    """The product σ(z/τ)·e^{−z}."""
    exponent = jnp.where(z < 0, _finite(z) * ((1 - tau) / tau), -z)
    return jnp.exp(exponent) * sigmoid(jnp.abs(z / tau))


def _finite(z: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """The number itself, or the largest float for ∞, so that its product with 0 is 0."""
    largest = jnp.finfo(z.dtype).max
    return jnp.clip(z, -largest, largest)


@jax.custom_jvp
def power_reward(log_probability: Float[Array, "*p"], power: Float[Array, ""]) -> Array:
    """(e^{a·v} − 1)/a of a log-probability v and a power a; v in the limit a → 0.

    The derivative e^{a·v} with respect to v is applied as two factors e^{a·v/2}, one after the
    other, so that its product with 0 is 0 even if e^{a·v} overflows.
    """
    scaled = power * log_probability
    nothing = power == 0
    return jnp.where(nothing, log_probability, jnp.expm1(scaled) / jnp.where(nothing, 1, power))


@functools.partial(power_reward.defjvp, symbolic_zeros=True)
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (v, power), (by_v, by_power) = primals, tangents
    tangent = jnp.zeros_like(v)
    if not isinstance(by_v, SymbolicZero):
        cap = -0.99 * float(np.log(jnp.finfo(v.dtype).tiny))
        root = jnp.exp(jnp.clip(power * v / 2, -cap, cap))
        tangent = by_v * root * root
    if not isinstance(by_power, SymbolicZero):
        tangent = tangent + _by_power(v, power) * by_power
    return power_reward(v, power), tangent


def _by_power(v: Float[Array, "*p"], power: Float[Array, ""]) -> Array:
    """The derivative of (e^{a·v} − 1)/a with respect to a; a series replaces it near a·v = 0."""
    scaled = power * v
    close = jnp.abs(scaled) < 1e-2
    series = v**2 * (1 / 2 + scaled * (1 / 3 + scaled * (1 / 8 + scaled * (1 / 30 + scaled / 144))))
    quotient = (scaled + (scaled - 1) * jnp.expm1(scaled)) / jnp.where(close, 1, power) ** 2
    return jnp.where(close, series, quotient)


@jax.custom_jvp
def weighted(weight: Float[Array, "*p"], value: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """The product weight · value, which is 0 if the weight is 0, even if the value is not finite.

    The derivative with respect to the weight is the value, even if the weight is 0.
    """
    return jnp.where(weight == 0, 0, weight * value)


@functools.partial(weighted.defjvp, symbolic_zeros=True)
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (weight, value), (by_weight, by_value) = primals, tangents
    tangent = jnp.zeros_like(value)
    if not isinstance(by_value, SymbolicZero):
        tangent = jnp.where(weight == 0, 0, weight * by_value)
    if not isinstance(by_weight, SymbolicZero):
        tangent = tangent + value * by_weight
    return weighted(weight, value), tangent


@jax.custom_jvp
def difference(
    first: Float[Array, "*p"], second: Float[Array, "*p"], order: Float[Array, "*p"]
) -> Float[Array, "*p"]:
    """`first` − `second`, which is ±∞ or 0 with the sign of `order` if both are the same infinity.

    Args:
        first: Minuend.
        second: Subtrahend.
        order: A number with the sign of the difference. If both terms are values of an increasing
            function, the difference of its arguments will do. It does not enter the derivative.
    """
    same = jnp.isinf(first) & (first == second)
    signed = jnp.where(order == 0, 0, jnp.copysign(jnp.asarray(jnp.inf, order.dtype), order))
    return jnp.where(same, signed, first - jnp.where(same, 0, second))


@difference.defjvp
def _(primals: tuple[Any, Any, Any], tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    return difference(*primals), tangents[0] - tangents[1]


@jax.custom_jvp
def log_odds_loss(chosen: Float[Array, "*p"], rejected: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """−log σ(logit p − logit q), with probabilities p = e^{chosen} and q = e^{rejected}.

    The value is inf if `chosen` or `rejected` is positive or both are 0, because the difference of
    the log odds is then undefined. The derivative with respect to an argument out of its range is
    inf, too. Otherwise the derivatives, with r = p/q, are

        −1/(1−p + r(1−q))  for `chosen`,    (1−p)/(1−q) / (1−p + r(1−q))  for `rejected`.

    They need no logarithm and remain accurate as p → 1.
    """
    value = negative_log_sigmoid(_log_odds(chosen) - _log_odds(rejected))
    return jnp.where(_without_odds(chosen, rejected), jnp.inf, value)


@log_odds_loss.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    chosen, rejected = primals
    left, right = -jnp.expm1(chosen), -jnp.expm1(rejected)
    share = 1 / (left + jnp.exp(chosen - rejected) * right)
    nowhere = _without_odds(chosen, rejected)
    by_chosen = jnp.where(nowhere & (chosen >= 0), jnp.inf, -share)
    by_rejected = jnp.where(rejected >= 0, jnp.inf, share * left / right)
    by_chosen = jnp.where(nowhere & (chosen < 0), 0, by_chosen)
    by_rejected = jnp.where(nowhere & (rejected < 0), 0, by_rejected)
    return log_odds_loss(chosen, rejected), by_chosen * tangents[0] + by_rejected * tangents[1]


def _log_odds(q: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """Log odds q − log(1 − e^q) of a probability e^q, from the formula that does not cancel."""
    inside = jnp.minimum(q, 0)
    near = inside > -jnp.log(jnp.asarray(2, q.dtype))
    by_expm1 = jnp.log(-jnp.expm1(jnp.where(near, inside, -1)))
    by_log1p = jnp.log1p(-jnp.exp(jnp.where(near, -1, inside)))
    return inside - jnp.where(near, by_expm1, by_log1p)


def _without_odds(chosen: Float[Array, "*p"], rejected: Float[Array, "*p"]) -> Array:
    return (chosen > 0) | (rejected > 0) | ((chosen == 0) & (rejected == 0))
