"""Checks that settings agree with a log, for use before a replay.

Letters in shapes: n pairs, s steps, k rows of the log.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from flowlab.logs import TrainingLog
from flowlab.logs.checks import beta_doubt
from flowlab.policies import LanguageModel

__all__ = ["doubts"]

_SAME_RATE = 1e-6  # relative: a log holds its rates in full
# Tolerance for mean log-probabilities of batches, relative and in nats. They agree to 1e-6 in
# float32 and to about 1e-3 with a run in bfloat16; other pairs or models differ by far more.
_SAME_LOG_PROB = 5e-3


def doubts(
    log: TrainingLog,
    policy: LanguageModel,
    order: Sequence[npt.ArrayLike],
    rates: Float[np.ndarray, " s"] | None = None,
    *,
    per_device: int | None = None,
) -> list[str]:
    """Sentences on settings of a replay that contradict the log.

    As far as the log has them, these are compared: the number of steps, the batch size, the steps
    per epoch, the tokens of each step, the learning rates, the first log-probabilities, and β with
    the rewards. Together they reveal another order, seed or batch size, other data, another model,
    and another β.

    Args:
        log: The log.
        policy: The model on its data, before the run.
        order: For each step, the indices of its pairs.
        rates: The learning rate of each step; None if they are taken from the log.
        per_device: The batch size of one process, if it is known.

    Returns:
        The sentences; empty if all settings agree with the log.

    Raises:
        ValueError: If the log has no log-ratios or no steps.
    """
    check_log(log)
    batches, count = [np.asarray(taken) for taken in order], len(np.asarray(policy.tokens))
    found = [*_of_steps(log, count, batches, per_device), *_of_rates(log, rates, len(batches))]
    found += [*_of_tokens(log, policy, batches)]
    unfit = beta_doubt(log)
    return [*found, *_of_log_probs(log, policy, batches[0]), *([] if unfit is None else [unfit])]


def check_log(log: TrainingLog) -> None:
    """Refuse a log without steps or log-ratios, with which no run can be compared."""
    if log.reference_free or not log.numbered or not log.step.size:
        raise ValueError(
            "Argument `log` must have steps and log-ratios, but has no rows or no steps, or "
            "its loss has no reference."
        )


def _of_steps(
    log: TrainingLog, count: int, batches: list[np.ndarray], per_device: int | None
) -> Iterator[str]:
    last = int(log.step[-1])
    if last != len(batches):
        yield f"The log has {last} steps, and the order {len(batches)}."
    told = log.settings.get("train_batch_size")
    if told and per_device is not None and told != per_device:
        yield f"The log names a batch size of {told:g}, and not {per_device}."
    epochs, steps = (log.settings.get(key) for key in ("epoch", "global_step"))
    taken = np.cumsum([len(batch) for batch in batches])
    if not epochs or not steps or epochs < 1 or taken[-1] < count:
        return  # no epoch is complete
    here = int(np.searchsorted(taken, count)) + 1
    if abs(here - steps / epochs) >= 1:  # the last of a run may be cut short
        yield (
            f"The log has {steps / epochs:.4g} steps in an epoch, and the order goes through its "
            f"{count} pairs in {here}."
        )


def _of_rates(log: TrainingLog, rates: Float[np.ndarray, " s"] | None, steps: int) -> Iterator[str]:
    told = log.step_rates
    if rates is None or told is None:
        return
    count = min(len(told), len(rates), steps)
    apart = np.abs(rates[:count] - told[:count]) > _SAME_RATE * np.max(told)
    if np.any(apart):
        first = int(np.argmax(apart))
        yield (
            f"The learning rate of step {first + 1} is {told[first]:g} in the log, and not "
            f"{rates[first]:g}; {apart.sum()} of {count} steps differ."
        )


def _of_tokens(log: TrainingLog, policy: LanguageModel, batches: list[np.ndarray]) -> Iterator[str]:
    told, ends = log.tokens, log.step.astype(int)
    known = np.isfinite(told) & (ends <= len(batches))
    if not np.any(known):
        return
    mask = np.asarray(policy.mask)
    last = mask.shape[-1] - np.argmax(mask[..., ::-1], axis=-1)  # tokens up to the response's end
    of_pairs = last.sum(axis=1)
    counted = np.cumsum([of_pairs[taken].sum() for taken in batches])[ends[known] - 1]
    here, there = np.diff(counted, prepend=0), np.diff(told[known], prepend=0)
    if ends[known][0] != 1:  # a log that begins late counts what went before
        here, there = here[1:], there[1:]
    apart = here != there
    if np.any(apart):
        first = int(np.argmax(apart))
        step = ends[known][-len(here) :][first]
        yield (
            f"The batch of step {step} has {there[first]:g} tokens in the log, and "
            f"{here[first]:g} in this order; {apart.sum()} of {apart.size} rows differ. The order, "
            "its seed, the batch size or the data are different."
        )


def _of_log_probs(log: TrainingLog, policy: LanguageModel, batch: np.ndarray) -> Iterator[str]:
    """Sentences on the first log-probabilities, if the first row covers only the first step."""
    ends = policy.reference_state, policy.start
    alike = zip(*map(jax.tree.leaves, ends), strict=False)
    if log.step[0] != 1 or ends[0] is None or not all(one is other for one, other in alike):
        return
    here = np.asarray(policy.ref_log_probs)[batch].mean(axis=0)
    for side, mine, told in zip(
        ("chosen", "rejected"), here, (log.logp_chosen[0], log.logp_rejected[0]), strict=True
    ):
        if np.isfinite(told) and abs(mine - told) > _SAME_LOG_PROB * max(1.0, abs(told)):
            yield (
                f"The first {side} log-probabilities are {told:.6g} nats in the log, and "
                f"{mine:.6g} here: the model, the data or the order are different."
            )
