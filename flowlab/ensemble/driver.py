"""The verb `sweep`: what a user says, checked and handed on; hyper-parameters; the audit.

n: starts; k: levels of the target; s: times to save at; v: values of a swept hyper-parameter.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import ArrayLike, Float, Int, PyTree
from tqdm import tqdm

from flowlab._checks import between
from flowlab.ensemble.blocks import Device, block_size_on, solved, worth_optimising
from flowlab.ensemble.runs import Audit, Runs
from flowlab.flow import AbstractFlow
from flowlab.measures import Measure
from flowlab.solve import (
    check_counts,
    check_states,
    check_target,
    default_rtol,
    make_problem,
    one_of,
)
from flowlab.until import AbstractTarget, Clock, Outcome

__all__ = [
    "Deviations",
    "audited",
    "bar_options",
    "checked_over",
    "chosen_for_audit",
    "joined",
    "sweep",
]

_AUDIT_TIGHTER = 100.0
_AUDIT_SMALLEST_RTOL = 1e-13
_AUDIT_SEED = 0
_AUDITED = ("outcome", "time", "end")


@dataclass(frozen=True)
class Deviations:
    """How far runs lie from the same at tighter tolerances.

    Attributes:
        rtol: The tolerance of the second solution.
        times: |time − time'| / time' of the runs that reached the target in both.
        ends: |end − end'| / |end'| of the runs with the same outcome.
        outcomes_differ: Runs whose outcome differs.
        count: Runs solved again.
    """

    rtol: float
    times: Float[np.ndarray, " r"]
    ends: Float[np.ndarray, " f"]
    outcomes_differ: int
    count: int


def sweep(
    flow: AbstractFlow,
    starts: PyTree[Float[ArrayLike, "n ..."]],
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
    max_steps: int = 4096,
    optimise: bool | None = None,
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
        block_size: Starts that share a step; None for 992 on a CPU and 65,536 elsewhere.
        devices: JAX devices to use; None for all local ones. On CPUs, blocks run on one thread for
            each core, without any flag.
        max_steps: Steps that a block tries, since a lane last left it for holding it up, before the
            outcome is `step_limit`.
        optimise: Whether the compiler optimises its code, which doubles or trebles its time,
            and makes the run several times as fast; None where there are 4,000 runs or more.
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
    values = checked_over(over, flow)
    count = len(jax.tree.leaves(starts)[0])
    cases = list(itertools.product(*values.values()))
    options: dict[str, Any] = dict(
        until=until, state=one_of(starts), clock=clock, atol=atol, solver=solver, save_at=save_at
    )
    work = _work(count, count * len(cases), devices, block_size, max_steps, optimise)
    flows = [_with_parameters(flow, dict(zip(values, case, strict=True))) for case in cases]
    check_target(until)
    for varied in flows:
        until.check(varied)
    results, audits = [], []
    with tqdm(
        total=len(cases) * count, unit="start", unit_scale=True, **bar_options(progress)
    ) as bar:
        for varied in flows:
            with jax.enable_x64(dtype == np.float64):
                problem = make_problem(varied, dtype=dtype, rtol=rtol, measures=measures, **options)
                result = work(problem, starts, progress=bar.update)
            results.append(result)
            if audit > 0:
                audits.append(_audited(varied, starts, result, audit, rtol, work, options))
    return Runs(
        starts,
        **_stacked(results, list(values.values())),
        over={name: np.asarray(listed, dtype=float) for name, listed in values.items()},
        save_at=np.asarray([] if save_at is None else save_at, dtype=float),
        rtol=rtol,
        audit=joined(audits) if audits else None,
        components=flow.components,
        measure_axes={name: m.axis for m in measures if m.axis for name in m.names},
        domain=flow.domain,
    )


def audited(
    flow: AbstractFlow,
    starts: Float[np.ndarray, "n d"],
    found: Mapping[str, np.ndarray],
    *,
    until: AbstractTarget,
    clock: Clock | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: Any = None,
    save_at: npt.ArrayLike | None = None,
    block_size: int | None = None,
    devices: Sequence[Device] | None = None,
    max_steps: int = 4096,
) -> Deviations:
    """How far runs that were found lie from the same at tolerances a hundred times tighter.

    Args:
        flow: As `sweep` was given it, and so is all else that is not named here.
        starts: Of the runs.
        found: Their `outcome`, `time` and `end`.
        until: The target.
        clock: The independent variable.
        rtol: The tolerance that the runs were found with.
        atol: Their absolute tolerance.
        solver: Their solver.
        save_at: Flow times at which their states were kept.
        block_size: Starts that share a step.
        devices: JAX devices to use.
        max_steps: Steps that a block tries.
    """
    starts, dtype = check_states("starts", starts, flow, batched=True)
    options: dict[str, Any] = dict(
        until=until, state=one_of(starts), clock=clock, atol=atol, solver=solver, save_at=save_at
    )
    work = _work(len(starts), len(starts), devices, block_size, max_steps, None)
    rtol = default_rtol(dtype) if rtol is None else rtol
    return _against_tighter(flow, starts, dict(found), rtol, work, options)


def _with_parameters(flow: AbstractFlow, values: Mapping[str, float]) -> AbstractFlow:
    for name, value in values.items():
        flow = flow.with_parameter(name, value)
    return flow


def _work(
    count: int,
    runs: int,
    devices: Sequence[Device] | None,
    block_size: int | None,
    max_steps: int,
    optimise: bool | None,
) -> Any:
    """What solves a problem from some starts."""
    devices = jax.local_devices() if devices is None else list(devices)
    return partial(
        solved,
        devices=devices,
        size=min(block_size or block_size_on(devices[0]), count),
        max_steps=max_steps,
        optimise=worth_optimising(runs) if optimise is None else optimise,
    )


def _stacked(results: list[dict[str, Any]], values: list[list[float]]) -> dict[str, Any]:
    """The results of all cases, hyper-parameters as leading axes; of one case, its own arrays."""
    lead = tuple(len(v) for v in values)
    if not lead:
        return results[0]
    return jax.tree.map(lambda *x: np.stack(x).reshape(lead + x[0].shape), *results)


def _audited(
    flow: AbstractFlow,
    starts: PyTree[np.ndarray],
    result: dict[str, Any],
    part: float,
    rtol: float,
    work: Any,
    options: dict[str, Any],
) -> "Deviations":
    """What `part` of the runs, at random, come to at tighter tolerances."""
    chosen = chosen_for_audit(len(result["outcome"]), part)
    again = jax.tree.map(lambda x: x[chosen], starts)
    mine = {name: jax.tree.map(lambda x: x[chosen], result[name]) for name in _AUDITED}
    return _against_tighter(flow, again, mine, rtol, work, options)


def chosen_for_audit(count: int, part: float) -> Int[np.ndarray, " r"]:
    """The indices, ascending, of the part of so many starts that is solved again; at random."""
    number = min(count, max(1, round(part * count)))
    return np.sort(np.random.default_rng(_AUDIT_SEED).choice(count, number, replace=False))


def _against_tighter(
    flow: AbstractFlow,
    starts: PyTree[np.ndarray],
    mine: dict[str, Any],
    rtol: float,
    work: Any,
    options: dict[str, Any],
) -> "Deviations":
    """How far runs lie from the same runs, solved again at tighter tolerances."""
    number = len(mine["outcome"])
    again = jax.tree.map(lambda x: x.astype(np.float64), starts)
    tighter = max(rtol / _AUDIT_TIGHTER, _AUDIT_SMALLEST_RTOL)
    atol = options["atol"]
    options = {**options, "atol": None if atol is None else atol / _AUDIT_TIGHTER}
    with jax.enable_x64(True):
        problem = make_problem(flow, dtype=np.float64, rtol=tighter, **options)
        finer = work(problem, again)
    same = (mine["outcome"] == finer["outcome"]) & (mine["outcome"] != Outcome.step_limit)
    differ = int(np.sum(mine["outcome"] != finer["outcome"]))
    reached = same & (finer["outcome"] == Outcome.reached)
    times = np.abs(mine["time"] - finer["time"])[reached] / finer["time"][reached]
    gaps, sizes = np.zeros(number), np.zeros(number)
    for a, b in zip(jax.tree.leaves(mine["end"]), jax.tree.leaves(finer["end"]), strict=True):
        gaps += ((a - b) ** 2).reshape(number, -1).sum(axis=1)
        sizes += (b**2).reshape(number, -1).sum(axis=1)
    fit = same & np.isfinite(sizes) & (sizes > 0)
    return Deviations(tighter, times, np.sqrt(gaps[fit] / sizes[fit]), differ, number)


def joined(audits: Sequence["Deviations"]) -> Audit:
    """The audit of several cases as one."""
    times = np.concatenate([each.times for each in audits])
    ends = np.concatenate([each.ends for each in audits])
    return Audit(
        count=sum(each.count for each in audits),
        rtol=audits[0].rtol,
        time_median=float(np.median(times)) if len(times) else float("nan"),
        time_largest=float(np.max(times)) if len(times) else float("nan"),
        end_median=float(np.median(ends)) if len(ends) else float("nan"),
        end_largest=float(np.max(ends)) if len(ends) else float("nan"),
        outcomes_differ=sum(each.outcomes_differ for each in audits),
    )


def _check_options(block_size: int | None, audit: float, max_steps: int) -> None:
    check_counts(block_size, max_steps)
    between("audit", audit, 0, 1)


def checked_over(
    over: Mapping[str, Sequence[float]] | None, flow: AbstractFlow
) -> dict[str, list[float]]:
    """The values of swept hyper-parameters as lists of numbers, each tried on the flow.

    Raises:
        ValueError: If they are no lists of numbers, or the flow does not take one of them.
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
            flow.with_parameter(name, float(value))
        values[name] = [float(value) for value in listed]
    return values


def bar_options(progress: bool | None) -> dict[str, Any]:
    """Options of a progress bar; None for one that shows where it takes long, on a terminal."""
    if progress is None:
        return {"disable": None, "delay": 2.0, "leave": False}
    return {"disable": not progress}
