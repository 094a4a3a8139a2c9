"""f-divergences: what a log-ratio counts for in losses of a difference of scores.

The score of a response with log-ratio u is s(u) = f′(e^u), up to a constant that cancels.

p: pairs, any shape, a scalar for one pair.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowlab._arrays import floats, like
from flowlab._parameters import parameter
from flowlab.losses.base import Pair
from flowlab.losses.functions import difference, negative_log_sigmoid, power_reward

__all__ = [
    "AbstractDivergence",
    "AlphaDivergence",
    "ForwardKL",
    "JensenShannon",
    "ReverseKL",
    "divergence_field",
    "mean_score_margin",
    "score_margin",
]


class AbstractDivergence(eqx.Module):
    """A divergence that keeps a policy near its reference, represented by its score of a log-ratio.

    Source: arXiv 2309.16240 (f-DPO); `f_divergence_type` in TRL.
    """

    @abstractmethod
    def score(self, log_ratio: Float[Array, "*p"]) -> Float[Array, "*p"]:
        """The score s(u) of a log-ratio u."""

    def margin(self, chosen: Float[Array, "*p"], rejected: Float[Array, "*p"]) -> Array:
        """s(u_w) − s(u_l), of both log-ratios."""
        order = self.order(chosen, rejected, jnp.ones_like(chosen))
        return difference(self.score(chosen), self.score(rejected), order)

    def order(
        self, chosen: Float[Array, "*p"], rejected: Float[Array, "*p"], lengths: Float[Array, "*p"]
    ) -> Float[Array, "*p"]:
        """A number with the sign of s(u_w)/N_w − s(u_l)/N_l, used where both terms have overflowed.

        Args:
            chosen: u_w.
            rejected: u_l.
            lengths: N_w/N_l; 1 for the scores themselves.
        """
        return chosen - rejected

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ReverseKL(AbstractDivergence):
    """KL(π, π_ref), the divergence of DPO: s(u) = u."""

    def score(self, log_ratio: Float[Array, "*p"]) -> Float[Array, "*p"]:
        return log_ratio

    def margin(self, chosen: Float[Array, "*p"], rejected: Float[Array, "*p"]) -> Array:
        return chosen - rejected


class ForwardKL(AbstractDivergence):
    """KL(π_ref, π): s(u) = 1 − e^{−u}."""

    def score(self, log_ratio: Float[Array, "*p"]) -> Float[Array, "*p"]:
        return power_reward(log_ratio, jnp.asarray(-1, log_ratio.dtype))

    def order(
        self, chosen: Float[Array, "*p"], rejected: Float[Array, "*p"], lengths: Float[Array, "*p"]
    ) -> Float[Array, "*p"]:
        return lengths - jnp.exp(rejected - chosen)


class JensenShannon(AbstractDivergence):
    """Jensen–Shannon divergence: s(u) = log 2 + log σ(u)."""

    def score(self, log_ratio: Float[Array, "*p"]) -> Float[Array, "*p"]:
        return np.log(2).astype(log_ratio.dtype) - negative_log_sigmoid(log_ratio)


class AlphaDivergence(AbstractDivergence):
    """α-divergence: s(u) = (e^{(α−1)u} − 1)/(α − 1), and u for α = 1.

    Args:
        alpha: α, between 0 (forward KL) and 1 (reverse KL) in the paper; any finite number.

    Raises:
        ValueError: If α is not finite.

    Accuracy: as for all losses while |(α−1)u| < 700 (80 in float32). TRL computes this score in
        float32, and limits its exponent to 80.
    """

    alpha: Float[ArrayLike, ""] = parameter(0.5, "alpha", "(-inf, inf)")

    def score(self, log_ratio: Float[Array, "*p"]) -> Float[Array, "*p"]:
        return power_reward(log_ratio, like(self.alpha, log_ratio) - 1)

    def order(
        self, chosen: Float[Array, "*p"], rejected: Float[Array, "*p"], lengths: Float[Array, "*p"]
    ) -> Float[Array, "*p"]:
        power = like(self.alpha, chosen) - 1
        return jnp.sign(power) * (jnp.exp(power * (chosen - rejected)) - lengths)

    def __repr__(self) -> str:
        return f"AlphaDivergence({self.alpha})"


def divergence_field() -> Any:
    """A field for the divergence of a loss, the reverse KL unless another is given."""
    return eqx.field(default_factory=ReverseKL, converter=_checked)


def _checked(divergence: Any) -> Any:
    if not isinstance(divergence, AbstractDivergence):
        raise ValueError(
            "Argument `divergence` must be a divergence such as ForwardKL(), "
            f"but is {divergence!r}."
        )
    return divergence


def score_margin(divergence: AbstractDivergence, pairs: Pair) -> Float[Array, "*p"]:
    """s(u_w) − s(u_l): the margin in terms of the divergence's scores."""
    return divergence.margin(floats(pairs.u_chosen), floats(pairs.u_rejected))


def mean_score_margin(divergence: AbstractDivergence, pairs: Pair) -> Float[Array, "*p"]:
    """s(u_w)/N_w − s(u_l)/N_l: the margin per token."""
    chosen, rejected = floats(pairs.u_chosen), floats(pairs.u_rejected)
    chosen_length = like(pairs.chosen_length, chosen)
    rejected_length = like(pairs.rejected_length, rejected)
    return difference(
        divergence.score(chosen) / chosen_length,
        divergence.score(rejected) / rejected_length,
        divergence.order(chosen, rejected, chosen_length / rejected_length),
    )
