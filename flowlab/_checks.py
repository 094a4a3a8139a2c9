"""Checks of arguments: each returns the value in the form in which it is used.

Every message reads "Argument `name` must ..., but is ...".
"""

import operator
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from flowlab._names import did_you_mean

__all__ = [
    "array",
    "between",
    "choice",
    "floating",
    "integer",
    "number",
    "numbers",
    "positive",
    "real",
    "shown",
    "span",
    "within",
]

# The conditions in words for intervals that have a name.
_WITHIN = {
    "(-inf, inf)": "be finite",
    "(0, inf)": "be positive and finite",
    "[0, inf)": "be finite and at least 0",
    "[0, inf]": "not be negative",
}


def numbers(value: Any) -> np.ndarray:
    """Values as real numbers in float64; a single NaN if they are not numbers.

    An empty array stays empty.
    """
    nothing = np.asarray(np.nan)
    try:
        held = np.asarray(value)
    except (TypeError, ValueError) as error:
        if "Tracer" in type(error).__name__:  # JAX says what that is, and why it is no number
            raise
        return nothing
    some = held.size > 0 or isinstance(value, np.ndarray)
    return held.astype(float) if some and _are_real(held) else nothing


def _are_real(held: np.ndarray) -> bool:
    """True if all elements are real numbers; texts and truth values are not."""
    if held.dtype.kind == "O":  # integers beyond 64 bits, fractions
        return all(isinstance(one, Real) and not isinstance(one, bool) for one in held.flat)
    # NumPy does not know the kind of the small floats of JAX.
    return held.dtype.kind in "iuf" or "float" in held.dtype.name


def number(name: str, value: Any) -> float:
    """A single finite number.

    Raises:
        ValueError: If `value` is anything else.
    """
    return _one(name, value, "(-inf, inf)", "be a finite number")


def positive(name: str, value: Any) -> float:
    """A single positive finite number.

    Raises:
        ValueError: If `value` is anything else.
    """
    return _one(name, value, "(0, inf)", "be positive and finite")


def between(name: str, value: Any, low: float, high: float) -> float:
    """A single number in a closed interval.

    Raises:
        ValueError: If `value` is anything else.
    """
    return _one(name, value, f"[{low}, {high}]", f"lie between {low:g} and {high:g}")


def _one(name: str, value: Any, interval: str, wanted: str) -> float:
    held = numbers(value)
    if held.ndim != 0 or not _lie_in(interval, held):
        raise ValueError(f"Argument `{name}` must {wanted}, but is {value!r}.")
    return float(held)


def within(name: str, value: Any, interval: str) -> Float[np.ndarray, "..."]:
    """Real numbers of any shape, all of them in an interval, in float64.

    Args:
        name: The name of the argument, for messages.
        value: The numbers.
        interval: The interval, such as "[0, 0.5)"; a round bracket excludes the end.

    Raises:
        ValueError: If a number lies outside the interval or is not real.
    """
    held = numbers(value)
    wrong = ~_lie_in(interval, held)
    if np.any(wrong):
        found = f"has {held[wrong][0]}" if held.ndim else f"is {value!r}"
        wanted = _WITHIN.get(interval, f"lie in {interval}")
        raise ValueError(f"Argument `{name}` must {wanted}, but {found}.")
    return held


