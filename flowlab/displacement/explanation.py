"""Explanation of the motion of log-ratios by the responses and pairs that cause it.

The flow moves the log-ratio of response a of pair p at the rate

    du_a^p/dt = −Σ_q Σ_b (g_a^p · M g_b^q) ∂L/∂u_b^q,

with the gradients g of the log-probabilities and the metric M. A sum over all pairs q is a
derivative along the summed gradient Σ_q (∂L/∂u_b^q) g_b^q, of which there is one for each side b.
No product of the gradients of two pairs is therefore needed, except for a pair's own part, q = p,
which is computed for a few pairs at a time. Conversely, the derivative of u_b^q along the mean of
all g_a shows how response b of pair q changes the mean log-ratio of side a.

A step of stochastic gradient descent with rate η on a minibatch B with gradient G_B changes the
mean log-ratio ū_a by −η ḡ_a·M G_B + ½η² D²ū_a[M G_B, M G_B] + … . The expectation of the first term
is the change under the flow. The expectation of the second term consists of the curvature along the
mean gradient and of the noise of minibatches, which is proportional to 1/|B|. It is estimated as a
mean over minibatches that are drawn at random.

Letters in shapes: p pairs, 1 for a policy with a single pair. An axis of length 2 is (chosen,
rejected).

Source: arXiv 2410.08847 for the inner products; Li, Tai and E, arXiv 1511.06251, for the second
order.
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree
from tqdm import tqdm

from flowlab import _checks as checks
from flowlab import _tables
from flowlab._arrays import jsonable
from flowlab.displacement.maps import boundary_of_slopes
from flowlab.flow import AbstractFlow, PreferenceFlow
from flowlab.solve import check_states, compiled, fingerprint
from flowlab.solve.noise import check_minibatches
from flowlab.solve.progress import bar_options

__all__ = ["Explanation", "StepChange", "explain"]

_AT_ONCE = 16  # pairs whose gradients are held at a time
_PARTS = ("own_chosen", "own_rejected", "others_chosen", "others_rejected")


@dataclass(frozen=True)
class StepChange:
    """The expected change of the mean log-ratios (chosen, rejected) in a step, nats.

    It is computed to second order in the learning rate.

    Attributes:
        learning_rate: The learning rate of the step.
        batch_size: The number of pairs in a minibatch, drawn without replacement.
        first_order: The learning rate times the mean rates of the flow, shape (2,).
        curvature: The second-order part of a step with all pairs, shape (2,).
        noise: The second-order part that minibatches add, as a mean over those that were drawn,
            shape (2,).
        standard_error: The standard error of `noise`, shape (2,).
    """

    learning_rate: float
    batch_size: int
    first_order: Float[np.ndarray, "2"]
    curvature: Float[np.ndarray, "2"]
    noise: Float[np.ndarray, "2"]
    standard_error: Float[np.ndarray, "2"]

    @property
    def change(self) -> Float[np.ndarray, "2"]:
        """The expected change, to second order."""
        return self.first_order + self.curvature + self.noise

    @property
    def reversed(self) -> Bool[np.ndarray, "2"]:
        """A mask of the sides that move against the first order by at least two standard errors."""
        against = -np.sign(self.first_order) * self.change
        return against > 2 * self.standard_error

    def text(self) -> str:
        """The change as text, with a warning if the first order has the wrong sign."""
        lines = []
        for side, name in enumerate(("chosen", "rejected")):
            parts = ", ".join(
                f"{value[side]:+.3g} {of}"
                for value, of in (
                    (self.first_order, "to first order"),
                    (self.curvature, "by curvature"),
                    (self.noise, f"(± {self.standard_error[side]:.1g}) by minibatch noise"),
                )
            )
            lines.append(f"mean {name}: {self.change[side]:+.3g} nats a step: {parts}")
            if self.reversed[side]:
                lines.append(
                    f"The first order has the wrong sign: at a learning rate of "
                    f"{self.learning_rate:g} with minibatches of {self.batch_size}, the mean "
                    f"{name} log-probability {'falls' if self.change[side] < 0 else 'rises'}, "
                    f"where the flow {'raises' if self.first_order[side] > 0 else 'lowers'} it."
                )
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """The causes of the motion of every log-ratio at a state, for the flow without walls.

    The rate is the sum of four parts, rate = own_chosen + own_rejected + others_chosen +
    others_rejected. Each has shape (p, 2), in nats per unit of flow time; the last axis is the
    response that moves, chosen or rejected.

    Attributes:
        rate: The rates du/dt.
        own_chosen: The part caused by the chosen response of the same pair.
        own_rejected: The part caused by the rejected response of the same pair.
        others_chosen: The part caused by the chosen responses of all other pairs.
        others_rejected: The part caused by the rejected responses of all other pairs.
        influence: The part of the mean rate over pairs that each response causes, shape (p, 2, 2).
            The axes are the pair, the response that causes the motion, and the side that moves.
        slopes: The derivatives ∂L/∂u of the (weighted) mean L over pairs, shape (p, 2).
        kernel: [[k_ww, k_wl], [k_wl, k_ll]] of each pair by itself, shape (p, 2, 2).
        mean_kernel: The kernel of the mean log-ratios, which has the inner products of mean
            gradients, shape (2, 2). It can be used in `LogRatioPlane` and in maps of displacement,
            but it changes along a run.
        weighted_kernel: Inner products of mean gradients with slope-weighted mean gradients, shape
            (2, 2), not symmetric; NaN for a side without slopes. The mean rates are minus this
            matrix times the sums of the slopes over pairs.
        step: The expected change in one step of training; None without a learning rate.
    """

    rate: Float[np.ndarray, "p 2"]
    own_chosen: Float[np.ndarray, "p 2"]
    own_rejected: Float[np.ndarray, "p 2"]
    others_chosen: Float[np.ndarray, "p 2"]
    others_rejected: Float[np.ndarray, "p 2"]
    influence: Float[np.ndarray, "p 2 2"]
    slopes: Float[np.ndarray, "p 2"]
    kernel: Float[np.ndarray, "p 2 2"]
    mean_kernel: Float[np.ndarray, "2 2"]
    weighted_kernel: Float[np.ndarray, "2 2"]
    step: StepChange | None = None

    def __repr__(self) -> str:
        """The mean rates and the number of chosen responses that fall, on one line."""
        chosen, rejected = self.rate.mean(axis=0)
        return (
            f"Explanation({len(self.rate)} pairs: mean du_w/dt {chosen:.4g}, du_l/dt "
            f"{rejected:.4g}; the chosen falls in {np.mean(self.falls):.0%})"
        )

    @property
    def falls(self) -> Bool[np.ndarray, " p"]:
        """A mask of the pairs whose chosen log-probability falls."""
        return self.rate[:, 0] < 0

    @property
    def boundary(self) -> Float[np.ndarray, " p"]:
        """The ratio r* of k_wl/k_ww at which a pair by itself does not move its chosen response.

        It is r* = −(∂L/∂u_w)/(∂L/∂u_l).
        """
        return boundary_of_slopes(*self.slopes.T)

    def lowering(self, count: int = 10) -> Int[np.ndarray, " c"]:
        """The indices of the pairs that lower the mean chosen log-probability most, in order.

        There are fewer than `count` indices if fewer pairs lower it.
        """
        caused = self.influence[:, :, 0].sum(axis=1)
        order = np.argsort(caused)[: checks.integer("count", count)]
        return order[caused[order] < 0]

    def table(self) -> str:
        """The mean rates of both responses and of the margin, with their parts, as plain text."""
        names = ("rate", *_PARTS)
        head = ("mean over pairs, nats per time", "total", *(n.replace("_", " ") for n in _PARTS))
        means = np.stack([getattr(self, name).mean(axis=0) for name in names], axis=1)
        rows = {"du_w/dt": means[0], "du_l/dt": means[1], "dh/dt": means[0] - means[1]}
        cells = [(name, *(f"{value:.4g}" for value in values)) for name, values in rows.items()]
        return _tables.table([head, *cells], "lr")

    def to_json(self) -> dict[str, Any]:
        """All arrays as lists, and the step, JSON-ready; None for missing values."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "step"}
        record: dict[str, Any] = {name: jsonable(value) for name, value in told.items()}
        if self.step is None:
            return {**record, "step": None}
        of_step = {name: jsonable(value) for name, value in vars(self.step).items()}
        return {**record, "step": of_step | {"batch_size": self.step.batch_size}}


