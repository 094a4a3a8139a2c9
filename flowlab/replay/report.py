"""A comparison of a replay with its log in words, as JSON, and in a folder with a picture."""

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


def text(found: Comparison) -> str:
    """Text of a comparison in plain English, for a terminal."""
    told = found.of_pairs()
    values = {
        "found": found,
        "log": found.log,
        "steps": int(found.run.loss.size),
        "pairs": found.run.u.shape[1],
        "last": told[-1],
        "dip": min(told[1:] or told, key=lambda row: row["u_chosen"]),
        "known": math.isfinite(found.typical),
    }
    paragraphs = _pages.rendered("replay.txt", **values).split("\n\n")
    listed = {_TABLE: _tables.table(_steps(told), "r"), _PAIRS: _fallen(found)}
    parts = []
    for paragraph in filter(str.strip, paragraphs):
        word = paragraph.strip()
        if word in listed:
            parts.append(listed[word])
        else:
            lead = "  " if word.startswith("- ") else ""
            parts.append(textwrap.fill(" ".join(word.split()), _WIDTH, subsequent_indent=lead))
    return "\n\n".join(parts)


def to_json(found: Comparison) -> dict[str, Any]:
    """A comparison as JSON; null for what is not known."""
    run, log = found.run, found.log
    ends = log.step.astype(int)
    return {
        "file": log.path.name,
        "beta": log.beta,
        "is_replay": found.is_replay,
        "doubts": found.doubts,
        "outcome": run.outcome.name,
        "steps": int(run.loss.size),
        "largest_deviation": jsonable(found.largest),
        "largest_deviation_step": found.largest_step,
        "largest_in_standard_errors": jsonable(largest_known(found.in_errors)),
        "typical_in_standard_errors": jsonable(found.typical),
        "series": {
            "step": ends.tolist(),
            "u_chosen": jsonable(log.u_chosen + found.deviation[:, 0]),
            "u_rejected": jsonable(log.u_rejected + found.deviation[:, 1]),
            "deviation_chosen": jsonable(found.deviation[:, 0]),
            "deviation_rejected": jsonable(found.deviation[:, 1]),
            "standard_error_chosen": jsonable(found.noise[:, 0]),
            "standard_error_rejected": jsonable(found.noise[:, 1]),
        },
        "quantiles": list(QUANTILES),
        "pairs": found.of_pairs(),
    }


def write(found: Comparison, folder: Path, *, what: str = "Argument `folder`") -> None:
    """Write a comparison to a folder.

    `replay.json` and `replay.txt` say what `to_json` and `text` do; `pairs.npz` holds the steps at
    which all pairs were looked at (`step`), their log-ratios (`u`) and the rows of the data that
    they are from (`row`); `replay.png` and `.svg` show them.

    Args:
        found: The comparison.
        folder: A new folder, an empty one, or one with an earlier replay, which is replaced.
        what: How messages call it.

    Raises:
        ValueError: If it is a file or holds something else.
        OSError: If it cannot be written.
    """
    from flowlab import plots

    check_folder(what, folder, REPLAY)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(to_json(found), folder / REPLAY)
    (folder / "replay.txt").write_text(text(found) + "\n", encoding="utf-8")
    u, kept = found.run.u, found.run.kept
    np.savez_compressed(folder / "pairs.npz", step=kept, u=u, row=found.rows)
    plots.save(plots.replay(found), folder / "replay")


def _steps(told: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table of what became of the pairs: a header, and a row for each kept step."""
    low, middle, high = QUANTILES.index(0.05), QUANTILES.index(0.5), QUANTILES.index(0.95)
    header = ("step", "mean u_w", "mean u_l", "chosen fell", "rejected fell")
    header = (*header, "margin: 5 %", "median", "95 %")
    rows = [
        (
            str(row["step"]),
            *(f"{row[name]:+.4g}" for name in ("u_chosen", "u_rejected")),
            *(f"{row[name]:.0%}" for name in ("chosen_fell", "rejected_fell")),
            *(f"{row['margin_quantiles'][place]:.4g}" for place in (low, middle, high)),
        )
        for row in told
        if row["step"]  # before any, all is rounding
    ]
    return [header, *rows]


def _fallen(found: Comparison) -> str:
    """The pairs whose chosen response fell most, with their texts where these are known."""
    last = found.run.u[-1]
    listed = []
    for pair in np.argsort(last[:, 0])[:_SHOWN]:
        u_w, u_l = last[pair]
        listed.append(f"row {found.rows[pair]}: u_w {u_w:+.4g}, u_l {u_l:+.4g}")
        if found.pairs is not None:
            listed.append(found.pairs.excerpt(int(pair)))
    return "\n".join(filter(None, listed))
