"""f-divergences, each given by its score of a log-ratio.

Many losses depend on the difference of the scores of two responses. The score of a response with
log-ratio u is s(u) = f′(e^u), up to a constant that cancels in the difference.

p: the shape of the pairs, which is () for one pair.
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
    """An f-divergence between a policy and its reference, given by its score s(u) of a log-ratio u.

    Source: arXiv 2309.16240 (f-DPO); `f_divergence_type` in TRL.
    """

    @abstractmethod
    def score(self, log_ratio: Float[Array, "*p"]) -> Float[Array, "*p"]:
        """The score s(u) of a log-ratio u."""

    def margin(self, chosen: Float[Array, "*p"], rejected: Float[Array, "*p"]) -> Array:
        """The difference s(u_w) − s(u_l) of the scores of two log-ratios."""
        order = self.order(chosen, rejected, jnp.ones_like(chosen))
        return difference(self.score(chosen), self.score(rejected), order)

    def order(
        self, chosen: Float[Array, "*p"], rejected: Float[Array, "*p"], lengths: Float[Array, "*p"]
    ) -> Float[Array, "*p"]:
        """A number with the sign of s(u_w)/N_w − s(u_l)/N_l, for use if both terms overflow.

        Args:
            chosen: u_w, the log-ratio of the chosen response.
            rejected: u_l, the log-ratio of the rejected response.
            lengths: N_w/N_l, the quotient of the lengths; 1 to compare s(u_w) with s(u_l).
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
        alpha: α, any finite number. The paper takes it between 0 (forward KL) and 1 (reverse KL).

    Raises:
        ValueError: If α is not finite.

    Accuracy: that of all losses if |(α−1)u| < 700 (80 in float32). TRL computes this score in
        float32 and limits the exponent to 80.
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
    """A dataclass field for the divergence of a loss, with the reverse KL as default."""
    return eqx.field(default_factory=ReverseKL, converter=_checked)


def _checked(divergence: Any) -> Any:
    if not isinstance(divergence, AbstractDivergence):
        raise ValueError(
            "Argument `divergence` must be a divergence such as ForwardKL(), "
            f"but is {divergence!r}."
        )
    return divergence


def score_margin(divergence: AbstractDivergence, pairs: Pair) -> Float[Array, "*p"]:
    """The difference s(u_w) − s(u_l) of the scores of the two responses."""
    return divergence.margin(floats(pairs.u_chosen), floats(pairs.u_rejected))


def mean_score_margin(divergence: AbstractDivergence, pairs: Pair) -> Float[Array, "*p"]:
    """The difference s(u_w)/N_w − s(u_l)/N_l of the scores per token."""
    chosen, rejected = floats(pairs.u_chosen), floats(pairs.u_rejected)
    chosen_length = like(pairs.chosen_length, chosen)
    rejected_length = like(pairs.rejected_length, rejected)
    return difference(
        divergence.score(chosen) / chosen_length,
        divergence.score(rejected) / rejected_length,
        divergence.order(chosen, rejected, chosen_length / rejected_length),
    )
