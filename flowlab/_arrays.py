"""Arrays of JAX in the floating-point type of the work."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

__all__ = ["floats", "like"]


def floats(values: ArrayLike) -> Array:
    """An array of floats, of the precision given; what is cast to its type is not cut to integers.

    Args:
        values: Numbers of any shape; integers become floats of the default precision.
    """
    if isinstance(values, np.ndarray):
        # JAX 0.10 may give a NumPy array the type it had in a trace, even where 64-bit types have
        # been turned off since; a copy in the type of now has no such past.
        values = values.astype(jax.dtypes.canonicalize_dtype(values.dtype), copy=False)
    array = jnp.asarray(values)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def like(value: ArrayLike, model: Array) -> Array:
    """A value in the floating-point type of another array."""
    return jnp.asarray(value, model.dtype)
