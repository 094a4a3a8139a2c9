"""The problems that become kernels for each chip, found by lowering them without a chip.

A row of the table is a problem: those of `ensemble.py`, every loss of the catalogue on the ratio
plane and on the log-ratio plane, walls and targets, and measures. For each chip it says that the
problem lowers, or because of which operation it falls back to blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from _peers.problems import KERNEL, LEVEL, PROBLEMS

import flowlab
from flowlab import losses, measures, until
from flowlab.domains import Box, Simplex
from flowlab.ensemble.kernel import CHIPS, refusal
from flowlab.solve import make_method, make_problem, one_of

__all__ = ["DTYPES", "PLATFORMS", "Case", "Row", "candidates", "lowered", "markdown", "unexpected"]

PLATFORMS = {"cuda": "gpu", "tpu": "tpu"}
DTYPES = {"cuda": "float64", "tpu": "float32"}  # what a chip computes with
LOWERS = "lowers"
OFFSET = 1.0  # between the responses of a pair, in nats, which ODPO needs
MARGIN = 2.0  # to which losses that have no common level are followed


class Case(NamedTuple):
    """A problem with an example of a start."""

    flow: Callable[[], Any]
    start: tuple[float, ...]
    target: until.AbstractTarget = until.loss_below(LEVEL)
    measures: tuple[Any, ...] = ()
    options: Mapping[str, Any] = {}


class Row(NamedTuple):
    """A row of the table: what each chip says."""

    name: str
    verdicts: dict[str, str]


def _on_ratios(loss: Any, domain: Any = None, wall: Any = "stop") -> Any:
    return flowlab.preference_flow(loss, flowlab.RatioPlane(domain, wall=wall, offset=OFFSET))


def _on_log_ratios(loss: Any) -> Any:
    return flowlab.preference_flow(loss, flowlab.LogRatioPlane(KERNEL, offset=OFFSET))


def _on_two_pairs(loss: Any) -> Any:
    return flowlab.preference_flow(loss, flowlab.TabularSoftmax([0.2, 0.3, 0.5], [(0, 1), (2, 1)]))


def _walled(domain: Any, wall: str, **options: Any) -> Case:
    dpo = flowlab.DPO(0.3)
    return Case(partial(_on_ratios, dpo, domain, wall), (0.4, 0.3), **options)


def candidates() -> dict[str, Case]:
    """The problems that are lowered, by name."""
    found = {f"problem {name}": _of_problem(problem) for name, problem in PROBLEMS.items()}
    to_margin = until.margin_above(MARGIN)
    for name, loss in losses.CATALOGUE.items():
        if loss.of_batch:
            found[f"loss {name}, softmax with two pairs"] = Case(
                partial(_on_two_pairs, loss), (0.1, 0.3, -0.2), to_margin
            )
            continue
        found[f"loss {name}, ratio plane"] = Case(partial(_on_ratios, loss), (0.4, 0.3), to_margin)
        found[f"loss {name}, log-ratio plane"] = Case(
            partial(_on_log_ratios, loss), (0.4, 0.3), to_margin
        )
    for name, domain in {"box": Box(1, 1), "simplex": Simplex()}.items():
        for wall in ("stop", "slide"):
            found[f"walls of the {name}, {wall}"] = _walled(domain, wall)
    found["walls of the simplex, extinction"] = _walled(Simplex(), "slide", target=until.boundary())
    return found | _with_targets() | _with_measures()


def _of_problem(problem: Any) -> Case:
    return Case(problem.flow, tuple(problem.starts(1)[0].tolist()))


def _with_targets() -> dict[str, Case]:
    free = partial(_on_ratios, flowlab.DPO(0.3))
    targets = {
        "extinction": until.boundary(),
        "several levels": until.loss_below(0.4, 0.2, 0.1),
        "speed": until.speed_below(0.1),
        "time": until.time(1.0),
    }
    found = {f"target {name}": Case(free, (0.4, 0.3), target) for name, target in targets.items()}
    for clock in ("time", "arc_length", "loss"):
        found[f"clock {clock}"] = Case(free, (0.4, 0.3), options={"clock": clock})
    found["times to save at"] = Case(free, (0.4, 0.3), options={"save_at": (0.1, 0.2, 0.5)})
    return found


def _with_measures() -> dict[str, Case]:
    free, level = partial(_on_ratios, flowlab.DPO(0.3)), until.loss_below(LEVEL)
    plane = {
        "change": measures.change(),
        "rate_ratio": measures.rate_ratio(),
        "path_length": measures.path_length(),
        "dwell": measures.dwell(0.5),
        "slowest": measures.slowest(),
        "near": measures.near((0.5, 0.5), 0.1, label="middle"),
        "margin_zero": measures.margin_zero(),
        "dip": measures.dip(),
    }
    found = {
        f"measure {name}": Case(free, (0.4, 0.3), level, (measure,))
        for name, measure in plane.items()
    }
    softmax = PROBLEMS["softmax"]
    found["measure mass"] = _of_problem(softmax)._replace(measures=(measures.mass(),))
    return found


def lowered(case: Case, platform: str) -> str:
    """That a case lowers for a chip, or because of what it falls back to blocks."""
    dtype = np.dtype(DTYPES[platform])
    starts = np.asarray([case.start], dtype)
    with jax.enable_x64(dtype == np.float64):
        problem = make_problem(
            case.flow(),
            until=case.target,
            dtype=dtype,
            state=one_of(starts),
            measures=case.measures,
            **case.options,
        )
        method = make_method(rtol=float(problem.rtol))
        reason = refusal(problem, method, starts, CHIPS[PLATFORMS[platform]])
    return LOWERS if reason is None else f"falls back because of {reason}"


def unexpected(row: Row) -> list[str]:
    """The chips for which a row does not lower: all are expected to."""
    return [platform for platform, verdict in row.verdicts.items() if verdict != LOWERS]


def markdown(rows: Sequence[Row], platforms: Sequence[str]) -> str:
    """The table as Markdown, with what it was made with above it and the sums below."""
    versions = f"jax {jax.__version__}"
    lines = [
        f"Lowered on a CPU with {versions}, without a device; "
        + ", ".join(f"{p} in {DTYPES[p]}" for p in platforms)
        + ".",
        "",
        f"| problem | {' | '.join(platforms)} |",
        f"|---|{'---|' * len(platforms)}",
    ]
    lines += [f"| {r.name} | {' | '.join(r.verdicts[p] for p in platforms)} |" for r in rows]
    sums = [
        f"{sum(r.verdicts[p] == LOWERS for r in rows)} of {len(rows)} lower for {p}"
        for p in platforms
    ]
    return "\n".join([*lines, "", f"{'; '.join(sums)}."])
