"""DPO against fifty digits; pairs, batches, weights, sums, and bad hyper-parameters.

The other losses are held against fifty digits in test_loss_range.py, against TRL in test_trl.py.
"""

import inspect
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from grids import thinned
from refusals import assert_refused

import flowlab as fl
from flowlab.losses import (
    AOT,
    BCO,
    CATALOGUE,
    CPO,
    CPOIPO,
    DPO,
    DPOP,
    EXO,
    IPO,
    KTO,
    NCA,
    ODPO,
    ORPO,
    SFT,
    SPPO,
    AlphaDivergence,
    AlphaPO,
    AOTUnpaired,
    APODown,
    APOZero,
    CalDPO,
    ConservativeDPO,
    CPOHinge,
    DiscoPOP,
    DPOPOutside,
    DPOShift,
    ForwardKL,
    Hinge,
    LengthNormalisedDPO,
    OddsRatio,
    RobustDPO,
    SimPO,
    SummedIPO,
    WeightedSum,
    negative_log_sigmoid,
)
from flowlab.losses.base import weighted_mean

BETAS = (0.003, 0.1, 1.0, 7.0)
SCALED = np.concatenate([np.linspace(-700, 700, 41), np.linspace(-3, 3, 13), [1e-9, -1e-9]])


def pair_at(margin) -> fl.Pair:
    """A pair whose margin is exactly the one given."""
    chosen = jnp.asarray(margin)
    nothing, one = jnp.zeros_like(chosen), jnp.ones_like(chosen)
    return fl.Pair(chosen, nothing, nothing, nothing, one, one)


def summed(beta, margins):
    return jnp.sum(fl.DPO(beta)(pair_at(margins)))


@jax.jit
def of_margins(beta, margins):
    """Values of the loss, and its first two derivatives by the margin."""
    first = jax.grad(summed, 1)
    _, second = jax.jvp(lambda m: first(beta, m), (margins,), (jnp.ones_like(margins),))
    return fl.DPO(beta)(pair_at(margins)), first(beta, margins), second


def to_fifty_digits(beta, margins):
    with mpmath.workdps(50):
        strength = mpmath.mpf(float(beta))
        scaled = [strength * mpmath.mpf(float(margin)) for margin in margins]
        values = [mpmath.log1p(mpmath.exp(-z)) for z in scaled]
        slopes = [-strength / (1 + mpmath.exp(z)) for z in scaled]
        bends = [strength**2 / ((1 + mpmath.exp(z)) * (1 + mpmath.exp(-z))) for z in scaled]
        return tuple(np.array([float(x) for x in row]) for row in (values, slopes, bends))


@pytest.mark.parametrize("beta", BETAS)
def test_values_and_gradients_agree_with_fifty_digits(beta):
    margins = SCALED / beta
    value, slope, _ = of_margins(jnp.asarray(beta), jnp.asarray(margins))
    wanted_value, wanted_slope, _ = to_fifty_digits(beta, margins)
    np.testing.assert_allclose(value, wanted_value, rtol=1e-12)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_second_derivatives_are_finite_and_right(beta):
    margins = SCALED / beta
    _, _, bend = of_margins(jnp.asarray(beta), jnp.asarray(margins))
    np.testing.assert_allclose(bend, to_fifty_digits(beta, margins)[2], rtol=1e-12, atol=1e-307)


def test_far_margins_give_zeros_of_the_right_sign_and_no_nan():
    margins = jnp.asarray([1e4, 1e300, -1e4, -1e300])
    value, slope, bend = of_margins(jnp.asarray(1.0), margins)
    np.testing.assert_array_equal(value, [0, 0, 1e4, 1e300])
    np.testing.assert_array_equal(slope, [0, 0, -1, -1])
    np.testing.assert_array_equal(bend, 0)
    assert not np.any(np.signbit(value))
    assert np.all(np.signbit(slope))


