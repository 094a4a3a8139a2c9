"""Losses of each response: sums of what the chosen and the rejected response lose.

u: log-ratio, log-probability less that of the reference; h = u_w − u_l, the margin; ls: log σ;
N: tokens.

p: pairs, any shape, a scalar for one pair. Every loss is accurate to a few units in the last place
of its largest term, for every finite log-ratio; see `flowlab.losses.functions`.
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

    The paper estimates the chance that a response wins, and has η = 1/β; here the chosen wins for
    certain, as in TRL.

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
    """Noise contrastive alignment, for pairs: −ls(βu_w) − ½ls(−βu_w) − ½ls(−βu_l).

    Its term in u_w alone is smallest at βu_w = log 2.

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
    """Binary classifier optimisation: −ls(βu_w − δ) − ls(−(βu_l − δ)).

    Args:
        beta: β, positive; an array sets one per pair.
        delta: The shift δ of the reward, finite. It is 0 for pairs in TRL; elsewhere a running mean
            of rewards, which is a state of the training and not of a loss, and is held fixed here.

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

    It pushes the chosen response up and the rejected one down independently: the loss is flat in a
    response whose βu is far from 0, regardless of the other one.

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

    For chosen responses that are worse than the model's own: pushes the rejected down everywhere,
    and the chosen where |h| > |u_w|; where |h| < |u_w| it pushes the chosen up, and at the
    reference, where both are 0, not at all.

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
    its value for the two is half of this one; `from_trl` returns that half.

    Args:
        beta: β, positive; an array sets one per pair.
        desirable_weight: w_d, at least 0.
        undesirable_weight: w_u, at least 0.
        reference_point: κ, at least 0: a KL divergence that training estimates anew for each batch,
            without a gradient; held fixed here.

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

    The mean of a batch is over all its chosen tokens together, −Σ l_w / Σ N_w, so that a long
    response weighs more.

    Source: `sft` in TRL's DPO trainer.
    """

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen = floats(pairs.chosen)
        return -chosen / like(pairs.chosen_length, chosen)

    def mean(self, pairs: Pair, weights: Float[ArrayLike, "*p"] | None = None) -> Float[Array, ""]:
        return negative_log_likelihood(pairs, weights)


class CalDPO(AbstractLoss):
    """Calibrated DPO: −ls(h) + ½[(u_w − 1/(2β))² + (u_l + 1/(2β))²].

    The margin stands without β: only the targets of the calibration have it.

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
    """βu of both responses."""
    chosen, rejected = floats(pairs.u_chosen), floats(pairs.u_rejected)
    return like(beta, chosen) * chosen, like(beta, rejected) * rejected


def _squares(pairs: Pair, beta: Float[ArrayLike, "*p"]) -> Float[Array, "*p"]:
    """(u_w − 1/(2β))² + (u_l + 1/(2β))²."""
    chosen, rejected = floats(pairs.u_chosen), floats(pairs.u_rejected)
    target = 1 / (2 * like(beta, chosen))
    return (chosen - target) ** 2 + (rejected + target) ** 2
