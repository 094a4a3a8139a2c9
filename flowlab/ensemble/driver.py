"""The verb `sweep`: what a user says, checked and handed on; hyper-parameters; the audit.

n: starts; k: levels of the target; s: times to save at; v: values of a swept hyper-parameter.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import ArrayLike, Float, PyTree
from tqdm import tqdm

from flowlab.ensemble.blocks import Device, block_size_on, solved, worth_optimising
from flowlab.ensemble.runs import Audit, Runs
from flowlab.flow import AbstractFlow
from flowlab.measures import AbstractMeasure
from flowlab.solve import check_counts, check_states, default_rtol, make_problem
from flowlab.until import AbstractTarget, Clock, Outcome

__all__ = ["sweep"]

_AUDIT_TIGHTER = 100.0
_AUDIT_SMALLEST_RTOL = 1e-13
_AUDIT_SEED = 0


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
    names, values = _checked_over(over, flow)
    devices = jax.local_devices() if devices is None else list(devices)
    size = block_size or block_size_on(devices[0])
    count = len(jax.tree.leaves(starts)[0])
    cases = list(itertools.product(*values))
    options: dict[str, Any] = dict(
        until=until, clock=clock, atol=atol, solver=solver, save_at=save_at
    )
    work = partial(
        solved,
        devices=devices,
        size=min(size, count),
        max_steps=max_steps,
        optimise=worth_optimising(count * len(cases)) if optimise is None else optimise,
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
    check_counts(block_size, max_steps)
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
