"""Batch losses: the loss of a pair depends on the other pairs of its batch.

A single pair therefore has no vector field of its own. Three published losses are left out. They
keep a state during training, so that they are no functions of the current pairs: β-DPO (arXiv
2407.08639), whose β follows a running mean of the margins; TR-DPO (arXiv 2404.09656), whose
reference follows the policy; and BCO with a running mean of the rewards (`BCO(delta=…)` has a fixed
value instead).

b: number of pairs in the batch.
"""

from abc import abstractmethod

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from flowlab._arrays import floats, like
from flowlab._parameters import parameter, positive
from flowlab.losses.base import AbstractLoss, LowerBound, Pair, label_entropy
from flowlab.losses.functions import smoothed

__all__ = ["AOT", "AOTUnpaired", "AbstractBatchLoss"]


class AbstractBatchLoss(AbstractLoss):
    """Alignment via optimal transport: label-smoothed DPO on differences of two sorted samples.

    The values of the loss belong to ranks, lowest first, and not to pairs. The mean is over the
    ranks and takes no weights. The sort is stable, so that the gradient at a tie depends on the
    order of the pairs in the batch.
    """

    beta: Float[ArrayLike, ""] = positive(0.1, single=True)
    label_smoothing: Float[ArrayLike, ""] = parameter(0.0, "label_smoothing", "[0, 0.5)")

    def lower_bound(self) -> LowerBound | None:
        return label_entropy(self.label_smoothing)

    @property
    def of_batch(self) -> bool:
        return True

    @abstractmethod
    def samples(self, pairs: Pair) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """The two samples that are compared rank by rank; the loss makes the first one larger."""

    def __call__(self, pairs: Pair) -> Float[Array, " b"]:
        upper, lower = self.samples(pairs)
        if jnp.ndim(upper) > 1:
            raise ValueError(
                "Argument `pairs` must be one batch of shape (b,) for a loss of a batch, "
                f"but has shape {jnp.shape(upper)}."
            )
        apart = (jnp.sort(upper.ravel()) - jnp.sort(lower.ravel())).reshape(upper.shape)
        return smoothed(like(self.beta, apart) * apart, like(self.label_smoothing, apart))

    def mean(self, pairs: Pair, weights: Float[ArrayLike, " b"] | None = None) -> Float[Array, ""]:
        if weights is not None:
            raise ValueError(
                f"Argument `weights` must be None for {type(self).__name__}: its values belong to "
                "ranks, not to pairs."
            )
        return jnp.mean(self(pairs))


class AOT(AbstractBatchLoss):
    """Alignment via optimal transport, paired: compares sorted margins of policy and reference.

    The loss of a rank is −(1−ε) log σ(βδ) − ε log σ(−βδ). Here δ is the difference at this rank
    between the sorted margins l_w − l_l under the policy and the sorted margins r_w − r_l under the
    reference, with log-probabilities l and r.

    Args:
        beta: β, positive.
        label_smoothing: ε in [0, ½).

    Raises:
        ValueError: If a hyper-parameter is out of its range, the pairs are not a single batch, or
            weights are given.

    Source: arXiv 2406.05882; `aot` in TRL.
    """

    def samples(self, pairs: Pair) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        policy = floats(pairs.chosen) - floats(pairs.rejected)
        return policy, floats(pairs.ref_chosen) - floats(pairs.ref_rejected)


class AOTUnpaired(AbstractBatchLoss):
    """Alignment via optimal transport, unpaired: compares sorted chosen and rejected log-ratios.

    The loss of a rank is −(1−ε) log σ(βδ) − ε log σ(−βδ). Here δ is the difference at this rank
    between the sorted u_w and the sorted u_l.

    Args:
        beta: β, positive.
        label_smoothing: ε in [0, ½).

    Raises:
        ValueError: If a hyper-parameter is out of its range, the pairs are not a single batch, or
            weights are given.

    Source: arXiv 2406.05882; `aot_unpaired` in TRL.
    """

    def samples(self, pairs: Pair) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        return floats(pairs.u_chosen), floats(pairs.u_rejected)
