"""A diagnosis as text, as JSON, and as a page with pictures."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowlab import _pages, _tables
from flowlab._arrays import jsonable
from flowlab._files import check_folder, write_json
from flowlab.logs.diagnosis import Diagnosis, Side
from flowlab.logs.forecast import BackTest
from flowlab.logs.rounding import down, down_to, up, up_to
from flowlab.logs.windows import windows
from flowlab.losses import CATALOGUE
from flowlab.losses.trl import loss_type_of

__all__ = ["DIAGNOSIS", "blocks", "moves", "text", "to_json", "write"]

DIAGNOSIS = "diagnosis.json"
_WIDTH = 88  # columns of the text, at which lines are still read with ease
_MOVES = "%moves%"  # where the table of what moved goes
# A larger limit of |k| = |k_wl/k_ww| says nothing. A kernel is positive semidefinite, so that k² is
# at most k_ll/k_ww, and the rejected response would learn a hundred times as fast as the chosen
# one.
_NO_LIMIT = 10.0


def text(diagnosis: Diagnosis) -> str:
    """A diagnosis in plain English, for a terminal."""
    parts = []
    for block in blocks(diagnosis):
        if block.startswith("## "):
            title = block.removeprefix("## ")
            parts.append(f"{title}\n{'-' * len(title)}")
        elif block == _MOVES:
            parts.append(_tables.table(moves(diagnosis), "lr"))
        elif block.startswith("- "):
            lines = (textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in _items(block))
            parts.append("\n".join(lines))
        else:
            parts.append(textwrap.fill(block, _WIDTH))
    return "\n\n".join(parts)


def blocks(diagnosis: Diagnosis) -> list[str]:
    """The parts of a diagnosis in order: headings (`## `), lists (`- `), paragraphs, table."""
    told = _pages.rendered("diagnosis.txt", **_values(diagnosis))
    parts = re.split(r"\n\s*\n", re.sub(r"[ \t]+", " ", told).strip())
    return [
        part.strip() if part.lstrip().startswith("- ") else " ".join(part.split()) for part in parts
    ]


def moves(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    """The table of changes: a header, and a row for each quantity."""
    kind = "log-probability" if diagnosis.reference_free else "log-ratio"
    header = ("", *_spans(diagnosis), "change")
    sides = {f"chosen {kind}": diagnosis.chosen, f"rejected {kind}": diagnosis.rejected}
    sides["margin"] = diagnosis.margin
    return [header, *(_move(name, side) for name, side in sides.items() if side is not None)]


def _spans(diagnosis: Diagnosis) -> tuple[str, str]:
    """The steps of the first and of the last window, as phrases."""
    seen = diagnosis.windows
    if not len(seen):
        return "first rows", "last rows"
    ends = (seen.first_step[0], seen.last_step[0]), (seen.first_step[-1], seen.last_step[-1])
    word = "step" if diagnosis.log.numbered else "row"
    first, last = (f"{word} {a:g}" if a == b else f"{word}s {a:g}–{b:g}" for a, b in ends)
    return first, last


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis as JSON, with null for unknown values."""
    return {
        **_of_file(diagnosis),
        **_of_run(diagnosis),
        **_of_loss(diagnosis),
        "doubts": diagnosis.doubts,
    }


def _of_file(diagnosis: Diagnosis) -> dict[str, Any]:
    log = diagnosis.log
    return {
        "file": log.path.name,
        "beta": log.beta,
        "beta_given": log.beta if diagnosis.beta_given is None else diagnosis.beta_given,
        "loss": diagnosis.name,
        "loss_assumed": diagnosis.assumed,
        "reference_free": diagnosis.reference_free,
        "training_rows": int(log.step.size),
        "evaluations": len(log.evaluations),
        "skipped_rows": sum(log.skipped.values()),
        "skipped": log.skipped,
        "nan_from": log.nan_from,
        "learning_rates": log.rates,
    }


def _of_run(diagnosis: Diagnosis) -> dict[str, Any]:
    """The entries on measured quantities, which do not depend on the loss."""
    coupling = diagnosis.coupling
    return {
        "moved": diagnosis.moved,
        **{name: _side(getattr(diagnosis, name)) for name in ("chosen", "rejected", "margin")},
        "displacement": vars(diagnosis.displacement),
        "coupling": {name: jsonable(getattr(coupling, name)) for name in ("value", "low", "high")},
        "most_gain": _ends(diagnosis.bounds),
    }


def _of_loss(diagnosis: Diagnosis) -> dict[str, Any]:
    """The entries that follow from the loss."""
    ahead, test = diagnosis.forecast, diagnosis.back_test
    return {
        "k_wl_over_k_ww": None
        if diagnosis.kernels is None
        else list(map(jsonable, diagnosis.kernels)),
        "other_losses": diagnosis.effects,
        "dpo_shift_lambda": diagnosis.shift,
        "sft_weight": diagnosis.likelihood,
        "rest": diagnosis.rest,
        "rest_pulls_back": diagnosis.pulls_back,
        "rest_per_token": diagnosis.per_token,
        "rest_done": diagnosis.rest_done,
        "forecast": None if ahead is None else _ends(ahead.end),
        "back_test": None if test is None else _back_test(test),
    }


def _back_test(test: BackTest) -> dict[str, Any]:
    return {
        "forecast": _ends(test.forecast.end),
        "measured": _ends(test.measured),
        "margin_error": jsonable(test.margin_share),
    }


