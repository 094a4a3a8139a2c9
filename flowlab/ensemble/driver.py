"""Many starts: blocks, their order, devices and threads.

n: starts; k: levels of the target; s: times to save at; v: values of a swept hyper-parameter.
"""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, ArrayLike, Float, Int, PyTree
from tqdm import tqdm

from flowlab.ensemble.runs import Audit, Runs
from flowlab.flow import AbstractFlow
from flowlab.measures import AbstractMeasure
from flowlab.solve import (
    Lanes,
    Problem,
    advance,
    begin,
    check_states,
    compiled,
    default_rtol,
    finish,
    make_problem,
    resume,
    safe_problem,
)
from flowlab.until import AbstractTarget, Clock, Outcome

Device = Any  # jax.Device, which is no type to a type checker

__all__ = ["sweep"]

_BLOCK_ON_CPU = 1024  # a step's arrays fit the caches of a core
_BLOCK_ON_ACCELERATOR = 65536
_LEFT_FOR_LATER = 16  # a block ends when one lane in so many still runs; those go on together
_ENOUGH_BLOCKS = 32  # under which a pass for those left behind is not worth its compilation
_AUDIT_TIGHTER = 100.0
_AUDIT_SMALLEST_RTOL = 1e-13
_AUDIT_SEED = 0


class _Passes(NamedTuple):
    """The two passes, compiled alike."""

    first: Callable[..., Any]
    later: Callable[..., Any]


def sweep(
    flow: AbstractFlow,
    starts: PyTree[Float[ArrayLike, "n ..."]],
    *,
    until: AbstractTarget,
    over: Mapping[str, Sequence[float]] | None = None,
    measures: Sequence[AbstractMeasure] = (),
    save_at: npt.ArrayLike | None = None,
    clock: Clock | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: Any = None,
    block_size: int | None = None,
    devices: Sequence[Device] | None = None,
    max_steps: int = 4096,
    optimise: bool = True,
    audit: float = 0.0,
    progress: bool | None = None,
) -> Runs:
    """Flow lines from many starts, until a target.

    The starts are put in the order of their potential and solved in blocks that share a step, so
    that a block's lanes are alike. A start that fails has an outcome, and touches no other.

    Args:
        flow: What to follow.
        starts: Shape (n, d), or a PyTree with a leading axis n. Its dtype, float32 or float64, is
            the dtype of the work.
        until: When to stop, from `flowlab.until`.
        over: Hyper-parameters of the flow to sweep, by name: each becomes a labelled leading axis.
            Nothing is compiled again for their values.
        measures: What to measure, from `flowlab.measures`.
        save_at: Flow times at which to keep the states, positive and increasing.
        clock: The independent variable; None for the target's own.
        rtol: Relative tolerance, of the state and of the flow time; None for 1e-6, or 1e-4 where
            the dtype is float32.
        atol: Absolute tolerance of the state; None for rtol × 1e-3 × its smallest component, and
            for none at all on a domain of positive components.
        solver: Any explicit Runge–Kutta solver of diffrax with an error estimate; None for Tsit5,
            or Dopri8 where rtol < 3e-8.
        block_size: Starts that share a step; None for 1,024 on a CPU and 65,536 elsewhere.
        devices: JAX devices to use; None for all local ones. On CPUs, blocks run on one thread for
            each core, without any flag.
        max_steps: Steps that a block tries, since a lane last left it for holding it up, before the
            outcome is `step_limit`.
        optimise: Whether the compiler optimises its code. False halves the time of compilation and
            doubles that of the run, which pays below some ten thousand starts.
        audit: Part of the starts, at random, to solve again at tolerances a hundred times tighter.
        progress: Whether to show a progress bar; None where it takes long, on a terminal.

    Raises:
        ValueError: If the starts have the wrong shape, a hyper-parameter is unknown or out of its
            range, a tolerance is below what the dtype can hold, or an option is out of range.

    Accuracy: `rtol` per step, relative to state and time. Compared with closed forms on the ratio
        plane, the errors of times are below 10·rtol in the median and 100·rtol at worst. Results
        agree to the tolerance whatever the blocks, their order, their neighbours and the devices;
        identical blocks give identical bits.
    """
    _check_options(block_size, audit, max_steps)
    starts, dtype = check_states("starts", starts, flow, batched=True)
    rtol = default_rtol(dtype) if rtol is None else rtol
    names, values = _checked_over(over, flow)
    devices = jax.local_devices() if devices is None else list(devices)
    on_cpu = devices[0].platform == "cpu"
    size = block_size or (_BLOCK_ON_CPU if on_cpu else _BLOCK_ON_ACCELERATOR)
    count = len(jax.tree.leaves(starts)[0])
    cases = list(itertools.product(*values))
    options: dict[str, Any] = dict(
        until=until, clock=clock, atol=atol, solver=solver, save_at=save_at
    )
    work = partial(
        _solve_case,
        devices=devices,
        size=min(size, count),
        max_steps=max_steps,
        passes=_OPTIMISED if optimise else _LIGHT,
    )
    results, audits = [], []
    with tqdm(total=len(cases) * count, unit="start", unit_scale=True, **_bar(progress)) as bar:
        for case in cases:
            varied = flow
            for name, value in zip(names, case, strict=True):
                varied = varied.with_parameter(name, value)
            with jax.enable_x64(dtype == np.float64):
                problem = make_problem(varied, dtype=dtype, rtol=rtol, measures=measures, **options)
                result = work(problem, starts, progress=bar.update)
            results.append(result)
            if audit > 0:
                audits.append(_audited(varied, starts, result, audit, rtol, work, options))
    return Runs(
        starts,
        **_stacked(results, values),
        over={n: np.asarray(v, dtype=float) for n, v in zip(names, values, strict=True)},
        save_at=np.asarray([] if save_at is None else save_at, dtype=float),
        rtol=rtol,
        audit=_joined(audits) if audits else None,
        components=flow.components,
        measure_axes={name: axis for m in measures for name, axis in m.axes.items()},
    )


