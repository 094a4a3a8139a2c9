"""Losses of a margin, which is the difference of a chosen and a rejected score.

u: log-ratio log π − log π_ref of a response; h = u_w − u_l: margin; z = β·h; s: score of an
f-divergence, which is u for the reverse KL; N: number of tokens.

p: the shape of the pairs, which is () for one pair. Every loss is accurate to a few units in the
last place of its largest term, for every finite log-ratio; see `flowlab.losses.functions`.
"""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from flowlab._arrays import floats, like
from flowlab._parameters import parameter, positive
from flowlab.losses.base import AbstractLoss, LowerBound, Pair, label_entropy
from flowlab.losses.divergences import (
    AbstractDivergence,
    ReverseKL,
    divergence_field,
    mean_score_margin,
    score_margin,
)
from flowlab.losses.functions import (
    discovered,
    exchanged,
    negative_log_sigmoid,
    relu,
    smoothed,
)

__all__ = [
    "DPO",
    "DPOP",
    "EXO",
    "IPO",
    "ODPO",
    "ConservativeDPO",
    "DPOPOutside",
    "DPOShift",
    "DiscoPOP",
    "Hinge",
    "LengthNormalisedDPO",
    "RobustDPO",
    "SummedIPO",
]


class DPO(AbstractLoss):
    """Direct preference optimisation: −log σ(β·(s_w − s_l)).

    s is the score of the log-ratio: s = u for the reverse KL. With another divergence the loss is
    called f-DPO.

    Args:
        beta: Strength β of the implicit regularisation, positive; an array sets one per pair.
        divergence: f-divergence with the score s; the reverse KL by default.

    Raises:
        ValueError: If β is not positive and finite, or `divergence` is not an f-divergence.

    Source: arXiv 2305.18290, equation 7; arXiv 2309.16240 (f-DPO); `sigmoid` in TRL.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    divergence: AbstractDivergence = divergence_field()

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = score_margin(self.divergence, pairs)
        return negative_log_sigmoid(like(self.beta, margin) * margin)

    def margin_at(self, level: Float[ArrayLike, " k"]) -> Float[Array, " k"] | None:
        if not isinstance(self.divergence, ReverseKL) or np.ndim(self.beta):
            return None
        levels = floats(level)
        return -jnp.log(jnp.expm1(levels)) / like(self.beta, levels)


class ConservativeDPO(AbstractLoss):
    """Conservative DPO (cDPO): −(1−ε) log σ(z) − ε log σ(−z).

    Here z = β(u_w − u_l). This is the logistic loss for labels that are wrong with probability ε;
    its minimum is at z = log((1−ε)/ε).

    Args:
        beta: β, positive; an array sets one per pair.
        label_smoothing: ε in [0, ½); 0 gives DPO.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: Mitchell, "A note on DPO with noisy preferences" (2023); implemented in the reference
        DPO code, OpenRLHF and HALOs, and in TRL until 0.28 as `label_smoothing` of `sigmoid`.
    """

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    label_smoothing: Float[ArrayLike, ""] = parameter(0.1, "label_smoothing", "[0, 0.5)")

    def lower_bound(self) -> LowerBound | None:
        return label_entropy(self.label_smoothing)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = floats(pairs.margin)
        return smoothed(like(self.beta, margin) * margin, like(self.label_smoothing, margin))


class RobustDPO(AbstractLoss):
    """Robust DPO (rDPO): [−(1−ε) log σ(β(s_w − s_l)) + ε log σ(−β(s_w − s_l))]/(1−2ε).

    It is an unbiased estimate of DPO's loss if labels are flipped with probability ε. For ε > 0 it
    has no lower bound: its derivative with respect to z = β(s_w − s_l) tends to −ε/(1−2ε) as z → ∞.
    s is the score of the log-ratio: s = u for the reverse KL.

    Args:
        beta: β, positive; an array sets one per pair.
        label_smoothing: ε in [0, ½); 0 gives DPO.
        divergence: f-divergence with the score s; the reverse KL by default.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2403.00409; `robust` in TRL, where ε defaults to 0 and 0.1 is recommended.
    """

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    label_smoothing: Float[ArrayLike, ""] = parameter(0.1, "label_smoothing", "[0, 0.5)")
    divergence: AbstractDivergence = divergence_field()

    def lower_bound(self) -> LowerBound | None:
        wrong = self.label_smoothing
        smoothed = isinstance(wrong, Tracer) or np.any(np.asarray(wrong))
        return None if smoothed else LowerBound(0.0)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = score_margin(self.divergence, pairs)
        smoothing = like(self.label_smoothing, margin)
        wrong = -smoothing / (1 - 2 * smoothing)
        return smoothed(like(self.beta, margin) * margin, wrong)


class IPO(AbstractLoss):
    """Identity preference optimisation, averaged over tokens: (s_w/N_w − s_l/N_l − 1/(2β))².

    TRL, HALOs and LLaMA-Factory have this form, and the authors of IPO confirmed that they used it
    for their results. `SummedIPO` is the form in the paper. s is the score of the log-ratio (s = u
    for the reverse KL), and N the number of tokens.

    Args:
        beta: β, positive, the paper's τ; an array sets one per pair.
        divergence: f-divergence with the score s; the reverse KL by default.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2310.12036, equation 17; `ipo` in TRL.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    divergence: AbstractDivergence = divergence_field()

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = mean_score_margin(self.divergence, pairs)
        return (margin - 1 / (2 * like(self.beta, margin))) ** 2