def explain(
    flow: AbstractFlow,
    state: PyTree[ArrayLike],
    *,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    batches: int = 16,
    seed: int = 0,
    progress: bool | None = False,
) -> Explanation:
    """Explain the motion of each log-ratio at a state by the responses and pairs that cause it.

    Args:
        flow: The flow of a preference loss under any policy.
        state: One state. All computations have its dtype.
        learning_rate: Learning rate of stochastic gradient descent; None to leave out the second
            order.
        batch_size: Number of pairs in a minibatch, drawn without replacement; given if and only if
            `learning_rate` is given.
        batches: Number of minibatches over which the second order is averaged. Each takes as long
            as about four evaluations of all pairs.
        seed: Seed of the minibatches.
        progress: Whether to show a progress bar; None to show it for long runs in a terminal.

    Raises:
        ValueError: If the flow has no pairs, if the state does not fit its policy, or if
            minibatches are impossible.

    Accuracy: derivatives by JAX, exact to the rounding of the dtype; `noise` is a mean over random
        minibatches, with its standard error. The gradients of 16 pairs are held at a time.
    """
    if not isinstance(flow, PreferenceFlow):
        raise ValueError(
            "Argument `flow` must be a flow of a preference loss, made by preference_flow, "
            f"but is {flow!r}."
        )
    held, dtype = check_states("state", state, flow, batched=False)
    with jax.enable_x64(dtype == np.float64):
        held = jax.tree.map(jnp.asarray, held)
        size = _checked_step(flow, held, learning_rate, batch_size)
        operations = fingerprint(flow, held, _observed)
        found, gradient = _parts(flow, held, operations, progress)
        if learning_rate is None:
            return Explanation(**found)
        drawn = _minibatches(len(found["rate"]), size, checks.integer("batches", batches), seed)
        second = _second_orders(flow, (held, gradient), drawn, operations, progress)
        step = _step(learning_rate, size, found["rate"].mean(axis=0), *second)
        return Explanation(**found, step=step)