def write(diagnoses: Sequence[Diagnosis], folder: Path, *, what: str = "Argument `folder`") -> None:
    """Write `report.html`, `diagnosis.json` and the pictures of diagnoses to a folder.

    Args:
        diagnoses: The diagnoses, of at least one run.
        folder: A folder that is new or empty, or that holds an earlier report, which is replaced.
        what: The name of the folder in messages.

    Raises:
        ValueError: If `folder` is a file, or a folder with other contents.
        OSError: If the folder cannot be written.
    """
    check_folder(what, folder, _pages.REPORT)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [
        _pictures([one], folder, _stem(diagnoses, index)) for index, one in enumerate(diagnoses, 1)
    ]
    together = {} if len(diagnoses) == 1 else _pictures(diagnoses, folder, "all_runs")
    records = [to_json(one) for one in diagnoses]
    write_json(records[0] if len(records) == 1 else records, folder / DIAGNOSIS)
    runs = [
        {
            "id": f"run-{index}",
            "found": one,
            "blocks": blocks(one),
            "moves": moves(one),
            "pictures": drawn,
        }
        for index, (one, drawn) in enumerate(zip(diagnoses, pictures, strict=True), 1)
    ]
    page = _pages.rendered("training.html", runs=runs, together=together)
    (folder / _pages.REPORT).write_text(page, encoding="utf-8")


def _stem(diagnoses: Sequence[Diagnosis], index: int) -> str:
    return "training" if len(diagnoses) == 1 else f"training_{index}"


def _pictures(diagnoses: Sequence[Diagnosis], folder: Path, stem: str) -> dict[str, Path]:
    """The pictures of all runs that can be drawn, by name."""
    from flowlab import plots

    drawn: dict[str, Path] = {}
    least = min(2, len(diagnoses))  # of several, pictures show two at least
    diagnoses = [one for one in diagnoses if one.moved]
    plane = [one for one in diagnoses if one.drawable]
    if len(plane) >= least:
        figure: Any = plots.training_run(*plane).figure
        drawn["plane"] = plots.save(figure, folder / f"{stem}_plane")[0]
    if len(diagnoses) >= least and len({one.reference_free for one in diagnoses}) == 1:
        figure: Any = plots.training_steps(*diagnoses).figure
        drawn["steps"] = plots.save(figure, folder / f"{stem}_steps")[0]
    return drawn


def _values(diagnosis: Diagnosis) -> dict[str, Any]:
    """The variables of the template."""
    log, margin = diagnosis.log, diagnosis.margin
    room = float(diagnosis.bounds[0]) if np.isfinite(diagnosis.bounds[0]) else None
    room = None if diagnosis.reference_free else room
    rates = log.learning_rate[np.isfinite(log.learning_rate)]
    ends = (diagnosis.step[0], diagnosis.step[-1]) if diagnosis.step.size else (None, None)
    odds = windows(log.step, log.time, log.log_odds[:, None]).mean[:, 0]
    sides = diagnosis.chosen, diagnosis.rejected, margin
    return {
        **{name: getattr(diagnosis, name) for name in _TOLD},
        "fallen": diagnosis.displacement,
        "free": diagnosis.reference_free,
        "rows": int(diagnosis.step.size),
        "first_step": ends[0],
        "last_step": ends[1],
        "known_noise": any(side is not None and side.error is not None for side in sides),
        "applied": float(rates.max()) if rates.size and rates.max() > 0 else None,
        "per_token": log.trainer == "orpo",
        "rest_per_token": diagnosis.per_token,
        "log_odds": (odds[0], odds[-1]) if odds.size > 1 else None,
        "room": room,
        "forced": 0.0 if room is None or margin is None else max(0.0, margin.last - room),
        "timed": bool(np.all(np.isfinite(log.time))),
        "spans": _spans(diagnosis),
        "averaged": not len(diagnosis.windows) or int(diagnosis.windows.count.max()) > 1,
        "called": {name: _with_loss_type(name) for name in diagnosis.effects or {}},
        "no_limit": _NO_LIMIT,
        **{rounding.__name__: rounding for rounding in (down, down_to, up, up_to)},
    }


def _with_loss_type(name: str) -> str:
    """The name of a loss, followed by TRL's name in brackets if that differs."""
    in_trl = loss_type_of(CATALOGUE[name])
    return name if in_trl in (None, name) else f"{name} ({in_trl})"


_TOLD = (
    "log",
    "name",
    "assumed",
    "evaluated",
    "windows",
    "moved",
    "diverged",
    "chosen",
    "rejected",
    "margin",
    "coupling",
    "kernels",
    "effects",
    "shift",
    "likelihood",
    "rest",
    "rest_done",
    "pulls_back",
    "forecast",
    "back_test",
    "doubts",
    "unlike",
)


def _move(name: str, side: Side) -> tuple[str, ...]:
    change = _pages.signed(side.change) + (
        "" if side.error is None else f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{up(side.error)}"
    )
    return name, _pages.signed(side.first), _pages.signed(side.last), change


def _side(side: Side | None) -> dict[str, Any] | None:
    return None if side is None else vars(side)


def _ends(point: np.ndarray) -> dict[str, float | None]:
    return {"chosen": jsonable(point[0]), "rejected": jsonable(point[1])}


def _items(block: str) -> list[str]:
    return ["- " + " ".join(item.split()) for item in re.split(r"(?m)^- ", block) if item.strip()]
