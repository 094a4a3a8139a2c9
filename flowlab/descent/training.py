"""Training runs of an optimiser on the loss of a flow, and how far they go from its flow lines.

k: steps that were kept, the start included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from flowlab import _checks as checks
from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.solve import Line, check_states, compiled, exact_products, fingerprint, motion_of
from flowlab.solve.noise import check_minibatches
from flowlab.solve.paths import vectors
from flowlab.until import Outcome

if TYPE_CHECKING:
    import optax

__all__ = ["Descent", "descend", "distance", "lenient"]

_BETWEEN = 8  # points of a flow line looked at in each of its steps


@dataclass(frozen=True)
class Descent:
    """A training run, NumPy arrays.

    Attributes:
        steps: Numbers of the steps that were kept, the start (0) first, shape (k,).
        states: States after them; leaves of shape (k, ...).
        losses: The loss of all pairs there, minibatches or not, shape (k,).
        outcome: `reached` where all steps were taken; `left_domain` or `non_finite` where the step
            after the last one kept led out of the domain or to a state or a loss that is not
            finite; `outside_domain` where the start lies outside.
    """

    steps: Int[np.ndarray, " k"]
    states: PyTree[Float[np.ndarray, "k ..."]]
    losses: Float[np.ndarray, " k"]
    outcome: Outcome

    def __repr__(self) -> str:
        """The end of the run, on one line."""
        return f"Descent({self.outcome.name}: {self.steps[-1]} steps, loss {self.losses[-1]:.6g})"


def descend(
    flow: AbstractFlow,
    start: PyTree[Float[ArrayLike, "..."]],
    optimiser: "optax.GradientTransformation",
    *,
    steps: int,
    keep_every: int = 1,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Descent:
    """A training run of an optimiser on the loss of a flow, from one start.

    What the optimiser is given is M∇L, the direction in which the flow goes, so that plain gradient
    descent, `optax.sgd(eta)`, makes y ← y − η M∇L, an explicit Euler step of length η of the flow.
    Walls are not slid along. An optimiser that looks along a line itself, such as L-BFGS, takes
    lengths and angles for Euclidean: give it a policy without a metric of its own.

    Args:
        flow: Whose potential to lower, such as `preference_flow(DPO(0.1), policy)`.
        start: One state: an array of shape (d,), or a PyTree. Its dtype is the dtype of the work.
        optimiser: Any optimiser of optax.
        steps: Steps to take.
        keep_every: Keep every so many steps.
        batch_size: Pairs of each step, drawn at random with replacement, in proportion to the
            weights of the flow where it has such; None for all pairs at every step.
        seed: Seed of the minibatches, a non-negative int; given with `batch_size`, and only then.

    Raises:
        ValueError: If `steps` or `keep_every` is not positive, or the second does not divide the
            first; `optimiser` is none; `batch_size` and `seed` are not given together, or are given
            for a flow without several pairs, or for a loss of a batch; or the start does not fit
            the flow.

    Accuracy: that of the floating-point operations, which is all there is to a discrete run.
    """
    import optax

    _check_counts(steps, keep_every)
    if not (hasattr(optimiser, "init") and hasattr(optimiser, "update")):
        raise ValueError(
            "Argument `optimiser` must be an optimiser of optax such as optax.adam(1e-3), "
            f"but is {optimiser!r}."
        )
    start, dtype = check_states("start", start, flow, batched=False)
    optimiser = optax.with_extra_args_support(optimiser)
    with jax.enable_x64(dtype == np.float64), exact_products():
        _check_batches(flow, start, batch_size, seed)
        states, losses, taken, outcomes = _run(
            flow,
            jax.tree.map(jnp.asarray, start),
            optimiser,
            (int(steps // keep_every), int(keep_every)),
            None if batch_size is None else int(batch_size),
            None if seed is None else jax.random.key(seed),
            operations=fingerprint((flow, optimiser), start, _observed),
        )
    kept = np.flatnonzero(np.diff(taken, prepend=-1))
    return Descent(
        steps=np.asarray(taken)[kept],
        states=jax.tree.map(lambda x: np.asarray(x)[kept], states),
        losses=np.asarray(losses)[kept],
        outcome=_ended(int(outcomes[-1]), began=int(outcomes[0])),
    )


def distance(
    path: Descent, line: Line, *, learning_rate: float | None = None
) -> Float[np.ndarray, " k"]:
    """Distance of a training run from a flow line after each step that was kept.

    Euclidean, in the coordinates of the state.

    Args:
        path: The run.
        line: A flow line, not traced, of the same flow.
        learning_rate: Compare at equal time, that is after n steps with the flow line at time
            n × `learning_rate`. None to compare with the nearest point of the flow line, whatever
            its time, which is what can be said of optimisers with a time of their own.

    Returns:
        Distances, shape (k,); NaN where the flow line ends before the time of a step.

    Raises:
        ValueError: If `learning_rate` is not positive, or run and line have different states.

    Accuracy: that of the flow line. Plain gradient descent is first order in the learning rate.
        The nearest point is looked for on straight pieces between eight points of each step. Of a
        run that has gone further than the line the nearest point is the line's end, so let the line
        go on for longer than the run.
    """
    if learning_rate is not None:
        checks.positive("learning_rate", learning_rate)
    points, corners = vectors(path.states), vectors(line.at(_moments(line)))
    if corners.shape[1] != points.shape[1]:
        raise ValueError(
            f"Argument `line` must have states like those of `path`, of {points.shape[1]} numbers, "
            f"but has {corners.shape[1]}."
        )
    if learning_rate is None:
        return np.array([_to_polygon(point, corners) for point in points])
    times = path.steps * learning_rate
    there = line.covers(times)
    beside = np.full_like(points, np.nan)
    beside[there] = vectors(line.at(times[there]))
    return np.linalg.norm(points - beside, axis=1)


@compiled
def _run(
    flow: AbstractFlow,
    start: PyTree[Array],
    optimiser: Any,
    counts: tuple[int, int],
    batch_size: int | None,
    key: Array | None,
) -> tuple[PyTree[Array], Array, Array, Array]:
    """States, losses, steps taken and outcomes at the start and after every so many steps."""

    def kept(carry: Any, _: None) -> tuple[Any, Any]:
        step = partial(_step, flow, optimiser, batch_size)
        carry = lax.fori_loop(0, counts[1], step, carry)
        return carry, _row(flow, carry)

    with lenient():
        memory = jax.tree.map(jnp.asarray, optimiser.init(start))
    first = (start, memory, jnp.zeros((), jnp.int32), _outcome(flow, start), key)
    _, rows = lax.scan(kept, first, length=counts[0])
    return jax.tree.map(
        lambda one, rest: jnp.concatenate([one[None], rest]), _row(flow, first), rows
    )


def _observed(things: tuple[AbstractFlow, Any], state: PyTree[Array]) -> tuple[Any, ...]:
    """All that the functions of a flow and of an optimiser compute at a state."""
    flow, optimiser = things
    value = flow.potential(state)
    with lenient():
        updates = optimiser.update(
            state, optimiser.init(state), state, value=value, grad=state, value_fn=flow.potential
        )
    return motion_of(flow, state), updates


def _step(
    flow: AbstractFlow, optimiser: Any, batch_size: int | None, _number: Array, carry: Any
) -> Any:
    """State, memory of the optimiser, steps taken, outcome and key after one step, if it is one."""
    state, memory, taken, outcome, key = carry
    seen, key = _seen(flow, state, batch_size, key)
    value, gradient = jax.value_and_grad(seen.potential)(state)
    direction = seen.metric(state, gradient)
    with lenient():
        updates, after_memory = optimiser.update(
            direction, memory, state, value=value, grad=gradient, value_fn=seen.potential
        )
    after = jax.tree.map(lambda x, u: x + jnp.asarray(u, x.dtype), state, updates)
    found = _outcome(flow, after)
    going = (outcome == 0) & (found == 0)
    state, memory = jax.tree.map(
        lambda new, old: jnp.where(going, jnp.asarray(new, old.dtype), old),
        (after, after_memory),
        (state, memory),
    )
    outcome = jnp.where(outcome == 0, found, outcome)
    return state, memory, taken + going.astype(jnp.int32), outcome, key


def _ended(code: int, *, began: int) -> Outcome:
    """The outcome of a run, by the codes after its last step and at its start."""
    if began == Outcome.left_domain:
        return Outcome.outside_domain
    return Outcome(code) if code else Outcome.reached


@contextmanager
def lenient() -> Iterator[None]:
    """JAX's own rules of promotion, whatever the caller has set: optax relies on them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _row(flow: AbstractFlow, carry: Any) -> Any:
    state, _, taken, outcome, _ = carry
    return state, flow.potential(state), taken, outcome


