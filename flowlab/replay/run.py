"""A training run again, step by step, from its model, its data and the order of its samples.

n: pairs; t: tokens of the longest sequence; k: steps.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from jaxtyping import ArrayLike, Float, Int, PyTree

from flowlab.descent import descend
from flowlab.descent.batches import checked_batches
from flowlab.flow import preference_flow
from flowlab.logs import TrainingLog
from flowlab.losses import AbstractLoss
from flowlab.policies import Policy
from flowlab.policies.language import Apply, LanguageModel, TokenPairs
from flowlab.until import Outcome

if TYPE_CHECKING:
    import optax

__all__ = ["Replay", "replay", "replayed"]


@dataclass(frozen=True, eq=False, repr=False)
class Replay:
    """A replayed run, in NumPy arrays: means over the pairs of each step, before the step.

    Attributes:
        u_chosen: Log-ratio u_w of the chosen response, nats, shape (k,).
        u_rejected: Log-ratio u_l of the rejected response.
        logp_chosen: Summed log-probability of the chosen response, nats.
        logp_rejected: Summed log-probability of the rejected response.
        loss: The loss.
        parameters: The parameters after the last step.
        outcome: `reached` if all steps were taken; `non_finite` if it broke off.
        kept: Numbers of the steps after which all pairs were evaluated, the start (0) first; may be
            empty.
        u: Log-ratios (u_w, u_l) of all pairs there, nats, shape (kept, n, 2).
    """

    u_chosen: Float[np.ndarray, " k"]
    u_rejected: Float[np.ndarray, " k"]
    logp_chosen: Float[np.ndarray, " k"]
    logp_rejected: Float[np.ndarray, " k"]
    loss: Float[np.ndarray, " k"]
    parameters: PyTree[Float[np.ndarray, "..."]]
    outcome: Outcome = Outcome.reached
    kept: Int[np.ndarray, " kept"] = field(default_factory=lambda: np.zeros(0, int))
    u: Float[np.ndarray, "kept n 2"] = field(default_factory=lambda: np.zeros((0, 0, 2)))

    def deviation(self, log: TrainingLog) -> Float[np.ndarray, "row 2"]:
        """The log-ratios (u_w, u_l) of the replay less those of a log, nats, for each of its rows.

        A row that covers several steps is compared with their mean.

        Raises:
            ValueError: If the log has no log-ratios or no steps, or is longer than the replay.
        """
        if log.reference_free or not log.numbered or not log.step.size:
            raise ValueError(
                "Argument `log` must have steps and log-ratios, but is of a loss without a "
                "reference, or has no steps or rows."
            )
        ends = log.step.astype(int)
        if ends[-1] > self.loss.size:
            raise ValueError(
                f"Argument `log` must have at most the {self.loss.size} steps of the replay, but "
                f"has {ends[-1]}."
            )
        begins = ends - np.diff(ends, prepend=max(0, 2 * ends[0] - ends[min(1, ends.size - 1)]))
        both = np.stack([self.u_chosen, self.u_rejected], axis=1)
        sums = np.concatenate([np.zeros((1, 2)), np.cumsum(both, axis=0)])
        means = (sums[ends] - sums[begins]) / (ends - begins)[:, None]
        return means - np.stack([log.u_chosen, log.u_rejected], axis=1)

    def __repr__(self) -> str:
        """The end of the run, on one line."""
        end = f"({self.u_chosen[-1]:.6g}, {self.u_rejected[-1]:.6g})"
        return f"Replay({self.loss.size} steps, (u_w, u_l) to {end} nats)"


def replay(
    apply: Apply,
    parameters: PyTree[Float[ArrayLike, "..."]],
    pairs: TokenPairs,
    loss: AbstractLoss,
    optimiser: "optax.GradientTransformation",
    order: Sequence[npt.ArrayLike],
    *,
    chunk: int | None = None,
    reference: PyTree[Float[ArrayLike, "..."]] | None = None,
    keep_every: int | None = None,
    progress: bool | None = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Replay:
    """Replay a run of preference training, by `descent.descend`.

    The loss of a step is the mean over its pairs, in the order given; there is no dropout.

    Args:
        apply: From parameters and tokens, shape (s, t), to logits, shape (s, t, v), such as
            `Model.apply`.
        parameters: The parameters before the run, such as `Model.parameters`. Their dtype is the
            dtype of the work.
        pairs: The data, such as those of `data.preferences`.
        loss: The loss that was trained, such as `DPO(0.1)`.
        optimiser: An optimiser of optax, such as `descent.hf_optimiser(1e-6, len(order))`.
        order: For each step, indices of pairs, such as those of `descent.hf_order`.
        chunk: Number of sequences that are computed at a time, to bound the memory; None for all of
            a step.
        reference: The parameters of the reference, if it is not the start.
        keep_every: Number of steps between two evaluations of all pairs; the last step is included.
            None for no such evaluations.
        progress: Whether to show a progress bar; None where it takes long, on a terminal.
        checkpoint: A file from which the same call resumes, as for `descent.descend`.

    Raises:
        ValueError: If the order is empty or names a pair that does not exist, or a log-probability
            is not finite at the start (as with the tokenizer of another model); or as for
            `Policy.from_model` and `descent.descend`.

    Accuracy: that of the precision of the parameters. A logged float32 run of 480 steps of SGD is
        reproduced within 3e-6 nats at every step.
    """
    steps = checked_batches("order", order, len(pairs.tokens))
    block = 2 * max(map(len, steps)) if chunk is None else chunk
    policy = Policy.from_model(apply, parameters, pairs, chunk=block, reference=reference)
    looks = {"keep_every": keep_every, "progress": progress, "checkpoint": checkpoint}
    return replayed(policy, loss, optimiser, steps, **looks)


def replayed(
    policy: LanguageModel,
    loss: AbstractLoss,
    optimiser: "optax.GradientTransformation",
    order: Sequence[npt.ArrayLike],
    *,
    keep_every: int | None = None,
    progress: bool | None = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Replay:
    """Replay a run as `replay` does, for an existing policy.

    Args:
        policy: The model on its data; the run begins at its `start`.
        loss: As there.
        optimiser: As there.
        order: As there.
        keep_every: As there.
        progress: As there.
        checkpoint: As there.

    Raises:
        ValueError: As for `descent.descend`.
    """
    run = descend(
        preference_flow(loss, policy),
        policy.start,
        optimiser,
        batches=order,
        keep_every=len(order) if keep_every is None else keep_every,
        watch=() if keep_every is None else ("u",),
        keep_states=False,
        progress=progress,
        checkpoint=checkpoint,
    )
    return Replay(
        u_chosen=run.step_u[:, 0].astype(float),
        u_rejected=run.step_u[:, 1].astype(float),
        logp_chosen=run.step_log_probs[:, 0].astype(float),
        logp_rejected=run.step_log_probs[:, 1].astype(float),
        loss=run.step_loss.astype(float),
        parameters=run.end,
        outcome=run.outcome,
        kept=run.steps[: len(run.u)],
        u=run.u,
    )
