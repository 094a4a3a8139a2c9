"""The rows of a training log, from files of all common formats.

The format is recognised by the content. Nothing in a file is executed: rows that were printed as
Python dicts are parsed as literals.
"""

import ast
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

__all__ = ["Row", "Rows", "kind", "left_out", "number", "refused", "rows"]

Row = dict[str, Any]

_BRACE = re.compile(r"[{}]")
_LONGEST_ROW = 20_000  # characters: what is longer is no row, but may have rows inside
_WRAPPERS = ("metrics", "logs")  # objects in a row whose keys are those of the row
_UNREADABLE = "lines that look like rows and cannot be read"
_OTHER = "rows that are neither of training nor of an evaluation"
_NO_STEP = "training rows without a step"
_SAME_STEP = "rows that a later row of the same step replaces"
_ABANDONED = "rows that a resumption at an earlier step, or a new run, leaves behind"
_ABANDONED_EVALUATION = f"evaluation {_ABANDONED}"
_STEPS = ("global_step", "step", "current_steps")  # the first that a row has is its step
_NOTHING = (None, "")  # what stands where a row does not tell a value
_NEVER_OPENED = "training_args.bin"  # a pickle, which runs what is in it when it is loaded
_CALLS = ("float64", "float32", "float16", "tensor")  # how NumPy and PyTorch print a number
_LITERALS = {"nan": math.nan, "inf": math.inf, "NaN": math.nan, "Infinity": math.inf}


@dataclass(frozen=True)
class Rows:
    """The rows of a file, sorted by kind.

    Attributes:
        training: Training rows, in the order of their steps.
        evaluations: Evaluation rows; their keys begin with `eval_`.
        summary: The last row with the key `train_runtime`; empty if there is none.
        skipped: The number of rows that were left out, by reason.
        numbered: True if the file gives the steps; otherwise `step` is the number of the training
            row.
        settings: Numbers of a `trainer_state.json` that belong to no row, such as
            `train_batch_size`.
    """

    training: list[Row]
    evaluations: tuple[Row, ...]
    summary: Row
    skipped: Counter[str] = field(default_factory=Counter)
    numbered: bool = True
    settings: dict[str, float] = field(default_factory=dict)


def rows(path: Path, what: str) -> Rows:
    """The rows of a training log.

    Args:
        path: The file.
        what: The name of the file in messages.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If it is a directory.
        ValueError: If it holds neither training rows nor evaluation rows.
    """
    skipped: Counter[str] = Counter()
    text = _text(path, what)
    listed = [_renamed(row) for row in _listed(text, path, what, skipped)]
    summary: Row = next((row for row in listed[::-1] if "train_runtime" in row), {})
    parts = [_parted(row) for row in listed if "train_runtime" not in row]
    training = [trained for trained, _ in parts if trained]
    skipped[_OTHER] += sum(not trained and not evaluated for trained, evaluated in parts)
    if not any(trained or evaluated for trained, evaluated in parts):
        raise refused(
            what,
            path,
            f"holds no training rows, with `loss` and `rewards/chosen`{left_out(skipped)}; give "
            "the trainer_state.json of a preference run",
        )
    numbered = not training or any(row.get("step") not in _NOTHING for row in training)
    if numbered:
        kept = _in_order(training, path, what, skipped)
    else:
        kept = _counted(training, path, what, skipped)
    evaluations = _evaluations(parts, "step" if numbered else "epoch", skipped)
    return Rows(kept, evaluations, summary, +skipped, numbered, _settings(text))


def _parted(row: Row) -> tuple[Row, Row]:
    """The training entries and the evaluation entries of a row; either may be empty."""
    evaluated = {k: v for k, v in row.items() if k.startswith("eval_")}
    trained = {k: v for k, v in row.items() if k not in evaluated}
    if "loss" in row or any(key.startswith("rewards/") for key in trained):
        return trained, {**evaluated, **_step_of(row)} if evaluated else {}
    return {}, row if evaluated else {}


def refused(what: str, path: Path, reason: str) -> ValueError:
    """The error for a file that is not a training log."""
    return ValueError(f"{what} must name a training log, but {path} {reason}.")


def left_out(skipped: Counter[str]) -> str:
    """The numbers of rows that were left out, in parentheses, for a message; may be empty."""
    told = "; ".join(f"{reason} ({count})" for reason, count in (+skipped).items())
    return f" (left out: {told})" if told else ""


def number(row: Row, key: str, path: Path, what: str) -> float:
    """A number in a row; NaN if it is missing.

    Raises:
        ValueError: If the row has anything but a number.
    """
    value = row.get(key)
    if value in _NOTHING:
        return math.nan
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        named = f"the row of step {row['step']}" if "step" in row else "a row"
        raise refused(what, path, f"holds {kind(value)} for `{key}` in {named}") from None


