"""The policy of a language model: log-probabilities, what is trained, its reference."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigrams import MASK, SMALL, TABLE, TOKENS, bigrams, by_hand
from refusals import assert_refused

import flowlab as fl
from flowlab import data, losses, models, until
from flowlab.policies import Policy, response_log_probs

MODELS = Path(__file__).parent / "data" / "models"
RATIOS = by_hand(TABLE + np.eye(3)) - by_hand(TABLE)


@pytest.mark.parametrize("chunk", [None, 3])
def test_log_probabilities_are_sums_over_the_tokens_of_a_response(chunk: int | None) -> None:
    @jax.jit
    def at(table: jax.Array) -> tuple[jax.Array, jax.Array]:
        logs, pull = jax.vjp(
            lambda table: response_log_probs(bigrams, table, TOKENS, MASK, chunk=chunk), table
        )
        return logs, *pull(jnp.zeros_like(logs).at[1, 0].set(1))

    logs, gradient = at(jnp.asarray(TABLE))
    np.testing.assert_allclose(logs, by_hand(TABLE), rtol=1e-13)
    expected = np.zeros((3, 3))
    expected[2] = [0, 1, 1] - 2 * np.exp(TABLE[2]) / np.sum(np.exp(TABLE[2]))
    np.testing.assert_allclose(gradient, expected, atol=1e-14)


def test_the_pairs_are_those_of_the_model_against_its_start() -> None:
    policy = Policy.from_model(bigrams, TABLE, SMALL)
    pairs, twice = jax.jit(
        lambda table: (policy.pairs(table), policy.subset(np.array([1, 1, 0])).pairs(table))
    )(TABLE + np.eye(3))
    np.testing.assert_allclose(np.transpose([pairs.u_chosen, pairs.u_rejected]), RATIOS, rtol=1e-12)
    np.testing.assert_array_equal(pairs.rejected_length, [1, 3])
    np.testing.assert_array_equal(policy.reference_state, TABLE)
    np.testing.assert_array_equal(policy.start, TABLE)
    np.testing.assert_allclose(twice.margin, (RATIOS @ [1, -1])[[1, 1, 0]], rtol=1e-12)


@pytest.mark.exhaustive
def test_a_flow_line_goes_through_all_parameters() -> None:
    flow = fl.preference_flow(fl.DPO(0.5), Policy.from_model(bigrams, TABLE, SMALL))
    line = fl.flow_line(flow, TABLE, until=until.loss_below(0.4), rtol=1e-9)
    margins = (by_hand(line.end) - by_hand(TABLE)) @ [1, -1]
    np.testing.assert_allclose(np.mean(np.log1p(np.exp(-0.5 * margins))), 0.4, rtol=1e-8)


def test_a_reference_of_its_own_is_not_the_start() -> None:
    other = TABLE + np.eye(3)
    policy = Policy.from_model(bigrams, other, SMALL, reference=TABLE)
    pairs = jax.jit(lambda table: policy.pairs(table))(other)
    np.testing.assert_allclose(np.transpose([pairs.u_chosen, pairs.u_rejected]), RATIOS, rtol=1e-12)
    np.testing.assert_array_equal(policy.reference_state, TABLE)
    # Of what is frozen in another way at the reference, no state is the reference.
    tables = {"shared": TABLE, "own": np.eye(3)}
    policy = Policy.from_model(
        lambda held, tokens: bigrams(held["shared"] + held["own"], tokens),
        tables,
        SMALL,
        trainable={"shared": False, "own": True},
        reference={"shared": other, "own": np.eye(3)},
    )
    assert policy.reference_state is None
    flow = fl.preference_flow(fl.DPO(0.1), policy, weights=np.array([1.0, 2.0]))
    assert_refused(
        fl.flow_line,
        "Argument `start` must have the leaves of a state of the policy, of the shapes "
        "{'own': (3, 3), 'shared': None}, but has {'own': (3, 3)}.",
        *(flow, {"own": np.eye(3)}),
        until=until.time(1.0),
    )


def with_factors(parameters: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Bigrams by LoRA: a frozen table and a product of two factors of rank 1, scaled by 2."""
    down, up = parameters["lora"]["down"], parameters["lora"]["up"]
    return bigrams(parameters["base"] + 2 * down @ up, tokens)


@pytest.mark.parametrize("mask", [lambda path: path.startswith("lora/"), {"base": 0, "lora": 1}])
def test_low_rank_factors_are_trained_beside_frozen_weights(mask: Any) -> None:
    rng = np.random.default_rng(1)
    factors = {"down": rng.standard_normal((3, 1)), "up": np.zeros((1, 3))}
    parameters = {"base": TABLE, "lora": factors, "step": np.arange(2)}
    mask = {**mask, "step": False} if isinstance(mask, dict) else mask
    policy = Policy.from_model(with_factors, parameters, SMALL, trainable=mask)
    assert jax.tree.map(np.shape, policy.start) == {
        "base": None,
        "lora": {"down": (3, 1), "up": (1, 3)},
        "step": None,
    }
    whole = fl.preference_flow(fl.DPO(0.5), Policy.from_model(bigrams, TABLE, SMALL))
    flow = fl.preference_flow(fl.DPO(0.5), policy)
    velocity = jax.jit(lambda state: flow.velocity(state))(policy.start)
    # By the chain rule; `down` rests as long as `up` is 0.
    wanted = 2 * factors["down"].T @ jax.jit(lambda state: whole.velocity(state))(TABLE)
    np.testing.assert_allclose(velocity["lora"]["up"], wanted, atol=1e-14)
    np.testing.assert_array_equal(velocity["lora"]["down"], 0)


