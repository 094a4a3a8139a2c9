"""Arguments of the closed forms, converted to float64 and checked at the door."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

Values: TypeAlias = Float[np.ndarray, "..."]
Points: TypeAlias = Float[np.ndarray, "... 2"]

# Infinite log-ratios and times are values here; what has no value is given as NaN by choice.
quiet = np.errstate(divide="ignore", over="ignore", invalid="ignore")


def pairs(points: ArrayLike, name: str) -> Points:
    values = np.asarray(points, dtype=np.float64)
    if values.shape[-1:] != (2,):
        raise ValueError(
            f"Argument `{name}` must have shape (..., 2), but has shape {values.shape}."
        )
    return values


def ratios(start: ArrayLike, name: str = "start") -> tuple[Values, Values]:
    """Both components, checked; NaN passes, and gives NaN."""
    values = pairs(start, name)
    wrong = np.any((values < 0) | np.isinf(values), axis=-1)
    if np.any(wrong):
        raise ValueError(
            f"Argument `{name}` must be finite and not negative, but has {values[wrong][0]}."
        )
    if np.any(np.all(values == 0, axis=-1)):
        raise ValueError(
            f"Argument `{name}` must not be the origin, but has [0. 0.]; leave it out."
        )
    return np.asarray(values[..., 0]), np.asarray(values[..., 1])


def positive(name: str, value: ArrayLike) -> Values:
    values = np.asarray(value, dtype=np.float64)
    wrong = ~((values > 0) & np.isfinite(values))
    if np.any(wrong):
        raise ValueError(
            f"Argument `{name}` must be positive and finite, but has {values[wrong][0]}."
        )
    return values


def not_negative(name: str, value: ArrayLike) -> Values:
    values = np.asarray(value, dtype=np.float64)
    wrong = ~(values >= 0)
    if np.any(wrong):
        raise ValueError(f"Argument `{name}` must not be negative, but has {values[wrong][0]}.")
    return values


def probability(name: str, value: ArrayLike) -> Values:
    values = np.asarray(value, dtype=np.float64)
    wrong = ~((values > 0) & (values <= 1))
    if np.any(wrong):
        raise ValueError(f"Argument `{name}` must lie in (0, 1], but has {values[wrong][0]}.")
    return values
