"""The backend `blocks`: blocks of lanes that share steps, compiled by XLA, on any device.

A lane is one flow line during its integration. A block wastes work if its lanes need different
steps, or end at different times. The starts are therefore dealt out to slabs, each of which samples
all starts evenly, but for the last ones if the number of starts is not a multiple. By default a
block has 992 lanes on a CPU and 65,536 elsewhere; a slab has 32 blocks. Each slab is sorted by the
potential and cut into blocks of consecutive starts, whose lanes are then similar. On CPUs one call
of compiled code integrates eight blocks one after the other (of 16 or more); calls run on several
threads, and on several devices.

Of 32 blocks or more (512 with derivatives), each ends when only one lane in 16 is still running; of
fewer, each runs to its last lane. The unfinished lanes of all blocks are collected into new blocks,
and continue from their present states. New blocks end in the same way, and a single one runs to its
last lane. Lanes that were evicted because they alone needed small steps (`solve.engine`) continue
under the arc-length clock. Lanes that went past their level under the clock of loss or margin start
again under the arc-length clock. If a block uses up its steps, its unfinished lanes continue in
small blocks, in which few other lanes can slow them down, for the same number of steps. A sample of
the small blocks runs first, and further rounds follow as long as at least one in eight lanes of a
round ends.

The starts alone determine the lanes of a block and their order, and identical blocks give identical
bits. Other blocks take other steps, and their results agree to the tolerance.

n: starts; b: blocks of a batch; s: lanes of a block.
"""

import dataclasses
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from flowlab.solve import (
    Lanes,
    Method,
    Problem,
    Program,
    advance,
    begin,
    filled,
    finish,
    potentials,
    resume,
    safe_problem,
)
from flowlab.solve.tangents import TangentLanes
from flowlab.until import Outcome

__all__ = [
    "BACKEND",
    "Device",
    "BlockPrograms",
    "block_size_on",
    "solved",
    "worker",
    "worth_optimising",
]

Device = Any  # jax.Device, which type checkers do not accept as a type

BACKEND = "blocks"
"""The name of this backend, in which lanes share a step, compiled by XLA."""

_BLOCK_ON_CPU = 992  # arrays of a step fit into the caches of a core; rows at distances of a power
# of two would share a few lines of a cache, at a third to three quarters more time
_BLOCK_ON_ACCELERATOR = 65536
_BATCH_ON_CPU = 8  # blocks of a call, whose fixed cost equals that of a few thousand starts
_BLOCKS_OF_A_SLAB = 32  # enough for similar lanes in a block, few enough to be sorted in a cache
_LEFT_FOR_LATER = 16  # a block ends when one lane in 16 still runs; these lanes continue together
_FEW_ON_CPU = 8  # lanes of a small block: lanes cross a kink at different times, and then all take
# small steps; with fewer lanes the registers of a core would be half empty
_FEW_ON_ACCELERATOR = 512  # lanes of a small block, which takes a step in the time of a single lane
_FIRST = 2  # small blocks that continue first, as a sample
_MORE = 4  # times as many small blocks in each round as in the round before
_ARRIVING = 1 / 8  # of the lanes of a round, one in each block: if fewer arrive, it was the last
_SEED = 0  # of the order of small blocks
_ENOUGH_BLOCKS = 32
_WORTH_OPTIMISING = 4_000  # runs


class BlockPrograms(NamedTuple):
    """The two programs that integrate blocks.

    Both are functions of (problem, method), of starts or lanes, of the number of running lanes at
    which a block ends, and of the largest number of attempted steps.

    Attributes:
        first: From the starts of a batch of blocks to results, lanes, and numbers of attempted
            steps.
        later: From the unfinished lanes of one block to results, lanes, and number of attempted
            steps.
        enough_blocks: The number of blocks from which a later pass is worth its compilation.
    """

    first: Callable[..., Any]
    later: Callable[..., Any]
    enough_blocks: int


