"""Training logs as points on the log-ratio plane.

The numbers in the logs of TRL 1.16, and of older releases where these differ:

- `rewards/chosen` is β·u_w, averaged over the batch; β is not in the file. For losses without a
  reference (ORPO, CPO, SimPO) it is β·log π, and there are no log-ratios.
- A row is written after an optimiser step, but its rewards come from the forward passes before this
  step. The first row of a run that starts at its reference therefore has rewards of 0.
- With `logging_steps = k` a row holds means over the k steps since the previous row.
- `learning_rate` is the learning rate of the step with the number `step`; in older releases of
  Transformers it is the learning rate of the next step. The beginning and the end of the schedule
  show which of the two it is.
- `grad_norm` belongs to the last step alone, and is the norm before clipping.
- A batch of KTO may have only chosen or only rejected examples. The reward of the missing side is
  then absent or NaN. If it is exactly 0, it is a sum over no examples, not a measurement.

The optimiser is not in the file either. Only plain gradient descent with small steps follows the
gradient flow; for any other optimiser compare the path, but not the time.
"""

import math
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from flowlab import _tables
from flowlab._checks import positive
from flowlab.logs.reading import Row, Rows, left_out, number, refused, rows

if TYPE_CHECKING:
    import xarray

__all__ = ["TrainingLog", "read", "read_named"]

Rates = Literal["own", "next", "unknown"]

_CHOSEN, _REJECTED = "rewards/chosen", "rewards/rejected"
_SIDES = ("chosen", "rejected")
_KEYS = {
    "step": "step",
    "learning_rate": "learning_rate",
    "u_chosen": _CHOSEN,
    "u_rejected": _REJECTED,
    "logp_chosen": "logps/chosen",
    "logp_rejected": "logps/rejected",
    "loss": "loss",
    "gradient_norm": "grad_norm",
    "accuracy": "rewards/accuracies",
    "log_odds": "log_odds_chosen",
    "tokens": "num_tokens",
}
_NO_REWARDS = "training rows without a reward of either response"
_EMPTY_SIDE = "training rows with a reward of exactly 0 beside a missing one"
_SAME_RATIO = 2**-6  # of two numbers in bfloat16, each rounded by up to 2^-8: from -2^-7 to 2^-7
_NEAR_STEP = 0.3  # steps by which the zero of a schedule may be missed; the two kinds differ by 1
_UNITS = {
    "step": "steps",
    "time": "learning rate × steps",
    "u_chosen": "nats",
    "u_rejected": "nats",
    "margin": "nats",
    "logp_chosen": "nats",
    "logp_rejected": "nats",
}
_WORDS = {  # of what a table of a log tells
    "u_chosen": "chosen log-ratio (nats)",
    "u_rejected": "rejected log-ratio (nats)",
    "margin": "margin (nats)",
    "logp_chosen": "chosen log-probability (nats)",
    "logp_rejected": "rejected log-probability (nats)",
    "loss": "loss",
    "accuracy": "accuracy of the rewards",
    "learning_rate": "learning rate",
}


