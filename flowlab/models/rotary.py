"""Rotary positions: rotations of pairs of components of queries and keys.

Letters in shapes: t tokens, h heads, d width of a head.
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
    """The angles per token, θ^(−2i/d) radians for i = 0, 1, ..., scaled as a configuration says.

    The scaling `linear` divides all angles by a factor (Chen et al., arXiv 2306.15595). The scaling
    `llama3` divides only the angles whose wavelength is long compared with the training context,
    with a smooth transition.

    Args:
        config: The configuration, from transformers 5 (`rope_parameters`) or earlier.
        width: Width of a head, even.

    Raises:
        ValueError: If the configuration scales positions in another way, or if a number is missing.

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
    """Frequencies, divided by a factor if their wavelengths are long, as in Llama 3.1."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rotated(
    x: Float[Array, "b t h d"], frequencies: Float[np.ndarray, " d/2"]
) -> Float[Array, "b t h d"]:
    """Queries or keys, rotated by angles that are proportional to their positions.

    Component i is paired with component i + d/2. Angles are always computed in float64.
    """
    angles = np.outer(np.arange(x.shape[1]), frequencies)[None, :, None, :]
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = (
        jnp.broadcast_to(jnp.asarray(function(angles), x.dtype), first.shape)
        for function in (np.cos, np.sin)
    )
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