def test_single_precision_stays_single_and_keeps_its_digits():
    margins = (np.linspace(-80, 80, 33) / 0.3).astype(np.float32)
    value, slope, bend = of_margins(np.float32(0.3), jnp.asarray(margins))
    assert value.dtype == slope.dtype == bend.dtype == jnp.float32
    wanted_value, wanted_slope, _ = to_fifty_digits(np.float32(0.3), margins)
    np.testing.assert_allclose(value, wanted_value, rtol=2e-5)
    np.testing.assert_allclose(slope, wanted_slope, rtol=2e-5)
    # A strength given in double precision does not raise the precision of the work.
    assert fl.DPO(0.3)(pair_at(margins)).dtype == jnp.float32


@pytest.mark.parametrize("numbers", [int, float, np.int32])
def test_integers_and_plain_numbers_are_pairs_too(numbers):
    pair = fl.Pair(*(numbers(value) for value in (-5, -7, -5, -9, 3, 4)))
    assert pair.margin == -2
    np.testing.assert_allclose(fl.DPO(0.1)(pair), np.log1p(np.exp(0.2)), rtol=1e-14)


def test_log_ratios_and_margin_are_those_of_the_definition():
    pair = fl.Pair(*(jnp.asarray([value]) for value in (-3.0, -7.0, -4.0, -5.0, 11.0, 13.0)))
    assert (pair.u_chosen[0], pair.u_rejected[0], pair.margin[0]) == (1, -2, 3)


def test_a_batch_has_one_value_per_pair_and_their_mean():
    margins = np.random.default_rng(0).normal(size=(2, 3))
    values = fl.DPO(0.7)(pair_at(margins))
    assert values.shape == (2, 3)
    np.testing.assert_allclose(values, np.log1p(np.exp(-0.7 * margins)), rtol=1e-13)
    np.testing.assert_allclose(fl.DPO(0.7).mean(pair_at(margins)), np.mean(values), rtol=1e-14)


def test_weights_are_those_of_a_weighted_mean_whatever_their_sum():
    pairs, weights = pair_at(np.asarray([-1.0, 0.5, 2.0, 9.0])), np.asarray([3.0, 0.0, 1.0, 4.0])
    wanted = np.average(fl.DPO(0.7)(pairs), weights=weights)
    np.testing.assert_allclose(fl.DPO(0.7).mean(pairs, weights), wanted, rtol=1e-14)
    np.testing.assert_allclose(fl.DPO(0.7).mean(pairs, 9 * weights), wanted, rtol=1e-14)


def test_a_pair_without_weight_does_not_count_even_where_its_loss_is_infinite():
    some, q = np.array([2.0, 0.0, 1.0]), np.array([-1.0, 1.0, -2.0])
    nothing, one = np.zeros(3), np.ones(3)
    beyond = fl.Pair(*map(jnp.asarray, (q, q - 1, nothing, nothing, one, one)))
    impossible = eqx.tree_at(lambda p: p.chosen, beyond, jnp.asarray([-1.0, -np.inf, -2.0]))
    endless = eqx.tree_at(lambda p: p.chosen_length, beyond, jnp.asarray([1.0, np.inf, 1.0]))
    for loss, pairs in ((OddsRatio(), beyond), (ORPO(), beyond), (SFT(), impossible)):
        assert np.isinf(loss(pairs)[1])
        kept = jax.tree.map(lambda column: column[::2], pairs)
        np.testing.assert_allclose(loss.mean(pairs, some), loss.mean(kept, some[::2]), rtol=1e-14)
    np.testing.assert_allclose(SFT().mean(endless, some), 4 / 3, rtol=1e-14)
    slopes = jax.grad(OddsRatio().mean)(beyond, some)
    np.testing.assert_array_equal(np.isnan(slopes.chosen), [False, True, False])


def test_a_derivative_by_weights_and_by_pairs_is_right_where_a_weight_is_zero():
    values, some = np.array([2.0, 5.0, -1.0]), np.array([2.0, 0.0, 1.0])
    by_values, by_weights = jax.grad(weighted_mean, (0, 1))(jnp.asarray(values), jnp.asarray(some))
    np.testing.assert_allclose(by_values, some / 3, rtol=1e-14)
    np.testing.assert_allclose(by_weights, (values - 1) / 3, rtol=1e-14)
    slopes = np.array([1.0, np.inf, 1.0])
    along = jax.jvp(lambda v: weighted_mean(v, some), (jnp.asarray(values),), (slopes,))[1]
    np.testing.assert_allclose(along, 1, rtol=1e-14)


