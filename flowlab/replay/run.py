"""A training run carried out again, from its model, its data and the order of its samples.

Letters in shapes: n pairs, t tokens of the longest sequence, k steps.
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
from flowlab.replay.fit import check_log
from flowlab.until import Outcome

if TYPE_CHECKING:
    import optax

__all__ = ["Replay", "replay", "replayed"]


@dataclass(frozen=True, eq=False, repr=False)
class Replay:
    """A replayed run as NumPy arrays.

    Unless said otherwise, an array has one value per step: the mean over the pairs of the step,
    before the step is taken.

    Attributes:
        u_chosen: Log-ratio u_w of the chosen response, nats, shape (k,).
        u_rejected: Log-ratio u_l of the rejected response, nats, shape (k,).
        logp_chosen: Summed log-probability of the chosen response, nats, shape (k,).
        logp_rejected: Summed log-probability of the rejected response, nats, shape (k,).
        loss: The loss, shape (k,).
        parameters: The parameters after the last step.
        outcome: `reached` if all steps were taken; `non_finite` if the run stopped at a number that
            is not finite.
        kept: The steps after which all pairs were evaluated, beginning with the start (0); may be
            empty.
        u: Log-ratios (u_w, u_l) of all pairs at the kept steps, nats, shape (kept, n, 2).
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
        """The log-ratios (u_w, u_l) of the replay less those of a log in each of its rows, nats.

        Raises:
            ValueError: If the log has no log-ratios or no steps, or is longer than the replay.
        """
        check_log(log)
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
        """The end of the run on one line."""
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
    """Replay a run of preference training.

    The steps are those of `descent.descend`. The loss of a step is the mean over its pairs, in the
    given order; there is no dropout.

    Args:
        apply: Function from parameters and tokens, shape (s, t), to logits, shape (s, t, v), such
            as `Model.apply`.
        parameters: The parameters before the run, such as `Model.parameters`. All computations have
            their dtype.
        pairs: The data, such as the result of `data.preferences`.
        loss: The loss of the run, such as `DPO(0.1)`.
        optimiser: An optimiser of optax, such as `descent.hf_optimiser(1e-6, len(order))`.
        order: For each step, the indices of its pairs, such as the result of `descent.hf_order`.
        chunk: Number of sequences that are computed at a time, to limit the memory; None for all
            sequences of a step.
        reference: The parameters of the reference policy; None if the reference is the policy
            before the run.
        keep_every: Number of steps between two evaluations of all pairs; the end of the run is
            evaluated too. None for no evaluations.
        progress: Whether to show a progress bar; None to show it for long runs in a terminal.
        checkpoint: A file from which the same call resumes, as for `descent.descend`.

    Raises:
        ValueError: If the order is empty or has an index without a pair; if a log-probability is
            not finite at the start (the tokenizer may belong to another model); or for the reasons
            that `Policy.from_model` and `descent.descend` give.

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
    """Replay a run of preference training with an existing policy.

    Args:
        policy: The model on its data; the run begins at its `start`.
        loss: The loss of the run, as for `replay`.
        optimiser: An optimiser of optax, as for `replay`.
        order: For each step, the indices of its pairs, as for `replay`.
        keep_every: Number of steps between two evaluations of all pairs, as for `replay`.
        progress: Whether to show a progress bar, as for `replay`.
        checkpoint: A file from which the same call resumes, as for `descent.descend`.

    Raises:
        ValueError: For the reasons that `descent.descend` gives.
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
