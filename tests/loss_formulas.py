"""The formula of every loss, to as many digits as wanted, and pairs over the numerical range."""

import dataclasses

import jax.numpy as jnp
import mpmath
import numpy as np
from mpmath import mpf

from flowlab import losses

MODERATE = [-2, 0, 0.125, 2.5]
LOG_RATIOS = {
    "float64": [-700, -350.5, -37.25, -(2.0**-30), *MODERATE, 37.25, 699.875, 700],
    "float32": [-80, -40.5, -9.25, -(2.0**-12), *MODERATE, 9.25, 79.875, 80],
}
FAR = [-1e4, -9999.0, -720.0, -90.0, -1.0, 0.0, 1.0, 90.0, 720.0, 9999.0, 1e4]


class Digits:
    """A number of many digits with its derivatives by l_w and l_l, and the largest term of each.

    A rounding of a term is the error that any computation of the formula makes. `value` and `by`
    are exact; `terms` and `by_terms` are the largest absolute summands that made them, which exceed
    them where they cancel. What cancels in an argument reaches the function of it through its
    derivative; the rounding of an argument that does not cancel does not count as a term.
    """

    smallest = mpf(0)
    tolerance = mpf(1)

    def __init__(self, value, by=(0, 0), terms=None, by_terms=None):
        self.value = mpf(value)
        self.by = tuple(map(mpf, by))
        self.terms = abs(self.value) if terms is None else terms
        self.by_terms = tuple(map(abs, self.by)) if by_terms is None else by_terms

    def __add__(self, other):
        other = digits(other)
        return Digits(
            self.value + other.value,
            (self.by[0] + other.by[0], self.by[1] + other.by[1]),
            max(self.terms, other.terms),
            tuple(map(max, self.by_terms, other.by_terms)),
        )

    def __neg__(self):
        return Digits(-self.value, (-self.by[0], -self.by[1]), self.terms, self.by_terms)

    def __sub__(self, other):
        return self + (-other)

    def __rsub__(self, other):
        return other + (-self)

    def __mul__(self, other):
        if not isinstance(other, Digits):
            size = abs(other)
            return Digits(
                self.value * other,
                [slope * other for slope in self.by],
                self.terms * size,
                tuple(slope * size for slope in self.by_terms),
            )
        a, b = self, other
        return Digits(
            a.value * b.value,
            [x * b.value + a.value * y for x, y in zip(a.by, b.by, strict=True)],
            max(a.terms * abs(b.value), abs(a.value) * b.terms),
            tuple(
                max(s * abs(b.value), abs(x) * b.terms, a.terms * abs(y), abs(a.value) * t)
                for x, y, s, t in zip(a.by, b.by, a.by_terms, b.by_terms, strict=True)
            ),
        )

    def __truediv__(self, number):
        return self * (1 / mpf(number))

    __radd__, __rmul__ = __add__, __mul__

    def through(self, value, slope, bend):
        """A function of this number, by its value and its first two derivatives."""
        cancelled = self.terms if self.terms > abs(self.value) * (1 + mpf(10) ** -9) else 0
        # A slope below the smallest number is 0, whatever it is multiplied by afterwards.
        lost = self.smallest / self.tolerance if 0 < abs(slope) < 2 * self.smallest else 0
        return Digits(
            value,
            [slope * x for x in self.by],
            max(abs(value), abs(slope) * cancelled),
            tuple(
                max(abs(slope) * s, abs(bend) * cancelled * abs(x), lost * abs(x))
                for x, s in zip(self.by, self.by_terms, strict=True)
            ),
        )


def digits(number):
    return number if isinstance(number, Digits) else Digits(number)


def logistic(x):
    return 1 / (1 + mpmath.exp(-x))


def sigma(a):
    right, wrong = logistic(a.value), logistic(-a.value)
    return a.through(right, right * wrong, right * wrong * (wrong - right))


def ls(a):
    right, wrong = logistic(a.value), logistic(-a.value)
    value = mpmath.log1p(-wrong) if a.value > 0 else a.value - mpmath.log1p(mpmath.exp(a.value))
    return a.through(value, wrong, -right * wrong)


def exp(a):
    value = mpmath.exp(a.value)
    return a.through(value, value, value)


def square(a):
    return a.through(a.value**2, 2 * a.value, mpf(2))


def relu(a):
    """The derivative at 0 is 0."""
    return a if a.value > 0 else Digits(0)


def log_of_complement(a):
    """log(1 − e^a)."""
    left = -mpmath.expm1(a.value)
    ratio = (1 - left) / left
    return a.through(mpmath.log(left), -ratio, -ratio / left)


def power(a, exponent):
    """(e^{exponent·a} − 1)/exponent, and a for 0."""
    if exponent == 0:
        return a
    value = mpmath.exp(exponent * a.value)
    return a.through(mpmath.expm1(exponent * a.value) / exponent, value, exponent * value)