def test_a_strength_may_be_given_for_each_pair():
    margins, betas = np.asarray([-1.0, 0.5, 2.0]), np.asarray([0.1, 0.5, 3.0])
    wanted = np.log1p(np.exp(-betas * margins))
    np.testing.assert_allclose(fl.DPO(betas)(pair_at(margins)), wanted, rtol=1e-14)


def test_the_strength_is_a_leaf_with_a_derivative():
    assert len(jax.tree.leaves(fl.DPO(0.2))) == 1
    slope = jax.grad(lambda beta: fl.DPO(beta)(pair_at(3.0)))(0.2)
    np.testing.assert_allclose(slope, -3 / (1 + np.exp(0.6)), rtol=1e-13)


def test_dpo_has_the_shortest_name():
    assert "DPO" in fl.__all__
    assert fl.DPO is DPO


OF_A_BATCH = [AOT, AOTUnpaired]
SMOOTHING, POSITIVE = "lie in [0, 0.5)", "be positive and finite"
AT_LEAST_0, FINITE = "be finite and at least 0", "be finite"
RANGES = {
    AlphaDivergence: {"alpha": FINITE},
    DPO: {"beta": POSITIVE},
    ConservativeDPO: {"beta": POSITIVE, "label_smoothing": SMOOTHING},
    RobustDPO: {"beta": POSITIVE, "label_smoothing": SMOOTHING},
    IPO: {"beta": POSITIVE},
    SummedIPO: {"beta": POSITIVE},
    Hinge: {"beta": POSITIVE},
    EXO: {"beta": POSITIVE, "label_smoothing": "lie in (0, 1)"},
    DiscoPOP: {"beta": POSITIVE, "tau": POSITIVE},
    LengthNormalisedDPO: {"beta": POSITIVE},
    DPOShift: {"beta": POSITIVE, "lam": "lie in (0, 1]"},
    ODPO: {"beta": POSITIVE, "alpha": AT_LEAST_0},
    DPOP: {"beta": POSITIVE, "lam": AT_LEAST_0},
    DPOPOutside: {"beta": POSITIVE, "lam": AT_LEAST_0},
    SPPO: {"beta": POSITIVE},
    NCA: {"beta": POSITIVE},
    BCO: {"beta": POSITIVE, "delta": FINITE},
    APOZero: {"beta": POSITIVE},
    APODown: {"beta": POSITIVE},
    KTO: {
        "beta": POSITIVE,
        "desirable_weight": AT_LEAST_0,
        "undesirable_weight": AT_LEAST_0,
        "reference_point": AT_LEAST_0,
    },
    SFT: {},
    CalDPO: {"beta": POSITIVE},
    CPO: {
        "beta": POSITIVE,
        "nll_weight": AT_LEAST_0,
        "label_smoothing": SMOOTHING,
        "alpha": FINITE,
    },
    CPOHinge: {"beta": POSITIVE, "nll_weight": AT_LEAST_0, "alpha": FINITE},
    CPOIPO: {"beta": POSITIVE, "nll_weight": AT_LEAST_0, "alpha": FINITE},
    SimPO: {
        "beta": POSITIVE,
        "gamma": AT_LEAST_0,
        "label_smoothing": SMOOTHING,
        "nll_weight": AT_LEAST_0,
    },
    AlphaPO: {
        "beta": POSITIVE,
        "gamma": AT_LEAST_0,
        "alpha": FINITE,
        "label_smoothing": SMOOTHING,
        "nll_weight": AT_LEAST_0,
    },
    OddsRatio: {"beta": POSITIVE},
    ORPO: {"beta": POSITIVE},
    AOT: {"beta": POSITIVE, "label_smoothing": SMOOTHING},
    AOTUnpaired: {"beta": POSITIVE, "label_smoothing": SMOOTHING},
}
OUTSIDE = {
    POSITIVE: (0, -1, [0.1, -0.1]),
    AT_LEAST_0: (-1e-300, -1, [0.1, -0.1]),
    FINITE: (-np.inf,),
    SMOOTHING: (-1e-12, 0.5, 1),
    "lie in (0, 1)": (0, 1, -0.1),
    "lie in (0, 1]": (0, 1 + 1e-12, -0.1),
}
INSIDE = {
    POSITIVE: (1e-300, 1e300, 3, np.float32(2), jnp.asarray(0.5)),
    AT_LEAST_0: (0, 1e300),
    FINITE: (-1e300, 0, 1e300),
    SMOOTHING: (0, 0.4999999999),
    "lie in (0, 1)": (1e-300, 0.9999999999),
    "lie in (0, 1]": (1e-300, 1),
}
NO_NUMBERS = (np.nan, np.inf, "strong", "0.1", None, [], True, [0.1, 1j], [[0.1], [0.1, 0.2]])
PARAMETERS = [(kind, name, wanted) for kind in RANGES for name, wanted in RANGES[kind].items()]


