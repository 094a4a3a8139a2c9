"""The identity of DPO's gradient (arXiv 2305.18290, appendix A.4), on policies of every kind.

∇L = −mean_p[ β σ(−z_p) (∇π_w/π_w − ∇π_l/π_l) ],  z = β (log π_w/ref_w − log π_l/ref_l)

with ∇π by differentiation of the probabilities themselves.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_policy import POLICIES, random_states
from grids import thinned

import flowlab as fl

STATES = 10


def terms(policy, state, beta, power=1):
    """The p terms of the mean, each a PyTree like the state with a leading axis for the pairs."""

    def probabilities(state):
        pairs = policy.pairs(state)
        return jnp.atleast_1d(jnp.exp(pairs.chosen)), jnp.atleast_1d(jnp.exp(pairs.rejected))

    pairs, (chosen, rejected) = policy.pairs(state), probabilities(state)
    z = beta * (jnp.log(chosen / rejected) - (pairs.ref_chosen - pairs.ref_rejected))
    factor = beta / (1 + jnp.exp(z)) ** power

    def scaled(slope, values):
        return jnp.reshape(factor / values, (-1,) + (1,) * (slope.ndim - 1)) * slope

    of_chosen, of_rejected = jax.jacrev(probabilities)(state)
    return (
        jax.tree.map(lambda slope: scaled(slope, chosen), of_chosen),
        jax.tree.map(lambda slope: scaled(slope, rejected), of_rejected),
    )


def flat(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def right_hand_side(policy, state, beta, weights, power=1):
    """The right-hand side of the identity, and the mean of the sizes of the parts that it sums."""
    of_chosen, of_rejected = (jax.vmap(flat)(part) for part in terms(policy, state, beta, power))
    shares = jnp.ones(len(of_chosen)) if weights is None else weights
    shares = shares / jnp.sum(shares)
    sizes = jnp.linalg.norm(of_chosen, axis=1) + jnp.linalg.norm(of_rejected, axis=1)
    return -shares @ (of_chosen - of_rejected), shares @ sizes


def gradient(policy, state, beta, weights):
    return flat(jax.grad(lambda y: fl.DPO(beta).mean(policy.pairs(y), weights))(state))


def random_cases(policy):
    """States, the β of each, and weights of the pairs where there are several."""
    rng = np.random.default_rng(2)
    pairs = jax.eval_shape(policy.pairs, policy.reference_state).chosen.shape
    weights = rng.exponential(size=(STATES, *pairs)) if pairs else None
    return random_states(policy, STATES), np.exp(rng.uniform(-3, 1, STATES)), weights


def sides(policy, power=1):
    """Both sides of the identity, compiled, for many states; and the sizes of the parts."""

    def both(state, beta, weights):
        found = gradient(policy, state, beta, weights)
        return found, *right_hand_side(policy, state, beta, weights, power)

    return jax.jit(jax.vmap(both))


# By default a plane, a table under a metric of its own, what several prompts share, and a network.
KEPT = {"ratio plane", "Fisher metric", "tabular softmax, prompts", "feature model", "network"}


@pytest.mark.parametrize("name", thinned(POLICIES, KEPT))
def test_the_gradient_of_dpo_is_that_of_the_identity(name):
    policy = POLICIES[name]
    found, wanted, size = sides(policy)(*random_cases(policy))
    # The terms can cancel, so that rounding is relative to their sizes.
    assert np.all(np.linalg.norm(found - wanted, axis=1) <= 1e-12 * size)
    assert np.all(np.linalg.norm(found, axis=1) > 1e-4 * size)


def test_without_weights_the_mean_of_the_identity_is_the_plain_one():
    policy = POLICIES["tabular softmax, pairs"]
    states, betas, _ = random_cases(policy)
    found, wanted, size = sides(policy)(states, betas, None)
    assert np.all(np.linalg.norm(found - wanted, axis=1) <= 1e-12 * size)


@pytest.mark.parametrize("name", thinned(["tabular softmax", "network"], {"network"}))
def test_with_its_factor_twice_as_in_a_slip_the_identity_is_wrong(name):
    policy = POLICIES[name]
    states, betas, _ = random_cases(policy)
    reference = jax.tree.map(np.asarray, policy.reference_state)
    states = jax.tree.map(lambda one, many: np.stack([one, *many[1:]]), reference, states)
    found, slipped, size = sides(policy, power=2)(states, betas, None)
    # At the reference σ(−z) is a half, so that what has it twice is a half of the gradient.
    np.testing.assert_allclose(slipped[0], found[0] / 2, rtol=1e-12, atol=1e-15)
    assert np.all(np.linalg.norm(found - slipped, axis=1) > 1e-3 * size)
