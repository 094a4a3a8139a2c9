"""Reductions of stores of any size in limited memory: counts, quantiles, histograms and maps.

Each function takes a variable or a Dataset that `read` returned, whose values are on disk, and
reads it piece by piece along its longest dimension. Values that are NaN or infinite are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray
    from numpy.typing import ArrayLike
from jaxtyping import Float, Int

__all__ = ["cell_means", "counts", "histogram", "quantiles"]

_PIECE = 1 << 18  # values that are read at a time
_DIGIT = 16  # bits of a number that are decided in each pass over the data


def counts(values: xarray.DataArray) -> dict[int, int]:
    """The number of occurrences of each integer, smallest integer first."""
    found: dict[int, int] = {}
    for piece in _pieces(values):
        numbers, times = np.unique(piece, return_counts=True)
        for number, often in zip(numbers.tolist(), times.tolist(), strict=True):
            found[number] = found.get(number, 0) + often
    return dict(sorted(found.items()))


def quantiles(values: xarray.DataArray, q: Sequence[float]) -> tuple[Float[np.ndarray, " q"], int]:
    """Quantiles of all finite values, and the number of these values.

    Args:
        values: Values of any shape.
        q: Probabilities between 0 and 1.

    Returns:
        The quantiles in float64, which are NaN if there is no finite value, and the number of
        finite values.

    Raises:
        ValueError: If `q` does not lie between 0 and 1.

    Accuracy: exact, equal to `numpy.quantile` with linear interpolation. The two values next to a
        quantile are found digit by digit, in four passes over the data.
    """
    asked = np.asarray(q, float)
    if asked.ndim != 1 or not np.all((asked >= 0) & (asked <= 1)):
        raise ValueError(f"Argument `q` must hold numbers between 0 and 1, but is {q!r}.")
    number = sum(int(np.isfinite(piece).sum()) for piece in _pieces(values))
    if number == 0:
        return np.full(asked.shape, np.nan), 0
    places = asked * (number - 1)
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, number - 1)
    ranks = np.unique(np.concatenate([low, high]))
    found = dict(zip(ranks.tolist(), _by_rank(values, ranks), strict=True))
    below = np.asarray([found[rank] for rank in low.tolist()])
    above = np.asarray([found[rank] for rank in high.tolist()])
    part = places - low
    # Like NumPy, interpolate from the nearer value, so that the result is monotone in q.
    inside = below + (above - below) * part
    return np.where(part < 0.5, inside, above - (above - below) * (1 - part)), number


def histogram(values: xarray.DataArray, edges: ArrayLike) -> Int[np.ndarray, " e-1"]:
    """The number of values in each bin, as `numpy.histogram` counts them.

    Args:
        values: Values of any shape.
        edges: Edges of the bins, increasing, shape (e,).

    Raises:
        ValueError: If `edges` do not increase or are fewer than two.
    """
    borders = _checked_edges("edges", edges)
    found = np.zeros(len(borders) - 1, np.int64)
    for piece in _pieces(values):
        found += np.histogram(piece[np.isfinite(piece)], borders)[0]
    return found


def cell_means(
    dataset: xarray.Dataset,
    name: str,
    *,
    x: str,
    y: str,
    x_edges: ArrayLike,
    y_edges: ArrayLike,
) -> tuple[Float[np.ndarray, "e-1 f-1"], Int[np.ndarray, "e-1 f-1"]]:
    """The mean of a variable over the starts in each cell of a grid, for maps of random starts.

    Args:
        dataset: A Dataset with `start` as its only dimension; select a case with `isel` or `sel`.
        name: The variable, with one value per start.
        x: The coordinate of the starts along the first axis.
        y: The coordinate of the starts along the second axis.
        x_edges: Edges of the cells along the first axis, increasing, shape (e,).
        y_edges: Edges of the cells along the second axis, increasing, shape (f,).

    Returns:
        The mean of the finite values in each cell, which is NaN for a cell without values, and the
        number of these values.

    Raises:
        ValueError: If a variable has a shape other than that of the starts, or edges do not
            increase.
    """
    borders = (_checked_edges("x_edges", x_edges), _checked_edges("y_edges", y_edges))
    for variable in (name, x, y):
        if dataset[variable].dims != ("start",):
            raise ValueError(
                f"Argument `dataset` must have one value of `{variable}` per start, but has "
                f"{dataset[variable].dims}; choose a case first."
            )
    shape = (len(borders[0]) - 1, len(borders[1]) - 1)
    total, number = np.zeros(shape), np.zeros(shape)
    for first in range(0, dataset.sizes["start"], _PIECE):
        piece = dataset[[name, x, y]].isel(start=slice(first, first + _PIECE))
        values = piece[name].values.astype(float)
        known = np.isfinite(values)
        points = (piece[x].values[known], piece[y].values[known])
        total += np.histogram2d(*points, borders, weights=values[known])[0]
        number += np.histogram2d(*points, borders)[0]
    with np.errstate(invalid="ignore"):
        return total / number, number.astype(np.int64)


def _pieces(values: xarray.DataArray) -> Iterator[np.ndarray]:
    """The values, piece by piece along the longest dimension."""
    if not values.size:
        return
    longest = max(values.dims, key=lambda dim: values.sizes[dim])
    step = max(1, _PIECE * values.sizes[longest] // values.size)
    for first in range(0, values.sizes[longest], step):
        yield values.isel({longest: slice(first, first + step)}).values.reshape(-1)


def _by_rank(values: xarray.DataArray, ranks: Int[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
    """The finite values with given ranks.

    The bits of a float, read as an integer, sort like the floats if all bits of negative floats,
    and the sign bit of all other floats, are inverted first. Each pass counts the numbers by one
    more digit, among the numbers that begin with the digits that are already known.
    """
    prefixes = np.zeros(len(ranks), np.uint64)
    left = ranks.copy()
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        found = {prefix: np.zeros(1 << _DIGIT, np.int64) for prefix in np.unique(prefixes).tolist()}
        for piece in _pieces(values):
            keys = _in_order(piece[np.isfinite(piece)].astype(np.float64))
            heads = keys >> np.uint64(shift + _DIGIT) if shift + _DIGIT < 64 else keys * 0
            digits = (keys >> np.uint64(shift)).astype(np.int64) & ((1 << _DIGIT) - 1)
            for prefix, count in found.items():
                count += np.bincount(digits[heads == np.uint64(prefix)], minlength=1 << _DIGIT)
        for i, prefix in enumerate(prefixes.tolist()):
            up_to = np.cumsum(found[prefix])
            digit = int(np.searchsorted(up_to, left[i], side="right"))
            left[i] -= up_to[digit - 1] if digit else 0
            prefixes[i] = (prefix << _DIGIT) | digit
    return _as_floats(prefixes)


def _in_order(values: Float[np.ndarray, " n"]) -> np.ndarray:
    bits = values.view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def _as_floats(keys: np.ndarray) -> Float[np.ndarray, " n"]:
    sign = np.uint64(1 << 63)
    return np.where(keys & sign, keys & ~sign, ~keys).view(np.float64)


def _checked_edges(name: str, edges: ArrayLike) -> Float[np.ndarray, " e"]:
    borders = np.asarray(edges, float)
    if borders.ndim != 1 or len(borders) < 2 or not np.all(np.diff(borders) > 0):
        raise ValueError(
            f"Argument `{name}` must hold at least two increasing numbers, but is {edges!r}."
        )
    return borders
