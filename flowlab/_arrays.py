"""Arrays: conversion to the dtype of the work, tests for finite values, and JSON."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, PyTree

__all__ = ["all_finite", "floats", "jsonable", "like"]


def floats(values: ArrayLike) -> Array:
    """An array of floats, in the precision of the values.

    Args:
        values: Numbers of any shape; integers become floats of the default precision.
    """
    if isinstance(values, np.ndarray):
        # JAX 0.10 may give a NumPy array the dtype that it had in a trace, even if 64 bits have
        # been turned off since; a copy in the present dtype avoids this.
        values = values.astype(jax.dtypes.canonicalize_dtype(values.dtype), copy=False)
    array = jnp.asarray(values)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def like(value: ArrayLike, model: Array) -> Array:
    """A value in the dtype of another array."""
    return jnp.asarray(value, model.dtype)


def all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    """True if every number of a PyTree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def jsonable(values: ArrayLike) -> Any:
    """Numbers in a JSON-ready form: lists, with None for those that are not finite."""
    array = np.asarray(values, dtype=float)
    record = array.astype(object)
    record[~np.isfinite(array)] = None
    return record.tolist()