@dataclass(frozen=True, eq=False, repr=False)
class TrainingLog:
    """The training rows of one run as arrays; evaluation rows and summary are separate.

    Each array has one value per training row, in the order of the steps, and NaN if the file has no
    value. All values are means over the batches that a row covers.

    Attributes:
        path: The file.
        beta: β, as given to `read`.
        step: The last optimiser step that the row covers, counted from 1; the number of the row if
            the file has no steps.
        learning_rate: The learning rate of that step.
        time: The flow time (learning rate × steps) of the measured point. A row at step s that
            covers k steps describes the policy after s − k to s − 1 steps. Its time is therefore
            the sum of the learning rates of the first s − k steps plus (k − 1)/2 times the learning
            rate of the row; for k = 1 the first time is 0. The first row is assumed to cover as
            many steps as the second row. If the log begins later than this, the missing steps are
            given the learning rate of the first row.
        u_chosen: Log-ratio u_w of the chosen response, which is `rewards/chosen` / β; NaN without a
            reference.
        u_rejected: Log-ratio u_l of the rejected response, which is `rewards/rejected` / β.
        margin: The margin h = u_w − u_l.
        logp_chosen: Log-probability of the chosen response: summed over tokens, or per token for
            losses that average it (ORPO, SimPO).
        logp_rejected: Log-probability of the rejected response.
        loss: The loss that was minimised.
        gradient_norm: Euclidean norm of the gradient of the loss with respect to the parameters,
            before clipping.
        accuracy: Fraction of pairs with a higher reward of the chosen than of the rejected
            response.
        log_odds: Log odds of the chosen response less log odds of the rejected one, which ORPO
            logs.
        tokens: Number of tokens in all prompts and responses up to the row, if the release of TRL
            logs it.
        evaluations: The evaluation rows, with the keys of TRL. A row at step s describes the policy
            after s steps.
        summary: The last row with the key `train_runtime`, unchanged; empty if training was cut
            short. Its means may include steps after the last training row.
        reference_free: True if the rewards are β·log π, so that there are no log-ratios.
        reward_per_nat: The quotient of rewards and log-probabilities if it is constant, as for a
            loss without a reference, where it is β; else None.
        trainer: The loss that the keys of the rows show, `"orpo"` or `"kto"`; None if they show no
            loss.
        rates: `"own"` if the logged learning rate belongs to the row's own step, `"next"` if it
            belongs to the next step; `"unknown"` if the schedule shows neither, and the rate is
            then taken as the row's own.
        numbered: True if the file gives the steps.
        nan_from: The step of the first row whose loss or reward is NaN; None if there is no such
            row.
        skipped: The number of rows that were left out, by reason.
        settings: Numbers of a `trainer_state.json` that belong to no row, such as
            `train_batch_size`.
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
    log_odds: Float[np.ndarray, " row"]
    tokens: Float[np.ndarray, " row"]
    evaluations: tuple[Row, ...]
    summary: Row
    reference_free: bool = False
    reward_per_nat: float | None = None
    trainer: str | None = None
    rates: Rates = "unknown"
    numbered: bool = True
    nan_from: float | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)

    @property
    def step_rates(self) -> Float[np.ndarray, " s"] | None:
        """The learning rate of every step, starting with step 1; None if some rates are missing."""
        logged, steps = self.learning_rate, np.diff(self.step, prepend=0.0)
        if not self.numbered or not self.step.size or not np.all(np.isfinite(logged)):
            return None
        rates = _of_own_step(logged) if self.rates == "next" and len(logged) > 1 else logged
        if np.all(steps == 1) or np.ptp(rates) == 0:
            return np.repeat(rates, steps.astype(int))
        return None

    @property
    def points(self) -> Float[np.ndarray, "row 2"]:
        """The points (u_w, u_l) of the rows that have both log-ratios."""
        both = np.stack([self.u_chosen, self.u_rejected], axis=1)
        return both[np.all(np.isfinite(both), axis=1)]

    def with_beta(self, beta: float) -> "TrainingLog":
        """The same log with another β; the rewards of the file are unchanged.

        Args:
            beta: β, positive.
        """
        names = ("u_chosen", "u_rejected", "margin")
        scaled: dict[str, Any] = {n: getattr(self, n) * (self.beta / beta) for n in names}
        return replace(self, beta=beta, **scaled)

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the rows on the log-ratio plane, coloured by step; see `flowlab.plots.log_path`.

        Args:
            ax: The matplotlib Axes to draw on; None for the Axes of a new Figure.

        Raises:
            ValueError: If the log has no log-ratios.
        """
        from flowlab import plots

        return plots.log_path(self, ax=ax)

    def to_xarray(self) -> "xarray.Dataset":
        """The training rows as a labelled Dataset over `row`, with units as attributes."""
        import xarray

        columns = {name: ("row", held) for name, held in self._columns().items()}
        attributes = {"path": str(self.path), "beta": self.beta, "rates": self.rates}
        dataset = xarray.Dataset(columns, attrs=attributes)
        for name, unit in _UNITS.items():
            dataset[name].attrs["units"] = unit
        return dataset.set_coords(["step", "time"])

    def __repr__(self) -> str:
        return f"TrainingLog({', '.join([repr(self.path.name), *self._parts()])})"

    def _repr_html_(self) -> str:
        rows = [("", "first row", "last row")]
        rows += [
            (_WORDS[name], f"{held[0]:.4g}", f"{held[-1]:.4g}")
            for name, held in self._columns().items()
            if name in _WORDS and held.size and np.isfinite(held[[0, -1]]).any()
        ]
        title = f"{self.path.name}: {', '.join(self._parts())}"
        return _tables.html(title, rows, "lrr")

    def _parts(self) -> list[str]:
        """Phrases on the contents of the log."""
        parts = [f"beta={self.beta:g}", f"{self.step.size} training rows"]
        if self.step.size:
            what = "step" if self.numbered else "row"
            parts[-1] += f" ({what} {self.step[0]:g} to {self.step[-1]:g})"
        if self.evaluations:
            parts.append(f"{len(self.evaluations)} evaluations")
        if self.reference_free:
            parts.append("without a reference")
        elif len(self.points):
            ends = [f"({w:.3g}, {r:.3g})" for w, r in self.points[[0, -1]]]
            parts.append(f"(u_w, u_l) from {ends[0]} to {ends[1]} nats")
        if self.skipped:
            parts.append(f"{sum(self.skipped.values())} rows left out")
        return parts

    def _columns(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


def read(path: str | os.PathLike[str], *, beta: float) -> TrainingLog:
    """The training log in a file of any common format.

    The format is recognised by the content: TRL's `trainer_state.json`; a list of its rows; lines
    of JSON; rows printed as Python dicts in other text; CSV tables as W&B exports them (with
    `train/` and `eval/` before the keys) or with the columns tag, step and value. Training rows are
    those with a `loss` or a key that starts with `rewards/`; evaluation rows are those with a key
    that starts with `eval_`. Rows that are left out are counted in `skipped`. Nothing in a file is
    executed.

    Args:
        path: The file (not its folder).
        beta: β of the run, which the file does not hold.

    Returns:
        A `TrainingLog` in float64. With evaluation rows alone, its arrays are empty.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If `path` is a directory.
        ValueError: If `beta` is not a positive finite number; if the file has another format or no
            rows; if it has losses but no rewards; or if a value that should be a number is
            something else.

    Source: TRL 1.16.0, `trl/trainer/dpo_trainer.py`, `_compute_loss` and `log`.

    Accuracy: rewards are means in float32. `time` assumes a constant learning rate over the steps
        that a row covers. It is therefore exact if `logging_steps` is 1 or the rate is constant.
    """
    return read_named(Path(path), beta=positive("beta", beta), what="Argument `path`")


def read_named(path: Path, *, beta: float, what: str) -> TrainingLog:
    """The log that `read` returns; `what` is the name of the file in messages."""
    table = rows(path, what)
    skipped = +table.skipped
    used = _with_rewards(table, path, what, skipped)
    columns = _columns(table, path, what)
    rates = _rates(
        columns["step"], columns["learning_rate"], number(table.summary, "step", path, what)
    )
    # The flow time sums over all rows, also over rows without rewards.
    columns["time"] = _measured_time(columns["step"], columns["learning_rate"], rates)
    nan_from = _first_nan(table.training, path, what)
    columns = {name: held[used] for name, held in columns.items()}
    ratio = _reward_per_nat(columns)
    trainer = _trainer(table)
    free = ratio is not None or trainer == "orpo"
    per_reward = math.nan if free else 1 / beta
    u_chosen, u_rejected = (columns.pop(f"u_{side}") * per_reward for side in _SIDES)
    return TrainingLog(
        path=path,
        beta=beta,
        u_chosen=u_chosen,
        u_rejected=u_rejected,
        margin=u_chosen - u_rejected,
        **columns,
        evaluations=table.evaluations,
        summary=table.summary,
        reference_free=free,
        reward_per_nat=ratio,
        trainer=trainer,
        rates=rates,
        numbered=table.numbered,
        nan_from=nan_from,
        skipped=dict(skipped),
        settings=table.settings,
    )


def _with_rewards(table: Rows, path: Path, what: str, skipped: Counter[str]) -> list[int]:
    """The indices of the training rows that have a reward of at least one response."""
    kept: list[int] = []
    for index, row in enumerate(table.training):
        sides = [number(row, key, path, what) for key in (_CHOSEN, _REJECTED)]
        known = [value for value in sides if math.isfinite(value)]
        if not known:
            skipped[_NO_REWARDS] += 1
        elif index and known == [0.0]:
            skipped[_EMPTY_SIDE] += 1
        else:
            kept.append(index)
    evaluated = any("eval_rewards/chosen" in row for row in table.evaluations)
    if not kept and not evaluated:
        reason = "holds losses without `rewards/chosen`, from which log-probabilities would follow"
        give = "give the trainer_state.json of a preference run; trainers that write another log, "
        beside = "such as LLaMA-Factory's trainer_log.jsonl, write it beside that"
        raise refused(what, path, f"{reason}{left_out(skipped)}; {give}{beside}")
    return kept


def _columns(table: Rows, path: Path, what: str) -> dict[str, Float[np.ndarray, " row"]]:
    """The columns of all training rows by quantity; NaN if a value is missing.

    The columns of the log-ratios hold the rewards of the file, which are not yet divided by β.
    """
    columns: dict[str, Float[np.ndarray, " row"]] = {}
    for name, key in _KEYS.items():
        told = [number(row, key, path, what) for row in table.training]
        held = np.array(told, dtype=np.float64)
        rewards = key.startswith("rewards/")
        columns[name] = np.where(np.isfinite(held), held, math.nan) if rewards else held
    return columns


def _reward_per_nat(columns: dict[str, np.ndarray]) -> float | None:
    """The quotient of rewards and log-probabilities if it is the same in every row; else None."""
    ratios: list[np.ndarray] = []
    for side in _SIDES:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = columns[f"u_{side}"] / columns[f"logp_{side}"]
        ratios.append(ratio[np.isfinite(ratio)])
    found = np.concatenate(ratios)
    if min(map(len, ratios)) < 2 or not np.ptp(found) < _SAME_RATIO * abs(found.mean()):
        return None
    return float(found.mean())


def _trainer(table: Rows) -> str | None:
    keys = {key.removeprefix("eval_") for row in _all(table) for key in row}
    if "log_odds_chosen" in keys:
        return "orpo"
    return "kto" if "kl" in keys else None


def _all(table: Rows) -> list[Row]:
    return [*table.training, *table.evaluations]


def _first_nan(training: list[Row], path: Path, what: str) -> float | None:
    keys = ("loss", _CHOSEN, _REJECTED)
    for row in training:
        if any(k in row and math.isnan(number(row, k, path, what)) for k in keys):
            return float(row["step"])
    return None


def _rates(
    step: Float[np.ndarray, " row"], rate: Float[np.ndarray, " row"], all_steps: float
) -> Rates:
    """The step to which logged learning rates belong: the row's own, the next one, or unknown.

    The first step of a warm-up has the rate 0, and so would the step after the last step S of a
    decay. If a logged rate belongs to the row's own step, the logged rates extrapolate to 0 at the
    steps 1 and S + 1. If it belongs to the next step, they extrapolate to 0 at 0 and S. `all_steps`
    is S, or NaN if the file does not have it.
    """
    if len(step) < 2 or not np.all(np.isfinite(rate)) or not np.any(rate):
        return "unknown"
    if rate[0] == 0 or rate[-1] == 0:
        return "own" if rate[0] == 0 else "next"
    begins = _zero(step[:2], rate[:2]) if rate[1] > rate[0] else None
    ends = None
    if len(step) > 2 and rate[-3] > rate[-2] > rate[-1] and math.isfinite(all_steps):
        # The last rates of a linear decay lie on one line; the last rates of a cosine do not.
        last, before = _zero(step[-2:], rate[-2:]), _zero(step[-3:-1], rate[-3:-1])
        ends = last if abs(last - before) < _NEAR_STEP else None
    for zero, of_next in ((begins, 0.0), (ends, all_steps)):
        if zero is not None and abs(zero - of_next) < _NEAR_STEP:
            return "next"
        if zero is not None and abs(zero - of_next - 1) < _NEAR_STEP:
            return "own"
    return "unknown"


def _zero(step: Float[np.ndarray, "2"], rate: Float[np.ndarray, "2"]) -> float:
    """The step at which the straight line through two rates is 0."""
    return float(step[0] - rate[0] * (step[1] - step[0]) / (rate[1] - rate[0]))


def _of_own_step(rate: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """The rates of the rows' own steps from those of the next steps; the first is extrapolated."""
    return np.concatenate([[max(0.0, 2 * rate[0] - rate[1])], rate[:-1]])


def _measured_time(
    step: Float[np.ndarray, " row"], logged: Float[np.ndarray, " row"], rates: Rates
) -> Float[np.ndarray, " row"]:
    learning_rate = _of_own_step(logged) if rates == "next" else logged
    steps_of_row = np.diff(step, prepend=0.0)
    time_after = np.cumsum(learning_rate * steps_of_row)
    if len(step) > 1:  # a log that begins late has no rows for the steps before
        steps_of_row[0] = min(step[0], step[1] - step[0])
    return time_after - learning_rate * (steps_of_row + 1) / 2