def _checked_step(
    flow: PreferenceFlow, state: PyTree[Array], learning_rate: Any, batch_size: Any
) -> int:
    """The size of minibatches, or 0 without a learning rate."""
    if (learning_rate is None) != (batch_size is None):
        raise ValueError(
            "Arguments `learning_rate` and `batch_size` must both be given, or neither, but are "
            f"{learning_rate!r} and {batch_size!r}."
        )
    if learning_rate is None:
        return 0
    checks.positive("learning_rate", learning_rate)
    check_minibatches("`batch_size` must be None", flow, state)
    if flow.weights is not None:
        raise ValueError(
            "Argument `batch_size` must be None for a flow with weights, whose minibatches are "
            "no plain samples of its pairs."
        )
    count = len(jax.eval_shape(flow.pairs, state).chosen)
    size = checks.integer("batch_size", batch_size)
    if size > count:
        raise ValueError(
            f"Argument `batch_size` must be at most the number of pairs, {count}, but is {size}."
        )
    return size


def _parts(
    flow: PreferenceFlow, state: PyTree[Array], operations: str, progress: bool | None
) -> tuple[dict[str, Any], PyTree[Array]]:
    """The fields of an explanation except the step, and the gradient of the loss."""
    slopes = np.asarray(_slopes(flow, state, operations=operations))
    count = len(slopes)
    kernel, gradients = _own(flow, state, slopes, operations, progress)
    caused, along_means = np.asarray(_along(flow, state, gradients, operations=operations))
    own = -kernel * slopes[:, None, :]  # the side that moves, the response that causes it
    every = np.moveaxis(-caused, 0, -1)
    others = every - own if count > 1 else np.zeros_like(own)
    influence = -np.moveaxis(along_means, 0, -1) * slopes[:, :, None]
    sums = slopes.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        weighted = np.where(sums != 0, caused.mean(axis=1).T / sums, np.nan)
    found = {
        "rate": (own + others).sum(axis=-1),
        **{f"own_{side}": own[:, :, b] for b, side in enumerate(("chosen", "rejected"))},
        **{f"others_{side}": others[:, :, b] for b, side in enumerate(("chosen", "rejected"))},
        "influence": influence,
        "slopes": slopes,
        "kernel": kernel,
        "mean_kernel": along_means.mean(axis=1).T,
        "weighted_kernel": weighted,
    }
    return found, jax.tree.map(lambda sums: jnp.sum(sums[0], axis=0), gradients)


