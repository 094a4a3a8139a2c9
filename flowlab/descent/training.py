"""Training runs of an optimiser on the loss of a flow.

Letters in shapes: k states that were kept, including the start, s steps, n pairs.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import ArrayLike, Float, Int, PyTree
from tqdm import tqdm

from flowlab import _checks as checks
from flowlab.descent.batches import checked_batches, drawn_batches
from flowlab.descent.loop import LONGEST, Carry, advance, begun, has_ended, observed
from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.solve import check_states, exact_products, fingerprint
from flowlab.solve.checkpoint import Checkpoint, History, identity_of
from flowlab.solve.progress import CALL, SAVED_EVERY, bar_options
from flowlab.solve.watched import Watched, checked_watch
from flowlab.until import Outcome

if TYPE_CHECKING:
    import optax

__all__ = ["Descent", "descend"]


@dataclass(frozen=True, repr=False)
class Descent:
    """A training run as NumPy arrays.

    Attributes:
        steps: The numbers of the steps whose states were kept, beginning with the start (0), shape
            (k,).
        states: The states after these steps; leaves of shape (k, ...); None with
            `keep_states=False`.
        losses: The loss of all pairs at these states, also for runs with minibatches, shape (k,);
            NaN if it was not watched.
        outcome: `reached` if all steps were taken; `left_domain` if the step after the last kept
            one left the domain; `non_finite` if it led to a state or loss that is not finite;
            `outside_domain` if the start is outside the domain.
        u: Log-ratios (u_w, u_l) of all pairs at these states, nats, shape (k, n, 2), or (k, 2) for
            a single pair; empty if they were not watched.
        end: The last state.
        step_loss: The mean loss over the pairs of each step, before the step, shape (s,).
        step_u: Means of u_w and u_l over the pairs of each step, before the step, nats, shape (s,
            2); NaN for a flow without pairs.
        step_log_probs: Means of the log-probabilities of the chosen and of the rejected responses
            over the pairs of each step, before the step, nats, shape (s, 2).
    """

    steps: Int[np.ndarray, " k"]
    states: Any
    losses: Float[np.ndarray, " k"]
    outcome: Outcome
    u: Float[np.ndarray, "k n 2"] = field(default_factory=lambda: np.zeros((0, 0, 2)))
    end: Any = None
    step_loss: Float[np.ndarray, " s"] = field(default_factory=lambda: np.zeros(0))
    step_u: Float[np.ndarray, "s 2"] = field(default_factory=lambda: np.zeros((0, 2)))
    step_log_probs: Float[np.ndarray, "s 2"] = field(default_factory=lambda: np.zeros((0, 2)))

    def __repr__(self) -> str:
        """The end of the run on one line."""
        known = np.isfinite(self.losses[-1])
        loss = f", loss {self.losses[-1]:.6g}" if known else ""
        return f"Descent({self.outcome.name}: {self.steps[-1]} steps{loss})"


def descend(
    flow: AbstractFlow,
    start: PyTree[Float[ArrayLike, "..."]],
    optimiser: "optax.GradientTransformation",
    *,
    steps: int | None = None,
    keep_every: int = 1,
    batches: Sequence[npt.ArrayLike] | None = None,
    batch_size: int | None = None,
    replacement: bool = False,
    seed: int | None = None,
    watch: Sequence[Watched] = ("loss",),
    keep_states: bool = True,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Descent:
    """Train with an optimiser on the loss of a flow, from one start.

    The optimiser receives M∇L, the negative velocity of the flow. Plain gradient descent,
    `optax.sgd(eta)`, is therefore y ← y − η M∇L, an explicit Euler step of length η. Steps do not
    slide along walls. An optimiser with a line search, such as L-BFGS, assumes Euclidean lengths
    and angles; use it with policies whose metric is the identity.

    For a language model (`Policy.from_model`) a step computes only the pairs of its batch. Watched
    quantities are of all pairs, and cost one evaluation of all pairs for each kept state. A batch
    loss (AOT) is computed from the pairs of each step.

    Args:
        flow: The flow whose potential is minimised, such as `preference_flow(DPO(0.1), policy)`.
        start: One state: an array of shape (d,), or a PyTree, such as `policy.start`. All
            computations have its dtype.
        optimiser: Any optimiser of optax, such as the result of `hf_optimiser`.
        steps: Number of steps; None with `batches`, which determine it.
        keep_every: Number of steps between two states that are kept; the last state is always kept.
        batches: For each step, the indices of its pairs, such as the result of `hf_order`.
        batch_size: Number of pairs in each step, drawn at random; None for all pairs in every step.
        replacement: True to draw each pair from all pairs, with probabilities proportional to the
            weights of the flow. False to draw every pair once, in random order, before any pair is
            drawn again. With `batches`, or without replacement, the weights count in the mean
            instead.
        seed: Seed of the minibatches, a non-negative int; given if and only if `batch_size` is
            given.
        watch: The quantities of all pairs to keep: `"loss"`, `"u"` (the log-ratios of each pair),
            both or none. A run ends if a watched loss is not finite.
        keep_states: False to keep only the last state.
        progress: Whether to show a progress bar; None to show it for long runs in a terminal.
        checkpoint: A file to which the state of the run is written every half minute and at the
            end. The same call resumes the run from it, even after kill -9. On the same machine with
            the same versions, the result has the same bits as an undisturbed run. A file of another
            run is refused.

    Raises:
        ValueError: If `steps` or `keep_every` is not positive; if `optimiser` is not an optimiser;
            if two of `batches`, `batch_size` and `steps` contradict each other; if only one of
            `batch_size` and `seed` is given; if minibatches are requested for a flow without
            several pairs; if a batch is empty or has an index without a pair; if `watch` has an
            unknown name; if `checkpoint` is a file of another run; or if the start does not fit the
            flow.

    Accuracy: that of floating-point arithmetic, since the run itself is discrete.
    """
    if not (hasattr(optimiser, "init") and hasattr(optimiser, "update")):
        raise ValueError(
            "Argument `optimiser` must be an optimiser of optax such as optax.adam(1e-3), "
            f"but is {optimiser!r}."
        )
    count = _count(steps, batches, keep_every)
    start, dtype = check_states("start", start, flow, batched=False)
    watched = (*checked_watch(watch, flow), *(["state"] if keep_states else []))
    optimiser = _with_extra_arguments(optimiser) if _is_plain(optimiser) else optimiser
    with jax.enable_x64(dtype == np.float64), exact_products():
        order = _order(flow, start, batches, batch_size, count, seed, replacement=replacement)
        run = _Run(flow, optimiser, start, order, count, watched, keep_every, not replacement)
        bar = tqdm(total=count, unit="step", **bar_options(progress))
        with bar:
            carry, history = run.carried_out(checkpoint, bar.update)
        return _descent(carry, history, run)


@dataclass(frozen=True)
class _Run:
    """A training run, carried out in several calls of the loop."""

    flow: AbstractFlow
    optimiser: Any
    start: PyTree[np.ndarray]
    order: list[Int[np.ndarray, " b"]] | None
    count: int
    watched: tuple[str, ...]
    keep_every: int
    weighted: bool

    def carried_out(self, file: Any, update: Any) -> tuple[Carry, History]:
        """The `Carry` at the end of the run, and the record of the run."""
        carry = begun(self.optimiser, jax.tree.map(jnp.asarray, self.start))
        history = History([], [], [])
        operations = fingerprint((self.flow, self.optimiser), self.start, observed)
        place = None
        if file is not None:
            place = Checkpoint(Path(file), identity_of(*vars(self).values()))
            place.check()
            carry, history = place.read(carry) or (carry, history)
            update(int(carry.number))
        saved, calls = time.monotonic(), 1
        while not has_ended(carry, self.count):
            began, before = time.monotonic(), int(carry.number)
            carry = self._call(carry, history, min(calls, LONGEST), operations)
            update(int(carry.number) - before)
            calls = calls * 2 if time.monotonic() - began < CALL else max(1, calls // 2)
            due = has_ended(carry, self.count) or time.monotonic() - saved >= SAVED_EVERY
            if place is not None and due:
                place.write(carry, history)
                saved = time.monotonic()
        return carry, history

    def _call(self, carry: Carry, history: History, most: int, operations: str) -> Carry:
        """The `Carry` after at most `most` steps, which are added to the record."""
        before = int(carry.number)
        batches = self._batches(before)
        alike = LONGEST if batches is None else sum(1 for _ in self._alike(before))
        carry, seen = advance(
            self.flow,
            self.optimiser,
            carry,
            jnp.asarray(max(1, min(most, alike)), jnp.int32),
            jnp.asarray(self.count, jnp.int32),
            batches,
            self.watched,
            self.keep_every,
            self.weighted,
            operations=operations,
        )
        used = int(seen.used)
        history.numbers.append(np.asarray(seen.numbers)[:used])
        history.rows.append([np.asarray(leaf)[:used] for leaf in jax.tree.leaves(seen.rows)])
        history.steps.append(np.asarray(seen.steps)[: int(carry.number) - before])
        return carry

    def _alike(self, first: int) -> Any:
        """The batches of the next steps, as long as they have the same size."""
        assert self.order is not None
        size = len(self.order[min(first, self.count - 1)])
        for taken in self.order[first : first + LONGEST]:
            if len(taken) != size:
                return
            yield taken

    def _batches(self, first: int) -> Int[np.ndarray, "l b"] | None:
        """The batches of the next steps as one array, padded with the last; None for all pairs."""
        if self.order is None:
            return None
        taken = list(self._alike(first)) or [self.order[-1]]
        # The array has the same length in every run, so that short and long runs share a program.
        return np.stack(taken + [taken[-1]] * (LONGEST - len(taken)))


def _descent(carry: Carry, history: History, run: _Run) -> Descent:
    """The result of the run."""
    seen = history.joined()
    kept: dict[str, Any] = {}
    names = sorted(run.watched)  # as the leaves of a dict
    leaves = list(seen.rows[0])
    structure = jax.tree.structure(run.start)
    for name in names:
        size = structure.num_leaves if name == "state" else 1
        taken, leaves = leaves[:size], leaves[size:]
        kept[name] = jax.tree.unflatten(structure, taken) if name == "state" else taken[0]
    steps = seen.steps[0]
    return Descent(
        steps=seen.numbers[0],
        states=kept.get("state"),
        losses=kept.get("loss", np.full(seen.numbers[0].size, np.nan)),
        outcome=Outcome(int(carry.outcome)) if int(carry.outcome) else Outcome.reached,
        u=kept.get("u", np.zeros((0, 0, 2))),
        end=jax.tree.map(np.asarray, carry.state),
        step_loss=steps[:, 4],
        step_u=steps[:, :2],
        step_log_probs=steps[:, 2:4],
    )


@lru_cache(maxsize=16)  # a wrapper made anew would be another function, to be compiled anew
def _with_extra_arguments(optimiser: Any) -> Any:
    import optax

    return optax.with_extra_args_support(optimiser)


def _is_plain(optimiser: Any) -> bool:
    """True if an optimiser takes no extra arguments in `update`."""
    import optax

    return not isinstance(optimiser, optax.GradientTransformationExtraArgs)


def _count(steps: int | None, batches: Sequence[Any] | None, keep_every: int) -> int:
    """The number of steps of the run."""
    if steps is not None and batches is not None:
        raise ValueError(
            f"Argument `steps` must be None with `batches`, one for each step, but is {steps!r}."
        )
    checks.integer("keep_every", keep_every)
    return checks.integer("steps", steps) if batches is None else len(batches)


def _order(
    flow: AbstractFlow,
    start: PyTree[Any],
    batches: Sequence[npt.ArrayLike] | None,
    batch_size: int | None,
    count: int,
    seed: int | None,
    *,
    replacement: bool,
) -> list[Int[np.ndarray, " b"]] | None:
    """The pairs of each step; None for all pairs."""
    if batches is not None and batch_size is not None:
        raise ValueError("Argument `batch_size` must be None with `batches`.")
    if (batch_size is None) != (seed is None):
        raise ValueError("Arguments `batch_size` and `seed` must be given together or not at all.")
    if replacement and batch_size is None:
        raise ValueError("Argument `replacement` must be False without `batch_size`.")
    if batches is None and batch_size is None:
        return None
    name = "batches" if batch_size is None else "batch_size"
    shape = ()
    if isinstance(flow, PreferenceFlow):
        shape = jax.eval_shape(flow.pairs, start).chosen.shape
    if not shape:
        raise ValueError(
            f"Argument `{name}` must be None for a flow without several pairs, from which to draw."
        )
    if batches is not None:
        return checked_batches("batches", batches, shape[0])
    size, seed = checks.integer("batch_size", batch_size), checks.integer("seed", seed, 0)
    weights = flow.weights if isinstance(flow, PreferenceFlow) else None
    chances = None if weights is None else np.asarray(weights)
    return drawn_batches(shape[0], size, count, seed, chances, replacement=replacement)