def _stacked(results: list[dict[str, Any]], values: list[list[float]]) -> dict[str, Any]:
    """The results of all cases, hyper-parameters as leading axes."""
    lead = tuple(len(v) for v in values)
    return jax.tree.map(lambda *x: np.stack(x).reshape(lead + x[0].shape), *results)


def _solve_case(
    problem: Problem,
    starts: PyTree[np.ndarray],
    *,
    devices: list[Device],
    size: int,
    max_steps: int,
    passes: _Passes,
    progress: Callable[[int], Any] = lambda n: None,
) -> dict[str, Any]:
    """The results for all starts, first axis n, in the order of the starts."""
    order = _order(problem, starts)
    blocks = [order[i : i + size] for i in range(0, len(order), size)]
    collected = _Collected(len(order))

    def first(block: np.ndarray, device: Device) -> Any:
        padded = np.concatenate([block, np.repeat(block[-1:], size - len(block))])
        lanes_last = jax.tree.map(lambda x: np.moveaxis(x[padded], 0, -1), starts)
        keep = 0 if len(blocks) < _ENOUGH_BLOCKS else size // _LEFT_FOR_LATER
        return passes.first(
            problem, jax.device_put(lanes_last, device), *map(_integer, (keep, max_steps))
        )

    running, evicted = [], []
    for block, (results, lanes, tries) in zip(
        blocks, _in_parallel(first, blocks, devices, problem), strict=True
    ):
        late = _sort_out(collected, block, results, lanes, int(tries) >= max_steps)
        progress(len(block) - _put_by((running, evicted), late, block, lanes))
    rest = (collected, devices, size, max_steps, passes, progress)
    evicted += _later_passes(problem, running, False, *rest)
    _later_passes(problem, evicted, True, *rest)
    return collected.results


class _Collected:
    """Results of all starts, filled in as their lanes arrive."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.results: dict[str, Any] = {}

    def put(self, indices: np.ndarray, results: dict[str, Any], lanes: np.ndarray) -> None:
        """Put in the results of some lanes (last axis) under the indices of their starts."""
        if not self.results:
            self.results = jax.tree.map(
                lambda x: np.empty((self.count, *x.shape[:-1]), x.dtype), results
            )

        def fill(target: np.ndarray, source: np.ndarray) -> None:
            target[indices] = np.moveaxis(source, -1, 0)[lanes]

        jax.tree.map(fill, self.results, results)


def _sort_out(
    collected: _Collected, block: np.ndarray, results: Any, lanes: Lanes, exhausted: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Collect the lanes that have ended; the places of those that still run, and of the evicted."""
    here = slice(0, len(block))
    evicted = np.asarray(lanes.evicted)[here] & (np.asarray(lanes.outcome)[here] == 0)
    running = (np.asarray(lanes.outcome)[here] == 0) & ~evicted
    if exhausted:
        results["outcome"] = np.where(
            np.asarray(lanes.active), np.int32(Outcome.step_limit), results["outcome"]
        )
        running = np.zeros_like(running)
    ended = np.flatnonzero(~(running | evicted))
    collected.put(block[ended], results, ended)
    return np.flatnonzero(running), np.flatnonzero(evicted)


