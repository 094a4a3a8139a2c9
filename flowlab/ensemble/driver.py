"""The function `sweep`: flow lines from many starts, for one or several hyper-parameters.

n: starts; k: levels of the target; s: times to save at; v: values of a swept hyper-parameter.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import ArrayLike, Float, PyTree
from tqdm import tqdm

from flowlab._checks import between
from flowlab.ensemble.audit import audit_of
from flowlab.ensemble.backends import Device, worker
from flowlab.ensemble.drawing import count_of, first_of
from flowlab.ensemble.runs import Runs
from flowlab.ensemble.stiff import solved_by_choice
from flowlab.flow import AbstractFlow
from flowlab.measures import Measure
from flowlab.solve import (
    Method,
    Problem,
    check_counts,
    check_states,
    default_rtol,
    make_method,
    one_call,
    one_of,
    problem_for,
)
from flowlab.solve.progress import bar_options
from flowlab.starts import DrawnStarts
from flowlab.until import AbstractTarget, Clock

__all__ = ["checked_over", "sweep"]


def sweep(
    flow: AbstractFlow,
    starts: PyTree[Float[ArrayLike, "n ..."]] | DrawnStarts,
    *,
    until: AbstractTarget,
    over: Mapping[str, Sequence[float]] | None = None,
    measures: Sequence[Measure] = (),
    save_at: npt.ArrayLike | None = None,
    clock: Clock | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: Any = None,
    block_size: int | None = None,
    devices: Sequence[Device] | None = None,
    backend: str | None = None,
    max_steps: int = 4096,
    optimise: bool | None = None,
    audit: float = 0.0,
    progress: bool | None = None,
) -> Runs:
    """Integrate flow lines (trajectories) from many starts, up to a target.

    On a CPU the starts are sorted by their potential and integrated in blocks of similar lines,
    which share their steps; on a GPU or a TPU a kernel integrates each line with its own steps. A
    start that fails gets an outcome, and does not affect others.

    Args:
        flow: The flow.
        starts: Starts, shape (n, d), or a PyTree with a leading axis n. Lines are integrated in
            their dtype, float32 or float64. Or `starts.DrawnStarts`, which a kernel draws on the
            device chunk by chunk, so that all starts are never in memory at once.
        until: The target at which lines end, from `flowlab.until`.
        over: Hyper-parameters of the flow to sweep, by name, with lists of values: each becomes a
            labelled leading axis. All values share one compiled program.
        measures: Measures to evaluate along the lines, from `flowlab.measures`.
        save_at: Flow times at which to save the states, positive and increasing.
        clock: The independent variable; None for the default of the target. The clock affects the
            steps, not the results. Lines that alone need small steps, or go wrong, under this clock
            continue under arc length. Stiff starts are integrated again under time, or under arc
            length on a domain with an absorbing boundary.
        rtol: Relative tolerance of the state and of the flow time; None for 1e-6, or 1e-4 in
            float32.
        atol: Absolute tolerance of the state. None for rtol × 1e-3 × smallest nonzero component of
            the start, or for no absolute tolerance on a domain of positive components.
        solver: An explicit Runge–Kutta solver of diffrax with an error estimate; `solve.ROCK4()` or
            `solve.RKC2()` for stiff flows with a constant metric; or `solve.Rodas5P()` for small
            stiff states. The last three use time as the default clock. None for Tsit5, or Dopri8 if
            rtol < 3e-8. If stability, and not accuracy, keeps the steps of Tsit5 or Dopri8 so short
            that starts use up `max_steps`, these starts are integrated again with a stiff solver;
            `Runs.solved_by` holds the solver of each start.
        block_size: Number of starts that share a step; None for 992 on a CPU and 65,536 elsewhere.
        devices: JAX devices to use; None for all local ones. On CPUs, blocks run on one thread per
            core, without any flag.
        backend: "blocks", on any device, or "kernel", on GPUs and TPUs: a single program that takes
            all steps of a line. If the kernel cannot be compiled, blocks are used; `Runs.backend`
            names the backend, and a debug message the reason. None for the kernel on GPUs and TPUs,
            and for blocks elsewhere or if `block_size` is given.
        max_steps: Largest number of attempted steps of a block. The count restarts when a line that
            slowed down the block has been removed from it. If a block uses up its steps, its
            unfinished lines continue in small blocks (of 8 lines on a CPU, 512 elsewhere) for as
            many steps again, as long as one in eight of them ends. Lines without an end have the
            outcome `step_limit`.
        optimise: Whether the compiler optimises its code. Compilation then takes two or three times
            as long, and the run is several times as fast. None optimises from 4,000 runs on. A
            kernel is always optimised.
        audit: Fraction of the starts, chosen at random, to integrate again at tolerances a hundred
            times tighter.
        progress: Whether to show a progress bar; None shows one on a terminal if the work takes
            long.

    Raises:
        ValueError: If the starts have the wrong shape, a hyper-parameter is unknown or out of its
            range, a tolerance is too small for the dtype, or an option is out of range.

    Accuracy: the relative error per step of state and time is `rtol`. Compared with closed forms on
        the ratio plane, errors of times are below 10·rtol in the median and below 100·rtol at
        worst. Results agree to the tolerance for any division into blocks and any devices;
        identical blocks give identical bits.
    """
    check_counts(block_size, max_steps)
    between("audit", audit, 0, 1)
    checked, dtype = check_states("starts", first_of(starts), flow, batched=True)
    given = starts if isinstance(starts, DrawnStarts) else checked
    rtol = default_rtol(dtype) if rtol is None else rtol
    values = checked_over(over, flow)
    flows = [_with_parameters(flow, values, case) for case in itertools.product(*values.values())]
    count = count_of(given)
    common: dict[str, Any] = dict(until=until, clock=clock, atol=atol, rtol=rtol, save_at=save_at)
    blocks: dict[str, Any] = dict(block_size=block_size, devices=devices, max_steps=max_steps)
    blocks["backend"] = backend
    solve = worker(count, count * len(flows), **blocks, optimise=optimise)
    method = make_method(solver, rtol=rtol)
    problems = _problems(flows, checked, dtype, measures, common, solver)
    solve_all = solve if solver is not None else partial(solved_by_choice, solve)
    results = _solutions(problems, method, given, solve_all, progress)
    runs = _gathered(flow, given, values, results, measures, common)
    common |= blocks | {"solver": solver}
    audited = audit_of(audit, flows, runs.starts, results, common) if audit > 0 else None
    return replace(runs, audit=audited, solver=method.name, backend=solve.backend)


def _problems(
    flows: Sequence[AbstractFlow],
    starts: PyTree[np.ndarray],
    dtype: Any,
    measures: Sequence[Measure],
    common: Mapping[str, Any],
    solver: Any,
) -> list[Problem]:
    """The problems of all flows, checked before any of them is integrated.

    The user's functions are checked once for all values of the hyper-parameters.
    """
    state = one_of(starts)
    with jax.enable_x64(dtype == np.float64), one_call():
        return [
            problem_for(solver, flow, dtype, state, measures=measures, **common) for flow in flows
        ]


def _solutions(
    problems: Sequence[Problem],
    method: Method,
    starts: PyTree[np.ndarray] | DrawnStarts,
    solve: Callable[..., dict[str, Any]],
    progress: bool | None,
) -> list[dict[str, Any]]:
    """The results of all problems, integrated one after the other with one progress bar."""
    total = len(problems) * count_of(starts)
    results = []
    with tqdm(total=total, unit="start", unit_scale=True, **bar_options(progress)) as bar:
        for problem in problems:
            with jax.enable_x64(problem.rtol.dtype == np.float64):
                results.append(solve(problem, method, starts, progress=bar.update))
    return results


def _gathered(
    flow: AbstractFlow,
    starts: PyTree[np.ndarray] | DrawnStarts,
    values: Mapping[str, list[float]],
    results: list[dict[str, Any]],
    measures: Sequence[Measure],
    common: Mapping[str, Any],
) -> Runs:
    """The `Runs` of a sweep, from the results for all values of the hyper-parameters."""
    save_at = common["save_at"]
    return Runs(
        starts,
        **_stacked(results, list(values.values())),
        over={name: np.asarray(listed, dtype=float) for name, listed in values.items()},
        save_at=np.asarray([] if save_at is None else save_at, dtype=float),
        rtol=common["rtol"],
        components=flow.components,
        measure_axes={name: m.axis for m in measures if m.axis for name in m.names},
        domain=flow.domain,
    )


def _with_parameters(
    flow: AbstractFlow, names: Iterable[str], values: Iterable[float]
) -> AbstractFlow:
    for name, value in zip(names, values, strict=True):
        flow = flow.with_parameter(name, value)
    return flow


def _stacked(results: list[dict[str, Any]], values: list[list[float]]) -> dict[str, Any]:
    """The results for all values of the hyper-parameters, which become leading axes."""
    lead = tuple(len(v) for v in values)
    if not lead:
        return results[0]
    return jax.tree.map(lambda *x: np.stack(x).reshape(lead + x[0].shape), *results)


def checked_over(
    over: Mapping[str, Sequence[float]] | None, flow: AbstractFlow
) -> dict[str, list[float]]:
    """The values of swept hyper-parameters as lists of numbers, each checked against the flow.

    Raises:
        ValueError: If `over` does not map names to lists of numbers, or the flow refuses a value.
    """
    values: dict[str, list[float]] = {}
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
            _check_single(name, flow, flow.with_parameter(name, float(value)))
        values[name] = [float(value) for value in listed]
    return values


def _check_single(name: str, flow: AbstractFlow, changed: AbstractFlow) -> None:
    """Refuse to sweep a hyper-parameter that is an array."""
    held = zip(jax.tree.leaves(flow), jax.tree.leaves(changed), strict=False)
    for before, after in held:
        if np.ndim(before) > np.ndim(after):
            raise ValueError(
                f"Argument `over` must name single numbers, but `{name}` is an array of shape "
                f"{np.shape(before)}; sweep a factor that multiplies it, or call "
                "`sweep` for each array."
            )