def test_a_checkpoint_gives_a_policy_in_its_precision() -> None:
    model = models.load(MODELS / "llama")
    policy = model.policy(SMALL, trainable=lambda path: "norm" in path)
    logs = jax.jit(lambda state: policy.log_probs(state))(policy.start)
    assert logs.dtype == np.float32
    logits = np.asarray(jax.jit(model.apply)(model.parameters, TOKENS[:, 0]), float)
    steps = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    np.testing.assert_allclose(logs[0, 0], steps[0, 0, 1] + steps[0, 1, 2], rtol=1e-5)
    trained = [name for name, leaf in policy.start.items() if leaf is not None]
    assert trained and all("norm" in name for name in trained)
    strange = data.Pairs(TOKENS + 1000, MASK, SMALL.lengths, SMALL.rows)
    assert_refused(
        model.policy,
        f"Argument `pairs` must have tokens from 0 to {model.vocabulary - 1}, the vocabulary of "
        "the model, but has 1000 to 1002: make them with the tokenizer of the model.",
        strange,
    )


def test_hyper_parameters_of_pairs_go_with_the_pairs_and_weights_of_losses_do_not() -> None:
    loss = losses.WeightedSum((fl.DPO(np.array([0.1, 0.7])), losses.SFT()), (1.0, 0.25))
    flow = fl.preference_flow(loss, Policy.from_model(bigrams, TABLE, SMALL))
    value = jax.jit(lambda table: flow.subset(np.array([1])).potential(table))(TABLE + np.eye(3))
    margin, log_prob = RATIOS[1] @ [1, -1], by_hand(TABLE + np.eye(3))[1, 0]
    wanted = np.log1p(np.exp(-0.7 * margin)) - 0.25 * log_prob / 2
    np.testing.assert_allclose(value, wanted, rtol=1e-12)


def test_what_is_no_model_or_does_not_fit_it_is_refused() -> None:
    assert_sentence = partial(assert_refused, Policy.from_model)
    assert_sentence("Argument `apply` must be a function, but is 3.", 3, TABLE, SMALL)
    assert_sentence(
        "Argument `chunk` must be a positive int, but is 0.", bigrams, TABLE, SMALL, chunk=0
    )
    assert_sentence(
        "Argument `parameters` must be a PyTree of arrays, but is {}.", bigrams, {}, SMALL
    )
    assert_sentence(
        "Argument `trainable` must choose some of `parameters`, but chooses none.",
        *(bigrams, TABLE, SMALL),
        trainable=lambda path: False,
    )
    assert_sentence(
        "Argument `trainable` must choose arrays of floats, but chooses `step`, which is not one.",
        *(with_factors, {"base": TABLE, "step": np.arange(2)}, SMALL),
        trainable=lambda path: True,
    )
    assert_sentence(
        "Argument `trainable` must be a function of the path of a leaf, or have the structure of "
        "`parameters`, but is {'other': True}.",
        *(with_factors, {"base": TABLE}, SMALL),
        trainable={"other": True},
    )
    assert_sentence(
        "Argument `reference` must hold parameters like `parameters`, but they differ in structure "
        "or shapes.",
        *(bigrams, TABLE, SMALL),
        reference=TABLE[:2],
    )
    assert_sentence(
        "Argument `apply` must give logits of shape (s, t, v) for tokens of shape (s, t), but "
        "gives ShapeDtypeStruct(shape=(3, 3), dtype=float64) for tokens of shape (1, 4).",
        *(lambda table, tokens: table, TABLE, SMALL),
    )


def test_pairs_without_tokens_where_they_belong_are_refused() -> None:
    assert_sentence = partial(assert_refused, Policy.from_model)
    empty, unprompted = MASK.copy(), MASK.copy()
    empty[1, 1], unprompted[0, 0, 0] = False, True
    assert_sentence(
        "Argument `pairs` must have a response with tokens in each sequence, but pair 1 has "
        "none in its rejected sequence.",
        *(bigrams, TABLE, data.Pairs(TOKENS, empty, SMALL.lengths, SMALL.rows)),
    )
    assert_sentence(
        "Argument `pairs` must have a prompt with tokens in each sequence, but pair 0 has "
        "none in its chosen sequence.",
        *(bigrams, TABLE, data.Pairs(TOKENS, unprompted, SMALL.lengths, SMALL.rows)),
    )
    assert_sentence(
        "Argument `pairs` must hold ids of tokens of shape (n, 2, t) and a mask like them, but has "
        "shapes (2, 4) and (2, 4) and ids of dtype int64.",
        *(bigrams, TABLE, data.Pairs(TOKENS[0], MASK[0], SMALL.lengths, SMALL.rows)),
    )
    assert_sentence(
        "Argument `pairs` must have finite log-probabilities under the model, but those of pair 0 "
        "are [nan, nan]: make its tokens with the tokenizer of the model.",
        *(bigrams, np.full((3, 3), np.nan), SMALL),
    )