class SummedIPO(AbstractLoss):
    """Identity preference optimisation as in the paper: (h − 1/(2β))², with the margin h.

    The reference DPO code and OpenRLHF have this form. `IPO` is the form averaged over tokens.

    Args:
        beta: β, positive, the paper's τ; an array sets one per pair.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2310.12036, equation 17.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = floats(pairs.margin)
        return (margin - 1 / (2 * like(self.beta, margin))) ** 2


class Hinge(AbstractLoss):
    """Hinge loss: max(0, 1 − β(s_w − s_l)).

    At the kink, β(s_w − s_l) = 1, the derivative is 0, as on the flat side. s is the score of the
    log-ratio: s = u for the reverse KL. SLiC-HF (arXiv 2305.10425) adds a likelihood term and has
    no reference; see `CPOHinge`.

    Args:
        beta: β, positive; an array sets one per pair.
        divergence: f-divergence with the score s; the reverse KL by default.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2309.06657 (RSO); `hinge` in TRL.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0, reached=True)

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    divergence: AbstractDivergence = divergence_field()

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = score_margin(self.divergence, pairs)
        return relu(1 - like(self.beta, margin) * margin)


class EXO(AbstractLoss):
    """Efficient exact optimisation (EXO): σ(z)[log σ(z) − log(1−ε)] + σ(−z)[log σ(−z) − log ε].

    Here z = β(s_w − s_l), where s is the score of the log-ratio: s = u for the reverse KL. The loss
    is the KL divergence of the policy's preference from the smoothed label. It is zero
    at z = log((1−ε)/ε), and nearly flat for z ≪ 0.

    Args:
        beta: β, positive; an array sets one per pair.
        label_smoothing: ε in (0, 1); the paper recommends 1e-3.
        divergence: f-divergence with the score s; the reverse KL by default.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2402.00856, equation 16; `exo_pair` in TRL.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    label_smoothing: Float[ArrayLike, ""] = parameter(1e-3, "label_smoothing", "(0, 1)")
    divergence: AbstractDivergence = divergence_field()

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = score_margin(self.divergence, pairs)
        return exchanged(like(self.beta, margin) * margin, like(self.label_smoothing, margin))


class DiscoPOP(AbstractLoss):
    """Discovered preference optimisation: (1−m)(−log σ(z)) + m·e^{−z} with m = σ(z/τ).

    Here z = β(s_w − s_l), where s is the score of the log-ratio: s = u for the reverse KL. For
    τ < (1 − log 2)/3 ≈ 0.102 the loss increases at z = 0, between two decreasing branches, so that
    gradient descent from the reference lowers the margin.

    Args:
        beta: β, positive; an array sets one per pair. The paper trains with 0.05.
        tau: Temperature τ of the mixture, positive.
        divergence: f-divergence with the score s; the reverse KL by default.

    Raises:
        ValueError: If a hyper-parameter is not positive and finite.

    Source: arXiv 2406.08414, equation 5; `discopop` in TRL.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.05)
    tau: Float[ArrayLike, ""] = positive(0.05, "tau", single=True)
    divergence: AbstractDivergence = divergence_field()

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = score_margin(self.divergence, pairs)
        return discovered(like(self.beta, margin) * margin, like(self.tau, margin))


