"""Checks whether a given β and loss agree with the numbers in a log, and the β that does."""

import numpy as np

from flowlab.logs.series import TrainingLog
from flowlab.logs.slopes import LENGTHS, UNKNOWN, loss_values, without_reference
from flowlab.logs.windows import windows
from flowlab.losses import AbstractLoss

__all__ = ["beta_doubt", "doubts", "fitted", "reference_shown"]

_SURE = 0.999  # of an interval that leaves a β out: a doubt is to be rare where all is well
_CLOSE = 0.02  # relative: a difference of β too small to matter
_LOSS_OFF = 0.05  # relative: losses are logged with four digits, and summed in half precision
_AT_REFERENCE = 1e-6  # nats: the policy is the reference itself


def fitted(log: TrainingLog) -> tuple[TrainingLog, str | None]:
    """The log with the β that its rows imply, and a sentence about this; or the log unchanged.

    The log is unchanged, and the sentence is None, if the given β agrees with the rows. β follows
    from rewards and log-probabilities: a reward without a reference is β·log π, and the change of
    any reward is β·Δlog π.

    Args:
        log: A log.

    Accuracy: with a reference, β has an error from the noise of batches, usually a few per cent.
    """
    found = _shown_beta(log)
    if found is None:
        return log, None
    beta, sentence = found
    return log.with_beta(beta), (
        f"{sentence} The following is computed with β = {beta:g}, not with the given {log.beta:g}."
    )


def beta_doubt(log: TrainingLog) -> str | None:
    """A sentence on the β that the rows of a log show, if it is not the log's.

    Args:
        log: A log.

    Accuracy: that of `fitted`.
    """
    found = _shown_beta(log)
    return None if found is None else found[1]


def doubts(log: TrainingLog, loss: AbstractLoss | None) -> list[str]:
    """Sentences on contradictions between a log and its loss.

    If the first row describes the reference policy, the loss of that row can be computed, and for
    losses such as IPO it depends on β. DPO is a convex function of the margin, so that its mean
    over a batch is at least its value at the mean margin.

    Args:
        log: A log.
        loss: The loss that was given; None if it is not known.
    """
    if loss is None or log.reference_free or without_reference(loss):
        return []
    found = _first_loss(log, loss), _mean_loss(log, loss)
    return [sentence for sentence in found if sentence is not None]


def reference_shown(log: TrainingLog) -> str | None:
    """Evidence in a log that its rewards are not β·log π, as a clause; None without evidence.

    Args:
        log: A log.
    """
    if log.reference_free:
        return None
    ratios = np.stack([log.u_chosen, log.u_rejected], axis=1)
    above = np.flatnonzero(np.any(ratios > 0, axis=1) | np.all(ratios == 0, axis=1))
    if above.size:
        return f"at step {log.step[above[0]]:g} they are not below 0, as β·log π is"
    told = np.stack([log.logp_chosen, log.logp_rejected], axis=1)
    both = np.all(np.isfinite(ratios) & np.isfinite(told), axis=1)
    # Were they one multiple of the log-probabilities, the log would be one without a reference.
    return "they are not a multiple of the log-probabilities" if np.sum(both) >= 2 else None


def _shown_beta(log: TrainingLog) -> tuple[float, str] | None:
    return _beta_without_reference(log) if log.reference_free else _beta_of_sides(log)


def _beta_without_reference(log: TrainingLog) -> tuple[float, str] | None:
    ratio = log.reward_per_nat
    if ratio is None or abs(ratio / log.beta - 1) <= _CLOSE:
        return None
    beta = _rounded(ratio)
    return (
        beta,
        f"The rewards in the file are {beta:g} times the log-probabilities, so β is {beta:g}.",
    )


def _beta_of_sides(log: TrainingLog) -> tuple[float, str] | None:
    """The β from the response that moved more, and a sentence about it; None if β agrees."""
    found: list[tuple[float, tuple[float, str] | None]] = []
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
        beta = _rounded(told * log.beta)
        sentence = (
            f"The {name} log-probability in the file moved by {change.value[1]:.3g} nats, its "
            f"reward by {change.value[0] * log.beta:.3g}: that fits β = {beta:g} better than "
            f"{log.beta:g}."
        )
        found.append((abs(change.value[1]), (beta, sentence) if wrong else None))
    return max(found, key=lambda one: one[0])[1] if found else None


def _rounded(beta: float) -> float:
    """The β rounded to three digits, so that the β in messages is the one that is used."""
    return float(f"{beta:.3g}")


def _first_loss(log: TrainingLog, loss: AbstractLoss) -> str | None:
    points = np.stack([log.u_chosen, log.u_rejected], axis=1)
    at = np.flatnonzero(np.all(np.abs(points) <= _AT_REFERENCE, axis=1) & np.isfinite(log.loss))
    if not at.size or at[0] != 0:
        return None
    wanted, got = _value(loss, 0.0), float(log.loss[0])
    if wanted is None or abs(got - wanted) <= _LOSS_OFF * max(abs(wanted), abs(got)):
        return None
    return (
        f"In the first row, where the policy is the reference, the loss is {got:.4g}, but this "
        f"loss would be {wanted:.4g}: the run had another loss or β, or a sum of losses."
    )


def _mean_loss(log: TrainingLog, loss: AbstractLoss) -> str | None:
    """A sentence if the logged mean of DPO is below DPO at the mean margin, which cannot be."""
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
        f"At step {log.step[row]:g} the loss is {log.loss[row]:.4g}, but the mean of DPO cannot "
        f"be below its value at the mean margin of that row, {least[row]:.4g}: the run had another "
        "loss."
    )


def _value(loss: AbstractLoss, log_ratio: float) -> float | None:
    """The loss if both log-ratios have a given value; None if it depends on lengths too."""
    at = np.full((1, 2), log_ratio)
    values = [float(loss_values(loss, at, UNKNOWN[0], length)[0]) for length in LENGTHS]
    return values[0] if np.isclose(values[0], values[1]) else None
