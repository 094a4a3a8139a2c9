"""The training loop: optimiser steps in one program, and the quantities recorded on the way.

Letters in shapes: k recorded states, l steps of one call, b pairs of a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from flowlab._arrays import all_finite
from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.solve import compiled, motion_of
from flowlab.solve.watched import watched_at
from flowlab.until import Outcome

__all__ = ["LONGEST", "Carry", "Seen", "advance", "begun", "has_ended", "lenient", "observed"]

LONGEST = 64  # steps of a call: so long that what a call costs, a millisecond, is spread thin
_MEANS = 4  # of a step: u_w, u_l, and the log-probabilities of both responses


class Carry(NamedTuple):
    """The values that one step passes to the next.

    Attributes:
        state: The state.
        memory: The state of the optimiser.
        number: The number of steps taken.
        outcome: The code of the outcome; 0 while the run continues.
        kept: The number of steps after which a state was last recorded; −1 before the first.
    """

    state: PyTree[Array]
    memory: PyTree[Array]
    number: Int[Array, ""]
    outcome: Int[Array, ""]
    kept: Int[Array, ""]


class Seen(NamedTuple):
    """The record of one call of the loop.

    Attributes:
        numbers: For each recorded state, the number of steps before it.
        rows: The recorded quantities.
        used: The number of recorded states.
        steps: For each step, five means over its pairs, computed before the step: the loss, u_w,
            u_l, and the log-probabilities of both responses. NaN for a flow without pairs.
    """

    numbers: Int[Array, " k"]
    rows: PyTree[Array]
    used: Int[Array, ""]
    steps: Float[Array, "l 5"]


def begun(optimiser: Any, start: PyTree[Array]) -> Carry:
    """The `Carry` before the first step."""
    with lenient():
        memory = eqx.filter_jit(optimiser.init)(start)
    zero = jnp.zeros((), jnp.int32)
    return Carry(start, memory, zero, zero, zero - 1)


def has_ended(carry: Carry, steps: Any) -> Any:
    """True once the last state has been recorded."""
    return ((carry.outcome != 0) | (carry.number == steps)) & (carry.kept == carry.number)


@compiled
def advance(
    flow: AbstractFlow,
    optimiser: Any,
    carry: Carry,
    count: Int[Array, ""],
    steps: Int[Array, ""],
    batches: Int[Array, "l b"] | None,
    watch: tuple[str, ...],
    keep_every: int,
    weighted: bool,
) -> tuple[Carry, Seen]:
    """Take a number of steps, or fewer if the run ends.

    The same program serves for any number of steps. A run therefore has the same bits wherever it
    was interrupted.

    Args:
        flow: The flow whose potential is minimised.
        optimiser: An optimiser of optax that takes extra arguments.
        carry: The `Carry` after the previous step.
        count: Number of steps to take, at most `LONGEST`.
        steps: Number of steps of the whole run.
        batches: The pairs of each step; None for all pairs.
        watch: The quantities to record: "state", "loss" and "u".
        keep_every: Number of steps between two recorded states; the last state is always recorded.
        weighted: True if the pairs of a batch have their weights in the flow. False for equal
            weights, as for pairs that are drawn with probabilities proportional to their weights.
    """
    length = LONGEST if batches is None else batches.shape[0]
    shapes = jax.eval_shape(lambda state: watched_at(flow, watch, state), carry.state)
    room = length // keep_every + 2
    dtype = jnp.result_type(*jax.tree.leaves(carry.state))
    seen = Seen(
        jnp.zeros(room, jnp.int32),
        jax.tree.map(lambda row: jnp.zeros((room, *row.shape), row.dtype), shapes),
        jnp.zeros((), jnp.int32),
        jnp.zeros((length, 1 + _MEANS), dtype),
    )
    outside = jnp.where(flow.domain.contains(carry.state), 0, int(Outcome.outside_domain))
    beyond = jnp.where(carry.number == 0, outside.astype(jnp.int32), carry.outcome)
    carry = carry._replace(outcome=beyond)

    def goes_on(held: tuple[Array, Carry, Seen]) -> Array:
        return (held[0] < count) & ~has_ended(held[1], steps)

    def turn(held: tuple[Array, Carry, Seen]) -> tuple[Array, Carry, Seen]:
        index, carry, seen = held
        carry, seen = _looked(flow, watch, keep_every, steps, carry, seen)
        part = flow if batches is None else _subset(flow, batches[index], weighted)
        carry, row = _stepped(part, optimiser, carry, steps)
        return index + 1, carry, seen._replace(steps=seen.steps.at[index].set(row.astype(dtype)))

    return lax.while_loop(goes_on, turn, (jnp.zeros((), jnp.int32), carry, seen))[1:]


def observed(things: tuple[AbstractFlow, Any], state: PyTree[Array]) -> tuple[Any, ...]:
    """All results of a flow and an optimiser at a state, for a fingerprint of the operations."""
    flow, optimiser = things
    value = flow.potential(state)
    with lenient():
        updates = optimiser.update(
            state, optimiser.init(state), state, value=value, grad=state, value_fn=flow.potential
        )
    return motion_of(flow, state), updates


@contextmanager
def lenient() -> Iterator[None]:
    """A context with JAX's standard dtype promotion, which optax requires."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _looked(
    flow: AbstractFlow,
    watch: tuple[str, ...],
    keep_every: int,
    steps: Int[Array, ""],
    carry: Carry,
    seen: Seen,
) -> tuple[Carry, Seen]:
    """The record, extended by the quantities at the present state if they are to be recorded."""
    number, outcome = carry.number, carry.outcome
    turn = (number % keep_every == 0) | (number == steps) | (outcome != 0)
    due = (carry.kept != number) & turn

    def written() -> tuple[PyTree[Array], Array]:
        row = watched_at(flow, watch, carry.state)
        rows = jax.tree.map(lambda held, one: held.at[seen.used].set(one), seen.rows, row)
        return rows, jnp.isfinite(row["loss"]) if "loss" in row else jnp.asarray(True)

    rows, finite = lax.cond(due, written, lambda: (seen.rows, jnp.asarray(True)))
    lost = due & ~finite & (number != 0)
    more = (due & ~lost).astype(jnp.int32)
    seen = seen._replace(
        rows=rows, used=seen.used + more, numbers=seen.numbers.at[seen.used].set(number)
    )
    ended = jnp.where(lost & (outcome == 0), int(Outcome.non_finite), outcome)
    return carry._replace(outcome=ended, kept=jnp.where(due, number, carry.kept)), seen


