"""Brownian bridges between the ends of a step: whether they cross a boundary, and when.

A bridge over time h with variance σ²h, between distances a, b > 0 from a plane, stays positive with
the probability 1 − exp(−2ab/(σ²h)). Given that it crosses, the time to its first crossing over the
time from there to the end of the step is an inverse Gaussian variable, which is drawn after
Michael, Schucany and Haas.

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
    """The probability that a bridge from a gap a > 0 to a gap b stays positive.

    1 − exp(−2ab/s), and 0 where b ≤ 0.

    Args:
        gaps: a, at the start of a step.
        ahead: b, at its end.
        spread: s, the variance that the free motion gains in the step; it may be 0.
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
    """The fraction of a step at which a bridge first crosses zero, given that it does.

    The time to the crossing over the time after it is an inverse Gaussian variable with mean a/|b|
    and shape a²/s, whether the bridge ends outside or, by reflection, inside. Its inverse is drawn,
    since that is finite at b = 0, and is b/a at s = 0.

    Args:
        key: For the draw.
        gaps: a, at the start of the step.
        ahead: b, at its end.
        spread: s, the variance that the free motion gains in the step.

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