def _observed(flow: PreferenceFlow, state: PyTree[Array]) -> tuple[Any, ...]:
    """All results of the functions of a flow at a state, for a fingerprint of the operations."""
    return flow.velocity(state), flow.metric(state, state), _log_ratios(flow, state)


def _log_ratios(flow: PreferenceFlow, state: PyTree[Array]) -> Float[Array, "p 2"]:
    pairs = flow.pairs(state)
    return jnp.stack([pairs.u_chosen, pairs.u_rejected], axis=-1).reshape(-1, 2)


@partial(compiled, lightly=True)
def _slopes(flow: PreferenceFlow, state: PyTree[Array]) -> Float[Array, "p 2"]:
    """∂L/∂u of each response."""
    pairs = flow.pairs(state)

    def value(chosen: Array, rejected: Array) -> Array:
        moved = eqx.tree_at(lambda p: (p.chosen, p.rejected), pairs, (chosen, rejected))
        return flow.loss.mean(moved, flow.weights)

    found = jax.grad(value, argnums=(0, 1))(pairs.chosen, pairs.rejected)
    return jnp.stack(found, axis=-1).reshape(-1, 2)


def _own(
    flow: PreferenceFlow,
    state: PyTree[Array],
    slopes: Float[np.ndarray, "p 2"],
    operations: str,
    progress: bool | None,
) -> tuple[Float[np.ndarray, "p 2 2"], PyTree[Array]]:
    """The kernel of each pair by itself, and sums of the gradients of each side over all pairs.

    The leaves of the sums have two further axes in front. The first is the kind of sum: weighted by
    the slopes, or the mean. The second is the side: chosen or rejected.
    """
    count = len(slopes)
    size, kernels = min(_AT_ONCE, count), []
    sums = jax.tree.map(lambda leaf: jnp.zeros((2, 2, *leaf.shape), leaf.dtype), state)
    with tqdm(total=count, unit="pair", **bar_options(progress)) as bar:
        for first in range(0, count, size):
            indices = np.arange(first, first + size)
            real = (indices < count)[:, None]  # the last chunk is padded with its last pair
            indices = np.minimum(indices, count - 1)
            means = np.full_like(slopes[indices], 1 / count)
            weights = jnp.asarray(np.stack([slopes[indices], means], axis=1) * real[:, None])
            found, sums = _with_own_kernels(
                flow, state, jnp.asarray(indices), weights, sums, operations=operations
            )
            kernels.append(np.asarray(found))
            bar.update(min(size, count - first))
    return np.concatenate(kernels)[:count], sums


