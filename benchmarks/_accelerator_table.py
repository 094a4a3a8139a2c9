"""The result of `accelerator.py` as a table for people."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowlab import _tables

__all__ = ["table"]

GIGA = 1e9
NOTHING = "-"
SMOKE = "A smoke run: what it says of speed means nothing."


def table(result: dict[str, Any], machine: dict[str, Any]) -> str:
    """The whole table, the conclusion last."""
    parts = [_heading(result, machine), _checks(result["checks"])]
    if result["roofs"]:
        parts.append(_roofs(result["roofs"]))
    if result["speeds"]:
        problems = [f"{name}: {text}" for name, text in result["problems"].items()]
        parts.append("\n".join([*problems, _speeds(result["speeds"]), *_gains(result["speeds"])]))
    if result["left_out"]:
        lines = [f"- {name}: {reason}" for name, reason in result["left_out"].items()]
        parts.append("Left out:\n" + "\n".join(lines))
    parts.append(conclusion(result))
    return "\n\n".join(parts)


def conclusion(result: dict[str, Any]) -> str:
    """One sentence on correctness, after one on the time."""
    checks = result["checks"]
    failed = [f"{row['check']} ({row['dtype']})" for row in checks if not row["passed"]]
    words = f"{SMOKE}\n" if result["smoke"] else ""
    words += f"Took {result['took_s']:.0f} s of {result['budget_s']:.0f} s. "
    if failed:
        return words + f"{len(failed)} of {len(checks)} checks FAILED: {', '.join(failed)}."
    if not checks:
        return words + "NO check was carried out."
    unheard = sum(name in result["left_out"] for name in result["checks_wanted"])
    rest = f" {unheard} were LEFT OUT." if unheard else ""
    return words + f"Passed {len(checks)} of {len(checks)} checks.{rest}"


def _heading(result: dict[str, Any], machine: dict[str, Any]) -> str:
    """Device, driver and versions."""
    known = {
        "driver": machine.get("driver"),
        "backend": machine.get("backend"),
        "memory that JAX may use": _gib(machine.get("device_memory_gib")),
        "processor": machine["processor"],
        "memory": _gib(machine["memory_gib"]),
    }
    hardware = [f"{name} {value}" for name, value in known.items() if value]
    left = ("device", "system", "architecture", "memory_gib", "device_memory_gib", *known)
    versions = [f"{name} {value}" for name, value in machine.items() if name not in left and value]
    return "\n".join(
        [
            f"flowlab {result['flowlab']} on {machine['device']}",
            ", ".join([*hardware, machine["system"], machine["architecture"]]),
            ", ".join(versions),
        ]
    )


def _checks(rows: Sequence[dict[str, Any]]) -> str:
    head = ("check", "dtype", "", "found", "allowed", "s")
    lines = [
        (
            row["check"],
            row["dtype"],
            "passed" if row["passed"] else "FAILED",
            row["found"],
            row["allowed"],
            f"{row['seconds']:.1f}",
        )
        for row in _grouped(rows, "check")
    ]
    return _columns("lllllr", head, lines)


def _roofs(rows: Sequence[dict[str, Any]]) -> str:
    head = ("roof", "dtype", "at most", "", "first call, s")
    lines = []
    for row in rows:
        if row["roof"] == "copy":
            name, speed = "copy, read and written", (row["bytes_per_s"] / GIGA, "GB/s")
        else:
            name = f"field alone, {row['chain']} in a row"
            speed = (row["evaluations_per_s"] / GIGA, "10^9 evaluations/s")
        number = f"{speed[0]:.3g}"
        lines.append((name, row["dtype"], number, speed[1], f"{row['first_call_s']:.1f}"))
    return _columns("llrlr", head, lines)


def _speeds(rows: Sequence[dict[str, Any]]) -> str:
    head = (
        *("problem", "way", "chunk", "dtype", "rtol", "method", "starts", "starts/s"),
        *("median error", "largest", "compile, s", "run, s", "evaluations", "of roof"),
    )
    lines = [
        (
            row["problem"],
            _way(row),
            f"{row['chunk']:,}" if "chunk" in row else NOTHING,
            row["dtype"],
            f"{row['rtol']:.0e}",
            row["method"],
            f"{row['count']:,}",
            _rounded(row["starts_per_s"]),
            f"{row['median_error']:.1e}",
            f"{row['largest_error']:.1e}",
            _seconds(row.get("compile_s")),
            _seconds(row["run_s"]),
            f"{row['evaluations_per_start']:.0f}",
            NOTHING if row["part_of_field"] is None else f"{row['part_of_field']:.1%}",
        )
        for row in _grouped(rows, "problem", "way")
    ]
    return _columns("llrlllrrrrrrrr", head, lines)


def _gains(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Speed of the fastest sweep over that of the fastest `jax.vmap`, case by case."""
    best: dict[tuple[str, str, float], dict[bool, float]] = {}
    for row in rows:
        case = best.setdefault((row["problem"], row["dtype"], row["rtol"]), {})
        alone = "chunk" in row
        case[alone] = max(case.get(alone, 0.0), row["starts_per_s"])
    return [
        f"{problem}, {dtype}, rtol {rtol:.0e}: {case[False] / case[True]:.3g} times as fast as vmap"
        for (problem, dtype, rtol), case in best.items()
        if len(case) == 2
    ]


def _way(row: dict[str, Any]) -> str:
    """The way of a speed, with the backend that a sweep found for itself."""
    backend = row.get("backend", "")
    return row["way"] if not backend or backend in row["way"] else f"{row['way']}, {backend}"


def _grouped(rows: Sequence[dict[str, Any]], *by: str) -> list[dict[str, Any]]:
    """Rows in their order, but those of a name together, the wider dtype first."""
    names = list(dict.fromkeys(tuple(row[key] for key in by) for row in rows))

    def rank(row: dict[str, Any]) -> tuple[Any, ...]:
        place, wide = names.index(tuple(row[key] for key in by)), np.dtype(row["dtype"]).itemsize
        return place, -wide, -row.get("rtol", 0.0), row.get("count", 0)

    return sorted(rows, key=rank)


def _columns(sides: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Text in columns, each to its left or right side; under a head, and a rule."""
    cells = [tuple(head), *map(tuple, lines)]
    cells.insert(1, tuple("-" * max(map(len, column)) for column in zip(*cells, strict=True)))
    return _tables.table(cells, sides)


def _rounded(number: float) -> str:
    """Three digits, in thousands."""
    return f"{float(f'{number:.3g}'):,.0f}"


def _seconds(number: float | None) -> str:
    return NOTHING if number is None else f"{number:.2f}"


def _gib(number: float | None) -> str | None:
    return None if number is None else f"{number:g} GiB"
