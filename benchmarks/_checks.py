"""Correctness of sweeps on a device: against closed forms, a CPU's outcomes, and themselves.

A verdict says what was found and what is allowed; both are computed from the runs. What a device
refuses to do counts as a failure of the check that asks for it.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _common import machine
from _peers.problems import BETA, LEVEL, PROBLEMS, Problem
from _problem import accuracy

import flowlab
from flowlab import potentials, until
from flowlab.domains import Box
from flowlab.until import Outcome

__all__ = [
    "RTOL",
    "Verdict",
    "against_closed_form",
    "as_on_a_cpu",
    "judged_errors",
    "nan_among_others",
    "same_bits",
    "write_cpu_outcomes",
]

RTOL = {"float64": 1e-6, "float32": 1e-4}
MEDIAN, LARGEST = 10, 100  # tolerances that errors of times may have, as `flowlab.sweep` documents
RECORD = Path(__file__).with_name("_accelerator_cpu.json")
MADE = (
    "Outcomes and times on a CPU, in float64 at rtol 1e-6, with which accelerator.py compares "
    "those on another device. Written by: python benchmarks/accelerator.py --write-cpu-outcomes"
)
DIGITS = 10  # of the times in the record, which are as good as rtol
SEED = 0
IN_BOX, IN_WELLS, ON_RIDGE = 96, 40, 8  # starts of the record


class Verdict(NamedTuple):
    """The end of a check: passed or not, with the reason in words and in numbers."""

    passed: bool
    found: str
    allowed: str
    numbers: dict[str, Any]


class Case(NamedTuple):
    """A sweep whose starts end in different ways."""

    flow: Any
    target: until.AbstractTarget
    starts: np.ndarray


def against_closed_form(name: str, dtype: str, count: int) -> Verdict:
    """The times of a problem with walls, a loss of one's own or many responses."""
    problem = PROBLEMS[name]
    points = problem.starts(count).astype(dtype)
    runs = _swept(problem, points)
    return judged_errors(accuracy(runs.time, problem.times(points.astype(np.float64))), RTOL[dtype])


def judged_errors(errors: dict[str, float], rtol: float) -> Verdict:
    """The verdict on relative errors of times."""
    median, largest = errors["median_error"], errors["largest_error"]
    passed = median <= MEDIAN * rtol and largest <= LARGEST * rtol
    found = f"median {median:.1e}, largest {largest:.1e}"
    return Verdict(passed, found, f"{MEDIAN * rtol:.0e}, {LARGEST * rtol:.0e}", {**errors})


def same_bits(dtype: str, count: int) -> Verdict:
    """Equal blocks in two sweeps, on the first and on the last device where there are several."""
    problem = PROBLEMS["ratio"]
    points = problem.starts(count).astype(dtype)
    first, second = (
        _swept(problem, points, devices=[jax.local_devices()[place]]) for place in (0, -1)
    )
    names = ("outcome", "time", "end_time", "end", "level_times", "steps")
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in names}
    differ = {name: int(np.sum(_bits(a) != _bits(b))) for name, (a, b) in pairs.items()}
    number = sum(differ.values())
    return Verdict(number == 0, f"{number} bytes differ", "0", {"bytes_that_differ": differ})


def nan_among_others(dtype: str, count: int) -> Verdict:
    """The outcome of a start that is NaN, and how far it moves the times of the others."""
    problem, place = PROBLEMS["ratio"], count // 2
    points = problem.starts(count).astype(dtype)
    undisturbed = _swept(problem, points)
    points[place] = np.nan
    runs = _swept(problem, points)
    others = np.arange(count) != place
    reached = bool(np.all(runs.outcome[others] == Outcome.reached))
    outcome = Outcome(runs.outcome[place])
    moved = _largest_change(runs.time[others], undisturbed.time[others])
    allowed = MEDIAN * RTOL[dtype]
    passed = outcome == Outcome.non_finite and reached and moved <= allowed
    return Verdict(
        passed,
        f"{outcome.name}; others {'reached' if reached else 'NOT all reached'}, {moved:.1e} off",
        f"{Outcome.non_finite.name}; {allowed:.0e}",
        {"outcome": outcome.name, "others_reached": reached, "others_moved_by": moved},
    )


