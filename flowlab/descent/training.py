"""Training runs of an optimiser on the loss of a flow.

k: states that were kept, the start included; s: steps; n: pairs.
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
    """A training run, NumPy arrays.

    Attributes:
        steps: Numbers of the steps that were kept, the start (0) first, shape (k,).
        states: States after them; leaves of shape (k, ...); None with `keep_states=False`.
        losses: The loss of all pairs there, minibatches or not, shape (k,); NaN where it was not
            watched.
        outcome: `reached` where all steps were taken; `left_domain` or `non_finite` where the step
            after the last one kept led out of the domain or to a state or a loss that is not
            finite; `outside_domain` where the start lies outside.
        u: Log-ratios (u_w, u_l) of all pairs after the steps that were kept, nats, shape (k, n, 2),
            or (k, 2) of a single pair; empty where they were not watched.
        end: The last state.
        step_loss: The loss of the pairs of each step, before it, shape (s,).
        step_u: Means of u_w and u_l over the pairs of each step, before it, nats, shape (s, 2); NaN
            for a flow without pairs.
        step_log_probs: The same of the log-probabilities of the chosen and the rejected responses.
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
        """The end of the run, on one line."""
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
    """A training run of an optimiser on the loss of a flow, from one start.

    What the optimiser is given is M∇L, the direction in which the flow goes, so that plain gradient
    descent, `optax.sgd(eta)`, makes y ← y − η M∇L, an explicit Euler step of length η of the flow.
    Walls are not slid along. An optimiser that looks along a line itself, such as L-BFGS, takes
    lengths and angles for Euclidean: give it a policy without a metric of its own.

    Of a language model (`Policy.from_model`) a step computes the pairs of its batch alone. What is
    watched is of all pairs, and costs a pass over all of them for each state that is kept: watch
    little, or keep few. A loss of a batch (AOT) is that of the pairs of each step.

    Args:
        flow: Whose potential to lower, such as `preference_flow(DPO(0.1), policy)`.
        start: One state: an array of shape (d,), or a PyTree, such as `policy.start`. Its dtype is
            the dtype of the work.
        optimiser: Any optimiser of optax, such as that of `hf_optimiser`.
        steps: Steps to take; not given with `batches`, which say how many.
        keep_every: Keep every so many steps, and the last.
        batches: For each step, indices of its pairs, such as those of `hf_order`.
        batch_size: Pairs of each step, drawn at random; None for all pairs at every step.
        replacement: True to draw each pair from all of them, in proportion to the weights of the
            flow where it has such; False to take all once, in a random order, before one comes
            again. With `batches` or without replacement the weights are those of the mean.
        seed: Seed of the minibatches, a non-negative int; given with `batch_size`, and only then.
        watch: What of all pairs is kept: `"loss"`, `"u"`, the log-ratios of each, both or none. A
            run ends where a loss that is watched is not finite.
        keep_states: False to keep the last state alone.
        progress: Whether to show a progress bar; None where it takes long, on a terminal.
        checkpoint: A file to write what the run has come to, every half a minute and at its end.
            The same call resumes it, after kill -9 too, to the bits of an undisturbed run on the
            same machine with the same versions. A file of another run is refused.

    Raises:
        ValueError: If `steps` or `keep_every` is not positive; `optimiser` is none; two of
            `batches`, `batch_size` and `steps` contradict each other; `batch_size` and `seed` are
            not given together; minibatches are asked for of a flow without several pairs; a batch
            is empty or names no pair; `watch` asks for something else; `checkpoint` is the file of
            something else; or the start does not fit the flow.

    Accuracy: that of the floating-point operations, which is all there is to a discrete run.
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
    """A training run that is to be carried out, call by call of the loop."""

    flow: AbstractFlow
    optimiser: Any
    start: PyTree[np.ndarray]
    order: list[Int[np.ndarray, " b"]] | None
    count: int
    watched: tuple[str, ...]
    keep_every: int
    weighted: bool

    def carried_out(self, file: Any, update: Any) -> tuple[Carry, History]:
        """The end of the run, and its record."""
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
        """The state after at most so many steps, which are added to the record."""
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
        """The batches of the next steps, as far as all have the size of the first."""
        assert self.order is not None
        size = len(self.order[min(first, self.count - 1)])
        for taken in self.order[first : first + LONGEST]:
            if len(taken) != size:
                return
            yield taken

    def _batches(self, first: int) -> Int[np.ndarray, "l b"] | None:
        """The same in one array, filled up with the last of them."""
        if self.order is None:
            return None
        taken = list(self._alike(first)) or [self.order[-1]]
        # As many in any run: a shorter one shares the program of a longer one.
        return np.stack(taken + [taken[-1]] * (LONGEST - len(taken)))


def _descent(carry: Carry, history: History, run: _Run) -> Descent:
    """The run as its user gets it."""
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
    """True for an optimiser that takes no extra arguments of `update`."""
    import optax

    return not isinstance(optimiser, optax.GradientTransformationExtraArgs)


def _count(steps: int | None, batches: Sequence[Any] | None, keep_every: int) -> int:
    """The number of steps that is asked for."""
    if steps is not None and batches is not None:
        raise ValueError(
            "Argument `steps` must be None with `batches`, which say how many there are, but is "
            f"{steps!r}."
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
    """The pairs of each step; None for all."""
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