def parameter_id(value):
    return value.__name__ if isinstance(value, type) else str(value)


def test_every_hyper_parameter_of_every_loss_has_a_range():
    kinds = {*map(type, CATALOGUE.values()), OddsRatio, AlphaDivergence}
    assert set(RANGES) == kinds
    for kind, ranges in RANGES.items():
        assert [*ranges] == [n for n in inspect.signature(kind).parameters if n != "divergence"]


@pytest.mark.parametrize(("kind", "name", "wanted"), PARAMETERS, ids=parameter_id)
def test_a_hyper_parameter_outside_its_range_is_refused(kind, name, wanted):
    for value in (*OUTSIDE[wanted], *NO_NUMBERS):
        said = "has -0.1" if value == [0.1, -0.1] else f"is {value!r}"
        assert_refused(kind, f"Argument `{name}` must {wanted}, but {said}.", **{name: value})


@pytest.mark.parametrize(("kind", "name", "wanted"), PARAMETERS, ids=parameter_id)
def test_only_a_strength_of_pairs_may_have_axes(kind, name, wanted):
    for shape in ((1,), (2, 3)):
        several = np.full(shape, 0.3)
        if name == "beta" and kind not in OF_A_BATCH:
            np.testing.assert_array_equal(kind(**{name: several}).beta, several)
        else:
            sentence = f"Argument `{name}` must be a single number, but has shape {shape}."
            assert_refused(kind, sentence, **{name: several})
    traced = jax.vmap(lambda value: getattr(kind(**{name: value}), name))(jnp.full(3, 0.3))
    np.testing.assert_array_equal(traced, np.full(3, 0.3))


@pytest.mark.parametrize(("kind", "name", "wanted"), PARAMETERS, ids=parameter_id)
def test_a_hyper_parameter_inside_its_range_is_an_array_leaf(kind, name, wanted):
    for value in INSIDE[wanted]:
        loss = kind(**{name: value})
        held = getattr(loss, name)
        assert isinstance(held, np.ndarray)
        assert held.dtype == np.float64
        assert held == value
        assert f"{name}={float(value):g}" in repr(loss) or kind is AlphaDivergence
    assert len(jax.tree.leaves(kind())) == len(RANGES[kind])


@pytest.mark.parametrize("name", thinned(CATALOGUE, {"dpo", "ipo", "exo", "orpo"}))
def test_double_precision_hyper_parameters_do_not_raise_single_precision_work(name):
    loss, six = CATALOGUE[name], [-3, -4, -2.5, -4.5, 5, 6, 0.5]
    single = fl.Pair(*(jnp.full(4, value, np.float32) for value in six))
    double = fl.Pair(*(jnp.full(4, value, np.float64) for value in six))
    assert loss(single).dtype == loss.mean(single).dtype == np.float32
    np.testing.assert_allclose(loss(single), loss(double), rtol=1e-5)


