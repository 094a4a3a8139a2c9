"""Policies that give the log-probabilities of a list of responses, from which pairs are formed.

Letters in shapes: r responses, p preferences. A single preference has no axis p.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from flowlab._arrays import floats, like
from flowlab._checks import numbers
from flowlab.domains import AbstractDomain, WholeSpace
from flowlab.losses import Pair
from flowlab.policies.base import AbstractPolicy, WallRule, check_wall

__all__ = ["AbstractResponses", "Preferences", "rest_in_proportion"]

Preferences = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""(chosen, rejected) for a single pair, or one such couple for each of several."""


class AbstractResponses(AbstractPolicy):
    """A policy that gives the log-probability of each response of a list.

    A subclass sets its own fields and then calls the constructor of this class.

    Args:
        ref_log_probs: Log-probabilities of the responses under the reference, nats, shape (r,).
        preferences: (chosen, rejected), two indices of responses counted from 0, or a list of such
            pairs.
        lengths: Number of tokens in the responses: one number for all, or one for each.
        offset: Required margin, for losses that use one (ODPO): one number, or one for each pair;
            None for none.
        prompts: Number of prompts, each with the same number of responses. Preferences are then
            triples (prompt, chosen, rejected). None if preferences name no prompt.
        domain: The set of states; None for the whole space.
        wall: The rule for a flow line at a wall of the domain: `"stop"`, or `"slide"` along the
            wall.

    Attributes:
        preferences: (chosen, rejected), two indices of responses, for a single pair; a tuple of
            such pairs for several. The loss of several pairs is their (weighted) mean.
        lengths: Number of tokens in each response, shape (r,).
        offset: Required margin of each pair, for losses that use one (ODPO); None for none.
        ref_log_probs: Log-probabilities of the responses under the reference, nats, shape (r,).
    """

    preferences: Preferences = eqx.field(static=True)
    lengths: Float[ArrayLike, " r"]
    offset: Float[ArrayLike, "*p"] | None
    ref_log_probs: Float[ArrayLike, " r"] = eqx.field(metadata={"argument": None})
    domain: AbstractDomain
    wall: WallRule = eqx.field(static=True)

    def __init__(
        self,
        ref_log_probs: Float[np.ndarray, " r"],
        preferences: Any,
        lengths: npt.ArrayLike,
        offset: npt.ArrayLike | None,
        *,
        prompts: int | None = None,
        domain: AbstractDomain | None = None,
        wall: str = "stop",
    ) -> None:
        count = len(ref_log_probs)
        self.ref_log_probs = ref_log_probs
        self.preferences = _preferences(preferences, count // (prompts or 1), prompts)
        self.lengths = _lengths(lengths, count)
        self.offset = _offset(offset, self.preferences)
        self.domain = WholeSpace() if domain is None else domain
        self.wall = check_wall(wall)

    @abstractmethod
    def log_probs(self, state: PyTree[Array]) -> Float[Array, " r"]:
        """The log-probability of each response at a state, nats."""

    @property
    def indices(self) -> Int[np.ndarray, "*p 2"]:
        """The indices of the chosen and of the rejected response of each pair."""
        return np.asarray(self.preferences)

    def pairs(self, state: PyTree[Array]) -> Pair:
        logs = self.log_probs(state)
        chosen, rejected = self.indices[..., 0], self.indices[..., 1]
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

    def _log_probs_at(self, state: PyTree[Any]) -> Float[np.ndarray, "..."]:
        """Log-probabilities at a state, always computed in float64."""
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            return np.asarray(self.log_probs(jax.tree.map(_wide, state)))


def rest_in_proportion(
    policy: AbstractResponses, log_ratios: Float[ArrayLike, " 2"]
) -> Float[Array, " r"]:
    """Log-probabilities of all responses of a prompt, given the log-ratios of one pair.

    The other responses share the remaining probability in the proportions of the reference; the
    result is NaN if no probability remains.

    Raises:
        ValueError: If the policy has several prompts or pairs, or no third response.
    """
    values = floats(log_ratios)
    references = like(policy.ref_log_probs, values)
    pair = policy.indices
    others = np.setdiff1d(np.arange(references.size), pair)
    if np.shape(policy.preferences) != (2,) or not others.size:
        raise ValueError(
            f"{type(policy).__name__} defines a state for given log-ratios only with a single "
            "prompt, a single pair and a third response, but has "
            f"{references.size} responses and the preferences {policy.preferences}."
        )
    logs = references[pair] + values
    taken = jnp.sum(jnp.exp(logs))
    left = jnp.where(taken < 1, jnp.log1p(-taken), jnp.nan)
    rest = references[others] - jax.nn.logsumexp(references[others]) + left
    return jnp.zeros_like(references).at[pair].set(logs).at[others].set(rest)


def _preferences(preferences: Any, count: int, prompts: int | None = None) -> Preferences:
    """The given preferences as tuples of indices, after a check."""
    form = "(chosen, rejected)" if prompts is None else "(prompt, chosen, rejected)"
    wanted, or_list = f"Argument `preferences` must be indices {form}", "or a list of such tuples"
    try:
        indices = np.asarray(preferences)
    except ValueError:
        indices = np.zeros(0)
    width = 2 if prompts is None else 3
    couples = indices.size > 0 and indices.ndim in (1, 2) and indices.shape[-1] == width
    if not (couples and indices.dtype.kind in "iu"):
        raise ValueError(f"{wanted}, counted from 0, {or_list}, but is {preferences!r}.")
    limits = np.array([count, count] if prompts is None else [prompts, count, count])
    if np.any(indices < 0) or np.any(indices >= limits):
        among = f"{count} responses" + ("" if prompts is None else f" to {prompts} prompts")
        raise ValueError(
            f"{wanted} of {among}, counted from 0, {or_list}, but is {indices.tolist()}."
        )
    if np.any(indices[..., -2] == indices[..., -1]):
        raise ValueError(
            f"{wanted} of two different responses, {or_list}, but is {indices.tolist()}."
        )
    listed: Any = indices.tolist()
    return tuple(listed) if indices.ndim == 1 else tuple(tuple(one) for one in listed)


def _lengths(lengths: npt.ArrayLike, count: int) -> Float[np.ndarray, " r"]:
    """The number of tokens in each response, from one number for all or one for each."""
    array = numbers(lengths)
    if array.shape not in ((), (count,)) or not np.all(np.isfinite(array) & (array > 0)):
        raise ValueError(
            "Argument `lengths` must be a positive number, or one for each of the "
            f"{count} responses, but is {lengths!r}."
        )
    return np.broadcast_to(array, (count,)).copy()


def _offset(
    offset: npt.ArrayLike | None, preferences: Preferences
) -> Float[np.ndarray, "*p"] | None:
    """The required margin of each pair, from one number for all or one for each; or None."""
    if offset is None:
        return None
    array, shape = numbers(offset), np.shape(preferences)[:-1]
    if array.shape not in ((), shape) or not np.all(np.isfinite(array)):
        raise ValueError(
            f"Argument `offset` must be a finite number, or one for each pair, but is {offset!r}."
        )
    return np.broadcast_to(array, shape).copy()


def _wide(leaf: npt.ArrayLike) -> Array:
    return jnp.asarray(leaf, jnp.float64)
