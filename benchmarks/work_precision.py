"""The error of a sweep against its time, for solvers, clocks and tolerances, in float64.

Two problems whose times are known in closed form: the standard one of these benchmarks, and the
same on the unit simplex, where flow lines meet the wall and slide along it. Each solver and clock
is compiled once, in a first call that is recorded apart; repetitions go round all cases, and
medians are reported. Errors are relative, of the time; a start that has not arrived counts as
infinitely wrong, and a solver that leaves one behind is not tried at tighter tolerances.

Clocks that are slow get the first of the starts only, and speeds are per start. Lines that near
extinction each at a time of its own want a small step then, and under the clock of time the whole
block takes it: there the blocks are small.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import diffrax
import numpy as np
from _common import devices, emit, machine, parser
from _figures import COLOURS, MARKERS, label, panels, save
from _problem import BETA, LEVEL, PROBLEM, accuracy, points
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import flowlab
from flowlab import exact, until
from flowlab.domains import Simplex
from flowlab.flow import AbstractFlow

REPETITIONS = 5
STARTS = 16384
SHARE_OF_SLOW = {"arc_length": 1 / 4, "time": 1 / 16}
ENOUGH_S = 10.0  # in all, after which a case is repeated no more
BLOCKS = {"time": 16}  # that are not the default
TOLERANCES = tuple(10.0**-k for k in range(3, 11))
SOLVERS = ("Bosh3", "Tsit5", "Dopri5", "Dopri8")  # of orders 3, 5, 5 and 8
TIGHTEST = {"Bosh3": 1e-6}  # beyond which it takes thousands of steps
DEFAULT, HIGH_ORDER, HIGH_ORDER_BELOW = "Tsit5", "Dopri8", 3e-8  # what flowlab takes itself
SMOKE_STARTS, SMOKE_TOLERANCES = 128, (1e-4, 1e-6)


class Ground(NamedTuple):
    """A problem with its closed form: the flow, its starts, and the times that are right."""

    words: str
    flow: AbstractFlow
    starts: np.ndarray
    wanted: np.ndarray

    @property
    def clocks(self) -> tuple[until.Clock, ...]:
        """The clocks that can measure the way to the level, flowlab's default first."""
        return until.loss_below(LEVEL).clocks(self.flow)


class Way(NamedTuple):
    """A combination that is compiled by itself."""

    ground: str
    clock: until.Clock
    solver: str


def grounds(count: int) -> dict[str, Ground]:
    """Both problems, by name."""
    free, inside = points(count), points(3 * count)
    inside = inside[inside.sum(axis=1) <= 1][:count]
    free_flow = flowlab.preference_flow(flowlab.DPO(BETA), flowlab.RatioPlane())
    held = flowlab.RatioPlane(Simplex(), wall="slide")
    held_flow = flowlab.preference_flow(flowlab.DPO(BETA), held)
    times = exact.ratio_plane_time(free, BETA, level=LEVEL)
    sliding = exact.simplex_time(inside, BETA, level=LEVEL).total
    return {
        "quadrant": Ground(PROBLEM, free_flow, free, times),
        "simplex": Ground(
            "the same with x1 + x2 <= 1, sliding along the wall", held_flow, inside, sliding
        ),
    }


def ways(known: dict[str, Ground], smoke: bool) -> list[Way]:
    """All combinations, few under the clock of time; for a trial the default alone."""
    if smoke:
        return [Way(name, ground.clocks[0], DEFAULT) for name, ground in known.items()]
    few: dict[until.Clock, tuple[str, ...]] = {"time": (DEFAULT, HIGH_ORDER)}
    return [
        Way(name, clock, solver)
        for name, ground in known.items()
        for clock in ground.clocks
        for solver in few.get(clock, SOLVERS)
    ]


def solved(ground: Ground, way: Way, rtol: float) -> tuple[float, Any]:
    """Seconds of a sweep, and its runs."""
    some = ground.starts[: round(SHARE_OF_SLOW.get(way.clock, 1) * len(ground.starts))]
    options: dict[str, Any] = {"clock": way.clock, "block_size": BLOCKS.get(way.clock)}
    options |= {"rtol": rtol, "solver": getattr(diffrax, way.solver)(), "progress": False}
    began = time.perf_counter()
    runs = flowlab.sweep(ground.flow, some, until=until.loss_below(LEVEL), **options)
    return time.perf_counter() - began, runs


