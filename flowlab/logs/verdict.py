"""Verdicts on a run: its chosen response fell, came back, or not; the run diverged."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from flowlab.logs.windows import CONFIDENCE, Windows

__all__ = ["Displacement", "displacement", "has_diverged"]

_FLOAT32 = np.finfo(np.float32)
# Nats: a probability changed by a factor below the smallest normal number of single precision.
_FAR = -float(np.log(_FLOAT32.smallest_normal))
# Of β·Δu: the logistic slope there is below the rounding of its value at the reference, so that no
# loss of this scale asks for it. With a small β many nats alone are no sign: margins scale as 1/β.
_UNASKED = -float(np.log(_FLOAT32.eps))


@dataclass(frozen=True)
class Displacement:
    """Likelihood displacement: the log-probability of the chosen response falls.

    Attributes:
        falls: Whether the last window lies below the first by more than their noise; None if the
            noise is not known.
        transient: Whether a window did so, but not the last; None if the noise is not known.
        from_step: The step from which on every window lies below the first (`falls`), or that of
            the first window that does (`transient`); None if neither is the case.
        depth: The fall of the lowest window below the first, nats; None if neither is the case.
        error: Half the width of the interval of `depth`.
    """

    falls: bool | None = None
    transient: bool | None = None
    from_step: float | None = None
    depth: float | None = None
    error: float | None = None


def displacement(windows: Windows) -> Displacement:
    """The verdict on the first quantity of windows, the chosen response.

    The last window is compared with the first at 95 % confidence, and all others together at 95 %
    too (Bonferroni), so that a run that only scatters is rarely called transient.

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
    # Of a fall, the first window from which on all are below; of a dip, the first that is.
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
    """True if a log-probability changed by more than training with a given β plausibly does.

    Args:
        change: The change, nats.
        beta: β.
    """
    return abs(change) > _FAR and beta * abs(change) > _UNASKED


def _below(windows: Windows, confidence: float) -> Bool[np.ndarray, " w"]:
    """Mask of the windows that lie below the first by more than their noise."""
    changes = [windows.change(0, index) for index in range(len(windows))]
    error = [change.error(_chosen(windows), confidence) for change in changes]
    return np.array([c.value[0] < -e for c, e in zip(changes, error, strict=True)])


def _chosen(windows: Windows) -> np.ndarray:
    return np.eye(windows.mean.shape[1])[0]
