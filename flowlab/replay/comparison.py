"""A replay beside the log of its run: how far they are apart, and what the log does not show.

k: rows of the log; n: pairs.
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
# Root mean square, in standard errors of a row: a run in another order is about √2 away, for it has
# noise of its own, and a replay in float32 a few hundredths.
_SAME_RUN = 0.25


@dataclass(frozen=True, eq=False)
class Comparison:
    """A replay beside a log, NumPy arrays; made by `compare`.

    Attributes:
        log: The log.
        run: The replay.
        doubts: Sentences on settings that do not fit the log.
        deviation: (u_w, u_l) of the replay less those of the log, nats, shape (k, 2).
        noise: Standard error of (u_w, u_l) of each row, from the scatter of rows about the run,
            nats, shape (k, 2); NaN where there are too few rows to know it.
        pairs: The pairs that the replay was of; None where they are not known.
    """

    log: TrainingLog
    run: Replay
    doubts: list[str]
    deviation: Float[np.ndarray, "k 2"]
    noise: Float[np.ndarray, "k 2"]
    pairs: Pairs | None = None

    @property
    def rows(self) -> Int[np.ndarray, " n"]:
        """The row of the data that each pair is from, counted from 0."""
        return np.arange(self.run.u.shape[1]) if self.pairs is None else self.pairs.rows

    @property
    def largest(self) -> float:
        """The largest deviation of the two log-ratios over all rows that have them, nats."""
        return largest_known(self.deviation)

    @property
    def largest_step(self) -> int:
        """The step of the row that is farthest from the log."""
        sizes = np.nan_to_num(np.abs(self.deviation), nan=-1.0)
        return int(self.log.step[np.argmax(sizes.max(axis=1))])

    @property
    def in_errors(self) -> Float[np.ndarray, "k 2"]:
        """Deviations in standard errors of a row; NaN where these are not known, or 0."""
        known = np.where(self.noise > 0, self.noise, np.nan)
        return self.deviation / known

    @property
    def typical(self) -> float:
        """Root mean square deviation in standard errors of a row; NaN where none is known."""
        square = self.in_errors**2
        known = square[np.isfinite(square)]
        return float(np.sqrt(np.mean(known))) if known.size else float("nan")

    @property
    def is_replay(self) -> bool:
        """True if this is the run of the log again: nothing deviates more than it should.

        True where all steps were taken, no setting contradicts the log, and what is left is far
        within the noise of a batch.
        """
        within = not self.typical > _SAME_RUN
        return self.run.outcome is Outcome.reached and not self.doubts and within

    def of_pairs(self) -> list[dict[str, Any]]:
        """Means over all pairs at each kept step, fractions that fell, quantiles.

        Raises:
            ValueError: If the replay looked at no pairs.
        """
        if not self.run.u.size:
            raise ValueError(
                "Argument `run` must have looked at all pairs, with keep_every=…, but did not."
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
    """A replay beside the log of its run.

    Args:
        log: The log.
        run: The replay, of at least as many steps.
        doubts: What `doubts` said of the settings.
        pairs: The pairs that the replay was of, which then are called by their rows and texts.

    Raises:
        ValueError: If the log has no log-ratios or tells no steps, or goes on for longer than the
            replay.
    """
    deviation = run.deviation(log)
    points = np.stack([log.u_chosen, log.u_rejected], axis=1)
    seen = windows(log.step, log.time, points)
    noise = np.full_like(deviation, np.nan)
    if len(seen):
        place = np.searchsorted(seen.first_step, log.step, side="right") - 1
        noise = np.sqrt(np.diagonal(seen.scatter, axis1=1, axis2=2))[np.maximum(place, 0)]
    return Comparison(log, run, list(doubts), deviation, noise, pairs)


def largest_known(values: Float[np.ndarray, "..."]) -> float:
    """The largest size of those numbers that are known; NaN where none is."""
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
