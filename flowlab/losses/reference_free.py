"""Losses without a reference: of the log-probabilities themselves.

l: summed log-probability; N: tokens; q = l/N; r: reward, the log-probability that a loss reads
unless α ≠ 0, when it is (1 − p^{−α})/α with p = e^l or e^q; ls: log σ; NLL_w: negative
log-likelihood of the chosen response per token, in a batch over all its tokens together.

p: pairs, any shape, a scalar for one pair. Every loss is accurate to a few units in the last place
of its largest term, while |α·l| < 700 (80 in float32); see `flowlab.losses.functions`.
"""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from flowlab._arrays import floats, like
from flowlab._parameters import parameter, positive
from flowlab.losses.base import (
    AbstractLoss,
    LowerBound,
    Pair,
    label_entropy,
    negative_log_likelihood,
    weighted_mean,
)
from flowlab.losses.functions import (
    difference,
    log_odds_loss,
    power_reward,
    relu,
    smoothed,
)

__all__ = ["CPO", "ORPO", "AlphaPO", "CPOHinge", "CPOIPO", "OddsRatio", "SimPO"]


class _WithLikelihood(AbstractLoss):
    """A preference term of the difference of two rewards, and a weight of NLL_w."""

    nll_weight: eqx.AbstractVar[Float[ArrayLike, ""]]

    @abstractmethod
    def preference(self, pairs: Pair) -> Float[Array, "*p"]:
        """The loss without the likelihood term."""

    def lower_bound(self) -> LowerBound | None:
        weighed = isinstance(self.nll_weight, Tracer) or np.any(np.asarray(self.nll_weight))
        return None if weighed else self.preference_bound()

    @abstractmethod
    def preference_bound(self) -> LowerBound | None:
        """The lower bound without the likelihood term, which has none on planes."""

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen = floats(pairs.chosen)
        likelihood = -chosen / like(pairs.chosen_length, chosen)
        return self.preference(pairs) + like(self.nll_weight, chosen) * likelihood

    def mean(self, pairs: Pair, weights: Float[ArrayLike, "*p"] | None = None) -> Float[Array, ""]:
        likelihood = negative_log_likelihood(pairs, weights)
        preference = weighted_mean(self.preference(pairs), weights)
        return preference + like(self.nll_weight, likelihood) * likelihood


