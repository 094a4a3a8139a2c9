"""Verdicts on a run: the chosen response fell, fell and came back, or neither; the run diverged."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from flowlab.logs.windows import CONFIDENCE, Windows

__all__ = ["Displacement", "displacement", "has_diverged"]

_FLOAT32 = np.finfo(np.float32)
# In nats: the probability changed by a factor smaller than any normal number in single precision.
_FAR = -float(np.log(_FLOAT32.smallest_normal))
# In β·Δu: the logistic slope is then below the rounding error of its value at the reference, so
# that no loss of this scale causes the change. A change of many nats alone shows nothing if β is
# small, since margins scale as 1/β.
_UNASKED = -float(np.log(_FLOAT32.eps))


@dataclass(frozen=True)
class Displacement:
    """The verdict on likelihood displacement: does the chosen log-probability fall?

    Attributes:
        falls: True if the last window is lower than the first by more than their noise; None if the
            noise is not known.
        transient: True if another window is lower than the first by more than their noise, but the
            last is not; None if the noise is not known.
        from_step: If `falls`, the first step of the first window from which on all windows are
            lower than the first window. If `transient`, the first step of the first window that is.
            Else None.
        depth: The difference, in nats, between the first window and the lowest; None if the
            response does not fall.
        error: Half the width of the interval of `depth`.
    """

    falls: bool | None = None
    transient: bool | None = None
    from_step: float | None = None
    depth: float | None = None
    error: float | None = None


def displacement(windows: Windows) -> Displacement:
    """The verdict on the first quantity of windows, which is the chosen response.

    The last window is compared with the first one at 95 % confidence. All other windows together
    are compared with the first one at 95 % confidence too (Bonferroni), so that noise alone is
    rarely called transient.

    Args:
        windows: Windows of a run.
    """
    if len(windows) < 2 or not np.all(np.isfinite(windows.freedom)):
        return Displacement()
    below = _below(windows, CONFIDENCE)
    falls = bool(below[-1])
    between = _below(windows, 1 - (1 - CONFIDENCE) / max(1, len(windows) - 2))
    transient = not falls and bool(np.any(between[1:-1]))
    if not (falls or transient):
        return Displacement(falls, transient)
    # A fall begins with the first window from which on all are below; a dip with the first below.
    since = len(windows) - int(np.argmin(np.append(below[::-1], False)))
    begin = since if falls else int(np.argmax(between))
    lowest = int(np.argmin(windows.mean[:, 0]))
    change = windows.change(0, lowest)
    return Displacement(
        falls,
        transient,
        float(windows.first_step[begin]),
        float(-change.value[0]),
        change.error(_chosen(windows)),
    )


def has_diverged(change: float, beta: float) -> bool:
    """True if a log-probability changed by more than training at a given β plausibly changes it.

    Args:
        change: The change, nats.
        beta: β.
    """
    return abs(change) > _FAR and beta * abs(change) > _UNASKED


def _below(windows: Windows, confidence: float) -> Bool[np.ndarray, " w"]:
    """A mask of the windows that are lower than the first window by more than their noise."""
    changes = [windows.change(0, index) for index in range(len(windows))]
    error = [change.error(_chosen(windows), confidence) for change in changes]
    return np.array([c.value[0] < -e for c, e in zip(changes, error, strict=True)])


def _chosen(windows: Windows) -> np.ndarray:
    return np.eye(windows.mean.shape[1])[0]
