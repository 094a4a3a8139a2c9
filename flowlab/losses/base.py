"""Pairs of responses, and the base class of all losses.

p: the shape of the pairs, which is () for one pair.
"""

import dataclasses
from abc import abstractmethod
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from flowlab._arrays import floats, like
from flowlab._parameters import short
from flowlab.losses.functions import weighted

__all__ = [
    "AbstractLoss",
    "LowerBound",
    "Pair",
    "negative_log_likelihood",
    "weighted_mean",
]


class Pair(eqx.Module):
    """Log-probabilities of a chosen and a rejected response; a batch is a Pair of arrays.

    Each log-probability is the sum over the tokens of the response.

    Attributes:
        chosen: Log-probability of the chosen response under the policy, in nats.
        rejected: Log-probability of the rejected response under the policy, in nats.
        ref_chosen: Log-probability of the chosen response under the reference, in nats.
        ref_rejected: Log-probability of the rejected response under the reference, in nats.
        chosen_length: Number of tokens in the chosen response.
        rejected_length: Number of tokens in the rejected response.
        offset: The margin required of the pair, for losses that use one (ODPO); else None.
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
        """The log-ratio log π − log π_ref of the chosen response."""
        return self.chosen - self.ref_chosen

    @property
    def u_rejected(self) -> Float[Array, "*p"]:
        """The log-ratio log π − log π_ref of the rejected response."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> Float[Array, "*p"]:
        """The margin: the chosen log-ratio less the rejected log-ratio, without a factor β."""
        return self.u_chosen - self.u_rejected


class LowerBound(NamedTuple):
    """A number that a loss never falls below.

    Attributes:
        value: The number.
        reached: True if a flow line can reach this value in finite time.
    """

    value: float
    reached: bool = False


class AbstractLoss(eqx.Module):
    """A preference loss: one value per pair, and a mean over pairs.

    To define a loss, subclass this class and write `__call__`; flows, sweeps, summary cards and
    figures need nothing else. Hyper-parameters are array leaves, so that sweeping them needs no new
    compilation; each is a single number, unless its description allows one per pair.
    """

    least: ClassVar[LowerBound | None] = None
    """The lower bound of all losses of the class, where it does not depend on hyper-parameters."""

    @abstractmethod
    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        """The loss of each pair."""

    def margin_at(self, level: Float[ArrayLike, " k"]) -> Float[Array, " k"] | None:
        """The margins u_w − u_l at which the loss of one pair is `level`, or None.

        They are defined if the loss is a strictly decreasing function of the margin alone;
        otherwise the result is None. A flow line that ends at a level of such a loss can be
        integrated with the margin as independent variable, which is cheaper than with the loss.

        Args:
            level: Positive values of the loss.
        """
        del level

    def lower_bound(self) -> LowerBound | None:
        """A lower bound of the loss of every pair, hence of every mean; None if unknown."""
        return self.least

    @property
    def of_batch(self) -> bool:
        """True if the loss of a pair depends on the other pairs of its batch."""
        return False

    def mean(self, pairs: Pair, weights: Float[ArrayLike, "*p"] | None = None) -> Float[Array, ""]:
        """The (weighted) mean of the loss over all pairs.

        Args:
            pairs: The pairs.
            weights: One non-negative weight per pair; their sum need not be 1. A pair of weight 0
                does not count, even if its loss is infinite. If the derivative of its loss is
                infinite too, the reverse-mode gradient with respect to its log-probabilities is
                NaN.
        """
        return weighted_mean(self(pairs), weights)

    def subset(self, indices: Int[ArrayLike, " b"]) -> "AbstractLoss":
        """The loss for a subset of the pairs.

        A hyper-parameter with one value per pair keeps the values of these pairs.

        Args:
            indices: Indices of the pairs, counted from 0; an index may occur more than once.
        """
        taken = jnp.asarray(indices)
        return jax.tree.map(lambda held: jnp.asarray(held)[taken] if jnp.ndim(held) else held, self)

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)
        held = [(f.name, getattr(self, f.name)) for f in fields if not _as_made(self, f)]
        return f"{type(self).__name__}({', '.join(f'{n}={short(v)}' for n, v in held)})"


def weighted_mean(
    values: Float[Array, "*p"], weights: Float[ArrayLike, "*p"] | None
) -> Float[Array, ""]:
    """The mean of `values`, weighted if `weights` are given; the weights need not sum to 1.

    A value of weight 0 does not count, even if it is infinite, and its derivative is 0. If the
    function that computed this value has an infinite derivative, reverse mode gives NaN (0·∞) and
    forward mode gives 0.
    """
    if weights is None:
        return jnp.mean(values)
    weights = like(weights, values)
    return jnp.sum(weighted(weights, values)) / jnp.sum(weights)


def label_entropy(smoothing: ArrayLike) -> LowerBound | None:
    """The lower bound −(1−ε) log(1−ε) − ε log ε of a logistic loss with label smoothing ε ≤ ½.

    None if ε is traced.
    """
    if isinstance(smoothing, Tracer):
        return None
    wrong = float(np.asarray(smoothing))
    return LowerBound(float(-np.log1p(-wrong) * (1 - wrong) - wrong * np.log(wrong or 1.0)))


def negative_log_likelihood(
    pairs: Pair, weights: Float[ArrayLike, "*p"] | None
) -> Float[Array, ""]:
    """The negative log-likelihood of the chosen responses, averaged over all their tokens.

    It is −Σ w l / Σ w N, with weights w, summed log-probabilities l and lengths N. A long response
    therefore counts more than a short one, as in the cross-entropy of TRL. A response of weight 0
    does not count, even if its log-probability is −∞.
    """
    chosen = floats(pairs.chosen)
    tokens = like(pairs.chosen_length, chosen)
    weights = jnp.ones_like(chosen) if weights is None else like(weights, chosen)
    return -jnp.sum(weighted(weights, chosen)) / jnp.sum(weighted(weights, tokens))


def _as_made(module: eqx.Module, field: dataclasses.Field) -> bool:
    """True if a field holds its default module and this module has no parameters."""
    value, made = getattr(module, field.name), field.default_factory
    return isinstance(made, type) and type(value) is made and not dataclasses.fields(value)