def _subset(flow: AbstractFlow, indices: Int[Array, " b"], weighted: bool) -> AbstractFlow:
    assert isinstance(flow, PreferenceFlow)
    part = flow.subset(indices)
    return part if weighted else PreferenceFlow(part.loss, part.policy)


def _stepped(
    flow: AbstractFlow, optimiser: Any, carry: Carry, steps: Int[Array, ""]
) -> tuple[Carry, Float[Array, " 5"]]:
    """The `Carry` after a step if the step is valid, and the means over its pairs before it."""
    state, memory = carry.state, carry.memory
    going = (carry.outcome == 0) & (carry.number < steps)
    (value, means), gradient = jax.value_and_grad(_value, argnums=1, has_aux=True)(flow, state)
    direction = flow.metric(state, gradient)
    with lenient():
        updates, after_memory = optimiser.update(
            direction, memory, state, value=value, grad=gradient, value_fn=flow.potential
        )
    after = jax.tree.map(lambda x, u: x + jnp.asarray(u, x.dtype), state, updates)
    found = jnp.where(jnp.isfinite(value), _outcome(flow, after), int(Outcome.non_finite))
    taken = going & (found == 0)
    state, memory = jax.tree.map(
        lambda new, old: jnp.where(taken, jnp.asarray(new, old.dtype), old),
        (after, after_memory),
        (state, memory),
    )
    carry = carry._replace(
        state=state,
        memory=memory,
        number=carry.number + taken.astype(jnp.int32),
        outcome=jnp.where(going, found, carry.outcome),
    )
    return carry, jnp.append(means, value)


def _value(flow: AbstractFlow, state: PyTree[Array]) -> tuple[Array, Float[Array, " 4"]]:
    """The potential at a state, and the means over its pairs."""
    if not isinstance(flow, PreferenceFlow):
        value = flow.potential(state)
        return value, jnp.full(_MEANS, jnp.nan, value.dtype)
    pairs = flow.pairs(state)
    sides = (pairs.u_chosen, pairs.u_rejected, pairs.chosen, pairs.rejected)
    return flow.loss.mean(pairs, flow.weights), jnp.stack([jnp.mean(side) for side in sides])


def _outcome(flow: AbstractFlow, state: PyTree[Array]) -> Int[Array, ""]:
    outside = jnp.where(flow.domain.contains(state), 0, int(Outcome.left_domain))
    code = jnp.where(all_finite(state), outside, int(Outcome.non_finite))
    return code.astype(jnp.int32)