@dataclasses.dataclass
class Point:
    """The numbers that a formula reads of a pair, each difference exact."""

    chosen: Digits
    rejected: Digits
    u_w: Digits
    u_l: Digits
    h: Digits
    N_w: mpf
    N_l: mpf
    offset: mpf

    @property
    def q_w(self):
        return self.chosen / self.N_w

    @property
    def q_l(self):
        return self.rejected / self.N_l


def point(l_w, l_l, r_w, r_l, N_w, N_l, offset):
    l_w, l_l, r_w, r_l = map(mpf, (l_w, l_l, r_w, r_l))
    return Point(
        Digits(l_w, (1, 0)),
        Digits(l_l, (0, 1)),
        Digits(l_w - r_w, (1, 0)),
        Digits(l_l - r_l, (0, 1)),
        Digits(l_w - r_w - l_l + r_l, (1, -1)),
        *map(mpf, (N_w, N_l, offset)),
    )


def score(divergence, u):
    """The score of an f-divergence; a number is the α of the α-divergence."""
    if divergence == "forward":
        return 1 - exp(-u)
    if divergence == "jensen-shannon":
        return mpmath.log(2) + ls(u)
    return power(u, divergence - 1)


def margin(p, divergence):
    if divergence is None:
        return p.h
    return score(divergence, p.u_w) - score(divergence, p.u_l)


def mean_margin(p, divergence):
    if divergence is None:
        return p.u_w / p.N_w - p.u_l / p.N_l
    return score(divergence, p.u_w) / p.N_w - score(divergence, p.u_l) / p.N_l


def smooth(z, e):
    return -(1 - e) * ls(z) - e * ls(-z)


def dpo(p, beta, divergence=None):
    return -ls(beta * margin(p, divergence))


def conservative(p, beta, label_smoothing):
    return smooth(beta * p.h, label_smoothing)


def robust(p, beta, label_smoothing, divergence=None):
    z, e = beta * margin(p, divergence), label_smoothing
    return (-(1 - e) * ls(z) + e * ls(-z)) / (1 - 2 * e)


def ipo(p, beta, divergence=None):
    return square(mean_margin(p, divergence) - 1 / (2 * beta))


def summed_ipo(p, beta):
    return square(p.h - 1 / (2 * beta))


def hinge(p, beta, divergence=None):
    return relu(1 - beta * margin(p, divergence))


def exo(p, beta, label_smoothing, divergence=None):
    z, e = beta * margin(p, divergence), label_smoothing
    right, wrong = ls(z) - mpmath.log1p(-e), ls(-z) - mpmath.log(e)
    return sigma(z) * right + sigma(-z) * wrong


def discopop(p, beta, tau, divergence=None):
    z = beta * margin(p, divergence)
    return sigma(-z / tau) * (-ls(z)) + sigma(z / tau) * exp(-z)


def length_normalised(p, beta, divergence=None):
    return -ls(beta * mean_margin(p, divergence))


def dpo_shift(p, beta, lam):
    return -ls(beta * (p.u_w - lam * p.u_l))


def odpo(p, beta, alpha):
    return -ls(beta * p.h - alpha * p.offset)


def dpop(p, beta, lam):
    return -ls(beta * (p.h - lam * relu(-p.u_w)))


def dpop_outside(p, beta, lam):
    return -ls(beta * p.h) + lam * relu(-p.u_w)


def sppo(p, beta):
    return square(p.u_w - 1 / (2 * beta)) + square(p.u_l + 1 / (2 * beta))


def nca(p, beta):
    return -ls(beta * p.u_w) - ls(-beta * p.u_w) / 2 - ls(-beta * p.u_l) / 2


def bco(p, beta, delta):
    return -ls(beta * p.u_w - delta) - ls(-(beta * p.u_l - delta))


# 1 − σ(x) stands as σ(−x): a difference of one that cancels would hide the tail behind its 1.
def apo_zero(p, beta):
    return sigma(-beta * p.u_w) + sigma(beta * p.u_l)


def apo_down(p, beta):
    return sigma(beta * p.u_w) + sigma(-beta * p.h)


def kto(p, beta, desirable_weight, undesirable_weight, reference_point):
    desirable = sigma(beta * (reference_point - p.u_w))
    return desirable_weight * desirable + undesirable_weight * sigma(
        beta * (p.u_l - reference_point)
    )


def sft(p):
    return -p.q_w


def cal_dpo(p, beta):
    return -ls(p.h) + sppo(p, beta) / 2


def reward(log_probability, alpha):
    return power(log_probability, -alpha)


def reward_margin(p, alpha):
    if alpha == 0:
        return Digits(p.chosen.value - p.rejected.value, (1, -1))
    return reward(p.chosen, alpha) - reward(p.rejected, alpha)


def mean_reward_margin(p, alpha):
    return reward(p.q_w, alpha) - reward(p.q_l, alpha)


def cpo(p, beta, nll_weight, label_smoothing, alpha):
    return smooth(beta * reward_margin(p, alpha), label_smoothing) - nll_weight * p.q_w


