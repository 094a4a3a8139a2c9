"""Whether the β and the loss that somebody names fit the numbers in a log."""

import numpy as np

from flowlab.logs.series import TrainingLog
from flowlab.logs.slopes import LENGTHS, UNKNOWN, loss_values, without_reference
from flowlab.logs.windows import windows
from flowlab.losses import AbstractLoss

__all__ = ["doubts"]

_SURE = 0.999  # of an interval that leaves a β out: a doubt is to be rare where all is well
_CLOSE = 0.02  # relative: a difference of β too small to matter
_LOSS_OFF = 0.05  # relative: losses are logged with four digits, and summed in half precision
_AT_REFERENCE = 1e-6  # nats: the policy is the reference itself


def doubts(log: TrainingLog, loss: AbstractLoss | None) -> list[str]:
    """What does not fit, a sentence each.

    Rewards against log-probabilities give β: they move by β·Δlog π. The loss of the first row,
    where the policy is the reference, gives the β of losses such as IPO. A loss of the margin that
    is convex cannot be below its value at the mean margin.

    Args:
        log: A log.
        loss: The loss as it was named; None where it is not known.
    """
    found = [_beta_without_reference(log)] if log.reference_free else _betas_of_sides(log)
    if loss is not None and not log.reference_free and not without_reference(loss):
        found.append(_first_loss(log, loss))
        found.append(_mean_loss(log, loss))
    return [sentence for sentence in found if sentence is not None]


def _beta_without_reference(log: TrainingLog) -> str | None:
    ratio = log.reward_per_nat
    if ratio is None or abs(ratio / log.beta - 1) <= _CLOSE:
        return None
    return (
        f"The rewards in the file are {ratio:.3g} times the log-probabilities, so β was "
        f"{ratio:.3g}, not {log.beta:g}: read it again with --beta {ratio:.3g}."
    )


def _betas_of_sides(log: TrainingLog) -> list[str | None]:
    """The side that moved more, in its own rewards and log-probabilities."""
    found: list[tuple[float, str | None]] = []
    sides = (
        ("chosen", log.u_chosen, log.logp_chosen),
        ("rejected", log.u_rejected, log.logp_rejected),
    )
    for name, ratio, log_probability in sides:
        both = windows(log.step, log.time, np.stack([ratio, log_probability], axis=1))
        if len(both) < 2:
            continue
        change = both.change()
        # Where β is right, u and log π move alike; the batches of the two windows differ.
        error = change.error(np.array([1.0, -1.0]), _SURE)
        off = change.value[0] - change.value[1]
        told = change.value[0] / change.value[1] if change.value[1] else np.nan
        wrong = np.isfinite(error) and abs(off) > error and told > 0 and abs(told - 1) > _CLOSE
        sentence = (
            f"The {name} log-probability in the file moved by {change.value[1]:.3g} nats, its "
            f"reward by {change.value[0] * log.beta:.3g}: that fits β = {told * log.beta:.3g} "
            f"better than {log.beta:g}."
        )
        found.append((abs(change.value[1]), sentence if wrong else None))
    return [max(found, key=lambda one: one[0])[1]] if found else []


def _first_loss(log: TrainingLog, loss: AbstractLoss) -> str | None:
    points = np.stack([log.u_chosen, log.u_rejected], axis=1)
    at = np.flatnonzero(np.all(np.abs(points) <= _AT_REFERENCE, axis=1) & np.isfinite(log.loss))
    if not at.size or at[0] != 0:
        return None
    wanted, got = _value(loss, 0.0), float(log.loss[0])
    if wanted is None or abs(got - wanted) <= _LOSS_OFF * max(abs(wanted), abs(got)):
        return None
    return (
        f"The first row has a loss of {got:.4g} where the policy is the reference, but this loss "
        f"is {wanted:.4g} there: another loss or β was trained, or several were summed."
    )


def _mean_loss(log: TrainingLog, loss: AbstractLoss) -> str | None:
    """DPO's loss is convex in the margin, so its mean is not below its value at the mean."""
    if type(loss).__name__ != "DPO":
        return None
    with np.errstate(invalid="ignore"):  # rows of one side have no margin
        least = np.logaddexp(0, -log.beta * log.margin)
    known = np.isfinite(least) & np.isfinite(log.loss) & (least > _AT_REFERENCE)
    rounding = _LOSS_OFF * least + 1e-3
    below = known & (log.loss < least - rounding)
    if not np.any(below):
        return None
    row = int(np.flatnonzero(below)[0])
    return (
        f"At step {log.step[row]:g} the loss is {log.loss[row]:.4g}, less than the "
        f"{least[row]:.4g} that DPO has at the mean margin of that row, which cannot be: another "
        "loss was trained."
    )


def _value(loss: AbstractLoss, log_ratio: float) -> float | None:
    """The loss where both log-ratios are one number; None where it reads lengths or the like."""
    at = np.full((1, 2), log_ratio)
    values = [float(loss_values(loss, at, UNKNOWN[0], length)[0]) for length in LENGTHS]
    return values[0] if np.isclose(values[0], values[1]) else None
