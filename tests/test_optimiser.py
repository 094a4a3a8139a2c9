"""The optimisers and schedules of Hugging Face's Trainer, against their formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import assert_refused

from flowlab.descent import hf_optimiser, hf_rates

SLOPES = np.random.default_rng(0).standard_normal((6, 2, 2))


def updates(optimiser: optax.GradientTransformation, start: np.ndarray) -> list[np.ndarray]:
    """The states after the steps of an optimiser, for the gradients in `SLOPES`."""

    @jax.jit
    def step(state, memory, slope):
        with jax.numpy_dtype_promotion("standard"):
            found: Any = optimiser.update({"w": slope}, memory, {"w": state})
        return state + found[0]["w"], found[1]

    state, found = jnp.asarray(start), []
    memory = optimiser.init({"w": state})
    for slope in SLOPES.astype(start.dtype):
        state, memory = step(state, memory, slope)
        found.append(np.asarray(state))
    return found


def test_adamw_is_that_of_torch_with_its_clipping_and_decay() -> None:
    rates = hf_rates(0.1, 6, schedule="cosine", warmup_steps=2)
    optimiser = hf_optimiser(
        *(0.1, 6), schedule="cosine", warmup_steps=2, weight_decay=0.3, max_grad_norm=1.5
    )
    state, m, v = np.ones((2, 2)), 0.0, 0.0
    for step, found in enumerate(updates(optimiser, state), start=1):
        slope = SLOPES[step - 1]
        slope = slope * min(1.0, 1.5 / (np.linalg.norm(slope) + 1e-6))
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        state = state * (1 - rates[step - 1] * 0.3)
        size = rates[step - 1] / (1 - 0.9**step)
        state = state - size * m / (np.sqrt(v) / np.sqrt(1 - 0.999**step) + 1e-8)
        # optax takes powers of the decay rates in 32 bits.
        np.testing.assert_allclose(found, state, rtol=1e-5)


def test_sgd_leaves_out_biases_where_weights_decay() -> None:
    optimiser = hf_optimiser(0.1, 6, optimiser="sgd", schedule="constant", weight_decay=0.5)
    slopes: Any = {"bias": jnp.asarray([0.1, 0.2]), "weight": jnp.zeros((1, 2))}
    state = {"bias": jnp.ones(2), "weight": jnp.ones((1, 2))}
    found: Any = optimiser.update(slopes, optimiser.init(state), state)[0]
    np.testing.assert_allclose(found["bias"], [-0.01, -0.02], rtol=1e-12)
    np.testing.assert_allclose(found["weight"], [[-0.05, -0.05]], rtol=1e-12)


def test_schedules_are_those_of_transformers() -> None:
    # By hand from `get_linear_schedule_with_warmup` and its relatives.
    wanted: dict[Any, list[float]] = {
        "linear": [0, 0.5, 1, 0.75, 0.5, 0.25],
        "cosine": [0, 0.5, 1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4],
        "constant": [0, 0.5, 1, 1, 1, 1],
    }
    for schedule, factors in wanted.items():
        found = hf_rates(3.0, 6, schedule=schedule, warmup_steps=2)
        np.testing.assert_allclose(found, 3 * np.array(factors), atol=1e-15)
    np.testing.assert_allclose(hf_rates(3.0, 3), [3, 2, 1])
    np.testing.assert_array_equal(hf_rates([1e-6, 2e-6], 2), [1e-6, 2e-6])


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (dict(optimiser="lion"), 'Argument `optimiser` must be "adamw" or "sgd", but is \'lion\'.'),
        (
            dict(schedule="step"),
            'Argument `schedule` must be "linear", "cosine" or "constant", but is \'step\'.',
        ),
        (dict(adam_betas=(0.9, 1.0)), "Argument `adam_betas` must lie in [0, 1), but is 1.0."),
        (
            dict(learning_rate=[0.1, 0.2]),
            "Argument `learning_rate` must be one number, or one for each of 3 steps, but has "
            "shape (2,).",
        ),
        (
            dict(learning_rate=[0.1] * 3, warmup_steps=0),
            "Argument `warmup_steps` must be None if `learning_rate` has a rate for each step, "
            "but is 0.",
        ),
        (
            dict(max_grad_norm=-1),
            "Argument `max_grad_norm` must be finite and at least 0, but is -1.",
        ),
    ],
    ids=str,
)
def test_what_is_no_such_optimiser_is_refused(asked: dict, sentence: str) -> None:
    assert_refused(hf_optimiser, sentence, **{"learning_rate": 0.1, "steps": 3, **asked})
