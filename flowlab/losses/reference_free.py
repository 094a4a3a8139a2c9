"""Losses of the log-probabilities alone, without a reference.

l: summed log-probability; N: number of tokens; q = l/N: average log-probability; r: reward; NLL_w:
negative log-likelihood per token of the chosen response, or, in a batch, of all chosen tokens
together. The reward is l or q if α = 0, and otherwise (1 − e^{−αl})/α or (1 − e^{−αq})/α.

p: the shape of the pairs, which is () for one pair. Every loss is accurate to a few units in the
last place of its largest term, while |α·l| < 700 (80 in float32); see `flowlab.losses.functions`.
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
    """The sum of a preference term and of a multiple of the likelihood term NLL_w."""

    nll_weight: eqx.AbstractVar[Float[ArrayLike, ""]]

    @abstractmethod
    def preference(self, pairs: Pair) -> Float[Array, "*p"]:
        """The loss without the likelihood term."""

    def lower_bound(self) -> LowerBound | None:
        weighed = isinstance(self.nll_weight, Tracer) or np.any(np.asarray(self.nll_weight))
        return None if weighed else self.preference_bound()

    @abstractmethod
    def preference_bound(self) -> LowerBound | None:
        """The lower bound of the preference term; the likelihood term has none on planes."""

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen = floats(pairs.chosen)
        likelihood = -chosen / like(pairs.chosen_length, chosen)
        return self.preference(pairs) + like(self.nll_weight, chosen) * likelihood

    def mean(self, pairs: Pair, weights: Float[ArrayLike, "*p"] | None = None) -> Float[Array, ""]:
        likelihood = negative_log_likelihood(pairs, weights)
        preference = weighted_mean(self.preference(pairs), weights)
        return preference + like(self.nll_weight, likelihood) * likelihood


class CPO(_WithLikelihood):
    """CPO: −(1−ε) log σ(β(r_w − r_l)) − ε log σ(−β(r_w − r_l)) + c·NLL_w.

    Contrastive preference optimisation (CPO) adds to a preference term the negative log-likelihood
    per token NLL_w of the chosen response, which the paper calls behaviour cloning. The reward r of
    a response with probability p is (1 − p^{−α})/α, or log p if α = 0.

    Args:
        beta: β, positive; an array sets one per pair.
        nll_weight: c, the weight of NLL_w, at least 0; `cpo_alpha` in TRL.
        label_smoothing: ε in [0, ½).
        alpha: α, finite, the shape of the reward; `alpha` in TRL.

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
    """CPO with a hinge: max(0, 1 − β(r_w − r_l)) + c·NLL_w, the form of SLiC-HF.

    NLL_w is the negative log-likelihood per token of the chosen response. The reward r of a
    response with probability p is (1 − p^{−α})/α, or log p if α = 0. At the kink the derivative is
    the one of the flat side.

    The loss of SLiC-HF, max(0, δ − (l_w − l_l)) + λ·NLL, is δ times this loss with β = 1/δ, α = 0
    and c = λ/δ, except that its NLL is summed over tokens and NLL_w is averaged.

    Args:
        beta: β, positive; an array sets one per pair. 1/δ, with δ the margin of SLiC-HF.
        nll_weight: c, the weight of NLL_w, at least 0; `cpo_alpha` in TRL.
        alpha: α, finite, the shape of the reward; `alpha` in TRL.

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
    """CPO with the square of IPO: (r_w − r_l − 1/(2β))² + c·NLL_w, averaged over tokens.

    NLL_w is the negative log-likelihood per token of the chosen response. The reward r of a
    response with log-probability q per token is (1 − e^{−αq})/α, or q if α = 0.

    Args:
        beta: β, positive; an array sets one per pair.
        nll_weight: c, the weight of NLL_w, at least 0; `cpo_alpha` in TRL.
        alpha: α, finite, the shape of the reward; `alpha` in TRL.

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
    """Simple preference optimisation: −log σ(β(l_w/N_w − l_l/N_l) − γ).

    l is the log-probability of a response and N its number of tokens.

    Args:
        beta: β, positive; an array sets one per pair. The paper trains with 2 to 10; TRL's default
            is 0.1.
        gamma: Target margin γ, at least 0.
        label_smoothing: ε in [0, ½), as in CPO; 0 is the paper's form.
        nll_weight: Weight of an added negative log-likelihood of the chosen response, at least 0;
            the paper has 0, and TRL's default is 1 (CPO-SimPO).

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
    """AlphaPO: −log σ(β(r_w − r_l) − γ) with the reward r = (1 − p^{−α})/α.

    p = e^{l/N} is the probability per token of a response with log-probability l and N tokens. The
    limit α → 0 is SimPO. `CPO(alpha=…)` has the same reward of the whole response, p = e^l.

    Args:
        beta: β, positive; an array sets one per pair.
        gamma: Target margin γ, at least 0.
        alpha: Shape α of the reward, finite.
        label_smoothing: ε in [0, ½), as in CPO; 0 is the paper's form.
        nll_weight: Weight of an added negative log-likelihood of the chosen response, at least 0;
            the paper has 0.

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
    """The odds-ratio term of ORPO: −β·log σ(q_w − q_l − [log(1−e^{q_w}) − log(1−e^{q_l})]).

    q is the log-probability per token of a response. Odds are defined only for q < 0, a probability
    per token below one. Otherwise the loss is inf, and so is its derivative with respect to a q out
    of range; a flow line ends there.

    Args:
        beta: β, positive, the paper's λ; an array sets one per pair.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2403.07691, equations 4 and 7; TRL's ORPO trainer, which computes this term in
        float32.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen, rejected = _mean_log_probabilities(pairs)
        return like(self.beta, chosen) * log_odds_loss(chosen, rejected)


class ORPO(AbstractLoss):
    """Odds ratio preference optimisation: NLL_w − β·log σ(log odds of q_w less log odds of q_l).

    It is NLL_w, the negative log-likelihood per token of the chosen response, plus `OddsRatio`,
    whose range of definition it shares.

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
    """The log-probabilities per token, q = l/N, of both responses."""
    chosen, rejected = floats(pairs.chosen), floats(pairs.rejected)
    chosen_length = like(pairs.chosen_length, chosen)
    return chosen / chosen_length, rejected / like(pairs.rejected_length, rejected)


def _reward_margin(pairs: Pair, alpha: Float[ArrayLike, ""]) -> Float[Array, "*p"]:
    """The reward margin r_w − r_l, with rewards of summed log-probabilities."""
    return _rewards_apart(floats(pairs.chosen), floats(pairs.rejected), alpha)


def _mean_reward_margin(pairs: Pair, alpha: Float[ArrayLike, ""]) -> Float[Array, "*p"]:
    """The reward margin r_w − r_l, with rewards of log-probabilities per token."""
    return _rewards_apart(*_mean_log_probabilities(pairs), alpha)


def _rewards_apart(
    chosen: Float[Array, "*p"], rejected: Float[Array, "*p"], alpha: Float[ArrayLike, ""]
) -> Float[Array, "*p"]:
    power = -like(alpha, chosen)
    return difference(power_reward(chosen, power), power_reward(rejected, power), chosen - rejected)
