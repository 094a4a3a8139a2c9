"""Arguments of the closed forms, converted to float64 and checked."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from flowlab._checks import real

__all__ = ["Points", "Values", "pairs", "quiet", "ratios", "values"]

Values: TypeAlias = Float[np.ndarray, "..."]
Points: TypeAlias = Float[np.ndarray, "... 2"]

# Infinite log-ratios and times are valid here; NaN marks a missing value.
quiet = np.errstate(divide="ignore", over="ignore", invalid="ignore")


def values(name: str, given: ArrayLike) -> Values:
    """Real numbers of any shape, in float64; NaN and infinity are allowed.

    Raises:
        ValueError: If `given` does not hold real numbers.
    """
    return real(name, given).astype(np.float64)


def pairs(points: ArrayLike, name: str) -> Points:
    """Points with two components, in float64, shape (..., 2).

    Raises:
        ValueError: If `points` has another shape, or does not hold real numbers.
    """
    held = values(name, points)
    if held.shape[-1:] != (2,):
        raise ValueError(f"Argument `{name}` must have shape (..., 2), but has shape {held.shape}.")
    return held


def ratios(start: ArrayLike, name: str = "start") -> tuple[Values, Values]:
    """The two components of points: finite, not negative, not both 0; NaN is allowed.

    Raises:
        ValueError: If a component is negative or infinite, or a point is the origin.
    """
    held = pairs(start, name)
    wrong = np.any((held < 0) | np.isinf(held), axis=-1)
    if np.any(wrong):
        raise ValueError(
            f"Argument `{name}` must be finite and not negative, but has {held[wrong][0]}."
        )
    if np.any(np.all(held == 0, axis=-1)):
        raise ValueError(
            f"Argument `{name}` must not be the origin, but has [0. 0.]; leave it out."
        )
    return np.asarray(held[..., 0]), np.asarray(held[..., 1])
