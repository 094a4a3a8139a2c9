"""The yardstick: `_peer.cpp`, compiled when it is first needed and called on all cores."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from . import MissingError, Peer, Solved, Way
from .problems import BETA, END_MARGIN, KERNEL, Problem

__all__ = ["peers"]

SOURCE = Path(__file__).resolve().parents[1] / "_peer.cpp"
COMPILER = "g++"
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
FIELDS = ("ratio", "kernel", "box", "simplex")  # numbered as in the source
METHODS = {"Tsit5": "Tsit5", "Dopri 8(5,3)": "Dopri853"}


def peers(problem: Problem, cores: int) -> dict[str, Peer]:
    """Tsit5 and Dopri 8(5,3) by the margin clock.

    Raises:
        MissingError: If there is no compiler, or it does not take the source.
    """
    if problem.clock is None:
        return {}
    if shutil.which(COMPILER) is None:
        raise MissingError(f"there is no {COMPILER}")
    field = problem.clock.field
    methods = {name: _way(field, method, cores) for name, method in METHODS.items()}
    return {"C++, margin clock": Peer(methods, 2**20)}


def _way(field: str, method: str, cores: int) -> Way:
    up, down = KERNEL @ [1.0, -1.0]
    log_wall = 0.0
    parameters = np.array([BETA, END_MARGIN, log_wall, up, down])

    def solve(points: np.ndarray, rtol: float) -> Solved:
        points = np.ascontiguousarray(points)
        times, tries = np.empty(len(points), points.dtype), np.empty(len(points), np.int32)
        compiled(field, method, points.dtype.name).solve(
            ctypes.c_void_p(parameters.ctypes.data),
            ctypes.c_double(rtol),
            ctypes.c_void_p(points.ctypes.data),
            ctypes.c_long(len(points)),
            ctypes.c_int(cores),
            ctypes.c_void_p(times.ctypes.data),
            ctypes.c_void_p(tries.ctypes.data),
        )
        return Solved(times, float(tries.mean()))

    return solve


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="flowlab-peer-")


@functools.cache
def compiled(field: str, method: str, dtype: str) -> ctypes.CDLL:
    """The source, compiled for a field, a method and a type of number.

    Raises:
        MissingError: If the compiler does not take it.
    """
    made = Path(_folder().name) / f"{field}-{method}-{dtype}.so"
    real = {"float64": "double", "float32": "float"}[dtype]
    chosen = (f"-DPROBLEM={FIELDS.index(field)}", f"-DMETHOD={method}", f"-DREAL={real}")
    command = [COMPILER, *FLAGS, *chosen, str(SOURCE), "-o", str(made)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise MissingError(f"{COMPILER} does not take the source: {answer.stderr[:300]}")
    return ctypes.CDLL(str(made))
