"""Every loss against fifty digits, from the formulas alone, over the whole numerical range."""

import dataclasses

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from grids import thinned
from loss_formulas import (
    FAR,
    FORMULAS,
    LOG_RATIOS,
    Digits,
    dpo,
    exo,
    odds_ratio,
    pairs_of,
    point,
    sft,
    smooth,
)
from mpmath import mpf

from flowlab import losses

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
WITH_DIVERGENCE = (
    losses.DPO,
    losses.RobustDPO,
    losses.IPO,
    losses.Hinge,
    losses.EXO,
    losses.DiscoPOP,
    losses.LengthNormalisedDPO,
)
OF_A_BATCH = (losses.AOT, losses.AOTUnpaired)


def varied(kind, name, values):
    return [(kind, {name: value}) for value in values]


EXTREMES = [
    *(
        (kind, {"beta": beta})
        for kind in FORMULAS
        if kind is not losses.SFT
        for beta in (0.01, 1.0, 5.0)
    ),
    *varied(losses.ConservativeDPO, "label_smoothing", (0.0, 1e-12, 0.499999)),
    *varied(losses.RobustDPO, "label_smoothing", (0.0, 1e-12, 0.499999)),
    *varied(losses.CPO, "label_smoothing", (1e-12, 0.499999)),
    *varied(losses.SimPO, "label_smoothing", (0.1, 0.499999)),
    *varied(losses.EXO, "label_smoothing", (1e-12, 0.1, 0.999999)),
    *varied(losses.DiscoPOP, "tau", (1e-3, 0.999, 1.0, 10.0)),
    (losses.DiscoPOP, {"beta": 1.0, "tau": 10.0}),
    (losses.DiscoPOP, {"beta": 1.0, "tau": 1e-3}),
    *varied(losses.DPOShift, "lam", (1e-6, 1.0)),
    *varied(losses.DPOP, "lam", (0.0, 1e-6, 1e3)),
    *varied(losses.DPOPOutside, "lam", (0.0, 1e-6, 1e3)),
    *varied(losses.ODPO, "alpha", (0.0, 1e3)),
    *varied(losses.KTO, "reference_point", (50.0,)),
    (losses.KTO, {"desirable_weight": 0.0, "undesirable_weight": 1e3}),
    *varied(losses.BCO, "delta", (-3.7, 50.0)),
    *varied(losses.SimPO, "gamma", (0.0, 50.0)),
    *varied(losses.AlphaPO, "alpha", (-0.25, 0.0, 1e-8, 1.0)),
    *varied(losses.CPO, "alpha", (-0.25, 1e-8, 0.25, 1.0)),
    *varied(losses.CPOHinge, "alpha", (-0.25, 1.0)),
    *varied(losses.CPOIPO, "alpha", (-0.25, 1.0)),
    *varied(losses.AlphaPO, "label_smoothing", (0.1,)),
    *(
        (kind, {"divergence": divergence})
        for kind in WITH_DIVERGENCE
        for divergence in (0.3, 0.999, "jensen-shannon")
    ),
    *(
        (kind, {"divergence": d})
        for kind in (losses.DPO, losses.IPO)
        for d in ("forward", 0.0, 0.5, 1.0)
    ),
    (losses.RobustDPO, {"divergence": 0.0, "label_smoothing": 0.0}),
    (losses.DPO, {"divergence": 0.3, "beta": 5.0}),
]
CASES = [(kind, {}) for kind in FORMULAS] + EXTREMES


# By default these are looked at in single precision too, and the first with every divergence.
IN_BOTH = (losses.DPO, losses.EXO, losses.CPO)


def thinned_cases(cases, *, changed_too=True):
    """Cases in both precisions: by default most in double, and some with other numbers than β."""
    pairs = [(case, dtype) for case in cases for dtype in ("float64", "float32")]
    kept = [
        ((kind, changed), dtype)
        for (kind, changed), dtype in pairs
        if (dtype == "float64" or (kind in IN_BOTH and not changed))
        and not (changed and ("beta" in changed or not changed_too))
        and (kind is IN_BOTH[0] or "divergence" not in changed)
    ]
    return thinned(pairs, kept)


def named(case):
    if isinstance(case, str):
        return case
    kind, changed = case
    return "-".join([kind.__name__, *(f"{name}={value}" for name, value in changed.items())])


