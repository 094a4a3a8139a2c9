"""Training logs as points on the log-ratio plane.

TRL writes `trainer_state.json` beside every checkpoint. `read` turns one such file into the arrays
that flow lines are compared with. What holds for the numbers in it (TRL 1.16):

- `rewards/chosen` is β·u_w, averaged over the batch; β itself is not in the file.
- A row is written after an optimiser step, but the rewards in it come from the forward passes
  before that step: the first row of a run with a reference equal to its start has rewards of 0.
- With `logging_steps = k` a row holds the mean over the k steps since the row before.
- `learning_rate` is the rate with which step number `step` was made.
- `grad_norm` is that of the last step alone, before clipping.

The optimiser is not in the file either. Only plain gradient descent with small steps follows the
gradient flow, so for any other optimiser compare the path and not the time.
"""

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from flowlab._checks import positive

__all__ = ["TrainingLog", "read"]

_CHOSEN, _REJECTED = "rewards/chosen", "rewards/rejected"

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class TrainingLog:
    """The training rows of one run as arrays, with its evaluations and summary apart.

    Arrays have one value per training row, in the order of the steps; NaN stands for what the file
    does not tell. All values are means over the batches that a row stands for.

    Attributes:
        path: The file.
        beta: β, as given to `read`.
        step: Number of the last optimiser step that the row stands for, counted from 1.
        learning_rate: Learning rate of that step.
        time: Flow time (learning rate × steps) at which the point was measured. The row of step s
            that stands for k steps describes the policy after s − k to s − 1 steps, so its time is
            the sum of the learning rates of the first s − k steps plus (k − 1)/2 times its own: for
            k = 1 the first time is 0.
        u_chosen: Log-ratio u_w of the chosen response, `rewards/chosen` / β.
        u_rejected: Log-ratio u_l of the rejected response, `rewards/rejected` / β.
        margin: h = u_w − u_l.
        logp_chosen: Summed log-probability of the chosen response.
        logp_rejected: Summed log-probability of the rejected response.
        loss: The loss that was trained.
        gradient_norm: Euclidean norm of the loss's gradient in the parameters, before clipping.
        accuracy: Share of pairs whose chosen reward is above the rejected one.
        evaluations: The evaluation rows as they stand in the file. Those of step s describe the
            policy after s steps.
        summary: The last row with `train_runtime` as it stands in the file, which may hold the
            means over steps after the last training row; empty where training was cut short.
    """

    path: Path
    beta: float
    step: Float[np.ndarray, " row"]
    learning_rate: Float[np.ndarray, " row"]
    time: Float[np.ndarray, " row"]
    u_chosen: Float[np.ndarray, " row"]
    u_rejected: Float[np.ndarray, " row"]
    margin: Float[np.ndarray, " row"]
    logp_chosen: Float[np.ndarray, " row"]
    logp_rejected: Float[np.ndarray, " row"]
    loss: Float[np.ndarray, " row"]
    gradient_norm: Float[np.ndarray, " row"]
    accuracy: Float[np.ndarray, " row"]
    evaluations: tuple[Row, ...]
    summary: Row

    @property
    def points(self) -> Float[np.ndarray, "row 2"]:
        """The run on the log-ratio plane: rows (u_w, u_l)."""
        return np.stack([self.u_chosen, self.u_rejected], axis=1)


def read(path: str | os.PathLike[str], *, beta: float) -> TrainingLog:
    """The training log in a `trainer_state.json` that a TRL preference trainer wrote.

    Training rows are those with a `loss` or a key that starts with `rewards/`; evaluation rows are
    those with a key that starts with `eval_`; rows of neither kind are left out.

    Args:
        path: The file (not its folder).
        beta: β of the run, which the file does not hold.

    Returns:
        A `TrainingLog` in float64.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: `path` is a directory.
        ValueError: `beta` is not a positive finite number; the file is not JSON, has no
            `log_history` with training rows, or a training row lacks `step`, `rewards/chosen` or
            `rewards/rejected` or holds something else than a finite number there; a value of
            another column is not a number; the steps do not increase.

    Source: TRL 1.16.0, `trl/trainer/dpo_trainer.py`, `_compute_loss` and `log`.

    Accuracy: rewards are float32 means. `time` takes the learning rate as constant over the steps
        that a row stands for, so it is exact for `logging_steps = 1` or a constant rate.
    """
    beta, path = positive("beta", beta), Path(path)
    training, evaluations, summary = _sorted_rows(_history(path), path)
    step = _steps(training, path)
    learning_rate = _column(training, "learning_rate", path)
    u_chosen = _needed_column(training, _CHOSEN, path) / beta
    u_rejected = _needed_column(training, _REJECTED, path) / beta
    return TrainingLog(
        path=path,
        beta=beta,
        step=step,
        learning_rate=learning_rate,
        time=_measured_time(step, learning_rate),
        u_chosen=u_chosen,
        u_rejected=u_rejected,
        margin=u_chosen - u_rejected,
        logp_chosen=_column(training, "logps/chosen", path),
        logp_rejected=_column(training, "logps/rejected", path),
        loss=_column(training, "loss", path),
        gradient_norm=_column(training, "grad_norm", path),
        accuracy=_column(training, "rewards/accuracies", path),
        evaluations=evaluations,
        summary=summary,
    )