def cpo_hinge(p, beta, nll_weight, alpha):
    return relu(1 - beta * reward_margin(p, alpha)) - nll_weight * p.q_w


def cpo_ipo(p, beta, nll_weight, alpha):
    return square(mean_reward_margin(p, alpha) - 1 / (2 * beta)) - nll_weight * p.q_w


def alphapo(p, beta, gamma, alpha, label_smoothing, nll_weight):
    z = beta * mean_reward_margin(p, alpha) - gamma
    return smooth(z, label_smoothing) - nll_weight * p.q_w


def simpo(p, beta, gamma, label_smoothing, nll_weight):
    return alphapo(p, beta, gamma, mpf(0), label_smoothing, nll_weight)


def odds_ratio(p, beta):
    odds = p.q_w - p.q_l - (log_of_complement(p.q_w) - log_of_complement(p.q_l))
    return -beta * ls(odds)


def orpo(p, beta):
    return odds_ratio(p, beta) - p.q_w


FORMULAS = {
    losses.DPO: (dpo, {"beta": 0.1}),
    losses.ConservativeDPO: (conservative, {"beta": 0.1, "label_smoothing": 0.1}),
    losses.RobustDPO: (robust, {"beta": 0.1, "label_smoothing": 0.1}),
    losses.IPO: (ipo, {"beta": 0.1}),
    losses.SummedIPO: (summed_ipo, {"beta": 0.1}),
    losses.Hinge: (hinge, {"beta": 0.1}),
    losses.EXO: (exo, {"beta": 0.1, "label_smoothing": 1e-3}),
    losses.DiscoPOP: (discopop, {"beta": 0.05, "tau": 0.05}),
    losses.LengthNormalisedDPO: (length_normalised, {"beta": 0.1}),
    losses.DPOShift: (dpo_shift, {"beta": 0.1, "lam": 0.95}),
    losses.ODPO: (odpo, {"beta": 0.1, "alpha": 1.0}),
    losses.DPOP: (dpop, {"beta": 0.3, "lam": 50.0}),
    losses.DPOPOutside: (dpop_outside, {"beta": 0.3, "lam": 50.0}),
    losses.SPPO: (sppo, {"beta": 0.1}),
    losses.NCA: (nca, {"beta": 0.1}),
    losses.BCO: (bco, {"beta": 0.1, "delta": 0.0}),
    losses.APOZero: (apo_zero, {"beta": 0.1}),
    losses.APODown: (apo_down, {"beta": 0.1}),
    losses.KTO: (
        kto,
        {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "reference_point": 0.0},
    ),
    losses.SFT: (sft, {}),
    losses.CalDPO: (cal_dpo, {"beta": 0.1}),
    losses.CPO: (cpo, {"beta": 0.1, "nll_weight": 1.0, "label_smoothing": 0.0, "alpha": 0.0}),
    losses.CPOHinge: (cpo_hinge, {"beta": 0.1, "nll_weight": 1.0, "alpha": 0.0}),
    losses.CPOIPO: (cpo_ipo, {"beta": 0.1, "nll_weight": 1.0, "alpha": 0.0}),
    losses.SimPO: (simpo, {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0, "nll_weight": 0.0}),
    losses.AlphaPO: (
        alphapo,
        {"beta": 2.0, "gamma": 0.5, "alpha": 0.25, "label_smoothing": 0.0, "nll_weight": 0.0},
    ),
    losses.OddsRatio: (odds_ratio, {"beta": 0.1}),
    losses.ORPO: (orpo, {"beta": 0.1}),
}
"""The formula of each loss, and the defaults that it is documented to have."""

WITHOUT_REFERENCE = (
    losses.CPO,
    losses.CPOHinge,
    losses.CPOIPO,
    losses.SimPO,
    losses.AlphaPO,
    losses.OddsRatio,
    losses.ORPO,
)


def pairs_of(kind, values, dtype):
    """Pairs over a square of log-ratios; references and lengths change from one to the next.

    Without a reference the log-ratios are the log-probabilities; odds need them below 0.
    """
    if kind in (losses.OddsRatio, losses.ORPO):
        tiny = float(np.finfo(dtype).tiny) * 1e6
        values = [-abs(value) for value in values[:-4]] + [values[0] / 2, -1, -tiny, -1e-12]
        values = [value or -0.5 for value in values]
    first, second = (axis.ravel() for axis in np.meshgrid(values, values))
    turn = np.arange(first.size)
    with_reference = kind not in WITHOUT_REFERENCE
    ref_chosen = np.where(turn % 2, -20.0, 0.0) * with_reference
    ref_rejected = np.where(turn % 3, -20.0, 0.0) * with_reference
    lengths = np.where(turn % 4 < 2, 20.0, 7.0), np.where(turn % 4 < 2, 20.0, 31.0)
    columns = (first + ref_chosen, second + ref_rejected, ref_chosen, ref_rejected, *lengths)
    offsets = np.where(turn % 5, 0.0, 1.5)
    return losses.Pair(*(jnp.asarray(np.asarray(column, dtype)) for column in (*columns, offsets)))
