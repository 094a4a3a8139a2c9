"""Parts that the architectures share: projections, norms, activations, causal attention.

Letters in shapes: b sequences, t tokens, h heads of queries, k heads of keys and values, d width of
a head.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

__all__ = ["ACTIVATIONS", "attend", "embedded", "layer_norm", "projected", "rms_norm"]

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "gelu": partial(jax.nn.gelu, approximate=False),
        "gelu_new": partial(jax.nn.gelu, approximate=True),
        "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
        "swish": jax.nn.silu,
    }
)
"""Activations by the names that configurations have for them."""


def embedded(table: Float[Array, "v m"], tokens: Int[Array, "b t"]) -> Float[Array, "b t m"]:
    """The rows of a table that belong to tokens; NaN for a token without a row."""
    inside = (tokens >= 0) & (tokens < table.shape[0])
    rows = jnp.take(table, tokens, axis=0, mode="clip")
    return jnp.where(inside[..., None], rows, jnp.nan)


def projected(
    x: Float[Array, "b t m"], weight: Float[Array, "m n"], bias: Float[Array, " n"] | None
) -> Float[Array, "b t n"]:
    """The projection x·weight + bias."""
    y = x @ weight
    return y if bias is None else y + _along(bias, y)


def layer_norm(
    x: Float[Array, "b t m"], weight: Float[Array, " m"], bias: Float[Array, " m"], epsilon: float
) -> Float[Array, "b t m"]:
    """The layer norm (x − mean) / √(variance + ε) · weight + bias, over the last axis."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return rms_norm(centred, weight, epsilon) + _along(bias, x)


def rms_norm(
    x: Float[Array, "b t m"], weight: Float[Array, " m"], epsilon: float
) -> Float[Array, "b t m"]:
    """The RMS norm x / √(mean of squares + ε) · weight, over the last axis."""
    square = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * lax.rsqrt(square + epsilon) * _along(weight, x)


def attend(
    queries: Float[Array, "b t h d"],
    keys: Float[Array, "b t k d"],
    values: Float[Array, "b t k d"],
    *,
    scale: float,
    window: int | None = None,
) -> Float[Array, "b t h*d"]:
    """Causal attention, in which each head of keys and values serves a group of query heads.

    Args:
        queries: The queries of all tokens.
        keys: The keys of all tokens.
        values: The values of all tokens.
        scale: The factor of the inner products.
        window: Number of tokens that a token attends to, itself included; None for all earlier
            tokens.
    """
    # `jax.nn.dot_product_attention` computes the softmax in float32, whatever the precision.
    count, length, heads, width = queries.shape
    grouped = queries.reshape(count, length, keys.shape[2], -1, width)
    scores = scale * jnp.einsum("bqkgd,bskd->bkgqs", grouped, keys)
    back = np.arange(length)[:, None] - np.arange(length)  # tokens from a key to a query
    seen = (back >= 0) & (back < (length if window is None else window))
    scores = jnp.where(np.broadcast_to(seen, scores.shape), scores, -jnp.inf)
    mixed = jnp.einsum("bkgqs,bskd->bqkgd", jax.nn.softmax(scores, axis=-1), values)
    return mixed.reshape(count, length, heads * width)


def _along(vector: Float[Array, " m"], x: Float[Array, "... m"]) -> Float[Array, "... m"]:
    """A vector, broadcast along the last axis of an array to its shape."""
    return jnp.broadcast_to(vector, x.shape)