def _lie_in(interval: str, held: np.ndarray) -> np.ndarray:
    """A mask of the numbers that lie in an interval; NaN lies in none."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = held >= low if interval[0] == "[" else held > low
    return np.asarray(above & (held <= high if interval[-1] == "]" else held < high))


def integer(name: str, value: Any, least: int = 1, *, most: int | None = None) -> int:
    """A whole number, of Python's type or NumPy's.

    Args:
        name: The name of the argument, for messages.
        value: The number.
        least: The smallest allowed number.
        most: The largest allowed number; None for no upper limit.

    Raises:
        ValueError: If `value` is not a whole number or is out of range.
    """
    try:
        whole = least - 1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        whole = least - 1
    if whole < least or (most is not None and whole > most):
        known = {0: "a non-negative int", 1: "a positive int"}
        wanted = known.get(least, f"an int of at least {least}")
        wanted = wanted if most is None else f"an int from {least} to {most}"
        raise ValueError(f"Argument `{name}` must be {wanted}, but is {value!r}.")
    return whole


def choice(name: str, value: Any, *known: str) -> Any:
    """One of several words.

    Raises:
        ValueError: If `value` is none of the words.
    """
    if not (isinstance(value, str) and value in known):
        listed = ", ".join(f'"{word}"' for word in known[:-1]) + f' or "{known[-1]}"'
        near = did_you_mean(value, known) if isinstance(value, str) else ""
        raise ValueError(f"Argument `{name}` must be {listed}, but is {value!r}{near or '.'}")
    return known[known.index(value)]  # the plain word, if the value is a member of an enumeration


def real(name: str, values: ArrayLike) -> np.ndarray:
    """Real numbers as an array; its dtype and shape are those of `numpy.asarray`.

    Raises:
        ValueError: If `values` holds anything but real numbers, has masked elements, or has rows of
            unequal lengths.
    """
    wanted = f"Argument `{name}` must hold real numbers, but"
    if np.ma.is_masked(values):
        raise ValueError(f"{wanted} some are masked; fill them in or leave them out.")
    try:
        held = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        if "Tracer" in type(error).__name__:  # JAX says what that is, and why it is no number
            raise
        raise ValueError(f"{wanted} is {values!r}.") from None
    if held.size and not _are_real(held):
        typed = hasattr(values, "dtype")
        raise ValueError(f"{wanted} {f'has dtype {held.dtype}' if typed else f'is {values!r}'}.")
    return held


def floating(held: np.ndarray) -> np.ndarray:
    """Real numbers as float32 if they are floats of at most 32 bits, else as float64.

    The size of the dtype decides, so that either byte order of a dtype is recognised.
    """
    is_float = held.dtype.kind not in "iuO"
    narrow = is_float and held.dtype.itemsize <= np.dtype(np.float32).itemsize
    return held.astype(np.float32 if narrow else np.float64)


def array(name: str, values: ArrayLike, *shapes: tuple[int | str, ...]) -> Float[np.ndarray, "..."]:
    """A finite array in float64 that has one of the allowed shapes and no empty axis.

    Args:
        name: The name of the argument, for messages.
        values: The numbers.
        shapes: The allowed shapes; a letter stands for an axis of any length.

    Raises:
        ValueError: If `values` does not hold finite real numbers, or has none of the shapes.
    """
    held = real(name, values).astype(float)
    if not (held.size and any(_fits(held.shape, shape) for shape in shapes)):
        wanted = " or ".join(str(shape).replace("'", "") for shape in shapes)
        raise ValueError(f"Argument `{name}` must have shape {wanted}, but has shape {held.shape}.")
    if not np.all(np.isfinite(held)):
        raise ValueError(f"Argument `{name}` must be finite, but is {shown(held)}.")
    return held


def span(name: str, value: Any) -> tuple[float, float]:
    """The lower and the upper end of an axis.

    Raises:
        ValueError: If `value` is not a pair of finite numbers, the lower one first.
    """
    ends = numbers(value)
    if ends.shape != (2,) or not np.all(np.isfinite(ends)) or ends[0] >= ends[1]:
        raise ValueError(f"Argument `{name}` must be (lower, upper), but is {value!r}.")
    return float(ends[0]), float(ends[1])


def shown(held: np.ndarray) -> str:
    """An array as text on one line, shortened if it has many values."""
    if not held.ndim:
        return str(held.item())  # without the point of NumPy's "5.", before a full stop
    return " ".join(np.array2string(held, threshold=12, separator=", ").split())


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        isinstance(want, str) or have == want for have, want in zip(shape, wanted, strict=True)
    )
