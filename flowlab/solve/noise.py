"""Noise of a flow: thermal noise, or the noise of gradients on minibatches.

A flow with noise is an Itô equation dy = (v + c) dt + B dW, with the velocity v = −M∇L of the flow,
an addition c to the drift, and a factor B of the Wiener process W.

d: numbers in a state; k: components of W; p: pairs.
"""

from abc import abstractmethod
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, PyTree

from flowlab._arrays import like
from flowlab._parameters import positive
from flowlab.flow import AbstractFlow, PreferenceFlow, lifted, metric_matrix

__all__ = ["AbstractNoise", "Minibatch", "Thermal", "check_minibatches"]

_ALIKE = 1e-3  # of a loss: the tolerance between two ways to compute it, also in float32


class AbstractNoise(eqx.Module):
    """The noise of a flow: an addition to the drift, and the factor B in B dW."""

    @abstractmethod
    def check(self, flow: AbstractFlow, state: PyTree[Any]) -> None:
        """Raise a ValueError if the flow cannot have this noise."""

    @abstractmethod
    def drift(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, " d"]:
        """The addition to the velocity of the flow, as a flattened state."""

    @abstractmethod
    def factor(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, "d k"]:
        """The factor B at a state; B Bᵀ is the covariance of the noise per unit of flow time."""

    def covariance(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, "d d"]:
        """The covariance of the noise at a state, per unit of flow time."""
        factor = self.factor(flow, jax.tree.map(jnp.asarray, state))
        return factor @ factor.T


class Thermal(AbstractNoise):
    """Thermal noise √(2TM) dW, with the drift T div M under which e^(−L/T) is stationary.

    Here M is the metric, L the potential, and (div M)_i = Σ_j ∂M_ij/∂y_j. Each step of each path
    computes M as a matrix and its square root, so states should be small.

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

    C = Σ_i p_i s_i s_iᵀ,   s_i = ∂∇L/∂p_i

    Here M is the metric, p_i are the weights of the flow, with sum 1, and s_i is the influence of
    pair i on the gradient. For a loss that is a mean over pairs, s_i = g_i − ḡ, with g_i the
    gradient of the loss of pair i and ḡ the mean of the g_i. For a mean over the tokens of all
    pairs (SFT, and the likelihood term in ORPO and CPO), L = Σ p l / Σ p N, with l_i the summed
    loss and N_i the number of tokens of pair i, and s_i = (∇l_i − N_i ∇L) / Σ p N.

    A step of descent is y ← y − η M ĝ, with ĝ the gradient on b pairs drawn with replacement. It
    takes flow time η and adds the covariance η² M C M / b, as this noise does in flow time η. The
    drift is unchanged. One random number is drawn per pair and step.

    Args:
        learning_rate: η, positive, in units of flow time.
        batch_size: b, positive.

    Raises:
        ValueError: If a number is not positive and finite.

    Accuracy: O(η), the error of a stochastic differential equation as a model of descent. For a
        mean over tokens also O(1/b), since the bias of the gradient on a small batch is neglected.

    Source: Li, Tai and E, Journal of Machine Learning Research 20(40), 1–47 (2019).
    """

    learning_rate: Float[ArrayLike, ""] = positive(0.01, "learning_rate", single=True)
    batch_size: Float[ArrayLike, ""] = positive(1.0, "batch_size", single=True)

    def check(self, flow: AbstractFlow, state: PyTree[Any]) -> None:
        flow = check_minibatches("`noise` must not be Minibatch(...)", flow, state)
        alone, among = jax.jit(partial(_first_pair, flow))(state)
        if abs(alone - among) > _ALIKE * abs(among):
            raise ValueError(
                f"Argument `noise` must not be Minibatch(...) for {type(flow.loss).__name__}, "
                f"whose mean over a single pair, {alone:g}, is not that pair's loss, {among:g}."
            )

    def drift(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, " d"]:
        del flow
        return jnp.zeros_like(ravel_pytree(state)[0])

    def factor(self, flow: AbstractFlow, state: PyTree[Array]) -> Float[Array, "d p"]:
        assert isinstance(flow, PreferenceFlow)
        vector, state_of = ravel_pytree(state)

        def mean(shares: Float[Array, " p"], y: Float[Array, " d"]) -> Float[Array, ""]:
            return flow.loss.mean(flow.policy.pairs(state_of(y)), shares)

        count = jax.eval_shape(flow.pairs, state).chosen.size
        weights = jnp.ones(count) if flow.weights is None else jnp.asarray(flow.weights)
        shares = like(weights / jnp.sum(weights), vector)
        of_each = jax.jacfwd(jax.grad(mean, argnums=1))(shares, vector)
        spread = jnp.sqrt(shares)[:, None] * of_each.T
        scale = like(self.learning_rate, vector) / like(self.batch_size, vector)
        return jnp.sqrt(scale) * lifted(flow, state, spread)


def check_minibatches(what: str, flow: AbstractFlow, state: PyTree[Any]) -> PreferenceFlow:
    """The flow, unchanged; an error if minibatches of its pairs cannot be drawn.

    Args:
        what: The beginning of the message: the argument that asks for minibatches, and the value
            that it must have without them.
        flow: The flow.
        state: A state of the flow.

    Raises:
        ValueError: If the flow does not have several pairs, or its loss is a batch loss.
    """
    if not isinstance(flow, PreferenceFlow) or not jax.eval_shape(flow.pairs, state).chosen.shape:
        raise ValueError(f"Argument {what} for a flow without several pairs, from which to draw.")
    if flow.loss.of_batch:
        raise ValueError(
            f"Argument {what} for {type(flow.loss).__name__}, whose value for one pair depends "
            "on the other pairs in the batch."
        )
    return flow


def _first_pair(
    flow: PreferenceFlow, state: PyTree[Array]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean loss with all weight on the first pair, and the loss of the first pair alone."""
    pairs = flow.pairs(state)
    only = jnp.zeros_like(pairs.chosen).at[0].set(1)
    return flow.loss.mean(pairs, only), flow.loss(pairs)[0]


def _root(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The symmetric square root of a positive semidefinite matrix.

    For d ≤ 2 in closed form; for d = 2 it is (M + √det M I)/√(tr M + 2√det M).
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
