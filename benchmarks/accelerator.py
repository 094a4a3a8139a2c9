"""Correctness and speed of flowlab on this device, beside the most that the device can do.

One command, which ends within its budget of seconds: what matters most comes first, and what was
left out is named. With `--lower cuda,tpu` it says instead which problems become kernels for these
chips, and needs none. Correctness: times against closed forms in both precisions, outcomes against
those of a CPU (`_accelerator_cpu.json`), the bits of equal blocks, a NaN among other starts, walls,
a loss of one's own, a softmax of 20 responses. Speed, of these problems too: `flowlab.sweep`, and
`jax.vmap` of `diffrax.diffeqsolve`, with errors beside it and compilation apart. Roofs: a copy, and
the field alone. A table comes last. The exit code is 1 if a check of correctness fails.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
from _accelerator_table import table
from _checks import (
    Verdict,
    against_closed_form,
    as_on_a_cpu,
    judged_errors,
    nan_among_others,
    same_bits,
    write_cpu_outcomes,
)
from _common import GIB, age, device_memory, emit, free_memory, machine, parser
from _lowering import PLATFORMS, Row, candidates, lowered, markdown, unexpected
from _peers.problems import PROBLEMS
from _roofs import copy_speed, field_speed
from _speeds import WARM, method_of, sweep_speed, vmap_speed, warmed_sweep_speed

import flowlab
from flowlab.ensemble import default_backend

BUDGET_S = 480.0
RESERVED = 0.02  # of the budget, for what is left to do when it is over: the file and the table
DTYPES = ("float64", "float32")
CASES = (  # what matters most comes first
    ("float64", 1e-6),
    ("float32", 1e-4),
    ("float64", 1e-9),
    ("float64", 1e-4),
    ("float32", 1e-6),
    ("float32", 1e-9),
)
PROBLEMS_CHECKED = {
    "box": "box, sliding",
    "simplex": "simplex, sliding with release",
    "own_loss": "a loss of one's own",
    "softmax": "softmax of 20 responses",
}
STANDARD = "ratio"
SWEEP, VMAP, BLOCKS = "flowlab.sweep", "vmap(diffeqsolve)", "blocks"
NO_TIME, CUT = "no time was left", "cut off at the end of the budget"
BYTES_A_START = {"float64": 120, "float32": 80}  # of host memory, that a sweep takes at most
DRAWN_PER_S = 2e7  # starts that are drawn in a second, at least
MARGIN = 1.2  # by which a sweep of very many may take longer than one of many lets expect
PART_OF_DEVICE = 8  # the part of the device's memory that a roof's array may fill

Kind = Literal["check", "speed", "roof"]


class Size(NamedTuple):
    """Numbers of starts, of bytes and of repetitions; chunks are those of diffrax."""

    many: int
    very_many: int
    checked: int
    copied: int
    evaluated: int
    chains: tuple[int, ...]
    chunks: tuple[int, ...]
    repetitions: int


SMOKE = Size(512, 0, 512, 2**20, 2**12, (1,), (512,), 1)
ON_CPU = Size(10**6, 10**8, 2**16, 2**28, 2**22, (1, 16), (1000, 10_000), 3)
ON_ACCELERATOR = ON_CPU._replace(
    copied=2**30, evaluated=2**24, chunks=(1_000_000, 250_000, 50_000, 10_000)
)


class LeftOutError(Exception):
    """Something cannot be measured here; the text says why."""


class Task(NamedTuple):
    """Something to find out, which writes what it finds into the log."""

    name: str
    kind: Kind
    do: Callable[[], None]


@dataclass
class Log:
    """Everything known so far, and the end of the time in which to find out more."""

    deadline: float
    checks: list[dict[str, Any]] = field(default_factory=list)
    speeds: list[dict[str, Any]] = field(default_factory=list)
    roofs: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    doing: str | None = None

    def left(self) -> float:
        """Seconds left."""
        return self.deadline - time.perf_counter()

    def judge(self, name: str, dtype: str, verdict: Verdict, seconds: float) -> None:
        """Write down a verdict."""
        numbers = {**verdict._asdict(), **verdict.numbers}
        del numbers["numbers"]
        self.checks.append({"check": name, "dtype": dtype, **numbers, "seconds": seconds})

    def fail(self, task: Task, error: Exception) -> None:
        """Write down what could not be carried out: a failed check, or a speed that is missing."""
        words = str(error).strip() or "no words"
        reason = f"{type(error).__name__}: {words.splitlines()[0]}"
        if task.kind == "check":
            name, _, dtype = task.name.rpartition(", ")
            self.judge(name, dtype, Verdict(False, reason, "no error", {}), 0.0)
        else:
            self.left_out[task.name] = f"failed with {reason}"


def plan(log: Log, size: Size, *, smoke: bool) -> Iterator[Task]:
    """Everything there is to find out, what matters most first."""
    cases = [case for case in CASES[: 2 if smoke else None] if _held(log, *case)]
    for case in cases[:2]:
        yield from _sweeps(log, size, STANDARD, *case)
    for dtype in DTYPES:
        yield _check(log, "bits of equal blocks", dtype, partial(same_bits, dtype, size.checked))
        yield _check(log, "one start is NaN", dtype, partial(nan_among_others, dtype, size.checked))
    yield from _checks_of_problems(log, size, "float64")
    for dtype in DTYPES:
        yield from _roofs(log, size, dtype)
    clock = "margin" if smoke else "time"  # margin compiles sooner
    yield _vmap(log, size, STANDARD, clock, *cases[0])
    if smoke:
        return
    yield _sweep_of_very_many(log, size, *cases[0])
    for name in PROBLEMS_CHECKED:
        yield from _sweeps(log, size, name, *cases[0])
        yield _vmap(log, size, name, "time", *cases[0])
    for case in cases[2:]:
        yield from _sweeps(log, size, STANDARD, *case)
    yield _sweep_of_very_many(log, size, *cases[1])
    yield _vmap(log, size, STANDARD, "time", *cases[1])
    yield from _checks_of_problems(log, size, "float32")
    for case in cases[2:]:
        yield _vmap(log, size, STANDARD, "time", *case)
        yield _sweep_of_very_many(log, size, *case)
    for case in cases:
        yield _vmap(log, size, STANDARD, "margin", *case)


def _held(log: Log, dtype: str, rtol: float) -> bool:
    """True where a dtype can hold a tolerance; that it cannot is written down."""
    try:
        method_of(dtype, rtol)
    except ValueError as reason:
        log.left_out[f"all at rtol {rtol:.0e} in {dtype}"] = str(reason)
        return False
    return True


def _check(log: Log, name: str, dtype: str, judged: Callable[[], Verdict]) -> Task:
    def do() -> None:
        began = time.perf_counter()
        verdict = judged()
        log.judge(name, dtype, verdict, time.perf_counter() - began)

    return Task(f"{name}, {dtype}", "check", do)


def _checks_of_problems(log: Log, size: Size, dtype: str) -> Iterator[Task]:
    """Outcomes, walls, a loss of one's own, many responses."""
    yield _check(log, "outcomes as on a CPU", dtype, partial(as_on_a_cpu, dtype))
    for name, words in PROBLEMS_CHECKED.items():
        judged = partial(against_closed_form, name, dtype, size.checked)
        yield _check(log, f"times, {words}", dtype, judged)