@partial(compiled, lightly=True)
def _with_own_kernels(
    flow: PreferenceFlow,
    state: PyTree[Array],
    indices: Int[Array, " c"],
    weights: Float[Array, "c 2 2"],
    sums: PyTree[Array],
) -> tuple[Float[Array, "c 2 2"], PyTree[Array]]:
    """The kernels of some pairs, each by itself, and `sums` with their weighted gradients added."""
    single = jax.eval_shape(flow.pairs, state).chosen.ndim == 0

    def of_pair(index: Int[Array, ""]) -> tuple[Float[Array, "2 2"], PyTree[Array]]:
        alone = flow if single else flow.subset(index[None])
        _, pull = jax.vjp(lambda at: _log_ratios(alone, at)[0], state)
        (gradients,) = jax.vmap(pull)(jnp.eye(2, dtype=jax.tree.leaves(state)[0].dtype))
        raised = jax.vmap(lambda covector: flow.metric(state, covector))(gradients)
        products = jax.tree.map(
            lambda g, m: g.reshape(2, -1) @ m.reshape(2, -1).T, gradients, raised
        )
        return sum(jax.tree.leaves(products)), gradients  # type: ignore[return-value]

    kernels, gradients = jax.vmap(of_pair)(indices)
    return kernels, jax.tree.map(
        lambda held, g: held + jnp.einsum("cka,ca...->ka...", weights, g), sums, gradients
    )


@partial(compiled, lightly=True)
def _along(
    flow: PreferenceFlow, state: PyTree[Array], gradients: PyTree[Array]
) -> Float[Array, "2 2 p 2"]:
    """The derivatives of all log-ratios along M·gradient, for each sum of gradients."""

    def along(covector: PyTree[Array]) -> Float[Array, "p 2"]:
        raised = flow.metric(state, covector)
        return jax.jvp(lambda at: _log_ratios(flow, at), (state,), (raised,))[1]

    return jax.vmap(jax.vmap(along))(gradients)


def _minibatches(count: int, size: int, batches: int, seed: int) -> Int[np.ndarray, "k b"]:
    """Random minibatches, each drawn without replacement."""
    generator = np.random.Generator(np.random.Philox(seed))
    return np.stack([generator.choice(count, size, replace=False) for _ in range(batches)])


@partial(compiled, lightly=True)
def _gradient_of(
    flow: PreferenceFlow, state: PyTree[Array], batch: Int[Array, " b"]
) -> PyTree[Array]:
    return flow.subset(batch).gradient(state)


@partial(compiled, lightly=True)
def _second_order(
    flow: PreferenceFlow, state: PyTree[Array], gradient: PyTree[Array]
) -> Float[Array, "2"]:
    """Half the second derivative of the mean log-ratios along M·gradient."""
    direction = flow.metric(state, gradient)

    def mean(at: PyTree[Array]) -> Float[Array, "2"]:
        return jnp.mean(_log_ratios(flow, at), axis=0)

    def slope(at: PyTree[Array]) -> Float[Array, "2"]:
        return jax.jvp(mean, (at,), (direction,))[1]

    return jax.jvp(slope, (state,), (direction,))[1] / 2


def _second_orders(
    flow: PreferenceFlow,
    place: tuple[PyTree[Array], PyTree[Array]],
    drawn: Int[np.ndarray, "k b"],
    operations: str,
    progress: bool | None,
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "k 2"]]:
    """The second-order change of a step with all pairs, and of steps with minibatches, at rate 1.

    `place` consists of the state and the gradient of the loss of all pairs at this state.
    """
    state, whole = place

    def along(gradient: PyTree[Array]) -> Float[np.ndarray, "2"]:
        return np.asarray(_second_order(flow, state, gradient, operations=operations))

    found = [
        along(_gradient_of(flow, state, jnp.asarray(batch), operations=operations))
        for batch in tqdm(drawn, unit="minibatch", **bar_options(progress))
    ]
    return along(whole), np.stack(found)


def _step(
    learning_rate: float,
    size: int,
    mean_rate: Float[np.ndarray, "2"],
    whole: Float[np.ndarray, "2"],
    found: Float[np.ndarray, "k 2"],
) -> StepChange:
    """The expected change in a step, from the second orders with all pairs and with minibatches."""
    added = learning_rate**2 * (found - whole)
    error = np.std(added, axis=0, ddof=1) if len(found) > 1 else np.full(2, np.nan)
    return StepChange(
        learning_rate=learning_rate,
        batch_size=size,
        first_order=learning_rate * mean_rate,
        curvature=learning_rate**2 * whole,
        noise=added.mean(axis=0),
        standard_error=error / np.sqrt(len(found)),
    )
