"""The speed of a sweep, against the number of starts, cores, devices, block and dtype.

The standard problem of these benchmarks, in processes of their own: compilation is a first call,
recorded apart, and the peak of memory is that of one sweep. Repetitions go round all cases, and
medians are reported; errors are relative, of the time, against the closed form. The speed-up with
cores is measured twice, in a plain process and in a cell of a notebook. On accelerators it is
measured for the CPU all the same, and the devices of one kind are counted up beside it.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _common import emit, machine, parser
from _figures import COLOURS, MARKERS, label, panels, save
from _problem import PROBLEM, in_a_fresh_process, in_a_notebook, missing_for_notebooks
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

REPETITIONS = 5
QUESTIONS = ("starts", "cores", "devices", "blocks", "dtypes")
SIZES = tuple(10**k for k in range(3, 8))
BLOCKS = tuple(2**k for k in range(7, 17))
BLOCKS_AT_MOST = 1024  # of one size, so that the smallest do not take forever on an accelerator
ENOUGH_S = 1.0  # after which one of several equal processes repeats its sweep no more
FLAT_FROM = 10**5  # starts from which the throughput is to be flat
STARTS_ON_CPU, STARTS_ON_ACCELERATOR = 2**18, 2**22
LOOSE, LOOSE_IN_WORDS = 1e-4, "1e-4"  # the tolerance at which float32 is compared
FLAT, MEMORY_LIMIT_MIB = 0.2, 2048  # what is asked for: the loss of speed, and 2 GiB
SMOKE_STARTS, SMOKE_BLOCKS = 1024, (1024,)  # compiled once in each process

Row = dict[str, Any]
Runner = Callable[..., dict[str, Any]]


def over_starts(sizes: Sequence[int], repetitions: int) -> dict[str, Any]:
    """Speed and memory of a fresh process for each number of starts."""
    rounds: list[list[Row]] = [[] for _ in sizes]
    for _ in range(repetitions):
        for size, seen in zip(sizes, rounds, strict=True):
            seen.append(_single(in_a_fresh_process, {"count": size}, repetitions))
    rows = [_together(seen) for seen in rounds]
    flat = [row["starts_per_s"] for row in rows if row["count"] >= FLAT_FROM]
    return {
        "rows": rows,
        "largest_peak_mib": max(row["peak_mib"] or 0 for row in rows),
        "slowest_over_fastest_from_1e5": min(flat) / max(flat) if flat else None,
    }


def over_cores(count: int, most: int, on_cpu: bool, repetitions: int) -> dict[str, Any]:
    """Speed on one core, two, and so on, in a plain process and in a notebook, in turn."""
    missing = missing_for_notebooks()
    runners: dict[str, Runner] = {"process": in_a_fresh_process}
    if not missing:
        runners["notebook"] = in_a_notebook
    if not hasattr(os, "sched_setaffinity"):
        return {"rows": [], "missing": [*missing, "os.sched_setaffinity"]}
    numbers = _powers_up_to(min(most, len(os.sched_getaffinity(0))))
    environment = {} if on_cpu else {"JAX_PLATFORMS": "cpu"}
    rounds: dict[tuple[str, int], list[Row]] = {(r, n): [] for r in runners for n in numbers}
    for _ in range(repetitions):
        for (runner, cores), seen in rounds.items():
            one = {"count": count}
            seen.append(_single(runners[runner], one, repetitions, cores, **environment))
    rows = [{"in": r, "cores": n, **_together(seen)} for (r, n), seen in rounds.items()]
    return {"rows": _with_speed_up(rows, "cores"), "missing": missing}


def over_devices(count: int, number: int, repetitions: int) -> dict[str, Any]:
    """Speed on one device, two, and so on; nothing where there is one alone."""
    if number == 1:
        return {"rows": []}
    variants = [{"count": count, "devices": k} for k in _powers_up_to(number)]
    rows = in_a_fresh_process({"variants": variants, "repetitions": repetitions})["rows"]
    return {"rows": _with_speed_up([{"in": "process", **row} for row in rows], "devices")}


def over_blocks(sizes: Sequence[int], count: int, repetitions: int) -> dict[str, Any]:
    """Speed against the number of starts that share a step."""
    variants = [{"count": min(count, BLOCKS_AT_MOST * b), "block_size": b} for b in sizes]
    rows = in_a_fresh_process({"variants": variants, "repetitions": repetitions})["rows"]
    return {"rows": rows, "fastest": max(rows, key=lambda row: row["starts_per_s"])["block_size"]}


def over_dtypes(count: int, repetitions: int) -> dict[str, Any]:
    """Speed and errors in float64 and float32 at the same tolerance."""
    variants = [{"count": count, "dtype": d, "rtol": LOOSE} for d in ("float64", "float32")]
    rows = in_a_fresh_process({"variants": variants, "repetitions": repetitions})["rows"]
    wide, narrow = (row["starts_per_s"] for row in rows)
    return {"rows": rows, "float32_over_float64": narrow / wide}


def _single(
    runner: Runner, variant: Row, repetitions: int, cores: int | None = None, **environment: str
) -> Row:
    """The measurement of one variant in one process."""
    case = {"variants": [variant], "repetitions": repetitions, "cores": cores}
    answer = runner({**case, "enough_s": ENOUGH_S}, **environment)
    memory = {name: answer[name] for name in ("baseline_mib", "device_peak_mib")}
    return {**answer["rows"][0], **memory}


def _together(rows: Sequence[Row]) -> Row:
    """One row from those of several processes: medians, and the most memory of all."""
    speeds = [row["starts_per_s"] for row in rows]
    row = {**rows[0], "starts_per_s": median(speeds), "starts_per_s_of_each": speeds}
    row["seconds"] = [row["seconds"] for row in rows]
    row["first_call_s"] = median(row["first_call_s"] for row in rows)
    for name in ("peak_mib", "baseline_mib", "device_peak_mib"):
        row[name] = max((each[name] for each in rows if each[name] is not None), default=None)
    return row


def _with_speed_up(rows: list[Row], name: str) -> list[Row]:
    """Rows with their speed over that on one core or device, in the same surroundings."""
    alone = {row["in"]: row["starts_per_s"] for row in rows if row[name] == 1}
    return [{**row, "speed_up": row["starts_per_s"] / alone[row["in"]]} for row in rows]


def _powers_up_to(number: int) -> list[int]:
    """1, 2, 4 and so on, and the number itself."""
    return sorted({number, *(2**k for k in range(number.bit_length()) if 2**k <= number)})


def answers(options: Any) -> dict[str, Any]:
    """The result for each question that is asked, on the devices that a fresh process sees."""
    seen = in_a_fresh_process({"variants": []})["devices"]
    on_cpu = seen[0].startswith("cpu")
    repetitions = 1 if options.smoke else options.repetitions
    count = STARTS_ON_CPU if on_cpu else STARTS_ON_ACCELERATOR
    count = SMOKE_STARTS if options.smoke else count
    sizes = [SMOKE_STARTS] if options.smoke else [n for n in SIZES if n <= options.most]
    blocks, cores = (SMOKE_BLOCKS, 1) if options.smoke else (BLOCKS, os.cpu_count() or 1)
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "starts": lambda: over_starts(sizes, repetitions),
        "cores": lambda: over_cores(min(count, STARTS_ON_CPU), cores, on_cpu, repetitions),
        "devices": lambda: over_devices(count, len(seen), repetitions),
        "blocks": lambda: over_blocks(blocks, count, repetitions),
        "dtypes": lambda: over_dtypes(count, repetitions),
    }
    return {"devices_seen": seen, "repetitions": repetitions} | {n: ways[n]() for n in options.only}


def draw(result: dict[str, Any], where: str) -> Figure:
    """A panel for each question that has an answer, two where a second number belongs to it."""
    ways: dict[str, Sequence[Callable[[Axes, Any], None]]] = {
        "starts": (speed_over_starts, memory_over_starts),
        "cores": (speed_up_over_cores,),
        "devices": (speed_up_over_devices,),
        "blocks": (speed_over_blocks,),
        "dtypes": (speed_of_dtypes, errors_of_dtypes),
    }
    asked = [name for name in ways if result.get(name, {}).get("rows")]
    drawn = [(way, result[name]) for name in asked for way in ways[name]]
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    made = f"medians of {result['repetitions']}, without compilation"
    figure, axes = panels(rows, columns, f"flowlab.sweep: {PROBLEM}\n{where}; {made}")
    for ax, (way, answer) in zip(axes, drawn, strict=False):
        way(ax, answer)
    for ax in axes[len(drawn) :]:
        ax.set_visible(False)
    return figure


def speed_over_starts(ax: Axes, answer: dict[str, Any]) -> None:
    """Starts per second, each process a dot, with the band in which the speed counts as flat."""
    label(ax, "Does the speed last with many starts?", "number of starts", "starts per second")
    rows = answer["rows"]
    counts = [row["count"] for row in rows]
    for row in rows:
        each = row["starts_per_s_of_each"]
        ax.plot([row["count"]] * len(each), each, ".", color=COLOURS[0], alpha=0.35)
    ax.plot(counts, [row["starts_per_s"] for row in rows], "o-", color=COLOURS[0])
    flat = [row["starts_per_s"] for row in rows if row["count"] >= FLAT_FROM]
    if len(flat) > 1:
        wide, low = [FLAT_FROM, max(counts)], (1 - FLAT) * max(flat)
        words = f"within {FLAT:.0%} of the fastest from {FLAT_FROM:,} starts"
        ax.fill_between(wide, low, max(flat), alpha=0.15, color=COLOURS[2], lw=0, label=words)
        ax.legend(loc="lower right", frameon=False)
    ax.set_xscale("log")
    _from_zero(ax)


def memory_over_starts(ax: Axes, answer: dict[str, Any]) -> None:
    """The peak of a fresh process, and what it has held before the sweep."""
    label(ax, "How much memory do they take?", "number of starts", "peak of the process (MiB)")
    rows = [row for row in answer["rows"] if row["peak_mib"] is not None]
    counts = [row["count"] for row in rows]
    for name, words, style, colour in (
        ("peak_mib", "with the sweep", "o-", COLOURS[0]),
        ("baseline_mib", "imports, compilation and a tiny sweep", "s--", COLOURS[1]),
    ):
        ax.plot(counts, [row[name] for row in rows], style, color=colour, label=words)
    ax.axhline(MEMORY_LIMIT_MIB, color="black", linestyle=":", label="2 GiB")
    ax.set_xscale("log")
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
    ax.set_ylim(bottom=128)
    ax.legend(loc="center left", frameon=False)


def speed_up_over_cores(ax: Axes, answer: dict[str, Any]) -> None:
    """The speed over that on one core."""
    label(ax, "What do more cores bring?", "cores of the CPU", "speed (on one core = 1)")
    _speed_ups(ax, answer["rows"], "cores")


def speed_up_over_devices(ax: Axes, answer: dict[str, Any]) -> None:
    """The speed over that on one device."""
    label(ax, "What do more devices bring?", "JAX devices", "speed (on one device = 1)")
    _speed_ups(ax, answer["rows"], "devices")


def speed_over_blocks(ax: Axes, answer: dict[str, Any]) -> None:
    """Starts per second over the size of a block."""
    label(ax, "How many starts should share a step?", "starts per block", "starts per second")
    sizes = [row["block_size"] for row in answer["rows"]]
    ax.plot(sizes, [row["starts_per_s"] for row in answer["rows"]], "o-", color=COLOURS[0])
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
    _from_zero(ax)


def speed_of_dtypes(ax: Axes, answer: dict[str, Any]) -> None:
    """A bar for each dtype."""
    label(ax, f"What does float32 bring at rtol {LOOSE_IN_WORDS}?", "dtype", "starts per second")
    names = [row["dtype"] for row in answer["rows"]]
    bars = ax.bar(names, [row["starts_per_s"] for row in answer["rows"]], color=COLOURS, width=0.5)
    ax.bar_label(bars, ["1", f"{answer['float32_over_float64']:.2f}"], padding=2)
    _from_zero(ax)
    ax.set_ylim(top=1.1 * ax.get_ylim()[1])


def errors_of_dtypes(ax: Axes, answer: dict[str, Any]) -> None:
    """Median and largest error of each dtype, and the tolerance."""
    label(ax, "And what does float32 cost?", "dtype", "relative error of the time")
    names = [row["dtype"] for row in answer["rows"]]
    for name, marker in (("largest", "^"), ("median", "o")):
        errors = [row[f"{name}_error"] for row in answer["rows"]]
        ax.scatter(names, errors, s=60, marker=marker, c=COLOURS[: len(names)])
        for place, error in zip(names, errors, strict=True):
            ax.annotate(f"{name} {error:.1e}", (place, error), (9, -3), textcoords="offset points")
    ax.axhline(LOOSE, color="black", linestyle=":")
    ax.annotate("rtol", (0.01, LOOSE), (0, 3), ("axes fraction", "data"), "offset points")
    ax.set_yscale("log")
    ax.margins(x=0.7, y=0.25)


def _speed_ups(ax: Axes, rows: Sequence[Row], name: str) -> None:
    numbers = sorted({row[name] for row in rows})
    ax.plot(numbers, numbers, ":", color="black", label="in proportion")
    for place, where in enumerate(dict.fromkeys(row["in"] for row in rows)):
        some = [row for row in rows if row["in"] == where]
        across, up = [row[name] for row in some], [row["speed_up"] for row in some]
        ax.plot(across, up, MARKERS[place] + "-", color=COLOURS[place], label=f"in a {where}")
        end, offset = (across[-1], up[-1]), (6, -14 * place)
        ax.annotate(f"{up[-1]:.2f}", end, offset, textcoords="offset points", color=COLOURS[place])
    ax.set_xticks(numbers)
    ax.margins(x=0.12)
    ax.set_ylim(bottom=0)
    ax.legend(loc="lower right", frameon=False)


def _from_zero(ax: Axes) -> None:
    ax.margins(y=0.1)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))


def main() -> None:
    """Measure, write the result, and draw it where a file is given for that."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--most", type=int, default=SIZES[-1], help="starts, at most")
    arguments.add_argument("--repetitions", type=int, default=REPETITIONS)
    arguments.add_argument("--only", nargs="+", choices=QUESTIONS, default=QUESTIONS)
    arguments.add_argument("--figure", type=Path, help="file for a figure of the result")
    options = arguments.parse_args()
    result = answers(options)
    emit({"benchmark": "scaling", "problem": PROBLEM, **result}, options.out)
    if options.figure is not None:
        save(draw(result, machine()["device"]), options.figure)


if __name__ == "__main__":
    main()
