"""Chunks of starts on a device, either transferred from the host or drawn on the device.

A start that is drawn on a device has the same bits as a start from `flowlab.starts` on the host.
NumPy's Philox generator maps a counter and a key to four numbers by ten rounds of multiplications,
so that any part of its sequence can be computed separately. This module computes the rounds in
64-bit integers.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).

n: starts; m: starts of a chunk; c: values of the counter.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree, UInt

from flowlab.starts import DrawnStarts, grid

__all__ = ["chunk_on", "count_of", "drawn_on_device", "first_of", "whole"]

Device = Any  # jax.Device, which type checkers do not accept as a type

_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_ROUNDS = 10
_WORDS = 4  # numbers for each value of the counter
_HALF = np.uint64(32)  # bits
_LOW = np.uint64(2**32 - 1)


def count_of(starts: PyTree[np.ndarray] | DrawnStarts) -> int:
    """The number of starts."""
    return starts.count if isinstance(starts, DrawnStarts) else len(jax.tree.leaves(starts)[0])


def first_of(starts: PyTree[np.ndarray] | DrawnStarts) -> PyTree[np.ndarray]:
    """Some starts, for their shapes and dtype: all if they are arrays, else the first ones."""
    return starts.part(0, 1) if isinstance(starts, DrawnStarts) else starts


def whole(starts: PyTree[np.ndarray] | DrawnStarts) -> PyTree[np.ndarray]:
    """All starts, on the host."""
    return starts.part(0, starts.count) if isinstance(starts, DrawnStarts) else starts


def drawn_on_device(starts: PyTree[np.ndarray] | DrawnStarts) -> bool:
    """True if starts can be drawn on the device: `DrawnStarts` of a grid, or uniform ones."""
    return isinstance(starts, DrawnStarts) and starts.kind in ("grid", "uniform")


def chunk_on(
    device: Device, starts: PyTree[np.ndarray] | DrawnStarts, first: int, size: int
) -> PyTree[Float[Array, "m ..."]]:
    """`size` starts from index `first`, on a device; NaN beyond the last start."""
    if drawn_on_device(starts):
        return _drawn(device, starts, first, size)
    last = min(first + size, count_of(starts))
    if isinstance(starts, DrawnStarts):
        part = starts.part(first, last)
    else:
        part = jax.tree.map(lambda leaf: leaf[first:last], starts)

    def filled(leaf: np.ndarray) -> np.ndarray:
        missing = size - (last - first)
        filling = np.full((missing, *leaf.shape[1:]), np.nan, leaf.dtype)
        return np.concatenate([leaf, filling]) if missing else leaf

    return jax.device_put(jax.tree.map(filled, part), device)


def _drawn(device: Device, starts: DrawnStarts, first: int, size: int) -> Float[Array, "m d"]:
    with jax.enable_x64(True):  # for any dtype: the numbers are rounded to it at the end
        numbers = (np.int64(first), np.int64(starts.count))
        if starts.kind == "grid":
            shape = starts.size if isinstance(starts.size, tuple) else (starts.size,)
            shape *= len(starts.lower) // len(shape)  # one number holds for all components
            sides = zip(shape, starts.lower, starts.upper, strict=True)
            axes = [grid(n, (low,), (high,), dtype=starts.dtype)[:, 0] for n, low, high in sides]
            return _grid(*jax.device_put((*numbers, axes), device), size=size)
        key = np.random.Philox(starts.seed).state["state"]["key"]
        corners = (np.asarray(starts.lower, float), np.asarray(starts.upper, float))
        given = jax.device_put((*numbers, *corners, np.uint64(0), key), device)
        return _uniform(*given, size=size, dtype=starts.dtype)


@partial(jax.jit, static_argnames="size")
def _grid(first: Array, count: Array, axes: list[Array], *, size: int) -> Float[Array, "m d"]:
    """`size` starts of a grid from index `first`, from the grid's values along each axis."""
    indices = first + jnp.arange(size)
    positions = jnp.unravel_index(indices, tuple(len(axis) for axis in axes))
    points = [axis[position] for axis, position in zip(axes, positions, strict=True)]
    return jnp.where((indices < count)[:, None], jnp.stack(points, axis=-1), jnp.nan)


@partial(jax.jit, static_argnames=("size", "dtype"))
def _uniform(
    first: Array,
    count: Array,
    lower: Array,
    upper: Array,
    zero: Array,
    key: Array,
    *,
    size: int,
    dtype: str,
) -> Float[Array, "m d"]:
    """`size` starts of `flowlab.starts.uniform` from index `first`."""
    width = lower.size
    before = first * width
    counters = -(-size * width // _WORDS) + 1  # one more: a start may begin within a group of four
    numbers = _philox(before // _WORDS, counters, key)
    bits = lax.dynamic_slice(numbers, (before % _WORDS,), (size * width,))
    unit = (bits >> np.uint64(11)).astype(float) * 2.0**-53
    present = first + jnp.arange(size) < count
    return _scaled(unit.reshape(size, width), present, lower, upper, zero).astype(dtype)


def _scaled(unit: Array, present: Array, lower: Array, upper: Array, zero: Array) -> Array:
    """Points of the unit cube scaled to a box, with the rounding of NumPy.

    A compiler could fuse product and sum into one operation with a single rounding. To prevent
    this, the bits of the product pass through an operation with `zero`, whose value the compiler
    does not know.
    """
    product = (upper - lower)[None] * unit
    bits = lax.bitcast_convert_type(product, jnp.uint64) ^ zero
    points = lower[None] + lax.bitcast_convert_type(bits, jnp.float64)
    return jnp.where(present[:, None], points, jnp.nan)


def _philox(first: Array, counters: int, key: Array) -> UInt[Array, " 4*c"]:
    """The numbers of NumPy's Philox generator for successive values of the counter."""
    # NumPy increments the counter before it draws.
    counter = first.astype(jnp.uint64) + jnp.arange(1, counters + 1, dtype=jnp.uint64)
    words = [counter, *(jnp.zeros_like(counter),) * 3]
    keys = [key[0], key[1]]
    for _ in range(_ROUNDS):
        (high, low), (other_high, other_low) = (
            _product(factor, word)
            for factor, word in zip(_MULTIPLIERS, (words[0], words[2]), strict=True)
        )
        words = [other_high ^ words[1] ^ keys[0], other_low, high ^ words[3] ^ keys[1], low]
        keys = [number + step for number, step in zip(keys, _WEYL, strict=True)]
    return jnp.stack(words, axis=-1).reshape(-1)


def _product(factor: np.uint64, word: UInt[Array, " c"]) -> Sequence[UInt[Array, " c"]]:
    """The upper and the lower 64 bits of a product, from products of halves."""
    low, high = factor & _LOW, factor >> _HALF
    word_low, word_high = word & _LOW, word >> _HALF
    carried = high * word_low + (low * word_low >> _HALF)
    middle = low * word_high + (carried & _LOW)
    return high * word_high + (carried >> _HALF) + (middle >> _HALF), factor * word
