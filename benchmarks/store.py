"""The speed of a sweep that is carried out into a store, against the same sweep in memory.

The standard problem of these benchmarks. Each way in a process of its own, in turn: what is
compiled is compiled by a smaller sweep before, and the peak of memory is that of the process. The
times in the store are compared with those in memory.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _common import emit, parser
from _problem import BETA, LEVEL, PROBLEM, peak_mib

import flowlab
from flowlab import plans, until

REPETITIONS = 3
STARTS, SMOKE_STARTS = 10**7, 3000
LOWER, UPPER, SEED = (0.01, 0.01), (1.0, 1.0), 0
COMPARED = 1000  # starts whose times are compared


def planned(count: int) -> plans.Plan:
    """The sweep, as a plan."""
    starts = plans.DrawnStarts("uniform", count, LOWER, UPPER, SEED)
    target, plane = until.loss_below(LEVEL), flowlab.RatioPlane()
    return plans.Plan(starts, loss=flowlab.DPO(BETA), policy=plane, until=target)


def in_memory(count: int, folder: Path) -> np.ndarray:
    """Times of some starts, of a sweep in memory."""
    del folder
    plan = planned(count)
    points = plan.starts.part(0, count)
    runs = flowlab.sweep(plan.flow(()), points, until=plan.target(()), progress=False)
    return runs.time[:: max(1, count // COMPARED)]


def in_a_store(count: int, folder: Path) -> np.ndarray:
    """The same, of one that is carried out into a store."""
    found = plans.run(planned(count), folder / str(count), progress=False, force=True)
    return found["time"][:: max(1, count // COMPARED)].values


WAYS = {"memory": in_memory, "store": in_a_store}


def measured(way: str, count: int) -> dict[str, Any]:
    """Seconds, memory and some times of one way, in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        WAYS[way](min(count, 200_000), folder)  # compiles
        shutil.rmtree(folder / str(min(count, 200_000)), ignore_errors=True)
        began = time.perf_counter()
        times = WAYS[way](count, folder)
        seconds = time.perf_counter() - began
        stored = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return {
        "seconds": seconds,
        "starts_per_s": count / seconds,
        "peak_mib": peak_mib(),
        "stored_mib": stored / 1024**2,
        "times": times.tolist(),
    }


def main() -> None:
    """Measure both ways in turn, or one of them in this process."""
    arguments = parser("The speed of a sweep through a store, against the same in memory.")
    arguments.add_argument("--way", choices=WAYS, help="measure one way, in this process")
    arguments.add_argument("--starts", type=int, default=STARTS)
    arguments.add_argument("--repetitions", type=int, default=REPETITIONS)
    options = arguments.parse_args()
    count = SMOKE_STARTS if options.smoke else options.starts
    if options.way:
        sys.stdout.write(f"{json.dumps(measured(options.way, count))}\n")
        return
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(1 if options.smoke else options.repetitions):
        for way, seen in rows.items():
            command = [sys.executable, __file__, "--way", way, "--starts", str(count)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            seen.append(json.loads(answer.stdout.splitlines()[-1]))
    times = {way: np.asarray([row.pop("times") for row in seen]) for way, seen in rows.items()}
    apart = np.max(np.abs(times["store"] / times["memory"] - 1))
    speed = {way: median(row["starts_per_s"] for row in seen) for way, seen in rows.items()}
    result = {
        "benchmark": "store",
        "problem": PROBLEM,
        "starts": count,
        "ways": rows,
        "store_over_memory": speed["store"] / speed["memory"],
        "largest_relative_difference_of_times": float(apart),
    }
    emit(result, options.out)


if __name__ == "__main__":
    main()