@pytest.mark.parametrize("name", thinned(CATALOGUE, {"dpo", "ipo", "exo", "orpo"}))
def test_compiling_again_is_not_needed_for_another_hyper_parameter(name):
    loss, traces = CATALOGUE[name], []
    pair = fl.Pair(*(jnp.full(4, value) for value in [-3, -4, -2.5, -4.5, 5, 6, 0.5]))

    @jax.jit
    def value(loss):
        traces.append(loss)
        return loss.mean(pair)

    plain = value(loss)
    moved = value(jax.tree.map(lambda leaf: leaf * 0.9, loss))
    assert len(traces) == 1
    np.testing.assert_allclose(plain, loss.mean(pair), rtol=1e-12)
    assert plain != moved or name == "sft"


def test_a_loss_shows_its_hyper_parameters():
    assert repr(DPO(0.1)) == "DPO(beta=0.1)"
    assert repr(DPO(np.array([0.1, 0.25]))) == "DPO(beta=[0.1, 0.25])"
    assert repr(DPO(0.1, ForwardKL())) == "DPO(beta=0.1, divergence=ForwardKL())"
    assert repr(SFT()) == "SFT()"
    assert repr(AOT(0.2, 0.1)) == "AOT(beta=0.2, label_smoothing=0.1)"
    shown = repr(EXO(divergence=AlphaDivergence(0.25)))
    assert shown == "EXO(beta=0.1, label_smoothing=0.001, divergence=AlphaDivergence(0.25))"
    shown = repr(WeightedSum((SFT(), DPOShift()), (1, 0.5)))
    assert shown == "WeightedSum(losses=(SFT(), DPOShift(beta=0.1, lam=0.95)), weights=[1.0, 0.5])"


def test_a_sum_is_named_by_its_losses_and_weights():
    found = fl.losses.named("DPO + 0.5*sft", beta=0.2)
    assert repr(found) == "WeightedSum(losses=(DPO(beta=0.2), SFT()), weights=[1.0, 0.5])"
    # −log σ(0.2·(2 − (−1))), and half of 30 nats over 10 tokens.
    pair = fl.Pair(*map(jnp.asarray, (-30.0, -21.0, -32.0, -20.0, 10.0, 10.0)))
    np.testing.assert_allclose(float(found(pair)), np.log1p(np.exp(-0.6)) + 0.5 * 3.0, rtol=1e-14)
    assert repr(fl.losses.named("2*dpo")) == "WeightedSum(losses=(DPO(beta=0.1),), weights=[2.0])"
    stated = {"dpo+0.5*stf": "did you mean sft?", "dpo+": "but is ''.", "x*dpo": "but has 'x'."}
    for name, words in stated.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            fl.losses.named(name)


@pytest.mark.parametrize(
    ("kind", "name", "wanted"), [row for row in PARAMETERS if row[0] not in OF_A_BATCH]
)
def test_a_hyper_parameter_of_a_flow_is_replaced_wherever_it_stands(kind, name, wanted):
    loss = DPO(divergence=kind()) if kind is AlphaDivergence else kind()
    inside = WeightedSum((SFT(), WeightedSum((loss,))), (0.5, 2.0))
    for outer in (loss, inside):
        flow = fl.preference_flow(outer, fl.LogRatioPlane(offset=1.0))
        moved = flow.with_parameter(name, 0.37)
        before, after = map(jax.tree.leaves, (outer, moved.loss))
        assert [leaf for leaf in after if np.all(leaf == 0.37)] == [0.37]
        assert sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)) == 1
        with pytest.raises(ValueError, match=f"Argument `{name}` must {re.escape(wanted)}, but is"):
            flow.with_parameter(name, np.nan)


def test_odpo_asks_for_an_offset_where_there_is_none():
    with pytest.raises(ValueError, match="Argument `pairs` must have an offset for ODPO, but has"):
        ODPO()(pair_at(1.0))


def batch(count=7, seed=4):
    rng = np.random.default_rng(seed)
    columns = [-rng.uniform(5, 90, count) for _ in range(4)]
    lengths = [rng.integers(3, 40, count).astype(float) for _ in range(2)]
    return fl.Pair(*map(jnp.asarray, (*columns, *lengths, rng.normal(size=count))))


