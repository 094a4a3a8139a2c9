"""The most that a device can do: bytes moved, and evaluations of the standard problem's field.

Repeated, and the fastest counts. Compilation is apart. On a CPU every core has a part of its own.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import cores
from _problem import BETA

import flowlab

__all__ = ["copy_speed", "field_speed"]

TRIES, CALLS = 5, 4  # calls follow each other without waiting, so that their launch costs nothing
STEP = 1e-9  # so small that the evaluations of a chain are alike

Arrays = tuple[jax.Array, ...]


def copy_speed(dtype: str, size: int) -> dict[str, Any]:
    """Bytes read and written per second by a negation of so many bytes."""
    host = np.ones(size // np.dtype(dtype).itemsize, dtype)
    seconds = _fastest(lambda arrays: (-arrays[0],), (host,))
    return {"roof": "copy", "bytes": size, **seconds, "bytes_per_s": 2 * size / seconds["seconds"]}


def field_speed(dtype: str, count: int, chain: int) -> dict[str, Any]:
    """Evaluations of the velocity per second, at so many starts, `chain` in a row at each.

    A single one reads and writes memory each time; in a chain it can stay in registers.
    """
    flow = flowlab.preference_flow(flowlab.DPO(BETA), flowlab.RatioPlane())

    def one(chosen: jax.Array, rejected: jax.Array) -> Arrays:
        velocity = flow.velocity(jnp.stack([chosen, rejected]))
        return velocity[0], velocity[1]

    def chained(state: Arrays) -> Arrays:
        for _ in range(chain):
            moved = jax.vmap(one)(*state)
            state = tuple(x + STEP * v for x, v in zip(state, moved, strict=True))
        return state

    generator = np.random.default_rng(0)
    seconds = _fastest(chained, tuple(generator.uniform(0.01, 1, (2, count)).astype(dtype)))
    speed = chain * count / seconds["seconds"]
    return {"roof": "field", "starts": count, "chain": chain, **seconds, "evaluations_per_s": speed}


def _fastest(function: Callable[[Arrays], Arrays], host: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """Seconds of the first call, and the least seconds of a later one, on all of some arrays."""
    wide = host[0].dtype == np.float64
    threads = cores() if jax.default_backend() == "cpu" else 1
    compiled = jax.jit(function)

    def call(part: Arrays, calls: int) -> None:
        with jax.enable_x64(wide):  # which is not handed on to threads
            done = compiled(part)
            for _ in range(calls - 1):
                done = compiled(part)
            jax.block_until_ready(done)

    with jax.enable_x64(wide):
        columns = [np.array_split(array, threads) for array in host]
        parts = [tuple(map(jnp.asarray, part)) for part in zip(*columns, strict=True)]
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for calls in (1, *[CALLS] * TRIES):
            began = time.perf_counter()
            list(pool.map(partial(call, calls=calls), parts))
            seconds.append((time.perf_counter() - began) / calls)
    return {"first_call_s": seconds[0], "seconds": min(seconds[1:])}
