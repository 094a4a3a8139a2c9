"""Speed of a problem on this device, by `flowlab.sweep` and by diffrax alone.

A row holds the seconds of the first call, which compiles, and of later ones; the errors of the
times against the closed form; and the evaluations of the field for a start.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np
import optimistix
from _common import cores
from _peers import with_diffrax
from _peers.problems import LEVEL, PROBLEMS, Problem
from _problem import COMPARED, LOWER, UPPER, accuracy

import flowlab
from flowlab import until
from flowlab.solve import make_method, make_problem
from flowlab.starts import DrawnStarts

__all__ = ["WARM", "Method", "method_of", "sweep_speed", "vmap_speed", "warmed_sweep_speed"]

WARM = 2**22  # starts after which a sweep of any size has nothing left to compile
ENOUGH_S = 10.0  # in all, after which a sweep is repeated no more
TRIAL = 50_000  # starts by which a size of chunk is judged, or one chunk if that is more
ROOTS = {  # of the event that ends a line of diffrax, as exact as the dtype allows
    "float64": with_diffrax.ROOT,
    "float32": optimistix.Newton(1e-6, 1e-6),
}
CLOCKS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "time": with_diffrax.by_time,
    "margin": lambda problem, solver, root: with_diffrax.by_margin(problem, solver),
}
"""Ways to have diffrax solve the problem: as one would write it, and by flowlab's own clock."""

Row = dict[str, Any]


class Method(NamedTuple):
    """A Runge–Kutta method, and the evaluations of the field in one step of it."""

    name: str
    evaluations: int


def method_of(dtype: str, rtol: float) -> Method:
    """The method that `flowlab.sweep` takes.

    Raises:
        ValueError: If the dtype cannot hold the tolerance.
    """
    flow = PROBLEMS["ratio"].flow()
    with jax.enable_x64(dtype == "float64"):
        make_problem(flow, until=until.loss_below(LEVEL), dtype=np.dtype(dtype), rtol=rtol)
    solver: Any = make_method(rtol=rtol).solver.method
    tableau = solver.tableau
    return Method(type(solver).__name__, tableau.num_stages - int(tableau.fsal))


def sweep_speed(
    name: str, dtype: str, rtol: float, count: int, repetitions: int, backend: str | None = None
) -> Row:
    """A sweep, repeated; its first call compiles, if nothing before it has."""
    problem = PROBLEMS[name]
    some = problem.starts(count).astype(dtype)
    row = _swept(problem, some, rtol, backend)
    row["first_call_s"], seconds = row["seconds"][0], []
    while len(seconds) < repetitions and sum(seconds) < ENOUGH_S:
        seconds += _swept(problem, some, rtol, backend)["seconds"]
    row |= {"seconds": seconds, "compile_s": max(0.0, row["first_call_s"] - median(seconds))}
    return _completed(row, method_of(dtype, rtol))


def warmed_sweep_speed(dtype: str, rtol: float, count: int) -> Row:
    """A sweep of so many starts that it is done once, after a smaller one that compiles.

    The starts are drawn where they are solved.
    """
    first, all_of_them = (
        DrawnStarts("uniform", number, LOWER, UPPER, dtype=dtype)  # type: ignore[arg-type]
        for number in (min(WARM, count), count)
    )
    warm = _swept(PROBLEMS["ratio"], first, rtol)["seconds"][0]
    row = _swept(PROBLEMS["ratio"], all_of_them, rtol)
    return _completed(row | {"warm_up_s": warm}, method_of(dtype, rtol))