def sorted_by_hand(kind, pairs):
    pairs = jax.tree.map(np.asarray, pairs)
    if kind is AOT:
        first, second = pairs.chosen - pairs.rejected, pairs.ref_chosen - pairs.ref_rejected
    else:
        first, second = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
    return np.array(sorted(first.tolist())) - np.array(sorted(second.tolist()))


@pytest.mark.parametrize("kind", OF_A_BATCH)
def test_a_loss_of_a_batch_compares_sorted_samples(kind):
    pairs, apart = batch(), 0.3 * sorted_by_hand(kind, batch())
    wanted = 0.8 * np.log1p(np.exp(-apart)) + 0.2 * np.log1p(np.exp(apart))
    np.testing.assert_allclose(kind(0.3, 0.2)(pairs), wanted, rtol=1e-13)
    np.testing.assert_allclose(kind(0.3, 0.2).mean(pairs), np.mean(wanted), rtol=1e-13)


@pytest.mark.parametrize("kind", OF_A_BATCH)
def test_a_loss_of_a_batch_does_not_depend_on_its_order(kind):
    order = np.random.default_rng(1).permutation(7)
    shuffled = jax.tree.map(lambda column: column[order], batch())
    np.testing.assert_array_equal(kind()(batch()), kind()(shuffled))
    gradient, moved = (jax.grad(kind().mean)(pairs) for pairs in (batch(), shuffled))
    np.testing.assert_allclose(gradient.rejected[order], moved.rejected, rtol=1e-13)


@pytest.mark.parametrize("kind", OF_A_BATCH)
def test_a_loss_of_a_batch_of_one_pair_is_dpo(kind):
    for pairs in (batch(1), jax.tree.map(lambda column: column[0], batch(1))):
        assert kind(0.3)(pairs).shape == jnp.shape(pairs.chosen)
        np.testing.assert_allclose(kind(0.3)(pairs), DPO(0.3)(pairs), rtol=1e-14)
        smoothed = ConservativeDPO(0.3, 0.2)(pairs)
        np.testing.assert_allclose(kind(0.3, 0.2)(pairs), smoothed, rtol=1e-14)


@pytest.mark.parametrize("kind", OF_A_BATCH)
def test_a_loss_of_a_batch_refuses_weights_and_several_batches(kind):
    sentence = (
        f"Argument `weights` must be None for {kind.__name__}: its values belong to ranks, not to "
        "pairs."
    )
    assert_refused(kind().mean, sentence, batch(), np.ones(7))
    with pytest.raises(ValueError, match=r"must be one batch of shape \(b,\) .* \(2, 3\)\.$"):
        kind()(jax.tree.map(lambda column: column.reshape(2, 3), batch(6)))


def test_a_sum_of_losses_of_a_batch_and_of_pairs_has_a_mean_and_no_value_per_pair():
    mixed, alike = WeightedSum((AOT(), WeightedSum((DPO(),)))), WeightedSum((AOT(), AOTUnpaired()))
    of_batch = [n for n, loss in CATALOGUE.items() if loss.of_batch]
    assert of_batch == ["aot", "aot_unpaired"]
    assert mixed.of_batch
    assert WeightedSum((DPO(), mixed)).of_batch
    assert not WeightedSum((DPO(), SFT())).of_batch
    np.testing.assert_array_equal(alike(batch()), AOT()(batch()) + AOTUnpaired()(batch()))
    sentence = (
        "Argument `losses` must not mix batch losses with other losses for a value per pair, but "
        f"is {mixed.losses!r}; use `mean`."
    )
    assert_refused(mixed, sentence, batch())
    np.testing.assert_allclose(mixed.mean(batch()), AOT().mean(batch()) + DPO().mean(batch()))


LIKELIHOODS = [
    (SFT(), lambda pairs, weights: 0.0, 1.0),
    (CPO(0.2, 3.0), CPO(0.2, 0.0).mean, 3.0),
    (CPOHinge(0.2, 3.0), CPOHinge(0.2, 0.0).mean, 3.0),
    (CPOIPO(0.2, 3.0), CPOIPO(0.2, 0.0).mean, 3.0),
    (SimPO(nll_weight=3.0), SimPO().mean, 3.0),
    (AlphaPO(nll_weight=3.0), AlphaPO().mean, 3.0),
    (ORPO(0.2), OddsRatio(0.2).mean, 1.0),
]