def _sweeps(log: Log, size: Size, problem: str, dtype: str, rtol: float) -> Iterator[Task]:
    """A sweep of many starts as it comes, and by blocks where that is a kernel."""
    yield _sweep(log, size, problem, dtype, rtol, None)
    if default_backend() != BLOCKS:
        yield _sweep(log, size, problem, dtype, rtol, BLOCKS)


def _sweep(
    log: Log, size: Size, problem: str, dtype: str, rtol: float, backend: str | None
) -> Task:
    """A sweep of many starts, whose times are judged too."""
    by = "" if backend is None else f", {backend}"
    name = f"times, {problem}, rtol {rtol:.0e}{by}"

    def judged() -> Verdict:
        row = sweep_speed(problem, dtype, rtol, size.many, size.repetitions, backend)
        log.speeds.append({"way": f"{SWEEP}{by}", **row})
        return judged_errors(row, rtol)

    return _check(log, name, dtype, judged)


def _sweep_of_very_many(log: Log, size: Size, dtype: str, rtol: float) -> Task:
    """A sweep of very many starts, where time and memory suffice."""
    count = size.very_many
    name = f"times, {STANDARD}, {count:,} starts, rtol {rtol:.0e}"

    def judged() -> Verdict:
        smaller = _row_of(log, SWEEP, dtype, rtol)
        if smaller is None:
            raise LeftOutError("the smaller sweep failed")
        needed = MARGIN * (count + WARM) / smaller["starts_per_s"] + count / DRAWN_PER_S
        needed += smaller["compile_s"]  # again, of what a small sweep does not come to
        if needed > log.left():
            raise LeftOutError(
                f"it would take about {needed:.0f} s, and {log.left():.0f} s were left"
            )
        memory, free = count * BYTES_A_START[dtype], free_memory()
        if free is not None and memory > free:
            lack = f"it needs {memory / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB were free"
            raise LeftOutError(lack)
        row = warmed_sweep_speed(dtype, rtol, count)
        log.speeds.append({"way": SWEEP, **row})
        return judged_errors(row, rtol)

    return _check(log, name, dtype, judged)


