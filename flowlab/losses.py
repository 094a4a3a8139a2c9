"""Preference losses: from pairs of log-probabilities to numbers.

p: pairs, any shape, a scalar for one pair.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

__all__ = [
    "DPO",
    "AbstractLoss",
    "Pair",
    "floats",
    "negative_log_sigmoid",
    "positive_parameter",
]


class Pair(eqx.Module):
    """Summed log-probabilities of a chosen and a rejected response; a batch is a Pair of arrays.

    Attributes:
        chosen: Log-probability of the chosen response under the policy, in nats.
        rejected: Log-probability of the rejected response under the policy, in nats.
        ref_chosen: Log-probability of the chosen response under the reference, in nats.
        ref_rejected: Log-probability of the rejected response under the reference, in nats.
        chosen_length: Tokens of the chosen response.
        rejected_length: Tokens of the rejected response.
        offset: A required margin of the pair, for losses that use one; else None.
    """

    chosen: Float[Array, "*p"]
    rejected: Float[Array, "*p"]
    ref_chosen: Float[Array, "*p"]
    ref_rejected: Float[Array, "*p"]
    chosen_length: Float[Array, "*p"]
    rejected_length: Float[Array, "*p"]
    offset: Float[Array, "*p"] | None = None

    @property
    def u_chosen(self) -> Float[Array, "*p"]:
        """Log-ratio of the chosen response: log-probability less that of the reference."""
        return self.chosen - self.ref_chosen

    @property
    def u_rejected(self) -> Float[Array, "*p"]:
        """Log-ratio of the rejected response: log-probability less that of the reference."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> Float[Array, "*p"]:
        """Log-ratio of the chosen less that of the rejected response (without β)."""
        return self.u_chosen - self.u_rejected


class AbstractLoss(eqx.Module):
    """A preference loss: one value per pair, and a mean over pairs.

    Hyper-parameters are array leaves, so that sweeping one does not compile again.
    """

    @abstractmethod
    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        """The loss of each pair."""

    def mean(self, pairs: Pair, weights: Float[ArrayLike, "*p"] | None = None) -> Float[Array, ""]:
        """The (weighted) mean of the loss over all pairs.

        Args:
            pairs: The pairs.
            weights: One non-negative weight per pair; their sum need not be 1.
        """
        values = self(pairs)
        if weights is None:
            return jnp.mean(values)
        weights = jnp.asarray(weights, values.dtype)
        return jnp.sum(weights * values) / jnp.sum(weights)


class DPO(AbstractLoss):
    """Direct preference optimisation: −log σ(β·h), with h the margin of the log-ratios.

    Args:
        beta: Strength β of the implicit KL regularisation, positive; an array sets one per pair.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2305.18290, equation 7; `sigmoid` in TRL, with the reverse KL divergence.
    Accuracy: to a few units in the last place for every finite margin; the gradient needs no
        logarithm.
    """

    beta: Float[ArrayLike, "*p"]

    def __init__(self, beta: Float[ArrayLike, "*p"]) -> None:
        self.beta = positive_parameter("beta", beta)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = floats(pairs.margin)
        return negative_log_sigmoid(jnp.asarray(self.beta, margin.dtype) * margin)


@jax.custom_jvp
def negative_log_sigmoid(scaled_margin: Float[Array, "*p"]) -> Float[Array, "*p"]:
    """−log σ(z), elementwise, with the derivative −σ(−z) as its rule.

    The rule of `jax.nn.log_sigmoid` keeps the logarithm alive in the gradient, which costs the
    field of a flow several times what the sigmoid costs.
    """
    return jax.nn.softplus(-scaled_margin)


@negative_log_sigmoid.defjvp
def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    (z,), (tangent,) = primals, tangents
    return negative_log_sigmoid(z), -jax.nn.sigmoid(-z) * tangent


def floats(values: ArrayLike) -> Array:
    """An array of floats, of the precision given; what is cast to its type is not cut to integers.

    Args:
        values: Numbers of any shape; integers become floats of the default precision.
    """
    array = jnp.asarray(values)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def positive_parameter(name: str, value: ArrayLike) -> Any:
    """A hyper-parameter as an array leaf, checked to be positive and finite where it is known.

    Raises:
        ValueError: If a value is not a positive finite number.
    """
    if isinstance(value, Tracer):
        return value
    if isinstance(value, jax.Array):
        value = np.asarray(value)
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if not np.all(np.isfinite(array) & (array > 0)):
        raise ValueError(f"Argument `{name}` must be positive and finite, but is {value!r}.")
    return array
