"""A language model with one logit for each couple of a token and its successor, and its pairs.

Its log-probabilities and their gradients are written down at once.
"""

import jax
import numpy as np

from flowlab import data

__all__ = ["MASK", "SMALL", "TABLE", "TOKENS", "bigrams", "by_hand"]

TOKENS = np.array([[[0, 1, 2, 0], [0, 2, 0, 0]], [[1, 2, 2, 1], [1, 0, 0, 0]]])
MASK = np.array([[[0, 1, 1, 0], [0, 1, 0, 0]], [[0, 0, 1, 1], [0, 1, 1, 1]]], bool)
SMALL = data.Pairs(TOKENS, MASK, MASK.sum(-1).astype(float), np.arange(2))
TABLE = np.random.default_rng(0).standard_normal((3, 3))


def bigrams(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Logits of the successors of tokens."""
    return table[tokens]


def by_hand(table: np.ndarray) -> np.ndarray:
    """Log-probabilities of the responses of `SMALL`, token by token, shape (2, 2)."""
    logs = table - np.log(np.sum(np.exp(table), axis=1, keepdims=True))
    return np.array(
        [
            [logs[0, 1] + logs[1, 2], logs[0, 2]],
            [logs[2, 2] + logs[2, 1], logs[1, 0] + logs[0, 0] + logs[0, 0]],
        ]
    )
