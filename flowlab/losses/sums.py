"""Weighted sums of losses, which are losses too.

p: the shape of the pairs, which is () for one pair.
"""

from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from flowlab._arrays import like
from flowlab._parameters import parameter
from flowlab.losses.base import AbstractLoss, LowerBound, Pair

__all__ = ["WeightedSum"]


class WeightedSum(AbstractLoss):
    """Σ c_k L_k: a weighted sum of losses, whose mean is the weighted sum of their means.

    RPO (arXiv 2404.19733) is `WeightedSum((DPO(), SFT()), (1.0, alpha))`; MPO is a sum of three. A
    batch loss such as AOT has no value per pair. If it is added to a loss that has one, `mean` is
    defined, but the sum cannot be called for a value per pair.

    Args:
        losses: The losses, at least one.
        weights: The weights c_k, finite; None for 1 each.

    Raises:
        ValueError: If `losses` is empty or holds anything but losses, or if the number of weights
            is not the number of losses. When called: if some of the losses are batch losses and
            others are not.

    Source: `loss_type` with several names and `loss_weights` in TRL.
    """

    losses: tuple[AbstractLoss, ...]
    weights: Float[ArrayLike, " k"] = parameter(1.0, "weights", "(-inf, inf)", single=False)

    def __init__(
        self,
        losses: Sequence[AbstractLoss],
        weights: Float[ArrayLike, " k"] | Sequence[float] | None = None,
    ) -> None:
        self.losses = tuple(losses)
        if not self.losses or not all(isinstance(loss, AbstractLoss) for loss in self.losses):
            raise ValueError(
                "Argument `losses` must hold losses such as DPO(), at least one, "
                f"but is {losses!r}."
            )
        self.weights = np.ones(len(self.losses)) if weights is None else weights  # type: ignore[assignment]

    def __check_init__(self) -> None:
        if np.shape(self.weights) != (len(self.losses),):
            raise ValueError(
                f"Argument `weights` must have one weight for each of {len(self.losses)} losses, "
                f"but has shape {np.shape(self.weights)}."
            )

    @property
    def of_batch(self) -> bool:
        return any(loss.of_batch for loss in self.losses)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        if self.of_batch and not all(loss.of_batch for loss in self.losses):
            raise ValueError(
                "Argument `losses` must not mix batch losses with other losses for a value per "
                f"pair, but is {self.losses!r}; use `mean`."
            )
        return self._sum([loss(pairs) for loss in self.losses])

    def mean(self, pairs: Pair, weights: Float[ArrayLike, "*p"] | None = None) -> Float[Array, ""]:
        return self._sum([loss.mean(pairs, weights) for loss in self.losses])

    def subset(self, indices: Int[ArrayLike, " b"]) -> "WeightedSum":
        parts = tuple(loss.subset(indices) for loss in self.losses)  # the weights are of these
        return eqx.tree_at(lambda held: held.losses, self, parts)

    def lower_bound(self) -> LowerBound | None:
        if isinstance(self.weights, Tracer):
            return None
        weights = np.asarray(self.weights, dtype=float).tolist()
        counted = [(w, x.lower_bound()) for w, x in zip(weights, self.losses, strict=True) if w]
        known = [(weight, bound) for weight, bound in counted if bound is not None]
        if len(known) < len(counted) or min(weights) < 0:
            return None
        value = sum(weight * bound.value for weight, bound in known)
        return LowerBound(value, reached=all(bound.reached for _, bound in known))

    def _sum(self, values: list[Array]) -> Array:
        weights = like(self.weights, values[0])
        return sum(weights[k] * value for k, value in enumerate(values))  # type: ignore[return-value]