class CPO(_WithLikelihood):
    """Contrastive preference optimisation: −(1−ε) ls(β(r_w − r_l)) − ε ls(−β(r_w − r_l)) + α·NLL_w.

    Here the weight of NLL_w, the paper's behaviour cloning, is called `nll_weight`, and the reward
    is of the summed log-probability.

    Args:
        beta: β, positive; an array sets one per pair.
        nll_weight: Weight of NLL_w, at least 0; `cpo_alpha` in TRL.
        label_smoothing: ε in [0, ½).
        alpha: Shape of the reward, finite; 0 is the log-probability. `alpha` in TRL.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2401.08417, equation 3; `sigmoid` in TRL's CPO trainer.
    """

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    nll_weight: Float[ArrayLike, ""] = parameter(1.0, "nll_weight", "[0, inf)")
    label_smoothing: Float[ArrayLike, ""] = parameter(0.0, "label_smoothing", "[0, 0.5)")
    alpha: Float[ArrayLike, ""] = parameter(0.0, "alpha", "(-inf, inf)")

    def preference_bound(self) -> LowerBound | None:
        return label_entropy(self.label_smoothing)

    def preference(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = _reward_margin(pairs, self.alpha)
        return smoothed(like(self.beta, margin) * margin, like(self.label_smoothing, margin))


class CPOHinge(_WithLikelihood):
    """CPO with the hinge: max(0, 1 − β(r_w − r_l)) + α·NLL_w, the form of SLiC-HF.

    The reward is of the summed log-probability. At the kink the derivative is that of the flat
    side. SLiC-HF has max(0, δ − (l_w − l_l)) + λ·NLL: with β = 1/δ this loss is 1/δ times that one,
    so that its λ is `nll_weight`·δ; and NLL_w is per token here, not summed.

    Args:
        beta: β, positive; an array sets one per pair. 1/δ, with δ the margin of SLiC-HF.
        nll_weight: Weight of NLL_w, at least 0; `cpo_alpha` in TRL.
        alpha: Shape of the reward, finite; 0 is the log-probability. `alpha` in TRL.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2305.10425; `hinge` in TRL's CPO trainer.
    """

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    nll_weight: Float[ArrayLike, ""] = parameter(1.0, "nll_weight", "[0, inf)")
    alpha: Float[ArrayLike, ""] = parameter(0.0, "alpha", "(-inf, inf)")

    def preference_bound(self) -> LowerBound | None:
        return LowerBound(0.0, reached=True)

    def preference(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = _reward_margin(pairs, self.alpha)
        return relu(1 - like(self.beta, margin) * margin)


class CPOIPO(_WithLikelihood):
    """CPO with the square of IPO: (r_w − r_l − 1/(2β))² + α·NLL_w, averaged over tokens.

    Args:
        beta: β, positive; an array sets one per pair.
        nll_weight: Weight of NLL_w, at least 0; `cpo_alpha` in TRL.
        alpha: Shape of the reward, finite; 0 is the log-probability per token. `alpha` in TRL.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: `ipo` in TRL's CPO trainer, after arXiv 2310.12036, equation 17.
    """

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    nll_weight: Float[ArrayLike, ""] = parameter(1.0, "nll_weight", "[0, inf)")
    alpha: Float[ArrayLike, ""] = parameter(0.0, "alpha", "(-inf, inf)")

    def preference_bound(self) -> LowerBound | None:
        return LowerBound(0.0)

    def preference(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = _mean_reward_margin(pairs, self.alpha)
        return (margin - 1 / (2 * like(self.beta, margin))) ** 2


class SimPO(_WithLikelihood):
    """Simple preference optimisation: −ls(β(l_w/N_w − l_l/N_l) − γ).

    Args:
        beta: β, positive; an array sets one per pair. The paper trains with 2 to 10; TRL's default
            is 0.1.
        gamma: Target margin γ, at least 0.
        label_smoothing: ε in [0, ½), as in CPO; 0 is the paper's form.
        nll_weight: Weight of NLL_w, at least 0; 0 is the paper's form, TRL's default is 1
            (CPO-SimPO).

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2405.14734, equation 6; `simpo` in TRL's CPO trainer.
    """

    beta: Float[ArrayLike, "*p"] = positive(2.0)
    gamma: Float[ArrayLike, ""] = parameter(0.5, "gamma", "[0, inf)")
    label_smoothing: Float[ArrayLike, ""] = parameter(0.0, "label_smoothing", "[0, 0.5)")
    nll_weight: Float[ArrayLike, ""] = parameter(0.0, "nll_weight", "[0, inf)")

    def preference_bound(self) -> LowerBound | None:
        return label_entropy(self.label_smoothing)

    def preference(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen, rejected = _mean_log_probabilities(pairs)
        margin = chosen - rejected
        z = like(self.beta, margin) * margin - like(self.gamma, margin)
        return smoothed(z, like(self.label_smoothing, margin))


class AlphaPO(_WithLikelihood):
    """AlphaPO: −ls(β(r_w − r_l) − γ) with the reward r = (1 − p^{−α})/α of p = e^{l/N}.

    SimPO in the limit α → 0. `CPO(alpha=…)` has the same reward of the summed log-probability.

    Args:
        beta: β, positive; an array sets one per pair.
        gamma: Target margin γ, at least 0.
        alpha: Shape α of the reward, finite.
        label_smoothing: ε in [0, ½), as in CPO; 0 is the paper's form.
        nll_weight: Weight of NLL_w, at least 0; 0 is the paper's form.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2501.03884; `alphapo` in TRL's CPO trainer.
    """

    beta: Float[ArrayLike, "*p"] = positive(2.0)
    gamma: Float[ArrayLike, ""] = parameter(0.5, "gamma", "[0, inf)")
    alpha: Float[ArrayLike, ""] = parameter(0.25, "alpha", "(-inf, inf)")
    label_smoothing: Float[ArrayLike, ""] = parameter(0.0, "label_smoothing", "[0, 0.5)")
    nll_weight: Float[ArrayLike, ""] = parameter(0.0, "nll_weight", "[0, inf)")

    def preference_bound(self) -> LowerBound | None:
        return label_entropy(self.label_smoothing)

    def preference(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = _mean_reward_margin(pairs, self.alpha)
        z = like(self.beta, margin) * margin - like(self.gamma, margin)
        return smoothed(z, like(self.label_smoothing, margin))


class OddsRatio(AbstractLoss):
    """The odds-ratio term of ORPO: −β·ls(q_w − q_l − [log(1−e^{q_w}) − log(1−e^{q_l})]).

    It is defined for q < 0, probabilities per token below one. Outside, where there are no odds, it
    is inf, and so is its derivative by what lies outside: a flow line ends there.

    Args:
        beta: β, positive, the paper's λ; an array sets one per pair.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2403.07691, equations 4 and 7; TRL's ORPO trainer, which computes it in float32.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen, rejected = _mean_log_probabilities(pairs)
        return like(self.beta, chosen) * log_odds_loss(chosen, rejected)


class ORPO(AbstractLoss):
    """Odds ratio preference optimisation: NLL_w − β·ls(log odds of q_w less log odds of q_l).

    NLL_w plus `OddsRatio`, which says where it is defined.

    Args:
        beta: β, positive, the paper's λ; an array sets one per pair.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2403.07691, equations 4 and 7; TRL's ORPO trainer.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        return OddsRatio(self.beta)(pairs) - _mean_log_probabilities(pairs)[0]

    def mean(self, pairs: Pair, weights: Float[ArrayLike, "*p"] | None = None) -> Float[Array, ""]:
        return OddsRatio(self.beta).mean(pairs, weights) + negative_log_likelihood(pairs, weights)


def _mean_log_probabilities(pairs: Pair) -> tuple[Float[Array, "*p"], Float[Array, "*p"]]:
    """The averages q = l/N of both responses."""
    chosen, rejected = floats(pairs.chosen), floats(pairs.rejected)
    chosen_length = like(pairs.chosen_length, chosen)
    return chosen / chosen_length, rejected / like(pairs.rejected_length, rejected)


def _reward_margin(pairs: Pair, alpha: Float[ArrayLike, ""]) -> Float[Array, "*p"]:
    """r_w − r_l of the summed log-probabilities."""
    return _rewards_apart(floats(pairs.chosen), floats(pairs.rejected), alpha)


def _mean_reward_margin(pairs: Pair, alpha: Float[ArrayLike, ""]) -> Float[Array, "*p"]:
    """r_w − r_l of the log-probabilities averaged over tokens."""
    return _rewards_apart(*_mean_log_probabilities(pairs), alpha)


def _rewards_apart(
    chosen: Float[Array, "*p"], rejected: Float[Array, "*p"], alpha: Float[ArrayLike, ""]
) -> Float[Array, "*p"]:
    power = -like(alpha, chosen)
    return difference(power_reward(chosen, power), power_reward(rejected, power), chosen - rejected)