@pytest.mark.parametrize(("loss", "preference", "weight"), LIKELIHOODS)
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.0, 5.0, 1.0, 0.5, 3.0]])
def test_the_mean_of_a_likelihood_is_over_tokens_not_over_pairs(loss, preference, weight, weights):
    pairs = batch()
    w = np.ones(7) if weights is None else np.asarray(weights)
    likelihood = -np.sum(w * pairs.chosen) / np.sum(w * pairs.chosen_length)
    wanted = preference(pairs, weights) + weight * likelihood
    np.testing.assert_allclose(loss.mean(pairs, weights), wanted, rtol=1e-13)
    assert abs(loss.mean(pairs, weights) - np.average(loss(pairs), weights=w)) > 1e-3


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.0, 5.0, 1.0, 0.5, 3.0]])
def test_a_weighted_sum_is_the_sum_of_the_values_and_of_the_means(weights):
    parts, factors, pairs = (DPO(0.3), SFT(), SPPO(2.0)), (2.0, -0.5, 0.25), batch()
    loss = WeightedSum(parts, factors)
    wanted = sum(c * part(pairs) for c, part in zip(factors, parts, strict=True))
    np.testing.assert_allclose(loss(pairs), wanted, rtol=1e-13)
    mean = sum(c * part.mean(pairs, weights) for c, part in zip(factors, parts, strict=True))
    np.testing.assert_allclose(loss.mean(pairs, weights), mean, rtol=1e-13)
    assert abs(mean - np.average(wanted, weights=weights)) > 1e-3
    np.testing.assert_allclose(
        WeightedSum(parts).mean(pairs), sum(part.mean(pairs) for part in parts), rtol=1e-13
    )


def test_a_weighted_sum_has_a_derivative_by_its_weights():
    pairs, parts = batch(), (DPO(0.3), SFT())
    slopes = jax.grad(lambda c: WeightedSum(parts, c).mean(pairs))(jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(slopes, [part.mean(pairs) for part in parts], rtol=1e-13)


NO_LOSSES = "Argument `losses` must hold losses such as DPO(), at least one, but is "


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (((),), NO_LOSSES + "()."),
        (
            ((0.1,),),
            "Argument `losses` must hold losses such as DPO(), at least one, but is (0.1,).",
        ),
        (
            ((SFT(),), (1.0, 2.0)),
            "Argument `weights` must have one weight for each of 1 losses, but has shape (2,).",
        ),
        (
            ((SFT(),), 1.0),
            "Argument `weights` must have one weight for each of 1 losses, but has shape ().",
        ),
        (((SFT(),), [np.nan]), "Argument `weights` must be finite, but has nan."),
        (((SFT(),), ["1"]), "Argument `weights` must be finite, but is ['1']."),
    ],
)
def test_a_weighted_sum_refuses_what_is_no_sum(arguments, sentence):
    assert_refused(WeightedSum, sentence, *arguments)


def test_a_loss_of_ones_own_needs_nothing_but_its_values():
    class Distance(fl.losses.AbstractLoss):
        target: float = eqx.field(default=2.0)

        def __call__(self, pairs):
            return jnp.abs(pairs.margin - self.target)

    assert Distance()(pair_at(5.0)) == 3
    assert Distance(1.0).mean(pair_at(np.array([5.0, 1.0])), [1, 3]) == 1
    assert repr(Distance()) == "Distance(target=2.0)"


def test_the_value_of_the_logistic_loss_needs_a_logarithm_and_its_gradient_none():
    assert "log" in str(jax.make_jaxpr(negative_log_sigmoid)(1.0))
    gradient = jax.jit(jax.grad(negative_log_sigmoid)).lower(1.0).compile()
    assert "log-plus-one" not in str(gradient.as_text())


@pytest.mark.parametrize("divergence", [3.0, None, "forward_kl", ForwardKL])
def test_what_is_no_divergence_is_refused(divergence):
    with pytest.raises(ValueError, match="Argument `divergence` must be a divergence such as"):
        DPO(divergence=divergence)