class _UnfinishedLanes(NamedTuple):
    """Unfinished lanes, and the indices of their starts."""

    indices: Int[np.ndarray, " n"]
    lanes: Lanes | TangentLanes


class _Left(NamedTuple):
    """Lanes that have not ended, in groups that are continued in different ways.

    Attributes:
        running: Lanes that were still running when most lanes of their block had ended.
        evicted: Lanes that alone needed small steps, or went wrong under their clock.
        spent: Lanes whose block has used up its steps.
    """

    running: list[_UnfinishedLanes]
    evicted: list[_UnfinishedLanes]
    spent: list[_UnfinishedLanes]


@dataclass(frozen=True)
class _Work:
    """A problem, the means to integrate it, and the results of the starts so far."""

    problem: Problem
    method: Method
    programs: BlockPrograms
    devices: list[Device]
    size: int
    max_steps: int
    optimise: bool
    progress: Callable[[int], Any]
    collected: "_Collected"


def block_size_on(device: Device) -> int:
    """The default number of starts that share a step."""
    return _BLOCK_ON_CPU if device.platform == "cpu" else _BLOCK_ON_ACCELERATOR


def worth_optimising(runs: int) -> bool:
    """True if there are so many runs that an optimised program saves time."""
    return runs >= _WORTH_OPTIMISING


def worker(
    count: int,
    runs: int,
    devices: Sequence[Device] | None,
    block_size: int | None,
    max_steps: int,
    optimise: bool | None,
) -> Callable[..., dict[str, Any]]:
    """The function `solved` with all arguments bound except problem, method, starts, progress."""
    devices = jax.local_devices() if devices is None else list(devices)
    return partial(
        solved,
        devices=devices,
        size=min(block_size or block_size_on(devices[0]), count),
        max_steps=max_steps,
        optimise=worth_optimising(runs) if optimise is None else optimise,
    )


def solved(
    problem: Problem,
    method: Method,
    starts: PyTree[np.ndarray],
    *,
    devices: list[Device],
    size: int,
    max_steps: int,
    optimise: bool,
    progress: Callable[[int], Any] = lambda n: None,
    programs: BlockPrograms | None = None,
) -> dict[str, Any]:
    """The results for all starts, first axis n, in the order of the starts."""
    count = len(jax.tree.leaves(starts)[0])
    programs = (
        BlockPrograms(_first_pass, _later_pass, _ENOUGH_BLOCKS) if programs is None else programs
    )
    work = _Work(
        problem, method, programs, devices, size, max_steps, optimise, progress, _Collected(count)
    )
    order = _ordered(work, starts, count)
    first = _first_passes(work, starts, order)
    evicted = first.evicted + _to_the_end(work, problem, first)
    if evicted:
        _under_safe_clock(work, starts, evicted)
    return work.collected.results


def _to_the_end(work: _Work, problem: Problem, left: _Left) -> list[_UnfinishedLanes]:
    """Continue lanes until all have ended or are evicted; return the evicted lanes."""
    later = _later_passes(work, problem, left.running)
    return later.evicted + _in_small_blocks(work, problem, left.spent + later.spent)


def _under_safe_clock(
    work: _Work, starts: PyTree[np.ndarray], evicted: list[_UnfinishedLanes]
) -> None:
    """Continue evicted lanes under the arc-length clock; start strayed lanes again."""
    safe = dataclasses.replace(work, problem=safe_problem(work.problem))
    strayed = [part.indices[np.asarray(part.lanes.strayed)] for part in evicted]
    again, first = np.concatenate(strayed), _Left([], [], [])
    if len(again):
        first = _first_passes(safe, starts, again)
        evicted = [_kept(part, ~np.asarray(part.lanes.strayed)) for part in evicted]
        evicted = [part for part in evicted if len(part.indices)]
    _to_the_end(safe, safe.problem, first._replace(running=evicted + first.running))


