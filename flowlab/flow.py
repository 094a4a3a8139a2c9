"""Gradient flows: the negative gradient of a potential L, in a metric M, on a domain.

y' = −M(y) ∇L(y)
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from flowlab._checks import numbers
from flowlab._parameters import parameter_names, replaced
from flowlab._tracing import in_jax
from flowlab.domains import AbstractDomain, WholeSpace
from flowlab.losses import AbstractLoss, LowerBound, Pair
from flowlab.policies import AbstractPolicy, AbstractStates, WallRule, check_wall

__all__ = ["AbstractFlow", "Flow", "PreferenceFlow", "preference_flow"]

_NO_WALLS = (
    ": the axes absorb what comes to them, which until.boundary() measures; "
    "Box() and Simplex() have walls, and on LogRatioPlane() there is no boundary"
)


class AbstractFlow(AbstractStates):
    """A flow: a potential with a metric and a domain."""

    @property
    def reference_state(self) -> PyTree[Array] | None:
        """An example of a state, with the structure and shapes of all states; None if unknown."""
        return None

    @abstractmethod
    def potential(self, state: PyTree[Array]) -> Float[Array, ""]:
        """The value L of the potential at a state."""

    @abstractmethod
    def metric(self, state: PyTree[Array], covector: PyTree[Array]) -> PyTree[Array]:
        """The metric M at a state, applied to a covector."""

    @abstractmethod
    def with_parameter(self, name: str, value: Any) -> "AbstractFlow":
        """This flow with one hyper-parameter replaced, checked as at construction.

        Raises:
            ValueError: If there is no hyper-parameter of that name; the message lists them.
        """

    def margin_at(self, level: Float[ArrayLike, " k"]) -> Float[Array, " k"] | None:
        """The margins at which the potential has the values `level`, for a flow of a single pair.

        None if there is no pair or more than one, or if the potential is not a decreasing function
        of the margin alone.
        """
        del level

    def lower_bound(self) -> LowerBound | None:
        """A lower bound of the potential; None if none is known."""
        return None

    def gradient(self, state: PyTree[Array]) -> PyTree[Array]:
        """The gradient ∇L of the potential at a state."""
        return jax.grad(self.potential)(jax.tree.map(jnp.asarray, state))

    def velocity(self, state: PyTree[Array]) -> PyTree[Array]:
        """The velocity −M∇L of the free flow at a state, without the effect of walls."""
        return jax.tree.map(jnp.negative, self.metric(state, self.gradient(state)))

    def speed(self, state: PyTree[Array]) -> Float[Array, ""]:
        """Euclidean length of the velocity, in the state's coordinates per unit of flow time."""
        return norm(self.velocity(state))


class Flow(AbstractFlow):
    """The negative gradient flow of any scalar JAX function of a state.

    Globals, attributes and captured arrays that `potential` and `metric` use may change between two
    calls of flowlab: each call reads them again. Only a function that you have compiled with
    `jax.jit` keeps the globals of its first call, until its `clear_cache()`.

    Args:
        potential: Scalar function of one state (an array of shape (d,), or any PyTree).
        metric: The metric as an operator, `metric(state, covector) -> M(state) @ covector`,
            symmetric positive semidefinite; None for the identity.
        domain: Set of states; None for the whole space.
        wall: The behaviour of flow lines at walls of the domain: `"stop"` or `"slide"`.

    Raises:
        ValueError: If `potential` or `metric` cannot be called, `wall` is unknown, or `"slide"` is
            asked for on a domain that has no walls.
    """

    function: Callable[[PyTree[Array]], Float[Array, ""]] = eqx.field(
        metadata={"argument": "potential"}
    )
    operator: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]] | None = eqx.field(
        metadata={"argument": "metric"}
    )
    domain: AbstractDomain
    wall: WallRule = eqx.field(static=True)

    def __init__(
        self,
        potential: Callable[[PyTree[Array]], Float[Array, ""]],
        *,
        metric: Callable[[PyTree[Array], PyTree[Array]], PyTree[Array]] | None = None,
        domain: AbstractDomain | None = None,
        wall: WallRule = "stop",
    ) -> None:
        _check_function("potential", potential, "one argument, the state", 1)
        if metric is not None:
            _check_function("metric", metric, "two arguments, a state and a covector", 2)
        self.function = potential
        self.operator = metric
        self.domain = WholeSpace() if domain is None else domain
        self.wall = check_wall(wall)
        _refuse_idle_slide(self.domain, self.wall)

    def potential(self, state: PyTree[Array]) -> Float[Array, ""]:
        return self.function(state)

    def metric(self, state: PyTree[Array], covector: PyTree[Array]) -> PyTree[Array]:
        return covector if self.operator is None else self.operator(state, covector)

    def with_parameter(self, name: str, value: Any) -> "Flow":
        if name not in parameter_names(self.function):
            raise _no_such_parameter(name, parameter_names(self.function))
        function = replaced(self.function, name, value)
        return eqx.tree_at(lambda flow: flow.function, self, function)


