"""Brownian bridges between the ends of a step: whether they cross a boundary, and when.

A bridge over time h with variance σ²h, between distances a, b > 0 from a plane, stays positive with
the probability 1 − exp(−2ab/(σ²h)). If it crosses, let t be the time from the start of the step to
the first crossing. The ratio t/(h − t) is then an inverse Gaussian variable, which is drawn by the
method of Michael, Schucany and Haas.

m: boundaries.

Source: Gobet, Stochastic Processes and their Applications 87 (2000) 167–197; Michael, Schucany and
Haas, The American Statistician 30 (1976) 88–90.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["crossing_fraction", "survival_probability"]


def survival_probability(
    gaps: Float[Array, " m"], ahead: Float[Array, " m"], spread: Float[Array, " m"]
) -> Float[Array, " m"]:
    """The probability that a bridge from a > 0 to b stays positive: 1 − exp(−2ab/s), 0 if b ≤ 0.

    Args:
        gaps: a, the value at the start of a step.
        ahead: b, the value at the end of the step.
        spread: s, the variance of the unconditioned motion over the step; it may be 0.
    """
    exponent = -2 * gaps * ahead / jnp.where(spread > 0, spread, 1)
    within = jnp.where(spread > 0, -jnp.expm1(jnp.minimum(exponent, 0)), 1)
    return jnp.where(ahead <= 0, 0, within)


def crossing_fraction(
    key: PRNGKeyArray,
    gaps: Float[Array, " m"],
    ahead: Float[Array, " m"],
    spread: Float[Array, " m"],
) -> Float[Array, " m"]:
    """Draw the fraction of a step at which a bridge first crosses zero, given that it crosses.

    The ratio of the time before the crossing to the time after it is an inverse Gaussian variable
    with mean a/|b| and shape a²/s. This holds if the bridge ends outside and, by reflection, if it
    ends inside. The inverse ratio is drawn, since it is finite at b = 0, and equals |b|/a at s = 0.

    Args:
        key: The random key.
        gaps: a, the value at the start of the step.
        ahead: b, the value at the end of the step.
        spread: s, the variance of the unconditioned motion over the step.

    Source: Michael, Schucany and Haas, The American Statistician 30, 88–90 (1976).
    """
    normal_key, uniform_key = jax.random.split(key)
    square = jax.random.normal(normal_key, gaps.shape, gaps.dtype) ** 2
    chosen = jax.random.uniform(uniform_key, gaps.shape, gaps.dtype)
    mean = jnp.abs(ahead) / gaps
    half = square * spread / (2 * gaps**2)
    inverse = mean + half + jnp.sqrt(2 * mean * half + half**2)
    other = mean**2 / inverse
    return 1 / (1 + jnp.where(chosen * (1 + mean / inverse) <= 1, inverse, other))
