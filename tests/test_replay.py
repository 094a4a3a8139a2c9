"""Runs of training that are replayed, against the logs that their trainers wrote."""

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from bigrams import MASK, SMALL, TABLE, TOKENS, bigrams, by_hand
from refusals import assert_refused

from flowlab import data, logs, models, plots
from flowlab.descent import hf_optimiser, hf_order
from flowlab.logs.checks import beta_doubt
from flowlab.losses import DPO
from flowlab.policies import LanguageModel
from flowlab.replay import Replay, compare, doubts, replay, replayed

DATA = Path(__file__).parent / "data"
REVERSAL = DATA / "reversal"
SGD = "dpo_beta0.1_similar_sft300_sgd_lr0.001.json"
ADAMW = "dpo_beta0.1_similar_sft300.json"
STEPS = 25  # replayed of a run unless the full grids are
PLAIN = optax.sgd(0.001)


@pytest.fixture(scope="module")
def model() -> models.Model:
    return models.load(REVERSAL)


@pytest.fixture(scope="module")
def pairs() -> data.Pairs:
    return data.preferences(REVERSAL / "pairs.jsonl", REVERSAL)


@pytest.fixture(scope="module")
def policy(model: models.Model, pairs: data.Pairs) -> LanguageModel:
    return model.policy(pairs, chunk=64)


def first_rows(log: logs.TrainingLog, count: int) -> logs.TrainingLog:
    """The first rows of a log."""
    columns = {name: held[:count] for name, held in vars(log).items() if hasattr(held, "ndim")}
    return dataclasses.replace(log, **columns, settings={})


