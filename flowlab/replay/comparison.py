"""A replay compared with the log of its run: the deviations, and the changes of every pair.

Letters in shapes: k rows of the log, n pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flowlab.data import Pairs
from flowlab.logs import TrainingLog
from flowlab.logs.windows import windows
from flowlab.replay.run import Replay
from flowlab.until import Outcome

__all__ = ["QUANTILES", "Comparison", "compare"]

QUANTILES = 0.05, 0.25, 0.5, 0.75, 0.95
# Root mean square deviation in standard errors of a row. It is about √2 for a run in another order,
# whose noise is independent, and a few hundredths for a replay in float32.
_SAME_RUN = 0.25


@dataclass(frozen=True, eq=False)
class Comparison:
    """A replay compared with its log, as NumPy arrays; use `compare` to make one.

    Attributes:
        log: The log.
        run: The replay.
        doubts: Sentences on settings that contradict the log.
        deviation: (u_w, u_l) of the replay less (u_w, u_l) of the log, nats, shape (k, 2).
        noise: Standard errors of (u_w, u_l) in each row, from the scatter of the rows about the
            run, nats, shape (k, 2); NaN if there are too few rows.
        pairs: The pairs of the replay; None if they are not known.
    """

    log: TrainingLog
    run: Replay
    doubts: list[str]
    deviation: Float[np.ndarray, "k 2"]
    noise: Float[np.ndarray, "k 2"]
    pairs: Pairs | None = None

    @property
    def rows(self) -> Int[np.ndarray, " n"]:
        """The row of each pair in the data, counted from 0."""
        return np.arange(self.run.u.shape[1]) if self.pairs is None else self.pairs.rows

    @property
    def largest(self) -> float:
        """The largest deviation of a log-ratio over all rows, nats."""
        return largest_known(self.deviation)

    @property
    def largest_step(self) -> int:
        """The step of the row with the largest deviation."""
        sizes = np.nan_to_num(np.abs(self.deviation), nan=-1.0)
        return int(self.log.step[np.argmax(sizes.max(axis=1))])

    @property
    def in_errors(self) -> Float[np.ndarray, "k 2"]:
        """The deviations divided by the standard errors of their rows; NaN if unknown or 0."""
        known = np.where(self.noise > 0, self.noise, np.nan)
        return self.deviation / known

    @property
    def typical(self) -> float:
        """The root mean square of the deviations in standard errors; NaN if none is known."""
        square = self.in_errors**2
        known = square[np.isfinite(square)]
        return float(np.sqrt(np.mean(known))) if known.size else float("nan")

    @property
    def is_replay(self) -> bool:
        """True if the replay is the same run as the log.

        This requires that all steps were taken, that no setting contradicts the log, and that the
        deviations are far smaller than the noise of a batch.
        """
        within = not self.typical > _SAME_RUN
        return self.run.outcome is Outcome.reached and not self.doubts and within

    def of_pairs(self) -> list[dict[str, Any]]:
        """Statistics over all pairs at each kept step: means, quantiles, and fractions that fell.

        Raises:
            ValueError: If the replay kept no log-ratios of all pairs.
        """
        if not self.run.u.size:
            raise ValueError(
                "Argument `run` must have log-ratios of all pairs, from keep_every=…, but has none."
            )
        return [
            _told(int(step), np.asarray(u, float))
            for step, u in zip(self.run.kept, self.run.u, strict=True)
        ]


def compare(
    log: TrainingLog,
    run: Replay,
    doubts: Sequence[str] = (),
    *,
    pairs: Pairs | None = None,
) -> Comparison:
    """Compare a replay with the log of its run.

    Args:
        log: The log.
        run: The replay, which must have at least as many steps as the log.
        doubts: The sentences that `doubts` returned.
        pairs: The pairs of the replay, which give the rows and texts of the pairs.

    Raises:
        ValueError: If the log has no log-ratios or no steps, or is longer than the replay.
    """
    deviation = run.deviation(log)
    points = np.stack([log.u_chosen, log.u_rejected], axis=1)
    seen = windows(log.step, log.time, points)
    noise = np.full_like(deviation, np.nan)
    if len(seen):
        index = np.searchsorted(seen.first_step, log.step, side="right") - 1
        noise = np.sqrt(np.diagonal(seen.scatter, axis1=1, axis2=2))[np.maximum(index, 0)]
    return Comparison(log, run, list(doubts), deviation, noise, pairs)


def largest_known(values: Float[np.ndarray, "..."]) -> float:
    """The largest absolute value, NaN ignored; NaN if all values are NaN."""
    known = np.abs(values[np.isfinite(values)])
    return float(known.max()) if known.size else float("nan")


def _told(step: int, u: Float[np.ndarray, "n 2"]) -> dict[str, Any]:
    margin = u[:, 0] - u[:, 1]
    return {
        "step": step,
        "u_chosen": float(u[:, 0].mean()),
        "u_rejected": float(u[:, 1].mean()),
        "chosen_fell": float(np.mean(u[:, 0] < 0)),
        "rejected_fell": float(np.mean(u[:, 1] < 0)),
        "margin_positive": float(np.mean(margin > 0)),
        "u_chosen_quantiles": np.quantile(u[:, 0], QUANTILES).tolist(),
        "u_rejected_quantiles": np.quantile(u[:, 1], QUANTILES).tolist(),
        "margin_quantiles": np.quantile(margin, QUANTILES).tolist(),
    }
