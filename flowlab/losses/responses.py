"""Losses with separate terms for the chosen and for the rejected response.

u: log-ratio log π − log π_ref of a response; h = u_w − u_l: margin; N: number of tokens.

p: the shape of the pairs, which is () for one pair. Every loss is accurate to a few units in the
last place of its largest term, for every finite log-ratio; see `flowlab.losses.functions`.
"""

from typing import ClassVar

import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowlab._arrays import floats, like
from flowlab._parameters import parameter, positive
from flowlab.losses.base import AbstractLoss, LowerBound, Pair, negative_log_likelihood
from flowlab.losses.functions import negative_log_sigmoid, sigmoid

__all__ = ["BCO", "KTO", "NCA", "SFT", "SPPO", "APODown", "APOZero", "CalDPO"]


class SPPO(AbstractLoss):
    """Self-play preference optimisation, hard labels: (u_w − 1/(2β))² + (u_l + 1/(2β))².

    The paper estimates the probability that a response wins, and writes η for 1/β. Here the chosen
    response wins with certainty, as in TRL.

    Args:
        beta: β, positive; an array sets one per pair.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2405.00675, equation 4.7; `sppo_hard` in TRL.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        return _squares(pairs, self.beta)


class NCA(AbstractLoss):
    """Noise contrastive alignment, for pairs: −log σ(βu_w) − ½ log σ(−βu_w) − ½ log σ(−βu_l).

    The sum of the two terms in u_w has its minimum at βu_w = log 2.

    Args:
        beta: β, positive; an array sets one per pair.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2402.05369, with two responses; `nca_pair` in TRL.
    """

    least: ClassVar[LowerBound | None] = LowerBound(float(1.5 * np.log(3) - np.log(2)))

    beta: Float[ArrayLike, "*p"] = positive(0.1)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen, rejected = _rewards(pairs, self.beta)
        noise = negative_log_sigmoid(-chosen) + negative_log_sigmoid(-rejected)
        return negative_log_sigmoid(chosen) + noise / 2


class BCO(AbstractLoss):
    """Binary classifier optimisation: −log σ(βu_w − δ) − log σ(−(βu_l − δ)).

    Args:
        beta: β, positive; an array sets one per pair.
        delta: The shift δ of the reward, finite. TRL has δ = 0 for pairs. Other code takes a
            running mean of the rewards, which changes during training; here δ is constant.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2404.04656; `bco_pair` in TRL.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    delta: Float[ArrayLike, ""] = parameter(0.0, "delta", "(-inf, inf)")

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen, rejected = _rewards(pairs, self.beta)
        delta = like(self.delta, chosen)
        return negative_log_sigmoid(chosen - delta) + negative_log_sigmoid(delta - rejected)


class APOZero(AbstractLoss):
    """Anchored preference optimisation, zero: 1 − σ(βu_w) + σ(βu_l).

    Each term depends on one response only. The loss raises the chosen response and lowers the
    rejected one, and it is flat in a response whose βu is far from 0.

    Args:
        beta: β, positive; an array sets one per pair.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2408.06266, equation 7; `apo_zero` in TRL, and `apo_zero_unpaired` in its KTO
        trainer.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen, rejected = _rewards(pairs, self.beta)
        return sigmoid(-chosen) + sigmoid(rejected)


class APODown(AbstractLoss):
    """Anchored preference optimisation, down: σ(βu_w) + 1 − σ(βh).

    Here h = u_w − u_l. The loss is made for chosen responses that are worse than the model's own.
    It lowers the rejected response everywhere. It lowers the chosen response if |h| > |u_w|, raises
    it if |h| < |u_w|, and leaves it alone at the reference, where u_w = h = 0.

    Args:
        beta: β, positive; an array sets one per pair.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2408.06266, equation 8; `apo_down` in TRL.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen, _ = _rewards(pairs, self.beta)
        margin = floats(pairs.margin)
        return sigmoid(chosen) + sigmoid(-like(self.beta, margin) * margin)


class KTO(AbstractLoss):
    """Kahneman–Tversky optimisation: w_d(1 − σ(β(u_w − κ))) + w_u(1 − σ(β(κ − u_l))).

    A pair counts as one desirable and one undesirable example. TRL averages over examples, so that
    its value for the pair is half of this loss; `from_trl` returns that half.

    Args:
        beta: β, positive; an array sets one per pair.
        desirable_weight: w_d, at least 0.
        undesirable_weight: w_u, at least 0.
        reference_point: κ, at least 0. In training κ is a KL divergence, which is estimated for
            each batch and has no gradient; here κ is constant.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2402.01306, equation 7; `kto` in TRL's KTO trainer.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    desirable_weight: Float[ArrayLike, ""] = parameter(1.0, "desirable_weight", "[0, inf)")
    undesirable_weight: Float[ArrayLike, ""] = parameter(1.0, "undesirable_weight", "[0, inf)")
    reference_point: Float[ArrayLike, ""] = parameter(0.0, "reference_point", "[0, inf)")

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen, rejected = floats(pairs.u_chosen), floats(pairs.u_rejected)
        beta, point = like(self.beta, chosen), like(self.reference_point, chosen)
        desirable = like(self.desirable_weight, chosen) * sigmoid(beta * (point - chosen))
        undesirable = like(self.undesirable_weight, chosen) * sigmoid(beta * (rejected - point))
        return desirable + undesirable


class SFT(AbstractLoss):
    """Supervised fine-tuning on the chosen response: −l_w/N_w, its cross-entropy per token.

    l_w is the log-probability of the chosen response and N_w its number of tokens. The mean of a
    batch is over all chosen tokens, −Σ l_w / Σ N_w, so that a long response counts more than a
    short one.

    Source: `sft` in TRL's DPO trainer.
    """

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen = floats(pairs.chosen)
        return -chosen / like(pairs.chosen_length, chosen)

    def mean(self, pairs: Pair, weights: Float[ArrayLike, "*p"] | None = None) -> Float[Array, ""]:
        return negative_log_likelihood(pairs, weights)


class CalDPO(AbstractLoss):
    """Calibrated DPO: −log σ(h) + ½[(u_w − 1/(2β))² + (u_l + 1/(2β))²].

    Here h = u_w − u_l. The margin h has no factor β; β occurs only in the targets of the
    calibration.

    Args:
        beta: β, positive; an array sets one per pair.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2412.14516.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        return negative_log_sigmoid(floats(pairs.margin)) + _squares(pairs, self.beta) / 2


def _rewards(
    pairs: Pair, beta: Float[ArrayLike, "*p"]
) -> tuple[Float[Array, "*p"], Float[Array, "*p"]]:
    """The rewards βu of the chosen and of the rejected response."""
    chosen, rejected = floats(pairs.u_chosen), floats(pairs.u_rejected)
    return like(beta, chosen) * chosen, like(beta, rejected) * rejected


def _squares(pairs: Pair, beta: Float[ArrayLike, "*p"]) -> Float[Array, "*p"]:
    """The sum of squares (u_w − 1/(2β))² + (u_l + 1/(2β))²."""
    chosen, rejected = floats(pairs.u_chosen), floats(pairs.u_rejected)
    target = 1 / (2 * like(beta, chosen))
    return (chosen - target) ** 2 + (rejected + target) ** 2
