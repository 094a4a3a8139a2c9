"""The choice of a backend: `kernel` on GPUs and TPUs if it can be compiled, else `blocks`.

If the user gives the size of blocks, the backend is `blocks` on any device.

A backend integrates a problem from many starts. It calls functions of one lane (begin, field,
signals, effect of an event, finish), and decides which lanes share a step and which device
integrates which lanes. Targets, clocks, domains, measures and losses do not depend on the backend.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from flowlab._checks import choice
from flowlab.ensemble import blocks, kernel
from flowlab.ensemble.drawing import whole
from flowlab.solve import Method, Problem
from flowlab.starts import DrawnStarts

__all__ = ["Worker", "default_backend", "worker"]

Device = Any  # jax.Device, which type checkers do not accept as a type

_LOG = logging.getLogger(__name__)


def default_backend(
    *, block_size: int | None = None, devices: Sequence[Device] | None = None
) -> str:
    """The name of the default backend.

    Args:
        block_size: Number of starts that share a step; if it is given, the default is `blocks`.
        devices: JAX devices to use; None for all local ones.
    """
    devices = jax.local_devices() if devices is None else devices
    fits = block_size is None and devices[0].platform in kernel.CHIPS
    return kernel.BACKEND if fits else blocks.BACKEND


def worker(
    count: int,
    runs: int,
    *,
    backend: str | None,
    block_size: int | None,
    devices: Sequence[Device] | None,
    max_steps: int,
    optimise: bool | None,
) -> "Worker":
    """The function that integrates problems from many starts, by a backend.

    `count` is the number of starts of a problem, `runs` the total number of runs of all problems;
    the other arguments are those of `sweep`.

    Raises:
        ValueError: If the backend is unknown or not available on the devices, or another option has
            no effect on it.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if backend is not None:
        choice("backend", backend, blocks.BACKEND, kernel.BACKEND)
    if backend == kernel.BACKEND:
        _check_kernel(devices, block_size, optimise)
    wanted = backend or default_backend(block_size=block_size, devices=devices)
    in_blocks = blocks.worker(count, runs, devices, block_size, max_steps, optimise)
    return Worker(wanted, in_blocks, devices, max_steps)


def _check_kernel(devices: Sequence[Device], block_size: int | None, optimise: bool | None) -> None:
    platform = devices[0].platform
    if platform not in kernel.CHIPS:
        raise ValueError(
            'Argument `backend` must be "blocks" where starts are solved on a '
            f"{platform.upper()}, but is {kernel.BACKEND!r}, which is for GPUs and TPUs."
        )
    for name, value in {"block_size": block_size, "optimise": optimise}.items():
        if value is not None:
            raise ValueError(
                f"Argument `{name}` must be None with backend {kernel.BACKEND!r}, on which it has "
                f"no effect, but is {value!r}."
            )


class Worker:
    """A callable that integrates problems by the wanted backend, or by blocks if that is refused.

    Attributes:
        backend: The name of the backend that integrated the last problem.
        max_steps: Largest number of attempted steps of a block, or of a lane in a kernel.
    """

    def __init__(
        self,
        wanted: str,
        in_blocks: Callable[..., dict[str, Any]],
        devices: Sequence[Device],
        max_steps: int,
    ) -> None:
        self.backend = wanted
        self._in_blocks, self._devices, self.max_steps = in_blocks, devices, max_steps

    def __call__(
        self,
        problem: Problem,
        method: Method,
        starts: PyTree[np.ndarray] | DrawnStarts,
        *,
        progress: Callable[[int], Any] = lambda n: None,
    ) -> dict[str, Any]:
        """The results for all starts, first axis n, in the order of the starts."""
        if self.backend == kernel.BACKEND:
            try:
                return kernel.solved(
                    problem,
                    method,
                    starts,
                    devices=self._devices,
                    max_steps=self.max_steps,
                    progress=progress,
                    elsewhere=self._in_blocks,
                )
            except kernel.RefusedError as reason:
                _LOG.debug("blocks solve what no kernel can: %s", reason)
                self.backend = blocks.BACKEND
        return self._in_blocks(problem, method, whole(starts), progress=progress)

    def again(self, problem: Problem, method: Method, starts: PyTree[np.ndarray]) -> dict[str, Any]:
        """The results for a few starts that are integrated again, in small blocks.

        The size of a block is the number of starts, rounded up to a power of two so that few
        programs are compiled.
        """
        count = len(jax.tree.leaves(starts)[0])
        size = min(1 << (count - 1).bit_length(), blocks.block_size_on(self._devices[0]))
        return blocks.solved(
            problem,
            method,
            starts,
            devices=list(self._devices),
            size=size,
            max_steps=self.max_steps,
            optimise=blocks.worth_optimising(count),
        )
