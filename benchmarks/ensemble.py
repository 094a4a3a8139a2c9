"""Starts per second to a loss level, against other ways to solve the same flow lines.

DPO with beta 0.3, time to L = 0.1, on the ratio plane from starts uniform on [0.01, 1]^2; other
problems by `--problem`. The time of every flow line is known in closed form, so an error stands
beside each speed. Compilation is measured apart; repetitions of all ways are interleaved, and the
median is reported. All cores for everyone.

Each peer is matched twice: it runs at the tightest tolerance at which its median error is no
smaller than that of flowlab, and at that at which its largest error is not. None pays for digits
that flowlab does not deliver, and one whose errors are uneven is seen at both. It has the best
clock that is known for the problem, written out by hand for it, beside the plain way; and of
several methods the one that is fastest at its tolerance. Slow peers get the first of the starts
only; speeds are per start. A peer whose library is not installed is named under "missing".
"""

import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np
from _common import cores, emit, parser
from _peers import (
    MissingError,
    Peer,
    Solved,
    Way,
    with_cpp,
    with_diffrax,
    with_flowlab,
    with_gradsolve,
    with_heyoka,
    with_scipy,
    with_torch,
)
from _peers.problems import BETA, LEVEL, PROBLEMS, Problem

RTOLS = {"float64": (1e-6, 1e-9), "float32": (1e-4,)}
REPETITIONS = 7
LOOSEST = 1e-2
TIGHTEST = 1e-4  # of flowlab's tolerance
STRIDE = 10**0.5  # from one tolerance to the next
HALVINGS = 2  # of the last of these strides
ALIKE = 1.1  # errors that differ by less are the same
TRIALS = 3  # of a method, to find the fastest
FEW = 8  # starts of the first call, in which everything is compiled

SOURCES: dict[str, Callable[[Problem, int], dict[str, Peer]]] = {
    "C++": with_cpp.peers,
    "heyoka": with_heyoka.peers,
    "gradsolve": with_gradsolve.peers,
    "torchode": with_torch.torchode_peers,
    "torchdiffeq": with_torch.torchdiffeq_peers,
    "diffrax": with_diffrax.peers,
    "SciPy": with_scipy.peers,
}
"""Where peers come from, by the name that stands under "missing"."""
WITH_FLOAT32 = ("C++",)


class Size(NamedTuple):
    """Numbers of starts: in all, for a peer at the most, and for choosing its tolerance."""

    starts: int
    of_peers: int
    pilot: int
    repetitions: int
    methods: int


SMOKE = Size(starts=512, of_peers=FEW, pilot=FEW, repetitions=1, methods=1)


class Errors(NamedTuple):
    """Median and largest relative error of times against the closed form."""

    median: float
    largest: float


MATCHES = Errors._fields
"""The errors, each of which a peer is matched by once."""


class Entry(NamedTuple):
    """A way to be timed, at its tolerance, on some of the starts."""

    method: str
    way: Way
    rtol: float
    points: np.ndarray


class Contest(NamedTuple):
    """A problem, its starts, flowlab's way, the peers, and the seconds of their first calls."""

    problem: Problem
    points: np.ndarray
    ours: Way
    peers: dict[str, Peer]
    first_calls: dict[str, dict[str, float]]


def errors(problem: Problem, points: np.ndarray, times: np.ndarray) -> Errors:
    """The errors of times, infinite where there is none."""
    off = np.nan_to_num(np.abs(times / problem.times(points) - 1), nan=np.inf)
    return Errors(float(np.median(off)), float(np.max(off)))


def timed(way: Way, points: np.ndarray, rtol: float) -> tuple[float, Solved]:
    """Seconds that a way takes, and what it finds."""
    began = time.perf_counter()
    solved = way(points, rtol)
    return time.perf_counter() - began, solved


def contest(problem: Problem, size: Size, dtype: str, peers: dict[str, Peer]) -> Contest:
    """A problem with its starts, once every way has been called on a few of them."""
    points = problem.starts(size.starts).astype(dtype)
    chosen, first_calls = {}, {}
    for name, peer in peers.items():
        methods = dict(list(peer.methods.items())[: size.methods])
        chosen[name] = Peer(methods, min(peer.starts, size.of_peers, len(points)))
        first_calls[name] = {
            method: timed(way, points[:FEW], RTOLS[dtype][-1])[0] for method, way in methods.items()
        }
    return Contest(problem, points, with_flowlab.way(problem), chosen, first_calls)


def fair_tolerance(at: Callable[[float], float], ours: float, rtol: float) -> float:
    """The tightest tolerance at which an error is no smaller than ours, looked for around ours.

    Where tighter ones help no more, since rounding or the search for a root sets the errors, it is
    the loosest of them.
    """
    tried: dict[float, float] = {}

    def fair(tolerance: float) -> bool:
        tried[tolerance] = at(tolerance)
        return tried[tolerance] >= ours

    loose = tight = rtol
    if fair(rtol):
        while tight > TIGHTEST * rtol and fair(tight / STRIDE):
            tight /= STRIDE
        loose, tight = tight, tight / STRIDE
    else:
        while not fair(loose * STRIDE) and loose < LOOSEST:
            loose *= STRIDE
        loose, tight = loose * STRIDE, loose
    for _ in range(HALVINGS):
        middle = (loose * tight) ** 0.5
        loose, tight = (middle, tight) if fair(middle) else (loose, middle)
    return max(tolerance for tolerance, e in tried.items() if e <= ALIKE * tried[loose])


