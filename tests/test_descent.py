"""Discrete training: steps written out by hand, distance to the flow line, minibatches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from grids import thinned

import flowlab as fl
from flowlab import losses, until
from flowlab.descent import Descent, descend, distance
from flowlab.domains import AbstractDomain, WholeSpace
from flowlab.policies import AbstractPolicy, FeatureModel, TabularSoftmax, WallRule
from flowlab.until import Outcome

PROBABILITIES = np.array([0.1, 0.05, 0.8, 0.05])
PAIRS = [(0, 1), (2, 3), (2, 1)]
START = np.log(PROBABILITIES)
POLICY = TabularSoftmax(PROBABILITIES, PAIRS)
FLOW = fl.preference_flow(fl.DPO(0.8), POLICY)


def gradient_by_hand(logits, beta=0.8, pairs=PAIRS, weights=(1 / 3, 1 / 3, 1 / 3)):
    """Of the weighted mean loss: the normaliser of the softmax drops out of every margin."""
    moves = logits - START
    total = np.zeros(4)
    for (chosen, rejected), weight in zip(pairs, weights, strict=True):
        slope = -beta / (1 + np.exp(beta * (moves[chosen] - moves[rejected])))
        total[chosen] += weight * slope
        total[rejected] -= weight * slope
    return total


def test_plain_gradient_descent_takes_the_steps_of_euler():
    run = descend(FLOW, START, optax.sgd(0.7), steps=20)
    state = START.copy()
    for after in run.states[1:]:
        state = state - 0.7 * gradient_by_hand(state)
        np.testing.assert_allclose(after, state, rtol=1e-13)
    np.testing.assert_array_equal(run.steps, np.arange(21))
    np.testing.assert_array_equal(run.states[0], START)
    margins = (run.states - START)[:, [0, 2, 2]] - (run.states - START)[:, [1, 3, 1]]
    np.testing.assert_allclose(run.losses, np.log1p(np.exp(-0.8 * margins)).mean(1), rtol=1e-13)
    assert run.outcome is Outcome.reached
    assert repr(run) == f"Descent(reached: 20 steps, loss {run.losses[-1]:.6g})"


def test_adam_and_momentum_are_those_of_their_papers():
    adam = descend(FLOW, START, optax.adam(0.1), steps=15)
    heavy = descend(FLOW, START, optax.sgd(0.5, momentum=0.9), steps=15)
    state, first, second = START.copy(), np.zeros(4), np.zeros(4)
    other, speed = START.copy(), np.zeros(4)
    for n in range(1, 16):
        slope = gradient_by_hand(state)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        state = state - 0.1 * (first / (1 - 0.9**n)) / (np.sqrt(second / (1 - 0.999**n)) + 1e-8)
        speed = 0.9 * speed + gradient_by_hand(other)
        other = other - 0.5 * speed
        # optax takes powers of the decay rates in 32 bits.
        np.testing.assert_allclose(adam.states[n], state, rtol=1e-5)
        np.testing.assert_allclose(heavy.states[n], other, rtol=1e-12)


def test_the_step_is_taken_in_the_metric_of_the_policy():
    policy = TabularSoftmax(PROBABILITIES, PAIRS, fisher=True)
    run = descend(fl.preference_flow(fl.DPO(0.8), policy), START, optax.sgd(0.01), steps=1)
    fisher = np.diag(PROBABILITIES) - np.outer(PROBABILITIES, PROBABILITIES)
    wanted = START - 0.01 * np.linalg.pinv(fisher) @ gradient_by_hand(START)
    np.testing.assert_allclose(run.states[1], wanted, rtol=1e-12)


@pytest.mark.parametrize("halvings", thinned([1, 3], {1}))
def test_the_distance_to_the_flow_line_is_first_order_in_the_learning_rate(halvings):
    # The line goes on for longer than the runs: its end would be near to whatever went past it.
    line = fl.flow_line(FLOW, START, until=until.time(20.0), rtol=1e-12)
    rates = 0.05 * 2.0 ** np.arange(halvings, -1, -1)
    runs = [descend(FLOW, START, optax.sgd(rate), steps=round(16 / rate)) for rate in rates]
    pairs = list(zip(runs, rates, strict=True))
    for found in (
        [distance(run, line, learning_rate=rate).max() for run, rate in pairs],
        [distance(run, line).max() for run in runs],
    ):
        orders = np.log2(np.divide(found[:-1], found[1:]))
        assert np.all(np.abs(orders - 1) < 0.1), orders
    # An error of method would be of the size of the way, not of the step.
    at_end = distance(runs[-1], line, learning_rate=rates[-1])[-1]
    assert 0 < at_end < 0.01 * np.linalg.norm(line.end - START)
    shifted = Descent(runs[-1].steps, runs[-1].states + 0.1, runs[-1].losses, Outcome.reached)
    np.testing.assert_allclose(distance(shifted, line), 0.2, atol=1e-3)  # across the line


@pytest.mark.exhaustive
def test_the_nearest_point_is_that_of_the_line_and_not_of_its_corners():
    bowl = fl.Flow(lambda y: 0.5 * y @ y)
    line = fl.flow_line(bowl, np.array([1.0, 0.0]), until=until.time(2.0), rtol=1e-10)
    points = np.array([[0.5, 0.3], [0.3, -0.2], [1.3, 0.4], [0.0, 0.0]])
    path = Descent(np.arange(4), points, np.zeros(4), Outcome.reached)
    wanted = [0.3, 0.2, 0.5, np.exp(-2)]
    np.testing.assert_allclose(distance(path, line), wanted, rtol=1e-8)
    moved = np.linalg.norm(points - np.exp(-0.5 * np.arange(4))[:, None] * [1, 0], axis=1)
    np.testing.assert_allclose(distance(path, line, learning_rate=0.5), moved, rtol=1e-8)
    beyond = distance(path, line, learning_rate=0.9)
    np.testing.assert_array_equal(np.isnan(beyond), [False, False, False, True])


@pytest.mark.parametrize("draws", thinned([100, 300], {100}))
def test_every_minibatch_of_one_pair_steps_along_that_pair_as_often_as_it_weighs(draws):
    weights = np.array([0.6, 0.3, 0.1])
    flow = fl.preference_flow(fl.DPO(0.8), POLICY, weights=weights)
    optimiser = optax.sgd(1.0)
    alone = np.array([START - gradient_by_hand(START, weights=one) for one in np.eye(3)])
    counts = np.zeros(3)
    for seed in range(draws):
        run = descend(flow, START, optimiser, steps=1, batch_size=1, seed=seed)
        (pair,) = np.flatnonzero(np.all(np.abs(run.states[1] - alone) < 1e-12, axis=1))
        counts[pair] += 1
        moves = run.states[1] - START
        whole = np.log1p(np.exp(0.8 * (moves[[1, 3, 1]] - moves[[0, 2, 2]]))) @ weights
        np.testing.assert_allclose(run.losses[1], whole, rtol=1e-13)
    spread = np.sqrt(draws * weights * (1 - weights))
    assert np.all(np.abs(counts - draws * weights) < 4 * spread), counts


def test_the_same_seed_gives_the_same_minibatches_and_another_seed_others():
    run, same, other = (
        descend(FLOW, START, optax.sgd(0.1), steps=10, batch_size=2, seed=seed)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(run.states, same.states)
    assert np.any(run.states != other.states)


@pytest.mark.exhaustive
def test_the_end_of_a_line_is_met_in_single_precision_too():
    line = fl.flow_line(FLOW, START.astype(np.float32), until=until.time(2.3))
    run = descend(FLOW, START.astype(np.float32), optax.sgd(0.1), steps=23)
    assert np.all(distance(run, line, learning_rate=0.1) < 0.01)


def test_minibatches_are_for_policies_of_ones_own_too():
    class Own(AbstractPolicy):
        domain: AbstractDomain = WholeSpace()
        wall: WallRule = "stop"

        def pairs(self, state):
            zeros, lengths = jnp.zeros(2), jnp.ones(2)
            return fl.Pair(state[:2], state[2:], zeros, zeros, lengths, lengths)

    flow = fl.preference_flow(fl.DPO(1.0), Own())
    run = descend(flow, np.zeros(4), optax.sgd(1.0), steps=1, batch_size=1, seed=3)
    np.testing.assert_allclose(np.sort(np.abs(run.states[1])), [0, 0, 0.5, 0.5])


def test_a_run_ends_where_the_loss_is_not_finite():
    flow = fl.preference_flow(losses.ORPO(), fl.LogRatioPlane())
    run = descend(flow, np.array([19.0, -5.0]), optax.sgd(30.0), steps=3)
    assert run.outcome is Outcome.non_finite
    assert np.all(np.isfinite(run.losses))


@pytest.mark.exhaustive
def test_steps_are_kept_as_often_as_asked():
    every = descend(FLOW, START, optax.adam(0.1), steps=12)
    third = descend(FLOW, START, optax.adam(0.1), steps=12, keep_every=3)
    np.testing.assert_array_equal(third.steps, [0, 3, 6, 9, 12])
    np.testing.assert_array_equal(third.states, every.states[::3])


@pytest.mark.parametrize("keep_every", [1, 5])
def test_a_run_ends_where_a_step_leads_out_of_the_domain(keep_every):
    flow = fl.preference_flow(fl.DPO(0.1), fl.RatioPlane())
    start = np.array([0.1, 0.9])
    run = descend(flow, start, optax.sgd(3.0), steps=20, keep_every=keep_every)
    assert run.outcome is Outcome.left_domain
    assert run.steps[-1] == 3
    assert np.all(run.states > 0) and np.all(np.isfinite(run.losses))


def test_a_run_ends_where_a_step_is_not_finite():
    quartic = fl.Flow(lambda y: (y @ y) ** 2)
    run = descend(quartic, np.array([3.0, 0.0]), optax.sgd(1.0), steps=50)
    assert run.outcome is Outcome.non_finite
    assert np.all(np.isfinite(run.states))


@pytest.mark.exhaustive
def test_trees_of_single_precision_are_trained_in_it():
    model = FeatureModel([[1, 0.5], [1, -0.5], [0, 3]], [0.3, 0])
    start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), model.reference_state)
    run = descend(fl.preference_flow(fl.DPO(0.1), model), start, optax.adamw(0.05), steps=30)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(run.states)} == {"float32"}
    assert run.states["readout"].shape == (31, 3, 2)
    assert run.losses[-1] < run.losses[0]


@pytest.mark.exhaustive
def test_optimisers_that_look_at_the_loss_itself_get_it():
    bowl = fl.Flow(lambda y: 0.5 * y @ (np.array([1.0, 30.0]) * y))
    run = descend(bowl, np.array([1.0, 1.0]), optax.lbfgs(), steps=15)
    assert run.losses[-1] < 1e-20


BAD = [
    (dict(steps=0), "Argument `steps` must be a positive int, but is 0."),
    (dict(steps=2.0), "Argument `steps` must be a positive int, but is 2.0."),
    (dict(steps=10, keep_every=3), "Argument `keep_every` must divide `steps`, 10, but is 3."),
    (dict(steps=1, keep_every=0), "Argument `keep_every` must be a positive int, but is 0."),
    (
        dict(steps=1, batch_size=2),
        "Arguments `batch_size` and `seed` must be given together or not at all.",
    ),
    (
        dict(steps=1, seed=2),
        "Arguments `batch_size` and `seed` must be given together or not at all.",
    ),
    (
        dict(steps=1, batch_size=1, seed=-1),
        "Argument `seed` must be a non-negative int, but is -1.",
    ),
    (
        dict(steps=1, batch_size=0, seed=1),
        "Argument `batch_size` must be a positive int, but is 0.",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_bad_counts_are_refused(options, sentence):
    with pytest.raises(ValueError) as caught:
        descend(FLOW, START, optax.sgd(0.1), **options)
    assert str(caught.value) == sentence


def test_minibatches_need_several_pairs_and_an_optimiser_is_one_of_optax():
    single = fl.preference_flow(fl.DPO(), TabularSoftmax(PROBABILITIES))
    with pytest.raises(ValueError, match="must be None for a flow without several pairs"):
        descend(single, START, optax.sgd(0.1), steps=1, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="must be an optimiser of optax such as"):
        descend(single, START, 0.1, steps=1)  # type: ignore[arg-type]
    sorted_ = fl.preference_flow(losses.AOT(), POLICY)
    with pytest.raises(ValueError, match="must be None for AOT, whose value for a pair depends on"):
        descend(sorted_, START, optax.sgd(0.1), steps=1, batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"must have shape \(4,\), but has shape \(3,\)"):
        descend(single, START[:3], optax.sgd(0.1), steps=1)


def test_a_distance_is_asked_for_states_of_one_kind_and_a_positive_rate():
    line = fl.flow_line(FLOW, START, until=until.time(1.0))
    run = Descent(np.arange(2), np.zeros((2, 3)), np.zeros(2), Outcome.reached)
    for options in ({}, {"learning_rate": 0.5}):
        with pytest.raises(ValueError, match="must have states like those of `path`, of 3 numbers"):
            distance(run, line, **options)
    with pytest.raises(ValueError, match="must be positive and finite, but is 0"):
        distance(run, line, learning_rate=0)


def test_a_start_outside_the_domain_is_told_from_a_run_that_leaves_it():
    flow = fl.preference_flow(fl.DPO(0.1), fl.RatioPlane())
    run = descend(flow, np.array([-0.1, 0.9]), optax.sgd(0.1), steps=3)
    assert run.outcome is Outcome.outside_domain
    assert list(run.steps) == [0]
