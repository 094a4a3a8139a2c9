"""Quantities of all pairs that are saved along a training run or a flow line."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from flowlab import _checks as checks
from flowlab.flow import AbstractFlow, PreferenceFlow

__all__ = ["Watched", "checked_watch", "watched_at"]

Watched = Literal["loss", "u"]


def checked_watch(watch: Any, flow: AbstractFlow) -> tuple[str, ...]:
    """The names of the watched quantities, sorted and without repetition.

    Raises:
        ValueError: If `watch` holds an unknown name, or "u" for a flow without pairs.
    """
    asked = (watch,) if isinstance(watch, str) else tuple(watch)
    for one in asked:
        checks.choice("watch", one, "loss", "u")
    if "u" in asked and not isinstance(flow, PreferenceFlow):
        raise ValueError('Argument `watch` must not hold "u" for a flow without pairs, but does.')
    return tuple(sorted(set(asked)))


def watched_at(flow: AbstractFlow, watch: tuple[str, ...], state: PyTree[Array]) -> dict[str, Any]:
    """The watched quantities at a state, by name: "loss", "u", or "state" for the state itself."""
    row: dict[str, Any] = {"state": state} if "state" in watch else {}
    if "u" in watch and isinstance(flow, PreferenceFlow):
        pairs = flow.pairs(state)
        row["u"] = jnp.stack([pairs.u_chosen, pairs.u_rejected], axis=-1)
        if "loss" in watch:
            row["loss"] = flow.loss.mean(pairs, flow.weights)
    elif "loss" in watch:
        row["loss"] = flow.potential(state)
    return row