def kind(value: object) -> str:
    """The type of a JSON value, as a phrase for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")


def _text(path: Path, what: str) -> str:
    if path.is_dir():
        raise IsADirectoryError(
            f"{what} must name a training log, but {path} is a directory; "
            "give the trainer_state.json in it."
        )
    if not path.exists():
        raise FileNotFoundError(f"{what} must name a training log, but {path} does not exist.")
    if path.name == _NEVER_OPENED:
        raise refused(
            what, path, "is never opened, since a pickle can run code; give trainer_state.json"
        )
    content = path.read_bytes()
    try:
        text = content.decode(
            "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        )
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise refused(what, path, "holds binary data; give the trainer_state.json beside it")
    return text


def _settings(text: str) -> dict[str, float]:
    """The numbers of a JSON text that belong to no row."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    held = content if isinstance(content, dict) and "log_history" in content else {}
    return {
        key: float(value)
        for key, value in held.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _listed(text: str, path: Path, what: str, skipped: Counter[str]) -> list[Row]:
    """The rows of a text, with their keys unchanged."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise refused(what, path, f"is not JSON ({error})") from error
    except ValueError as error:
        if (found := _of_lines(text)) or (found := list(_in_text(text, skipped))):
            return found
        if skipped:
            raise refused(
                what, path, f"holds no row that can be read{left_out(skipped)}"
            ) from error
        if text.lstrip().startswith(("{", "[")):
            raise refused(what, path, f"is not JSON ({error})") from error
        return _of_csv(text, path, what)
    if isinstance(content, dict) and "log_history" in content:
        content, where = content["log_history"], "has a `log_history` that"
    elif isinstance(content, dict) and {"loss", "step"} & content.keys():
        content, where = [content], ""
    elif isinstance(content, dict):
        raise refused(what, path, "lacks the key `log_history`")
    else:
        where = f"holds {kind(content)} at its top level that"
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise refused(what, path, f"{where} is not a list of objects")
    if not content:
        raise refused(what, path, f"{where} is empty")
    return content


def _of_lines(text: str) -> list[Row] | None:
    """The rows of a text in JSON lines; None if the text has another format."""
    try:
        found = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError):
        return None
    return found if all(isinstance(row, dict) for row in found) else None


def _in_text(text: str, skipped: Counter[str]) -> Iterator[Row]:
    """The rows among other lines of a text, each as JSON or printed as a Python dict."""
    pending = _braced(text)[::-1]
    while pending:
        begin, end, inside = pending.pop()
        found = text[begin:end] if end - begin <= _LONGEST_ROW else ""
        row = _literal(found)
        if row is not None and "log_history" not in row:
            yield row
        elif inside:
            pending += inside[::-1]
        elif "loss" in found or "rewards" in found:
            skipped[_UNREADABLE] += 1


_Braced = tuple[int, int, list["_Braced"]]


def _braced(text: str) -> list[_Braced]:
    """The outermost pairs of braces in a text, each with the pairs that it contains."""
    opened: list[tuple[int, list[_Braced]]] = [(0, [])]
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append((brace.start(), []))
        elif len(opened) > 1:
            begin, inside = opened.pop()
            opened[-1][1].append((begin, brace.end(), inside))
    return [pair for _, inside in opened for pair in inside]


def _literal(text: str) -> Row | None:
    """The dict that a text denotes, in JSON or as a Python literal; None if it denotes none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    try:
        row = _value(ast.parse(text, mode="eval").body) if row is None else row
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _value(node: ast.expr) -> object:
    """The value of a literal, including `nan` and `inf`; None for anything else."""
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.Name):
        return _LITERALS.get(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand)
        return -inner if isinstance(inner, int | float) else None
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        inner = _value(node.args[0]) if name in _CALLS and node.args else None
        return inner if isinstance(inner, int | float) else None
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def _of_csv(text: str, path: Path, what: str) -> list[Row]:
    """The rows of a CSV table with a header, which has one column or one row for each quantity."""
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    table = list(csv.DictReader(io.StringIO(text.lstrip()), delimiter=delimiter))
    columns = {str(key).strip().lower() for key in (table[0] if table else ())}
    if {"tag", "step", "value"} <= columns:
        rows = _by_step([{k.lower(): v for k, v in row.items() if k} for row in table])
        # A quantity that is missing in some rows may put the steps out of order.
        return sorted(rows, key=lambda row: number(row, "step", path, what))
    if columns == {"wall time", "step", "value"}:
        raise refused(
            what,
            path,
            "holds one quantity, as TensorBoard exports it; give one table with a column for each "
            "of `rewards/chosen` and `rewards/rejected`, or columns tag, step and value",
        )
    if not any("rewards/" in name or name.endswith("loss") for name in columns):
        raise refused(
            what, path, "is neither JSON, nor a text with rows in its lines, nor a table in CSV"
        )
    runs = {str(key).rpartition(" - ")[0] for key in table[0] if " - " in str(key)}
    if len(runs) > 1:
        raise refused(what, path, f"holds {len(runs)} runs; export one run for each file")
    return [{k: v for k, v in row.items() if k and v not in ("", None)} for row in table]