def first_rows(ground: Ground, way: Way, tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each tolerance, loosest first: the first call, steps and errors; no time yet."""
    rows = []
    for rtol in tolerances:
        if rtol < 0.5 * TIGHTEST.get(way.solver, 0):
            break
        first, runs = solved(ground, way, rtol)
        row: dict[str, Any] = {**way._asdict(), "rtol": rtol, "starts": len(runs.time)}
        row |= {"first_call_s": first, "steps": float(runs.steps.mean()), "outcomes": runs.counts()}
        rows.append({**row, **accuracy(runs.time, ground.wanted[: len(runs.time)]), "seconds": []})
        if not np.isfinite(rows[-1]["largest_error"]):
            break
    return rows


def measured(known: dict[str, Ground], smoke: bool, repetitions: int) -> list[dict[str, Any]]:
    """A row for each way and tolerance; only those that arrive with all starts have a time."""
    tolerances = SMOKE_TOLERANCES if smoke else TOLERANCES
    made = {way: first_rows(known[way.ground], way, tolerances) for way in ways(known, smoke)}
    timed = [(way, row) for way, rows in made.items() for row in rows if _arrived(row)]
    for _ in range(repetitions):
        for way, row in timed:
            if sum(row["seconds"]) < ENOUGH_S:
                row["seconds"].append(solved(known[way.ground], way, row["rtol"])[0])
    for _, row in timed:
        row["seconds_per_million"] = 1e6 * median(row["seconds"]) / row["starts"]
    return [row for rows in made.values() for row in rows]


def draw(rows: Sequence[dict[str, Any]], words: dict[str, str], where: str) -> Figure:
    """For each problem: the clocks under one solver, and the solvers under two clocks."""
    heading = f"The error of flowlab.sweep against its time\n{where}, float64, without compilation"
    figure, axes = panels(len(words), 3, heading, sharex="col", sharey=True)
    usual = rows[0]["clock"]
    views = [
        (f"Which clock? (solver {DEFAULT})", "clock", {"solver": DEFAULT}),
        (f'Which solver under the clock "{usual}"?', "solver", {"clock": usual}),
        ('Which solver under the clock "arc_length"?', "solver", {"clock": "arc_length"}),
    ]
    cells = [(ground, *view) for ground in words for view in views]
    for ax, (ground, question, by, fixed) in zip(axes, cells, strict=True):
        same = {"ground": ground, **fixed}
        some = [row for row in rows if same.items() <= row.items() and _arrived(row)]
        title = f"{words[ground]}\n{question}" if by == "clock" else question
        label(ax, title, "seconds for a million starts", "relative error of the time")
        draw_lines(ax, some, by)
        draw_choice(ax, [row for row in some if row["clock"] == usual], both=by == "clock")
        ax.label_outer()
    figure.legend(handles=_key(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_lines(ax: Axes, rows: Sequence[dict[str, Any]], by: str) -> None:
    """A line for each clock or solver, loosest tolerance first."""
    for place, name in enumerate(dict.fromkeys(row[by] for row in rows)):
        some = [row for row in rows if row[by] == name]
        across = [row["seconds_per_million"] for row in some]
        words = f"{name}, in blocks of {BLOCKS[name]}" if name in BLOCKS else name
        for kind, line, fill in (("median", "-", COLOURS[place]), ("largest", ":", "white")):
            errors = [row[f"{kind}_error"] for row in some]
            style = f"{MARKERS[place]}{line}"
            ax.loglog(across, errors, style, color=COLOURS[place], mfc=fill, label=words)
    names = [line for line in ax.get_lines() if line.get_linestyle() == "-"]
    if names:
        ax.legend(handles=names, loc="best", frameon=False)
    ax.margins(x=0.2)


def draw_choice(ax: Axes, rows: Sequence[dict[str, Any]], *, both: bool) -> None:
    """A ring where flowlab chooses this, with the tolerance; the high order alone if not `both`."""
    for row in rows:
        own = HIGH_ORDER if row["rtol"] < HIGH_ORDER_BELOW else DEFAULT
        if row["solver"] != own:
            continue
        place = (row["seconds_per_million"], row["median_error"])
        ax.plot(*place, "o", color="black", markersize=12, mfc="none")
        if both or own == HIGH_ORDER:
            words = f"{row['rtol']:.0e}".replace("e-0", "e-")
            ax.annotate(words, place, (-10, -3), "data", "offset points", fontsize=8, ha="right")


def _arrived(row: dict[str, Any]) -> bool:
    return bool(np.isfinite(row["largest_error"]))


def _key() -> list[Line2D]:
    """The key to lines and rings in every panel."""
    ring = Line2D([], [], color="black", marker="o", markersize=12, mfc="none", linestyle="none")
    ring.set_label("what flowlab chooses, with its rtol")
    return [
        Line2D([], [], color="grey", marker="o", label="median"),
        Line2D([], [], color="grey", marker="o", mfc="white", linestyle=":", label="largest"),
        ring,
    ]


def main() -> None:
    """Measure, write the result, and draw it where a file is given for that."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--starts", type=int, default=STARTS, help="starts for quick clocks")
    arguments.add_argument("--repetitions", type=int, default=REPETITIONS)
    arguments.add_argument("--figure", type=Path, help="file for a figure of the result")
    options = arguments.parse_args()
    repetitions = 1 if options.smoke else options.repetitions
    known = grounds(SMOKE_STARTS if options.smoke else options.starts)
    rows = measured(known, options.smoke, repetitions)
    words = {name: ground.words for name, ground in known.items()}
    result = {"benchmark": "work_precision", "problems": words, "repetitions": repetitions}
    emit({**result, "devices_seen": devices(), "rows": rows}, options.out)
    if options.figure is not None:
        save(draw(rows, words, machine()["device"]), options.figure)


if __name__ == "__main__":
    main()
