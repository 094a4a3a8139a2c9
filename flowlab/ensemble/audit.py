"""The audit: some starts solved again at tighter tolerances, and how far the results differ.

The tolerances of the second solution are a hundred times smaller, so that the difference is the
error of the first one, but for a few per cent where the method has the order that it should have.

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
        atol: Their absolute tolerance.
        solver: Their solver.
        save_at: Flow times at which their states were kept.
        block_size: Starts that share a step.
        devices: JAX devices to use.
        backend: What solves them.
        max_steps: Steps that a block tries.
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
    """The audit of a random sample of the results for some flows; options as of `audited`."""
    chosen = chosen_for_audit(len(jax.tree.leaves(starts)[0]), part)

    def taken(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[chosen], tree)

    pairs = zip(flows, results, strict=True)
    return joined([audited(f, taken(starts), taken(found), **options) for f, found in pairs])


def chosen_for_audit(count: int, part: float) -> Int[np.ndarray, " r"]:
    """The indices, ascending, of a random sample of the starts, to be solved again."""
    number = min(count, max(1, round(part * count)))
    return np.sort(np.random.default_rng(_SEED).choice(count, number, replace=False))


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