def _history(path: Path) -> list[Row]:
    content = _content(path)
    if not isinstance(content, dict):
        raise _refused(path, f"holds {_kind(content)} at its top level, not an object")
    if "log_history" not in content:
        raise _refused(path, "lacks the key `log_history`")
    history = content["log_history"]
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise _refused(path, "has a `log_history` that is not a list of objects")
    if not history:
        raise _refused(path, "has an empty `log_history`")
    return history


def _content(path: Path) -> object:
    if path.is_dir():
        raise IsADirectoryError(
            f"Argument `path` must name a trainer_state.json file, but {path} is a directory."
        )
    if not path.exists():
        raise FileNotFoundError(
            f"Argument `path` must name a trainer_state.json file, but {path} does not exist."
        )
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"is not JSON ({error})") from error


def _sorted_rows(history: list[Row], path: Path) -> tuple[list[Row], tuple[Row, ...], Row]:
    training: list[Row] = []
    evaluations: list[Row] = []
    summary: Row = {}
    for row in history:
        if "train_runtime" in row:
            summary = row
        elif any(key.startswith("eval_") for key in row):
            evaluations.append(row)
        elif "loss" in row or any(key.startswith("rewards/") for key in row):
            training.append(row)
    if not training:
        raise _refused(path, "holds no training rows in `log_history`")
    return training, tuple(evaluations), summary


def _steps(rows: list[Row], path: Path) -> Float[np.ndarray, " row"]:
    step = _needed_column(rows, "step", path)
    wrong = np.flatnonzero(np.diff(step, prepend=0.0) <= 0)
    if wrong.size:
        raise _refused(
            path,
            "has training rows whose steps do not increase from 1 on: "
            f"row {wrong[0] + 1} of them has step {step[wrong[0]]:g}",
        )
    return step


def _measured_time(
    step: Float[np.ndarray, " row"], learning_rate: Float[np.ndarray, " row"]
) -> Float[np.ndarray, " row"]:
    steps_of_row = np.diff(step, prepend=0.0)
    time_after = np.cumsum(learning_rate * steps_of_row)
    time_before = np.concatenate([[0.0], time_after[:-1]])
    return time_before + learning_rate * (steps_of_row - 1) / 2


def _needed_column(rows: list[Row], key: str, path: Path) -> Float[np.ndarray, " row"]:
    for row in rows:
        if key not in row:
            raise _refused(path, f"lacks the key `{key}` in {_name(row)}")
    column = _column(rows, key, path)
    wrong = np.flatnonzero(~np.isfinite(column))
    if wrong.size:
        row = rows[wrong[0]]
        raise _refused(path, f"holds {_kind(row[key])} for `{key}` in {_name(row)}")
    return column


def _column(rows: list[Row], key: str, path: Path) -> Float[np.ndarray, " row"]:
    return np.array([_number(row, key, path) for row in rows], dtype=np.float64)


def _number(row: Row, key: str, path: Path) -> float:
    value = row.get(key)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(path, f"holds {_kind(value)} for `{key}` in {_name(row)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _refused(path: Path, reason: str) -> ValueError:
    return ValueError(f"Argument `path` must name a training log, but {path} {reason}.")


def _name(row: Row) -> str:
    return f"the training row of step {row['step']}" if "step" in row else "a training row"


def _kind(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "an infinite number"
    if type(value) is int and abs(value) > sys.float_info.max:
        return "a number beyond float64"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")