def _outcome(flow: AbstractFlow, state: PyTree[Array]) -> Int[Array, ""]:
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state)]))
    codes = (
        (~finite, Outcome.non_finite),
        (~flow.domain.contains(state), Outcome.left_domain),
        (~jnp.isfinite(flow.potential(state)), Outcome.non_finite),
    )
    zero = jnp.zeros((), jnp.int32)
    return jnp.select([wrong for wrong, _ in codes], [zero + int(c) for _, c in codes], zero)


def _seen(
    flow: AbstractFlow, state: PyTree[Array], batch_size: int | None, key: Array | None
) -> tuple[Any, Any]:
    """The flow of the pairs that a step sees, and the key of the next step."""
    if batch_size is None or key is None or not isinstance(flow, PreferenceFlow):
        return flow, key
    key, drawn = jax.random.split(key)
    count = jax.eval_shape(flow.pairs, state).chosen.shape[0]
    fractions = None if flow.weights is None else jnp.asarray(flow.weights) / jnp.sum(flow.weights)
    indices = jax.random.choice(drawn, count, (batch_size,), p=fractions)
    counts = jnp.zeros(count).at[indices].add(1)
    return PreferenceFlow(flow.loss, flow.policy, counts), key


def _check_counts(steps: int, keep_every: int) -> None:
    checks.integer("steps", steps)
    checks.integer("keep_every", keep_every)
    if steps % keep_every:
        raise ValueError(
            f"Argument `keep_every` must divide `steps`, {steps}, but is {keep_every}."
        )