def divergence_of(value):
    if isinstance(value, str):
        return {"forward": losses.ForwardKL, "jensen-shannon": losses.JensenShannon}[value]()
    return losses.AlphaDivergence(value)


def built(kind, changed):
    divergence = {k: divergence_of(v) for k, v in changed.items() if k == "divergence"}
    return kind(**{**changed, **divergence})


def in_type(value, dtype):
    """The number that a hyper-parameter is in the type of the work."""
    return value if isinstance(value, str) else mpf(float(np.dtype(dtype).type(value)))


@jax.jit
def worked_out(loss, pairs):
    """Values, both derivatives, and the forward derivative in the direction (1, ½)."""
    gradient = jax.grad(lambda p: jnp.sum(loss(p)))(pairs)
    nothing = jax.tree.map(jnp.zeros_like, pairs)
    one = jnp.ones_like(pairs.chosen)
    direction = dataclasses.replace(nothing, chosen=one, rejected=one / 2)
    _, along = jax.jvp(lambda p: loss(p), (pairs,), (direction,))
    return loss(pairs), gradient.chosen, gradient.rejected, along


def exact(formula, pairs, parameters, dtype):
    """Value and derivatives of a formula with their largest terms, sixty digits: arrays (3, p)."""
    columns = dataclasses.astuple(jax.tree.map(lambda x: np.asarray(x, float).tolist(), pairs))
    numbers = {name: in_type(value, dtype) for name, value in parameters.items()}
    Digits.smallest = mpf(float(np.finfo(dtype).tiny))
    Digits.tolerance = mpf(TOLERANCE[dtype])
    with mpmath.workdps(60):
        results = [formula(point(*row), **numbers) for row in zip(*columns, strict=True)]
        rows = [(r.value, *r.by) for r in results], [(r.terms, *r.by_terms) for r in results]
    signs = [[mpmath.sign(x) for x in row] for row in rows[0]]
    return tuple(np.array([[float(x) for x in row] for row in part]).T for part in (*rows, signs))


def errors(got, wanted, terms, signs, dtype):
    """Errors relative to the largest term, after checking signs, zeros and infinities.

    Processors flush what lies below the smallest normal number to 0, so that a sum may lack such a
    term: one smallest number is no error.
    """
    smallest, largest = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
    got = np.asarray(got)
    assert got.dtype == dtype
    assert not np.any(np.isnan(got))
    vanished = (terms < smallest) & (got == 0) & (signs != 0)
    np.testing.assert_array_equal(np.signbit(got[vanished]), signs[vanished] < 0)
    beyond = np.abs(wanted) > largest * (1 + TOLERANCE[dtype])
    np.testing.assert_array_equal(got[beyond], np.inf * signs[beyond])
    comparable = ~beyond & (terms <= largest)
    with np.errstate(invalid="ignore"):
        error = np.maximum(np.abs(got.astype(float) - wanted) - smallest, 0)
    return error[comparable] / np.maximum(terms, smallest)[comparable]


@pytest.mark.parametrize(("case", "dtype"), thinned_cases(CASES), ids=named)
def test_value_and_gradient_are_those_of_the_formula_to_fifty_digits(case, dtype):
    kind, changed = case
    formula, defaults = FORMULAS[kind]
    pairs = pairs_of(kind, LOG_RATIOS[dtype], dtype)
    got = worked_out(built(*case), pairs)
    wanted, terms, signs = exact(formula, pairs, {**defaults, **changed}, dtype)
    for row in zip(got[:3], wanted, terms, signs, strict=True):
        assert np.max(errors(*row, dtype)) <= TOLERANCE[dtype]
    _, by_chosen, by_rejected, along = map(np.asarray, got)
    size = np.maximum(terms[1], terms[2])
    known = np.isfinite(by_chosen) & np.isfinite(by_rejected) & (size <= np.finfo(dtype).max)
    apart = np.abs(along[known] - by_chosen[known] - by_rejected[known] / 2)
    assert np.all(apart <= 4 * np.finfo(dtype).eps * size[known] + np.finfo(dtype).tiny)


@pytest.mark.parametrize(
    ("case", "dtype"),
    thinned_cases([c for c in CASES if "beta" not in c[1]], changed_too=False),
    ids=named,
)
def test_far_out_there_are_signed_zeros_and_infinities_and_no_nan(case, dtype):
    kind, changed = case
    formula, defaults = FORMULAS[kind]
    pairs = pairs_of(kind, FAR, dtype)
    got = worked_out(built(*case), pairs)[:3]
    wanted, terms, signs = exact(formula, pairs, {**defaults, **changed}, dtype)
    for row in zip(got, wanted, terms, signs, strict=True):
        errors(*row, dtype)


