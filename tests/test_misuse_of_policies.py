"""Refusals of constructors of policies over responses, of starts and weights that do not fit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_policy import FEATURES, PAIRS, POLICIES, PROBABILITIES, PROMPTS, SENTENCES
from refusals import assert_refused

import flowlab as fl
from flowlab import displacement, until
from flowlab.policies import Autoregressive, FeatureModel, LogLinear, Policy

TABLE = [0.2, 0.3, 0.5]


def _with(tokens: Any) -> Any:
    return [(0, 1), tokens]


MISUSES: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: fl.TabularSoftmax(0.5),
        "`reference` must have shape (n,) or (m, n), but has shape ().",
    ),
    (
        lambda: fl.TabularSoftmax([]),
        "`reference` must have shape (n,) or (m, n), but has shape (0,).",
    ),
    (lambda: fl.TabularSoftmax("ab"), "`reference` must hold real numbers, but is 'ab'."),
    (
        lambda: fl.TabularSoftmax([0.5, np.nan]),
        "`reference` must be finite, but is [0.5, nan].",
    ),
    (
        lambda: fl.TabularSoftmax([0.5, 0.6]),
        "`reference` must hold positive probabilities that sum to 1 for each prompt, but holds "
        "[0.5, 0.6].",
    ),
    (
        lambda: fl.TabularSoftmax([[0.5, 0.5], [1.0, 0.0]]),
        "`reference` must hold positive probabilities that sum to 1 for each prompt, but holds "
        "[[0.5, 0.5], [1. , 0. ]].",
    ),
    *(
        (
            lambda preferences=preferences: fl.TabularSoftmax(TABLE, preferences),
            f"`preferences` must be indices (chosen, rejected){rest}",
        )
        for preferences, rest in (
            (0, ", counted from 0, or a list of such tuples, but is 0."),
            ([], ", counted from 0, or a list of such tuples, but is []."),
            (
                np.zeros((0, 2), int),
                ", counted from 0, or a list of such tuples, but is "
                "array([], shape=(0, 2), dtype=int64).",
            ),
            ((0, 1, 2), ", counted from 0, or a list of such tuples, but is (0, 1, 2)."),
            ((0.0, 1.0), ", counted from 0, or a list of such tuples, but is (0.0, 1.0)."),
            ([(0, 1), (2,)], ", counted from 0, or a list of such tuples, but is [(0, 1), (2,)]."),
            (
                (0, 3),
                " of 3 responses, counted from 0, or a list of such tuples, but is [0, 3].",
            ),
            (
                (-1, 0),
                " of 3 responses, counted from 0, or a list of such tuples, but is [-1, 0].",
            ),
            (
                [(0, 1), (2, 2)],
                " of two different responses, or a list of such tuples, but is [[0, 1], [2, 2]].",
            ),
        )
    ),
    (
        lambda: fl.TabularSoftmax(PROMPTS),
        "`preferences` must be indices (prompt, chosen, rejected), counted from 0, or a list of "
        "such tuples, but is (0, 1).",
    ),
    (
        lambda: fl.TabularSoftmax(PROMPTS, [(2, 0, 1)]),
        "`preferences` must be indices (prompt, chosen, rejected) of 3 responses to 2 prompts, "
        "counted from 0, or a list of such tuples, but is [[2, 0, 1]].",
    ),
    *(
        (
            lambda lengths=lengths: fl.TabularSoftmax(TABLE, lengths=lengths),
            "`lengths` must be a positive number, or one for each of the 3 responses, "
            f"but is {shown}.",
        )
        for lengths, shown in (
            (0, "0"),
            (np.inf, "inf"),
            ("x", "'x'"),
            ([1, 2], "[1, 2]"),
            ([1, -2, 3], "[1, -2, 3]"),
        )
    ),
    *(
        (
            lambda offset=offset: fl.TabularSoftmax(TABLE, [(0, 1), (1, 2)], offset=offset),
            f"`offset` must be a finite number, or one for each pair, but is {shown}.",
        )
        for offset, shown in ((np.nan, "nan"), ("a", "'a'"), ([1, 2, 3], "[1, 2, 3]"))
    ),
    (lambda: LogLinear([1.0, 2.0]), "`features` must have shape (n, d), but has shape (2,)."),
    (lambda: LogLinear([[1.0], [np.inf]]), "`features` must be finite, but is [[ 1.], [inf]]."),
    (
        lambda: LogLinear(np.eye(2), reference=[1.0, 2.0, 3.0]),
        "`reference` must have shape (2,), but has shape (3,).",
    ),
    (
        lambda: LogLinear(np.eye(2), (0, 2)),
        "`preferences` must be indices (chosen, rejected) of 2 responses, counted from 0, or a "
        "list of such tuples, but is [0, 2].",
    ),
    (
        lambda: LogLinear.with_similarity(1.5),
        "`similarity` must lie between -1 and 1, but is 1.5.",
    ),
    (
        lambda: LogLinear.with_similarity(0.5, responses=1),
        "`responses` must be an int of at least 2, but is 1.",
    ),
    (lambda: FeatureModel([1.0], [1.0]), "`readout` must have shape (n, d), but has shape (1,)."),
    (
        lambda: FeatureModel(np.eye(3), [1.0, 2.0]),
        "`features` must have shape (3,), but has shape (2,).",
    ),
    (
        lambda: FeatureModel(np.eye(2), [1.0, np.nan]),
        "`features` must be finite, but is [ 1., nan].",
    ),
    (
        lambda: Autoregressive(SENTENCES, 1),
        "`vocabulary` must be an int of at least 2, but is 1.",
    ),
    (
        lambda: Autoregressive(SENTENCES, 3.0),  # type: ignore[arg-type]
        "`vocabulary` must be an int of at least 2, but is 3.0.",
    ),
    (
        lambda: Autoregressive(SENTENCES, 3, context=-1),
        "`context` must be a non-negative int, but is -1.",
    ),
    *(
        (
            lambda tokens=tokens: Autoregressive(_with(tokens), 3),
            f"`responses` must hold sequences of tokens between 0 and 2, but holds {tokens!r}.",
        )
        for tokens in ((), (0, 3), (-1,), (0.5,), ((0,), (1,)))
    ),
    (
        lambda: Autoregressive([(0, 1)], 3),
        "`responses` must hold at least two responses, but holds 1.",
    ),
    (
        lambda: Autoregressive(SENTENCES, 3, reference=np.zeros((2, 3))),
        "`reference` must have shape (4, 3), but has shape (2, 3).",
    ),
    (
        lambda: Autoregressive.with_edits(13),
        "`edits` must be an int from 1 to 12, but is 13.",
    ),
    (
        lambda: Autoregressive.with_edits(0, length=3),
        "`edits` must be an int from 1 to 3, but is 0.",
    ),
    (
        lambda: Policy.from_function(3.0, reference=np.zeros(2)),  # type: ignore[arg-type]
        "`log_probs` must be a function, but is 3.0.",
    ),
    (
        lambda: Policy.from_function(
            jax.nn.log_softmax,
            reference=np.zeros(2),
            metric=2.0,  # type: ignore[arg-type]
        ),
        "`metric` must be a function or None, but is 2.0.",
    ),
    (
        lambda: Policy.from_function(jnp.sum, reference=np.zeros(2)),
        "`log_probs` must give the log-probabilities of at least two responses, shape (r,), finite,"
        " but gives 0.0 of shape () at the reference.",
    ),
    (
        lambda: Policy.from_function(jnp.log, reference=np.array([1.0, 0.0])),
        "`log_probs` must give the log-probabilities of at least two responses, shape (r,), finite,"
        " but gives [ 0., -inf] of shape (2,) at the reference.",
    ),
    (
        lambda: Policy.from_function(
            jax.nn.log_softmax,
            reference=np.zeros(2),
            wall="bounce",  # type: ignore[arg-type]
        ),
        '`wall` must be "stop" or "slide", but is \'bounce\'.',
    ),
    (
        lambda: Policy.from_function(
            jax.nn.log_softmax,
            reference=np.zeros(2),
            domain="all",  # type: ignore[arg-type]
        ),
        "`domain` must be a domain such as Quadrant(), but is 'all'.",
    ),
    (
        lambda: Policy.from_function(jax.nn.log_softmax, reference=None),
        "`reference` must be a state of the policy, but is None.",
    ),
    (
        lambda: displacement.explain(
            fl.preference_flow(fl.DPO(), fl.TabularSoftmax(TABLE)), np.zeros(4)
        ),
        "`state` must have shape (3,), but has shape (4,).",
    ),
    (
        lambda: fl.preference_flow(fl.DPO(), fl.TabularSoftmax(TABLE)).with_parameter("fisher", 1),
        "`over` must name one hyper-parameter of the flow (`beta`, `lengths`, `reference`), but "
        "names 'fisher'.",
    ),
    (
        lambda: fl.preference_flow(
            fl.DPO(),
            fl.TabularSoftmax(PROBABILITIES, PAIRS),
            weights="ab",  # type: ignore[arg-type]
        ),
        "`weights` must be non-negative with a positive sum, but is nan.",
    ),
    (
        lambda: fl.preference_flow(
            fl.DPO(), fl.TabularSoftmax(PROBABILITIES, PAIRS), weights=np.ones(4)
        ),
        "`weights` must have one weight for each pair, but has shape (4,), and the policy has "
        "3 pairs.",
    ),
    (
        lambda: fl.preference_flow(fl.DPO(), fl.TabularSoftmax(TABLE), weights=np.ones(1)),
        "`weights` must have one weight for each pair, but has shape (1,), and the policy has one "
        "pair alone, which needs no weight.",
    ),
    (
        lambda: fl.flow_line(
            fl.preference_flow(fl.DPO(), POLICIES["feature model"]),
            {"readout": FEATURES, "features": np.ones(2)},
            until=until.time(1.0),
        ),
        "`start` must have the leaves of a state of the policy, of the shapes {'features': (3,), "
        "'readout': (4, 3)}, but has {'features': (2,), 'readout': (4, 3)}.",
    ),
    (
        lambda: fl.sweep(
            fl.preference_flow(fl.DPO(), POLICIES["feature model"]),
            {"readout": FEATURES[None]},
            until=until.time(1.0),
        ),
        "`starts` must have the leaves of a state of the policy, of the shapes {'features': (3,), "
        "'readout': (4, 3)}, behind an axis for the starts, but has {'readout': (4, 3)}.",
    ),
    (
        lambda: fl.flow_line(
            fl.preference_flow(fl.DPO(), POLICIES["tabular softmax"]),
            np.zeros(3),
            until=until.time(1.0),
        ),
        "`start` must have shape (4,), but has shape (3,).",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), MISUSES, ids=[s[:50] for _, s in MISUSES])
def test_misuse_is_a_sentence_that_names_the_argument(call, sentence):
    assert_refused(call, f"Argument {sentence}")
