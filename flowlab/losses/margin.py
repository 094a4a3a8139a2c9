"""Losses of one margin: a difference of what the chosen and the rejected response score.

u: log-ratio, log-probability less that of the reference; h = u_w − u_l, the margin; z = β·h;
s: score of an f-divergence, u itself unless another is given; ls: log σ; N: tokens.

p: pairs, any shape, a scalar for one pair. Every loss is accurate to a few units in the last place
of its largest term, for every finite log-ratio; see `flowlab.losses.functions`.
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
    """Direct preference optimisation: −ls(β·(s_w − s_l)).

    With another divergence than the reverse KL this is f-DPO.

    Args:
        beta: Strength β of the implicit regularisation, positive; an array sets one per pair.
        divergence: f-divergence whose score is read.

    Raises:
        ValueError: If β is not positive and finite, or `divergence` is not one of those above.

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
    """Conservative DPO (cDPO): −(1−ε) ls(z) − ε ls(−z).

    Here ls = log σ and z = βh. The logistic loss of labels that are wrong with chance ε; smallest
    at z = log((1−ε)/ε).

    Args:
        beta: β, positive; an array sets one per pair.
        label_smoothing: ε in [0, ½); 0 gives DPO.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: Mitchell, "A note on DPO with noisy preferences" (2023); the reference DPO code,
        OpenRLHF and HALOs have it. TRL had it until 0.28, as `label_smoothing` of `sigmoid`.
    """

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    label_smoothing: Float[ArrayLike, ""] = parameter(0.1, "label_smoothing", "[0, 0.5)")

    def lower_bound(self) -> LowerBound | None:
        return label_entropy(self.label_smoothing)

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        margin = floats(pairs.margin)
        return smoothed(like(self.beta, margin) * margin, like(self.label_smoothing, margin))


class RobustDPO(AbstractLoss):
    """Robust DPO (rDPO): [−(1−ε) ls(β(s_w − s_l)) + ε ls(−β(s_w − s_l))]/(1−2ε).

    An unbiased estimate of DPO's loss when labels are flipped with probability ε. For ε > 0 it has
    no lower bound: its derivative by z = β(s_w − s_l) tends to −ε/(1−2ε).

    Args:
        beta: β, positive; an array sets one per pair.
        label_smoothing: ε in [0, ½); 0 gives DPO.
        divergence: f-divergence whose score is read.

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

    The form of TRL, HALOs and LLaMA-Factory, which the authors of IPO confirmed to be the one
    behind their results. `SummedIPO` is the form that the paper prints.

    Args:
        beta: β, positive, the paper's τ; an array sets one per pair.
        divergence: f-divergence whose score is read.

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
    """Identity preference optimisation as the paper prints it: (h − 1/(2β))².

    The form of the reference DPO code and of OpenRLHF. `IPO` is the form averaged over tokens.

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

    At the kink, z = 1, the derivative is 0, that of the flat side. SLiC-HF (arXiv 2305.10425) adds
    a likelihood term and has no reference: see `CPOHinge`.

    Args:
        beta: β, positive; an array sets one per pair.
        divergence: f-divergence whose score is read.

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
    """Efficient exact optimisation, for pairs: σ(z)[ls(z) − log(1−ε)] + σ(−z)[ls(−z) − log ε].

    With z = β(s_w − s_l): the KL divergence of the policy's preference from the smoothed label,
    zero at z = log((1−ε)/ε), and nearly flat for z ≪ 0.

    Args:
        beta: β, positive; an array sets one per pair.
        label_smoothing: ε in (0, 1); the paper recommends 1e-3.
        divergence: f-divergence whose score is read.

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
    """Discovered preference optimisation: (1−m)(−ls(z)) + m·e^{−z} with m = σ(z/τ).

    With z = β(s_w − s_l). For τ < (1 − log 2)/3 ≈ 0.102 it rises at z = 0, between two decreasing
    branches, so that the reference point lies on the wrong side of a hump.

    Args:
        beta: β, positive; an array sets one per pair. The paper trains with 0.05.
        tau: Temperature τ of the mixture, positive.
        divergence: f-divergence whose score is read.

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
    """Length-normalised DPO: −ls(β(s_w/N_w − s_l/N_l)).

    Args:
        beta: β, positive; an array sets one per pair. Per token it acts N times more weakly than
            DPO's.
        divergence: f-divergence whose score is read.

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
    """DPO-Shift: −ls(β(u_w − λ·u_l)).

    Args:
        beta: β, positive; an array sets one per pair.
        lam: λ in (0, 1], the weight of the rejected response; 1 gives DPO.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: arXiv 2502.07599; λ is held fixed here, the paper also lets it move in
        training.
    """

    least: ClassVar[LowerBound | None] = LowerBound(0.0)

    beta: Float[ArrayLike, "*p"] = positive(0.1)
    lam: Float[ArrayLike, ""] = parameter(0.95, "lam", "(0, 1]")

    def __call__(self, pairs: Pair) -> Float[Array, "*p"]:
        chosen, rejected = floats(pairs.u_chosen), floats(pairs.u_rejected)
        shifted = chosen - like(self.lam, rejected) * rejected
        return negative_log_sigmoid(like(self.beta, shifted) * shifted)


class ODPO(AbstractLoss):
    """DPO with an offset: −ls(z − α·offset).

    Args:
        beta: β, positive; an array sets one per pair.
        alpha: α, at least 0, scales the offsets that the pairs carry.

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
    """DPO-positive, as in Smaug: −ls(β(h − λ·max(0, −u_w))).

    The penalty stands inside the sigmoid. At the kink, u_w = 0, the derivative is that from above,
    without the penalty. `DPOPOutside` has it outside.

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
    """DPO-positive with the penalty outside the sigmoid: −ls(z) + λ·max(0, −u_w).

    The second lineage of DPOP, in training code that adds the penalty to DPO's loss; the paper's
    own form is `DPOP`. At the kink, u_w = 0, the derivative is that from above, without the
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