def _vmap(log: Log, size: Size, problem: str, clock: str, dtype: str, rtol: float) -> Task:
    """`jax.vmap` of diffrax, in chunks of the size that was best before in this dtype."""
    way = f"{VMAP}, {clock}"

    def do() -> None:
        same = {"way": way, "dtype": dtype, "problem": problem}
        before = next((row for row in log.speeds if same.items() <= row.items()), None)
        chunks = size.chunks if before is None else (before["chunk"],)
        row = vmap_speed(problem, clock, dtype, rtol, size.many, chunks, log.left)
        log.speeds.append({"way": way, **row})

    return Task(f"{way}, {problem}, rtol {rtol:.0e}, {dtype}", "speed", do)


def _roofs(log: Log, size: Size, dtype: str) -> Iterator[Task]:
    """A copy of a large array, and the field alone."""

    def copy() -> None:
        memory = device_memory()
        most = size.copied if memory is None else min(size.copied, memory // PART_OF_DEVICE)
        log.roofs.append({"dtype": dtype, **copy_speed(dtype, most)})

    def evaluate(chain: int) -> None:
        log.roofs.append({"dtype": dtype, **field_speed(dtype, size.evaluated, chain)})

    yield Task(f"copy, {dtype}", "roof", copy)
    for chain in size.chains:
        yield Task(f"field, {chain} in a row, {dtype}", "roof", partial(evaluate, chain))


def _row_of(log: Log, way: str, dtype: str, rtol: float) -> dict[str, Any] | None:
    """The first speed of a way at a tolerance, of the standard problem."""
    wanted = {"way": way, "dtype": dtype, "rtol": rtol, "problem": STANDARD}
    return next((row for row in log.speeds if wanted.items() <= row.items()), None)


def carry_out(tasks: list[Task], log: Log) -> None:
    """Do one task after the other, until the time is over."""
    for task in tasks:
        if log.left() <= 0:
            log.left_out[task.name] = NO_TIME
            continue
        log.doing = task.name
        sys.stderr.write(f"{log.left():4.0f} s left: {task.name}\n")
        try:
            task.do()
        except LeftOutError as reason:
            log.left_out[task.name] = str(reason)
        except Exception as error:  # of whatever kind: the rest can still be found out
            log.fail(task, error)
        log.done.add(task.name)
    log.doing = None


def within_budget(tasks: list[Task], log: Log) -> bool:
    """Carry out tasks in a thread of their own, and give up on it when the time is over."""
    worker = threading.Thread(target=carry_out, args=(tasks, log), daemon=True)
    worker.start()
    worker.join(max(0.0, log.left()))
    ended = not worker.is_alive()
    if not ended:
        later = [task.name for task in tasks if task.name not in log.done]
        log.left_out |= {name: CUT if name == log.doing else NO_TIME for name in later}
    return ended


def result_of(log: Log, tasks: list[Task], options: argparse.Namespace) -> dict[str, Any]:
    """The result as it stands in the file; speeds with their part of the field's roof."""
    roofs, speeds = list(log.roofs), list(log.speeds)
    best = {dtype: _roof_of_field(roofs, dtype) for dtype in DTYPES}
    on_cpu, devices = jax.default_backend() == "cpu", len(jax.local_devices())
    for row in speeds:
        roof, speed = best[row["dtype"]], row["evaluations_per_start"] * row["starts_per_s"]
        ours = row["way"].startswith(SWEEP)
        used = devices if ours and not on_cpu else 1  # and a roof is that of one
        comparable = row["problem"] == STANDARD  # whose field the roof's is
        row["part_of_field"] = speed / (used * roof) if roof and comparable else None
    return {
        "benchmark": "accelerator",
        "flowlab": flowlab.__version__,
        "problems": {row["problem"]: PROBLEMS[row["problem"]].text for row in speeds},
        "smoke": options.smoke,
        "budget_s": options.budget,
        "took_s": age(),
        "checks": list(log.checks),
        "checks_wanted": [task.name for task in tasks if task.kind == "check"],
        "roofs": roofs,
        "speeds": speeds,
        "left_out": dict(log.left_out),
    }


def _roof_of_field(roofs: list[dict[str, Any]], dtype: str) -> float | None:
    """The most evaluations of the field in a second."""
    found = [row for row in roofs if row["roof"] == "field" and row["dtype"] == dtype]
    return max((row["evaluations_per_s"] for row in found), default=None)


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    made = parser(__doc__ or "", out="file for the result as JSON")
    made.add_argument(
        "--budget",
        type=float,
        default=BUDGET_S,
        help="seconds within which it ends; 480 if not given",
    )
    made.add_argument(
        "--write-cpu-outcomes",
        action="store_true",
        help="write the outcomes of a CPU anew, with which other devices are compared, and end",
    )
    made.add_argument(
        "--lower",
        metavar="CHIPS",
        help="print which problems become kernels for chips that need not be here, cuda,tpu, and "
        "end: 1 if one that is expected to does not",
    )
    made.add_argument("--only", default="", help="of these problems those with this in their names")
    return made.parse_args()


def lower(options: argparse.Namespace) -> int:
    """Print the table of what becomes a kernel, as it is found; the exit code."""
    chips = options.lower.split(",")
    strange = sorted(set(chips) - set(PLATFORMS))
    chosen = {name: case for name, case in candidates().items() if options.only in name}
    if strange or not chosen:
        wrong = f"--lower {strange[0]}" if strange else f"--only {options.only}"
        sys.stderr.write(f"{wrong} names nothing that there is.\n")
        return 2
    rows = []
    for name, case in list(chosen.items())[: len(PLATFORMS) if options.smoke else None]:
        rows.append(Row(name, {chip: lowered(case, chip) for chip in chips}))
        sys.stderr.write(f"{rows[-1].name}: {rows[-1].verdicts}\n")
    sys.stdout.write(f"{markdown(rows, chips)}\n")
    missed = [f"{row.name} ({chip})" for row in rows for chip in unexpected(row)]
    if missed:
        sys.stdout.write(f"\nExpected to lower: {', '.join(missed)}.\n")
    return int(bool(missed))


def main() -> None:
    """Check and measure within the budget, write the result, and print the table last."""
    began, options = time.perf_counter() - age(), arguments()
    if options.lower is not None:
        sys.exit(lower(options))
    if options.write_cpu_outcomes:
        sys.stdout.write(f"{write_cpu_outcomes()}\n")
        return
    log = Log(began + options.budget * (1 - RESERVED))
    on_cpu = jax.default_backend() == "cpu"
    size = SMOKE if options.smoke else ON_CPU if on_cpu else ON_ACCELERATOR
    tasks = list(plan(log, size, smoke=options.smoke))
    ended = within_budget(tasks, log)
    result = result_of(log, tasks, options)
    if options.out is not None:
        emit(result, options.out)
    sys.stdout.write(f"{table(result, machine())}\n")
    sys.stdout.flush()
    passed = bool(result["checks"]) and all(row["passed"] for row in result["checks"])
    code = 0 if passed and (ended or not options.smoke) else 1
    if not ended:
        os._exit(code)  # a thread that is given up on would hold the process back
    sys.exit(code)


if __name__ == "__main__":
    main()