class PreferenceFlow(AbstractFlow):
    """The negative gradient flow of a preference loss under a policy; see `preference_flow`."""

    loss: AbstractLoss
    policy: AbstractPolicy
    weights: Float[ArrayLike, " p"] | None

    domain: AbstractDomain
    wall: WallRule = eqx.field(static=True)

    def __init__(
        self,
        loss: AbstractLoss,
        policy: AbstractPolicy,
        weights: Float[ArrayLike, " p"] | None = None,
    ) -> None:
        self.loss = loss
        self.policy = policy
        self.weights = weights
        self.domain = policy.domain
        self.wall = policy.wall

    @property
    def state_shape(self) -> tuple[int, ...] | None:
        return self.policy.state_shape

    @property
    def components(self) -> tuple[str, ...] | None:
        return self.policy.components

    @property
    def reference_state(self) -> PyTree[Array] | None:
        return self.policy.example_state

    def pairs(self, state: PyTree[Array]) -> Pair:
        """The log-probabilities of chosen and rejected responses at a state, for all pairs."""
        return self.policy.pairs(state)

    def subset(self, indices: Int[ArrayLike, " b"]) -> "PreferenceFlow":
        """The flow restricted to some of the pairs, such as those of a minibatch.

        Args:
            indices: Indices of the pairs, counted from 0; an index may occur more than once.
        """
        taken = jnp.asarray(indices)
        weights = None if self.weights is None else jnp.asarray(self.weights)[taken]
        return PreferenceFlow(self.loss.subset(taken), self.policy.subset(taken), weights)

    def margin_at(self, level: Float[ArrayLike, " k"]) -> Float[Array, " k"] | None:
        pairs = _pairs_of(self.policy)
        single = pairs is not None and pairs.chosen.shape == ()
        return self.loss.margin_at(level) if single else None

    def lower_bound(self) -> LowerBound | None:
        return self.loss.lower_bound()

    def potential(self, state: PyTree[Array]) -> Float[Array, ""]:
        return self.loss.mean(self.policy.pairs(state), self.weights)

    def metric(self, state: PyTree[Array], covector: PyTree[Array]) -> PyTree[Array]:
        return self.policy.metric(state, covector)

    def with_parameter(self, name: str, value: Any) -> "PreferenceFlow":
        of_loss, of_policy = parameter_names(self.loss), parameter_names(self.policy)
        if (name in of_loss) == (name in of_policy):
            raise _no_such_parameter(name, of_loss + of_policy)
        loss, policy = (replaced(part, name, value) for part in (self.loss, self.policy))
        return PreferenceFlow(loss, policy, self.weights)


def preference_flow(
    loss: AbstractLoss, policy: AbstractPolicy, *, weights: Float[ArrayLike, " p"] | None = None
) -> "PreferenceFlow":
    """The negative gradient flow of a preference loss under a policy.

        y' = −M(y) ∇L(y),   L(y) = (weighted) mean over pairs of the loss

    Args:
        loss: A preference loss such as `DPO(beta=0.1)`.
        policy: A policy such as `RatioPlane()`.
        weights: One non-negative weight per pair; None for equal weights.

    Raises:
        ValueError: If `loss` or `policy` has another type; the policy has a single pair, and the
            loss is a batch loss or has one hyper-parameter per pair; a weight is negative or NaN,
            all weights are zero, or there are not as many weights as pairs; or `"slide"` is asked
            for on a domain that has no walls.
    """
    if not isinstance(loss, AbstractLoss):
        raise ValueError(
            "Argument `loss` must be a loss such as DPO(0.1) or one of your own, a subclass of "
            f"AbstractLoss, but is {loss!r}."
        )
    if not isinstance(policy, AbstractPolicy):
        raise ValueError(
            f"Argument `policy` must be a policy such as RatioPlane(), but is {policy!r}."
        )
    _refuse_idle_slide(policy.domain, policy.wall)
    _check_values(loss, policy)
    if weights is not None:
        weights = numbers(weights)
        if not (np.all(weights >= 0) and np.isfinite(weights.sum()) and weights.sum() > 0):
            raise ValueError(
                f"Argument `weights` must be non-negative with a positive sum, but is {weights}."
            )
        _check_count(weights, policy)
    return PreferenceFlow(loss, policy, weights)


