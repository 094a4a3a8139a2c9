"""One policy of each kind, and random states of theirs, for tests of what holds for them all."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flowlab as fl
from flowlab.policies import (
    AbstractPolicy,
    Autoregressive,
    CoupledKernel,
    FeatureModel,
    LogLinear,
    Policy,
)

PROBABILITIES = np.array([0.1, 0.05, 0.8, 0.05])
PAIRS = [(0, 1), (2, 3), (2, 1)]
PROMPTS = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
FEATURES = np.random.default_rng(1).normal(size=(4, 3))
SENTENCES = [(0, 1, 2), (0, 1, 0, 1), (1,), (0, 2)]


def turning(log_ratios: jax.Array) -> jax.Array:
    """A kernel that depends on the state, with an eigenvalue 1 and one that is larger."""
    axis = jnp.stack([jnp.sin(log_ratios[0]), jnp.cos(log_ratios[1])])
    return jnp.eye(2, dtype=axis.dtype) + jnp.outer(axis, axis)


def network(state: dict[str, Any]) -> jax.Array:
    """Log-probabilities of three responses to each of two prompts under a network."""
    prompts = jnp.asarray([[0.3, -1.0], [0.8, 0.5]], state["out"].dtype)
    for weights, bias in state["layers"]:
        prompts = jnp.tanh(prompts @ weights + bias[None])
    return jax.nn.log_softmax(prompts @ state["out"], axis=-1).ravel()


def parameters(*widths: int, seed: int = 0) -> dict[str, Any]:
    """Random parameters of `network`, from the widths of its layers."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(size=(rows, columns)) / np.sqrt(rows)

    layers = [
        (matrix(*shape), rng.normal(size=shape[1]))
        for shape in zip(widths[:-2], widths[1:-1], strict=True)
    ]
    return {"layers": layers, "out": matrix(widths[-2], widths[-1])}


POLICIES: dict[str, AbstractPolicy] = {
    "ratio plane": fl.RatioPlane(ref_chosen=-3.0, ref_rejected=-11.0),
    "probability plane": fl.ProbabilityPlane(np.log(0.3), np.log(0.6)),
    "log-ratio plane": fl.LogRatioPlane(),
    "constant kernel": fl.LogRatioPlane([[2.0, -0.5], [-0.5, 1.0]]),
    "coupled kernel": fl.LogRatioPlane(CoupledKernel(1.1)),
    "kernel of the state": fl.LogRatioPlane(turning),
    "tabular softmax": fl.TabularSoftmax(PROBABILITIES, (2, 0)),
    "tabular softmax, pairs": fl.TabularSoftmax(PROBABILITIES, PAIRS),
    "tabular softmax, prompts": fl.TabularSoftmax(PROMPTS, [(0, 0, 1), (1, 2, 0), (1, 2, 1)]),
    "Fisher metric": fl.TabularSoftmax(PROBABILITIES, (0, 3), fisher=True),
    "Fisher metric, prompts": fl.TabularSoftmax(PROMPTS, [(0, 0, 1), (1, 2, 0)], fisher=True),
    "log-linear": LogLinear(FEATURES, PAIRS, reference=[0.2, -0.4, 1.0]),
    "feature model": FeatureModel(FEATURES, [0.3, -1.0, 0.4], (1, 2)),
    "feature model, pairs": FeatureModel(FEATURES, [0.3, -1.0, 0.4], PAIRS),
    "autoregressive": Autoregressive(SENTENCES, 3, PAIRS),
    "autoregressive, no context": Autoregressive(SENTENCES, 3, PAIRS, context=0),
    "autoregressive, one token": Autoregressive(SENTENCES, 3, (1, 0), context=1),
    "network": Policy.from_function(
        network, reference=parameters(2, 4, 3), preferences=[(0, 1), (4, 3), (4, 5)]
    ),
}


def random_states(policy: AbstractPolicy, count: int, seed: int = 0) -> Any:
    """Random states of a policy, with a leading axis; inside of the domain where there is one."""
    rng = np.random.default_rng(seed)
    if policy.components is not None:
        log_ratios = rng.uniform(-4, -0.5, (count, 2))
        return np.asarray(jax.vmap(policy.state_at)(log_ratios))
    return jax.tree.map(
        lambda leaf: leaf + rng.normal(size=(count, *np.shape(leaf))), policy.reference_state
    )
