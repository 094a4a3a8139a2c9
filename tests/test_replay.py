"""Runs of training that are replayed, against the logs that their trainers wrote."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from bigrams import MASK, SMALL, TABLE, TOKENS, bigrams, by_hand
from refusals import assert_refused

from flowlab import data, logs, models
from flowlab.descent import hf_order
from flowlab.losses import DPO
from flowlab.replay import Replay, replay

DATA = Path(__file__).parent / "data"
REVERSAL = DATA / "reversal"
SGD = "dpo_beta0.1_similar_sft300_sgd_lr0.001.json"
ADAMW = "dpo_beta0.1_similar_sft300.json"
STEPS = 25  # replayed of a run unless the full grids are


@pytest.fixture(scope="module")
def model() -> models.Model:
    return models.load(REVERSAL)


@pytest.fixture(scope="module")
def pairs() -> data.Pairs:
    return data.preferences(REVERSAL / "pairs.jsonl", REVERSAL)


def first_rows(log: logs.TrainingLog, count: int) -> Any:
    """The first rows of a log, as far as a replay looks at it."""
    held = {name: getattr(log, name)[:count] for name in ("step", "u_chosen", "u_rejected")}
    return SimpleNamespace(**held, reference_free=False, numbered=True)


def replayed(model: models.Model, pairs: data.Pairs, optimiser: Any, steps: int) -> Replay:
    order = hf_order(len(pairs), -(-16 * steps // len(pairs)), 16)[:steps]
    return replay(model.apply, model.parameters, pairs, DPO(0.1), optimiser, order)


@pytest.mark.parametrize("steps", [STEPS, pytest.param(480, marks=pytest.mark.exhaustive)])
def test_a_run_of_sgd_is_met_at_every_step(
    steps: int, model: models.Model, pairs: data.Pairs
) -> None:
    log = logs.read(DATA / SGD, beta=0.1)
    found = replayed(model, pairs, optax.sgd(0.001), steps)
    assert np.max(np.abs(found.deviation(first_rows(log, steps)))) < 1e-5
    np.testing.assert_allclose(found.logp_chosen, log.logp_chosen[:steps], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.logp_rejected, log.logp_rejected[:steps], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.loss, log.loss[:steps], rtol=0, atol=1e-6)
    assert abs(found.logp_chosen[0] - log.logp_chosen[0]) < 1e-6
    assert repr(found).startswith(f"Replay({steps} steps, (u_w, u_l) to (")


@pytest.mark.exhaustive
def test_a_run_of_adamw_is_met_up_to_the_drift_of_single_precision(
    model: models.Model, pairs: data.Pairs
) -> None:
    log = logs.read(DATA / ADAMW, beta=0.1)
    adamw = optax.adamw(3e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    found = replayed(model, pairs, optimiser, 120)
    assert np.max(np.abs(found.deviation(log))) < 2e-2


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
        "Argument `log` must tell steps and log-ratios, but is that of a loss without a "
        "reference, or one without steps or rows.",
        log,
    )


def test_another_order_is_seen_at_once(model: models.Model, pairs: data.Pairs) -> None:
    log = logs.read(DATA / SGD, beta=0.1)
    order = hf_order(len(pairs), 1, 16, seed=43)[:2]
    found = replay(model.apply, model.parameters, pairs, DPO(0.1), optax.sgd(0.001), order)
    assert np.max(np.abs(found.logp_chosen - log.logp_chosen[:2])) > 0.1


def test_orders_and_tokens_that_do_not_fit_are_refused(model: models.Model) -> None:
    assert_sentence = partial(assert_refused, replay)
    run = (bigrams, TABLE, SMALL, DPO(0.1), optax.sgd(0.1))
    assert_sentence("Argument `order` must have a step at least, but is empty.", *run, [])
    assert_sentence(
        "Argument `order` must name some of the 2 pairs in each step, counted from 0, but step 2 "
        "is [2].",
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
