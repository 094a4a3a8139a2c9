"""A step of a flow line as polynomials that interpolate values at its nodes.

k: nodes of a step.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

__all__ = ["NODES", "argmin", "at", "coefficients", "first_rise", "first_root", "time_below"]

NODES = 7  # points of a step that folds get, interpolated by a polynomial of degree six
_GRID = np.linspace(0.0, 1.0, NODES)
_TO_COEFFICIENTS = np.linalg.inv(
    np.vander(_GRID)
)  # values at the nodes -> coefficients, highest power first
_FINE = np.linspace(0.0, 1.0, 4 * (NODES - 1) + 1)
_NEWTON_STEPS = 6  # from a linear guess between nodes, more than enough for the polynomial


def coefficients(values: Float[Array, "k ..."]) -> Float[Array, "k ..."]:
    """The coefficients of the polynomial through values at the nodes, highest power first."""
    return jnp.tensordot(jnp.asarray(_TO_COEFFICIENTS, values.dtype), values, axes=1)


def at(values: PyTree[Float[Array, "k ..."]], position: Float[Array, ""]) -> PyTree[Array]:
    """The polynomial through values at the nodes, evaluated at a position in [0, 1]."""
    powers = jnp.stack([position**power for power in range(NODES - 1, -1, -1)])
    return jax.tree.map(lambda leaf: jnp.tensordot(powers, coefficients(leaf), axes=1), values)


def _roots(values: Float[Array, " k"]) -> Float[Array, " k-1"]:
    """A root of the polynomial in each interval between nodes; valid where the sign changes."""
    left, right = (jnp.asarray(edge, values.dtype) for edge in (_GRID[:-1], _GRID[1:]))
    rise = values[1:] - values[:-1]
    guess = left - values[:-1] / jnp.where(rise == 0, 1, rise) * (right - left)
    return _refined(coefficients(values), guess, left, right)


def _refined(
    powers: Float[Array, " k"],
    position: Float[Array, "*i"],
    left: Float[Array, "*i"],
    right: Float[Array, "*i"],
) -> Float[Array, "*i"]:
    """Roots of a polynomial from guesses, by Newton's method within brackets."""
    derivative = jnp.polyder(powers)
    for _ in range(_NEWTON_STEPS):
        slope = jnp.polyval(derivative, position)
        step = jnp.polyval(powers, position) / jnp.where(slope == 0, 1, slope)
        position = jnp.clip(position - step, left, right)
    return position


def time_below(values: Float[Array, " k"], time: Float[Array, " k"]) -> Float[Array, ""]:
    """The time for which the polynomial through values at the nodes is negative."""
    at_roots = jax.vmap(lambda position: at(time, position))(_roots(values))
    low = values < 0
    falls, rises = low[1:] & ~low[:-1], low[:-1] & ~low[1:]
    spent = jnp.where(low[:-1] & low[1:], time[1:] - time[:-1], 0)
    spent = jnp.where(falls, time[1:] - at_roots, spent)
    return jnp.sum(jnp.where(rises, at_roots - time[:-1], spent))


def argmin(values: Float[Array, " k"]) -> Float[Array, ""]:
    """The position in [0, 1] of the minimum of the polynomial through values at the nodes."""
    powers = coefficients(values)
    fine = jnp.asarray(_FINE, values.dtype)
    position = fine[jnp.argmin(jnp.polyval(powers, fine))]
    slope, bend = jnp.polyder(powers), jnp.polyder(powers, 2)
    spacing = _FINE[1]
    for _ in range(_NEWTON_STEPS):
        curvature = jnp.polyval(bend, position)
        step = jnp.polyval(slope, position) / jnp.where(curvature > 0, curvature, 1)
        step = jnp.where(curvature > 0, jnp.clip(step, -spacing, spacing), 0)
        position = jnp.clip(position - step, 0, 1)
    return position


def first_root(values: Float[Array, " k"]) -> tuple[Array, Float[Array, ""]]:
    """The first sign change of the polynomial through values at the nodes.

    Returns a flag that there is a sign change, and its position in [0, 1].
    """
    changes = (values[:-1] != 0) & (jnp.sign(values[1:]) != jnp.sign(values[:-1]))
    return jnp.any(changes), _roots(values)[jnp.argmax(changes)]


def first_rise(
    values: Float[Array, " k"], after: Float[Array, ""]
) -> tuple[Array, Float[Array, ""]]:
    """The first return to 0 of the polynomial through values at the nodes, after a position.

    The polynomial is negative at the position `after`. Returns a flag that there is a return to 0,
    and its position in [0, 1].
    """
    powers, fine = coefficients(values), jnp.asarray(_FINE, values.dtype)
    heights = jnp.polyval(powers, fine)
    back = (fine > after) & (heights >= 0)
    first = jnp.argmax(back)
    left = jnp.maximum(fine[jnp.maximum(first - 1, 0)], after)
    low, high = jnp.polyval(powers, left), heights[first]
    rise = high - low
    guess = left - low / jnp.where(rise == 0, 1, rise) * (fine[first] - left)
    return jnp.any(back), _refined(powers, guess, left, fine[first])
