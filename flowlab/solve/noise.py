"""The noise of a flow: thermal, or that of minibatches.

    dy = (−M∇L + T div M) dt + √(2TM) dW      (Itô)

d: numbers in a state; k: of the noise; p: pairs.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, PyTree

from flowlab.flow import AbstractFlow, PreferenceFlow, lifted, metric_matrix
from flowlab.losses.base import like, positive

__all__ = ["AbstractNoise", "Minibatch", "Thermal"]


class AbstractNoise(eqx.Module):
    """The noise of a flow: what it adds to the drift, and the factor B of B dW."""

    @abstractmethod
    def check(self, flow: AbstractFlow, state: PyTree[Any]) -> None:
        """Raise a ValueError where the flow cannot have this noise."""

    @abstractmethod
    def drift(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, " d"]:
        """What is added to the velocity of the flow, the leaves of the state in one vector."""

    @abstractmethod
    def factor(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, "d k"]:
        """B, with B Bᵀ the covariance of the noise."""

    def covariance(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, "d d"]:
        """The covariance of the noise at a state, per unit of flow time."""
        factor = self.factor(flow, jax.tree.map(jnp.asarray, state))
        return factor @ factor.T


class Thermal(AbstractNoise):
    """Thermal noise √(2TM) dW, with the drift T div M under which e^(−L/T) is stationary.

    (div M)_i = Σ_j ∂M_ij/∂y_j. M is built as a matrix, and its root taken, for each path and step:
    for small states.

    Args:
        temperature: T, positive, in units of the potential.

    Raises:
        ValueError: If `temperature` is not positive and finite.

    Source: Graham, Zeitschrift für Physik B 26, 397–405 (1977).
    """

    temperature: Float[ArrayLike, ""] = positive(1.0, "temperature", single=True)

    def check(self, flow: AbstractFlow, state: PyTree[Any]) -> None:
        del flow, state

    def drift(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, " d"]:
        vector, state_of = ravel_pytree(state)
        slopes = jax.jacfwd(lambda y: metric_matrix(flow, state_of(y)))(vector)
        return like(self.temperature, vector) * jnp.trace(slopes, axis1=1, axis2=2)

    def factor(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, "d d"]:
        matrix = metric_matrix(flow, state)
        return jnp.sqrt(2 * like(self.temperature, matrix)) * _root(matrix)


class Minibatch(AbstractNoise):
    """The noise of gradient descent on minibatches, of covariance η/b · M C M per flow time.

    C = Σ_i p_i (g_i − ḡ)(g_i − ḡ)ᵀ, with g_i the gradient of the loss of pair i, ḡ their mean and
    p_i the weights of the flow, of sum 1. A step of descent, y ← y − η M ĝ with ĝ the mean of b
    pairs drawn with replacement, takes flow time η and adds η² M C M / b, as η of flow time does
    here. Nothing is added to the drift. There is a random number for each pair and step.

    Args:
        learning_rate: η, positive, in units of flow time.
        batch_size: b, positive.

    Raises:
        ValueError: If a number is not positive and finite.

    Accuracy: that of the description of descent by an equation with noise, O(η).

    Source: Li, Tai and E, Journal of Machine Learning Research 20(40), 1–47 (2019).
    """

    learning_rate: Float[ArrayLike, ""] = positive(0.01, "learning_rate", single=True)
    batch_size: Float[ArrayLike, ""] = positive(1.0, "batch_size", single=True)

    def check(self, flow: AbstractFlow, state: PyTree[Any]) -> None:
        if (
            not isinstance(flow, PreferenceFlow)
            or not jax.eval_shape(flow.pairs, state).chosen.shape
        ):
            raise ValueError(
                "Argument `noise` must not be Minibatch(...) for a flow without several pairs, "
                "from which to draw."
            )
        if flow.loss.of_batch:  # type: ignore[attr-defined]
            raise ValueError(
                f"Argument `noise` must not be Minibatch(...) for {type(flow.loss).__name__}, "
                "whose value for a pair depends on the pairs beside it."
            )

    def drift(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, " d"]:
        del flow
        return jnp.zeros_like(ravel_pytree(state)[0])

    def factor(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, "d p"]:
        assert isinstance(flow, PreferenceFlow)
        vector, state_of = ravel_pytree(state)

        def lost(y: Float[Array, " d"]) -> Float[Array, " p"]:
            return flow.loss(flow.policy.pairs(state_of(y)))

        gradients = jax.jacrev(lost)(vector)
        count = len(gradients)
        weights = jnp.ones(count) if flow.weights is None else jnp.asarray(flow.weights)
        shares = like(weights / jnp.sum(weights), vector)[:, None]
        spread = jnp.sqrt(shares) * (gradients - jnp.sum(shares * gradients, axis=0, keepdims=True))
        scale = like(self.learning_rate, vector) / like(self.batch_size, vector)
        return jnp.sqrt(scale) * lifted(flow, state, spread)


def _root(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The symmetric root of a positive semidefinite matrix.

    In closed form up to d = 2, where the root is (M + √det M I)/√(tr M + 2√det M).
    """
    size = len(matrix)
    if size == 1:
        return jnp.sqrt(matrix)
    if size > 2:
        values, vectors = jnp.linalg.eigh(matrix)
        return (vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :]) @ vectors.T
    determinant = matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]
    shift = jnp.sqrt(jnp.maximum(determinant, 0))
    scale = jnp.trace(matrix) + 2 * shift
    shifted = matrix + shift * jnp.eye(2, dtype=matrix.dtype)
    return shifted / jnp.sqrt(jnp.where(scale > 0, scale, 1))
