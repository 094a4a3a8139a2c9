"""Speed of the standard problem on this device, by `flowlab.sweep` and by diffrax alone.

A row holds the seconds of the first call, which compiles, and of later ones; the errors of the
times against the closed form; and the evaluations of the field for a start.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np
import optimistix
from _common import cores
from _peers import with_diffrax
from _peers.problems import LEVEL, PROBLEMS
from _problem import BETA, COMPARED, accuracy, first, points, solved, timed

import flowlab
from flowlab import exact, until
from flowlab.solve import make_method, make_problem

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
    flow = flowlab.preference_flow(flowlab.DPO(BETA), flowlab.RatioPlane())
    with jax.enable_x64(dtype == "float64"):
        make_problem(flow, until=until.loss_below(LEVEL), dtype=np.dtype(dtype), rtol=rtol)
    solver: Any = make_method(rtol=rtol).solver.method
    tableau = solver.tableau
    return Method(type(solver).__name__, tableau.num_stages - int(tableau.fsal))


def sweep_speed(
    dtype: str, rtol: float, count: int, repetitions: int, backend: str | None = None
) -> Row:
    """A sweep, repeated; its first call compiles, if nothing before it has."""
    variant = {"count": count, "dtype": dtype, "rtol": rtol, "backend": backend}
    row = first(variant)
    while len(row["seconds"]) < repetitions and sum(row["seconds"]) < ENOUGH_S:
        row["seconds"].append(timed(variant)[0])
    row["compile_s"] = max(0.0, row["first_call_s"] - median(row["seconds"]))
    return _completed(row, method_of(dtype, rtol))


def warmed_sweep_speed(dtype: str, rtol: float, count: int) -> Row:
    """A sweep of so many starts that it is done once, after a smaller one that compiles."""
    began = time.perf_counter()
    solved(points(min(WARM, count), dtype), rtol=rtol)
    warm = time.perf_counter() - began
    row = first({"count": count, "dtype": dtype, "rtol": rtol})
    row |= {"seconds": [row.pop("first_call_s")], "warm_up_s": warm}
    return _completed(row, method_of(dtype, rtol))


def vmap_speed(
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
        trials, refused = _trials(clock, method, dtype, rtol, count, chunks)
        best = max(trials, key=lambda row: row["starts_per_s"])
        fits = best["count"] < count and count / best["starts_per_s"] < left()
        row = (
            {**best, **_chunked(clock, method, dtype, rtol, count, best["chunk"])} if fits else best
        )
    speeds = {trial["chunk"]: trial["starts_per_s"] for trial in trials}
    row |= {name: best[name] for name in ("first_call_s", "compile_s")}
    row |= {"starts_per_s_of_chunks": speeds, "chunks_refused": refused}
    return _completed(row, method)


def _trials(
    clock: str, method: Method, dtype: str, rtol: float, count: int, chunks: Sequence[int]
) -> tuple[list[Row], dict[int, str]]:
    """The speed in chunks of each size, and why the device refused some, for want of memory say.

    Raises:
        JaxRuntimeError: If it refused all.
    """
    trials: list[Row] = []
    refused: dict[int, str] = {}
    for chunk in chunks:
        try:
            trials.append(_tried(clock, method, dtype, rtol, count, chunk))
        except jax.errors.JaxRuntimeError as error:
            refused[chunk] = str(error).partition("\n")[0]
            if len(refused) == len(chunks):
                raise
    return trials, refused


def _tried(clock: str, method: Method, dtype: str, rtol: float, count: int, chunk: int) -> Row:
    """The speed in chunks of one size, on some of the starts, and the first call of one chunk."""
    first_call, again = (
        _chunked(clock, method, dtype, rtol, chunk, chunk)["seconds"][0] for _ in range(2)
    )
    some = min(count, chunk * max(1, TRIAL // chunk))
    row = _chunked(clock, method, dtype, rtol, some, chunk)
    found = {"first_call_s": first_call, "compile_s": max(0.0, first_call - again)}
    return {**row, **found, "starts_per_s": some / row["seconds"][0]}


def _chunked(clock: str, method: Method, dtype: str, rtol: float, count: int, chunk: int) -> Row:
    """One run over so many starts: its seconds, steps and errors."""
    on_cpu = jax.default_backend() == "cpu"
    way = with_diffrax.in_batches(
        _vmapped(clock, method.name, dtype), cores() if on_cpu else 2, chunk
    )
    some = points(count, dtype)
    began = time.perf_counter()
    found = way(some, rtol)
    seconds = time.perf_counter() - began
    chosen = slice(None, None, max(1, count // COMPARED))
    wanted = exact.ratio_plane_time(some[chosen].astype(np.float64), BETA, level=LEVEL)
    row = {"count": count, "dtype": dtype, "rtol": rtol, "chunk": chunk, "seconds": [seconds]}
    return {**row, "steps": found.steps, **accuracy(found.times[chosen], wanted)}


@cache
def _vmapped(clock: str, method: str, dtype: str) -> Any:
    """A function of diffrax, to be compiled once for each size of chunk."""
    return CLOCKS[clock](PROBLEMS["ratio"], with_diffrax.SOLVERS[method], ROOTS[dtype])


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