def test_every_loss_of_the_catalogue_is_among_the_formulas():
    assert {type(loss) for loss in losses.CATALOGUE.values()} <= {*FORMULAS, *OF_A_BATCH}
    for kind, (_, defaults) in FORMULAS.items():
        held = {name: value for name, value in vars(kind()).items() if name != "divergence"}
        assert held == defaults


def test_a_weighted_sum_is_as_accurate_as_its_parts():
    weights = (1.0, -0.5, 1e3)
    pairs = pairs_of(losses.DPO, LOG_RATIOS["float64"], "float64")
    got = worked_out(losses.WeightedSum((losses.DPO(), losses.EXO(), losses.SFT()), weights), pairs)

    def formula(p):
        return dpo(p, mpf(0.1)) - exo(p, mpf(0.1), mpf(1e-3)) / 2 + sft(p) * mpf(1e3)

    wanted, terms, signs = exact(formula, pairs, {}, "float64")
    for row in zip(got[:3], wanted, terms, signs, strict=True):
        assert np.max(errors(*row, "float64")) <= 1e-12


@pytest.mark.parametrize("kind", OF_A_BATCH)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.499999])
def test_losses_of_a_batch_are_those_of_the_differences_of_sorted_samples(kind, smoothing):
    rng = np.random.default_rng(3)
    columns = [rng.uniform(-700, 700, 60) for _ in range(4)]
    pairs = losses.Pair(*map(jnp.asarray, (*columns, np.ones(60), np.ones(60))))
    u_w, u_l = columns[0] - columns[2], columns[1] - columns[3]
    samples = (u_w, u_l)
    if kind is losses.AOT:
        samples = columns[0] - columns[1], columns[2] - columns[3]
    wanted = []
    for upper, lower in zip(*map(np.sort, samples), strict=True):
        z = mpf(0.1) * (mpf(upper) - mpf(lower))
        wanted.append(float(smooth(Digits(z), mpf(smoothing)).value))
    np.testing.assert_allclose(kind(0.1, smoothing)(pairs), wanted, rtol=1e-11)


def test_odds_stay_exact_up_to_a_probability_of_one():
    q = -(10.0 ** -np.arange(0, 301, 12))
    first, second = (axis.ravel() for axis in np.meshgrid(q, q))
    nothing, one = np.zeros_like(first), np.ones_like(first)
    pairs = losses.Pair(*map(jnp.asarray, (first, second, nothing, nothing, one, one, nothing)))
    got = worked_out(losses.OddsRatio(), pairs)
    wanted, terms, signs = exact(odds_ratio, pairs, {"beta": 0.1}, "float64")
    for row in zip(got[:3], wanted, terms, signs, strict=True):
        assert np.max(errors(*row, "float64")) <= 1e-12


@pytest.mark.parametrize("loss", [losses.OddsRatio(0.5), losses.ORPO(0.5)])
def test_odds_end_where_a_probability_reaches_one(loss):
    # Chosen and rejected per token: certain chosen, certain rejected, both, and beyond.
    first, second = np.array([0, -1, 0, 1, -1, 1.0]), np.array([-1, 0, 0, -1, 1, 1.0])
    nothing, one = np.zeros(6), np.ones(6)
    pairs = losses.Pair(*map(jnp.asarray, (first, second, nothing, nothing, one, one, nothing)))
    value, by_chosen, by_rejected, _ = worked_out(loss, pairs)
    likelihood = 1.0 if isinstance(loss, losses.ORPO) else 0.0
    np.testing.assert_array_equal(value, [0, *[np.inf] * 5])
    np.testing.assert_allclose(by_chosen[0], -0.5 / np.expm1(1) - likelihood, rtol=1e-14)
    np.testing.assert_allclose(by_chosen[1], -0.5 / (1 - np.exp(-1)) - likelihood, rtol=1e-14)
    np.testing.assert_array_equal(by_chosen[2:], [np.inf, np.inf, -likelihood, np.inf])
    np.testing.assert_array_equal(by_rejected, [0, np.inf, np.inf, 0, np.inf, np.inf])