def _by_step(table: list[Row]) -> list[Row]:
    """Rows with one quantity each, combined into one row per step; evaluations stay separate."""
    found: dict[tuple[str, bool], Row] = {}
    for entry in table:
        evaluation = str(entry["tag"]).startswith("eval")
        row = found.setdefault((entry["step"], evaluation), {"step": entry["step"]})
        row[entry["tag"]] = entry["value"]
    return list(found.values())


def _renamed(row: Row) -> Row:
    """A row with the keys of TRL, without the prefixes of other tools."""
    named: Row = {}
    for key, value in _flat(row).items():
        name = str(key).rpartition(" - ")[2].strip()
        if name.endswith(("__MIN", "__MAX")):
            continue
        name = name.removeprefix("train/")
        name = f"eval_{name[5:]}" if name.startswith("eval/") else name
        named[{"lr": "learning_rate", "Step": "step"}.get(name, name)] = value
    return {**named, **_step_of(named)}


def _flat(row: Row) -> Row:
    """A row without nested objects: a nested key becomes `outer/inner`."""
    while any(isinstance(value, dict) for value in row.values()):
        inner: Row = {}
        for key, value in row.items():
            if isinstance(value, dict):
                before = "" if key in _WRAPPERS else f"{key}/"
                inner |= {f"{before}{name}": held for name, held in value.items()}
        row = {**inner, **{k: v for k, v in row.items() if not isinstance(v, dict)}}
    return row


def _step_of(row: Row) -> Row:
    """A dict with the step of a row under the key `step`; empty if the row has no step."""
    held = [row[key] for key in _STEPS if row.get(key) not in _NOTHING]
    return {"step": held[0]} if held else {}


def _in_order(training: list[Row], path: Path, what: str, skipped: Counter[str]) -> list[Row]:
    """Rows by increasing step; if a resumed run repeated a step, only its last row."""
    placed: list[tuple[float, Row]] = []
    for row in training:
        if row.get("step") in _NOTHING:
            skipped[_NO_STEP] += 1
            continue
        step = number(row, "step", path, what)
        if not math.isfinite(step) or step < 0:
            raise refused(what, path, f"holds {row['step']!r} for `step`, which is not a step")
        placed.append((step, row))
    if _falls(placed, strictly=True):
        placed.reverse()
    return _not_abandoned(placed, skipped, shared=False)


def _counted(training: list[Row], path: Path, what: str, skipped: Counter[str]) -> list[Row]:
    """Rows with their number as step; a decrease of the epoch shows where a run was resumed."""
    placed, epoch = [], -math.inf
    for row in training:
        try:
            told = number(row, "epoch", path, what)
        except ValueError:
            told = math.nan
        epoch = told if math.isfinite(told) else epoch
        placed.append((epoch, row))
    kept = _not_abandoned(placed, skipped, shared=True)
    return [{**row, "step": place} for place, row in enumerate(kept, 1)]


def _evaluations(parts: list[tuple[Row, Row]], key: str, skipped: Counter[str]) -> tuple[Row, ...]:
    """Evaluations by increasing step, without those that a resumed run computed again."""
    placed: list[tuple[float, Row]] = []
    place = -math.inf
    for trained, evaluated in parts:
        with suppress(ValueError, TypeError):  # a row that does not tell it stands where it is
            place = float({**evaluated, **trained}.get(key, place))
        placed.append((place, evaluated))
    if placed and placed[0][0] > placed[-1][0] and _falls(placed, strictly=False):
        placed.reverse()
    kept: list[tuple[float, Row]] = []
    before = -math.inf
    for place, evaluated in placed:
        if place < before:
            skipped[_ABANDONED_EVALUATION] += sum(held >= place for held, _ in kept)
            kept = [one for one in kept if one[0] < place]
        kept += [(place, evaluated)] if evaluated else []
        before = place
    return tuple(evaluated for _, evaluated in kept)


def _falls(placed: list[tuple[float, Row]], *, strictly: bool) -> bool:
    """True if steps decrease from row to row, as in a table with the last row at the top."""
    return all(
        later[0] < earlier[0] or (not strictly and later[0] == earlier[0])
        for earlier, later in pairwise(placed)
    )


def _not_abandoned(
    placed: list[tuple[float, Row]], skipped: Counter[str], *, shared: bool
) -> list[Row]:
    """Rows without those that a resumed run replaced.

    With `shared`, neighbouring rows may have the same step.
    """
    kept: list[tuple[float, Row]] = []
    for place, row in placed:
        if kept and place < kept[-1][0]:
            while kept and kept[-1][0] >= place:
                kept.pop()
                skipped[_ABANDONED] += 1
        elif kept and place == kept[-1][0] and not shared:
            kept.pop()
            skipped[_SAME_STEP] += 1
        kept.append((place, row))
    return [row for _, row in kept]
