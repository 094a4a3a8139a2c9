"""A comparison of a replay with its log as text, as JSON, and as a folder with a figure."""

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from flowlab import _pages, _tables
from flowlab._arrays import jsonable
from flowlab._files import check_folder, write_json
from flowlab.replay.comparison import QUANTILES, Comparison, largest_known

__all__ = ["REPLAY", "text", "to_json", "write"]

REPLAY = "replay.json"  # by which a folder is known as one of earlier results
_WIDTH = 88  # columns of the text, at which lines are still read with ease
_SHOWN = 5  # pairs that are named
_TABLE, _PAIRS = "%steps%", "%pairs%"  # where the table and the list go


def text(comparison: Comparison) -> str:
    """The comparison in plain English, for a terminal."""
    told = comparison.of_pairs()
    values = {
        "found": comparison,
        "log": comparison.log,
        "steps": int(comparison.run.loss.size),
        "pairs": comparison.run.u.shape[1],
        "last": told[-1],
        "dip": min(told[1:] or told, key=lambda row: row["u_chosen"]),
        "known": math.isfinite(comparison.typical),
    }
    paragraphs = _pages.rendered("replay.txt", **values).split("\n\n")
    listed = {_TABLE: _tables.table(_steps(told), "r"), _PAIRS: _fallen(comparison)}
    parts = []
    for paragraph in filter(str.strip, paragraphs):
        word = paragraph.strip()
        if word in listed:
            parts.append(listed[word])
        else:
            lead = "  " if word.startswith("- ") else ""
            parts.append(textwrap.fill(" ".join(word.split()), _WIDTH, subsequent_indent=lead))
    return "\n\n".join(parts)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON-ready data, with None for unknown values."""
    run, log = comparison.run, comparison.log
    ends = log.step.astype(int)
    return {
        "file": log.path.name,
        "beta": log.beta,
        "is_replay": comparison.is_replay,
        "doubts": comparison.doubts,
        "outcome": run.outcome.name,
        "steps": int(run.loss.size),
        "largest_deviation": jsonable(comparison.largest),
        "largest_deviation_step": comparison.largest_step,
        "largest_in_standard_errors": jsonable(largest_known(comparison.in_errors)),
        "typical_in_standard_errors": jsonable(comparison.typical),
        "series": {
            "step": ends.tolist(),
            "u_chosen": jsonable(log.u_chosen + comparison.deviation[:, 0]),
            "u_rejected": jsonable(log.u_rejected + comparison.deviation[:, 1]),
            "deviation_chosen": jsonable(comparison.deviation[:, 0]),
            "deviation_rejected": jsonable(comparison.deviation[:, 1]),
            "standard_error_chosen": jsonable(comparison.noise[:, 0]),
            "standard_error_rejected": jsonable(comparison.noise[:, 1]),
        },
        "quantiles": list(QUANTILES),
        "pairs": comparison.of_pairs(),
    }


def write(comparison: Comparison, folder: Path, *, what: str = "Argument `folder`") -> None:
    """Write a comparison to a folder.

    `replay.json` and `replay.txt` hold the results of `to_json` and `text`. `pairs.npz` holds the
    steps at which all pairs were evaluated (`step`), the log-ratios of the pairs (`u`) and their
    rows in the data (`row`). `replay.png` and `.svg` show them.

    Args:
        comparison: The comparison.
        folder: A folder that is new or empty, or that holds an earlier replay, which is replaced.
        what: The name of the folder in messages.

    Raises:
        ValueError: If `folder` is a file, or a folder with other contents.
        OSError: If the folder cannot be written.
    """
    from flowlab import plots

    check_folder(what, folder, REPLAY)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(to_json(comparison), folder / REPLAY)
    (folder / "replay.txt").write_text(text(comparison) + "\n", encoding="utf-8")
    u, kept = comparison.run.u, comparison.run.kept
    np.savez_compressed(folder / "pairs.npz", step=kept, u=u, row=comparison.rows)
    plots.save(plots.replay(comparison), folder / "replay")


def _steps(told: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table of changes over all pairs: a header, and a row for each kept step."""
    low, middle, high = QUANTILES.index(0.05), QUANTILES.index(0.5), QUANTILES.index(0.95)
    header = ("step", "mean u_w", "mean u_l", "chosen fell", "rejected fell")
    header = (*header, "margin: 5 %", "median", "95 %")
    rows = [
        (
            str(row["step"]),
            *(f"{row[name]:+.4g}" for name in ("u_chosen", "u_rejected")),
            *(f"{row[name]:.0%}" for name in ("chosen_fell", "rejected_fell")),
            *(f"{row['margin_quantiles'][index]:.4g}" for index in (low, middle, high)),
        )
        for row in told
        if row["step"]  # before any, all is rounding
    ]
    return [header, *rows]


def _fallen(comparison: Comparison) -> str:
    """The pairs whose chosen response fell most, with their texts if the tokenizer is known."""
    last = comparison.run.u[-1]
    listed = []
    for pair in np.argsort(last[:, 0])[:_SHOWN]:
        u_w, u_l = last[pair]
        listed.append(f"row {comparison.rows[pair]}: u_w {u_w:+.4g}, u_l {u_l:+.4g}")
        if comparison.pairs is not None:
            listed.append(comparison.pairs.excerpt(int(pair)))
    return "\n".join(filter(None, listed))