def _check_batches(
    flow: AbstractFlow, start: PyTree[Any], batch_size: int | None, seed: int | None
) -> None:
    if (batch_size is None) != (seed is None):
        raise ValueError("Arguments `batch_size` and `seed` must be given together or not at all.")
    if batch_size is None:
        return
    checks.integer("batch_size", batch_size)
    checks.integer("seed", seed, 0)
    check_minibatches("`batch_size` must be None", flow, start)


def _moments(line: Line) -> Float[np.ndarray, " m"]:
    """Times along a line, several in each of its steps."""
    times = np.asarray(line.times)
    fractions = np.arange(_BETWEEN) / _BETWEEN
    fine = times[:-1, None] + np.diff(times)[:, None] * fractions
    return np.append(fine.ravel(), times[-1])


def _to_polygon(point: Float[np.ndarray, " d"], corners: Float[np.ndarray, "m d"]) -> float:
    """Distance of a point from the nearest piece of a polygon."""
    first, way = corners[:-1], np.diff(corners, axis=0)
    square = np.sum(way**2, axis=1)
    fraction = np.sum((point - first) * way, axis=1) / np.where(square > 0, square, 1)
    nearest = first + np.clip(fraction, 0, 1)[:, None] * way
    return float(np.min(np.linalg.norm(point - nearest, axis=1)))
