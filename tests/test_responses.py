"""Policies over lists of responses: log-probabilities, kernels, metrics, ways back, misuse."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_policy import (
    FEATURES,
    PAIRS,
    POLICIES,
    PROBABILITIES,
    PROMPTS,
    SENTENCES,
    network,
    parameters,
    random_states,
)
from grids import thinned
from scipy.special import log_softmax, softmax

import flowlab as fl
from flowlab import losses
from flowlab.domains import Box
from flowlab.policies import AbstractResponses, Autoregressive, FeatureModel, LogLinear, Policy

RESPONSES = {n: p for n, p in POLICIES.items() if isinstance(p, AbstractResponses)}
STATES = 5

every_policy = pytest.mark.parametrize("policy", RESPONSES.values(), ids=list(RESPONSES))
kernels_of = eqx.filter_jit(lambda policy, states: jax.vmap(policy.kernel)(states))
pairs_of = eqx.filter_jit(lambda policy, states: jax.vmap(policy.pairs)(states))


def tabular(logits):
    """K_ij = δ_ij − π_i − π_j + Σ π² of the responses to one prompt."""
    p = softmax(logits)
    return np.eye(p.size) - p[:, None] - p[None] + p @ p


def fisher(logits):
    """K_ij = δ_ij/π_i − 1."""
    return np.diag(1 / softmax(logits)) - 1


def of_prompts(kernel):
    """The kernel of one prompt for each of several, with 0 between prompts."""

    def blocks(state):
        count = state.shape[1]
        whole = np.zeros((state.size, state.size))
        for i, row in enumerate(state):
            here = slice(i * count, (i + 1) * count)
            whole[here, here] = kernel(row)
        return whole

    return blocks


def log_linear(weights):
    """(φ_i − φ̄)·(φ_j − φ̄)."""
    centred = FEATURES - softmax(FEATURES @ weights) @ FEATURES
    return centred @ centred.T


def feature_model(state):
    """‖h‖² K_tab + (W_i − W̄)·(W_j − W̄)."""
    readout, h = state["readout"], state["features"]
    centred = readout - softmax(readout @ h) @ readout
    return h @ h * tabular(readout @ h) + centred @ centred.T


def walk(state, context, visit):
    """Calls `visit(response, row of logits, token, place of the row)` for each token."""
    rows: dict[Any, int] = {}
    for response, tokens in enumerate(SENTENCES):
        for t, token in enumerate(tokens):
            seen = tokens[:t] if context is None else tokens[:t][t - min(t, context) :]
            row = rows.setdefault(seen, len(rows))
            visit(response, state[row], token, row)


def autoregressive(context):
    """Inner products of the gradients of sums of log-probabilities of tokens."""

    def kernel(state):
        slopes = np.zeros((len(SENTENCES), *state.shape))

        def visit(response, logits, token, row):
            slopes[response, row] += np.eye(logits.size)[token] - softmax(logits)

        walk(state, context, visit)
        flat = slopes.reshape(len(SENTENCES), -1)
        return flat @ flat.T

    return kernel


def token_by_token(context):
    def log_probs(state):
        sums = np.zeros(len(SENTENCES))

        def visit(response, logits, token, row):
            del row
            sums[response] += np.log(softmax(logits)[token])

        walk(state, context, visit)
        return sums

    return log_probs


KERNELS = {
    "tabular softmax": tabular,
    "tabular softmax, pairs": tabular,
    "tabular softmax, prompts": of_prompts(tabular),
    "Fisher metric": fisher,
    "Fisher metric, prompts": of_prompts(fisher),
    "log-linear": log_linear,
    "feature model": feature_model,
    "feature model, pairs": feature_model,
    "autoregressive": autoregressive(None),
    "autoregressive, no context": autoregressive(0),
    "autoregressive, one token": autoregressive(1),
}
# By default one policy of each class, of several prompts or pairs where it can be.
KEPT = {
    *("tabular softmax, prompts", "Fisher metric, prompts", "log-linear"),
    *("feature model, pairs", "autoregressive"),
}
LOG_PROBS = {
    "tabular softmax": log_softmax,
    "tabular softmax, pairs": log_softmax,
    "tabular softmax, prompts": lambda state: log_softmax(state, axis=1).ravel(),
    "Fisher metric": log_softmax,
    "Fisher metric, prompts": lambda state: log_softmax(state, axis=1).ravel(),
    "log-linear": lambda state: log_softmax(FEATURES @ state),
    "feature model": lambda state: log_softmax(state["readout"] @ state["features"]),
    "feature model, pairs": lambda state: log_softmax(state["readout"] @ state["features"]),
    "autoregressive": token_by_token(None),
    "autoregressive, no context": token_by_token(0),
    "autoregressive, one token": token_by_token(1),
}


def one_by_one(states):
    return [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(STATES)]


@pytest.mark.parametrize("name", thinned(KERNELS, KEPT))
def test_kernels_are_those_of_their_closed_forms(name):
    policy = RESPONSES[name]
    states = random_states(policy, STATES)
    places = places_of(policy)
    for kernel, state in zip(kernels_of(policy, states), one_by_one(states), strict=True):
        wanted = KERNELS[name](state)[np.ix_(places.ravel(), places.ravel())]
        np.testing.assert_allclose(kernel, wanted.reshape(places.shape * 2), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", thinned(LOG_PROBS, KEPT))
def test_log_probabilities_of_pairs_are_those_of_their_definition(name):
    policy = RESPONSES[name]
    states = random_states(policy, STATES)
    pairs = pairs_of(policy, states)
    places = places_of(policy)
    logs = np.stack([LOG_PROBS[name](state) for state in one_by_one(states)])
    reference = LOG_PROBS[name](policy.reference_state)
    np.testing.assert_allclose(pairs.chosen, logs[:, places[..., 0]], rtol=1e-13)
    np.testing.assert_allclose(pairs.rejected, logs[:, places[..., 1]], rtol=1e-13)
    np.testing.assert_allclose(pairs.ref_chosen[0], reference[places[..., 0]], rtol=1e-13)
    np.testing.assert_allclose(pairs.ref_rejected[0], reference[places[..., 1]], rtol=1e-13)


def places_of(policy):
    """Indices of chosen and rejected, counted over all prompts."""
    named = np.asarray(policy.preferences)
    if named.shape[-1] == 2:
        return named
    return np.stack([named[..., 0] * 3 + named[..., 1], named[..., 0] * 3 + named[..., 2]], -1)


def test_there_is_no_kernel_between_prompts():
    policy = RESPONSES["tabular softmax, prompts"]
    kernel = kernels_of(policy, random_states(policy, STATES))
    np.testing.assert_array_equal(kernel[:, 0, :, 1:], 0)
    np.testing.assert_array_equal(kernel[:, 1:, :, 0], 0)
    assert np.all(np.abs(kernel[:, 1, :, 2]) > 0)


def test_the_kernel_of_any_function_is_that_of_its_jacobian():
    def metric(state, covector):
        del state
        return jax.tree.map(lambda leaf: 3 * leaf, covector)

    policy = Policy.from_function(
        network, reference=parameters(2, 4, 3), preferences=[(0, 1), (4, 3)], metric=metric
    )
    states = random_states(policy, 1)
    state = one_by_one(jax.tree.map(lambda leaf: np.repeat(leaf, STATES, 0), states))[0]
    rows = jax.tree.leaves(jax.jit(jax.jacfwd(network))(state))
    jacobian = np.concatenate([np.reshape(row, (6, -1)) for row in rows], axis=1)[[0, 1, 4, 3]]
    wanted = 3 * (jacobian @ jacobian.T).reshape(2, 2, 2, 2)
    np.testing.assert_allclose(kernels_of(policy, states)[0], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["Fisher metric", "Fisher metric, prompts"])
def test_the_fisher_metric_is_the_pseudo_inverse_of_the_fisher_information(name):
    policy = RESPONSES[name]
    states = random_states(policy, STATES)
    covectors = np.random.default_rng(4).normal(size=states.shape)
    found = jax.jit(jax.vmap(policy.metric))(states, covectors)
    rows = zip(*(x.reshape(-1, x.shape[-1]) for x in (found, states, covectors)), strict=True)
    for moved, logits, covector in rows:
        p = softmax(logits)
        information = np.diag(p) - np.outer(p, p)
        np.testing.assert_allclose(moved, np.linalg.pinv(information) @ covector, rtol=1e-11)


@pytest.mark.parametrize("similarity", [-1.0, -0.3, 0.0, 0.9, 1.0])
def test_similar_features_have_the_similarity_as_the_kernel_between_them(similarity):
    policy = LogLinear.with_similarity(similarity, responses=4, lengths=7)
    features = np.asarray(policy.features)
    gram = np.eye(4)
    gram[0, 1] = gram[1, 0] = similarity
    np.testing.assert_allclose(features @ features.T, gram, atol=1e-15)


def test_edited_sentences_differ_in_as_many_tokens_at_their_ends():
    for edits in (1, 3, 12):
        policy = Autoregressive.with_edits(edits)
        chosen, rejected = policy.responses
        differing = [t for t in range(12) if chosen[t] != rejected[t]]
        assert differing == list(range(12 - edits, 12))
        assert policy.context is None
        # Prefixes of the common part and one more, then those of each response alone.
        assert len(policy.contexts) == 12 + edits - 1
    short = Autoregressive.with_edits(2, length=5, vocabulary=2, context=1)
    np.testing.assert_array_equal(short.responses, [[0, 1, 0, 1, 0], [0, 1, 0, 0, 1]])
    assert short.contexts == ((), (0,), (1,))


def test_contexts_are_listed_in_the_order_in_which_they_occur():
    assert RESPONSES["autoregressive"].contexts == (  # type: ignore[attr-defined]
        *((), (0,), (0, 1), (0, 1, 0)),
    )
    assert RESPONSES["autoregressive, no context"].contexts == ((),)  # type: ignore[attr-defined]


@every_policy
def test_at_its_reference_a_policy_has_log_ratios_nought(policy):
    reference = policy.reference_state
    assert {leaf.dtype.name for leaf in jax.tree.leaves(reference)} == {"float64"}
    pairs = pairs_of(policy, jax.tree.map(lambda leaf: leaf[None], reference))
    np.testing.assert_allclose(pairs.u_chosen, 0, atol=1e-14)
    np.testing.assert_allclose(pairs.u_rejected, 0, atol=1e-14)
    if policy.state_shape is not None:
        assert np.shape(reference) == policy.state_shape


@every_policy
def test_single_precision_stays_single(policy):
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), policy.reference_state)
    made = jax.eval_shape(lambda y: (policy.pairs(y), policy.kernel(y), policy.metric(y, y)), state)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made)} == {"float32"}


@every_policy
def test_beta_can_be_replaced_in_a_flow(policy):
    flow = fl.preference_flow(fl.DPO(0.3), policy)
    wanted = fl.preference_flow(fl.DPO(0.7), policy)
    assert eqx.tree_equal(flow.with_parameter("beta", 0.7), wanted)


def test_lengths_and_margins_required_reach_the_pairs():
    policy = fl.TabularSoftmax(PROBABILITIES, PAIRS, lengths=[3, 5, 7, 9], offset=[0.1, 0.2, 0.3])
    pairs = policy.pairs(policy.reference_state)
    np.testing.assert_array_equal(pairs.chosen_length, [3, 7, 7])
    np.testing.assert_array_equal(pairs.rejected_length, [5, 9, 5])
    np.testing.assert_array_equal(pairs.offset, [0.1, 0.2, 0.3])
    same = Autoregressive(SENTENCES, 3, PAIRS, offset=0.5)
    pairs = same.pairs(jnp.asarray(same.reference_state))
    np.testing.assert_array_equal(pairs.chosen_length, [3, 1, 1])
    np.testing.assert_array_equal(pairs.offset, 0.5)


def test_hyper_parameters_of_a_policy_are_replaced_as_at_construction():
    flow = fl.preference_flow(losses.ODPO(), fl.TabularSoftmax(PROBABILITIES, PAIRS, offset=0.1))
    wanted = fl.preference_flow(losses.ODPO(), fl.TabularSoftmax(PROBABILITIES, PAIRS, offset=2))
    assert eqx.tree_equal(flow.with_parameter("offset", 2.0), wanted)
    with pytest.raises(ValueError, match="Argument `lengths` must be a positive number"):
        flow.with_parameter("lengths", 0.0)


def test_the_reference_of_any_function_carries_its_log_probabilities_with_it():
    def policy(reference):
        return Policy.from_function(jax.nn.log_softmax, reference=reference)

    flow = fl.preference_flow(fl.DPO(0.3), policy(np.zeros(3)))
    other = np.array([1.0, 0.0, -1.0])
    wanted = fl.preference_flow(fl.DPO(0.3), policy(other))
    assert eqx.tree_equal(flow.with_parameter("reference", other), wanted)
    assert flow.state_shape == (3,)


def test_what_is_made_of_other_arguments_is_no_hyper_parameter():
    flow = fl.preference_flow(fl.DPO(0.3), Autoregressive.with_edits(2))
    for name in ("ref_log_probs", "lengths"):
        with pytest.raises(ValueError) as caught:
            flow.with_parameter(name, 1.0)
        assert f"but names '{name}'" in str(caught.value)
        assert f"`{name}`" not in str(caught.value)


def test_policies_can_be_built_under_jit():
    def kernel(state):
        policy = Policy.from_function(jax.nn.log_softmax, reference=np.zeros(3))
        model = LogLinear(np.eye(3))
        return policy.kernel(state), model.kernel(state)

    state = np.array([0.3, -0.2, 1.0])
    for found in jax.jit(kernel)(state):
        np.testing.assert_allclose(found, tabular(state)[:2, :2], rtol=1e-12)


# The way back from log-ratios ----------------------------------------------------------------

BACK = {
    "tabular softmax": RESPONSES["tabular softmax"],
    "feature model": RESPONSES["feature model"],
}


@pytest.mark.parametrize("policy", BACK.values(), ids=list(BACK))
def test_the_state_at_log_ratios_has_these_and_leaves_the_others_in_proportion(policy):
    wanted = np.random.default_rng(3).uniform(-3, -0.5, (20, 2))
    others = np.setdiff1d(np.arange(4), policy.preferences)

    @jax.jit
    @jax.vmap
    def there_and_back(values):
        state = policy.state_at(values)
        pair = policy.pairs(state)
        return jnp.stack([pair.u_chosen, pair.u_rejected]), policy.log_probs(state)

    found, logs = there_and_back(wanted)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    gained = np.asarray(logs)[:, others] - policy.ref_log_probs[others]
    np.testing.assert_allclose(gained[:, 0], gained[:, 1], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1, rtol=1e-13)


def test_the_read_out_at_log_ratios_is_the_nearest_one():
    policy = RESPONSES["feature model"]
    state = policy.state_at(np.array([-0.5, -1.0]))
    reference: Any = policy.reference_state
    readout, features = reference["readout"], reference["features"]
    np.testing.assert_array_equal(state["features"], features)
    # The least change that makes given differences of the logits, by least squares.
    differences = np.eye(4)[1:] - np.eye(4)[0]
    logs = policy.log_probs(state)
    target = differences @ np.asarray(logs) - differences @ readout @ features
    change = np.linalg.lstsq(np.kron(differences, features), target, rcond=None)[0]
    np.testing.assert_allclose(state["readout"] - readout, change.reshape(4, 3), atol=1e-13)


@pytest.mark.parametrize("policy", BACK.values(), ids=list(BACK))
def test_where_the_pair_leaves_nothing_there_is_no_state(policy):
    pair = np.asarray(policy.preferences)
    full = -policy.ref_log_probs[pair] + np.log([0.5, 0.5])
    for values in (full, full + 1):
        state = policy.state_at(values)
        assert any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(state))


WITHOUT_WAY_BACK = [
    fl.TabularSoftmax([0.3, 0.7]),
    fl.TabularSoftmax(PROBABILITIES, PAIRS),
    fl.TabularSoftmax(PROMPTS, (0, 1, 2)),
    FeatureModel(FEATURES[:2], [1.0, 2.0, 3.0]),
    FeatureModel(FEATURES, np.zeros(3)),
    LogLinear(FEATURES),
    Autoregressive.with_edits(2),
    RESPONSES["network"],
]


@pytest.mark.parametrize("policy", WITHOUT_WAY_BACK)
def test_where_there_is_no_way_back_a_sentence_says_so(policy):
    with pytest.raises(ValueError, match=f"^{type(policy).__name__} defines (a|no) state for "):
        policy.state_at(np.array([-1.0, -1.0]))


def test_a_policy_of_any_function_has_the_domain_and_the_wall_that_are_given():
    policy = Policy.from_function(
        jnp.log, reference=np.array([0.3, 0.3]), domain=Box(1, 1), wall="slide"
    )
    assert (policy.domain, policy.wall) == (Box(1, 1), "slide")