def _in_small_blocks(
    work: _Work, problem: Problem, spent: list[_UnfinishedLanes]
) -> list[_UnfinishedLanes]:
    """Continue lanes whose block has used up its steps in small blocks; return the evicted lanes.

    Lanes that do not end in a small block either keep the outcome `step_limit`.
    """
    few = _FEW_ON_CPU if _on_cpu(work.devices) else _FEW_ON_ACCELERATOR
    evicted: list[_UnfinishedLanes] = []
    if not spent or work.size <= few:
        return evicted
    alone = dataclasses.replace(work, size=few, progress=lambda n: None)
    pool = _joined(spent)
    blocks = np.random.default_rng(_SEED).permutation(-(-len(pool.indices) // few))
    number = _FIRST
    while len(blocks):
        lanes = (blocks[:number, None] * few + np.arange(few)).ravel()
        part = _kept(pool, lanes[lanes < len(pool.indices)])
        left = _later_passes(alone, problem, [part], resized=number == _FIRST)
        evicted += left.evicted
        if sum(len(one.indices) for one in left.spent) > (1 - _ARRIVING) * len(part.indices):
            break
        blocks, number = blocks[number:], _MORE * number
    return evicted


def _joined(parts: list[_UnfinishedLanes]) -> _UnfinishedLanes:
    lanes = jax.tree.map(lambda *x: np.concatenate(x, axis=-1), *(part.lanes for part in parts))
    return _UnfinishedLanes(np.concatenate([part.indices for part in parts]), lanes)


def _kept(part: _UnfinishedLanes, chosen: np.ndarray) -> _UnfinishedLanes:
    """The lanes in a mask, or at indices."""
    return _UnfinishedLanes(
        part.indices[chosen], jax.tree.map(lambda x: x[..., chosen], part.lanes)
    )


class _Collected:
    """The results of all starts, filled in as lanes end."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.results: dict[str, Any] = {}
        self._lock = threading.Lock()

    def put(self, indices: np.ndarray, results: dict[str, Any], lanes: Any) -> None:
        """Store the results of the lanes `lanes` (first axis) at the indices of their starts."""
        with self._lock:
            if not self.results:
                self.results = jax.tree.map(
                    lambda x: np.empty((self.count, *x.shape[1:]), x.dtype), results
                )

        def fill(target: np.ndarray, source: np.ndarray) -> None:
            _as_rows(target)[indices] = _as_rows(np.ascontiguousarray(source[lanes]))

        jax.tree.map(fill, self.results, results)


def _as_rows(array: np.ndarray) -> np.ndarray:
    """A view of an array whose elements are whole rows, which NumPy copies ten times as fast."""
    length = math.prod(array.shape[1:])
    if not length:
        return array
    flat = array.reshape(len(array), length)
    return flat.view(np.dtype((np.void, length * array.itemsize))).reshape(len(array))


def _ordered(work: _Work, starts: PyTree[np.ndarray], count: int) -> Int[np.ndarray, " n"]:
    """The indices of the starts, slab by slab, sorted by the potential within a slab; NaN last.

    The starts of a single block are not sorted, since its lanes share a step in any order.
    """
    if count <= work.size:
        return np.arange(count)
    values = _potentials(work, starts, count)
    length = work.size * _BLOCKS_OF_A_SLAB
    number = -(-count // length)
    dealt = np.concatenate([np.arange(k, count, number) for k in range(number)])
    slabs = [dealt[i : i + length] for i in range(0, count, length)]

    def sort(slab: np.ndarray, _: Device) -> np.ndarray:
        return slab[np.argsort(values[slab])]

    return np.concatenate(list(_in_parallel(sort, slabs, work, fresh=False)))


def _potentials(work: _Work, starts: PyTree[np.ndarray], count: int) -> Float[np.ndarray, " n"]:
    """The potential at the starts, in their given order."""
    length = min(work.size * _BLOCKS_OF_A_SLAB, count)
    # The last part is as long as the others, and overlaps the part before.
    firsts = [min(first, count - length) for first in range(0, count, length)]
    program = Program(potentials, work.problem, optimise=work.optimise)

    def of_part(first: int, device: Device) -> np.ndarray:
        part = jax.tree.map(lambda x: np.moveaxis(x[first : first + length], 0, -1), starts)
        return np.asarray(program(jax.device_put(part, device)))

    values = np.empty(count, work.problem.rtol.dtype)
    for first, found in zip(
        firsts, _in_parallel(of_part, firsts, work, program.fresh), strict=True
    ):
        values[first : first + length] = found
    return values


def _first_passes(work: _Work, starts: PyTree[np.ndarray], order: np.ndarray) -> _Left:
    """Integrate every start in its first block; return the lanes that have not ended."""
    blocks = -(-len(order) // work.size)
    together = _BATCH_ON_CPU if _on_cpu(work.devices) and blocks >= 2 * _BATCH_ON_CPU else 1
    keep = 0 if blocks < work.programs.enough_blocks else work.size // _LEFT_FOR_LATER
    length = together * work.size
    batches = [order[i : i + length] for i in range(0, len(order), length)]
    program = Program(work.programs.first, (work.problem, work.method), optimise=work.optimise)
    limits = (np.int32(keep), np.int32(work.max_steps))

    def first(batch: np.ndarray, device: Device) -> tuple[int, _Left]:
        chosen = jax.tree.map(lambda x: _in_blocks(x, batch, together, work.size), starts)
        return _sorted_out(work, batch, *program(jax.device_put(chosen, device), *limits))

    return _gathered(work, _in_parallel(first, batches, work, program.fresh))


def _later_passes(
    work: _Work, problem: Problem, pool: list[_UnfinishedLanes], *, resized: bool = False
) -> _Left:
    """Continue unfinished lanes in new blocks until none is running; return the lanes not ended.

    `resized` says that these are the first blocks of their size, so that the program is compiled
    again.
    """
    left = _Left([], [], [])
    program = Program(work.programs.later, (problem, work.method), optimise=work.optimise)
    fresh, size = program.fresh or resized, work.size
    while pool:
        indices, lanes = _joined(pool)
        places = [np.arange(i, min(i + size, len(indices))) for i in range(0, len(indices), size)]
        keep = 0 if len(places) == 1 else size // _LEFT_FOR_LATER
        limits = (np.int32(keep), np.int32(work.max_steps))
        go_on = partial(_go_on, work, program, limits, indices, lanes)
        later = _gathered(work, _in_parallel(go_on, places, work, fresh))
        pool, fresh = later.running, False
        left = _Left([], left.evicted + later.evicted, left.spent + later.spent)
    return left


def _go_on(
    work: _Work,
    program: Program,
    limits: tuple[np.int32, np.int32],
    indices: np.ndarray,
    lanes: Any,
    index: np.ndarray,
    device: Device,
) -> tuple[int, _Left]:
    chosen = jax.tree.map(lambda x: x[..., filled(index, work.size)], lanes)
    solution = program(jax.device_put(chosen, device), *limits)
    apart = jax.tree.map(lambda x: np.asarray(x)[None], solution)
    return _sorted_out(work, indices[index], *apart)


def _sorted_out(
    work: _Work, batch: np.ndarray, results: Any, lanes: Any, tries: Int[Array, " b"]
) -> tuple[int, _Left]:
    """Store the results of lanes that have ended; return their number, and the other lanes."""
    results = jax.tree.map(_starts_first, results)
    outcome, evicted = (_starts_first(x)[: len(batch)] for x in (lanes.outcome, lanes.evicted))
    exhausted = np.repeat(np.asarray(tries) >= work.max_steps, work.size)[: len(batch)]
    evicted = evicted & (outcome == 0)
    running = (outcome == 0) & ~evicted
    spent = running & exhausted
    if np.any(spent):
        limited = np.zeros(len(results["outcome"]), bool)
        limited[: len(batch)] = spent
        results["outcome"] = np.where(limited, np.int32(Outcome.step_limit), results["outcome"])
    running = running & ~exhausted
    late = running | evicted
    ended = np.flatnonzero(~late) if np.any(late) else slice(0, len(batch))
    work.collected.put(batch[ended], results, ended)
    groups = (np.flatnonzero(chosen) for chosen in (running, evicted, spent))
    left = _Left(*(_left_behind(batch, lanes, group) for group in groups))
    return int(len(batch) - np.sum(late)), left


def _left_behind(batch: np.ndarray, lanes: Any, chosen: np.ndarray) -> list[_UnfinishedLanes]:
    """The chosen lanes, if there are any."""
    if not len(chosen):
        return []
    blocks, indices = np.divmod(chosen, lanes.outcome.shape[-1])

    def picked(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        parts = [leaf[block][..., indices[blocks == block]] for block in np.unique(blocks)]
        return np.concatenate(parts, axis=-1)

    return [_UnfinishedLanes(batch[chosen], jax.tree.map(picked, lanes))]


def _gathered(work: _Work, done: Iterator[tuple[int, _Left]]) -> _Left:
    """All lanes that have not ended, from the results of finished passes."""
    gathered = _Left([], [], [])
    for ended, left in done:
        work.progress(ended)
        for all_, some in zip(gathered, left, strict=True):
            all_ += some
    return gathered


def _in_blocks(
    starts: np.ndarray, chosen: np.ndarray, blocks: int, size: int
) -> Float[np.ndarray, "b ... s"]:
    """Chosen starts as blocks, with the lanes of a block on the last axis.

    Blocks are padded with starts of NaN, whose lanes end at once.
    """
    taken = np.take(starts, filled(chosen, blocks * size), axis=0)
    taken[len(chosen) :] = np.nan
    return np.moveaxis(taken.reshape(blocks, size, *starts.shape[1:]), 1, -1)


def _starts_first(array: Any) -> np.ndarray:
    """An array with blocks first and lanes last, reshaped: (b, ..., s) to (b·s, ...)."""
    moved = np.moveaxis(np.asarray(array), -1, 1)
    return moved.reshape(moved.shape[0] * moved.shape[1], *moved.shape[2:])


def _first_pass(
    solved: tuple[Problem, Method], starts: PyTree[Array], keep: Array, max_steps: Array
) -> tuple[Any, ...]:
    problem, method = solved

    def of_block(block: PyTree[Array]) -> tuple[Any, ...]:
        lanes = begin(problem, block)
        lanes, tries, _ = advance(problem, method, lanes, max_steps=max_steps, keep=keep)
        return finish(problem, lanes), lanes, tries

    return lax.map(of_block, starts)


def _later_pass(
    solved: tuple[Problem, Method], lanes: Lanes, keep: Array, max_steps: Array
) -> tuple[Any, ...]:
    problem, method = solved
    ready = resume(problem, lanes)
    lanes, tries, _ = advance(problem, method, ready, max_steps=max_steps, keep=keep)
    return finish(problem, lanes), lanes, tries


def _in_parallel(
    task: Callable[[Any, Device], Any], items: list[Any], work: _Work, fresh: bool
) -> Iterator[Any]:
    """The results of a task on all items, in the order of the items.

    If the program of the task is not compiled yet, the first item runs alone, so that two threads
    do not compile the same program.
    """
    wide = work.problem.rtol.dtype == np.float64
    devices = work.devices
    workers = max(len(devices), _cores()) if _on_cpu(devices) else 2 * len(devices)

    def run(numbered: tuple[int, Any]) -> Any:
        number, item = numbered
        with jax.enable_x64(wide):
            return task(item, devices[number % len(devices)])

    numbered, alone = list(enumerate(items)), int(fresh)
    yield from map(run, numbered[:alone])
    if len(items) > alone:
        with ThreadPoolExecutor(min(workers, len(items) - alone)) as pool:
            yield from pool.map(run, numbered[alone:])


def _on_cpu(devices: list[Device]) -> bool:
    return devices[0].platform == "cpu"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