class LengthNormalisedDPO(AbstractLoss):
    """Length-normalised DPO: −log σ(β(s_w/N_w − s_l/N_l)).

    s is the score of the log-ratio (s = u for the reverse KL), and N the number of tokens. The
    average over tokens makes a given β act N times more weakly than in DPO.

    Args:
        beta: β, positive; an array sets one per pair.
        divergence: f-divergence with the score s; the reverse KL by default.

    Raises:
        ValueError: If β is not positive and finite.

    Source: arXiv 2411.15124 (Tülu 3); `sigmoid_norm` in TRL.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    divergence: AbstractDivergence = divergence_field()

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = mean_score_margin(self.divergence, pairs)
        return negative_log_sigmoid(like(self.beta, margin) * margin)


class DPOShift(AbstractLoss):
    """DPO-Shift: −log σ(β(u_w − λ·u_l)).

    Args:
        beta: β, positive; an array sets one per pair.
        lam: λ in (0, 1], the weight of the rejected response; 1 gives DPO.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2502.07599, which also lets λ change during training; here λ is constant.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    lam: Float[ArrayLike, ""] = parameter(0.95, "lam", "(0, 1]")

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen, rejected = floats(pairs.u_chosen), floats(pairs.u_rejected)
        shifted = chosen - like(self.lam, rejected) * rejected
        return negative_log_sigmoid(like(self.beta, shifted) * shifted)


class ODPO(AbstractLoss):
    """DPO with an offset: −log σ(β(u_w − u_l) − α·offset).

    Args:
        beta: β, positive; an array sets one per pair.
        alpha: α, at least 0; the factor of the offsets, which belong to the pairs.

    Raises:
        ValueError: If a hyper-parameter is out of its range, or, when called, if the pairs have no
            `offset`.

    Source: arXiv 2402.10571, where the offset is the logarithm of the difference of two
        scores.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    alpha: Float[ArrayLike, ""] = parameter(1.0, "alpha", "[0, inf)")

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        if pairs.offset is None:
            raise ValueError(
                "Argument `pairs` must have an offset for ODPO, but has none; give one to the "
                "Pair, or to the plane as LogRatioPlane(offset=1.0)."
            )
        margin = floats(pairs.margin)
        offset = like(self.alpha, margin) * like(pairs.offset, margin)
        return negative_log_sigmoid(like(self.beta, margin) * margin - offset)


class DPOP(AbstractLoss):
    """DPO-positive, as in Smaug: −log σ(β(h − λ·max(0, −u_w))).

    Here h = u_w − u_l. The penalty is inside the sigmoid; `DPOPOutside` has it outside. At the
    kink, u_w = 0, the derivative is the one from above, without the penalty.

    Args:
        beta: β, positive; an array sets one per pair. The paper trains with 0.3.
        lam: λ, at least 0, the strength of the penalty on a chosen log-ratio below 0.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2402.13228.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.3)
    lam: Float[ArrayLike, ""] = parameter(50.0, "lam", "[0, inf)")

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin, chosen = floats(pairs.margin), floats(pairs.u_chosen)
        penalised = margin - like(self.lam, margin) * relu(-chosen)
        return negative_log_sigmoid(like(self.beta, margin) * penalised)


class DPOPOutside(AbstractLoss):
    """DPO-positive with the penalty outside the sigmoid: −log σ(βh) + λ·max(0, −u_w).

    Here h = u_w − u_l. Some training code adds the penalty to DPO's loss in this way; the form in
    the paper is `DPOP`. At the kink, u_w = 0, the derivative is the one from above, without the
    penalty.

    Args:
        beta: β, positive; an array sets one per pair.
        lam: λ, at least 0, the strength of the penalty on a chosen log-ratio below 0.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: a variant of arXiv 2402.13228.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.3)
    lam: Float[ArrayLike, ""] = parameter(50.0, "lam", "[0, inf)")

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin, chosen = floats(pairs.margin), floats(pairs.u_chosen)
        plain = negative_log_sigmoid(like(self.beta, margin) * margin)
        return plain + like(self.lam, margin) * relu(-chosen)
