"""Explanations: parts that add up, by kernels, difference quotients, and steps that are taken."""

import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowlab as fl
from flowlab import data, displacement, losses, models
from flowlab.policies import LanguageModel
from flowlab.solve import compiled

REVERSAL = Path(__file__).parent / "data" / "reversal"
DPO = fl.DPO(0.5)
PROBABILITIES = np.array([0.1, 0.05, 0.5, 0.35])
COUPLES = [(0, 1), (2, 0), (3, 1), (2, 3)]
STATE = np.log(PROBABILITIES) + np.array([0.3, -0.2, 0.1, 0.0])
POLICY = fl.TabularSoftmax(PROBABILITIES, COUPLES)
FLOW = fl.preference_flow(DPO, POLICY)
PARTS = ("own_chosen", "own_rejected", "others_chosen", "others_rejected")


@pytest.fixture(scope="module")
def explained():
    return displacement.explain(FLOW, STATE)


def test_the_parts_are_those_of_the_kernel_between_all_pairs(explained):
    kernel = np.asarray(POLICY.kernel(STATE))
    parts = -kernel * explained.slopes  # moved pair and side, causing pair and side
    own = parts[np.arange(4), :, np.arange(4)]
    others = parts.sum(axis=2) - own
    for side, name in enumerate(("chosen", "rejected")):
        np.testing.assert_allclose(getattr(explained, f"own_{name}"), own[:, :, side], rtol=1e-12)
        found = getattr(explained, f"others_{name}")
        np.testing.assert_allclose(found, others[:, :, side], rtol=1e-12, atol=1e-15)
    caused = np.moveaxis(parts.mean(axis=0), 0, -1)
    np.testing.assert_allclose(explained.influence, caused, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(explained.mean_kernel, kernel.mean(axis=(0, 2)), rtol=1e-12)
    itself = kernel[np.arange(4), :, np.arange(4)]
    np.testing.assert_allclose(explained.kernel, itself, rtol=1e-12)
    total = -explained.weighted_kernel @ explained.slopes.sum(axis=0)
    np.testing.assert_allclose(total, explained.rate.mean(axis=0), rtol=1e-12)


def test_rates_are_the_motion_of_the_log_ratios(explained):
    ratios = jax.jit(lambda y: jnp.stack([POLICY.pairs(y).u_chosen, POLICY.pairs(y).u_rejected]))
    step = 1e-6 * np.asarray(FLOW.velocity(STATE))
    quotient = (ratios(STATE + step) - ratios(STATE - step)).T / 2e-6
    np.testing.assert_allclose(explained.rate, quotient, rtol=1e-7, atol=1e-9)
    sums = sum(getattr(explained, name) for name in PARTS)
    np.testing.assert_allclose(sums, explained.rate, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(explained.falls, quotient[:, 0] < 0)


def test_the_pairs_that_lower_the_chosen_most_come_first(explained):
    caused = explained.influence[:, :, 0].sum(axis=1)
    np.testing.assert_array_equal(explained.lowering(10), [1, 2])
    np.testing.assert_array_equal(explained.lowering(1), [1])
    assert caused[1] < caused[2] < 0 < min(caused[0], caused[3])


def test_a_pair_by_itself_has_no_others():
    alone = displacement.explain(fl.preference_flow(DPO, fl.TabularSoftmax(PROBABILITIES)), STATE)
    assert alone.rate.shape == (1, 2)
    assert np.all(alone.others_chosen == 0) and np.all(alone.others_rejected == 0)
    squares = np.sum(np.exp(2 * (STATE - np.log(np.sum(np.exp(STATE))))))
    first, second = np.exp(STATE[:2]) / np.sum(np.exp(STATE))
    wanted = [[1 - 2 * first, -first - second], [-first - second, 1 - 2 * second]]
    np.testing.assert_allclose(alone.kernel[0], squares + np.array(wanted), rtol=1e-12)
    np.testing.assert_allclose(alone.boundary, 1.0, rtol=1e-12)


def test_weights_decide_which_pairs_move_the_others():
    weighted = fl.preference_flow(DPO, POLICY, weights=np.array([1.0, 0.0, 0.0, 0.0]))
    found = displacement.explain(weighted, STATE)
    assert np.all(found.influence[1:] == 0)
    assert not found.falls[0]


def test_a_loss_without_a_slope_has_no_weighted_kernel_of_that_side():
    found = displacement.explain(fl.preference_flow(losses.SFT(), POLICY), STATE)
    assert np.all(np.isfinite(found.weighted_kernel[:, 0]))
    assert np.all(np.isnan(found.weighted_kernel[:, 1]))
    assert json.loads(json.dumps(found.to_json()))["weighted_kernel"][0][1] is None


def test_an_explanation_is_told_in_a_table(explained):
    rows = [line.split() for line in explained.table().splitlines()[1:]]
    assert [row[0] for row in rows] == ["du_w/dt", "du_l/dt", "dh/dt"]
    numbers = np.array([row[1:] for row in rows], float)
    np.testing.assert_allclose(numbers[0] - numbers[1], numbers[2], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(numbers[:, 1:].sum(axis=1), numbers[:, 0], rtol=1e-3, atol=1e-4)


@jax.jit
def moved(weights, rate):
    """What a step down the weighted loss changes of the mean log-ratios."""
    direction = jax.grad(lambda y: jnp.vdot(weights, DPO(POLICY.pairs(y))))(STATE)
    before, after = (POLICY.pairs(y) for y in (STATE, STATE - rate * direction))
    changes = (after.u_chosen - before.u_chosen, after.u_rejected - before.u_rejected)
    return jnp.stack([jnp.mean(change) for change in changes])


def minibatch(batch):
    """The weights of the pairs of a minibatch of two."""
    return np.isin(np.arange(4), batch) / 2


def test_the_second_order_is_that_of_steps_with_all_minibatches():
    """At a small rate, where the third order does not count, in the mean over all minibatches."""
    rate = 1e-3
    options = {"learning_rate": rate, "batch_size": 2}
    found = displacement.explain(FLOW, STATE, **options, batches=64, seed=3).step
    assert found is not None
    all_pairs = np.asarray(moved(np.full(4, 0.25), rate))
    batches = map(minibatch, itertools.combinations(range(4), 2))
    mean = np.mean([np.asarray(moved(weights, rate)) for weights in batches], axis=0)
    np.testing.assert_allclose(all_pairs - found.first_order, found.curvature, rtol=1e-2)
    noise = mean - all_pairs
    assert np.all(np.abs(found.noise - noise) < 4 * found.standard_error)
    assert np.all(found.standard_error < np.abs(noise))
    assert found.text().count("nats a step") == 2


def test_a_thousand_steps_change_in_the_mean_what_is_expected_to_second_order():
    """At a rate at which the second order is far above the noise of a thousand steps."""
    rate, drawn = 1.0, np.random.default_rng(1)
    found = displacement.explain(FLOW, STATE, learning_rate=rate, batch_size=2, batches=64).step
    assert found is not None
    steps = [
        np.asarray(moved(minibatch(drawn.choice(4, 2, replace=False)), rate)) for _ in range(1000)
    ]
    error = np.hypot(np.std(steps, axis=0, ddof=1) / np.sqrt(1000), found.standard_error)
    apart = np.abs(np.mean(steps, axis=0) - found.change)
    assert np.all(apart < 3 * error)
    assert np.all(np.abs(np.mean(steps, axis=0) - found.first_order) > 5 * error)


def test_a_step_whose_second_order_wins_says_so():
    step = displacement.StepChange(
        learning_rate=0.05,
        batch_size=16,
        first_order=np.array([0.05, -0.2]),
        curvature=np.array([-0.07, -0.01]),
        noise=np.array([-0.02, -0.01]),
        standard_error=np.array([0.01, 0.01]),
    )
    np.testing.assert_array_equal(step.reversed, [True, False])
    assert (
        "The first order has the wrong sign: at a learning rate of 0.05 with minibatches of 16, "
        "the mean chosen log-probability falls, where the flow raises it."
    ) in step.text()


def reversal(count: int, chunk: int) -> LanguageModel:
    model = models.load(REVERSAL)
    pairs = data.preferences(REVERSAL / "pairs.jsonl", REVERSAL)
    return model.policy(pairs, chunk=chunk).subset(np.arange(count))


@pytest.mark.exhaustive
def test_gradients_of_a_language_model_taken_together_are_those_one_by_one():
    """In single precision, with products of the size that jax 0.10 gets wrong on a CPU."""
    policy = reversal(48, 64)
    state = jax.tree.map(jnp.asarray, policy.start)

    def means(state):
        return policy.log_probs(state).mean(axis=0)

    def together(policy, state):
        del policy
        return jax.vmap(jax.vjp(means, state)[1])(jnp.eye(2, dtype=np.float32).repeat(2, axis=0))

    (found,) = compiled(together)(policy, state)
    wanted = [jax.jit(jax.grad(lambda y, s=side: means(y)[s]))(state) for side in range(2)]
    for place, side in enumerate((0, 0, 1, 1)):
        for name, leaf in wanted[side].items():
            np.testing.assert_allclose(found[name][place], leaf, rtol=1e-3, atol=1e-4)


@pytest.mark.exhaustive
def test_the_chosen_of_a_real_model_rise_by_the_chosen_of_others():
    """Parts of the mean rate at the start of a real run, as computed from a full Jacobian."""
    policy = reversal(640, 64)
    found = displacement.explain(fl.preference_flow(fl.DPO(0.1), policy), policy.start)
    assert found.rate[:, 0].mean() == pytest.approx(1.945, abs=1e-3)
    means = [getattr(found, name)[:, 0].mean() for name in PARTS]
    np.testing.assert_allclose(means, [0.201, -0.125, 7.008, -5.139], atol=1e-3)
    assert found.mean_kernel[0, 1] / found.mean_kernel[0, 0] == pytest.approx(0.73, abs=0.005)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: displacement.explain(fl.Flow(lambda y: (y**2).sum()), np.zeros(2)),
            "Argument `flow` must be a flow of a preference loss",
        ),
        (
            lambda: displacement.explain(FLOW, STATE, learning_rate=0.1),
            "Arguments `learning_rate` and `batch_size` must both be given, or neither",
        ),
        (
            lambda: displacement.explain(FLOW, STATE, learning_rate=0.1, batch_size=5),
            "Argument `batch_size` must be at most the number of pairs, 4, but is 5.",
        ),
        (
            lambda: displacement.explain(
                fl.preference_flow(losses.AOT(0.1), POLICY), STATE, learning_rate=0.1, batch_size=2
            ),
            "Argument `batch_size` must be None for AOT",
        ),
        (
            lambda: displacement.explain(
                fl.preference_flow(DPO, POLICY, weights=np.ones(4)),
                STATE,
                learning_rate=0.1,
                batch_size=2,
            ),
            "Argument `batch_size` must be None for a flow with weights",
        ),
    ],
)
def test_what_cannot_be_explained_is_refused(call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call()
