"""Policies that give log-probabilities of a list of responses, of which pairs are made.

r: responses; p: preferences, none for a single one.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from flowlab.losses import Pair, like
from flowlab.policies.base import AbstractPolicy

__all__ = [
    "AbstractResponses",
    "Preferences",
    "at_reference",
    "check_array",
    "check_lengths",
    "check_offset",
    "check_preferences",
    "rest_in_proportion",
]

Preferences = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""(chosen, rejected) for a single pair, or one such couple for each of several."""


class AbstractResponses(AbstractPolicy):
    """A policy that gives the log-probability of each response of a list.

    Attributes:
        preferences: (chosen, rejected), two places in the list, for a single pair; a tuple of such
            couples for several. The loss of several is their (weighted) mean.
        ref_log_probs: Log-probabilities of the responses under the reference, nats, shape (r,).
        lengths: Tokens of each response, shape (r,).
        offset: Required margin of each pair, for losses that use one (ODPO); None for none.
    """

    preferences: eqx.AbstractVar[Preferences]
    ref_log_probs: eqx.AbstractVar[Float[ArrayLike, " r"]]
    lengths: eqx.AbstractVar[Float[ArrayLike, " r"]]
    offset: eqx.AbstractVar[Float[ArrayLike, "*p"] | None]

    @abstractmethod
    def log_probs(self, state: PyTree[Array]) -> Float[Array, " r"]:
        """Log-probability of each response at a state, nats."""

    @property
    def places(self) -> Int[np.ndarray, "*p 2"]:
        """Where in the list the chosen and the rejected response of each pair stand."""
        return np.asarray(self.preferences)

    def pairs(self, state: PyTree[Array]) -> Pair:
        logs = self.log_probs(state)
        chosen, rejected = self.places[..., 0], self.places[..., 1]
        references, lengths = like(self.ref_log_probs, logs), like(self.lengths, logs)
        return Pair(
            chosen=logs[chosen],
            rejected=logs[rejected],
            ref_chosen=references[chosen],
            ref_rejected=references[rejected],
            chosen_length=lengths[chosen],
            rejected_length=lengths[rejected],
            offset=None if self.offset is None else like(self.offset, logs),
        )


def check_preferences(preferences: Any, count: int, prompts: int | None = None) -> Preferences:
    """Preferences over so many responses, checked.

    Args:
        preferences: (chosen, rejected), or a sequence of such couples, counted from 0.
        count: Number of responses, to each prompt if there are several.
        prompts: Number of prompts where a preference names its own: (prompt, chosen, rejected).

    Raises:
        ValueError: If they are no such couples, or one names what is not there, or the same
            response twice.
    """
    form = "(chosen, rejected)" if prompts is None else "(prompt, chosen, rejected)"
    wanted = f"Argument `preferences` must be {form} or a list of such, "
    try:
        places = np.asarray(preferences)
    except ValueError:
        places = np.zeros(0)
    width = 2 if prompts is None else 3
    if places.dtype.kind not in "iu" or places.ndim not in (1, 2) or places.shape[-1] != width:
        raise ValueError(f"{wanted}counted from 0, but is {preferences!r}.")
    limits = np.array([count, count] if prompts is None else [prompts, count, count])
    if np.any(places < 0) or np.any(places >= limits):
        among = f"{count} responses" + ("" if prompts is None else f" to {prompts} prompts")
        raise ValueError(f"{wanted}among {among}, but is {places.tolist()}.")
    if np.any(places[..., -2] == places[..., -1]):
        raise ValueError(f"{wanted}of two different responses, but is {places.tolist()}.")
    listed = places.tolist()
    return tuple(listed) if places.ndim == 1 else tuple(tuple(one) for one in listed)


def check_lengths(lengths: npt.ArrayLike, count: int) -> Float[np.ndarray, " r"]:
    """Tokens of each response, from one number for all, or one each.

    Raises:
        ValueError: If there are not as many as responses, or one is not positive and finite.
    """
    array = np.asarray(lengths, dtype=float)
    if array.shape not in ((), (count,)) or not np.all(np.isfinite(array) & (array > 0)):
        raise ValueError(
            "Argument `lengths` must be a positive number, or one for each of the "
            f"{count} responses, but is {array.tolist()}."
        )
    return np.broadcast_to(array, (count,)).copy()


def check_offset(
    offset: npt.ArrayLike | None, preferences: Preferences
) -> Float[np.ndarray, "*p"] | None:
    """Required margins: None, one number for all pairs, or one each.

    Raises:
        ValueError: If there are not as many as pairs, or one is not finite.
    """
    if offset is None:
        return None
    array, shape = np.asarray(offset, dtype=float), np.shape(preferences)[:-1]
    if array.shape not in ((), shape) or not np.all(np.isfinite(array)):
        raise ValueError(
            "Argument `offset` must be a finite number, or one for each pair, but is "
            f"{array.tolist()}."
        )
    return np.broadcast_to(array, shape).copy()


def check_array(
    name: str, values: npt.ArrayLike, dimensions: Sequence[int], letters: str
) -> Float[np.ndarray, "..."]:
    """A finite array of floats with one of the given numbers of dimensions, none of them empty.

    Raises:
        ValueError: If it is none; `letters` tells of the shape that is wanted.
    """
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if array.ndim not in dimensions or array.size == 0:
        raise ValueError(f"Argument `{name}` must have shape {letters}, but has {array.shape}.")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"Argument `{name}` must be finite, but is {array.tolist()}.")
    return array


def at_reference(policy: Any, state: PyTree[Any]) -> Float[np.ndarray, " r"]:
    """The log-probabilities of a policy's responses at its reference state, in float64."""
    with jax.enable_x64(True):
        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state)
        return np.asarray(policy.log_probs(state))


def rest_in_proportion(
    policy: AbstractResponses, log_ratios: Float[ArrayLike, " 2"]
) -> Float[Array, " r"]:
    """Log-probabilities of all responses of a prompt where those of one pair have given log-ratios.

    The others share what is left in the proportions of the reference; NaN where nothing is left.

    Raises:
        ValueError: If the policy has several pairs, or no third response to give way.
    """
    values = jnp.asarray(log_ratios)
    references = like(policy.ref_log_probs, values)
    pair = np.asarray(policy.preferences)
    others = np.setdiff1d(np.arange(references.size), pair)
    if pair.ndim != 1 or not others.size:
        raise ValueError(
            f"{type(policy).__name__} has a way back from log-ratios to a state only with a single "
            f"pair and a third response, but has {references.size} responses and the preferences "
            f"{policy.preferences}."
        )
    logs = references[pair] + values
    left = jnp.log1p(-jnp.sum(jnp.exp(logs)))
    rest = references[others] - jax.nn.logsumexp(references[others]) + left
    return jnp.zeros_like(references).at[pair].set(logs).at[others].set(rest)
