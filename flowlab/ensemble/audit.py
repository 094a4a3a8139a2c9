"""The audit: an estimate of errors, from starts integrated again at tighter tolerances.

The audit integrates a random sample of the starts again, in float64, with tolerances a hundred
times smaller (rtol at least 1e-13), with Dopri8 instead of Tsit5 if no solver is named and rtol is
below 3e-6. If the error scales with the tolerance as it should, the difference of the two solutions
is the error of the first, up to a few per cent.

f: runs with the same outcome; r: runs that reached the target in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int, PyTree

from flowlab.ensemble.backends import Device, worker
from flowlab.ensemble.runs import Audit
from flowlab.ensemble.stiff import solved_by_choice
from flowlab.flow import AbstractFlow
from flowlab.solve import check_states, default_rtol, make_method, one_of, problem_for
from flowlab.until import AbstractTarget, Clock, Outcome

__all__ = ["Deviations", "audited", "audit_of", "chosen_for_audit", "joined"]

_TIGHTER = 100.0
_SMALLEST_RTOL = 1e-13
_SEED = 0


@dataclass(frozen=True)
class Deviations:
    """Deviations of runs from the same runs at tighter tolerances.

    Attributes:
        rtol: The relative tolerance of the second solution.
        times: |time − time'| / time', for runs that reached the target in both solutions; a prime
            marks the second solution.
        ends: |end − end'| / |end'|, for runs with the same outcome other than `step_limit`.
        outcomes_differ: Number of runs whose outcome differs.
        count: Number of runs that were integrated again.
    """

    rtol: float
    times: Float[np.ndarray, " r"]
    ends: Float[np.ndarray, " f"]
    outcomes_differ: int
    count: int


def audited(
    flow: AbstractFlow,
    starts: PyTree[np.ndarray],
    found: Mapping[str, Any],
    *,
    until: AbstractTarget,
    clock: Clock | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: Any = None,
    save_at: npt.ArrayLike | None = None,
    block_size: int | None = None,
    devices: Sequence[Device] | None = None,
    backend: str | None = None,
    max_steps: int = 4096,
) -> Deviations:
    """Deviations of runs from the same runs at tolerances a hundred times tighter.

    Args:
        flow: The flow of the runs. This and the other arguments are those of the `sweep`.
        starts: The starts of the runs, shape (n, d), or a PyTree with a leading axis n.
        found: The `outcome`, `time` and `end` of the runs.
        until: The target.
        clock: The independent variable.
        rtol: The relative tolerance of the runs.
        atol: The absolute tolerance of the runs.
        solver: The solver of the runs.
        save_at: Flow times at which states of the runs were saved.
        block_size: Number of starts that share a step.
        devices: JAX devices to use.
        backend: The name of the backend.
        max_steps: Largest number of attempted steps of a block.
    """
    starts, dtype = check_states("starts", starts, flow, batched=True)
    rtol = default_rtol(dtype) if rtol is None else rtol
    tighter = max(rtol / _TIGHTER, _SMALLEST_RTOL)
    count = len(jax.tree.leaves(starts)[0])
    limits: dict[str, Any] = dict(block_size=block_size, devices=devices, max_steps=max_steps)
    solve = worker(count, count, backend=backend, **limits, optimise=None)
    again = jax.tree.map(lambda x: x.astype(np.float64), starts)
    with jax.enable_x64(True):
        problem = problem_for(
            solver,
            flow,
            np.float64,
            one_of(again),
            until=until,
            clock=clock,
            rtol=tighter,
            atol=None if atol is None else atol / _TIGHTER,
            save_at=save_at,
        )
        method = make_method(solver, rtol=tighter)
        solve_all = solve if solver is not None else partial(solved_by_choice, solve)
        finer = solve_all(problem, method, again)
    return _deviations(found, finer, tighter)


def audit_of(
    part: float,
    flows: Sequence[AbstractFlow],
    starts: PyTree[np.ndarray],
    results: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> Audit:
    """The audit of a random sample of the results for several flows.

    `part` is the fraction of the starts in the sample; `options` are further arguments of
    `audited`.
    """
    chosen = chosen_for_audit(len(jax.tree.leaves(starts)[0]), part)

    def taken(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[chosen], tree)

    pairs = zip(flows, results, strict=True)
    return joined([audited(f, taken(starts), taken(found), **options) for f, found in pairs])


def chosen_for_audit(count: int, part: float) -> Int[np.ndarray, " r"]:
    """The indices, ascending, of a random sample of the starts."""
    number = min(count, max(1, round(part * count)))
    return np.sort(np.random.default_rng(_SEED).choice(count, number, replace=False))


def joined(audits: Sequence["Deviations"]) -> Audit:
    """One audit from the deviations of several sets of runs."""
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


def _deviations(found: Mapping[str, Any], finer: Mapping[str, Any], rtol: float) -> Deviations:
    count = len(found["outcome"])
    same = (found["outcome"] == finer["outcome"]) & (found["outcome"] != Outcome.step_limit)
    differ = int(np.sum(found["outcome"] != finer["outcome"]))
    reached = same & (finer["outcome"] == Outcome.reached)
    times = np.abs(found["time"] - finer["time"])[reached] / finer["time"][reached]
    gaps, sizes = np.zeros(count), np.zeros(count)
    for a, b in zip(jax.tree.leaves(found["end"]), jax.tree.leaves(finer["end"]), strict=True):
        gaps += ((a - b) ** 2).reshape(count, -1).sum(axis=1)
        sizes += (b**2).reshape(count, -1).sum(axis=1)
    fit = same & np.isfinite(sizes) & (sizes > 0)
    return Deviations(rtol, times, np.sqrt(gaps[fit] / sizes[fit]), differ, count)
