"""Estimates of the time, memory and disk space that a plan will need."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowlab._files import nearest
from flowlab.plans.plan import Plan
from flowlab.store import Layout, layout_of
from flowlab.store.metadata import is_address

if TYPE_CHECKING:
    import xarray

__all__ = ["Estimate", "estimate"]

_PILOT = 1 << 16  # starts: enough for what is compiled for a block of a store to be compiled
_SAMPLE = 256  # starts by which kinds of cases are compared
_KINDS = 16  # of cases to compare, at most
_COPIES = 4  # of a block's arrays: the engine's, the Dataset's, those being written, compressed
_PROGRAMS = 1 << 30  # bytes: JAX, its compiler, and what it compiled


@dataclass(frozen=True)
class Estimate:
    """The time, memory and disk space that a plan will need on this machine.

    Attributes:
        runs: Number of runs: starts times cases.
        seconds: Time to solve all runs, compilation included.
        memory: Bytes of memory that one process will need.
        memory_free: Bytes of free memory; None if the system does not say.
        disk: Bytes of the store.
        disk_free: Bytes of free disk space at the path; None if that is not known.
    """

    runs: int
    seconds: float
    memory: int
    memory_free: int | None
    disk: int
    disk_free: int | None

    def lacking(self) -> list[str]:
        """One sentence for each resource that is too small."""
        found = []
        for name, need, free in (
            ("disk", self.disk, self.disk_free),
            ("memory", self.memory, self.memory_free),
        ):
            if free is not None and need > free:
                found.append(f"It needs {_size(need)} of {name}, but {_size(free)} are free.")
        return found

    def __str__(self) -> str:
        """The estimate as a sentence."""
        return (
            f"{self.runs:,} runs: about {duration(self.seconds)}, {_size(self.memory)} of memory, "
            f"{_size(self.disk)} on the disk"
        )


def estimate(plan: Plan, path: str | os.PathLike[str] = ".") -> Estimate:
    """The time, memory and disk space that a plan will need, from trials of some of its starts.

    One case is compiled and timed as it will be run, on at most 65,536 starts. For up to 16 further
    combinations of loss, policy and target, the cost relative to this case is measured by short
    trials on 256 starts. This takes about 15 s, plus a few seconds for each combination.

    Args:
        plan: The plan.
        path: The path of its store.

    Accuracy: times within a factor of about three if the first starts are typical (the first starts
        of a grid lie along one side); the size of the arrays is exact.
    """
    return tried(plan, path)[0]


def tried(plan: Plan, path: str | os.PathLike[str]) -> tuple[Estimate, "Layout"]:
    """The estimate of a plan, and the layout of its store."""
    number = min(plan.starts.count, _PILOT)
    kinds = [case for case in plan.cases() if _is_first_of_its_kind(plan, case)]
    case = max(kinds, key=lambda case: np.size(getattr(plan.target(case), "levels", 0.0)))
    compiled = time.perf_counter()
    example = plan.solve(case, 0, number).to_xarray(
        grid=False
    )  # compiles, and imports what it needs
    began = time.perf_counter()
    plan.solve(case, 0, number).to_xarray(grid=False)
    once = time.perf_counter() - began
    seconds = max(0.0, began - compiled - once) * len(kinds)
    seconds += once * _relative_cost(plan, kinds, case) * plan.runs / number
    layout = planned_layout(plan, example)
    of_block = plan.block * (layout.bytes // max(1, plan.runs) + 1)
    found = Estimate(
        runs=plan.runs,
        seconds=seconds,
        memory=_PROGRAMS + _COPIES * of_block,
        memory_free=_memory_free(),
        disk=layout.bytes,
        disk_free=_disk_free(path),
    )
    return found, layout


def planned_layout(plan: Plan, example: "xarray.Dataset") -> Layout:
    """The layout of the store of a plan, from an example with a few runs of one case."""
    return layout_of(example, plan.axes, plan.starts.count, plan.block)


def duration(seconds: float) -> str:
    """A duration as text, with at most two units."""
    whole = round(seconds)
    if seconds < 1:
        return "less than a second"
    for size, name, smaller, minor in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {minor}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _is_first_of_its_kind(plan: Plan, case: tuple[int, ...]) -> bool:
    """True if all hyper-parameters of a case have their first values."""
    kinds = ("loss", "policy", "flow", "target")
    return all(i == 0 for name, i in zip(plan.axes, case, strict=True) if name not in kinds)


def _relative_cost(plan: Plan, kinds: Sequence[tuple[int, ...]], case: tuple[int, ...]) -> float:
    """The mean cost of a run over all kinds of cases, divided by the cost for one of them."""
    if len(kinds) == 1:
        return 1.0
    number = min(plan.starts.count, _SAMPLE)

    def cost(kind: tuple[int, ...]) -> float:
        plan.solve(kind, 0, number, optimise=False)  # compiles
        began = time.perf_counter()
        plan.solve(kind, 0, number, optimise=False)
        return time.perf_counter() - began

    some = kinds[:: -(-len(kinds) // _KINDS)]
    costs = {kind: cost(kind) for kind in {case, *some}}
    return float(np.mean([costs[kind] for kind in some])) / costs[case]


def _memory_free() -> int | None:
    """Bytes of memory that a new process can have; None on systems other than Linux."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in lines)
    return int(found["MemAvailable"].split()[0]) * 1024


def _disk_free(path: str | os.PathLike[str]) -> int | None:
    if is_address(path):
        return None
    return shutil.disk_usage(nearest(Path(path))).free


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} TiB"