def as_on_a_cpu(dtype: str) -> Verdict:
    """Outcomes of many kinds, and times, against the record of a CPU."""
    record = json.loads(RECORD.read_text("utf-8"))["cases"]
    differ, compared, furthest, kinds = 0, 0, 0.0, set[str]()
    for name, case in cases().items():
        rows = record[name]
        starts = np.asarray([row[0] for row in rows], np.float64)  # JSON has null for NaN
        runs = _run(case._replace(starts=starts.astype(dtype)))
        wanted = np.asarray([Outcome[row[1]] for row in rows])
        times = np.asarray([row[2] for row in rows], np.float64)
        differ += int(np.sum(runs.outcome != wanted))
        furthest = max(furthest, _largest_change(runs.end_time, times))
        compared += len(rows)
        kinds |= {row[1] for row in rows}
    allowed = LARGEST * RTOL[dtype]
    numbers = {"starts": compared, "differ": differ, "furthest_time": furthest}
    found = f"{differ} of {compared} differ ({len(kinds)} kinds), times {furthest:.1e} off"
    passed = differ == 0 and furthest <= allowed
    return Verdict(passed, found, f"0; {allowed:.0e}", {**numbers, "kinds": sorted(kinds)})


def write_cpu_outcomes() -> Path:
    """Write the record anew, on a CPU; where it lies.

    Raises:
        ValueError: On another device.
    """
    if jax.local_devices()[0].platform != "cpu":
        raise ValueError("Outcomes of a CPU must be written on one: set JAX_PLATFORMS=cpu.")
    written = []
    for name, case in cases().items():
        runs = _run(case)
        # How long a line takes to come to rest is a matter of the tolerance.
        times = np.where(runs.outcome == Outcome.at_critical_point, np.nan, runs.end_time)
        rows = [
            json.dumps([_listed(start), Outcome(outcome).name, *_listed([time])])
            for start, outcome, time in zip(case.starts, runs.outcome, times, strict=True)
        ]
        written.append(f"{json.dumps(name)}: [\n" + ",\n".join(rows) + "\n]")
    about = json.dumps({"about": MADE, "machine": machine()}, indent=1).removesuffix("\n}")
    RECORD.write_text(f'{about},\n "cases": {{\n' + ",\n".join(written) + "\n}\n}\n", "utf-8")
    return RECORD


def cases() -> dict[str, Case]:
    """The sweeps of the record: all outcomes but those of a limit of steps."""
    generator = np.random.default_rng(SEED)
    plane = flowlab.RatioPlane(Box(1, 1), wall="stop")
    some = np.round(generator.uniform(0.01, 1.1, (IN_BOX, 2)), 3)
    odd = np.array([[np.nan, 0.5], [0.9, 1e-4], [1.0, 0.5]])  # NaN, past the level, at the wall
    wells = np.round(generator.uniform(-2, 2, (IN_WELLS, 2)), 3)
    ridge = np.stack([np.zeros(ON_RIDGE), np.linspace(-1, 1, ON_RIDGE).round(3)], axis=1)
    return {
        "box that stops, time limit 2": Case(
            flowlab.preference_flow(flowlab.DPO(BETA), plane),
            until.loss_below(LEVEL, time_limit=2.0),
            np.concatenate([some, odd]),
        ),
        "two wells, starts on the ridge": Case(
            flowlab.Flow(potentials.DoubleWell(dimension=2)),
            until.loss_below(0.2),
            np.concatenate([wells, ridge]),
        ),
    }


def _run(case: Case) -> Any:
    return flowlab.sweep(case.flow, case.starts, until=case.target, progress=False)


def _swept(problem: Problem, points: np.ndarray, **options: Any) -> Any:
    rtol, target = RTOL[points.dtype.name], until.loss_below(LEVEL)
    return flowlab.sweep(problem.flow(), points, until=target, rtol=rtol, progress=False, **options)


def _largest_change(values: np.ndarray, wanted: np.ndarray) -> float:
    """The largest relative difference from what is wanted, where that is a number."""
    known = np.isfinite(wanted) & (wanted != 0)
    return accuracy(values[known], wanted[known])["largest_error"]


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(np.uint8)


def _listed(values: Any) -> list[float | None]:
    """Numbers as JSON can hold them: null for NaN."""
    return [None if np.isnan(x) else float(f"{x:.{DIGITS}g}") for x in values]
