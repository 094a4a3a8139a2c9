"""A training run again, step by step, from its model, its data and the order of its samples.

n: pairs; t: tokens of the longest sequence; k: steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, ArrayLike, Float, PyTree

from flowlab import _checks as checks
from flowlab.data import Pairs
from flowlab.descent.training import lenient
from flowlab.logs import TrainingLog
from flowlab.losses import AbstractLoss, Pair
from flowlab.policies import response_log_probs
from flowlab.policies.language import Apply
from flowlab.solve import exact_products

if TYPE_CHECKING:
    import optax

__all__ = ["Replay", "replay"]


@dataclass(frozen=True, eq=False, repr=False)
class Replay:
    """A run that was replayed, NumPy arrays: means over the pairs of each step, before it.

    Attributes:
        u_chosen: Log-ratio u_w of the chosen response, nats, shape (k,).
        u_rejected: Log-ratio u_l of the rejected response.
        logp_chosen: Summed log-probability of the chosen response, nats.
        logp_rejected: Summed log-probability of the rejected response.
        loss: The loss.
        parameters: The parameters after the last step.
    """

    u_chosen: Float[np.ndarray, " k"]
    u_rejected: Float[np.ndarray, " k"]
    logp_chosen: Float[np.ndarray, " k"]
    logp_rejected: Float[np.ndarray, " k"]
    loss: Float[np.ndarray, " k"]
    parameters: PyTree[Float[np.ndarray, "..."]]

    def deviation(self, log: TrainingLog) -> Float[np.ndarray, "row 2"]:
        """Log-ratios (u_w, u_l) of the replay less those of a log, nats, for each of its rows.

        A row that stands for several steps is compared with their mean.

        Raises:
            ValueError: If the log has no log-ratios or tells no steps, or goes on for longer than
                the replay.
        """
        if log.reference_free or not log.numbered or not log.step.size:
            raise ValueError(
                "Argument `log` must tell steps and log-ratios, but is that of a loss without a "
                "reference, or one without steps or rows."
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
    pairs: Pairs,
    loss: AbstractLoss,
    optimiser: "optax.GradientTransformation",
    order: Sequence[npt.ArrayLike],
    *,
    chunk: int | None = None,
) -> Replay:
    """A run of preference training again, from the start that is also its reference.

    The loss of a step is the mean over its pairs, in the order given; there is no dropout.

    Args:
        apply: From parameters and tokens, shape (s, t), to logits, shape (s, t, v), such as
            `Model.apply`.
        parameters: The parameters before the run, such as `Model.parameters`, which are those of
            the reference. Their dtype is the dtype of the work.
        pairs: The data, such as those of `data.preferences`.
        loss: The loss that was trained, such as `DPO(0.1)`.
        optimiser: An optimiser of optax, such as `optax.sgd(0.001)`.
        order: For each step, indices of pairs, such as those of `descent.hf_order`.
        chunk: Sequences at a time, to bound the memory; None for all of a step at once.

    Raises:
        ValueError: If the order is empty or names other pairs, or a log-probability is not finite
            at the start, as where the tokenizer is that of another model.

    Accuracy: that of the precision of the parameters. A run of 480 steps of SGD that was logged
        in float32 is met within 3e-6 nats at every step.
    """
    steps = _checked(order, len(pairs))
    dtype = np.result_type(*(np.asarray(x).dtype for x in jax.tree.leaves(parameters)))
    with jax.enable_x64(dtype == np.float64), exact_products():
        state = jax.tree.map(jnp.asarray, parameters)
        references = _references(apply, state, pairs, max(map(len, steps)), chunk)
        step = _step(apply, loss, optimiser, chunk)
        with lenient():
            memory, rows = optimiser.init(state), []
        for taken in steps:
            batch = (pairs.tokens[taken], pairs.mask[taken], pairs.lengths[taken].astype(dtype))
            state, memory, row = step(state, memory, batch, references[taken])
            rows.append(row)
        columns = np.array(rows, float).T
        return Replay(*columns, parameters=jax.tree.map(np.asarray, state))


def _checked(order: Sequence[npt.ArrayLike], count: int) -> list[np.ndarray]:
    """Indices of pairs for each step."""
    steps = [np.asarray(taken) for taken in order]
    if not steps:
        raise ValueError("Argument `order` must have a step at least, but is empty.")
    for number, taken in enumerate(steps, start=1):
        fits = taken.ndim == 1 and taken.size and taken.dtype.kind in "iu"
        if not fits or taken.min() < 0 or taken.max() >= count:
            raise ValueError(
                f"Argument `order` must name some of the {count} pairs in each step, counted from "
                f"0, but step {number} is {checks.shown(taken)}."
            )
    return steps


def _references(
    apply: Apply, state: PyTree[Array], pairs: Pairs, block: int, chunk: int | None
) -> Float[np.ndarray, "n 2"]:
    """Log-probabilities of all responses at the start, so many pairs at a time."""

    @jax.jit
    def at(state: PyTree[Array], tokens: Array, mask: Array) -> Array:
        return response_log_probs(apply, state, tokens, mask, chunk=chunk)

    count = len(pairs)
    # The last block overlaps with the one before it, so that all have the shape of the first.
    firsts = [min(first, max(0, count - block)) for first in range(0, count, block)]
    found = np.empty((count, 2), jnp.result_type(*jax.tree.leaves(state)))
    for first in firsts:
        part = slice(first, first + block)
        found[part] = at(state, pairs.tokens[part], pairs.mask[part])
    wrong = np.flatnonzero(~np.all(np.isfinite(found), axis=1))
    if wrong.size:
        raise ValueError(
            "Argument `pairs` must have finite log-probabilities under the model, but those of "
            f"pair {wrong[0]} are {checks.shown(found[wrong[0]])}: make its tokens with the "
            "tokenizer of the model."
        )
    return found


def _step(
    apply: Apply, loss: AbstractLoss, optimiser: Any, chunk: int | None
) -> Callable[..., tuple[PyTree[Array], Any, Array]]:
    """The function that takes one step: parameters and memory after it, and a row before it."""

    def value(
        state: PyTree[Array], batch: tuple[Array, Array, Array], references: Array
    ) -> tuple[Array, Array]:
        tokens, mask, lengths = batch
        logs = response_log_probs(apply, state, tokens, mask, chunk=chunk)
        pair = Pair(*logs.T, *references.T, *lengths.T)
        mean = loss.mean(pair)
        means = jnp.mean(jnp.concatenate([logs - references, logs], axis=1), axis=0)
        return mean, jnp.append(means, mean)

    @jax.jit
    def step(
        state: PyTree[Array], memory: Any, batch: tuple[Array, Array, Array], references: Array
    ) -> tuple[PyTree[Array], Any, Array]:
        (_, row), gradient = jax.value_and_grad(value, has_aux=True)(state, batch, references)
        with lenient():
            updates, memory = optimiser.update(gradient, memory, state)
        return jax.tree.map(lambda x, u: x + jnp.asarray(u, x.dtype), state, updates), memory, row

    return step