def _put_by(
    pools: tuple[list[Any], list[Any]],
    late: tuple[np.ndarray, np.ndarray],
    block: np.ndarray,
    lanes: Lanes,
) -> int:
    """Put the lanes that have not ended into their pools; how many there are."""
    for pool, chosen in zip(pools, late, strict=True):
        if len(chosen):
            pool.append((block[chosen], jax.tree.map(lambda x, c=chosen: x[..., c], lanes)))
    return len(late[0]) + len(late[1])


def _later_passes(
    problem: Problem,
    pool: list[tuple[np.ndarray, Lanes]],
    safe: bool,
    collected: _Collected,
    devices: list[Device],
    size: int,
    max_steps: int,
    passes: _Passes,
    progress: Callable[[int], Any],
) -> list[tuple[np.ndarray, Lanes]]:
    """Lanes that were left behind go on in blocks of their own until all have ended."""
    safe_or_not = safe_problem(problem) if safe else problem
    left: list[tuple[np.ndarray, Lanes]] = []
    while pool:
        indices = np.concatenate([block for block, _ in pool])
        lanes = jax.tree.map(lambda *x: np.concatenate(x, axis=-1), *(part for _, part in pool))
        places = [np.arange(i, min(i + size, len(indices))) for i in range(0, len(indices), size)]
        keep = 0 if len(places) == 1 else size // _LEFT_FOR_LATER

        def go_on(place: np.ndarray, device: Device) -> Any:
            padded = np.concatenate([place, np.repeat(place[-1:], size - len(place))])
            chosen = jax.tree.map(lambda x: x[..., padded], lanes)  # noqa: B023
            return passes.later(
                safe_or_not,
                jax.device_put(chosen, device),
                *map(_integer, (keep, max_steps)),  # noqa: B023
            )

        pool = []
        for place, (results, after, tries) in zip(
            places, _in_parallel(go_on, places, devices, safe_or_not), strict=True
        ):
            block = indices[place]
            late = _sort_out(collected, block, results, after, int(tries) >= max_steps)
            progress(len(block) - _put_by((pool, left), late, block, after))
    return left


def _integer(number: int) -> Array:
    """A number as an array: a Python number would be compiled in."""
    return jnp.asarray(number, jnp.int32)


def _first_pass(
    problem: Problem, starts: PyTree[Array], keep: Array, max_steps: Array
) -> tuple[Any, ...]:
    lanes = begin(problem, starts)
    lanes, tries, _ = advance(problem, lanes, max_steps=max_steps, keep=keep)
    return finish(problem, lanes), lanes, tries


def _later_pass(problem: Problem, lanes: Lanes, keep: Array, max_steps: Array) -> tuple[Any, ...]:
    lanes, tries, _ = advance(problem, resume(problem, lanes), max_steps=max_steps, keep=keep)
    return finish(problem, lanes), lanes, tries


_OPTIMISED = _Passes(compiled(_first_pass), compiled(_later_pass))
_LIGHT = _Passes(compiled(_first_pass, optimise=False), compiled(_later_pass, optimise=False))


@partial(compiled, optimise=False)
def _potentials(problem: Problem, starts: PyTree[Array]) -> Float[Array, " n"]:
    return jax.vmap(problem.flow.potential)(starts)


def _order(problem: Problem, starts: PyTree[np.ndarray]) -> Int[np.ndarray, " n"]:
    """The starts in the order of their potential, those without one last."""
    return np.argsort(np.asarray(_potentials(problem, starts)), kind="stable")


