"""Discrete training: steps written out by hand, distance to the flow line, minibatches."""

import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from grids import thinned

import flowlab as fl
from flowlab import losses, until
from flowlab.descent import Descent, descend, distance, training
from flowlab.descent.batches import drawn_batches
from flowlab.domains import AbstractDomain, WholeSpace
from flowlab.policies import AbstractPolicy, FeatureModel, TabularSoftmax, WallRule
from flowlab.solve.checkpoint import Checkpoint
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
    one_pair: dict = dict(batch_size=1, replacement=True)
    alone = np.array([START - gradient_by_hand(START, weights=one) for one in np.eye(3)])
    counts = np.zeros(3)
    for seed in range(draws):
        run = descend(flow, START, optimiser, steps=1, **one_pair, seed=seed)
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


def test_steps_are_kept_as_often_as_asked_and_the_last():
    every = descend(FLOW, START, optax.adam(0.1), steps=12)
    third = descend(FLOW, START, optax.adam(0.1), steps=12, keep_every=3)
    np.testing.assert_array_equal(third.steps, [0, 3, 6, 9, 12])
    np.testing.assert_array_equal(third.states, every.states[::3])
    fifth = descend(FLOW, START, optax.adam(0.1), steps=12, keep_every=5)
    np.testing.assert_array_equal(fifth.steps, [0, 5, 10, 12])
    np.testing.assert_array_equal(fifth.states, every.states[fifth.steps])


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
    (dict(), "Argument `steps` must be a positive int, but is None."),
    (dict(steps=0), "Argument `steps` must be a positive int, but is 0."),
    (dict(steps=2.0), "Argument `steps` must be a positive int, but is 2.0."),
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
    (
        dict(steps=1, batches=[[0]]),
        "Argument `steps` must be None with `batches`, one for each step, but is 1.",
    ),
    (dict(batches=[]), "Argument `batches` must have at least one step, but is empty."),
    (
        dict(batches=[[0], [0, 3]]),
        "Argument `batches` must have in each step indices of the 3 pairs, counted from 0, but "
        "step 2 is [0, 3].",
    ),
    (
        dict(batches=[[0]], batch_size=1, seed=0),
        "Argument `batch_size` must be None with `batches`.",
    ),
    (
        dict(steps=1, replacement=True),
        "Argument `replacement` must be False without `batch_size`.",
    ),
    (dict(steps=1, watch=("u", "v")), 'Argument `watch` must be "loss" or "u", but is \'v\'.'),
    (
        dict(steps=1, checkpoint="nowhere/run.npz"),
        "Argument `checkpoint` must be a file in a folder that exists, but is nowhere/run.npz.",
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
    with pytest.raises(ValueError, match=r"must have shape \(4,\), but has shape \(3,\)"):
        descend(single, START[:3], optax.sgd(0.1), steps=1)


def test_batches_are_taken_as_they_are_given_and_all_pairs_are_watched():
    batches = [[0, 1], [2], [2, 2], [1], [0]]
    loss = fl.DPO(np.array([0.8, 0.3, 0.5]))  # a β for each pair, which goes with it
    flow = fl.preference_flow(loss, POLICY, weights=np.array([1.0, 3.0, 2.0]))
    options: dict = dict(watch=("u", "loss"), keep_states=False, keep_every=5)
    run = descend(flow, START, optax.sgd(0.7), batches=batches, **options)
    state = START.copy()
    for taken in batches:
        shares = np.bincount(taken, minlength=3) * [1.0, 3.0, 2.0]
        slopes = [
            gradient_by_hand(state, beta=beta, weights=np.eye(3)[pair])
            for pair, beta in enumerate((0.8, 0.3, 0.5))
        ]
        state = state - 0.7 * (shares / shares.sum()) @ slopes
    np.testing.assert_allclose(run.end, state, rtol=1e-12)
    assert run.states is None
    logs = state - np.log(np.sum(np.exp(state)))
    np.testing.assert_allclose(run.u[1, :, 0], (logs - START)[[0, 2, 2]], rtol=1e-10)
    np.testing.assert_allclose(run.u[0], np.zeros((3, 2)), atol=1e-15)
    margins = run.u[1] @ [1, -1]
    of_pairs = np.log1p(np.exp(-np.array([0.8, 0.3, 0.5]) * margins))
    np.testing.assert_allclose(run.losses[1], of_pairs @ [1, 3, 2] / 6, rtol=1e-12)
    np.testing.assert_allclose(run.step_loss[0], np.log(2), rtol=1e-14)
    assert run.step_u.shape == (5, 2)


def test_without_replacement_every_pair_comes_before_one_comes_again():
    drawn = drawn_batches(5, 3, 10, 0, None, replacement=False)
    assert {len(one) for one in drawn} == {3}
    for epoch in np.concatenate(drawn).reshape(6, 5):
        assert sorted(epoch) == [0, 1, 2, 3, 4]
    first, second = np.concatenate(drawn)[:10].reshape(2, 5)
    assert not np.array_equal(first, second)


def test_a_loss_of_a_batch_is_that_of_the_pairs_of_each_step():
    pair = descend(
        fl.preference_flow(losses.AOT(0.8), POLICY), START, optax.sgd(0.7), batches=[[0]]
    )
    same = descend(FLOW, START, optax.sgd(0.7), batches=[[0]])  # of one pair, AOT is DPO
    np.testing.assert_allclose(pair.end, same.end, rtol=1e-12)


class KilledError(Exception):
    """What happens to a run in mid-way."""


def test_a_run_that_was_cut_is_resumed_to_the_same_bits(tmp_path, monkeypatch):
    options: dict = dict(batch_size=2, seed=3, steps=150, keep_every=5, watch=("u", "loss"))
    whole = descend(FLOW, START, optax.adam(0.05), **options)
    monkeypatch.setattr(training, "SAVED_EVERY", 0.0)
    write, file = Checkpoint.write, tmp_path / "run.npz"

    def killing(self, carry, history):
        write(self, carry, history)
        if int(carry.number) > 40:
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Checkpoint, "write", killing)
        descend(FLOW, START, optax.adam(0.05), **options, checkpoint=file)
    with np.load(file) as held:
        assert 40 < held["carry_4"] < 150 and len(held["numbers"]) > 8
    for _ in range(2):  # resumed, then finished already
        found = descend(FLOW, START, optax.adam(0.05), **options, checkpoint=file)
        for name in ("steps", "states", "losses", "u", "end", "step_loss", "step_u"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
    with pytest.raises(ValueError, match="checkpoint of this run, but .* is from a run with other"):
        descend(FLOW, START, optax.adam(0.06), **options, checkpoint=file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="checkpoint of this run, but .* is neither"):
        descend(FLOW, START, optax.adam(0.05), **options, checkpoint=file)


CHILD = """
import os, sys
import jax
import numpy as np, optax
import flowlab as fl
from flowlab.descent import training
jax.config.update("jax_enable_x64", True)
policy = fl.TabularSoftmax(np.array([0.1, 0.05, 0.8, 0.05]), [(0, 1), (2, 3), (2, 1)])
flow = fl.preference_flow(fl.DPO(0.8), policy)
training.SAVED_EVERY = 0.0
write = training.Checkpoint.write
def killing(self, carry, history):
    write(self, carry, history)
    if len(sys.argv) > 2 and int(carry.number) > 40:
        os.kill(os.getpid(), 9)
training.Checkpoint.write = killing
start = np.log([0.1, 0.05, 0.8, 0.05])
run = training.descend(flow, start, optax.adam(0.05), steps=150, batch_size=2, seed=3,
                       checkpoint=sys.argv[1])
print(run.end.tobytes().hex())
"""


@pytest.mark.exhaustive
def test_a_run_that_was_killed_is_resumed_to_the_same_bits(tmp_path):
    def child(*words):
        command = [sys.executable, "-c", CHILD, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True)

    assert child(tmp_path / "run.npz", "kill").returncode == -signal.SIGKILL
    resumed, whole = child(tmp_path / "run.npz"), child(tmp_path / "other.npz")
    assert whole.returncode == 0, whole.stderr
    assert resumed.stdout == whole.stdout and whole.stdout.strip()


def test_a_distance_is_asked_for_states_of_one_kind_and_a_positive_rate():
    line = fl.flow_line(FLOW, START, until=until.time(1.0))
    run = Descent(np.arange(2), np.zeros((2, 3)), np.zeros(2), Outcome.reached)
    for options in ({}, {"learning_rate": 0.5}):
        with pytest.raises(ValueError, match="must have states of 3 numbers, like `path`"):
            distance(run, line, **options)
    with pytest.raises(ValueError, match="must be positive and finite, but is 0"):
        distance(run, line, learning_rate=0)


def test_a_start_outside_the_domain_is_told_from_a_run_that_leaves_it():
    flow = fl.preference_flow(fl.DPO(0.1), fl.RatioPlane())
    run = descend(flow, np.array([-0.1, 0.9]), optax.sgd(0.1), steps=3)
    assert run.outcome is Outcome.outside_domain
    assert list(run.steps) == [0]