def _swept(
    problem: Problem, some: np.ndarray | DrawnStarts, rtol: float, backend: str | None = None
) -> Row:
    """One sweep: its seconds, steps, outcomes and errors."""
    began = time.perf_counter()
    runs = flowlab.sweep(
        problem.flow(),
        some,
        until=until.loss_below(LEVEL),
        rtol=rtol,
        backend=backend,
        progress=False,
    )
    seconds, count = time.perf_counter() - began, len(runs.time)
    chosen = slice(None, None, max(1, count // COMPARED))
    wanted = problem.times(runs.starts[chosen].astype(np.float64))
    found = {"problem": problem.name, "count": count, "dtype": np.dtype(some.dtype).name}
    told = {"backend": runs.backend, "steps": float(runs.steps.mean()), "outcomes": runs.counts()}
    return {
        **found,
        "rtol": rtol,
        "seconds": [seconds],
        **told,
        **accuracy(runs.time[chosen], wanted),
    }


def vmap_speed(
    name: str,
    clock: str,
    dtype: str,
    rtol: float,
    count: int,
    chunks: Sequence[int],
    left: Callable[[], float],
) -> Row:
    """`jax.vmap` of `diffrax.diffeqsolve`, with flowlab's method, in the best of some chunks.

    Where less time is left than all starts would take, the row is that of the trial of the chunk.
    """
    method = method_of(dtype, rtol)
    with _globally(dtype):
        made = partial(_chunked, PROBLEMS[name], clock, method, dtype, rtol)
        trials, refused = _trials(made, count, chunks)
        best = max(trials, key=lambda row: row["starts_per_s"])
        fits = best["count"] < count and count / best["starts_per_s"] < left()
        row = {**best, **made(count, best["chunk"])} if fits else best
    speeds = {trial["chunk"]: trial["starts_per_s"] for trial in trials}
    row |= {name: best[name] for name in ("first_call_s", "compile_s")}
    row |= {"starts_per_s_of_chunks": speeds, "chunks_refused": refused}
    return _completed(row, method)


def _trials(
    made: Callable[[int, int], Row], count: int, chunks: Sequence[int]
) -> tuple[list[Row], dict[int, str]]:
    """The speed in chunks of each size, and why the device refused some, for want of memory say.

    Raises:
        JaxRuntimeError: If it refused all.
    """
    trials: list[Row] = []
    refused: dict[int, str] = {}
    for chunk in chunks:
        try:
            trials.append(_tried(made, count, chunk))
        except jax.errors.JaxRuntimeError as error:
            refused[chunk] = str(error).partition("\n")[0]
            if len(refused) == len(chunks):
                raise
    return trials, refused


def _tried(made: Callable[[int, int], Row], count: int, chunk: int) -> Row:
    """The speed in chunks of one size, on some of the starts, and the first call of one chunk."""
    first_call, again = (made(chunk, chunk)["seconds"][0] for _ in range(2))
    some = min(count, chunk * max(1, TRIAL // chunk))
    row = made(some, chunk)
    found = {"first_call_s": first_call, "compile_s": max(0.0, first_call - again)}
    return {**row, **found, "starts_per_s": some / row["seconds"][0]}


def _chunked(
    problem: Problem, clock: str, method: Method, dtype: str, rtol: float, count: int, chunk: int
) -> Row:
    """One run over so many starts: its seconds, steps and errors."""
    on_cpu = jax.default_backend() == "cpu"
    way = with_diffrax.in_batches(
        _vmapped(problem.name, clock, method.name, dtype), cores() if on_cpu else 2, chunk
    )
    some = problem.starts(count).astype(dtype)
    began = time.perf_counter()
    found = way(some, rtol)
    seconds = time.perf_counter() - began
    chosen = slice(None, None, max(1, count // COMPARED))
    wanted = problem.times(some[chosen].astype(np.float64))
    row = {"problem": problem.name, "count": count, "dtype": dtype, "rtol": rtol, "chunk": chunk}
    return {
        **row,
        "seconds": [seconds],
        "steps": found.steps,
        **accuracy(found.times[chosen], wanted),
    }


@cache
def _vmapped(name: str, clock: str, method: str, dtype: str) -> Any:
    """A function of diffrax, to be compiled once for each size of chunk."""
    return CLOCKS[clock](PROBLEMS[name], with_diffrax.SOLVERS[method], ROOTS[dtype])


def _completed(row: Row, method: Method) -> Row:
    """A row with the numbers that follow from its seconds and its steps."""
    run = median(row["seconds"])
    made = {"method": method.name, "run_s": run, "starts_per_s": row["count"] / run}
    return {**row, **made, "evaluations_per_start": row["steps"] * method.evaluations}


@contextmanager
def _globally(dtype: str) -> Iterator[None]:
    """JAX in the precision of a dtype, in all threads, as diffrax needs it."""
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)