def norm(vector: PyTree[Array]) -> Float[Array, ""]:
    """Euclidean norm over all leaves of a PyTree."""
    return jnp.sqrt(inner(vector, vector))


def largest(tree: PyTree[Array]) -> Float[Array, ""]:
    """The largest absolute value in a PyTree."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]))


def inner(first: PyTree[Array], second: PyTree[Array]) -> Float[Array, ""]:
    """Euclidean inner product over all leaves of two PyTrees."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), first, second)
    return sum(jax.tree.leaves(products))  # type: ignore[return-value]


def lifted(
    flow: AbstractFlow, state: PyTree[Array], covectors: Float[Array, "k d"]
) -> Float[Array, "d k"]:
    """The columns M(state) c for the rows c of `covectors`, all as flattened states."""
    _, state_of = ravel_pytree(state)

    def one(covector: Float[Array, " d"]) -> Float[Array, " d"]:
        return ravel_pytree(flow.metric(state, state_of(covector)))[0]

    return jax.vmap(one, out_axes=1)(covectors)


def metric_matrix(flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, "d d"]:
    """The metric M at a state, as a matrix that acts on flattened states."""
    vector, _ = ravel_pytree(state)
    return lifted(flow, state, jnp.eye(vector.size, dtype=vector.dtype))


def _check_function(name: str, value: Any, wanted: str, count: int) -> None:
    """Refuse a value that is not a function of `count` positional arguments."""
    if not callable(value):
        optional = " or None" if name == "metric" else ""
        raise ValueError(f"Argument `{name}` must be a function{optional}, but is {value!r}.")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some compiled functions have no signature
        return
    try:
        signature.bind(*range(count))
    except TypeError:
        raise ValueError(
            f"Argument `{name}` must be a function of {wanted} (on a plane an array of two "
            f"numbers), but takes {signature}."
        ) from None


def _check_values(loss: AbstractLoss, policy: AbstractPolicy) -> None:
    """Refuse a loss that has several values on a single pair."""
    pairs = _pairs_of(policy)
    if pairs is None or pairs.chosen.shape:
        return
    with jax.enable_x64(True):
        with in_jax("loss"):
            shape = () if loss.of_batch else jax.eval_shape(loss, pairs).shape
    if loss.of_batch:
        raise ValueError(
            "Argument `loss` must be a loss of one pair, but the value of "
            f"{type(loss).__name__} depends on the other pairs of a batch, and the policy has a "
            "single pair."
        )
    if shape:
        raise ValueError(
            "Argument `loss` must have one value for one pair, but has an array of "
            f"hyper-parameters: {loss!r}."
        )


def _check_count(weights: np.ndarray, policy: AbstractPolicy) -> None:
    pairs = _pairs_of(policy)
    if pairs is None:
        return
    shape = pairs.chosen.shape
    if weights.shape != shape or not shape:
        has = f"{shape[0]} pairs" if shape else "one pair alone, which needs no weight"
        raise ValueError(
            "Argument `weights` must have one weight for each pair, but has shape "
            f"{weights.shape}, and the policy has {has}."
        )


def _pairs_of(policy: AbstractPolicy) -> Any:
    """The shapes of a policy's pairs; None if it gives no example of a state.

    Evaluated in 64 bits regardless of the caller, since JAX warns if it has to narrow a shape's
    dtype.
    """
    with jax.enable_x64(True):
        if policy.state_shape is not None:
            reference: Any = jax.ShapeDtypeStruct(policy.state_shape, np.float64)
        else:
            reference = policy.example_state
        return None if reference is None else jax.eval_shape(policy.pairs, _shapes(reference))


def _shapes(state: PyTree[Any]) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a state."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        narrow = getattr(leaf, "dtype", None) == np.float32
        return jax.ShapeDtypeStruct(np.shape(leaf), np.float32 if narrow else np.float64)

    return jax.tree.map(shape, state)


def _refuse_idle_slide(domain: AbstractDomain, wall: WallRule) -> None:
    if wall == "slide" and domain.walls()[1].size == 0:
        raise ValueError(
            f'Argument `wall` must be "stop" on {type(domain).__name__}(), which has no walls, '
            f"but is {wall!r}{_NO_WALLS if domain.absorbing else ''}."
        )


def _no_such_parameter(name: str, known: list[str]) -> ValueError:
    listed = ", ".join(f"`{item}`" for item in known) or "none"
    return ValueError(
        f"Argument `over` must name one hyper-parameter of the flow ({listed}), but names {name!r}."
    )
