"""Windows of rows: their means, and the joint noise of the means of both responses.

A row is a mean over a batch. Its (u_w, u_l) therefore scatters about the run, and the scatter of
u_w and u_l is correlated. The scatter is estimated from second differences of neighbouring rows,
which are zero for a linear drift and small for a slowly bending one.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

__all__ = ["Change", "Windows", "student", "windows"]

LONGEST = 20  # rows of a window, unless that makes more than MOST windows
FEWEST = 5  # windows, for runs with fewer than 100 rows
MOST = 24
NOISE_FROM = 8  # rows: with fewer, six second differences or less, drift and noise look alike
OWN_NOISE_FROM = 40  # rows: two neighbourhoods of 20, the first of them the run's begin
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Windows:
    """Means over windows of successive rows.

    w: windows, k: quantities of a row.

    Attributes:
        first_step: The step of the first row of each window.
        last_step: The step of the last row of each window.
        time: Mean flow time of the rows.
        count: Number of rows in each window.
        mean: Mean of each quantity in each window.
        scatter: Covariance of the noise of a single row, near each window; NaN if there are too few
            rows to distinguish noise from drift.
        freedom: Degrees of freedom of `scatter`.
        pooled: True if all windows share one `scatter`, estimated from the whole run.
    """

    first_step: Float[np.ndarray, " w"]
    last_step: Float[np.ndarray, " w"]
    time: Float[np.ndarray, " w"]
    count: Int[np.ndarray, " w"]
    mean: Float[np.ndarray, "w k"]
    scatter: Float[np.ndarray, "w k k"]
    freedom: Float[np.ndarray, " w"]
    pooled: bool

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> Float[np.ndarray, "w k k"]:
        """The covariance of the noise of each window's mean."""
        return self.scatter / self.count[:, None, None]

    def change(self, begin: int = 0, end: int = -1) -> "Change":
        """The difference of the means of two windows, later less earlier."""
        begin, end = (index % len(self) for index in (begin, end))
        return Change(
            self.mean[end] - self.mean[begin],
            (self.covariance[begin], self.covariance[end]),
            (float(self.freedom[begin]), float(self.freedom[end])),
            self.pooled,
        )


@dataclass(frozen=True)
class Change:
    """The change of the mean from one window to another, with the noise of both means.

    Attributes:
        value: The change of each quantity.
        covariances: Covariances of the noise of the two means.
        freedoms: Degrees of freedom of the two covariances; equal if the covariances are pooled.
        pooled: True if both covariances come from one estimate.
    """

    value: Float[np.ndarray, " k"]
    covariances: tuple[Float[np.ndarray, "k k"], Float[np.ndarray, "k k"]]
    freedoms: tuple[float, float]
    pooled: bool

    @property
    def covariance(self) -> Float[np.ndarray, "k k"]:
        """Covariance of the noise of the difference."""
        return self.covariances[0] + self.covariances[1]

    def freedom(self, weights: Float[np.ndarray, " k"]) -> float:
        """Degrees of freedom of the noise of a weighted sum (Welch and Satterthwaite)."""
        parts = [float(weights @ one @ weights) for one in self.covariances]
        if self.pooled or not sum(parts) > 0:
            return self.freedoms[0]
        shares = [part**2 / free for part, free in zip(parts, self.freedoms, strict=True)]
        return sum(parts) ** 2 / sum(shares)

    def error(self, weights: Float[np.ndarray, " k"], confidence: float = CONFIDENCE) -> float:
        """Half the width of the confidence interval of a weighted sum; NaN without known noise.

        Args:
            weights: The weight of each quantity in the sum.
            confidence: The probability with which the interval contains the true value.
        """
        deviation = np.sqrt(float(weights @ self.covariance @ weights))
        return float(student(self.freedom(weights), confidence) * deviation)


def windows(
    step: Float[np.ndarray, " row"],
    time: Float[np.ndarray, " row"],
    values: Float[np.ndarray, "row k"],
) -> Windows:
    """At least five windows of up to 20 rows each, made of the rows that have all values.

    Args:
        step: The step of each row.
        time: The flow time of each row.
        values: The quantities of each row; NaN for a missing value.
    """
    whole = np.all(np.isfinite(values), axis=1)
    step, time, values = step[whole], time[whole], values[whole]
    rows = len(values)
    size = max(1, min(LONGEST, rows // FEWEST), -(-rows // MOST))
    parts = np.array_split(np.arange(rows), max(1, rows // size)) if rows else []
    pooled = rows < OWN_NOISE_FROM
    noise = [_noise(values[_near(part, rows, pooled)]) for part in parts]
    columns = values.shape[1]
    return Windows(
        first_step=np.array([step[part[0]] for part in parts]),
        last_step=np.array([step[part[-1]] for part in parts]),
        time=np.array([time[part].mean() for part in parts]),
        count=np.array([len(part) for part in parts], dtype=int),
        mean=np.array([values[part].mean(axis=0) for part in parts]).reshape(-1, columns),
        scatter=np.array([one[0] for one in noise]).reshape(-1, columns, columns),
        freedom=np.array([one[1] for one in noise]),
        pooled=pooled,
    )


def student(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The two-sided quantile of Student's t-distribution."""
    return float(stdtrit(freedom, (1 + confidence) / 2))


def _near(part: Int[np.ndarray, " n"], rows: int, pooled: bool) -> slice:
    """The rows that estimate the scatter of a window: its own, 20 rows around it, or all rows."""
    if pooled:
        return slice(0, rows)
    missing = max(0, OWN_NOISE_FROM // 2 - len(part))
    low = min(max(0, int(part[0]) - missing // 2), rows - OWN_NOISE_FROM // 2)
    return slice(low, max(int(part[-1]) + 1, low + OWN_NOISE_FROM // 2))


def _noise(values: Float[np.ndarray, "n k"]) -> tuple[Float[np.ndarray, "k k"], float]:
    """The covariance of the noise of rows, and its degrees of freedom, from second differences.

    A second difference has 1 + 4 + 1 times the variance of a row. Successive second differences
    have the correlations −4/6 and 1/6, so that m of them have only m² / (m + 2(m − 1)(4/6)² + 2(m −
    2)(1/6)²) degrees of freedom.
    """
    if len(values) < NOISE_FROM:
        return np.full((values.shape[1],) * 2, np.nan), np.nan
    second = np.diff(values, 2, axis=0)
    m = len(second)
    freedom = m**2 / (m + 2 * (m - 1) * (4 / 6) ** 2 + 2 * (m - 2) * (1 / 6) ** 2)
    return second.T @ second / (6 * m), freedom