def entered(this: Contest, peer: Peer, rtol: float, times: np.ndarray, match: str) -> Entry:
    """A peer's fastest method, each at the tightest tolerance that is fair to it.

    Fair is what is no more accurate, by the error it is matched by, than `times`, which flowlab
    finds for the first of all starts.
    """
    few, some = this.points[: min(len(times), peer.starts)], this.points[: peer.starts]
    ours = errors(this.problem, few, times[: len(few)])
    found: list[tuple[float, Entry]] = []
    for method, way in peer.methods.items():

        def at(tolerance: float, way: Way = way) -> float:
            return getattr(errors(this.problem, few, way(few, tolerance).times), match)

        entry = Entry(method, way, fair_tolerance(at, getattr(ours, match), rtol), some)
        way(some, entry.rtol)  # compiles for this number of starts
        took = min(timed(way, some, entry.rtol)[0] for _ in range(TRIALS))
        found.append((took, entry))
    return min(found, key=lambda each: each[0])[1]


def described(problem: Problem, entry: Entry, first_call: float) -> dict[str, Any]:
    """A row of the result, but for its speed."""
    solved = entry.way(entry.points, entry.rtol)
    found = errors(problem, entry.points, solved.times)
    return {
        "starts": len(entry.points),
        "method": entry.method,
        "rtol": entry.rtol,
        "median_error": found.median,
        "largest_error": found.largest,
        "steps": solved.steps,
        "first_call_s": first_call,
        "seconds": [],
    }


def compared(this: Contest, rtol: float, size: Size) -> dict[str, Any]:
    """Speed and errors of every way at one tolerance of flowlab, of a peer by both matches.

    Ways are named by flowlab's name, and by the peers' names behind what they are matched by.
    """
    first_call, _ = timed(this.ours, this.points[:FEW], rtol)
    times = this.ours(this.points, rtol).times[: size.pilot]
    ours = Entry("sweep", this.ours, rtol, this.points)
    entries = {"flowlab": ours}
    rows = {"flowlab": described(this.problem, ours, first_call)}
    for match, (peer_name, peer) in product(MATCHES, this.peers.items()):
        name = f"{match}: {peer_name}"
        entries[name] = entry = entered(this, peer, rtol, times, match)
        sys.stderr.write(f"{this.problem.name}, {rtol:g}: {name} at {entry.rtol:.2g}\n")
        first_call = this.first_calls[peer_name][entry.method]
        rows[name] = {"match": match, **described(this.problem, entry, first_call)}
    for _ in range(size.repetitions):
        for name, entry in entries.items():
            rows[name]["seconds"].append(timed(entry.way, entry.points, entry.rtol)[0])
    for row in rows.values():
        row["starts_per_s"] = row["starts"] / median(row["seconds"])
    for row in rows.values():
        row["flowlab_is_faster_by"] = rows["flowlab"]["starts_per_s"] / row["starts_per_s"]
    return {"flowlab_rtol": rtol, "ways": rows}


def entrants(problem: Problem, asked: Sequence[str]) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that take a problem, and why others are missing."""
    found: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name in asked:
        try:
            found |= SOURCES[name](problem, cores())
        except MissingError as reason:
            missing[name] = str(reason)
    return found, missing


def arguments() -> Any:
    """The arguments on the command line."""
    made = parser(__doc__ or "")
    made.add_argument("--problem", choices=[*PROBLEMS, "all"], default="ratio")
    made.add_argument("--starts", type=int, default=65536, help="starts, for the slow not all")
    made.add_argument("--repetitions", type=int, default=REPETITIONS)
    made.add_argument("--rtol", type=float, nargs="+", help="tolerances of flowlab")
    made.add_argument("--dtype", choices=list(RTOLS), default="float64")
    made.add_argument("--peers", choices=list(SOURCES), nargs="*", help="all if not given")
    return made.parse_args()


def main() -> None:
    """Measure and write the result."""
    options = arguments()
    jax.config.update("jax_enable_x64", True)
    size = SMOKE if options.smoke else Size(options.starts, 2**20, 1024, options.repetitions, 2)
    rtols = options.rtol or RTOLS[options.dtype][: 1 if options.smoke else None]
    asked = list(SOURCES) if options.peers is None else options.peers
    if options.dtype == "float32":
        asked = [name for name in asked if name in WITH_FLOAT32]
    results, missing = [], {}
    for name in PROBLEMS if options.problem == "all" else (options.problem,):
        peers, lacking = entrants(PROBLEMS[name], asked)
        missing |= lacking
        this = contest(PROBLEMS[name], size, options.dtype, peers)
        found = [compared(this, rtol, size) for rtol in rtols]
        results.append({"problem": name, "text": PROBLEMS[name].text, "tolerances": found})
    emit(
        {
            "benchmark": "ensemble",
            "task": f"DPO, beta {BETA}, time to L = {LEVEL}, {options.dtype}",
            "repetitions": size.repetitions,
            "missing": missing,
            "results": results,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