def _in_parallel(
    work: Callable[[Any, Device], Any],
    items: list[Any],
    devices: list[Device],
    problem: Problem,
) -> Any:
    """`work` on all items, results as NumPy in the order of the items."""
    wide = problem.rtol.dtype == np.float64
    on_cpu = devices[0].platform == "cpu"
    workers = max(len(devices), _cores()) if on_cpu else 2 * len(devices)

    def run(numbered: tuple[int, Any]) -> Any:
        number, item = numbered
        with jax.enable_x64(wide):
            return jax.tree.map(np.asarray, work(item, devices[number % len(devices)]))

    numbered = enumerate(items)
    yield run(next(numbered))  # alone, so that two threads do not compile the same program
    if len(items) > 1:
        with ThreadPoolExecutor(min(workers, len(items) - 1)) as pool:
            yield from pool.map(run, numbered)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _audited(
    flow: AbstractFlow,
    starts: PyTree[np.ndarray],
    result: dict[str, Any],
    part: float,
    rtol: float,
    work: Any,
    options: dict[str, Any],
) -> tuple[float, np.ndarray, np.ndarray, int, int]:
    """Tolerance, deviations in time and end, and outcomes that differ, for a part of the starts."""
    count = len(result["outcome"])
    number = min(count, max(1, round(part * count)))
    chosen = np.sort(np.random.default_rng(_AUDIT_SEED).choice(count, number, replace=False))
    again = jax.tree.map(lambda x: x[chosen].astype(np.float64), starts)
    tighter = max(rtol / _AUDIT_TIGHTER, _AUDIT_SMALLEST_RTOL)
    atol = options["atol"]
    options = {**options, "atol": None if atol is None else atol / _AUDIT_TIGHTER}
    with jax.enable_x64(True):
        problem = make_problem(flow, dtype=np.float64, rtol=tighter, **options)
        finer = work(problem, again)
    mine = jax.tree.map(lambda x: x[chosen], result)
    same = (mine["outcome"] == finer["outcome"]) & (mine["outcome"] != Outcome.step_limit)
    differ = int(np.sum(mine["outcome"] != finer["outcome"]))
    reached = same & (finer["outcome"] == Outcome.reached)
    times = np.abs(mine["time"] - finer["time"])[reached] / finer["time"][reached]
    gaps, sizes = np.zeros(number), np.zeros(number)
    for a, b in zip(jax.tree.leaves(mine["end"]), jax.tree.leaves(finer["end"]), strict=True):
        gaps += ((a - b) ** 2).reshape(number, -1).sum(axis=1)
        sizes += (b**2).reshape(number, -1).sum(axis=1)
    fit = same & np.isfinite(sizes) & (sizes > 0)
    return tighter, times, np.sqrt(gaps[fit] / sizes[fit]), differ, number


def _joined(audits: list[tuple[float, np.ndarray, np.ndarray, int, int]]) -> Audit:
    times = np.concatenate([times for _, times, *_ in audits])
    ends = np.concatenate([ends for _, _, ends, *_ in audits])
    return Audit(
        count=sum(number for *_, number in audits),
        rtol=audits[0][0],
        time_median=float(np.median(times)) if len(times) else float("nan"),
        time_largest=float(np.max(times)) if len(times) else float("nan"),
        end_median=float(np.median(ends)) if len(ends) else float("nan"),
        end_largest=float(np.max(ends)) if len(ends) else float("nan"),
        outcomes_differ=sum(differ for *_, differ, _ in audits),
    )


def _check_options(block_size: int | None, audit: float, max_steps: int) -> None:
    if block_size is not None and block_size < 1:
        raise ValueError(f"Argument `block_size` must be at least 1, but is {block_size!r}.")
    if max_steps < 1:
        raise ValueError(f"Argument `max_steps` must be at least 1, but is {max_steps!r}.")
    if not 0 <= audit <= 1:
        raise ValueError(f"Argument `audit` must lie between 0 and 1, but is {audit!r}.")


def _checked_over(
    over: Mapping[str, Sequence[float]] | None, flow: AbstractFlow
) -> tuple[list[str], list[list[float]]]:
    names, values = [], []
    if over is not None and not isinstance(over, Mapping):
        raise ValueError(
            f"Argument `over` must map names to values, as {{'beta': [0.1]}} does, but is {over!r}."
        )
    for name, sequence in (over or {}).items():
        try:
            listed = np.asarray(sequence, dtype=float)
        except (TypeError, ValueError):
            listed = np.zeros((0, 0))
        if listed.ndim != 1 or listed.size == 0:
            raise ValueError(
                f"Argument `over` must give a list of values for `{name}`, but gives {sequence!r}."
            )
        for value in listed:
            flow.with_parameter(name, float(value))
        names.append(name)
        values.append([float(value) for value in listed])
    return names, values


def _bar(progress: bool | None) -> dict[str, Any]:
    if progress is None:
        return {"disable": None, "delay": 2.0, "leave": False}
    return {"disable": not progress}
