"""Starting points: grids, low-discrepancy and random sets, rings, training logs, arrays.

Every function returns a NumPy array of shape (n, d), one start per row, with the components in the
order of the state (on the planes: chosen, rejected). Flow lines are integrated in the precision of
their starts: float64, or float32 if `dtype` says so.

Random sets use NumPy's counter-based Philox generator, and a seed is required: the same arguments
give the same points in every process and on every machine, whatever was drawn before. A seed is a
non-negative int or a `numpy.random.SeedSequence`. For independent sets, use the children of one
seed sequence, as in `SeedSequence(0).spawn(8)`.

A set that does not fit into memory can be drawn in pieces: `part=(first, last)` returns the starts
from index `first` up to, not including, `last`, bit for bit as in the whole set.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from jaxtyping import Float

from flowlab import _checks as checks
from flowlab._names import former_names

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

__all__ = ["DrawnStarts", "from_array", "from_log", "grid", "latin", "ring", "sobol", "uniform"]

__getattr__ = former_names(__name__, {"latin_hypercube": "latin"})


class _LogOfPoints(Protocol):
    """An object with points on the log-ratio plane, such as a `flowlab.logs.TrainingLog`."""

    @property
    def points(self) -> ArrayLike:
        """The points (u_w, u_l), shape (n, 2)."""
        ...


def grid(
    shape: int | tuple[int, ...],
    lower: ArrayLike = (0.0, 0.0),
    upper: ArrayLike = (1.0, 1.0),
    *,
    part: tuple[int, int] | None = None,
    dtype: DTypeLike = np.float64,
) -> Float[np.ndarray, "n d"]:
    """The centres of the cells of a regular grid on a box.

    Component k of cell i is `lower + (upper − lower)·(i + ½)/shape[k]`, so no start lies on the
    edge of the box. The last component varies fastest: `.reshape(*shape, d)` gives an array indexed
    as `[i_x, i_y]` (NumPy's `indexing="ij"`).

    Args:
        shape: Cells per component; an int stands for the same number in each.
        lower: Lower corner of the box, shape (d,).
        upper: Upper corner of the box, shape (d,).
        part: Start and stop index of the starts to return; None for all.
        dtype: float64 or float32.

    Returns:
        Array of shape (product of `shape`, d).

    Raises:
        ValueError: `shape` does not consist of positive ints, one for each of d components; the
            corners are not finite, not of the same shape (d,), or not `lower < upper`; `part` lies
            outside the set; `dtype` is neither float64 nor float32.
    """
    low, high = _box(lower, upper)
    cells = (shape,) * low.size if not isinstance(shape, tuple | list) else tuple(shape)
    cells = tuple(checks.integer("shape", number) for number in cells)
    if len(cells) != low.size:
        raise ValueError(
            f"Argument `shape` must have one entry per component of `lower` ({low.size}), "
            f"but has {len(cells)}; give `lower` and `upper` with as many components."
        )
    indices = np.unravel_index(np.arange(*_part(part, math.prod(cells))), cells)
    unit = np.stack([(i + 0.5) / number for i, number in zip(indices, cells, strict=True)], axis=-1)
    return _scaled(unit, low, high, dtype)


def sobol(
    count: int,
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    seed: int | np.random.SeedSequence,
    part: tuple[int, int] | None = None,
    dtype: DTypeLike = np.float64,
) -> Float[np.ndarray, "n d"]:
    """The first `count` points of a scrambled Sobol' sequence on a box.

    If `count` is a power of two the set is balanced: in each component there is one point in each
    of `count` equal intervals. Any other count is also allowed; the points are then well spread,
    but not balanced.

    Args:
        count: Number of starts.
        lower: Lower corner of the box, shape (d,).
        upper: Upper corner of the box, shape (d,).
        seed: Seed of the scrambling, see the module.
        part: Start and stop index of the starts to return; None for all.
        dtype: float64 or float32.

    Returns:
        Array of shape (count, d). With the same seed, a smaller set is the beginning of a larger.

    Raises:
        ValueError: `count` is not a positive int; the corners are not finite, not of the same shape
            (d,), or not `lower < upper`; `part` lies outside the set; `seed` or `dtype` has
            the wrong type.

    Source: Owen, "Scrambling Sobol' and Niederreiter–Xing points" (1998), as in
        `scipy.stats.qmc.Sobol`.

    Accuracy: coordinates are multiples of 2⁻³⁰ of the box's side, and always the same with one
        release of SciPy.
    """
    count, (low, high) = checks.integer("count", count), _box(lower, upper)
    generator = _generator(seed)
    from scipy.stats import qmc

    first, last = _part(part, count)
    sampler = qmc.Sobol(low.size, scramble=True, rng=generator)
    if first:
        sampler.fast_forward(first)
        unit = sampler.random(last - first)
    else:
        # A power of two is drawn and cut, since SciPy warns about other counts.
        unit = sampler.random_base2((last - 1).bit_length())[:last]
    return _scaled(unit, low, high, dtype)


def latin(
    count: int,
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    seed: int | np.random.SeedSequence,
    part: tuple[int, int] | None = None,
    dtype: DTypeLike = np.float64,
) -> Float[np.ndarray, "n d"]:
    """A Latin hypercube sample of a box.

    In each component exactly one start lies in each of `count` equal intervals, at a random
    position.

    Args:
        count: Number of starts.
        lower: Lower corner of the box, shape (d,).
        upper: Upper corner of the box, shape (d,).
        seed: Seed, see the module.
        part: Start and stop index of the starts to return; None for all.
        dtype: float64 or float32.

    Returns:
        Array of shape (count, d).

    Raises:
        ValueError: `count` is not a positive int; the corners are not finite, not of the same shape
            (d,), or not `lower < upper`; `part` lies outside the set; `seed` or `dtype` has
            the wrong type.

    Even with `part`, the whole set is drawn first, and then cut.

    Source: McKay, Beckman and Conover, Technometrics 21 (1979), as in
        `scipy.stats.qmc.LatinHypercube`.

    Accuracy: the points are always the same with one release of SciPy.
    """
    count, (low, high) = checks.integer("count", count), _box(lower, upper)
    generator = _generator(seed)
    from scipy.stats import qmc

    first, last = _part(part, count)
    unit = qmc.LatinHypercube(low.size, rng=generator).random(count)[first:last]
    return _scaled(unit, low, high, dtype)


def uniform(
    count: int,
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    seed: int | np.random.SeedSequence,
    part: tuple[int, int] | None = None,
    dtype: DTypeLike = np.float64,
) -> Float[np.ndarray, "n d"]:
    """Independent, uniformly distributed starts on a box.

    Args:
        count: Number of starts.
        lower: Lower corner of the box, shape (d,).
        upper: Upper corner of the box, shape (d,).
        seed: Seed of the Philox generator, see the module. A stateful `numpy.random.Generator` is
            refused, since its numbers depend on what was drawn before.
        part: Start and stop index of the starts to return; None for all.
        dtype: float64 or float32.

    Returns:
        Array of shape (count, d). With the same seed, a smaller set is the beginning of a larger.

    Raises:
        ValueError: `count` is not a positive int; the corners are not finite, not of the same shape
            (d,), or not `lower < upper`; `part` lies outside the set; `seed` or `dtype` has
            the wrong type.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), as in
        `numpy.random.Philox`.
    """
    count, (low, high) = checks.integer("count", count), _box(lower, upper)
    generator = _generator(seed)
    first, last = _part(part, count)
    drawn_before = first * low.size
    # The counter increases by one for every four numbers.
    generator.bit_generator.advance(drawn_before // 4)  # type: ignore[attr-defined]
    generator.random(drawn_before % 4)
    return _scaled(generator.random((last - first, low.size)), low, high, dtype)


def ring(
    centre: ArrayLike, radius: float, count: int, *, dtype: DTypeLike = np.float64
) -> Float[np.ndarray, "n 2"]:
    """Starts at equal angles on a circle in the plane.

    Start k is `centre + radius·(cos φ, sin φ)` with φ = 2πk/count.

    Args:
        centre: Centre of the circle, shape (2,).
        radius: Radius of the circle.
        count: Number of starts.
        dtype: float64 or float32.

    Returns:
        Array of shape (count, 2).

    Raises:
        ValueError: `centre` is not finite or not of shape (2,); `radius` is not a positive finite
            number; `count` is not a positive int; `dtype` is neither float64 nor float32.
    """
    middle = checks.array("centre", centre, (2,))
    size, number = checks.positive("radius", radius), checks.integer("count", count)
    angle = 2 * np.pi * np.arange(number) / number
    points = middle + size * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points.astype(_floating(dtype))


def from_log(
    log: _LogOfPoints,
    *,
    coordinates: Literal["log_ratio", "ratio"] = "log_ratio",
    dtype: DTypeLike = np.float64,
) -> Float[np.ndarray, "n 2"]:
    """The points of a training log as starts.

    Args:
        log: The result of `flowlab.logs.read`, or any object with `points` of shape (n, 2) on the
            log-ratio plane.
        coordinates: `"log_ratio"` for (u_w, u_l), `"ratio"` for (x1, x2) = exp(u_w, u_l).
        dtype: float64 or float32.

    Returns:
        Array of shape (rows of the log, 2).

    Raises:
        ValueError: `log` has no `points` of shape (n, 2); `coordinates` or `dtype` is unknown.

    Accuracy: a ratio is 0 if the log-ratio is below −745 (float32: −103) and inf if it is above 709
        (float32: 88). Log-ratios have no such limits.
    """
    if not hasattr(log, "points"):
        raise ValueError(
            f"Argument `log` must be a training log, but is of type {type(log).__name__}; "
            "read one with `flowlab.logs.read`."
        )
    checks.choice("coordinates", coordinates, "log_ratio", "ratio")
    points = np.asarray(log.points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(
            f"Argument `log` must have `points` of shape (n, 2), but they have {points.shape}."
        )
    with np.errstate(over="ignore", under="ignore"):
        return (np.exp(points) if coordinates == "ratio" else points).astype(_floating(dtype))


def from_array(array: ArrayLike, *, dtype: DTypeLike | None = None) -> Float[np.ndarray, "n d"]:
    """A checked copy of an array of starts.

    `array` can be anything that `numpy.asarray` accepts: nested lists, NumPy and jax arrays, pandas
    and xarray objects. NaN and infinite components are allowed: a sweep reports the outcome
    `non_finite` for such starts.

    Args:
        array: Starts, shape (n, d).
        dtype: float64 or float32; None keeps these two and converts all others to float64.

    Returns:
        A new array of shape (n, d).

    Raises:
        ValueError: `array` does not have shape (n, d) with d ≥ 1, or does not hold real numbers;
            `dtype` is none of the three.
    """
    numbers = checks.real("array", array)
    if numbers.ndim != 2 or numbers.shape[1] == 0:
        raise ValueError(
            f"Argument `array` must have shape (n, d), but has shape {numbers.shape}; "
            "a single start is an array of shape (1, d)."
        )
    if dtype is None:
        dtype = np.float32 if numbers.dtype.newbyteorder("=") == np.float32 else np.float64
    return np.array(numbers, dtype=_floating(dtype), order="C")


def grid_sides(starts: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """The values of each component on a grid in the plane, from its starts.

    Args:
        starts: Starts in the order of `grid`, the last component fastest, shape (n, 2).

    Returns:
        The values of the first component and those of the second; None if the starts form no grid.
    """
    if not isinstance(starts, np.ndarray) or starts.ndim != 2 or starts.shape[1] != 2:
        return None
    inner = int(np.argmax(starts[:, 0] != starts[0, 0]))
    if inner < 2 or len(starts) % inner:  # a single row is a line of starts
        return None
    cells = starts.reshape(-1, inner, 2)
    is_grid = np.all(cells[..., 0] == cells[:, :1, 0]) and np.all(cells[..., 1] == cells[0, :, 1])
    once = np.unique(cells[:, 0, 0]).size == len(cells) and np.unique(cells[0, :, 1]).size == inner
    return (cells[:, 0, 0], cells[0, :, 1]) if is_grid and once else None


_DRAWN = {"grid": grid, "sobol": sobol, "uniform": uniform, "latin": latin}


@dataclass(frozen=True)
class DrawnStarts:
    """The description of a set of starts, which are drawn only when they are integrated.

    `flowlab.sweep` and plans accept it in place of an array. On a GPU or a TPU, starts of a grid
    and uniform starts are drawn on the device, with the same bits.

    Attributes:
        kind: `grid`, `sobol`, `uniform` or `latin`, as in `flowlab.starts`. A Latin hypercube is
            drawn as a whole for each block, and suits small plans only.
        size: The number of starts; for a grid, the number of cells per component, or one number for
            all components.
        lower: Lower corner of the box, shape (d,).
        upper: Upper corner of the box, shape (d,).
        seed: Seed; None for a grid.
        dtype: `float64` or `float32`.

    Raises:
        ValueError: If the function `kind` of `flowlab.starts` would refuse these arguments.
    """

    kind: Literal["grid", "sobol", "uniform", "latin"]
    size: int | tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    seed: int = 0
    dtype: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        if self.kind not in _DRAWN:
            known = ", ".join(map(repr, _DRAWN))
            raise ValueError(f"Argument `kind` must be one of {known}, but is {self.kind!r}.")
        # JSON and TOML have lists.
        for name in ("lower", "upper", "size"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        self.part(0, 1)
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)  # if it is a type

    @property
    def count(self) -> int:
        """The number of starts."""
        if self.kind == "grid" and isinstance(self.size, int):
            return self.size ** len(self.lower)
        return int(np.prod(self.size, dtype=np.int64))

    def part(self, first: int, last: int) -> Float[np.ndarray, "n d"]:
        """The starts from index `first` up to, not including, `last`."""
        options: dict[str, Any] = {"part": (first, last), "dtype": self.dtype}
        if self.kind != "grid":
            options["seed"] = self.seed
        return _DRAWN[self.kind](self.size, self.lower, self.upper, **options)


def _box(
    lower: ArrayLike, upper: ArrayLike
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    low = checks.array("lower", lower, ("d",))
    high = checks.array("upper", upper, low.shape)
    if not np.all(low < high):
        raise ValueError(
            "Argument `upper` must be above `lower` in every component, "
            f"but is {high.tolist()} where `lower` is {low.tolist()}."
        )
    return low, high


def _part(part: tuple[int, int] | None, count: int) -> tuple[int, int]:
    if part is None:
        return 0, count
    try:
        first, last = (operator.index(number) for number in part)
    except (TypeError, ValueError):
        first, last = 0, 0
    if not 0 <= first < last <= count:
        raise ValueError(
            f"Argument `part` must be (first, last) with 0 <= first < last <= {count}, "
            f"but is {part!r}."
        )
    return first, last


def _generator(seed: int | np.random.SeedSequence) -> np.random.Generator:
    if not isinstance(seed, np.random.SeedSequence):
        whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
        if not whole or seed < 0:
            raise ValueError(
                "Argument `seed` must be a non-negative int or a numpy.random.SeedSequence, "
                f"but is {seed!r}."
            )
    return np.random.Generator(np.random.Philox(seed))


def _scaled(
    unit: Float[np.ndarray, "n d"],
    lower: Float[np.ndarray, " d"],
    upper: Float[np.ndarray, " d"],
    dtype: DTypeLike,
) -> Float[np.ndarray, "n d"]:
    return (lower + (upper - lower) * unit).astype(_floating(dtype))


def _floating(dtype: DTypeLike | None) -> np.dtype[Any]:
    try:
        held = None if dtype is None else np.dtype(dtype).newbyteorder("=")
    except TypeError:
        held = None
    # np.dtype(None) is float64.
    if held is None or held not in (np.dtype(np.float64), np.dtype(np.float32)):
        raise ValueError(f"Argument `dtype` must be float64 or float32, but is {dtype!r}.")
    return held