def the_order(count: int, steps: int, seed: int = 42) -> list[np.ndarray]:
    return hf_order(count, -(-16 * steps // count), 16, seed)[:steps]


def sgd_again(policy: LanguageModel, steps: int, seed: int = 42) -> Replay:
    """The run of SGD again, or another in the order of another seed."""
    order = the_order(np.shape(policy.tokens)[0], steps, seed)
    return replayed(policy, DPO(0.1), PLAIN, order, keep_every=12)


@pytest.fixture(scope="module")
def run(policy: LanguageModel) -> Replay:
    return sgd_again(policy, STEPS)


@pytest.mark.parametrize("steps", [STEPS, pytest.param(480, marks=pytest.mark.exhaustive)])
def test_a_run_of_sgd_is_met_at_every_step(steps: int, policy: LanguageModel, run: Replay) -> None:
    log = first_rows(logs.read(DATA / SGD, beta=0.1), steps)
    found = run if steps == STEPS else sgd_again(policy, steps)
    assert np.max(np.abs(found.deviation(log))) < 1e-5
    np.testing.assert_allclose(found.logp_chosen, log.logp_chosen, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.logp_rejected, log.logp_rejected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.loss, log.loss, rtol=0, atol=1e-6)
    assert abs(found.logp_chosen[0] - log.logp_chosen[0]) < 1e-6
    assert repr(found).startswith(f"Replay({steps} steps, (u_w, u_l) to (")
    again = compare(log, found)
    assert again.is_replay and again.largest < 1e-5 and again.typical < 1e-3


@pytest.mark.exhaustive
def test_a_run_of_adamw_is_met_up_to_the_drift_of_single_precision(
    model: models.Model, pairs: data.Pairs
) -> None:
    log = logs.read(DATA / ADAMW, beta=0.1)
    optimiser = hf_optimiser(3e-4, 120, schedule="constant")
    order = the_order(len(pairs), 120)
    found = replay(model.apply, model.parameters, pairs, DPO(0.1), optimiser, order)
    assert np.max(np.abs(found.deviation(log))) < 2e-2
    assert compare(log, found).is_replay


def test_a_step_goes_down_the_mean_loss_of_its_pairs() -> None:
    found = replay(bigrams, TABLE, SMALL, DPO(0.5), optax.sgd(0.2), [[1], [0, 1]])
    first = replay(bigrams, TABLE, SMALL, DPO(0.5), optax.sgd(0.2), [[1]], chunk=100)
    np.testing.assert_allclose(found.loss[0], np.log(2), rtol=1e-14)
    np.testing.assert_allclose(found.logp_chosen[0], by_hand(TABLE)[1, 0], rtol=1e-13)
    # At the reference the slope of the loss by the margin is −β/2.
    for component in np.ndindex(3, 3):
        size = np.zeros((3, 3))
        size[component] = 1e-6
        rise = np.diff(by_hand(TABLE - size) - by_hand(TABLE + size), axis=1)[1, 0] / 2e-6
        moved = (first.parameters - TABLE)[component]
        np.testing.assert_allclose(moved, 0.2 * 0.5 / 2 * rise, atol=1e-9)
    ratios = np.mean(by_hand(first.parameters) - by_hand(TABLE), axis=0)
    np.testing.assert_allclose([found.u_chosen[1], found.u_rejected[1]], ratios, rtol=1e-12)


def test_the_precision_is_that_of_the_parameters_whatever_the_configuration() -> None:
    with jax.enable_x64(False):
        found = replay(bigrams, TABLE, SMALL, DPO(0.5), optax.sgd(0.2), [[0, 1]])
    assert found.parameters.dtype == np.float64
    np.testing.assert_allclose(found.loss, np.log(2), rtol=1e-14)


def test_rows_that_stand_for_several_steps_are_compared_with_their_means() -> None:
    u = np.arange(6.0)
    found = Replay(u, -u, u, u, u, parameters=TABLE)
    log = SimpleNamespace(
        step=np.array([3.0, 6.0]),
        u_chosen=np.array([1.0, 4.5]),
        u_rejected=np.zeros(2),
        reference_free=False,
        numbered=True,
    )
    np.testing.assert_allclose(found.deviation(log), [[0, -1], [-0.5, -4]])  # type: ignore[arg-type]
    log.step = np.array([3.0, 7.0])
    assert_refused(
        found.deviation,
        "Argument `log` must have at most the 6 steps of the replay, but has 7.",
        log,
    )
    log.numbered = False
    assert_refused(
        found.deviation,
        "Argument `log` must have steps and log-ratios, but is of a loss without a reference, or "
        "has no steps or rows.",
        log,
    )


def test_another_order_is_no_replay_whether_or_not_a_setting_tells(policy: LanguageModel) -> None:
    log = first_rows(logs.read(DATA / SGD, beta=0.1), STEPS)
    found = compare(log, sgd_again(policy, STEPS, seed=43))
    assert not found.doubts and not found.is_replay
    assert found.typical > 1  # two runs, each with noise of its own, and each on a way of its own


def test_standard_errors_are_those_of_the_scatter_of_rows(run: Replay) -> None:
    log = first_rows(logs.read(DATA / SGD, beta=0.1), STEPS)
    found = compare(log, run)
    for column, values in enumerate((log.u_chosen, log.u_rejected)):
        # A second difference has 1 + 4 + 1 times the variance of a row; few rows share theirs.
        wanted = np.sqrt(np.mean(np.diff(values, 2) ** 2) / 6)
        np.testing.assert_allclose(found.noise[:, column], wanted, rtol=1e-12)
    np.testing.assert_allclose(found.in_errors, found.deviation / found.noise)
    assert found.largest == np.max(np.abs(found.deviation))
    row = found.largest_step - 1
    assert found.largest == np.max(np.abs(found.deviation[row]))


def test_what_became_of_every_pair_is_counted_at_each_kept_step(
    policy: LanguageModel, run: Replay
) -> None:
    log = first_rows(logs.read(DATA / SGD, beta=0.1), STEPS)
    np.testing.assert_array_equal(run.kept, [0, 12, 24, 25])
    count = np.shape(policy.tokens)[0]
    batch = the_order(count, STEPS)[12]  # whose means the log has
    np.testing.assert_allclose(run.u[1, batch, 0].mean(), log.u_chosen[12], atol=1e-5)
    told = compare(log, run).of_pairs()[-1]
    chosen, rejected = np.asarray(run.u[-1], float).T
    assert told["chosen_fell"] == np.mean(chosen < 0)
    assert told["margin_positive"] == np.mean(chosen > rejected)
    assert told["margin_quantiles"][2] == np.median(chosen - rejected)
    blind = dataclasses.replace(run, u=np.zeros((0, 0, 2)), kept=np.zeros(0, int))
    assert_refused(
        compare(log, blind).of_pairs,
        "Argument `run` must have log-ratios of all pairs, from keep_every=…, but has none.",
    )


def heights(ax: Any, line: int) -> np.ndarray:
    """What a line of a picture shows."""
    return np.asarray(ax.lines[line].get_ydata(), float)


def test_pictures_show_what_was_compared(run: Replay) -> None:
    found = compare(first_rows(logs.read(DATA / SGD, beta=0.1), STEPS), run)
    away = plots.replay_deviation(found)
    sizes = np.abs(found.deviation[:, 0])
    np.testing.assert_allclose(heights(away, 0), np.where(sizes > 0, sizes, np.nan))
    np.testing.assert_allclose(heights(away, 1), found.noise[:, 0])
    pairs = plots.replay_pairs(found)
    fell = found.of_pairs()[-1]["chosen_fell"]
    entries = pairs.get_legend_handles_labels()[1]
    assert entries[0] == f"chosen fell: {fell:.0%} of 640 pairs"
    spread = plots.replay_spread(found)
    np.testing.assert_allclose(heights(spread, 0), np.median(run.u[..., 0], axis=1))
    steps = plots.replay_steps(found)
    np.testing.assert_allclose(heights(steps, 1), run.u_chosen)
    blind = dataclasses.replace(run, u=np.zeros((0, 0, 2)), kept=np.zeros(0, int))
    assert_refused(
        plots.replay_spread,
        "Argument `comparison` must be of a replay that recorded all pairs, but is not; replay "
        "with keep_every=….",
        dataclasses.replace(found, run=blind),
    )


def test_settings_that_do_not_fit_a_log_are_told_before_time_is_spent(
    policy: LanguageModel,
) -> None:
    log = logs.read(DATA / SGD, beta=0.1)
    count = np.shape(policy.tokens)[0]
    rates = np.full(480, 0.001)
    assert doubts(log, policy, the_order(count, 480), rates, per_device=16) == []
    doubled = logs.read(DATA / ADAMW, beta=0.2)
    assert doubts(doubled, policy, the_order(count, 120))[-1:] == [beta_doubt(doubled)]
    assert "fits β = 0.10" in str(beta_doubt(doubled))
    other = doubts(log, policy, the_order(count, 480, seed=43), rates, per_device=16)
    assert other[0].startswith("The batch of step 1 has 480 tokens in the log, and ")
    assert "the data are different" in other[0]
    moved = eqx.tree_at(
        lambda held: held.ref_log_probs, policy, np.asarray(policy.ref_log_probs) - 0.5
    )
    chosen, rejected = doubts(log, moved, the_order(count, 480), rates)
    assert chosen == (
        "The first chosen log-probabilities are -3.12441 nats in the log, and -3.62441 here: the "
        "model, the data or the order are different."
    )
    assert rejected.startswith("The first rejected log-probabilities are -7.13634 nats in the log")
    small = doubts(log, policy, hf_order(count, 6, 8), rates, per_device=8)
    assert small[:2] == [
        "The log names a batch size of 16, and not 8.",
        "The log has 40 steps in an epoch, and the order goes through its 640 pairs in 80.",
    ]
    (rate,) = doubts(log, policy, the_order(count, 480), 2 * rates)
    assert rate == (
        "The learning rate of step 1 is 0.001 in the log, and not 0.002; 480 of 480 steps differ."
    )
    assert (
        doubts(log, policy, the_order(count, 40))[0] == "The log has 480 steps, and the order 40."
    )


def test_a_log_of_other_data_is_told(model: models.Model, pairs: data.Pairs) -> None:
    rows = np.arange(len(pairs))[::-1]
    held = (pairs.tokens[rows], pairs.mask[rows], pairs.lengths[rows], rows)
    other = model.policy(data.Pairs(*held), chunk=64)
    log = logs.read(DATA / SGD, beta=0.1)
    told = doubts(log, other, the_order(len(pairs), 480))
    assert told and told[0].startswith("The batch of step 1 has 480 tokens in the log, and ")


def test_orders_and_tokens_that_do_not_fit_are_refused(model: models.Model) -> None:
    assert_sentence = partial(assert_refused, replay)
    run = (bigrams, TABLE, SMALL, DPO(0.1), optax.sgd(0.1))
    assert_sentence("Argument `order` must have at least one step, but is empty.", *run, [])
    assert_sentence(
        "Argument `order` must have in each step indices of the 2 pairs, counted from 0, but "
        "step 2 is [2].",
        *(*run, [[0], [2]]),
    )
    assert_sentence(
        "Argument `pairs` must have finite log-probabilities under the model, but those of pair 1 "
        "are [nan, nan]: make its tokens with the tokenizer of the model.",
        *(model.apply, model.parameters, strangers(), DPO(0.1), optax.sgd(0.1), [[0, 1]]),
    )


def strangers() -> data.Pairs:
    """Pairs of which the second has a token that the model has not."""
    tokens = TOKENS.copy()
    tokens[1, :, 1] = 42
    return data.Pairs(tokens, MASK, SMALL.lengths, SMALL.rows)
