"""The standard problem, and timed sweeps of it: in this process, a fresh one, or a notebook.

Nothing here imports JAX before `measured` has confined its process to the cores that it may use.
"""

import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _common import devices

import flowlab
from flowlab import exact, starts

BETA, LEVEL = 0.3, 0.1
LOWER, UPPER = (0.01, 0.01), (1.0, 1.0)
PROBLEM = f"ratio plane, DPO, beta {BETA}, starts uniform on [0.01, 1]^2, time to L = {LEVEL}"
COMPARED = 65536  # starts, evenly spread, whose times are held against the closed form
TINY = 1024
OPTIONS = ("rtol", "block_size")  # of `flowlab.sweep`, that a variant may have
FOLDER = Path(__file__).resolve().parent
CELL = "import json, _problem; print(json.dumps(_problem.measured(**json.loads({!r}))))"


def points(count: int, dtype: str = "float64") -> np.ndarray:
    """The starts of the standard problem, shape (count, 2)."""
    return starts.uniform(count, LOWER, UPPER, seed=0, dtype=dtype)


def solved(some: np.ndarray, **options: Any) -> Any:
    """The runs of the standard problem from some starts."""
    flow = flowlab.preference_flow(flowlab.DPO(BETA), flowlab.RatioPlane())
    target = flowlab.until.loss_below(LEVEL)
    return flowlab.sweep(flow, some, until=target, progress=False, **options)


def accuracy(times: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Median and largest relative error; a time that is missing is infinitely wrong."""
    off = np.nan_to_num(np.abs(times - wanted) / wanted, nan=np.inf)
    return {"median_error": float(np.median(off)), "largest_error": float(np.max(off))}


def in_a_fresh_process(case: Mapping[str, Any], **environment: str) -> dict[str, Any]:
    """The result of `measured` for a case in a process of its own."""
    answer = subprocess.run(
        [sys.executable, "-c", CELL.format(json.dumps(case))],
        cwd=FOLDER,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout.splitlines()[-1])


def in_a_notebook(case: Mapping[str, Any], **environment: str) -> dict[str, Any]:
    """The result of `measured` for a case in a cell of a notebook with a kernel of its own."""
    import nbclient
    import nbformat

    cell = nbformat.v4.new_code_cell(CELL.format(json.dumps(case)))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(FOLDER)}})
    client.execute(env={**os.environ, **environment})
    printed = "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
    return json.loads(printed.splitlines()[-1])


def missing_for_notebooks() -> list[str]:
    """The packages that `in_a_notebook` needs and that are not installed."""
    needed = ("ipykernel", "nbclient", "nbformat")
    return [name for name in needed if importlib.util.find_spec(name) is None]


def measured(
    variants: Sequence[Mapping[str, Any]],
    *,
    repetitions: int = 1,
    enough_s: float = math.inf,
    cores: int | None = None,
) -> dict[str, Any]:
    """Seconds, steps, errors and memory of sweeps, each variant in turn, in this process.

    Args:
        variants: For each sweep `count`, and where it matters `dtype`, `rtol`, `block_size`,
            and `devices`, the number of JAX devices to use.
        repetitions: Timed rounds at most, after the first call.
        enough_s: Seconds after which no further round begins.
        cores: Cores to use; None for all that this process may.
    """
    if cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if variants:
        solved(points(TINY))
    result: dict[str, Any] = {"devices": devices(), "baseline_mib": peak_mib()}
    rows = [first(variant) for variant in variants]
    began = time.perf_counter()
    for _ in range(repetitions):
        for variant, row in zip(variants, rows, strict=True):
            row["seconds"].append(timed(variant)[0])
        if time.perf_counter() - began > enough_s:
            break
    for row in rows:
        row["starts_per_s"] = row["count"] / median(row["seconds"])
    return {**result, "device_peak_mib": device_peak_mib(), "rows": rows}


def device_peak_mib() -> float | None:
    """The most memory held on the first accelerator, in MiB; None on a CPU."""
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    peak = statistics.get("peak_bytes_in_use")
    return None if peak is None else peak / 1024**2


def peak_mib() -> float | None:
    """The most memory that this process has held, in MiB; None where nobody says.

    The kernel's `ru_maxrss` also counts the parent, if the process began by sharing its memory;
    `VmHWM` does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) / 1024
    try:
        import resource
    except ImportError:
        return None
    unit = 1024**2 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def timed(variant: Mapping[str, Any]) -> tuple[float, np.ndarray, Any]:
    """Seconds of one sweep, its starts and its runs."""
    import jax

    options = {name: variant[name] for name in OPTIONS if name in variant}
    if "devices" in variant:
        options["devices"] = jax.local_devices()[: variant["devices"]]
    some = points(variant["count"], variant.get("dtype", "float64"))
    began = time.perf_counter()
    runs = solved(some, **options)
    return time.perf_counter() - began, some, runs


def first(variant: Mapping[str, Any]) -> dict[str, Any]:
    """The first call, which compiles; its memory, and its steps and errors."""
    seconds, some, runs = timed(variant)
    row = {**variant, "first_call_s": seconds, "peak_mib": peak_mib()}
    chosen = slice(None, None, max(1, len(some) // COMPARED))
    wanted = exact.ratio_plane_time(some[chosen].astype(np.float64), BETA, level=LEVEL)
    row |= {"steps": float(runs.steps.mean()), "outcomes": runs.counts()}
    return {**row, **accuracy(runs.time[chosen], wanted), "seconds": []}
