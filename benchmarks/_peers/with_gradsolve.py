"""gradsolve: adaptive Tsit5 in one fused kernel of NVIDIA Warp, on the CPU.

Warp's CPU kernels use one thread and release Python's lock: the starts are shared out among
threads, one for each core.
"""

import functools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import Peer, Solved, Way, library
from .problems import Clock, Problem

__all__ = ["peers"]

# There is one absolute tolerance for all components: in this unit it does not matter for the time.
UNIT_OF_TIME = 1e-3


class _Field:
    """A problem as gradsolve takes it: the normalised margin is its time."""

    dim, t0, t1, is_stiff = 3, 0.0, 1.0, False

    def __init__(self, clock: Clock) -> None:
        self.name = f"flowlab_{clock.field}"
        self.clock = clock

    def f_jax(self, t: Any, y: jax.Array, p: jax.Array) -> jax.Array:
        """Rates of (u_chosen, u_rejected, t) for parameters (span,)."""
        del t
        chosen, rejected, time = self.clock.rates(y[0], y[1], jnp.exp)
        return jnp.stack([chosen * p[0], rejected * p[0], time * p[0] * (1 / UNIT_OF_TIME)])


def peers(problem: Problem, cores: int) -> dict[str, Peer]:
    """The margin clock.

    Raises:
        MissingError: If gradsolve or warp is not installed.
    """
    if problem.clock is None or problem.wall is not None:
        return {}
    warp = library("warp")
    warp.config.log_level = warp.LOG_ERROR  # else it writes to the standard output
    warp.config.kernel_cache_dir = _folder().name  # so that compilation is measured
    library("gradsolve")
    return {"gradsolve (Warp), margin clock": Peer({"Tsit5": _way(problem.clock, cores)}, 2**20)}


def _way(clock: Clock, cores: int) -> Way:
    gradsolve, field = library("gradsolve"), _Field(clock)

    def solve_part(part: np.ndarray, rtol: float) -> Any:
        log_ratios = clock.enter(part)
        state = np.column_stack([log_ratios, np.zeros(len(part))])
        span = clock.span(log_ratios)[:, None]
        options: dict[str, Any] = {"engine": "warp_ode", "rtol": rtol, "atol": rtol}
        return gradsolve.solve(field, state, span, device="cpu", **options)

    def solve(points: np.ndarray, rtol: float) -> Solved:
        _register(clock.field, field)
        parts = np.array_split(points, cores)
        with ThreadPoolExecutor(cores) as pool:
            results = list(pool.map(functools.partial(solve_part, rtol=rtol), parts))
        times = np.concatenate([result.y_final[:, 2] for result in results]) * UNIT_OF_TIME
        tries = [result.accepted_steps + result.rejected_steps for result in results]
        return Solved(times, float(np.mean(np.concatenate(tries))))

    return solve


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="flowlab-warp-")


_registered: set[str] = set()


def _register(name: str, field: _Field) -> None:
    if name not in _registered:
        _registered.add(name)
        library("gradsolve").register_jax_field(field.name, field.f_jax, field.dim, 1)
