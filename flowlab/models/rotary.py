"""Rotary positions: the angle by which each pair of components of queries and keys turns.

t: tokens; h: heads; d: width of a head.
"""

from math import pi
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowlab.models.checkpoint import Config, is_positive

__all__ = ["angular_frequencies", "rotated"]

_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_NEEDED = {"default": (), "linear": ("factor",), "llama3": _LLAMA3}


def angular_frequencies(config: Config, width: int) -> Float[np.ndarray, " d/2"]:
    """The angles per token, θ^(−2i/d) radians for i = 0, 1, ..., scaled by a configuration.

    `linear` divides all of them by a factor (Chen et al., arXiv 2306.15595); `llama3` only those
    whose wavelength is long compared with the training context, with a smooth transition.

    Args:
        config: The configuration, of transformers 5 (`rope_parameters`) or earlier.
        width: Width of a head, even.

    Raises:
        ValueError: If positions are scaled in another way, or a number is missing.

    Source: Su et al. (arXiv 2104.09864); `llama3` as in Meta's code of Llama 3.1.
    """
    entry = "rope_parameters" if config.entries.get("rope_parameters") else "rope_scaling"
    scaling = config.entries.get(entry) or {}
    if not isinstance(scaling, dict):
        raise config.wrong(entry, "an object", scaling)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _NEEDED:
        raise config.wrong(entry, 'the type "default", "linear" or "llama3"', kind)
    for key in _NEEDED[kind]:
        if not is_positive(scaling.get(key)):
            raise config.wrong(entry, f"a positive `{key}`", scaling.get(key))
    partial = scaling.get("partial_rotary_factor", config.entries.get("partial_rotary_factor", 1))
    if partial not in (None, 1):
        raise config.wrong("partial_rotary_factor", "1", partial)
    theta = scaling.get("rope_theta", config.positive("rope_theta", 1e4))
    if not is_positive(theta):
        raise config.wrong("rope_theta", "a positive number", theta)
    frequencies = float(theta) ** (-np.arange(0, width, 2) / width)
    if kind == "linear":
        return frequencies / scaling["factor"]
    return _slowed(frequencies, scaling) if kind == "llama3" else frequencies


def _slowed(frequencies: Float[np.ndarray, " n"], scaling: dict[str, Any]) -> np.ndarray:
    """Frequencies divided by a factor where their wavelengths are long, as Llama 3.1 does."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rotated(
    x: Float[Array, "b t h d"], frequencies: Float[np.ndarray, " d/2"]
) -> Float[Array, "b t h d"]:
    """Queries or keys, rotated by their positions; component i is paired with component i + d/2.

    Angles are computed in float64, for any precision of the work.
    """
    angles = np.outer(np.arange(x.shape[1]), frequencies)[None, :, None, :]
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = (
        jnp.broadcast_to(jnp.asarray(function(angles), x.dtype), first.shape)
        for function in (np.cos, np.sin)
    )
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
